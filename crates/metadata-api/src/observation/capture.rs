use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::{ControllerCallback, Elector, OwnerObservation, Querier};
use crate::Result;
use crate::decision::schedule::ScheduledProcessor;
use crate::model::{
    CaptureProgress, ChangefeedProgress, ChangefeedUuid, OwnerEpoch, ProcessorAssignment, ProcessorTerm,
    ScheduleState,
};

/// An order to this capture: what it is to do about one changefeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerChange {
    /// Which.
    pub changefeed: ChangefeedUuid,
    /// `Launched`: run it. `Removing`: stop it, then say so by
    /// [`post_owner_removed`](CaptureObservation::post_owner_removed). `Removed`: it was taken away (the capture was
    /// expelled, or it was released already); stop it at once.
    pub state: ScheduleState,
    /// The owner epoch that the order is about. A higher epoch than the running one means: stop that, then run this.
    pub epoch: OwnerEpoch,
}

/// What became of one processor of a changefeed: an order to its capture, and news to the changefeed's owner.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessorChange {
    /// Which attachment. Another epoch than the running one means, for its capture: stop that, then run this. The owner
    /// epoch in it is the one that it serves, which may be over already.
    pub term: ProcessorTerm,
    /// `Launched`: run what is assigned, and nothing else. `Removing`: stop it, then say so by
    /// [`post_processor_removed`](CaptureObservation::post_processor_removed). `Removed`: it has stopped, or its capture
    /// was sealed; whoever still runs it stops it at once.
    pub state: ScheduleState,
    /// What it carries.
    pub assignment: ProcessorAssignment,
}

impl From<ScheduledProcessor> for ProcessorChange {
    fn from(of: ScheduledProcessor) -> Self {
        Self { term: of.term, state: of.state, assignment: of.assignment }
    }
}

/// What a capture does for itself.
#[async_trait]
pub trait CaptureObservation: Elector + Querier {
    /// The capture's whole registered life: heartbeats, watch and election, until it is told to stop or is fenced.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when its row was sealed or the database was restored: register anew.
    async fn run(&self, controller_callback: ControllerCallback) -> Result<()>;

    /// One heartbeat, with its timeout (1 s). A success extends the capture's deadline, counted from when it was *sent*.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when the row is sealed;
    /// [`Unknown`](crate::MetadataError::Unknown) when it timed out.
    async fn heartbeat(&self) -> Result<()>;

    /// Replaces the capture's whole progress.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when the row is sealed.
    async fn advance(&self, progress: &CaptureProgress) -> Result<()>;

    /// The orders to this capture, as they come: first everything that it owns, then what changes. Orders of one
    /// changefeed arrive in revision order; several changes between two looks arrive as the last of them. Each call
    /// begins anew.
    fn owner_changes(&self) -> BoxStream<'static, OwnerChange>;

    /// The processors that this capture is to be, as the orders come: first everything that is attached to it, then what
    /// changes. Several changes between two looks arrive as the last of them; each call begins anew. When the incarnation
    /// is over, everything that was delivered and not `Removed` is delivered as `Removed`, and the stream ends.
    fn processor_changes(&self) -> BoxStream<'static, ProcessorChange>;

    /// The owner's view of a changefeed whose launch was ordered.
    ///
    /// # Errors
    /// [`Fenced`](crate::MetadataError::Fenced) when the launch order is over already.
    async fn on_owner_launched(&self, changefeed: ChangefeedUuid) -> Result<Arc<dyn OwnerObservation>>;

    /// Says that this capture has stopped a changefeed, and how far it came; `None` when it never ran it. Being fenced means
    /// that it is done already, and is a success.
    async fn post_owner_removed(
        &self,
        changefeed: ChangefeedUuid,
        task_position: Option<ChangefeedProgress>,
    ) -> Result<()>;

    /// Says that this capture has stopped being a processor of a changefeed. The caller has stopped it: nothing that it
    /// admitted is under way. Being fenced means that it is done already, and is a success, and so is a changefeed that
    /// this capture does not know itself to be a processor of.
    async fn post_processor_removed(&self, changefeed: ChangefeedUuid) -> Result<()>;
}
