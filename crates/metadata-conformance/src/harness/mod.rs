//! What a store's crate provides, and what every case is given.

mod build;
mod calls;
mod dump;
mod refusal;
mod timeless;

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use metadata_api::store::MetadataStore;
use metadata_api::store::faults::Faults;

pub use build::{
    Owned, at, attach_target, detach_target, progress_of, report_of, running_error, share_of, table_at, uri,
};
pub use calls::{Again, Call, OPENED_BY_OTHERS, READS, WRITES};
pub use dump::{Dump, dump, dump_planned, dump_rows, dump_timeless};
pub use refusal::Refusal;
pub(crate) use refusal::{assert_refused, refused};
pub(crate) use timeless::Timeless;

/// How long a case may take before it fails, besides the time that a history is told to take. A case that waits for ever is a failure, not a stuck build.
const CASE_LIMIT: Duration = Duration::from_mins(2);

/// A store under test, by what it runs on: a way to get databases.
#[async_trait]
pub trait Backend: Sync {
    /// A new, empty, migrated database that nobody else uses.
    async fn fresh(&self) -> Box<dyn Database>;

    /// The declared differences between backends. Each is checked both ways; none skips a case.
    fn features(&self) -> Features;
}

/// One database of a backend, for one case.
#[async_trait]
pub trait Database: Send + Sync {
    /// A store of its own on this database: its connections are its own, and it shares nothing with any other store, as
    /// in another process.
    async fn open(&self) -> Arc<dyn MetadataStore>;

    /// The same, asking `faults` at each point of each transaction.
    async fn open_with(&self, faults: Arc<dyn Faults>) -> Arc<dyn MetadataStore>;

    /// Runs plain SQL statements, with `;` between them, behind every store's back, as somebody at a database prompt could.
    async fn execute(&self, sql: &str);

    /// Closes and removes the database. Called also after a case that failed.
    async fn close(self: Box<Self>);
}

/// In what the backends may differ, by category.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Whether the server has an identity of its own, apart from the cluster's (MySQL, MariaDB). Where it has none,
    /// `server_id` is empty.
    pub server_identity: bool,
}

/// What a case works on: one fresh database, with one store opened on it.
pub struct Cluster {
    database: Box<dyn Database>,
    /// The store that most of a case goes through.
    pub store: Arc<dyn MetadataStore>,
    /// What its backend declared.
    pub features: Features,
}

impl Cluster {
    /// For tests that are not cases of the suite. The database is the caller's to remove: [`Self::close`].
    pub async fn new(database: Box<dyn Database>, features: Features) -> Self {
        Self { store: database.open().await, database, features }
    }

    /// Closes the store, and removes the database.
    pub async fn close(self) {
        drop(self.store);
        self.database.close().await;
    }

    /// A store of its own on the same database, as another process would have.
    pub async fn open(&self) -> Arc<dyn MetadataStore> {
        self.database.open().await
    }

    /// The same, with failures on order.
    pub async fn open_with(&self, faults: Arc<dyn Faults>) -> Arc<dyn MetadataStore> {
        self.database.open_with(faults).await
    }

    /// Runs plain SQL statements, with `;` between them, behind the stores' back.
    pub async fn execute(&self, sql: &str) {
        self.database.execute(sql).await;
    }

    /// Everything readable, to compare with later.
    pub async fn dump(&self) -> Dump {
        dump(&*self.store).await
    }
}

/// A case: it panics when the store is wrong.
pub type Case = for<'a> fn(&'a Cluster) -> BoxFuture<'a, ()>;

/// Runs `case` on a fresh database of `backend`, and removes the database, whatever came of it.
///
/// # Panics
/// When the case fails, or does not end.
pub fn run<B: Backend>(backend: &B, case: Case) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a tokio runtime");
    let outcome = runtime.block_on(async {
        let database = backend.fresh().await;
        let cluster = Cluster::new(database, backend.features()).await;
        let limit = CASE_LIMIT + crate::concurrent::duration();
        let outcome = tokio::time::timeout(limit, AssertUnwindSafe(case(&cluster)).catch_unwind()).await;
        cluster.close().await;
        outcome
    });
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(late) => panic!("{late}: the case did not end within its limit"),
    }
}

/// Joins tasks and passes their panics on.
pub async fn join_all<T>(tasks: Vec<tokio::task::JoinHandle<T>>) -> Vec<T> {
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        match task.await {
            Ok(value) => done.push(value),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("a task did not end: {error}"),
            },
        }
    }
    done
}

/// `items`, one a line, for a failure's text.
pub(crate) fn lines<T: std::fmt::Debug>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().fold(String::new(), |mut text, item| {
        let _ = writeln!(text, "  {item:?}");
        text
    })
}
