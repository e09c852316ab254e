use async_trait::async_trait;

use crate::Result;
use crate::model::{
    CaptureBeat, CaptureId, ChangefeedSchedule, ChangefeedUuid, ControllerTerm, ProcessorSchedule,
    ProcessorTarget, ScheduleSnapshot, ScheduleTarget, Version,
};

/// What only the controller does. The first statement of each write locks the fence row with the term's epoch and
/// allocates the revision, in one round trip; no row is [`Fenced`](crate::MetadataError::Fenced).
#[async_trait]
pub trait ControllerStore: Send + Sync {
    /// All that the planner decides upon, read as of one moment. Not fenced: every write that follows is.
    ///
    /// A changefeed whose schedule or state does not decode is [`unreadable`](ScheduleSnapshot::unreadable), and stops no
    /// other.
    ///
    /// # Errors
    /// `Corrupt` when the row of a *capture* does not decode: who is alive is what every decision rests on.
    async fn schedule_snapshot(&self) -> Result<ScheduleSnapshot>;

    /// Every capture's heartbeat sequence, ordered by id: the scan, once a second. Not fenced.
    async fn capture_beats(&self) -> Result<Vec<CaptureBeat>>;

    /// Launches and removes owners: at most [`MAX_BATCH`](super::MAX_BATCH) targets, one transaction, one revision.
    ///
    /// A launch sets the owner, `Launched`, and the owner epoch to the transaction's revision. It is refused unless the
    /// target capture is `alive` (a plain read under the held fence), the changefeed's state is runnable and it is not
    /// removed. Each target is applied or refused on its own; the answers are in the order of `targets`.
    ///
    /// # Errors
    /// For all: `Fenced`; `InvalidArgument` when there are too many targets or one changefeed is named twice. For
    /// one: `NotFound` (no such changefeed), `Conflict` (its version moved; the capture is not alive; its state is
    /// not runnable), `InvalidTransition`, `InvalidArgument` (a target that can never be right: `Removed`, a launch
    /// without a capture, or a removal that names another capture than the owner), `Corrupt` (its row does not decode).
    async fn owner_set(
        &self,
        term: ControllerTerm,
        targets: &[ScheduleTarget],
    ) -> Result<Vec<Result<ChangefeedSchedule>>>;

    /// Attaches and detaches processors of one changefeed: all or nothing, one transaction, one revision. A `Launched`
    /// target sets the row's epoch to the revision and its owner epoch to the schedule's current one. `Removed` rows of
    /// captures that are launched again are reused.
    ///
    /// # Errors
    /// `Fenced`; `NotFound` (no such changefeed); `Conflict` (a version moved, a row is there that was not expected, the
    /// schedule is not `Launched`, a target capture is not alive); `InvalidTransition`; `InvalidArgument` (too many, one
    /// named twice, or a target that can never be right: `Removed`, or `Removing` without a version).
    async fn processor_set(
        &self,
        term: ControllerTerm,
        changefeed: ChangefeedUuid,
        targets: &[ProcessorTarget],
    ) -> Result<Vec<ProcessorSchedule>>;

    /// Deletes every row of changefeeds that are removed, whose schedule is `Removed` with the given version and whose
    /// processors are all `Removed`; and every upstream that no changefeed uses any more. At most
    /// [`MAX_BATCH`](super::MAX_BATCH). What does not qualify is left. Says how many changefeeds were deleted.
    async fn changefeed_cleanup(
        &self,
        term: ControllerTerm,
        targets: &[(ChangefeedUuid, Version)],
    ) -> Result<u64>;

    /// Declares a capture dead: `capture.state = offline` where its heartbeat sequence is still `judged_seq`, and seals
    /// its progress row, in one transaction. Says whether it is sealed now: `false` = it beat meanwhile. A
    /// capture that is `offline` already, or has no row, is `true`.
    async fn capture_seal(&self, term: ControllerTerm, capture: CaptureId, judged_seq: u64) -> Result<bool>;

    /// Takes schedules from a sealed (or absent) capture: up to `limit` (at most [`MAX_BATCH`](super::MAX_BATCH)) of the
    /// schedule and processor rows that name it and are not `Removed`. Schedules go to `Removed` with task position = the
    /// further of the task position and the sealed progress entry *of the same owner epoch*; a removed changefeed's
    /// name becomes free. An entry for a changefeed that is gone is passed over, and so is a missing progress row. A schedule
    /// that does not decode stays as it is, with its owner, and stops no other.
    /// Says how many rows were taken; fewer than `limit` = there are no more that can be.
    ///
    /// # Errors
    /// `Fenced`; `Conflict` when the capture is not `offline`; `Corrupt` when the sealed progress does not decode;
    /// `InvalidArgument` when `limit` is 0 or too large.
    async fn capture_release(&self, term: ControllerTerm, capture: CaptureId, limit: usize) -> Result<usize>;

    /// Deletes the rows of a sealed capture that no schedule or processor names any more, except as `Removed`; its
    /// `Removed` processor rows go with it. Done already when there is no row.
    ///
    /// # Errors
    /// `Fenced`; `Conflict` when the capture is not `offline`, or something still names it.
    async fn capture_delete(&self, term: ControllerTerm, capture: CaptureId) -> Result<()>;
}
