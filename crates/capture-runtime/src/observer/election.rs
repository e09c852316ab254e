//! The election: who has watched the lease stand still for its whole length may try, and a transaction decides.
//!
//! ```text
//! watching --vacant, or unchanged for a lease--> campaigning --won--> leading --told to stop--> resigned
//!     ^                                              |                   |
//!     +------------------ lost ----------------------+     fenced, or own deadline passed: lost
//! ```
//!
//! The holder trusts only its own deadline. A callback that does not end in time is dropped; whatever it still sends
//! is refused by the epoch.

use std::sync::Arc;
use std::time::Duration;

use metadata_api::decision::lease::{ElectionView, LeaseReading, may_campaign};
use metadata_api::model::{CaptureState, ControllerTerm, ElectionRecord};
use metadata_api::observation::ControllerCallback;
use metadata_api::{MetadataError, Result};
use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{CaptureObserver, lock};
use crate::controller::ControllerObserver;
use crate::pace;

/// How long a callback that was told to end may take before it is dropped.
const STEP_DOWN_LIMIT: Duration = Duration::from_secs(2);

/// Campaigns, leads, steps down, until told to stop or fenced.
pub(super) async fn run(observer: &CaptureObserver, on_take_control: ControllerCallback) -> Result<()> {
    tokio::select! {
        biased;
        ended = serve(observer, on_take_control) => ended,
        () = scout(observer) => Err(MetadataError::conflict("the watch has ended")),
    }
}

async fn serve(observer: &CaptureObserver, on_take_control: ControllerCallback) -> Result<()> {
    let inner = &observer.inner;
    let mut polled = inner.polled.subscribe();
    loop {
        tokio::select! {
            biased;
            () = inner.stepping_down.cancelled() => return Ok(()),
            () = inner.fenced.cancelled() => {
                return Err(observer.fenced_error().unwrap_or_else(|| MetadataError::fenced("this capture")));
            }
            () = until_due(observer, &mut polled) => {}
        }
        let Some(record) = due_record(observer) else { continue };
        match campaign(observer, &record).await {
            Ok(term) => {
                tracing::info!(capture = %term.capture, epoch = %term.epoch, "this capture is the controller now");
                lead(observer, term, &on_take_control).await;
            }
            Err(error) => {
                tracing::debug!(capture = %inner.term.capture, %error, "did not become controller");
                // Whoever won will show in the next poll; who is refused waits for one anyway.
                tokio::select! {
                    biased;
                    () = inner.stepping_down.cancelled() => {}
                    () = inner.fenced.cancelled() => {}
                    _ = polled.changed() => {}
                }
            }
        }
    }
}

/// Waits until the lease may be due: after each poll, or when the one last seen runs out.
async fn until_due(observer: &CaptureObserver, polled: &mut tokio::sync::watch::Receiver<u64>) {
    let inner = &observer.inner;
    loop {
        if due_record(observer).is_some() {
            tokio::time::sleep(pace::some_of(&*inner.clock, inner.policy.poll_interval / 2)).await;
            if due_record(observer).is_some() {
                return;
            }
        }
        let expires = lock(&inner.observed).lease.expires_at(&inner.policy);
        let left = expires.map_or(inner.policy.controller_lease, |at| at.since(inner.clock.now()));
        // Due by the lease, and still not this capture's turn: it may not act, drains, or lets others go first.
        let left = if left.is_zero() { inner.policy.poll_interval } else { left };
        tokio::select! {
            biased;
            _ = polled.changed() => {}
            () = tokio::time::sleep(left) => {}
        }
    }
}

/// Looks at everybody's heartbeats once for each silence of the controller, before it is known to be dead. Never ends.
async fn scout(observer: &CaptureObserver) {
    let inner = &observer.inner;
    let mut polled = inner.polled.subscribe();
    let mut looked = None;
    while polled.changed().await.is_ok() {
        let silence = silence(observer);
        if silence.is_none() || silence == looked {
            continue;
        }
        // Everybody who may be elected looks: not all in the same moment, and not who has heard of the controller meanwhile.
        tokio::time::sleep(pace::some_of(&*inner.clock, inner.policy.own_gap)).await;
        if self::silence(observer) != silence {
            continue;
        }
        // Once, whatever comes of it: whoever is elected looks anyway, and counts from then.
        looked = silence;
        let beats = inner.store.capture_beats();
        match pace::within(inner.policy.statement_timeout, "election.scout", beats).await {
            Ok(beats) => {
                let answered_at = inner.clock.now();
                lock(&inner.observed).judge.observe(answered_at, &beats);
            }
            Err(error) => tracing::debug!(%error, "could not look at the others' heartbeats"),
        }
    }
}

/// The lease of a controller that is silent, if this capture may have to follow it.
fn silence(observer: &CaptureObserver) -> Option<LeaseReading> {
    let inner = &observer.inner;
    if inner.deadline.has_passed() || observer.leading().is_some() {
        return None;
    }
    let seen = lock(&inner.observed);
    if seen.own_state != Some(CaptureState::Alive) {
        return None;
    }
    seen.lease.silent(seen.last_poll?, &inner.policy)
}

/// The record to campaign on, if it is time.
fn due_record(observer: &CaptureObserver) -> Option<ElectionRecord> {
    let inner = &observer.inner;
    if inner.deadline.has_passed() {
        return None;
    }
    let seen = lock(&inner.observed);
    let record = seen.election?;
    let view = ElectionView { record, lease: seen.lease, own_state: seen.own_state };
    may_campaign(inner.term.capture, &view, inner.clock.now(), &inner.policy).then_some(record)
}

async fn campaign(observer: &CaptureObserver, record: &ElectionRecord) -> Result<ControllerTerm> {
    let inner = &observer.inner;
    let limit = inner.policy.statement_timeout * 2;
    counter!("cdc_election_campaigns_total").increment(1);
    pace::within(limit, "election.campaign", inner.store.election_campaign(inner.term, record)).await
}

async fn lead(observer: &CaptureObserver, term: ControllerTerm, on_take_control: &ControllerCallback) {
    let inner = &observer.inner;
    *lock(&inner.leading) = Some(term);
    gauge!("cdc_capture_is_controller").set(1.0);
    let cancel = CancellationToken::new();
    let controller = Arc::new(ControllerObserver::new(observer.clone(), term));
    // When the incarnation is over this future is dropped where it stands, and the callback must not live on.
    let _cancelled = cancel.clone().drop_guard();
    let mut work = AbortOnDropHandle::new(tokio::spawn(on_take_control(controller, cancel.clone())));
    let lost = tokio::select! {
        biased;
        ended = &mut work => {
            match ended {
                Ok(Ok(())) => tracing::info!(epoch = %term.epoch, "the controller ended by itself"),
                Ok(Err(error)) => tracing::warn!(epoch = %term.epoch, %error, "the controller failed"),
                Err(panic) => tracing::error!(epoch = %term.epoch, %panic, "the controller panicked"),
            }
            None
        }
        () = inner.stepping_down.cancelled() => None,
        why = until_lost(observer, term) => Some(why),
    };
    cancel.cancel();
    if !work.is_finished() && tokio::time::timeout(STEP_DOWN_LIMIT, &mut work).await.is_err() {
        work.abort();
        tracing::warn!(epoch = %term.epoch, "the controller did not end in time and was dropped");
    }
    *lock(&inner.leading) = None;
    gauge!("cdc_capture_is_controller").set(0.0);
    match lost {
        Some(why) => tracing::warn!(epoch = %term.epoch, why, "this capture is not the controller any more"),
        None => match pace::within(
            inner.policy.statement_timeout,
            "election.resign",
            inner.store.election_resign(term),
        )
        .await
        {
            Ok(()) => tracing::info!(epoch = %term.epoch, "resigned as controller"),
            Err(error) => {
                tracing::warn!(epoch = %term.epoch, %error, "could not resign; the lease will run out")
            }
        },
    }
}

/// Resolves when the term is over: the renewal was refused, or this capture's own deadline passed.
async fn until_lost(observer: &CaptureObserver, term: ControllerTerm) -> &'static str {
    let inner = &observer.inner;
    let mut polled = inner.polled.subscribe();
    loop {
        if observer.leading() != Some(term) {
            return "another controller was elected, or it was deposed";
        }
        if inner.deadline.has_passed() {
            return "its own deadline passed";
        }
        if inner.fenced.is_cancelled() {
            return "it was fenced";
        }
        tokio::select! {
            biased;
            _ = polled.changed() => {}
            () = tokio::time::sleep(inner.deadline.left().max(Duration::from_millis(10))) => {}
            () = inner.fenced.cancelled() => {}
        }
    }
}
