//! What a process runs: launches, flushes, releases, progress.

use std::time::Duration;

use capture_runtime::admission::NotAdmitted;
use capture_runtime::launches::{LaunchStep, Outcome, Phase};
use capture_runtime::task::MAX_FLUSH_TIMEOUT;
use metadata_api::model::{
    CaptureProgress, ChangefeedProgress, ChangefeedUuid, OwnedProgress, OwnerEpoch, OwnerTerm, ScheduleState,
    Ts,
};
use metadata_api::store::{CaptureStore as _, ControllerStore as _, OwnerRelease, OwnerStore as _};

use crate::cluster::{Cluster, Duty};
use crate::state::{Asking, Capture, Feed, Flush, Late, Life, Running, State, Violation};

impl Cluster {
    pub(crate) fn work_duties(
        &self,
        state: &State,
        index: usize,
        capture: &Capture,
        alive: bool,
        duties: &mut Vec<Duty>,
    ) {
        for (changefeed, feed) in &capture.feeds {
            if feed.asking.is_some() {
                duties.push(Duty::Ask(*changefeed));
            }
            if feed.running.is_some_and(|running| running.phase != Phase::Admitting || running.fenced)
                && !has_flush(state, index, *changefeed)
            {
                duties.push(Duty::End(*changefeed));
            }
        }
        let now = capture.situation;
        if capture.done.advance || !alive || !now.alive || now.expelled {
            return;
        }
        if now.recovering {
            if capture.feeds.values().all(|feed| feed.running.is_none()) {
                duties.push(Duty::Recover);
            }
        } else if progress(capture) != capture.advanced {
            duties.push(Duty::Advance);
        }
    }

    /// Why a launch may not flush now.
    pub(crate) fn refused(
        &self,
        state: &State,
        capture: &Capture,
        running: &Running,
        timeout: Duration,
    ) -> Option<NotAdmitted> {
        let stopping = running.phase != Phase::Admitting;
        (self.decisions.refusal)(running.fenced, stopping, state.left(capture.until), timeout)
    }

    /// The orders reach the launches.
    pub(crate) fn pass_orders_on(&self, state: &mut State, index: usize) {
        let Some(capture) = state.processes[index].capture.as_mut() else { return };
        for (changefeed, order) in &capture.orders {
            let order = (order.state, order.epoch);
            capture.feeds.entry(*changefeed).or_insert_with(|| Feed::new(order)).order = order;
        }
        for (changefeed, feed) in &mut capture.feeds {
            if !capture.orders.contains_key(changefeed) {
                feed.order.0 = ScheduleState::Removed;
            }
        }
    }

    /// Brings everything in line with what the process knows.
    pub(crate) fn settle(&self, state: &mut State, index: usize) {
        let process = &state.processes[index];
        let Some(capture) = &process.capture else { return };
        let alive = state.is_alive(capture);
        let now = state.now;
        let process = &mut state.processes[index];
        let Some(capture) = process.capture.as_mut() else { return };
        capture.situation.recovering |= capture.situation.alive && !alive;
        capture.situation.alive = alive;
        if !alive {
            capture.office = None;
        }
        let (situation, asked) = (capture.situation, capture.done.asked);
        capture.feeds.retain(|_, feed| {
            match (self.decisions.next_step)(&feed.entry(), situation) {
                // What the store did not answer is asked again in the next tick.
                LaunchStep::Launch(_) | LaunchStep::Release(_) if asked => {}
                LaunchStep::Wait => {}
                LaunchStep::Drain => set_phase(feed, Phase::Draining),
                LaunchStep::Fence => set_phase(feed, Phase::Fenced),
                LaunchStep::Launch(epoch) => feed.asking = Some(Asking::Launch(epoch)),
                LaunchStep::Release(epoch) => feed.asking = Some(Asking::Release(epoch)),
                LaunchStep::Drop => return false,
            }
            true
        });
        if situation.expelled && capture.feeds.values().all(|feed| feed.running.is_none()) {
            process.capture = None;
            process.launch_from = now + self.decisions.policy.offline_after;
        }
    }

    // ---- asking the store ----

    pub(crate) fn ask(&self, state: &mut State, index: usize, changefeed: ChangefeedUuid) {
        let capture = state.processes[index].capture.as_ref();
        match capture.and_then(|capture| capture.feeds.get(&changefeed)).and_then(|feed| feed.asking) {
            Some(Asking::Launch(epoch)) => self.ask_launch(state, index, changefeed, epoch),
            Some(Asking::Release(epoch)) => self.ask_release(state, index, changefeed, epoch),
            None => {}
        }
    }

    fn ask_launch(&self, state: &mut State, index: usize, changefeed: ChangefeedUuid, epoch: OwnerEpoch) {
        let Some(term) = state.processes[index].capture.as_ref().map(|capture| capture.term) else { return };
        let answer =
            state.query(index, |store| async move { store.owner_launches(term, &[changefeed]).await });
        let Some(capture) = state.processes[index].capture.as_mut() else { return };
        let situation = capture.situation;
        let Some(feed) = capture.feeds.get_mut(&changefeed) else { return };
        feed.asking = None;
        let launch = answer.and_then(Result::ok).and_then(|launches| launches.into_iter().next());
        let launch = launch.filter(|launch| launch.term.epoch == epoch && launch.status.state.is_runnable());
        let Some(launch) = launch else {
            capture.done.asked = true;
            return;
        };
        if (self.decisions.next_step)(&feed.entry(), situation) != LaunchStep::Launch(epoch) {
            return;
        }
        let stored = launch.progress;
        let start = match feed.progress_under(epoch) {
            Some(reported) => (self.decisions.start)(stored, ChangefeedProgress::at(Ts(reported))),
            None => stored,
        };
        let at = start.checkpoint_ts.0;
        feed.running = Some(Running { epoch, phase: Phase::Admitting, fenced: false, at });
        if state.sinks.get(&changefeed).is_some_and(|sink| at > sink.high) {
            state.violation.get_or_insert(Violation::Skipped);
        }
    }

    fn ask_release(&self, state: &mut State, index: usize, changefeed: ChangefeedUuid, epoch: OwnerEpoch) {
        let Some(capture) = state.processes[index].capture.as_mut() else { return };
        let Some(feed) = capture.feeds.get_mut(&changefeed) else { return };
        feed.asking = None;
        let release = OwnerRelease {
            term: OwnerTerm { changefeed, capture: capture.term.capture, epoch },
            task_position: feed.progress_under(epoch).map(|at| ChangefeedProgress::at(Ts(at))),
            end: None,
        };
        let compared = self.compare(state, &release);
        let answer = state.call(
            index,
            || Some(Late::Release(release)),
            |store| async move { store.owner_release(&[compared]).await },
        );
        let answer = answer.and_then(Result::ok).and_then(|answers| answers.into_iter().next());
        let done = match answer {
            Some(Ok(())) => true,
            Some(Err(error)) => error.is_fenced(),
            None => false,
        };
        let Some(capture) = state.processes[index].capture.as_mut() else { return };
        if !done {
            capture.done.asked = true;
            return;
        }
        capture.orders.retain(|uuid, order| *uuid != changefeed || order.epoch > epoch);
        if let Some(feed) = capture.feeds.get_mut(&changefeed)
            && feed.order.1 == epoch
        {
            feed.order.0 = ScheduleState::Removed;
        }
    }

    /// A release as the database compares it.
    fn compare(&self, state: &State, release: &OwnerRelease) -> OwnerRelease {
        let row = state.db.tables().schedule(release.term.changefeed);
        let term = row.map_or(release.term, |row| (self.decisions.compared)(release.term, row));
        OwnerRelease { term, ..release.clone() }
    }

    // ---- progress ----

    /// Whether it was written.
    pub(crate) fn advance(&self, state: &mut State, index: usize) -> bool {
        let Some(capture) = state.processes[index].capture.as_mut() else { return false };
        capture.done.advance = true;
        capture.progress_seq += 1;
        let (term, seq, value) = (capture.term, capture.progress_seq, progress(capture));
        let (sent, late) = (value.clone(), Late::Advance(term, seq, value.clone()));
        let answer = state.call(
            index,
            || Some(late),
            |store| async move { store.capture_advance(term, seq, &sent).await },
        );
        match answer {
            Some(Ok(())) => {
                if let Some(capture) = &mut state.processes[index].capture {
                    capture.advanced = value;
                }
                true
            }
            Some(Err(error)) => {
                state.refused_for_good(index, error.is_fenced());
                false
            }
            None => false,
        }
    }

    pub(crate) fn recover(&self, state: &mut State, index: usize) {
        if !self.advance(state, index) {
            return;
        }
        let Some(term) = state.processes[index].capture.as_ref().map(|capture| capture.term) else { return };
        let read = state.query(index, |store| async move { store.capture_progress(term).await });
        if let (Some(Ok(_)), Some(capture)) = (read, &mut state.processes[index].capture) {
            capture.situation.recovering = false;
        }
    }

    // ---- tasks and flushes ----

    /// What may begin a flush.
    pub(crate) fn flushable(&self, state: &State, index: usize) -> Vec<ChangefeedUuid> {
        let Some(capture) = &state.processes[index].capture else { return Vec::new() };
        let may = |changefeed: &ChangefeedUuid, feed: &Feed| {
            feed.running
                .is_some_and(|running| self.refused(state, capture, &running, MAX_FLUSH_TIMEOUT).is_none())
                && !has_flush(state, index, *changefeed)
        };
        capture
            .feeds
            .iter()
            .filter(|(changefeed, feed)| may(changefeed, feed))
            .map(|(uuid, _)| *uuid)
            .collect()
    }

    pub(crate) fn flush(&self, state: &mut State, index: usize, changefeed: ChangefeedUuid) {
        let Some(capture) = &state.processes[index].capture else { return };
        let Some(running) = capture.feeds.get(&changefeed).and_then(|feed| feed.running) else { return };
        state.flushes.push(Flush {
            process: index,
            term: OwnerTerm { changefeed, capture: capture.term.capture, epoch: running.epoch },
            from: running.at,
            ends_by: state.now + MAX_FLUSH_TIMEOUT,
            written: false,
        });
    }

    /// A flush reaches the outside.
    pub(crate) fn reach(&self, state: &mut State, number: usize) {
        let flush = state.flushes[number];
        let to = (flush.from + 1).min(self.cap);
        let sink = state.sinks.entry(flush.term.changefeed).or_default();
        if flush.term.epoch < sink.epoch {
            state.violation.get_or_insert(Violation::EpochWentBack);
        }
        if flush.from > sink.high {
            state.violation.get_or_insert(Violation::Skipped);
        }
        sink.epoch = sink.epoch.max(flush.term.epoch);
        sink.high = sink.high.max(to);
        let life = state.processes[flush.process].life;
        match life {
            Life::Runs => {
                state.flushes.remove(number);
                self.report(state, &flush, to);
            }
            // Its process hears of it when it goes on.
            Life::Suspended => state.flushes[number].written = true,
            Life::Dead => drop(state.flushes.remove(number)),
        }
    }

    /// A flush ends for its process: written, or too late to be.
    pub(crate) fn expire(&self, state: &mut State, number: usize) {
        let flush = state.flushes.remove(number);
        if flush.written {
            self.report(state, &flush, (flush.from + 1).min(self.cap));
        }
    }

    fn report(&self, state: &mut State, flush: &Flush, to: u64) {
        let Some(capture) = &state.processes[flush.process].capture else { return };
        if capture.term.capture != flush.term.capture {
            return;
        }
        let alive = state.is_alive(capture);
        let Some(capture) = &mut state.processes[flush.process].capture else { return };
        let running = capture.feeds.get_mut(&flush.term.changefeed).and_then(|feed| feed.running.as_mut());
        if let Some(running) = running.filter(|running| running.epoch == flush.term.epoch) {
            running.fenced |= !alive;
            if !running.fenced {
                running.at = running.at.max(to);
            }
        }
    }

    /// A task ends that was told to stop, or that found out by itself that it may not write any more.
    pub(crate) fn end(&self, state: &mut State, index: usize, changefeed: ChangefeedUuid) {
        let capture = state.processes[index].capture.as_mut();
        if let Some(feed) = capture.and_then(|capture| capture.feeds.get_mut(&changefeed)) {
            feed.end(Outcome::Stopped);
        }
    }

    /// A task ends with an error.
    pub(crate) fn task_fails(&self, state: &mut State, index: usize, changefeed: ChangefeedUuid) {
        let capture = state.processes[index].capture.as_mut();
        if let Some(feed) = capture.and_then(|capture| capture.feeds.get_mut(&changefeed)) {
            feed.end(Outcome::Retry);
        }
        self.settle(state, index);
    }

    // ---- what arrives late ----

    pub(crate) fn arrive(&self, state: &mut State, number: usize) {
        match state.inbox.remove(number) {
            Late::Advance(term, seq, value) => {
                drop(state.commit(|store| async move { store.capture_advance(term, seq, &value).await }));
            }
            Late::Release(release) => {
                let compared = self.compare(state, &release);
                drop(state.commit(|store| async move { store.owner_release(&[compared]).await }));
            }
            Late::Set(term, targets) => {
                drop(state.commit(|store| async move { store.owner_set(term, &targets).await }));
            }
            Late::Seal(term, capture, seq) => {
                drop(state.commit(|store| async move { store.capture_seal(term, capture, seq).await }));
            }
        }
    }
}

/// All that a capture has to say of what it runs, or ran last.
fn progress(capture: &Capture) -> CaptureProgress {
    let entries = capture.feeds.iter().filter_map(|(changefeed, feed)| {
        let owner_epoch = feed.running.map_or(feed.order.1, |running| running.epoch);
        let at = feed.progress_under(owner_epoch)?;
        Some((*changefeed, OwnedProgress::new(owner_epoch, ChangefeedProgress::at(Ts(at)))))
    });
    CaptureProgress(entries.collect())
}

/// Whether the process's present incarnation waits for a flush.
pub(crate) fn has_flush(state: &State, index: usize, changefeed: ChangefeedUuid) -> bool {
    let Some(capture) = &state.processes[index].capture else { return false };
    let me = capture.term.capture;
    state.flushes.iter().any(|flush| flush.term.capture == me && flush.term.changefeed == changefeed)
}

fn set_phase(feed: &mut Feed, phase: Phase) {
    if let Some(running) = &mut feed.running {
        running.phase = phase;
        running.fenced |= phase == Phase::Fenced;
    }
}
