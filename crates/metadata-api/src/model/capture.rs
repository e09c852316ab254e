//! Captures: the processes of the cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::CaptureId;

/// Whether a capture may carry work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureState {
    /// It beats and takes work.
    Alive,
    /// It beats, hands its work over and gets no new one.
    Draining,
    /// Sealed: it was declared dead, or it deregistered with work left. None of its writes is accepted any
    /// more, and it never comes back under this id.
    Offline,
}

impl CaptureState {
    /// The stored spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Draining => "draining",
            Self::Offline => "offline",
        }
    }
}

impl fmt::Display for CaptureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CaptureState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "alive" => Ok(Self::Alive),
            "draining" => Ok(Self::Draining),
            "offline" => Ok(Self::Offline),
            other => Err(format!("`{other}` is none of alive, draining, offline")),
        }
    }
}

/// What a capture says of itself when it registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCapture {
    /// The fresh id of this incarnation.
    pub id: CaptureId,
    /// `host:port` under which people and programs reach its API.
    pub advertise_addr: String,
    /// The binary's version.
    pub version: String,
    /// Free `key=value` marks, for affinity.
    pub labels: BTreeMap<String, String>,
    /// The host's machine id, empty if unknown.
    pub machine_id: String,
}

/// A capture's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureInfo {
    /// Who it is.
    pub id: CaptureId,
    /// `host:port` under which people and programs reach its API.
    pub advertise_addr: String,
    /// The binary's version.
    pub version: String,
    /// Free `key=value` marks, for affinity.
    pub labels: BTreeMap<String, String>,
    /// The host's machine id, empty if unknown.
    pub machine_id: String,
    /// Whether it may carry work.
    pub state: CaptureState,
    /// Grows with each heartbeat. Whether a capture is alive is judged by watching this number move, never by
    /// a clock.
    pub heartbeat_seq: u64,
    /// The database's clock at the last heartbeat. For people; no decision reads it.
    pub heartbeat_at: DateTime<Utc>,
    /// The database's clock at registration. For people; no decision reads it.
    pub started_at: DateTime<Utc>,
}

/// What the controller's scan reads of each capture, once a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureBeat {
    /// Who it is.
    pub id: CaptureId,
    /// Whether it may carry work.
    pub state: CaptureState,
    /// Grows with each heartbeat.
    pub heartbeat_seq: u64,
}
