//! One table on a processor: what is known, and the pure decision about it.

use metadata_api::model::{ScheduleState, Version};

use super::entry::{Phase, Situation};

/// What is known of one table of one attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareEntry {
    /// The state of the attachment. `Removed`: it is not this capture's any more.
    pub attachment: ScheduleState,
    /// The order, and whether it is to stop; `None`: it is not to run.
    pub order: Option<(Version, bool)>,
    /// The task that runs: under which order, and its phase.
    pub running: Option<(Version, Phase)>,
    /// The order under which it has stopped for good.
    pub stopped: Option<Version>,
    /// A flush of it ended without anybody knowing how: it has not stopped, and never says so.
    pub unknown_flush: bool,
}

/// What to do about one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareStep {
    /// Nothing now; the next event asks again.
    Wait,
    /// Start it under this order.
    Launch(Version),
    /// Tell the task to stop; its flush in hand may end.
    Drain,
    /// Forbid the task every further flush and report, and tell it to stop.
    Fence,
    /// Nothing of it runs: say that this order has stopped, and never carry it out again.
    Stopped(Version),
    /// Forget it.
    Drop,
}

/// What to do about `entry` now. Pure and total.
pub fn share_step(entry: &ShareEntry, now: Situation) -> ShareStep {
    let gone = now.expelled || entry.attachment == ScheduleState::Removed;
    let may_run = entry.attachment == ScheduleState::Launched && !now.stopping;
    let wanted = entry.order.filter(|(_, stop)| may_run && !stop).map(|(since, _)| since);
    if let Some((running, phase)) = entry.running {
        return match phase {
            Phase::Admitting | Phase::Draining if gone || !now.alive => ShareStep::Fence,
            Phase::Admitting if wanted != Some(running) => ShareStep::Drain,
            _ => ShareStep::Wait,
        };
    }
    if entry.unknown_flush && !now.expelled {
        return ShareStep::Wait;
    }
    let Some((since, _)) = entry.order.filter(|_| !gone) else { return ShareStep::Drop };
    if !now.alive || entry.stopped == Some(since) {
        return ShareStep::Wait;
    }
    if wanted.is_none() {
        return ShareStep::Stopped(since);
    }
    if now.recovering { ShareStep::Wait } else { ShareStep::Launch(since) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entry::tests::situations;
    use super::*;

    fn versions() -> impl Strategy<Value = Version> {
        (1..4_u64).prop_map(Version)
    }

    fn entries() -> impl Strategy<Value = ShareEntry> {
        let phase = prop::sample::select(vec![Phase::Admitting, Phase::Draining, Phase::Fenced]);
        (
            prop::sample::select(ScheduleState::ALL.to_vec()),
            prop::option::of((versions(), any::<bool>())),
            prop::option::of((versions(), phase)),
            prop::option::of(versions()),
            any::<bool>(),
        )
            .prop_map(|(attachment, order, running, stopped, unknown_flush)| ShareEntry {
                attachment,
                order,
                running,
                stopped,
                unknown_flush,
            })
    }

    proptest! {
        #[test]
        fn nothing_starts_or_has_stopped_while_a_task_runs(entry in entries(), now in situations()) {
            if entry.running.is_some() {
                let step = share_step(&entry, now);
                prop_assert!(matches!(step, ShareStep::Wait | ShareStep::Drain | ShareStep::Fence));
            }
        }

        #[test]
        fn a_launch_wants_everything_in_order(entry in entries(), now in situations()) {
            if let ShareStep::Launch(since) = share_step(&entry, now) {
                prop_assert_eq!((entry.attachment, entry.order), (ScheduleState::Launched, Some((since, false))));
                prop_assert!(now.alive && !now.recovering && !now.stopping && !now.expelled);
                prop_assert!(!entry.unknown_flush && entry.stopped != Some(since));
            }
        }

        #[test]
        fn what_may_still_flush_never_says_that_it_has_stopped(entry in entries(), now in situations()) {
            if let ShareStep::Stopped(since) = share_step(&entry, now) {
                prop_assert!(!entry.unknown_flush && entry.running.is_none() && now.alive && !now.expelled);
                prop_assert_eq!(entry.order.map(|(of, _)| of), Some(since));
            }
        }

        #[test]
        fn a_task_past_the_deadline_or_of_nobody_is_fenced(entry in entries(), now in situations()) {
            if let Some((_, phase)) = entry.running
                && phase != Phase::Fenced
                && (!now.alive || now.expelled || entry.attachment == ScheduleState::Removed)
            {
                prop_assert_eq!(share_step(&entry, now), ShareStep::Fence);
            }
        }

        /// A graceful stop ends: each table is stopped and says so, or is forgotten.
        #[test]
        fn a_graceful_stop_ends(entry in entries()) {
            let now = Situation { alive: true, recovering: false, stopping: true, expelled: false };
            let mut entry = ShareEntry { unknown_flush: false, ..entry };
            for _ in 0..4 {
                match share_step(&entry, now) {
                    ShareStep::Drop => return Ok(()),
                    ShareStep::Wait if entry.running.is_none() => return Ok(()),
                    ShareStep::Wait => entry.running = None,
                    ShareStep::Drain => entry.running = entry.running.map(|(of, _)| (of, Phase::Draining)),
                    ShareStep::Fence => entry.running = entry.running.map(|(of, _)| (of, Phase::Fenced)),
                    ShareStep::Stopped(since) => entry.stopped = Some(since),
                    ShareStep::Launch(_) => prop_assert!(false, "launched while stopping"),
                }
            }
            prop_assert!(false, "still there: {entry:?}");
        }
    }
}
