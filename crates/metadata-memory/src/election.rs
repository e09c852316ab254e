//! Who is controller.

use async_trait::async_trait;
use metadata_api::model::{
    CaptureId, CaptureState, CaptureTerm, ControllerEpoch, ControllerTerm, ElectionRecord,
};
use metadata_api::store::ElectionStore;
use metadata_api::{MetadataError, Result};

use crate::MemoryStore;
use crate::tx::{Tx, capture_gone, next};

#[async_trait]
impl ElectionStore for MemoryStore {
    async fn election_campaign(
        &self,
        capture: CaptureTerm,
        observed: &ElectionRecord,
    ) -> Result<ControllerTerm> {
        self.write("election.campaign", |tx| {
            tx.take()?;
            match tx.capture_state(capture.capture)? {
                Some(CaptureState::Alive) => {}
                Some(state) => return Err(capture_gone(capture.capture, &format!("is {state}"))),
                None => return Err(capture_gone(capture.capture, "has no row")),
            }
            let now = tx.tables.election()?;
            if (now.leader, now.epoch, now.lease_seq) != (observed.leader, observed.epoch, observed.lease_seq)
            {
                return Err(MetadataError::conflict("the election moved since it was observed"));
            }
            let epoch = ControllerEpoch(now.epoch.0.saturating_add(1));
            tx.put_election(
                (),
                ElectionRecord {
                    leader: Some(capture.capture),
                    epoch,
                    lease_seq: now.lease_seq + 1,
                    cooldown: None,
                    version: next(now.version),
                },
            );
            tx.put_fence((), epoch);
            Ok(ControllerTerm { capture: capture.capture, epoch })
        })
        .await
    }

    async fn election_resign(&self, term: ControllerTerm) -> Result<()> {
        self.write("election.resign", |tx| {
            tx.take_as_controller(term)?;
            let now = tx.tables.election()?;
            match now.leader {
                Some(leader) if leader == term.capture && now.epoch == term.epoch => {
                    vacate(tx, now, leader);
                    Ok(())
                }
                _ => Err(MetadataError::fenced(format!("{term} is over"))),
            }
        })
        .await
    }
}

/// Takes the lease from `leader`, who holds it.
pub(crate) fn vacate(tx: &mut Tx<'_>, now: ElectionRecord, leader: CaptureId) {
    let vacant = ElectionRecord { leader: None, cooldown: Some(leader), version: next(now.version), ..now };
    tx.put_election((), vacant);
    tx.put_fence((), ControllerEpoch(0));
}
