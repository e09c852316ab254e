use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use capture_runtime::admission::Deadline;
use metadata_api::model::ChangefeedName;

use super::*;
use crate::testing::{self, TestClock, insert, insert_into, position};

/// Gives a script, and then waits for ever or fails.
struct Script {
    events: VecDeque<SourceEvent>,
    end: Option<TaskError>,
}

#[async_trait]
impl Source for Script {
    async fn next(&mut self) -> Result<SourceEvent, TaskError> {
        match (self.events.pop_front(), self.end.take()) {
            (Some(event), end) => {
                self.end = end;
                Ok(event)
            }
            (None, Some(error)) => Err(error),
            (None, None) => std::future::pending().await,
        }
    }
}

/// What happened at the sink and the reporter, in order.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Flushed(Vec<u64>),
    Reported(u64, Option<u64>),
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// A hook at the begin of a flush.
type OnFlush = Box<dyn FnMut(usize) -> Result<(), FlushError> + Send>;

struct Memory {
    pending: Vec<u64>,
    bytes: usize,
    log: Log,
    flushes: usize,
    on_flush: OnFlush,
}

#[async_trait]
impl Sink for Memory {
    fn add(&mut self, change: &Change) -> Result<(), TaskError> {
        self.pending.push(change.commit_ts().0);
        self.bytes += change.size();
        Ok(())
    }

    fn pending_bytes(&self) -> usize {
        self.bytes
    }

    async fn flush(&mut self, guard: &FlushGuard) -> Result<(), FlushError> {
        self.flushes += 1;
        (self.on_flush)(self.flushes)?;
        guard.check()?;
        self.bytes = 0;
        self.log.lock().unwrap().push(Seen::Flushed(std::mem::take(&mut self.pending)));
        Ok(())
    }
}

struct Bench {
    clock: Arc<TestClock>,
    admission: Admission,
    deadline: Deadline,
    stop: CancellationToken,
    log: Log,
    reported: Arc<tokio::sync::Notify>,
}

impl Bench {
    fn new() -> Self {
        let clock = TestClock::at_ms(1000);
        let (admission, deadline) = testing::admission(&clock, Duration::from_secs(10));
        Self {
            clock,
            admission,
            deadline,
            stop: CancellationToken::new(),
            log: Log::default(),
            reported: Arc::default(),
        }
    }

    fn pipeline(&self, events: Vec<SourceEvent>, end: Option<TaskError>, on_flush: OnFlush) -> Pipeline {
        let (log, reported, admission) =
            (Arc::clone(&self.log), Arc::clone(&self.reported), self.admission.clone());
        Pipeline {
            source: Box::new(Script { events: events.into(), end }),
            sink: Box::new(Memory {
                pending: Vec::new(),
                bytes: 0,
                log: Arc::clone(&self.log),
                flushes: 0,
                on_flush,
            }),
            filter: Filter::new(["*.*", "!s.hidden"], false).unwrap(),
            start: ChangefeedProgress::at(Ts(1)),
            target_ts: Ts::ZERO,
            admission: self.admission.clone(),
            report: Box::new(move |progress| {
                assert!(progress.resolved_ts >= progress.checkpoint_ts);
                assert!(!admission.is_fenced(), "reported after the fence");
                let at = progress.position.and_then(|position| position.0["at"].as_u64());
                log.lock().unwrap().push(Seen::Reported(progress.checkpoint_ts.0, at));
                reported.notify_one();
                true
            }),
            stop: self.stop.clone(),
            clock: Arc::<TestClock>::clone(&self.clock),
            meters: Meters::new(&ChangefeedName::new("default", "test").unwrap()),
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    fn flushed(&self) -> Vec<u64> {
        self.seen()
            .into_iter()
            .flat_map(|seen| match seen {
                Seen::Flushed(rows) => rows,
                Seen::Reported(..) => Vec::new(),
            })
            .collect()
    }
}

fn rows(ts: impl IntoIterator<Item = u64>) -> SourceEvent {
    SourceEvent::Changes(ts.into_iter().map(insert).collect())
}

fn mark(ts: u64) -> SourceEvent {
    SourceEvent::Resolved(Resolved { ts: Ts(ts), position: Some(position(ts)) })
}

fn accept() -> OnFlush {
    Box::new(|_| Ok(()))
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_follows_its_flush_and_never_splits_a_transaction() {
    let bench = Bench::new();
    let events = vec![rows([2]), mark(2), rows([3, 3]), rows([3])];
    let task = tokio::spawn(run(bench.pipeline(events, None, accept())));
    bench.reported.notified().await;
    bench.stop.cancel();
    assert_eq!(task.await.unwrap().unwrap(), TaskEnd::Stopped);
    let seen = bench.seen();
    let flush =
        seen.iter().position(|seen| matches!(seen, Seen::Flushed(rows) if rows.contains(&2))).unwrap();
    let report = seen.iter().position(|seen| *seen == Seen::Reported(2, Some(2))).unwrap();
    assert!(flush < report, "{seen:?}");
    assert!(!seen.iter().any(|seen| matches!(seen, Seen::Reported(3, _))), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn the_target_ends_it_with_a_checkpoint_at_the_target() {
    for events in [
        vec![rows([2]), mark(2), rows([9]), mark(9)],
        vec![rows([2]), mark(2), mark(8)],
        vec![rows([2]), mark(5)],
    ] {
        let bench = Bench::new();
        let mut pipeline = bench.pipeline(events, None, accept());
        pipeline.target_ts = Ts(5);
        assert_eq!(run(pipeline).await.unwrap(), TaskEnd::Finished);
        assert_eq!(bench.flushed(), [2]);
        assert!(matches!(bench.seen().last(), Some(Seen::Reported(5, _))), "{:?}", bench.seen());
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_at_the_target_is_finished_at_once() {
    let bench = Bench::new();
    let mut pipeline = bench.pipeline(vec![rows([2])], None, accept());
    pipeline.target_ts = Ts(1);
    assert_eq!(run(pipeline).await.unwrap(), TaskEnd::Finished);
    assert_eq!(bench.seen(), [Seen::Reported(1, None)]);
}

#[tokio::test(start_paused = true)]
async fn stop_finishes_the_flush_in_hand_and_reports_it() {
    let bench = Bench::new();
    let (stop, admission) = (bench.stop.clone(), bench.admission.clone());
    let on_flush: OnFlush = Box::new(move |_| {
        stop.cancel();
        admission.close();
        Ok(())
    });
    let events = vec![rows([2]), mark(2), rows([3]), mark(3)];
    assert_eq!(run(bench.pipeline(events, None, on_flush)).await.unwrap(), TaskEnd::Stopped);
    let seen = bench.seen();
    assert!(matches!(&seen[..], [Seen::Flushed(_), Seen::Reported(..)]), "{seen:?}");
    assert_eq!(bench.admission.outstanding(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_launch_writes_and_reports_nothing_more() {
    let bench = Bench::new();
    let task = tokio::spawn(run(bench.pipeline(vec![rows([2]), mark(2)], None, accept())));
    bench.clock.advance(Duration::from_secs(11));
    assert_eq!(task.await.unwrap().unwrap(), TaskEnd::Stopped);
    assert_eq!(bench.seen(), []);
    assert_eq!(bench.admission.outstanding(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_is_fenced_within_a_flush_does_not_report_it() {
    let bench = Bench::new();
    let clock = Arc::clone(&bench.clock);
    let on_flush: OnFlush = Box::new(move |flush| {
        if flush == 2 {
            clock.advance(Duration::from_secs(11));
        }
        Ok(())
    });
    let big = "x".repeat(FLUSH_BYTES);
    let piece = |ts| SourceEvent::Changes(vec![insert_into("t", ts, &big)]);
    let events = vec![piece(2), mark(2), piece(3), mark(3), piece(4), mark(4)];
    assert_eq!(run(bench.pipeline(events, None, on_flush)).await.unwrap(), TaskEnd::Stopped);
    assert_eq!(bench.flushed(), [2]);
    assert_eq!(bench.admission.outstanding(), 0);
}

#[tokio::test(start_paused = true)]
async fn too_long_is_asked_again() {
    let bench = Bench::new();
    // The heartbeats are late: a flush could outlive the deadline by more than is safe.
    bench.clock.advance(Duration::from_millis(9500));
    let task = tokio::spawn(run(bench.pipeline(vec![rows([2]), mark(2)], None, accept())));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.seen(), []);
    bench.deadline.extend(bench.clock.now() + Duration::from_secs(10));
    bench.reported.notified().await;
    bench.stop.cancel();
    assert_eq!(task.await.unwrap().unwrap(), TaskEnd::Stopped);
    assert_eq!(bench.flushed(), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_has_its_last_transactions_delivered() {
    let bench = Bench::new();
    let error = TaskError::retryable("CDC:ErrMySQLConnectionError", "lost");
    let events = vec![rows([2]), mark(2), rows([3])];
    let answer = run(bench.pipeline(events, Some(error), accept())).await.unwrap_err();
    assert_eq!((&*answer.code, answer.retryable), ("CDC:ErrMySQLConnectionError", true));
    assert_eq!(bench.flushed(), [2, 3]);
    assert!(bench.seen().contains(&Seen::Reported(2, Some(2))));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_ends_it_without_a_report() {
    let bench = Bench::new();
    let on_flush: OnFlush =
        Box::new(|_| Err(TaskError::retryable("CDC:ErrExternalStorageAPI", "disk full").into()));
    let answer = run(bench.pipeline(vec![rows([2]), mark(2)], None, on_flush)).await.unwrap_err();
    assert_eq!(answer.code, "CDC:ErrExternalStorageAPI");
    assert_eq!(bench.seen(), []);
    assert_eq!(bench.admission.outstanding(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_large_transaction_streams_in_several_flushes() {
    let bench = Bench::new();
    let text = "x".repeat(10_000);
    let mut events: Vec<SourceEvent> = (0..100)
        .map(|_| SourceEvent::Changes((0..100).map(|_| insert_into("t", 2, &text)).collect()))
        .collect();
    events.push(mark(2));
    let task = tokio::spawn(run(bench.pipeline(events, None, accept())));
    bench.reported.notified().await;
    bench.stop.cancel();
    task.await.unwrap().unwrap();
    let seen = bench.seen();
    assert!(seen.iter().filter(|seen| matches!(seen, Seen::Flushed(_))).count() > 10);
    assert_eq!(bench.flushed().len(), 10_000);
    let reports: Vec<&Seen> = seen.iter().filter(|seen| matches!(seen, Seen::Reported(..))).collect();
    assert_eq!(reports, [&Seen::Reported(2, Some(2))]);
}

#[tokio::test(start_paused = true)]
async fn filtered_rows_move_the_checkpoint_without_a_flush() {
    let bench = Bench::new();
    let events = vec![SourceEvent::Changes(vec![insert_into("hidden", 2, "x")]), mark(2)];
    let task = tokio::spawn(run(bench.pipeline(events, None, accept())));
    bench.reported.notified().await;
    bench.stop.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(bench.seen(), [Seen::Reported(2, Some(2))]);
}
