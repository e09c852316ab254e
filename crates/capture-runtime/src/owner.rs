//! A changefeed owner's view: every write carries the owner epoch.

use async_trait::async_trait;
use futures::stream::BoxStream;
use metadata_api::Result;
use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    ChangefeedInfo, ChangefeedUpdate, ChangefeedUuid, FeedState, OwnerTerm, RunningError, Version,
};
use metadata_api::observation::{OwnerObservation, ProcessorChange};

use crate::observer::CaptureObserver;

/// [`OwnerObservation`] of a registered capture, on any store.
#[derive(Clone, Debug)]
pub struct OwnerObserver {
    capture: CaptureObserver,
    term: OwnerTerm,
}

impl OwnerObserver {
    /// The view of `capture`, which holds `term`.
    pub fn new(capture: CaptureObserver, term: OwnerTerm) -> Self {
        Self { capture, term }
    }

    async fn tell(&self, event: FeedEvent, error: Option<RunningError>) -> Result<()> {
        self.capture.store().owner_transition(self.term, event, error).await.map(drop)
    }
}

#[async_trait]
impl OwnerObservation for OwnerObserver {
    fn self_uuid(&self) -> ChangefeedUuid {
        self.term.changefeed
    }

    fn term(&self) -> OwnerTerm {
        self.term
    }

    async fn update_changefeed(
        &self,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo> {
        self.capture.store().owner_update(self.term, expected, update).await
    }

    async fn pause_changefeed(&self) -> Result<()> {
        self.tell(FeedEvent::Pause, None).await
    }

    async fn resume_changefeed(&self) -> Result<()> {
        self.tell(FeedEvent::Resume, None).await
    }

    async fn set_changefeed_normal(&self) -> Result<()> {
        self.tell(FeedEvent::Report(FeedState::Normal), None).await
    }

    async fn set_changefeed_finished(&self) -> Result<()> {
        self.tell(FeedEvent::Report(FeedState::Finished), None).await
    }

    async fn set_changefeed_removed(&self) -> Result<()> {
        self.tell(FeedEvent::Remove, None).await
    }

    async fn set_changefeed_failed(&self, error: RunningError) -> Result<()> {
        self.tell(FeedEvent::Report(FeedState::Failed), Some(error)).await
    }

    async fn set_changefeed_warning(&self, warning: RunningError) -> Result<()> {
        self.tell(FeedEvent::Report(FeedState::Warning), Some(warning)).await
    }

    async fn set_changefeed_pending(&self, error: RunningError) -> Result<()> {
        self.tell(FeedEvent::Report(FeedState::Pending), Some(error)).await
    }

    fn processor_changes(&self) -> BoxStream<'static, ProcessorChange> {
        self.capture.processors_of(self.term)
    }
}
