//! [`OwnerStore`]: what only a changefeed's owner or processor does.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use metadata_api::codec::{check_assignments, check_batch, encode_error, encode_position, next_status};
use metadata_api::decision::feed_state::{FeedEvent, feed_transition};
use metadata_api::model::{
    CaptureId, CaptureProgress, ChangefeedInfo, ChangefeedStatus, ChangefeedUpdate, ChangefeedUuid,
    FeedState, OwnerTerm, ProcessorAssignment, ProcessorSchedule, ProcessorTerm, Revision, RunningError,
    Version,
};
use metadata_api::store::{Authority, OwnerEnd, OwnerRelease, OwnerStore};
use metadata_api::{MetadataError, Result};
use sqlx::{query, query_as};

use crate::MysqlStore;
use crate::admin::{check_update, update_info};
use crate::feeds::{
    Feed, ScheduleWrite, apply_event, changefeed_text, check_owner, feeds, free_names, lock_feed,
    no_changefeed, read_feeds, write_schedules, write_statuses,
};
use crate::fence::{fence_lock, fence_lock_reading};
use crate::processor::assign;
use crate::query::Reported;
use crate::retry::{TxError, TxResult};
use crate::rows::{ProcessorRow, STATE, StateRow};
use crate::sql::{Answer, Batch, Sql};
use crate::tx::Tx;

/// Locks the fence, and reads the changefeed that `term` is for under it. `Fenced` unless the term holds.
async fn lock_owned(tx: &mut Tx<'_>, term: OwnerTerm) -> TxResult<(Revision, Feed)> {
    let (revision, feed) = match lock_feed(tx, Authority::Operator, term.changefeed).await {
        Err(TxError::Store(MetadataError::NotFound { .. })) => {
            return Err(MetadataError::fenced(term.to_string()).into());
        }
        other => other?,
    };
    check_owner(&feed.schedule, term)?;
    Ok((revision, feed))
}

/// How a running changefeed is doing: the schedule row is locked with the term, and the fence is left alone.
async fn report(
    tx: &mut Tx<'_>,
    term: OwnerTerm,
    event: FeedEvent,
    error: Option<&RunningError>,
) -> TxResult<ChangefeedStatus> {
    let mut lock = Sql::new("SELECT changefeed_uuid FROM schedule WHERE changefeed_uuid = ");
    lock.number(term.changefeed.0).push(" AND owner = ").uuid(term.capture.0);
    lock.push(" AND owner_epoch = ").number(term.epoch.0);
    lock.push(" AND owner_state IN ('launched', 'removing') FOR UPDATE");
    let mut read = Sql::new("SELECT t.changefeed_uuid, ");
    read.push(STATE).push(" FROM changefeed_state t WHERE t.changefeed_uuid = ").number(term.changefeed.0);
    lock.then(read.push(" FOR UPDATE"));
    let answers = tx.open(&lock, 2).await?;
    let [locked, row] = answers.as_slice() else { return Err(sqlx::Error::RowNotFound.into()) };
    if locked.rows::<(u64,)>()?.is_empty() {
        return Err(MetadataError::fenced(term.to_string()).into());
    }
    let row = row.rows::<StateRow>()?.pop();
    let current = ChangefeedStatus::try_from(row.ok_or_else(|| no_changefeed(term.changefeed))?)?;
    let next = feed_transition(&changefeed_text(term.changefeed), current.state, event)?;
    let mut status = next_status(&current, event, next, error);
    let mut batch = Batch::default();
    write_statuses(&mut batch, std::slice::from_ref(&status))?;
    batch.send(tx).await?;
    status.version = Version(status.version.0 + 1);
    Ok(status)
}

/// Asks what the captures of `releases` reported.
fn read_reported(releases: &[OwnerRelease]) -> Sql {
    let captures: BTreeSet<CaptureId> = releases.iter().map(|release| release.term.capture).collect();
    let mut sql = Sql::new("SELECT capture_id, value FROM progress WHERE capture_id IN (");
    sql.uuids(captures.into_iter().map(|capture| capture.0)).push(")");
    sql
}

/// What [`read_reported`] found.
fn reported(answer: &Answer) -> TxResult<Reported> {
    let mut reported = Reported::default();
    for (capture, value) in answer.rows::<(String, String)>()? {
        reported.add(Some(&capture), Some(&value))?;
    }
    Ok(reported)
}

/// What a release writes.
struct Released {
    schedule: ScheduleWrite,
    status: Option<ChangefeedStatus>,
    frees_name: bool,
}

fn decide_release(
    release: &OwnerRelease,
    feed: Option<Result<Feed>>,
    reported: Option<&CaptureProgress>,
) -> Result<Released> {
    let feed = feed.unwrap_or_else(|| Err(MetadataError::fenced(release.term.to_string())))?;
    check_owner(&feed.schedule, release.term)?;
    let entry = reported
        .and_then(|progress| progress.0.get(&release.term.changefeed))
        .filter(|entry| entry.owner_epoch == release.term.epoch)
        .map(|entry| entry.progress.clone());
    let position = [release.task_position.clone(), entry]
        .into_iter()
        .flatten()
        .fold(feed.schedule.task_position.clone(), metadata_api::model::ChangefeedProgress::further);
    let moved = position != feed.schedule.task_position;
    let position = moved.then(|| encode_position("task_position", &position)).transpose()?;
    let status = match &release.end {
        // An operator's word stays.
        Some(end) if feed.status.state.is_runnable() => {
            let error = match end {
                OwnerEnd::Failed(error) => Some(error),
                OwnerEnd::Finished => None,
            };
            Some(next_status(&feed.status, FeedEvent::Report(end.state()), end.state(), error))
        }
        _ => None,
    };
    Ok(Released {
        schedule: ScheduleWrite::removed(&feed.schedule, position),
        status,
        frees_name: feed.removed,
    })
}

async fn release(tx: &mut Tx<'_>, releases: &[OwnerRelease]) -> TxResult<Vec<Result<()>>> {
    let reads = [read_feeds(releases.iter().map(|release| release.term.changefeed)), read_reported(releases)];
    let (revision, [found, reports]) = fence_lock_reading(tx, Authority::Operator, reads).await?;
    let (mut feeds, reported) = (feeds(&found)?, reported(&reports)?);
    let mut answers = Vec::with_capacity(releases.len());
    let mut released: BTreeMap<ChangefeedUuid, Released> = BTreeMap::new();
    for release in releases {
        let changefeed = release.term.changefeed;
        let decided = decide_release(release, feeds.remove(&changefeed), reported.of(release.term.capture));
        answers.push(decided.map(|write| drop(released.insert(changefeed, write))));
    }
    if released.is_empty() {
        tx.discard();
        return Ok(answers);
    }
    let freed: Vec<_> =
        released.iter().filter(|(_, write)| write.frees_name).map(|(changefeed, _)| *changefeed).collect();
    let (mut schedules, mut statuses) = (Vec::with_capacity(released.len()), Vec::new());
    for write in released.into_values() {
        schedules.push(write.schedule);
        statuses.extend(write.status);
    }
    let mut batch = Batch::default();
    write_schedules(&mut batch, revision, &schedules);
    free_names(&mut batch, freed);
    write_statuses(&mut batch, &statuses)?;
    batch.send(tx).await?;
    Ok(answers)
}

#[async_trait]
impl OwnerStore for MysqlStore {
    #[tracing::instrument(name = "owner.transition", skip_all, fields(%term, ?event))]
    async fn owner_transition(
        &self,
        term: OwnerTerm,
        event: FeedEvent,
        error: Option<RunningError>,
    ) -> Result<ChangefeedStatus> {
        encode_error("error", error.as_ref())?;
        let error = error.as_ref();
        if let FeedEvent::Report(FeedState::Normal | FeedState::Warning | FeedState::Pending) = event {
            return self
                .runner
                .tx("owner.report", |tx| Box::pin(async move { report(tx, term, event, error).await }))
                .await;
        }
        self.runner
            .tx("owner.transition", |tx| {
                Box::pin(async move {
                    let (revision, feed) = lock_owned(tx, term).await?;
                    apply_event(tx, revision, &feed, event, error).await
                })
            })
            .await
    }

    #[tracing::instrument(name = "owner.update", skip_all, fields(%term))]
    async fn owner_update(
        &self,
        term: OwnerTerm,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo> {
        check_update(update)?;
        self.runner
            .tx("owner.update", |tx| {
                Box::pin(async move {
                    let (_, feed) = lock_owned(tx, term).await?;
                    update_info(tx, &feed, expected, update).await
                })
            })
            .await
    }

    #[tracing::instrument(name = "owner.release", skip_all, fields(releases = releases.len()))]
    async fn owner_release(&self, releases: &[OwnerRelease]) -> Result<Vec<Result<()>>> {
        check_batch("releases", releases.iter().map(|release| release.term.changefeed))?;
        for release in releases {
            if let Some(position) = &release.task_position {
                encode_position("task_position", position)?;
            }
            if let Some(OwnerEnd::Failed(error)) = &release.end {
                encode_error("error", Some(error))?;
            }
        }
        if releases.is_empty() {
            return Ok(Vec::new());
        }
        self.runner.tx("owner.release", |tx| Box::pin(async move { release(tx, releases).await })).await
    }

    #[tracing::instrument(name = "processor.assign", skip_all, fields(%term, assignments = assignments.len()))]
    async fn processor_assign(
        &self,
        term: OwnerTerm,
        seen: &BTreeMap<CaptureId, Version>,
        assignments: &BTreeMap<CaptureId, ProcessorAssignment>,
    ) -> Result<Vec<ProcessorSchedule>> {
        check_assignments(assignments)?;
        if assignments.is_empty() {
            return Ok(Vec::new());
        }
        self.runner
            .tx("processor.assign", |tx| {
                Box::pin(async move {
                    let (revision, _) = lock_owned(tx, term).await?;
                    assign(tx, term, seen, assignments, revision).await
                })
            })
            .await
    }

    #[tracing::instrument(name = "processor.release", skip_all, fields(%term))]
    async fn processor_release(&self, term: ProcessorTerm) -> Result<ProcessorSchedule> {
        self.runner
            .tx("processor.release", |tx| {
                Box::pin(async move {
                    let revision = fence_lock(tx).await?;
                    let capture = term.capture.to_string();
                    let done = query!(
                        "UPDATE processor SET state = 'removed', revision = ?, version = version + 1 \
                         WHERE changefeed_uuid = ? AND capture_id = ? AND epoch = ? AND owner_epoch = ? \
                         AND state IN ('launched', 'removing')",
                        revision.0,
                        term.changefeed.0,
                        capture,
                        term.epoch.0,
                        term.owner_epoch.0
                    )
                    .execute(&mut **tx)
                    .await?;
                    if done.rows_affected() == 0 {
                        return Err(MetadataError::fenced(term.to_string()).into());
                    }
                    let row = query_as!(
                        ProcessorRow,
                        "SELECT changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment, revision, version \
                         FROM processor WHERE changefeed_uuid = ? AND capture_id = ?",
                        term.changefeed.0,
                        capture
                    )
                    .fetch_one(&mut **tx)
                    .await?;
                    Ok(row.try_into()?)
                })
            })
            .await
    }
}
