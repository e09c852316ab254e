//! The schedule's state machine and the difference between two schedules.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::model::{
    CaptureId, ChangefeedSchedule, ChangefeedUuid, OwnerEpoch, ProcessorAssignment, ProcessorSchedule,
    ProcessorTerm, Revision, ScheduleState, Version,
};
use crate::{MetadataError, Result};

/// The part of a schedule that a capture acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledChangefeed {
    /// Whose.
    pub changefeed: ChangefeedUuid,
    /// The owner; `None` exactly when the state is `Removed`.
    pub owner: Option<CaptureId>,
    /// The state.
    pub state: ScheduleState,
    /// The epoch of the last launch.
    pub epoch: OwnerEpoch,
}

impl From<&ChangefeedSchedule> for ScheduledChangefeed {
    fn from(schedule: &ChangefeedSchedule) -> Self {
        Self {
            changefeed: schedule.changefeed,
            owner: schedule.owner,
            state: schedule.state,
            epoch: schedule.epoch,
        }
    }
}

/// The part of a processor's row that its capture and its owner act on.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduledProcessor {
    /// Which attachment: changefeed, capture, its epoch and the owner epoch that it serves.
    pub term: ProcessorTerm,
    /// The state.
    pub state: ScheduleState,
    /// What it carries.
    pub assignment: ProcessorAssignment,
}

impl From<&ProcessorSchedule> for ScheduledProcessor {
    fn from(row: &ProcessorSchedule) -> Self {
        Self { term: row.term(), state: row.state, assignment: row.assignment.clone() }
    }
}

/// What is not to be done to a changefeed that somebody still carries a part of.
///
/// # Errors
/// [`InvalidTransition`](MetadataError::InvalidTransition) when it `is_carried`: a processor of it is not `Removed`.
pub fn check_not_carried(changefeed: ChangefeedUuid, is_carried: bool, to: &str) -> Result<()> {
    if !is_carried {
        return Ok(());
    }
    let what = format!("a processor of changefeed {changefeed}");
    let to = format!("{to} (its processors have not stopped yet)");
    Err(MetadataError::transition(what, ScheduleState::Removing, to))
}

/// Whether a schedule may go from `origin` to `target`.
///
/// The edges are `Removed -> Launched` (with an owner), `Launched -> Removing` (owner and epoch unchanged),
/// `Removing -> Removed` and `Launched -> Removed` (no owner left). Whether the *caller* may take
/// `Launched -> Removed` (the owner itself, or whoever sealed its capture) is checked where its token is.
///
/// # Errors
/// [`MetadataError::InvalidTransition`] for any other pair; [`MetadataError::InvalidArgument`] when `target`
/// names another changefeed, or an owner where there must be none, or none where there must be one.
pub fn check_schedule_state(origin: &ScheduledChangefeed, target: &ScheduledChangefeed) -> Result<()> {
    use ScheduleState::{Launched, Removed, Removing};
    if origin.changefeed != target.changefeed {
        return Err(MetadataError::invalid(
            "changefeed",
            format!("the target is for {}, the schedule is of {}", target.changefeed, origin.changefeed),
        ));
    }
    let refused = || {
        MetadataError::transition(
            format!("the schedule of changefeed {}", origin.changefeed),
            origin.state,
            target.state,
        )
    };
    match (origin.state, target.state) {
        (Removed, Launched) if target.owner.is_some() => Ok(()),
        (Removed, Launched) => Err(MetadataError::invalid("owner", "a launch needs a capture to launch on")),
        (Launched, Removing) if target.owner == origin.owner && target.epoch == origin.epoch => Ok(()),
        (Launched, Removing) => Err(MetadataError::invalid(
            "owner",
            "owner and epoch stay while a changefeed is being removed from its capture",
        )),
        (Launched | Removing, Removed) if target.owner.is_none() => Ok(()),
        (Launched | Removing, Removed) => {
            Err(MetadataError::invalid("owner", "a removed schedule has no owner"))
        }
        _ => Err(refused()),
    }
}

/// What changed from `origin` to `target`, as the rows to act on, ordered by uuid.
///
/// Neither list needs an order. A changefeed that is only in `target`, or that differs in state, owner *or
/// epoch*, is given as it is in `target`; one that is only in `origin` is given as `Removed` without an
/// owner. What is `Removed` on both sides, or `Removed` and absent, is no change.
pub fn diff_scheduled_changefeeds(
    origin: &[ScheduledChangefeed],
    target: &[ScheduledChangefeed],
) -> Vec<ScheduledChangefeed> {
    let sorted = |list: &[ScheduledChangefeed]| {
        let mut list = list.to_vec();
        list.sort_by_key(|item| item.changefeed);
        list
    };
    let (origin, target) = (sorted(origin), sorted(target));
    let (mut old, mut new) = (origin.iter().peekable(), target.iter().peekable());
    let mut changes = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(before), Some(after)) => before.changefeed.cmp(&after.changefeed),
        };
        let before = if order == Ordering::Greater { None } else { old.next() };
        let after = if order == Ordering::Less { None } else { new.next() };
        match (before, after) {
            (Some(before), None) if before.state != ScheduleState::Removed => {
                changes.push(ScheduledChangefeed { owner: None, state: ScheduleState::Removed, ..*before });
            }
            (None, Some(after)) if after.state != ScheduleState::Removed => changes.push(*after),
            (Some(before), Some(after)) if before != after => {
                let both_removed =
                    before.state == ScheduleState::Removed && after.state == ScheduleState::Removed;
                if !both_removed {
                    changes.push(*after);
                }
            }
            _ => {}
        }
    }
}

/// What new assignments make of a changefeed's processor rows, as
/// [`processor_assign`](crate::store::OwnerStore::processor_assign) wants it. The owner's term is checked by the caller.
///
/// # Errors
/// [`MetadataError::Conflict`] when `rows` are not exactly those that were `seen`; [`MetadataError::InvalidArgument`] for a
/// capture that has no row, or whose row is not `Launched` under `owner_epoch`.
pub fn assign_processors(
    rows: &[ProcessorSchedule],
    owner_epoch: OwnerEpoch,
    seen: &BTreeMap<CaptureId, Version>,
    assignments: &BTreeMap<CaptureId, ProcessorAssignment>,
    revision: Revision,
) -> Result<Vec<ProcessorSchedule>> {
    let by_capture: BTreeMap<CaptureId, &ProcessorSchedule> =
        rows.iter().map(|row| (row.capture, row)).collect();
    if !by_capture.iter().map(|(capture, row)| (capture, &row.version)).eq(seen) {
        return Err(MetadataError::conflict("the changefeed's processors are not those that were seen"));
    }
    let assigned = assignments.iter().map(|(capture, assignment)| {
        let wrong =
            |why: &str| Err(MetadataError::invalid("assignments", format!("capture {capture} {why}")));
        match by_capture.get(capture) {
            None => wrong("is no processor of the changefeed: attach it first"),
            Some(row) if row.state != ScheduleState::Launched => {
                wrong(&format!("is {} as a processor, not launched: it takes no orders", row.state))
            }
            Some(row) if row.owner_epoch != owner_epoch => {
                wrong(&format!("serves owner epoch {}, not {owner_epoch}", row.owner_epoch))
            }
            Some(row) => Ok(ProcessorSchedule {
                assignment: assignment.clone(),
                revision,
                version: Version(row.version.0 + 1),
                ..(*row).clone()
            }),
        }
    });
    assigned.collect()
}

/// What changed from `origin` to `target`, ordered by key: a capture keeps its processors by changefeed, an owner keeps
/// those of its changefeed by capture.
///
/// A processor that is only in `target`, or that differs in state, epoch, owner epoch *or assignment*, is given as it is in
/// `target`; one that is only in `origin` is given as `Removed`, with the term and the assignment that it had. What is
/// `Removed` on both sides *under one term*, or `Removed` and absent, is no change.
pub fn diff_processors<K: Copy + Ord>(
    origin: &BTreeMap<K, ScheduledProcessor>,
    target: &BTreeMap<K, ScheduledProcessor>,
) -> Vec<ScheduledProcessor> {
    let gone = |processor: &ScheduledProcessor| processor.state == ScheduleState::Removed;
    let mut changes = BTreeMap::new();
    for (key, before) in origin.iter().filter(|(key, before)| !gone(before) && !target.contains_key(key)) {
        changes.insert(*key, ScheduledProcessor { state: ScheduleState::Removed, ..before.clone() });
    }
    for (key, after) in target {
        let changed = match origin.get(key) {
            None => !gone(after),
            Some(before) if gone(before) && gone(after) => before.term != after.term,
            Some(before) => before != after,
        };
        if changed {
            changes.insert(*key, after.clone());
        }
    }
    changes.into_values().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::model::ProcessorEpoch;

    fn item() -> impl Strategy<Value = ScheduledChangefeed> {
        (0..12_u64, 0..3_u128, prop::sample::select(ScheduleState::ALL.to_vec()), 0..3_u64).prop_map(
            |(changefeed, owner, state, epoch)| ScheduledChangefeed {
                changefeed: ChangefeedUuid(changefeed),
                owner: (state != ScheduleState::Removed).then(|| CaptureId(Uuid::from_u128(owner + 1))),
                state,
                epoch: OwnerEpoch(epoch),
            },
        )
    }

    fn list() -> impl Strategy<Value = Vec<ScheduledChangefeed>> {
        prop::collection::vec(item(), 0..10).prop_map(|items| {
            let by_key: BTreeMap<_, _> = items.into_iter().map(|item| (item.changefeed, item)).collect();
            by_key.into_values().collect()
        })
    }

    fn processors() -> impl Strategy<Value = BTreeMap<u64, ScheduledProcessor>> {
        let state = prop::sample::select(ScheduleState::ALL.to_vec());
        let one = (state, 1..3_u64, 1..3_u64, 0..2_u8).prop_map(|(state, epoch, owner_epoch, tables)| {
            let term = ProcessorTerm {
                changefeed: ChangefeedUuid(1),
                capture: CaptureId(Uuid::from_u128(1)),
                epoch: ProcessorEpoch(epoch),
                owner_epoch: OwnerEpoch(owner_epoch),
            };
            ScheduledProcessor { term, state, assignment: ProcessorAssignment(tables.into()) }
        });
        prop::collection::btree_map(0..6_u64, one, 0..6)
    }

    fn live(list: &[ScheduledChangefeed]) -> BTreeMap<ChangefeedUuid, ScheduledChangefeed> {
        list.iter()
            .filter(|item| item.state != ScheduleState::Removed)
            .map(|item| (item.changefeed, *item))
            .collect()
    }

    proptest! {
        /// Regression: defect 12 (the original stops when either list ends, and ignores an owner change at
        /// equal state). Applying the difference to the origin must give the target.
        #[test]
        fn defect_12_applying_the_difference_gives_the_target(origin in list(), target in list(), reverse: bool) {
            let mut shuffled = target.clone();
            if reverse { shuffled.reverse(); }
            let changes = diff_scheduled_changefeeds(&origin, &shuffled);
            let mut applied = live(&origin);
            for change in &changes {
                if change.state == ScheduleState::Removed {
                    applied.remove(&change.changefeed);
                } else {
                    applied.insert(change.changefeed, *change);
                }
            }
            prop_assert_eq!(applied, live(&target));
            // And it says nothing of what did not change.
            for change in &changes {
                prop_assert_ne!(
                    origin.iter().find(|item| item.changefeed == change.changefeed),
                    Some(change)
                );
            }
        }

        #[test]
        fn no_difference_to_itself(list in list()) {
            prop_assert!(diff_scheduled_changefeeds(&list, &list).is_empty());
        }

        /// Regression: defect 2 (the original compares owners by pointer, so `Removing` is always refused).
        #[test]
        fn defect_2_exactly_the_documented_edges(origin in item(), target in item()) {
            let target = ScheduledChangefeed { changefeed: origin.changefeed, ..target };
            let allowed = match (origin.state, target.state) {
                (ScheduleState::Removed, ScheduleState::Launched)
                | (ScheduleState::Launched | ScheduleState::Removing, ScheduleState::Removed) => true,
                (ScheduleState::Launched, ScheduleState::Removing) =>
                    origin.owner == target.owner && origin.epoch == target.epoch,
                _ => false,
            };
            prop_assert_eq!(check_schedule_state(&origin, &target).is_ok(), allowed);
        }

        /// Whoever applies the difference to what it knew knows the target: each state, term and assignment of what lives.
        #[test]
        fn applying_the_processors_difference_gives_the_target(origin in processors(), target in processors()) {
            let alive = |map: &BTreeMap<u64, ScheduledProcessor>| {
                let mut map = map.clone();
                map.retain(|_, of| of.state != ScheduleState::Removed);
                map
            };
            let keyed = |map: &BTreeMap<u64, ScheduledProcessor>| -> BTreeMap<u64, ScheduledProcessor> {
                let named = |(key, of): (&u64, &ScheduledProcessor)| {
                    let term = ProcessorTerm { changefeed: ChangefeedUuid(*key), ..of.term };
                    (*key, ScheduledProcessor { term, ..of.clone() })
                };
                map.iter().map(named).collect()
            };
            let (origin, target) = (keyed(&origin), keyed(&target));
            let changes = diff_processors(&origin, &target);
            prop_assert!(changes.is_sorted_by_key(|change| change.term.changefeed));
            let mut applied = origin.clone();
            for change in &changes {
                prop_assert_ne!(origin.get(&change.term.changefeed.0), Some(change), "no news");
                applied.insert(change.term.changefeed.0, change.clone());
            }
            prop_assert_eq!(alive(&applied), alive(&target));
            prop_assert!(diff_processors(&target, &target).is_empty());
        }
    }
}
