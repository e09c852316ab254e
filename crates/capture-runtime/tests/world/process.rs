//! One process of the world.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use capture_runtime::{Capture, CaptureConfig, Lineage, RuntimeError};
use metadata_api::decision::lease::TimePolicy;
use metadata_api::decision::planner::PlanPolicy;
use metadata_api::model::CaptureId;
use metadata_memory::{Conditions, Link, MemoryOptions, Path};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Factory, Gate, Latch, Outside, PlannedFaults, ProcessClock, World};

/// How a process's network is when nothing is wrong with it.
pub fn healthy() -> Conditions {
    Conditions { there: Duration::from_millis(1), back: Duration::from_millis(1), ..Conditions::default() }
}

/// One process.
pub struct Process {
    pub index: usize,
    pub capture: Capture,
    pub link: Link,
    pub clock: Arc<ProcessClock>,
    pub faults: PlannedFaults,
    pub stop: CancellationToken,
    gate: Arc<Latch>,
    outside: Outside,
    main: Option<JoinHandle<()>>,
    ended: Arc<Mutex<Option<Result<(), String>>>>,
    /// The network as it was before it was suspended.
    before: Mutex<Option<Link>>,
    place: Arc<Place>,
}

/// What a process finds where it starts, and leaves there.
#[derive(Debug, Default)]
pub struct Place {
    /// Proven to be dead.
    dead: Option<CaptureId>,
    last: Mutex<Option<CaptureId>>,
}

impl Lineage for Place {
    fn dead_predecessor(&self) -> Option<CaptureId> {
        self.dead
    }

    fn remember(&self, capture: CaptureId) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(capture);
    }
}

impl Process {
    pub(super) fn start(index: usize, world: &World) -> Self {
        Self::start_at(index, world, "machine", Place::default())
    }

    /// What the next process in the place of this one finds.
    pub(super) fn left(&self) -> Place {
        assert!(self.is_buried(), "a lock is given away when its holder is dead");
        let dead = *self.place.last.lock().unwrap_or_else(PoisonError::into_inner);
        Place { dead, last: Mutex::default() }
    }

    pub(super) fn start_at(index: usize, world: &World, machine: &str, place: Place) -> Self {
        let place = Arc::new(place);
        let clock = Arc::new(ProcessClock::new(world.time, world.dice.fork()));
        let (link, faults) = (Link::default(), PlannedFaults::default());
        link.set_all(healthy());
        let options = MemoryOptions {
            link: link.clone(),
            faults: Some(Arc::new(faults.clone())),
            ..MemoryOptions::default()
        };
        let store = world.db.open_with(options);
        let gate = Arc::new(Latch::open());
        let factory = Factory {
            process: index,
            outside: world.outside.clone(),
            clock: clock.clone(),
            gate: gate.clone(),
            runs_processors: !world.processors_by_hand,
        };
        let config = CaptureConfig {
            advertise_addr: world.addr.clone().unwrap_or_else(|| format!("process-{index}:8300")),
            version: "v1".to_owned(),
            labels: world.labels.clone(),
            machine_id: machine.to_owned(),
            time: TimePolicy::default(),
            plan: PlanPolicy::default(),
            lineage: Some(place.clone()),
        };
        let capture = Capture::new(Arc::new(store), Arc::new(factory), clock.clone(), config).unwrap();
        let stop = CancellationToken::new();
        let ended = Arc::new(Mutex::new(None));
        let main = {
            let (capture, stop, ended) = (capture.clone(), stop.clone(), ended.clone());
            tokio::spawn(async move {
                let result = capture.run(stop).await;
                *ended.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(result.map_err(|error: RuntimeError| format!("{error:?}")));
            })
        };
        let process = Self {
            index,
            capture,
            link,
            clock,
            faults,
            stop,
            gate,
            outside: world.outside.clone(),
            main: Some(main),
            ended,
            before: Mutex::default(),
            place,
        };
        process.watch_the_office(world);
        process
    }

    /// Whatever a controller commits, it commits while it holds the epoch that may write, and knows it.
    fn watch_the_office(&self, world: &World) {
        let (capture, db, violations) = (self.capture.clone(), world.db.clone(), world.violations.clone());
        let index = self.index;
        self.faults.on_commit(move |transaction| {
            let office = matches!(
                transaction,
                "owner.set" | "capture.seal" | "capture.release" | "capture.delete" | "changefeed.cleanup"
            );
            if !office {
                return;
            }
            let term = capture.status().leading;
            let epoch = db.read(|tables| tables.fence_epoch().ok());
            if term.map(|term| term.epoch) != epoch {
                violations.add(&format!(
                    "process {index} committed {transaction} as {term:?}, while epoch {epoch:?} may write"
                ));
            }
        });
    }

    /// Its id now.
    pub fn id(&self) -> Option<CaptureId> {
        self.capture.status().id
    }

    /// It has not ended, was not killed, and is not suspended.
    pub fn runs(&self) -> bool {
        self.gate.get() == Gate::Runs && self.ended().is_none()
    }

    /// It may be suspended, but is not over.
    pub fn exists(&self) -> bool {
        self.gate.get() != Gate::Dead && self.ended().is_none()
    }

    /// It is suspended.
    pub fn is_suspended(&self) -> bool {
        self.gate.get() == Gate::Suspended
    }

    /// Nothing is left of it.
    pub fn is_buried(&self) -> bool {
        self.gate.get() == Gate::Dead
    }

    /// How it ended, if it did by itself.
    pub fn ended(&self) -> Option<Result<(), String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.gate.set(Gate::Dead);
        self.link.cut();
        self.outside.killed(self.index);
        if let Some(main) = self.main.take() {
            main.abort();
        }
    }

    /// The application drops the capture's future, and lives on.
    pub fn drop_future(&mut self) {
        if let Some(main) = self.main.take() {
            main.abort();
        }
    }

    /// The process ended by itself, with an error: nothing of it is left.
    pub fn bury(&mut self) {
        self.kill();
    }

    /// `SIGSTOP`: its clock stands still for it, nothing of it reaches anybody.
    pub fn suspend(&self) {
        self.gate.set(Gate::Suspended);
        self.clock.freeze();
        let before = Link::default();
        for lane in metadata_memory::Lane::ALL {
            before.set(lane, self.link.conditions(lane));
        }
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        self.link.set_all(Conditions { path: Path::Hangs, ..healthy() });
        self.outside.still(self.index, true);
    }

    /// `SIGCONT`.
    pub fn resume(&self) {
        self.clock.go_on();
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner).take();
        for lane in metadata_memory::Lane::ALL {
            let conditions = before.as_ref().map_or_else(healthy, |before| before.conditions(lane));
            self.link.set(lane, conditions);
        }
        self.outside.still(self.index, false);
        self.gate.set(Gate::Runs);
    }

    /// A partition.
    pub fn cut(&self) {
        self.link.set_all(Conditions { path: Path::Hangs, ..healthy() });
    }

    /// The network is as good as new.
    pub fn heal(&self) {
        self.link.set_all(healthy());
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.capture.status();
        write!(
            f,
            "process {} {:?} {:?} ready {} leading {:?} left {:?} ended {:?}",
            self.index,
            self.gate.get(),
            status.id.map(|id| id.to_string()),
            status.ready,
            status.leading.map(|term| term.epoch),
            status.deadline_left,
            self.ended()
        )
    }
}
