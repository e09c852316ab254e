use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::Result;
use crate::model::{ChangefeedInfo, ChangefeedProgress, ChangefeedStatus, ChangefeedUuid};

/// Reads what changefeeds are, do and have done.
///
/// `which = None` means all that are not cleaned up. What is asked for and does not exist is left out.
#[async_trait]
pub trait Querier: Send + Sync {
    /// What changefeeds are to do.
    async fn changefeed_infos(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedInfo>>;

    /// What changefeeds are doing.
    async fn changefeed_states(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedStatus>>;

    /// How far changefeeds have come (invariant I6).
    async fn changefeed_progresses(
        &self,
        which: Option<&[ChangefeedUuid]>,
    ) -> Result<BTreeMap<ChangefeedUuid, ChangefeedProgress>>;
}
