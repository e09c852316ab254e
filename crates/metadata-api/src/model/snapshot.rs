//! Joined views: what several rows say at one moment.

use super::{
    CaptureInfo, ChangefeedInfo, ChangefeedProgress, ChangefeedSchedule, ChangefeedStatus, ChangefeedUuid,
    FeedState, OwnerTerm, Placement, Revision, UpstreamInfo,
};

/// All that an operator sees of one changefeed, read in one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangefeedOverview {
    /// What it is to do.
    pub info: ChangefeedInfo,
    /// Where changes come from.
    pub upstream: UpstreamInfo,
    /// What it is doing.
    pub status: ChangefeedStatus,
    /// Who owns it.
    pub schedule: ChangefeedSchedule,
    /// How far it has come (invariant I6).
    pub progress: ChangefeedProgress,
}

/// What a capture needs to start a changefeed that it owns, read in one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnerLaunch {
    /// The token of the launch.
    pub term: OwnerTerm,
    /// What to do.
    pub info: ChangefeedInfo,
    /// Where changes come from.
    pub upstream: UpstreamInfo,
    /// The state at the launch. An owner starts only what is runnable.
    pub status: ChangefeedStatus,
    /// Where to start (invariant I6).
    pub progress: ChangefeedProgress,
}

/// One changefeed, as the planner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotChangefeed {
    /// Its schedule.
    pub schedule: ChangefeedSchedule,
    /// Its state.
    pub state: FeedState,
    /// Whether an operator removed it.
    pub removed: bool,
    /// How many processor rows it has that are not `Removed`.
    pub live_processors: u32,
    /// Where it may run, from its configuration; or why that cannot be read: then it is launched nowhere, and what runs
    /// is left alone.
    pub placement: Result<Placement, String>,
}

/// All that the controller decides upon.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScheduleSnapshot {
    /// The revision that the snapshot shows at least: every change up to it is in.
    pub revision: Revision,
    /// Every capture row, ordered by id.
    pub captures: Vec<CaptureInfo>,
    /// Every changefeed that is not cleaned up, ordered by uuid, but for those of which something does not decode.
    pub changefeeds: Vec<SnapshotChangefeed>,
    /// Those, ordered by uuid. Nothing is planned for them until somebody mends the row; all others go on.
    pub unreadable: Vec<UnreadableChangefeed>,
}

/// A changefeed whose schedule or state does not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableChangefeed {
    /// Which.
    pub changefeed: ChangefeedUuid,
    /// The table, the key and the column that do not decode, and why: the text of
    /// [`Corrupt`](crate::MetadataError::Corrupt).
    pub reason: String,
}

impl ScheduleSnapshot {
    /// Takes in one changefeed as it was read. What failed to decode is kept apart.
    ///
    /// # Errors
    /// Any other than [`Corrupt`](crate::MetadataError::Corrupt).
    pub fn add(
        &mut self,
        changefeed: ChangefeedUuid,
        read: crate::Result<SnapshotChangefeed>,
    ) -> crate::Result<()> {
        match read {
            Ok(feed) => self.changefeeds.push(feed),
            Err(error @ crate::MetadataError::Corrupt { .. }) => {
                self.unreadable.push(UnreadableChangefeed { changefeed, reason: error.to_string() });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
