//! The metadata store on an embedded SQLite file: for one host.
//!
//! | room | what is in it |
//! |---|---|
//! | `connect` | options, session set-up, what may be wrong with a path |
//! | `migrate` | the schema, written and checked |
//! | `tx` | named, re-runnable transactions; the one place that retries |
//! | `fence` | the tokens and the revision: the first statement of each write that others act on |
//! | `rows` | rows to model values, or `Corrupt` |
//! | `writes` | the conditional writes that several rooms share |
//! | `batch` | the same for up to 500 changefeeds at once |
//! | `query`, `election`, `capture`, `controller`, `owner`, `admin` | the traits of [`metadata_api::store`], one a room |
//! | `channel` | the heartbeat's and the watch's own connections |
//!
//! What is SQLite's own:
//!
//! * There is one writer for the whole file. `BEGIN IMMEDIATE` takes its lock, so every row read in a write transaction
//!   is locked; the statements still go in the lock order of invariant I2, like those of the other store.
//! * Lists travel as one JSON array and are taken apart by `json_each`, so that every statement is checked at compile
//!   time.
//! * Ids of 64 bits are stored bit-cast to SQLite's signed integers; what is ordered by (revisions, timestamps,
//!   sequences) never exceeds `i64::MAX`.
//! * A process that is stopped (SIGSTOP) in the middle of a write blocks every other writer, and there is no server to
//!   break it: all captures fence themselves, and the error names the remedy.
//! * A file that is replaced under a running process would split the cluster in two: each heartbeat compares device and
//!   inode.
//!
//! How to add a store: see [`metadata_api::store`].

mod admin;
mod batch;
mod capture;
mod channel;
mod connect;
mod controller;
mod election;
mod fence;
mod migrate;
mod owner;
mod query;
mod rows;
mod tx;
mod writes;

use std::sync::Arc;

use metadata_api::{MetadataError, Result};
use sqlx::SqlitePool;
use tokio::sync::Semaphore;

use connect::FileId;
pub use connect::SqliteOptions;

/// The store. Clones share its pool.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
    /// The writers of this process queue here, in order.
    writer: Arc<Semaphore>,
    options: Arc<SqliteOptions>,
    file: FileId,
}

impl SqliteStore {
    /// Opens the file. Creates and migrates nothing: [`SqliteStore::migrate`] does.
    ///
    /// # Errors
    /// [`MetadataError::Schema`] when the file or its schema is missing, older or newer than this binary's, with what to
    /// run; [`MetadataError::InvalidArgument`] (field `store`) for a path that cannot be used;
    /// [`MetadataError::Unsupported`] for a network file system, or a file that is no database.
    #[tracing::instrument(name = "store.open", skip_all, fields(path = %options.shown()))]
    pub async fn open(options: SqliteOptions) -> Result<Self> {
        options.check_path(false)?;
        let mut db = options.connect().await?;
        migrate::check(&options, &mut db).await?;
        let file = FileId::of(&options.path)
            .map_err(|error| MetadataError::invalid("store", format!("{}: {error}", options.shown())))?;
        Ok(Self {
            pool: options.pool()?,
            writer: Arc::new(Semaphore::new(1)),
            options: Arc::new(options),
            file,
        })
    }

    /// Brings the file to this binary's schema; creates it when there is none. Safe when many processes do it at once,
    /// and when one of them is killed: it is one transaction. The first one gives the cluster its identity.
    ///
    /// # Errors
    /// As [`SqliteStore::open`], but for a missing file or schema.
    #[tracing::instrument(name = "store.migrate", skip_all, fields(path = %options.shown()))]
    pub async fn migrate(options: &SqliteOptions) -> Result<()> {
        migrate::migrate(options).await
    }

    /// Closes the pool's connections, once those in use are given back. The channels close when they are dropped.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

#[cfg(test)]
mod tests;
