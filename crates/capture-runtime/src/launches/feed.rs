//! One changefeed on this capture, with its task.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use metadata_api::model::{
    BootTime, CaptureId, ChangefeedInfo, ChangefeedProgress, ChangefeedUuid, FeedState, OwnedProgress,
    OwnerEpoch, OwnerTerm, RunningError, ScheduleState, Ts, UpstreamInfo,
};
use metadata_api::store::{OwnerEnd, OwnerRelease};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::entry::{Entry, Outcome, Phase};
use super::failing::{Failing, Verdict};
use super::shown::Shown;
use super::state_report::StateReport;
use crate::admission::{Admission, Deadline};
use crate::task::{ProgressReporter, Share, TaskContext, TaskEnd, TaskError};

/// The task of one launch, from the outside.
pub(super) struct Running {
    pub(super) term: OwnerTerm,
    pub(super) info: Arc<ChangefeedInfo>,
    pub(super) admission: Admission,
    pub(super) stop: CancellationToken,
    pub(super) start: ChangefeedProgress,
    pub(super) latest: watch::Receiver<ChangefeedProgress>,
    pub(super) phase: Phase,
    /// Since when it has been in [`Phase::Fenced`].
    pub(super) fenced_at: Option<BootTime>,
    /// Its metrics, once they were set.
    pub(super) shown: Option<Shown>,
}

/// What a launch is to run, and where it begins.
pub(super) struct Begin {
    pub(super) term: OwnerTerm,
    pub(super) share: Option<Share>,
    pub(super) launch: u64,
    pub(super) info: Arc<ChangefeedInfo>,
    pub(super) upstream: UpstreamInfo,
    pub(super) start: ChangefeedProgress,
}

/// A launch's future, whose panic is an error like any other.
pub(super) async fn run_caught(
    running: impl Future<Output = Result<TaskEnd, TaskError>>,
    panicked: &'static str,
) -> Result<TaskEnd, TaskError> {
    let result = AssertUnwindSafe(running).catch_unwind().await;
    result.unwrap_or_else(|_| Err(TaskError::retryable("CDC:ErrInternalServerError", panicked)))
}

impl Running {
    /// Both sides of a launch under the capture's deadline: what is kept of it, and what its task is given.
    pub(super) fn begin(begin: Begin, deadline: Deadline) -> (Self, TaskContext) {
        let Begin { term, share, launch, info, upstream, start } = begin;
        let admission = Admission::new(deadline);
        let (reporter, latest) = ProgressReporter::new(admission.clone(), start.clone());
        let stop = CancellationToken::new();
        let running = Self {
            term,
            info: info.clone(),
            admission: admission.clone(),
            stop: stop.clone(),
            start: start.clone(),
            latest,
            phase: Phase::Admitting,
            fenced_at: None,
            shown: None,
        };
        (running, TaskContext { term, share, launch, info, upstream, start, admission, reporter, stop })
    }

    /// Told to stop: no new flush; the one in hand may end and be reported.
    pub(super) fn drain(&mut self) {
        self.phase = Phase::Draining;
        self.admission.close();
        self.stop.cancel();
    }

    /// No flush and no report any more.
    pub(super) fn fence(&mut self) {
        self.phase = Phase::Fenced;
        self.admission.fence();
        self.stop.cancel();
    }

    /// It may not flush any more, and what it reports is dropped.
    pub(super) fn is_fenced(&self) -> bool {
        self.phase == Phase::Fenced || self.admission.is_fenced()
    }

    /// Whether it was told to stop, or fenced.
    pub(super) fn was_told(&self) -> bool {
        self.phase != Phase::Admitting || self.admission.is_fenced()
    }

    /// Whether it goes on for so long after it was fenced that only the end of the process stops it for certain. Says `None`
    /// when it is not fenced.
    pub(super) fn is_stuck(&mut self, now: BootTime, after: Duration) -> Option<bool> {
        (self.phase == Phase::Fenced).then(|| now.since(*self.fenced_at.get_or_insert(now)) >= after)
    }
}

/// One changefeed on this capture.
pub(super) struct Feed {
    pub(super) order: (ScheduleState, OwnerEpoch),
    pub(super) running: Option<Running>,
    pub(super) ended: Option<(OwnerEpoch, Outcome)>,
    pub(super) failure: Option<RunningError>,
    pub(super) asking: bool,
    pub(super) unknown_flush: bool,
    pub(super) retry_at: Option<BootTime>,
    pub(super) launches: u64,
    pub(super) state: StateReport,
    /// The last progress of a task that has ended.
    progress: Option<(OwnerEpoch, ChangefeedProgress)>,
    failing: Option<Failing>,
}

impl Feed {
    pub(super) fn new(order: (ScheduleState, OwnerEpoch)) -> Self {
        Self {
            order,
            running: None,
            ended: None,
            failure: None,
            asking: false,
            unknown_flush: false,
            retry_at: None,
            launches: 0,
            state: StateReport::new(FeedState::Uninitialized, None),
            progress: None,
            failing: None,
        }
    }

    /// Takes in an order; a new epoch begins anew.
    pub(super) fn take_order(&mut self, order: (ScheduleState, OwnerEpoch)) {
        if self.order.1 != order.1 {
            self.retry_at = None;
            self.failing = None;
            self.state = StateReport::new(FeedState::Uninitialized, None);
            self.launches = 0;
        }
        self.order = order;
    }

    /// The part that [`next_step`](super::next_step) decides upon.
    pub(super) fn entry(&self, now: BootTime) -> Entry {
        Entry {
            order: self.order,
            running: self.running.as_ref().map(|running| (running.term.epoch, running.phase)),
            ended: self.ended,
            asking: self.asking,
            unknown_flush: self.unknown_flush,
            backing_off: self.retry_at.is_some_and(|at| now < at),
        }
    }

    /// The furthest durable progress under `epoch`, if it ran under it here.
    pub(super) fn progress_under(&self, epoch: OwnerEpoch) -> Option<ChangefeedProgress> {
        if let Some(running) = &self.running {
            return (running.term.epoch == epoch).then(|| running.latest.borrow().clone());
        }
        self.progress.as_ref().filter(|(made, _)| *made == epoch).map(|(_, progress)| progress.clone())
    }

    /// The entry for the capture's progress row.
    pub(super) fn owned_progress(&self) -> Option<OwnedProgress> {
        let owner_epoch = self.running.as_ref().map_or(self.order.1, |running| running.term.epoch);
        self.progress_under(owner_epoch).map(|progress| OwnedProgress::new(owner_epoch, progress))
    }

    /// The task has ended. Gives what it was, and whether it had moved since its start.
    pub(super) fn end(&mut self, outcome: Outcome, failure: Option<RunningError>) {
        let Some(running) = self.running.take() else { return };
        let progress = running.latest.borrow().clone();
        self.failing.take_if(|failing| failing.is_over(progress.checkpoint_ts));
        self.unknown_flush |= running.admission.outstanding() > 0;
        self.progress = Some((running.term.epoch, progress));
        self.ended = Some((running.term.epoch, outcome));
        self.failure = failure;
    }

    /// Its task has ended with an error that trying again may mend: when is that, if at all?
    pub(super) fn verdict(&mut self, now: BootTime, give_up_after: Duration) -> Verdict {
        let checkpoint = self.progress.as_ref().map_or(Ts(0), |(_, progress)| progress.checkpoint_ts);
        self.failing.get_or_insert_with(|| Failing::new(now, checkpoint)).verdict(now, give_up_after)
    }

    /// It stood still because the database was away, not by its own fault.
    pub(super) fn forgive(&mut self) {
        self.failing = None;
    }

    /// It ended by itself, for good: released with this error.
    pub(super) fn give_up(&mut self, failure: RunningError) {
        if let Some((_, outcome)) = &mut self.ended {
            *outcome = Outcome::Failed;
        }
        self.failure = Some(failure);
    }

    /// The last word on the launch of `epoch`.
    pub(super) fn release(
        &self,
        changefeed: ChangefeedUuid,
        capture: CaptureId,
        epoch: OwnerEpoch,
    ) -> OwnerRelease {
        let end = match (&self.ended, &self.failure) {
            (Some((ended, Outcome::Finished)), _) if *ended == epoch => Some(OwnerEnd::Finished),
            (Some((ended, Outcome::Failed)), Some(error)) if *ended == epoch => {
                Some(OwnerEnd::Failed(error.clone()))
            }
            _ => None,
        };
        OwnerRelease {
            term: OwnerTerm { changefeed, capture, epoch },
            task_position: self.progress_under(epoch),
            end,
        }
    }
}
