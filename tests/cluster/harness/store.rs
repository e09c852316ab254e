//! The metadata database of a test.

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cdc::server::open_store;
use cdc::store_url::StoreUrl;
use metadata_api::decision::lease::TimePolicy;
use metadata_api::model::{CaptureId, CaptureTerm, Revision};
use metadata_api::store::{MetadataStore, PollCursor};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use test_servers::{Kind as ServerKind, Server};
use tokio::process::Command;
use url::Url;
use uuid::Uuid;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Sqlite,
    /// A server in a container, or the one that `CDC_TEST_MYSQL_URL` names.
    Mysql,
    /// The same of `MariaDB`.
    Mariadb,
    /// The same of `TiDB`.
    Tidb,
}

impl Kind {
    /// The kind of server, if it is one.
    pub const fn server(self) -> Option<ServerKind> {
        match self {
            Self::Sqlite => None,
            Self::Mysql => Some(ServerKind::Mysql),
            Self::Mariadb => Some(ServerKind::Mariadb),
            Self::Tidb => Some(ServerKind::Tidb),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
            Self::Tidb => "tidb",
        })
    }
}

/// An empty metadata database, gone when the test is over.
pub struct TestStore {
    /// Which one.
    pub kind: Kind,
    /// Its URL, for `--store`.
    pub url: String,
    server: Option<Server>,
}

/// A database that does not answer; it does again after [`Paused::resume`].
pub enum Paused {
    /// The file's write lock is held.
    Sqlite(SqliteConnection),
    /// The container with this id is frozen.
    Server(String),
}

impl TestStore {
    /// One in `dir`, or a schema on the server that all tests share.
    pub async fn new(kind: Kind, dir: &Path) -> Self {
        let url = match kind.server() {
            None => format!("sqlite://{}", dir.join("cdc.db").display()),
            Some(server) => test_servers::fresh_database(&server.url().await).await,
        };
        Self { kind, url, server: None }
    }

    /// One that can be paused: on a server of its own.
    pub async fn that_can_be_paused(kind: Kind, dir: &Path) -> Self {
        match kind.server() {
            None => Self::new(kind, dir).await,
            Some(server) => {
                let server = server.start().await;
                let url = test_servers::fresh_database(server.url()).await;
                Self { kind, url, server: Some(server) }
            }
        }
    }

    /// One on a server of its own, which may be killed and started again.
    pub async fn that_can_be_killed(kind: Kind) -> Self {
        let server = kind.server().expect("a file has no server").start_on_disk().await;
        let url = test_servers::fresh_database(server.url()).await;
        Self { kind, url, server: Some(server) }
    }

    /// The server that is only this store's.
    pub fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("it was started for this store")
    }

    /// Kills its server.
    pub async fn kill(&mut self) {
        self.server().kill().await;
    }

    /// Starts it again, on another port.
    pub async fn restart(&mut self) {
        let server = self.server();
        server.restart().await;
        let found = Url::parse(server.url()).expect("a URL");
        let mut url = Url::parse(&self.url).expect("a URL");
        url.set_port(found.port()).expect("it takes a port");
        self.url = url.into();
    }

    /// From now on it takes no write (SQLite), or answers nothing at all (a server).
    pub async fn pause(&self) -> Paused {
        match (self.kind, &self.server) {
            (Kind::Sqlite, _) => {
                let mut db = self.sqlite().await;
                // Not EXCLUSIVE: it is the same in WAL mode.
                run_sqlite(&mut db, "BEGIN IMMEDIATE").await.expect("the write lock");
                Paused::Sqlite(db)
            }
            (_, Some(server)) => {
                docker(&["pause", server.container_id()]).await;
                Paused::Server(server.container_id().to_owned())
            }
            (_, None) => panic!("a shared server is never paused"),
        }
    }

    /// Whether another process can write now; nothing is written. Always so but on SQLite.
    pub async fn can_write(&self) -> bool {
        if self.kind != Kind::Sqlite {
            return true;
        }
        let mut db = self.sqlite().await;
        let began = run_sqlite(&mut db, "BEGIN IMMEDIATE").await;
        began.is_ok() && run_sqlite(&mut db, "ROLLBACK").await.is_ok()
    }

    async fn sqlite(&self) -> SqliteConnection {
        let path = self.url.strip_prefix("sqlite://").expect("an SQLite store");
        // Longer than any transaction of a server takes, shorter than a test waits.
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(2));
        options.connect().await.expect("the file can be opened")
    }

    /// The store, to be looked at from outside of the servers.
    pub async fn open(&self) -> Arc<dyn MetadataStore> {
        let url = StoreUrl::parse(&self.url, None).expect("a store URL");
        open_store(&url, &TimePolicy::default()).await.expect("the store opens")
    }

    /// Runs SQL on it.
    pub async fn execute(&self, sql: &str) {
        match self.kind {
            Kind::Sqlite => run_sqlite(&mut self.sqlite().await, sql).await.expect(sql),
            _ => test_servers::execute(&self.url, sql).await,
        }
    }

    /// Takes it away.
    pub async fn close(&self) {
        // SQLite's file goes with its directory, a server of its own with its container.
        if self.kind != Kind::Sqlite && self.server.is_none() {
            test_servers::drop_database(&self.url).await;
        }
    }
}

impl Paused {
    /// It answers again.
    pub async fn resume(self) {
        match self {
            Self::Sqlite(mut db) => {
                run_sqlite(&mut db, "ROLLBACK").await.expect("a rollback");
                db.close().await.expect("it closes");
            }
            Self::Server(container) => docker(&["unpause", &container]).await,
        }
    }
}

/// All that an operator may have changed, the cluster's revision included: any committed change that others must notice moves
/// it.
pub async fn dump(store: &dyn MetadataStore) -> Vec<String> {
    let nobody = CaptureTerm { capture: CaptureId(Uuid::nil()) };
    let mut watch = store.watch_channel().await.expect("a channel");
    let revision = watch.poll(nobody, &PollCursor::after(Revision(0))).await.expect("a poll").revision;
    let mut found = vec![format!("{revision:?}")];
    for of in store.changefeed_overviews(None).await.expect("overviews") {
        let sink = of.info.sink_uri.expose().to_owned();
        found.push(format!("{:?} {sink} {:?} {:?} {:?}", of.info, of.status, of.schedule, of.upstream));
    }
    found.push(format!("{:?}", store.changefeed_infos(None).await.expect("infos")));
    found
}

async fn run_sqlite(db: &mut SqliteConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db).await.map(drop)
}

async fn docker(args: &[&str]) {
    let output =
        Command::new("docker").args(args).stdin(Stdio::null()).output().await.expect("the docker client");
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
