//! [`OwnerStore`]: what only a changefeed's owner or processor does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
use crate::admin::{check_update, lock_info, update_info};
use crate::events::{Event, apply};
use crate::feeds::{
    Feed, ScheduleWrite, changefeed_text, check_owner, feeds, free_names, lock_feed, no_changefeed,
    read_feeds, write_schedules, write_statuses,
};
use crate::fence::{fence_lock, fence_lock_reading};
use crate::group::{Call, Key, apart};
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

/// How a running changefeed is doing, by its owner.
pub(crate) struct Report {
    term: OwnerTerm,
    event: FeedEvent,
    error: Option<RunningError>,
}

impl Call for Report {
    type Answer = ChangefeedStatus;

    fn keys(&self) -> Vec<Key> {
        vec![Key::Changefeed(self.term.changefeed.0)]
    }

    fn text(&self) -> usize {
        self.error.as_ref().map_or(0, |error| error.message.len())
    }
}

/// The schedule rows are locked with their owners, and the fence is left alone.
async fn report(tx: &mut Tx<'_>, reports: &[Arc<Report>]) -> TxResult<Vec<Result<ChangefeedStatus>>> {
    let changefeeds: BTreeSet<u64> = reports.iter().map(|report| report.term.changefeed.0).collect();
    let mut lock = Sql::new(
        "SELECT changefeed_uuid, owner, owner_epoch FROM schedule WHERE owner_state IN ('launched', 'removing') \
         AND changefeed_uuid IN (",
    );
    lock.numbers(changefeeds.iter().copied()).push(") ORDER BY changefeed_uuid FOR UPDATE");
    let mut read = Sql::new("SELECT t.changefeed_uuid, ");
    read.push(STATE).push(" FROM changefeed_state t WHERE t.changefeed_uuid IN (").numbers(changefeeds);
    lock.then(read.push(") ORDER BY t.changefeed_uuid FOR UPDATE"));
    let answers = tx.open(&lock, 2).await?;
    let [locked, states] = answers.as_slice() else { return Err(sqlx::Error::RowNotFound.into()) };
    let mut owners: BTreeMap<u64, (Option<String>, u64)> = BTreeMap::new();
    for (changefeed, owner, epoch) in locked.rows()? {
        owners.insert(changefeed, (owner, epoch));
    }
    let states = states.rows::<StateRow>()?.into_iter();
    let mut states: BTreeMap<u64, StateRow> = states.map(|row| (row.changefeed_uuid, row)).collect();
    let mut writes = Vec::with_capacity(reports.len());
    let answers: Vec<Result<ChangefeedStatus>> = reports
        .iter()
        .map(|report| {
            let (term, changefeed) = (report.term, report.term.changefeed);
            if owners.get(&changefeed.0) != Some(&(Some(term.capture.to_string()), term.epoch.0)) {
                return Err(MetadataError::fenced(term.to_string()));
            }
            let row = states.remove(&changefeed.0).ok_or_else(|| no_changefeed(changefeed))?;
            let current = ChangefeedStatus::try_from(row)?;
            let next = feed_transition(&changefeed_text(changefeed), current.state, report.event)?;
            let status = next_status(&current, report.event, next, report.error.as_ref());
            writes.push(status.clone());
            Ok(ChangefeedStatus { version: Version(status.version.0 + 1), ..status })
        })
        .collect();
    if writes.is_empty() {
        tx.discard();
        return Ok(answers);
    }
    let mut batch = Batch::default();
    write_statuses(&mut batch, &writes)?;
    batch.send(tx).await?;
    Ok(answers)
}

/// Releases that are applied or refused each on its own.
pub(crate) struct Releases(Vec<OwnerRelease>);

impl Call for Releases {
    type Answer = Vec<Result<()>>;

    fn keys(&self) -> Vec<Key> {
        self.0.iter().map(|release| Key::Changefeed(release.term.changefeed.0)).collect()
    }
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
    for row in answer.rows()? {
        reported.add(row)?;
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

async fn release_all(tx: &mut Tx<'_>, calls: &[Arc<Releases>]) -> TxResult<Vec<Result<Vec<Result<()>>>>> {
    let all: Vec<OwnerRelease> = calls.iter().flat_map(|call| call.0.iter().cloned()).collect();
    let answers = release(tx, &all).await?;
    Ok(apart(answers, calls.iter().map(|call| call.0.len())))
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
        if !matches!(event, FeedEvent::Report(FeedState::Normal | FeedState::Warning | FeedState::Pending)) {
            let event = Event::by_owner(term, event, error);
            return self.groups.transition.commit(&self.runner, event, apply).await;
        }
        let (group, call) = (&self.groups.report, Report { term, event, error });
        group.commit(&self.runner, call, |tx, reports| Box::pin(report(tx, reports))).await
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
                    let info = lock_info(tx, &feed, expected).await?;
                    update_info(tx, info, update).await
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
        let (group, call) = (&self.groups.release, Releases(releases.to_vec()));
        group.commit(&self.runner, call, |tx, calls| Box::pin(release_all(tx, calls))).await
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
