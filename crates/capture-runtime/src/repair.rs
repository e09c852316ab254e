//! What an operator does to a cluster by force, when its own ways do not help.
//!
//! Both are made of the transactions by which captures and controllers do the same: every write is fenced as ever, and
//! what was done half is gone on with by repeating it, or by the next controller. What is *not* kept is the rule that nobody's work
//! is taken before its deadline has passed: see each function for the risk.

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use metadata_api::decision::assignment::plan_processors;
use metadata_api::model::{
    BootTime, CaptureId, CaptureState, CaptureTerm, ChangefeedUuid, ControllerTerm, NewCapture,
    ScheduleSnapshot, ScheduleState, SnapshotChangefeed, Version,
};
use metadata_api::store::{Authority, MAX_BATCH, MetadataStore, WatchChannel};
use metadata_api::{MetadataError, Result};

use crate::capture::fresh_id;
use crate::clock::Clock;
use crate::pace;

/// How long owners may take to stop by themselves before a reset takes their work from them.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at what has stopped.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// How long a reset tries to become controller.
const OFFICE_LIMIT: Duration = Duration::from_secs(30);
/// How often the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How many removals are under way at once. Each waits for the fence row: more would only wait.
const REMOVALS_AT_ONCE: usize = 4;
/// After how many it is time to see to the lease.
const REMOVALS_A_RENEWAL: usize = 20;
/// How long a renewal may take.
const RENEW_LIMIT: Duration = Duration::from_secs(2);

/// Declares a capture dead, at once: the controller gives its changefeeds to others. Its lease, if it is the controller,
/// ends. Says whether there was such a capture that was not declared dead already. May be repeated.
///
/// **The risk**: a process that still runs hears of it with its next heartbeat; one that is cut off from the database goes on
/// writing until its deadline, 10 s at most and 2 s for a flush under way, while another writes the same changefeeds. A sink
/// that is not fenced by the owner epoch may then get rows twice, or an older version of a row after a newer.
///
/// # Errors
/// [`Unavailable`](MetadataError::Unavailable) and [`Unknown`](MetadataError::Unknown): try again.
pub async fn force_remove_capture(store: &dyn MetadataStore, capture: CaptureId) -> Result<bool> {
    let found = store.captures(Some(&[capture])).await?;
    if found.first().is_none_or(|row| row.state == CaptureState::Offline) {
        return Ok(false);
    }
    retire(store, capture).await?;
    Ok(true)
}

/// Resigns and deregisters in a capture's name. May be repeated.
pub(crate) async fn retire(store: &dyn MetadataStore, capture: CaptureId) -> Result<()> {
    let election = store.election().await?;
    if election.leader == Some(capture) {
        match store.election_resign(ControllerTerm { capture, epoch: election.epoch }).await {
            // Somebody took the lease meanwhile, or the answer to an earlier try was lost.
            Err(error) if error.is_fenced() => {}
            resigned => resigned?,
        }
    }
    store.capture_deregister(CaptureTerm { capture }).await
}

/// What [`reset`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResetReport {
    /// How many changefeeds were deleted.
    pub changefeeds: usize,
    /// The captures from which changefeeds had to be taken by force.
    pub expelled: BTreeSet<CaptureId>,
}

/// Deletes every changefeed, with its position: the cluster is empty then, and the captures that run go on without work. May be
/// repeated, also after an error.
///
/// It becomes the controller, removes every changefeed, and waits until their owners have stopped. From a capture that has not
/// stopped after 10 s it takes what it has, as [`force_remove_capture`] does, **with the same risk**. `progress` is told how many
/// changefeeds are left, and of how many.
///
/// # Errors
/// [`Fenced`](MetadataError::Fenced) when another capture became the controller meanwhile; `Conflict`, before anything is
/// removed, when a changefeed's row does not decode; `Unavailable` and `Unknown`. What was
/// deleted by then is deleted.
pub async fn reset(
    store: Arc<dyn MetadataStore>,
    clock: Arc<dyn Clock>,
    progress: impl FnMut(usize, usize),
) -> Result<ResetReport> {
    let me = NewCapture {
        id: fresh_id(&*clock),
        advertise_addr: "cdc-cli-unsafe-reset".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: [].into(),
        machine_id: String::new(),
    };
    let term = patiently(|| store.capture_register(&me)).await?;
    let done = Reset::begin(&*store, &*clock, term, progress).await;
    let done = match done {
        Ok(mut reset) => {
            let done = reset.run().await;
            // Another controller may come at once; nobody is hurt if it has to wait for the lease instead.
            let _ = store.election_resign(reset.term).await;
            done.map(|()| reset.report)
        }
        Err(error) => Err(error),
    };
    let gone = patiently(|| store.capture_deregister(term)).await;
    done.and_then(|report| gone.map(|()| report))
}

/// Repeats a call of the store while it fails for a reason that passes.
async fn patiently<T, F: Future<Output = Result<T>>>(call: impl FnMut() -> F) -> Result<T> {
    call.retry(patient()).when(MetadataError::is_transient).await
}

fn patient() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(10)
}

/// A reset under way.
struct Reset<'a, P> {
    store: &'a dyn MetadataStore,
    clock: &'a dyn Clock,
    term: ControllerTerm,
    watch: Box<dyn WatchChannel>,
    renewed_at: BootTime,
    report: ResetReport,
    progress: P,
}

impl<'a, P: FnMut(usize, usize)> Reset<'a, P> {
    /// Becomes the controller.
    async fn begin(
        store: &'a dyn MetadataStore,
        clock: &'a dyn Clock,
        capture: CaptureTerm,
        progress: P,
    ) -> Result<Self> {
        let watch = store.watch_channel().await?;
        let campaign = || async {
            store.controller_depose().await?;
            let observed = store.election().await?;
            store.election_campaign(capture, &observed).await
        };
        let contested =
            |error: &MetadataError| error.is_transient() || matches!(error, MetadataError::Conflict { .. });
        let campaign = campaign.retry(patient().without_max_times()).when(contested).into_future();
        let term = tokio::time::timeout(OFFICE_LIMIT, campaign).await.unwrap_or_else(|elapsed| {
            Err(MetadataError::Unavailable { transaction: "reset.campaign", source: Box::new(elapsed) })
        })?;
        let renewed_at = clock.now();
        Ok(Self { store, clock, term, watch, renewed_at, report: ResetReport::default(), progress })
    }

    async fn run(&mut self) -> Result<()> {
        let mut total = 0;
        let mut stopping_since = None;
        loop {
            let snapshot = self.store.schedule_snapshot().await?;
            if let Some(row) = snapshot.unreadable.first() {
                let what = format!(
                    "changefeed {} cannot be reset before its row is mended: {}",
                    row.changefeed, row.reason
                );
                return Err(MetadataError::conflict(what));
            }
            let left = snapshot.changefeeds.len();
            total = total.max(left);
            (self.progress)(left, total);
            self.report.changefeeds = total;
            if left == 0 {
                return Ok(());
            }
            if self.remove(&snapshot).await? {
                continue;
            }
            let since = *stopping_since.get_or_insert_with(|| self.clock.now());
            if self.clean_up(&snapshot).await? {
                continue;
            }
            self.detach(&snapshot).await?;
            if self.clock.now().since(since) >= STOP_LIMIT {
                self.expel(&snapshot).await?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            self.renew().await?;
        }
    }

    /// Asks every owner to stop. Says whether there was anything to be asked.
    async fn remove(&mut self, snapshot: &ScheduleSnapshot) -> Result<bool> {
        let live: Vec<ChangefeedUuid> = snapshot
            .changefeeds
            .iter()
            .filter(|feed| !feed.removed)
            .map(|feed| feed.schedule.changefeed)
            .collect();
        for batch in live.chunks(REMOVALS_A_RENEWAL) {
            self.renew().await?;
            let (store, authority) = (self.store, Authority::Controller(self.term));
            stream::iter(batch.iter().copied())
                .map(|changefeed| async move {
                    match patiently(|| store.changefeed_remove(authority, changefeed)).await {
                        Err(MetadataError::NotFound { .. }) => Ok(()),
                        removed => removed.map(drop),
                    }
                })
                .buffer_unordered(REMOVALS_AT_ONCE)
                .try_collect::<()>()
                .await?;
        }
        Ok(!live.is_empty())
    }

    /// Deletes what has stopped. Says whether anything was.
    async fn clean_up(&mut self, snapshot: &ScheduleSnapshot) -> Result<bool> {
        let stopped = |feed: &&SnapshotChangefeed| {
            feed.removed && feed.schedule.state == ScheduleState::Removed && feed.live_processors == 0
        };
        let stopped: Vec<(ChangefeedUuid, Version)> = snapshot
            .changefeeds
            .iter()
            .filter(stopped)
            .map(|feed| (feed.schedule.changefeed, feed.schedule.version))
            .collect();
        for batch in stopped.chunks(MAX_BATCH) {
            self.renew().await?;
            patiently(|| self.store.changefeed_cleanup(self.term, batch)).await?;
        }
        Ok(!stopped.is_empty())
    }

    /// Tells every processor to stop.
    async fn detach(&mut self, snapshot: &ScheduleSnapshot) -> Result<()> {
        let carried = snapshot.changefeeds.iter().filter(|feed| feed.live_processors > 0);
        let carried: Vec<ChangefeedUuid> = carried.map(|feed| feed.schedule.changefeed).collect();
        for batch in carried.chunks(MAX_BATCH) {
            self.renew().await?;
            let mut rows: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for of in patiently(|| self.store.processors(Some(batch))).await? {
                rows.entry(of.schedule.changefeed).or_default().push(of.schedule);
            }
            for (changefeed, targets) in plan_processors(snapshot, &rows, |_| false).targets {
                self.renew().await?;
                match patiently(|| self.store.processor_set(self.term, changefeed, &targets)).await {
                    // It has stopped meanwhile, or the answer to an earlier try was lost.
                    Err(MetadataError::Conflict { .. } | MetadataError::NotFound { .. }) => {}
                    set => drop(set?),
                }
            }
        }
        Ok(())
    }

    /// Takes what has not stopped from whoever has it.
    async fn expel(&mut self, snapshot: &ScheduleSnapshot) -> Result<()> {
        let owners = snapshot.changefeeds.iter().filter_map(|feed| feed.schedule.owner);
        let mut holders: BTreeSet<CaptureId> = owners.collect();
        if holders.is_empty() {
            // Then it is processors that have not stopped.
            holders = snapshot.captures.iter().map(|capture| capture.id).collect();
            holders.remove(&self.term.capture);
        }
        for capture in holders {
            self.renew().await?;
            patiently(|| self.store.capture_deregister(CaptureTerm { capture })).await?;
            loop {
                let taken = patiently(|| self.store.capture_release(self.term, capture, MAX_BATCH)).await?;
                self.renew().await?;
                if taken < MAX_BATCH {
                    break;
                }
            }
            self.report.expelled.insert(capture);
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<()> {
        if self.clock.now().since(self.renewed_at) < RENEW_EVERY {
            return Ok(());
        }
        match pace::within(RENEW_LIMIT, "reset.renew", self.watch.lease_renew(self.term)).await {
            Err(error) if error.is_transient() => {
                self.watch = pace::within(RENEW_LIMIT, "reset.renew", self.store.watch_channel()).await?;
            }
            renewed => {
                renewed?;
                self.renewed_at = self.clock.now();
            }
        }
        Ok(())
    }
}
