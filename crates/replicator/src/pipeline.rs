//! What one launch runs: source -> bounded queue -> batch -> admission -> sink -> report.
//!
//! ```text
//!   reading (a task of its own)                 flushing (the launch's task)
//!   source.next() -> queue (<= 32 MiB) -------> sink.add .. until 4 MiB or a tick (250 ms)
//!                                                 admission.admit(3 s) -- Fenced --> end, nothing written
//!                                                 sink.flush(guard)       TooLong -> ask again
//!                                                 permit.done()           Stopping > end
//!                                                 report(last mark before the flush)
//! ```
//!
//! * A checkpoint is the last [`Resolved`] mark that came before the flush: it moves only between transactions,
//!   and only after everything before it is durable. A transaction greater than a batch goes out in several
//!   flushes; the checkpoint waits for its end.
//! * Stop: reading ends, a flush under way ends, one more is tried if the admission still allows it, and what is
//!   durable has been reported when [`run`] returns.
//! * A source that fails: what it gave before is flushed and reported, then the error returned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use capture_runtime::admission::{Admission, NotAdmitted};
use capture_runtime::clock::Clock;
use capture_runtime::task::{MAX_FLUSH_TIMEOUT, TaskEnd, TaskError};
use metadata_api::model::{ChangefeedProgress, Ts};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::event::{Change, Resolved, SourceEvent};
use crate::filter::Filter;
use crate::meters::Meters;
use crate::sink::{FlushError, FlushGuard, GuardRefusal, Sink};
use crate::source::Source;

/// How long a change waits in a batch at most.
const FLUSH_INTERVAL: Duration = Duration::from_millis(250);
/// How large a batch grows.
const FLUSH_BYTES: usize = 4 << 20;
/// How long a flush may take.
const FLUSH_TIMEOUT: Duration = MAX_FLUSH_TIMEOUT;
/// When to ask again after [`NotAdmitted::TooLong`].
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// What the queue between source and sink holds, in KiB of memory.
const QUEUE_KIB: u32 = 32 << 10;
/// And in events.
const QUEUE_EVENTS: usize = 1024;

/// Takes progress; `false` when it was dropped.
pub(crate) type Report = Box<dyn Fn(ChangefeedProgress) -> bool + Send + Sync>;

/// All that one launch needs.
pub(crate) struct Pipeline {
    pub(crate) source: Box<dyn Source>,
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) filter: Filter,
    pub(crate) start: ChangefeedProgress,
    pub(crate) target_ts: Ts,
    pub(crate) admission: Admission,
    pub(crate) report: Report,
    pub(crate) stop: CancellationToken,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) meters: Meters,
}

/// How a step left the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    GoOn,
    /// Everything at or before the target is in the sink's hands.
    TargetReached,
    /// The launch may not write any more.
    Shut,
}

struct Queued {
    event: SourceEvent,
    _memory: OwnedSemaphorePermit,
}

/// Runs a launch to its end.
pub(crate) async fn run(pipeline: Pipeline) -> Result<TaskEnd, TaskError> {
    let Pipeline { source, sink, filter, start, target_ts, admission, report, stop, clock, meters } =
        pipeline;
    let has_target = target_ts != Ts::ZERO;
    if has_target && start.checkpoint_ts >= target_ts {
        report(start);
        return Ok(TaskEnd::Finished);
    }
    let frontier = Arc::new(AtomicU64::new(start.resolved_ts.0));
    let (sender, queue) = mpsc::channel(QUEUE_EVENTS);
    let reading = stop.child_token();
    let reader = tokio::spawn(read(source, sender, Arc::clone(&frontier), reading.clone()));
    let mut writer = Writer {
        sink,
        filter,
        admission,
        report,
        stop,
        clock,
        meters,
        frontier,
        target_ts: has_target.then_some(target_ts),
        done: start.checkpoint_ts,
        mark: None,
    };
    let answer = writer.run(queue).await;
    reading.cancel();
    let read = match reader.await {
        Ok(read) => read,
        Err(error) => Err(TaskError::retryable(
            "CDC:ErrInternalServerError",
            format!("the task that reads the source did not end well: {error}"),
        )),
    };
    // What the writer says comes first; it went on to its own end if only the source failed.
    match answer? {
        Some(end) => Ok(end),
        None => read.map(|()| TaskEnd::Stopped),
    }
}

/// Reads the source until told to stop, or until it fails.
async fn read(
    mut source: Box<dyn Source>,
    queue: mpsc::Sender<Queued>,
    frontier: Arc<AtomicU64>,
    stop: CancellationToken,
) -> Result<(), TaskError> {
    let memory = Arc::new(Semaphore::new(QUEUE_KIB as usize));
    let reading = async {
        loop {
            let event = source.next().await?;
            let bytes = match &event {
                SourceEvent::Changes(changes) => changes.iter().map(Change::size).sum(),
                SourceEvent::Resolved(_) => 0_usize,
            };
            let kib = u32::try_from(bytes >> 10).unwrap_or(QUEUE_KIB).clamp(1, QUEUE_KIB);
            // Neither is ever closed while this runs, except that the writer has ended.
            let Ok(permit) = Arc::clone(&memory).acquire_many_owned(kib).await else { return Ok(()) };
            if let SourceEvent::Resolved(resolved) = &event {
                frontier.fetch_max(resolved.ts.0, Ordering::Relaxed);
            }
            if queue.send(Queued { event, _memory: permit }).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        answer = reading => answer,
    }
}

struct Writer {
    sink: Box<dyn Sink>,
    filter: Filter,
    admission: Admission,
    report: Report,
    stop: CancellationToken,
    clock: Arc<dyn Clock>,
    meters: Meters,
    /// How far the source has read.
    frontier: Arc<AtomicU64>,
    target_ts: Option<Ts>,
    /// The last checkpoint that was reported.
    done: Ts,
    /// The last mark that came, until it was reported.
    mark: Option<Resolved>,
}

impl Writer {
    /// `None` when the source ended.
    async fn run(&mut self, mut queue: mpsc::Receiver<Queued>) -> Result<Option<TaskEnd>, TaskError> {
        let mut tick = tokio::time::interval(FLUSH_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                () = self.stop.cancelled() => {
                    drop(queue);
                    self.flush().await?;
                    return Ok(Some(TaskEnd::Stopped));
                }
                queued = queue.recv() => match queued {
                    None => {
                        self.flush().await?;
                        return Ok(None);
                    }
                    Some(queued) => self.take(queued.event).await?,
                },
                _ = tick.tick() => self.flush().await?,
            };
            match step {
                Step::GoOn => {}
                Step::Shut => return Ok(Some(TaskEnd::Stopped)),
                Step::TargetReached => {
                    let end = match self.flush().await? {
                        Step::Shut => TaskEnd::Stopped,
                        _ => TaskEnd::Finished,
                    };
                    return Ok(Some(end));
                }
            }
        }
    }

    async fn take(&mut self, event: SourceEvent) -> Result<Step, TaskError> {
        match event {
            SourceEvent::Changes(changes) => {
                for change in &changes {
                    if let Some(target) = self.target_ts
                        && change.commit_ts() > target
                    {
                        return Ok(self.reach(target));
                    }
                    if self.wants(change) {
                        self.sink.add(change)?;
                        self.meters.added(change);
                    }
                }
            }
            SourceEvent::Resolved(resolved) => {
                let ts = resolved.ts;
                self.mark = Some(resolved);
                if let Some(target) = self.target_ts
                    && ts >= target
                {
                    return Ok(self.reach(target));
                }
            }
        }
        if self.sink.pending_bytes() >= FLUSH_BYTES { self.flush().await } else { Ok(Step::GoOn) }
    }

    /// Clamps the mark to the target: everything at or before it has come.
    fn reach(&mut self, target: Ts) -> Step {
        let position = self.mark.take().and_then(|mark| mark.position);
        self.mark = Some(Resolved { ts: target, position });
        Step::TargetReached
    }

    fn wants(&self, change: &Change) -> bool {
        match change {
            Change::Row(row) => self.filter.matches_table(&row.table.schema, &row.table.name),
            Change::Ddl(ddl) => match &ddl.table {
                Some(table) => self.filter.matches_table(&ddl.schema, table),
                None => self.filter.matches_schema(&ddl.schema),
            },
        }
    }

    /// Makes durable what was added, and reports.
    async fn flush(&mut self) -> Result<Step, TaskError> {
        let bytes = self.sink.pending_bytes();
        if bytes > 0 {
            let permit = loop {
                match self.admission.admit(FLUSH_TIMEOUT) {
                    Ok(permit) => break permit,
                    Err(NotAdmitted::TooLong) if !self.stop.is_cancelled() => {
                        self.meters.refused("too_long");
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                    Err(reason) => {
                        self.meters.refused(if reason == NotAdmitted::Fenced {
                            "fenced"
                        } else {
                            "stopping"
                        });
                        return Ok(Step::Shut);
                    }
                }
            };
            let guard = FlushGuard::new(self.admission.clone(), Arc::clone(&self.clock), FLUSH_TIMEOUT);
            let began = self.clock.now();
            let answer = self.sink.flush(&guard).await;
            // The sink has returned, so nothing of the flush is under way any more.
            permit.done();
            self.meters.flushed(bytes, self.clock.now().since(began), answer.is_ok());
            match answer {
                Ok(()) => {}
                Err(FlushError::Refused(GuardRefusal::Fenced)) => return Ok(Step::Shut),
                Err(FlushError::Refused(refusal @ GuardRefusal::Timeout(_))) => {
                    return Err(TaskError::retryable(
                        "CDC:ErrExternalStorageAPI",
                        format!("the sink is too slow: {refusal}"),
                    ));
                }
                Err(FlushError::Failed(error)) => return Err(error),
            }
        }
        if let Some(mark) = self.mark.take()
            && mark.ts >= self.done
        {
            self.done = mark.ts;
            (self.report)(ChangefeedProgress {
                checkpoint_ts: mark.ts,
                resolved_ts: mark.ts.max(Ts(self.frontier.load(Ordering::Relaxed))),
                min_table_barrier_ts: mark.ts,
                position: mark.position,
            });
        }
        Ok(if self.admission.is_fenced() { Step::Shut } else { Step::GoOn })
    }
}

#[cfg(test)]
mod tests;
