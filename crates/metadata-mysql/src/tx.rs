//! Named, re-runnable transactions: the only place that begins, commits, rolls back, tries again and gives up.
//!
//! ```text
//! acquire -> closure -> COMMIT -> done
//!    |         |         |-- refused -------------------> again
//!    |         |         '-- no answer, timeout --------> Unknown, connection closed
//!    |         |-- final answer (Fenced, Conflict, ..) -> ROLLBACK awaited -> caller
//!    '---------'-- lock wait, lost connection, timeout -> ROLLBACK awaited or connection closed -> again
//! ```
//!
//! BEGIN goes with the closure's first statements, in one round trip: the fence row is locked for as long as its transaction
//! takes to ask and wait, so each round trip less lets more of them through.
//!
//! The rollback comes *before* the pause: after a lock wait timed out the transaction is still open and holds the fence
//! row. A future that is dropped half way closes its connection, and the server rolls back.

use std::future::Future;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use metadata_api::store::faults::{FaultKind, FaultPoint, Faults};
use metadata_api::{MetadataError, Result};
use sqlx::Executor;
use sqlx::mysql::MySqlConnection;
use tokio::time::{Instant, sleep, timeout};

use crate::pool::{Pool, Pooled};
use crate::retry::{
    Class, TxError, TxResult, classify, commit_refused, delays, into_metadata_error, was_answered,
};
use crate::sql::{Answer, Sql};

/// What a closure returns: async closures that borrow a transaction are not `Send` today (rust-lang/rust#134997).
pub(crate) type BoxFuture<'t, T> = Pin<Box<dyn Future<Output = TxResult<T>> + Send + 't>>;

/// How long a ROLLBACK may take before the connection is closed instead.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(1);

/// An open transaction. `'env` is what the closure may borrow from around it.
pub(crate) struct Tx<'env> {
    connection: Pooled,
    /// What begins it, until its first statement takes it along.
    begin: Option<&'static str>,
    discard: bool,
    env: PhantomData<&'env ()>,
}

impl Deref for Tx<'_> {
    type Target = MySqlConnection;

    fn deref(&self) -> &MySqlConnection {
        &self.connection
    }
}

impl DerefMut for Tx<'_> {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        assert!(self.begin.is_none(), "a statement before BEGIN would be a transaction of its own");
        &mut self.connection
    }
}

impl Tx<'_> {
    /// Begins, and runs its first `count` statements in the same round trip. Nothing of it can be committed before COMMIT is sent,
    /// so a lost answer to it leaves nothing open.
    pub(crate) async fn open(&mut self, first: &Sql, count: usize) -> TxResult<Vec<Answer>> {
        let Some(begin) = self.begin.take() else {
            let mut sql = Sql::new("");
            sql.then(first);
            return sql.run(&mut self.connection, count).await;
        };
        let mut sql = Sql::new(begin);
        sql.then(first);
        let mut answers = sql.run(&mut self.connection, count + 1).await?;
        answers.remove(0);
        Ok(answers)
    }

    /// Says that there is nothing to change: the transaction is rolled back, with the revision that it took, and the
    /// closure's answer is given all the same.
    pub(crate) fn discard(&mut self) {
        self.discard = true;
    }

    /// `@@server_uuid` of the server at the other end, or empty.
    pub(crate) fn server_id(&self) -> &str {
        self.connection.server_id()
    }
}

/// Runs transactions on a pool.
#[derive(Clone)]
pub(crate) struct Runner {
    pool: Pool,
    faults: Option<Arc<dyn Faults>>,
}

/// What surrounds a closure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// `BEGIN .. COMMIT`.
    Write,
    /// One write statement that is its own transaction.
    Statement,
    /// Several reads of one moment, which begin and end by themselves.
    Snapshot,
    /// One read statement.
    Read,
}

impl Mode {
    const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Statement)
    }
}

/// How a try ended, when not well.
enum Outcome {
    /// Nothing was applied; another try may work.
    Again(TxError),
    /// It is for the caller.
    Final(MetadataError),
}

impl Runner {
    pub(crate) fn new(pool: Pool, faults: Option<Arc<dyn Faults>>) -> Self {
        Self { pool, faults }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// One transaction. `body` may run several times, each time in a new transaction, until it is committed. It begins with
    /// [`Tx::open`], as the fence's locks do.
    pub(crate) async fn tx<'env, T, F>(&self, name: &'static str, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'env>) -> BoxFuture<'t, T> + Send + Sync,
    {
        self.run(name, Mode::Write, body).await
    }

    /// Reads, without a transaction. `body` may run several times, on another connection each time.
    pub(crate) async fn read<'env, T, F>(&self, name: &'static str, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'env>) -> BoxFuture<'t, T> + Send + Sync,
    {
        self.run(name, Mode::Read, body).await
    }

    /// Several reads of one moment, by [`Sql::read_moment`].
    pub(crate) async fn snapshot<'env, T, F>(&self, name: &'static str, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'env>) -> BoxFuture<'t, T> + Send + Sync,
    {
        self.run(name, Mode::Snapshot, body).await
    }

    /// One statement that is its own transaction. Unlike a read it is not repeated when its answer was lost.
    pub(crate) async fn write<'env, T, F>(&self, name: &'static str, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'env>) -> BoxFuture<'t, T> + Send + Sync,
    {
        self.run(name, Mode::Statement, body).await
    }

    /// Tries until it works, is refused for good, or `give_up` has passed.
    async fn run<'env, T, F>(&self, name: &'static str, mode: Mode, body: F) -> Result<T>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'env>) -> BoxFuture<'t, T> + Send + Sync,
    {
        let started = Instant::now();
        let give_up = self.pool.connector().options().give_up;
        let mut delays = delays();
        let outcome = loop {
            let error = match self.attempt(name, mode, &body).await {
                Ok(value) => break Ok(value),
                Err(Outcome::Final(error)) => break Err(error),
                Err(Outcome::Again(error)) => error,
            };
            let delay = delays.next().filter(|delay| started.elapsed() + *delay < give_up);
            let Some(delay) = delay else { break Err(into_metadata_error(name, error)) };
            metrics::counter!("cdc_store_retries_total", "transaction" => name).increment(1);
            tracing::debug!(transaction = name, %error, ?delay, "trying again");
            sleep(delay).await;
        };
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

    async fn attempt<'env, T, F>(&self, name: &'static str, mode: Mode, body: &F) -> Result<T, Outcome>
    where
        T: Send,
        F: for<'t> Fn(&'t mut Tx<'env>) -> BoxFuture<'t, T> + Send + Sync,
    {
        let options = self.pool.connector().options();
        if mode.writes() && self.fault(name, FaultPoint::BeforeBegin).is_some() {
            return Err(Outcome::Again(injected()));
        }
        let mut tx = self.open(name).await?;
        if mode == Mode::Statement {
            self.meet_before_commit(name)?;
        }
        let limit = if mode.writes() { options.call_timeout } else { options.read_timeout };
        if mode == Mode::Write {
            let server = self.pool.connector().known_server();
            tx.begin = Some(server.map_or("BEGIN", |server| server.dialect.begin()));
        }
        let result = bounded(name, limit, body(&mut tx)).await;
        match (mode, result) {
            (Mode::Write, Ok(value)) => self.commit(name, tx, value).await,
            (Mode::Statement, Ok(_)) if self.fault(name, FaultPoint::AfterCommit).is_some() => {
                Err(unknown(name, injected()))
            }
            (Mode::Read | Mode::Snapshot | Mode::Statement, Ok(value)) => {
                tx.connection.give_back();
                Ok(value)
            }
            (Mode::Statement, Err(error)) if !was_answered(&error) => Err(unknown(name, error)),
            (Mode::Read | Mode::Statement, Err(error)) => {
                // A decoding error may leave rows of the answer unread; sqlx skips them before the next statement.
                if matches!(classify(&error), Class::Again | Class::Final) {
                    tx.connection.give_back();
                }
                Err(self.judge(name, error))
            }
            (Mode::Write | Mode::Snapshot, Err(error)) => Err(self.roll_back(name, tx, error).await),
        }
    }

    async fn commit<T>(&self, name: &'static str, mut tx: Tx<'_>, value: T) -> Result<T, Outcome> {
        if tx.discard || tx.begin.is_some() {
            give_back_rolled_back(tx).await;
            return Ok(value);
        }
        if let Err(outcome) = self.meet_before_commit(name) {
            give_back_rolled_back(tx).await;
            return Err(outcome);
        }
        let limit = self.pool.connector().options().call_timeout;
        match timeout(limit, tx.execute("COMMIT")).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if commit_refused(&error) => {
                return Err(self.roll_back(name, tx, error.into()).await);
            }
            // The connection is closed with `tx`.
            Ok(Err(error)) => return Err(unknown(name, error.into())),
            Err(_) => return Err(unknown(name, TxError::TimedOut("COMMIT", limit))),
        }
        if self.fault(name, FaultPoint::AfterCommit).is_some() {
            return Err(unknown(name, injected()));
        }
        tx.connection.give_back();
        Ok(value)
    }

    fn meet_before_commit(&self, name: &'static str) -> Result<(), Outcome> {
        match self.fault(name, FaultPoint::BeforeCommit) {
            None => Ok(()),
            Some(FaultKind::Retryable) => Err(Outcome::Again(injected())),
            Some(FaultKind::AnswerLost) => Err(unknown(name, injected())),
        }
    }

    async fn open<'env>(&self, name: &'static str) -> Result<Tx<'env>, Outcome> {
        match self.pool.acquire().await {
            Ok(connection) => Ok(Tx { connection, begin: None, discard: false, env: PhantomData }),
            Err(error) => Err(self.judge(name, error)),
        }
    }

    /// Ends a failed transaction and says what comes next; afterwards nothing of it is open.
    async fn roll_back(&self, name: &'static str, tx: Tx<'_>, error: TxError) -> Outcome {
        if matches!(classify(&error), Class::Again | Class::Final) {
            give_back_rolled_back(tx).await;
        } else {
            drop(tx);
        }
        self.judge(name, error)
    }

    fn judge(&self, name: &'static str, error: TxError) -> Outcome {
        match classify(&error) {
            Class::Again | Class::Lost => Outcome::Again(error),
            Class::Demoted => {
                self.pool.forget();
                Outcome::Again(error)
            }
            Class::Final => Outcome::Final(into_metadata_error(name, error)),
        }
    }

    pub(crate) fn fault(&self, name: &'static str, point: FaultPoint) -> Option<FaultKind> {
        self.faults.as_ref().and_then(|faults| faults.at(name, point))
    }
}

/// Rolls back, and keeps the connection if that worked.
async fn give_back_rolled_back(mut tx: Tx<'_>) {
    if tx.begin.is_some() {
        // It never began.
        return tx.connection.give_back();
    }
    if matches!(timeout(ROLLBACK_TIMEOUT, tx.execute("ROLLBACK")).await, Ok(Ok(_))) {
        tx.connection.give_back();
    }
}

/// What takes longer than `bound` is given up; its connection is not to be used again.
pub(crate) async fn bounded<T>(
    name: &'static str,
    bound: Duration,
    work: impl Future<Output = TxResult<T>>,
) -> TxResult<T> {
    timeout(bound, work).await.unwrap_or(Err(TxError::TimedOut(name, bound)))
}

fn unknown(transaction: &'static str, error: TxError) -> Outcome {
    Outcome::Final(MetadataError::Unknown { transaction, source: Box::new(error) })
}

/// What an ordered failure looks like.
fn injected() -> TxError {
    TxError::Moved("an ordered failure: something")
}
