//! What only the controller does: its scan and its writes.

use std::iter::Peekable;
use std::sync::Arc;

use async_trait::async_trait;
use metadata_api::codec::{check_batch, encode_assignment};
use metadata_api::decision::schedule::{ScheduledChangefeed, check_schedule_state};
use metadata_api::model::{
    CaptureBeat, CaptureId, CaptureState, ChangefeedSchedule, ChangefeedUuid, ControllerTerm, FeedState,
    OwnerEpoch, Placement, ProcessorAssignment, ProcessorEpoch, ProcessorSchedule, ProcessorTarget, Revision,
    ScheduleSnapshot, ScheduleState, ScheduleTarget, SnapshotChangefeed, UpstreamId, Version,
};
use metadata_api::store::{ControllerStore, MAX_BATCH};
use metadata_api::{MetadataError, Result};

use crate::MemoryStore;
use crate::query::processors;
use crate::tables::{Table, Tables};
use crate::tx::{Tx, next};

#[async_trait]
impl ControllerStore for MemoryStore {
    async fn schedule_snapshot(&self) -> Result<ScheduleSnapshot> {
        self.read("controller.snapshot", |tables| {
            tables.fence_epoch()?;
            let captures = tables.captures().map(|row| {
                tables.readable(Table::Capture, &row.id)?;
                Ok(row.clone())
            });
            let mut snapshot = ScheduleSnapshot {
                revision: tables.revision,
                captures: captures.collect::<Result<_>>()?,
                ..ScheduleSnapshot::default()
            };
            read_changefeeds(tables, &mut snapshot)?;
            Ok(snapshot)
        })
        .await
    }

    async fn capture_beats(&self) -> Result<Vec<CaptureBeat>> {
        self.read("controller.beats", |tables| {
            tables
                .captures()
                .map(|row| {
                    tables.readable(Table::Capture, &row.id)?;
                    Ok(CaptureBeat { id: row.id, state: row.state, heartbeat_seq: row.heartbeat_seq })
                })
                .collect()
        })
        .await
    }

    async fn owner_set(
        &self,
        term: ControllerTerm,
        targets: &[ScheduleTarget],
    ) -> Result<Vec<Result<ChangefeedSchedule>>> {
        check_batch("targets", targets.iter().map(|target| target.changefeed))?;
        self.write("owner.set", |tx| {
            let revision = tx.take_as_controller(term)?;
            let answers = targets.iter().map(|target| {
                let new = launch_or_remove(tx, target, revision)?;
                tx.put_schedule(new.changefeed, new.clone());
                Ok(new)
            });
            Ok(answers.collect())
        })
        .await
    }

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
        self.write("processor.set", |tx| {
            let revision = tx.take_as_controller(term)?;
            let schedule = tx.schedule(changefeed)?;
            let mut answers = Vec::with_capacity(targets.len());
            for target in targets {
                let new = attach_or_detach(tx, target, &schedule, revision)?;
                tx.put_processor((changefeed, target.capture), new.clone());
                answers.push(new);
            }
            Ok(answers)
        })
        .await
    }

    async fn changefeed_cleanup(
        &self,
        term: ControllerTerm,
        targets: &[(ChangefeedUuid, Version)],
    ) -> Result<u64> {
        check_batch("targets", targets.iter().map(|(changefeed, _)| *changefeed))?;
        self.write("changefeed.cleanup", |tx| {
            tx.take_as_controller(term)?;
            let mut done = 0;
            for (changefeed, version) in targets {
                if is_removable(tx.tables, *changefeed, *version)? {
                    delete(tx, *changefeed)?;
                    done += 1;
                }
            }
            Ok(done)
        })
        .await
    }

    async fn capture_seal(&self, term: ControllerTerm, capture: CaptureId, judged_seq: u64) -> Result<bool> {
        self.write("capture.seal", |tx| {
            tx.take_as_controller(term)?;
            match tx.capture_state(capture)? {
                None | Some(CaptureState::Offline) => return Ok(true),
                Some(CaptureState::Alive | CaptureState::Draining) => {}
            }
            let still = tx.tables.captures.get(&capture).is_some_and(|row| row.heartbeat_seq == judged_seq);
            if still {
                tx.seal(capture);
            }
            Ok(still)
        })
        .await
    }

    async fn capture_release(&self, term: ControllerTerm, capture: CaptureId, limit: usize) -> Result<usize> {
        if limit == 0 || limit > MAX_BATCH {
            return Err(MetadataError::invalid("limit", format!("{limit} is not from 1 to {MAX_BATCH}")));
        }
        self.write("capture.release", |tx| {
            let revision = tx.take_as_controller(term)?;
            check_offline(tx, capture)?;
            // Where the capture has no row any more, its progress may not have been sealed.
            tx.seal_progress(capture);
            let readable =
                |row: &&ChangefeedSchedule| tx.tables.readable(Table::Schedule, &row.changefeed).is_ok();
            let schedules: Vec<_> =
                tx.tables.owned_by(capture).filter(readable).take(limit).cloned().collect();
            if !schedules.is_empty() && tx.tables.progresses.contains_key(&capture) {
                tx.tables.readable(Table::Progress, &capture)?;
            }
            for schedule in &schedules {
                let position = tx.tables.progress_of(schedule);
                tx.release(schedule, position, revision)?;
            }
            let taken = schedules.len();
            let live = |row: &&ProcessorSchedule| row.state != ScheduleState::Removed;
            let rows: Vec<_> =
                tx.tables.processors_on(capture).filter(live).take(limit - taken).cloned().collect();
            for row in &rows {
                let new = ProcessorSchedule {
                    state: ScheduleState::Removed,
                    revision,
                    version: next(row.version),
                    ..row.clone()
                };
                tx.put_processor((row.changefeed, capture), new);
            }
            for schedule in &schedules {
                let status = tx.tables.status(schedule.changefeed);
                if status.is_some_and(|status| status.state == FeedState::Removed) {
                    tx.free_name(schedule.changefeed)?;
                }
            }
            Ok(taken + rows.len())
        })
        .await
    }

    async fn capture_delete(&self, term: ControllerTerm, capture: CaptureId) -> Result<()> {
        self.write("capture.delete", |tx| {
            tx.take_as_controller(term)?;
            check_offline(tx, capture)?;
            if tx.is_named(capture) {
                let what = format!("a schedule or processor still names capture {capture}");
                return Err(MetadataError::conflict(what));
            }
            tx.delete_capture(capture);
            Ok(())
        })
        .await
    }
}

/// All are ordered by changefeed: each table is gone through once, beside the schedules.
fn read_changefeeds(tables: &Tables, snapshot: &mut ScheduleSnapshot) -> Result<()> {
    let (mut statuses, mut infos) = (tables.statuses.iter().peekable(), tables.infos.iter().peekable());
    let mut processors = tables.processors.values().peekable();
    for schedule in tables.schedules() {
        let uuid = schedule.changefeed;
        let info = beside(&mut infos, uuid);
        let mut live_processors = 0;
        while let Some(row) = processors.next_if(|row| row.changefeed <= uuid) {
            let is_live = row.changefeed == uuid && row.state != ScheduleState::Removed;
            live_processors += u32::from(is_live);
        }
        let Some(status) = beside(&mut statuses, uuid) else { continue };
        let read = || {
            tables.readable(Table::Schedule, &uuid)?;
            tables.readable(Table::ChangefeedState, &uuid)?;
            Ok(SnapshotChangefeed {
                schedule: schedule.clone(),
                state: status.state,
                removed: status.state == FeedState::Removed,
                live_processors,
                placement: info
                    .map_or_else(|| Ok(Placement::default()), |row| Placement::from_config(&row.info.config)),
            })
        };
        snapshot.add(uuid, read())?;
    }
    Ok(())
}

/// The changefeed's row in a table that is gone through in order.
fn beside<'a, V>(
    rows: &mut Peekable<impl Iterator<Item = (&'a ChangefeedUuid, &'a Arc<V>)>>,
    changefeed: ChangefeedUuid,
) -> Option<&'a V> {
    while rows.next_if(|(uuid, _)| **uuid < changefeed).is_some() {}
    rows.next_if(|(uuid, _)| **uuid == changefeed).map(|(_, row)| &**row)
}

fn live_processors(tables: &Tables, changefeed: ChangefeedUuid) -> u32 {
    let live = processors(tables, changefeed).filter(|row| row.state != ScheduleState::Removed);
    u32::try_from(live.count()).unwrap_or(u32::MAX)
}

/// What a schedule becomes by `target`, or why it does not.
fn launch_or_remove(tx: &Tx<'_>, target: &ScheduleTarget, revision: Revision) -> Result<ChangefeedSchedule> {
    if target.state == ScheduleState::Removed {
        return Err(MetadataError::invalid(
            "state",
            "a schedule is `removed` by its owner, or with its capture",
        ));
    }
    if target.state == ScheduleState::Launched && target.owner.is_none() {
        return Err(MetadataError::invalid("owner", "a launch needs a capture to launch on"));
    }
    let origin = tx.schedule(target.changefeed)?;
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
    check_schedule_state(&ScheduledChangefeed::from(&origin), &ScheduledChangefeed::from(&new))?;
    if launches {
        let state = tx.status(target.changefeed)?.state;
        if !state.is_runnable() {
            let what = format!("changefeed {} is {state}, and not to be run", target.changefeed);
            return Err(MetadataError::conflict(what));
        }
        if let Some(owner) = target.owner {
            check_alive(tx, owner)?;
        }
    }
    Ok(new)
}

fn check_expected(what: &str, key: impl std::fmt::Display, there: Version, expected: Version) -> Result<()> {
    if there == expected {
        return Ok(());
    }
    Err(MetadataError::conflict(format!("{what} {key} has version {there}, expected {expected}")))
}

fn check_alive(tx: &Tx<'_>, capture: CaptureId) -> Result<()> {
    match tx.capture_state(capture)? {
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
    tx: &Tx<'_>,
    target: &ProcessorTarget,
    schedule: &ChangefeedSchedule,
    revision: Revision,
) -> Result<ProcessorSchedule> {
    let what = "the processor on capture";
    let there = tx.tables.processors.get(&(schedule.changefeed, target.capture));
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
                let what =
                    format!("the schedule of changefeed {} is {}", schedule.changefeed, schedule.state);
                return Err(MetadataError::conflict(what));
            }
            check_alive(tx, target.capture)?;
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
            ..(**there).clone()
        }),
        _ => Err(MetadataError::transition(format!("{what} {}", target.capture), from, target.state)),
    }
}

fn is_removable(tables: &Tables, changefeed: ChangefeedUuid, version: Version) -> Result<bool> {
    let (Some(schedule), Some(status)) = (tables.schedule(changefeed), tables.status(changefeed)) else {
        return Ok(false);
    };
    tables.readable(Table::ChangefeedState, &changefeed)?;
    Ok(status.state == FeedState::Removed
        && schedule.state == ScheduleState::Removed
        && schedule.version == version
        && live_processors(tables, changefeed) == 0)
}

/// Deletes a changefeed, and its upstream when no other uses it.
fn delete(tx: &mut Tx<'_>, changefeed: ChangefeedUuid) -> Result<()> {
    let upstream: UpstreamId = tx.info(changefeed)?.info.upstream;
    let captures: Vec<_> = processors(tx.tables, changefeed).map(|row| row.capture).collect();
    for capture in captures {
        tx.put_processor((changefeed, capture), None);
    }
    tx.put_schedule(changefeed, None);
    tx.put_info(changefeed, None);
    tx.put_status_row(changefeed, None);
    if tx.tables.upstreams.contains_key(&upstream)
        && !tx.tables.infos.values().any(|row| row.info.upstream == upstream)
    {
        tx.put_upstream(upstream, None);
    }
    Ok(())
}

/// An error unless the capture is offline or absent.
fn check_offline(tx: &Tx<'_>, capture: CaptureId) -> Result<()> {
    match tx.capture_state(capture)? {
        None | Some(CaptureState::Offline) => Ok(()),
        Some(state) => Err(MetadataError::conflict(format!("capture {capture} is {state}, not offline"))),
    }
}
