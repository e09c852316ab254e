//! Batches: few statements for up to 500 changefeeds, under the fence. A list is one JSON array, which `json_each` takes
//! apart.

use std::collections::HashMap;

use metadata_api::codec::{Cell, encode_assignment, encode_error, encode_position};
use metadata_api::model::{
    CaptureId, CaptureProgress, CaptureState, ChangefeedProgress, ChangefeedSchedule, ChangefeedStatus,
    ChangefeedUuid, FeedState, ProcessorSchedule, Revision, ScheduleState, Version,
};
use metadata_api::{MetadataError, Result};
use serde_json::{Value, json};

use crate::rows::{BeatRow, ScheduleRow, StatusRow, id, json_captures, json_uuids, stored};
use crate::tx::{Tx, TxResult};
use crate::writes::expect_rows;

/// A schedule row with its changefeed's state, locked.
pub(crate) struct Locked {
    pub(crate) schedule: ChangefeedSchedule,
    pub(crate) state: FeedState,
}

struct LockedRow {
    changefeed_uuid: i64,
    owner: Option<String>,
    owner_state: String,
    owner_epoch: i64,
    task_position: String,
    revision: i64,
    version: i64,
    state: String,
}

impl LockedRow {
    fn key(&self) -> ChangefeedUuid {
        ChangefeedUuid(id(self.changefeed_uuid))
    }
}

impl TryFrom<LockedRow> for Locked {
    type Error = MetadataError;

    fn try_from(row: LockedRow) -> Result<Self> {
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
        Ok(Self { schedule, state })
    }
}

macro_rules! locked_query {
    ($rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            LockedRow,
            r#"SELECT s.changefeed_uuid AS "changefeed_uuid!: i64", s.owner AS "owner?: String",
                      s.owner_state AS "owner_state!: String", s.owner_epoch AS "owner_epoch!: i64",
                      s.task_position AS "task_position!: String", s.revision AS "revision!: i64",
                      s.version AS "version!: i64", f.state AS "state!: String"
               FROM schedule s JOIN changefeed_state f ON f.changefeed_uuid = s.changefeed_uuid "# + $rest
            $(, $argument)*
        )
    };
}

/// Locks the schedules of `changefeeds`, in the order of their uuids; those that are not there are left out. Each is
/// decoded on its own, so that one that does not decode stops no other.
pub(crate) async fn lock_schedules(
    tx: &mut Tx<'_>,
    changefeeds: impl Iterator<Item = ChangefeedUuid>,
) -> TxResult<HashMap<ChangefeedUuid, Result<Locked>>> {
    let uuids = json_uuids(changefeeds);
    let rows = locked_query!(
        "WHERE s.changefeed_uuid IN (SELECT value FROM json_each(?)) ORDER BY s.changefeed_uuid",
        uuids
    )
    .fetch_all(tx.db())
    .await?;
    Ok(rows.into_iter().map(|row| (row.key(), Locked::try_from(row))).collect())
}

/// The first `limit` schedules that name the capture, and whether they are removed; those that do not decode are passed over.
pub(crate) async fn owned_by(
    tx: &mut Tx<'_>,
    capture: CaptureId,
    limit: usize,
) -> TxResult<Vec<(ChangefeedSchedule, bool)>> {
    let (key, page) = (capture.to_string(), i64::try_from(limit).unwrap_or(i64::MAX));
    let mut owned = Vec::with_capacity(limit);
    let mut after = i64::MIN;
    loop {
        let rows = sqlx::query!(
            r#"SELECT s.changefeed_uuid AS "changefeed_uuid!: i64", s.owner AS "owner?: String",
                      s.owner_state AS "owner_state!: String", s.owner_epoch AS "owner_epoch!: i64",
                      s.task_position AS "task_position!: String", s.revision AS "revision!: i64",
                      s.version AS "version!: i64", i.removed_at IS NOT NULL AS "removed!: bool"
               FROM schedule s JOIN changefeed_info i ON i.uuid = s.changefeed_uuid
               WHERE s.owner = ? AND s.owner_state <> 'removed' AND s.changefeed_uuid > ?
               ORDER BY s.changefeed_uuid LIMIT ?"#,
            key,
            after,
            page
        )
        .fetch_all(tx.db())
        .await?;
        let found = rows.len();
        for row in rows {
            after = row.changefeed_uuid;
            let schedule = ChangefeedSchedule::try_from(ScheduleRow {
                changefeed_uuid: row.changefeed_uuid,
                owner: row.owner,
                owner_state: row.owner_state,
                owner_epoch: row.owner_epoch,
                task_position: row.task_position,
                revision: row.revision,
                version: row.version,
            });
            match schedule {
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

/// Locks the states of `changefeeds`, each decoded on its own.
pub(crate) async fn lock_statuses(
    tx: &mut Tx<'_>,
    changefeeds: impl Iterator<Item = ChangefeedUuid>,
) -> TxResult<HashMap<ChangefeedUuid, Result<ChangefeedStatus>>> {
    let uuids = json_uuids(changefeeds);
    let rows: Vec<StatusRow> = crate::rows::status_query!(
        "WHERE changefeed_uuid IN (SELECT value FROM json_each(?)) ORDER BY changefeed_uuid",
        uuids
    )
    .fetch_all(tx.db())
    .await?;
    let decoded = |row: StatusRow| (ChangefeedUuid(id(row.changefeed_uuid)), ChangefeedStatus::try_from(row));
    Ok(rows.into_iter().map(decoded).collect())
}

/// The states of captures: a plain read under the held fence, since every change of them takes it.
pub(crate) async fn capture_states(
    tx: &mut Tx<'_>,
    captures: impl Iterator<Item = CaptureId>,
) -> TxResult<HashMap<CaptureId, CaptureState>> {
    let captures = json_captures(captures);
    let rows = sqlx::query_as!(
        BeatRow,
        "SELECT id, state, heartbeat_seq FROM capture WHERE id IN (SELECT value FROM json_each(?))",
        captures
    )
    .fetch_all(tx.db())
    .await?;
    let mut states = HashMap::with_capacity(rows.len());
    for row in rows {
        let beat = metadata_api::model::CaptureBeat::try_from(row)?;
        states.insert(beat.id, beat.state);
    }
    Ok(states)
}

/// A capture's progress, sealed or not; `None` when it has no row.
pub(crate) async fn progress_of(tx: &mut Tx<'_>, capture: CaptureId) -> TxResult<Option<CaptureProgress>> {
    let key = capture.to_string();
    let value = sqlx::query_scalar!("SELECT value FROM progress WHERE capture_id = ?", key)
        .fetch_optional(tx.db())
        .await?;
    Ok(Cell::new("progress", &capture, "value").json_opt(value.as_deref())?)
}

/// Writes launches and removals: each schedule with the version that its row must still have.
pub(crate) async fn set_owners(
    tx: &mut Tx<'_>,
    orders: &[(Version, ChangefeedSchedule)],
    revision: Revision,
) -> TxResult<()> {
    let of = |state: ScheduleState| -> Vec<Value> {
        orders
            .iter()
            .filter(|(_, new)| new.state == state)
            .map(|(expected, new)| {
                let owner = new.owner.map(|owner| owner.to_string());
                json!([stored(new.changefeed.0), stored(expected.0), owner])
            })
            .collect()
    };
    let revision = stored(revision.0);
    let launches = of(ScheduleState::Launched);
    if !launches.is_empty() {
        let (rows, launches) = (launches.len(), Value::from(launches).to_string());
        let done = sqlx::query!(
            "UPDATE schedule
             SET owner = t.owner, owner_state = 'launched', owner_epoch = ?1, revision = ?1, version = version + 1,
                 update_at = CURRENT_TIMESTAMP
             FROM (SELECT value ->> 0 AS uuid, value ->> 1 AS expected, value ->> 2 AS owner FROM json_each(?2)) t
             WHERE schedule.changefeed_uuid = t.uuid AND schedule.version = t.expected
                   AND schedule.owner_state = 'removed'",
            revision,
            launches
        )
        .execute(tx.db())
        .await?;
        expect_rows(&done, rows, "schedule")?;
    }
    let removals = of(ScheduleState::Removing);
    if !removals.is_empty() {
        let (rows, removals) = (removals.len(), Value::from(removals).to_string());
        let done = sqlx::query!(
            "UPDATE schedule
             SET owner_state = 'removing', revision = ?, version = version + 1, update_at = CURRENT_TIMESTAMP
             FROM (SELECT value ->> 0 AS uuid, value ->> 1 AS expected FROM json_each(?)) t
             WHERE schedule.changefeed_uuid = t.uuid AND schedule.version = t.expected
                   AND schedule.owner_state = 'launched'",
            revision,
            removals
        )
        .execute(tx.db())
        .await?;
        expect_rows(&done, rows, "schedule")?;
    }
    Ok(())
}

/// A schedule that is to be `Removed`, and the task position it is left with.
pub(crate) struct Release {
    schedule: ChangefeedSchedule,
    /// The new position, encoded; `None` = it stays.
    position: Option<String>,
}

impl Release {
    /// # Errors
    /// `InvalidArgument` when the position does not fit.
    pub(crate) fn new(schedule: ChangefeedSchedule, position: &ChangefeedProgress) -> Result<Self> {
        let position = if *position == schedule.task_position {
            None
        } else {
            Some(encode_position("task_position", position)?)
        };
        Ok(Self { schedule, position })
    }
}

/// Writes releases: each where (owner, epoch) are still the ones that were read.
pub(crate) async fn release(tx: &mut Tx<'_>, releases: &[Release], revision: Revision) -> TxResult<()> {
    if releases.is_empty() {
        return Ok(());
    }
    let list: Vec<Value> = releases
        .iter()
        .map(|release| {
            let owner = release.schedule.owner.map(|owner| owner.to_string());
            let (uuid, epoch) = (stored(release.schedule.changefeed.0), stored(release.schedule.epoch.0));
            json!([uuid, owner, epoch, release.position])
        })
        .collect();
    let (list, revision) = (Value::from(list).to_string(), stored(revision.0));
    let done = sqlx::query!(
        "UPDATE schedule
         SET task_position = COALESCE(t.position, task_position), owner = NULL, owner_state = 'removed', revision = ?,
             version = version + 1, update_at = CURRENT_TIMESTAMP
         FROM (SELECT value ->> 0 AS uuid, value ->> 1 AS owner, value ->> 2 AS epoch, value ->> 3 AS position
               FROM json_each(?)) t
         WHERE schedule.changefeed_uuid = t.uuid AND schedule.owner = t.owner AND schedule.owner_epoch = t.epoch
               AND schedule.owner_state IN ('launched', 'removing')",
        revision,
        list
    )
    .execute(tx.db())
    .await?;
    Ok(expect_rows(&done, releases.len(), "schedule")?)
}

/// Writes states, each where its row still has the version that `new` was read with.
pub(crate) async fn write_statuses(tx: &mut Tx<'_>, new: &[ChangefeedStatus]) -> TxResult<()> {
    if new.is_empty() {
        return Ok(());
    }
    let mut list = Vec::with_capacity(new.len());
    for status in new {
        let warning = encode_error("warning", status.warning.as_ref())?;
        let error = encode_error("error", status.error.as_ref())?;
        let (uuid, version) = (stored(status.changefeed.0), stored(status.version.0));
        list.push(json!([uuid, version, status.state.as_str(), warning, error]));
    }
    let list = Value::from(list).to_string();
    let done = sqlx::query!(
        "UPDATE changefeed_state
         SET state = t.state, warning = t.warning, error = t.error, version = version + 1, update_at = CURRENT_TIMESTAMP
         FROM (SELECT value ->> 0 AS uuid, value ->> 1 AS expected, value ->> 2 AS state, value ->> 3 AS warning,
                      value ->> 4 AS error
               FROM json_each(?)) t
         WHERE changefeed_state.changefeed_uuid = t.uuid AND changefeed_state.version = t.expected",
        list
    )
    .execute(tx.db())
    .await?;
    Ok(expect_rows(&done, new.len(), "changefeed_state")?)
}

/// Writes processors as they are to be. Those with version 1 are new rows; the others must be one version behind.
pub(crate) async fn set_processors(tx: &mut Tx<'_>, processors: &[ProcessorSchedule]) -> TxResult<()> {
    let mut inserts = Vec::new();
    let mut updates = Vec::new();
    for new in processors {
        let list = if new.version == Version(1) { &mut inserts } else { &mut updates };
        list.push(json!([
            stored(new.changefeed.0),
            new.capture.to_string(),
            new.state.as_str(),
            stored(new.owner_epoch.0),
            stored(new.epoch.0),
            encode_assignment(&new.assignment)?,
            stored(new.revision.0),
            stored(new.version.0),
        ]));
    }
    if !inserts.is_empty() {
        let list = Value::from(inserts).to_string();
        sqlx::query!(
            "INSERT INTO processor (changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment, revision)
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
             FROM json_each(?)",
            list
        )
        .execute(tx.db())
        .await?;
    }
    if !updates.is_empty() {
        let (rows, list) = (updates.len(), Value::from(updates).to_string());
        let done = sqlx::query!(
            "UPDATE processor
             SET state = t.state, owner_epoch = t.owner_epoch, epoch = t.epoch, assignment = t.assignment,
                 revision = t.revision, version = t.version, update_at = CURRENT_TIMESTAMP
             FROM (SELECT value ->> 0 AS uuid, value ->> 1 AS capture, value ->> 2 AS state, value ->> 3 AS owner_epoch,
                          value ->> 4 AS epoch, value ->> 5 AS assignment, value ->> 6 AS revision,
                          value ->> 7 AS version
                   FROM json_each(?)) t
             WHERE processor.changefeed_uuid = t.uuid AND processor.capture_id = t.capture
                   AND processor.version = t.version - 1",
            list
        )
        .execute(tx.db())
        .await?;
        expect_rows(&done, rows, "processor")?;
    }
    Ok(())
}

/// Takes up to `limit` processors from a capture that is sealed, and says how many.
pub(crate) async fn release_processors(
    tx: &mut Tx<'_>,
    capture: CaptureId,
    limit: usize,
    revision: Revision,
) -> TxResult<usize> {
    let (key, revision) = (capture.to_string(), stored(revision.0));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let done = sqlx::query!(
        "UPDATE processor
         SET state = 'removed', revision = ?1, version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE capture_id = ?2 AND state <> 'removed' AND changefeed_uuid IN (
             SELECT changefeed_uuid FROM processor WHERE capture_id = ?2 AND state <> 'removed'
             ORDER BY changefeed_uuid LIMIT ?3)",
        revision,
        key,
        limit
    )
    .execute(tx.db())
    .await?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}

/// Those of `targets` that may be deleted: removed, the schedule `Removed` with the given version, and no processor left.
pub(crate) async fn removable(
    tx: &mut Tx<'_>,
    targets: &[(ChangefeedUuid, Version)],
) -> TxResult<Vec<(ChangefeedUuid, Version)>> {
    let list = versioned(targets);
    let rows = sqlx::query!(
        r#"SELECT s.changefeed_uuid AS "uuid!: i64", s.version AS "version!: i64"
           FROM (SELECT value ->> 0 AS uuid, value ->> 1 AS expected FROM json_each(?)) t
           JOIN schedule s ON s.changefeed_uuid = t.uuid AND s.version = t.expected AND s.owner_state = 'removed'
           JOIN changefeed_state f ON f.changefeed_uuid = s.changefeed_uuid AND f.state = 'removed'
           WHERE NOT EXISTS (
               SELECT 1 FROM processor p WHERE p.changefeed_uuid = s.changefeed_uuid AND p.state <> 'removed')"#,
        list
    )
    .fetch_all(tx.db())
    .await?;
    let number = |stored: i64| stored.cast_unsigned();
    Ok(rows.into_iter().map(|row| (ChangefeedUuid(number(row.uuid)), Version(number(row.version)))).collect())
}

/// Deletes changefeeds, and the upstreams that only they used. The fence is held, so no other can begin to use one.
pub(crate) async fn delete_changefeeds(
    tx: &mut Tx<'_>,
    changefeeds: &[(ChangefeedUuid, Version)],
) -> TxResult<()> {
    let uuids = json_uuids(changefeeds.iter().map(|(uuid, _)| *uuid));
    sqlx::query!(
        "DELETE FROM upstream
         WHERE id IN (SELECT upstream_id FROM changefeed_info WHERE uuid IN (SELECT value FROM json_each(?1)))
               AND NOT EXISTS (SELECT 1 FROM changefeed_info other WHERE other.upstream_id = upstream.id
                               AND other.uuid NOT IN (SELECT value FROM json_each(?1)))",
        uuids
    )
    .execute(tx.db())
    .await?;
    let list = versioned(changefeeds);
    let done = sqlx::query!(
        "DELETE FROM schedule
         WHERE owner_state = 'removed' AND (changefeed_uuid, version) IN (
             SELECT value ->> 0, value ->> 1 FROM json_each(?))",
        list
    )
    .execute(tx.db())
    .await?;
    expect_rows(&done, changefeeds.len(), "schedule")?;
    sqlx::query!("DELETE FROM processor WHERE changefeed_uuid IN (SELECT value FROM json_each(?))", uuids)
        .execute(tx.db())
        .await?;
    sqlx::query!("DELETE FROM changefeed_info WHERE uuid IN (SELECT value FROM json_each(?))", uuids)
        .execute(tx.db())
        .await?;
    sqlx::query!(
        "DELETE FROM changefeed_state WHERE changefeed_uuid IN (SELECT value FROM json_each(?))",
        uuids
    )
    .execute(tx.db())
    .await?;
    Ok(())
}

fn versioned(list: &[(ChangefeedUuid, Version)]) -> String {
    let pairs = list.iter().map(|(uuid, version)| json!([stored(uuid.0), stored(version.0)]));
    pairs.collect::<Value>().to_string()
}
