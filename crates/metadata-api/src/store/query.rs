use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::Result;
use crate::model::{
    CaptureId, CaptureInfo, ChangefeedInfo, ChangefeedName, ChangefeedOverview, ChangefeedProgress,
    ChangefeedSchedule, ChangefeedStatus, ChangefeedUuid, ClusterIdentity, ElectionRecord, Name,
    ProcessorSchedule, ProcessorStatus, UpstreamId, UpstreamInfo,
};

/// Plain reads. No lock, no token; each method sees one moment: one statement, or one snapshot.
///
/// `which = None` means all that are not cleaned up yet, the removed ones included. What is asked for and does
/// not exist is left out. Lists are ordered by key.
#[async_trait]
pub trait QueryStore: Send + Sync {
    /// Which database this is.
    async fn identity(&self) -> Result<ClusterIdentity>;

    /// The election row.
    async fn election(&self) -> Result<ElectionRecord>;

    /// Captures, some or all, ordered by id.
    async fn captures(&self, which: Option<&[CaptureId]>) -> Result<Vec<CaptureInfo>>;

    /// One upstream.
    async fn upstream(&self, id: UpstreamId) -> Result<Option<UpstreamInfo>>;

    /// What changefeeds are to do, ordered by uuid.
    async fn changefeed_infos(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedInfo>>;

    /// What changefeeds are doing, ordered by uuid.
    async fn changefeed_statuses(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedStatus>>;

    /// How far changefeeds have come (I6): while a schedule is `Removed`, its task position; else the entry of the
    /// schedule's owner *with the current owner epoch* in that owner's progress row, if it is ahead of the task
    /// position. The whole value of one of them, never field by field.
    async fn changefeed_progresses(
        &self,
        which: Option<&[ChangefeedUuid]>,
    ) -> Result<BTreeMap<ChangefeedUuid, ChangefeedProgress>>;

    /// One changefeed's schedule.
    async fn changefeed_schedule(&self, changefeed: ChangefeedUuid) -> Result<Option<ChangefeedSchedule>>;

    /// One changefeed's processor rows, ordered by capture id, the `Removed` ones included.
    async fn processor_schedules(&self, changefeed: ChangefeedUuid) -> Result<Vec<ProcessorSchedule>>;

    /// Processors with what they report, of some changefeeds or of all, ordered by (changefeed, capture), the `Removed` ones
    /// included.
    async fn processors(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ProcessorStatus>>;

    /// All of the one changefeed that holds this name now: a removed one holds it until its schedule is `Removed`.
    async fn changefeed_overview(&self, name: &ChangefeedName) -> Result<Option<ChangefeedOverview>>;

    /// All of every changefeed that holds its name, of one namespace or of all, ordered by (namespace, id).
    async fn changefeed_overviews(&self, namespace: Option<&Name>) -> Result<Vec<ChangefeedOverview>>;
}
