//! The conditional writes that several rooms share. Each checks how many rows it wrote.

use metadata_api::codec::{check_uri, encode_config, encode_error, split_uri};
use metadata_api::model::{
    ChangefeedInfo, ChangefeedSchedule, ChangefeedStatus, ChangefeedUpdate, ChangefeedUuid, Revision,
    ScheduleState, SecretUri, UpstreamId, Version,
};
use metadata_api::{MetadataError, Result};
use sqlx::sqlite::SqliteQueryResult;

use crate::query;
use crate::rows::{json_uuids, ordered, stored};
use crate::tx::{Tx, TxResult};

/// Checks that a write found what its condition describes.
///
/// # Errors
/// `Conflict`, which rolls back.
pub(crate) fn expect_rows(done: &SqliteQueryResult, rows: usize, what: &str) -> Result<()> {
    if done.rows_affected() == rows as u64 {
        return Ok(());
    }
    Err(MetadataError::conflict(format!(
        "{what}: {} of {rows} rows were as they had been read",
        done.rows_affected()
    )))
}

/// The next version of a row.
pub(crate) const fn next(version: Version) -> Version {
    Version(version.0.saturating_add(1))
}

/// Replaces the state row that was read as `current` by `new`, and gives it with its new version.
pub(crate) async fn write_status(
    tx: &mut Tx<'_>,
    current: &ChangefeedStatus,
    new: ChangefeedStatus,
) -> TxResult<ChangefeedStatus> {
    let (uuid, version, state) =
        (stored(current.changefeed.0), stored(current.version.0), new.state.as_str());
    let warning = encode_error("warning", new.warning.as_ref())?;
    let error = encode_error("error", new.error.as_ref())?;
    let done = sqlx::query!(
        "UPDATE changefeed_state
         SET state = ?, warning = ?, error = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE changefeed_uuid = ? AND version = ?",
        state,
        warning,
        error,
        uuid,
        version
    )
    .execute(tx.db())
    .await?;
    expect_rows(&done, 1, "changefeed_state")?;
    Ok(ChangefeedStatus { version: next(current.version), ..new })
}

/// `Launched` to `Removing`, so that the owner is told to stop.
pub(crate) async fn start_removing(
    tx: &mut Tx<'_>,
    schedule: &ChangefeedSchedule,
    revision: Revision,
) -> TxResult<()> {
    let (uuid, version) = (stored(schedule.changefeed.0), stored(schedule.version.0));
    let revision = stored(revision.0);
    let done = sqlx::query!(
        "UPDATE schedule
         SET owner_state = 'removing', revision = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE changefeed_uuid = ? AND version = ? AND owner_state = 'launched'",
        revision,
        uuid,
        version
    )
    .execute(tx.db())
    .await?;
    Ok(expect_rows(&done, 1, "schedule")?)
}

/// Notes when the removal was asked, once. The name is free at once when nobody runs what it names, or a part of it.
pub(crate) async fn note_removal(tx: &mut Tx<'_>, schedule: &ChangefeedSchedule) -> TxResult<()> {
    let uuid = stored(schedule.changefeed.0);
    let is_free = schedule.state == ScheduleState::Removed && !is_carried(tx, schedule.changefeed).await?;
    let marker = if is_free { uuid } else { 0 };
    sqlx::query!(
        "UPDATE changefeed_info
         SET removed_at = strftime('%Y-%m-%d %H:%M:%f', 'now'), removed_marker = ?, version = version + 1,
             update_at = CURRENT_TIMESTAMP
         WHERE uuid = ? AND removed_at IS NULL",
        marker,
        uuid
    )
    .execute(tx.db())
    .await?;
    Ok(())
}

/// Whether a processor of it is not `Removed`.
pub(crate) async fn is_carried(tx: &mut Tx<'_>, changefeed: ChangefeedUuid) -> TxResult<bool> {
    let uuid = stored(changefeed.0);
    let carried = sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT 1 FROM processor WHERE changefeed_uuid = ? AND state <> 'removed'
           ) AS "carried!: i64""#,
        uuid
    )
    .fetch_one(tx.db())
    .await?;
    Ok(carried != 0)
}

/// Frees the names of changefeeds that are removed and whose schedules are `Removed`, but for those that somebody still
/// carries a part of: they are free when the changefeed is cleaned up.
pub(crate) async fn free_names(tx: &mut Tx<'_>, changefeeds: &[ChangefeedUuid]) -> TxResult<()> {
    if changefeeds.is_empty() {
        return Ok(());
    }
    let uuids = json_uuids(changefeeds.iter().copied());
    sqlx::query!(
        "UPDATE changefeed_info
         SET removed_marker = uuid, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE uuid IN (SELECT value FROM json_each(?)) AND removed_marker = 0
           AND NOT EXISTS (SELECT 1 FROM processor p WHERE p.changefeed_uuid = uuid AND p.state <> 'removed')",
        uuids
    )
    .execute(tx.db())
    .await?;
    Ok(())
}

/// The changefeed is gone, or never was.
pub(crate) fn no_changefeed(changefeed: ChangefeedUuid) -> MetadataError {
    MetadataError::not_found(format!("changefeed {changefeed}"))
}

/// What errors call a changefeed's state.
pub(crate) fn state_of(changefeed: ChangefeedUuid) -> String {
    format!("the state of changefeed {changefeed}")
}

/// An error unless `schedule` is `Removed`: the owner may still be at work.
pub(crate) fn check_at_rest(schedule: &ChangefeedSchedule, to: &str) -> Result<()> {
    if schedule.state == ScheduleState::Removed {
        return Ok(());
    }
    Err(MetadataError::transition(
        format!("the schedule of changefeed {}", schedule.changefeed),
        schedule.state,
        format!("{to} (its owner has not stopped yet)"),
    ))
}

/// Applies an update to the info that was read as `current`. The caller has checked that the changefeed may be updated.
pub(crate) async fn update_info(
    tx: &mut Tx<'_>,
    current: ChangefeedInfo,
    update: &ChangefeedUpdate,
) -> TxResult<ChangefeedInfo> {
    update.validate(&current)?;
    if let Some(uri) = &update.upstream_uri {
        update_upstream(tx, &current, uri).await?;
    }
    let mut new = current.clone();
    if let Some(uri) = &update.sink_uri {
        new.sink_uri = uri.clone().or_unmasked_from(&current.sink_uri);
        check_uri("sink_uri", &new.sink_uri)?;
    }
    if let Some(target_ts) = update.target_ts {
        new.target_ts = target_ts;
    }
    if let Some(config) = &update.config {
        new.config = config.clone();
    }
    new.version = next(current.version);
    let (uuid, version) = (stored(current.uuid.0), stored(current.version.0));
    let (sink_uri, target_ts) = (new.sink_uri.expose(), ordered("target_ts", new.target_ts.0)?);
    let config = encode_config(&new.config)?;
    let done = sqlx::query!(
        "UPDATE changefeed_info
         SET sink_uri = ?, target_ts = ?, config = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE uuid = ? AND version = ?",
        sink_uri,
        target_ts,
        config,
        uuid,
        version
    )
    .execute(tx.db())
    .await?;
    expect_rows(&done, 1, "changefeed_info")?;
    Ok(new)
}

async fn update_upstream(tx: &mut Tx<'_>, info: &ChangefeedInfo, uri: &SecretUri) -> TxResult<()> {
    let key = info.upstream;
    let Some(there) = query::upstream(tx, key).await? else {
        let reason = format!("upstream {key} of this changefeed is gone");
        return Err(MetadataError::corrupt("changefeed_info", info.uuid, "upstream_id", reason).into());
    };
    let uri = uri.clone().or_unmasked_from(&there.uri);
    if uri == there.uri {
        return Ok(());
    }
    if used_by_others(tx, key, Some(info.uuid)).await? {
        let reason = format!("other changefeeds use upstream {key} too");
        return Err(MetadataError::invalid("upstream_uri", reason).into());
    }
    replace_upstream(tx, key, &uri).await
}

/// Whether a changefeed that holds its name, other than `but`, uses the upstream. The fence is held.
pub(crate) async fn used_by_others(
    tx: &mut Tx<'_>,
    upstream: UpstreamId,
    but: Option<ChangefeedUuid>,
) -> TxResult<bool> {
    let (upstream, but) = (stored(upstream.0), but.map(|uuid| stored(uuid.0)));
    let used = sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT 1 FROM changefeed_info WHERE upstream_id = ? AND removed_marker = 0 AND uuid IS NOT ?
           ) AS "used!: i64""#,
        upstream,
        but
    )
    .fetch_one(tx.db())
    .await?;
    Ok(used != 0)
}

/// Gives an upstream another URI.
pub(crate) async fn replace_upstream(tx: &mut Tx<'_>, key: UpstreamId, uri: &SecretUri) -> TxResult<()> {
    let (endpoints, credentials) = split_uri("upstream_uri", uri)?;
    let key = stored(key.0);
    let done = sqlx::query!(
        "UPDATE upstream
         SET endpoints = ?, credentials = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE id = ?",
        endpoints,
        credentials,
        key
    )
    .execute(tx.db())
    .await?;
    Ok(expect_rows(&done, 1, "upstream")?)
}
