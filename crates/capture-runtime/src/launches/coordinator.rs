//! What an owner runs in place of the changefeed itself, when that asks for several processors: it gives its tables to them,
//! and computes the changefeed's checkpoint.
//!
//! ```text
//! look: rows and reports --> report: the least of the tables' positions
//!          ^                 failed? all are told to stop; then the changefeed's task ends with the table's error
//!          |                 assign: one pure decision, one transaction under the owner's term
//!          +-- 1 s, or 0.3 s while anything moves, or when the cluster's revision moves
//! ```
//!
//! It is a task like any other: told to stop, it tells every processor to stop, waits until they have, and reports where;
//! fenced, it ends at once, and processors run on under their own deadlines until somebody tells them otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use metadata_api::decision::assignment::{
    AssignPolicy, ChangefeedView, Decision, ProcessorView, assign, checkpoint, positions,
};
use metadata_api::model::{
    BootTime, CaptureId, ChangefeedProgress, Placement, ProcessorAssignment, Revision, ScheduleState,
    TableError, TableId, Ts, Version,
};
use metadata_api::{MetadataError, Result};

use crate::observer::{CaptureObserver, lock};
use crate::pace;
use crate::task::{TaskContext, TaskEnd, TaskError, TaskFactory};

/// Between two looks when nothing moves.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks while an order waits to be carried out.
const LOOK_SOON: Duration = Duration::from_millis(300);
/// How long a stop waits for processors. Who dies meanwhile is sealed before; who hangs keeps its tables, so that nobody
/// else gets them.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Runs one launch of an owner: the changefeed itself, or what coordinates its processors.
///
/// # Errors
/// As [`TaskFactory::run`].
pub(super) async fn run(
    observer: CaptureObserver,
    factory: Arc<dyn TaskFactory>,
    context: TaskContext,
) -> Result<TaskEnd, TaskError> {
    let placement = Placement::from_config(&context.info.config).unwrap_or_default();
    if placement.max_processors < 2 || !factory.runs_processors() {
        return factory.run(context).await;
    }
    let tables = tokio::select! {
        biased;
        () = context.stop.cancelled() => return Ok(TaskEnd::Stopped),
        tables = factory.tables(&context.info, &context.upstream) => tables?,
    };
    if tables.is_empty() {
        return factory.run(context).await;
    }
    let tables = tables.into_iter().map(|table| (table, context.start.clone())).collect();
    let coordinator = Coordinator {
        observer,
        factory,
        context,
        tables,
        revision: Revision::default(),
        excused: None,
        failed: None,
        stopping_since: None,
    };
    coordinator.run().await
}

struct Coordinator {
    observer: CaptureObserver,
    factory: Arc<dyn TaskFactory>,
    context: TaskContext,
    /// How far each table is, as far as is known.
    tables: BTreeMap<TableId, ChangefeedProgress>,
    /// The greatest revision that was seen in a row, or written.
    revision: Revision,
    /// The failures that were there when this launch began: it is a new try. `None` before the first look.
    excused: Option<BTreeSet<Failure>>,
    /// Why it ends, when all have stopped.
    failed: Option<TaskError>,
    stopping_since: Option<BootTime>,
}

/// Who could not go on with what, under which order.
type Failure = (CaptureId, TableId, Version);

/// What came of a look.
enum Next {
    Wait(Duration),
    End(Result<TaskEnd, TaskError>),
}

impl Coordinator {
    async fn run(mut self) -> Result<TaskEnd, TaskError> {
        loop {
            if self.context.admission.is_fenced() {
                return Ok(TaskEnd::Stopped);
            }
            if self.context.stop.is_cancelled() {
                self.begin_to_stop();
            }
            let revision = self.polled();
            let wait = match self.look().await {
                Ok(Next::End(end)) => return end,
                Ok(Next::Wait(wait)) => wait,
                // Not this launch's any more: the watch brings the order to stop.
                Err(error) if error.is_fenced() => {
                    tracing::debug!(changefeed = %self.context.info.name, %error, "the term is over");
                    self.context.stop.cancelled().await;
                    return Ok(TaskEnd::Stopped);
                }
                // The rows moved since they were read, or the database did not answer.
                Err(error) if error.is_transient() || matches!(error, MetadataError::Conflict { .. }) => {
                    tracing::debug!(changefeed = %self.context.info.name, %error, "could not look after the processors");
                    LOOK_SOON
                }
                // Somebody has to hear of it.
                Err(error) => {
                    let message = format!("the changefeed's processors cannot be looked after: {error}");
                    return Err(TaskError::retryable("CDC:ErrInternalServerError", message));
                }
            };
            self.pause(wait, revision).await;
        }
    }

    fn begin_to_stop(&mut self) {
        self.stopping_since.get_or_insert(self.observer.inner.clock.now());
    }

    /// The revision that the watch has seen.
    fn polled(&self) -> Revision {
        lock(&self.observer.inner.observed).revision
    }

    /// Waits until the next look is due, somebody has changed something, or it is told to stop.
    async fn pause(&self, wait: Duration, seen: Revision) {
        let mut polled = self.observer.inner.polled.subscribe();
        let moved = async {
            while self.polled() <= seen {
                if polled.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        let told = !self.context.stop.is_cancelled();
        tokio::select! {
            biased;
            () = self.context.stop.cancelled(), if told => {}
            () = moved => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Reads, reports, decides, writes.
    async fn look(&mut self) -> Result<Next> {
        let view = self.view().await?;
        self.tables = positions(&view);
        if let Some(checkpoint) = checkpoint(&self.tables) {
            let tables: Vec<_> = self.tables.values().collect();
            let position = self.factory.common_position(&self.context.upstream, &tables);
            self.context.reporter.report(ChangefeedProgress { position, ..checkpoint });
        }
        let at_work = view.processors.iter().any(ProcessorView::is_at_work);
        if self.stopping_since.is_none()
            && let Some(failed) = self.failure(&view)
        {
            // What runs without anybody who looks after it could not be paused, removed, or set back.
            self.failed = Some(failed);
            self.begin_to_stop();
        }
        if let Some(since) = self.stopping_since {
            let waited = self.observer.inner.clock.now().since(since);
            if at_work && waited >= STOP_LIMIT {
                tracing::warn!(
                    changefeed = %self.context.info.name,
                    "some processor has not stopped within {STOP_LIMIT:?}: its tables stay with it"
                );
            }
            if !at_work || waited >= STOP_LIMIT {
                return Ok(Next::End(self.failed.take().map_or(Ok(TaskEnd::Stopped), Err)));
            }
        } else if !at_work && self.tables.keys().all(|table| self.is_finished(table)) {
            return Ok(Next::End(Ok(TaskEnd::Finished)));
        }
        let mut wanted = view;
        // What is to stop, and what has nothing left to do, is not among what is to run.
        wanted.tables.retain(|table, _| self.stopping_since.is_none() && !self.is_finished(table));
        let decision = assign(&wanted, &AssignPolicy::default());
        let moves = !decision.writes.is_empty() || wanted.processors.iter().any(is_moving);
        if !decision.writes.is_empty() {
            self.write(&decision).await?;
        }
        Ok(Next::Wait(if moves { LOOK_SOON } else { LOOK_EVERY }))
    }

    async fn view(&mut self) -> Result<ChangefeedView> {
        let inner = self.observer.inner.clone();
        let changefeed = [self.context.term.changefeed];
        let reading = inner.store.processors(Some(&changefeed));
        let rows = pace::within(inner.policy.statement_timeout, "owner.processors", reading).await?;
        let written = rows.iter().map(|of| of.schedule.revision);
        self.revision = written.chain([self.polled(), self.revision]).max().unwrap_or_default();
        Ok(ChangefeedView {
            owner_epoch: self.context.term.epoch,
            revision: self.revision,
            tables: self.tables.clone(),
            processors: rows.into_iter().map(ProcessorView::of).collect::<Result<_>>()?,
        })
    }

    async fn write(&mut self, decision: &Decision) -> Result<()> {
        let inner = self.observer.inner.clone();
        let orders = decision.writes.iter().map(|write| Ok((write.term.capture, write.orders.encode()?)));
        let assignments = orders.collect::<Result<BTreeMap<CaptureId, ProcessorAssignment>>>()?;
        let writing = inner.store.processor_assign(self.context.term, &decision.seen, &assignments);
        let rows = pace::within(inner.policy.statement_timeout, "owner.assign", writing).await?;
        let written = rows.iter().map(|row| row.revision);
        self.revision = written.chain([self.revision]).max().unwrap_or_default();
        Ok(())
    }

    fn is_finished(&self, table: &TableId) -> bool {
        let target = self.context.info.target_ts;
        let position = self.tables.get(table);
        target != Ts::ZERO && position.is_some_and(|position| position.checkpoint_ts >= target)
    }

    /// Why a table could not go on, if any has failed since this launch began. What no try can mend comes first.
    fn failure(&mut self, view: &ChangefeedView) -> Option<TaskError> {
        let mine = view.processors.iter().filter(|of| of.term.owner_epoch == view.owner_epoch);
        let failures = mine.flat_map(|of| {
            let failure = |table: &TableId, since| (of.term.capture, table.clone(), since);
            of.failures().filter_map(move |(table, report)| {
                Some((failure(table, report.since), (report.error.clone()?, report.stopped)))
            })
        });
        let failures: BTreeMap<Failure, (TableError, bool)> = failures.collect();
        // What has stopped is ordered anew by this launch. What may still be under way is not, and says so again.
        let stopped =
            |(failure, (_, stopped)): (&Failure, &(TableError, bool))| stopped.then(|| failure.clone());
        let excused = self.excused.get_or_insert_with(|| failures.iter().filter_map(stopped).collect());
        let new = failures.into_iter().filter(|(failure, _)| !excused.contains(failure));
        let ((capture, table, _), (failed, _)) = new.min_by_key(|(_, (error, _))| error.retryable)?;
        let message = format!("table {table} on capture {capture}: {}", failed.error.message);
        Some(if failed.retryable {
            TaskError::retryable(failed.error.code, message)
        } else {
            TaskError::fatal(failed.error.code, message)
        })
    }
}

/// Whether it has yet to do what it was told, or to say that it did.
fn is_moving(processor: &ProcessorView) -> bool {
    processor.state != ScheduleState::Removed
        && processor.orders.0.iter().any(|(table, order)| {
            order.stop || processor.reports.get(table).is_none_or(|report| report.since != order.since)
        })
}
