//! One moment of the whole cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use capture_runtime::launches::{Entry, Outcome, Phase, Situation};
use metadata_api::decision::lease::{LeaseWatch, OfflineJudge, OwnBeats};
use metadata_api::decision::planner::Action;
use metadata_api::decision::watch::Orders;
use metadata_api::model::{
    BootTime, CaptureBeat, CaptureId, CaptureProgress, CaptureState, CaptureTerm, ChangefeedUuid,
    ClusterIdentity, ControllerTerm, ElectionRecord, OwnerEpoch, OwnerTerm, Revision, ScheduleState,
    ScheduleTarget,
};
use metadata_api::store::{OwnerRelease, PollAnswer};

use crate::database::Database;

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// Two launches of a changefeed might flush at one and the same moment.
    TwoWriters,
    /// An older owner epoch wrote after a newer one.
    EpochWentBack,
    /// A changefeed's checkpoint went back.
    CheckpointWentBack,
    /// A launch began, or the database says it came, further than what is outside.
    Skipped,
    /// A capture was declared dead that had done nothing but lose the database, as everybody had.
    OutageMoved,
    /// A changefeed that ought to run does not, long after the last fault.
    Lost,
}

/// How the network of one process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// As it should be.
    Up,
    /// No request arrives.
    RequestsLost,
    /// Requests arrive, answers do not.
    AnswersLost,
    /// What is written over the pool arrives some time, perhaps when everybody has forgotten it.
    Late,
}

/// How a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// It runs.
    Runs,
    /// `SIGSTOP`.
    Suspended,
    /// `kill -9`, and nobody has started it again.
    Dead,
}

/// A statement that its sender has given up.
#[derive(Clone, Debug)]
pub enum Late {
    /// A progress.
    Advance(CaptureTerm, u64, CaptureProgress),
    /// A release.
    Release(OwnerRelease),
    /// A controller's orders.
    Set(ControllerTerm, Vec<ScheduleTarget>),
    /// A controller's judgement.
    Seal(ControllerTerm, CaptureId, u64),
}

/// An answer that arrived while its process was suspended.
#[derive(Clone, Debug)]
pub enum Held {
    /// To a heartbeat: when it was sent, and its number.
    Beat(BootTime, u64),
    /// To a look.
    Look(Box<Looked>),
    /// To the controller's scan.
    Scan(Vec<CaptureBeat>),
}

/// What a look saw.
#[derive(Clone, Debug)]
pub struct Looked {
    pub(crate) began_at: BootTime,
    pub(crate) answer: PollAnswer,
    /// The orders when it began, and what they are by its answer.
    pub(crate) before: Orders,
    pub(crate) after: Orders,
}

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    /// How it is.
    pub life: Life,
    /// Its network.
    pub path: Path,
    /// Its registered incarnation.
    pub capture: Option<Capture>,
    /// How many ids it has had.
    pub incarnations: u8,
    /// As controller it launches nothing before it.
    pub launch_from: BootTime,
}

/// What has been done in this tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Done {
    pub(crate) beat: bool,
    pub(crate) look: bool,
    pub(crate) campaign: bool,
    pub(crate) scan: bool,
    pub(crate) plan: bool,
    pub(crate) advance: bool,
    pub(crate) asked: bool,
}

/// A registered incarnation.
#[derive(Clone, Debug)]
pub struct Capture {
    pub(crate) term: CaptureTerm,
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    pub(crate) last_beat: Option<BootTime>,
    pub(crate) last_look: Option<BootTime>,
    pub(crate) own_beats: OwnBeats,
    pub(crate) lease: LeaseWatch,
    pub(crate) judge: OfflineJudge,
    pub(crate) identity: Option<ClusterIdentity>,
    pub(crate) revision: Revision,
    pub(crate) own_state: Option<CaptureState>,
    pub(crate) election: Option<ElectionRecord>,
    pub(crate) until: BootTime,
    pub(crate) orders: Orders,
    pub(crate) situation: Situation,
    pub(crate) feeds: BTreeMap<ChangefeedUuid, Feed>,
    pub(crate) progress_seq: u64,
    pub(crate) advanced: CaptureProgress,
    pub(crate) office: Option<Office>,
    pub(crate) held: Option<Held>,
    pub(crate) done: Done,
}

/// What a controller has in hand.
#[derive(Clone, Debug)]
pub struct Office {
    pub(crate) term: ControllerTerm,
    pub(crate) to_seal: Vec<(CaptureId, u64)>,
    pub(crate) to_do: Vec<Action>,
    /// The revision of the last snapshot; `None` = plan whatever the revision is.
    pub(crate) planned: Option<Revision>,
}

/// A changefeed on a capture.
#[derive(Clone, Debug)]
pub struct Feed {
    pub(crate) order: (ScheduleState, OwnerEpoch),
    pub(crate) running: Option<Running>,
    pub(crate) ended: Option<(OwnerEpoch, Outcome)>,
    pub(crate) asking: Option<Asking>,
    /// Checkpoint of the last task that has ended.
    pub(crate) progress: Option<(OwnerEpoch, u64)>,
}

/// What the store is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asking {
    /// To launch.
    Launch(OwnerEpoch),
    /// To release.
    Release(OwnerEpoch),
}

/// A launch's task.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    pub(crate) epoch: OwnerEpoch,
    pub(crate) phase: Phase,
    /// Its admission was fenced, and stays so.
    pub(crate) fenced: bool,
    pub(crate) at: u64,
}

impl Feed {
    pub(crate) fn new(order: (ScheduleState, OwnerEpoch)) -> Self {
        Self { order, running: None, ended: None, asking: None, progress: None }
    }

    pub(crate) fn entry(&self) -> Entry {
        Entry {
            order: self.order,
            running: self.running.map(|running| (running.epoch, running.phase)),
            ended: self.ended,
            asking: self.asking.is_some(),
            unknown_flush: false,
            backing_off: false,
        }
    }

    pub(crate) fn progress_under(&self, epoch: OwnerEpoch) -> Option<u64> {
        match self.running {
            Some(running) => (running.epoch == epoch).then_some(running.at),
            None => self.progress.filter(|(made, _)| *made == epoch).map(|(_, at)| at),
        }
    }

    pub(crate) fn end(&mut self, outcome: Outcome) {
        if let Some(running) = self.running.take() {
            self.progress = Some((running.epoch, running.at));
            self.ended = Some((running.epoch, outcome));
        }
    }
}

/// A flush that was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    pub(crate) process: usize,
    pub(crate) term: OwnerTerm,
    pub(crate) from: u64,
    /// Past it, it does not reach the outside any more.
    pub(crate) ends_by: BootTime,
    /// It has reached the outside, and its process does not know yet.
    pub(crate) written: bool,
}

/// What is outside, of one changefeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sink {
    pub(crate) high: u64,
    pub(crate) epoch: OwnerEpoch,
}

/// The whole cluster.
#[derive(Clone)]
pub struct State {
    /// The time, on everybody's `CLOCK_BOOTTIME`.
    pub now: BootTime,
    /// The database's rows.
    pub db: Database,
    /// The database answers.
    pub db_up: bool,
    /// The processes.
    pub processes: Vec<Process>,
    /// Flushes under way.
    pub flushes: Vec<Flush>,
    /// Statements under way that their senders have given up.
    pub inbox: Vec<Late>,
    /// The sinks.
    pub sinks: BTreeMap<ChangefeedUuid, Sink>,
    /// How many faults may still happen.
    pub faults_left: u8,
    /// For how many ticks nothing has been wrong.
    pub calm: u8,
    /// What must never be, and is.
    pub violation: Option<Violation>,
}

impl State {
    /// How long ago a moment was, as far as any decision can tell.
    pub(crate) fn age(&self, at: BootTime) -> u64 {
        self.now.since(at).as_secs().min(20)
    }

    /// Time that is left to a moment.
    pub(crate) fn left(&self, until: BootTime) -> Duration {
        until.since(self.now)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "at {:?}, database up: {}: {:?}", self.now.since_boot(), self.db_up, self.db)?;
        for process in &self.processes {
            write!(f, "  {:?} {:?}", process.life, process.path)?;
            if let Some(capture) = &process.capture {
                write!(
                    f,
                    " {} left {:?} {:?}",
                    capture.term.capture,
                    self.left(capture.until),
                    capture.situation
                )?;
                write!(f, " office {:?} feeds {:?}", capture.office, capture.feeds)?;
            }
            writeln!(f)?;
        }
        write!(
            f,
            "  flushes {:?} inbox {:?} sinks {:?} {:?}",
            self.flushes, self.inbox, self.sinks, self.violation
        )
    }
}
