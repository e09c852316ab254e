//! Changefeeds, as every transaction under the fence reads and writes them: all that it needs in one plain read, together with
//! the lock; then versioned updates of many rows, one statement a table, together too.
//!
//! A plain read is enough: schedules, removal, and whether a changefeed may run change only under the fence. The one
//! thing that an owner writes without it is how a running changefeed is doing; a state row that moved between read and
//! write gives [`TxError::Moved`], and the transaction runs again.

use std::collections::BTreeMap;

use metadata_api::codec::encode_error;
use metadata_api::model::{
    CaptureId, ChangefeedSchedule, ChangefeedStatus, ChangefeedUuid, FeedState, OwnerEpoch, OwnerTerm,
    Revision, ScheduleState, Version,
};
use metadata_api::store::Authority;
use metadata_api::{MetadataError, Result};
use sqlx::FromRow;

use crate::fence::fence_lock_reading;
use crate::query::processor_rows;
use crate::retry::TxResult;
use crate::rows::{SCHEDULE, STATE, ScheduleRow, StateRow};
use crate::sql::{Answer, Batch, Key, Sql, optional, parts, set_column, where_versions};
use crate::tx::Tx;

/// A changefeed's schedule and state.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    pub(crate) schedule: ChangefeedSchedule,
    pub(crate) status: ChangefeedStatus,
    /// Whether an operator removed it.
    pub(crate) removed: bool,
}

#[derive(FromRow)]
pub(crate) struct FeedRow {
    #[sqlx(flatten)]
    schedule: ScheduleRow,
    #[sqlx(flatten)]
    status: StateRow,
    removed: bool,
}

impl TryFrom<FeedRow> for Feed {
    type Error = MetadataError;

    fn try_from(row: FeedRow) -> Result<Self> {
        Ok(Self { schedule: row.schedule.try_into()?, status: row.status.try_into()?, removed: row.removed })
    }
}

/// `SELECT` and `FROM` of [`FeedRow`].
pub(crate) fn select_feeds() -> Sql {
    let mut sql = Sql::new("SELECT ");
    sql.push(SCHEDULE).push(", ").push(STATE).push(
        ", i.removed_at IS NOT NULL AS removed FROM schedule s \
         JOIN changefeed_info i ON i.uuid = s.changefeed_uuid \
         JOIN changefeed_state t ON t.changefeed_uuid = s.changefeed_uuid",
    );
    sql
}

/// Reads `which`. To be asked under the fence.
pub(crate) fn read_feeds(which: impl IntoIterator<Item = ChangefeedUuid>) -> Sql {
    let mut sql = select_feeds();
    sql.push(" WHERE s.changefeed_uuid IN (").numbers(which.into_iter().map(|uuid| uuid.0)).push(")");
    sql
}

/// What [`read_feeds`] found, each decoded on its own, so that one that does not decode stops no other.
pub(crate) fn feeds(answer: &Answer) -> TxResult<BTreeMap<ChangefeedUuid, Result<Feed>>> {
    let rows: Vec<FeedRow> = answer.rows()?;
    Ok(rows
        .into_iter()
        .map(|row| (ChangefeedUuid(row.schedule.changefeed_uuid), Feed::try_from(row)))
        .collect())
}

/// The one changefeed that was asked for. `NotFound` when there is none.
pub(crate) fn feed(answer: &Answer, changefeed: ChangefeedUuid) -> TxResult<Feed> {
    match feeds(answer)?.remove(&changefeed) {
        Some(feed) => Ok(feed?),
        None => Err(no_changefeed(changefeed).into()),
    }
}

/// Locks the fence in somebody's name, and reads a changefeed under it. `NotFound` when there is none.
pub(crate) async fn lock_feed(
    tx: &mut Tx<'_>,
    authority: Authority,
    changefeed: ChangefeedUuid,
) -> TxResult<(Revision, Feed)> {
    let (revision, [found]) = fence_lock_reading(tx, authority, [read_feeds([changefeed])]).await?;
    Ok((revision, feed(&found, changefeed)?))
}

/// The error for a changefeed that is not there.
pub(crate) fn no_changefeed(changefeed: ChangefeedUuid) -> MetadataError {
    MetadataError::not_found(changefeed_text(changefeed))
}

/// What errors call a changefeed.
pub(crate) fn changefeed_text(changefeed: ChangefeedUuid) -> String {
    format!("changefeed {changefeed}")
}

/// Whether `term` holds on this schedule.
pub(crate) fn check_owner(schedule: &ChangefeedSchedule, term: OwnerTerm) -> Result<()> {
    if schedule.term() == Some(term) && schedule.state != ScheduleState::Removed {
        Ok(())
    } else {
        Err(MetadataError::fenced(term.to_string()))
    }
}

/// What a schedule row is to become.
pub(crate) struct ScheduleWrite {
    pub(crate) changefeed: ChangefeedUuid,
    /// The version it was read with.
    pub(crate) version: Version,
    pub(crate) owner: Option<CaptureId>,
    pub(crate) state: ScheduleState,
    pub(crate) epoch: OwnerEpoch,
    /// A new task position, encoded; `None` = it stays.
    pub(crate) task_position: Option<String>,
}

impl ScheduleWrite {
    /// The row as it is, to be changed.
    pub(crate) fn of(schedule: &ChangefeedSchedule) -> Self {
        Self {
            changefeed: schedule.changefeed,
            version: schedule.version,
            owner: schedule.owner,
            state: schedule.state,
            epoch: schedule.epoch,
            task_position: None,
        }
    }

    /// Its owner is told to stop.
    pub(crate) fn removing(schedule: &ChangefeedSchedule) -> Self {
        Self { state: ScheduleState::Removing, ..Self::of(schedule) }
    }

    /// Nobody owns it any more.
    pub(crate) fn removed(schedule: &ChangefeedSchedule, task_position: Option<String>) -> Self {
        Self { state: ScheduleState::Removed, owner: None, task_position, ..Self::of(schedule) }
    }
}

/// Writes schedules at `revision`, all or none.
pub(crate) fn write_schedules(batch: &mut Batch, revision: Revision, writes: &[ScheduleWrite]) {
    let key =
        Key { column: "changefeed_uuid", write: |sql, row: &ScheduleWrite| sql.number(row.changefeed.0) };
    for part in parts(writes, |row| row.task_position.as_ref().map_or(0, String::len)) {
        let mut sql = Sql::new("UPDATE schedule SET ");
        set_column(
            &mut sql,
            "owner",
            &key,
            part,
            |row| row.owner,
            |sql, owner| optional(sql, owner.as_ref(), |sql, owner| sql.uuid(owner.0)),
        );
        sql.push(", ");
        set_column(
            &mut sql,
            "owner_state",
            &key,
            part,
            |row| row.state,
            |sql, state| sql.push("'").push(state.as_str()).push("'"),
        );
        sql.push(", ");
        set_column(&mut sql, "owner_epoch", &key, part, |row| row.epoch, |sql, epoch| sql.number(epoch.0));
        if part.iter().any(|row| row.task_position.is_some()) {
            sql.push(", ");
            let of = |row: &ScheduleWrite| row.task_position.clone();
            set_column(&mut sql, "task_position", &key, part, of, |sql, position| match position {
                Some(position) => sql.text(position),
                None => sql.push("task_position"),
            });
        }
        sql.push(", revision = ").number(revision.0).push(", version = version + 1");
        where_versions(&mut sql, &key, part, |row| row.version.0);
        batch.expect(sql, part.len(), "a schedule");
    }
}

/// Writes state rows, all or none. Each has the version it was read with; the write moves it.
pub(crate) fn write_statuses(batch: &mut Batch, statuses: &[ChangefeedStatus]) -> Result<()> {
    struct Write {
        changefeed: ChangefeedUuid,
        version: Version,
        state: FeedState,
        warning: Option<String>,
        error: Option<String>,
    }
    let mut writes = Vec::with_capacity(statuses.len());
    for status in statuses {
        writes.push(Write {
            changefeed: status.changefeed,
            version: status.version,
            state: status.state,
            warning: encode_error("warning", status.warning.as_ref())?,
            error: encode_error("error", status.error.as_ref())?,
        });
    }
    let key = Key { column: "changefeed_uuid", write: |sql, row: &Write| sql.number(row.changefeed.0) };
    let size = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    for part in parts(&writes, |row| size(&row.warning) + size(&row.error)) {
        let mut sql = Sql::new("UPDATE changefeed_state SET ");
        set_column(
            &mut sql,
            "state",
            &key,
            part,
            |row| row.state,
            |sql, state| sql.push("'").push(state.as_str()).push("'"),
        );
        sql.push(", ");
        set_column(&mut sql, "warning", &key, part, |row| row.warning.clone(), nullable);
        sql.push(", ");
        set_column(&mut sql, "error", &key, part, |row| row.error.clone(), nullable);
        sql.push(", version = version + 1");
        where_versions(&mut sql, &key, part, |row| row.version.0);
        batch.expect(sql, part.len(), "a changefeed's state");
    }
    Ok(())
}

#[expect(clippy::ref_option, reason = "how `set_column` hands out a value")]
fn nullable<'a>(sql: &'a mut Sql, text: &Option<String>) -> &'a mut Sql {
    optional(sql, text.as_ref(), |sql, text| sql.text(text))
}

/// Whether a processor of it is not `Removed`. To be asked under the fence.
pub(crate) async fn is_carried(tx: &mut Tx<'_>, changefeed: ChangefeedUuid) -> TxResult<bool> {
    let rows = processor_rows(tx, changefeed).await?;
    Ok(rows.iter().any(|row| row.state != ScheduleState::Removed))
}

/// Frees the names of removed changefeeds whose schedule is `Removed` now, but for those that somebody still carries a part
/// of: they are free when the changefeed is cleaned up.
pub(crate) fn free_names(batch: &mut Batch, which: impl IntoIterator<Item = ChangefeedUuid>) {
    let mut which = which.into_iter().peekable();
    if which.peek().is_none() {
        return;
    }
    let mut sql =
        Sql::new("UPDATE changefeed_info SET removed_marker = uuid, version = version + 1 WHERE uuid IN (");
    sql.numbers(which.map(|uuid| uuid.0)).push(") AND removed_at IS NOT NULL AND removed_marker = 0");
    sql.push(
        " AND NOT EXISTS (SELECT 1 FROM processor p WHERE p.changefeed_uuid = changefeed_info.uuid \
         AND p.state <> 'removed')",
    );
    batch.add(sql);
}
