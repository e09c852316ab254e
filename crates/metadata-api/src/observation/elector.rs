use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::ControllerObservation;
use crate::Result;
use crate::model::{CaptureId, CaptureInfo, NewCapture};

/// What a capture does while it is controller.
///
/// It is given the controller's view, fenced by its epoch, and a token that is cancelled when the term is over or about to
/// be given back. The lease is resigned only after the future has ended; a future that does not end before the capture's
/// deadline is dropped, and its later writes are refused by the epoch.
pub type ControllerCallback = Arc<
    dyn Fn(Arc<dyn ControllerObservation>, CancellationToken) -> BoxFuture<'static, Result<()>> + Send + Sync,
>;

/// Who is in the cluster, and who leads it.
#[async_trait]
pub trait Elector: Send + Sync {
    /// What this capture says of itself.
    fn self_info(&self) -> NewCapture;

    /// Campaigns whenever the lease is vacant or has stood still for its whole length, and runs `on_take_control` each
    /// time it wins. Returns when the capture is told to stop (after the callback has ended and the lease was resigned)
    /// or was fenced.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when the capture's own row was sealed.
    async fn run_election(&self, on_take_control: ControllerCallback) -> Result<()>;

    /// The controller that was last observed, while its lease is still valid on this capture's own clock.
    ///
    /// # Errors
    /// [`NoController`](crate::MetadataError::NoController) when there is none.
    async fn controller(&self) -> Result<CaptureInfo>;

    /// Captures, some or (with an empty list) all; who does not exist is left out.
    async fn captures(&self, ids: &[CaptureId]) -> Result<Vec<CaptureInfo>>;
}
