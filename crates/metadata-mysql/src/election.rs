//! [`ElectionStore`]: who is controller.
//!
//! `election` says who holds the lease and under which epoch; `fence` says which epoch may write now. They change
//! together, under the fence's lock.

use async_trait::async_trait;
use metadata_api::model::{
    CaptureId, CaptureState, CaptureTerm, ControllerEpoch, ControllerTerm, ElectionRecord,
};
use metadata_api::store::{Authority, ElectionStore};
use metadata_api::{MetadataError, Result};
use sqlx::query;

use crate::MysqlStore;
use crate::capture::{capture_state, lock_capture};
use crate::fence::fence_lock_as;
use crate::query::election_row;
use crate::retry::TxResult;
use crate::tx::Tx;

/// Takes the lease from `leader`: no leader, fence epoch 0, cooldown = `leader`.
pub(crate) async fn vacate(tx: &mut Tx<'_>, leader: CaptureId) -> TxResult<bool> {
    let id = leader.to_string();
    let done = query!(
        "UPDATE election SET leader_id = NULL, cooldown = ?, version = version + 1 \
         WHERE id = 1 AND leader_id = ?",
        id,
        id
    )
    .execute(&mut **tx)
    .await?;
    set_fence_epoch(tx, ControllerEpoch(0)).await?;
    Ok(done.rows_affected() != 0)
}

async fn set_fence_epoch(tx: &mut Tx<'_>, epoch: ControllerEpoch) -> TxResult<()> {
    query!("UPDATE fence SET controller_epoch = ? WHERE id = 1", epoch.0).execute(&mut **tx).await?;
    Ok(())
}

fn check_observed(now: &ElectionRecord, observed: &ElectionRecord) -> Result<()> {
    let key = |record: &ElectionRecord| (record.leader, record.epoch, record.lease_seq);
    if key(now) == key(observed) {
        Ok(())
    } else {
        Err(MetadataError::conflict(format!(
            "the lease is not the one that was observed: it is at epoch {}, sequence {}",
            now.epoch, now.lease_seq
        )))
    }
}

fn check_alive(capture: CaptureTerm, state: Option<CaptureState>) -> Result<()> {
    match state {
        Some(CaptureState::Alive) => Ok(()),
        Some(state) => {
            Err(MetadataError::fenced(format!("capture {} is {state} and cannot lead", capture.capture)))
        }
        None => Err(MetadataError::fenced(format!("capture {} has no row", capture.capture))),
    }
}

#[async_trait]
impl ElectionStore for MysqlStore {
    #[tracing::instrument(name = "election.campaign", skip_all, fields(capture = %capture.capture))]
    async fn election_campaign(
        &self,
        capture: CaptureTerm,
        observed: &ElectionRecord,
    ) -> Result<ControllerTerm> {
        // A plain look first: those who come too late do not queue for the fence.
        self.runner
            .read("election.look", |tx| {
                Box::pin(async move {
                    check_observed(&election_row(tx).await?, observed)?;
                    Ok(check_alive(capture, capture_state(tx, capture.capture).await?)?)
                })
            })
            .await?;
        self.runner
            .tx("election.campaign", |tx| {
                Box::pin(async move {
                    let (_, state) = lock_capture(tx, Authority::Operator, capture.capture).await?;
                    check_alive(capture, state)?;
                    let epoch = ControllerEpoch(observed.epoch.0.saturating_add(1));
                    let done = query!(
                        "UPDATE election SET leader_id = ?, controller_epoch = ?, lease_seq = lease_seq + 1, \
                         cooldown = NULL, version = version + 1 \
                         WHERE id = 1 AND leader_id <=> ? AND controller_epoch = ? AND lease_seq = ?",
                        capture.capture.to_string(),
                        epoch.0,
                        observed.leader.map(|leader| leader.to_string()),
                        observed.epoch.0,
                        observed.lease_seq
                    )
                    .execute(&mut **tx)
                    .await?;
                    if done.rows_affected() == 0 {
                        check_observed(&election_row(tx).await?, observed)?;
                        return Err(
                            MetadataError::conflict("the lease moved while it was being taken").into()
                        );
                    }
                    set_fence_epoch(tx, epoch).await?;
                    Ok(ControllerTerm { capture: capture.capture, epoch })
                })
            })
            .await
    }

    #[tracing::instrument(name = "election.resign", skip_all, fields(%term))]
    async fn election_resign(&self, term: ControllerTerm) -> Result<()> {
        self.runner
            .tx("election.resign", |tx| {
                Box::pin(async move {
                    fence_lock_as(tx, term).await?;
                    if vacate(tx, term.capture).await? {
                        Ok(())
                    } else {
                        Err(MetadataError::fenced(term.to_string()).into())
                    }
                })
            })
            .await
    }
}
