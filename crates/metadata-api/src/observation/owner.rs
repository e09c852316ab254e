use async_trait::async_trait;
use futures::stream::BoxStream;

use super::ProcessorChange;
use crate::Result;
use crate::model::{ChangefeedInfo, ChangefeedUpdate, ChangefeedUuid, OwnerTerm, RunningError, Version};

/// What only a changefeed's owner does. Every write carries the owner epoch; once it is over each answers
/// [`Fenced`](crate::MetadataError::Fenced) and changes nothing.
#[async_trait]
pub trait OwnerObservation: Send + Sync {
    /// Whose owner.
    fn self_uuid(&self) -> ChangefeedUuid;

    /// The token.
    fn term(&self) -> OwnerTerm;

    /// Changes what the changefeed is to do; only when it is `stopped` or `failed`.
    ///
    /// # Errors
    /// As [`owner_update`](crate::store::OwnerStore::owner_update).
    async fn update_changefeed(&self, expected: Version, update: &ChangefeedUpdate)
    -> Result<ChangefeedInfo>;

    /// `stopped`: the owner is told to stop.
    async fn pause_changefeed(&self) -> Result<()>;

    /// `normal`, from `stopped`, `failed` or `finished`.
    async fn resume_changefeed(&self) -> Result<()>;

    /// `normal`: it runs.
    async fn set_changefeed_normal(&self) -> Result<()>;

    /// `finished`: it reached its target.
    async fn set_changefeed_finished(&self) -> Result<()>;

    /// `removed`.
    async fn set_changefeed_removed(&self) -> Result<()>;

    /// `failed`, with the reason: it waits for an operator.
    async fn set_changefeed_failed(&self, error: RunningError) -> Result<()>;

    /// `warning`, with the reason: it goes on.
    async fn set_changefeed_warning(&self, warning: RunningError) -> Result<()>;

    /// `pending`, with the reason: it waits to be tried again.
    async fn set_changefeed_pending(&self, error: RunningError) -> Result<()>;

    /// The changefeed's processors on every capture, as they change: first all that are not `Removed`, then what changes, by
    /// whatever path. Those that serve a *former* owner epoch are among them: their tables are theirs until they are
    /// `Removed` (invariant I7). Several changes between two looks arrive as the last of them; each call begins anew. Ends,
    /// without a last word, when the owner's term or its capture's incarnation is over.
    ///
    /// While somebody holds the stream, it costs one read of the changefeed's processor rows after each watch poll that
    /// shows a new revision, and one each ten seconds where nothing happens; nothing for who does not ask.
    fn processor_changes(&self) -> BoxStream<'static, ProcessorChange>;
}
