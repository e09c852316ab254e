//! Where changes come from: the two traits, and the sources that come with this crate.

use std::sync::Arc;

use async_trait::async_trait;
use capture_runtime::task::{PreparedTask, Share, TaskContext, TaskError, TaskSpec, position_of_least};
use metadata_api::model::{
    ChangefeedInfo, ChangefeedProgress, OwnerTerm, SourcePosition, TableId, UpstreamInfo,
};

use crate::event::SourceEvent;

pub(crate) mod datagen;
pub mod mysql;

/// One launch of a changefeed, as a source or sink sees it.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The token of the launch. Sinks name what they write by `term.changefeed` and `term.epoch`.
    pub term: OwnerTerm,
    /// What to run; `None`: everything. Otherwise the source gives only what is in the share, with every mark, and several
    /// sinks write under one owner epoch.
    pub share: Option<Share>,
    /// Counts the launches under the same term and share, from 1.
    pub launch: u64,
    /// What to do.
    pub info: Arc<ChangefeedInfo>,
    /// Where changes come from.
    pub upstream: UpstreamInfo,
    /// Where to start: everything at or before `start.checkpoint_ts` is in the sink already.
    pub start: ChangefeedProgress,
}

impl From<&TaskContext> for Launch {
    fn from(context: &TaskContext) -> Self {
        Self {
            term: context.term,
            share: context.share.clone(),
            launch: context.launch,
            info: Arc::clone(&context.info),
            upstream: context.upstream.clone(),
            start: context.start.clone(),
        }
    }
}

/// Knows one kind of source.
#[async_trait]
pub trait SourceFactory: Send + Sync + 'static {
    /// Checks the upstream URI and its parameters, and that the source can be reached and can serve; changes
    /// nothing there, and does not look at `start_ts`.
    ///
    /// # Errors
    /// [`TaskError`] naming the field, the value (masked) and what would be right.
    async fn check(&self, spec: &TaskSpec) -> Result<(), TaskError>;

    /// What [`Self::check`] does, and fixes the start.
    ///
    /// # Errors
    /// As above; `CDC:ErrStartTsBeforeGC` when the source cannot serve `start_ts` any more.
    async fn prepare(&self, spec: &TaskSpec) -> Result<PreparedTask, TaskError>;

    /// What the source's changes can be split by, for a changefeed on at most `max_processors` captures: each change is in
    /// exactly one of these, wherever it is asked, and each gives every mark that the whole would, or as good a one. Empty, as it is unless a
    /// source says otherwise: it cannot be split.
    ///
    /// # Errors
    /// [`TaskError`] when the upstream's URI is wrong.
    fn tables(&self, _upstream: &UpstreamInfo, _max_processors: u32) -> Result<Vec<TableId>, TaskError> {
        Ok(Vec::new())
    }

    /// The position for a changefeed whose shares are where these say: a start from which no share misses anything; `None` =
    /// by its checkpoint alone. Unless a source says otherwise, that of the share with the least checkpoint.
    fn common_position(&self, shares: &[&ChangefeedProgress]) -> Option<SourcePosition> {
        position_of_least(shares)
    }

    /// Opens the source at `launch.start`.
    ///
    /// # Errors
    /// [`TaskError`].
    async fn open(&self, launch: &Launch) -> Result<Box<dyn Source>, TaskError>;
}

/// One open source.
#[async_trait]
pub trait Source: Send {
    /// Waits for the next event. Gives a [`SourceEvent::Resolved`] after each transaction, and while nothing
    /// happens as often as it safely can.
    ///
    /// The future may be dropped when the launch stops; the source is not asked again after that.
    ///
    /// # Errors
    /// [`TaskError`], after which the source is not asked again.
    async fn next(&mut self) -> Result<SourceEvent, TaskError>;
}
