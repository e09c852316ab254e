//! One changefeed on this capture: what is known, and the pure decision about it.

use metadata_api::model::{OwnerEpoch, ScheduleState};

/// How far a launch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It runs and may flush.
    Admitting,
    /// It was told to stop; the flush in hand may end.
    Draining,
    /// It may not flush, and what it reports is dropped; it is waited for.
    Fenced,
}

/// How a launch ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It stopped because it was told to, or was fenced.
    Stopped,
    /// It reached its target.
    Finished,
    /// It cannot go on without an operator.
    Failed,
    /// It may be tried again, after a while.
    Retry,
}

/// What is known of one changefeed on this capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The last order: its state and epoch. `Removed` = it is not this capture's any more.
    pub order: (ScheduleState, OwnerEpoch),
    /// The task that runs: its epoch and phase.
    pub running: Option<(OwnerEpoch, Phase)>,
    /// How the last task ended, and under which epoch.
    pub ended: Option<(OwnerEpoch, Outcome)>,
    /// A question to the store about it is under way: a launch being looked up, or a release.
    pub asking: bool,
    /// A flush of it ended without anybody knowing how: it has not stopped, and is never released.
    pub unknown_flush: bool,
    /// It waits before it is tried again.
    pub backing_off: bool,
}

/// What is known of the whole capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The capture's deadline has not passed.
    pub alive: bool,
    /// It fenced itself and has not yet recovered: tasks are ending, or the progress is being written and read back.
    pub recovering: bool,
    /// It is stopping for good, gracefully.
    pub stopping: bool,
    /// Its row is sealed or gone: nothing of it holds any more.
    pub expelled: bool,
}

/// What to do about one changefeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchStep {
    /// Nothing now; the next event asks again.
    Wait,
    /// Look the launch up in the store and start it.
    Launch(OwnerEpoch),
    /// Tell the task to stop; its flush in hand may end.
    Drain,
    /// Forbid the task every further flush and report, and tell it to stop.
    Fence,
    /// Write `Removed` with the last progress of this epoch, and how it ended.
    Release(OwnerEpoch),
    /// Forget it.
    Drop,
}

/// What to do about `entry` now. Pure and total.
pub fn next_step(entry: &Entry, now: Situation) -> LaunchStep {
    let (state, epoch) = entry.order;
    if let Some((running, phase)) = entry.running {
        let lost = now.expelled || !now.alive || state == ScheduleState::Removed || running != epoch;
        return match phase {
            Phase::Admitting | Phase::Draining if lost => LaunchStep::Fence,
            Phase::Admitting if now.stopping || state == ScheduleState::Removing => LaunchStep::Drain,
            _ => LaunchStep::Wait,
        };
    }
    if now.expelled || state == ScheduleState::Removed {
        return if entry.asking { LaunchStep::Wait } else { LaunchStep::Drop };
    }
    if entry.asking || entry.unknown_flush || !now.alive {
        return LaunchStep::Wait;
    }
    let over = matches!(entry.ended, Some((ended, Outcome::Finished | Outcome::Failed)) if ended == epoch);
    if state == ScheduleState::Removing || now.stopping || over {
        return LaunchStep::Release(epoch);
    }
    if now.recovering || entry.backing_off {
        return LaunchStep::Wait;
    }
    LaunchStep::Launch(epoch)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Entry> {
        let epoch = || (1..4_u64).prop_map(OwnerEpoch);
        let phase = prop::sample::select(vec![Phase::Admitting, Phase::Draining, Phase::Fenced]);
        let outcome =
            prop::sample::select(vec![Outcome::Stopped, Outcome::Finished, Outcome::Failed, Outcome::Retry]);
        (
            (prop::sample::select(ScheduleState::ALL.to_vec()), epoch()),
            prop::option::of((epoch(), phase)),
            prop::option::of((epoch(), outcome)),
            any::<(bool, bool, bool)>(),
        )
            .prop_map(|(order, running, ended, (asking, unknown_flush, backing_off))| Entry {
                order,
                running,
                ended,
                asking,
                unknown_flush,
                backing_off,
            })
    }

    pub(in crate::launches) fn situations() -> impl Strategy<Value = Situation> {
        any::<(bool, bool, bool, bool)>().prop_map(|(alive, recovering, stopping, expelled)| Situation {
            alive,
            recovering,
            stopping,
            expelled,
        })
    }

    proptest! {
        #[test]
        fn nothing_is_launched_or_released_while_a_task_runs(entry in entries(), now in situations()) {
            let step = next_step(&entry, now);
            if entry.running.is_some() {
                prop_assert!(matches!(step, LaunchStep::Wait | LaunchStep::Drain | LaunchStep::Fence));
            }
        }

        #[test]
        fn a_task_of_another_epoch_or_past_the_deadline_is_fenced(entry in entries(), now in situations()) {
            if let Some((running, phase)) = entry.running
                && (running != entry.order.1 || !now.alive || now.expelled)
                && phase != Phase::Fenced
            {
                prop_assert_eq!(next_step(&entry, now), LaunchStep::Fence);
            }
        }

        #[test]
        fn a_launch_wants_everything_in_order(entry in entries(), now in situations()) {
            if let LaunchStep::Launch(epoch) = next_step(&entry, now) {
                prop_assert_eq!(entry.order, (ScheduleState::Launched, epoch));
                prop_assert!(now.alive && !now.recovering && !now.stopping && !now.expelled);
                prop_assert!(!entry.asking && !entry.unknown_flush && !entry.backing_off);
            }
        }

        #[test]
        fn what_may_still_flush_is_never_released(entry in entries(), now in situations()) {
            if let LaunchStep::Release(_) = next_step(&entry, now) {
                prop_assert!(!entry.unknown_flush && entry.running.is_none() && now.alive && !now.expelled);
            }
        }

        /// Whatever the order, a graceful stop ends: each entry is stopped, released, then dropped.
        #[test]
        fn a_graceful_stop_ends(entry in entries()) {
            let now = Situation { alive: true, recovering: false, stopping: true, expelled: false };
            let mut entry = Entry { unknown_flush: false, asking: false, ..entry };
            for _ in 0..6 {
                match next_step(&entry, now) {
                    LaunchStep::Drop => return Ok(()),
                    LaunchStep::Drain => entry.running = entry.running.map(|(e, _)| (e, Phase::Draining)),
                    LaunchStep::Fence => entry.running = entry.running.map(|(e, _)| (e, Phase::Fenced)),
                    LaunchStep::Release(epoch) => entry.order = (ScheduleState::Removed, epoch),
                    LaunchStep::Wait => entry.running = None,
                    LaunchStep::Launch(_) => prop_assert!(false, "launched while stopping"),
                }
            }
            prop_assert!(false, "still there: {entry:?}");
        }
    }
}
