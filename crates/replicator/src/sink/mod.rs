//! Where changes go to: the two traits, and the sinks that come with this crate.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use capture_runtime::admission::Admission;
use capture_runtime::clock::{BootTime, Clock};
use capture_runtime::task::{TaskError, TaskSpec};

use crate::event::Change;
use crate::source::Launch;

pub(crate) mod blackhole;
pub(crate) mod file;

/// Knows one kind of sink.
#[async_trait]
pub trait SinkFactory: Send + Sync + 'static {
    /// Checks the sink URI, its parameters, and that the sink can be written to; changes nothing there.
    ///
    /// # Errors
    /// [`TaskError`] naming the field, the value (masked) and what would be right.
    async fn check(&self, spec: &TaskSpec) -> Result<(), TaskError>;

    /// Makes a sink for one launch. It must not write anything before its first flush.
    ///
    /// # Errors
    /// [`TaskError`].
    async fn open(&self, launch: &Launch) -> Result<Box<dyn Sink>, TaskError>;
}

/// One open sink.
#[async_trait]
pub trait Sink: Send {
    /// Takes a change into memory. Nothing goes outside.
    ///
    /// # Errors
    /// [`TaskError`] when it cannot be encoded.
    fn add(&mut self, change: &Change) -> Result<(), TaskError>;

    /// How many bytes [`Self::add`] took since the last flush.
    fn pending_bytes(&self) -> usize;

    /// Writes all that was added, and returns when it is durable. Whatever the answer, nothing of the flush
    /// is under way any more when this returns: a sink that cannot stop its I/O waits for it.
    ///
    /// A flush in several steps asks `guard` before each. After an error the sink is not used again.
    ///
    /// # Errors
    /// [`FlushError::Refused`] when `guard` said no, [`FlushError::Failed`] otherwise.
    async fn flush(&mut self, guard: &FlushGuard) -> Result<(), FlushError>;
}

/// Why a flush did not make everything durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlushError {
    /// The launch may not write any more, or the flush took longer than it was admitted for.
    #[error("{0}")]
    Refused(GuardRefusal),
    /// The sink failed.
    #[error(transparent)]
    Failed(#[from] TaskError),
}

/// Why a flush must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardRefusal {
    /// The launch was fenced.
    #[error("the launch is fenced: this capture may not act for the changefeed any more")]
    Fenced,
    /// The flush took longer than it was admitted for.
    #[error("the flush took longer than the {0:?} it was admitted for")]
    Timeout(Duration),
}

/// What an admitted flush asks before each step outside: a process that was suspended half way through a flush
/// finds out by itself that it may not go on.
#[derive(Clone, Debug)]
pub struct FlushGuard {
    admission: Admission,
    clock: Arc<dyn Clock>,
    timeout: Duration,
    until: BootTime,
}

impl FlushGuard {
    /// For a flush that was admitted just now for `timeout`.
    pub fn new(admission: Admission, clock: Arc<dyn Clock>, timeout: Duration) -> Self {
        let until = clock.now() + timeout;
        Self { admission, clock, timeout, until }
    }

    /// Whether the flush may go on.
    ///
    /// # Errors
    /// [`GuardRefusal`]; once given, it is given always.
    pub fn check(&self) -> Result<(), GuardRefusal> {
        if self.admission.is_fenced() {
            return Err(GuardRefusal::Fenced);
        }
        if self.clock.now() > self.until {
            return Err(GuardRefusal::Timeout(self.timeout));
        }
        Ok(())
    }
}

impl From<GuardRefusal> for FlushError {
    fn from(refusal: GuardRefusal) -> Self {
        Self::Refused(refusal)
    }
}
