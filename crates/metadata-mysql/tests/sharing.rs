//! A database that is shared with others: what they do to it must not cost a capture its heartbeat.

use std::time::Duration;

use metadata_api::MetadataError;
use metadata_api::model::{CaptureTerm, Revision};
use metadata_api::store::{
    AdminStore as _, Authority, CaptureStore as _, HeartbeatChannel, PollCursor, WatchChannel,
};
use metadata_mysql::{MysqlStore, migrate};
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, Executor as _};
use test_servers::{Kind, Server, execute, fresh_database};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::server::{begin, new_capture, new_changefeed, options};

/// How long the runtime waits for a beat (`heartbeat_timeout`).
const BEAT_LIMIT: Duration = Duration::from_secs(1);

/// A server of its own, since what is done to it is done to the whole of it.
struct Shared {
    server: Server,
    url: String,
    store: MysqlStore,
}

impl Shared {
    async fn start(kind: Kind) -> Self {
        let server = kind.start().await;
        let url = fresh_database(server.url()).await;
        migrate(options(&url)).await.expect("an empty database");
        let store = MysqlStore::open(options(&format!("{url}?give-up-after=3s"))).await.expect("it opens");
        Self { server, url, store }
    }

    async fn outsider(&self) -> MySqlConnection {
        MySqlConnection::connect(&self.url).await.expect("a connection")
    }
}

/// A capture with the two connections of its own.
struct Capture {
    term: CaptureTerm,
    beats: Box<dyn HeartbeatChannel>,
    watch: Box<dyn WatchChannel>,
    seq: u64,
    slowest: Duration,
}

impl Capture {
    async fn register(store: &MysqlStore) -> Self {
        let term = store.capture_register(&new_capture()).await.expect("registered");
        let beats = store.heartbeat_channel().await.expect("a channel");
        let watch = store.watch_channel().await.expect("a channel");
        Self { term, beats, watch, seq: 0, slowest: Duration::ZERO }
    }

    /// Beats and polls, 20 times a second; each within its limit.
    async fn lives_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let started = Instant::now();
            timeout(BEAT_LIMIT, self.beats.beat(self.term, self.seq, self.seq + 1))
                .await
                .expect("a beat in time")
                .expect("a beat");
            self.seq += 1;
            self.slowest = self.slowest.max(started.elapsed());
            timeout(2 * BEAT_LIMIT, self.watch.poll(self.term, &PollCursor::after(Revision(0))))
                .await
                .expect("a poll in time")
                .expect("a poll");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        println!("the slowest of {} beats took {:?}", self.seq, self.slowest);
    }
}

/// Nobody else gets a connection any more, and neither do we another one; those that we have stay, and are enough.
pub async fn a_full_server_costs_no_heartbeat(kind: Kind) {
    let shared = Shared::start(kind).await;
    let mut capture = Capture::register(&shared.store).await;
    let mut admin = shared.outsider().await;
    admin.execute("CREATE USER other@'%'").await.expect("a user that may not use the reserved connection");
    admin.execute("SET GLOBAL max_connections = 20").await.expect("few connections");
    let other = shared.server.url().replace("root@", "other@");
    let mut others = Vec::new();
    let full = loop {
        match MySqlConnection::connect(&other).await {
            Ok(connection) => others.push(connection),
            Err(sqlx::Error::Database(error)) => break error,
            Err(error) => panic!("{error}"),
        }
        assert!(others.len() <= 20, "the server does not get full");
    };
    let number = full.downcast_ref::<sqlx::mysql::MySqlDatabaseError>().number();
    assert_eq!(number, 1040, "{full}");
    // Whatever gets free is taken: what the store's pool leaves, once the server ended it (after 5 s), and the one that MySQL
    // and MariaDB keep for an administrator, as which the tests connect.
    let (url, done) = (shared.url.clone(), CancellationToken::new());
    let greedy = tokio::spawn({
        let done = done.clone();
        async move {
            while !done.is_cancelled() {
                match MySqlConnection::connect(&url).await {
                    Ok(connection) => others.push(connection),
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        }
    });
    capture.lives_for(Duration::from_secs(7)).await;
    let call = tokio::spawn({
        let store = shared.store.clone();
        async move { store.capture_register(&new_capture()).await }
    });
    capture.lives_for(Duration::from_secs(4)).await;
    let error = call.await.expect("no panic").expect_err("the server is full");
    assert!(matches!(error, MetadataError::Unavailable { .. }), "{error:?}");
    done.cancel();
    greedy.await.expect("all are closed");
    let registered = async {
        while shared.store.capture_register(&new_capture()).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(20), registered).await.expect("there is room again");
    capture.lives_for(Duration::from_millis(500)).await;
}

/// Somebody locks tables and forgets them. What needs those fails within bounds; heartbeats and polls go on, and when it is
/// the heartbeats' own table, they go on as soon as it is free, without anything being applied late.
pub async fn a_locked_table_costs_no_more_than_its_own_work(kind: Kind) {
    let shared = Shared::start(kind).await;
    let mut capture = Capture::register(&shared.store).await;
    let mut outsider = shared.outsider().await;
    // A poll reads the schedule, which LOCK TABLES .. READ allows, and does not mind rows that are locked.
    let table = if kind == Kind::Tidb { "fence" } else { "changefeed_info" };
    lock_tables(kind, &mut outsider, "schedule", table).await;
    let call = tokio::spawn({
        let store = shared.store.clone();
        async move { store.changefeed_create(Authority::Operator, &new_changefeed("one")).await }
    });
    capture.lives_for(Duration::from_secs(2)).await;
    let started = Instant::now();
    let error = call.await.expect("no panic").expect_err("its table is locked");
    assert!(matches!(error, MetadataError::Unavailable { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    unlock_tables(kind, &mut outsider).await;
    shared.store.changefeed_create(Authority::Operator, &new_changefeed("one")).await.expect("created");

    lock_tables(kind, &mut outsider, "progress", "capture").await;
    timeout(BEAT_LIMIT, capture.beats.beat(capture.term, capture.seq, capture.seq + 1))
        .await
        .expect_err("its table is locked");
    unlock_tables(kind, &mut outsider).await;
    // As the runtime does: another connection, and a number above the one whose outcome is not known.
    capture.beats = shared.store.heartbeat_channel().await.expect("a channel");
    let acknowledged = capture.seq;
    capture.seq += 2;
    capture.beats.beat(capture.term, acknowledged, capture.seq).await.expect("a beat");
    capture.lives_for(Duration::from_secs(3)).await;
    drop(capture);
    outsider.close().await.expect("it closes");
}

/// Locks two tables, the second one for writing. `TiDB`'s LOCK TABLES does nothing unless it is configured to, so there all
/// their rows are locked instead.
async fn lock_tables(kind: Kind, outsider: &mut MySqlConnection, other: &str, table: &str) {
    let sql = if kind == Kind::Tidb {
        format!("{}; SELECT * FROM {other} FOR UPDATE; SELECT * FROM {table} FOR UPDATE", begin(kind))
    } else {
        format!("LOCK TABLES {other} READ, {table} WRITE")
    };
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(outsider).await.expect("the locks");
}

async fn unlock_tables(kind: Kind, outsider: &mut MySqlConnection) {
    outsider.execute(if kind == Kind::Tidb { "ROLLBACK" } else { "UNLOCK TABLES" }).await.expect("unlocked");
}

/// Everything is logged, into tables where there are such, and somebody fills the logs with slow work of his own.
pub async fn somebodys_slow_queries_cost_no_heartbeat(kind: Kind) {
    let shared = Shared::start(kind).await;
    let logs: &[&str] = match kind {
        Kind::Mysql | Kind::Mariadb => &[
            "SET GLOBAL log_output = 'TABLE'",
            "SET GLOBAL slow_query_log = ON",
            "SET GLOBAL long_query_time = 0",
            "SET GLOBAL log_queries_not_using_indexes = ON",
            "SET GLOBAL general_log = ON",
        ],
        Kind::Tidb => &["SET GLOBAL tidb_general_log = ON", "SET tidb_slow_log_threshold = 0"],
    };
    for log in logs {
        execute(shared.server.url(), log).await;
    }
    let mut capture = Capture::register(&shared.store).await;
    // A join without an index, a few seconds each, over and over.
    execute(&shared.url, "CREATE TABLE theirs (a INT, b VARCHAR(100))").await;
    let rows: Vec<String> = (0..1_500).map(|n| format!("({n}, 'row {n}')")).collect();
    execute(&shared.url, &format!("INSERT INTO theirs VALUES {}", rows.join(", "))).await;
    let work: Vec<_> = (0..2)
        .map(|_| {
            let url = shared.url.clone();
            tokio::spawn(async move {
                let mut theirs = MySqlConnection::connect(&url).await.expect("a connection");
                loop {
                    let sql = "SELECT COUNT(*) FROM theirs x JOIN theirs y ON x.a + y.a = 7 AND x.b < y.b";
                    theirs.execute(sql).await.expect("an answer");
                }
            })
        })
        .collect();
    capture.lives_for(Duration::from_secs(6)).await;
    for work in work {
        work.abort();
    }
    let (log, few) = ("SELECT COUNT(*) FROM mysql.slow_log", 10);
    if kind != Kind::Tidb {
        let mut admin = shared.outsider().await;
        let logged: i64 = sqlx::query_scalar(log).fetch_one(&mut admin).await.expect("a count");
        assert!(logged > few, "the log was on: {logged}");
    }
}
