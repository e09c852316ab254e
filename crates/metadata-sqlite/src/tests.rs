//! What is SQLite's own. The contract is tested by the shared suite, in `tests/conformance.rs`.
#![expect(
    clippy::disallowed_methods,
    reason = "a test measures how long a call took, and decides nothing by it"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use metadata_api::MetadataError;
use metadata_api::model::{CaptureId, CaptureTerm, NewCapture, Revision};
use metadata_api::store::{AdminStore as _, CaptureStore as _, PollCursor, QueryStore as _};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _, SqliteConnection};
use tempfile::TempDir;

use crate::{SqliteOptions, SqliteStore};

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn migrated() -> Self {
        let place = Self::new();
        SqliteStore::migrate(&place.options()).await.unwrap();
        place
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("cdc.db")
    }

    fn options(&self) -> SqliteOptions {
        SqliteOptions::new(self.path())
    }

    async fn open(&self) -> SqliteStore {
        SqliteStore::open(self.options()).await.unwrap()
    }

    async fn prompt(&self) -> SqliteConnection {
        SqliteConnection::connect(&format!("sqlite://{}", self.path().display())).await.unwrap()
    }
}

async fn registered(store: &SqliteStore) -> CaptureTerm {
    let capture = NewCapture {
        id: CaptureId::random(),
        advertise_addr: "127.0.0.1:8300".into(),
        version: String::new(),
        labels: BTreeMap::new(),
        machine_id: String::new(),
    };
    store.capture_register(&capture).await.unwrap()
}

/// Not a test of its own: what each child process of the next one does.
#[tokio::test]
async fn child_migrates() {
    if let Some(path) = std::env::var_os("CDC_TEST_MIGRATE") {
        let options = SqliteOptions::new(path);
        SqliteStore::migrate(&options).await.unwrap();
        let store = SqliteStore::open(options).await.unwrap();
        println!("identity={}", store.identity().await.unwrap().cluster_id);
    }
}

#[test]
fn ten_processes_migrate_at_once_and_agree_on_the_identity() {
    let place = Place::new();
    let children: Vec<_> = (0..10)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tests::child_migrates", "--nocapture"])
                .env("CDC_TEST_MIGRATE", place.path())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut identities: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
            text.lines().find_map(|line| line.split_once("identity=")).unwrap().1.to_owned()
        })
        .collect();
    identities.dedup();
    assert_eq!(identities.len(), 1, "{identities:?}");
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let place = Place::migrated().await;
    let before = place.open().await.identity().await.unwrap();
    assert_eq!(before.cluster_id.get_version_num(), 4);
    SqliteStore::migrate(&place.options()).await.unwrap();
    assert_eq!(place.open().await.identity().await.unwrap(), before);
}

fn schema_reason(error: &MetadataError) -> &str {
    match error {
        MetadataError::Schema { reason } => reason,
        other => panic!("want Schema, got {other:?}"),
    }
}

#[tokio::test]
async fn a_missing_older_or_newer_schema_says_what_to_run() {
    let place = Place::new();
    let error = SqliteStore::open(place.options()).await.unwrap_err();
    assert!(schema_reason(&error).contains("cdc migrate --store sqlite://"), "{error}");
    assert!(!place.path().exists(), "opening creates nothing");

    std::fs::write(place.path(), "").unwrap();
    let error = SqliteStore::open(place.options()).await.unwrap_err();
    assert!(schema_reason(&error).contains("no schema yet"), "{error}");

    SqliteStore::migrate(&place.options()).await.unwrap();
    let mut db = place.prompt().await;
    db.execute("UPDATE _sqlx_migrations SET version = 99 WHERE version = 1").await.unwrap();
    for error in [
        SqliteStore::open(place.options()).await.unwrap_err(),
        SqliteStore::migrate(&place.options()).await.unwrap_err(),
    ] {
        let reason = schema_reason(&error);
        assert!(reason.contains("99") && reason.contains("newer"), "{error}");
    }
    db.execute("UPDATE _sqlx_migrations SET version = 1, checksum = x'00' WHERE version = 99").await.unwrap();
    for error in [
        SqliteStore::open(place.options()).await.unwrap_err(),
        SqliteStore::migrate(&place.options()).await.unwrap_err(),
    ] {
        assert!(schema_reason(&error).contains("another program"), "{error}");
    }
    db.execute("DELETE FROM _sqlx_migrations").await.unwrap();
    let error = SqliteStore::open(place.options()).await.unwrap_err();
    assert!(schema_reason(&error).contains("lacks migration 1"), "{error}");
}

/// A strict table holds text that is no UTF-8. Trying again would not mend it, so it is not `Unavailable`.
#[tokio::test]
async fn text_that_is_not_utf8_is_corrupt() {
    let place = Place::migrated().await;
    let store = place.open().await;
    let term = registered(&store).await;
    let mut db = place.prompt().await;
    db.execute("UPDATE capture SET state = CAST(x'ff00fe' AS TEXT)").await.unwrap();
    let mut watch = store.watch_channel().await.unwrap();
    for error in [
        store.captures(None).await.unwrap_err(),
        store.capture_drain(term.capture).await.unwrap_err(),
        watch.poll(term, &PollCursor::after(Revision(0))).await.unwrap_err(),
    ] {
        assert!(matches!(error, MetadataError::Corrupt { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_path_that_cannot_be_used_is_refused_with_the_remedy() {
    let place = Place::new();
    let dir = place.0.path();
    let refused = async |path: &Path| SqliteStore::migrate(&SqliteOptions::new(path)).await.unwrap_err();

    let error = refused(&dir.join("nowhere/cdc.db")).await;
    assert!(matches!(error, MetadataError::InvalidArgument { field: "store", .. }), "{error:?}");
    assert!(error.to_string().contains("create it first"), "{error}");

    let error = refused(dir).await;
    assert!(error.to_string().contains("is a directory"), "{error}");

    std::fs::write(dir.join("text"), "not a database, but long enough to have a header".repeat(30)).unwrap();
    for error in [
        refused(&dir.join("text")).await,
        SqliteStore::open(SqliteOptions::new(dir.join("text"))).await.unwrap_err(),
    ] {
        assert!(matches!(error, MetadataError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains("not an SQLite database"), "{error}");
    }
    let error = refused(&dir.join("text/cdc.db")).await;
    assert!(error.to_string().contains("not a directory"), "{error}");
}

#[test]
fn a_url_is_a_path() {
    let path = |url| SqliteOptions::from_url(url).map(|options| options.path);
    assert_eq!(path("sqlite:///var/cdc.db").unwrap(), Path::new("/var/cdc.db"));
    assert_eq!(path("sqlite://a%20b.db").unwrap(), Path::new("a%20b.db"));
    for url in ["mysql://h/", "sqlite://", "sqlite://:memory:", "sqlite://a.db?mode=ro", "cdc.db"] {
        assert!(matches!(path(url), Err(MetadataError::InvalidArgument { field: "store", .. })), "{url}");
    }
}

#[tokio::test]
async fn every_connection_is_durable_and_checks_its_keys() {
    let place = Place::migrated().await;
    let mut own = place.options().connect().await.unwrap();
    let mut pooled = place.open().await.pool.acquire().await.unwrap();
    for db in [&mut own, &mut *pooled] {
        let setting = async |db: &mut SqliteConnection, name: &'static str| -> String {
            let row = db.fetch_one(AssertSqlSafe(format!("PRAGMA {name}"))).await.unwrap();
            row.try_get::<String, _>(0).unwrap_or_else(|_| row.get::<i64, _>(0).to_string())
        };
        assert_eq!(setting(db, "journal_mode").await, "wal");
        assert_eq!(setting(db, "synchronous").await, "2");
        assert_eq!(setting(db, "foreign_keys").await, "1");
    }
}

#[tokio::test]
async fn a_file_that_is_replaced_or_gone_fences() {
    let place = Place::migrated().await;
    let store = place.open().await;
    let term = registered(&store).await;
    let mut channel = store.heartbeat_channel().await.unwrap();
    channel.beat(term, 0, 1).await.unwrap();

    let aside = place.0.path().join("aside.db");
    std::fs::rename(place.path(), &aside).unwrap();
    let error = channel.beat(term, 1, 2).await.unwrap_err();
    assert!(error.is_fenced() && error.to_string().contains("is gone"), "{error}");

    let other = Place::migrated().await;
    std::fs::copy(other.path(), place.path()).unwrap();
    let error = channel.beat(term, 1, 2).await.unwrap_err();
    assert!(error.is_fenced() && error.to_string().contains("was replaced"), "{error}");
    let error = store.heartbeat_channel().await.map(drop).unwrap_err();
    assert!(error.is_fenced(), "{error}");

    std::fs::rename(&aside, place.path()).unwrap();
    channel.beat(term, 1, 2).await.unwrap();
}

#[tokio::test]
async fn a_held_write_lock_is_waited_for_and_then_named() {
    let place = Place::migrated().await;
    let mut options = place.options();
    options.statement_timeout = Duration::from_millis(300);
    options.heartbeat_timeout = Duration::from_millis(200);
    let store = SqliteStore::open(options).await.unwrap();
    let term = registered(&store).await;
    let mut channel = store.heartbeat_channel().await.unwrap();

    let mut holder = place.prompt().await;
    holder.execute("BEGIN IMMEDIATE").await.unwrap();
    let started = Instant::now();
    let error = channel.beat(term, 0, 1).await.unwrap_err();
    assert!(matches!(error, MetadataError::Unavailable { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let error = store.controller_depose().await.unwrap_err();
    assert!(
        matches!(error, MetadataError::Unavailable { transaction: "controller.depose", .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("fuser"), "{error}");
    assert!(store.captures(None).await.unwrap().len() == 1, "readers do not wait for a writer");

    let waits = tokio::spawn({
        let store = store.clone();
        async move { store.capture_drain(term.capture).await }
    });
    holder.execute("COMMIT").await.unwrap();
    waits.await.unwrap().unwrap();
    channel.beat(term, 0, 1).await.unwrap();
}

#[tokio::test]
async fn a_foreign_identity_or_a_missing_row_is_corrupt() {
    let place = Place::migrated().await;
    let store = place.open().await;
    place.prompt().await.execute("DELETE FROM fence").await.unwrap();
    let error = store.controller_depose().await.unwrap_err();
    assert!(matches!(error, MetadataError::Corrupt { table: "fence", .. }), "{error:?}");
    place.prompt().await.execute("UPDATE cluster SET cluster_id = 'x'").await.unwrap();
    let error = store.identity().await.unwrap_err();
    assert!(matches!(error, MetadataError::Corrupt { table: "cluster", .. }), "{error:?}");
}

/// Every statement finds its rows by an index, but for those that are to read a whole table.
#[tokio::test]
async fn no_statement_reads_a_whole_table_but_those_that_are_to() {
    /// What such a statement has in its text.
    const WHOLE: [&str; 8] = [
        "FROM capture ORDER BY id",
        "FROM changefeed_info ORDER BY uuid",
        "FROM changefeed_state ORDER BY changefeed_uuid",
        "FROM schedule\n                   WHERE TRUE",
        "progress g ON g.capture_id = p.capture_id\n               WHERE TRUE",
        "WHERE i.removed_marker = 0)",
        "JOIN changefeed_state f ON f.changefeed_uuid = s.changefeed_uuid\n           ORDER BY",
        "heartbeat_seq FROM capture ORDER BY id",
    ];
    const TABLES: [&str; 13] = [
        "capture",
        "changefeed_info",
        "changefeed_state",
        "i",
        "f",
        "g",
        "s",
        "p",
        "other",
        "processor",
        "progress",
        "schedule",
        "upstream",
    ];
    let place = Place::migrated().await;
    let mut db = place.prompt().await;
    let all: serde_json::Value = serde_json::from_str(include_str!("../../../sqlx-data.json")).unwrap();
    let queries = all["SQLite"].as_object().unwrap();
    assert!(queries.len() > 50);
    for query in queries.values() {
        let text = query["query"].as_str().unwrap();
        let plan: Vec<String> = sqlx::raw_sql(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}")))
            .fetch_all(&mut db)
            .await
            .unwrap()
            .iter()
            .map(|row| row.get::<String, _>("detail"))
            .collect();
        let scans = plan.iter().any(|step| {
            let mut words = step.split(' ');
            words.next() == Some("SCAN") && words.next().is_some_and(|table| TABLES.contains(&table))
        });
        let may = WHOLE.iter().any(|whole| text.contains(whole));
        assert_eq!(scans, may, "{text}\n{plan:#?}");
    }
}
