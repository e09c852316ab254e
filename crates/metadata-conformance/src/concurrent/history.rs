//! What several clients did at once: each call with when it was made, when it returned, and what came of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use metadata_api::model::{
    CaptureId, CaptureTerm, ChangefeedSchedule, ChangefeedUuid, ControllerEpoch, ControllerTerm,
    ElectionRecord, OwnerEpoch, OwnerTerm, Revision, ScheduleState, Ts, Version,
};
use metadata_api::{MetadataError, Result};

/// A number that grows with each call and each return of any client: what returned at a smaller moment than another was
/// made at came before it.
pub type Moment = u64;

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who made it.
    pub client: usize,
    /// When it was made.
    pub invoked: Moment,
    /// When it returned.
    pub returned: Moment,
    /// What it was.
    pub call: Call,
    /// What came of it.
    pub outcome: Outcome,
    /// What is known by it, if it went well.
    pub facts: Vec<Fact>,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not, for certain.
    Refused,
    /// It may have been done, or may yet be.
    Unknown,
}

impl Outcome {
    /// Of a call's answer.
    pub fn of<T>(answer: &Result<T>) -> Self {
        match answer {
            Ok(_) => Self::Done,
            Err(MetadataError::Unknown { .. }) => Self::Unknown,
            Err(_) => Self::Refused,
        }
    }
}

/// A call, by whose token it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A campaign.
    Campaign(CaptureTerm),
    /// Any write of a controller but the next one.
    AsController(ControllerTerm),
    /// A controller takes schedules from a capture.
    Take(ControllerTerm, CaptureId),
    /// A report of an owner.
    AsOwner(OwnerTerm),
    /// An owner's release.
    Release(OwnerTerm),
    /// A heartbeat.
    Beat(CaptureTerm),
    /// A capture's progress: the checkpoint of each launch.
    Advance(CaptureTerm, Vec<(ChangefeedUuid, OwnerEpoch, Ts)>),
    /// An operator's word.
    Operate,
    /// A poll of everything after a revision, in one page.
    Poll(CaptureTerm, Revision),
    /// A read.
    Read,
    /// The last read, when nothing is under way any more: its rows are the last versions.
    Last,
}

/// What is known by a call that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The caller is controller.
    Elected(ControllerTerm),
    /// The election row.
    Election {
        /// Who leads.
        leader: Option<CaptureId>,
        /// The epoch of the last acquisition.
        epoch: ControllerEpoch,
        /// The lease's sequence.
        lease_seq: u64,
    },
    /// The cluster's revision.
    Revision(Revision),
    /// The call wrote this row.
    Wrote(Row),
    /// The call read this row.
    Saw(Row),
    /// How far a changefeed has come.
    Checkpoint(ChangefeedUuid, Ts),
    /// The capture is sealed.
    Sealed(CaptureId),
}

/// A schedule row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose.
    pub changefeed: ChangefeedUuid,
    /// Grows by one with each write.
    pub version: Version,
    /// When it was written.
    pub revision: Revision,
    /// Who owns it.
    pub owner: Option<CaptureId>,
    /// The schedule's state.
    pub state: ScheduleState,
    /// The last launch's epoch.
    pub epoch: OwnerEpoch,
}

impl From<&ChangefeedSchedule> for Row {
    fn from(row: &ChangefeedSchedule) -> Self {
        Self {
            changefeed: row.changefeed,
            version: row.version,
            revision: row.revision,
            owner: row.owner,
            state: row.state,
            epoch: row.epoch,
        }
    }
}

impl From<&ElectionRecord> for Fact {
    fn from(row: &ElectionRecord) -> Self {
        Self::Election { leader: row.leader, epoch: row.epoch, lease_seq: row.lease_seq }
    }
}

/// Writes a history down while it happens.
#[derive(Debug, Default)]
pub struct Recorder {
    clock: AtomicU64,
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    /// Makes a call; `facts` says what is known by its answer.
    pub async fn call<T>(
        &self,
        client: usize,
        call: Call,
        made: impl Future<Output = Result<T>>,
        facts: impl FnOnce(&T) -> Vec<Fact>,
    ) -> Result<T> {
        let invoked = self.now();
        let answer = made.await;
        let returned = self.now();
        let (outcome, facts) = (Outcome::of(&answer), answer.as_ref().map(facts).unwrap_or_default());
        let event = Event { client, invoked, returned, call, outcome, facts };
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        answer
    }

    fn now(&self) -> Moment {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Everything, in the order in which it was made.
    pub fn history(&self) -> Vec<Event> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        events.sort_by_key(|event| event.invoked);
        events
    }
}
