//! Values without the times that a database's clock wrote into them, so that two databases can be compared.

use std::fmt::Debug;

use chrono::{DateTime, Utc};
use metadata_api::model::{
    CaptureBeat, CaptureInfo, CaptureProgress, CaptureTerm, ChangefeedInfo, ChangefeedOverview,
    ChangefeedProgress, ChangefeedSchedule, ChangefeedStatus, ClusterIdentity, ControllerTerm,
    ElectionRecord, OwnerLaunch, ProcessorSchedule, ProcessorStatus, Revision, ScheduleSnapshot,
    SnapshotChangefeed, UpstreamInfo,
};
use metadata_api::store::Assigned;

/// A value that may hold times of the database's clock.
pub(crate) trait Timeless: Debug + Clone {
    /// The value with each such time replaced by the same one.
    #[must_use]
    fn timeless(self) -> Self;
}

const NO_TIME: DateTime<Utc> = DateTime::UNIX_EPOCH;

impl Timeless for CaptureInfo {
    fn timeless(self) -> Self {
        Self { heartbeat_at: NO_TIME, started_at: NO_TIME, ..self }
    }
}

impl Timeless for ChangefeedInfo {
    fn timeless(self) -> Self {
        Self { created_at: NO_TIME, removed_at: self.removed_at.map(|_| NO_TIME), ..self }
    }
}

impl Timeless for ChangefeedOverview {
    fn timeless(self) -> Self {
        Self { info: self.info.timeless(), ..self }
    }
}

impl Timeless for OwnerLaunch {
    fn timeless(self) -> Self {
        Self { info: self.info.timeless(), ..self }
    }
}

impl Timeless for ScheduleSnapshot {
    fn timeless(self) -> Self {
        Self { captures: self.captures.timeless(), ..self }
    }
}

impl<T: Timeless> Timeless for Assigned<T> {
    fn timeless(self) -> Self {
        Self { rows: self.rows.timeless(), ..self }
    }
}

impl<T: Timeless> Timeless for Vec<T> {
    fn timeless(self) -> Self {
        self.into_iter().map(T::timeless).collect()
    }
}

impl<T: Timeless> Timeless for Option<T> {
    fn timeless(self) -> Self {
        self.map(T::timeless)
    }
}

impl<T: Timeless, E: Debug + Clone> Timeless for Result<T, E> {
    fn timeless(self) -> Self {
        self.map(T::timeless)
    }
}

impl<A: Timeless, B: Timeless> Timeless for (A, B) {
    fn timeless(self) -> Self {
        (self.0.timeless(), self.1.timeless())
    }
}

macro_rules! without_times {
    ($($name:ty),* $(,)?) => {
        $(impl Timeless for $name {
            fn timeless(self) -> Self {
                self
            }
        })*
    };
}

without_times!(
    (),
    bool,
    u64,
    usize,
    String,
    CaptureBeat,
    CaptureProgress,
    CaptureTerm,
    ChangefeedProgress,
    ChangefeedSchedule,
    ChangefeedStatus,
    ClusterIdentity,
    ControllerTerm,
    ElectionRecord,
    ProcessorSchedule,
    ProcessorStatus,
    Revision,
    SnapshotChangefeed,
    UpstreamInfo,
);
