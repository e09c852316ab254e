//! The event loop over all changefeeds of this capture.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    BootTime, CaptureProgress, ChangefeedUuid, OwnerEpoch, OwnerLaunch, OwnerTerm, ProcessorTerm,
    RunningError, ScheduleState,
};
use metadata_api::observation::{CaptureObservation, OwnerChange};
use metadata_api::store::{MAX_BATCH, OwnerRelease};
use metadata_api::{MetadataError, Result};
use metrics::{counter, gauge};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::carrying::Spec;
use super::coordinator;
use super::entry::{LaunchStep, Outcome, Phase, Situation, next_step};
use super::failing::Verdict;
use super::feed::{Begin, Feed, Running, run_caught};
use super::shares::{LastWord, Shares};
use super::shown::Shown;
use super::state_report::StateReport;
use crate::RuntimeError;
use crate::observer::{CaptureObserver, Inner};
use crate::pace;
use crate::task::{Share, TaskEnd, TaskError, TaskFactory};

/// Between two looks at everything: progress is written, states are reported.
const TICK: Duration = Duration::from_secs(1);
/// How soon to look again while the deadline has passed.
const FENCED_TICK: Duration = Duration::from_millis(100);
/// How long a task may go on after it was fenced. Past it only the end of the process stops it for certain.
const STUCK_AFTER: Duration = Duration::from_secs(4);
/// How long a stop goes on trying to release what has stopped.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);
/// How many states are being written at a time: a thousand changefeeds may fail in one moment, and the pool has other work. (A
/// store may commit those that wait together.)
const REPORTS_AT_A_TIME: usize = 16;
/// Before the store is asked again about a launch that it did not confirm.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Why [`run`] ended.
#[derive(Debug)]
pub(crate) enum Exit {
    /// Everything was stopped and released. These the owners of tables that were carried here may not have read yet.
    Released(Vec<LastWord>),
    /// Everything was stopped, but a flush of unknown outcome forbids releasing something, or the database did not answer.
    Unreleased,
    /// The incarnation is over; everything was stopped.
    Expelled,
}

/// What came back from the store or a task.
pub(super) enum Event {
    TaskEnded { changefeed: ChangefeedUuid, result: Result<TaskEnd, TaskError> },
    Loaded { asked: Vec<(ChangefeedUuid, OwnerEpoch)>, result: Result<Vec<OwnerLaunch>> },
    Released { asked: Vec<OwnerRelease>, result: Result<Vec<Result<()>>> },
    Advanced { written: CaptureProgress, result: Result<()> },
    Recovered(Result<()>),
    Reported { changefeed: ChangefeedUuid, result: Result<()> },
    ShareLoaded { term: ProcessorTerm, result: Result<Spec> },
    ShareEnded { share: Share, result: Result<TaskEnd, TaskError> },
    ShareReleased { term: ProcessorTerm, result: Result<()> },
}

pub(super) struct Manager {
    pub(super) observer: CaptureObserver,
    pub(super) factory: Arc<dyn TaskFactory>,
    feeds: BTreeMap<ChangefeedUuid, Feed>,
    pub(super) shares: Shares,
    pub(super) situation: Situation,
    /// The capture has been alive once.
    started: bool,
    /// Since when it has been stopping, with no task left.
    stopped_since: Option<BootTime>,
    pub(super) tasks: JoinSet<Event>,
    pub(super) asks: JoinSet<Event>,
    reports: Arc<Semaphore>,
    to_launch: BTreeMap<ChangefeedUuid, OwnerEpoch>,
    loading: bool,
    to_release: BTreeMap<ChangefeedUuid, OwnerEpoch>,
    releasing: bool,
    /// No release before it: the last one could not be written.
    release_from: BootTime,
    pub(super) advanced: CaptureProgress,
    advancing: bool,
    /// Somebody waits for what there is to say: it is written at once, and not at the next tick.
    pub(super) advance_soon: bool,
    restoring: bool,
    /// No try to recover before it: the last one failed.
    recover_from: BootTime,
    /// Some task was fenced and has not ended.
    fencing: bool,
    ticked_at: BootTime,
}

/// Runs what the capture's orders say, until `stop` (graceful) or until the incarnation is over.
///
/// # Errors
/// [`RuntimeError::TaskStuck`] when a task outlived its fence: the process must end.
pub(crate) async fn run(
    observer: CaptureObserver,
    factory: Arc<dyn TaskFactory>,
    stop: CancellationToken,
) -> Result<Exit, RuntimeError> {
    let mut orders = observer.owner_changes();
    let mut carried = if factory.runs_processors() {
        observer.processor_changes().fuse().boxed()
    } else {
        futures::stream::empty().boxed()
    };
    let now = observer.inner.clock.now();
    let mut manager = Manager {
        observer,
        factory,
        feeds: BTreeMap::new(),
        shares: Shares::default(),
        situation: Situation { alive: false, recovering: false, stopping: false, expelled: false },
        started: false,
        stopped_since: None,
        tasks: JoinSet::new(),
        asks: JoinSet::new(),
        reports: Arc::new(Semaphore::new(REPORTS_AT_A_TIME)),
        to_launch: BTreeMap::new(),
        loading: false,
        to_release: BTreeMap::new(),
        releasing: false,
        release_from: now,
        advanced: CaptureProgress::default(),
        advancing: false,
        advance_soon: false,
        restoring: false,
        recover_from: now,
        fencing: false,
        ticked_at: now,
    };
    loop {
        manager.settle()?;
        if let Some(exit) = manager.exit() {
            return Ok(exit);
        }
        let wake = manager.wake_in();
        let situation = manager.situation;
        tokio::select! {
            biased;
            () = manager.observer.inner.fence_token().cancelled(), if !situation.expelled => {
                manager.situation.expelled = true;
            }
            () = stop.cancelled(), if !situation.stopping => manager.situation.stopping = true,
            Some(order) = orders.next() => manager.order(order),
            Some(order) = carried.next() => manager.shares.order(order),
            Some(ended) = manager.tasks.join_next() => manager.take_in(intact(ended)?),
            Some(answered) = manager.asks.join_next() => manager.take_in(intact(answered)?),
            () = tokio::time::sleep(wake) => {}
        }
    }
}

/// What a task of the loop's own gave. The store's and the changefeeds' panics are caught inside it: this one is the runtime's.
fn intact(ended: Result<Event, JoinError>) -> Result<Event, RuntimeError> {
    ended.map_err(|panic| {
        MetadataError::Unavailable { transaction: "capture.launches", source: Box::new(panic) }.into()
    })
}

/// A call of the store, whose panic is an error like any other: whoever waits for the answer must get one.
pub(super) async fn caught<T>(transaction: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| {
        Err(MetadataError::Unavailable { transaction, source: "the store panicked; see the log".into() })
    })
}

/// Looks launches up. Where one of them does not decode, in halves, so that it keeps no other waiting.
async fn launches(inner: &Inner, changefeeds: &[ChangefeedUuid]) -> Result<Vec<OwnerLaunch>> {
    let mut found = Vec::with_capacity(changefeeds.len());
    let mut parts = vec![changefeeds];
    while let Some(part) = parts.pop() {
        match inner.store.owner_launches(inner.term, part).await {
            Ok(launches) => found.extend(launches),
            Err(MetadataError::Corrupt { .. }) if part.len() > 1 => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
            Err(error @ MetadataError::Corrupt { .. }) if changefeeds.len() > 1 => {
                tracing::debug!(%error, "a changefeed cannot be launched before its row is mended");
            }
            Err(error) if found.is_empty() => return Err(error),
            // What was found is launched; the rest is asked for again.
            Err(_) => break,
        }
    }
    Ok(found)
}

impl Manager {
    pub(super) fn now(&self) -> BootTime {
        self.observer.inner.clock.now()
    }

    fn order(&mut self, change: OwnerChange) {
        let order = (change.state, change.epoch);
        match self.feeds.get_mut(&change.changefeed) {
            Some(feed) => feed.take_order(order),
            None if change.state == ScheduleState::Removed => {}
            None => {
                self.feeds.insert(change.changefeed, Feed::new(order));
            }
        }
    }

    /// Brings everything in line with what is known now.
    fn settle(&mut self) -> Result<(), RuntimeError> {
        self.look_at_deadline();
        let now = self.now();
        let situation = self.situation;
        let mut dropped = Vec::new();
        for (changefeed, feed) in &mut self.feeds {
            match next_step(&feed.entry(now), situation) {
                LaunchStep::Wait => {}
                LaunchStep::Drain => feed.running.iter_mut().for_each(Running::drain),
                LaunchStep::Fence => feed.running.iter_mut().for_each(Running::fence),
                LaunchStep::Launch(epoch) => {
                    self.to_launch.insert(*changefeed, epoch);
                    feed.asking = true;
                }
                LaunchStep::Release(epoch) => {
                    self.to_release.insert(*changefeed, epoch);
                    feed.asking = true;
                }
                LaunchStep::Drop => dropped.push(*changefeed),
            }
        }
        for changefeed in dropped {
            self.feeds.remove(&changefeed);
        }
        self.settle_shares();
        self.look_for_stuck(now)?;
        self.recover(now);
        self.load();
        self.release(now);
        if now.since(self.ticked_at) >= TICK {
            self.ticked_at = now;
            self.advance();
            self.report_states();
        } else if self.advance_soon {
            self.advance();
        }
        Ok(())
    }

    fn look_at_deadline(&mut self) {
        let alive = !self.observer.deadline().has_passed();
        if alive {
            self.started = true;
        } else if self.situation.alive {
            tracing::warn!(
                capture = %self.observer.term().capture,
                running = self.feeds.values().filter(|feed| feed.running.is_some()).count(),
                "the deadline passed: this capture fences itself and stops all that it runs"
            );
            counter!("cdc_capture_self_fences_total").increment(1);
            self.situation.recovering = true;
        }
        self.situation.alive = alive;
    }

    /// A task that goes on after it was fenced ends with the process, or not at all.
    fn look_for_stuck(&mut self, now: BootTime) -> Result<(), RuntimeError> {
        let mut stuck = Vec::new();
        self.fencing = false;
        let owned = self.feeds.iter_mut().filter_map(|(uuid, feed)| Some((uuid, feed.running.as_mut()?)));
        for (changefeed, running) in owned.chain(self.shares.running()) {
            let is_stuck = running.is_stuck(now, STUCK_AFTER);
            self.fencing |= is_stuck.is_some();
            if is_stuck == Some(true) {
                stuck.push(*changefeed);
            }
        }
        if stuck.is_empty() { Ok(()) } else { Err(RuntimeError::TaskStuck { changefeeds: stuck }) }
    }

    fn exit(&mut self) -> Option<Exit> {
        if !self.tasks.is_empty() {
            return None;
        }
        if self.situation.expelled {
            return Some(Exit::Expelled);
        }
        if !self.situation.stopping {
            return None;
        }
        if self.feeds.is_empty() && self.shares.are_released() {
            return Some(Exit::Released(self.shares.last_words()));
        }
        let now = self.now();
        let waited = now.since(*self.stopped_since.get_or_insert(now));
        let unreleasable =
            self.feeds.values().all(|feed| feed.unknown_flush) && self.shares.are_unreleasable();
        let may_not = self.started && !self.situation.alive;
        (unreleasable || may_not || waited >= RELEASE_LIMIT).then_some(Exit::Unreleased)
    }

    fn wake_in(&self) -> Duration {
        if !self.situation.alive || self.situation.recovering || self.fencing {
            return FENCED_TICK;
        }
        let now = self.now();
        let tick = (self.ticked_at + TICK).since(now);
        let retry = self.feeds.values().filter_map(|feed| feed.retry_at).map(|at| at.since(now));
        let soonest = retry.filter(|left| !left.is_zero()).min().unwrap_or(tick).min(tick);
        soonest.min(self.observer.deadline().left()).max(Duration::from_millis(1))
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::TaskEnded { changefeed, result } => self.task_ended(changefeed, result),
            Event::Loaded { asked, result } => self.loaded(&asked, result),
            Event::Released { asked, result } => self.released(&asked, result),
            Event::Advanced { written, result } => {
                self.advancing = false;
                match result {
                    Ok(()) => self.advanced = written,
                    Err(error @ MetadataError::InvalidArgument { .. }) => {
                        tracing::warn!(%error, "the progress of everything here cannot be written");
                    }
                    Err(error) => tracing::debug!(%error, "the progress was not written; it will be again"),
                }
            }
            Event::Recovered(result) => {
                self.restoring = false;
                match result {
                    Ok(()) => {
                        tracing::info!(capture = %self.observer.term().capture, "recovered: relaunching what is still owned");
                        self.situation.recovering = false;
                        self.feeds.values_mut().for_each(Feed::forgive);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "not recovered yet");
                        self.recover_from = self.now() + ASK_AGAIN;
                    }
                }
            }
            Event::ShareLoaded { term, result } => self.share_loaded(term, result),
            Event::ShareEnded { share, result } => self.share_ended(&share, result),
            Event::ShareReleased { term, result } => self.share_released(term, result),
            Event::Reported { changefeed, result } => {
                if let Some(feed) = self.feeds.get_mut(&changefeed) {
                    feed.state.done(result.is_err_and(|error| error.is_transient()));
                }
            }
        }
    }

    // ---- launching ----

    fn load(&mut self) {
        if self.loading || self.to_launch.is_empty() || !self.situation.alive {
            return;
        }
        self.loading = true;
        let mut asked = Vec::new();
        while asked.len() < MAX_BATCH
            && let Some(item) = self.to_launch.pop_first()
        {
            asked.push(item);
        }
        let inner = self.observer.inner.clone();
        self.asks.spawn(async move {
            let changefeeds: Vec<ChangefeedUuid> = asked.iter().map(|(changefeed, _)| *changefeed).collect();
            let result = caught("capture.launches", launches(&inner, &changefeeds)).await;
            Event::Loaded { asked, result }
        });
    }

    fn loaded(&mut self, asked: &[(ChangefeedUuid, OwnerEpoch)], result: Result<Vec<OwnerLaunch>>) {
        self.loading = false;
        let mut launches: BTreeMap<ChangefeedUuid, OwnerLaunch> = match result {
            Ok(launches) => launches.into_iter().map(|launch| (launch.term.changefeed, launch)).collect(),
            Err(error) => {
                tracing::warn!(%error, changefeeds = asked.len(), "could not look launches up; asking again");
                BTreeMap::new()
            }
        };
        let now = self.now();
        for (changefeed, epoch) in asked {
            let Some(feed) = self.feeds.get_mut(changefeed) else { continue };
            feed.asking = false;
            let launch = launches
                .remove(changefeed)
                .filter(|launch| launch.term.epoch == *epoch && launch.status.state.is_runnable());
            match launch {
                Some(launch) if next_step(&feed.entry(now), self.situation) == LaunchStep::Launch(*epoch) => {
                    self.start(launch);
                }
                Some(_) => {}
                // The order has been overtaken; the watch will tell by what.
                None => feed.retry_at = Some(now + ASK_AGAIN),
            }
        }
    }

    fn start(&mut self, launch: OwnerLaunch) {
        let changefeed = launch.term.changefeed;
        let Some(feed) = self.feeds.get_mut(&changefeed) else { return };
        feed.launches += 1;
        feed.retry_at = None;
        // The write that carries the last launch's reports may still be under way: what is outside already is not started
        // before, and what this launch reports first must not take the stored checkpoint back (I6).
        let start = match feed.progress_under(launch.term.epoch) {
            Some(reported) => launch.progress.further(reported),
            None => launch.progress,
        };
        if feed.launches == 1 {
            feed.state = StateReport::new(launch.status.state, launch.status.error);
        }
        feed.state.tried_again();
        let begin = Begin {
            term: launch.term,
            share: None,
            launch: feed.launches,
            info: Arc::new(launch.info),
            upstream: launch.upstream,
            start,
        };
        let (running, context) = Running::begin(begin, self.observer.deadline().clone());
        tracing::info!(
            changefeed = %running.info.name, uuid = %changefeed, epoch = %launch.term.epoch, launch = feed.launches,
            checkpoint_ts = %running.start.checkpoint_ts, "launching a changefeed"
        );
        counter!("cdc_changefeed_launches_total").increment(1);
        feed.running = Some(running);
        let (observer, factory) = (self.observer.clone(), self.factory.clone());
        self.tasks.spawn(async move {
            let running = coordinator::run(observer, factory, context);
            let result = run_caught(running, "the changefeed's task panicked; see the log").await;
            Event::TaskEnded { changefeed, result }
        });
    }

    fn task_ended(&mut self, changefeed: ChangefeedUuid, result: Result<TaskEnd, TaskError>) {
        let now = self.now();
        let addr = self.observer.inner.info.advertise_addr.clone();
        let clock = self.observer.inner.clock.clone();
        let time = clock.wall();
        let Some(feed) = self.feeds.get_mut(&changefeed) else { return };
        let Some(running) = &feed.running else { return };
        let (name, phase) = (running.info.name.clone(), running.phase);
        let told = phase != Phase::Admitting || running.admission.is_fenced();
        let failure = |error: &TaskError| RunningError {
            time,
            addr: addr.clone(),
            code: error.code.clone().into_owned(),
            message: error.message.clone(),
        };
        match result {
            Ok(TaskEnd::Finished) if phase != Phase::Fenced && !running.admission.is_fenced() => {
                tracing::info!(changefeed = %name, "a changefeed reached its target");
                feed.end(Outcome::Finished, None);
            }
            Ok(_) if told => feed.end(Outcome::Stopped, None),
            Err(error) if told => {
                tracing::info!(changefeed = %name, %error, "a changefeed ended with an error after it was told to stop");
                feed.end(Outcome::Stopped, None);
            }
            Err(error) if !error.retryable => {
                tracing::error!(changefeed = %name, %error, "a changefeed failed");
                feed.end(Outcome::Failed, Some(failure(&error)));
            }
            other => {
                let error = other.err().unwrap_or_else(|| {
                    TaskError::retryable(
                        "CDC:ErrInternalServerError",
                        "the changefeed's task ended by itself",
                    )
                });
                let patience = self.factory.give_up_after(&running.info);
                feed.end(Outcome::Retry, Some(failure(&error)));
                match feed.verdict(now, patience) {
                    Verdict::RetryIn(pause) => {
                        let pause = pace::jittered(clock.as_ref(), pause);
                        feed.retry_at = Some(now + pause);
                        feed.state.pending(failure(&error));
                        tracing::warn!(changefeed = %name, %error, ?pause, "a changefeed stopped and will be tried again");
                    }
                    Verdict::GiveUp(lasted) => {
                        let message = format!(
                            "no progress for {} s of trying again; at last: {error}",
                            lasted.as_secs()
                        );
                        let unretryable = TaskError::fatal("CDC:ErrChangefeedUnretryable", message);
                        tracing::error!(changefeed = %name, error = %unretryable, "a changefeed failed");
                        feed.give_up(failure(&unretryable));
                    }
                }
            }
        }
        if feed.unknown_flush {
            let message =
                "a flush ended without a known outcome: it is not released before this capture ends";
            tracing::error!(changefeed = %name, message);
            let unknown = TaskError::fatal("CDC:ErrSinkUnknownOutcome", message);
            feed.state.warning(failure(&unknown));
        }
    }

    // ---- releasing ----

    fn release(&mut self, now: BootTime) {
        if self.releasing || self.to_release.is_empty() || !self.situation.alive || now < self.release_from {
            return;
        }
        let capture = self.observer.term().capture;
        let mut asked = Vec::new();
        while asked.len() < MAX_BATCH
            && let Some((changefeed, epoch)) = self.to_release.pop_first()
        {
            if let Some(feed) = self.feeds.get(&changefeed) {
                asked.push(feed.release(changefeed, capture, epoch));
            }
        }
        self.releasing = true;
        let inner = self.observer.inner.clone();
        self.asks.spawn(async move {
            let result = caught("owner.release", inner.store.owner_release(&asked)).await;
            Event::Released { asked, result }
        });
    }

    fn released(&mut self, asked: &[OwnerRelease], result: Result<Vec<Result<()>>>) {
        self.releasing = false;
        let answers: Vec<Option<Result<()>>> = match result {
            Ok(answers) => answers.into_iter().map(Some).collect(),
            Err(error) => {
                tracing::warn!(%error, changefeeds = asked.len(), "could not release changefeeds; trying again");
                asked.iter().map(|_| None).collect()
            }
        };
        for (release, answer) in asked.iter().zip(answers) {
            let term = release.term;
            let done = match answer {
                Some(Ok(())) => true,
                // It was released already, or it is somebody else's by now.
                Some(Err(error)) if error.is_fenced() => true,
                Some(Err(error)) => {
                    tracing::warn!(changefeed = %term.changefeed, %error, "could not release a changefeed; trying again");
                    false
                }
                None => false,
            };
            if !done {
                self.release_from = self.now() + ASK_AGAIN;
            }
            if done {
                self.observer.forget_order(term.changefeed, term.epoch);
                counter!("cdc_changefeed_releases_total").increment(1);
            }
            if let Some(feed) = self.feeds.get_mut(&term.changefeed) {
                feed.asking = false;
                if done && feed.order.1 == term.epoch {
                    feed.order.0 = ScheduleState::Removed;
                }
            }
        }
    }

    // ---- recovering, progress, states ----

    /// After a self-fence: once every task has ended, writes the progress and reads it back.
    fn recover(&mut self, now: BootTime) {
        let due = self.situation.alive && self.situation.recovering && !self.restoring && !self.advancing;
        if !due || now < self.recover_from || !self.tasks.is_empty() || self.situation.expelled {
            return;
        }
        self.restoring = true;
        let (observer, progress) = (self.observer.clone(), self.progress());
        self.asks.spawn(async move {
            let restored = async {
                observer.advance(&progress).await?;
                observer.stored_progress().await.map(drop)
            };
            Event::Recovered(caught("capture.recover", restored).await)
        });
    }

    fn progress(&self) -> CaptureProgress {
        let entries =
            self.feeds.iter().filter_map(|(changefeed, feed)| Some((*changefeed, feed.owned_progress()?)));
        let mut entries = entries.collect();
        self.shares.report_into(&mut entries);
        CaptureProgress(entries)
    }

    fn advance(&mut self) {
        let now = self.situation;
        // Once the incarnation is over, what does not run is forgotten: a value without it would take its checkpoint back.
        if self.advancing || !now.alive || now.recovering || now.expelled {
            return;
        }
        let progress = self.progress();
        self.advance_soon = false;
        if progress == self.advanced {
            return;
        }
        self.advancing = true;
        let observer = self.observer.clone();
        self.asks.spawn(async move {
            let result = caught("capture.advance", observer.advance(&progress)).await;
            Event::Advanced { written: progress, result }
        });
    }

    fn report_states(&mut self) {
        let running = self.feeds.values().filter(|feed| feed.running.is_some()).count();
        gauge!("cdc_capture_running_changefeeds").set(f64::from(u32::try_from(running).unwrap_or(u32::MAX)));
        let wall = u64::try_from(self.observer.inner.clock.wall().timestamp_millis()).unwrap_or(0);
        let capture = self.observer.term().capture;
        for (changefeed, feed) in &mut self.feeds {
            if let Some(running) = &mut feed.running {
                let latest = running.latest.borrow().checkpoint_ts;
                if latest > running.start.checkpoint_ts && running.phase == Phase::Admitting {
                    feed.state.normal();
                }
                let shown = running.shown.get_or_insert_with(|| Shown::of(&running.info));
                shown.set(latest.physical_ms(), wall);
            }
            let term = OwnerTerm { changefeed: *changefeed, capture, epoch: feed.order.1 };
            if self.situation.alive
                && !self.situation.expelled
                && feed.order.0 == ScheduleState::Launched
                && let Some((state, error)) = feed.state.due()
            {
                let (store, changefeed) = (self.observer.store().clone(), *changefeed);
                let reports = self.reports.clone();
                self.asks.spawn(async move {
                    let _turn = reports.acquire().await;
                    let report = store.owner_transition(term, FeedEvent::Report(state), error);
                    let result = caught("owner.transition", report).await;
                    Event::Reported { changefeed, result: result.map(drop) }
                });
            }
        }
    }
}
