//! Named, re-runnable transactions, and the one place that retries.
//!
//! ```text
//! run_tx:  [writer permit] BEGIN IMMEDIATE -> closure -> COMMIT -> Ok
//!              |                 |               |
//!            busy              error        busy: rolled back, retried
//!          retried      ROLLBACK awaited    else: connection closed, Unknown
//!                       retried if busy
//! ```
//!
//! A transaction that failed is rolled back (awaited), or its connection is closed, before any pause. A call that is
//! dropped half way closes its connection too: nothing open ever goes back to the pool. The writers of one process queue
//! in order for one permit, so that only processes compete for the file's write lock.

use std::error::Error as StdError;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use metadata_api::store::faults::{FaultKind, FaultPoint};
use metadata_api::{MetadataError, Result};
use sqlx::pool::PoolConnection;
use sqlx::{Executor as _, Sqlite, SqliteConnection};
use tokio::time::{Instant, timeout};

use crate::SqliteStore;
use crate::connect::{Patience, SqliteOptions};

/// What a transaction's closure returns.
pub(crate) type TxFuture<'t, T> = Pin<Box<dyn Future<Output = TxResult<T>> + Send + 't>>;

/// The result of what runs inside a transaction.
pub(crate) type TxResult<T> = std::result::Result<T, TxError>;

/// Why a transaction's closure did not get to its end.
#[derive(Debug)]
pub(crate) enum TxError {
    /// The database failed; [`run`](SqliteStore::run_tx) decides what that means.
    Db(sqlx::Error),
    /// The call is refused.
    Refused(MetadataError),
}

impl From<sqlx::Error> for TxError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error)
    }
}

impl From<MetadataError> for TxError {
    fn from(error: MetadataError) -> Self {
        Self::Refused(error)
    }
}

/// A running transaction. `'scope` is what its closure may borrow.
pub(crate) struct Tx<'scope> {
    lease: Lease,
    discard: bool,
    scope: PhantomData<&'scope ()>,
}

impl Tx<'_> {
    /// The connection, for a query.
    pub(crate) fn db(&mut self) -> &mut SqliteConnection {
        self.lease.db()
    }

    /// Says that there was nothing to change: the transaction is rolled back, the revision that it took included, and
    /// the closure's answer is given all the same.
    pub(crate) fn discard(&mut self) {
        self.discard = true;
    }
}

/// A pool connection that is closed, not given back, unless it is known to be clean.
struct Lease(Option<PoolConnection<Sqlite>>);

impl Lease {
    #[expect(clippy::expect_used, reason = "only `give_back` and `drop` take it, and both end the lease")]
    fn db(&mut self) -> &mut SqliteConnection {
        self.0.as_mut().expect("a lease has a connection")
    }

    /// Begins a transaction; waits for the write lock where it takes one.
    async fn begin(&mut self, begin: &'static str, limit: Duration) -> sqlx::Result<()> {
        let patience = Patience::new(limit);
        loop {
            match self.db().execute(begin).await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    if !patience.again(&error).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            // Closing the file handle rolls back. What was queued on it before may still run.
            drop(connection.detach());
        }
    }
}

/// What surrounds a closure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// `BEGIN IMMEDIATE .. COMMIT`.
    Write,
    /// One write statement that is its own transaction.
    Statement,
    /// `BEGIN .. ROLLBACK`: several reads of one moment.
    Snapshot,
    /// One read statement.
    Read,
}

impl Mode {
    const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Statement)
    }

    const fn begin(self) -> Option<&'static str> {
        match self {
            Self::Write => Some("BEGIN IMMEDIATE"),
            Self::Snapshot => Some("BEGIN"),
            Self::Statement | Self::Read => None,
        }
    }
}

/// How an attempt failed.
enum Failure {
    /// It certainly changed nothing and may work now.
    Retry(Box<dyn StdError + Send + Sync>),
    /// It is over.
    Final(MetadataError),
}

/// The retries of a transaction: at most this many, and none begins after [`RETRY_BUDGET`].
const MAX_RETRIES: usize = 6;
const RETRY_BUDGET: Duration = Duration::from_secs(3);

/// How long a ROLLBACK may take before the connection is closed instead.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(1);

impl SqliteStore {
    /// Runs a named write transaction. The closure is run anew for each retry.
    pub(crate) async fn run_tx<'scope, T, F>(&self, name: &'static str, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'scope>) -> TxFuture<'t, T> + Send + Sync,
    {
        self.run(name, Mode::Write, body).await
    }

    /// Runs one write statement that is its own transaction.
    pub(crate) async fn run_statement<'scope, T, F>(&self, name: &'static str, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'scope>) -> TxFuture<'t, T> + Send + Sync,
    {
        self.run(name, Mode::Statement, body).await
    }

    /// Runs several read statements that see one moment.
    pub(crate) async fn run_snapshot<'scope, T, F>(&self, name: &'static str, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'scope>) -> TxFuture<'t, T> + Send + Sync,
    {
        self.run(name, Mode::Snapshot, body).await
    }

    /// Runs one read statement.
    pub(crate) async fn run_read<'scope, T, F>(&self, name: &'static str, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'scope>) -> TxFuture<'t, T> + Send + Sync,
    {
        self.run(name, Mode::Read, body).await
    }

    async fn run<'scope, T, F>(&self, name: &'static str, mode: Mode, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'scope>) -> TxFuture<'t, T> + Send + Sync,
    {
        let started = Instant::now();
        let retries = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(5))
            .with_max_delay(Duration::from_millis(200))
            .with_factor(3.0)
            .with_max_times(MAX_RETRIES)
            .with_jitter();
        let outcome = (|| self.attempt(name, mode, &body))
            .retry(retries)
            .when(|failure| matches!(failure, Failure::Retry(_)) && started.elapsed() < RETRY_BUDGET)
            .notify(|failure, _| {
                metrics::counter!("cdc_store_retries_total", "transaction" => name).increment(1);
                if let Failure::Retry(reason) = failure {
                    tracing::debug!(transaction = name, %reason, "the transaction is tried again");
                }
            })
            .await
            .map_err(|failure| match failure {
                Failure::Retry(source) => MetadataError::Unavailable { transaction: name, source },
                Failure::Final(error) => error,
            });
        let label = match &outcome {
            Ok(_) => "ok",
            Err(MetadataError::Unavailable { .. }) => "unavailable",
            Err(MetadataError::Unknown { .. }) => "unknown",
            Err(_) => "refused",
        };
        metrics::counter!("cdc_store_transactions_total", "transaction" => name, "outcome" => label)
            .increment(1);
        metrics::histogram!("cdc_store_transaction_seconds", "transaction" => name).record(started.elapsed());
        outcome
    }

    async fn attempt<'scope, T, F>(&self, name: &'static str, mode: Mode, body: &F) -> Result<T, Failure>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'scope>) -> TxFuture<'t, T> + Send + Sync,
    {
        if mode.writes()
            && let Some(fault) = self.fault(name, FaultPoint::BeforeBegin)
        {
            return Err(Failure::Retry(fault.into()));
        }
        let limit = self.options.statement_timeout;
        let _permit = if mode.writes() {
            let permit =
                timeout(limit, self.writer.acquire()).await.map_err(|late| Failure::Retry(late.into()))?;
            Some(permit.map_err(|closed| Failure::Retry(closed.into()))?)
        } else {
            None
        };
        let connection = self.pool.acquire().await.map_err(|error| self.before_commit(name, error))?;
        let mut lease = Lease(Some(connection));
        if let Some(begin) = mode.begin()
            && let Err(error) = lease.begin(begin, limit).await
        {
            if is_busy(&error) {
                lease.give_back();
            }
            return Err(self.before_commit(name, error));
        }
        if mode == Mode::Statement
            && let Some(fault) = self.fault(name, FaultPoint::BeforeCommit)
        {
            lease.give_back();
            return Err(never_arrived(name, fault));
        }
        let mut tx = Tx { lease, discard: mode == Mode::Snapshot, scope: PhantomData };
        // A whole transaction is a handful of statements; what takes longer than two limits hangs.
        let answer = timeout(limit * 2, body(&mut tx)).await;
        let Tx { lease, discard, .. } = tx;
        match answer {
            Ok(Ok(value)) => self.finish(name, mode, lease, discard, value).await,
            Ok(Err(error)) => {
                if mode.begin().is_some() {
                    roll_back(lease).await;
                } else if matches!(error, TxError::Refused(_)) {
                    lease.give_back();
                }
                Err(match error {
                    TxError::Refused(error) => Failure::Final(error),
                    TxError::Db(error @ sqlx::Error::ColumnDecode { .. }) => self.before_commit(name, error),
                    TxError::Db(error) if mode == Mode::Statement && !is_busy(&error) => {
                        Failure::Final(unknown(name, error))
                    }
                    TxError::Db(error) => self.before_commit(name, error),
                })
            }
            Err(late) => Err(Failure::Final(match mode {
                Mode::Statement => unknown(name, late),
                _ => MetadataError::Unavailable { transaction: name, source: late.into() },
            })),
        }
    }

    async fn finish<T>(
        &self,
        name: &'static str,
        mode: Mode,
        mut lease: Lease,
        discard: bool,
        value: T,
    ) -> Result<T, Failure> {
        if mode == Mode::Read {
            lease.give_back();
            return Ok(value);
        }
        if discard {
            roll_back(lease).await;
            return Ok(value);
        }
        if mode == Mode::Write {
            if let Some(fault) = self.fault(name, FaultPoint::BeforeCommit) {
                roll_back(lease).await;
                return Err(never_arrived(name, fault));
            }
            match timeout(self.options.statement_timeout, lease.db().execute("COMMIT")).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) if matches!(primary_code(&error), Some(BUSY | LOCKED | CONSTRAINT)) => {
                    roll_back(lease).await;
                    return Err(self.before_commit(name, error));
                }
                Ok(Err(error)) => return Err(Failure::Final(unknown(name, error))),
                Err(late) => return Err(Failure::Final(unknown(name, late))),
            }
        }
        lease.give_back();
        match self.fault(name, FaultPoint::AfterCommit) {
            Some(fault) => Err(Failure::Final(unknown(name, fault))),
            None => Ok(value),
        }
    }

    fn before_commit(&self, name: &'static str, error: sqlx::Error) -> Failure {
        match error {
            error if is_busy(&error) => Failure::Retry(busy(&error, &self.options).into()),
            sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => Failure::Retry(error.into()),
            error => Failure::Final(unavailable(name, error, &self.options)),
        }
    }

    fn fault(&self, name: &'static str, point: FaultPoint) -> Option<Injected> {
        Injected::at(&self.options, name, point)
    }
}

/// COMMIT, or the statement that is its own transaction, was not sent, by a test's order.
fn never_arrived(name: &'static str, fault: Injected) -> Failure {
    match fault.0 {
        FaultKind::Retryable => Failure::Retry(fault.into()),
        FaultKind::AnswerLost => Failure::Final(unknown(name, fault)),
    }
}

/// Rolls back and gives the connection back; closes it when that fails.
async fn roll_back(mut lease: Lease) {
    if matches!(timeout(ROLLBACK_TIMEOUT, lease.db().execute("ROLLBACK")).await, Ok(Ok(_))) {
        lease.give_back();
    }
}

/// A failure that a test ordered.
#[derive(Debug)]
pub(crate) struct Injected(FaultKind);

impl Injected {
    /// Which failure it is.
    pub(crate) const fn kind(&self) -> FaultKind {
        self.0
    }

    /// What the test wants to happen here, if anything.
    pub(crate) fn at(options: &SqliteOptions, transaction: &'static str, point: FaultPoint) -> Option<Self> {
        options.faults.as_ref().and_then(|faults| faults.at(transaction, point)).map(Self)
    }
}

impl std::fmt::Display for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a test ordered {:?}", self.0)
    }
}

impl StdError for Injected {}

/// The outcome is not known.
pub(crate) fn unknown(
    transaction: &'static str,
    source: impl Into<Box<dyn StdError + Send + Sync>>,
) -> MetadataError {
    MetadataError::Unknown { transaction, source: source.into() }
}

/// What a failure means that is not retried and certainly changed nothing.
pub(crate) fn unavailable(
    transaction: &'static str,
    error: sqlx::Error,
    options: &SqliteOptions,
) -> MetadataError {
    let path = options.shown();
    // Text that is no UTF-8, which a strict table holds all the same.
    if let sqlx::Error::ColumnDecode { index, source } = &error {
        let reason = format!("column {index} of {transaction}: {source}");
        return MetadataError::corrupt("(joined)", transaction, "(see reason)", reason);
    }
    match primary_code(&error) {
        Some(READONLY) => MetadataError::Unsupported {
            reason: format!("the database file {path} is read-only for this process ({error})"),
        },
        Some(NOTADB) => MetadataError::Unsupported {
            reason: format!("{path} is not an SQLite database ({error}): name another file"),
        },
        Some(CORRUPT) => MetadataError::Unsupported {
            reason: format!("the database file {path} is damaged ({error}): restore it from a backup"),
        },
        Some(CANTOPEN) => MetadataError::invalid(
            "store",
            format!("sqlite://{path}: the file or its log cannot be opened ({error}): check the permissions"),
        ),
        Some(BUSY | LOCKED) => {
            MetadataError::Unavailable { transaction, source: busy(&error, options).into() }
        }
        _ => MetadataError::Unavailable { transaction, source: error.into() },
    }
}

fn busy(error: &sqlx::Error, options: &SqliteOptions) -> String {
    let path = options.shown();
    format!(
        "{error}: another process holds the write lock of {path}; if that lasts, one of them was stopped in the middle \
         of a write: find it with `fuser {path}`, and continue or kill it"
    )
}

const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READONLY: i32 = 8;
const CORRUPT: i32 = 11;
const CANTOPEN: i32 = 14;
const CONSTRAINT: i32 = 19;
const NOTADB: i32 = 26;

/// SQLite's primary result code.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<i32>().ok().map(|extended| extended & 0xff)
}

/// Whether somebody else holds a lock that was waited for: nothing happened.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(BUSY | LOCKED))
}
