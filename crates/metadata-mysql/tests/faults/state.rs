//! Everything that is in a cluster's tables: read, put back, compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Column as _, Row as _};

const TABLES: [&str; 10] = [
    "cluster",
    "fence",
    "election",
    "capture",
    "upstream",
    "changefeed_info",
    "changefeed_state",
    "schedule",
    "processor",
    "progress",
];

/// Times, which differ from run to run.
const TIMES: [&str; 4] = ["update_at", "heartbeat_at", "created_at", "started_at"];

/// A number of so many digits is a revision, or what was made of one (an epoch, a changefeed's uuid).
const REVISION_DIGITS: usize = 16;

type Row = Vec<(String, Option<String>)>;

/// The rows of every table, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State(BTreeMap<&'static str, Vec<Row>>);

impl State {
    /// All tables as of one moment.
    pub(super) async fn read(db: &mut MySqlConnection) -> Self {
        let mut sql = String::from("START TRANSACTION WITH CONSISTENT SNAPSHOT;");
        for table in TABLES {
            write!(sql, "SELECT '{table}' AS of_table, t.* FROM {table} t;").expect("a string");
        }
        sql.push_str("COMMIT");
        let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(db).await.expect("the tables");
        let mut state = Self::default();
        for row in rows {
            let of: String = row.try_get_unchecked(0).expect("a table's name");
            let table = TABLES.into_iter().find(|table| *table == of).expect("one of the tables");
            let columns = row.columns().iter().enumerate().skip(1);
            let cells = columns.map(|(n, column)| {
                let cell: Option<Vec<u8>> = row.try_get_unchecked(n).expect("a cell");
                let cell = cell.map(|bytes| String::from_utf8(bytes).expect("text"));
                (column.name().to_owned(), cell)
            });
            state.0.entry(table).or_default().push(cells.collect());
        }
        state
    }

    /// Makes the tables what they were.
    pub(super) async fn put_back(&self, db: &mut MySqlConnection) {
        let mut sql = String::from("BEGIN;");
        for table in TABLES {
            write!(sql, "DELETE FROM {table};").expect("a string");
            for row in self.0.get(table).into_iter().flatten() {
                let (names, values): (Vec<_>, Vec<_>) =
                    row.iter().map(|(name, cell)| (name.as_str(), literal(cell.as_deref()))).unzip();
                write!(sql, "INSERT INTO {table} ({}) VALUES ({});", names.join(","), values.join(","))
                    .expect("a string");
            }
        }
        sql.push_str("COMMIT");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await.expect("the tables take it");
    }

    /// What is different in `other`, times aside; revisions that `before` does not have are all alike. Empty when nothing is.
    pub(super) fn difference(&self, other: &Self, before: &Self) -> String {
        let known = before.revisions();
        let (mine, others) = (self.lines(&known), other.lines(&known));
        let mut text = String::new();
        for line in mine.iter().filter(|line| !others.contains(line)) {
            let _ = writeln!(text, "    - {line}");
        }
        for line in others.iter().filter(|line| !mine.contains(line)) {
            let _ = writeln!(text, "    + {line}");
        }
        text
    }

    fn lines(&self, known: &BTreeSet<String>) -> Vec<String> {
        let mut lines = Vec::new();
        for (table, rows) in &self.0 {
            for row in rows {
                let cells = row.iter().filter(|(name, _)| !TIMES.contains(&name.as_str()));
                let cells = cells.map(|(name, cell)| match cell {
                    Some(_) if name == "removed_at" => format!("{name}=set"),
                    Some(cell) => format!("{name}={}", without_new(cell, known)),
                    None => format!("{name}=NULL"),
                });
                lines.push(format!("{table}: {}", cells.collect::<Vec<_>>().join(" ")));
            }
        }
        lines.sort();
        lines
    }

    fn revisions(&self) -> BTreeSet<String> {
        let cells = self.0.values().flatten().flatten().filter_map(|(_, cell)| cell.as_deref());
        cells.flat_map(numbers).filter(|number| number.len() >= REVISION_DIGITS).map(str::to_owned).collect()
    }
}

fn numbers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_digit())
}

fn without_new(text: &str, known: &BTreeSet<String>) -> String {
    let mut text = text.to_owned();
    let long = |number: &&str| number.len() >= REVISION_DIGITS && !known.contains(*number);
    let new: BTreeSet<String> = numbers(&text).filter(long).map(str::to_owned).collect();
    for number in new {
        text = text.replace(&number, "<new>");
    }
    text
}

fn literal(cell: Option<&str>) -> String {
    let Some(cell) = cell else { return "NULL".to_owned() };
    // TiDB makes no time of a hexadecimal literal.
    if cell.chars().all(|c| c.is_ascii_digit() || " .:-".contains(c)) {
        return format!("'{cell}'");
    }
    let mut text = String::from("_utf8mb4 x'");
    for byte in cell.bytes() {
        write!(text, "{byte:02x}").expect("a string");
    }
    text + "'"
}
