//! Plain reads. Each is one statement.
//!
//! Where progress is read for many changefeeds, each capture's progress row (one JSON value for all that it owns) is
//! joined to the first of its changefeeds only, and shared from there: reading stays linear in the data.

use std::collections::BTreeMap;

use async_trait::async_trait;
use metadata_api::codec::{Cell, current_progress};
use metadata_api::model::{
    CaptureId, CaptureInfo, CaptureProgress, ChangefeedInfo, ChangefeedName, ChangefeedOverview,
    ChangefeedProgress, ChangefeedSchedule, ChangefeedStatus, ChangefeedUuid, ClusterIdentity,
    ElectionRecord, Name, ProcessorSchedule, ProcessorStatus, UpstreamId, UpstreamInfo,
};
use metadata_api::store::QueryStore;
use metadata_api::{MetadataError, Result};

use crate::SqliteStore;
use crate::fence::missing_row;
use crate::rows::{
    ElectionRow, InfoRow, ScheduleRow, StatusRow, UpstreamRow, all, capture_query, info_query, json_captures,
    json_uuids, processor_query, processor_status_query, schedule_query, status_query, stored,
};
use crate::tx::{Tx, TxResult};

/// All of a changefeed, joined.
pub(crate) struct OverviewRow {
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
    pub(crate) info_version: i64,
    pub(crate) endpoints: String,
    pub(crate) credentials: String,
    pub(crate) state: String,
    pub(crate) warning: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) status_version: i64,
    pub(crate) owner: Option<String>,
    pub(crate) owner_state: String,
    pub(crate) owner_epoch: i64,
    pub(crate) task_position: String,
    pub(crate) revision: i64,
    pub(crate) schedule_version: i64,
    pub(crate) reported: Option<String>,
}

/// Selects [`OverviewRow`]s: `$filter` chooses among `changefeed_info i JOIN schedule s`, `$order` orders them.
macro_rules! overview_query {
    ($filter:tt, $order:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $crate::query::OverviewRow,
            r#"WITH chosen AS (
                   SELECT i.uuid, ROW_NUMBER() OVER (PARTITION BY s.owner ORDER BY i.uuid) AS nth
                   FROM changefeed_info i JOIN schedule s ON s.changefeed_uuid = i.uuid
                   WHERE "# + $filter + r#")
               SELECT i.uuid AS "uuid!: i64", i.namespace AS "namespace!: String", i.id AS "id!: String",
                      i.upstream_id AS "upstream_id!: i64", i.sink_uri AS "sink_uri!: String",
                      i.start_ts AS "start_ts!: i64", i.target_ts AS "target_ts!: i64", i.config AS "config!: String",
                      i.creator_version AS "creator_version!: String",
                      i.client_request_id AS "client_request_id!: String", i.created_at AS "created_at!: String",
                      i.removed_at AS "removed_at?: String", i.version AS "info_version!: i64",
                      u.endpoints AS "endpoints!: String", u.credentials AS "credentials!: String",
                      f.state AS "state!: String", f.warning AS "warning?: String", f.error AS "error?: String",
                      f.version AS "status_version!: i64",
                      s.owner AS "owner?: String", s.owner_state AS "owner_state!: String",
                      s.owner_epoch AS "owner_epoch!: i64", s.task_position AS "task_position!: String",
                      s.revision AS "revision!: i64", s.version AS "schedule_version!: i64",
                      p.value AS "reported?: String"
               FROM chosen c
               JOIN changefeed_info i ON i.uuid = c.uuid
               JOIN upstream u ON u.id = i.upstream_id
               JOIN changefeed_state f ON f.changefeed_uuid = i.uuid
               JOIN schedule s ON s.changefeed_uuid = i.uuid
               LEFT JOIN progress p ON p.capture_id = s.owner AND c.nth = 1
               ORDER BY "# + $order
            $(, $argument)*
        )
    };
}

pub(crate) use overview_query;

/// Overviews from their rows, in the rows' order.
pub(crate) fn overviews(rows: Vec<OverviewRow>) -> Result<Vec<ChangefeedOverview>> {
    let mut reported = Reported::default();
    let mut parts = Vec::with_capacity(rows.len());
    for row in rows {
        let info = InfoRow {
            uuid: row.uuid,
            namespace: row.namespace,
            id: row.id,
            upstream_id: row.upstream_id,
            sink_uri: row.sink_uri,
            start_ts: row.start_ts,
            target_ts: row.target_ts,
            config: row.config,
            creator_version: row.creator_version,
            client_request_id: row.client_request_id,
            created_at: row.created_at,
            removed_at: row.removed_at,
            version: row.info_version,
        };
        let upstream =
            UpstreamRow { id: row.upstream_id, endpoints: row.endpoints, credentials: row.credentials };
        let status = StatusRow {
            changefeed_uuid: row.uuid,
            state: row.state,
            warning: row.warning,
            error: row.error,
            version: row.status_version,
        };
        let schedule = ScheduleRow {
            changefeed_uuid: row.uuid,
            owner: row.owner,
            owner_state: row.owner_state,
            owner_epoch: row.owner_epoch,
            task_position: row.task_position,
            revision: row.revision,
            version: row.schedule_version,
        };
        let schedule = ChangefeedSchedule::try_from(schedule)?;
        reported.add(schedule.owner, row.reported)?;
        parts.push((info, upstream, status, schedule));
    }
    parts
        .into_iter()
        .map(|(info, upstream, status, schedule)| {
            Ok(ChangefeedOverview {
                info: info.try_into()?,
                upstream: upstream.try_into()?,
                status: status.try_into()?,
                progress: reported.current(&schedule),
                schedule,
            })
        })
        .collect()
}

/// The progress rows of owners, each decoded once.
#[derive(Default)]
pub(crate) struct Reported(BTreeMap<CaptureId, CaptureProgress>);

impl Reported {
    /// Takes in an owner's progress value, if there is one.
    pub(crate) fn add(&mut self, owner: Option<CaptureId>, value: Option<String>) -> Result<()> {
        if let (Some(owner), Some(value)) = (owner, value) {
            self.0.insert(owner, Cell::new("progress", &owner, "value").json(&value)?);
        }
        Ok(())
    }

    /// How far the changefeed of `schedule` has come (I6).
    pub(crate) fn current(&self, schedule: &ChangefeedSchedule) -> ChangefeedProgress {
        current_progress(schedule, schedule.owner.and_then(|owner| self.0.get(&owner)))
    }
}

/// A schedule and, on the first of its owner's, the owner's progress value.
struct ProgressRow {
    changefeed_uuid: i64,
    owner: Option<String>,
    owner_state: String,
    owner_epoch: i64,
    task_position: String,
    revision: i64,
    version: i64,
    reported: Option<String>,
}

/// Selects [`ProgressRow`]s; `$filter` chooses among the schedules.
macro_rules! progress_query {
    ($filter:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            ProgressRow,
            r#"WITH chosen AS (
                   SELECT changefeed_uuid, ROW_NUMBER() OVER (PARTITION BY owner ORDER BY changefeed_uuid) AS nth
                   FROM schedule
                   WHERE "# + $filter + r#")
               SELECT s.changefeed_uuid AS "changefeed_uuid!: i64", s.owner AS "owner?: String",
                      s.owner_state AS "owner_state!: String", s.owner_epoch AS "owner_epoch!: i64",
                      s.task_position AS "task_position!: String", s.revision AS "revision!: i64",
                      s.version AS "version!: i64", p.value AS "reported?: String"
               FROM chosen c
               JOIN schedule s ON s.changefeed_uuid = c.changefeed_uuid
               LEFT JOIN progress p ON p.capture_id = s.owner AND c.nth = 1"#
            $(, $argument)*
        )
    };
}

fn progresses(rows: Vec<ProgressRow>) -> Result<BTreeMap<ChangefeedUuid, ChangefeedProgress>> {
    let mut reported = Reported::default();
    let mut schedules = Vec::with_capacity(rows.len());
    for row in rows {
        let schedule = ChangefeedSchedule::try_from(ScheduleRow {
            changefeed_uuid: row.changefeed_uuid,
            owner: row.owner,
            owner_state: row.owner_state,
            owner_epoch: row.owner_epoch,
            task_position: row.task_position,
            revision: row.revision,
            version: row.version,
        })?;
        reported.add(schedule.owner, row.reported)?;
        schedules.push(schedule);
    }
    Ok(schedules.iter().map(|schedule| (schedule.changefeed, reported.current(schedule))).collect())
}

/// The election row.
pub(crate) async fn election(tx: &mut Tx<'_>) -> TxResult<ElectionRecord> {
    let row = sqlx::query_as!(
        ElectionRow,
        "SELECT leader_id, controller_epoch, lease_seq, cooldown, version FROM election WHERE id = 1"
    )
    .fetch_optional(tx.db())
    .await?;
    Ok(row.ok_or_else(missing_row)?.try_into()?)
}

#[async_trait]
impl QueryStore for SqliteStore {
    #[tracing::instrument(name = "query.identity", skip_all)]
    async fn identity(&self) -> Result<ClusterIdentity> {
        self.run_read("query.identity", |tx| {
            Box::pin(async move {
                let text = sqlx::query_scalar!("SELECT cluster_id FROM cluster WHERE id = 1")
                    .fetch_optional(tx.db())
                    .await?;
                let text = text.ok_or_else(no_identity)?;
                let cluster_id = Cell::new("cluster", &1, "cluster_id").parse(&text)?;
                Ok(ClusterIdentity { cluster_id, server_id: String::new() })
            })
        })
        .await
    }

    #[tracing::instrument(name = "query.election", skip_all)]
    async fn election(&self) -> Result<ElectionRecord> {
        self.run_read("query.election", |tx| Box::pin(election(tx))).await
    }

    #[tracing::instrument(name = "query.captures", skip_all)]
    async fn captures(&self, which: Option<&[CaptureId]>) -> Result<Vec<CaptureInfo>> {
        self.run_read("query.captures", |tx| {
            Box::pin(async move {
                let rows = match which {
                    None => capture_query!("ORDER BY id").fetch_all(tx.db()).await?,
                    Some(ids) => {
                        let ids = json_captures(ids.iter().copied());
                        capture_query!("WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id", ids)
                            .fetch_all(tx.db())
                            .await?
                    }
                };
                Ok(all(rows)?)
            })
        })
        .await
    }

    #[tracing::instrument(name = "query.upstream", skip_all, fields(upstream = %id))]
    async fn upstream(&self, id: UpstreamId) -> Result<Option<UpstreamInfo>> {
        self.run_read("query.upstream", |tx| Box::pin(upstream(tx, id))).await
    }

    #[tracing::instrument(name = "query.infos", skip_all)]
    async fn changefeed_infos(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedInfo>> {
        self.run_read("query.infos", |tx| {
            Box::pin(async move {
                let rows = match which {
                    None => info_query!("ORDER BY uuid").fetch_all(tx.db()).await?,
                    Some(uuids) => {
                        let uuids = json_uuids(uuids.iter().copied());
                        info_query!("WHERE uuid IN (SELECT value FROM json_each(?)) ORDER BY uuid", uuids)
                            .fetch_all(tx.db())
                            .await?
                    }
                };
                Ok(all(rows)?)
            })
        })
        .await
    }

    #[tracing::instrument(name = "query.statuses", skip_all)]
    async fn changefeed_statuses(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedStatus>> {
        self.run_read("query.statuses", |tx| {
            Box::pin(async move {
                let rows = match which {
                    None => status_query!("ORDER BY changefeed_uuid").fetch_all(tx.db()).await?,
                    Some(uuids) => {
                        let uuids = json_uuids(uuids.iter().copied());
                        status_query!(
                            "WHERE changefeed_uuid IN (SELECT value FROM json_each(?)) ORDER BY changefeed_uuid",
                            uuids
                        )
                        .fetch_all(tx.db())
                        .await?
                    }
                };
                Ok(all(rows)?)
            })
        })
        .await
    }

    #[tracing::instrument(name = "query.progresses", skip_all)]
    async fn changefeed_progresses(
        &self,
        which: Option<&[ChangefeedUuid]>,
    ) -> Result<BTreeMap<ChangefeedUuid, ChangefeedProgress>> {
        self.run_read("query.progresses", |tx| {
            Box::pin(async move {
                let rows = match which {
                    None => progress_query!("TRUE").fetch_all(tx.db()).await?,
                    Some(uuids) => {
                        let uuids = json_uuids(uuids.iter().copied());
                        progress_query!("changefeed_uuid IN (SELECT value FROM json_each(?))", uuids)
                            .fetch_all(tx.db())
                            .await?
                    }
                };
                Ok(progresses(rows)?)
            })
        })
        .await
    }

    #[tracing::instrument(name = "query.schedule", skip_all, fields(%changefeed))]
    async fn changefeed_schedule(&self, changefeed: ChangefeedUuid) -> Result<Option<ChangefeedSchedule>> {
        self.run_read("query.schedule", |tx| Box::pin(schedule(tx, changefeed))).await
    }

    #[tracing::instrument(name = "query.processor_schedules", skip_all, fields(%changefeed))]
    async fn processor_schedules(&self, changefeed: ChangefeedUuid) -> Result<Vec<ProcessorSchedule>> {
        self.run_read("query.processor_schedules", |tx| Box::pin(processors(tx, changefeed))).await
    }

    #[tracing::instrument(name = "query.processors", skip_all)]
    async fn processors(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ProcessorStatus>> {
        self.run_read("query.processors", |tx| {
            Box::pin(async move {
                let rows = match which {
                    None => processor_status_query!("TRUE").fetch_all(tx.db()).await?,
                    Some(uuids) => {
                        let uuids = json_uuids(uuids.iter().copied());
                        processor_status_query!(
                            "p.changefeed_uuid IN (SELECT value FROM json_each(?))",
                            uuids
                        )
                        .fetch_all(tx.db())
                        .await?
                    }
                };
                Ok(all(rows)?)
            })
        })
        .await
    }

    #[tracing::instrument(name = "query.overview", skip_all, fields(%name))]
    async fn changefeed_overview(&self, name: &ChangefeedName) -> Result<Option<ChangefeedOverview>> {
        self.run_read("query.overview", |tx| {
            Box::pin(async move {
                let (namespace, id) = (name.namespace.as_str(), name.id.as_str());
                let rows = overview_query!(
                    "i.namespace = ? AND i.id = ? AND i.removed_marker = 0",
                    "i.uuid",
                    namespace,
                    id
                )
                .fetch_all(tx.db())
                .await?;
                Ok(overviews(rows)?.pop())
            })
        })
        .await
    }

    #[tracing::instrument(name = "query.overviews", skip_all)]
    async fn changefeed_overviews(&self, namespace: Option<&Name>) -> Result<Vec<ChangefeedOverview>> {
        self.run_read("query.overviews", |tx| {
            Box::pin(async move {
                let rows = match namespace.map(Name::as_str) {
                    None => {
                        overview_query!("i.removed_marker = 0", "i.namespace, i.id")
                            .fetch_all(tx.db())
                            .await?
                    }
                    Some(namespace) => {
                        overview_query!("i.namespace = ? AND i.removed_marker = 0", "i.id", namespace)
                            .fetch_all(tx.db())
                            .await?
                    }
                };
                Ok(overviews(rows)?)
            })
        })
        .await
    }
}

/// The row that the migrations wrote is gone.
pub(crate) fn no_identity() -> MetadataError {
    MetadataError::corrupt("cluster", 1, "cluster_id", "the row that the migrations wrote is gone")
}

/// One upstream.
pub(crate) async fn upstream(tx: &mut Tx<'_>, id: UpstreamId) -> TxResult<Option<UpstreamInfo>> {
    let key = stored(id.0);
    let row =
        sqlx::query_as!(UpstreamRow, "SELECT id, endpoints, credentials FROM upstream WHERE id = ?", key)
            .fetch_optional(tx.db())
            .await?;
    Ok(row.map(UpstreamInfo::try_from).transpose()?)
}

/// One schedule. In a write transaction it is locked.
pub(crate) async fn schedule(
    tx: &mut Tx<'_>,
    changefeed: ChangefeedUuid,
) -> TxResult<Option<ChangefeedSchedule>> {
    let uuid = stored(changefeed.0);
    let row = schedule_query!("WHERE changefeed_uuid = ?", uuid).fetch_optional(tx.db()).await?;
    Ok(row.map(ChangefeedSchedule::try_from).transpose()?)
}

/// One changefeed's state. In a write transaction it is locked.
pub(crate) async fn status(
    tx: &mut Tx<'_>,
    changefeed: ChangefeedUuid,
) -> TxResult<Option<ChangefeedStatus>> {
    let uuid = stored(changefeed.0);
    let row = status_query!("WHERE changefeed_uuid = ?", uuid).fetch_optional(tx.db()).await?;
    Ok(row.map(ChangefeedStatus::try_from).transpose()?)
}

/// One changefeed's info. In a write transaction it is locked.
pub(crate) async fn info(tx: &mut Tx<'_>, changefeed: ChangefeedUuid) -> TxResult<Option<ChangefeedInfo>> {
    let uuid = stored(changefeed.0);
    let row = info_query!("WHERE uuid = ?", uuid).fetch_optional(tx.db()).await?;
    Ok(row.map(ChangefeedInfo::try_from).transpose()?)
}

/// One changefeed's processors. In a write transaction they are locked.
pub(crate) async fn processors(
    tx: &mut Tx<'_>,
    changefeed: ChangefeedUuid,
) -> TxResult<Vec<ProcessorSchedule>> {
    let uuid = stored(changefeed.0);
    let rows =
        processor_query!("WHERE changefeed_uuid = ? ORDER BY capture_id", uuid).fetch_all(tx.db()).await?;
    Ok(all(rows)?)
}
