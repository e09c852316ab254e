//! The canal-json format, in `TiCDC`'s shape: one JSON object a line.
//!
//! ```json
//! {"id":0,"database":"shop","table":"item","pkNames":["id"],"isDdl":false,"type":"UPDATE","es":1700000000000,
//!  "ts":1700000000123,"sql":"","sqlType":{"id":4,"name":12},"mysqlType":{"id":"int","name":"varchar"},
//!  "data":[{"id":"1","name":"new"}],"old":[{"id":"1","name":"old"}],"_tidb":{"commitTs":445644800000000000}}
//! ```
//!
//! * `type` of a row is `INSERT`, `UPDATE` or `DELETE`; a DELETE has its row in `data`. Of a DDL (`isDdl`) it is
//!   `CREATE`, `ALTER`, `ERASE` (drop), `TRUNCATE`, `RENAME`, `CINDEX`, `DINDEX` or `QUERY`, with the statement in
//!   `sql` and everything about columns `null`.
//! * Every value is a string, SQL's NULL is `null`. Binary values (binary, varbinary, blobs, geometry, vectors)
//!   are read as ISO-8859-1: each byte is the character of the same number, so nothing is lost
//!   ([`bytes_from_text`] gives them back). `ENUM` is its index, `SET` and `BIT` are the number, `TIMESTAMP` is in
//!   UTC, floats are written without exponent and shortest.
//! * `es` is the commit time in milliseconds, `ts` when the line was made. A DELETE and an INSERT have `old: null`.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::Arc;

use metadata_api::model::Ts;
use serde::{Deserialize, Serialize};

use crate::event::{Change, Column, ColumnKind, DdlChange, Row, RowChange, RowOp, Table, Value};

/// One line, read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// Always 0.
    pub id: i64,
    /// The schema.
    pub database: String,
    /// The table; empty for a DDL without one.
    pub table: String,
    /// The primary key's columns; `None` if there are none.
    pub pk_names: Option<Vec<String>>,
    /// Whether it is a DDL.
    pub is_ddl: bool,
    /// `INSERT`, `UPDATE`, `DELETE`, or a DDL's kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// The commit time, in milliseconds.
    pub es: u64,
    /// When the line was made, in milliseconds.
    pub ts: u64,
    /// A DDL's statement.
    pub sql: String,
    /// The columns' JDBC types.
    pub sql_type: Option<BTreeMap<String, i32>>,
    /// The columns' `MySQL` types.
    pub mysql_type: Option<BTreeMap<String, String>>,
    /// The row: after an INSERT or UPDATE, before a DELETE.
    pub data: Option<Vec<BTreeMap<String, Option<String>>>>,
    /// The row before an UPDATE.
    pub old: Option<Vec<BTreeMap<String, Option<String>>>>,
    /// `TiDB`'s extension.
    #[serde(rename = "_tidb")]
    pub tidb: TidbExtension,
}

impl Message {
    /// When it was committed.
    pub fn commit_ts(&self) -> Ts {
        Ts(self.tidb.commit_ts)
    }
}

/// `TiDB`'s extension of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TidbExtension {
    /// When it was committed.
    pub commit_ts: u64,
}

/// The text that stands for `bytes`.
pub fn text_from_bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// The bytes that `text` stands for; `None` if it does not stand for bytes.
pub fn bytes_from_text(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

/// Writes changes as lines. Keeps what a table's lines have in common.
#[derive(Debug, Default)]
pub struct Encoder {
    tables: HashMap<usize, (Arc<Table>, TableParts)>,
}

/// What is the same in all lines of a table.
#[derive(Debug)]
struct TableParts {
    /// Up to the value of `type`.
    head: Vec<u8>,
    /// The columns' names as JSON keys, colon included.
    keys: Vec<Vec<u8>>,
    /// `,"mysqlType":{..},"data":`
    types: Vec<u8>,
}

/// More tables than this are not kept.
const KEPT_TABLES: usize = 4096;

impl Encoder {
    /// Appends one line, with its newline. `now_ms` is when it is made.
    pub fn encode(&mut self, change: &Change, now_ms: u64, out: &mut Vec<u8>) {
        match change {
            Change::Row(row) => self.encode_row(row, now_ms, out),
            Change::Ddl(ddl) => encode_ddl(ddl, now_ms, out),
        }
    }

    fn encode_row(&mut self, change: &RowChange, now_ms: u64, out: &mut Vec<u8>) {
        if self.tables.len() > KEPT_TABLES {
            self.tables.clear();
        }
        // The map keeps the `Arc`, so that no other table can come to lie at the same address.
        let address = Arc::as_ptr(&change.table).addr();
        let (table, parts) = self
            .tables
            .entry(address)
            .or_insert_with(|| (Arc::clone(&change.table), TableParts::new(&change.table)));
        let (kind, data, old) = match &change.op {
            RowOp::Insert { new } => ("INSERT", new, None),
            RowOp::Update { old, new } => ("UPDATE", new, Some(old)),
            RowOp::Delete { old } => ("DELETE", old, None),
        };
        out.extend_from_slice(&parts.head);
        out.extend_from_slice(kind.as_bytes());
        let es = change.commit_ts.physical_ms();
        text(out, format_args!("\",\"es\":{es},\"ts\":{now_ms},\"sql\":\"\",\"sqlType\":{{"));
        for ((column, key), value) in table.columns.iter().zip(&parts.keys).zip(data) {
            out.extend_from_slice(key);
            text(out, format_args!("{},", jdbc_type(column, value)));
        }
        end_list(out, b'}');
        out.extend_from_slice(&parts.types);
        parts.row(data, out);
        out.extend_from_slice(b",\"old\":");
        match old {
            Some(old) => parts.row(old, out),
            None => out.extend_from_slice(b"null"),
        }
        text(out, format_args!(",\"_tidb\":{{\"commitTs\":{}}}}}\n", change.commit_ts));
    }
}

impl TableParts {
    fn new(table: &Table) -> Self {
        let mut head = b"{\"id\":0,\"database\":".to_vec();
        string(&mut head, &table.schema);
        head.extend_from_slice(b",\"table\":");
        string(&mut head, &table.name);
        head.extend_from_slice(b",\"pkNames\":");
        if table.columns.iter().any(|column| column.primary_key) {
            head.push(b'[');
            for column in table.columns.iter().filter(|column| column.primary_key) {
                string(&mut head, &column.name);
                head.push(b',');
            }
            end_list(&mut head, b']');
        } else {
            head.extend_from_slice(b"null");
        }
        head.extend_from_slice(b",\"isDdl\":false,\"type\":\"");

        let keys: Vec<Vec<u8>> = table
            .columns
            .iter()
            .map(|column| {
                let mut key = Vec::new();
                string(&mut key, &column.name);
                key.push(b':');
                key
            })
            .collect();

        let mut types = b",\"mysqlType\":{".to_vec();
        for (column, key) in table.columns.iter().zip(&keys) {
            types.extend_from_slice(key);
            let unsigned = if column.unsigned { " unsigned" } else { "" };
            text(&mut types, format_args!("\"{}{unsigned}\",", column.kind.sql_name()));
        }
        end_list(&mut types, b'}');
        types.extend_from_slice(b",\"data\":");
        Self { head, keys, types }
    }

    fn row(&self, row: &Row, out: &mut Vec<u8>) {
        out.extend_from_slice(b"[{");
        for (key, value) in self.keys.iter().zip(row) {
            out.extend_from_slice(key);
            cell(out, value);
            out.push(b',');
        }
        end_list(out, b'}');
        out.push(b']');
    }
}

fn encode_ddl(ddl: &DdlChange, now_ms: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"id\":0,\"database\":");
    string(out, &ddl.schema);
    out.extend_from_slice(b",\"table\":");
    string(out, ddl.table.as_deref().unwrap_or_default());
    let (kind, es) = (ddl_type(&ddl.query), ddl.commit_ts.physical_ms());
    text(
        out,
        format_args!(
            ",\"pkNames\":null,\"isDdl\":true,\"type\":\"{kind}\",\"es\":{es},\"ts\":{now_ms},\"sql\":"
        ),
    );
    string(out, &ddl.query);
    text(
        out,
        format_args!(
            ",\"sqlType\":null,\"mysqlType\":null,\"data\":null,\"old\":null,\"_tidb\":{{\"commitTs\":{}}}}}\n",
            ddl.commit_ts
        ),
    );
}

/// Canal's name for a DDL, from its first words.
fn ddl_type(query: &str) -> &'static str {
    let words = crate::ddl::words(query, 3);
    let word = |n: usize| words.get(n).map_or("", String::as_str);
    let index = ["INDEX", "UNIQUE", "FULLTEXT", "SPATIAL"].contains(&word(1));
    match (word(0), word(1)) {
        ("CREATE", _) if index => "CINDEX",
        ("DROP", _) if index => "DINDEX",
        ("CREATE", "TABLE" | "TEMPORARY") => "CREATE",
        ("DROP", "TABLE" | "TEMPORARY") => "ERASE",
        ("ALTER", "TABLE") => "ALTER",
        ("TRUNCATE", _) => "TRUNCATE",
        ("RENAME", "TABLE") => "RENAME",
        _ => "QUERY",
    }
}

/// Appends formatted text.
fn text(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    // Writing to a Vec never fails.
    let _ = out.write_fmt(arguments);
}

/// Replaces the comma after a list's last element by its end.
fn end_list(out: &mut Vec<u8>, end: u8) {
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(end);
}

/// Appends a JSON string.
fn string(out: &mut Vec<u8>, text: &str) {
    // Writing a string to a Vec never fails.
    let _ = serde_json::to_writer(out, text);
}

/// Appends a value as a JSON string, or null.
fn cell(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Int(number) => text(out, format_args!("\"{number}\"")),
        Value::UInt(number) => text(out, format_args!("\"{number}\"")),
        Value::Float(number) => text(out, format_args!("\"{number}\"")),
        Value::Double(number) => text(out, format_args!("\"{number}\"")),
        Value::Text(value) => string(out, value),
        Value::Bytes(bytes) => {
            out.push(b'"');
            for byte in bytes {
                match byte {
                    b'"' => out.extend_from_slice(b"\\\""),
                    b'\\' => out.extend_from_slice(b"\\\\"),
                    0..0x20 => text(out, format_args!("\\u{byte:04x}")),
                    0x20..0x80 => out.push(*byte),
                    // U+0080 to U+00FF in UTF-8.
                    0x80.. => out.extend_from_slice(&[0xC0 | byte >> 6, 0x80 | byte & 0x3F]),
                }
            }
            out.push(b'"');
        }
    }
}

/// `java.sql.Types`, as `TiCDC` chooses it: an unsigned integer too great for its signed type takes the next.
fn jdbc_type(column: &Column, value: &Value) -> i32 {
    const TINYINT: i32 = -6;
    const SMALLINT: i32 = 5;
    const INTEGER: i32 = 4;
    const BIGINT: i32 = -5;
    const DECIMAL: i32 = 3;
    let exceeds = |limit: u64| matches!(value, Value::UInt(number) if *number > limit);
    match column.kind {
        ColumnKind::TinyInt if exceeds(0x7F) => SMALLINT,
        ColumnKind::TinyInt => TINYINT,
        ColumnKind::SmallInt if exceeds(0x7FFF) => INTEGER,
        ColumnKind::SmallInt => SMALLINT,
        ColumnKind::Int if exceeds(0x7FFF_FFFF) => BIGINT,
        ColumnKind::MediumInt | ColumnKind::Int | ColumnKind::Enum => INTEGER,
        ColumnKind::BigInt if exceeds(0x7FFF_FFFF_FFFF_FFFF) => DECIMAL,
        ColumnKind::BigInt => BIGINT,
        ColumnKind::Float => 7,
        ColumnKind::Double => 8,
        ColumnKind::Decimal => DECIMAL,
        ColumnKind::Bit | ColumnKind::Set => -7,
        ColumnKind::Date => 91,
        ColumnKind::Time => 92,
        ColumnKind::DateTime | ColumnKind::Timestamp => 93,
        ColumnKind::Char => 1,
        ColumnKind::VarChar | ColumnKind::Json | ColumnKind::Year => 12,
        ColumnKind::TinyText | ColumnKind::Text | ColumnKind::MediumText | ColumnKind::LongText => 2005,
        ColumnKind::Binary
        | ColumnKind::VarBinary
        | ColumnKind::TinyBlob
        | ColumnKind::Blob
        | ColumnKind::MediumBlob
        | ColumnKind::LongBlob
        | ColumnKind::Geometry
        | ColumnKind::Vector => 2004,
    }
}

#[cfg(test)]
mod tests;
