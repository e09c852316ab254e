//! What an owner says of its changefeed's state: `normal` when it moves, `pending` while it waits to be tried again,
//! `warning` from when it is tried again until it moves.

use metadata_api::model::{FeedState, RunningError};

/// The state that is to be shown, and whether it still has to be written.
#[derive(Debug)]
pub(super) struct StateReport {
    wanted: FeedState,
    error: Option<RunningError>,
    unwritten: bool,
    writing: bool,
}

impl StateReport {
    /// Begins with what the store shows.
    pub(super) fn new(stored: FeedState, error: Option<RunningError>) -> Self {
        Self { wanted: stored, error, unwritten: false, writing: false }
    }

    pub(super) fn normal(&mut self) {
        if self.wanted != FeedState::Normal {
            self.want(FeedState::Normal, None);
        }
    }

    /// It failed, and waits.
    pub(super) fn pending(&mut self, error: RunningError) {
        self.want(FeedState::Pending, Some(error));
    }

    /// It is tried again, with the error that it failed with last.
    pub(super) fn tried_again(&mut self) {
        if self.wanted == FeedState::Pending {
            let error = self.error.take();
            self.want(FeedState::Warning, error);
        }
    }

    pub(super) fn warning(&mut self, error: RunningError) {
        self.want(FeedState::Warning, Some(error));
    }

    fn want(&mut self, state: FeedState, error: Option<RunningError>) {
        self.wanted = state;
        self.error = error;
        self.unwritten = true;
    }

    /// What to write now, if anything; one at a time.
    pub(super) fn due(&mut self) -> Option<(FeedState, Option<RunningError>)> {
        if self.writing || !self.unwritten {
            return None;
        }
        self.writing = true;
        self.unwritten = false;
        Some((self.wanted, self.error.clone()))
    }

    /// What came of it. A refusal is not repeated: an operator changed the state, or the term is over.
    pub(super) fn done(&mut self, try_again: bool) {
        self.writing = false;
        self.unwritten |= try_again;
    }
}
