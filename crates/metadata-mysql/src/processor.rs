//! Processors, as the controller attaches and detaches them, and as the owner gives them work. (Their own word:
//! [`crate::owner`].)

use std::collections::BTreeMap;

use metadata_api::codec::encode_assignment;
use metadata_api::decision::schedule::assign_processors;
use metadata_api::model::{
    CaptureId, ChangefeedSchedule, ChangefeedUuid, ControllerTerm, OwnerTerm, ProcessorAssignment,
    ProcessorEpoch, ProcessorSchedule, ProcessorTarget, Revision, ScheduleState, Version,
};
use metadata_api::store::Authority;
use metadata_api::{MetadataError, Result};

use crate::controller::{alive_captures, not_alive, read_alive};
use crate::feeds::{changefeed_text, feed, read_feeds};
use crate::fence::fence_lock_reading;
use crate::query::processor_rows;
use crate::retry::{TxError, TxResult};
use crate::sql::{Key, Sql, parts, set_column, where_versions};
use crate::tx::Tx;

/// All or nothing, at one revision.
pub(crate) async fn set_processors(
    tx: &mut Tx<'_>,
    term: ControllerTerm,
    changefeed: ChangefeedUuid,
    targets: &[ProcessorTarget],
) -> TxResult<Vec<ProcessorSchedule>> {
    let attached = targets.iter().filter(|target| target.state == ScheduleState::Launched);
    let reads = [read_feeds([changefeed]), read_alive(&attached.map(|target| target.capture).collect())];
    let (revision, [found, alive]) = fence_lock_reading(tx, Authority::Controller(term), reads).await?;
    let (feed, alive) = (feed(&found, changefeed)?, alive_captures(&alive)?);
    let rows = processor_rows(tx, changefeed).await?;
    let rows: BTreeMap<CaptureId, ProcessorSchedule> =
        rows.into_iter().map(|row| (row.capture, row)).collect();
    let mut answers = Vec::with_capacity(targets.len());
    let mut writes = Vec::with_capacity(targets.len());
    for target in targets {
        let row = rows.get(&target.capture);
        let next = decide(&feed.schedule, target, row, revision)?;
        if next.state == ScheduleState::Launched && !alive.contains(&target.capture) {
            return Err(not_alive(target.capture).into());
        }
        writes.push(Write {
            new: row.is_none(),
            assignment: encode_assignment(&next.assignment)?,
            next: next.clone(),
        });
        answers.push(next);
    }
    let (new, old): (Vec<Write>, Vec<Write>) = writes.into_iter().partition(|write| write.new);
    insert(tx, &new).await?;
    update(tx, changefeed, revision, &old).await?;
    if targets.is_empty() {
        tx.discard();
    }
    Ok(answers)
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
    update(tx, term.changefeed, revision, &writes).await?;
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

async fn insert(tx: &mut Tx<'_>, rows: &[Write]) -> TxResult<()> {
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
        sql.execute(tx).await?;
    }
    Ok(())
}

async fn update(
    tx: &mut Tx<'_>,
    changefeed: ChangefeedUuid,
    revision: Revision,
    rows: &[Write],
) -> TxResult<()> {
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
        if sql.execute(tx).await?.rows_affected() != part.len() as u64 {
            return Err(TxError::Moved("a processor"));
        }
    }
    Ok(())
}
