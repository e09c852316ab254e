//! The outside: the sink of every changefeed, and what must never be seen there.
//!
//! A flush of a changefeed writes the range `(from, to]`. The outside keeps how far each has come and checks at each write
//! that nothing is skipped, that no older epoch writes after a newer one, and that at that very moment the database still names
//! the writer as the owner.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metadata_api::model::{CaptureState, ChangefeedUuid, OwnerEpoch, OwnerTerm, ScheduleState, Ts};
use metadata_memory::MemoryCluster;

use super::task::{Behaviour, Incident};
use super::{Violations, WorldTime};

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub at: Duration,
    pub process: usize,
    pub term: OwnerTerm,
    pub launch: u64,
    pub from: Ts,
    pub to: Ts,
}

/// One start of a task.
#[derive(Clone, Debug)]
pub struct Launched {
    pub term: OwnerTerm,
    pub launch: u64,
    pub start: Ts,
    pub sink: String,
}

/// One end of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub at: Duration,
    pub process: usize,
    pub term: OwnerTerm,
}

/// A flush under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    pub process: usize,
    pub term: OwnerTerm,
    pub began: Duration,
    /// Past it, it does not reach the outside any more.
    pub ends_by: Duration,
}

#[derive(Default)]
struct Feed {
    high: Ts,
    epoch: OwnerEpoch,
    last: Option<Write>,
}

#[derive(Default)]
struct State {
    feeds: BTreeMap<ChangefeedUuid, Feed>,
    writes: Vec<Write>,
    written: u64,
    digest: u64,
    /// What was written is not listed, and launches and ends are not: a long run would fill the memory.
    keeps_no_history: bool,
    launches: Vec<Launched>,
    ends: Vec<Ended>,
    /// By changefeed and number.
    flushes: BTreeMap<(ChangefeedUuid, u64), Flush>,
    flush_ids: u64,
    refused: u64,
    behaviours: BTreeMap<ChangefeedUuid, Behaviour>,
    incidents: BTreeMap<ChangefeedUuid, Vec<Incident>>,
    /// Processes that do not run: what they have in hand does not happen.
    still: Vec<usize>,
    /// The database may have been set back: what it says of owners is not to be trusted for a while.
    database_restored: bool,
}

/// The outside. Clones are the same one.
#[derive(Clone)]
pub struct Outside {
    time: WorldTime,
    db: MemoryCluster,
    violations: Violations,
    state: Arc<Mutex<State>>,
}

impl Outside {
    pub fn new(time: WorldTime, db: MemoryCluster, violations: Violations) -> Self {
        Self { time, db, violations, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- for tests ----

    /// A changefeed exists, and everything at or before `start` is outside already.
    pub fn expect(&self, changefeed: ChangefeedUuid, start: Ts) {
        self.state().feeds.insert(changefeed, Feed { high: start, ..Feed::default() });
    }

    pub fn behave(&self, changefeed: ChangefeedUuid, behaviour: Behaviour) {
        self.state().behaviours.insert(changefeed, behaviour);
    }

    /// Something happens to the changefeed's task when it next looks.
    pub fn incident(&self, changefeed: ChangefeedUuid, incident: Incident) {
        self.state().incidents.entry(changefeed).or_default().push(incident);
    }

    /// What was to happen and has not does not happen any more.
    pub fn no_more_incidents(&self) {
        self.state().incidents.clear();
    }

    pub fn high(&self, changefeed: ChangefeedUuid) -> Ts {
        self.state().feeds.get(&changefeed).map_or(Ts::ZERO, |feed| feed.high)
    }

    /// Every write, in order.
    pub fn writes(&self) -> Vec<Write> {
        self.state().writes.clone()
    }

    /// The last write of a changefeed.
    pub fn last_write(&self, changefeed: ChangefeedUuid) -> Option<Write> {
        self.state().feeds.get(&changefeed).and_then(|feed| feed.last)
    }

    pub fn launches(&self) -> Vec<Launched> {
        self.state().launches.clone()
    }

    pub fn launches_of(&self, changefeed: ChangefeedUuid) -> Vec<Launched> {
        let mut launches = self.launches();
        launches.retain(|launched| launched.term.changefeed == changefeed);
        launches
    }

    pub fn ends(&self) -> Vec<Ended> {
        self.state().ends.clone()
    }

    /// How many tasks run, by their own account.
    pub fn running(&self, changefeed: ChangefeedUuid) -> usize {
        let state = self.state();
        let of = |term: &OwnerTerm| term.changefeed == changefeed;
        let launched = state.launches.iter().filter(|launched| of(&launched.term)).count();
        launched - state.ends.iter().filter(|ended| of(&ended.term)).count()
    }

    /// How often an admission was refused.
    pub fn refused(&self) -> u64 {
        self.state().refused
    }

    /// The database is about to be set back: the writers are not compared with it until it is called with `false`.
    pub fn database_restored(&self, restored: bool) {
        self.state().database_restored = restored;
    }

    /// What the process has in hand does not happen while it does not run.
    pub fn still(&self, process: usize, still: bool) {
        let mut state = self.state();
        state.still.retain(|other| *other != process);
        if still {
            state.still.push(process);
        }
    }

    /// A killed process has nothing in hand any more.
    pub fn killed(&self, process: usize) {
        let mut state = self.state();
        state.flushes.retain(|_, flush| flush.process != process);
        state.still.push(process);
    }

    /// Flushes under way for a changefeed, by processes that run.
    pub fn in_flight(&self, changefeed: ChangefeedUuid) -> Vec<Flush> {
        let state = self.state();
        let mine = state.flushes.range((changefeed, 0)..=(changefeed, u64::MAX));
        let now = self.time.now();
        mine.map(|(_, flush)| flush)
            .filter(|flush| now <= flush.ends_by && !state.still.contains(&flush.process))
            .copied()
            .collect()
    }

    /// From now on no lists of writes, launches and ends are kept.
    pub fn keep_no_history(&self) {
        self.state().keeps_no_history = true;
    }

    /// How many writes there were.
    pub fn count_writes(&self) -> u64 {
        self.state().written
    }

    /// A number that two runs with the same history share.
    pub fn digest(&self) -> u64 {
        self.state().digest
    }

    // ---- for tasks ----

    pub(super) fn behaviour(&self, changefeed: ChangefeedUuid) -> Behaviour {
        self.state().behaviours.get(&changefeed).copied().unwrap_or_default()
    }

    pub(super) fn take_incident(&self, changefeed: ChangefeedUuid) -> Option<Incident> {
        self.state().incidents.get_mut(&changefeed).and_then(Vec::pop)
    }

    pub(super) fn launched(&self, launched: Launched) {
        let changefeed = launched.term.changefeed;
        let high = self.high(changefeed);
        if launched.start > high {
            self.violations.add(&format!(
                "changefeed {changefeed} starts at {}, and only {high} is outside: {launched:?}",
                launched.start
            ));
        }
        let mut state = self.state();
        if !state.keeps_no_history {
            state.launches.push(launched);
        }
    }

    pub(super) fn ended(&self, process: usize, term: OwnerTerm) {
        let at = self.time.now();
        let mut state = self.state();
        if !state.keeps_no_history {
            state.ends.push(Ended { at, process, term });
        }
    }

    pub(super) fn refused_one(&self) {
        self.state().refused += 1;
    }

    pub(super) fn flush_begins(&self, process: usize, term: OwnerTerm, timeout: Duration) -> u64 {
        let others = self.in_flight(term.changefeed);
        if let Some(other) = others.iter().find(|other| other.term != term) {
            self.violations.add(&format!("two admitted writers: {term:?} and {other:?}"));
        }
        let began = self.time.now();
        let mut state = self.state();
        state.flush_ids += 1;
        let id = state.flush_ids;
        state.flushes.insert((term.changefeed, id), Flush { process, term, began, ends_by: began + timeout });
        id
    }

    pub(super) fn flush_ends(&self, changefeed: ChangefeedUuid, id: u64) {
        self.state().flushes.remove(&(changefeed, id));
    }

    pub(super) fn write(&self, process: usize, term: OwnerTerm, launch: u64, from: Ts, to: Ts) {
        let write = Write { at: self.time.now(), process, term, launch, from, to };
        let there = self.db.read(|tables| {
            let schedule = tables.schedule(term.changefeed)?;
            let owner = schedule.owner.and_then(|owner| tables.capture(owner)).map(|row| row.state);
            Some((schedule.term(), schedule.state, owner))
        });
        let mut state = self.state();
        if !state.database_restored {
            let owned = there.is_some_and(|(there, state, owner)| {
                there == Some(term)
                    && state != ScheduleState::Removed
                    && owner.is_some_and(|state| state != CaptureState::Offline)
            });
            if !owned {
                self.violations
                    .add(&format!("a writer that the database does not name: {write:?}, {there:?}"));
            }
        }
        let feed = state.feeds.entry(term.changefeed).or_default();
        if term.epoch < feed.epoch {
            self.violations.add(&format!("epoch {} wrote before: {write:?}", feed.epoch));
        }
        if from > feed.high {
            self.violations.add(&format!("({}, {from}] was lost: {write:?}", feed.high));
        }
        feed.epoch = feed.epoch.max(term.epoch);
        feed.high = feed.high.max(to);
        feed.last = Some(write);
        state.written += 1;
        let at = u64::try_from(write.at.as_nanos()).unwrap_or(u64::MAX);
        for part in [at, term.changefeed.0, term.epoch.0, to.0, process as u64] {
            state.digest = (state.digest ^ part).wrapping_mul(0x0100_0000_01b3);
        }
        if !state.keeps_no_history {
            state.writes.push(write);
        }
    }
}
