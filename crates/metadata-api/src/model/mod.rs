//! The words of the domain, as types.
//!
//! Everything that is stored or decided upon is one of these. Identifiers and epochs are newtypes, so that
//! an owner epoch cannot be passed where a controller epoch is wanted.

mod capture;
mod changefeed;
mod cluster;
mod ids;
mod placement;
mod processor;
mod progress;
mod schedule;
mod snapshot;
mod terms;
mod time;
mod ts;
mod uri;

pub use capture::{CaptureBeat, CaptureInfo, CaptureState, NewCapture};
pub use changefeed::{
    ChangefeedInfo, ChangefeedStatus, ChangefeedUpdate, FeedState, NewChangefeed, ReplicaConfig,
    RunningError, UpstreamInfo,
};
pub use cluster::{ClusterIdentity, ElectionRecord};
pub use ids::{
    CaptureId, ChangefeedName, ChangefeedUuid, ControllerEpoch, Name, OwnerEpoch, ProcessorEpoch, Revision,
    UpstreamId, Version,
};
pub use placement::Placement;
pub use processor::{ProcessorReport, ProcessorStatus, TableError, TableId, TableReport};
pub use progress::{CaptureProgress, ChangefeedProgress, OwnedProgress, SourcePosition};
pub use schedule::{
    ChangefeedSchedule, ProcessorAssignment, ProcessorSchedule, ProcessorTarget, ScheduleState,
    ScheduleTarget,
};
pub use snapshot::{
    ChangefeedOverview, OwnerLaunch, ScheduleSnapshot, SnapshotChangefeed, UnreadableChangefeed,
};
pub use terms::{CaptureTerm, ControllerTerm, OwnerTerm, ProcessorTerm};
pub use time::BootTime;
pub use ts::Ts;
pub use uri::{MASK, SecretUri};
