//! Why a capture ends.

use metadata_api::MetadataError;
use metadata_api::model::ChangefeedUuid;

/// Why a capture's life ended other than by a graceful stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Tasks went on after they were fenced. Only the end of the process stops them for certain: end it now, without
    /// releasing anything.
    #[error("the tasks of {} changefeed(s), the first of them {}, did not stop after they were fenced; the process must end",
        changefeeds.len(), changefeeds.first().copied().unwrap_or_default())]
    TaskStuck {
        /// Whose tasks.
        changefeeds: Vec<ChangefeedUuid>,
    },
    /// The store refused in a way that waiting does not mend.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}
