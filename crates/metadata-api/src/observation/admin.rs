use async_trait::async_trait;

use crate::Result;
use crate::model::{
    ChangefeedInfo, ChangefeedName, ChangefeedProgress, ChangefeedStatus, ChangefeedUpdate, NewChangefeed,
    Version,
};

/// What an operator may ask of *any* capture, by name; durable when it returns, whoever is owner or controller, or nobody.
///
/// # Errors
/// Every method: [`NotFound`](crate::MetadataError::NotFound) when no changefeed holds the name; otherwise as the method of
/// the same name of [`AdminStore`](crate::store::AdminStore).
#[async_trait]
pub trait ChangefeedAdmin: Send + Sync {
    /// Creates a changefeed; the planner launches it.
    async fn create(&self, new: &NewChangefeed) -> Result<ChangefeedInfo>;

    /// Changes what a changefeed is to do, once it has stopped.
    async fn update(
        &self,
        name: &ChangefeedName,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo>;

    /// Pauses a changefeed; it has stopped when its schedule is `Removed`.
    async fn pause(&self, name: &ChangefeedName) -> Result<ChangefeedStatus>;

    /// Resumes a changefeed, from its checkpoint or from `overwrite`.
    async fn resume(
        &self,
        name: &ChangefeedName,
        overwrite: Option<&ChangefeedProgress>,
    ) -> Result<ChangefeedStatus>;

    /// Removes a changefeed; its name is free again when it has stopped.
    async fn remove(&self, name: &ChangefeedName) -> Result<ChangefeedStatus>;
}
