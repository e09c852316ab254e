//! One registered incarnation of a capture: its heartbeats, its deadline, its watch, its election.
//!
//! [`CaptureObserver`] implements [`Elector`], [`CaptureObservation`] and [`Querier`] on any store. Three loops
//! run side by side, each on a connection of its own, so that none can cost another its turn:
//!
//! * `heartbeat` - renews the capture's own row once a second, and nothing else;
//! * `watch` - one poll statement each half second: election, revision, own orders; renews the controller lease;
//! * `election` - campaigns when the watch has seen the lease stand still for its whole length.
//!
//! What it trusts: only answers of the store. What it has seen is kept beside them and judged by this host's
//! `CLOCK_BOOTTIME`. When the row is sealed, gone or gone back, the whole incarnation is over: every loop ends with
//! `Fenced`, and the caller registers anew.

mod changes;
mod election;
mod heartbeat;
mod poll;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use metadata_api::decision::lease::{LeaseWatch, OfflineJudge, OwnBeats, TimePolicy, acting_until};
use metadata_api::decision::schedule::ScheduledChangefeed;
use metadata_api::model::{
    BootTime, CaptureId, CaptureInfo, CaptureProgress, CaptureState, CaptureTerm, ChangefeedInfo,
    ChangefeedProgress, ChangefeedStatus, ChangefeedUuid, ClusterIdentity, ControllerTerm, ElectionRecord,
    NewCapture, OwnerEpoch, OwnerTerm, ProcessorTerm, Revision,
};
use metadata_api::observation::{
    CaptureObservation, ControllerCallback, Elector, OwnerChange, OwnerObservation, ProcessorChange, Querier,
};
use metadata_api::store::{MetadataStore, OwnerRelease};
use metadata_api::{MetadataError, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::changes::Attachments;
use crate::admission::Deadline;
use crate::clock::Clock;
use crate::owner::OwnerObserver;

/// What the capture owns, as its orders say.
pub(crate) type Orders = Arc<BTreeMap<ChangefeedUuid, ScheduledChangefeed>>;

/// One registered incarnation of a capture. Cheap to clone.
#[derive(Clone)]
pub struct CaptureObserver {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Arc<dyn MetadataStore>,
    pub(crate) policy: TimePolicy,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) deadline: Deadline,
    pub(crate) info: NewCapture,
    pub(crate) term: CaptureTerm,
    heart: tokio::sync::Mutex<heartbeat::Heart>,
    pub(crate) observed: Mutex<Observed>,
    orders: watch::Sender<Orders>,
    attached: watch::Sender<Attachments>,
    /// Counts polls that answered; whoever waits for news waits for this.
    pub(crate) polled: watch::Sender<u64>,
    progress_seq: tokio::sync::Mutex<u64>,
    leading: Mutex<Option<ControllerTerm>>,
    /// Nothing is launched by this capture's controller before it.
    pub(crate) launch_from: BootTime,
    /// No more campaigning; a controller in office steps down.
    stepping_down: CancellationToken,
    /// It is out of office for good: resigned, or never was in.
    stepped_down: CancellationToken,
    /// The loops end.
    finished: CancellationToken,
    /// The incarnation is over.
    fenced: CancellationToken,
    fenced_why: Mutex<Option<String>>,
}

/// What this capture has seen, and when it asked.
#[derive(Default)]
pub(crate) struct Observed {
    pub(crate) identity: Option<ClusterIdentity>,
    pub(crate) revision: Revision,
    /// The greatest revision that this capture knows to be committed because it did that itself.
    pub(crate) written: Revision,
    pub(crate) own_state: Option<CaptureState>,
    pub(crate) election: Option<ElectionRecord>,
    pub(crate) lease: LeaseWatch,
    pub(crate) judge: OfflineJudge,
    pub(crate) own_beats: OwnBeats,
    pub(crate) last_beat: Option<BootTime>,
    /// The number of the last heartbeat whose answer arrived; 0 before the first.
    pub(crate) acknowledged: u64,
    pub(crate) last_poll: Option<BootTime>,
}

/// Locks, also after a panic elsewhere: what is guarded is replaced whole, never left half written.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CaptureObserver {
    /// Registers a capture and opens its channels. `launch_from`: nothing is launched by this capture's controller
    /// before it (a restored database was seen).
    ///
    /// # Errors
    /// [`InvalidArgument`](MetadataError::InvalidArgument) when the policy breaks a rule or the info does not fit; otherwise
    /// as [`capture_register`](metadata_api::store::CaptureStore::capture_register).
    pub async fn register(
        store: Arc<dyn MetadataStore>,
        clock: Arc<dyn Clock>,
        policy: TimePolicy,
        info: NewCapture,
        launch_from: BootTime,
    ) -> Result<Self> {
        policy.validate()?;
        let heart = heartbeat::Heart::open(&*store, &policy).await?;
        let term = store.capture_register(&info).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                deadline: Deadline::new(clock.clone()),
                store,
                policy,
                clock,
                info,
                term,
                heart: tokio::sync::Mutex::new(heart),
                observed: Mutex::default(),
                orders: watch::Sender::default(),
                attached: watch::Sender::default(),
                polled: watch::Sender::new(0),
                progress_seq: tokio::sync::Mutex::new(0),
                leading: Mutex::default(),
                launch_from,
                stepping_down: CancellationToken::new(),
                stepped_down: CancellationToken::new(),
                finished: CancellationToken::new(),
                fenced: CancellationToken::new(),
                fenced_why: Mutex::default(),
            }),
        })
    }

    /// The token of this incarnation.
    pub fn term(&self) -> CaptureTerm {
        self.inner.term
    }

    /// Until when this capture may act.
    pub fn deadline(&self) -> &Deadline {
        &self.inner.deadline
    }

    /// The store under it.
    pub fn store(&self) -> &Arc<dyn MetadataStore> {
        &self.inner.store
    }

    /// The controller term that this capture holds now, if any.
    pub fn leading(&self) -> Option<ControllerTerm> {
        *lock(&self.inner.leading)
    }

    /// The controller that was last observed, while its lease is still valid on this capture's own clock.
    pub fn observed_controller(&self) -> Option<CaptureId> {
        lock(&self.inner.observed).lease.valid_leader(self.inner.clock.now(), &self.inner.policy)
    }

    /// Stops campaigning, and steps down when in office: [`Elector::run_election`] returns after the callback has ended
    /// and the lease was resigned. Heartbeats and watch go on.
    pub fn step_down(&self) {
        self.inner.stepping_down.cancel();
    }

    /// Resolves when the election has ended after [`Self::step_down`].
    pub async fn stepped_down(&self) {
        self.inner.stepped_down.cancelled().await;
    }

    /// Ends the loops: [`CaptureObservation::run`] returns.
    pub fn finish(&self) {
        self.inner.stepping_down.cancel();
        self.inner.finished.cancel();
    }

    /// Ends the incarnation, unless it has been finished: nobody looks after it any more.
    pub(crate) fn abandon(&self) {
        if !self.inner.finished.is_cancelled() {
            self.inner.fence("the capture has ended");
        }
    }

    /// Resolves when this incarnation is over.
    pub async fn fenced(&self) {
        self.inner.fenced.cancelled().await;
    }

    /// Why this incarnation is over; `None` while it is not.
    pub fn fenced_error(&self) -> Option<MetadataError> {
        lock(&self.inner.fenced_why).clone().map(MetadataError::fenced)
    }

    /// Drops an order that the capture has carried out, so that the next poll's count matches.
    pub(crate) fn forget_order(&self, changefeed: ChangefeedUuid, epoch: OwnerEpoch) {
        self.inner.orders.send_if_modified(|orders| {
            let done = orders.get(&changefeed).is_some_and(|order| order.epoch <= epoch);
            if done {
                Arc::make_mut(orders).remove(&changefeed);
            }
            done
        });
    }

    /// The same for an attachment that has stopped.
    pub(crate) fn forget_attachment(&self, term: ProcessorTerm) {
        self.inner.attached.send_if_modified(|attached| {
            let done = attached.get(&term.changefeed).is_some_and(|known| known.term == term);
            if done {
                Arc::make_mut(attached).remove(&term.changefeed);
            }
            done
        });
    }

    /// The changefeed's processors on every capture, as the owner of `term` is to see them.
    pub(crate) fn processors_of(&self, term: OwnerTerm) -> BoxStream<'static, ProcessorChange> {
        changes::processors_of(self.clone(), term)
    }

    pub(crate) fn orders(&self) -> watch::Receiver<Orders> {
        self.inner.orders.subscribe()
    }

    /// The capture's own progress, as the store has it.
    pub(crate) async fn stored_progress(&self) -> Result<CaptureProgress> {
        self.inner.store.capture_progress(self.inner.term).await.map(|(_, progress)| progress)
    }
}

impl Inner {
    /// Ends the incarnation: nothing is admitted any more, every loop ends.
    pub(crate) fn fence(&self, why: &str) {
        let mut reason = lock(&self.fenced_why);
        if reason.is_none() {
            tracing::warn!(capture = %self.term.capture, why, "this capture is fenced");
            *reason = Some(why.to_owned());
        }
        self.fenced.cancel();
    }

    pub(crate) fn fence_token(&self) -> &CancellationToken {
        &self.fenced
    }

    fn note_fenced(&self, error: &MetadataError) {
        if let MetadataError::Fenced { what } = error {
            self.fence(what);
        }
    }

    /// The deadline counts from the older of the last heartbeat and the last poll: a capture that beats but no longer
    /// sees its orders must not live on.
    fn extend_deadline(&self, observed: &Observed) {
        if let (Some(beat), Some(poll)) = (observed.last_beat, observed.last_poll) {
            self.deadline.extend(acting_until(beat, poll, &self.policy));
        }
    }
}

impl fmt::Debug for CaptureObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaptureObserver")
            .field("capture", &self.inner.term.capture)
            .field("deadline", &self.inner.deadline)
            .field("leading", &self.leading())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Querier for CaptureObserver {
    async fn changefeed_infos(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedInfo>> {
        self.inner.store.changefeed_infos(which).await
    }

    async fn changefeed_states(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ChangefeedStatus>> {
        self.inner.store.changefeed_statuses(which).await
    }

    async fn changefeed_progresses(
        &self,
        which: Option<&[ChangefeedUuid]>,
    ) -> Result<BTreeMap<ChangefeedUuid, ChangefeedProgress>> {
        self.inner.store.changefeed_progresses(which).await
    }
}

#[async_trait]
impl Elector for CaptureObserver {
    fn self_info(&self) -> NewCapture {
        self.inner.info.clone()
    }

    async fn run_election(&self, on_take_control: ControllerCallback) -> Result<()> {
        election::run(self, on_take_control).await
    }

    async fn controller(&self) -> Result<CaptureInfo> {
        let id = self.observed_controller().ok_or(MetadataError::NoController)?;
        self.captures(&[id]).await?.pop().ok_or(MetadataError::NoController)
    }

    async fn captures(&self, ids: &[CaptureId]) -> Result<Vec<CaptureInfo>> {
        self.inner.store.captures(if ids.is_empty() { None } else { Some(ids) }).await
    }
}

#[async_trait]
impl CaptureObservation for CaptureObserver {
    async fn run(&self, controller_callback: ControllerCallback) -> Result<()> {
        let mut loops = JoinSet::new();
        let this = self.clone();
        loops.spawn(async move { heartbeat::run(&this).await });
        let this = self.clone();
        loops.spawn(async move { poll::run(&this).await });
        let this = self.clone();
        loops.spawn(async move {
            let ended = this.run_election(controller_callback).await;
            this.inner.stepped_down.cancel();
            if ended.is_ok() {
                // Having stepped down does not end the capture.
                this.inner.finished.cancelled().await;
            }
            ended
        });
        let ended = tokio::select! {
            biased;
            () = self.inner.fenced.cancelled() => None,
            ended = loops.join_next() => ended,
        };
        loops.shutdown().await;
        *lock(&self.inner.leading) = None;
        if let Some(error) = self.fenced_error() {
            return Err(error);
        }
        match ended {
            Some(Ok(result)) => result,
            Some(Err(panic)) => {
                Err(MetadataError::Unavailable { transaction: "capture.run", source: Box::new(panic) })
            }
            None => Ok(()),
        }
    }

    async fn heartbeat(&self) -> Result<()> {
        heartbeat::beat(self).await
    }

    async fn advance(&self, progress: &CaptureProgress) -> Result<()> {
        let mut seq = self.inner.progress_seq.lock().await;
        *seq += 1;
        let written = self.inner.store.capture_advance(self.inner.term, *seq, progress).await;
        if let Err(error) = &written {
            self.inner.note_fenced(error);
        }
        written
    }

    fn owner_changes(&self) -> BoxStream<'static, OwnerChange> {
        changes::owner_changes(self.orders())
    }

    fn processor_changes(&self) -> BoxStream<'static, ProcessorChange> {
        changes::processor_changes(self)
    }

    async fn on_owner_launched(&self, changefeed: ChangefeedUuid) -> Result<Arc<dyn OwnerObservation>> {
        let launches = self.inner.store.owner_launches(self.inner.term, &[changefeed]).await?;
        let launch = launches.into_iter().next().ok_or_else(|| {
            MetadataError::fenced(format!("changefeed {changefeed} is not launched on this capture"))
        })?;
        Ok(Arc::new(OwnerObserver::new(self.clone(), launch.term)))
    }

    async fn post_owner_removed(
        &self,
        changefeed: ChangefeedUuid,
        task_position: Option<ChangefeedProgress>,
    ) -> Result<()> {
        let Some(order) = self.inner.orders.borrow().get(&changefeed).copied() else {
            return Ok(());
        };
        let term = OwnerTerm { changefeed, capture: self.inner.term.capture, epoch: order.epoch };
        let released =
            self.inner.store.owner_release(&[OwnerRelease { term, task_position, end: None }]).await?;
        match released.into_iter().next() {
            None | Some(Ok(()) | Err(MetadataError::Fenced { .. })) => {
                self.forget_order(changefeed, order.epoch);
                Ok(())
            }
            Some(Err(error)) => Err(error),
        }
    }

    async fn post_processor_removed(&self, changefeed: ChangefeedUuid) -> Result<()> {
        let Some(term) = self.inner.attached.borrow().get(&changefeed).map(|known| known.term) else {
            return Ok(());
        };
        match self.inner.store.processor_release(term).await {
            Ok(_) | Err(MetadataError::Fenced { .. }) => {
                self.forget_attachment(term);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
