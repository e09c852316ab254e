//! Why the planner does what it does, in words for an operator.

use std::fmt;

use crate::model::{CaptureId, FeedState, Placement};

/// The reason of one [`Action`](super::Action). Shows as a clause, as in `its capture .. is draining`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The capture is sealed, or its row is gone: what it had is taken from it.
    CaptureDead(CaptureId),
    /// The changefeed ought not to run: paused, failed, finished, or removed.
    NotToRun(FeedState),
    /// It is removed, and nothing of it runs.
    Removed,
    /// Nobody owned it; this capture had the least load of those that may run it.
    Unowned {
        /// The one that gets it.
        to: CaptureId,
        /// Its load before.
        load: u64,
        /// How many captures might have got it.
        of: usize,
    },
    /// Its capture is to be emptied, and another one may run it.
    Draining(CaptureId),
    /// Its capture has not the labels that it asks for.
    Affinity {
        /// Where it is.
        at: CaptureId,
        /// What it asks for.
        wants: Placement,
    },
    /// Its capture has more than another one, and without it the two are closer.
    Balance {
        /// The one that has more, and its load.
        from: (CaptureId, u64),
        /// The one that has less, and its load.
        to: (CaptureId, u64),
        /// What the changefeed weighs.
        weight: u32,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CaptureDead(capture) => write!(f, "capture {capture} is dead"),
            Self::NotToRun(state) => write!(f, "a changefeed that is {state} does not run"),
            Self::Removed => f.write_str("it was removed, and nothing of it runs"),
            Self::Unowned { to, load, of } => write!(
                f,
                "nobody owned it, and capture {to} had the least load ({load}) of {of} that may run it"
            ),
            Self::Draining(capture) => write!(f, "its capture {capture} is draining"),
            Self::Affinity { at, wants } => write!(f, "its capture {at} has not the label {wants}"),
            Self::Balance { from: (from, high), to: (to, low), weight } => write!(
                f,
                "its capture {from} has a load of {high}, capture {to} one of {low}, and it weighs {weight}"
            ),
        }
    }
}
