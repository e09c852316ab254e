//! A capture's life.
//!
//! ```text
//! registering --> running --stop--> stepping down --> draining --> stopping tasks --> releasing --> deregistered
//!      ^             |
//!      +--- fenced --+   (sealed, or the database was restored: every task has ended, then a new id)
//! ```
//!
//! A capture that only lost the database keeps its id: its tasks stop at the deadline, and go on from the stored
//! progress when the database answers again (see [`crate::launches`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::{Future, IntoFuture as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use metadata_api::decision::lease::TimePolicy;
use metadata_api::decision::planner::PlanPolicy;
use metadata_api::model::{BootTime, CaptureId, CaptureState, CaptureTerm, ControllerTerm, NewCapture};
use metadata_api::observation::CaptureObservation;
use metadata_api::store::{MAX_BATCH, MetadataStore};
use metadata_api::{MetadataError, Result};
use metrics::counter;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::RuntimeError;
use crate::clock::Clock;
use crate::controller;
use crate::launches::{self, Exit, LastWord};
use crate::lineage::Lineage;
use crate::observer::{CaptureObserver, lock};
use crate::pace;
use crate::repair::retire;
use crate::task::TaskFactory;

/// How long stepping down as controller may hold up a graceful stop.
const STEP_DOWN_LIMIT: Duration = Duration::from_secs(5);
/// How long it waits until the owners have read where their tables stopped here: they look once a second.
const HEARING_LIMIT: Duration = Duration::from_millis(2_500);
const HEARING_EVERY: Duration = Duration::from_millis(200);
/// How long announcing the stop, and deregistering after it, may each hold it up. Neither is needed for safety.
const FAREWELL_LIMIT: Duration = Duration::from_secs(3);

/// What a capture is.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// `host:port` under which people and programs reach its API.
    pub advertise_addr: String,
    /// The binary's version.
    pub version: String,
    /// Free `key=value` marks.
    pub labels: BTreeMap<String, String>,
    /// The host's machine id, empty if unknown.
    pub machine_id: String,
    /// The time knobs.
    pub time: TimePolicy,
    /// What its controller may do.
    pub plan: PlanPolicy,
    /// What is known of the process that was here before; `None`: nothing, and nothing is kept for the next.
    pub lineage: Option<Arc<dyn Lineage>>,
}

/// How a capture is doing, for an API or a screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureStatus {
    /// Its id in this incarnation; `None` before it has registered.
    pub id: Option<CaptureId>,
    /// It is registered and may act: its deadline has not passed.
    pub ready: bool,
    /// It is stopping gracefully.
    pub stopping: bool,
    /// The controller that it last observed, while that one's lease is valid on this capture's clock.
    pub controller: Option<CaptureId>,
    /// The term that it holds as controller.
    pub leading: Option<ControllerTerm>,
    /// How long it may still act if no further heartbeat succeeds.
    pub deadline_left: Duration,
}

/// One process's capture, through all its incarnations. Cheap to clone.
#[derive(Clone)]
pub struct Capture {
    inner: Arc<CaptureInner>,
}

struct CaptureInner {
    store: Arc<dyn MetadataStore>,
    factory: Arc<dyn TaskFactory>,
    clock: Arc<dyn Clock>,
    config: CaptureConfig,
    current: Mutex<Option<CaptureObserver>>,
    stopping: Mutex<bool>,
}

enum Ended {
    /// The incarnation is over; register anew.
    Expelled,
    /// The capture's life is over.
    Stopped,
}

impl Capture {
    /// A capture that has not started yet.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] when a knob of time or of the planner breaks a rule.
    pub fn new(
        store: Arc<dyn MetadataStore>,
        factory: Arc<dyn TaskFactory>,
        clock: Arc<dyn Clock>,
        config: CaptureConfig,
    ) -> Result<Self> {
        config.time.validate()?;
        config.plan.validate()?;
        let inner = CaptureInner {
            store,
            factory,
            clock,
            config,
            current: Mutex::default(),
            stopping: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The present incarnation; `None` before the first has registered.
    pub fn observer(&self) -> Option<CaptureObserver> {
        lock(&self.inner.current).clone()
    }

    /// How it is doing.
    pub fn status(&self) -> CaptureStatus {
        let observer = self.observer();
        let deadline_left = observer.as_ref().map_or(Duration::ZERO, |observer| observer.deadline().left());
        CaptureStatus {
            id: observer.as_ref().map(|observer| observer.term().capture),
            ready: !deadline_left.is_zero(),
            stopping: *lock(&self.inner.stopping),
            controller: observer.as_ref().and_then(CaptureObserver::observed_controller),
            leading: observer.as_ref().and_then(CaptureObserver::leading),
            deadline_left,
        }
    }

    /// Lives until `stop` is cancelled: registers, beats, watches, campaigns, runs what it owns; registers anew whenever its
    /// incarnation is over. Returns after a graceful stop. Call it once.
    ///
    /// # Errors
    /// [`RuntimeError::TaskStuck`]: the process must end now. [`RuntimeError::Metadata`]: the store refused in a way that
    /// waiting does not mend.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), RuntimeError> {
        let mut launch_from = BootTime::default();
        self.bury_predecessor().await;
        loop {
            let info = self.introduction();
            if let Some(lineage) = &self.inner.config.lineage {
                lineage.remember(info.id);
            }
            let registered = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    // It may have been registered, and nobody heard: a row without a process would be given work.
                    self.deregister(CaptureTerm { capture: info.id }).await;
                    return Ok(());
                }
                registered = self.register(info.clone(), launch_from) => registered,
            };
            let registered = match registered {
                // Registered, not heard of, and declared offline before the next try: this id is used up.
                Err(error) if error.is_fenced() => {
                    tracing::warn!(capture = %info.id, %error, "could not register; trying again under another id");
                    continue;
                }
                registered => registered?,
            };
            tracing::info!(capture = %registered.term().capture, addr = self.inner.config.advertise_addr, "registered");
            *lock(&self.inner.current) = Some(registered.clone());
            match self.incarnation(&registered, &stop).await? {
                Ended::Stopped => return Ok(()),
                Ended::Expelled => {
                    // Whoever was expelled may have been looking at a restored database: as controller it launches
                    // nothing before everybody else's old launches must have fenced themselves.
                    launch_from = self.inner.clock.now() + self.inner.config.time.offline_after;
                    if stop.is_cancelled() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What it says of itself, under a fresh id.
    fn introduction(&self) -> NewCapture {
        let config = &self.inner.config;
        NewCapture {
            id: fresh_id(&*self.inner.clock),
            advertise_addr: config.advertise_addr.clone(),
            version: config.version.clone(),
            labels: config.labels.clone(),
            machine_id: config.machine_id.clone(),
        }
    }

    /// Does for a process that is proven to be dead what it could not do any more. What fails is left to the others, who
    /// find out by its silence.
    async fn bury_predecessor(&self) {
        let Some(lineage) = &self.inner.config.lineage else { return };
        let Some(predecessor) = lineage.dead_predecessor() else { return };
        let machine_id = &self.inner.config.machine_id;
        match self.farewell(|store| bury(store, predecessor, machine_id.clone())).await {
            Ok(true) => {
                tracing::info!(capture = %predecessor, "took the work from the former process here, which is dead");
                counter!("cdc_capture_fast_restarts_total").increment(1);
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(
                capture = %predecessor, %error,
                "could not take the work from the former process here; the controller will find out that it is dead"
            ),
        }
    }

    /// Registers; a lost answer is resolved by repeating it with the same id.
    async fn register(&self, info: NewCapture, launch_from: BootTime) -> Result<CaptureObserver> {
        let time = self.inner.config.time;
        let attempt = || {
            let (store, clock) = (self.inner.store.clone(), self.inner.clock.clone());
            CaptureObserver::register(store, clock, time, info.clone(), launch_from)
        };
        attempt
            .retry(self.jittered(patient()))
            .when(MetadataError::is_transient)
            .notify(|error, pause| tracing::warn!(%error, ?pause, "could not register; trying again"))
            .await
    }

    fn jittered(&self, backoff: ExponentialBuilder) -> ExponentialBuilder {
        backoff.with_jitter().with_jitter_seed(self.inner.clock.random())
    }

    async fn incarnation(
        &self,
        observer: &CaptureObserver,
        stop: &CancellationToken,
    ) -> Result<Ended, RuntimeError> {
        let life = {
            let processors = self.inner.factory.runs_processors();
            let (observer, callback) =
                (observer.clone(), controller::callback(self.inner.config.plan, processors));
            tokio::spawn(async move { observer.run(callback).await })
        };
        // Whoever drops this future ends the process's part: then nothing may be admitted any more.
        let _over = FenceOnDrop(observer);
        let stop_launches = CancellationToken::new();
        let mut work =
            tokio::spawn(launches::run(observer.clone(), self.inner.factory.clone(), stop_launches.clone()));
        let mut life = AbortOnDropHandle::new(life);
        tokio::select! {
            biased;
            lived = &mut life => {
                // Whatever ended the loops, nothing may go on without them.
                let error = flatten(lived);
                observer.inner.fence("the capture's loops ended");
                let exit = flatten_work(work.await)?;
                match error {
                    Err(error) if !error.is_fenced() => Err(error.into()),
                    _ => {
                        tracing::info!(?exit, "every task of the former incarnation has ended");
                        Ok(Ended::Expelled)
                    }
                }
            }
            worked = &mut work => {
                flatten_work(worked)?;
                Ok(Ended::Expelled)
            }
            () = stop.cancelled() => {
                *lock(&self.inner.stopping) = true;
                self.stop(observer, &stop_launches, work).await?;
                observer.finish();
                let _ = tokio::time::timeout(STEP_DOWN_LIMIT, &mut life).await;
                Ok(Ended::Stopped)
            }
        }
    }

    /// Stop order: no more office, no new work, drain, write the last position, release, deregister. Heartbeats go on.
    async fn stop(
        &self,
        observer: &CaptureObserver,
        stop_launches: &CancellationToken,
        work: JoinHandle<Result<Exit, RuntimeError>>,
    ) -> Result<(), RuntimeError> {
        let term = observer.term();
        tracing::info!(capture = %term.capture, "stopping");
        observer.step_down();
        if tokio::time::timeout(STEP_DOWN_LIMIT, observer.stepped_down()).await.is_err() {
            tracing::warn!("stepping down as controller takes long; stopping the changefeeds meanwhile");
        }
        if let Err(error) =
            self.farewell(|store| async move { store.capture_drain(term.capture).await }).await
        {
            tracing::warn!(%error, "could not announce the stop; going on with it");
        }
        stop_launches.cancel();
        match flatten_work(work.await)? {
            Exit::Released(words) => {
                let hearing = pace::within(HEARING_LIMIT, "capture.hearing", self.until_heard(words));
                if hearing.await.is_err() {
                    tracing::info!(
                        "an owner has not read where its tables stopped here: they may repeat some flushes"
                    );
                }
                self.deregister(term).await;
            }
            Exit::Expelled | Exit::Unreleased => {
                tracing::warn!("not everything could be released; the controller will take it over");
            }
        }
        Ok(())
    }

    /// Waits until the owners have read where the tables stopped that this capture carried for them: what it said goes with its
    /// rows.
    async fn until_heard(&self, mut words: Vec<LastWord>) -> Result<()> {
        while !words.is_empty() {
            let asked: BTreeSet<_> = words.iter().map(|word| word.owner.changefeed).take(MAX_BATCH).collect();
            let which: Vec<_> = asked.iter().copied().collect();
            match self.inner.store.processors(Some(&which)).await {
                Ok(rows) => {
                    words.retain(|word| !asked.contains(&word.owner.changefeed) || !word.is_settled(&rows))
                }
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error),
            }
            if !words.is_empty() {
                tokio::time::sleep(HEARING_EVERY).await;
            }
        }
        Ok(())
    }

    async fn deregister(&self, term: CaptureTerm) {
        match self.farewell(|store| async move { store.capture_deregister(term).await }).await {
            Ok(()) => tracing::info!(capture = %term.capture, "deregistered"),
            Err(error) => tracing::warn!(%error, "could not deregister; the controller will find out"),
        }
    }

    /// A few tries at something that somebody waits for, within a limit.
    async fn farewell<T, F>(&self, call: impl Fn(Arc<dyn MetadataStore>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let tries = || call(self.inner.store.clone());
        let tries = tries.retry(self.jittered(hurried())).when(MetadataError::is_transient);
        pace::within(FAREWELL_LIMIT, "capture.stop", tries.into_future()).await
    }
}

/// A new, never used id.
pub(crate) fn fresh_id(clock: &dyn Clock) -> CaptureId {
    let (high, low) = (clock.random(), clock.random());
    let bytes = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    CaptureId(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

/// Resigns and deregisters for `dead`. Says whether there was anything of it that could hold work. May be repeated.
async fn bury(store: Arc<dyn MetadataStore>, dead: CaptureId, machine_id: String) -> Result<bool> {
    let found = store.captures(Some(&[dead])).await?;
    let Some(row) = found.first().filter(|row| row.state != CaptureState::Offline) else { return Ok(false) };
    if row.machine_id.is_empty() || row.machine_id != machine_id {
        tracing::warn!(
            capture = %dead, machine_id = row.machine_id,
            "the former process here registered from another machine: not proven to be dead"
        );
        return Ok(false);
    }
    retire(&*store, dead).await?;
    Ok(true)
}

/// Fences the incarnation when the capture's own future ends or is dropped.
struct FenceOnDrop<'a>(&'a CaptureObserver);

impl Drop for FenceOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

fn flatten(lived: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    lived.unwrap_or_else(|panic| {
        Err(MetadataError::Unavailable { transaction: "capture.run", source: Box::new(panic) })
    })
}

fn flatten_work(
    worked: Result<Result<Exit, RuntimeError>, tokio::task::JoinError>,
) -> Result<Exit, RuntimeError> {
    worked.unwrap_or_else(|panic| {
        Err(MetadataError::Unavailable { transaction: "capture.launches", source: Box::new(panic) }.into())
    })
}

/// Waits for a database as long as it takes.
fn patient() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
}

/// A few tries while somebody waits for the process to end.
fn hurried() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_millis(500))
        .with_max_times(4)
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").field("status", &self.status()).finish_non_exhaustive()
    }
}
