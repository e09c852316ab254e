use async_trait::async_trait;

use crate::Result;
use crate::model::{
    CaptureId, ChangefeedInfo, ChangefeedProgress, ChangefeedStatus, ChangefeedUpdate, ChangefeedUuid,
    ControllerTerm, NewChangefeed, Version,
};

/// In whose name a changefeed is created or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// An operator, through any capture: takes `fence` for the revision, without an epoch.
    Operator,
    /// The controller: takes `fence` with its epoch; [`Fenced`](crate::MetadataError::Fenced) when its term is over.
    Controller(ControllerTerm),
}

/// What an operator may ask of *any* capture: durable when it returns, whoever is owner or controller, or nobody. Each
/// takes `fence` for the revision (no epoch) and then writes versioned updates.
#[async_trait]
pub trait AdminStore: Send + Sync {
    /// Creates a changefeed with a fresh uuid (the transaction's revision; where several share a transaction,
    /// each one of the revisions that it took), its upstream (upserted in the same transaction), its state (uninitialized), and its schedule (`Removed`,
    /// with the given task position).
    ///
    /// A repeated create with the same `client_request_id` returns what the first one made, so an `Unknown` outcome is
    /// resolved by repeating it.
    ///
    /// # Errors
    /// `AlreadyExists` when a changefeed that still holds the name is there (with another request id); `InvalidArgument`
    /// from [`NewChangefeed::validate`], or when `upstream_id` names an upstream that has another URI and is in use by
    /// another changefeed that holds its name; `Fenced` for a controller whose term is over.
    async fn changefeed_create(&self, authority: Authority, new: &NewChangefeed) -> Result<ChangefeedInfo>;

    /// Replaces what `update` gives, with a revision.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when the info's version is not `expected`; `InvalidTransition` unless it is `stopped` or
    /// `failed`, or when its schedule is not `Removed` yet (the owner is still stopping); `InvalidArgument` from
    /// [`ChangefeedUpdate::validate`], or for an `upstream_uri` when other changefeeds that hold their names
    /// use the same upstream.
    async fn changefeed_update(
        &self,
        changefeed: ChangefeedUuid,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo>;

    /// `stopped`, and `Launched` becomes `Removing`; with no owner it is complete at once. Pausing what is paused is
    /// done already.
    ///
    /// # Errors
    /// `NotFound`; `InvalidTransition` from `failed`, `finished` or `removed`.
    async fn changefeed_pause(&self, changefeed: ChangefeedUuid) -> Result<ChangefeedStatus>;

    /// `normal`, with error and warning cleared; the planner launches it. Resuming what runs is done already, unless
    /// `overwrite` is given.
    ///
    /// `overwrite` is an operator's explicit new task position, the one exception to I6.
    ///
    /// # Errors
    /// `NotFound`; `InvalidTransition` from `removed`; with `overwrite`, `InvalidTransition` unless the schedule is
    /// `Removed` and the state is `stopped`, `failed` or `finished`.
    async fn changefeed_resume(
        &self,
        changefeed: ChangefeedUuid,
        overwrite: Option<&ChangefeedProgress>,
    ) -> Result<ChangefeedStatus>;

    /// `removed`; `Launched` becomes `Removing`. The name is free again when the schedule is `Removed`: at once when
    /// there is no owner, else when the owner has stopped or its capture was sealed. Removing what is removed is done
    /// already.
    ///
    /// # Errors
    /// `NotFound`; `Fenced` for a controller whose term is over.
    async fn changefeed_remove(
        &self,
        authority: Authority,
        changefeed: ChangefeedUuid,
    ) -> Result<ChangefeedStatus>;

    /// `alive` becomes `draining`, under `fence` with a revision: the capture gets no new work and hands over what it
    /// has. Draining what drains is done already. The capture itself calls it first when it stops.
    ///
    /// # Errors
    /// `NotFound` when there is no such capture; `InvalidTransition` when it is `offline`.
    async fn capture_drain(&self, capture: CaptureId) -> Result<()>;

    /// Takes the lease from whoever holds it: no leader, fence epoch 0, cooldown = the former leader. The old controller
    /// finds out at its next write. Done already when nobody leads.
    async fn controller_depose(&self) -> Result<()>;
}
