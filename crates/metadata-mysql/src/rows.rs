//! Rows, and how they become model values: the one place that decodes. A value that does not decode is `Corrupt`, with
//! table, key and column.

use chrono::NaiveDateTime;
use metadata_api::Result;
use metadata_api::codec::{Cell, join_uri, processor_report};
use metadata_api::model::{
    CaptureBeat, CaptureId, CaptureInfo, CaptureProgress, ChangefeedInfo, ChangefeedName, ChangefeedSchedule,
    ChangefeedStatus, ChangefeedUuid, ControllerEpoch, ElectionRecord, Name, OwnerEpoch, ProcessorEpoch,
    ProcessorSchedule, ProcessorStatus, Revision, ScheduleState, UpstreamId, UpstreamInfo, Version,
};
use sqlx::FromRow;

/// A row of `capture`.
#[derive(FromRow)]
pub(crate) struct CaptureRow {
    pub(crate) id: String,
    pub(crate) advertise_addr: String,
    pub(crate) binary_version: String,
    pub(crate) labels: String,
    pub(crate) machine_id: String,
    pub(crate) state: String,
    pub(crate) heartbeat_seq: u64,
    pub(crate) heartbeat_at: NaiveDateTime,
    pub(crate) started_at: NaiveDateTime,
}

/// Its columns.
pub(crate) const CAPTURE: &str = "SELECT id, advertise_addr, binary_version, labels, machine_id, state, heartbeat_seq, \
     heartbeat_at, started_at FROM capture";

impl TryFrom<CaptureRow> for CaptureInfo {
    type Error = metadata_api::MetadataError;

    fn try_from(row: CaptureRow) -> Result<Self> {
        let cell = |column| Cell::new("capture", &row.id, column);
        Ok(Self {
            id: cell("id").parse(&row.id)?,
            state: cell("state").parse(&row.state)?,
            labels: cell("labels").json(&row.labels)?,
            advertise_addr: row.advertise_addr,
            version: row.binary_version,
            machine_id: row.machine_id,
            heartbeat_seq: row.heartbeat_seq,
            heartbeat_at: row.heartbeat_at.and_utc(),
            started_at: row.started_at.and_utc(),
        })
    }
}

/// What a heartbeat scan reads of a row of `capture`.
#[derive(FromRow)]
pub(crate) struct BeatRow {
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) heartbeat_seq: u64,
}

impl TryFrom<BeatRow> for CaptureBeat {
    type Error = metadata_api::MetadataError;

    fn try_from(row: BeatRow) -> Result<Self> {
        let cell = |column| Cell::new("capture", &row.id, column);
        Ok(Self {
            id: cell("id").parse(&row.id)?,
            state: cell("state").parse(&row.state)?,
            heartbeat_seq: row.heartbeat_seq,
        })
    }
}

/// The row of `election`.
pub(crate) struct ElectionRow {
    pub(crate) leader_id: Option<String>,
    pub(crate) controller_epoch: u64,
    pub(crate) lease_seq: u64,
    pub(crate) cooldown: Option<String>,
    pub(crate) version: u64,
}

impl TryFrom<ElectionRow> for ElectionRecord {
    type Error = metadata_api::MetadataError;

    fn try_from(row: ElectionRow) -> Result<Self> {
        let cell = |column| Cell::new("election", &1, column);
        Ok(Self {
            leader: cell("leader_id").parse_opt(row.leader_id.as_deref())?,
            epoch: ControllerEpoch(row.controller_epoch),
            lease_seq: row.lease_seq,
            cooldown: cell("cooldown").parse_opt(row.cooldown.as_deref())?,
            version: Version(row.version),
        })
    }
}

/// A row of `upstream`, in a join.
#[derive(FromRow)]
pub(crate) struct UpstreamRow {
    pub(crate) upstream_id: u64,
    pub(crate) endpoints: String,
    pub(crate) credentials: String,
}

impl TryFrom<UpstreamRow> for UpstreamInfo {
    type Error = metadata_api::MetadataError;

    fn try_from(row: UpstreamRow) -> Result<Self> {
        Ok(Self {
            id: UpstreamId(row.upstream_id),
            uri: join_uri(&row.upstream_id, &row.endpoints, &row.credentials)?,
        })
    }
}

/// A row of `changefeed_info`, in a join.
#[derive(FromRow)]
pub(crate) struct InfoRow {
    pub(crate) uuid: u64,
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) upstream_id: u64,
    pub(crate) sink_uri: String,
    pub(crate) start_ts: u64,
    pub(crate) target_ts: u64,
    pub(crate) config: String,
    pub(crate) creator_version: String,
    pub(crate) client_request_id: String,
    pub(crate) created_at: NaiveDateTime,
    pub(crate) removed_at: Option<NaiveDateTime>,
    pub(crate) info_version: u64,
}

/// Its columns, of `changefeed_info i`.
pub(crate) const INFO: &str = "i.uuid, i.namespace, i.id, i.upstream_id, i.sink_uri, i.start_ts, i.target_ts, i.config, \
     i.creator_version, i.client_request_id, i.created_at, i.removed_at, i.version AS info_version";

impl TryFrom<InfoRow> for ChangefeedInfo {
    type Error = metadata_api::MetadataError;

    fn try_from(row: InfoRow) -> Result<Self> {
        let cell = |column| Cell::new("changefeed_info", &row.uuid, column);
        let name = |column, text: &str| Name::new(column, text).map_err(|error| cell(column).corrupt(error));
        Ok(Self {
            uuid: ChangefeedUuid(row.uuid),
            name: ChangefeedName { namespace: name("namespace", &row.namespace)?, id: name("id", &row.id)? },
            upstream: UpstreamId(row.upstream_id),
            sink_uri: cell("sink_uri").uri(&row.sink_uri)?,
            start_ts: cell("start_ts").ts(row.start_ts)?,
            target_ts: cell("target_ts").ts(row.target_ts)?,
            config: cell("config").json(&row.config)?,
            creator_version: row.creator_version.clone(),
            client_request_id: cell("client_request_id").parse(&row.client_request_id)?,
            created_at: row.created_at.and_utc(),
            removed_at: row.removed_at.map(|at| at.and_utc()),
            version: Version(row.info_version),
        })
    }
}

/// A row of `changefeed_state`, in a join.
#[derive(FromRow)]
pub(crate) struct StateRow {
    pub(crate) changefeed_uuid: u64,
    pub(crate) feed_state: String,
    pub(crate) warning: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) state_version: u64,
}

/// Its columns but the key, of `changefeed_state t`.
pub(crate) const STATE: &str = "t.state AS feed_state, t.warning, t.error, t.version AS state_version";

impl TryFrom<StateRow> for ChangefeedStatus {
    type Error = metadata_api::MetadataError;

    fn try_from(row: StateRow) -> Result<Self> {
        let cell = |column| Cell::new("changefeed_state", &row.changefeed_uuid, column);
        Ok(Self {
            changefeed: ChangefeedUuid(row.changefeed_uuid),
            state: cell("state").parse(&row.feed_state)?,
            warning: cell("warning").json_opt(row.warning.as_deref())?,
            error: cell("error").json_opt(row.error.as_deref())?,
            version: Version(row.state_version),
        })
    }
}

/// A row of `schedule`, in a join.
#[derive(FromRow)]
pub(crate) struct ScheduleRow {
    pub(crate) changefeed_uuid: u64,
    pub(crate) owner: Option<String>,
    pub(crate) owner_state: String,
    pub(crate) owner_epoch: u64,
    pub(crate) task_position: String,
    pub(crate) schedule_revision: u64,
    pub(crate) schedule_version: u64,
}

/// Its columns, of `schedule s`.
pub(crate) const SCHEDULE: &str = "s.changefeed_uuid, s.owner, s.owner_state, s.owner_epoch, s.task_position, \
     s.revision AS schedule_revision, s.version AS schedule_version";

impl TryFrom<ScheduleRow> for ChangefeedSchedule {
    type Error = metadata_api::MetadataError;

    fn try_from(row: ScheduleRow) -> Result<Self> {
        let cell = |column| Cell::new("schedule", &row.changefeed_uuid, column);
        let state = cell("owner_state").parse(&row.owner_state)?;
        let owner: Option<CaptureId> = cell("owner").parse_opt(row.owner.as_deref())?;
        if owner.is_some() == (state == ScheduleState::Removed) {
            return Err(cell("owner").corrupt(format!("state {state} with owner {owner:?}")));
        }
        Ok(Self {
            changefeed: ChangefeedUuid(row.changefeed_uuid),
            owner,
            state,
            epoch: OwnerEpoch(row.owner_epoch),
            task_position: cell("task_position").json(&row.task_position)?,
            revision: Revision(row.schedule_revision),
            version: Version(row.schedule_version),
        })
    }
}

/// A row of `processor`.
#[derive(FromRow)]
pub(crate) struct ProcessorRow {
    pub(crate) changefeed_uuid: u64,
    pub(crate) capture_id: String,
    pub(crate) state: String,
    pub(crate) owner_epoch: u64,
    pub(crate) epoch: u64,
    pub(crate) assignment: String,
    pub(crate) revision: u64,
    pub(crate) version: u64,
}

impl TryFrom<ProcessorRow> for ProcessorSchedule {
    type Error = metadata_api::MetadataError;

    fn try_from(row: ProcessorRow) -> Result<Self> {
        let key = format!("({}, {})", row.changefeed_uuid, row.capture_id);
        let cell = |column| Cell::new("processor", &key, column);
        Ok(Self {
            changefeed: ChangefeedUuid(row.changefeed_uuid),
            capture: cell("capture_id").parse(&row.capture_id)?,
            state: cell("state").parse(&row.state)?,
            owner_epoch: OwnerEpoch(row.owner_epoch),
            epoch: ProcessorEpoch(row.epoch),
            assignment: cell("assignment").json(&row.assignment)?,
            revision: Revision(row.revision),
            version: Version(row.version),
        })
    }
}

/// A row of `processor`, with its capture's state and report.
#[derive(FromRow)]
pub(crate) struct ProcessorStatusRow {
    #[sqlx(flatten)]
    schedule: ProcessorRow,
    capture_state: Option<String>,
    report: Option<String>,
}

impl TryFrom<ProcessorStatusRow> for ProcessorStatus {
    type Error = metadata_api::MetadataError;

    fn try_from(row: ProcessorStatusRow) -> Result<Self> {
        let id = &row.schedule.capture_id;
        let capture = row.capture_state.as_deref();
        let capture = capture.map(|state| Cell::new("capture", id, "state").parse(state)).transpose()?;
        let schedule = ProcessorSchedule::try_from(row.schedule)?;
        let report = processor_report(row.report.as_deref(), schedule.epoch);
        Ok(Self { schedule, capture, report })
    }
}

/// A capture's progress value.
pub(crate) fn progress_value(capture: CaptureId, value: &str) -> Result<CaptureProgress> {
    Cell::new("progress", &capture, "value").json(value)
}

/// Every row as its model value, or the first that does not decode.
pub(crate) fn decode_all<R, M>(rows: impl IntoIterator<Item = R>) -> Result<Vec<M>>
where
    M: TryFrom<R, Error = metadata_api::MetadataError>,
{
    rows.into_iter().map(M::try_from).collect()
}
