//! The heartbeat: one row, one statement, one connection, once a second.
//!
//! The deadline is counted from when a heartbeat was *sent*. A heartbeat that timed out has an unknown outcome: its
//! connection is closed, and the next number allows for both.

use metadata_api::decision::lease::TimePolicy;
use metadata_api::store::{HeartbeatChannel, MetadataStore};
use metadata_api::{MetadataError, Result};
use metrics::{counter, gauge};

use super::{CaptureObserver, lock};
use crate::pace;

/// The heartbeat's connection and numbers.
pub(super) struct Heart {
    channel: Option<Box<dyn HeartbeatChannel>>,
    acknowledged: u64,
    sent: u64,
}

impl Heart {
    /// Opens the connection, before any other of the capture.
    pub(super) async fn open(store: &dyn MetadataStore, policy: &TimePolicy) -> Result<Self> {
        let channel =
            pace::within(policy.statement_timeout, "heartbeat.open", store.heartbeat_channel()).await?;
        Ok(Self { channel: Some(channel), acknowledged: 0, sent: 0 })
    }
}

/// Beats until the incarnation is over or finished.
pub(super) async fn run(observer: &CaptureObserver) -> Result<()> {
    let inner = &observer.inner;
    let mut failing = false;
    loop {
        let started = inner.clock.now();
        match beat(observer).await {
            Ok(()) => {
                if failing {
                    tracing::info!(capture = %inner.term.capture, "heartbeats succeed again");
                }
                failing = false;
            }
            Err(error) if error.is_fenced() => return Err(error),
            Err(error) => {
                if !failing {
                    tracing::warn!(capture = %inner.term.capture, %error, left = ?inner.deadline.left(), "a heartbeat failed");
                }
                failing = true;
            }
        }
        gauge!("cdc_capture_deadline_seconds").set(inner.deadline.left().as_secs_f64());
        // After a failure the next try comes sooner: the deadline runs.
        let interval =
            if failing { inner.policy.heartbeat_interval / 4 } else { inner.policy.heartbeat_interval };
        let spent = inner.clock.now().since(started);
        tokio::select! {
            biased;
            () = inner.finished.cancelled() => return Ok(()),
            () = tokio::time::sleep(pace::jittered(&*inner.clock, interval).saturating_sub(spent)) => {}
        }
    }
}

/// One heartbeat.
pub(super) async fn beat(observer: &CaptureObserver) -> Result<()> {
    let inner = &observer.inner;
    let mut heart = inner.heart.lock().await;
    let limit = inner.policy.heartbeat_timeout;
    let outcome = pace::within(limit, "capture.heartbeat", async {
        if heart.channel.is_none() {
            heart.channel = Some(inner.store.heartbeat_channel().await?);
        }
        // Sent after the connection stands: opening it is not part of the beat.
        let sent_at = inner.clock.now();
        heart.sent += 1;
        let (acknowledged, next) = (heart.acknowledged, heart.sent);
        let Some(channel) = heart.channel.as_mut() else {
            return Err(MetadataError::conflict("the heartbeat channel was lost"));
        };
        channel.beat(inner.term, acknowledged, next).await?;
        Ok((sent_at, next))
    })
    .await;
    match outcome {
        Ok((sent_at, next)) => {
            heart.acknowledged = next;
            counter!("cdc_capture_heartbeats_total", "outcome" => "ok").increment(1);
            let mut observed = lock(&inner.observed);
            observed.last_beat = Some(sent_at);
            observed.acknowledged = next;
            observed.own_beats.succeeded(sent_at, &inner.policy);
            inner.extend_deadline(&observed);
            Ok(())
        }
        Err(error) => {
            heart.channel = None;
            counter!("cdc_capture_heartbeats_total", "outcome" => if error.is_fenced() { "fenced" } else { "failed" })
                .increment(1);
            inner.note_fenced(&error);
            Err(error)
        }
    }
}
