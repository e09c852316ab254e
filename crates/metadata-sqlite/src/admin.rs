//! What an operator may ask of any capture.

use async_trait::async_trait;
use metadata_api::codec::{check_changefeed, encode_config, encode_position, next_status, split_uri};
use metadata_api::decision::feed_state::{FeedEvent, check_updatable, feed_transition};
use metadata_api::decision::schedule::check_not_carried;
use metadata_api::model::{
    CaptureId, CaptureState, ChangefeedInfo, ChangefeedProgress, ChangefeedSchedule, ChangefeedStatus,
    ChangefeedUpdate, ChangefeedUuid, ControllerEpoch, FeedState, NewChangefeed, Revision, ScheduleState,
    SecretUri, UpstreamId, Version,
};
use metadata_api::store::{AdminStore, Authority};
use metadata_api::{MetadataError, Result};

use crate::SqliteStore;
use crate::capture::capture_state;
use crate::rows::{info_query, ordered, stored};
use crate::tx::{Tx, TxResult};
use crate::writes::{
    check_at_rest, expect_rows, is_carried, no_changefeed, note_removal, replace_upstream, start_removing,
    state_of, update_info, used_by_others, write_status,
};
use crate::{election, fence, query};

#[async_trait]
impl AdminStore for SqliteStore {
    #[tracing::instrument(name = "changefeed.create", skip_all, fields(name = %new.name))]
    async fn changefeed_create(&self, authority: Authority, new: &NewChangefeed) -> Result<ChangefeedInfo> {
        check_changefeed(new)?;
        let config = encode_config(&new.config)?;
        let position = encode_position("task_position", &new.task_position)?;
        let (config, position) = (config.as_str(), position.as_str());
        self.run_tx("changefeed.create", |tx| {
            Box::pin(async move {
                let revision = fence::take_as(tx, authority).await?;
                if let Some(made) = made_by(tx, new).await? {
                    tx.discard();
                    return Ok(made);
                }
                check_name(tx, new).await?;
                let upstream = place_upstream(tx, new, revision).await?;
                let uuid = insert(tx, new, upstream, revision, config, position).await?;
                query::info(tx, uuid).await?.ok_or_else(|| no_changefeed(uuid).into())
            })
        })
        .await
    }

    #[tracing::instrument(name = "changefeed.update", skip_all, fields(%changefeed))]
    async fn changefeed_update(
        &self,
        changefeed: ChangefeedUuid,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo> {
        self.run_tx("changefeed.update", |tx| {
            Box::pin(async move {
                fence::take(tx).await?;
                let (schedule, status) = lock(tx, changefeed).await?;
                let info = query::info(tx, changefeed).await?.ok_or_else(|| no_changefeed(changefeed))?;
                check_updatable(&state_of(changefeed), status.state)?;
                check_version(&info, expected)?;
                let to = "a new configuration";
                check_at_rest(&schedule, to)?;
                check_not_carried(changefeed, is_carried(tx, changefeed).await?, to)?;
                update_info(tx, info, update).await
            })
        })
        .await
    }

    #[tracing::instrument(name = "changefeed.pause", skip_all, fields(%changefeed))]
    async fn changefeed_pause(&self, changefeed: ChangefeedUuid) -> Result<ChangefeedStatus> {
        self.run_tx("changefeed.pause", |tx| {
            Box::pin(async move {
                let revision = fence::take(tx).await?;
                let (schedule, status) = lock(tx, changefeed).await?;
                let next = feed_transition(&state_of(changefeed), status.state, FeedEvent::Pause)?;
                if schedule.state == ScheduleState::Launched {
                    start_removing(tx, &schedule, revision).await?;
                } else if next == status.state {
                    tx.discard();
                    return Ok(status);
                }
                let new = next_status(&status, FeedEvent::Pause, next, None);
                write_status(tx, &status, new).await
            })
        })
        .await
    }

    #[tracing::instrument(name = "changefeed.resume", skip_all, fields(%changefeed))]
    async fn changefeed_resume(
        &self,
        changefeed: ChangefeedUuid,
        overwrite: Option<&ChangefeedProgress>,
    ) -> Result<ChangefeedStatus> {
        let position =
            overwrite.map(|progress| encode_position("overwrite_checkpoint_ts", progress)).transpose()?;
        let position = position.as_deref();
        self.run_tx("changefeed.resume", |tx| {
            Box::pin(async move {
                let revision = fence::take(tx).await?;
                let (schedule, status) = lock(tx, changefeed).await?;
                let next = feed_transition(&state_of(changefeed), status.state, FeedEvent::Resume)?;
                if let Some(position) = position {
                    check_overwrite(&schedule, &status)?;
                    check_not_carried(changefeed, is_carried(tx, changefeed).await?, "a new task position")?;
                    overwrite_position(tx, &schedule, position, revision).await?;
                } else if next == status.state {
                    tx.discard();
                    return Ok(status);
                }
                let new = next_status(&status, FeedEvent::Resume, next, None);
                write_status(tx, &status, new).await
            })
        })
        .await
    }

    #[tracing::instrument(name = "changefeed.remove", skip_all, fields(%changefeed))]
    async fn changefeed_remove(
        &self,
        authority: Authority,
        changefeed: ChangefeedUuid,
    ) -> Result<ChangefeedStatus> {
        self.run_tx("changefeed.remove", |tx| {
            Box::pin(async move {
                let revision = fence::take_as(tx, authority).await?;
                let (schedule, status) = lock(tx, changefeed).await?;
                if status.state == FeedState::Removed {
                    tx.discard();
                    return Ok(status);
                }
                let next = feed_transition(&state_of(changefeed), status.state, FeedEvent::Remove)?;
                if schedule.state == ScheduleState::Launched {
                    start_removing(tx, &schedule, revision).await?;
                }
                note_removal(tx, &schedule).await?;
                let new = next_status(&status, FeedEvent::Remove, next, None);
                write_status(tx, &status, new).await
            })
        })
        .await
    }

    #[tracing::instrument(name = "capture.drain", skip_all, fields(%capture))]
    async fn capture_drain(&self, capture: CaptureId) -> Result<()> {
        self.run_tx("capture.drain", |tx| {
            Box::pin(async move {
                let revision = fence::take(tx).await?;
                match capture_state(tx, capture).await? {
                    Some(CaptureState::Alive) => drain(tx, capture, revision).await?,
                    Some(CaptureState::Draining) => tx.discard(),
                    Some(from) => {
                        let what = format!("capture {capture}");
                        return Err(MetadataError::transition(what, from, CaptureState::Draining).into());
                    }
                    None => return Err(MetadataError::not_found(format!("capture {capture}")).into()),
                }
                Ok(())
            })
        })
        .await
    }

    #[tracing::instrument(name = "controller.depose", skip_all)]
    async fn controller_depose(&self) -> Result<()> {
        self.run_tx("controller.depose", |tx| {
            Box::pin(async move {
                fence::take(tx).await?;
                if !election::vacate(tx, None).await? {
                    tx.discard();
                    return Ok(());
                }
                fence::set_controller(tx, ControllerEpoch(0)).await
            })
        })
        .await
    }
}

/// Locks a changefeed's schedule and state, in this order.
async fn lock(
    tx: &mut Tx<'_>,
    changefeed: ChangefeedUuid,
) -> TxResult<(ChangefeedSchedule, ChangefeedStatus)> {
    let schedule = query::schedule(tx, changefeed).await?.ok_or_else(|| no_changefeed(changefeed))?;
    let status = query::status(tx, changefeed).await?.ok_or_else(|| no_changefeed(changefeed))?;
    Ok((schedule, status))
}

/// An error unless the info is the one that was decided upon.
pub(crate) fn check_version(info: &ChangefeedInfo, expected: Version) -> Result<()> {
    if info.version == expected {
        return Ok(());
    }
    Err(MetadataError::conflict(format!(
        "changefeed {} has version {}, expected {expected}",
        info.uuid, info.version
    )))
}

/// What an earlier create with the same request id made, if its answer was lost.
async fn made_by(tx: &mut Tx<'_>, new: &NewChangefeed) -> TxResult<Option<ChangefeedInfo>> {
    let request = new.client_request_id.to_string();
    let row = info_query!("WHERE client_request_id = ?", request).fetch_optional(tx.db()).await?;
    Ok(row.map(ChangefeedInfo::try_from).transpose()?)
}

async fn check_name(tx: &mut Tx<'_>, new: &NewChangefeed) -> TxResult<()> {
    let (namespace, id) = (new.name.namespace.as_str(), new.name.id.as_str());
    let taken = sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT 1 FROM changefeed_info WHERE namespace = ? AND id = ? AND removed_marker = 0
           ) AS "taken!: i64""#,
        namespace,
        id
    )
    .fetch_one(tx.db())
    .await?;
    if taken != 0 {
        return Err(MetadataError::already_exists(format!("changefeed {}", new.name)).into());
    }
    Ok(())
}

/// The changefeed's upstream: the one it names, with the URI it gives, or a fresh one.
async fn place_upstream(tx: &mut Tx<'_>, new: &NewChangefeed, revision: Revision) -> TxResult<UpstreamId> {
    let Some(key) = new.upstream_id else {
        // A request may have named any number, this one too.
        let mut key = UpstreamId(revision.0);
        while query::upstream(tx, key).await?.is_some() {
            key = UpstreamId(key.0.wrapping_add(1));
        }
        insert_upstream(tx, key, &new.upstream_uri).await?;
        return Ok(key);
    };
    match query::upstream(tx, key).await? {
        None => insert_upstream(tx, key, &new.upstream_uri).await?,
        Some(there) if there.uri == new.upstream_uri => {}
        Some(_) if used_by_others(tx, key, None).await? => {
            let reason = format!("{key} is used by another changefeed, with another URI");
            return Err(MetadataError::invalid("upstream_id", reason).into());
        }
        Some(_) => replace_upstream(tx, key, &new.upstream_uri).await?,
    }
    Ok(key)
}

async fn insert_upstream(tx: &mut Tx<'_>, key: UpstreamId, uri: &SecretUri) -> TxResult<()> {
    let (endpoints, credentials) = split_uri("upstream_uri", uri)?;
    let key = stored(key.0);
    sqlx::query!(
        "INSERT INTO upstream (id, endpoints, credentials) VALUES (?, ?, ?)",
        key,
        endpoints,
        credentials
    )
    .execute(tx.db())
    .await?;
    Ok(())
}

/// Writes the three rows of a new changefeed. Its uuid is the revision: nobody else has it, the fence is held.
async fn insert(
    tx: &mut Tx<'_>,
    new: &NewChangefeed,
    upstream: UpstreamId,
    revision: Revision,
    config: &str,
    position: &str,
) -> TxResult<ChangefeedUuid> {
    let (uuid, upstream, request) =
        (stored(revision.0), stored(upstream.0), new.client_request_id.to_string());
    let (namespace, id, sink_uri) =
        (new.name.namespace.as_str(), new.name.id.as_str(), new.sink_uri.expose());
    let (start_ts, target_ts) =
        (ordered("start_ts", new.start_ts.0)?, ordered("target_ts", new.target_ts.0)?);
    sqlx::query!(
        "INSERT INTO schedule (changefeed_uuid, task_position, revision) VALUES (?, ?, ?)",
        uuid,
        position,
        uuid
    )
    .execute(tx.db())
    .await?;
    sqlx::query!(
        "INSERT INTO changefeed_info
             (uuid, namespace, id, upstream_id, sink_uri, start_ts, target_ts, config, creator_version,
              client_request_id)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        uuid,
        namespace,
        id,
        upstream,
        sink_uri,
        start_ts,
        target_ts,
        config,
        new.creator_version,
        request
    )
    .execute(tx.db())
    .await?;
    sqlx::query!("INSERT INTO changefeed_state (changefeed_uuid) VALUES (?)", uuid).execute(tx.db()).await?;
    Ok(ChangefeedUuid(revision.0))
}

/// An explicit new position wants a changefeed that nobody runs or is about to run.
fn check_overwrite(schedule: &ChangefeedSchedule, status: &ChangefeedStatus) -> Result<()> {
    check_at_rest(schedule, "a new task position")?;
    if matches!(status.state, FeedState::Stopped | FeedState::Failed | FeedState::Finished) {
        return Ok(());
    }
    Err(MetadataError::transition(
        state_of(status.changefeed),
        status.state,
        "a new task position (pause it first)",
    ))
}

async fn overwrite_position(
    tx: &mut Tx<'_>,
    schedule: &ChangefeedSchedule,
    position: &str,
    revision: Revision,
) -> TxResult<()> {
    let (uuid, version) = (stored(schedule.changefeed.0), stored(schedule.version.0));
    let revision = stored(revision.0);
    let done = sqlx::query!(
        "UPDATE schedule
         SET task_position = ?, revision = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE changefeed_uuid = ? AND version = ? AND owner_state = 'removed'",
        position,
        revision,
        uuid,
        version
    )
    .execute(tx.db())
    .await?;
    Ok(expect_rows(&done, 1, "schedule")?)
}

async fn drain(tx: &mut Tx<'_>, capture: CaptureId, revision: Revision) -> TxResult<()> {
    let (key, revision) = (capture.to_string(), stored(revision.0));
    let done = sqlx::query!(
        "UPDATE capture SET state = 'draining', revision = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE id = ? AND state = 'alive'",
        revision,
        key
    )
    .execute(tx.db())
    .await?;
    Ok(expect_rows(&done, 1, "capture")?)
}
