//! Time, passed in.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
pub use metadata_api::model::BootTime;
use rustix::time::{ClockId, clock_gettime};

/// The clocks that the runtime reads, and the dice that it throws: all that is not in its hands, so that a simulation can
/// replay it.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// For every decision.
    fn now(&self) -> BootTime;

    /// For people's eyes; no decision reads it.
    fn wall(&self) -> DateTime<Utc>;

    /// Random bits, for jitter and fresh ids.
    fn random(&self) -> u64 {
        rand::random()
    }
}

/// This host's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// As a shared [`Clock`].
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> BootTime {
        let now = clock_gettime(ClockId::Boottime);
        // The kernel's BOOTTIME is never negative and its nanoseconds are below 10^9.
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        BootTime::from_boot(Duration::new(seconds, nanos))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    fn wall(&self) -> DateTime<Utc> {
        Utc::now()
    }
}
