//! What the API needs of the capture that runs in this process.

use metadata_api::model::CaptureId;

/// The running capture, as the API sees it. Everything else it answers comes from the store.
pub trait LocalCapture: Send + Sync + 'static {
    /// Who it is now; `None` before it has registered. It changes when the capture was declared dead and registered anew.
    fn id(&self) -> Option<CaptureId>;

    /// Whether it is registered and its heartbeats get through.
    fn is_ready(&self) -> bool;

    /// Whether it was told to stop and hands its work over.
    fn is_draining(&self) -> bool;

    /// Who is controller, as this capture last saw it, while that lease is still valid.
    fn controller(&self) -> Option<CaptureId>;
}

impl LocalCapture for capture_runtime::Capture {
    fn id(&self) -> Option<CaptureId> {
        self.status().id
    }

    fn is_ready(&self) -> bool {
        self.status().ready
    }

    fn is_draining(&self) -> bool {
        self.status().stopping
    }

    fn controller(&self) -> Option<CaptureId> {
        self.status().controller
    }
}
