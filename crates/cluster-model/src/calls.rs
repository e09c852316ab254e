//! What a process asks of the database, over its network.

use std::future::Future;

use metadata_api::{MetadataError, Result};
use metadata_memory::MemoryStore;

use crate::state::{Capture, Held, Late, Life, Office, Path, State, Violation};

/// How many statements may be under way that their senders have given up.
const MOST_LATE: usize = 1;

impl State {
    /// Writes to the database, and looks at what no write may do.
    pub(crate) fn commit<T, F: Future<Output = Result<T>>>(
        &mut self,
        call: impl FnOnce(MemoryStore) -> F,
    ) -> Result<T> {
        let before = self.db.clone();
        let answer = self.db.write(call);
        let after = self.db.tables();
        for row in before.tables().schedules() {
            let was = before.tables().progress(row.changefeed);
            if let (Some(was), Some(is)) = (was, after.progress(row.changefeed))
                && is.checkpoint_ts < was.checkpoint_ts
            {
                self.violation.get_or_insert(Violation::CheckpointWentBack);
            }
        }
        answer
    }

    /// Sends something that writes over a process's network. `None` = no answer. `late` is what then arrives some time, if it goes
    /// over the pool; heartbeats and renewals have connections of their own, which are not slow.
    pub(crate) fn call<T, F: Future<Output = Result<T>>>(
        &mut self,
        index: usize,
        late: impl FnOnce() -> Option<Late>,
        call: impl FnOnce(MemoryStore) -> F,
    ) -> Option<Result<T>> {
        if !self.db_up {
            return None;
        }
        match self.processes[index].path {
            Path::Up => Some(self.commit(call)),
            Path::AnswersLost => {
                drop(self.commit(call));
                None
            }
            Path::RequestsLost => None,
            Path::Late => {
                let Some(late) = late() else { return Some(self.commit(call)) };
                if self.inbox.len() < MOST_LATE {
                    self.inbox.push(late);
                }
                None
            }
        }
    }

    /// Asks something over a process's network.
    pub(crate) fn query<T, F: Future<Output = Result<T>>>(
        &self,
        index: usize,
        call: impl FnOnce(MemoryStore) -> F,
    ) -> Option<Result<T>> {
        let answers = matches!(self.processes[index].path, Path::Up | Path::Late);
        (self.db_up && answers).then(|| self.db.read(call))
    }

    /// Whether a capture's deadline has not passed.
    pub(crate) fn is_alive(&self, capture: &Capture) -> bool {
        !self.left(capture.until).is_zero()
    }

    /// A process is suspended with an answer in its socket.
    pub(crate) fn hold(&mut self, index: usize, held: Held) {
        let process = &mut self.processes[index];
        process.life = Life::Suspended;
        if let Some(capture) = &mut process.capture {
            capture.held = Some(held);
        }
    }

    /// A write of the capture itself was refused; if with `Fenced`, the incarnation is over.
    pub(crate) fn refused_for_good(&mut self, index: usize, fenced: bool) {
        if fenced && let Some(capture) = &mut self.processes[index].capture {
            capture.situation.expelled = true;
            capture.office = None;
        }
    }

    /// The office that a process holds.
    pub(crate) fn office(&mut self, index: usize) -> Option<&mut Office> {
        self.processes[index].capture.as_mut()?.office.as_mut()
    }

    /// The controller plans, even if no revision moves.
    pub(crate) fn plan_again(&mut self, index: usize) {
        if let Some(office) = self.office(index) {
            office.planned = None;
        }
    }

    /// No answer: the controller looks again in the next tick.
    pub(crate) fn try_again(&mut self, index: usize) {
        self.plan_again(index);
        let Some(capture) = &mut self.processes[index].capture else { return };
        capture.done.plan = true;
        if let Some(office) = &mut capture.office {
            office.to_do.clear();
            office.to_seal.clear();
        }
    }

    /// A write of the controller's was refused; if with `Fenced`, it is not the controller any more.
    pub(crate) fn failed(&mut self, index: usize, error: &MetadataError) {
        self.try_again(index);
        if error.is_fenced()
            && let Some(capture) = &mut self.processes[index].capture
        {
            capture.office = None;
        }
    }
}
