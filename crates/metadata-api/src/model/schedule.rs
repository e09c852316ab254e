//! Who runs what.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    CaptureId, ChangefeedProgress, ChangefeedUuid, OwnerEpoch, OwnerTerm, ProcessorEpoch, ProcessorTerm,
    Revision, Version,
};

/// The state of an owner's or processor's schedule.
///
/// ```text
/// Removed --controller launches--> Launched --controller or operator--> Removing --owner stopped--> Removed
///    ^                                |
///    +---- the capture is sealed, or the owner releases by itself
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleState {
    /// Nobody runs it.
    Removed,
    /// Its capture runs it, or is about to.
    Launched,
    /// Its capture is to stop it, and may still be running it.
    Removing,
}

impl ScheduleState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Removed, Self::Launched, Self::Removing];

    /// The stored spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Launched => "launched",
            Self::Removing => "removing",
        }
    }
}

impl fmt::Display for ScheduleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ScheduleState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("`{}` is none of removed, launched, removing", text.escape_debug()))
    }
}

/// A changefeed's schedule row: who owns it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangefeedSchedule {
    /// Whose.
    pub changefeed: ChangefeedUuid,
    /// The owner; `None` exactly when the state is [`ScheduleState::Removed`].
    pub owner: Option<CaptureId>,
    /// The schedule's state.
    pub state: ScheduleState,
    /// The epoch of the last launch; stays when the schedule is removed.
    pub epoch: OwnerEpoch,
    /// Where the next owner starts.
    pub task_position: ChangefeedProgress,
    /// The revision of the last change.
    pub revision: Revision,
    /// The row's version.
    pub version: Version,
}

impl ChangefeedSchedule {
    /// The term of the current owner; `None` when there is none.
    pub fn term(&self) -> Option<OwnerTerm> {
        self.owner.map(|capture| OwnerTerm { changefeed: self.changefeed, capture, epoch: self.epoch })
    }
}

/// What a schedule is asked to become, by the controller.
///
/// The target is applied only if the row still has `expected_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleTarget {
    /// Whose schedule.
    pub changefeed: ChangefeedUuid,
    /// The version on which the decision was made.
    pub expected_version: Version,
    /// `Launched` or `Removing`. (`Removed` is written by the owner, or by sealing its capture.)
    pub state: ScheduleState,
    /// The capture to launch on; `None` when `state` is `Removing`.
    pub owner: Option<CaptureId>,
}

/// What a processor carries: opaque to the store, a JSON value of the owner's making.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessorAssignment(pub serde_json::Value);

/// A processor's schedule row.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessorSchedule {
    /// Whose.
    pub changefeed: ChangefeedUuid,
    /// On which capture.
    pub capture: CaptureId,
    /// The schedule's state.
    pub state: ScheduleState,
    /// The owner epoch it serves.
    pub owner_epoch: OwnerEpoch,
    /// The epoch of this attachment.
    pub epoch: ProcessorEpoch,
    /// What it carries.
    pub assignment: ProcessorAssignment,
    /// The revision of the last change.
    pub revision: Revision,
    /// The row's version.
    pub version: Version,
}

impl ProcessorSchedule {
    /// The term of this attachment.
    pub fn term(&self) -> ProcessorTerm {
        ProcessorTerm {
            changefeed: self.changefeed,
            capture: self.capture,
            epoch: self.epoch,
            owner_epoch: self.owner_epoch,
        }
    }
}

/// What one processor of a changefeed is asked to become.
///
/// `expected_version` is `None` when the capture has no row for the changefeed yet.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessorTarget {
    /// On which capture.
    pub capture: CaptureId,
    /// The version on which the decision was made; `None` = there is no row yet.
    pub expected_version: Option<Version>,
    /// `Launched` or `Removing`.
    pub state: ScheduleState,
    /// What it is to carry, when `Launched`.
    pub assignment: ProcessorAssignment,
}
