//! Who may write outside, and until when.
//!
//! A capture has one [`Deadline`]: 10 s after its last successful heartbeat *was sent*. Every launch on it has
//! an [`Admission`] of its own, which looks at that deadline each time it is asked, so nobody has to tell it
//! anything: a process that was stopped for a minute and goes on finds the deadline passed by itself
//! (*passive* admission).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use metadata_api::decision::lease::FLUSH_GRACE;
use tokio::sync::Notify;

use crate::clock::{BootTime, Clock};
use crate::task::MAX_FLUSH_TIMEOUT;

/// Until when this capture may act. Shared by all that runs on it.
#[derive(Clone)]
pub struct Deadline {
    inner: Arc<DeadlineInner>,
}

struct DeadlineInner {
    clock: Arc<dyn Clock>,
    /// Nanoseconds of `CLOCK_BOOTTIME`; 0 = not set yet, so nothing is admitted.
    until: AtomicU64,
}

impl Deadline {
    /// One that has passed already: nothing is admitted before the first heartbeat.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { inner: Arc::new(DeadlineInner { clock, until: AtomicU64::new(0) }) }
    }

    /// Moves it to `until`. It only moves forward.
    pub fn extend(&self, until: BootTime) {
        let nanos = u64::try_from(until.since_boot().as_nanos()).unwrap_or(u64::MAX);
        self.inner.until.fetch_max(nanos, Ordering::SeqCst);
    }

    /// Until when this capture may act.
    pub fn until(&self) -> BootTime {
        BootTime::from_boot(Duration::from_nanos(self.inner.until.load(Ordering::SeqCst)))
    }

    /// How long it may still act; zero when the deadline has passed.
    pub fn left(&self) -> Duration {
        self.until().since(self.inner.clock.now())
    }

    /// Whether it has passed.
    pub fn has_passed(&self) -> bool {
        self.left().is_zero()
    }

    /// The clock by which it is judged.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadline").field("left", &self.left()).finish()
    }
}

/// Why a flush may not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The launch was told to stop; what has been flushed may still be reported.
    #[error("the launch was told to stop")]
    Stopping,
    /// The capture's deadline passed, or the launch lost its term: stop at once, report nothing more.
    #[error("the launch is fenced: this capture may not act for the changefeed any more")]
    Fenced,
    /// The flush could outlive the deadline by more than is safe. The launch is not stopped: ask again.
    #[error("the flush's own timeout would end too long after the deadline; ask again")]
    TooLong,
}

/// Why a launch that is fenced or told to stop, on a capture that may act for `left`, may not flush for at most `timeout`; `None`
/// = it may. Zero `left` is a deadline that has passed.
pub fn refusal(fenced: bool, stopping: bool, left: Duration, timeout: Duration) -> Option<NotAdmitted> {
    if fenced || left.is_zero() {
        return Some(NotAdmitted::Fenced);
    }
    if stopping {
        return Some(NotAdmitted::Stopping);
    }
    if timeout > MAX_FLUSH_TIMEOUT || timeout > left + FLUSH_GRACE {
        return Some(NotAdmitted::TooLong);
    }
    None
}

/// One launch's permission to write outside. Cheap to clone; all clones latch together.
#[derive(Clone)]
pub struct Admission {
    inner: Arc<AdmissionInner>,
}

struct AdmissionInner {
    deadline: Deadline,
    stopping: AtomicBool,
    fenced: AtomicBool,
    in_flight: AtomicUsize,
    unknown: AtomicUsize,
    changed: Notify,
}

impl Admission {
    /// An open one, under the capture's deadline.
    pub fn new(deadline: Deadline) -> Self {
        Self {
            inner: Arc::new(AdmissionInner {
                deadline,
                stopping: AtomicBool::new(false),
                fenced: AtomicBool::new(false),
                in_flight: AtomicUsize::new(0),
                unknown: AtomicUsize::new(0),
                changed: Notify::new(),
            }),
        }
    }

    /// Asks to flush once, for at most `timeout` (which the caller enforces on the flush).
    ///
    /// # Errors
    /// [`NotAdmitted`]; `Stopping` and `Fenced` latch, `TooLong` does not.
    pub fn admit(&self, timeout: Duration) -> Result<FlushPermit, NotAdmitted> {
        // Counted before the checks: whoever closes the admission and then sees no flush in flight knows
        // that none will start.
        self.inner.in_flight.fetch_add(1, Ordering::SeqCst);
        let permit = FlushPermit { admission: self.clone(), ended: false };
        let refused = self.refusal(timeout);
        match refused {
            None => Ok(permit),
            Some(reason) => {
                permit.done();
                Err(reason)
            }
        }
    }

    fn refusal(&self, timeout: Duration) -> Option<NotAdmitted> {
        // Looking at the fence first latches it when the deadline has passed.
        let fenced = self.is_fenced();
        let stopping = self.inner.stopping.load(Ordering::SeqCst);
        refusal(fenced, stopping, self.inner.deadline.left(), timeout)
    }

    /// No new flush from now on; those under way may end and be reported.
    pub fn close(&self) {
        self.inner.stopping.store(true, Ordering::SeqCst);
        self.inner.changed.notify_waiters();
    }

    /// No new flush and no report from now on.
    pub fn fence(&self) {
        self.inner.fenced.store(true, Ordering::SeqCst);
        self.inner.changed.notify_waiters();
    }

    /// Whether the launch was fenced. Looking latches: a passed deadline fences for good.
    pub fn is_fenced(&self) -> bool {
        if self.inner.fenced.load(Ordering::SeqCst) {
            return true;
        }
        let passed = self.inner.deadline.has_passed();
        if passed {
            self.fence();
        }
        passed
    }

    /// How many flushes are under way or ended without anybody knowing how. The launch has not stopped
    /// before this is 0.
    pub fn outstanding(&self) -> usize {
        self.inner.in_flight.load(Ordering::SeqCst) + self.inner.unknown.load(Ordering::SeqCst)
    }

    /// How many flushes ended without anybody knowing how.
    pub fn unknown(&self) -> usize {
        self.inner.unknown.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("stopping", &self.inner.stopping.load(Ordering::SeqCst))
            .field("fenced", &self.inner.fenced.load(Ordering::SeqCst))
            .field("outstanding", &self.outstanding())
            .finish()
    }
}

/// The right to flush once. Call [`FlushPermit::done`] when the flush has ended and its outcome is known;
/// dropping it without means that the outcome is unknown, and the launch counts as not stopped.
#[derive(Debug)]
#[must_use = "dropping a permit says that the flush's outcome is unknown"]
pub struct FlushPermit {
    admission: Admission,
    ended: bool,
}

impl FlushPermit {
    /// The flush has ended: it is durable, or it certainly did not and will not happen.
    pub fn done(mut self) {
        self.ended = true;
    }
}

impl Drop for FlushPermit {
    fn drop(&mut self) {
        let inner = &self.admission.inner;
        if !self.ended {
            inner.unknown.fetch_add(1, Ordering::SeqCst);
        }
        inner.in_flight.fetch_sub(1, Ordering::SeqCst);
        inner.changed.notify_waiters();
    }
}
