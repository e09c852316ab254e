//! A small world: a database, captures as processes with a network each, tasks, and an outside that they write to.
//!
//! All of it runs on one thread on tokio's paused clock, with dice of its own: a run is a function of its seed, and a virtual
//! minute takes milliseconds. What must never happen is checked at every commit ([`checker`]) and at every write to the
//! outside ([`outside`]); [`World::until`] and [`World::pass`] panic with what was found.

mod checker;
mod clock;
mod dice;
mod faults;
mod log;
mod outside;
mod process;
mod task;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use capture_runtime::admin::Admin;
use metadata_api::model::{
    CaptureId, CaptureInfo, CaptureState, ChangefeedName, ChangefeedSchedule, ChangefeedUuid, FeedState,
    NewChangefeed, ReplicaConfig, ScheduleState, SecretUri, Ts,
};
use metadata_api::observation::ChangefeedAdmin as _;
use metadata_memory::{MemoryCluster, MemoryStore};
use serde_json::json;
use uuid::Uuid;

pub use checker::Checker;
pub use clock::{DbClock, ProcessClock, WorldTime};
pub use dice::Dice;
pub use faults::PlannedFaults;
pub use log::log_to_stderr;
pub use outside::Outside;
pub use process::{Process, healthy};
pub use task::{Behaviour, Factory, Gate, Incident, Latch, TABLES, progress};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Where every changefeed starts.
pub const START: Ts = Ts(1_000);

/// What must never happen, and did.
#[derive(Clone)]
pub struct Violations {
    time: WorldTime,
    found: Arc<Mutex<Vec<String>>>,
}

impl Violations {
    pub fn add(&self, what: &str) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() < 20 {
            found.push(format!("at {:?}: {what}", self.time.now()));
        }
    }

    pub fn found(&self) -> Vec<String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The world.
pub struct World {
    pub time: WorldTime,
    pub dice: Dice,
    pub db: MemoryCluster,
    pub db_clock: Arc<DbClock>,
    pub outside: Outside,
    pub checker: Arc<Checker>,
    pub violations: Violations,
    pub processes: Vec<Process>,
    /// The labels of whoever is started next.
    pub labels: BTreeMap<String, String>,
    /// The address of whoever is started next, unless it is to have one of its own.
    pub addr: Option<String>,
    /// Processors are left to the test.
    pub processors_by_hand: bool,
    /// An operator's handle, over a network without faults.
    pub store: MemoryStore,
    pub admin: Admin,
    names: u64,
}

impl World {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        log::world_begins();
        let time = WorldTime::begin();
        let db_clock = Arc::new(DbClock::new(time));
        let db = MemoryCluster::new(db_clock.clone());
        let violations = Violations { time, found: Arc::default() };
        let outside = Outside::new(time, db.clone(), violations.clone());
        let checker = Arc::new(Checker::new(time, outside.clone(), violations.clone()));
        db.record(checker.clone());
        let store = db.open();
        Self {
            time,
            dice: Dice::new(seed),
            admin: Admin::new(Arc::new(store.clone())),
            store,
            db,
            db_clock,
            outside,
            checker,
            violations,
            processes: Vec::new(),
            labels: BTreeMap::new(),
            addr: None,
            processors_by_hand: false,
            names: 0,
        }
    }

    /// One with so many captures and changefeeds, all of them running.
    pub async fn running(captures: usize, changefeeds: usize) -> (Self, Vec<ChangefeedUuid>) {
        Self::new(1).filled(captures, changefeeds).await
    }

    /// The same of an empty one.
    pub async fn filled(self, captures: usize, changefeeds: usize) -> (Self, Vec<ChangefeedUuid>) {
        let mut world = self;
        for _ in 0..captures {
            world.start();
        }
        world
            .until("every capture is ready", Duration::from_secs(5), |world| {
                world.processes.iter().all(|process| process.capture.status().ready)
            })
            .await;
        let feeds = world.create(changefeeds).await;
        world
            .until("a controller is elected", Duration::from_secs(5), |world| world.controller().is_some())
            .await;
        world
            .until("everything runs", Duration::from_secs(10), |world| world.all_move(&feeds, Duration::ZERO))
            .await;
        world.until("the work is shared evenly", Duration::from_secs(300), Self::is_even).await;
        (world, feeds)
    }

    pub fn now(&self) -> Duration {
        self.time.now()
    }

    /// Starts another process.
    pub fn start(&mut self) -> usize {
        let index = self.processes.len();
        let process = Process::start(index, self);
        self.processes.push(process);
        index
    }

    /// Starts another process in the place of one that was killed, with the proof of that.
    pub fn restart(&mut self, dead: usize) -> usize {
        self.restart_on(dead, "machine")
    }

    /// The same on another machine, with a proof that cannot be right.
    pub fn restart_on(&mut self, dead: usize, machine: &str) -> usize {
        let index = self.processes.len();
        let process = Process::start_at(index, self, machine, self.processes[dead].left());
        self.processes.push(process);
        index
    }

    /// A request for a changefeed.
    pub fn request(&mut self) -> NewChangefeed {
        self.names += 1;
        let name = format!("feed-{}", self.names);
        NewChangefeed {
            name: ChangefeedName::new("", &name).unwrap(),
            upstream_id: None,
            upstream_uri: SecretUri::parse("upstream_uri", "datagen://").unwrap(),
            sink_uri: SecretUri::parse("sink_uri", "blackhole://first").unwrap(),
            start_ts: START,
            target_ts: Ts::ZERO,
            config: ReplicaConfig::default(),
            creator_version: "v1".to_owned(),
            client_request_id: Uuid::from_u64_pair(self.dice.next(), self.dice.next()),
            task_position: progress(START),
        }
    }

    /// Creates a changefeed.
    pub async fn create_one(&mut self, change: impl FnOnce(&mut NewChangefeed)) -> ChangefeedUuid {
        let mut new = self.request();
        change(&mut new);
        let uuid = self.admin.create(&new).await.unwrap().uuid;
        self.outside.expect(uuid, new.task_position.checkpoint_ts);
        uuid
    }

    /// Creates a changefeed with so many tables, on at most so many captures.
    pub async fn create_split(&mut self, tables: usize, max_processors: u32) -> ChangefeedUuid {
        let uuid = self
            .create_one(|new| {
                new.config.0.insert(TABLES.to_owned(), json!(tables));
                new.config.0.insert("placement".to_owned(), json!({ "max_processors": max_processors }));
            })
            .await;
        self.outside.expect_tables(uuid, tables, START);
        uuid
    }

    /// Creates changefeeds.
    pub async fn create(&mut self, count: usize) -> Vec<ChangefeedUuid> {
        let mut feeds = Vec::with_capacity(count);
        for _ in 0..count {
            feeds.push(self.create_one(|_| {}).await);
        }
        feeds
    }

    /// What an operator calls a changefeed.
    pub async fn name(&self, changefeed: ChangefeedUuid) -> ChangefeedName {
        use metadata_api::store::QueryStore as _;
        let infos = self.store.changefeed_infos(Some(&[changefeed])).await.unwrap();
        infos.first().map(|info| info.name.clone()).unwrap()
    }

    // ---- time ----

    /// Waits until `holds`, and says how long that took.
    pub async fn until(&self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let began = self.now();
        loop {
            self.check();
            if holds(self) {
                return self.now() - began;
            }
            assert!(self.now() - began < limit, "not within {limit:?} at {:?}: {what}\n{self:?}", self.now());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets time go by, and checks that `holds` all the while.
    pub async fn throughout(&self, what: &str, time: Duration, holds: impl Fn(&Self) -> bool) {
        let end = self.now() + time;
        while self.now() < end {
            self.check();
            assert!(holds(self), "not any more at {:?}: {what}\n{self:?}", self.now());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets time go by.
    pub async fn pass(&self, time: Duration) {
        self.throughout("", time, |_| true).await;
    }

    /// Panics with what must never happen and did.
    pub fn check(&self) {
        let found = self.violations.found();
        assert!(found.is_empty(), "{}\n{self:?}", found.join("\n"));
    }

    // ---- what the database says ----

    pub fn schedule(&self, changefeed: ChangefeedUuid) -> Option<ChangefeedSchedule> {
        self.db.read(|tables| tables.schedule(changefeed).cloned())
    }

    pub fn state(&self, changefeed: ChangefeedUuid) -> Option<FeedState> {
        self.db.read(|tables| tables.status(changefeed).map(|status| status.state))
    }

    /// How far the database says a changefeed has come.
    pub fn checkpoint(&self, changefeed: ChangefeedUuid) -> Ts {
        self.db.read(|tables| tables.progress(changefeed)).map_or(Ts::ZERO, |progress| progress.checkpoint_ts)
    }

    pub fn capture(&self, id: CaptureId) -> Option<CaptureInfo> {
        self.db.read(|tables| tables.captures().find(|row| row.id == id).cloned())
    }

    /// The capture rows that are not sealed.
    pub fn live_captures(&self) -> Vec<CaptureInfo> {
        self.db.read(|tables| {
            tables.captures().filter(|row| row.state != CaptureState::Offline).cloned().collect()
        })
    }

    /// Which process runs under an id.
    pub fn process_of(&self, id: CaptureId) -> Option<usize> {
        self.processes.iter().position(|process| process.id() == Some(id))
    }

    /// Which process owns a changefeed.
    pub fn owner(&self, changefeed: ChangefeedUuid) -> Option<usize> {
        self.schedule(changefeed)?.owner.and_then(|id| self.process_of(id))
    }

    /// What a process owns.
    pub fn owned(&self, process: usize) -> Vec<ChangefeedUuid> {
        let Some(id) = self.processes[process].id() else { return Vec::new() };
        self.db.read(|tables| tables.owned_by(id).map(|row| row.changefeed).collect())
    }

    /// The process that leads, by its own account and by the database's.
    pub fn controller(&self) -> Option<usize> {
        let record = self.db.read(|tables| tables.election().ok())?;
        self.processes.iter().position(|process| {
            process.runs()
                && process
                    .capture
                    .status()
                    .leading
                    .is_some_and(|term| record.leader == Some(term.capture) && record.epoch == term.epoch)
        })
    }

    /// Somebody other than the controller, and other than `but`.
    pub fn follower(&self, but: &[usize]) -> usize {
        let controller = self.controller();
        let others = self.processes.iter().position(|process| {
            process.runs() && Some(process.index) != controller && !but.contains(&process.index)
        });
        others.expect("another process")
    }

    /// Which process runs under which id.
    pub fn by_id(&self) -> BTreeMap<CaptureId, usize> {
        self.processes.iter().filter_map(|process| Some((process.id()?, process.index))).collect()
    }

    /// Whether a changefeed is launched on a process that runs, and was written by this launch after `since`.
    pub fn moves(&self, changefeed: ChangefeedUuid, since: Duration) -> bool {
        self.moves_on(&self.by_id(), changefeed, since)
    }

    /// The same, for who asks of many.
    pub fn moves_on(
        &self,
        processes: &BTreeMap<CaptureId, usize>,
        changefeed: ChangefeedUuid,
        since: Duration,
    ) -> bool {
        let term = self.db.read(|tables| {
            let schedule = tables.schedule(changefeed)?;
            if schedule.state == ScheduleState::Launched { schedule.term() } else { None }
        });
        let Some(term) = term else { return false };
        let tables = self.outside.last_writes(changefeed);
        if !tables.is_empty() {
            let moves = |write: &outside::Write| write.term.epoch == term.epoch && write.at >= since;
            return tables.iter().all(|last| last.as_ref().is_some_and(moves));
        }
        processes.get(&term.capture).is_some_and(|process| self.processes[*process].runs())
            && self
                .outside
                .last_write(changefeed)
                .is_some_and(|write| write.term == term && write.at >= since)
    }

    pub fn all_move(&self, feeds: &[ChangefeedUuid], since: Duration) -> bool {
        let processes = self.by_id();
        feeds.iter().all(|feed| self.moves_on(&processes, *feed, since))
    }

    /// Whether each is launched on another process than `but`, and moves there.
    pub fn all_elsewhere(&self, feeds: &[ChangefeedUuid], but: &[usize]) -> bool {
        feeds.iter().all(|feed| {
            self.moves(*feed, Duration::ZERO) && self.owner(*feed).is_some_and(|owner| !but.contains(&owner))
        })
    }

    fn drains(&self, process: usize) -> bool {
        let row = self.processes[process].id().and_then(|id| self.capture(id));
        row.is_some_and(|row| row.state == CaptureState::Draining)
    }

    /// How much each capture has that runs and does not drain.
    fn counts(&self) -> Vec<usize> {
        self.processes
            .iter()
            .filter(|process| process.runs() && !self.drains(process.index))
            .map(|process| self.owned(process.index).len())
            .collect()
    }

    /// Whether the counts of the captures that run differ by one at most.
    pub fn is_even(&self) -> bool {
        let counts = self.counts();
        counts.iter().max().copied().unwrap_or(0) - counts.iter().min().copied().unwrap_or(0) <= 1
    }

    /// How many moves are at least wanting until they do.
    pub fn moves_to_even(&self) -> usize {
        let counts = self.counts();
        let share = counts.iter().sum::<usize>().div_ceil(counts.len().max(1));
        counts.iter().map(|count| count.saturating_sub(share)).sum()
    }

    /// Every owner and epoch, to see whether anything moved.
    pub fn owners(&self) -> BTreeMap<ChangefeedUuid, (Option<CaptureId>, u64)> {
        self.db
            .read(|tables| tables.schedules().map(|row| (row.changefeed, (row.owner, row.epoch.0))).collect())
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the world at {:?}:", self.now())?;
        for process in &self.processes {
            writeln!(f, "  {process:?} owns {:?}", self.owned(process.index))?;
        }
        let (election, captures) = self.db.read(|tables| {
            (tables.election().ok(), tables.captures().map(|row| (row.id, row.state)).collect::<Vec<_>>())
        });
        writeln!(f, "  {election:?}\n  {captures:?}")?;
        let rows = self.db.read(|tables| tables.schedules().cloned().collect::<Vec<_>>());
        for row in rows {
            writeln!(
                f,
                "  {} {} {:?} epoch {} state {:?}, last write {:?}",
                row.changefeed,
                row.state,
                row.owner.map(|id| self.process_of(id)),
                row.epoch,
                self.state(row.changefeed),
                self.outside.last_write(row.changefeed).map(|write| (
                    write.at,
                    write.process,
                    write.term.epoch
                ))
            )?;
        }
        Ok(())
    }
}
