//! Migrations on real servers: at the same moment, after a kill, from `sqlx migrate run`, and what is refused.

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use metadata_api::MetadataError;
use metadata_api::store::QueryStore as _;
use metadata_mysql::{MysqlOptions, MysqlStore, migrate};
use sqlx::migrate::Migrator;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, query, query_scalar};
use test_servers::{Kind, drop_database, execute, fresh_database};

fn options(url: &str) -> MysqlOptions {
    MysqlOptions::from_url(url).expect("a URL")
}

async fn files() -> Migrator {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    Migrator::new(folder).await.expect("the migrations")
}

async fn assert_whole(url: &str) {
    let store = MysqlStore::open(options(url)).await.expect("the schema is whole");
    let identity = store.identity().await.expect("the first rows are there");
    assert!(!identity.cluster_id.is_nil());
    assert_eq!(store.election().await.expect("the election row").leader, None);
    assert_eq!(migrate(options(url)).await.expect("again"), 0);
    assert_eq!(store.identity().await.expect("the same"), identity, "the cluster's UUID is written once");
}

/// Ten servers start at once: each file is applied by one of them, and all of them go on.
pub async fn ten_migrate_at_once(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    let tasks = (0..10).map(|_| tokio::spawn(migrate(options(&url))));
    let mut applied = 0;
    for answer in join_all(tasks).await {
        applied += answer.expect("no panic").expect("migrated");
    }
    assert_eq!(applied, files().await.iter().count());
    assert_whole(&url).await;
    drop_database(&url).await;
}

/// A kill between any two DDLs, or between a DDL and its mark, is gone on from.
pub async fn a_kill_at_any_file_is_gone_on_from(kind: Kind) {
    let server = kind.url().await;
    let files = files().await;
    for n in 0..files.iter().count() {
        join_all([false, true].map(|applied| gone_on_from(&server, &files, n, applied))).await;
    }
}

async fn gone_on_from(server: &str, files: &Migrator, n: usize, applied: bool) {
    let url = fresh_database(server).await;
    let file = files.iter().nth(n).expect("a file");
    let mut db = MySqlConnection::connect(&url).await.expect("a connection");
    if n == 0 {
        use sqlx::migrate::Migrate as _;
        db.ensure_migrations_table("_sqlx_migrations").await.expect("sqlx's table");
    } else {
        let before = Migrator::with_migrations(files.iter().take(n).cloned().collect());
        before.run(&mut db).await.expect("the files before it");
    }
    // As sqlx leaves it: begun, and its DDL done or not.
    query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (?, ?, FALSE, ?, -1)",
    )
    .bind(file.version)
    .bind(&*file.description)
    .bind(&*file.checksum)
    .execute(&mut db)
    .await
    .expect("the mark");
    if applied {
        sqlx::raw_sql(file.sql.clone()).execute(&mut db).await.expect("the DDL");
    }
    let refused = MysqlStore::open(options(&url)).await.expect_err("it is half done");
    assert!(matches!(refused, MetadataError::Schema { .. }), "{refused:?}");
    assert_eq!(migrate(options(&url)).await.expect("it goes on"), files.iter().count() - n);
    assert_whole(&url).await;
    db.close().await.expect("it closes");
    drop_database(&url).await;
}

/// A migration that is dropped at any moment leaves no lock behind, and the next one finishes it.
pub async fn a_dropped_migration_is_gone_on_from(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    let mut applied = None;
    for ms in [1, 20, 40, 60, 90, 130, 180] {
        applied = tokio::time::timeout(Duration::from_millis(ms), migrate(options(&url))).await.ok();
        if applied.is_some() {
            break;
        }
    }
    if applied.is_none() {
        migrate(options(&url)).await.expect("it goes on");
    }
    assert_whole(&url).await;
    drop_database(&url).await;
}

/// `sqlx migrate run` applies the same files with the same marks.
pub async fn sqlx_applies_the_same_files(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    let mut db = MySqlConnection::connect(&url).await.expect("a connection");
    files().await.run(&mut db).await.expect("sqlx migrate run");
    assert_whole(&url).await;
    files().await.run(&mut db).await.expect("again");
    db.close().await.expect("it closes");
    drop_database(&url).await;
}

/// A database that any earlier version of the schema left, with data in it, is brought up to date, and what was in it reads
/// as before. Each prefix of the files stands for a version; a file that is added later is tested by being there.
pub async fn every_earlier_schema_is_upgraded_with_its_data(kind: Kind) {
    let server = kind.url().await;
    let files = files().await;
    let count = files.iter().count();
    for n in 1..count {
        let url = fresh_database(&server).await;
        let mut db = MySqlConnection::connect(&url).await.expect("a connection");
        Migrator::with_migrations(files.iter().take(n).cloned().collect())
            .run(&mut db)
            .await
            .expect("a prefix");
        let tables: Vec<String> = query_scalar("SHOW TABLES").fetch_all(&mut db).await.expect("the tables");
        let filled: Vec<&str> = DATA
            .into_iter()
            .filter(|(table, _)| tables.iter().any(|there| there == table))
            .map(|(_, sql)| sql)
            .collect();
        assert_eq!(filled.len() + 1, tables.len(), "each table but sqlx's has data: {tables:?}");
        for sql in &filled {
            execute(&url, sql).await;
        }
        let before = contents(&mut db, &tables).await;
        assert_eq!(migrate(options(&url)).await.expect("an upgrade"), count - n);
        assert_eq!(contents(&mut db, &tables).await, before, "after {n} files");
        let store = MysqlStore::open(options(&url)).await.expect("the schema is whole");
        let identity = store.identity().await.expect("the first rows are there");
        assert_eq!(identity.cluster_id.to_string(), CLUSTER, "it is the same cluster");
        let has = |table: &str| tables.iter().any(|there| there == table);
        assert_eq!(store.captures(None).await.expect("a read").len(), usize::from(has("capture")));
        if has("election") {
            assert_eq!(store.election().await.expect("a read").epoch.0, 7);
        }
        if has("schedule") {
            let overview = store.changefeed_overviews(None).await.expect("a read").remove(0);
            assert_eq!(overview.info.uuid.0, 1_000);
            assert_eq!(overview.progress.checkpoint_ts.0, if has("progress") { 200 } else { 100 });
        }
        db.close().await.expect("it closes");
        drop_database(&url).await;
    }
}

const CLUSTER: &str = "6a1f0b1e-0000-4000-8000-000000000001";

/// A row or two of each table, as the first version of the schema has them. Later versions only add: their columns have
/// defaults, and an old server that is still running goes on writing rows like these.
const DATA: [(&str, &str); 10] = [
    ("cluster", "INSERT INTO cluster (id, cluster_id) VALUES (1, '6a1f0b1e-0000-4000-8000-000000000001')"),
    ("fence", "INSERT INTO fence (id, controller_epoch, revision) VALUES (1, 7, 1000000)"),
    (
        "election",
        "INSERT INTO election (id, leader_id, controller_epoch, lease_seq) \
         VALUES (1, '6a1f0b1e-0000-4000-8000-000000000002', 7, 3)",
    ),
    (
        "capture",
        "INSERT INTO capture (id, advertise_addr, binary_version, labels, machine_id, state, heartbeat_seq, revision) \
         VALUES ('6a1f0b1e-0000-4000-8000-000000000002', 'h:1', 'v0', '{}', '', 'alive', 5, 1000)",
    ),
    ("upstream", "INSERT INTO upstream (id, endpoints, credentials) VALUES (1, 'mysql://h/', '')"),
    (
        "changefeed_info",
        "INSERT INTO changefeed_info (uuid, namespace, id, upstream_id, sink_uri, start_ts, target_ts, config, \
         creator_version, client_request_id) VALUES (1000, 'default', 'one', 1, 'blackhole://', 100, 0, '{}', 'v0', \
         '6a1f0b1e-0000-4000-8000-000000000003')",
    ),
    ("changefeed_state", "INSERT INTO changefeed_state (changefeed_uuid, state) VALUES (1000, 'normal')"),
    (
        "schedule",
        "INSERT INTO schedule (changefeed_uuid, owner, owner_state, owner_epoch, task_position, revision) VALUES \
         (1000, '6a1f0b1e-0000-4000-8000-000000000002', 'launched', 2000, '{\"checkpoint_ts\":100}', 2000)",
    ),
    (
        "processor",
        "INSERT INTO processor (changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment, revision) VALUES \
         (1000, '6a1f0b1e-0000-4000-8000-000000000002', 'launched', 2000, 3000, '', 3000)",
    ),
    (
        "progress",
        "INSERT INTO progress (capture_id, seq, value) VALUES ('6a1f0b1e-0000-4000-8000-000000000002', 9, \
         '{\"1000\":{\"owner_epoch\":2000,\"checkpoint_ts\":200}}')",
    ),
];

/// All rows of the store's tables, as text.
async fn contents(db: &mut MySqlConnection, tables: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for table in tables.iter().filter(|table| !table.starts_with('_')) {
        let columns: Vec<String> = query_scalar(
            "SELECT column_name FROM information_schema.columns \
             WHERE table_schema = DATABASE() AND table_name = ? ORDER BY ordinal_position",
        )
        .bind(table)
        .fetch_all(&mut *db)
        .await
        .expect("the columns");
        let sql = format!("SELECT CONCAT_WS('|', {}) FROM {table}", columns.join(", "));
        let rows: Vec<String> = query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *db).await.expect("the rows");
        all.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
    }
    all
}

/// `sqlx migrate info` agrees: it lists every file as installed, with the checksum that it has, or as pending. (sqlx-cli's
/// command is these very calls of the library.)
pub async fn sqlx_migrate_info_agrees(kind: Kind) {
    use sqlx::migrate::Migrate as _;

    let url = fresh_database(&kind.url().await).await;
    let files = files().await;
    let mut db = MySqlConnection::connect(&url).await.expect("a connection");
    Migrator::with_migrations(files.iter().take(4).cloned().collect()).run(&mut db).await.expect("a prefix");
    for applied in [4, files.iter().count()] {
        db.ensure_migrations_table("_sqlx_migrations").await.expect("sqlx's table");
        assert_eq!(db.dirty_version("_sqlx_migrations").await.expect("a version"), None);
        let listed = db.list_applied_migrations("_sqlx_migrations").await.expect("the list");
        let listed: Vec<_> = listed.iter().map(|it| (it.version, it.checksum.to_vec())).collect();
        let expected: Vec<_> =
            files.iter().take(applied).map(|it| (it.version, it.checksum.to_vec())).collect();
        assert_eq!(listed, expected);
        migrate(options(&url)).await.expect("the rest");
    }
    db.close().await.expect("it closes");
    drop_database(&url).await;
}

/// A schema that is missing, newer or changed is refused, by the store and by `migrate`, with what to do.
pub async fn another_schema_is_refused(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    let refused = async |what: &str| {
        let error = MysqlStore::open(options(&url)).await.expect_err("refused");
        assert!(matches!(error, MetadataError::Schema { .. }), "{error:?}");
        assert!(error.to_string().contains(what), "{error}");
    };
    refused("cdc migrate").await;
    migrate(options(&url)).await.expect("an empty database");
    execute(
        &url,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'future', TRUE, 'x', 1)",
    )
    .await;
    refused("newer binary").await;
    let error = migrate(options(&url)).await.expect_err("refused");
    assert!(matches!(error, MetadataError::Schema { .. }), "{error:?}");
    execute(&url, "DELETE FROM _sqlx_migrations WHERE version = 9999").await;
    execute(&url, "UPDATE _sqlx_migrations SET checksum = 'y' WHERE version = 3").await;
    refused("migration 3").await;
    drop_database(&url).await;
}

/// While another holds the migration lock nobody applies anything; when it ends, the next one goes on.
pub async fn a_migration_waits_for_the_lock(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    let mut holder = MySqlConnection::connect(&url).await.expect("a connection");
    // sqlx's own lock, so that `sqlx migrate run` and `cdc migrate` exclude each other.
    {
        use sqlx::migrate::Migrate as _;
        holder.lock().await.expect("the lock");
    }
    let waiting = tokio::spawn(migrate(options(&url)));
    tokio::time::sleep(Duration::from_millis(700)).await;
    let tables: i64 =
        query_scalar("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()")
            .fetch_one(&mut holder)
            .await
            .expect("a count");
    // MariaDB's GET_LOCK(.., -1), which sqlx calls, gives NULL and takes no lock.
    if kind != Kind::Mariadb {
        assert_eq!(tables, 0, "nobody applies anything without the lock");
    }
    holder.close().await.expect("it closes");
    waiting.await.expect("no panic").expect("it goes on");
    assert_whole(&url).await;
    drop_database(&url).await;
}
