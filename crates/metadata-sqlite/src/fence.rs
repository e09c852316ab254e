//! The tokens: the first statement of each write that others act on.
//!
//! The fence row is a queue. Locking it, checking the controller's epoch and allocating the revision is one statement.

use metadata_api::model::{
    CaptureId, ChangefeedSchedule, ControllerEpoch, ControllerTerm, OwnerTerm, Revision, ScheduleState,
};
use metadata_api::store::Authority;
use metadata_api::{MetadataError, Result};

use crate::rows::{id, schedule_query, stored};
use crate::tx::{Tx, TxResult};

/// Locks the fence and allocates a revision, whoever leads.
pub(crate) async fn take(tx: &mut Tx<'_>) -> TxResult<Revision> {
    let revision = sqlx::query_scalar!(
        r#"UPDATE fence SET revision = MAX(revision + 1, CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
                  version = version + 1, update_at = CURRENT_TIMESTAMP
           WHERE id = 1
           RETURNING revision AS "revision!: i64""#
    )
    .fetch_optional(tx.db())
    .await?;
    Ok(Revision(id(revision.ok_or_else(missing_row)?)))
}

/// The same as controller. Epoch 0 is nobody's: it stands in the row while nobody leads.
pub(crate) async fn take_as_controller(tx: &mut Tx<'_>, term: ControllerTerm) -> TxResult<Revision> {
    let epoch = stored(term.epoch.0);
    let revision = sqlx::query_scalar!(
        r#"UPDATE fence SET revision = MAX(revision + 1, CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
                  version = version + 1, update_at = CURRENT_TIMESTAMP
           WHERE id = 1 AND controller_epoch = ? AND controller_epoch <> 0
           RETURNING revision AS "revision!: i64""#,
        epoch
    )
    .fetch_optional(tx.db())
    .await?;
    match revision {
        Some(revision) => Ok(Revision(id(revision))),
        None => Err(MetadataError::fenced(format!("{term} is over")).into()),
    }
}

/// The same in the name of `authority`.
pub(crate) async fn take_as(tx: &mut Tx<'_>, authority: Authority) -> TxResult<Revision> {
    match authority {
        Authority::Operator => take(tx).await,
        Authority::Controller(term) => take_as_controller(tx, term).await,
    }
}

/// Says which controller epoch may write from now on; 0 = none. The fence is held.
pub(crate) async fn set_controller(tx: &mut Tx<'_>, epoch: ControllerEpoch) -> TxResult<()> {
    let epoch = stored(epoch.0);
    sqlx::query!("UPDATE fence SET controller_epoch = ? WHERE id = 1", epoch).execute(tx.db()).await?;
    Ok(())
}

/// Locks the schedule row of a launch, and gives it.
pub(crate) async fn lock_owner(tx: &mut Tx<'_>, term: OwnerTerm) -> TxResult<ChangefeedSchedule> {
    let uuid = stored(term.changefeed.0);
    let row = schedule_query!("WHERE changefeed_uuid = ?", uuid).fetch_optional(tx.db()).await?;
    let schedule = row.map(ChangefeedSchedule::try_from).transpose()?;
    Ok(check_owner(term, schedule)?)
}

/// The schedule, if `term` holds.
pub(crate) fn check_owner(
    term: OwnerTerm,
    schedule: Option<ChangefeedSchedule>,
) -> Result<ChangefeedSchedule> {
    match schedule {
        Some(schedule)
            if schedule.state != ScheduleState::Removed
                && schedule.owner == Some(term.capture)
                && schedule.epoch == term.epoch =>
        {
            Ok(schedule)
        }
        _ => Err(MetadataError::fenced(format!("{term} is over"))),
    }
}

/// Why a write of a capture found no row of its own to write.
pub(crate) fn capture_gone(capture: CaptureId, reason: &str) -> MetadataError {
    MetadataError::fenced(format!("capture {capture} {reason}"))
}

/// One of the rows that the migrations insert is not there.
pub(crate) fn missing_row() -> MetadataError {
    MetadataError::corrupt("fence", 1, "id", "the row that the migrations wrote is gone")
}
