//! The outside: the sink of every changefeed, and what must never be seen there.
//!
//! A flush of a changefeed writes the range `(from, to]`. The outside keeps how far each has come and checks at each write
//! that nothing is skipped, that no older epoch writes after a newer one, and that at that very moment the database still names
//! the writer as the owner, or as the processor that was ordered to run the table.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use capture_runtime::task::Share;
use metadata_api::decision::assignment::TableOrders;
use metadata_api::model::{
    CaptureId, CaptureState, ChangefeedUuid, OwnerEpoch, OwnerTerm, ProcessorTerm, ScheduleState, TableId,
    Ts, Version,
};
use metadata_memory::{MemoryCluster, Tables};

use super::task::{Behaviour, Incident};
use super::{Violations, WorldTime};

/// A processor's share of a changefeed; the table by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub table: usize,
    pub processor: ProcessorTerm,
    pub since: Version,
}

/// The name of a table.
pub fn table(number: usize) -> TableId {
    TableId(format!("t{number}"))
}

impl From<&Share> for Part {
    fn from(share: &Share) -> Self {
        let number = share.table.0.strip_prefix('t').and_then(|number| number.parse().ok());
        Self { table: number.expect("a table of ours"), processor: share.processor, since: share.since }
    }
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    pub term: OwnerTerm,
    pub part: Option<Part>,
}

impl Writer {
    fn place(&self) -> Place {
        (self.term.changefeed, self.part.map(|part| part.table))
    }

    /// Whether the database names it, as far as `tables` says.
    fn is_named(&self, tables: &Tables) -> bool {
        let lives = |capture: CaptureId| {
            tables.capture(capture).is_some_and(|row| row.state != CaptureState::Offline)
        };
        let Some(part) = &self.part else {
            let Some(schedule) = tables.schedule(self.term.changefeed) else { return false };
            return schedule.term() == Some(self.term)
                && schedule.state != ScheduleState::Removed
                && lives(self.term.capture);
        };
        let row = tables.processors(self.term.changefeed).find(|row| row.term() == part.processor);
        row.is_some_and(|row| {
            let orders = TableOrders::decode(row).expect("orders");
            row.state != ScheduleState::Removed
                && orders.0.get(&table(part.table)).is_some_and(|order| order.since == part.since)
                && lives(row.capture)
        })
    }
}

/// A changefeed, or a table of one.
type Place = (ChangefeedUuid, Option<usize>);

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub at: Duration,
    pub process: usize,
    pub term: OwnerTerm,
    pub part: Option<Part>,
    pub launch: u64,
    pub from: Ts,
    pub to: Ts,
}

/// One start of a task.
#[derive(Clone, Debug)]
pub struct Launched {
    pub term: OwnerTerm,
    pub part: Option<Part>,
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
    pub part: Option<Part>,
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
    feeds: BTreeMap<Place, Feed>,
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
        let mut state = self.state();
        state.feeds.retain(|(other, _), _| *other != changefeed);
        state.feeds.insert((changefeed, None), Feed { high: start, ..Feed::default() });
    }

    /// It is split into so many tables, when several captures may carry it.
    pub fn expect_tables(&self, changefeed: ChangefeedUuid, tables: usize, start: Ts) {
        let mut state = self.state();
        state.feeds.retain(|(other, _), _| *other != changefeed);
        for number in 0..tables {
            state.feeds.insert((changefeed, Some(number)), Feed { high: start, ..Feed::default() });
        }
    }

    /// The last write of each of a changefeed's tables, if it is split.
    pub fn last_writes(&self, changefeed: ChangefeedUuid) -> Vec<Option<Write>> {
        let state = self.state();
        let tables = state.feeds.range((changefeed, Some(0))..=(changefeed, Some(usize::MAX)));
        tables.map(|(_, feed)| feed.last).collect()
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
        let state = self.state();
        let places = state.feeds.range((changefeed, None)..=(changefeed, Some(usize::MAX)));
        places.map(|(_, feed)| feed.high).min().unwrap_or(Ts::ZERO)
    }

    /// Every write, in order.
    pub fn writes(&self) -> Vec<Write> {
        self.state().writes.clone()
    }

    /// The last write of a changefeed.
    pub fn last_write(&self, changefeed: ChangefeedUuid) -> Option<Write> {
        let state = self.state();
        let places = state.feeds.range((changefeed, None)..=(changefeed, Some(usize::MAX)));
        places.filter_map(|(_, feed)| feed.last).max_by_key(|write| write.at)
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

    /// Flushes under way of what a processor carries.
    pub fn in_flight_of(&self, processor: ProcessorTerm) -> Vec<Flush> {
        let mut flushes = self.in_flight(processor.changefeed);
        flushes.retain(|flush| flush.part.is_some_and(|part| part.processor == processor));
        flushes
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
        let place = (changefeed, launched.part.map(|part| part.table));
        let high = self.state().feeds.get(&place).map_or(Ts::ZERO, |feed| feed.high);
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

    pub(super) fn flush_begins(&self, process: usize, writer: Writer, timeout: Duration) -> u64 {
        let Writer { term, part } = writer;
        let others = self.in_flight(term.changefeed);
        let of = |flush: &Flush| Writer { term: flush.term, part: flush.part };
        let is_other = |flush: &&Flush| of(flush) != writer && of(flush).place() == writer.place();
        if let Some(other) = others.iter().find(is_other) {
            self.violations.add(&format!("two admitted writers: {writer:?} and {other:?}"));
        }
        // One that runs it whole, and one that runs a table, are two as well.
        if let Some(other) = others.iter().find(|other| other.part.is_some() != part.is_some()) {
            self.violations.add(&format!("one writes the whole, and one a part: {writer:?} and {other:?}"));
        }
        let began = self.time.now();
        let mut state = self.state();
        state.flush_ids += 1;
        let id = state.flush_ids;
        state
            .flushes
            .insert((term.changefeed, id), Flush { process, term, part, began, ends_by: began + timeout });
        id
    }

    pub(super) fn flush_ends(&self, changefeed: ChangefeedUuid, id: u64) {
        self.state().flushes.remove(&(changefeed, id));
    }

    pub(super) fn write(&self, process: usize, writer: Writer, launch: u64, from: Ts, to: Ts) {
        let Writer { term, part } = writer;
        let write = Write { at: self.time.now(), process, term, part, launch, from, to };
        let is_named = self.db.read(|tables| writer.is_named(tables));
        let mut state = self.state();
        if !state.database_restored && !is_named {
            self.violations.add(&format!("a writer that the database does not name: {write:?}"));
        }
        let feed = state.feeds.entry(writer.place()).or_default();
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
