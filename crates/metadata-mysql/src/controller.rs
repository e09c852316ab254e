//! [`ControllerStore`]: what only the controller does. Each write begins with the fence, by its epoch.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use metadata_api::codec::{Cell, check_batch, encode_position};
use metadata_api::decision::schedule::{ScheduledChangefeed, check_schedule_state};
use metadata_api::model::{
    CaptureBeat, CaptureId, CaptureState, ChangefeedProgress, ChangefeedSchedule, ChangefeedUuid,
    ControllerTerm, OwnerEpoch, Placement, ProcessorSchedule, ProcessorTarget, Revision, ScheduleSnapshot,
    ScheduleState, ScheduleTarget, SnapshotChangefeed, Version,
};
use metadata_api::store::{Authority, ControllerStore, MAX_BATCH};
use metadata_api::{MetadataError, Result};
use sqlx::{FromRow, query, query_as, query_scalar};

use crate::MysqlStore;
use crate::capture::{delete_capture, is_named, lock_capture, seal_progress};
use crate::feeds::{
    Feed, ScheduleWrite, changefeed_text, feeds, free_names, no_changefeed, read_feeds, write_schedules,
};
use crate::fence::{fence_lock_as, fence_lock_reading};
use crate::processor::{self, set_processors};
use crate::retry::{TxError, TxResult};
use crate::rows::{BeatRow, CAPTURE, CaptureRow, SCHEDULE, ScheduleRow, decode_all, progress_value};
use crate::sql::{Answer, Batch, Sql};
use crate::tx::Tx;

/// What the planner sees of a changefeed.
#[derive(FromRow)]
struct SnapshotRow {
    #[sqlx(flatten)]
    schedule: ScheduleRow,
    feed_state: String,
    removed: bool,
    live_processors: i64,
    placement: Option<String>,
}

impl TryFrom<SnapshotRow> for SnapshotChangefeed {
    type Error = MetadataError;

    fn try_from(row: SnapshotRow) -> Result<Self> {
        let cell = Cell::new("changefeed_state", &row.schedule.changefeed_uuid, "state");
        Ok(Self {
            state: cell.parse(&row.feed_state)?,
            removed: row.removed,
            live_processors: u32::try_from(row.live_processors).unwrap_or(u32::MAX),
            placement: Placement::from_text(row.placement.as_deref()),
            schedule: row.schedule.try_into()?,
        })
    }
}

async fn snapshot(tx: &mut Tx<'_>) -> TxResult<ScheduleSnapshot> {
    let revision = query_scalar!("SELECT revision FROM fence WHERE id = 1").fetch_one(&mut **tx).await?;
    let mut sql = Sql::new(CAPTURE);
    sql.push(" ORDER BY id");
    let captures = decode_all(sql.fetch::<CaptureRow>(tx).await?)?;
    let mut sql = Sql::new("SELECT ");
    sql.push(SCHEDULE).push(
        ", t.state AS feed_state, i.removed_at IS NOT NULL AS removed, COALESCE(p.live, 0) AS live_processors, \
         CASE WHEN i.config NOT LIKE '%\"placement\"%' THEN NULL \
         WHEN JSON_VALID(i.config) THEN CAST(JSON_EXTRACT(i.config, '$.placement') AS CHAR) \
         ELSE 'damaged' END AS placement \
         FROM schedule s JOIN changefeed_info i ON i.uuid = s.changefeed_uuid \
         JOIN changefeed_state t ON t.changefeed_uuid = s.changefeed_uuid \
         LEFT JOIN (SELECT changefeed_uuid, COUNT(*) AS live FROM processor WHERE state <> 'removed' \
         GROUP BY changefeed_uuid) p ON p.changefeed_uuid = s.changefeed_uuid ORDER BY s.changefeed_uuid",
    );
    let changefeeds = decode_all(sql.fetch::<SnapshotRow>(tx).await?)?;
    Ok(ScheduleSnapshot { revision: Revision(revision), captures, changefeeds })
}

/// Asks which of `captures` are alive. Under the fence they stay so.
pub(crate) fn read_alive(captures: &BTreeSet<CaptureId>) -> Sql {
    let mut sql = Sql::new("SELECT id FROM capture WHERE state = 'alive' AND id IN (");
    sql.uuids(captures.iter().map(|capture| capture.0)).push(")");
    sql
}

/// What [`read_alive`] found.
pub(crate) fn alive_captures(answer: &Answer) -> TxResult<BTreeSet<CaptureId>> {
    let rows: Vec<(String,)> = answer.rows()?;
    let mut alive = BTreeSet::new();
    for (id,) in rows {
        alive.insert(Cell::new("capture", &id, "id").parse(&id)?);
    }
    Ok(alive)
}

/// The error for a capture that gets no new work.
pub(crate) fn not_alive(capture: CaptureId) -> MetadataError {
    MetadataError::conflict(format!("capture {capture} is not alive"))
}

/// A target that can never be right is refused before it is compared with anything.
fn check_target(target: &ScheduleTarget) -> Result<()> {
    match (target.state, target.owner) {
        (ScheduleState::Launched, None) => {
            Err(MetadataError::invalid("owner", "a launch needs a capture to launch on"))
        }
        (ScheduleState::Launched | ScheduleState::Removing, _) => Ok(()),
        (ScheduleState::Removed, _) => Err(MetadataError::invalid(
            "state",
            "`removed` is written by the owner, or by sealing its capture",
        )),
    }
}

/// What `target` makes of `feed`, or why it is refused.
fn decide(
    target: &ScheduleTarget,
    feed: &Feed,
    alive: &BTreeSet<CaptureId>,
    revision: Revision,
) -> Result<ChangefeedSchedule> {
    let schedule = &feed.schedule;
    if schedule.version != target.expected_version {
        return Err(MetadataError::conflict(format!(
            "the schedule of {} has version {}, not {}",
            changefeed_text(target.changefeed),
            schedule.version,
            target.expected_version
        )));
    }
    let launch = target.state == ScheduleState::Launched;
    let next = ChangefeedSchedule {
        owner: target.owner.or(schedule.owner),
        state: target.state,
        epoch: if launch { OwnerEpoch(revision.0) } else { schedule.epoch },
        revision,
        version: Version(schedule.version.0 + 1),
        ..schedule.clone()
    };
    check_schedule_state(&ScheduledChangefeed::from(schedule), &ScheduledChangefeed::from(&next))?;
    if launch && (feed.removed || !feed.status.state.is_runnable()) {
        return Err(MetadataError::conflict(format!(
            "{} is {} and is not launched",
            changefeed_text(target.changefeed),
            feed.status.state
        )));
    }
    match target.owner {
        Some(capture) if launch && !alive.contains(&capture) => Err(not_alive(capture)),
        _ => Ok(next),
    }
}

async fn set_owners(
    tx: &mut Tx<'_>,
    term: ControllerTerm,
    targets: &[ScheduleTarget],
) -> TxResult<Vec<Result<ChangefeedSchedule>>> {
    let launches = targets.iter().filter(|target| target.state == ScheduleState::Launched);
    let wanted = launches.filter_map(|target| target.owner).collect();
    let reads = [read_feeds(targets.iter().map(|target| target.changefeed)), read_alive(&wanted)];
    let (revision, [found, alive]) = fence_lock_reading(tx, Authority::Controller(term), reads).await?;
    let (mut feeds, alive) = (feeds(&found)?, alive_captures(&alive)?);
    let mut answers = Vec::with_capacity(targets.len());
    let mut writes = BTreeMap::new();
    for target in targets {
        let answer = check_target(target).and_then(|()| {
            let feed = feeds.remove(&target.changefeed).ok_or_else(|| no_changefeed(target.changefeed))??;
            let next = decide(target, &feed, &alive, revision)?;
            let write = ScheduleWrite { version: feed.schedule.version, ..ScheduleWrite::of(&next) };
            writes.insert(target.changefeed, write);
            Ok(next)
        });
        answers.push(answer);
    }
    if writes.is_empty() {
        tx.discard();
    }
    let writes: Vec<_> = writes.into_values().collect();
    let mut batch = Batch::default();
    write_schedules(&mut batch, revision, &writes);
    batch.send(tx).await?;
    Ok(answers)
}

/// What cleanup reads of a changefeed that nothing holds any more.
#[derive(FromRow)]
struct DoomedRow {
    uuid: u64,
    upstream_id: u64,
    schedule_version: u64,
}

/// `from IN (keys)`.
fn delete(from: &'static str, keys: impl Iterator<Item = u64>) -> Sql {
    let mut sql = Sql::new(from);
    sql.push(" IN (").numbers(keys).push(")");
    sql
}

async fn cleanup(
    tx: &mut Tx<'_>,
    term: ControllerTerm,
    targets: &[(ChangefeedUuid, Version)],
) -> TxResult<u64> {
    fence_lock_as(tx, term).await?;
    let expected: BTreeMap<u64, u64> = targets.iter().map(|(uuid, version)| (uuid.0, version.0)).collect();
    let mut sql = Sql::new(
        "SELECT i.uuid, i.upstream_id, s.version AS schedule_version FROM changefeed_info i \
         JOIN schedule s ON s.changefeed_uuid = i.uuid \
         WHERE i.removed_at IS NOT NULL AND s.owner_state = 'removed' AND NOT EXISTS (SELECT 1 FROM processor p \
         WHERE p.changefeed_uuid = i.uuid AND p.state <> 'removed') AND i.uuid IN (",
    );
    sql.numbers(expected.keys().copied()).push(") ORDER BY i.uuid");
    let mut doomed: Vec<DoomedRow> = sql.fetch(tx).await?;
    doomed.retain(|row| expected.get(&row.uuid) == Some(&row.schedule_version));
    if doomed.is_empty() {
        tx.discard();
        return Ok(0);
    }
    let uuids = || doomed.iter().map(|row| row.uuid);
    // Every upstream has a user until its last one is cleaned up, so no others need to be looked for. Who uses one changes
    // only under the fence, and the subquery goes by its index: a list of users would be a scan of the whole index.
    let upstreams: BTreeSet<u64> = doomed.iter().map(|row| row.upstream_id).collect();
    let mut sql = delete("DELETE FROM upstream WHERE id", upstreams.into_iter());
    sql.push(" AND NOT EXISTS (SELECT 1 FROM changefeed_info i WHERE i.upstream_id = upstream.id AND i.uuid NOT IN (");
    sql.numbers(uuids()).push("))");
    sql.execute(tx).await?;
    let mut schedules =
        delete("DELETE FROM schedule WHERE owner_state = 'removed' AND changefeed_uuid", uuids());
    schedules.push(" AND version = CASE changefeed_uuid");
    for row in &doomed {
        schedules.push(" WHEN ").number(row.uuid).push(" THEN ").number(row.schedule_version);
    }
    schedules.push(" END");
    if schedules.execute(tx).await?.rows_affected() != doomed.len() as u64 {
        return Err(TxError::Moved("a schedule"));
    }
    // In one round trip, under the fence.
    let mut sql = delete("DELETE FROM processor WHERE changefeed_uuid", uuids());
    sql.push("; DELETE FROM changefeed_info WHERE uuid IN (").numbers(uuids());
    sql.push("); DELETE FROM changefeed_state WHERE changefeed_uuid IN (").numbers(uuids()).push(")");
    sql.execute(tx).await?;
    Ok(doomed.len() as u64)
}

async fn seal(tx: &mut Tx<'_>, term: ControllerTerm, capture: CaptureId, judged_seq: u64) -> TxResult<bool> {
    let (revision, state) = lock_capture(tx, Authority::Controller(term), capture).await?;
    match state {
        None | Some(CaptureState::Offline) => {
            tx.discard();
            return Ok(true);
        }
        Some(CaptureState::Alive | CaptureState::Draining) => {}
    }
    let done = query!(
        "UPDATE capture SET state = 'offline', revision = ?, version = version + 1 \
         WHERE id = ? AND heartbeat_seq = ? AND state <> 'offline'",
        revision.0,
        capture.to_string(),
        judged_seq
    )
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 0 {
        tx.discard();
        return Ok(false);
    }
    seal_progress(tx, capture).await?;
    Ok(true)
}

/// A schedule that is taken from a sealed capture.
#[derive(FromRow)]
struct TakenRow {
    #[sqlx(flatten)]
    schedule: ScheduleRow,
    removed: bool,
}

async fn release(tx: &mut Tx<'_>, term: ControllerTerm, capture: CaptureId, limit: usize) -> TxResult<usize> {
    let (revision, state) = lock_capture(tx, Authority::Controller(term), capture).await?;
    match state {
        Some(CaptureState::Offline) => {}
        // Its progress may not have been sealed.
        None => seal_progress(tx, capture).await?,
        Some(state) => {
            let what =
                format!("capture {capture} is {state}, and nothing is taken from it unless it is offline");
            return Err(MetadataError::conflict(what).into());
        }
    }
    let value = query_scalar!("SELECT value FROM progress WHERE capture_id = ?", capture.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    let progress = value.map(|value| progress_value(capture, &value)).transpose()?.unwrap_or_default();
    let mut sql = Sql::new("SELECT ");
    sql.push(SCHEDULE)
        .push(
            ", i.removed_at IS NOT NULL AS removed FROM schedule s \
             JOIN changefeed_info i ON i.uuid = s.changefeed_uuid WHERE s.owner = ",
        )
        .uuid(capture.0)
        .push(" ORDER BY s.changefeed_uuid LIMIT ")
        .number(limit as u64);
    let rows: Vec<TakenRow> = sql.fetch(tx).await?;
    let mut freed = Vec::new();
    let mut writes = Vec::with_capacity(rows.len());
    for row in rows {
        let removed = row.removed;
        let schedule = ChangefeedSchedule::try_from(row.schedule)?;
        if removed {
            freed.push(schedule.changefeed);
        }
        let further: Option<ChangefeedProgress> = progress
            .0
            .get(&schedule.changefeed)
            .filter(|entry| entry.owner_epoch == schedule.epoch)
            .map(|entry| schedule.task_position.clone().further(entry.progress.clone()))
            .filter(|position| *position != schedule.task_position);
        let further = further.map(|position| encode_position("task_position", &position)).transpose()?;
        writes.push(ScheduleWrite::removed(&schedule, further));
    }
    let mut batch = Batch::default();
    write_schedules(&mut batch, revision, &writes);
    batch.send(tx).await?;
    let taken = writes.len();
    let processors = release_processors(tx, revision, capture, limit.saturating_sub(taken)).await?;
    let mut batch = Batch::default();
    free_names(&mut batch, freed);
    batch.send(tx).await?;
    if taken + processors == 0 {
        tx.discard();
    }
    Ok(taken + processors)
}

async fn release_processors(
    tx: &mut Tx<'_>,
    revision: Revision,
    capture: CaptureId,
    limit: usize,
) -> TxResult<usize> {
    if limit == 0 {
        return Ok(0);
    }
    let uuids = query_scalar!(
        "SELECT changefeed_uuid FROM processor WHERE capture_id = ? AND state <> 'removed' \
         ORDER BY changefeed_uuid LIMIT ?",
        capture.to_string(),
        limit as u64
    )
    .fetch_all(&mut **tx)
    .await?;
    if uuids.is_empty() {
        return Ok(0);
    }
    let mut sql = Sql::new("UPDATE processor SET state = 'removed', version = version + 1, revision = ");
    sql.number(revision.0).push(" WHERE state <> 'removed' AND capture_id = ").uuid(capture.0);
    sql.push(" AND changefeed_uuid IN (").numbers(uuids.iter().copied()).push(")");
    if sql.execute(tx).await?.rows_affected() != uuids.len() as u64 {
        return Err(TxError::Moved("a processor"));
    }
    Ok(uuids.len())
}

#[async_trait]
impl ControllerStore for MysqlStore {
    #[tracing::instrument(name = "controller.snapshot", skip_all)]
    async fn schedule_snapshot(&self) -> Result<ScheduleSnapshot> {
        self.runner.snapshot("controller.snapshot", |tx| Box::pin(async move { snapshot(tx).await })).await
    }

    #[tracing::instrument(name = "controller.beats", level = "debug", skip_all)]
    async fn capture_beats(&self) -> Result<Vec<CaptureBeat>> {
        self.runner
            .read("controller.beats", |tx| {
                Box::pin(async move {
                    let rows = query_as!(BeatRow, "SELECT id, state, heartbeat_seq FROM capture ORDER BY id")
                        .fetch_all(&mut **tx)
                        .await?;
                    Ok(decode_all(rows)?)
                })
            })
            .await
    }

    #[tracing::instrument(name = "controller.owner_set", skip_all, fields(%term, targets = targets.len()))]
    async fn owner_set(
        &self,
        term: ControllerTerm,
        targets: &[ScheduleTarget],
    ) -> Result<Vec<Result<ChangefeedSchedule>>> {
        check_batch("targets", targets.iter().map(|target| target.changefeed))?;
        self.runner
            .tx("controller.owner_set", |tx| Box::pin(async move { set_owners(tx, term, targets).await }))
            .await
    }

    #[tracing::instrument(name = "controller.processor_set", skip_all, fields(%term, %changefeed))]
    async fn processor_set(
        &self,
        term: ControllerTerm,
        changefeed: ChangefeedUuid,
        targets: &[ProcessorTarget],
    ) -> Result<Vec<ProcessorSchedule>> {
        check_batch("targets", targets.iter().map(|target| target.capture))?;
        targets.iter().try_for_each(processor::check_target)?;
        self.runner
            .tx("controller.processor_set", |tx| {
                Box::pin(async move { set_processors(tx, term, changefeed, targets).await })
            })
            .await
    }

    #[tracing::instrument(name = "controller.cleanup", skip_all, fields(%term, targets = targets.len()))]
    async fn changefeed_cleanup(
        &self,
        term: ControllerTerm,
        targets: &[(ChangefeedUuid, Version)],
    ) -> Result<u64> {
        check_batch("targets", targets.iter().map(|(changefeed, _)| *changefeed))?;
        self.runner
            .tx("controller.cleanup", |tx| Box::pin(async move { cleanup(tx, term, targets).await }))
            .await
    }

    #[tracing::instrument(name = "controller.seal", skip_all, fields(%term, %capture, judged_seq))]
    async fn capture_seal(&self, term: ControllerTerm, capture: CaptureId, judged_seq: u64) -> Result<bool> {
        self.runner
            .tx("controller.seal", |tx| Box::pin(async move { seal(tx, term, capture, judged_seq).await }))
            .await
    }

    #[tracing::instrument(name = "controller.release", skip_all, fields(%term, %capture, limit))]
    async fn capture_release(&self, term: ControllerTerm, capture: CaptureId, limit: usize) -> Result<usize> {
        if !(1..=MAX_BATCH).contains(&limit) {
            return Err(MetadataError::invalid("limit", format!("{limit} is not from 1 to {MAX_BATCH}")));
        }
        self.runner
            .tx("controller.release", |tx| Box::pin(async move { release(tx, term, capture, limit).await }))
            .await
    }

    #[tracing::instrument(name = "controller.capture_delete", skip_all, fields(%term, %capture))]
    async fn capture_delete(&self, term: ControllerTerm, capture: CaptureId) -> Result<()> {
        self.runner
            .tx("controller.capture_delete", |tx| {
                Box::pin(async move {
                    let (_, state) = lock_capture(tx, Authority::Controller(term), capture).await?;
                    match state {
                        None => {
                            tx.discard();
                            return Ok(());
                        }
                        Some(CaptureState::Offline) => {}
                        Some(state) => {
                            let what = format!("capture {capture} is {state}, not offline");
                            return Err(MetadataError::conflict(what).into());
                        }
                    }
                    if is_named(tx, capture).await? {
                        let what = format!("a schedule or a processor still names capture {capture}");
                        return Err(MetadataError::conflict(what).into());
                    }
                    delete_capture(tx, capture).await
                })
            })
            .await
    }
}
