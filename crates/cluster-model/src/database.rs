//! The database: the memory store, one call at a time. It passes the same conformance suite as the SQL stores, so its
//! transactions are theirs.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use metadata_api::{MetadataError, Result};
use metadata_memory::{Backup, DatabaseClock, MemoryCluster, MemoryStore, Tables};

/// All that the database holds. A value: a step makes another.
#[derive(Clone)]
pub struct Database {
    rows: Arc<Backup>,
    /// Its wall clock was set an hour forward.
    pub(crate) clock_jumped: bool,
}

impl Database {
    /// Freshly migrated.
    pub fn new() -> Self {
        let rows = Arc::new(MemoryCluster::new(Arc::new(Fixed(DateTime::UNIX_EPOCH))).backup());
        Self { rows, clock_jumped: false }
    }

    /// Its rows.
    pub fn tables(&self) -> &Tables {
        self.rows.tables()
    }

    /// A call that only reads.
    pub fn read<T, F: Future<Output = Result<T>>>(&self, call: impl FnOnce(MemoryStore) -> F) -> Result<T> {
        Server::with(|server| {
            let side = server.cluster_of(self.clock_jumped);
            side.cluster.restore(&self.rows);
            server.now(call(side.store.clone()))
        })
    }

    /// A call that may write.
    pub fn write<T, F: Future<Output = Result<T>>>(
        &mut self,
        call: impl FnOnce(MemoryStore) -> F,
    ) -> Result<T> {
        Server::with(|server| {
            let side = server.cluster_of(self.clock_jumped);
            side.cluster.restore(&self.rows);
            let answer = server.now(call(side.store.clone()));
            self.rows = Arc::new(side.cluster.backup());
            answer
        })
    }
}

impl Default for Database {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.tables();
        let mut shown = f.debug_struct("Database");
        shown.field("revision", &tables.revision().0).field("election", &tables.election().ok());
        for row in tables.captures() {
            shown.field("capture", &(row.id, row.state, row.heartbeat_seq));
        }
        for row in tables.schedules() {
            let at = tables.progress(row.changefeed).map(|progress| progress.checkpoint_ts.0);
            shown.field("schedule", &(row.state, row.owner, row.epoch.0, at));
        }
        shown.finish()
    }
}

/// The server of one thread, which every step sets to the rows it begins with.
struct Server {
    runtime: tokio::runtime::Runtime,
    sides: [Side; 2],
}

struct Side {
    cluster: MemoryCluster,
    store: MemoryStore,
}

impl Side {
    fn new(wall: DateTime<Utc>) -> Self {
        let cluster = MemoryCluster::new(Arc::new(Fixed(wall)));
        Self { store: cluster.open(), cluster }
    }
}

thread_local! {
    static SERVER: Server = Server::start();
}

impl Server {
    #[expect(clippy::expect_used, reason = "without a runtime the checker cannot run")]
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let birth = DateTime::UNIX_EPOCH;
        Self {
            runtime: runtime.expect("a runtime"),
            sides: [Side::new(birth), Side::new(birth + TimeDelta::hours(1))],
        }
    }

    fn with<T>(call: impl FnOnce(&Self) -> T) -> T {
        SERVER.with(call)
    }

    fn cluster_of(&self, jumped: bool) -> &Side {
        &self.sides[usize::from(jumped)]
    }

    /// Over a network without faults or latency every call is answered at once.
    fn now<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let _entered = self.runtime.enter();
        call.now_or_never()
            .unwrap_or_else(|| Err(MetadataError::conflict("the memory store made its caller wait")))
    }
}

/// A wall clock that stands still: the model's time is not the database's business.
#[derive(Debug)]
struct Fixed(DateTime<Utc>);

impl DatabaseClock for Fixed {
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn wall(&self) -> DateTime<Utc> {
        self.0
    }
}
