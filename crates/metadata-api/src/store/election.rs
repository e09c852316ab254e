use async_trait::async_trait;

use crate::Result;
use crate::model::{CaptureTerm, ControllerTerm, ElectionRecord};

/// Who is controller.
///
/// `election` holds the leader, the epoch of the last acquisition and the lease sequence; `fence` holds the epoch
/// that may write *now*: equal to the election's while somebody leads, 0 while nobody does. So an old
/// controller is refused from the moment it resigned, not only when the next one was elected.
#[async_trait]
pub trait ElectionStore: Send + Sync {
    /// Takes the lease that was `observed`: epoch + 1 in `election` and `fence`, leader = the capture, the lease
    /// sequence moves, the cooldown is cleared; one transaction. The caller has watched `observed` for a whole
    /// lease, or it is vacant, or it names the caller itself with an epoch that the caller does not hold.
    ///
    /// # Errors
    /// [`Conflict`](crate::MetadataError::Conflict) when leader, epoch or lease sequence are not the observed
    /// ones any more; [`Fenced`](crate::MetadataError::Fenced) when the capture's row is absent, `draining` or
    /// `offline`; [`Unknown`](crate::MetadataError::Unknown): read the election again; a leader row that names the
    /// caller with an epoch it does not hold lets it campaign at once.
    async fn election_campaign(
        &self,
        capture: CaptureTerm,
        observed: &ElectionRecord,
    ) -> Result<ControllerTerm>;

    /// Gives the lease back: no leader, fence epoch 0, cooldown = the capture. After it returned the term
    /// passes no check.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when the term is over already.
    async fn election_resign(&self, term: ControllerTerm) -> Result<()>;
}
