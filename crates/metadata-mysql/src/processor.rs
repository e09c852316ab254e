//! Processors, as the controller attaches and detaches them, and as the owner gives them work. (Their own word:
//! [`crate::owner`].)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metadata_api::codec::encode_assignment;
use metadata_api::decision::schedule::assign_processors;
use metadata_api::model::{
    CaptureId, ChangefeedSchedule, ChangefeedUuid, ControllerTerm, OwnerTerm, ProcessorAssignment,
    ProcessorEpoch, ProcessorSchedule, ProcessorTarget, Revision, ScheduleState, Version,
};
use metadata_api::store::Authority;
use metadata_api::{MetadataError, Result};

use crate::controller::{alive_captures, not_alive, read_alive};
use crate::feeds::{Feed, changefeed_text, feeds, no_changefeed, read_feeds};
use crate::fence::fence_lock_reading;
use crate::group::{self, Call};
use crate::query::processor_rows;
use crate::retry::TxResult;
use crate::rows::{ProcessorRow, decode_all};
use crate::sql::{Batch, Key, Sql, parts, set_column, where_versions};
use crate::tx::Tx;

/// What the controller attaches to and detaches from one changefeed: all or nothing.
pub(crate) struct ProcessorTargets {
    pub(crate) term: ControllerTerm,
    pub(crate) changefeed: ChangefeedUuid,
    pub(crate) targets: Vec<ProcessorTarget>,
}

impl Call for ProcessorTargets {
    type Answer = Vec<ProcessorSchedule>;

    fn keys(&self) -> Vec<group::Key> {
        vec![group::Key::Changefeed(self.changefeed.0)]
    }

    fn may_join(&self, first: &Self) -> bool {
        self.term == first.term
    }

    fn text(&self) -> usize {
        const ROW: usize = 256;
        self.targets.iter().map(|target| target.assignment.0.to_string().len() + ROW).sum()
    }
}

/// Those of one term, at one revision, each applied or refused on its own.
pub(crate) async fn set_processors(
    tx: &mut Tx<'_>,
    calls: &[Arc<ProcessorTargets>],
) -> TxResult<Vec<Result<Vec<ProcessorSchedule>>>> {
    let Some(first) = calls.first() else { return Ok(Vec::new()) };
    let targets = calls.iter().flat_map(|call| &call.targets);
    let attached = targets.filter(|target| target.state == ScheduleState::Launched);
    let changefeeds = || calls.iter().map(|call| call.changefeed);
    let mut rows = Sql::new(
        "SELECT changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment, revision, version \
         FROM processor WHERE changefeed_uuid IN (",
    );
    rows.numbers(changefeeds().map(|uuid| uuid.0)).push(")");
    let reads =
        [read_feeds(changefeeds()), read_alive(&attached.map(|target| target.capture).collect()), rows];
    let authority = Authority::Controller(first.term);
    let (revision, [found, alive, rows]) = fence_lock_reading(tx, authority, reads).await?;
    let (mut found, alive) = (feeds(&found)?, alive_captures(&alive)?);
    let mut rows_of: BTreeMap<u64, Vec<ProcessorRow>> = BTreeMap::new();
    for row in rows.rows::<ProcessorRow>()? {
        rows_of.entry(row.changefeed_uuid).or_default().push(row);
    }
    let mut batch = Batch::default();
    let mut answers = Vec::with_capacity(calls.len());
    for call in calls {
        let (feed, rows) = (found.remove(&call.changefeed), rows_of.remove(&call.changefeed.0));
        let decided = decide_all(call, feed, rows.unwrap_or_default(), &alive, revision);
        answers.push(decided.map(|writes| {
            let answer = writes.iter().map(|write| write.next.clone()).collect();
            let (new, old): (Vec<Write>, Vec<Write>) = writes.into_iter().partition(|write| write.new);
            insert(&mut batch, &new);
            update(&mut batch, call.changefeed, revision, &old);
            answer
        }));
    }
    if batch.is_empty() {
        tx.discard();
    }
    batch.send(tx).await?;
    Ok(answers)
}

/// What all of one call's targets make of their rows, or why none is applied.
fn decide_all(
    call: &ProcessorTargets,
    feed: Option<Result<Feed>>,
    rows: Vec<ProcessorRow>,
    alive: &BTreeSet<CaptureId>,
    revision: Revision,
) -> Result<Vec<Write>> {
    let feed = feed.unwrap_or_else(|| Err(no_changefeed(call.changefeed)))?;
    let rows: Vec<ProcessorSchedule> = decode_all(rows)?;
    let rows: BTreeMap<CaptureId, ProcessorSchedule> =
        rows.into_iter().map(|row| (row.capture, row)).collect();
    let write = |target: &ProcessorTarget| {
        let row = rows.get(&target.capture);
        let next = decide(&feed.schedule, target, row, revision)?;
        if next.state == ScheduleState::Launched && !alive.contains(&target.capture) {
            return Err(not_alive(target.capture));
        }
        Ok(Write { new: row.is_none(), assignment: encode_assignment(&next.assignment)?, next })
    };
    call.targets.iter().map(write).collect()
}

/// What the owner of `term` gives its processors. The fence and the term are held.
pub(crate) async fn assign(
    tx: &mut Tx<'_>,
    term: OwnerTerm,
    seen: &BTreeMap<CaptureId, Version>,
    assignments: &BTreeMap<CaptureId, ProcessorAssignment>,
    revision: Revision,
) -> TxResult<Vec<ProcessorSchedule>> {
    let rows = processor_rows(tx, term.changefeed).await?;
    let rows = assign_processors(&rows, term.epoch, seen, assignments, revision)?;
    let write = |row: &ProcessorSchedule| {
        Ok(Write { new: false, assignment: encode_assignment(&row.assignment)?, next: row.clone() })
    };
    let writes = rows.iter().map(write).collect::<Result<Vec<_>>>()?;
    let mut batch = Batch::default();
    update(&mut batch, term.changefeed, revision, &writes);
    batch.send(tx).await?;
    Ok(rows)
}

struct Write {
    next: ProcessorSchedule,
    assignment: String,
    new: bool,
}

/// A target that can never be right is refused before anything is read.
pub(crate) fn check_target(target: &ProcessorTarget) -> Result<()> {
    match (target.state, target.expected_version) {
        (ScheduleState::Removed, _) => Err(MetadataError::invalid(
            "state",
            "`removed` is written by the processor, or by sealing its capture",
        )),
        (ScheduleState::Removing, None) => {
            Err(MetadataError::invalid("expected_version", "what is to be detached has a version"))
        }
        (ScheduleState::Launched | ScheduleState::Removing, _) => {
            encode_assignment(&target.assignment).map(drop)
        }
    }
}

/// What `target` makes of a processor's row, or why it is refused.
fn decide(
    schedule: &ChangefeedSchedule,
    target: &ProcessorTarget,
    row: Option<&ProcessorSchedule>,
    revision: Revision,
) -> Result<ProcessorSchedule> {
    let what = || format!("the processor of {} on {}", changefeed_text(schedule.changefeed), target.capture);
    let version = row.map(|row| row.version);
    if version != target.expected_version {
        let text = |version: Option<Version>| {
            version.map_or("no row".to_owned(), |version| format!("version {version}"))
        };
        return Err(MetadataError::conflict(format!(
            "{} has {}, not {}",
            what(),
            text(version),
            text(target.expected_version)
        )));
    }
    let state = row.map_or(ScheduleState::Removed, |row| row.state);
    match (state, target.state, row) {
        (ScheduleState::Removed, ScheduleState::Launched, _) => {
            if schedule.state != ScheduleState::Launched {
                return Err(MetadataError::conflict(format!(
                    "the schedule of {} is {}, not launched",
                    changefeed_text(schedule.changefeed),
                    schedule.state
                )));
            }
            Ok(ProcessorSchedule {
                changefeed: schedule.changefeed,
                capture: target.capture,
                state: ScheduleState::Launched,
                owner_epoch: schedule.epoch,
                epoch: ProcessorEpoch(revision.0),
                assignment: target.assignment.clone(),
                revision,
                version: Version(version.map_or(1, |version| version.0 + 1)),
            })
        }
        (ScheduleState::Launched, ScheduleState::Removing, Some(row)) => Ok(ProcessorSchedule {
            state: ScheduleState::Removing,
            revision,
            version: Version(row.version.0 + 1),
            ..row.clone()
        }),
        _ => Err(MetadataError::transition(what(), state, target.state)),
    }
}

fn insert(batch: &mut Batch, rows: &[Write]) {
    for part in parts(rows, |row| row.assignment.len()) {
        let mut sql = Sql::new(
            "INSERT INTO processor (changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment, revision) VALUES ",
        );
        sql.list(part, |sql, row| {
            sql.push("(").number(row.next.changefeed.0).push(", ").uuid(row.next.capture.0);
            sql.push(", '").push(row.next.state.as_str()).push("', ").number(row.next.owner_epoch.0);
            sql.push(", ").number(row.next.epoch.0).push(", ").text(&row.assignment);
            sql.push(", ").number(row.next.revision.0).push(")")
        });
        batch.add(sql);
    }
}

fn update(batch: &mut Batch, changefeed: ChangefeedUuid, revision: Revision, rows: &[Write]) {
    let key = Key { column: "capture_id", write: |sql, row: &Write| sql.uuid(row.next.capture.0) };
    for part in parts(rows, |row| row.assignment.len()) {
        let mut sql = Sql::new("UPDATE processor SET ");
        set_column(
            &mut sql,
            "state",
            &key,
            part,
            |row| row.next.state,
            |sql, state| sql.push("'").push(state.as_str()).push("'"),
        );
        sql.push(", ");
        let epoch = |row: &Write| row.next.owner_epoch.0;
        set_column(&mut sql, "owner_epoch", &key, part, epoch, |sql, epoch| sql.number(*epoch));
        sql.push(", ");
        let epoch = |row: &Write| row.next.epoch.0;
        set_column(&mut sql, "epoch", &key, part, epoch, |sql, epoch| sql.number(*epoch));
        sql.push(", ");
        let assignment = |row: &Write| row.assignment.clone();
        set_column(&mut sql, "assignment", &key, part, assignment, |sql, text| sql.text(text));
        sql.push(", revision = ").number(revision.0).push(", version = version + 1");
        where_versions(&mut sql, &key, part, |row| row.next.version.0 - 1);
        sql.push(" AND changefeed_uuid = ").number(changefeed.0);
        batch.expect(sql, part.len(), "a processor");
    }
}
