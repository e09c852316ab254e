//! What an operator may ask of any capture.

use async_trait::async_trait;
use metadata_api::codec::{check_changefeed, check_uri, encode_config, encode_position, next_status};
use metadata_api::decision::feed_state::{FeedEvent, check_updatable, feed_transition};
use metadata_api::decision::schedule::check_not_carried;
use metadata_api::model::{
    CaptureId, CaptureInfo, CaptureState, ChangefeedInfo, ChangefeedProgress, ChangefeedSchedule,
    ChangefeedStatus, ChangefeedUpdate, ChangefeedUuid, FeedState, NewChangefeed, OwnerEpoch, Revision,
    ScheduleState, SecretUri, UpstreamId, UpstreamInfo, Version,
};
use metadata_api::store::{AdminStore, Authority};
use metadata_api::{MetadataError, Result};

use crate::MemoryStore;
use crate::election::vacate;
use crate::tables::InfoRow;
use crate::tx::{Tx, next, state_of};

#[async_trait]
impl AdminStore for MemoryStore {
    async fn changefeed_create(&self, authority: Authority, new: &NewChangefeed) -> Result<ChangefeedInfo> {
        check_changefeed(new)?;
        encode_config(&new.config)?;
        encode_position("task_position", &new.task_position)?;
        self.write("changefeed.create", |tx| {
            let revision = tx.take_as(authority)?;
            let mut rows = tx.tables.infos.values();
            if let Some(made) = rows.find(|row| row.info.client_request_id == new.client_request_id) {
                return Ok(made.info.clone());
            }
            if tx.tables.infos.values().any(|row| !row.name_freed && row.info.name == new.name) {
                return Err(MetadataError::already_exists(format!("changefeed {}", new.name)));
            }
            let upstream = place_upstream(tx, new, revision)?;
            Ok(insert(tx, new, upstream, revision))
        })
        .await
    }

    async fn changefeed_update(
        &self,
        changefeed: ChangefeedUuid,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo> {
        self.write("changefeed.update", |tx| {
            tx.take()?;
            let (schedule, status) = lock(tx, changefeed)?;
            let row = tx.info(changefeed)?;
            check_updatable(&state_of(changefeed), status.state)?;
            check_version(&row.info, expected)?;
            check_at_rest(tx, &schedule, "a new configuration")?;
            update_info(tx, row, update)
        })
        .await
    }

    async fn changefeed_pause(&self, changefeed: ChangefeedUuid) -> Result<ChangefeedStatus> {
        self.write("changefeed.pause", |tx| {
            let revision = tx.take()?;
            let (schedule, status) = lock(tx, changefeed)?;
            let state = feed_transition(&state_of(changefeed), status.state, FeedEvent::Pause)?;
            if schedule.state == ScheduleState::Launched {
                tx.start_removing(&schedule, revision);
            } else if state == status.state {
                return Ok(status);
            }
            tx.write_status(next_status(&status, FeedEvent::Pause, state, None))
        })
        .await
    }

    async fn changefeed_resume(
        &self,
        changefeed: ChangefeedUuid,
        overwrite: Option<&ChangefeedProgress>,
    ) -> Result<ChangefeedStatus> {
        if let Some(progress) = overwrite {
            encode_position("overwrite_checkpoint_ts", progress)?;
        }
        self.write("changefeed.resume", |tx| {
            let revision = tx.take()?;
            let (schedule, status) = lock(tx, changefeed)?;
            let state = feed_transition(&state_of(changefeed), status.state, FeedEvent::Resume)?;
            if let Some(position) = overwrite {
                check_overwrite(tx, &schedule, &status)?;
                let new = ChangefeedSchedule {
                    task_position: position.clone(),
                    revision,
                    version: next(schedule.version),
                    ..schedule
                };
                tx.put_schedule(changefeed, new);
            } else if state == status.state {
                return Ok(status);
            }
            tx.write_status(next_status(&status, FeedEvent::Resume, state, None))
        })
        .await
    }

    async fn changefeed_remove(
        &self,
        authority: Authority,
        changefeed: ChangefeedUuid,
    ) -> Result<ChangefeedStatus> {
        self.write("changefeed.remove", |tx| {
            let revision = tx.take_as(authority)?;
            let (schedule, status) = lock(tx, changefeed)?;
            if status.state == FeedState::Removed {
                return Ok(status);
            }
            let state = feed_transition(&state_of(changefeed), status.state, FeedEvent::Remove)?;
            if schedule.state == ScheduleState::Launched {
                tx.start_removing(&schedule, revision);
            }
            tx.note_removal(&schedule)?;
            tx.write_status(next_status(&status, FeedEvent::Remove, state, None))
        })
        .await
    }

    async fn capture_drain(&self, capture: CaptureId) -> Result<()> {
        self.write("capture.drain", |tx| {
            tx.take()?;
            match tx.capture_state(capture)? {
                Some(CaptureState::Alive) => {
                    if let Some(row) = tx.tables.captures.get(&capture) {
                        let row = CaptureInfo { state: CaptureState::Draining, ..(**row).clone() };
                        tx.put_capture(capture, row);
                    }
                    Ok(())
                }
                Some(CaptureState::Draining) => Ok(()),
                Some(from) => {
                    Err(MetadataError::transition(format!("capture {capture}"), from, CaptureState::Draining))
                }
                None => Err(MetadataError::not_found(format!("capture {capture}"))),
            }
        })
        .await
    }

    async fn controller_depose(&self) -> Result<()> {
        self.write("controller.depose", |tx| {
            tx.take()?;
            let now = tx.tables.election()?;
            if let Some(leader) = now.leader {
                vacate(tx, now, leader);
            }
            Ok(())
        })
        .await
    }
}

fn lock(tx: &Tx<'_>, changefeed: ChangefeedUuid) -> Result<(ChangefeedSchedule, ChangefeedStatus)> {
    Ok((tx.schedule(changefeed)?, tx.status(changefeed)?))
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

/// An error unless `schedule` and every processor is `Removed`: whoever is not may still be at work.
fn check_at_rest(tx: &Tx<'_>, schedule: &ChangefeedSchedule, to: &str) -> Result<()> {
    if schedule.state == ScheduleState::Removed {
        return check_not_carried(schedule.changefeed, tx.is_carried(schedule.changefeed), to);
    }
    Err(MetadataError::transition(
        format!("the schedule of changefeed {}", schedule.changefeed),
        schedule.state,
        format!("{to} (its owner has not stopped yet)"),
    ))
}

/// An explicit new position wants a changefeed that nobody runs or is about to run.
fn check_overwrite(tx: &Tx<'_>, schedule: &ChangefeedSchedule, status: &ChangefeedStatus) -> Result<()> {
    check_at_rest(tx, schedule, "a new task position")?;
    if matches!(status.state, FeedState::Stopped | FeedState::Failed | FeedState::Finished) {
        return Ok(());
    }
    Err(MetadataError::transition(
        state_of(status.changefeed),
        status.state,
        "a new task position (pause it first)",
    ))
}

/// The changefeed's upstream: the one it names, with the URI it gives, or a fresh one.
fn place_upstream(tx: &mut Tx<'_>, new: &NewChangefeed, revision: Revision) -> Result<UpstreamId> {
    let uri = &new.upstream_uri;
    let Some(key) = new.upstream_id else {
        // A request may have named any number, this one too.
        let mut key = UpstreamId(revision.0);
        while tx.tables.upstreams.contains_key(&key) {
            key = UpstreamId(key.0.wrapping_add(1));
        }
        tx.put_upstream(key, UpstreamInfo { id: key, uri: uri.clone() });
        return Ok(key);
    };
    match tx.tables.upstreams.get(&key) {
        Some(there) if there.uri == *uri => return Ok(key),
        Some(_) if used_by_others(tx, key, None) => {
            let reason = format!("{key} is used by another changefeed, with another URI");
            return Err(MetadataError::invalid("upstream_id", reason));
        }
        _ => {}
    }
    tx.put_upstream(key, UpstreamInfo { id: key, uri: uri.clone() });
    Ok(key)
}

/// Whether a changefeed that holds its name, other than `but`, uses the upstream.
fn used_by_others(tx: &Tx<'_>, upstream: UpstreamId, but: Option<ChangefeedUuid>) -> bool {
    let mut rows = tx.tables.infos.values();
    rows.any(|row| row.info.upstream == upstream && !row.name_freed && Some(row.info.uuid) != but)
}

/// Writes the rows of a new changefeed. Its uuid is the revision.
fn insert(tx: &mut Tx<'_>, new: &NewChangefeed, upstream: UpstreamId, revision: Revision) -> ChangefeedInfo {
    let (uuid, now) = (ChangefeedUuid(revision.0), tx.now);
    let schedule = ChangefeedSchedule {
        changefeed: uuid,
        owner: None,
        state: ScheduleState::Removed,
        epoch: OwnerEpoch(0),
        task_position: new.task_position.clone(),
        revision,
        version: Version(1),
    };
    tx.put_schedule(uuid, schedule);
    let info = ChangefeedInfo {
        uuid,
        name: new.name.clone(),
        upstream,
        sink_uri: new.sink_uri.clone(),
        start_ts: new.start_ts,
        target_ts: new.target_ts,
        config: new.config.clone(),
        creator_version: new.creator_version.clone(),
        client_request_id: new.client_request_id,
        created_at: now,
        removed_at: None,
        version: Version(1),
    };
    tx.put_info(uuid, InfoRow { info: info.clone(), name_freed: false });
    let status = ChangefeedStatus {
        changefeed: uuid,
        state: FeedState::Uninitialized,
        warning: None,
        error: None,
        version: Version(1),
    };
    tx.put_status_row(uuid, status);
    info
}

/// Applies an update to the info that was read as `row`. The caller has checked that the changefeed may be updated.
pub(crate) fn update_info(
    tx: &mut Tx<'_>,
    row: InfoRow,
    update: &ChangefeedUpdate,
) -> Result<ChangefeedInfo> {
    let mut new = row.info;
    update.validate(&new)?;
    if let Some(uri) = &update.upstream_uri {
        update_upstream(tx, &new, uri)?;
    }
    if let Some(uri) = &update.sink_uri {
        new.sink_uri = uri.clone().or_unmasked_from(&new.sink_uri);
        check_uri("sink_uri", &new.sink_uri)?;
    }
    if let Some(target_ts) = update.target_ts {
        new.target_ts = target_ts;
    }
    if let Some(config) = &update.config {
        encode_config(config)?;
        new.config = config.clone();
    }
    new.version = next(new.version);
    tx.put_info(new.uuid, InfoRow { info: new.clone(), name_freed: row.name_freed });
    Ok(new)
}

fn update_upstream(tx: &mut Tx<'_>, info: &ChangefeedInfo, uri: &SecretUri) -> Result<()> {
    let key = info.upstream;
    let Some(there) = tx.tables.upstreams.get(&key) else {
        let reason = format!("upstream {key} of this changefeed is gone");
        return Err(MetadataError::corrupt("changefeed_info", info.uuid, "upstream_id", reason));
    };
    let uri = uri.clone().or_unmasked_from(&there.uri);
    if uri == there.uri {
        return Ok(());
    }
    check_uri("upstream_uri", &uri)?;
    if used_by_others(tx, key, Some(info.uuid)) {
        let reason = format!("other changefeeds use upstream {key} too");
        return Err(MetadataError::invalid("upstream_uri", reason));
    }
    tx.put_upstream(key, UpstreamInfo { id: key, uri });
    Ok(())
}
