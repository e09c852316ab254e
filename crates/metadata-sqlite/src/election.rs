//! Who is controller.

use async_trait::async_trait;
use metadata_api::model::{CaptureState, CaptureTerm, ControllerEpoch, ControllerTerm, ElectionRecord};
use metadata_api::store::ElectionStore;
use metadata_api::{MetadataError, Result};

use crate::SqliteStore;
use crate::capture::capture_state;
use crate::fence;
use crate::rows::stored;
use crate::tx::{Tx, TxResult};

#[async_trait]
impl ElectionStore for SqliteStore {
    #[tracing::instrument(name = "election.campaign", skip_all, fields(capture = %capture.capture))]
    async fn election_campaign(
        &self,
        capture: CaptureTerm,
        observed: &ElectionRecord,
    ) -> Result<ControllerTerm> {
        self.run_tx("election.campaign", |tx| {
            Box::pin(async move {
                fence::take(tx).await?;
                match capture_state(tx, capture.capture).await? {
                    Some(CaptureState::Alive) => {}
                    Some(state) => {
                        return Err(fence::capture_gone(capture.capture, &format!("is {state}")).into());
                    }
                    None => return Err(fence::capture_gone(capture.capture, "has no row").into()),
                }
                let epoch = ControllerEpoch(observed.epoch.0.saturating_add(1));
                acquire(tx, capture, observed, epoch).await?;
                fence::set_controller(tx, epoch).await?;
                Ok(ControllerTerm { capture: capture.capture, epoch })
            })
        })
        .await
    }

    #[tracing::instrument(name = "election.resign", skip_all, fields(capture = %term.capture, epoch = %term.epoch))]
    async fn election_resign(&self, term: ControllerTerm) -> Result<()> {
        self.run_tx("election.resign", |tx| {
            Box::pin(async move {
                fence::take_as_controller(tx, term).await?;
                if !vacate(tx, Some(term)).await? {
                    return Err(MetadataError::fenced(format!("{term} is over")).into());
                }
                fence::set_controller(tx, ControllerEpoch(0)).await
            })
        })
        .await
    }
}

/// Takes the lease that was observed.
async fn acquire(
    tx: &mut Tx<'_>,
    capture: CaptureTerm,
    observed: &ElectionRecord,
    epoch: ControllerEpoch,
) -> TxResult<()> {
    let leader = capture.capture.to_string();
    let former = observed.leader.map(|former| former.to_string());
    let (epoch, former_epoch, lease_seq) =
        (stored(epoch.0), stored(observed.epoch.0), stored(observed.lease_seq));
    let done = sqlx::query!(
        "UPDATE election
         SET leader_id = ?, controller_epoch = ?, lease_seq = lease_seq + 1, cooldown = NULL,
             version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE id = 1 AND leader_id IS ? AND controller_epoch = ? AND lease_seq = ?",
        leader,
        epoch,
        former,
        former_epoch,
        lease_seq
    )
    .execute(tx.db())
    .await?;
    if done.rows_affected() == 0 {
        return Err(MetadataError::conflict("the election moved since it was observed").into());
    }
    Ok(())
}

/// Takes the lease from `term`, or from whoever holds it, and says whether anybody did. The fence is held.
pub(crate) async fn vacate(tx: &mut Tx<'_>, term: Option<ControllerTerm>) -> TxResult<bool> {
    let leader = term.map(|term| term.capture.to_string());
    let epoch = term.map(|term| stored(term.epoch.0));
    let done = sqlx::query!(
        "UPDATE election
         SET cooldown = leader_id, leader_id = NULL,
             version = version + 1, update_at = CURRENT_TIMESTAMP
         WHERE id = 1 AND leader_id IS NOT NULL AND leader_id = COALESCE(?, leader_id)
               AND controller_epoch = COALESCE(?, controller_epoch)",
        leader,
        epoch
    )
    .execute(tx.db())
    .await?;
    Ok(done.rows_affected() > 0)
}
