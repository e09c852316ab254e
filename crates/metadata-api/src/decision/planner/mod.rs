//! What a controller does about a snapshot of the cluster, and why.
//!
//! [`plan_calmly`] is a pure function of the snapshot, the policy, what the controller remembers and its clock; [`plan`] is
//! the same without a memory. Neither ever plans two owners, since they only launch what is `Removed`; every action carries
//! the version on which it was decided, and the store refuses it when the row moved since.
//!
//! In order:
//! 1. **failover**: what is owned by a sealed capture, or by one without a row, is taken from it ([`Action::Release`]);
//!    what ought to run and is `Removed` is launched on the capture that has least of those with the labels that it asks
//!    for;
//! 2. **what must not run** (paused, ended, removed, on a capture without its labels) and is `Launched` is told to stop;
//!    what is removed and stopped is cleaned up;
//! 3. **drain**: what is on a draining capture, and may run elsewhere, is told to stop, a few at a time, so that none waits
//!    for all the others;
//! 4. **balance**: with nothing else to do, one changefeed is told to stop on a capture that has more than another, if that
//!    brings the two closer; then 1 launches it.
//!
//! The load of a capture is the sum of the weights of what it runs; what is on its way counts where it goes to.

mod balance;
mod explain;
mod memory;
mod places;
#[cfg(test)]
mod tests;
mod why;

use std::collections::BTreeSet;
use std::time::Duration;

pub use explain::explain;
pub use memory::PlanMemory;
pub use why::Why;

use self::memory::Calm;
use self::places::Places;
use super::by_id::ById;
use crate::model::{
    BootTime, CaptureId, CaptureInfo, CaptureState, ChangefeedUuid, Placement, ScheduleSnapshot,
    ScheduleState, ScheduleTarget, SnapshotChangefeed, Version,
};
use crate::store::MAX_BATCH;
use crate::{MetadataError, Result};

/// What the planner may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanPolicy {
    /// Whether anything may be launched. Not so for a while after a restored database.
    pub may_launch: bool,
    /// How many changefeeds may be on their way at a time to even out the loads.
    pub moves_in_flight: usize,
    /// How many changefeeds may be stopping at a time to empty captures that drain.
    pub drains_in_flight: usize,
    /// How long a changefeed that has changed hands is not moved for the sake of balance.
    pub feed_cooldown: Duration,
    /// How long a capture that has joined is neither emptied nor filled for the sake of balance. Twice as long for the third
    /// that joins at its address within [`flap_window`](Self::flap_window), and so on.
    pub capture_cooldown: Duration,
    /// How long at most.
    pub capture_cooldown_max: Duration,
    /// A capture whose heartbeat number was the same for so long is not filled for the sake of balance, and gets only what no
    /// other capture may run: it may be dead, long before that is certain.
    pub silent_after: Duration,
    /// How long a join is remembered.
    pub flap_window: Duration,
    /// With so many joins at its address within the window a capture flaps: until its cool-down has passed it gets only
    /// what no other capture may run.
    pub flaps: usize,
}

impl Default for PlanPolicy {
    fn default() -> Self {
        Self {
            may_launch: true,
            moves_in_flight: 1,
            drains_in_flight: 10,
            feed_cooldown: Duration::from_secs(15),
            capture_cooldown: Duration::from_secs(5),
            capture_cooldown_max: Duration::from_secs(60),
            silent_after: Duration::from_secs(3),
            flap_window: Duration::from_secs(600),
            flaps: 4,
        }
    }
}

impl PlanPolicy {
    /// Checks that work can get along with it: at least one and at most [`MAX_BATCH`] changefeeds on their way, no time longer than
    /// a day, and no cool-down that begins above its own limit.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] with the field, its value and what would be right.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in
            [("moves_in_flight", self.moves_in_flight), ("drains_in_flight", self.drains_in_flight)]
        {
            if !(1..=MAX_BATCH).contains(&value) {
                return Err(MetadataError::invalid(field, format!("{value} is not from 1 to {MAX_BATCH}")));
            }
        }
        for (field, value) in [
            ("feed_cooldown", self.feed_cooldown),
            ("capture_cooldown_max", self.capture_cooldown_max),
            ("silent_after", self.silent_after),
            ("flap_window", self.flap_window),
        ] {
            if value > MAX_TIME {
                return Err(MetadataError::invalid(field, format!("{value:?} is longer than a day")));
            }
        }
        if self.capture_cooldown > self.capture_cooldown_max {
            let (value, max) = (self.capture_cooldown, self.capture_cooldown_max);
            let reason = format!("{value:?} is longer than capture_cooldown_max ({max:?})");
            return Err(MetadataError::invalid("capture_cooldown", reason));
        }
        Ok(())
    }
}

/// The longest time of a [`PlanPolicy`].
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);

/// One step that the controller takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Launch or stop an owner: [`owner_set`](crate::store::ControllerStore::owner_set).
    SetOwner(ScheduleTarget),
    /// Take everything from a capture that is sealed or has no row, then delete its rows:
    /// [`capture_release`](crate::store::ControllerStore::capture_release) and
    /// [`capture_delete`](crate::store::ControllerStore::capture_delete).
    Release(CaptureId),
    /// Delete a changefeed that is removed and stopped:
    /// [`changefeed_cleanup`](crate::store::ControllerStore::changefeed_cleanup).
    Cleanup {
        /// Which.
        changefeed: ChangefeedUuid,
        /// Its schedule's version.
        expected_version: Version,
    },
}

/// An action and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// Why.
    pub why: Why,
}

impl Step {
    fn is_release(&self) -> bool {
        matches!(self.action, Action::Release(_))
    }
}

/// What [`plan_calmly`] answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do now.
    pub steps: Vec<Step>,
    /// When to plan again even if nothing changes: something would be moved, but is left alone until then.
    pub again_at: Option<BootTime>,
}

/// What to do about `snapshot`, in the order given in the module's text, with nobody left alone.
pub fn plan(snapshot: &ScheduleSnapshot, policy: &PlanPolicy) -> Vec<Action> {
    decide(snapshot, policy, &Calm::default()).into_iter().map(|step| step.action).collect()
}

/// The same, leaving alone for a while what `memory` says has just moved, joined or flapped. `memory` is brought up to
/// date: it belongs to one term of one controller, whose clock says `now`.
pub fn plan_calmly(
    snapshot: &ScheduleSnapshot,
    policy: &PlanPolicy,
    memory: &mut PlanMemory,
    now: BootTime,
) -> Plan {
    memory.look(snapshot, policy, now);
    let calm = memory.calm(policy, now);
    let steps = decide(snapshot, policy, &calm);
    memory.act(snapshot, &steps, now);
    let held_back = || decide(snapshot, policy, &Calm::default()).len() > steps.len();
    let idle = steps.iter().all(Step::is_release);
    let again_at = calm.first_end.filter(|_| idle && held_back());
    Plan { steps, again_at }
}

fn decide(snapshot: &ScheduleSnapshot, policy: &PlanPolicy, calm: &Calm) -> Vec<Step> {
    let known: Known<'_> = snapshot.captures.iter().map(|capture| (capture.id, capture)).collect();
    let mut steps = releases(snapshot, &known);
    let mut places = Places::new(snapshot, calm);
    let sorted = Sorted::of(snapshot, &known, &mut places, &mut steps);
    // What is on its way counts where it will be, so that the next one does not go there as well.
    for (_, placement) in &sorted.leaving {
        let _ = put(placement, &mut places);
    }
    let mut launched = 0;
    for (feed, placement) in &sorted.unowned {
        if let Some(why) = policy.may_launch.then(|| put(placement, &mut places)).flatten() {
            let Why::Unowned { to, .. } = &why else { continue };
            steps.push(set_owner(feed, ScheduleState::Launched, Some(*to), why.clone()));
            launched += 1;
        }
    }
    if !policy.may_launch {
        return steps;
    }
    if launched <= policy.drains_in_flight {
        let slots = policy.drains_in_flight.saturating_sub(sorted.drained);
        drain(&sorted.draining, &mut places, slots, &mut steps);
    }
    // What is being taken from a dead capture counts as moving, and uses up the slots; one that cannot be emptied must not keep
    // all others as they are.
    if steps.iter().all(Step::is_release) {
        let slots = policy.moves_in_flight.saturating_sub(sorted.moving);
        balance::even_out(snapshot, &mut places, calm, slots, &mut steps);
    }
    steps
}

/// The captures that have a row.
type Known<'a> = ById<&'a CaptureInfo>;

/// The changefeeds by what is to be done about them.
#[derive(Default)]
struct Sorted<'a> {
    unowned: Vec<(&'a SnapshotChangefeed, &'a Placement)>,
    /// On a draining capture.
    draining: Vec<(&'a SnapshotChangefeed, CaptureId, &'a Placement)>,
    /// Being stopped, and to run again.
    leaving: Vec<(&'a SnapshotChangefeed, &'a Placement)>,
    /// How many are being stopped, or taken from a capture.
    moving: usize,
    /// How many of those are on draining captures: what is stuck elsewhere holds up no drain.
    drained: usize,
}

impl<'a> Sorted<'a> {
    /// Counts the loads into `places`, and plans what needs no thought.
    fn of(
        snapshot: &'a ScheduleSnapshot,
        known: &Known<'_>,
        places: &mut Places<'a>,
        steps: &mut Vec<Step>,
    ) -> Self {
        let mut sorted = Self::default();
        for feed in &snapshot.changefeeds {
            let weight = feed.placement.as_ref().map_or(1, |placement| placement.weight);
            let may_run = feed.state.is_runnable() && !feed.removed;
            match task(feed, known) {
                Task::Stop(why) => steps.push(stop(feed, why)),
                Task::Cleanup => steps.push(Step {
                    action: Action::Cleanup {
                        changefeed: feed.schedule.changefeed,
                        expected_version: feed.schedule.version,
                    },
                    why: Why::Removed,
                }),
                Task::Launch => sorted.unowned.extend(feed.placement.as_ref().ok().map(|p| (feed, p))),
                Task::Drain(from) => {
                    sorted.draining.extend(feed.placement.as_ref().ok().map(|p| (feed, from, p)));
                }
                Task::Wait => {
                    sorted.moving += 1;
                    let owner = feed.schedule.owner.and_then(|owner| known.get(&owner));
                    sorted.drained +=
                        usize::from(owner.is_some_and(|info| info.state == CaptureState::Draining));
                    if may_run {
                        sorted.leaving.extend(feed.placement.as_ref().ok().map(|p| (feed, p)));
                    }
                }
                Task::Nothing => {
                    if let Some(place) = feed.schedule.owner.and_then(|owner| places.find(owner)) {
                        places.put(place, weight);
                    }
                }
            }
        }
        sorted
    }
}

/// What is to be done about one changefeed.
enum Task {
    Stop(Why),
    Cleanup,
    Launch,
    Drain(CaptureId),
    /// It is being stopped, or its owner is being taken from it.
    Wait,
    Nothing,
}

fn task(feed: &SnapshotChangefeed, known: &Known<'_>) -> Task {
    let may_run = feed.state.is_runnable() && !feed.removed;
    match (feed.schedule.state, feed.schedule.owner) {
        (ScheduleState::Launched, Some(owner)) => match known.get(&owner) {
            None => Task::Wait,
            Some(info) if info.state == CaptureState::Offline => Task::Wait,
            Some(_) if !may_run => Task::Stop(Why::NotToRun(feed.state)),
            Some(info) => match misplaced(feed, info) {
                Some(why) => Task::Stop(why),
                None if info.state == CaptureState::Draining => Task::Drain(owner),
                None => Task::Nothing,
            },
        },
        (ScheduleState::Removed, _) if feed.removed && feed.live_processors == 0 => Task::Cleanup,
        (ScheduleState::Removed, _) if may_run && feed.live_processors == 0 => Task::Launch,
        (ScheduleState::Removed, _) => Task::Nothing,
        (ScheduleState::Removing, _) | (ScheduleState::Launched, None) => Task::Wait,
    }
}

/// Why it may not be where it is.
fn misplaced(feed: &SnapshotChangefeed, owner: &CaptureInfo) -> Option<Why> {
    let wants = feed.placement.as_ref().ok()?;
    (!wants.admits(&owner.labels)).then(|| Why::Affinity { at: owner.id, wants: wants.clone() })
}

fn releases(snapshot: &ScheduleSnapshot, known: &Known<'_>) -> Vec<Step> {
    let offline = snapshot.captures.iter().filter(|info| info.state == CaptureState::Offline);
    let owners = snapshot.changefeeds.iter().filter_map(|feed| feed.schedule.owner);
    let without_row = owners.filter(|owner| !known.contains_key(owner));
    let dead: BTreeSet<_> = offline.map(|info| info.id).chain(without_row).collect();
    let named: BTreeSet<_> = snapshot.changefeeds.iter().filter_map(|feed| feed.schedule.owner).collect();
    // What is left of it may be named by what cannot be read: then nothing can be taken, and its rows not be deleted.
    let may_be_pinned =
        !snapshot.unreadable.is_empty() && snapshot.changefeeds.iter().all(|feed| feed.live_processors == 0);
    let dead = dead.into_iter().filter(|id| !may_be_pinned || named.contains(id));
    dead.map(|id| Step { action: Action::Release(id), why: Why::CaptureDead(id) }).collect()
}

fn set_owner(feed: &SnapshotChangefeed, state: ScheduleState, owner: Option<CaptureId>, why: Why) -> Step {
    let action = Action::SetOwner(ScheduleTarget {
        changefeed: feed.schedule.changefeed,
        expected_version: feed.schedule.version,
        state,
        owner,
    });
    Step { action, why }
}

fn stop(feed: &SnapshotChangefeed, why: Why) -> Step {
    set_owner(feed, ScheduleState::Removing, None, why)
}

/// Counts it to the capture that has least of those that may run it, and says so; `None` when there is none.
fn put<'a>(placement: &'a Placement, places: &mut Places<'a>) -> Option<Why> {
    let pool = places.pool(placement);
    let place = places.least(pool)?;
    let why = Why::Unowned { to: places.id(place), load: places.load(place), of: places.size(pool) };
    places.put(place, placement.weight);
    Some(why)
}

/// Stops what is on draining captures and may run elsewhere. What may not, runs on: it is better there than nowhere, and than on
/// a capture that may be dead.
fn drain<'a>(
    draining: &[(&'a SnapshotChangefeed, CaptureId, &'a Placement)],
    places: &mut Places<'a>,
    slots: usize,
    steps: &mut Vec<Step>,
) {
    let mut left = slots;
    for (feed, from, placement) in draining {
        if left == 0 {
            return;
        }
        let pool = places.pool(placement);
        let target = places.least(pool).filter(|place| !places.is_shunned(*place));
        if let Some(place) = target {
            places.put(place, placement.weight);
            steps.push(stop(feed, Why::Draining(*from)));
            left -= 1;
        }
    }
}
