//! [`QueryStore`]: plain reads, of one moment each.

use std::collections::BTreeMap;

use async_trait::async_trait;
use metadata_api::Result;
use metadata_api::codec::{Cell, current_progress};
use metadata_api::model::{
    CaptureId, CaptureInfo, CaptureProgress, ChangefeedInfo, ChangefeedName, ChangefeedOverview,
    ChangefeedProgress, ChangefeedSchedule, ChangefeedStatus, ChangefeedUuid, ClusterIdentity,
    ElectionRecord, Name, ProcessorSchedule, ProcessorStatus, UpstreamId, UpstreamInfo,
};
use metadata_api::store::QueryStore;
use sqlx::{FromRow, query_as, query_scalar};

use crate::MysqlStore;
use crate::retry::TxResult;
use crate::rows::{
    CAPTURE, CaptureRow, ElectionRow, INFO, InfoRow, ProcessorRow, ProcessorStatusRow, SCHEDULE, STATE,
    ScheduleRow, StateRow, UpstreamRow, decode_all, progress_value,
};
use crate::sql::Sql;
use crate::tx::Tx;

/// The election row. `Schema` when it is missing.
pub(crate) async fn election_row(tx: &mut Tx<'_>) -> TxResult<ElectionRecord> {
    let row = query_as!(
        ElectionRow,
        "SELECT leader_id, controller_epoch, lease_seq, cooldown, version FROM election WHERE id = 1"
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(row.try_into()?)
}

/// All of a changefeed, with what its owner reported.
#[derive(FromRow)]
struct OverviewRow {
    #[sqlx(flatten)]
    info: InfoRow,
    #[sqlx(flatten)]
    upstream: UpstreamRow,
    #[sqlx(flatten)]
    status: StateRow,
    #[sqlx(flatten)]
    schedule: ScheduleRow,
}

/// Asks what the owners reported of the schedules that `filter` leaves. An owner's progress is one value for a thousand
/// changefeeds, so it is asked for once, and not with each of them.
fn read_reported(schedules: &'static str, filter: impl FnOnce(&mut Sql)) -> Sql {
    let mut sql = Sql::new("SELECT p.capture_id, p.value FROM (SELECT DISTINCT s.owner FROM ");
    sql.push(schedules);
    filter(&mut sql);
    sql.push(") o JOIN progress p ON p.capture_id = o.owner");
    sql
}

/// What the captures reported, collected over the rows of one answer.
#[derive(Default)]
pub(crate) struct Reported(BTreeMap<CaptureId, CaptureProgress>);

impl Reported {
    /// Adds a row: who reported, and what.
    pub(crate) fn add(&mut self, (owner, value): (String, String)) -> Result<()> {
        let owner: CaptureId = Cell::new("progress", &owner, "capture_id").parse(&owner)?;
        self.0.insert(owner, progress_value(owner, &value)?);
        Ok(())
    }

    /// How far this schedule's changefeed has come (I6).
    pub(crate) fn progress(&self, schedule: &ChangefeedSchedule) -> ChangefeedProgress {
        current_progress(schedule, schedule.owner.and_then(|owner| self.0.get(&owner)))
    }

    /// A capture's whole value.
    pub(crate) fn of(&self, owner: CaptureId) -> Option<&CaptureProgress> {
        self.0.get(&owner)
    }
}

/// Reads overviews; `filter` is a WHERE over `i` and `s`. For [`Runner::snapshot`](crate::tx::Runner::snapshot).
pub(crate) async fn overviews(
    tx: &mut Tx<'_>,
    filter: impl Fn(&mut Sql),
    order: &'static str,
) -> TxResult<Vec<ChangefeedOverview>> {
    let mut sql = Sql::new("SELECT ");
    sql.push(INFO).push(", u.endpoints, u.credentials, ").push(STATE).push(", ").push(SCHEDULE).push(
        " FROM changefeed_info i JOIN schedule s ON s.changefeed_uuid = i.uuid \
         JOIN changefeed_state t ON t.changefeed_uuid = i.uuid JOIN upstream u ON u.id = i.upstream_id",
    );
    filter(&mut sql);
    sql.push(order);
    let mut reported = Reported::default();
    let mut overviews = Vec::new();
    let schedules = "schedule s JOIN changefeed_info i ON i.uuid = s.changefeed_uuid";
    Sql::read_moment(tx, &[read_reported(schedules, filter), sql], |statement, row| {
        if statement == 0 {
            return Ok(reported.add(FromRow::from_row(row)?)?);
        }
        let row = OverviewRow::from_row(row)?;
        let schedule = row.schedule.try_into()?;
        overviews.push(ChangefeedOverview {
            info: row.info.try_into()?,
            upstream: row.upstream.try_into()?,
            status: row.status.try_into()?,
            progress: reported.progress(&schedule),
            schedule,
        });
        Ok(())
    })
    .await?;
    Ok(overviews)
}

fn where_uuids(sql: &mut Sql, column: &'static str, which: Option<&[ChangefeedUuid]>) {
    if let Some(which) = which {
        sql.push(" WHERE ").push(column).push(" IN (").numbers(which.iter().map(|uuid| uuid.0)).push(")");
    }
}

#[async_trait]
impl QueryStore for MysqlStore {
    #[tracing::instrument(name = "query.identity", skip_all)]
    async fn identity(&self) -> Result<ClusterIdentity> {
        self.runner
            .read("query.identity", |tx| {
                Box::pin(async move {
                    let id: String = query_scalar!("SELECT cluster_id FROM cluster WHERE id = 1")
                        .fetch_one(&mut **tx)
                        .await?;
                    Ok(ClusterIdentity {
                        cluster_id: Cell::new("cluster", &1, "cluster_id").parse(&id)?,
                        server_id: tx.server_id().to_owned(),
                    })
                })
            })
            .await
    }

    #[tracing::instrument(name = "query.election", skip_all)]
    async fn election(&self) -> Result<ElectionRecord> {
        self.runner.read("query.election", |tx| Box::pin(async move { election_row(tx).await })).await
    }

    #[tracing::instrument(name = "query.captures", skip_all)]
    async fn captures(&self, which: Option<&[CaptureId]>) -> Result<Vec<CaptureInfo>> {
        self.runner
            .read("query.captures", |tx| {
                Box::pin(async move {
                    let mut sql = Sql::new(CAPTURE);
                    if let Some(which) = which {
                        sql.push(" WHERE id IN (").uuids(which.iter().map(|id| id.0)).push(")");
                    }
                    sql.push(" ORDER BY id");
                    Ok(decode_all(sql.fetch::<CaptureRow>(tx).await?)?)
                })
            })
            .await
    }

    #[tracing::instrument(name = "query.upstream", skip_all, fields(upstream = %id))]
    async fn upstream(&self, id: UpstreamId) -> Result<Option<UpstreamInfo>> {
        self.runner.read("query.upstream", |tx| Box::pin(async move { upstream_row(tx, id).await })).await
    }

    #[tracing::instrument(name = "query.changefeed_infos", skip_all)]
    async fn changefeed_infos(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedInfo>> {
        self.runner
            .read("query.changefeed_infos", |tx| {
                Box::pin(async move {
                    let mut sql = Sql::new("SELECT ");
                    sql.push(INFO).push(" FROM changefeed_info i");
                    where_uuids(&mut sql, "i.uuid", which);
                    sql.push(" ORDER BY i.uuid");
                    Ok(decode_all(sql.fetch::<InfoRow>(tx).await?)?)
                })
            })
            .await
    }

    #[tracing::instrument(name = "query.changefeed_statuses", skip_all)]
    async fn changefeed_statuses(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedStatus>> {
        self.runner
            .read("query.changefeed_statuses", |tx| {
                Box::pin(async move {
                    let mut sql = Sql::new("SELECT t.changefeed_uuid, ");
                    sql.push(STATE).push(" FROM changefeed_state t");
                    where_uuids(&mut sql, "t.changefeed_uuid", which);
                    sql.push(" ORDER BY t.changefeed_uuid");
                    Ok(decode_all(sql.fetch::<StateRow>(tx).await?)?)
                })
            })
            .await
    }

    #[tracing::instrument(name = "query.changefeed_progresses", skip_all)]
    async fn changefeed_progresses(
        &self,
        which: Option<&[ChangefeedUuid]>,
    ) -> Result<BTreeMap<ChangefeedUuid, ChangefeedProgress>> {
        self.runner
            .snapshot("query.changefeed_progresses", |tx| {
                Box::pin(async move {
                    let filter = |sql: &mut Sql| where_uuids(sql, "s.changefeed_uuid", which);
                    let mut sql = Sql::new("SELECT ");
                    sql.push(SCHEDULE).push(" FROM schedule s");
                    filter(&mut sql);
                    let reports = read_reported("schedule s", filter);
                    let mut reported = Reported::default();
                    let mut progresses = BTreeMap::new();
                    Sql::read_moment(tx, &[reports, sql], |statement, row| {
                        if statement == 0 {
                            return Ok(reported.add(FromRow::from_row(row)?)?);
                        }
                        let schedule = ChangefeedSchedule::try_from(ScheduleRow::from_row(row)?)?;
                        progresses.insert(schedule.changefeed, reported.progress(&schedule));
                        Ok(())
                    })
                    .await?;
                    Ok(progresses)
                })
            })
            .await
    }

    #[tracing::instrument(name = "query.changefeed_schedule", skip_all, fields(%changefeed))]
    async fn changefeed_schedule(&self, changefeed: ChangefeedUuid) -> Result<Option<ChangefeedSchedule>> {
        self.runner
            .read("query.changefeed_schedule", |tx| {
                Box::pin(async move {
                    let row = query_as!(
                        ScheduleRow,
                        "SELECT changefeed_uuid, owner, owner_state, owner_epoch, task_position, \
                         revision AS schedule_revision, version AS schedule_version \
                         FROM schedule WHERE changefeed_uuid = ?",
                        changefeed.0
                    )
                    .fetch_optional(&mut **tx)
                    .await?;
                    Ok(row.map(ChangefeedSchedule::try_from).transpose()?)
                })
            })
            .await
    }

    #[tracing::instrument(name = "query.processor_schedules", skip_all, fields(%changefeed))]
    async fn processor_schedules(&self, changefeed: ChangefeedUuid) -> Result<Vec<ProcessorSchedule>> {
        self.runner
            .read("query.processor_schedules", |tx| {
                Box::pin(async move { processor_rows(tx, changefeed).await })
            })
            .await
    }

    #[tracing::instrument(name = "query.processors", skip_all)]
    async fn processors(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ProcessorStatus>> {
        self.runner
            .read("query.processors", |tx| {
                Box::pin(async move {
                    let mut sql = Sql::new(
                        "SELECT p.changefeed_uuid, p.capture_id, p.state, p.owner_epoch, p.epoch, p.assignment, \
                         p.revision, p.version, c.state AS capture_state, \
                         CASE WHEN JSON_VALID(g.value) THEN CAST(JSON_EXTRACT(g.value, \
                         CONCAT('$.\"', p.changefeed_uuid, '\".processor')) AS CHAR) END AS report \
                         FROM processor p LEFT JOIN capture c ON c.id = p.capture_id \
                         LEFT JOIN progress g ON g.capture_id = p.capture_id",
                    );
                    where_uuids(&mut sql, "p.changefeed_uuid", which);
                    sql.push(" ORDER BY p.changefeed_uuid, p.capture_id");
                    Ok(decode_all(sql.fetch::<ProcessorStatusRow>(tx).await?)?)
                })
            })
            .await
    }

    #[tracing::instrument(name = "query.changefeed_overview", skip_all, fields(changefeed = %name))]
    async fn changefeed_overview(&self, name: &ChangefeedName) -> Result<Option<ChangefeedOverview>> {
        self.runner
            .snapshot("query.changefeed_overview", |tx| {
                Box::pin(async move {
                    let filter = |sql: &mut Sql| {
                        sql.push(" WHERE i.namespace = ").text(name.namespace.as_str());
                        sql.push(" AND i.id = ").text(name.id.as_str()).push(" AND i.removed_marker = 0");
                    };
                    Ok(overviews(tx, filter, "").await?.pop())
                })
            })
            .await
    }

    #[tracing::instrument(name = "query.changefeed_overviews", skip_all)]
    async fn changefeed_overviews(&self, namespace: Option<&Name>) -> Result<Vec<ChangefeedOverview>> {
        self.runner
            .snapshot("query.changefeed_overviews", |tx| {
                Box::pin(async move {
                    let filter = |sql: &mut Sql| {
                        sql.push(" WHERE i.removed_marker = 0");
                        if let Some(namespace) = namespace {
                            sql.push(" AND i.namespace = ").text(namespace.as_str());
                        }
                    };
                    overviews(tx, filter, " ORDER BY i.namespace, i.id").await
                })
            })
            .await
    }
}

/// One upstream.
pub(crate) async fn upstream_row(tx: &mut Tx<'_>, id: UpstreamId) -> TxResult<Option<UpstreamInfo>> {
    let row = query_as!(
        UpstreamRow,
        "SELECT id AS upstream_id, endpoints, credentials FROM upstream WHERE id = ?",
        id.0
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.map(UpstreamInfo::try_from).transpose()?)
}

/// One changefeed's processors, ordered by capture id.
pub(crate) async fn processor_rows(
    tx: &mut Tx<'_>,
    changefeed: ChangefeedUuid,
) -> TxResult<Vec<ProcessorSchedule>> {
    let rows = query_as!(
        ProcessorRow,
        "SELECT changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment, revision, version \
         FROM processor WHERE changefeed_uuid = ? ORDER BY capture_id",
        changefeed.0
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(decode_all(rows)?)
}
