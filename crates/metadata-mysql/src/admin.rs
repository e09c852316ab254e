//! [`AdminStore`]: what an operator may ask of any capture.

use async_trait::async_trait;
use metadata_api::codec::{check_uri, encode_config, encode_position, split_uri};
use metadata_api::decision::feed_state::{FeedEvent, check_updatable};
use metadata_api::decision::schedule::check_not_carried;
use metadata_api::model::{
    CaptureId, CaptureState, ChangefeedInfo, ChangefeedProgress, ChangefeedStatus, ChangefeedUpdate,
    ChangefeedUuid, FeedState, NewChangefeed, Revision, ScheduleState, SecretUri, UpstreamId, Version,
};
use metadata_api::store::{AdminStore, Authority};
use metadata_api::{MetadataError, Result};
use sqlx::{query, query_scalar};

use crate::MysqlStore;
use crate::capture::lock_capture;
use crate::create::{Create, create};
use crate::election::vacate;
use crate::events::{Event, Writes, apply};
use crate::feeds::{
    Feed, ScheduleWrite, changefeed_text, is_carried, lock_feed, no_changefeed, write_schedules,
};
use crate::fence::fence_lock;
use crate::query::{election_row, upstream_row};
use crate::retry::{TxError, TxResult};
use crate::rows::{INFO, InfoRow};
use crate::sql::{Batch, Sql};
use crate::tx::Tx;

/// Checks of an update what needs no database.
pub(crate) fn check_update(update: &ChangefeedUpdate) -> Result<()> {
    if let Some(uri) = &update.sink_uri {
        check_uri("sink_uri", uri)?;
    }
    if let Some(uri) = &update.upstream_uri {
        check_uri("upstream_uri", uri)?;
    }
    if let Some(config) = &update.config {
        encode_config(config)?;
    }
    Ok(())
}

/// Whether another changefeed that holds its name uses an upstream.
pub(crate) async fn is_shared(
    tx: &mut Tx<'_>,
    upstream: UpstreamId,
    changefeed: ChangefeedUuid,
) -> TxResult<bool> {
    let shared = query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM changefeed_info WHERE upstream_id = ? AND removed_marker = 0 AND uuid <> ?)
            AS "shared!: bool""#,
        upstream.0,
        changefeed.0
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(shared)
}

pub(crate) async fn write_upstream(
    tx: &mut Tx<'_>,
    id: UpstreamId,
    endpoints: &str,
    credentials: &str,
) -> TxResult<()> {
    query!(
        "UPDATE upstream SET endpoints = ?, credentials = ?, version = version + 1 WHERE id = ?",
        endpoints,
        credentials,
        id.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// What is to be changed of a changefeed, which may be: its state allows it, and it is the version that the caller saw.
pub(crate) async fn lock_info(tx: &mut Tx<'_>, feed: &Feed, expected: Version) -> TxResult<ChangefeedInfo> {
    let changefeed = feed.schedule.changefeed;
    check_updatable(&changefeed_text(changefeed), feed.status.state)?;
    let mut sql = Sql::new("SELECT ");
    sql.push(INFO).push(" FROM changefeed_info i WHERE i.uuid = ").number(changefeed.0);
    let row = sql.fetch::<InfoRow>(tx).await?.pop().ok_or_else(|| no_changefeed(changefeed))?;
    let info = ChangefeedInfo::try_from(row)?;
    if info.version != expected {
        let text = changefeed_text(changefeed);
        return Err(
            MetadataError::conflict(format!("{text} has version {}, not {expected}", info.version)).into()
        );
    }
    Ok(info)
}

/// Replaces what `update` gives of what [`lock_info`] gave.
pub(crate) async fn update_info(
    tx: &mut Tx<'_>,
    mut info: ChangefeedInfo,
    update: &ChangefeedUpdate,
) -> TxResult<ChangefeedInfo> {
    let expected = info.version;
    update.validate(&info)?;
    if let Some(uri) = &update.upstream_uri {
        update_upstream(tx, &info, uri).await?;
    }
    if let Some(uri) = &update.sink_uri {
        info.sink_uri = uri.clone().or_unmasked_from(&info.sink_uri);
    }
    info.target_ts = update.target_ts.unwrap_or(info.target_ts);
    if let Some(config) = &update.config {
        info.config = config.clone();
    }
    let done = query!(
        "UPDATE changefeed_info SET sink_uri = ?, target_ts = ?, config = ?, version = version + 1 \
         WHERE uuid = ? AND version = ?",
        info.sink_uri.expose(),
        info.target_ts.0,
        encode_config(&info.config)?,
        info.uuid.0,
        expected.0
    )
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(TxError::Moved("a changefeed"));
    }
    info.version = Version(expected.0 + 1);
    Ok(info)
}

async fn update_upstream(tx: &mut Tx<'_>, info: &ChangefeedInfo, uri: &SecretUri) -> TxResult<()> {
    let current = upstream_row(tx, info.upstream).await?;
    let uri = current.as_ref().map_or_else(|| uri.clone(), |row| uri.clone().or_unmasked_from(&row.uri));
    if current.is_some_and(|row| row.uri == uri) {
        return Ok(());
    }
    if is_shared(tx, info.upstream, info.uuid).await? {
        let reason = format!("other changefeeds use upstream {} too", info.upstream);
        return Err(MetadataError::invalid("upstream_uri", reason).into());
    }
    let (endpoints, credentials) = split_uri("upstream_uri", &uri)?;
    write_upstream(tx, info.upstream, &endpoints, &credentials).await
}

/// Resumes with an operator's explicit new task position.
async fn overwrite(
    tx: &mut Tx<'_>,
    revision: Revision,
    feed: &Feed,
    position: &str,
) -> TxResult<ChangefeedStatus> {
    let text = || changefeed_text(feed.schedule.changefeed);
    let stands = matches!(feed.status.state, FeedState::Stopped | FeedState::Failed | FeedState::Finished);
    if !stands {
        let to = "a new task position (pause it first)";
        return Err(MetadataError::transition(text(), feed.status.state, to).into());
    }
    if feed.schedule.state != ScheduleState::Removed {
        let what = format!("the schedule of {}", text());
        let to = "a new task position (its owner is still stopping)";
        return Err(MetadataError::transition(what, feed.schedule.state, to).into());
    }
    let changefeed = feed.schedule.changefeed;
    check_not_carried(changefeed, is_carried(tx, changefeed).await?, "a new task position")?;
    let write =
        ScheduleWrite { task_position: Some(position.to_owned()), ..ScheduleWrite::of(&feed.schedule) };
    let mut batch = Batch::default();
    write_schedules(&mut batch, revision, &[write]);
    batch.send(tx).await?;
    let mut writes = Writes::default();
    let status = writes.add(feed, FeedEvent::Resume, None)?;
    writes.send(tx, revision).await?;
    Ok(status)
}

#[async_trait]
impl AdminStore for MysqlStore {
    #[tracing::instrument(name = "admin.create", skip_all, fields(changefeed = %new.name))]
    async fn changefeed_create(&self, authority: Authority, new: &NewChangefeed) -> Result<ChangefeedInfo> {
        let new = Create::new(authority, new)?;
        self.groups.create.commit(&self.runner, new, |tx, creates| Box::pin(create(tx, creates))).await
    }

    #[tracing::instrument(name = "admin.update", skip_all, fields(%changefeed))]
    async fn changefeed_update(
        &self,
        changefeed: ChangefeedUuid,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo> {
        check_update(update)?;
        self.runner
            .tx("admin.update", |tx| {
                Box::pin(async move {
                    let (_, feed) = lock_feed(tx, Authority::Operator, changefeed).await?;
                    let info = lock_info(tx, &feed, expected).await?;
                    if feed.schedule.state != ScheduleState::Removed {
                        let what = format!("the schedule of {}", changefeed_text(changefeed));
                        let to = "a new configuration (its owner is still stopping)";
                        return Err(MetadataError::transition(what, feed.schedule.state, to).into());
                    }
                    check_not_carried(changefeed, is_carried(tx, changefeed).await?, "a new configuration")?;
                    update_info(tx, info, update).await
                })
            })
            .await
    }

    #[tracing::instrument(name = "admin.pause", skip_all, fields(%changefeed))]
    async fn changefeed_pause(&self, changefeed: ChangefeedUuid) -> Result<ChangefeedStatus> {
        let event = Event::by(Authority::Operator, changefeed, FeedEvent::Pause);
        self.groups.pause.commit(&self.runner, event, apply).await
    }

    #[tracing::instrument(name = "admin.resume", skip_all, fields(%changefeed))]
    async fn changefeed_resume(
        &self,
        changefeed: ChangefeedUuid,
        overwrite: Option<&ChangefeedProgress>,
    ) -> Result<ChangefeedStatus> {
        let Some(position) = overwrite else {
            let event = Event::by(Authority::Operator, changefeed, FeedEvent::Resume);
            return self.groups.resume.commit(&self.runner, event, apply).await;
        };
        let position = encode_position("overwrite_checkpoint_ts", position)?;
        let position = position.as_str();
        self.runner
            .tx("admin.resume", |tx| {
                Box::pin(async move {
                    let (revision, feed) = lock_feed(tx, Authority::Operator, changefeed).await?;
                    self::overwrite(tx, revision, &feed, position).await
                })
            })
            .await
    }

    #[tracing::instrument(name = "admin.remove", skip_all, fields(%changefeed))]
    async fn changefeed_remove(
        &self,
        authority: Authority,
        changefeed: ChangefeedUuid,
    ) -> Result<ChangefeedStatus> {
        let event = Event::by(authority, changefeed, FeedEvent::Remove);
        self.groups.remove.commit(&self.runner, event, apply).await
    }

    #[tracing::instrument(name = "admin.drain", skip_all, fields(%capture))]
    async fn capture_drain(&self, capture: CaptureId) -> Result<()> {
        self.runner
            .tx("admin.drain", |tx| {
                Box::pin(async move {
                    let (revision, state) = lock_capture(tx, Authority::Operator, capture).await?;
                    match state {
                        None => return Err(MetadataError::not_found(format!("capture {capture}")).into()),
                        Some(CaptureState::Alive) => {}
                        Some(CaptureState::Draining) => {
                            tx.discard();
                            return Ok(());
                        }
                        Some(CaptureState::Offline) => {
                            return Err(MetadataError::transition(
                                format!("capture {capture}"),
                                CaptureState::Offline,
                                CaptureState::Draining,
                            )
                            .into());
                        }
                    }
                    let done = query!(
                        "UPDATE capture SET state = 'draining', revision = ?, version = version + 1 \
                         WHERE id = ? AND state = 'alive'",
                        revision.0,
                        capture.to_string()
                    )
                    .execute(&mut **tx)
                    .await?;
                    if done.rows_affected() == 0 {
                        return Err(TxError::Moved("a capture"));
                    }
                    Ok(())
                })
            })
            .await
    }

    #[tracing::instrument(name = "admin.depose", skip_all)]
    async fn controller_depose(&self) -> Result<()> {
        self.runner
            .tx("admin.depose", |tx| {
                Box::pin(async move {
                    fence_lock(tx).await?;
                    match election_row(tx).await?.leader {
                        Some(leader) => drop(vacate(tx, leader).await?),
                        None => tx.discard(),
                    }
                    Ok(())
                })
            })
            .await
    }
}
