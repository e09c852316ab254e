//! What only the controller does: its scan and its writes. The batches themselves are in [`crate::batch`].

use std::collections::HashMap;

use async_trait::async_trait;
use metadata_api::codec::{Cell, check_batch, current_progress, encode_assignment};
use metadata_api::decision::schedule::{ScheduledChangefeed, check_schedule_state};
use metadata_api::model::{
    CaptureBeat, CaptureId, CaptureProgress, CaptureState, ChangefeedSchedule, ChangefeedUuid,
    ControllerTerm, FeedState, OwnerEpoch, Placement, ProcessorAssignment, ProcessorEpoch, ProcessorSchedule,
    ProcessorTarget, Revision, ScheduleSnapshot, ScheduleState, ScheduleTarget, SnapshotChangefeed, Version,
};
use metadata_api::store::{ControllerStore, MAX_BATCH};
use metadata_api::{MetadataError, Result};

use crate::batch::{self, Release};
use crate::capture::{self, capture_state, seal_progress};
use crate::fence::{self, missing_row};
use crate::rows::{BeatRow, ScheduleRow, all, capture_query, id, stored};
use crate::tx::{Tx, TxResult};
use crate::writes::{free_names, next, no_changefeed};
use crate::{SqliteStore, query};

#[async_trait]
impl ControllerStore for SqliteStore {
    #[tracing::instrument(name = "controller.snapshot", skip_all)]
    async fn schedule_snapshot(&self) -> Result<ScheduleSnapshot> {
        self.run_snapshot("controller.snapshot", |tx| {
            Box::pin(async move {
                let revision = sqlx::query_scalar!("SELECT revision FROM fence WHERE id = 1")
                    .fetch_optional(tx.db())
                    .await?
                    .ok_or_else(missing_row)?;
                let captures = all(capture_query!("ORDER BY id").fetch_all(tx.db()).await?)?;
                let revision = Revision(id(revision));
                let mut snapshot = ScheduleSnapshot { revision, captures, ..ScheduleSnapshot::default() };
                read_changefeeds(tx, &mut snapshot).await?;
                Ok(snapshot)
            })
        })
        .await
    }

    #[tracing::instrument(level = "debug", name = "controller.beats", skip_all)]
    async fn capture_beats(&self) -> Result<Vec<CaptureBeat>> {
        self.run_read("controller.beats", |tx| {
            Box::pin(async move {
                let rows =
                    sqlx::query_as!(BeatRow, "SELECT id, state, heartbeat_seq FROM capture ORDER BY id")
                        .fetch_all(tx.db())
                        .await?;
                Ok(all(rows)?)
            })
        })
        .await
    }

    #[tracing::instrument(name = "owner.set", skip_all, fields(epoch = %term.epoch, targets = targets.len()))]
    async fn owner_set(
        &self,
        term: ControllerTerm,
        targets: &[ScheduleTarget],
    ) -> Result<Vec<Result<ChangefeedSchedule>>> {
        check_batch("targets", targets.iter().map(|target| target.changefeed))?;
        self.run_tx("owner.set", |tx| {
            Box::pin(async move {
                let revision = fence::take_as_controller(tx, term).await?;
                let mut rows =
                    batch::lock_schedules(tx, targets.iter().map(|target| target.changefeed)).await?;
                let states =
                    batch::capture_states(tx, targets.iter().filter_map(|target| target.owner)).await?;
                let mut orders = Vec::new();
                let answers: Vec<_> = targets
                    .iter()
                    .map(|target| {
                        let new =
                            launch_or_remove(target, rows.remove(&target.changefeed), &states, revision)?;
                        orders.push((target.expected_version, new.clone()));
                        Ok(new)
                    })
                    .collect();
                if orders.is_empty() {
                    tx.discard();
                } else {
                    batch::set_owners(tx, &orders, revision).await?;
                }
                Ok(answers)
            })
        })
        .await
    }

    #[tracing::instrument(name = "processor.set", skip_all, fields(epoch = %term.epoch, %changefeed))]
    async fn processor_set(
        &self,
        term: ControllerTerm,
        changefeed: ChangefeedUuid,
        targets: &[ProcessorTarget],
    ) -> Result<Vec<ProcessorSchedule>> {
        check_batch("targets", targets.iter().map(|target| target.capture))?;
        for target in targets {
            check_processor_target(target)?;
        }
        self.run_tx("processor.set", |tx| {
            Box::pin(async move {
                let revision = fence::take_as_controller(tx, term).await?;
                let schedule =
                    query::schedule(tx, changefeed).await?.ok_or_else(|| no_changefeed(changefeed))?;
                let rows = query::processors(tx, changefeed).await?;
                let rows: HashMap<_, _> = rows.iter().map(|row| (row.capture, row)).collect();
                let launched = targets.iter().filter(|target| target.state == ScheduleState::Launched);
                let states = batch::capture_states(tx, launched.map(|target| target.capture)).await?;
                let mut answers = Vec::with_capacity(targets.len());
                for target in targets {
                    let there = rows.get(&target.capture).copied();
                    answers.push(attach_or_detach(target, &schedule, there, &states, revision)?);
                }
                if answers.is_empty() {
                    tx.discard();
                }
                batch::set_processors(tx, &answers).await?;
                Ok(answers)
            })
        })
        .await
    }

    #[tracing::instrument(name = "changefeed.cleanup", skip_all, fields(epoch = %term.epoch, targets = targets.len()))]
    async fn changefeed_cleanup(
        &self,
        term: ControllerTerm,
        targets: &[(ChangefeedUuid, Version)],
    ) -> Result<u64> {
        check_batch("targets", targets.iter().map(|(changefeed, _)| *changefeed))?;
        self.run_tx("changefeed.cleanup", |tx| {
            Box::pin(async move {
                fence::take_as_controller(tx, term).await?;
                let done = batch::removable(tx, targets).await?;
                if done.is_empty() {
                    tx.discard();
                } else {
                    batch::delete_changefeeds(tx, &done).await?;
                }
                Ok(done.len() as u64)
            })
        })
        .await
    }

    #[tracing::instrument(name = "capture.seal", skip_all, fields(epoch = %term.epoch, %capture, judged_seq))]
    async fn capture_seal(&self, term: ControllerTerm, capture: CaptureId, judged_seq: u64) -> Result<bool> {
        self.run_tx("capture.seal", |tx| {
            Box::pin(async move {
                let revision = fence::take_as_controller(tx, term).await?;
                if seal_if_still(tx, capture, judged_seq, revision).await? {
                    seal_progress(tx, capture).await?;
                    return Ok(true);
                }
                tx.discard();
                let state = capture_state(tx, capture).await?;
                Ok(matches!(state, None | Some(CaptureState::Offline)))
            })
        })
        .await
    }

    #[tracing::instrument(name = "capture.release", skip_all, fields(epoch = %term.epoch, %capture, limit))]
    async fn capture_release(&self, term: ControllerTerm, capture: CaptureId, limit: usize) -> Result<usize> {
        if limit == 0 || limit > MAX_BATCH {
            return Err(MetadataError::invalid("limit", format!("{limit} is not from 1 to {MAX_BATCH}")));
        }
        self.run_tx("capture.release", |tx| {
            Box::pin(async move {
                let revision = fence::take_as_controller(tx, term).await?;
                check_offline(tx, capture).await?;
                // Where the capture has no row any more, its progress may not have been sealed.
                seal_progress(tx, capture).await?;
                let schedules = batch::owned_by(tx, capture, limit).await?;
                let (taken, freed) = release_schedules(tx, capture, schedules, revision).await?;
                let processors = batch::release_processors(tx, capture, limit - taken, revision).await?;
                free_names(tx, &freed).await?;
                if taken + processors == 0 {
                    tx.discard();
                }
                Ok(taken + processors)
            })
        })
        .await
    }

    #[tracing::instrument(name = "capture.delete", skip_all, fields(epoch = %term.epoch, %capture))]
    async fn capture_delete(&self, term: ControllerTerm, capture: CaptureId) -> Result<()> {
        self.run_tx("capture.delete", |tx| {
            Box::pin(async move {
                fence::take_as_controller(tx, term).await?;
                if !check_offline(tx, capture).await? {
                    tx.discard();
                    return Ok(());
                }
                if capture::is_named(tx, capture).await? {
                    let what = format!("a schedule or processor still names capture {capture}");
                    return Err(MetadataError::conflict(what).into());
                }
                capture::delete(tx, capture).await
            })
        })
        .await
    }
}

async fn read_changefeeds(tx: &mut Tx<'_>, snapshot: &mut ScheduleSnapshot) -> TxResult<()> {
    let rows = sqlx::query!(
        r#"SELECT s.changefeed_uuid AS "changefeed_uuid!: i64", s.owner AS "owner?: String",
                  s.owner_state AS "owner_state!: String", s.owner_epoch AS "owner_epoch!: i64",
                  s.task_position AS "task_position!: String", s.revision AS "revision!: i64",
                  s.version AS "version!: i64", f.state AS "state!: String",
                  (SELECT COUNT(*) FROM processor p
                   WHERE p.changefeed_uuid = s.changefeed_uuid AND p.state <> 'removed') AS "live_processors!: i64",
                  CASE WHEN i.config NOT LIKE '%"placement"%' THEN NULL
                       WHEN json_valid(i.config) THEN i.config -> '$.placement'
                       ELSE 'damaged' END AS "placement?: String"
           FROM schedule s
           JOIN changefeed_info i ON i.uuid = s.changefeed_uuid
           JOIN changefeed_state f ON f.changefeed_uuid = s.changefeed_uuid
           ORDER BY s.changefeed_uuid"#
    )
    .fetch_all(tx.db())
    .await?;
    for row in rows {
        let read = || {
            let schedule = ChangefeedSchedule::try_from(ScheduleRow {
                changefeed_uuid: row.changefeed_uuid,
                owner: row.owner,
                owner_state: row.owner_state,
                owner_epoch: row.owner_epoch,
                task_position: row.task_position,
                revision: row.revision,
                version: row.version,
            })?;
            let state = Cell::new("changefeed_state", &schedule.changefeed, "state").parse(&row.state)?;
            Ok(SnapshotChangefeed {
                schedule,
                state,
                removed: state == FeedState::Removed,
                live_processors: u32::try_from(row.live_processors).unwrap_or(u32::MAX),
                placement: Placement::from_text(row.placement.as_deref()),
            })
        };
        snapshot.add(ChangefeedUuid(id(row.changefeed_uuid)), read())?;
    }
    Ok(())
}

/// What a schedule becomes by `target`, or why it does not.
fn launch_or_remove(
    target: &ScheduleTarget,
    there: Option<Result<batch::Locked>>,
    captures: &HashMap<CaptureId, CaptureState>,
    revision: Revision,
) -> Result<ChangefeedSchedule> {
    if target.state == ScheduleState::Removed {
        return Err(MetadataError::invalid(
            "state",
            "a schedule is `removed` by its owner, or with its capture",
        ));
    }
    if target.state == ScheduleState::Launched && target.owner.is_none() {
        return Err(MetadataError::invalid("owner", "a launch needs a capture to launch on"));
    }
    let locked = there.ok_or_else(|| no_changefeed(target.changefeed))??;
    let origin = &locked.schedule;
    check_expected("the schedule of changefeed", target.changefeed, origin.version, target.expected_version)?;
    let launches = target.state == ScheduleState::Launched;
    let new = ChangefeedSchedule {
        owner: target.owner.or(origin.owner),
        state: target.state,
        epoch: if launches { OwnerEpoch(revision.0) } else { origin.epoch },
        revision,
        version: next(origin.version),
        ..origin.clone()
    };
    check_schedule_state(&ScheduledChangefeed::from(origin), &ScheduledChangefeed::from(&new))?;
    if launches {
        if !locked.state.is_runnable() {
            return Err(MetadataError::conflict(format!(
                "changefeed {} is {}, and not to be run",
                target.changefeed, locked.state
            )));
        }
        check_alive(target.owner, captures)?;
    }
    Ok(new)
}

fn check_expected(what: &str, key: impl std::fmt::Display, there: Version, expected: Version) -> Result<()> {
    if there == expected {
        return Ok(());
    }
    Err(MetadataError::conflict(format!("{what} {key} has version {there}, expected {expected}")))
}

fn check_alive(capture: Option<CaptureId>, captures: &HashMap<CaptureId, CaptureState>) -> Result<()> {
    let Some(capture) = capture else { return Ok(()) };
    match captures.get(&capture) {
        Some(CaptureState::Alive) => Ok(()),
        Some(state) => Err(MetadataError::conflict(format!("capture {capture} is {state}"))),
        None => Err(MetadataError::conflict(format!("capture {capture} has no row"))),
    }
}

fn check_processor_target(target: &ProcessorTarget) -> Result<()> {
    match (target.state, target.expected_version) {
        (ScheduleState::Removed, _) => {
            Err(MetadataError::invalid("state", "a processor is `removed` by itself, or with its capture"))
        }
        (ScheduleState::Removing, None) => {
            Err(MetadataError::invalid("expected_version", "what is to be detached has a version"))
        }
        (ScheduleState::Launched | ScheduleState::Removing, _) => {
            encode_assignment(&target.assignment).map(drop)
        }
    }
}

/// What a processor becomes by `target`, or why nothing of the whole call is done.
fn attach_or_detach(
    target: &ProcessorTarget,
    schedule: &ChangefeedSchedule,
    there: Option<&ProcessorSchedule>,
    captures: &HashMap<CaptureId, CaptureState>,
    revision: Revision,
) -> Result<ProcessorSchedule> {
    let what = "the processor on capture";
    match (there, target.expected_version) {
        (Some(there), Some(expected)) => check_expected(what, target.capture, there.version, expected)?,
        (Some(_), None) => {
            return Err(MetadataError::conflict(format!("{what} {} has a row", target.capture)));
        }
        (None, Some(_)) => {
            return Err(MetadataError::conflict(format!("{what} {} has no row", target.capture)));
        }
        (None, None) => {}
    }
    let from = there.map_or(ScheduleState::Removed, |there| there.state);
    match (from, target.state, there) {
        (ScheduleState::Removed, ScheduleState::Launched, _) => {
            if schedule.state != ScheduleState::Launched {
                return Err(MetadataError::conflict(format!(
                    "the schedule of changefeed {} is {}",
                    schedule.changefeed, schedule.state
                )));
            }
            check_alive(Some(target.capture), captures)?;
            Ok(ProcessorSchedule {
                changefeed: schedule.changefeed,
                capture: target.capture,
                state: ScheduleState::Launched,
                owner_epoch: schedule.epoch,
                epoch: ProcessorEpoch(revision.0),
                assignment: ProcessorAssignment(target.assignment.0.clone()),
                revision,
                version: there.map_or(Version(1), |there| next(there.version)),
            })
        }
        (ScheduleState::Launched, ScheduleState::Removing, Some(there)) => Ok(ProcessorSchedule {
            state: ScheduleState::Removing,
            revision,
            version: next(there.version),
            ..there.clone()
        }),
        _ => Err(MetadataError::transition(format!("{what} {}", target.capture), from, target.state)),
    }
}

async fn seal_if_still(
    tx: &mut Tx<'_>,
    capture: CaptureId,
    judged_seq: u64,
    revision: Revision,
) -> TxResult<bool> {
    let (key, judged_seq, revision) = (capture.to_string(), stored(judged_seq), stored(revision.0));
    let done = sqlx::query!(
        "UPDATE capture SET state = 'offline', revision = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE id = ? AND heartbeat_seq = ? AND state <> 'offline'",
        revision,
        key,
        judged_seq
    )
    .execute(tx.db())
    .await?;
    Ok(done.rows_affected() > 0)
}

/// An error unless the capture is offline or absent; says whether it has a row.
async fn check_offline(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<bool> {
    match capture_state(tx, capture).await? {
        None => Ok(false),
        Some(CaptureState::Offline) => Ok(true),
        Some(state) => {
            Err(MetadataError::conflict(format!("capture {capture} is {state}, not offline")).into())
        }
    }
}

/// Takes schedules from a sealed capture, each with the further of its task position and its sealed progress. How many, and
/// which of them are removed.
async fn release_schedules(
    tx: &mut Tx<'_>,
    capture: CaptureId,
    schedules: Vec<(ChangefeedSchedule, bool)>,
    revision: Revision,
) -> TxResult<(usize, Vec<ChangefeedUuid>)> {
    if schedules.is_empty() {
        return Ok((0, Vec::new()));
    }
    let sealed: Option<CaptureProgress> = batch::progress_of(tx, capture).await?;
    let mut releases = Vec::with_capacity(schedules.len());
    let mut freed = Vec::new();
    for (schedule, removed) in schedules {
        if removed {
            freed.push(schedule.changefeed);
        }
        let position = current_progress(&schedule, sealed.as_ref());
        releases.push(Release::new(schedule, &position)?);
    }
    batch::release(tx, &releases, revision).await?;
    Ok((releases.len(), freed))
}
