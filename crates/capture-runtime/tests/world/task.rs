//! What a changefeed runs here: a task that flushes numbers to the [`Outside`], and misbehaves on order.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use capture_runtime::clock::Clock;
use capture_runtime::task::{
    NotAdmitted, PreparedTask, TaskContext, TaskEnd, TaskError, TaskFactory, TaskSpec,
};
use metadata_api::model::{ChangefeedInfo, ChangefeedProgress, SourcePosition, TableId, Ts, UpstreamInfo};
use tokio::sync::Notify;

use super::ProcessClock;
use super::outside::{Launched, Outside, Part, Writer, table};

/// How a task behaves from now on.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Between two flushes.
    pub pace: Duration,
    /// How long a flush takes.
    pub latency: Duration,
    /// The limit of a flush, which it asks admission for.
    pub timeout: Duration,
    /// It goes on when it is told to stop, asking its admission again and again.
    pub ignores_stop: bool,
    /// How long it takes to end once it was told to.
    pub stops_in: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            pace: Duration::from_millis(200),
            latency: Duration::from_millis(20),
            timeout: Duration::from_secs(3),
            ignores_stop: false,
            stops_in: Duration::ZERO,
        }
    }
}

/// What happens to a task once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    FailsRetryably,
    FailsFatally,
    Panics,
    /// It returns without having been told to.
    EndsByItself,
    /// A flush ends, and nobody knows how.
    LosesSightOfAFlush,
}

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Runs,
    /// None of its instructions is carried out.
    Suspended,
    /// It was killed.
    Dead,
}

/// One process's factory.
pub struct Factory {
    pub process: usize,
    pub outside: Outside,
    pub clock: Arc<ProcessClock>,
    pub gate: Arc<Latch>,
    pub runs_processors: bool,
}

/// The key of a changefeed's configuration that says into how many tables it can be split.
pub const TABLES: &str = "tables";

/// A process's [`Gate`]. (Not a `watch`: who waits there is woken in an order that no seed repeats.)
#[derive(Debug)]
pub struct Latch {
    gate: Mutex<Gate>,
    changed: Notify,
}

impl Latch {
    pub fn open() -> Self {
        Self { gate: Mutex::new(Gate::Runs), changed: Notify::new() }
    }

    pub fn get(&self) -> Gate {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, gate: Gate) {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = gate;
        self.changed.notify_waiters();
    }
}

impl Factory {
    async fn passes(&self) {
        while self.gate.get() != Gate::Runs {
            self.gate.changed.notified().await;
        }
    }

    async fn go(&self, context: &TaskContext) -> Result<TaskEnd, TaskError> {
        let changefeed = context.term.changefeed;
        let writer = Writer { term: context.term, part: context.share.as_ref().map(Part::from) };
        let mut at = context.start.clone();
        loop {
            let behaviour = self.outside.behaviour(changefeed);
            tokio::select! {
                biased;
                () = context.stop.cancelled(), if !behaviour.ignores_stop => {
                    tokio::time::sleep(behaviour.stops_in).await;
                    self.passes().await;
                    return Ok(TaskEnd::Stopped);
                }
                () = tokio::time::sleep(behaviour.pace) => {}
            }
            self.passes().await;
            if context.stop.is_cancelled() && !behaviour.ignores_stop {
                continue;
            }
            let incident = self.outside.take_incident(changefeed);
            match incident {
                Some(Incident::FailsRetryably) => {
                    return Err(TaskError::retryable("CDC:ErrTest", "a planned failure"));
                }
                Some(Incident::FailsFatally) => {
                    return Err(TaskError::fatal("CDC:ErrStartTsBeforeGC", "a planned failure for good"));
                }
                Some(Incident::Panics) => panic!("a planned panic in a task"),
                Some(Incident::EndsByItself) => return Ok(TaskEnd::Stopped),
                Some(Incident::LosesSightOfAFlush) | None => {}
            }
            let target = context.info.target_ts;
            if target != Ts::ZERO && at.checkpoint_ts >= target {
                return Ok(TaskEnd::Finished);
            }
            match context.admission.admit(behaviour.timeout) {
                Ok(permit) => {
                    let flush = self.outside.flush_begins(self.process, writer, behaviour.timeout);
                    let began = self.clock.now();
                    tokio::time::sleep(behaviour.latency).await;
                    self.passes().await;
                    if incident == Some(Incident::LosesSightOfAFlush) {
                        drop(permit);
                        return Err(TaskError::retryable("CDC:ErrTest", "the sink's connection was lost"));
                    }
                    // The caller enforces the flush's limit: past it nothing is sent any more.
                    if self.clock.now().since(began) <= behaviour.timeout {
                        let to = Ts(at.checkpoint_ts.0 + 1);
                        self.outside.write(self.process, writer, context.launch, at.checkpoint_ts, to);
                        at = progress(to);
                    }
                    self.outside.flush_ends(changefeed, flush);
                    permit.done();
                    context.reporter.report(at.clone());
                }
                Err(NotAdmitted::TooLong) => self.outside.refused_one(),
                Err(NotAdmitted::Stopping | NotAdmitted::Fenced) => {
                    self.outside.refused_one();
                    if !behaviour.ignores_stop {
                        return Ok(TaskEnd::Stopped);
                    }
                }
            }
        }
    }
}

/// The whole value at `ts`.
pub fn progress(ts: Ts) -> ChangefeedProgress {
    ChangefeedProgress { position: Some(SourcePosition(ts.0.into())), ..ChangefeedProgress::at(ts) }
}

#[async_trait]
impl TaskFactory for Factory {
    async fn prepare(&self, spec: &TaskSpec) -> Result<PreparedTask, TaskError> {
        let start_ts = spec.start_ts.unwrap_or(Ts(1));
        Ok(PreparedTask { start_ts, task_position: progress(start_ts) })
    }

    fn runs_processors(&self) -> bool {
        self.runs_processors
    }

    async fn tables(&self, info: &ChangefeedInfo, _: &UpstreamInfo) -> Result<Vec<TableId>, TaskError> {
        let count = info.config.0.get(TABLES).and_then(serde_json::Value::as_u64).unwrap_or(0);
        Ok((0..usize::try_from(count).unwrap()).map(table).collect())
    }

    async fn run(&self, context: TaskContext) -> Result<TaskEnd, TaskError> {
        self.passes().await;
        let start = &context.start;
        assert_eq!(*start, progress(start.checkpoint_ts), "a progress travels whole");
        self.outside.launched(Launched {
            term: context.term,
            part: context.share.as_ref().map(Part::from),
            launch: context.launch,
            start: start.checkpoint_ts,
            sink: context.info.sink_uri.expose().to_owned(),
        });
        // Also when it panics.
        let _ended = Ends { factory: self, context: &context };
        self.go(&context).await
    }
}

struct Ends<'a> {
    factory: &'a Factory,
    context: &'a TaskContext,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.factory.outside.ended(self.factory.process, self.context.term);
    }
}
