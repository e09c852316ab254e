//! Reads every commit, and notes what must never be committed.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metadata_api::decision::schedule::{ScheduledChangefeed, check_schedule_state};
use metadata_api::model::{
    CaptureId, CaptureState, ChangefeedProgress, ChangefeedUuid, ControllerEpoch, ProcessorSchedule,
    ScheduleState, Ts,
};
use metadata_memory::{Change, Commit, Recorder, Tables};

use super::outside::Outside;
use super::{Violations, WorldTime};

/// What was committed, as far as tests ask.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Duration,
    pub transaction: &'static str,
    /// Schedules: changefeed, state before and after, owner after.
    pub schedules: Vec<(ChangefeedUuid, ScheduleState, ScheduleState)>,
    /// Captures that were sealed.
    pub sealed: Vec<CaptureId>,
}

#[derive(Default)]
struct State {
    checkpoints: HashMap<ChangefeedUuid, Ts>,
    sealed: BTreeSet<CaptureId>,
    epoch: ControllerEpoch,
    history: Vec<Seen>,
}

/// The checker.
pub struct Checker {
    time: WorldTime,
    outside: Outside,
    violations: Violations,
    state: Mutex<State>,
}

impl Checker {
    pub fn new(time: WorldTime, outside: Outside, violations: Violations) -> Self {
        Self { time, outside, violations, state: Mutex::default() }
    }

    /// Everything that was committed, but heartbeats and renewals, from `since` on.
    pub fn history(&self, since: Duration) -> Vec<Seen> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.history.iter().filter(|seen| seen.at >= since).cloned().collect()
    }

    /// An operator sets a changefeed's checkpoint.
    pub fn forget_checkpoint(&self, changefeed: ChangefeedUuid) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).checkpoints.remove(&changefeed);
    }

    fn look_at_progress(
        &self,
        state: &mut State,
        changefeed: ChangefeedUuid,
        progress: Option<ChangefeedProgress>,
        why: &str,
    ) {
        let Some(progress) = progress else {
            state.checkpoints.remove(&changefeed);
            return;
        };
        let now = progress.checkpoint_ts;
        let before = state.checkpoints.insert(changefeed, now).unwrap_or_default();
        if now < before {
            self.violations
                .add(&format!("{why}: the checkpoint of {changefeed} went back from {before} to {now}"));
        }
        let high = self.outside.high(changefeed);
        if now > high && high > Ts::ZERO {
            self.violations
                .add(&format!("{why}: the checkpoint of {changefeed} is {now}, and only {high} is outside"));
        }
    }
}

impl Recorder for Checker {
    fn committed(&self, commit: &Commit, tables: &Tables) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let name = commit.transaction;
        let mut seen =
            Seen { at: self.time.now(), transaction: name, schedules: Vec::new(), sealed: Vec::new() };
        for change in &commit.changes {
            match change {
                Change::Schedule(row) => {
                    let (before, after) = (row.before.as_deref(), row.after.as_deref());
                    if let (Some(before), Some(after)) = (before, after) {
                        seen.schedules.push((row.key, before.state, after.state));
                        let edge = check_schedule_state(
                            &ScheduledChangefeed::from(before),
                            &ScheduledChangefeed::from(after),
                        );
                        if before.state != after.state
                            && let Err(error) = edge
                        {
                            self.violations.add(&format!("{name}: {error}"));
                        }
                        if after.state == ScheduleState::Removed && before.state != ScheduleState::Removed {
                            // Processors run on under their own terms.
                            let flushes = self.outside.in_flight(row.key);
                            for flush in flushes.iter().filter(|flush| flush.part.is_none()) {
                                self.violations
                                    .add(&format!("{name}: released with a flush in flight: {flush:?}"));
                            }
                        }
                    }
                    self.look_at_progress(state, row.key, tables.progress(row.key), name);
                }
                Change::Processor(row) => {
                    let state = |row: &ProcessorSchedule| row.state;
                    if let (Some(before), Some(after)) = (row.before.as_deref(), row.after.as_deref())
                        && state(before) != ScheduleState::Removed
                        && state(after) == ScheduleState::Removed
                    {
                        for flush in self.outside.in_flight_of(before.term()) {
                            self.violations.add(&format!(
                                "{name}: a processor released with a flush in flight: {flush:?}"
                            ));
                        }
                    }
                }
                Change::Progress(row) => {
                    if state.sealed.contains(&row.key) && row.after.is_some() && name == "capture.advance" {
                        self.violations.add(&format!("{name}: sealed capture {} wrote", row.key));
                    }
                    for (changefeed, progress) in tables.owned_progresses(row.key) {
                        self.look_at_progress(state, changefeed, Some(progress), name);
                    }
                }
                Change::Capture(row) => {
                    // Once its rows are gone, whoever never heard of its registration may repeat it.
                    let Some(after) = row.after.as_deref() else {
                        state.sealed.remove(&row.key);
                        continue;
                    };
                    {
                        if after.state == CaptureState::Offline {
                            if state.sealed.insert(row.key) {
                                seen.sealed.push(row.key);
                            }
                        } else if state.sealed.contains(&row.key) {
                            self.violations.add(&format!("{name}: sealed capture {} is back", row.key));
                        }
                    }
                }
                Change::Election(row) => {
                    if let Some(after) = row.after.as_deref() {
                        if after.epoch < state.epoch {
                            self.violations
                                .add(&format!("{name}: controller epoch {} came back", after.epoch));
                        }
                        state.epoch = state.epoch.max(after.epoch);
                    }
                }
                _ => {}
            }
        }
        if !matches!(name, "capture.beat" | "election.renew" | "capture.advance") {
            state.history.push(seen);
        }
    }

    fn restored(&self, tables: &Tables) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.checkpoints.clear();
        state.epoch = tables.election().map(|record| record.epoch).unwrap_or_default();
        state.sealed =
            tables.captures().filter(|row| row.state == CaptureState::Offline).map(|row| row.id).collect();
    }
}
