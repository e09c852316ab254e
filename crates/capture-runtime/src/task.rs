//! What a changefeed runs, as the runtime sees it.
//!
//! The runtime knows no source and no sink. It is given a [`TaskFactory`]; for each launch order it calls
//! [`TaskFactory::run`] with a [`TaskContext`] and keeps the launch's promises around it:
//!
//! ```text
//!            launched                     told to stop                    run() returned
//! (order) ------------> admitting -------------------------> draining ------------------> ended
//!                           |  deadline passed / fenced                        |
//!                           +------------> refused (latched) ------------------+
//! ```
//!
//! * The task asks [`Admission::admit`] before *each* flush to the outside, and flushes only with the
//!   [`FlushPermit`] in hand. An admission belongs to one launch and latches: once refused, it never admits
//!   again (invariant I9).
//! * The task reports what is durable through [`ProgressReporter::report`]; reports after the launch was
//!   fenced are dropped.
//! * When [`TaskContext::stop`] is cancelled the task stops reading, lets the flush in hand end, reports it, and
//!   returns [`TaskEnd::Stopped`]. Only then does the runtime release the schedule.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metadata_api::model::{
    ChangefeedInfo, ChangefeedName, ChangefeedProgress, OwnerTerm, ProcessorTerm, ReplicaConfig, Revision,
    SecretUri, SourcePosition, TableId, Ts, UpstreamInfo, Version,
};
use tokio_util::sync::CancellationToken;

pub use crate::admission::{Admission, FlushPermit, NotAdmitted};

/// What someone asks a changefeed to be, before it exists.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    /// What people will call it.
    pub name: ChangefeedName,
    /// Where changes come from.
    pub upstream_uri: SecretUri,
    /// Where changes go to.
    pub sink_uri: SecretUri,
    /// Changes after it are replicated; `None` = from now on.
    pub start_ts: Option<Ts>,
    /// The last change to replicate; 0 = without end.
    pub target_ts: Ts,
    /// How.
    pub config: ReplicaConfig,
}

/// What [`TaskFactory::prepare`] found out.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedTask {
    /// The start, now fixed.
    pub start_ts: Ts,
    /// Where the first owner starts; never before `start_ts`. A source with a position of its own (a binlog)
    /// fixes it here and now, so that nothing is lost when the first owner dies early.
    pub task_position: ChangefeedProgress,
}

/// The part of a changefeed that a processor's launch runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// Which part: one of [`TaskFactory::tables`].
    pub table: TableId,
    /// The token of the processor. Its `owner_epoch` is the [`TaskContext::term`]'s epoch.
    pub processor: ProcessorTerm,
    /// Which order of this processor it is.
    pub since: Version,
    /// Grows with each order to run this table under one owner epoch, whichever processor gets it: no two have the same. Sinks
    /// name what they write by it.
    pub turn: Revision,
}

/// All that one launch is given.
#[derive(Clone, Debug)]
pub struct TaskContext {
    /// The token of the launch. `term.epoch` grows with each new owner; sinks name what they write by it, and by the share
    /// if there is one: several captures write under one owner epoch then.
    pub term: OwnerTerm,
    /// What to run; `None`: the whole changefeed, as its owner.
    pub share: Option<Share>,
    /// Counts the launches of this capture under the same term and share, from 1.
    pub launch: u64,
    /// What to do.
    pub info: Arc<ChangefeedInfo>,
    /// Where changes come from.
    pub upstream: UpstreamInfo,
    /// Where to start: everything at or before `start.checkpoint_ts` is in the sink already.
    pub start: ChangefeedProgress,
    /// Asked before each flush.
    pub admission: Admission,
    /// Told after each flush.
    pub reporter: ProgressReporter,
    /// Cancelled when the task is to drain and return, or to give up because the launch was fenced.
    pub stop: CancellationToken,
}

/// Takes a launch's progress. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProgressReporter {
    pub(crate) admission: Admission,
    pub(crate) latest: Arc<tokio::sync::watch::Sender<ChangefeedProgress>>,
}

impl ProgressReporter {
    /// One whose reports go to the returned receiver, which begins with `start`. The runtime makes its own; this is
    /// for who runs a [`TaskFactory`] without it.
    pub fn new(
        admission: Admission,
        start: ChangefeedProgress,
    ) -> (Self, tokio::sync::watch::Receiver<ChangefeedProgress>) {
        let (latest, reports) = tokio::sync::watch::channel(start);
        (Self { admission, latest: Arc::new(latest) }, reports)
    }

    /// Says that everything at or before `progress.checkpoint_ts` is in the sink, durably.
    ///
    /// A report that goes back, or that comes after the launch was fenced, is dropped; the answer is then
    /// `false`.
    pub fn report(&self, progress: ChangefeedProgress) -> bool {
        if self.admission.is_fenced() {
            return false;
        }
        self.latest.send_if_modified(|latest| {
            let ahead = progress.checkpoint_ts >= latest.checkpoint_ts && progress != *latest;
            if ahead {
                *latest = progress;
            }
            ahead
        })
    }
}

/// Why a task's `run` returned without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// It was told to stop, and every flush has ended and was reported.
    Stopped,
    /// It reached `target_ts`: the last report has `checkpoint_ts >= target_ts`.
    Finished,
}

/// Why a task could not go on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("[{code}]{message}")]
pub struct TaskError {
    /// TiCDC's error code, as in `CDC:ErrStartTsBeforeGC`.
    pub code: Cow<'static, str>,
    /// What happened and what would be right, without secrets.
    pub message: String,
    /// Whether trying again may help. Otherwise the changefeed becomes `failed`.
    pub retryable: bool,
}

impl TaskError {
    /// One that trying again may mend: a connection lost, a disk full.
    pub fn retryable(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), retryable: true }
    }

    /// One that only an operator can mend: the changefeed becomes `failed`.
    pub fn fatal(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), retryable: false }
    }
}

/// Makes and runs what changefeeds are. One a process; an application embeds its own.
#[async_trait]
pub trait TaskFactory: Send + Sync + 'static {
    /// Checks a request before the changefeed is created or updated: schemes, parameters, and that upstream
    /// and sink can be reached. Changes nothing outside.
    ///
    /// # Errors
    /// [`TaskError`] whose message names the field and what would be right.
    async fn prepare(&self, spec: &TaskSpec) -> Result<PreparedTask, TaskError>;

    /// Whether changefeeds can be split among processors, and [`run`](Self::run) takes a [`Share`]. If so, the runtime attaches
    /// processors to changefeeds that ask for more than one, and runs what is assigned to this capture; if not, processors
    /// are left to the application.
    fn runs_processors(&self) -> bool {
        false
    }

    /// What the changefeed can be split by: all that is to be replicated is in exactly one of these. Empty: it cannot be
    /// split, and its owner runs it whole. Asked by each launch of an owner whose changefeed may have several processors,
    /// and whenever that owner tries again; what it answers must not change while the changefeed's configuration does not.
    ///
    /// # Errors
    /// [`TaskError`].
    async fn tables(
        &self,
        _info: &ChangefeedInfo,
        _upstream: &UpstreamInfo,
    ) -> Result<Vec<TableId>, TaskError> {
        Ok(Vec::new())
    }

    /// The position for a changefeed whose tables are where these say: a start from which no table misses anything. Unless
    /// told otherwise, that of the table with the least checkpoint: right where positions grow with checkpoints and mean the
    /// same whichever table reported them. `None` is always right, if the source can start at a checkpoint alone.
    fn common_position(
        &self,
        _upstream: &UpstreamInfo,
        tables: &[&ChangefeedProgress],
    ) -> Option<SourcePosition> {
        position_of_least(tables)
    }

    /// Runs one launch until it is told to stop, has reached its target, or fails.
    ///
    /// Dropping the future is not a stop: the runtime always waits until it returns, and a launch that does
    /// not return is never released.
    ///
    /// # Errors
    /// [`TaskError`]. Every flush has ended by then.
    async fn run(&self, context: TaskContext) -> Result<TaskEnd, TaskError>;

    /// How long a changefeed may fail again and again, without its checkpoint moving, before it becomes `failed`. Each pause
    /// between two tries is twice the one before, from 10 s to 10 min, so it ends up to 10 min later.
    fn give_up_after(&self, _info: &ChangefeedInfo) -> Duration {
        GIVE_UP_AFTER
    }
}

/// The position of the table with the least checkpoint.
pub fn position_of_least(tables: &[&ChangefeedProgress]) -> Option<SourcePosition> {
    let least = tables.iter().min_by_key(|table| table.checkpoint_ts);
    least.and_then(|table| table.position.clone())
}

/// `TiCDC`'s default of `changefeed_error_stuck_duration`.
pub const GIVE_UP_AFTER: Duration = Duration::from_mins(30);

/// The longest time a flush may ask for.
pub const MAX_FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
