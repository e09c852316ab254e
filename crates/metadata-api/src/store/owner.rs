use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::Result;
use crate::decision::feed_state::FeedEvent;
use crate::model::{
    CaptureId, ChangefeedInfo, ChangefeedProgress, ChangefeedStatus, ChangefeedUpdate, FeedState, OwnerTerm,
    ProcessorAssignment, ProcessorSchedule, ProcessorTerm, RunningError, Version,
};

/// How a changefeed ended on its owner, when it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerEnd {
    /// It reached its target.
    Finished,
    /// It cannot go on without an operator.
    Failed(RunningError),
}

/// An owner's last word on a launch.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnerRelease {
    /// The token of the launch.
    pub term: OwnerTerm,
    /// How far it came; `None` when the capture never ran it.
    pub task_position: Option<ChangefeedProgress>,
    /// How it ended; `None` when it was stopped.
    pub end: Option<OwnerEnd>,
}

/// What only a changefeed's owner (or processor) does. Each write locks the schedule row
/// `WHERE changefeed_uuid = ? AND owner = ? AND owner_epoch = ? AND owner_state IN (launched, removing)`; no row is
/// [`Fenced`](crate::MetadataError::Fenced). Writes that others act on lock `fence` before it and take a revision.
#[async_trait]
pub trait OwnerStore: Send + Sync {
    /// Changes the changefeed's state by [`feed_transition`](crate::decision::feed_state::feed_transition).
    ///
    /// `Report(Normal | Warning | Pending)` writes only the state row, without the fence. Every other event takes a
    /// revision, and those that end the run (`Pause`, `Remove`, `Report(Failed | Finished | Removed)`) turn `Launched`
    /// into `Removing`, so that the owner is told to stop by the same path as by an operator.
    /// `error` is stored as the error of `Failed` and `Pending` and as the warning of `Warning`. `Normal`, `Finished` and
    /// `Resume` clear both; `Pause` and `Remove` leave both as they are.
    ///
    /// # Errors
    /// `Fenced`; `InvalidTransition`.
    async fn owner_transition(
        &self,
        term: OwnerTerm,
        event: FeedEvent,
        error: Option<RunningError>,
    ) -> Result<ChangefeedStatus>;

    /// Changes the configuration, as [`changefeed_update`](super::AdminStore::changefeed_update) does, under the owner's
    /// token.
    ///
    /// # Errors
    /// `Fenced`; `Conflict` when the info's version is not `expected`; `InvalidTransition` unless it is `stopped` or
    /// `failed`; `InvalidArgument`.
    async fn owner_update(
        &self,
        term: OwnerTerm,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo>;

    /// Releases launches: `Launched` (through `Removing`) or `Removing` to `Removed`, at most
    /// [`MAX_BATCH`](super::MAX_BATCH), one transaction, one revision. The caller has stopped them: nothing it admitted
    /// for them is under way.
    ///
    /// Per release: task position = the furthest of the row's, the given one, and this owner epoch's entry in the
    /// capture's progress row (I6); owner none; with an `end`, the state goes to `finished` or `failed` with the error,
    /// if the state is still runnable (an operator's `stopped` or `removed` stays). A removed changefeed's name becomes
    /// free. Each release is applied or refused on its own; the answers are in the order given.
    ///
    /// # Errors
    /// For one: `Fenced`, when the term is over (for the caller that means: done); `Corrupt`, when its row does not decode.
    /// For all: `InvalidArgument` when there are too many, or one changefeed is named twice.
    async fn owner_release(&self, releases: &[OwnerRelease]) -> Result<Vec<Result<()>>>;

    /// Gives processors of the owner's changefeed new assignments: all or nothing, one transaction under the fence, one
    /// revision. `seen` is the version of *every* processor row of the changefeed, the `Removed` ones included, on which it
    /// was decided; versions of rows that are assigned grow by one, and nothing else of them changes. With an empty
    /// `assignments` nothing is asked and nothing is done. Gives the rows as they are now, ordered by capture.
    ///
    /// # Errors
    /// `Fenced`, when the owner's term is over; `Conflict` when the rows are not exactly those of `seen`; `InvalidArgument` for
    /// what can never be right: a capture that is not in `seen`, or whose row is not `Launched` or does not serve this owner
    /// epoch; an assignment that does not fit; more than [`MAX_BATCH`](super::MAX_BATCH).
    async fn processor_assign(
        &self,
        term: OwnerTerm,
        seen: &BTreeMap<CaptureId, Version>,
        assignments: &BTreeMap<CaptureId, ProcessorAssignment>,
    ) -> Result<Vec<ProcessorSchedule>>;

    /// Says that a processor has stopped: `Launched` or `Removing` to `Removed`, with a revision. Locks the processor row
    /// with its epoch and the owner epoch it serves.
    ///
    /// # Errors
    /// `Fenced`, when the term is over.
    async fn processor_release(&self, term: ProcessorTerm) -> Result<ProcessorSchedule>;
}

impl OwnerEnd {
    /// The state it leads to.
    pub const fn state(&self) -> FeedState {
        match self {
            Self::Finished => FeedState::Finished,
            Self::Failed(_) => FeedState::Failed,
        }
    }
}
