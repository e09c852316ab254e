//! What a capture is ordered to do, and what becomes of its changefeeds' processors, as streams of differences.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use metadata_api::Result;
use metadata_api::decision::schedule::{ScheduledProcessor, diff_processors, diff_scheduled_changefeeds};
use metadata_api::model::{BootTime, CaptureId, ChangefeedUuid, OwnerTerm, Revision};
use metadata_api::observation::{OwnerChange, ProcessorChange};
use tokio::sync::watch;

use super::poll::RECONCILE_EVERY;
use super::{CaptureObserver, Orders, lock};
use crate::pace;

/// The processors that a capture is to be, as its orders say.
pub(crate) type Attachments = Arc<BTreeMap<ChangefeedUuid, ScheduledProcessor>>;

/// The orders as a stream of differences.
pub(super) fn owner_changes(mut orders: watch::Receiver<Orders>) -> BoxStream<'static, OwnerChange> {
    orders.mark_changed();
    let state = (orders, Orders::default());
    stream::unfold(state, |(mut orders, delivered)| async move {
        orders.changed().await.ok()?;
        let current = orders.borrow_and_update().clone();
        let list = |map: &Orders| map.values().copied().collect::<Vec<_>>();
        let changes: Vec<OwnerChange> = diff_scheduled_changefeeds(&list(&delivered), &list(&current))
            .into_iter()
            .map(|item| OwnerChange { changefeed: item.changefeed, state: item.state, epoch: item.epoch })
            .collect();
        Some((stream::iter(changes), (orders, current)))
    })
    .flatten()
    .boxed()
}

/// A capture's attachments as a stream of differences. Whoever listens holds no part of the incarnation but its last word.
pub(super) fn processor_changes(observer: &CaptureObserver) -> BoxStream<'static, ProcessorChange> {
    let mut attached = observer.inner.attached.subscribe();
    attached.mark_changed();
    let fenced = observer.inner.fenced.clone();
    let state = Some((attached, fenced, Attachments::default()));
    stream::unfold(state, |state| async move {
        let (mut attached, fenced, delivered) = state?;
        let going_on = tokio::select! {
            biased;
            () = fenced.cancelled() => false,
            changed = attached.changed() => changed.is_ok(),
        };
        let current = if going_on { attached.borrow_and_update().clone() } else { Attachments::default() };
        let changes = diff_processors(&delivered, &current);
        Some((stream::iter(changes), going_on.then_some((attached, fenced, current))))
    })
    .flatten()
    .map(ProcessorChange::from)
    .boxed()
}

/// What the owner of `term` sees of its changefeed's processors.
pub(crate) fn processors_of(
    observer: CaptureObserver,
    term: OwnerTerm,
) -> BoxStream<'static, ProcessorChange> {
    let watched = Watched { observer, term, ordered: false, looked: None, delivered: BTreeMap::new() };
    stream::unfold(watched, |mut watched| async move {
        let changes = watched.next().await?;
        Some((stream::iter(changes), watched))
    })
    .flatten()
    .map(ProcessorChange::from)
    .boxed()
}

/// An owner's view of the processors of its changefeed.
struct Watched {
    observer: CaptureObserver,
    term: OwnerTerm,
    /// The watch has shown the term as an order: from now on its absence says that it is over.
    ordered: bool,
    /// Every change up to it has been delivered, and when that was asked for.
    looked: Option<(Revision, BootTime)>,
    delivered: BTreeMap<CaptureId, ScheduledProcessor>,
}

impl Watched {
    /// The next differences; `None` when the term is over.
    async fn next(&mut self) -> Option<Vec<ScheduledProcessor>> {
        let inner = self.observer.inner.clone();
        let mut polled = inner.polled.subscribe();
        loop {
            // Asked before the rows are read: what is committed meanwhile is looked at again.
            let (newest, now) = (lock(&inner.observed).revision, inner.clock.now());
            let due =
                |(looked, at): (Revision, BootTime)| newest > looked || now.since(at) >= RECONCILE_EVERY;
            if self.looked.is_none_or(due) {
                let limit = inner.policy.statement_timeout;
                match pace::within(limit, "owner.processors", self.look()).await {
                    Ok(None) => return None,
                    Ok(Some(current)) => {
                        self.looked = Some((newest, now));
                        let changes = diff_processors(&self.delivered, &current);
                        self.delivered = current;
                        if !changes.is_empty() {
                            return Some(changes);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(term = %self.term, %error, "could not read a changefeed's processors");
                    }
                }
            }
            tokio::select! {
                biased;
                () = inner.fenced.cancelled() => return None,
                moved = polled.changed() => moved.ok()?,
            }
        }
    }

    /// The rows as they are; `None` when the term is over.
    async fn look(&mut self) -> Result<Option<BTreeMap<CaptureId, ScheduledProcessor>>> {
        let (store, changefeed) = (self.observer.store().clone(), self.term.changefeed);
        let order = self.observer.inner.orders.borrow().get(&changefeed).copied();
        match order {
            Some(order) if order.epoch == self.term.epoch => self.ordered = true,
            Some(order) if order.epoch > self.term.epoch => return Ok(None),
            _ if self.ordered => return Ok(None),
            _ => {
                // The launch may be newer than what the watch has seen, or over already.
                let schedule = store.changefeed_schedule(changefeed).await?;
                if schedule.and_then(|schedule| schedule.term()) != Some(self.term) {
                    return Ok(None);
                }
            }
        }
        let rows = store.processor_schedules(changefeed).await?;
        Ok(Some(rows.iter().map(|row| (row.capture, ScheduledProcessor::from(row))).collect()))
    }
}
