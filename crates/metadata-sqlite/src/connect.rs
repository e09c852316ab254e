//! How the store reaches its file: options, session set-up, what may be wrong with a path, and which file it is.
//!
//! Every connection is in WAL mode with `synchronous = FULL` (a crash of the host loses nothing) and foreign keys on. The
//! heartbeat and the watch have connections of their own; a small lazy pool serves the rest.
//!
//! Waiting for the write lock is [`Patience`]'s, not SQLite's: SQLite's own wait ends in naps of 100 ms, through which a
//! waiter loses the lock to every newcomer, for as long as other processes keep writing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metadata_api::store::faults::Faults;
use metadata_api::{MetadataError, Result};
use rustix::fs::{Access, access, statfs};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, SqliteConnection, SqlitePool};
use tokio::time::Instant;

use crate::tx::{self, is_busy};

/// Where the file is, and the limits of the store's calls.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The database file, on a local file system. One file holds one cluster; several processes may share it.
    pub path: PathBuf,
    /// The limit of one statement and of one wait for the write lock.
    pub statement_timeout: Duration,
    /// The limit of one heartbeat call. A heartbeat gives up its wait for the write lock before that.
    pub heartbeat_timeout: Duration,
    /// The most connections of the pool. The heartbeat's and the watch's own come on top.
    pub pool_size: u32,
    /// Failures on order, for tests; `None` in production.
    #[doc(hidden)]
    pub faults: Option<Arc<dyn Faults>>,
}

impl SqliteOptions {
    /// The file at `path`, with the design's limits.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            statement_timeout: Duration::from_secs(2),
            heartbeat_timeout: Duration::from_secs(1),
            pool_size: 4,
            faults: None,
        }
    }

    /// From a store URL: `sqlite://PATH`, where `PATH` is taken as it is, without escapes.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`], field `store`: another scheme, no path, parameters, or `:memory:`, which no
    /// second process could see.
    pub fn from_url(url: &str) -> Result<Self> {
        let invalid = |reason: &str| MetadataError::invalid("store", format!("{reason}; want sqlite://PATH"));
        let path = url
            .strip_prefix("sqlite://")
            .or_else(|| url.strip_prefix("sqlite:"))
            .ok_or_else(|| invalid("it does not begin with sqlite://"))?;
        if path.is_empty() {
            return Err(invalid("it has no path"));
        }
        if path.contains('?') {
            return Err(invalid("it has parameters, and there are none"));
        }
        if path == ":memory:" {
            return Err(invalid("a database in memory is seen by one connection only"));
        }
        Ok(Self::new(path))
    }

    /// The path, as errors show it.
    pub(crate) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn connect_options(&self, create: bool) -> Result<SqliteConnectOptions> {
        // An absolute path is never taken for a `file:` URI.
        let path = std::path::absolute(&self.path).map_err(|error| self.invalid(&error))?;
        if path.to_str().is_none() {
            return Err(self.invalid(&"the path is not UTF-8"));
        }
        Ok(SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_NAP)
            .statement_cache_capacity(200)
            .disable_statement_logging())
    }

    /// The pool: small, lazy, and without a ping that nobody counts.
    pub(crate) fn pool(&self) -> Result<SqlitePool> {
        let options = self.connect_options(false)?;
        Ok(SqlitePoolOptions::new()
            .max_connections(self.pool_size.max(1))
            .min_connections(0)
            .acquire_timeout(self.statement_timeout)
            .idle_timeout(Duration::from_mins(1))
            .test_before_acquire(false)
            .connect_lazy_with(options))
    }

    /// A connection of one's own, for a channel or for looking at the schema.
    pub(crate) async fn connect(&self) -> Result<SqliteConnection> {
        self.open(self.connect_options(false)?).await
    }

    /// A connection that creates the file and waits long for others that migrate.
    pub(crate) async fn connect_migrate(&self) -> Result<SqliteConnection> {
        self.open(self.connect_options(true)?.busy_timeout(Duration::from_secs(10))).await
    }

    /// Switching a new file to WAL fails at once, without the busy timeout, while another process does the same.
    async fn open(&self, options: SqliteConnectOptions) -> Result<SqliteConnection> {
        let patience = Patience::new(self.statement_timeout);
        loop {
            match options.connect().await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    if !patience.again(&error).await {
                        return Err(tx::unavailable("connect", error, self));
                    }
                }
            }
        }
    }

    /// Checks what can be known of the path before it is opened.
    ///
    /// # Errors
    /// `InvalidArgument`, field `store`, with the remedy; `Schema` when there is no file and `create` is not given;
    /// `Unsupported` for a network file system.
    pub(crate) fn check_path(&self, create: bool) -> Result<()> {
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(self.invalid(&format!("{} is not a directory", dir.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(
                    self.invalid(&format!("the directory {} does not exist: create it first", dir.display()))
                );
            }
            Err(error) => return Err(self.invalid(&format!("{}: {error}", dir.display()))),
        }
        match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => {
                return Err(self.invalid(&"it is a directory: name a file in it"));
            }
            Ok(found) if !found.is_file() => return Err(self.invalid(&"it is no regular file")),
            Ok(_) => access(&self.path, Access::READ_OK | Access::WRITE_OK).map_err(|error| {
                self.invalid(&format!("this process may not read and write the file: {error}"))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !create {
                    return Err(MetadataError::schema(format!(
                        "there is no database at {0}: run `cdc migrate --store sqlite://{0}`",
                        self.shown()
                    )));
                }
            }
            Err(error) => return Err(self.invalid(&error)),
        }
        access(dir, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
            self.invalid(&format!(
                "this process may not write to the directory {}, where SQLite keeps its log: {error}",
                dir.display()
            ))
        })?;
        self.check_local(dir)
    }

    /// SQLite's locks and its shared memory do not work between hosts.
    fn check_local(&self, dir: &Path) -> Result<()> {
        /// NFS, SMB, CIFS, SMB2, AFS, Coda, Ceph, Lustre, GFS2, OCFS2, from `linux/magic.h` and the modules' sources.
        const NETWORK: [i64; 10] = [
            0x6969,
            0x517B,
            0xFF53_4D42,
            0xFE53_4D42,
            0x5346_414F,
            0x7375_7245,
            0x00C3_6400,
            0x0BD0_0BD0,
            0x0116_1970,
            0x7461_636F,
        ];
        let found = statfs(dir).map_err(|error| self.invalid(&error))?;
        #[expect(clippy::useless_conversion, reason = "the type differs between architectures")]
        if NETWORK.contains(&i64::from(found.f_type)) {
            return Err(MetadataError::Unsupported {
                reason: format!(
                    "{} is on a network file system, where SQLite is not safe: use a local disk, or MySQL for \
                     several hosts",
                    self.shown()
                ),
            });
        }
        Ok(())
    }

    fn invalid(&self, reason: &dyn std::fmt::Display) -> MetadataError {
        MetadataError::invalid("store", format!("sqlite://{}: {reason}", self.shown()))
    }
}

/// How long SQLite itself waits for a lock, in naps of 1, 2 and 5 ms.
const BUSY_NAP: Duration = Duration::from_millis(10);

/// A wait for a lock that others hold, up to a moment before a limit. All waiters come back equally often, in no order.
pub(crate) struct Patience {
    started: Instant,
    limit: Duration,
}

impl Patience {
    /// Starts now.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { started: Instant::now(), limit: limit * 9 / 10 }
    }

    /// Whether to try again after `error`; if so, a nap lies behind.
    pub(crate) async fn again(&self, error: &sqlx::Error) -> bool {
        let again = is_busy(error) && self.started.elapsed() < self.limit;
        if again {
            tokio::time::sleep(Duration::from_micros(rand::random_range(500..4_000))).await;
        }
        again
    }
}

/// Which file a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// By `stat` only: opening and closing the file here would drop the locks that SQLite holds on it in this process.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self { device: found.dev(), inode: found.ino() })
    }

    /// Whether `path` still leads here.
    ///
    /// # Errors
    /// `Fenced` when it does not: this process and those that open the path now would be two clusters.
    pub(crate) fn check(self, path: &Path) -> Result<()> {
        let shown = path.display();
        match Self::of(path) {
            Ok(now) if now == self => Ok(()),
            Ok(_) => Err(MetadataError::fenced(format!(
                "the database file {shown} was replaced by another file under this process: restart it"
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MetadataError::fenced(format!(
                "the database file {shown} is gone: put it back and restart this process"
            ))),
            // The path cannot be looked at now; that says nothing of the file that is open.
            Err(error) => {
                Err(MetadataError::Unavailable { transaction: "heartbeat.stat", source: Box::new(error) })
            }
        }
    }
}
