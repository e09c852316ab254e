//! The fence row: BEGIN, lock, check, revision and what is read under it, in one round trip.
//!
//! A transaction that changes what others act on begins here. The row's lock is held until COMMIT, so commits are in
//! revision order (I4), and what only changes under the fence may be read plainly afterwards (I8), even by a statement of
//! the same round trip: the server runs it when the one before it has the lock, and under READ COMMITTED each statement sees
//! what was committed before it.

use metadata_api::MetadataError;
use metadata_api::model::{ControllerEpoch, ControllerTerm, Revision};
use metadata_api::store::Authority;

use crate::retry::{TxResult, first_rows_missing};
use crate::sql::{Answer, Sql};
use crate::tx::Tx;

/// Locks the fence for whoever asks, and takes the next revision.
pub(crate) async fn fence_lock(tx: &mut Tx<'_>) -> TxResult<Revision> {
    Ok(fence_lock_reading(tx, Authority::Operator, []).await?.0)
}

/// Locks the fence with the controller's epoch, and takes the next revision. `Fenced` when the term is over.
pub(crate) async fn fence_lock_as(tx: &mut Tx<'_>, term: ControllerTerm) -> TxResult<Revision> {
    Ok(fence_lock_reading(tx, Authority::Controller(term), []).await?.0)
}

/// Locks the fence in somebody's name, takes the next revision, and reads under the lock: what each of `reads` answered.
pub(crate) async fn fence_lock_reading<const N: usize>(
    tx: &mut Tx<'_>,
    authority: Authority,
    reads: [Sql; N],
) -> TxResult<(Revision, [Answer; N])> {
    fence_lock_taking(tx, authority, 1, reads).await
}

/// The same, with `count` revisions, of which nobody else has any: the one that is given, and those before it.
pub(crate) async fn fence_lock_taking<const N: usize>(
    tx: &mut Tx<'_>,
    authority: Authority,
    count: u64,
    reads: [Sql; N],
) -> TxResult<(Revision, [Answer; N])> {
    let mut sql =
        Sql::new("UPDATE fence SET version = version + 1, revision = LAST_INSERT_ID(GREATEST(revision + ");
    sql.number(count).push(", CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS UNSIGNED))) WHERE id = 1");
    if let Authority::Controller(term) = authority {
        // Epoch 0 means that nobody may write.
        if term.epoch == ControllerEpoch(0) {
            return Err(MetadataError::fenced(term.to_string()).into());
        }
        sql.push(" AND controller_epoch = ").number(term.epoch.0);
    }
    for read in &reads {
        sql.then(read);
    }
    let mut answers = tx.open(&sql, 1 + N).await?.into_iter();
    let (Some(locked), Ok(read)) = (answers.next(), answers.collect::<Vec<_>>().try_into()) else {
        return Err(sqlx::Error::Protocol("an answer to a statement is missing".to_owned()).into());
    };
    match (locked.matched, authority) {
        (0, Authority::Controller(term)) => Err(MetadataError::fenced(term.to_string()).into()),
        (0, Authority::Operator) => Err(first_rows_missing().into()),
        _ => Ok((Revision(locked.last_insert_id), read)),
    }
}
