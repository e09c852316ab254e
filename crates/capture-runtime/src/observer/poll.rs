//! The watch: one poll statement each half second tells all that concerns this capture.
//!
//! Rows with a newer revision arrive page by page; the position moves only after the final page. Whatever else
//! happened to a row that named this capture (it was released, sealed away, cleaned up) shows in the *count* of own rows: a
//! count that does not match, or ten seconds, brings a full reconcile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metadata_api::decision::schedule::{ScheduledChangefeed, ScheduledProcessor, diff_processors};
use metadata_api::decision::watch::{self as look, check_answer, check_own_beat};
use metadata_api::model::{
    BootTime, CaptureState, ChangefeedSchedule, ChangefeedUuid, ProcessorSchedule, Revision, ScheduleState,
};
use metadata_api::store::{Assigned, PollAnswer, PollCursor, WatchChannel};
use metadata_api::{MetadataError, Result};
use metrics::counter;

use super::changes::Attachments;
use super::{CaptureObserver, Orders, lock};
use crate::pace;

/// How often everything is read anew, whatever the counts say.
pub(super) const RECONCILE_EVERY: Duration = Duration::from_secs(10);

struct Watch<'a> {
    observer: &'a CaptureObserver,
    channel: Option<Box<dyn WatchChannel>>,
    /// Every change up to it has been taken in.
    last: Revision,
    orders_read: Option<Read>,
    processors_read: Option<Read>,
    renewed_at: Option<BootTime>,
}

/// Polls until the incarnation is over or finished.
pub(super) async fn run(observer: &CaptureObserver) -> Result<()> {
    let inner = &observer.inner;
    let mut watch = Watch {
        observer,
        channel: None,
        last: Revision(0),
        orders_read: None,
        processors_read: None,
        renewed_at: None,
    };
    let mut failing = false;
    loop {
        match watch.look().await {
            Ok(()) => {
                if failing {
                    tracing::info!(capture = %inner.term.capture, "watch polls succeed again");
                }
                failing = false;
                inner.polled.send_modify(|count| *count += 1);
            }
            Err(error) => {
                watch.channel = None;
                inner.note_fenced(&error);
                if error.is_fenced() {
                    return Err(error);
                }
                if !failing {
                    tracing::warn!(capture = %inner.term.capture, %error, "a watch poll failed");
                }
                failing = true;
                counter!("cdc_capture_poll_failures_total").increment(1);
                blind_too_long(observer)?;
            }
        }
        tokio::select! {
            biased;
            () = inner.finished.cancelled() => return Ok(()),
            () = tokio::time::sleep(pace::jittered(&*inner.clock, inner.policy.poll_interval)) => {}
        }
    }
}

/// A capture that has beaten for R, and has not seen its orders all the while, is broken in a way that waiting does not mend.
/// (After an outage the first heartbeat may well succeed before the first poll does.)
fn blind_too_long(observer: &CaptureObserver) -> Result<()> {
    let inner = &observer.inner;
    let observed = lock(&inner.observed);
    let (Some(beat), Some(began)) = (observed.last_beat, observed.own_beats.unbroken_since()) else {
        return Ok(());
    };
    let blind = beat.since(observed.last_poll.map_or(began, |poll| poll.max(began)));
    if blind > inner.policy.offline_after {
        return Err(MetadataError::Unavailable {
            transaction: "capture.poll",
            source: format!("heartbeats succeed but no poll has for {blind:?}").into(),
        });
    }
    Ok(())
}

/// The last time that everything was read anew.
struct Read {
    asked_at: BootTime,
    /// How many rows name this capture, do not decode, and never did as far as it knows.
    unknown: u64,
}

/// How many rows a poll told of, and how many are known by their own word.
struct Count {
    asked_at: BootTime,
    told: u64,
    known: u64,
}

impl Count {
    /// Reads everything anew when the count does not match, or for good measure when that is due. Where there is nothing, the
    /// count says all that a reconcile would: what is idle opens no pool connection for it.
    async fn check<T>(
        &self,
        last: Option<&Read>,
        reconcile: impl Future<Output = Result<T>>,
    ) -> Result<Option<T>> {
        let missed = self.told != self.known + last.map_or(0, |last| last.unknown);
        let is_old = |last: &Read| self.asked_at.since(last.asked_at) >= RECONCILE_EVERY;
        let due = self.told > 0 && last.is_none_or(is_old);
        if !missed && !due {
            return Ok(None);
        }
        match reconcile.await {
            // The counts agree: it was only for good measure.
            Err(error) if !missed && !error.is_fenced() => {
                tracing::debug!(%error, "could not read everything anew");
                Ok(None)
            }
            read => read.map(Some),
        }
    }
}

impl Watch<'_> {
    async fn look(&mut self) -> Result<()> {
        let inner = self.observer.inner.clone();
        let limit = inner.policy.statement_timeout;
        if self.channel.is_none() {
            self.channel = Some(pace::within(limit, "watch.open", inner.store.watch_channel()).await?);
        }
        let mut cursor = PollCursor::after(self.last);
        let mut upto = None;
        let began_at = inner.clock.now();
        let before = inner.orders.borrow().clone();
        let mut orders = before.clone();
        let attached_before = inner.attached.borrow().clone();
        let mut attached = attached_before.clone();
        loop {
            let asked_at = inner.clock.now();
            // What was committed before the question must be in the answer, or the database has lost it.
            let written = lock(&inner.observed).written;
            let Some(channel) = self.channel.as_mut() else {
                return Err(MetadataError::conflict("the watch channel was lost"));
            };
            let answer = pace::within(limit, "capture.poll", channel.poll(inner.term, &cursor)).await?;
            self.take_in(asked_at, written, &answer)?;
            for row in &answer.schedules {
                Arc::make_mut(&mut orders).insert(row.changefeed, ScheduledChangefeed::from(row));
            }
            for row in &answer.processors {
                let attached = Arc::make_mut(&mut attached);
                if row.state == ScheduleState::Removed {
                    attached.remove(&row.changefeed);
                } else {
                    attached.insert(row.changefeed, ScheduledProcessor::from(row));
                }
            }
            upto.get_or_insert(answer.revision);
            cursor = cursor.next_page(&answer);
            if !answer.has_more() {
                let count = Count { asked_at, told: answer.owned, known: orders.len() as u64 };
                let reconcile = schedules(self.observer);
                if let Some(all) = count.check(self.orders_read.as_ref(), reconcile).await? {
                    let row = |row: &ChangefeedSchedule| (row.changefeed, ScheduledChangefeed::from(row));
                    (orders, self.orders_read) = anew(asked_at, &all, &orders, row);
                }
                let count = Count { asked_at, told: answer.attached, known: attached.len() as u64 };
                let reconcile = processors(self.observer);
                if let Some(all) = count.check(self.processors_read.as_ref(), reconcile).await? {
                    let row = |row: &ProcessorSchedule| (row.changefeed, ScheduledProcessor::from(row));
                    (attached, self.processors_read) = anew(asked_at, &all, &attached, row);
                }
                break;
            }
        }
        // Most looks bring nothing, and share what there was.
        let orders_moved = !Arc::ptr_eq(&before, &orders) && look::brings_launches(&before, &orders);
        if orders_moved || (!Arc::ptr_eq(&attached_before, &attached) && attached_before != attached) {
            self.check_own_beat().await?;
        }
        self.publish(&before, &orders);
        self.publish_processors(&attached_before, &attached);
        self.last = upto.unwrap_or(self.last);
        // Only now: a capture whose polls are answered, but that cannot read what they point at, does not see its orders.
        {
            let mut observed = lock(&inner.observed);
            observed.last_poll = Some(began_at);
            inner.extend_deadline(&observed);
        }
        self.renew().await
    }

    /// What a poll says of the cluster and of this capture.
    fn take_in(&self, asked_at: BootTime, written: Revision, answer: &PollAnswer) -> Result<()> {
        let inner = &self.observer.inner;
        let mut observed = lock(&inner.observed);
        check_answer(observed.identity.as_ref(), observed.revision.max(written), answer)?;
        observed.identity = Some(answer.identity.clone());
        observed.revision = answer.revision;
        observed.own_state = answer.own_state;
        let before = observed.lease.standing().map(|seen| seen.value);
        observed.lease.observe(asked_at, &answer.election);
        let after = observed.lease.standing().map(|seen| seen.value);
        if before != after && answer.election.leader != Some(inner.term.capture) {
            // Another controller lives: whom to declare dead is its to say. What was seen of the others in an earlier silence would be
            // hours old in the next one, and a database may have been restored in between.
            observed.judge.forget_but(answer.controller.as_ref().map(|controller| controller.id));
        }
        observed.election = Some(answer.election);
        if let Some(beat) = &answer.controller
            && beat.state != CaptureState::Offline
        {
            observed.judge.observe_one(inner.clock.now(), beat.id, beat.heartbeat_seq);
        }
        Ok(())
    }

    /// A launch is believed only of the database that took this capture's last heartbeat in.
    async fn check_own_beat(&mut self) -> Result<()> {
        let inner = &self.observer.inner;
        let acknowledged = lock(&inner.observed).acknowledged;
        let me = [inner.term.capture];
        let rows = inner.store.captures(Some(&me));
        let rows = pace::within(inner.policy.statement_timeout, "query.captures", rows).await?;
        check_own_beat(acknowledged, rows.first().map(|row| row.heartbeat_seq))
    }

    /// Publishes what the look made of the orders.
    fn publish(&self, before: &Orders, after: &Orders) {
        if Arc::ptr_eq(before, after) || before == after {
            return;
        }
        self.observer
            .inner
            .orders
            .send_if_modified(|orders| look::apply_look(Arc::make_mut(orders), before, after));
    }

    /// The same for the processors that this capture is to be.
    fn publish_processors(&self, before: &Attachments, after: &Attachments) {
        if Arc::ptr_eq(before, after) {
            return;
        }
        let changes = diff_processors(before, after);
        self.observer.inner.attached.send_if_modified(|attached| {
            if changes.is_empty() {
                return false;
            }
            let attached = Arc::make_mut(attached);
            for change in changes {
                let changefeed = change.term.changefeed;
                if change.state == ScheduleState::Removed {
                    attached.remove(&changefeed);
                } else {
                    attached.insert(changefeed, change);
                }
            }
            true
        });
    }

    /// Moves the lease sequence, once a heartbeat interval, while this capture leads and its own deadline holds.
    async fn renew(&mut self) -> Result<()> {
        let inner = self.observer.inner.clone();
        let Some(term) = self.observer.leading() else {
            self.renewed_at = None;
            return Ok(());
        };
        let now = inner.clock.now();
        let due = self.renewed_at.is_none_or(|at| now.since(at) >= inner.policy.heartbeat_interval * 9 / 10);
        if !due || inner.deadline.has_passed() {
            return Ok(());
        }
        let Some(channel) = self.channel.as_mut() else { return Ok(()) };
        match pace::within(inner.policy.statement_timeout, "election.renew", channel.lease_renew(term)).await
        {
            Ok(()) => {
                self.renewed_at = Some(now);
                Ok(())
            }
            Err(error) if error.is_fenced() => {
                // The office is lost, not the capture.
                let mut leading = lock(&inner.leading);
                if *leading == Some(term) {
                    *leading = None;
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Everything as it was read anew. What does not decode stays as it is `known`: what runs under it goes on, since nobody can
/// give it to another before the row is mended.
fn anew<T, O: Clone>(
    asked_at: BootTime,
    all: &Assigned<T>,
    known: &BTreeMap<ChangefeedUuid, O>,
    row: impl Fn(&T) -> (ChangefeedUuid, O),
) -> (Arc<BTreeMap<ChangefeedUuid, O>>, Option<Read>) {
    let mut rows: BTreeMap<_, _> = all.rows.iter().map(row).collect();
    let mut unknown = 0;
    for changefeed in &all.unreadable {
        match known.get(changefeed) {
            Some(order) => drop(rows.insert(*changefeed, order.clone())),
            None => unknown += 1,
        }
    }
    (Arc::new(rows), Some(Read { asked_at, unknown }))
}

/// Every order to this capture, read anew.
async fn schedules(observer: &CaptureObserver) -> Result<Assigned<ChangefeedSchedule>> {
    let inner = &observer.inner;
    let limit = inner.policy.statement_timeout;
    let all = pace::within(limit, "capture.schedules", inner.store.capture_schedules(inner.term)).await?;
    counter!("cdc_capture_reconciles_total").increment(1);
    Ok(all)
}

/// Everything that this capture is to be a processor of, read anew.
async fn processors(observer: &CaptureObserver) -> Result<Assigned<ProcessorSchedule>> {
    let inner = &observer.inner;
    let limit = inner.policy.statement_timeout;
    let all = pace::within(limit, "capture.processors", inner.store.capture_processors(inner.term)).await?;
    counter!("cdc_capture_reconciles_total").increment(1);
    Ok(all)
}
