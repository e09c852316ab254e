use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::model::{
    CaptureBeat, CaptureProgress, CaptureState, CaptureTerm, ChangefeedSchedule, ChangefeedUuid,
    ClusterIdentity, ControllerTerm, ElectionRecord, NewCapture, OwnerLaunch, ProcessorSchedule, Revision,
};
use crate::{MetadataError, Result};

/// What a capture does for itself.
#[async_trait]
pub trait CaptureStore: Send + Sync {
    /// Writes the capture's row (`alive`, heartbeat sequence 0) and its empty progress row, under `fence`
    /// with a revision. Repeating it with the same id is done already, and succeeds, unless the row was sealed.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when a row with this id is `offline`;
    /// [`InvalidArgument`](crate::MetadataError::InvalidArgument) when the address is empty or over 255 bytes, or
    /// version, labels or machine id do not fit.
    async fn capture_register(&self, capture: &NewCapture) -> Result<CaptureTerm>;

    /// A channel with a connection of its own, for heartbeats and nothing else, never from the pool: a starved
    /// pool must not cost a lease. The connection is opened here.
    async fn heartbeat_channel(&self) -> Result<Box<dyn HeartbeatChannel>>;

    /// A channel with a connection of its own for the watch poll and the lease renewal. Opened here.
    async fn watch_channel(&self) -> Result<Box<dyn WatchChannel>>;

    /// Replaces the capture's whole progress value, in one autocommit update
    /// `WHERE capture_id = ? AND NOT sealed AND seq < ?` (I6). `seq` is the capture's own, chosen greater than any it
    /// ever sent.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when the row is sealed or absent;
    /// [`Conflict`](crate::MetadataError::Conflict) when a progress with this or a higher `seq` is there already;
    /// [`InvalidArgument`](crate::MetadataError::InvalidArgument) naming the changefeed whose entry does not fit.
    async fn capture_advance(&self, term: CaptureTerm, seq: u64, progress: &CaptureProgress) -> Result<()>;

    /// The capture's own progress row: its sequence and value.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when it is sealed or absent.
    async fn capture_progress(&self, term: CaptureTerm) -> Result<(u64, CaptureProgress)>;

    /// Every schedule row that names the capture and is not `Removed`, ordered by uuid, with the revision of
    /// the same statement: the full reconcile.
    async fn capture_schedules(&self, term: CaptureTerm) -> Result<Assigned<ChangefeedSchedule>>;

    /// Every processor row that names the capture and is not `Removed`, ordered by uuid, with the revision of
    /// the same statement.
    async fn capture_processors(&self, term: CaptureTerm) -> Result<Assigned<ProcessorSchedule>>;

    /// What is needed to start changefeeds (at most [`MAX_BATCH`](super::MAX_BATCH)) that the capture owns: those of
    /// `changefeeds` whose schedule is `Launched` and names the capture. The others are left out. Ordered by uuid.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::MetadataError::InvalidArgument) when there are too many, or one is named twice.
    async fn owner_launches(
        &self,
        term: CaptureTerm,
        changefeeds: &[ChangefeedUuid],
    ) -> Result<Vec<OwnerLaunch>>;

    /// Ends the capture's registration, under `fence` with a revision: deletes its capture and progress rows
    /// when no schedule or processor that is not `Removed` names it; else seals both and leaves them for
    /// the controller. Done already when there is no row.
    async fn capture_deregister(&self, term: CaptureTerm) -> Result<()>;
}

/// The heartbeat's own connection. Dropping it closes the connection hard.
///
/// The caller bounds each call with its own timeout; after a timeout or any error but `Fenced` it drops the channel and
/// opens another: the outcome of that beat is unknown, which the next beat's number allows for.
#[async_trait]
pub trait HeartbeatChannel: Send {
    /// One autocommit update of the capture's own row:
    /// `heartbeat_seq = next WHERE id = ? AND state <> 'offline' AND heartbeat_seq >= acknowledged AND heartbeat_seq < next`.
    ///
    /// `next` is greater than any number this capture ever sent; `acknowledged` is the greatest whose answer arrived (0
    /// before the first). A row that fell *below* it belongs to a restored database.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) with the reason in the text: sealed, absent, or gone back.
    async fn beat(&mut self, term: CaptureTerm, acknowledged: u64, next: u64) -> Result<()>;
}

/// All that names a capture and is not `Removed`, as of one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned<T> {
    /// The revision of the same statement.
    pub revision: Revision,
    /// The rows, ordered by uuid.
    pub rows: Vec<T>,
    /// The changefeeds whose row does not decode: it says nothing, and stops no other. What the capture runs under such a
    /// row's former value goes on: nobody can give it to another before the row is mended.
    pub unreadable: BTreeSet<ChangefeedUuid>,
}

impl<T> Assigned<T> {
    /// Of rows as they were read, each with its changefeed.
    ///
    /// # Errors
    /// The first that is not [`Corrupt`](MetadataError::Corrupt).
    pub fn of(
        revision: Revision,
        read: impl IntoIterator<Item = (ChangefeedUuid, Result<T>)>,
    ) -> Result<Self> {
        let mut assigned = Self { revision, rows: Vec::new(), unreadable: BTreeSet::new() };
        for (changefeed, row) in read {
            match row {
                Ok(row) => assigned.rows.push(row),
                Err(MetadataError::Corrupt { .. }) => drop(assigned.unreadable.insert(changefeed)),
                Err(error) => return Err(error),
            }
        }
        Ok(assigned)
    }
}

/// The watch connection. Dropping it closes the connection hard. To be used like the [`HeartbeatChannel`].
#[async_trait]
pub trait WatchChannel: Send {
    /// What is new for the capture, in one statement.
    async fn poll(&mut self, term: CaptureTerm, cursor: &PollCursor) -> Result<PollAnswer>;

    /// Moves the lease sequence: one autocommit update `WHERE id = 1 AND leader_id = ? AND controller_epoch = ?`.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when the term is over.
    async fn lease_renew(&mut self, term: ControllerTerm) -> Result<()>;
}

/// From where a poll goes on, in each of its two lists: after (revision, uuid), exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollCursor {
    /// For schedule rows.
    pub schedules: (Revision, ChangefeedUuid),
    /// For processor rows.
    pub processors: (Revision, ChangefeedUuid),
}

impl PollCursor {
    /// Everything with a revision greater than `revision`.
    pub const fn after(revision: Revision) -> Self {
        let end = (revision, ChangefeedUuid(u64::MAX));
        Self { schedules: end, processors: end }
    }

    /// Where the next page begins, after `answer`.
    #[must_use]
    pub fn next_page(&self, answer: &PollAnswer) -> Self {
        Self {
            schedules: answer.schedules.last().map_or(self.schedules, |row| (row.revision, row.changefeed)),
            processors: answer
                .processors
                .last()
                .map_or(self.processors, |row| (row.revision, row.changefeed)),
        }
    }
}

/// What a poll saw, all at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct PollAnswer {
    /// Which database answered.
    pub identity: ClusterIdentity,
    /// The fence row's revision: every change up to it is visible.
    pub revision: Revision,
    /// The election row.
    pub election: ElectionRecord,
    /// The *leader's* capture row, if it has one: everybody watches the controller.
    pub controller: Option<CaptureBeat>,
    /// The capture's own state; `None` = it has no row.
    pub own_state: Option<CaptureState>,
    /// How many schedule rows name the capture and are not `Removed`.
    pub owned: u64,
    /// How many processor rows name the capture and are not `Removed`.
    pub attached: u64,
    /// Schedule rows that name the capture, after the cursor, ordered by (revision, uuid), at most
    /// [`POLL_PAGE`](super::POLL_PAGE).
    pub schedules: Vec<ChangefeedSchedule>,
    /// Processor rows that name the capture, after the cursor, ordered by (revision, uuid), at most
    /// [`POLL_PAGE`](super::POLL_PAGE).
    pub processors: Vec<ProcessorSchedule>,
}

impl PollAnswer {
    /// Whether there may be another page.
    pub fn has_more(&self) -> bool {
        self.schedules.len() >= super::POLL_PAGE || self.processors.len() >= super::POLL_PAGE
    }
}
