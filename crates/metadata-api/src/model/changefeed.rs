//! Changefeeds: replication jobs from an upstream to a sink.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ChangefeedName, ChangefeedProgress, ChangefeedUuid, SecretUri, Ts, UpstreamId, Version};
use crate::{MetadataError, Result};

/// What a changefeed is doing, as operators see it. Its edges are in [`crate::decision::feed_state`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedState {
    /// Created, and no owner has reported yet. Written as the empty string.
    #[default]
    #[serde(rename = "")]
    Uninitialized,
    /// It runs.
    Normal,
    /// It failed and waits to be tried again.
    Pending,
    /// It runs, or is being tried again, after an error.
    Warning,
    /// Paused by an operator.
    Stopped,
    /// It failed for good; an operator may resume it.
    Failed,
    /// It reached its target.
    Finished,
    /// An operator removed it; it is being stopped and will be cleaned up.
    Removed,
}

impl FeedState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Uninitialized,
        Self::Normal,
        Self::Pending,
        Self::Warning,
        Self::Stopped,
        Self::Failed,
        Self::Finished,
        Self::Removed,
    ];

    /// The stored and public spelling (TiCDC's).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uninitialized => "",
            Self::Normal => "normal",
            Self::Pending => "pending",
            Self::Warning => "warning",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Finished => "finished",
            Self::Removed => "removed",
        }
    }

    /// Whether a changefeed in this state ought to have an owner.
    pub const fn is_runnable(self) -> bool {
        matches!(self, Self::Uninitialized | Self::Normal | Self::Pending | Self::Warning)
    }
}

impl fmt::Display for FeedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uninitialized => "uninitialized",
            other => other.as_str(),
        })
    }
}

impl FromStr for FeedState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("`{}` is no changefeed state", text.escape_debug()))
    }
}

/// An error or warning of a running changefeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningError {
    /// When it happened, by the capture's clock. For people.
    pub time: DateTime<Utc>,
    /// The advertise address of the capture it happened on.
    pub addr: String,
    /// TiCDC's error code, as in `CDC:ErrStartTsBeforeGC`.
    pub code: String,
    /// What happened, without secrets.
    pub message: String,
}

/// A changefeed's `replica_config`: a JSON object, kept verbatim. Which keys mean something is the
/// replicator's to say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaConfig(pub serde_json::Map<String, serde_json::Value>);

/// Where changes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamInfo {
    /// Its key.
    pub id: UpstreamId,
    /// Where it is and how to log in. Stored in two columns: the endpoints, and the credentials.
    pub uri: SecretUri,
}

/// What a changefeed is to do. Changes only by an operator's update.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangefeedInfo {
    /// Its key.
    pub uuid: ChangefeedUuid,
    /// What people call it.
    pub name: ChangefeedName,
    /// Where changes come from.
    pub upstream: UpstreamId,
    /// Where changes go to.
    pub sink_uri: SecretUri,
    /// Changes after it are replicated.
    pub start_ts: Ts,
    /// Changes at or before it are replicated, and then the changefeed is finished; 0 = without end.
    pub target_ts: Ts,
    /// How.
    pub config: ReplicaConfig,
    /// The version of the binary that created it.
    pub creator_version: String,
    /// The client's own id of the creating request; a repeated create with the same id finds this one.
    pub client_request_id: Uuid,
    /// The database's clock at creation. For people; no decision reads it.
    pub created_at: DateTime<Utc>,
    /// When it was removed; `None` = live.
    pub removed_at: Option<DateTime<Utc>>,
    /// The row's version.
    pub version: Version,
}

/// A changefeed's state row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangefeedStatus {
    /// Whose.
    pub changefeed: ChangefeedUuid,
    /// The state.
    pub state: FeedState,
    /// The last warning, while it matters.
    pub warning: Option<RunningError>,
    /// The error that made it `failed` or `pending`.
    pub error: Option<RunningError>,
    /// The row's version.
    pub version: Version,
}

/// A request to create a changefeed, validated before any SQL.
#[derive(Clone, Debug)]
pub struct NewChangefeed {
    /// What people will call it.
    pub name: ChangefeedName,
    /// The upstream's key; `None`: a fresh one.
    pub upstream_id: Option<UpstreamId>,
    /// Where changes come from. Upserted in the same transaction.
    pub upstream_uri: SecretUri,
    /// Where changes go to.
    pub sink_uri: SecretUri,
    /// Changes after it are replicated.
    pub start_ts: Ts,
    /// 0 = without end; else at least `start_ts`.
    pub target_ts: Ts,
    /// How.
    pub config: ReplicaConfig,
    /// The version of the binary that creates it.
    pub creator_version: String,
    /// Repeating a create whose outcome is unknown with the same id returns what the first one made.
    pub client_request_id: Uuid,
    /// Where the first owner starts: what the source said at creation.
    pub task_position: ChangefeedProgress,
}

impl NewChangefeed {
    /// Checks what concerns more than one field.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] with the field: `target_ts` below `start_ts`; a timestamp out of
    /// range; a `task_position` before `start_ts`.
    pub fn validate(&self) -> Result<()> {
        check_range(self.start_ts, self.target_ts)?;
        if self.task_position.checkpoint_ts < self.start_ts {
            return Err(MetadataError::invalid(
                "task_position",
                format!(
                    "its checkpoint_ts {} is before start_ts {}",
                    self.task_position.checkpoint_ts, self.start_ts
                ),
            ));
        }
        Ok(())
    }
}

/// What an update replaces. `None` = keep.
#[derive(Clone, Debug, Default)]
pub struct ChangefeedUpdate {
    /// A new sink.
    pub sink_uri: Option<SecretUri>,
    /// A new upstream URI; the upstream's id stays.
    pub upstream_uri: Option<SecretUri>,
    /// A new target; 0 = without end.
    pub target_ts: Option<Ts>,
    /// A new configuration, whole.
    pub config: Option<ReplicaConfig>,
}

impl ChangefeedUpdate {
    /// Checks the update against what it is applied to.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] with the field: `target_ts` below the changefeed's `start_ts`.
    pub fn validate(&self, current: &ChangefeedInfo) -> Result<()> {
        check_range(current.start_ts, self.target_ts.unwrap_or(current.target_ts))
    }
}

fn check_range(start_ts: Ts, target_ts: Ts) -> Result<()> {
    Ts::new("start_ts", start_ts.0)?;
    Ts::new("target_ts", target_ts.0)?;
    if target_ts != Ts::ZERO && target_ts < start_ts {
        return Err(MetadataError::invalid(
            "target_ts",
            format!("{target_ts} is less than start_ts {start_ts}; 0 means without end"),
        ));
    }
    Ok(())
}
