//! What a processor says of the tables that it carries.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CaptureState, ChangefeedProgress, ProcessorEpoch, ProcessorSchedule, RunningError, Version};

/// A table, or whatever else a source can be split by, under the name that the source gives it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableId(pub String);

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a processor says of one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableReport {
    /// Which order it is about: the version that the processor's row got with it.
    pub since: Version,
    /// It does not run it any more, nothing of it is under way, and it will not run it again under this order: it was told
    /// to stop, it has reached the changefeed's target, or it could not go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Why it could not go on. Only with `stopped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TableError>,
    /// How far the table is in the sink, durably.
    pub progress: ChangefeedProgress,
}

/// Why a processor could not go on with a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableError {
    /// What happened, where and when.
    #[serde(flatten)]
    pub error: RunningError,
    /// Whether trying again may help.
    pub retryable: bool,
}

/// All that a capture says as a processor of one changefeed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessorReport {
    /// The attachment that it is about. Of another one it says nothing.
    pub epoch: ProcessorEpoch,
    /// Each table of which it has something to say.
    pub tables: BTreeMap<TableId, TableReport>,
}

/// One processor: its row, and what is known of its capture.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessorStatus {
    /// Its row.
    pub schedule: ProcessorSchedule,
    /// The state of its capture; `None` when that has no row.
    pub capture: Option<CaptureState>,
    /// What the capture last reported *under this attachment*, sealed or not. `None`: nothing, or nothing that can be read.
    /// In a position `1.0` may have become `1`.
    pub report: Option<ProcessorReport>,
}
