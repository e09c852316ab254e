//! `MySQL`'s binlog to files, while owners are killed.
//!
//! Writers insert, update and delete for a minute: all common types, NULLs, unicode, keys that change, big blobs,
//! transactions of one row and of ten thousand. Twice the owner of a changefeed is killed. Afterwards the files, replayed by
//! key in commit order, are the source's tables, cell by cell.

use std::collections::BTreeMap;
use std::time::Duration;

use cdc::api::model::ChangefeedConfig;
use metadata_api::model::{ChangefeedUuid, Ts};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts};
use replicator::canal_json::bytes_from_text;
use replicator::reader::replay::{Key, Replay, ReplayedRow};
use replicator::reader::{self, Author};
use serde_json::json;
use url::Url;

use crate::harness::{Cluster, Kind, Random, now, on_every_store, say, wall_ms};

on_every_store! {
    elsewhere_on_demand:
    the_files_are_the_tables_although_owners_are_killed
}

/// How long the writers write.
const WRITING: Duration = Duration::from_secs(60);
/// When the owners are killed, from the beginning on.
const KILLS: [Duration; 2] = [Duration::from_secs(8), Duration::from_secs(35)];
/// The rows of a great transaction.
const MANY: u64 = 10_000;

/// How a cell of the files and one that SELECT shows are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// As text.
    Text,
    /// The files have the number: `BIT`, `ENUM`, `SET`.
    Number,
    /// The files have a character for each byte.
    Bytes,
    /// The shortest text of the same number.
    Float,
}

/// Columns of the table `kinds`: name, type, values as SQL (NULL besides), how they are compared.
const COLUMNS: &[(&str, &str, &[&str], Cell)] = &[
    ("ti", "TINYINT", &["-128", "127"], Cell::Text),
    ("su", "SMALLINT UNSIGNED", &["65535", "0"], Cell::Text),
    ("mi", "MEDIUMINT", &["-8388608", "8388607"], Cell::Text),
    ("ii", "INT", &["-2147483648", "2147483647", "0"], Cell::Text),
    ("bu", "BIGINT UNSIGNED", &["18446744073709551615", "9223372036854775808"], Cell::Text),
    ("bi", "BIGINT", &["-9223372036854775808", "1"], Cell::Text),
    ("fl", "FLOAT", &["0.5", "-3.14159", "1e10"], Cell::Float),
    ("db", "DOUBLE", &["0.1", "-1.7976931348623157E+308", "2.2250738585072014E-308"], Cell::Float),
    ("de", "DECIMAL(30,10)", &["-12345678901234567890.0123456789", "0.0000000001", "0"], Cell::Text),
    ("b9", "BIT(9)", &["b'100000001'", "0"], Cell::Number),
    ("ye", "YEAR", &["1901", "2155"], Cell::Text),
    ("da", "DATE", &["'1000-01-01'", "'2024-02-29'"], Cell::Text),
    ("tm", "TIME(3)", &["'-838:59:58.999'", "'01:02:03.004'"], Cell::Text),
    ("dt", "DATETIME(6)", &["'2026-01-02 03:04:05.000006'", "'9999-12-31 23:59:59.499999'"], Cell::Text),
    ("ts", "TIMESTAMP(2) NULL", &["'2026-07-02 03:04:05.67'", "'1970-01-02 00:00:01'"], Cell::Text),
    ("ch", "CHAR(10)", &["'grün'", "''", "'🦀 \\\\ \"x\" \\n'"], Cell::Text),
    ("vc", "VARCHAR(200)", &["'日本語 🦀'", "REPEAT('ü', 200)", "'tail '"], Cell::Text),
    ("vg", "VARCHAR(20) CHARACTER SET gbk", &["'你好，世界'"], Cell::Text),
    ("lt", "LONGTEXT", &["REPEAT('text🦀', 3000)", "''"], Cell::Text),
    ("bn", "BINARY(5)", &["X'0102'", "X'FF00FF0000'"], Cell::Bytes),
    ("vb", "VARBINARY(300)", &["REPEAT(X'00FF22', 100)", "X''"], Cell::Bytes),
    ("lb", "LONGBLOB", &["REPEAT(X'0001FEFF', 5000)", "X'00'"], Cell::Bytes),
    ("en", "ENUM('a','ü','c')", &["'ü'", "'a'"], Cell::Number),
    ("se", "SET('a','b','c')", &["'a,c'", "''"], Cell::Number),
    ("js", "JSON", &["'{\"b\": [1, 2.5, null, \"🦀\"], \"a\": {}}'", "'\"text\"'", "'null'"], Cell::Text),
    ("ge", "GEOMETRY", &["ST_GeomFromText('POINT(1 2)')"], Cell::Bytes),
];

/// A table that is compared at the end.
pub struct Table {
    pub name: &'static str,
    pub key: &'static [&'static str],
    /// What else it has.
    pub cells: Vec<(&'static str, Cell)>,
}

fn tables() -> [Table; 4] {
    let kinds = COLUMNS.iter().map(|(name, _, _, cell)| (*name, *cell)).collect();
    [
        Table { name: "kinds", key: &["id"], cells: kinds },
        Table { name: "pairs", key: &["name", "n"], cells: vec![("note", Cell::Text)] },
        Table { name: "bulk", key: &["id"], cells: vec![("round", Cell::Text), ("text", Cell::Text)] },
        Table { name: "blobs", key: &["id"], cells: vec![("value", Cell::Bytes)] },
    ]
}

async fn the_files_are_the_tables_although_owners_are_killed(kind: Kind) {
    let server = test_servers::mysql_url().await;
    let source = test_servers::fresh_database(&server).await;
    make_tables(&source).await;
    let mut cluster = Cluster::start(kind, 3).await;
    for (n, rules) in [&["kinds"][..], &["pairs", "blobs"], &["bulk"]].into_iter().enumerate() {
        let body = changefeed(&cluster, &source, n, rules);
        cluster.create(&cluster.client(n), &body).await.unwrap();
    }
    // All but the great transactions once more, on all three captures.
    let mut split = changefeed(&cluster, &source, 3, &["kinds", "pairs", "blobs"]);
    if let Some(config) = &mut split.replica_config {
        config.insert("placement".to_owned(), json!({"max_processors": 3}));
    }
    cluster.create(&cluster.client(0), &split).await.unwrap();
    cluster.balanced().await;
    cluster.all_move().await;

    let began = now();
    let writers = [
        tokio::spawn(write_kinds(source.clone())),
        tokio::spawn(write_pairs_and_blobs(source.clone())),
        tokio::spawn(write_bulk(source.clone())),
    ];
    for (n, at) in KILLS.into_iter().enumerate() {
        tokio::time::sleep((began + at).since(now())).await;
        // The great transactions' owner first, then that of all types.
        let feed = ["mysql-2", "mysql-0"][n];
        let owner = cluster.look().await.feeds[feed].owner.clone().expect("it has an owner");
        let victim = cluster.server_of(&owner).await;
        let struck = cluster.kill(victim).await;
        let took = cluster.elsewhere(&struck).await;
        // Without a bound: it runs elsewhere when it has got through a transaction of ten thousand rows.
        say(&format!(
            "measured: owner of a binlog changefeed killed -> past a great transaction elsewhere {:.1} s (no bound, {kind})",
            took.as_secs_f64()
        ));
        cluster.start_again(victim).await;
    }
    for writer in writers {
        writer.await.expect("the writer got through");
    }
    let end_ms = wall_ms();
    cluster.caught_up(end_ms).await;

    let overviews = cluster.stop().await;
    let (split, whole): (Vec<_>, Vec<_>) =
        overviews.iter().partition(|of| of.info.name.id.as_str() == split.changefeed_id);
    for (what, feeds) in [("whole", whole), ("on three captures", split)] {
        let (mut replay, mut counts) = (Replay::default(), Counts::default());
        for of in feeds {
            read(&cluster, of.info.uuid, &mut replay, &mut counts);
        }
        say(&format!(
            "measured: binlog to files, {what}: {} lines, {counts:?} ({kind})",
            replay.line_count()
        ));
        assert!(counts.inserts > 0 && counts.updates > 0 && counts.deletes > 0);
        assert!(what != "whole" || counts.greatest >= MANY);
        for table in tables().iter().filter(|table| what == "whole" || table.name != "bulk") {
            compare(&source, table, replay.rows(&schema(&source), table.name)).await;
        }
    }
    test_servers::drop_database(&source).await;
    cluster.store.close().await;
}

/// The database of a URL.
pub fn schema(url: &str) -> String {
    Url::parse(url).unwrap().path().trim_start_matches('/').to_owned()
}

fn changefeed(cluster: &Cluster, source: &str, n: usize, tables: &[&str]) -> ChangefeedConfig {
    let schema = schema(source);
    let rules: Vec<String> = tables.iter().map(|table| format!("{schema}.{table}")).collect();
    let config = json!({"filter": {"rules": rules}});
    ChangefeedConfig {
        changefeed_id: format!("mysql-{n}"),
        upstream_uri: source.to_owned(),
        sink_uri: format!("file://{}?protocol=canal-json", cluster.out().display()),
        replica_config: config.as_object().cloned(),
        ..ChangefeedConfig::default()
    }
}

// ---- writing ----

pub async fn connect(source: &str) -> Conn {
    let mut conn = Conn::new(Opts::from_url(source).unwrap()).await.expect("a connection");
    conn.query_drop("SET time_zone = '+00:00'").await.expect("a time zone");
    conn
}

async fn make_tables(source: &str) {
    let mut conn = connect(source).await;
    let columns: Vec<String> = COLUMNS.iter().map(|(name, sql, ..)| format!("{name} {sql}")).collect();
    for sql in [
        &format!("CREATE TABLE kinds (id INT PRIMARY KEY, {})", columns.join(", ")),
        "CREATE TABLE pairs (name VARCHAR(40) COLLATE utf8mb4_bin, n INT, note TEXT, PRIMARY KEY (name, n))",
        "CREATE TABLE bulk (id INT PRIMARY KEY, round INT, text VARCHAR(100))",
        "CREATE TABLE blobs (id INT PRIMARY KEY, value LONGBLOB)",
    ] {
        conn.query_drop(sql).await.expect(sql);
    }
    conn.disconnect().await.expect("it closes");
}

/// Runs statements as one transaction; one alone commits by itself.
async fn commit(conn: &mut Conn, statements: &[String]) {
    let many = statements.len() > 1;
    if many {
        conn.query_drop("BEGIN").await.expect("BEGIN");
    }
    for sql in statements {
        let brief: String = sql.chars().take(300).collect();
        conn.query_drop(sql.as_str()).await.unwrap_or_else(|error| panic!("{brief}: {error}"));
    }
    if many {
        conn.query_drop("COMMIT").await.expect("COMMIT");
    }
}

async fn write_kinds(source: String) {
    let mut conn = connect(&source).await;
    let mut random = Random::new(1);
    let start = now();
    for id in 0_u64.. {
        if now().since(start) > WRITING {
            break;
        }
        let literals: Vec<&str> = COLUMNS.iter().map(|column| random.literal(column.2)).collect();
        let mut statements = vec![format!("INSERT INTO kinds VALUES ({id}, {})", literals.join(", "))];
        let (column, _, values, _) = COLUMNS[random.below(COLUMNS.len())];
        let other = random.below_u64(id + 1);
        statements.push(format!("UPDATE kinds SET {column} = {} WHERE id = {other}", random.literal(values)));
        if id % 3 == 0 {
            statements.push(format!("DELETE FROM kinds WHERE id = {}", random.below_u64(id + 1)));
        }
        if id % 2 == 0 {
            commit(&mut conn, &statements).await;
        } else {
            for statement in statements {
                commit(&mut conn, &[statement]).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    conn.disconnect().await.expect("it closes");
}

async fn write_pairs_and_blobs(source: String) {
    let mut conn = connect(&source).await;
    let mut random = Random::new(2);
    let start = now();
    for n in 0_u64.. {
        if now().since(start) > WRITING {
            break;
        }
        let name = ["a", "A", "ü", "🦀 crab", "it''s", ""][random.below(6)];
        let statement = match random.below(4) {
            0 | 1 => {
                format!("REPLACE INTO pairs VALUES ('{name}', {}, CONCAT('note ', {n}))", random.below(40))
            }
            // The key changes.
            2 => format!(
                "UPDATE IGNORE pairs SET n = n + 1000 WHERE name = '{name}' AND n = {}",
                random.below(40)
            ),
            _ => format!("DELETE FROM pairs WHERE name = '{name}' AND n % 40 = {}", random.below(40)),
        };
        commit(&mut conn, &[statement]).await;
        if n % 100 == 0 {
            let id = n / 100;
            // 1 MiB of all bytes.
            let value = "REPEAT(UNHEX(SHA2(RAND(), 512)), 16384)";
            let mut statements = vec![format!("INSERT INTO blobs VALUES ({id}, {value})")];
            if id % 2 == 1 {
                statements.push(format!("UPDATE blobs SET value = {value} WHERE id = {}", id / 2));
            }
            if id % 3 == 2 {
                statements.push(format!("DELETE FROM blobs WHERE id = {}", id / 3));
            }
            commit(&mut conn, &statements).await;
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    conn.disconnect().await.expect("it closes");
}

async fn write_bulk(source: String) {
    let mut conn = connect(&source).await;
    let start = now();
    for round in 0_u64.. {
        if now().since(start) > WRITING {
            break;
        }
        let from = round / 3 * MANY;
        let statements = match round % 3 {
            0 => (0..MANY / 1000)
                .map(|part| {
                    let rows: Vec<String> = (0..1000)
                        .map(|n| format!("({}, {round}, 'row {n} ü')", from + part * 1000 + n))
                        .collect();
                    format!("INSERT INTO bulk VALUES {}", rows.join(","))
                })
                .collect(),
            1 => vec![format!("UPDATE bulk SET round = {round}, text = REVERSE(text) WHERE id >= {from}")],
            _ => vec![format!("DELETE FROM bulk WHERE id >= {from} AND id % 3 > 0")],
        };
        commit(&mut conn, &statements).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    conn.disconnect().await.expect("it closes");
}

// ---- reading ----

/// What the lines were.
#[derive(Debug, Default)]
struct Counts {
    inserts: u64,
    updates: u64,
    deletes: u64,
    /// The rows of the greatest transaction.
    greatest: u64,
}

/// Replays all files of one changefeed; of one author no commit comes before an earlier one.
fn read(cluster: &Cluster, uuid: ChangefeedUuid, replay: &mut Replay, counts: &mut Counts) {
    let mut last: Option<(Author, Ts)> = None;
    let mut rows = 0;
    for line in reader::lines(&reader::changefeed_dir(&cluster.out(), uuid)).expect("files") {
        let line = line.expect("a line");
        replay.apply(&line).expect("it can be replayed");
        let message = line.message().expect("canal-json");
        let ts = message.commit_ts();
        if let Some((author, before)) = &last {
            assert!(*author != line.author || ts >= *before, "{uuid}: {ts} after {before} of {author}");
        }
        let now = Some((line.author, ts));
        rows = if now == last { rows + 1 } else { 1 };
        last = now;
        counts.greatest = counts.greatest.max(rows);
        match message.kind.as_str() {
            "INSERT" => counts.inserts += 1,
            "UPDATE" => counts.updates += 1,
            "DELETE" => counts.deletes += 1,
            other => panic!("{other}: {}", message.sql),
        }
    }
}

/// Every row and cell of the source's table against the replayed ones.
pub async fn compare(source: &str, table: &Table, mut rows: BTreeMap<&Key, &ReplayedRow>) {
    let keys = table.key.iter().map(|name| (*name, Cell::Text));
    let columns: Vec<(&str, Cell)> = keys.chain(table.cells.iter().copied()).collect();
    let list: Vec<String> = columns
        .iter()
        .map(|(name, cell)| if *cell == Cell::Number { format!("{name} + 0") } else { (*name).to_owned() })
        .collect();
    let mut conn = connect(source).await;
    let shown: Vec<mysql_async::Row> =
        conn.query(format!("SELECT {} FROM {}", list.join(", "), table.name)).await.expect("the rows");
    conn.disconnect().await.expect("it closes");
    let (count, mut wrong) = (shown.len(), Vec::new());
    for row in shown {
        let cells: Vec<Option<Vec<u8>>> = row.unwrap().into_iter().map(bytes).collect();
        let key: Key = cells[..table.key.len()].iter().map(|cell| text(cell.as_deref())).collect();
        let Some(replayed) = rows.remove(&key) else {
            wrong.push(format!("{key:?} is missing"));
            continue;
        };
        for ((name, how), cell) in columns.iter().zip(&cells) {
            if !same(*how, replayed[*name].as_deref(), cell.as_deref()) {
                let brief = |text: String| text.chars().take(120).collect::<String>();
                wrong.push(format!(
                    "{key:?}, {name}: {} is not {}",
                    brief(format!("{:?}", replayed[*name])),
                    brief(text(cell.as_deref()))
                ));
            }
        }
    }
    wrong.extend(rows.keys().map(|key| format!("{key:?} is too much")));
    wrong.truncate(20);
    assert!(wrong.is_empty(), "{}: {}", table.name, wrong.join("\n"));
    assert!(count > 0, "{} is empty", table.name);
}

/// A cell for people's eyes; keys are text.
fn text(cell: Option<&[u8]>) -> String {
    cell.map_or("NULL".into(), String::from_utf8_lossy).into_owned()
}

fn bytes(value: mysql_async::Value) -> Option<Vec<u8>> {
    match value {
        mysql_async::Value::NULL => None,
        mysql_async::Value::Bytes(bytes) => Some(bytes),
        other => panic!("the text protocol has no {other:?}"),
    }
}

fn same(how: Cell, replayed: Option<&str>, shown: Option<&[u8]>) -> bool {
    let (Some(replayed), Some(shown)) = (replayed, shown) else {
        return replayed.is_none() && shown.is_none();
    };
    match how {
        Cell::Text | Cell::Number => replayed.as_bytes() == shown,
        Cell::Bytes => bytes_from_text(replayed).as_deref() == Some(shown),
        Cell::Float => {
            let shown = std::str::from_utf8(shown).unwrap_or_default();
            // A FLOAT is shown with six digits; the values here have no more.
            match (replayed.parse::<f64>(), shown.parse::<f64>()) {
                (Ok(replayed), Ok(shown)) => replayed.to_bits() == shown.to_bits(),
                _ => false,
            }
        }
    }
}
