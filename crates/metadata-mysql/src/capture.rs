//! [`CaptureStore`]: what a capture does for itself.

use async_trait::async_trait;
use metadata_api::codec::{Cell, check_batch, check_capture, encode_labels, encode_progress};
use metadata_api::model::{
    CaptureId, CaptureProgress, CaptureState, CaptureTerm, ChangefeedSchedule, ChangefeedUuid, NewCapture,
    OwnerLaunch, ProcessorSchedule, Revision,
};
use metadata_api::store::{Assigned, Authority, CaptureStore, HeartbeatChannel, WatchChannel};
use metadata_api::{MetadataError, Result};
use sqlx::{query, query_scalar};

use crate::MysqlStore;
use crate::channel::Channel;
use crate::fence::fence_lock_reading;
use crate::query::overviews;
use crate::retry::{TxError, TxResult, first_rows_missing};
use crate::rows::{ProcessorRow, ScheduleRow, progress_value};
use crate::sql::{Batch, Sql};
use crate::tx::Tx;

/// A capture's state; `None` = it has no row. Under the fence's lock it stays what it is.
pub(crate) async fn capture_state(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<Option<CaptureState>> {
    let state = query_scalar!("SELECT state FROM capture WHERE id = ?", capture.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(Cell::new("capture", &capture, "state").parse_opt(state.as_deref())?)
}

/// Locks the fence in somebody's name, and reads under it what state a capture has; `None` = it has no row.
pub(crate) async fn lock_capture(
    tx: &mut Tx<'_>,
    authority: Authority,
    capture: CaptureId,
) -> TxResult<(Revision, Option<CaptureState>)> {
    let mut read = Sql::new("SELECT state FROM capture WHERE id = ");
    read.uuid(capture.0);
    let (revision, [found]) = fence_lock_reading(tx, authority, [read]).await?;
    let state = found.rows::<(String,)>()?.pop().map(|(state,)| state);
    Ok((revision, Cell::new("capture", &capture, "state").parse_opt(state.as_deref())?))
}

/// Whether a schedule or processor that is not `Removed` names the capture.
pub(crate) async fn is_named(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<bool> {
    let id = capture.to_string();
    let named = query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM schedule WHERE owner = ?)
            OR EXISTS (SELECT 1 FROM processor WHERE capture_id = ? AND state <> 'removed') AS "named!: bool""#,
        id,
        id
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(named)
}

/// Deletes all rows of a capture that nothing names any more.
pub(crate) async fn delete_capture(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<()> {
    let mut batch = Batch::default();
    for from in [
        "DELETE FROM processor WHERE state = 'removed' AND capture_id = ",
        "DELETE FROM capture WHERE id = ",
        "DELETE FROM progress WHERE capture_id = ",
    ] {
        let mut sql = Sql::new(from);
        sql.uuid(capture.0);
        batch.add(sql);
    }
    batch.send(tx).await
}

/// Seals the progress of a capture that has just become `offline`.
pub(crate) async fn seal_progress(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<()> {
    query!("UPDATE progress SET sealed = 1, version = version + 1 WHERE capture_id = ?", capture.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

fn sealed(capture: CaptureId) -> MetadataError {
    MetadataError::fenced(format!("capture {capture} is sealed (offline)"))
}

fn absent(capture: CaptureId) -> MetadataError {
    MetadataError::fenced(format!("capture {capture} has no row"))
}

async fn advance(tx: &mut Tx<'_>, term: CaptureTerm, seq: u64, value: &str) -> TxResult<()> {
    let id = term.capture.to_string();
    let done = query!(
        "UPDATE progress SET seq = ?, value = ?, version = version + 1 \
         WHERE capture_id = ? AND sealed = 0 AND seq < ?",
        seq,
        value,
        id,
        seq
    )
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() != 0 {
        return Ok(());
    }
    let row = query!(r#"SELECT seq, sealed AS "sealed: bool" FROM progress WHERE capture_id = ?"#, id)
        .fetch_optional(&mut **tx)
        .await?;
    Err(match row {
        None => absent(term.capture),
        Some(row) if row.sealed => sealed(term.capture),
        Some(row) => MetadataError::conflict(format!(
            "the progress of capture {} has sequence {}, and {seq} is not above it",
            term.capture, row.seq
        )),
    }
    .into())
}

#[async_trait]
impl CaptureStore for MysqlStore {
    #[tracing::instrument(name = "capture.register", skip_all, fields(capture = %capture.id))]
    async fn capture_register(&self, capture: &NewCapture) -> Result<CaptureTerm> {
        check_capture(capture)?;
        let labels = &encode_labels(capture)?;
        self.runner
            .tx("capture.register", |tx| {
                Box::pin(async move {
                    let term = CaptureTerm { capture: capture.id };
                    let (revision, state) = lock_capture(tx, Authority::Operator, capture.id).await?;
                    match state {
                        Some(CaptureState::Offline) => return Err(sealed(capture.id).into()),
                        Some(_) => {
                            tx.discard();
                            return Ok(term);
                        }
                        None => {}
                    }
                    let mut batch = Batch::default();
                    let mut row = Sql::new(
                        "INSERT INTO capture (id, advertise_addr, binary_version, labels, machine_id, state, revision) \
                         VALUES (",
                    );
                    row.uuid(capture.id.0).push(", ").text(&capture.advertise_addr);
                    row.push(", ").text(&capture.version).push(", ").text(labels);
                    row.push(", ").text(&capture.machine_id).push(", 'alive', ").number(revision.0).push(")");
                    batch.add(row);
                    let mut progress = Sql::new("INSERT INTO progress (value, capture_id) VALUES ('{}', ");
                    progress.uuid(capture.id.0).push(")");
                    batch.add(progress);
                    batch.send(tx).await?;
                    Ok(term)
                })
            })
            .await
    }

    async fn heartbeat_channel(&self) -> Result<Box<dyn HeartbeatChannel>> {
        Ok(Channel::open(&self.runner, "heartbeat.connect").await?.into())
    }

    async fn watch_channel(&self) -> Result<Box<dyn WatchChannel>> {
        Ok(Channel::open(&self.runner, "watch.connect").await?.into())
    }

    #[tracing::instrument(name = "capture.advance", skip_all, fields(capture = %term.capture, seq))]
    async fn capture_advance(&self, term: CaptureTerm, seq: u64, progress: &CaptureProgress) -> Result<()> {
        let value = &encode_progress(progress)?;
        self.runner
            .write("capture.advance", |tx| Box::pin(async move { advance(tx, term, seq, value).await }))
            .await
    }

    #[tracing::instrument(name = "capture.progress", skip_all, fields(capture = %term.capture))]
    async fn capture_progress(&self, term: CaptureTerm) -> Result<(u64, CaptureProgress)> {
        self.runner
            .read("capture.progress", |tx| {
                Box::pin(async move {
                    let row = query!(
                        r#"SELECT seq, sealed AS "sealed: bool", value FROM progress WHERE capture_id = ?"#,
                        term.capture.to_string()
                    )
                    .fetch_optional(&mut **tx)
                    .await?
                    .ok_or_else(|| absent(term.capture))?;
                    if row.sealed {
                        return Err(sealed(term.capture).into());
                    }
                    Ok((row.seq, progress_value(term.capture, &row.value)?))
                })
            })
            .await
    }

    #[tracing::instrument(name = "capture.schedules", skip_all, fields(capture = %term.capture))]
    async fn capture_schedules(&self, term: CaptureTerm) -> Result<Assigned<ChangefeedSchedule>> {
        self.runner
            .read("capture.schedules", |tx| {
                Box::pin(async move {
                    let rows = query!(
                        r#"SELECT f.revision, s.changefeed_uuid AS "changefeed_uuid?", s.owner,
                            s.owner_state AS "owner_state?", s.owner_epoch AS "owner_epoch?",
                            s.task_position AS "task_position?", s.revision AS "schedule_revision?",
                            s.version AS "schedule_version?"
                        FROM fence f LEFT JOIN schedule s ON s.owner = ? AND s.owner_state <> 'removed'
                        WHERE f.id = 1 ORDER BY s.changefeed_uuid"#,
                        term.capture.to_string()
                    )
                    .fetch_all(&mut **tx)
                    .await?;
                    let revision = rows.first().ok_or_else(first_rows_missing)?.revision;
                    let mut schedules = Vec::with_capacity(rows.len());
                    for row in rows {
                        // Outer-joined: all of them are there, or none is.
                        let Some(changefeed_uuid) = row.changefeed_uuid else { continue };
                        let row = ScheduleRow {
                            changefeed_uuid,
                            owner: row.owner,
                            owner_state: row.owner_state.unwrap_or_default(),
                            owner_epoch: row.owner_epoch.unwrap_or_default(),
                            task_position: row.task_position.unwrap_or_default(),
                            schedule_revision: row.schedule_revision.unwrap_or_default(),
                            schedule_version: row.schedule_version.unwrap_or_default(),
                        };
                        schedules.push((ChangefeedUuid(changefeed_uuid), row.try_into()));
                    }
                    Ok(Assigned::of(Revision(revision), schedules)?)
                })
            })
            .await
    }

    #[tracing::instrument(name = "capture.processors", skip_all, fields(capture = %term.capture))]
    async fn capture_processors(&self, term: CaptureTerm) -> Result<Assigned<ProcessorSchedule>> {
        self.runner
            .read("capture.processors", |tx| {
                Box::pin(async move {
                    let rows = query!(
                        r#"SELECT f.revision AS fence_revision, p.changefeed_uuid AS "changefeed_uuid?",
                            p.capture_id AS "capture_id?", p.state AS "state?", p.owner_epoch AS "owner_epoch?",
                            p.epoch AS "epoch?", p.assignment AS "assignment?", p.revision AS "revision?",
                            p.version AS "version?"
                        FROM fence f LEFT JOIN processor p ON p.capture_id = ? AND p.state <> 'removed'
                        WHERE f.id = 1 ORDER BY p.changefeed_uuid"#,
                        term.capture.to_string()
                    )
                    .fetch_all(&mut **tx)
                    .await?;
                    let revision = rows.first().ok_or_else(first_rows_missing)?.fence_revision;
                    let mut processors = Vec::with_capacity(rows.len());
                    for row in rows {
                        let Some(changefeed_uuid) = row.changefeed_uuid else { continue };
                        let row = ProcessorRow {
                            changefeed_uuid,
                            capture_id: row.capture_id.unwrap_or_default(),
                            state: row.state.unwrap_or_default(),
                            owner_epoch: row.owner_epoch.unwrap_or_default(),
                            epoch: row.epoch.unwrap_or_default(),
                            assignment: row.assignment.unwrap_or_default(),
                            revision: row.revision.unwrap_or_default(),
                            version: row.version.unwrap_or_default(),
                        };
                        processors.push((ChangefeedUuid(changefeed_uuid), row.try_into()));
                    }
                    Ok(Assigned::of(Revision(revision), processors)?)
                })
            })
            .await
    }

    #[tracing::instrument(name = "owner.launches", skip_all, fields(capture = %term.capture))]
    async fn owner_launches(
        &self,
        term: CaptureTerm,
        changefeeds: &[ChangefeedUuid],
    ) -> Result<Vec<OwnerLaunch>> {
        check_batch("changefeeds", changefeeds.iter().copied())?;
        self.runner
            .snapshot("owner.launches", |tx| {
                Box::pin(async move {
                    let filter = |sql: &mut Sql| {
                        sql.push(" WHERE s.owner_state = 'launched' AND s.owner = ").uuid(term.capture.0);
                        sql.push(" AND s.changefeed_uuid IN (")
                            .numbers(changefeeds.iter().map(|uuid| uuid.0))
                            .push(")");
                    };
                    let overviews = overviews(tx, filter, " ORDER BY s.changefeed_uuid").await?;
                    let launch = |row: metadata_api::model::ChangefeedOverview| {
                        let term = row.schedule.term()?;
                        let (info, upstream, status) = (row.info, row.upstream, row.status);
                        Some(OwnerLaunch { term, info, upstream, status, progress: row.progress })
                    };
                    Ok(overviews.into_iter().filter_map(launch).collect())
                })
            })
            .await
    }

    #[tracing::instrument(name = "capture.deregister", skip_all, fields(capture = %term.capture))]
    async fn capture_deregister(&self, term: CaptureTerm) -> Result<()> {
        self.runner
            .tx("capture.deregister", |tx| {
                Box::pin(async move {
                    let (revision, state) = lock_capture(tx, Authority::Operator, term.capture).await?;
                    let Some(state) = state else {
                        tx.discard();
                        return Ok(());
                    };
                    if !is_named(tx, term.capture).await? {
                        return delete_capture(tx, term.capture).await;
                    }
                    if state == CaptureState::Offline {
                        tx.discard();
                        return Ok(());
                    }
                    let done = query!(
                        "UPDATE capture SET state = 'offline', revision = ?, version = version + 1 \
                         WHERE id = ? AND state <> 'offline'",
                        revision.0,
                        term.capture.to_string()
                    )
                    .execute(&mut **tx)
                    .await?;
                    if done.rows_affected() == 0 {
                        return Err(TxError::Moved("a capture"));
                    }
                    seal_progress(tx, term.capture).await
                })
            })
            .await
    }
}
