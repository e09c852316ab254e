//! Tokens: whoever holds none cannot call.
//!
//! A term names a role *and* its epoch. Every write in that role carries its term, and the store refuses it
//! with [`Fenced`](crate::MetadataError::Fenced) under a row lock when the term is over (invariant I8).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CaptureId, ChangefeedUuid, ControllerEpoch, OwnerEpoch, ProcessorEpoch};

/// A registered capture's token: its row, while it is not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CaptureTerm {
    /// The capture.
    pub capture: CaptureId,
}

/// The controller's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ControllerTerm {
    /// The capture that was elected.
    pub capture: CaptureId,
    /// Its epoch.
    pub epoch: ControllerEpoch,
}

/// A changefeed owner's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OwnerTerm {
    /// The changefeed.
    pub changefeed: ChangefeedUuid,
    /// The capture that was launched.
    pub capture: CaptureId,
    /// Its epoch.
    pub epoch: OwnerEpoch,
}

/// A processor's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessorTerm {
    /// The changefeed.
    pub changefeed: ChangefeedUuid,
    /// The capture that was attached.
    pub capture: CaptureId,
    /// The epoch of its attachment.
    pub epoch: ProcessorEpoch,
    /// The owner epoch that it serves.
    pub owner_epoch: OwnerEpoch,
}

impl fmt::Display for ControllerTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "controller {} epoch {}", self.capture, self.epoch)
    }
}

impl fmt::Display for OwnerTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "owner {} of changefeed {} epoch {}", self.capture, self.changefeed, self.epoch)
    }
}

impl fmt::Display for ProcessorTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "processor {} of changefeed {} epoch {}", self.capture, self.changefeed, self.epoch)
    }
}
