//! The outside: the sink of every changefeed, and what must never be seen there.
//!
//! A flush of a changefeed writes the range `(from, to]`. The outside keeps how far each has come and checks at each write
//! that nothing is skipped, that no older epoch writes after a newer one, and that at that very moment the database still names
//! the writer as the owner, or as the processor that was ordered to run the table.

use std::collections::HashMap;
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
        self.part.map(|part| part.table)
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

/// The whole of a changefeed, or a table of it.
type Place = Option<usize>;

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

/// What is outside of a changefeed, or of a table of it.
#[derive(Clone, Copy, Default)]
struct Written {
    high: Ts,
    epoch: OwnerEpoch,
    last: Option<Write>,
}

#[derive(Default)]
struct Feed {
    /// The whole first, then its tables in order: few, or only the whole.
    places: Vec<(Place, Written)>,
    behaviour: Behaviour,
    incidents: Vec<Incident>,
    /// Flushes under way, by number.
    flushes: Vec<(u64, Flush)>,
}

impl Feed {
    fn place(&mut self, place: Place) -> &mut Written {
        let index = self.places.binary_search_by_key(&place, |(place, _)| *place).unwrap_or_else(|index| {
            self.places.insert(index, (place, Written::default()));
            index
        });
        &mut self.places[index].1
    }

    /// Flushes under way at `now`, by processes that run.
    fn in_flight<'a>(&'a self, now: Duration, still: &'a [usize]) -> impl Iterator<Item = &'a Flush> {
        let flushes = self.flushes.iter().map(|(_, flush)| flush);
        flushes.filter(move |flush| now <= flush.ends_by && !still.contains(&flush.process))
    }
}

#[derive(Default)]
struct State {
    feeds: HashMap<ChangefeedUuid, Feed>,
    writes: Vec<Write>,
    written: u64,
    digest: u64,
    /// What was written is not listed, and launches and ends are not: a long run would fill the memory.
    keeps_no_history: bool,
    launches: Vec<Launched>,
    ends: Vec<Ended>,
    flush_ids: u64,
    refused: u64,
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
        let whole = (None, Written { high: start, ..Written::default() });
        self.state().feeds.entry(changefeed).or_default().places = vec![whole];
    }

    /// It is split into so many tables, when several captures may carry it.
    pub fn expect_tables(&self, changefeed: ChangefeedUuid, tables: usize, start: Ts) {
        let table = |number| (Some(number), Written { high: start, ..Written::default() });
        self.state().feeds.entry(changefeed).or_default().places = (0..tables).map(table).collect();
    }

    /// The last write of each of a changefeed's tables, if it is split.
    pub fn last_writes(&self, changefeed: ChangefeedUuid) -> Vec<Option<Write>> {
        let state = self.state();
        let places = state.feeds.get(&changefeed).into_iter().flat_map(|feed| &feed.places);
        places.filter(|(place, _)| place.is_some()).map(|(_, written)| written.last).collect()
    }

    pub fn behave(&self, changefeed: ChangefeedUuid, behaviour: Behaviour) {
        self.state().feeds.entry(changefeed).or_default().behaviour = behaviour;
    }

    /// Something happens to the changefeed's task when it next looks.
    pub fn incident(&self, changefeed: ChangefeedUuid, incident: Incident) {
        self.state().feeds.entry(changefeed).or_default().incidents.push(incident);
    }

    /// What was to happen and has not does not happen any more.
    pub fn no_more_incidents(&self) {
        self.state().feeds.values_mut().for_each(|feed| feed.incidents.clear());
    }

    pub fn high(&self, changefeed: ChangefeedUuid) -> Ts {
        let state = self.state();
        let places = state.feeds.get(&changefeed).into_iter().flat_map(|feed| &feed.places);
        places.map(|(_, written)| written.high).min().unwrap_or(Ts::ZERO)
    }

    /// Every write, in order.
    pub fn writes(&self) -> Vec<Write> {
        self.state().writes.clone()
    }

    /// The last write of a changefeed.
    pub fn last_write(&self, changefeed: ChangefeedUuid) -> Option<Write> {
        let state = self.state();
        let places = state.feeds.get(&changefeed).into_iter().flat_map(|feed| &feed.places);
        places.filter_map(|(_, written)| written.last).max_by_key(|write| write.at)
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
        for feed in state.feeds.values_mut() {
            feed.flushes.retain(|(_, flush)| flush.process != process);
        }
        state.still.push(process);
    }

    /// Flushes under way for a changefeed, by processes that run.
    pub fn in_flight(&self, changefeed: ChangefeedUuid) -> Vec<Flush> {
        let state = self.state();
        let now = self.time.now();
        let feed = state.feeds.get(&changefeed);
        feed.into_iter().flat_map(|feed| feed.in_flight(now, &state.still)).copied().collect()
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
        self.state().feeds.get(&changefeed).map(|feed| feed.behaviour).unwrap_or_default()
    }

    pub(super) fn take_incident(&self, changefeed: ChangefeedUuid) -> Option<Incident> {
        self.state().feeds.get_mut(&changefeed).and_then(|feed| feed.incidents.pop())
    }

    pub(super) fn launched(&self, launched: Launched) {
        let changefeed = launched.term.changefeed;
        let place = launched.part.map(|part| part.table);
        let high = {
            let state = self.state();
            let mut places = state.feeds.get(&changefeed).into_iter().flat_map(|feed| &feed.places);
            places.find(|(other, _)| *other == place).map_or(Ts::ZERO, |(_, written)| written.high)
        };
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
        let began = self.time.now();
        let mut state = self.state();
        let State { feeds, still, flush_ids, .. } = &mut *state;
        let feed = feeds.entry(term.changefeed).or_default();
        let of = |flush: &Flush| Writer { term: flush.term, part: flush.part };
        let is_other = |flush: &&Flush| of(flush) != writer && of(flush).place() == writer.place();
        if let Some(other) = feed.in_flight(began, still).find(is_other) {
            self.violations.add(&format!("two admitted writers: {writer:?} and {other:?}"));
        }
        // One that runs it whole, and one that runs a table, are two as well.
        let mut others = feed.in_flight(began, still);
        if let Some(other) = others.find(|other| other.part.is_some() != part.is_some()) {
            self.violations.add(&format!("one writes the whole, and one a part: {writer:?} and {other:?}"));
        }
        drop(others);
        *flush_ids += 1;
        let flush = Flush { process, term, part, began, ends_by: began + timeout };
        feed.flushes.push((*flush_ids, flush));
        *flush_ids
    }

    pub(super) fn flush_ends(&self, changefeed: ChangefeedUuid, id: u64) {
        if let Some(feed) = self.state().feeds.get_mut(&changefeed) {
            feed.flushes.retain(|(other, _)| *other != id);
        }
    }

    pub(super) fn write(&self, process: usize, writer: Writer, launch: u64, from: Ts, to: Ts) {
        let Writer { term, part } = writer;
        let write = Write { at: self.time.now(), process, term, part, launch, from, to };
        let is_named = self.db.read(|tables| writer.is_named(tables));
        let mut state = self.state();
        if !state.database_restored && !is_named {
            self.violations.add(&format!("a writer that the database does not name: {write:?}"));
        }
        let written = state.feeds.entry(term.changefeed).or_default().place(writer.place());
        if term.epoch < written.epoch {
            self.violations.add(&format!("epoch {} wrote before: {write:?}", written.epoch));
        }
        if from > written.high {
            self.violations.add(&format!("({}, {from}] was lost: {write:?}", written.high));
        }
        written.epoch = written.epoch.max(term.epoch);
        written.high = written.high.max(to);
        written.last = Some(write);
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
