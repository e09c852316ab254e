//! How far a changefeed has come.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ChangefeedUuid, OwnerEpoch, ProcessorReport, Ts};

/// The source's own resume position: an opaque JSON value that only the source reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourcePosition(pub serde_json::Value);

/// How far a changefeed has come. Always passed on whole, never merged field by field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChangefeedProgress {
    /// Everything at or before it is in the sink, durably.
    pub checkpoint_ts: Ts,
    /// The source has delivered everything at or before it; never below `checkpoint_ts`.
    #[serde(default)]
    pub resolved_ts: Ts,
    /// No table may pass it before all have reached it (DDL). `checkpoint_ts` where nothing waits.
    #[serde(default)]
    pub min_table_barrier_ts: Ts,
    /// Where the source resumes. `None`: derive it from `checkpoint_ts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<SourcePosition>,
}

impl ChangefeedProgress {
    /// A start at `ts` with no position of the source's own.
    pub fn at(ts: Ts) -> Self {
        Self { checkpoint_ts: ts, resolved_ts: ts, min_table_barrier_ts: ts, position: None }
    }

    /// The one with the greater checkpoint, whole; `self` when they are equal (invariant I6).
    #[must_use]
    pub fn further(self, other: Self) -> Self {
        if other.checkpoint_ts > self.checkpoint_ts { other } else { self }
    }
}

/// A changefeed's progress with the owner epoch under which it was made. Readers ignore it when the epoch is
/// not the schedule's current one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnedProgress {
    /// The owner epoch that made it.
    pub owner_epoch: OwnerEpoch,
    /// How far. Of a capture that is only a processor: nothing, so that its share is never taken for the whole.
    #[serde(flatten)]
    pub progress: ChangefeedProgress,
    /// What the capture says as a processor of the changefeed, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<ProcessorReport>,
}

impl OwnedProgress {
    /// An owner's word, that is no processor.
    pub fn new(owner_epoch: OwnerEpoch, progress: ChangefeedProgress) -> Self {
        Self { owner_epoch, progress, processor: None }
    }
}

/// All that one capture has to say about its changefeeds: the value of its one progress row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CaptureProgress(pub BTreeMap<ChangefeedUuid, OwnedProgress>);
