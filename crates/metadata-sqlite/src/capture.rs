//! What a capture does for itself.

use async_trait::async_trait;
use metadata_api::codec::{Cell, check_batch, check_capture, encode_labels, encode_progress};
use metadata_api::model::{
    CaptureId, CaptureProgress, CaptureState, CaptureTerm, ChangefeedSchedule, ChangefeedUuid, NewCapture,
    OwnerLaunch, ProcessorSchedule, Revision,
};
use metadata_api::store::{Assigned, CaptureStore, HeartbeatChannel, WatchChannel};
use metadata_api::{MetadataError, Result};

use crate::SqliteStore;
use crate::channel::{Heartbeat, Watch};
use crate::fence::{self, capture_gone, missing_row};
use crate::query::{overview_query, overviews};
use crate::rows::{ProcessorRow, ScheduleRow, id, json_uuids, ordered, stored};
use crate::tx::{Tx, TxResult};

#[async_trait]
impl CaptureStore for SqliteStore {
    #[tracing::instrument(name = "capture.register", skip_all, fields(capture = %capture.id))]
    async fn capture_register(&self, capture: &NewCapture) -> Result<CaptureTerm> {
        check_capture(capture)?;
        let labels = encode_labels(capture)?;
        let labels = labels.as_str();
        self.run_tx("capture.register", |tx| {
            Box::pin(async move {
                let revision = fence::take(tx).await?;
                match capture_state(tx, capture.id).await? {
                    None => insert(tx, capture, labels, revision).await?,
                    Some(CaptureState::Offline) => {
                        return Err(capture_gone(capture.id, "was sealed: register with a new id").into());
                    }
                    Some(CaptureState::Alive | CaptureState::Draining) => tx.discard(),
                }
                Ok(CaptureTerm { capture: capture.id })
            })
        })
        .await
    }

    async fn heartbeat_channel(&self) -> Result<Box<dyn HeartbeatChannel>> {
        Ok(Box::new(Heartbeat::open(&self.options, self.file).await?))
    }

    async fn watch_channel(&self) -> Result<Box<dyn WatchChannel>> {
        Ok(Box::new(Watch::open(&self.options).await?))
    }

    #[tracing::instrument(name = "capture.advance", skip_all, fields(capture = %term.capture, seq))]
    async fn capture_advance(&self, term: CaptureTerm, seq: u64, progress: &CaptureProgress) -> Result<()> {
        let value = encode_progress(progress)?;
        let (capture, seq, value) = (term.capture.to_string(), ordered("seq", seq)?, value.as_str());
        let capture = capture.as_str();
        let done = self
            .run_statement("capture.advance", |tx| {
                Box::pin(async move {
                    let done = sqlx::query!(
                        "UPDATE progress SET value = ?, seq = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
                         WHERE capture_id = ? AND sealed = 0 AND seq < ?",
                        value,
                        seq,
                        capture,
                        seq
                    )
                    .execute(tx.db())
                    .await?;
                    Ok(done.rows_affected())
                })
            })
            .await?;
        if done == 0 {
            // The row is sealed or absent, which is `Fenced`, or has a progress with this or a higher number.
            let (there, _) = self.capture_progress(term).await?;
            return Err(MetadataError::conflict(format!(
                "capture {capture} has written progress {there} already, and this is {seq}"
            )));
        }
        Ok(())
    }

    #[tracing::instrument(name = "capture.progress", skip_all, fields(capture = %term.capture))]
    async fn capture_progress(&self, term: CaptureTerm) -> Result<(u64, CaptureProgress)> {
        self.run_read("capture.progress", |tx| {
            Box::pin(async move {
                let capture = term.capture.to_string();
                let row =
                    sqlx::query!("SELECT seq, value, sealed FROM progress WHERE capture_id = ?", capture)
                        .fetch_optional(tx.db())
                        .await?;
                let Some(row) = row else {
                    return Err(capture_gone(term.capture, "has no progress row").into());
                };
                if row.sealed != 0 {
                    return Err(capture_gone(term.capture, "was sealed").into());
                }
                let progress = Cell::new("progress", &term.capture, "value").json(&row.value)?;
                Ok((id(row.seq), progress))
            })
        })
        .await
    }

    #[tracing::instrument(name = "capture.schedules", skip_all, fields(capture = %term.capture))]
    async fn capture_schedules(&self, term: CaptureTerm) -> Result<Assigned<ChangefeedSchedule>> {
        self.run_read("capture.schedules", |tx| {
            Box::pin(async move {
                let capture = term.capture.to_string();
                let rows = sqlx::query!(
                    r#"SELECT f.revision AS "now!: i64", s.changefeed_uuid AS "changefeed_uuid?: i64",
                              s.owner AS "owner?: String", s.owner_state AS "owner_state?: String",
                              s.owner_epoch AS "owner_epoch?: i64", s.task_position AS "task_position?: String",
                              s.revision AS "revision?: i64", s.version AS "version?: i64"
                       FROM fence f LEFT JOIN schedule s ON s.owner = ? AND s.owner_state <> 'removed'
                       WHERE f.id = 1
                       ORDER BY s.changefeed_uuid"#,
                    capture
                )
                .fetch_all(tx.db())
                .await?;
                let now = rows.first().map(|row| row.now).ok_or_else(missing_row)?;
                let rows = rows.into_iter().filter_map(|row| {
                    Some(ScheduleRow {
                        changefeed_uuid: row.changefeed_uuid?,
                        owner: row.owner,
                        owner_state: row.owner_state?,
                        owner_epoch: row.owner_epoch?,
                        task_position: row.task_position?,
                        revision: row.revision?,
                        version: row.version?,
                    })
                });
                let read = |row: ScheduleRow| {
                    (ChangefeedUuid(id(row.changefeed_uuid)), ChangefeedSchedule::try_from(row))
                };
                Ok(Assigned::of(Revision(id(now)), rows.map(read))?)
            })
        })
        .await
    }

    #[tracing::instrument(name = "capture.processors", skip_all, fields(capture = %term.capture))]
    async fn capture_processors(&self, term: CaptureTerm) -> Result<Assigned<ProcessorSchedule>> {
        self.run_read("capture.processors", |tx| {
            Box::pin(async move {
                let capture = term.capture.to_string();
                let rows = sqlx::query!(
                    r#"SELECT f.revision AS "now!: i64", p.changefeed_uuid AS "changefeed_uuid?: i64",
                              p.capture_id AS "capture_id?: String", p.state AS "state?: String",
                              p.owner_epoch AS "owner_epoch?: i64", p.epoch AS "epoch?: i64",
                              p.assignment AS "assignment?: String", p.revision AS "revision?: i64",
                              p.version AS "version?: i64"
                       FROM fence f LEFT JOIN processor p ON p.capture_id = ? AND p.state <> 'removed'
                       WHERE f.id = 1
                       ORDER BY p.changefeed_uuid"#,
                    capture
                )
                .fetch_all(tx.db())
                .await?;
                let now = rows.first().map(|row| row.now).ok_or_else(missing_row)?;
                let rows = rows.into_iter().filter_map(|row| {
                    Some(ProcessorRow {
                        changefeed_uuid: row.changefeed_uuid?,
                        capture_id: row.capture_id?,
                        state: row.state?,
                        owner_epoch: row.owner_epoch?,
                        epoch: row.epoch?,
                        assignment: row.assignment?,
                        revision: row.revision?,
                        version: row.version?,
                    })
                });
                let read = |row: ProcessorRow| {
                    (ChangefeedUuid(id(row.changefeed_uuid)), ProcessorSchedule::try_from(row))
                };
                Ok(Assigned::of(Revision(id(now)), rows.map(read))?)
            })
        })
        .await
    }

    #[tracing::instrument(name = "capture.launches", skip_all, fields(capture = %term.capture))]
    async fn owner_launches(
        &self,
        term: CaptureTerm,
        changefeeds: &[ChangefeedUuid],
    ) -> Result<Vec<OwnerLaunch>> {
        check_batch("changefeeds", changefeeds.iter().copied())?;
        self.run_read("capture.launches", |tx| {
            Box::pin(async move {
                let capture = term.capture.to_string();
                let uuids = json_uuids(changefeeds.iter().copied());
                let rows = overview_query!(
                    "s.owner = ? AND s.owner_state = 'launched' AND i.uuid IN (SELECT value FROM json_each(?))",
                    "i.uuid",
                    capture,
                    uuids
                )
                .fetch_all(tx.db())
                .await?;
                let launches = overviews(rows)?.into_iter().filter_map(|overview| {
                    Some(OwnerLaunch {
                        term: overview.schedule.term()?,
                        info: overview.info,
                        upstream: overview.upstream,
                        status: overview.status,
                        progress: overview.progress,
                    })
                });
                Ok(launches.collect())
            })
        })
        .await
    }

    #[tracing::instrument(name = "capture.deregister", skip_all, fields(capture = %term.capture))]
    async fn capture_deregister(&self, term: CaptureTerm) -> Result<()> {
        self.run_tx("capture.deregister", |tx| {
            Box::pin(async move {
                let revision = fence::take(tx).await?;
                let state = capture_state(tx, term.capture).await?;
                if state.is_none() {
                    tx.discard();
                } else if !is_named(tx, term.capture).await? {
                    delete(tx, term.capture).await?;
                } else if state == Some(CaptureState::Offline) {
                    tx.discard();
                } else {
                    seal(tx, term.capture, revision).await?;
                }
                Ok(())
            })
        })
        .await
    }
}

/// A capture's state, if it has a row. A plain read: every change of it takes the fence.
pub(crate) async fn capture_state(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<Option<CaptureState>> {
    let key = capture.to_string();
    let state =
        sqlx::query_scalar!("SELECT state FROM capture WHERE id = ?", key).fetch_optional(tx.db()).await?;
    Ok(Cell::new("capture", &capture, "state").parse_opt(state.as_deref())?)
}

async fn insert(tx: &mut Tx<'_>, capture: &NewCapture, labels: &str, revision: Revision) -> TxResult<()> {
    let (key, revision) = (capture.id.to_string(), stored(revision.0));
    sqlx::query!(
        "INSERT INTO capture (id, advertise_addr, binary_version, labels, machine_id, state, revision)
         VALUES (?, ?, ?, ?, ?, 'alive', ?)",
        key,
        capture.advertise_addr,
        capture.version,
        labels,
        capture.machine_id,
        revision
    )
    .execute(tx.db())
    .await?;
    sqlx::query!("INSERT INTO progress (capture_id, value) VALUES (?, '{}')", key).execute(tx.db()).await?;
    Ok(())
}

/// Whether a schedule or processor that is not `Removed` names the capture. The fence is held.
pub(crate) async fn is_named(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<bool> {
    let key = capture.to_string();
    let named = sqlx::query_scalar!(
        r#"SELECT (EXISTS (SELECT 1 FROM schedule WHERE owner = ? AND owner_state <> 'removed')
                   OR EXISTS (SELECT 1 FROM processor WHERE capture_id = ? AND state <> 'removed')) AS "named!: i64""#,
        key,
        key
    )
    .fetch_one(tx.db())
    .await?;
    Ok(named != 0)
}

/// Deletes a capture's rows, its `Removed` processor rows with them.
pub(crate) async fn delete(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<()> {
    let key = capture.to_string();
    sqlx::query!("DELETE FROM processor WHERE capture_id = ? AND state = 'removed'", key)
        .execute(tx.db())
        .await?;
    sqlx::query!("DELETE FROM capture WHERE id = ?", key).execute(tx.db()).await?;
    sqlx::query!("DELETE FROM progress WHERE capture_id = ?", key).execute(tx.db()).await?;
    Ok(())
}

/// Seals a capture's rows, whatever its heartbeats: its own word.
async fn seal(tx: &mut Tx<'_>, capture: CaptureId, revision: Revision) -> TxResult<()> {
    let (key, revision) = (capture.to_string(), stored(revision.0));
    sqlx::query!(
        "UPDATE capture SET state = 'offline', revision = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE id = ? AND state <> 'offline'",
        revision,
        key
    )
    .execute(tx.db())
    .await?;
    seal_progress(tx, capture).await
}

/// Seals a capture's progress row, if it has one.
pub(crate) async fn seal_progress(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<()> {
    let key = capture.to_string();
    sqlx::query!(
        "UPDATE progress SET sealed = 1, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE capture_id = ? AND sealed = 0",
        key
    )
    .execute(tx.db())
    .await?;
    Ok(())
}
