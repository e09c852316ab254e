//! What is replicated meanwhile: tables of a `MySQL` that change all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cdc::api::model::ChangefeedConfig;
use mysql_async::prelude::Queryable as _;
use replicator::reader;
use replicator::reader::replay::Replay;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::binlog::{Cell, Table, compare, connect, schema};
use crate::harness::{Cluster, Random, say};

/// How many changefeeds; each has a table, and the last one those that are left, on several captures.
pub const FEEDS: usize = 7;
/// On how many.
const PROCESSORS: usize = 3;
/// Between two transactions.
const PAUSE: Duration = Duration::from_millis(25);
/// How many rows a table has at most.
const ROWS: u64 = 200;

const TABLES: [&str; 9] = ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8"];

/// Tables that are written to until it is told to stop.
pub struct Load {
    source: String,
    stop: Arc<AtomicBool>,
    writer: JoinHandle<u64>,
}

impl Load {
    /// Makes the tables and their changefeeds.
    pub async fn start(cluster: &Cluster, seed: u64) -> Self {
        let source = test_servers::fresh_database(&test_servers::mysql_url().await).await;
        let mut conn = connect(&source).await;
        for table in TABLES {
            let sql = format!("CREATE TABLE {table} (id INT PRIMARY KEY, n BIGINT, note VARCHAR(100))");
            conn.query_drop(sql).await.expect("a table");
        }
        conn.disconnect().await.expect("it closes");
        for n in 0..FEEDS {
            let is_last = n + 1 == FEEDS;
            let tables = if is_last { &TABLES[n..] } else { &TABLES[n..=n] };
            let rules: Vec<String> =
                tables.iter().map(|table| format!("{}.{table}", schema(&source))).collect();
            let max_processors = if is_last { PROCESSORS } else { 1 };
            let config = json!({"filter": {"rules": rules}, "placement": {"max_processors": max_processors}});
            let body = ChangefeedConfig {
                changefeed_id: if is_last { "split".to_owned() } else { format!("table-{n}") },
                upstream_uri: source.clone(),
                sink_uri: format!("file://{}?protocol=canal-json", cluster.out().display()),
                replica_config: config.as_object().cloned(),
                ..ChangefeedConfig::default()
            };
            cluster.create(&cluster.client(n % cluster.len()), &body).await.expect("it is created");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(write(source.clone(), seed, stop.clone()));
        Self { source, stop, writer }
    }

    /// Writes no more. How many transactions there were.
    pub async fn stop(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.writer).await.expect("the writer got through")
    }

    /// After the cluster has ended: the files, replayed, are the tables, cell by cell.
    pub async fn check(self, cluster: &Cluster) {
        let mut replay = Replay::default();
        for segments in std::fs::read_dir(cluster.out()).expect("the sink's directory") {
            let dir = segments.expect("an entry").path();
            for line in reader::lines(&dir).expect("files") {
                replay.apply(&line.expect("a line")).expect("it can be replayed");
            }
        }
        say(&format!("nemesis: {} lines are in the files", replay.line_count()));
        for table in TABLES {
            let cells = vec![("n", Cell::Text), ("note", Cell::Text)];
            let table = Table { name: table, key: &["id"], cells };
            compare(&self.source, &table, replay.rows(&schema(&self.source), table.name)).await;
        }
        test_servers::drop_database(&self.source).await;
    }
}

async fn write(source: String, seed: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut conn = connect(&source).await;
    let mut random = Random::new(seed);
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        written += 1;
        conn.query_drop("BEGIN").await.expect("BEGIN");
        // Each table moves with each transaction, so that a changefeed that stands still is seen.
        for table in TABLES {
            let id = random.below_u64(ROWS);
            let sql = match random.below(5) {
                0 => format!("DELETE FROM {table} WHERE id = {id}"),
                1 => format!("UPDATE {table} SET n = {written}, note = REVERSE(note) WHERE id < {id}"),
                _ => format!("REPLACE INTO {table} VALUES ({id}, {written}, 'row {id} of ü {written}')"),
            };
            conn.query_drop(sql).await.expect("a change");
        }
        conn.query_drop("COMMIT").await.expect("COMMIT");
        tokio::time::sleep(PAUSE).await;
    }
    conn.disconnect().await.expect("it closes");
    written
}
