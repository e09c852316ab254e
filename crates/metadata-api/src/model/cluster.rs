//! The cluster as a whole.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{CaptureId, ControllerEpoch, Version};

/// Which database this is. A change means: another cluster, or a restored or failed-over database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// A random UUID written once by the first `migrate`.
    pub cluster_id: Uuid,
    /// The server's own identity (`@@server_uuid` on MySQL), empty where there is none. Its change alone
    /// means "check that the revision did not go back".
    pub server_id: String,
}

/// The election row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectionRecord {
    /// Who holds the lease; `None` when it was resigned or nobody ever campaigned.
    pub leader: Option<CaptureId>,
    /// The epoch of the last acquisition. It stays when the lease is resigned.
    pub epoch: ControllerEpoch,
    /// Grows with each renewal. A challenger judges a lease by watching this number stand still on its own
    /// clock.
    pub lease_seq: u64,
    /// The capture that resigned last; it lets the others campaign first.
    pub cooldown: Option<CaptureId>,
    /// The row's version.
    pub version: Version,
}
