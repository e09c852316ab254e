//! What only a changefeed's owner (or processor) does.

use std::collections::BTreeMap;

use async_trait::async_trait;
use metadata_api::codec::{check_assignments, check_batch, encode_position, next_status};
use metadata_api::decision::feed_state::{FeedEvent, check_updatable, feed_transition};
use metadata_api::decision::schedule::assign_processors;
use metadata_api::model::{
    CaptureId, ChangefeedInfo, ChangefeedStatus, ChangefeedUpdate, FeedState, OwnerTerm, ProcessorAssignment,
    ProcessorSchedule, ProcessorTerm, Revision, RunningError, ScheduleState, Version,
};
use metadata_api::store::{OwnerEnd, OwnerRelease, OwnerStore};
use metadata_api::{MetadataError, Result};

use crate::MemoryStore;
use crate::admin::{check_version, update_info};
use crate::query::processors;
use crate::tables::Table;
use crate::tx::{Tx, next, state_of};

#[async_trait]
impl OwnerStore for MemoryStore {
    async fn owner_transition(
        &self,
        term: OwnerTerm,
        event: FeedEvent,
        error: Option<RunningError>,
    ) -> Result<ChangefeedStatus> {
        self.write("owner.transition", |tx| {
            // Others act on every change but these: they take a revision.
            let revision = match event {
                FeedEvent::Report(FeedState::Normal | FeedState::Warning | FeedState::Pending) => None,
                _ => Some(tx.take()?),
            };
            let schedule = tx.lock_owner(term)?;
            let status = tx.status(term.changefeed)?;
            let state = feed_transition(&state_of(term.changefeed), status.state, event)?;
            let new = next_status(&status, event, state, error.as_ref());
            let stops = !state.is_runnable() && schedule.state == ScheduleState::Launched;
            let repeated = state == status.state && !matches!(event, FeedEvent::Report(_));
            if repeated && !stops {
                return Ok(status);
            }
            if let (true, Some(revision)) = (stops, revision) {
                tx.start_removing(&schedule, revision);
            }
            if state == FeedState::Removed {
                tx.note_removal(&schedule)?;
            }
            tx.write_status(new)
        })
        .await
    }

    async fn owner_update(
        &self,
        term: OwnerTerm,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo> {
        self.write("owner.update", |tx| {
            tx.take()?;
            tx.lock_owner(term)?;
            let status = tx.status(term.changefeed)?;
            let row = tx.info(term.changefeed)?;
            check_updatable(&state_of(term.changefeed), status.state)?;
            check_version(&row.info, expected)?;
            update_info(tx, row, update)
        })
        .await
    }

    async fn owner_release(&self, releases: &[OwnerRelease]) -> Result<Vec<Result<()>>> {
        check_batch("releases", releases.iter().map(|release| release.term.changefeed))?;
        self.write("owner.release", |tx| {
            let revision = tx.take()?;
            for release in releases {
                tx.tables.readable(Table::Progress, &release.term.capture)?;
            }
            Ok(releases.iter().map(|release| release_one(tx, release, revision)).collect())
        })
        .await
    }

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
        self.write("processor.assign", |tx| {
            let revision = tx.take()?;
            tx.lock_owner(term)?;
            let rows: Vec<_> = processors(tx.tables, term.changefeed).cloned().collect();
            let rows = assign_processors(&rows, term.epoch, seen, assignments, revision)?;
            for row in &rows {
                tx.put_processor((term.changefeed, row.capture), row.clone());
            }
            Ok(rows)
        })
        .await
    }

    async fn processor_release(&self, term: ProcessorTerm) -> Result<ProcessorSchedule> {
        self.write("processor.release", |tx| {
            let revision = tx.take()?;
            let key = (term.changefeed, term.capture);
            let row = tx.tables.processors.get(&key).filter(|row| {
                row.epoch == term.epoch
                    && row.owner_epoch == term.owner_epoch
                    && row.state != ScheduleState::Removed
            });
            let Some(row) = row else {
                return Err(MetadataError::fenced(format!("{term} is over")));
            };
            let new = ProcessorSchedule {
                state: ScheduleState::Removed,
                revision,
                version: next(row.version),
                ..(**row).clone()
            };
            tx.put_processor(key, new.clone());
            Ok(new)
        })
        .await
    }
}

fn release_one(tx: &mut Tx<'_>, release: &OwnerRelease, revision: Revision) -> Result<()> {
    let changefeed = release.term.changefeed;
    let schedule = tx.lock_owner(release.term)?;
    let status = tx.status(changefeed)?;
    let mut position = tx.tables.progress_of(&schedule);
    if let Some(given) = &release.task_position {
        encode_position("task_position", given)?;
        position = position.further(given.clone());
    }
    tx.release(&schedule, position, revision)?;
    if status.state == FeedState::Removed {
        tx.free_name(changefeed)?;
    }
    if let Some(end) = release.end.as_ref().filter(|_| status.state.is_runnable()) {
        let error = match end {
            OwnerEnd::Finished => None,
            OwnerEnd::Failed(error) => Some(error),
        };
        tx.write_status(next_status(&status, FeedEvent::Report(end.state()), end.state(), error))?;
    }
    Ok(())
}
