//! What an operator may ask of any capture, by name.

use std::sync::Arc;

use async_trait::async_trait;
use metadata_api::model::{
    ChangefeedInfo, ChangefeedName, ChangefeedProgress, ChangefeedStatus, ChangefeedUpdate, ChangefeedUuid,
    NewChangefeed, Version,
};
use metadata_api::observation::ChangefeedAdmin;
use metadata_api::store::{Authority, MetadataStore};
use metadata_api::{MetadataError, Result};

/// [`ChangefeedAdmin`] on any store.
#[derive(Clone, Debug)]
pub struct Admin {
    store: Arc<dyn MetadataStore>,
}

impl Admin {
    /// An operator's view of `store`.
    pub fn new(store: Arc<dyn MetadataStore>) -> Self {
        Self { store }
    }

    async fn find(&self, name: &ChangefeedName) -> Result<ChangefeedUuid> {
        let found = self.store.changefeed_overview(name).await?;
        found
            .map(|overview| overview.info.uuid)
            .ok_or_else(|| MetadataError::not_found(format!("changefeed {name}")))
    }
}

#[async_trait]
impl ChangefeedAdmin for Admin {
    async fn create(&self, new: &NewChangefeed) -> Result<ChangefeedInfo> {
        self.store.changefeed_create(Authority::Operator, new).await
    }

    async fn update(
        &self,
        name: &ChangefeedName,
        expected: Version,
        update: &ChangefeedUpdate,
    ) -> Result<ChangefeedInfo> {
        self.store.changefeed_update(self.find(name).await?, expected, update).await
    }

    async fn pause(&self, name: &ChangefeedName) -> Result<ChangefeedStatus> {
        self.store.changefeed_pause(self.find(name).await?).await
    }

    async fn resume(
        &self,
        name: &ChangefeedName,
        overwrite: Option<&ChangefeedProgress>,
    ) -> Result<ChangefeedStatus> {
        self.store.changefeed_resume(self.find(name).await?, overwrite).await
    }

    async fn remove(&self, name: &ChangefeedName) -> Result<ChangefeedStatus> {
        self.store.changefeed_remove(Authority::Operator, self.find(name).await?).await
    }
}
