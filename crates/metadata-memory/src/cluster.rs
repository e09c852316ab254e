//! The database.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use metadata_api::Result;
use metadata_api::model::{CaptureId, CaptureInfo, ChangefeedUuid, Revision};
use uuid::Uuid;

use crate::signal::Signal;
use crate::store::{MemoryOptions, MemoryStore};
use crate::tables::{Commit, Table, Tables};
use crate::tx::Tx;

/// The database server's clocks.
pub trait DatabaseClock: fmt::Debug + Send + Sync + 'static {
    /// Never goes back: by it, late statements arrive.
    fn monotonic(&self) -> Duration;

    /// May be set, forward and back: revisions and timestamps are made of it.
    fn wall(&self) -> DateTime<Utc>;
}

/// Is told of everything that is committed, in order, while the database is locked: it must not call it.
pub trait Recorder: Send + Sync {
    /// A transaction committed; `tables` shows it.
    fn committed(&self, commit: &Commit, tables: &Tables);

    /// A backup was restored.
    fn restored(&self, tables: &Tables) {
        let _ = tables;
    }
}

/// A copy of everything, to restore.
#[derive(Clone, Debug)]
pub struct Backup(Tables);

impl Backup {
    /// The rows in it.
    pub fn tables(&self) -> &Tables {
        &self.0
    }
}

/// What somebody at a database prompt does behind every store's back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// Deletes every row of a table.
    DeleteAll(Table),
    /// Writes values that do not decode into the state column of `capture` or `changefeed_state`, or the value column of
    /// `progress`.
    MakeUnreadable(Table),
    /// Writes a value that does not decode into one capture's progress row.
    MakeProgressUnreadable(CaptureId),
    /// Writes a value that does not decode into one changefeed's row of a table.
    MakeFeedUnreadable(Table, ChangefeedUuid),
    /// Writes assignments that do not decode into one changefeed's processor rows.
    MakeProcessorsUnreadable(ChangefeedUuid),
    /// Undoes what made single rows unreadable.
    MendRows,
    /// Undoes [`Tamper::MakeUnreadable`].
    MakeReadable(Table),
    /// Sets every capture's heartbeat sequence.
    SetHeartbeats(u64),
    /// Sets the fence row's revision.
    SetRevision(Revision),
    /// Writes the election row, and the fence row's epoch, as the migrations did: nobody ever campaigned.
    ResetElection,
}

/// The database. Clones are the same one.
#[derive(Clone)]
pub struct MemoryCluster {
    inner: Arc<Inner>,
}

/// A statement on its way to the database.
type Statement = Box<dyn FnOnce(&MemoryCluster, &mut Server) + Send>;

struct Inner {
    clock: Arc<dyn DatabaseClock>,
    server: Mutex<Server>,
    paused: Signal<bool>,
}

pub(crate) struct Server {
    tables: Tables,
    recorders: Vec<Arc<dyn Recorder>>,
    /// By when they arrive, then by when they were sent.
    inbox: BTreeMap<(Duration, u64), Statement>,
    sent: u64,
}

/// Where a statement is in the inbox.
pub(crate) type Ticket = (Duration, u64);

impl MemoryCluster {
    /// An empty, migrated database.
    pub fn new(clock: Arc<dyn DatabaseClock>) -> Self {
        let server = Server {
            tables: Tables::new(Uuid::new_v4()),
            recorders: Vec::new(),
            inbox: BTreeMap::new(),
            sent: 0,
        };
        Self { inner: Arc::new(Inner { clock, server: Mutex::new(server), paused: Signal::new(false) }) }
    }

    /// A process's handle, over a network of its own without faults.
    pub fn open(&self) -> MemoryStore {
        self.open_with(MemoryOptions::default())
    }

    /// The same, with a given network and failures.
    pub fn open_with(&self, options: MemoryOptions) -> MemoryStore {
        MemoryStore::new(self.clone(), options)
    }

    /// From now on everything that commits is told to `recorder` too.
    pub fn record(&self, recorder: Arc<dyn Recorder>) {
        self.server().recorders.push(recorder);
    }

    /// Looks at the rows, past every network.
    pub fn read<T>(&self, look: impl FnOnce(&Tables) -> T) -> T {
        look(&self.server().tables)
    }

    /// Stops the database: calls wait, connections stay.
    pub fn pause(&self) {
        drop(self.server());
        self.inner.paused.modify(|paused| *paused = true);
    }

    /// Lets it go on. What arrived meanwhile is carried out first, in order.
    pub fn resume(&self) {
        self.inner.paused.modify(|paused| *paused = false);
        drop(self.server());
    }

    /// Whether it is stopped.
    pub fn is_paused(&self) -> bool {
        self.inner.paused.get()
    }

    /// A copy of everything.
    pub fn backup(&self) -> Backup {
        Backup(self.server().tables.clone())
    }

    /// Puts a copy in place of everything. The revision goes back with it.
    pub fn restore(&self, backup: &Backup) {
        let mut server = self.server();
        let server = &mut *server;
        server.tables = backup.0.clone();
        for recorder in &server.recorders {
            recorder.restored(&server.tables);
        }
    }

    /// Changes rows behind every store's back.
    pub fn tamper(&self, tamper: Tamper) {
        let tables = &mut self.server().tables;
        match tamper {
            Tamper::DeleteAll(table) => tables.clear(table),
            Tamper::MakeUnreadable(table) => drop(tables.corrupt.insert(table)),
            Tamper::MakeProgressUnreadable(capture) => {
                tables.corrupt_rows.insert((Table::Progress, capture.to_string()));
            }
            Tamper::MakeFeedUnreadable(table, changefeed) => {
                tables.corrupt_rows.insert((table, changefeed.to_string()));
            }
            Tamper::MakeProcessorsUnreadable(changefeed) => {
                tables.corrupt_processors.insert(changefeed);
            }
            Tamper::MendRows => {
                tables.corrupt_rows.clear();
                tables.corrupt_processors.clear();
            }
            Tamper::MakeReadable(table) => drop(tables.corrupt.remove(&table)),
            Tamper::SetRevision(revision) => tables.revision = revision,
            Tamper::ResetElection => tables.reset_election(),
            Tamper::SetHeartbeats(heartbeat_seq) => {
                for row in tables.captures.values_mut() {
                    *row = Arc::new(CaptureInfo { heartbeat_seq, ..(**row).clone() });
                }
            }
        }
    }

    /// The server, with everything carried out that has arrived.
    fn server(&self) -> MutexGuard<'_, Server> {
        let mut server = self.inner.server.lock().unwrap_or_else(PoisonError::into_inner);
        if !server.inbox.is_empty() && !self.is_paused() {
            let now = self.inner.clock.monotonic();
            while let Some(first) = server.inbox.first_entry().filter(|first| first.key().0 <= now) {
                let statement = first.remove();
                statement(self, &mut server);
            }
        }
        server
    }

    /// Waits until it is not stopped.
    pub(crate) async fn running(&self) {
        self.inner.paused.wait_for(|paused| !paused).await;
    }

    /// Reads, now.
    pub(crate) fn query<T>(&self, body: impl FnOnce(&Tables) -> Result<T>) -> Result<T> {
        body(&self.server().tables)
    }

    /// Runs a transaction, now: whole, or not at all.
    pub(crate) fn transact<T>(
        &self,
        transaction: &'static str,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        self.run(&mut self.server(), transaction, body)
    }

    fn run<T>(
        &self,
        server: &mut Server,
        transaction: &'static str,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut tx = Tx::new(&mut server.tables, self.inner.clock.wall());
        match body(&mut tx) {
            Ok(answer) => {
                let (revision, changes) = tx.commit();
                if !changes.is_empty() && !server.recorders.is_empty() {
                    let at = self.inner.clock.monotonic();
                    let commit = Commit { transaction, at, revision, changes };
                    for recorder in &server.recorders {
                        recorder.committed(&commit, &server.tables);
                    }
                }
                Ok(answer)
            }
            Err(error) => {
                tx.roll_back();
                Err(error)
            }
        }
    }

    /// Sends a single statement, to be carried out when it has arrived, `there` from now, whether anybody waits or not.
    pub(crate) fn send<T: Send + 'static>(
        &self,
        there: Duration,
        transaction: &'static str,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
        answer: Arc<Mutex<Option<Result<T>>>>,
    ) -> Ticket {
        let mut server = self.server();
        server.sent += 1;
        let ticket = (self.inner.clock.monotonic() + there, server.sent);
        let statement: Statement = Box::new(move |cluster, server| {
            let result = cluster.run(server, transaction, body);
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        });
        server.inbox.insert(ticket, statement);
        ticket
    }

    /// Carries a statement out if it has not been, and everything that arrived before it: its sender knows that its time
    /// has come.
    pub(crate) fn arrived(&self, ticket: Ticket) {
        let mut server = self.server();
        while let Some(first) = server.inbox.first_entry().filter(|first| *first.key() <= ticket) {
            let statement = first.remove();
            statement(self, &mut server);
        }
    }

    /// Takes a statement back that has not arrived.
    pub(crate) fn take_back(&self, ticket: Ticket) {
        self.server().inbox.remove(&ticket);
    }
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCluster").field("paused", &self.is_paused()).finish_non_exhaustive()
    }
}
