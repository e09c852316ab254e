//! The changefeed's state machine.
//!
//! ```text
//!                     +--- owner ---------------------------+
//!                     v                                     |
//! uninitialized -> normal <-> warning <-> pending           |
//!        \____________|__________|___________/              |
//!             |             |            |                  |
//!          (pause)       (owner)      (owner)               |
//!             v             v            v                  |
//!          stopped        failed      finished ---(resume)--+
//!             \_____________|____________/
//!                        (remove)
//!                           v
//!                        removed      (from any state; no edge leaves it)
//! ```

use crate::model::FeedState;
use crate::{MetadataError, Result};

/// At whose word a state changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedEvent {
    /// An operator pauses. A no-op when it is paused already.
    Pause,
    /// An operator resumes. A no-op when it runs already.
    Resume,
    /// An operator removes. A no-op when it is removed already.
    Remove,
    /// The owner says how it is doing.
    Report(FeedState),
}

/// The state after `event`.
///
/// An owner's report never leaves `stopped`, `failed`, `finished` or `removed`: those wait for an operator.
///
/// # Errors
/// [`MetadataError::InvalidTransition`], with `what` in its text, when there is no such edge.
pub fn feed_transition(what: &str, from: FeedState, event: FeedEvent) -> Result<FeedState> {
    let to = match event {
        FeedEvent::Pause => FeedState::Stopped,
        FeedEvent::Resume => FeedState::Normal,
        FeedEvent::Remove => FeedState::Removed,
        FeedEvent::Report(state) => state,
    };
    let allowed = match event {
        FeedEvent::Pause => from.is_runnable() || from == FeedState::Stopped,
        FeedEvent::Resume => from != FeedState::Removed,
        FeedEvent::Remove => true,
        FeedEvent::Report(state) => {
            from.is_runnable() && !matches!(state, FeedState::Stopped | FeedState::Uninitialized)
        }
    };
    if !allowed {
        return Err(MetadataError::transition(what, from, to));
    }
    match event {
        FeedEvent::Resume if from.is_runnable() => Ok(from),
        _ => Ok(to),
    }
}

/// Whether a changefeed's configuration may be changed in this state.
///
/// # Errors
/// [`MetadataError::InvalidTransition`] unless it is `stopped` or `failed`.
pub fn check_updatable(what: &str, state: FeedState) -> Result<()> {
    if matches!(state, FeedState::Stopped | FeedState::Failed) {
        Ok(())
    } else {
        Err(MetadataError::transition(what, state, "a new configuration (pause it first)"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = FeedEvent> {
        prop_oneof![
            Just(FeedEvent::Pause),
            Just(FeedEvent::Resume),
            Just(FeedEvent::Remove),
            prop::sample::select(FeedState::ALL.to_vec()).prop_map(FeedEvent::Report),
        ]
    }

    proptest! {
        #[test]
        fn removed_is_for_good(event in event()) {
            if let Ok(next) = feed_transition("c", FeedState::Removed, event) {
                prop_assert_eq!(next, FeedState::Removed);
            }
        }

        #[test]
        fn an_owner_never_wakes_what_waits_for_an_operator(
            from in prop::sample::select(FeedState::ALL.to_vec()),
            report in prop::sample::select(FeedState::ALL.to_vec()),
        ) {
            if !from.is_runnable() {
                prop_assert!(feed_transition("c", from, FeedEvent::Report(report)).is_err());
            }
        }

        #[test]
        fn an_operators_word_may_be_repeated(
            from in prop::sample::select(FeedState::ALL.to_vec()),
            event in prop::sample::select(vec![FeedEvent::Pause, FeedEvent::Resume, FeedEvent::Remove]),
        ) {
            if let Ok(next) = feed_transition("c", from, event) {
                prop_assert_eq!(feed_transition("c", next, event).ok(), Some(next));
            }
        }
    }

    #[test]
    fn an_update_wants_a_changefeed_that_stands_still() {
        for state in FeedState::ALL {
            let allowed = matches!(state, FeedState::Stopped | FeedState::Failed);
            assert_eq!(check_updatable("c", state).is_ok(), allowed, "{state}");
        }
    }
}
