//! [`ControllerStore`]: what only the controller does. Each write begins with the fence, by its epoch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

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
use sqlx::{FromRow, Row as _, query, query_as, query_scalar};

use crate::MysqlStore;
use crate::capture::{delete_capture, is_named, lock_capture, seal_progress};
use crate::feeds::{
    Feed, ScheduleWrite, changefeed_text, feeds, free_names, no_changefeed, read_feeds, write_schedules,
};
use crate::fence::{fence_lock_as, fence_lock_reading};
use crate::group::{Call, Key, apart};
use crate::processor::{self, ProcessorTargets, set_processors};
use crate::retry::{TxError, TxResult};
use crate::rows::{BeatRow, CAPTURE, CaptureRow, SCHEDULE, ScheduleRow, decode_all, progress_value};
use crate::sql::{Answer, Batch, Sql};
use crate::tx::Tx;

/// What the planner wants to know of `changefeed_info`.
#[derive(FromRow)]
struct PlannedRow {
    uuid: u64,
    removed: bool,
    placement: Option<String>,
}

/// One changefeed of a snapshot, of its rows.
fn snapshot_feed(
    schedule: ScheduleRow,
    planned: &PlannedRow,
    state: &str,
    live: i64,
) -> Result<SnapshotChangefeed> {
    Ok(SnapshotChangefeed {
        state: Cell::new("changefeed_state", &planned.uuid, "state").parse(state)?,
        removed: planned.removed,
        live_processors: u32::try_from(live).unwrap_or(u32::MAX),
        placement: Placement::from_text(planned.placement.as_deref()),
        schedule: schedule.try_into()?,
    })
}

/// What the planner sees. Each table is read by itself and put together here: a join of three tables takes the server three times as
/// long.
async fn snapshot(tx: &mut Tx<'_>) -> TxResult<ScheduleSnapshot> {
    let mut captures = Sql::new(CAPTURE);
    captures.push(" ORDER BY id");
    let infos = Sql::new(
        "SELECT i.uuid, i.removed_at IS NOT NULL AS removed, CASE WHEN i.config NOT LIKE '%\"placement\"%' THEN NULL \
         WHEN JSON_VALID(i.config) THEN CAST(JSON_EXTRACT(i.config, '$.placement') AS CHAR) \
         ELSE 'damaged' END AS placement FROM changefeed_info i",
    );
    let processors = Sql::new(
        "SELECT changefeed_uuid, COUNT(*) AS live FROM processor WHERE state <> 'removed' GROUP BY changefeed_uuid",
    );
    let mut schedules = Sql::new("SELECT ");
    schedules.push(SCHEDULE).push(" FROM schedule s ORDER BY s.changefeed_uuid");
    let reads = [
        Sql::new("SELECT revision FROM fence WHERE id = 1"),
        captures,
        infos,
        processors,
        Sql::new("SELECT changefeed_uuid, state FROM changefeed_state"),
        schedules,
    ];
    let mut revision = None;
    let mut snapshot = ScheduleSnapshot::default();
    let mut planned: HashMap<u64, PlannedRow> = HashMap::new();
    let mut live: HashMap<u64, i64> = HashMap::new();
    let mut states: HashMap<u64, String> = HashMap::new();
    Sql::read_moment(tx, &reads, |statement, row| {
        match statement {
            0 => revision = Some(Revision(row.try_get(0)?)),
            1 => snapshot.captures.push(CaptureRow::from_row(row)?.try_into()?),
            2 => {
                let row = PlannedRow::from_row(row)?;
                planned.insert(row.uuid, row);
            }
            3 => drop(live.insert(row.try_get(0)?, row.try_get(1)?)),
            4 => {
                let (changefeed, state) = FromRow::from_row(row)?;
                states.insert(changefeed, state);
            }
            _ => {
                let schedule = ScheduleRow::from_row(row)?;
                let key = schedule.changefeed_uuid;
                if let (Some(row), Some(state)) = (planned.remove(&key), states.remove(&key)) {
                    let live = live.remove(&key).unwrap_or(0);
                    snapshot.add(ChangefeedUuid(key), snapshot_feed(schedule, &row, &state, live))?;
                }
            }
        }
        Ok(())
    })
    .await?;
    snapshot.revision = revision.ok_or(sqlx::Error::RowNotFound)?;
    Ok(snapshot)
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

/// What the controller sets in one call.
pub(crate) struct Targets {
    term: ControllerTerm,
    targets: Vec<ScheduleTarget>,
}

impl Call for Targets {
    type Answer = Vec<Result<ChangefeedSchedule>>;

    fn keys(&self) -> Vec<Key> {
        self.targets.iter().map(|target| Key::Changefeed(target.changefeed.0)).collect()
    }

    fn may_join(&self, first: &Self) -> bool {
        self.term == first.term
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

/// The same for calls of one term.
async fn set_all_owners(
    tx: &mut Tx<'_>,
    calls: &[Arc<Targets>],
) -> TxResult<Vec<Result<Vec<Result<ChangefeedSchedule>>>>> {
    let Some(first) = calls.first() else { return Ok(Vec::new()) };
    let all: Vec<ScheduleTarget> = calls.iter().flat_map(|call| call.targets.iter().copied()).collect();
    let answers = set_owners(tx, first.term, &all).await?;
    Ok(apart(answers, calls.iter().map(|call| call.targets.len())))
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

/// The first `limit` schedules that name the capture, and whether they are removed; those that do not decode are passed over.
async fn owned_by(
    tx: &mut Tx<'_>,
    capture: CaptureId,
    limit: usize,
) -> TxResult<Vec<(ChangefeedSchedule, bool)>> {
    let mut owned = Vec::with_capacity(limit);
    let mut after = None;
    loop {
        let mut sql = Sql::new("SELECT ");
        sql.push(SCHEDULE)
            .push(
                ", i.removed_at IS NOT NULL AS removed FROM schedule s \
                 JOIN changefeed_info i ON i.uuid = s.changefeed_uuid WHERE s.owner = ",
            )
            .uuid(capture.0);
        if let Some(after) = after {
            sql.push(" AND s.changefeed_uuid > ").number(after);
        }
        sql.push(" ORDER BY s.changefeed_uuid LIMIT ").number(limit as u64);
        let rows: Vec<TakenRow> = sql.fetch(tx).await?;
        let found = rows.len();
        after = rows.last().map(|row| row.schedule.changefeed_uuid);
        for row in rows {
            match ChangefeedSchedule::try_from(row.schedule) {
                Ok(schedule) => owned.push((schedule, row.removed)),
                Err(error) => {
                    tracing::debug!(%capture, %error, "a schedule cannot be taken from an offline capture")
                }
            }
        }
        owned.truncate(limit);
        if found < limit || owned.len() == limit {
            return Ok(owned);
        }
    }
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
    let mut freed = Vec::new();
    let mut writes = Vec::with_capacity(limit);
    for (schedule, removed) in owned_by(tx, capture, limit).await? {
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
        let targets = Targets { term, targets: targets.to_vec() };
        let group = &self.groups.owner_set;
        group.commit(&self.runner, targets, |tx, calls| Box::pin(set_all_owners(tx, calls))).await
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
        let call = ProcessorTargets { term, changefeed, targets: targets.to_vec() };
        let group = &self.groups.processor_set;
        group.commit(&self.runner, call, |tx, calls| Box::pin(set_processors(tx, calls))).await
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
