//! What only a changefeed's owner (or processor) does.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use metadata_api::codec::{check_assignments, check_batch, current_progress, encode_position, next_status};
use metadata_api::decision::feed_state::{FeedEvent, check_updatable, feed_transition};
use metadata_api::decision::schedule::assign_processors;
use metadata_api::model::{
    CaptureId, CaptureProgress, ChangefeedInfo, ChangefeedStatus, ChangefeedUpdate, ChangefeedUuid,
    FeedState, OwnerTerm, ProcessorAssignment, ProcessorSchedule, ProcessorTerm, RunningError, ScheduleState,
    Version,
};
use metadata_api::store::{OwnerEnd, OwnerRelease, OwnerStore};
use metadata_api::{MetadataError, Result};

use crate::admin::check_version;
use crate::batch::{self, Locked, Release};
use crate::fence::{self, check_owner, lock_owner};
use crate::rows::{processor_query, stored};
use crate::tx::{Tx, TxResult};
use crate::writes::{
    free_names, no_changefeed, note_removal, start_removing, state_of, update_info, write_status,
};
use crate::{SqliteStore, query};

#[async_trait]
impl OwnerStore for SqliteStore {
    #[tracing::instrument(name = "owner.transition", skip_all, fields(changefeed = %term.changefeed, epoch = %term.epoch))]
    async fn owner_transition(
        &self,
        term: OwnerTerm,
        event: FeedEvent,
        error: Option<RunningError>,
    ) -> Result<ChangefeedStatus> {
        let error = error.as_ref();
        self.run_tx("owner.transition", |tx| {
            Box::pin(async move {
                // Others act on every change but these: they take a revision.
                let revision = match event {
                    FeedEvent::Report(FeedState::Normal | FeedState::Warning | FeedState::Pending) => None,
                    _ => Some(fence::take(tx).await?),
                };
                let schedule = lock_owner(tx, term).await?;
                let status = locked_status(tx, term).await?;
                let next = feed_transition(&state_of(term.changefeed), status.state, event)?;
                let new = next_status(&status, event, next, error);
                let stops = !next.is_runnable() && schedule.state == ScheduleState::Launched;
                let repeated = next == status.state && !matches!(event, FeedEvent::Report(_));
                if repeated && !stops {
                    tx.discard();
                    return Ok(status);
                }
                if let (true, Some(revision)) = (stops, revision) {
                    start_removing(tx, &schedule, revision).await?;
                }
                if next == FeedState::Removed {
                    note_removal(tx, &schedule).await?;
                }
                write_status(tx, &status, new).await
            })
        })
        .await
    }

    #[tracing::instrument(name = "owner.update", skip_all, fields(changefeed = %term.changefeed, epoch = %term.epoch))]
    async fn owner_update(
        &self,
        term: OwnerTerm,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo> {
        self.run_tx("owner.update", |tx| {
            Box::pin(async move {
                fence::take(tx).await?;
                lock_owner(tx, term).await?;
                let status = locked_status(tx, term).await?;
                let info =
                    query::info(tx, term.changefeed).await?.ok_or_else(|| no_changefeed(term.changefeed))?;
                check_updatable(&state_of(term.changefeed), status.state)?;
                check_version(&info, expected)?;
                update_info(tx, info, update).await
            })
        })
        .await
    }

    #[tracing::instrument(name = "owner.release", skip_all, fields(releases = releases.len()))]
    async fn owner_release(&self, releases: &[OwnerRelease]) -> Result<Vec<Result<()>>> {
        check_batch("releases", releases.iter().map(|release| release.term.changefeed))?;
        self.run_tx("owner.release", |tx| {
            Box::pin(async move {
                let revision = fence::take(tx).await?;
                let uuids = || releases.iter().map(|release| release.term.changefeed);
                let mut schedules = batch::lock_schedules(tx, uuids()).await?;
                let mut statuses = batch::lock_statuses(tx, uuids()).await?;
                let reported = reported_by(tx, releases).await?;
                let mut plan = Plan::default();
                let answers: Vec<Result<()>> = releases
                    .iter()
                    .map(|release| {
                        let term = release.term;
                        let locked = schedules.remove(&term.changefeed);
                        let status = statuses.remove(&term.changefeed);
                        plan.add(release, locked, status, reported.get(&term.capture))
                    })
                    .collect();
                if plan.releases.is_empty() {
                    tx.discard();
                    return Ok(answers);
                }
                batch::release(tx, &plan.releases, revision).await?;
                free_names(tx, &plan.freed).await?;
                batch::write_statuses(tx, &plan.ended).await?;
                Ok(answers)
            })
        })
        .await
    }

    #[tracing::instrument(name = "processor.assign", skip_all, fields(changefeed = %term.changefeed, epoch = %term.epoch, assignments = assignments.len()))]
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
        self.run_tx("processor.assign", |tx| {
            Box::pin(async move {
                let revision = fence::take(tx).await?;
                lock_owner(tx, term).await?;
                let rows = query::processors(tx, term.changefeed).await?;
                let rows = assign_processors(&rows, term.epoch, seen, assignments, revision)?;
                batch::set_processors(tx, &rows).await?;
                Ok(rows)
            })
        })
        .await
    }

    #[tracing::instrument(name = "processor.release", skip_all, fields(changefeed = %term.changefeed, epoch = %term.epoch))]
    async fn processor_release(&self, term: ProcessorTerm) -> Result<ProcessorSchedule> {
        self.run_tx("processor.release", |tx| {
            Box::pin(async move {
                let revision = stored(fence::take(tx).await?.0);
                let (uuid, capture) = (stored(term.changefeed.0), term.capture.to_string());
                let (epoch, owner_epoch) = (stored(term.epoch.0), stored(term.owner_epoch.0));
                let done = sqlx::query!(
                    "UPDATE processor
                     SET state = 'removed', revision = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
                     WHERE changefeed_uuid = ? AND capture_id = ? AND epoch = ? AND owner_epoch = ?
                           AND state IN ('launched', 'removing')",
                    revision,
                    uuid,
                    capture,
                    epoch,
                    owner_epoch
                )
                .execute(tx.db())
                .await?;
                if done.rows_affected() == 0 {
                    return Err(MetadataError::fenced(format!("{term} is over")).into());
                }
                let row = processor_query!("WHERE changefeed_uuid = ? AND capture_id = ?", uuid, capture)
                    .fetch_one(tx.db())
                    .await?;
                Ok(row.try_into()?)
            })
        })
        .await
    }
}

async fn locked_status(tx: &mut Tx<'_>, term: OwnerTerm) -> TxResult<ChangefeedStatus> {
    let status = query::status(tx, term.changefeed).await?;
    status.ok_or_else(|| no_changefeed(term.changefeed).into())
}

/// The progress rows of the captures that release; usually one.
async fn reported_by(
    tx: &mut Tx<'_>,
    releases: &[OwnerRelease],
) -> TxResult<HashMap<CaptureId, CaptureProgress>> {
    let captures: BTreeSet<_> = releases.iter().map(|release| release.term.capture).collect();
    let mut reported = HashMap::new();
    for capture in captures {
        reported.insert(capture, batch::progress_of(tx, capture).await?.unwrap_or_default());
    }
    Ok(reported)
}

/// What the releases that are not refused come to.
#[derive(Default)]
struct Plan {
    releases: Vec<Release>,
    /// Removed changefeeds, whose names become free.
    freed: Vec<ChangefeedUuid>,
    /// States of those that ended.
    ended: Vec<ChangefeedStatus>,
}

impl Plan {
    fn add(
        &mut self,
        release: &OwnerRelease,
        locked: Option<Result<Locked>>,
        status: Option<Result<ChangefeedStatus>>,
        reported: Option<&CaptureProgress>,
    ) -> Result<()> {
        let changefeed = release.term.changefeed;
        let schedule = check_owner(release.term, locked.transpose()?.map(|locked| locked.schedule))?;
        let status = status.ok_or_else(|| no_changefeed(changefeed))??;
        let mut position = current_progress(&schedule, reported);
        if let Some(given) = &release.task_position {
            encode_position("task_position", given)?;
            position = position.further(given.clone());
        }
        self.releases.push(Release::new(schedule, &position)?);
        if status.state == FeedState::Removed {
            self.freed.push(changefeed);
        }
        if let Some(end) = release.end.as_ref().filter(|_| status.state.is_runnable()) {
            let error = match end {
                OwnerEnd::Finished => None,
                OwnerEnd::Failed(error) => Some(error),
            };
            self.ended.push(next_status(&status, FeedEvent::Report(end.state()), end.state(), error));
        }
        Ok(())
    }
}
