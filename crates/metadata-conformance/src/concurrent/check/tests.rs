//! A lawful history, and one violation of each kind planted into it.

use metadata_api::model::{
    CaptureId, CaptureTerm, ChangefeedUuid, ControllerEpoch, ControllerTerm, OwnerEpoch, OwnerTerm, Revision,
    ScheduleState, Ts, Version,
};
use uuid::Uuid;

use super::{Rule, check};
use crate::concurrent::history::{Call, Event, Fact, Outcome, Row};

const FEED: ChangefeedUuid = ChangefeedUuid(7);

fn capture(n: u128) -> CaptureTerm {
    CaptureTerm { capture: CaptureId(Uuid::from_u128(n)) }
}

fn term(epoch: u64) -> ControllerTerm {
    ControllerTerm { capture: CaptureId(Uuid::from_u128(epoch.into())), epoch: ControllerEpoch(epoch) }
}

fn owner(n: u128, epoch: u64) -> OwnerTerm {
    OwnerTerm { changefeed: FEED, capture: capture(n).capture, epoch: OwnerEpoch(epoch) }
}

fn row(version: u64, revision: u64, owner: Option<OwnerTerm>, state: ScheduleState, epoch: u64) -> Row {
    Row {
        changefeed: FEED,
        version: Version(version),
        revision: Revision(revision),
        owner: owner.map(|term| term.capture),
        state,
        epoch: OwnerEpoch(epoch),
    }
}

fn election(leader: Option<u64>, epoch: u64, lease_seq: u64) -> Fact {
    let leader = leader.map(|leader| term(leader).capture);
    Fact::Election { leader, epoch: ControllerEpoch(epoch), lease_seq }
}

/// Calls one after the other.
#[derive(Default)]
struct Story(Vec<Event>);

impl Story {
    fn then(&mut self, call: Call, facts: &[Fact]) -> &mut Self {
        self.came(call, Outcome::Done, facts)
    }

    fn came(&mut self, call: Call, outcome: Outcome, facts: &[Fact]) -> &mut Self {
        let invoked = self.0.last().map_or(0, |event| event.returned + 1);
        let event = Event { client: 0, invoked, returned: invoked + 1, call, outcome, facts: facts.to_vec() };
        self.0.push(event);
        self
    }
}

/// Two terms; a changefeed is created, launched, reported, released, launched elsewhere, taken, and launched again. Captures 1
/// and 2 watch.
fn lawful() -> Story {
    use ScheduleState::{Launched, Removed, Removing};
    let mut s = Story::default();
    let (one, two) = (owner(1, 20), owner(2, 40));
    s.then(Call::Campaign(capture(1)), &[Fact::Elected(term(1))]);
    s.then(Call::Read, &[election(Some(1), 1, 1)]);
    s.then(Call::Operate, &[Fact::Wrote(row(1, 10, None, Removed, 0))]);
    s.then(Call::Poll(capture(1), Revision(0)), &[Fact::Revision(Revision(10))]);
    s.then(Call::AsController(term(1)), &[Fact::Wrote(row(2, 20, Some(one), Launched, 20))]);
    let seen = [Fact::Revision(Revision(20)), Fact::Saw(row(2, 20, Some(one), Launched, 20))];
    s.then(Call::Poll(capture(1), Revision(10)), &seen);
    s.then(Call::AsOwner(one), &[]);
    s.then(Call::Advance(capture(1), vec![(FEED, OwnerEpoch(20), Ts(105))]), &[]);
    s.then(Call::Read, &[Fact::Checkpoint(FEED, Ts(105))]);
    s.then(Call::Campaign(capture(2)), &[Fact::Elected(term(2))]);
    s.came(Call::AsController(term(1)), Outcome::Refused, &[]);
    s.then(Call::AsController(term(2)), &[Fact::Wrote(row(3, 25, Some(one), Removing, 20))]);
    s.then(Call::Release(one), &[]);
    s.then(Call::Read, &[Fact::Saw(row(4, 30, None, Removed, 20)), Fact::Checkpoint(FEED, Ts(110))]);
    s.then(Call::AsController(term(2)), &[Fact::Wrote(row(5, 40, Some(two), Launched, 40))]);
    s.then(Call::Beat(capture(2)), &[]);
    s.then(Call::AsController(term(2)), &[Fact::Sealed(capture(2).capture)]);
    s.came(Call::Beat(capture(2)), Outcome::Refused, &[]);
    s.came(Call::Take(term(2), capture(2).capture), Outcome::Unknown, &[]);
    let again = row(7, 60, Some(owner(1, 60)), Launched, 60);
    s.then(Call::AsController(term(2)), &[Fact::Wrote(again)]);
    let seen = [Fact::Revision(Revision(65)), Fact::Saw(again), election(Some(2), 2, 4)];
    s.then(Call::Poll(capture(1), Revision(20)), &seen);
    s.then(Call::Operate, &[]);
    s.then(Call::Read, &[election(None, 2, 5)]);
    s.then(Call::Last, &[Fact::Saw(again), Fact::Revision(Revision(65)), Fact::Checkpoint(FEED, Ts(110))]);
    s
}

#[test]
fn a_lawful_history_passes() {
    assert_eq!(check(&lawful().0), []);
}

/// What `plant` makes of the lawful history breaks `rule`.
#[track_caller]
fn breaks(rule: Rule, plant: impl FnOnce(&mut Story)) {
    let mut story = lawful();
    plant(&mut story);
    let violations = check(&story.0);
    assert!(violations.iter().any(|violation| violation.rule == rule), "want {rule:?}, got {violations:?}");
}

/// The lawful history and one more call break `rule`.
#[track_caller]
fn breaks_next(rule: Rule, call: Call, facts: &[Fact]) {
    breaks(rule, |story| {
        story.then(call, facts);
    });
}

/// The facts of the `n`-th call that `is` one.
fn facts(story: &mut Story, n: usize, is: impl Fn(&Call) -> bool) -> &mut Vec<Fact> {
    &mut story.0.iter_mut().filter(|event| is(&event.call)).nth(n).expect("such a call").facts
}

fn is_poll(call: &Call) -> bool {
    matches!(call, Call::Poll(..))
}

#[test]
fn an_epoch_with_two_holders_is_found() {
    breaks(Rule::OneHolderAnEpoch, |story| {
        *facts(story, 0, |call| *call == Call::Read) = vec![election(Some(3), 1, 1)]
    });
    breaks(Rule::OneHolderAnEpoch, |story| {
        let other = ControllerTerm { epoch: ControllerEpoch(2), ..term(9) };
        story.then(Call::Campaign(capture(9)), &[Fact::Elected(other)]);
    });
}

#[test]
fn an_epoch_that_does_not_grow_is_found() {
    breaks(Rule::EpochsGrow, |story| {
        story.then(Call::Read, &[election(Some(1), 1, 6)]);
    });
    breaks(Rule::EpochsGrow, |story| {
        story.then(Call::Campaign(capture(2)), &[Fact::Elected(term(2))]);
    });
    breaks(Rule::EpochsGrow, |story| {
        story.then(Call::Read, &[election(Some(2), 2, 3)]);
    });
}

#[test]
fn a_revision_that_does_not_grow_is_found() {
    let wrote = |version, revision| Fact::Wrote(row(version, revision, None, ScheduleState::Removed, 60));
    breaks_next(Rule::RevisionsGrow, Call::Operate, &[wrote(8, 64)]);
    breaks(Rule::RevisionsGrow, |story| {
        story.then(Call::Read, &[Fact::Revision(Revision(64))]);
    });
    // Two writes that overlap, of one revision.
    breaks(Rule::RevisionsGrow, |story| {
        story.then(Call::Operate, &[wrote(8, 70)]);
        let mut other = story.0.last().expect("an event").clone();
        (other.invoked, other.facts) = (other.invoked + 1, vec![wrote(9, 70)]);
        story.0.push(other);
    });
    // One version, two rows.
    breaks(Rule::RevisionsGrow, |story| {
        story.then(Call::Read, &[Fact::Saw(row(5, 41, Some(owner(2, 40)), ScheduleState::Launched, 40))]);
    });
}

#[test]
fn a_write_by_an_old_token_is_found() {
    breaks_next(Rule::OldToken, Call::AsController(term(1)), &[]);
    // Vacant: nobody may write by the last epoch either.
    breaks_next(Rule::OldToken, Call::AsController(term(2)), &[]);
    breaks_next(Rule::OldToken, Call::AsOwner(owner(1, 20)), &[]);
    breaks_next(Rule::OldToken, Call::Release(owner(2, 40)), &[]);
    breaks_next(Rule::OldToken, Call::Beat(capture(2)), &[]);
    breaks_next(Rule::OldToken, Call::Advance(capture(2), vec![]), &[]);
    breaks_next(Rule::OldToken, Call::Campaign(capture(2)), &[]);
    // What was taken from a capture is nobody's to write, and nothing is taken from one that lives.
    breaks(Rule::OldToken, |story| {
        story.then(Call::Take(term(3), capture(1).capture), &[]).then(Call::Beat(capture(1)), &[]);
    });
    // After its release, and before anybody else was launched.
    breaks(Rule::OldToken, |story| {
        story.then(Call::Release(owner(1, 60)), &[]).then(Call::AsOwner(owner(1, 60)), &[]);
    });
    // Onto a capture that is sealed.
    breaks(Rule::OldToken, |story| {
        story.came(Call::Release(owner(1, 60)), Outcome::Unknown, &[]);
        let launched = row(9, 80, Some(owner(2, 80)), ScheduleState::Launched, 80);
        story.then(Call::AsController(term(3)), &[Fact::Wrote(launched)]);
    });
    // Overlapping calls are told apart by their revisions.
    breaks(Rule::OldToken, |story| {
        let mut late = story.0[4].clone();
        late.facts = vec![Fact::Wrote(row(8, 70, None, ScheduleState::Removed, 60))];
        story.0.push(late);
    });
}

#[test]
fn a_change_that_a_watcher_missed_is_found() {
    breaks(Rule::WatchersSeeAll, |story| {
        facts(story, 1, is_poll).pop();
    });
    breaks(Rule::WatchersSeeAll, |story| {
        facts(story, 2, is_poll).remove(1);
    });
    // A row that the poll's revision does not cover yet.
    breaks(Rule::WatchersSeeAll, |story| facts(story, 2, is_poll)[0] = Fact::Revision(Revision(50)));
}

#[test]
fn a_checkpoint_that_goes_back_is_found() {
    breaks(Rule::CheckpointsGrow, |story| {
        story.then(Call::Read, &[Fact::Checkpoint(FEED, Ts(109))]);
    });
    // An acknowledged one that was lost.
    breaks(Rule::CheckpointsGrow, |story| {
        story.then(Call::Advance(capture(1), vec![(FEED, OwnerEpoch(60), Ts(120))]), &[]);
        story.then(Call::Read, &[Fact::Checkpoint(FEED, Ts(110))]);
    });
}

/// What an owner reports whose launch may be over counts for nothing.
#[test]
fn a_checkpoint_of_an_old_launch_may_be_lost() {
    let mut story = lawful();
    story.then(Call::Advance(capture(1), vec![(FEED, OwnerEpoch(20), Ts(500))]), &[]);
    story.then(Call::Read, &[Fact::Checkpoint(FEED, Ts(110))]);
    assert_eq!(check(&story.0), []);
}

#[test]
fn a_second_owner_is_found() {
    // Launched over a launch.
    breaks(Rule::OneOwner, |story| {
        let launched = row(8, 80, Some(owner(3, 80)), ScheduleState::Launched, 80);
        story.then(Call::AsController(term(3)), &[Fact::Wrote(launched)]);
    });
    // One launch on two captures.
    breaks(Rule::OneOwner, |story| {
        story.then(Call::Read, &[Fact::Saw(row(8, 80, Some(owner(3, 60)), ScheduleState::Removing, 60))]);
    });
    // With a version between that nobody saw; but nobody had released it either.
    breaks(Rule::OneOwner, |story| {
        let launched = row(9, 80, Some(owner(3, 80)), ScheduleState::Launched, 80);
        story.then(Call::AsController(term(3)), &[Fact::Wrote(launched)]);
    });
    // The epoch goes back.
    breaks(Rule::OneOwner, |story| {
        story.then(Call::Read, &[Fact::Saw(row(8, 80, None, ScheduleState::Removed, 40))]);
    });
}
