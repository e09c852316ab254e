//! Rows, as they are stored, and how they become model values. What does not decode is
//! [`Corrupt`](metadata_api::MetadataError::Corrupt), with table, key and column.

use chrono::{DateTime, NaiveDateTime, Utc};
use metadata_api::codec::{Cell, join_uri, processor_report};
use metadata_api::model::{
    CaptureBeat, CaptureId, CaptureInfo, ChangefeedInfo, ChangefeedName, ChangefeedSchedule,
    ChangefeedStatus, ChangefeedUuid, ControllerEpoch, ElectionRecord, Name, OwnerEpoch, ProcessorEpoch,
    ProcessorSchedule, ProcessorStatus, Revision, ScheduleState, UpstreamId, UpstreamInfo, Version,
};
use metadata_api::{MetadataError, Result};

/// A stored id as a number.
pub(crate) const fn id(stored: i64) -> u64 {
    stored.cast_unsigned()
}

/// A number as it is stored. Only for what is compared for equality, or is known to be ordered either way.
pub(crate) const fn stored(number: u64) -> i64 {
    number.cast_signed()
}

/// A number that is compared by order, from outside; `field` is what the error calls it.
pub(crate) fn ordered(field: &'static str, number: u64) -> Result<i64> {
    i64::try_from(number)
        .map_err(|_| MetadataError::invalid(field, format!("{number} is greater than {}", i64::MAX)))
}

/// A bound to compare with: whatever is greater than every stored number is the greatest.
pub(crate) fn bound(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Uuids as one parameter, for `json_each`.
pub(crate) fn json_uuids(uuids: impl IntoIterator<Item = ChangefeedUuid>) -> String {
    uuids.into_iter().map(|uuid| stored(uuid.0)).collect::<serde_json::Value>().to_string()
}

/// Capture ids as one parameter, for `json_each`.
pub(crate) fn json_captures(captures: impl IntoIterator<Item = CaptureId>) -> String {
    captures.into_iter().map(|capture| capture.to_string()).collect::<serde_json::Value>().to_string()
}

fn time(cell: Cell<'_>, text: &str) -> Result<DateTime<Utc>> {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f")
        .map(|time| time.and_utc())
        .map_err(|_| cell.corrupt(format!("`{}` is not a UTC time", text.escape_debug())))
}

/// Selects [`ScheduleRow`]s; the first argument is the rest of the statement.
macro_rules! schedule_query {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $crate::rows::ScheduleRow,
            "SELECT changefeed_uuid, owner, owner_state, owner_epoch, task_position, revision, version FROM schedule "
                + $rest
            $(, $argument)*
        )
    };
}

/// Selects [`StatusRow`]s.
macro_rules! status_query {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $crate::rows::StatusRow,
            "SELECT changefeed_uuid, state, warning, error, version FROM changefeed_state " + $rest
            $(, $argument)*
        )
    };
}

/// Selects [`InfoRow`]s.
macro_rules! info_query {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $crate::rows::InfoRow,
            "SELECT uuid, namespace, id, upstream_id, sink_uri, start_ts, target_ts, config, creator_version, \
             client_request_id, created_at, removed_at, version FROM changefeed_info " + $rest
            $(, $argument)*
        )
    };
}

/// Selects [`ProcessorRow`]s.
macro_rules! processor_query {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $crate::rows::ProcessorRow,
            "SELECT changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment, revision, version \
             FROM processor " + $rest
            $(, $argument)*
        )
    };
}

/// Selects [`ProcessorStatusRow`]s.
macro_rules! processor_status_query {
    ($filter:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $crate::rows::ProcessorStatusRow,
            r#"SELECT p.changefeed_uuid, p.capture_id, p.state, p.owner_epoch, p.epoch, p.assignment, p.revision,
                      p.version, c.state AS "capture_state?: String",
                      CASE WHEN json_valid(g.value)
                           THEN json_extract(g.value, '$."' || p.changefeed_uuid || '".processor')
                      END AS "report?: String"
               FROM processor p
               LEFT JOIN capture c ON c.id = p.capture_id
               LEFT JOIN progress g ON g.capture_id = p.capture_id
               WHERE "# + $filter + " ORDER BY p.changefeed_uuid, p.capture_id"
            $(, $argument)*
        )
    };
}

/// Selects [`CaptureRow`]s.
macro_rules! capture_query {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $crate::rows::CaptureRow,
            "SELECT id, advertise_addr, binary_version, labels, machine_id, state, heartbeat_seq, heartbeat_at, \
             started_at FROM capture " + $rest
            $(, $argument)*
        )
    };
}

pub(crate) use {
    capture_query, info_query, processor_query, processor_status_query, schedule_query, status_query,
};

/// `election`.
pub(crate) struct ElectionRow {
    pub(crate) leader_id: Option<String>,
    pub(crate) controller_epoch: i64,
    pub(crate) lease_seq: i64,
    pub(crate) cooldown: Option<String>,
    pub(crate) version: i64,
}

impl TryFrom<ElectionRow> for ElectionRecord {
    type Error = MetadataError;

    fn try_from(row: ElectionRow) -> Result<Self> {
        let cell = |column| Cell::new("election", &1, column);
        Ok(Self {
            leader: cell("leader_id").parse_opt(row.leader_id.as_deref())?,
            epoch: ControllerEpoch(id(row.controller_epoch)),
            lease_seq: id(row.lease_seq),
            cooldown: cell("cooldown").parse_opt(row.cooldown.as_deref())?,
            version: Version(id(row.version)),
        })
    }
}

/// `capture`.
pub(crate) struct CaptureRow {
    pub(crate) id: String,
    pub(crate) advertise_addr: String,
    pub(crate) binary_version: String,
    pub(crate) labels: String,
    pub(crate) machine_id: String,
    pub(crate) state: String,
    pub(crate) heartbeat_seq: i64,
    pub(crate) heartbeat_at: String,
    pub(crate) started_at: String,
}

impl TryFrom<CaptureRow> for CaptureInfo {
    type Error = MetadataError;

    fn try_from(row: CaptureRow) -> Result<Self> {
        let cell = |column| Cell::new("capture", &row.id, column);
        Ok(Self {
            id: cell("id").parse(&row.id)?,
            labels: cell("labels").json(&row.labels)?,
            state: cell("state").parse(&row.state)?,
            heartbeat_seq: id(row.heartbeat_seq),
            heartbeat_at: time(cell("heartbeat_at"), &row.heartbeat_at)?,
            started_at: time(cell("started_at"), &row.started_at)?,
            advertise_addr: row.advertise_addr,
            version: row.binary_version,
            machine_id: row.machine_id,
        })
    }
}

/// What the scan reads of `capture`.
pub(crate) struct BeatRow {
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) heartbeat_seq: i64,
}

impl TryFrom<BeatRow> for CaptureBeat {
    type Error = MetadataError;

    fn try_from(row: BeatRow) -> Result<Self> {
        let cell = |column| Cell::new("capture", &row.id, column);
        Ok(Self {
            id: cell("id").parse(&row.id)?,
            state: cell("state").parse(&row.state)?,
            heartbeat_seq: id(row.heartbeat_seq),
        })
    }
}

/// `upstream`.
pub(crate) struct UpstreamRow {
    pub(crate) id: i64,
    pub(crate) endpoints: String,
    pub(crate) credentials: String,
}

impl TryFrom<UpstreamRow> for UpstreamInfo {
    type Error = MetadataError;

    fn try_from(row: UpstreamRow) -> Result<Self> {
        let key = UpstreamId(id(row.id));
        Ok(Self { id: key, uri: join_uri(&key, &row.endpoints, &row.credentials)? })
    }
}

/// `changefeed_info`.
pub(crate) struct InfoRow {
    pub(crate) uuid: i64,
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) upstream_id: i64,
    pub(crate) sink_uri: String,
    pub(crate) start_ts: i64,
    pub(crate) target_ts: i64,
    pub(crate) config: String,
    pub(crate) creator_version: String,
    pub(crate) client_request_id: String,
    pub(crate) created_at: String,
    pub(crate) removed_at: Option<String>,
    pub(crate) version: i64,
}

impl TryFrom<InfoRow> for ChangefeedInfo {
    type Error = MetadataError;

    fn try_from(row: InfoRow) -> Result<Self> {
        let uuid = ChangefeedUuid(id(row.uuid));
        let cell = |column| Cell::new("changefeed_info", &uuid, column);
        let name = |column, text| Name::new(column, text).map_err(|error| cell(column).corrupt(error));
        Ok(Self {
            uuid,
            name: ChangefeedName { namespace: name("namespace", row.namespace)?, id: name("id", row.id)? },
            upstream: UpstreamId(id(row.upstream_id)),
            sink_uri: cell("sink_uri").uri(&row.sink_uri)?,
            start_ts: cell("start_ts").ts(id(row.start_ts))?,
            target_ts: cell("target_ts").ts(id(row.target_ts))?,
            config: cell("config").json(&row.config)?,
            creator_version: row.creator_version,
            client_request_id: cell("client_request_id").parse(&row.client_request_id)?,
            created_at: time(cell("created_at"), &row.created_at)?,
            removed_at: row.removed_at.map(|text| time(cell("removed_at"), &text)).transpose()?,
            version: Version(id(row.version)),
        })
    }
}

/// `changefeed_state`.
pub(crate) struct StatusRow {
    pub(crate) changefeed_uuid: i64,
    pub(crate) state: String,
    pub(crate) warning: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) version: i64,
}

impl TryFrom<StatusRow> for ChangefeedStatus {
    type Error = MetadataError;

    fn try_from(row: StatusRow) -> Result<Self> {
        let changefeed = ChangefeedUuid(id(row.changefeed_uuid));
        let cell = |column| Cell::new("changefeed_state", &changefeed, column);
        Ok(Self {
            changefeed,
            state: cell("state").parse(&row.state)?,
            warning: cell("warning").json_opt(row.warning.as_deref())?,
            error: cell("error").json_opt(row.error.as_deref())?,
            version: Version(id(row.version)),
        })
    }
}

/// `schedule`.
pub(crate) struct ScheduleRow {
    pub(crate) changefeed_uuid: i64,
    pub(crate) owner: Option<String>,
    pub(crate) owner_state: String,
    pub(crate) owner_epoch: i64,
    pub(crate) task_position: String,
    pub(crate) revision: i64,
    pub(crate) version: i64,
}

impl TryFrom<ScheduleRow> for ChangefeedSchedule {
    type Error = MetadataError;

    fn try_from(row: ScheduleRow) -> Result<Self> {
        let changefeed = ChangefeedUuid(id(row.changefeed_uuid));
        let cell = |column| Cell::new("schedule", &changefeed, column);
        let state = cell("owner_state").parse(&row.owner_state)?;
        let owner: Option<CaptureId> = cell("owner").parse_opt(row.owner.as_deref())?;
        if owner.is_some() == (state == ScheduleState::Removed) {
            return Err(cell("owner").corrupt(format!("state {state} with owner {owner:?}")));
        }
        Ok(Self {
            changefeed,
            owner,
            state,
            epoch: OwnerEpoch(id(row.owner_epoch)),
            task_position: cell("task_position").json(&row.task_position)?,
            revision: Revision(id(row.revision)),
            version: Version(id(row.version)),
        })
    }
}

/// `processor`.
pub(crate) struct ProcessorRow {
    pub(crate) changefeed_uuid: i64,
    pub(crate) capture_id: String,
    pub(crate) state: String,
    pub(crate) owner_epoch: i64,
    pub(crate) epoch: i64,
    pub(crate) assignment: String,
    pub(crate) revision: i64,
    pub(crate) version: i64,
}

impl TryFrom<ProcessorRow> for ProcessorSchedule {
    type Error = MetadataError;

    fn try_from(row: ProcessorRow) -> Result<Self> {
        let changefeed = ChangefeedUuid(id(row.changefeed_uuid));
        let key = format!("({changefeed}, {})", row.capture_id);
        let cell = |column| Cell::new("processor", &key, column);
        Ok(Self {
            changefeed,
            capture: cell("capture_id").parse(&row.capture_id)?,
            state: cell("state").parse(&row.state)?,
            owner_epoch: OwnerEpoch(id(row.owner_epoch)),
            epoch: ProcessorEpoch(id(row.epoch)),
            assignment: cell("assignment").json(&row.assignment)?,
            revision: Revision(id(row.revision)),
            version: Version(id(row.version)),
        })
    }
}

/// A row of `processor`, with its capture's state and report.
pub(crate) struct ProcessorStatusRow {
    pub(crate) changefeed_uuid: i64,
    pub(crate) capture_id: String,
    pub(crate) state: String,
    pub(crate) owner_epoch: i64,
    pub(crate) epoch: i64,
    pub(crate) assignment: String,
    pub(crate) revision: i64,
    pub(crate) version: i64,
    pub(crate) capture_state: Option<String>,
    pub(crate) report: Option<String>,
}

impl TryFrom<ProcessorStatusRow> for ProcessorStatus {
    type Error = MetadataError;

    fn try_from(row: ProcessorStatusRow) -> Result<Self> {
        let capture = row.capture_state;
        let capture =
            capture.map(|state| Cell::new("capture", &row.capture_id, "state").parse(&state)).transpose()?;
        let schedule = ProcessorSchedule::try_from(ProcessorRow {
            changefeed_uuid: row.changefeed_uuid,
            capture_id: row.capture_id,
            state: row.state,
            owner_epoch: row.owner_epoch,
            epoch: row.epoch,
            assignment: row.assignment,
            revision: row.revision,
            version: row.version,
        })?;
        let report = processor_report(row.report.as_deref(), schedule.epoch);
        Ok(Self { schedule, capture, report })
    }
}

/// Every row of a list as its model value.
pub(crate) fn all<R, M: TryFrom<R, Error = MetadataError>>(rows: Vec<R>) -> Result<Vec<M>> {
    rows.into_iter().map(M::try_from).collect()
}
