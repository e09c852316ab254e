//! Epochs, revisions, and who writes by which token.

use std::collections::BTreeMap;

use metadata_api::model::{
    CaptureId, ChangefeedUuid, ControllerEpoch, ControllerTerm, OwnerEpoch, OwnerTerm, Revision,
    ScheduleState,
};

use super::{Known, Rule, Violation, broken, facts, rows_of};
use crate::concurrent::history::{Call, Event, Fact, Moment, Outcome};

pub(super) fn check(history: &[Event], violations: &mut Vec<Violation>) {
    holders(history, violations);
    let epochs = Known::new(facts(history).filter_map(|(event, fact)| match fact {
        Fact::Elected(term) => Some((event.returned, term.epoch)),
        Fact::Election { epoch, .. } => Some((event.returned, *epoch)),
        _ => None,
    }));
    epochs_grow(history, &epochs, violations);
    revisions_grow(history, violations);
    controllers(history, violations);
    owners(history, violations);
    captures(history, violations);
}

fn holders(history: &[Event], violations: &mut Vec<Violation>) {
    let mut holders: BTreeMap<ControllerEpoch, CaptureId> = BTreeMap::new();
    let mut elected: BTreeMap<ControllerEpoch, &Event> = BTreeMap::new();
    for (event, fact) in facts(history) {
        let (epoch, holder) = match fact {
            Fact::Elected(ControllerTerm { capture, epoch }) => {
                if let Some(other) = elected.insert(*epoch, event) {
                    broken(violations, Rule::OneHolderAnEpoch, event, format!("won before, by {other:?}"));
                }
                (*epoch, *capture)
            }
            Fact::Election { leader: Some(leader), epoch, .. } => (*epoch, *leader),
            _ => continue,
        };
        let first = *holders.entry(epoch).or_insert(holder);
        if first != holder {
            broken(violations, Rule::OneHolderAnEpoch, event, format!("epoch {epoch} was held by {first}"));
        }
    }
}

fn epochs_grow(history: &[Event], epochs: &Known<ControllerEpoch>, violations: &mut Vec<Violation>) {
    let leases = Known::new(facts(history).filter_map(|(event, fact)| match fact {
        Fact::Election { lease_seq, .. } => Some((event.returned, *lease_seq)),
        _ => None,
    }));
    for (event, fact) in facts(history) {
        let floor = epochs.before(event.invoked);
        match fact {
            Fact::Elected(term) if floor.is_some_and(|floor| term.epoch <= floor) => {
                broken(violations, Rule::EpochsGrow, event, format!("elected after epoch {floor:?}"));
            }
            Fact::Election { epoch, .. } if floor.is_some_and(|floor| *epoch < floor) => {
                broken(violations, Rule::EpochsGrow, event, format!("seen after epoch {floor:?}"));
            }
            Fact::Election { lease_seq, .. }
                if leases.before(event.invoked).is_some_and(|floor| *lease_seq < floor) =>
            {
                broken(violations, Rule::EpochsGrow, event, "the lease's sequence went back");
            }
            _ => {}
        }
    }
}

fn revisions_grow(history: &[Event], violations: &mut Vec<Violation>) {
    let revision = |fact: &Fact| match fact {
        Fact::Revision(revision) => Some(*revision),
        Fact::Wrote(row) | Fact::Saw(row) => Some(row.revision),
        _ => None,
    };
    let known =
        Known::new(facts(history).filter_map(|(event, fact)| Some((event.returned, revision(fact)?))));
    let mut writers: BTreeMap<Revision, Moment> = BTreeMap::new();
    for (event, fact) in facts(history) {
        let floor = known.before(event.invoked);
        match fact {
            Fact::Wrote(row) => {
                if floor.is_some_and(|floor| row.revision <= floor) {
                    broken(violations, Rule::RevisionsGrow, event, format!("written after {floor:?}"));
                }
                if *writers.entry(row.revision).or_insert(event.invoked) != event.invoked {
                    broken(violations, Rule::RevisionsGrow, event, "another write has this revision");
                }
            }
            Fact::Revision(revision) if floor.is_some_and(|floor| *revision < floor) => {
                broken(violations, Rule::RevisionsGrow, event, format!("seen after {floor:?}"));
            }
            _ => {}
        }
    }
}

fn controllers(history: &[Event], violations: &mut Vec<Violation>) {
    // The newest epoch that was known, and whether nobody held it any more.
    let epochs = Known::new(facts(history).filter_map(|(event, fact)| match fact {
        Fact::Elected(term) => Some((event.returned, (term.epoch, false))),
        Fact::Election { epoch, leader, .. } => Some((event.returned, (*epoch, leader.is_none()))),
        _ => None,
    }));
    let mut written: Vec<(Revision, ControllerEpoch, &Event)> = Vec::new();
    for event in history.iter().filter(|event| event.outcome == Outcome::Done) {
        let (Call::AsController(term) | Call::Take(term, _)) = &event.call else { continue };
        if let Some((newer, vacant)) =
            epochs.before(event.invoked).filter(|known| *known > (term.epoch, false))
        {
            let text = format!("it was known before that epoch {newer} was there (vacant: {vacant})");
            broken(violations, Rule::OldToken, event, text);
        }
        written.extend(event.facts.iter().filter_map(|fact| match fact {
            Fact::Wrote(row) => Some((row.revision, term.epoch, event)),
            _ => None,
        }));
    }
    written.sort_by_key(|(revision, epoch, _)| (*revision, *epoch));
    for pair in written.windows(2) {
        if let [(_, before, _), (_, after, event)] = pair
            && after < before
        {
            broken(violations, Rule::OldToken, event, format!("epoch {before} wrote at an earlier revision"));
        }
    }
}

fn owners(history: &[Event], violations: &mut Vec<Violation>) {
    /// A launch, and whether it is over.
    type Standing = (OwnerEpoch, bool);
    // Of each changefeed, what was known since when.
    let mut news: BTreeMap<ChangefeedUuid, Vec<(Moment, Standing)>> = BTreeMap::new();
    for (event, row) in rows_of(history) {
        let over = row.state == ScheduleState::Removed;
        news.entry(row.changefeed).or_default().push((event.returned, (row.epoch, over)));
    }
    for event in history.iter().filter(|event| event.outcome == Outcome::Done) {
        if let Call::Release(OwnerTerm { changefeed, epoch, .. }) = &event.call {
            news.entry(*changefeed).or_default().push((event.returned, (*epoch, true)));
        }
    }
    let known: BTreeMap<_, _> = news.into_iter().map(|(uuid, values)| (uuid, Known::new(values))).collect();
    for event in history.iter().filter(|event| event.outcome == Outcome::Done) {
        let (Call::AsOwner(term) | Call::Release(term)) = &event.call else { continue };
        let newest = known.get(&term.changefeed).and_then(|known| known.before(event.invoked));
        if newest.is_some_and(|newest| newest > (term.epoch, false)) {
            broken(
                violations,
                Rule::OldToken,
                event,
                format!("before it was known: {newest:?} (epoch, over)"),
            );
        }
    }
}

fn captures(history: &[Event], violations: &mut Vec<Violation>) {
    let mut sealed: BTreeMap<CaptureId, Moment> = BTreeMap::new();
    for event in history.iter().filter(|event| event.outcome == Outcome::Done) {
        let told = event.facts.iter().filter_map(|fact| match fact {
            Fact::Sealed(capture) => Some(*capture),
            _ => None,
        });
        // Nothing is taken from a capture that is not sealed.
        let taken = match &event.call {
            Call::Take(_, capture) => Some(*capture),
            _ => None,
        };
        for capture in told.chain(taken) {
            let first = sealed.entry(capture).or_insert(event.returned);
            *first = (*first).min(event.returned);
        }
    }
    let before =
        |capture: CaptureId, event: &Event| sealed.get(&capture).is_some_and(|at| *at < event.invoked);
    for event in history.iter().filter(|event| event.outcome == Outcome::Done) {
        let writer = match &event.call {
            Call::Beat(term) | Call::Advance(term, _) | Call::Campaign(term) => Some(term.capture),
            _ => None,
        };
        if writer.is_some_and(|capture| before(capture, event)) {
            broken(violations, Rule::OldToken, event, "its capture was sealed before");
        }
        for fact in &event.facts {
            if let Fact::Wrote(row) = fact
                && row.state == ScheduleState::Launched
                && row.owner.is_some_and(|owner| before(owner, event))
            {
                broken(violations, Rule::OldToken, event, "a launch on a capture that was sealed before");
            }
        }
    }
}
