//! The JSON shapes of the contract: what is asked and what is answered.
//!
//! Answers are read too, by `cdc cli`, which may talk to a TiCDC server: every member has a default there, and `null`
//! is accepted wherever Go writes it. `namespace` and `keyspace` say the same thing to the two generations of clients.

use std::collections::BTreeMap;

use metadata_api::model::Ts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::body::null_is_default;
use super::json_time::JsonTime;

/// `GET /api/v2/status`, `GET /status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerStatus {
    /// A semantic version, at least 6.2.0.
    pub version: String,
    /// The commit.
    pub git_hash: String,
    /// The capture's id.
    pub id: String,
    /// The cluster's identity.
    pub cluster_id: String,
    /// The process id.
    pub pid: u32,
    /// Whether it is the controller.
    pub is_owner: bool,
    /// 0 = alive, 1 = stopping.
    pub liveness: i32,
}

/// One of `GET /api/v2/captures`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capture {
    /// Its id.
    pub id: String,
    /// Whether it is the controller.
    pub is_owner: bool,
    /// Its advertise address.
    pub address: String,
    /// The cluster's identity.
    pub cluster_id: String,
    /// Ours: whether it hands its work over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_draining: Option<bool>,
    /// Ours: the database's clock at its last heartbeat, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat: Option<String>,
    /// Ours: the version of its binary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Ours: its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// `POST /api/v2/tso`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tso {
    /// Unix milliseconds.
    pub timestamp: i64,
    /// Counts within the millisecond.
    pub logic_time: i64,
}

impl Tso {
    /// As one number.
    pub fn ts(self) -> Ts {
        let physical = Ts::from_physical_ms(u64::try_from(self.timestamp).unwrap_or(0));
        Ts(physical.0.saturating_add(u64::try_from(self.logic_time).unwrap_or(0)))
    }
}

/// A list's envelope.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub struct List<T> {
    /// How many.
    #[serde(default)]
    pub total: usize,
    /// They.
    #[serde(default = "Vec::new", deserialize_with = "null_is_default")]
    pub items: Vec<T>,
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self { total: items.len(), items }
    }
}

/// An error or warning of a changefeed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunningError {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// On which capture.
    pub addr: String,
    /// `CDC:...`.
    pub code: String,
    /// What happened.
    pub message: String,
}

/// Ours: who runs a changefeed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// The capture; `null` = nobody.
    pub capture_id: Option<String>,
    /// The epoch of the last launch; 0 = never launched.
    pub epoch: u64,
    /// `removed`, `launched` or `removing`.
    pub state: String,
}

/// One of `GET /api/v2/changefeeds`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangefeedCommonInfo {
    /// The upstream's key.
    pub upstream_id: u64,
    /// The namespace.
    pub namespace: String,
    /// The namespace, for newer clients.
    pub keyspace: String,
    /// The id.
    pub id: String,
    /// The state, as lists show it.
    pub state: String,
    /// How far it has come.
    pub checkpoint_tso: u64,
    /// The physical part of that.
    pub checkpoint_time: JsonTime,
    /// `null` while all is well.
    pub error: Option<RunningError>,
    /// Ours: who runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Ours: where changes come from, masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_uri: Option<String>,
    /// Ours: where changes go to, masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink_uri: Option<String>,
}

/// The tables of one capture, of a changefeed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureTaskStatus {
    /// The capture.
    pub capture_id: String,
    /// TiCDC's ids of its tables: tables have names here, so there are none.
    #[serde(deserialize_with = "null_is_default")]
    pub table_ids: Vec<i64>,
    /// Ours: its tables.
    #[serde(deserialize_with = "null_is_default")]
    pub tables: Vec<CarriedTable>,
}

/// Ours: a table, or a part of the tables, on a capture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CarriedTable {
    /// The table, or which part of how many, as `2/4`.
    pub table: String,
    /// `waiting` (ordered, and nothing was heard of it yet), `running`, `stopping`, `stopped`, or `failed`.
    pub state: String,
    /// How far it is in the sink.
    pub checkpoint_ts: u64,
    /// The same as a time.
    pub checkpoint_time: JsonTime,
    /// Why it could not go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<RunningError>,
}

/// A changefeed's 128-bit key, in two halves. Ours is 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gid {
    /// The uuid.
    pub low: u64,
    /// 0.
    pub high: u64,
}

/// A changefeed in full.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeFeedInfo {
    /// The upstream's key.
    #[serde(skip_serializing_if = "is_zero")]
    pub upstream_id: u64,
    /// The namespace.
    pub namespace: String,
    /// The namespace, for newer clients.
    pub keyspace: String,
    /// The id.
    pub id: String,
    /// Where changes go to, masked.
    pub sink_uri: String,
    /// Ours: where changes come from, masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_uri: Option<String>,
    /// RFC 3339.
    #[serde(deserialize_with = "null_is_default")]
    pub create_time: String,
    /// Changes after it are replicated.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_ts: u64,
    /// The last change to replicate; absent = without end.
    #[serde(skip_serializing_if = "is_zero")]
    pub target_ts: u64,
    /// 1 stop, 3 remove, 4 finish; absent = none.
    #[serde(skip_serializing_if = "is_zero")]
    pub admin_job_type: u64,
    /// How, with the defaults filled in and secrets masked.
    #[serde(deserialize_with = "null_is_default")]
    pub config: Map<String, Value>,
    /// The state.
    pub state: String,
    /// Absent while all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<RunningError>,
    /// The version of the binary that created it.
    pub creator_version: String,
    /// The source has delivered everything up to it.
    pub resolved_ts: u64,
    /// Everything up to it is in the sink.
    pub checkpoint_ts: u64,
    /// The physical part of that.
    pub checkpoint_time: JsonTime,
    /// Which captures carry it.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub task_status: Vec<CaptureTaskStatus>,
    /// The uuid.
    pub gid: Gid,
    /// The advertise address of the owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintainer_addr: Option<String>,
    /// Ours: who runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde wants")]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// `GET /api/v2/changefeeds/{id}/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangefeedStatus {
    /// The state.
    pub state: String,
    /// The source has delivered everything up to it.
    pub resolved_ts: u64,
    /// Everything up to it is in the sink.
    pub checkpoint_ts: u64,
    /// The last error, while it matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<RunningError>,
    /// The last warning, while it matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_warning: Option<RunningError>,
}

/// `GET /api/v2/changefeeds/{id}/synced`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncedStatus {
    /// Whether nothing is left to be replicated.
    pub synced: bool,
    /// The checkpoint.
    pub sink_checkpoint_ts: JsonTime,
    /// What the source has delivered.
    pub puller_resolved_ts: JsonTime,
    /// When the last row was written; not recorded here.
    pub last_synced_ts: JsonTime,
    /// Now.
    pub now_ts: JsonTime,
    /// Why.
    pub info: String,
}

/// One of `GET /api/v2/processors`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessorCommonInfo {
    /// The changefeed's namespace.
    pub namespace: String,
    /// The namespace, for newer clients.
    pub keyspace: String,
    /// The changefeed.
    pub changefeed_id: String,
    /// The capture.
    pub capture_id: String,
    /// Ours: `launched`, or `removing`.
    pub state: String,
    /// Ours: how many tables it carries.
    pub table_count: usize,
}

/// `GET /api/v2/processors/{changefeed}/{capture}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessorDetail {
    /// TiCDC's ids of its tables: tables have names here, so there are none.
    #[serde(deserialize_with = "null_is_default")]
    pub table_ids: Vec<i64>,
    /// Ours: its tables.
    #[serde(deserialize_with = "null_is_default")]
    pub tables: Vec<CarriedTable>,
}

/// `POST /api/v2/verify_table`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tables {
    /// Tables that cannot be replicated.
    #[serde(deserialize_with = "null_is_default")]
    pub ineligible_tables: Vec<Value>,
    /// Tables that can.
    #[serde(deserialize_with = "null_is_default")]
    pub eligible_tables: Vec<Value>,
    /// Both.
    #[serde(deserialize_with = "null_is_default")]
    pub all_tables: Vec<Value>,
}

/// The body of create and update. Not `Debug`: it carries secrets.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangefeedConfig {
    /// The namespace; empty = that of the query.
    #[serde(deserialize_with = "null_is_default")]
    pub namespace: String,
    /// The namespace, from newer clients.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub keyspace: String,
    /// The id; empty in a create = a fresh one.
    #[serde(deserialize_with = "null_is_default")]
    pub changefeed_id: String,
    /// 0 = now.
    #[serde(deserialize_with = "null_is_default")]
    pub start_ts: u64,
    /// 0 = without end; in an update: keep.
    #[serde(deserialize_with = "null_is_default")]
    pub target_ts: u64,
    /// Empty in an update: keep.
    #[serde(deserialize_with = "null_is_default")]
    pub sink_uri: String,
    /// `null` = all defaults; in an update: keep.
    pub replica_config: Option<Map<String, Value>>,
    /// Ours: where changes come from. Empty: the server's default, or that of `upstream_id`; in an update: keep.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub upstream_uri: String,
    /// Ours: the upstream's key; 0 = a fresh one.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "is_zero")]
    pub upstream_id: u64,
    /// Ours: a UUID; a repeated create with the same one answers what the first one made.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub client_request_id: String,
}

/// The body of resume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResumeChangefeedConfig {
    /// Where to start; 0 = where it stopped.
    #[serde(deserialize_with = "null_is_default")]
    pub overwrite_checkpoint_ts: u64,
}

/// The answer of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainCaptureResp {
    /// How many changefeeds the capture still owns. (TiCDC counts tables.)
    pub current_table_count: usize,
}

/// Why a changefeed is where it is, and what becomes of it. Not in the contract.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Scheduling {
    /// One line each: where it stands, and what the planner would do next or why it does nothing.
    pub decisions: Vec<String>,
}
