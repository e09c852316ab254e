//! What can go wrong.

use metadata_api::model::{BootTime, ChangefeedUuid};
use metadata_api::store::AdminStore as _;

use crate::cluster::{Cluster, Duty, Order, Step};
use crate::state::{Held, Life, Path, State};
use crate::work::has_flush;

/// A kind of fault. Each costs one of the field [`Cluster::faults`](field@Cluster::faults); its end costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`.
    Crash,
    /// `SIGSTOP`, between two calls.
    Suspend,
    /// `SIGSTOP` after the database took a heartbeat in, and before its answer was read.
    SuspendInBeat,
    /// The same in a look.
    SuspendInLook,
    /// The same in the controller's scan.
    SuspendInScan,
    /// No request arrives.
    LoseRequests,
    /// Requests are carried out, COMMITs too, and nobody hears of it.
    LoseAnswers,
    /// What is written over the pool is carried out when its sender has given it up.
    Delay,
    /// The database does not answer.
    Outage,
    /// The database's wall clock is set an hour forward, or back again.
    ClockJump,
    /// A task fails, and may be tried again.
    TaskFails,
    /// An operator pauses a changefeed, or resumes one that is paused.
    PauseOrResume,
    /// An operator deposes the controller.
    Depose,
    /// An operator drains a capture.
    Drain,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 14] = [
        Self::Crash,
        Self::Suspend,
        Self::SuspendInBeat,
        Self::SuspendInLook,
        Self::SuspendInScan,
        Self::LoseRequests,
        Self::LoseAnswers,
        Self::Delay,
        Self::Outage,
        Self::ClockJump,
        Self::TaskFails,
        Self::PauseOrResume,
        Self::Depose,
        Self::Drain,
    ];
}

impl Cluster {
    /// Every fault that may happen now.
    ///
    /// What befalls one process, and changes no row, commutes with whatever the others do: in a fixed order it comes before a
    /// step of `next`, whose turn it is, or between two ticks (`None`).
    pub(crate) fn faults(&self, state: &State, next: Option<usize>, steps: &mut Vec<Step>) {
        let none = ChangefeedUuid(0);
        let has_turn = |index: &usize| self.order == Order::Any || next.is_none_or(|next| next == *index);
        for fault in self.kinds {
            match fault {
                Fault::Outage if !state.db_up => {}
                Fault::Outage | Fault::ClockJump | Fault::Depose => steps.push(Step::Fault(*fault, 0, none)),
                Fault::PauseOrResume => {
                    steps.extend(state.sinks.keys().map(|changefeed| Step::Fault(*fault, 0, *changefeed)));
                }
                Fault::Drain => {
                    let registered =
                        (0..state.processes.len()).filter(|index| state.processes[*index].capture.is_some());
                    steps.extend(registered.map(|index| Step::Fault(*fault, index, none)));
                }
                Fault::TaskFails => {
                    for (index, process) in state.processes.iter().enumerate() {
                        let running = process.capture.iter().flat_map(|capture| &capture.feeds);
                        let running = running.filter(|(changefeed, feed)| {
                            feed.running.is_some()
                                && has_turn(&index)
                                && process.life == Life::Runs
                                && !has_flush(state, index, **changefeed)
                        });
                        steps.extend(running.map(|(changefeed, _)| Step::Fault(*fault, index, *changefeed)));
                    }
                }
                _ => {
                    let may = (0..state.processes.len())
                        .filter(|index| has_turn(index) && self.may_break(state, *fault, *index));
                    steps.extend(may.map(|index| Step::Fault(*fault, index, none)));
                }
            }
        }
    }

    fn may_break(&self, state: &State, fault: Fault, index: usize) -> bool {
        let process = &state.processes[index];
        if process.life != Life::Runs {
            return false;
        }
        let Some(capture) = &process.capture else { return fault == Fault::LoseAnswers };
        let answers = process.path == Path::Up && state.db_up && capture.held.is_none();
        match fault {
            Fault::LoseRequests | Fault::LoseAnswers | Fault::Delay => process.path == Path::Up,
            Fault::SuspendInBeat => answers && !capture.done.beat,
            Fault::SuspendInLook => answers && !capture.done.look,
            Fault::SuspendInScan => answers && self.duties(state, index).contains(&Duty::Scan),
            _ => true,
        }
    }

    /// Something goes wrong.
    pub(crate) fn break_something(
        &self,
        state: &mut State,
        fault: Fault,
        index: usize,
        changefeed: ChangefeedUuid,
    ) {
        state.faults_left -= 1;
        state.calm = 0;
        match fault {
            Fault::Crash => {
                let process = &mut state.processes[index];
                process.life = Life::Dead;
                process.path = Path::Up;
                process.capture = None;
                process.launch_from = BootTime::default();
                // What is on its way reaches the outside or does not; nobody is there to hear of it.
                state.flushes.retain(|flush| flush.process != index || !flush.written);
            }
            Fault::Suspend => state.processes[index].life = Life::Suspended,
            Fault::SuspendInBeat => {
                if let Some((sent_at, next)) = self.send_beat(state, index) {
                    state.hold(index, Held::Beat(sent_at, next));
                }
            }
            Fault::SuspendInLook => {
                if let Some(look) = self.ask_look(state, index) {
                    state.hold(index, Held::Look(Box::new(look)));
                }
            }
            Fault::SuspendInScan => {
                if let Some(beats) = self.ask_scan(state, index) {
                    state.hold(index, Held::Scan(beats));
                }
            }
            Fault::LoseRequests => state.processes[index].path = Path::RequestsLost,
            Fault::LoseAnswers => state.processes[index].path = Path::AnswersLost,
            Fault::Delay => state.processes[index].path = Path::Late,
            Fault::Outage => state.db_up = false,
            Fault::ClockJump => state.db.clock_jumped = !state.db.clock_jumped,
            Fault::TaskFails => self.task_fails(state, index, changefeed),
            Fault::PauseOrResume => {
                let runs =
                    state.db.tables().status(changefeed).is_some_and(|status| status.state.is_runnable());
                drop(state.commit(|store| async move {
                    if runs {
                        store.changefeed_pause(changefeed).await
                    } else {
                        store.changefeed_resume(changefeed, None).await
                    }
                }));
            }
            Fault::Depose => {
                drop(state.commit(|store| async move { store.controller_depose().await }));
            }
            Fault::Drain => {
                if let Some(capture) =
                    state.processes[index].capture.as_ref().map(|capture| capture.term.capture)
                {
                    drop(state.commit(|store| async move { store.capture_drain(capture).await }));
                }
            }
        }
    }
}
