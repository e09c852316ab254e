use async_trait::async_trait;

use crate::Result;
use crate::model::{
    BootTime, CaptureId, CaptureInfo, ChangefeedInfo, ChangefeedSchedule, ChangefeedUuid, ControllerTerm,
    NewChangefeed, ProcessorSchedule, ProcessorStatus, ProcessorTarget, ScheduleSnapshot, ScheduleTarget,
};

/// What only the controller does. Every write carries its epoch; once the term is over each answers
/// [`Fenced`](crate::MetadataError::Fenced) and changes nothing.
#[async_trait]
pub trait ControllerObservation: Send + Sync {
    /// The token.
    fn term(&self) -> ControllerTerm;

    /// Creates a changefeed (uuid filled in) and upserts its upstream, in one transaction.
    ///
    /// # Errors
    /// As [`changefeed_create`](crate::store::AdminStore::changefeed_create).
    async fn create_changefeed(&self, new: &NewChangefeed) -> Result<ChangefeedInfo>;

    /// Marks a changefeed removed and asks its owner to stop; returns before it has.
    async fn remove_changefeed(&self, changefeed: ChangefeedUuid) -> Result<()>;

    /// Deletes the rows of a changefeed that is removed and stopped. Says whether it was.
    async fn cleanup_changefeed(&self, changefeed: ChangefeedUuid) -> Result<bool>;

    /// Looks at every capture's heartbeat and seals who has been silent for R on this capture's own clock. Gives every
    /// capture, and whether they are others, or in other states, than at the last call.
    async fn refresh_captures(&self) -> Result<(Vec<CaptureInfo>, bool)>;

    /// Takes everything from a capture that is sealed or has no row, in batches, and then deletes its rows.
    ///
    /// # Errors
    /// [`Conflict`](crate::MetadataError::Conflict) when the capture is not sealed.
    async fn release_capture(&self, capture: CaptureId) -> Result<()>;

    /// Returns when the cluster has changed since the last [`schedule_snapshot`](Self::schedule_snapshot), or somebody
    /// may be stale now, or a second has gone by: time to look again.
    async fn wait_for_change(&self);

    /// Whether the cluster has changed since the last [`schedule_snapshot`](Self::schedule_snapshot), or there was none.
    fn has_changed(&self) -> bool;

    /// Whether anything may be launched now: not so for R after this capture found the database restored.
    fn may_launch(&self) -> bool;

    /// This capture's clock: planning is calm by it.
    fn now(&self) -> BootTime;

    /// Launches or removes one owner.
    ///
    /// # Errors
    /// As one target of [`owner_set`](crate::store::ControllerStore::owner_set).
    async fn set_owner(&self, target: ScheduleTarget) -> Result<ChangefeedSchedule>;

    /// The batch form, of any length: split into transactions, in order. The answers are in the order of `targets`.
    async fn set_owners(&self, targets: &[ScheduleTarget]) -> Result<Vec<Result<ChangefeedSchedule>>>;

    /// Attaches and detaches processors of one changefeed.
    ///
    /// # Errors
    /// As [`processor_set`](crate::store::ControllerStore::processor_set).
    async fn set_processors(
        &self,
        changefeed: ChangefeedUuid,
        targets: &[ProcessorTarget],
    ) -> Result<Vec<ProcessorSchedule>>;

    /// Processors of some changefeeds, or of all; as [`processors`](crate::store::QueryStore::processors).
    async fn processors(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ProcessorStatus>>;

    /// One changefeed's schedule; `None` when there is no such changefeed.
    async fn changefeed_schedule(&self, changefeed: ChangefeedUuid) -> Result<Option<ChangefeedSchedule>>;

    /// Every schedule and capture, at one moment.
    async fn schedule_snapshot(&self) -> Result<ScheduleSnapshot>;
}
