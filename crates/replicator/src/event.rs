//! What flows from a source to a sink.
//!
//! A source gives [`Change`]s in commit order, cut by [`Resolved`] marks: a mark says that everything at or
//! before its `ts` has been given, and where the source resumes if nothing after it became durable. A
//! transaction is never split by a mark, though it may come in several pieces.

use std::sync::Arc;

use metadata_api::model::{SourcePosition, Ts};

/// A column's declared type, without length, sign and character set.
#[expect(missing_docs, reason = "each variant is the SQL type of the same name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnKind {
    TinyInt,
    SmallInt,
    MediumInt,
    Int,
    BigInt,
    Float,
    Double,
    Decimal,
    Bit,
    Year,
    Date,
    Time,
    DateTime,
    Timestamp,
    Char,
    VarChar,
    Binary,
    VarBinary,
    TinyText,
    Text,
    MediumText,
    LongText,
    TinyBlob,
    Blob,
    MediumBlob,
    LongBlob,
    Enum,
    Set,
    Json,
    Geometry,
    Vector,
}

impl ColumnKind {
    /// The SQL name, in lower case.
    pub const fn sql_name(self) -> &'static str {
        match self {
            Self::TinyInt => "tinyint",
            Self::SmallInt => "smallint",
            Self::MediumInt => "mediumint",
            Self::Int => "int",
            Self::BigInt => "bigint",
            Self::Float => "float",
            Self::Double => "double",
            Self::Decimal => "decimal",
            Self::Bit => "bit",
            Self::Year => "year",
            Self::Date => "date",
            Self::Time => "time",
            Self::DateTime => "datetime",
            Self::Timestamp => "timestamp",
            Self::Char => "char",
            Self::VarChar => "varchar",
            Self::Binary => "binary",
            Self::VarBinary => "varbinary",
            Self::TinyText => "tinytext",
            Self::Text => "text",
            Self::MediumText => "mediumtext",
            Self::LongText => "longtext",
            Self::TinyBlob => "tinyblob",
            Self::Blob => "blob",
            Self::MediumBlob => "mediumblob",
            Self::LongBlob => "longblob",
            Self::Enum => "enum",
            Self::Set => "set",
            Self::Json => "json",
            Self::Geometry => "geometry",
            Self::Vector => "vector",
        }
    }
}

/// One column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ColumnKind,
    /// Whether a number has no sign.
    pub unsigned: bool,
    /// Whether it is part of the primary key.
    pub primary_key: bool,
}

/// A table as it was when a row of it changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// The schema (database).
    pub schema: String,
    /// The table.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<Column>,
}

/// One cell.
///
/// | SQL type | variant |
/// |---|---|
/// | signed integers | `Int` |
/// | unsigned integers, `BIT`, `ENUM` (index from 1; 0 = the error value ""), `SET` (bit mask) | `UInt` |
/// | `YEAR` | `Int` |
/// | `FLOAT`, `DOUBLE` | `Float`, `Double` |
/// | `DECIMAL`, dates and times (`TIMESTAMP` in UTC), character types (as UTF-8), `JSON` | `Text` |
/// | binary types, geometry, vectors | `Bytes` |
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// SQL's NULL.
    Null,
    /// A number with a sign.
    Int(i64),
    /// A number without a sign.
    UInt(u64),
    /// A single-precision number.
    Float(f32),
    /// A double-precision number.
    Double(f64),
    /// Text.
    Text(String),
    /// Bytes without a character set.
    Bytes(Vec<u8>),
}

impl Value {
    /// About how many bytes it holds in memory.
    pub fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// The cells of one row, in the order of [`Table::columns`].
pub type Row = Vec<Value>;

/// What happened to a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowOp {
    /// It is new.
    Insert {
        /// What it is.
        new: Row,
    },
    /// It was changed.
    Update {
        /// What it was.
        old: Row,
        /// What it is.
        new: Row,
    },
    /// It is gone.
    Delete {
        /// What it was.
        old: Row,
    },
}

/// One row's change.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChange {
    /// Of which table.
    pub table: Arc<Table>,
    /// When its transaction committed. The same whoever replays it, from whatever position.
    pub commit_ts: Ts,
    /// What happened.
    pub op: RowOp,
}

/// A change of a schema.
#[derive(Clone, Debug, PartialEq)]
pub struct DdlChange {
    /// The schema that it concerns.
    pub schema: String,
    /// The table, when it concerns one.
    pub table: Option<String>,
    /// The statement, as it was given.
    pub query: String,
    /// When it was committed.
    pub commit_ts: Ts,
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Of a row.
    Row(RowChange),
    /// Of a schema.
    Ddl(DdlChange),
}

impl Change {
    /// When it was committed.
    pub fn commit_ts(&self) -> Ts {
        match self {
            Self::Row(row) => row.commit_ts,
            Self::Ddl(ddl) => ddl.commit_ts,
        }
    }

    /// About how many bytes it holds in memory.
    pub fn size(&self) -> usize {
        let cells = |row: &Row| row.iter().map(|value| value.size() + size_of::<Value>()).sum::<usize>();
        size_of::<Self>()
            + match self {
                Self::Row(change) => match &change.op {
                    RowOp::Insert { new } => cells(new),
                    RowOp::Update { old, new } => cells(old) + cells(new),
                    RowOp::Delete { old } => cells(old),
                },
                Self::Ddl(ddl) => ddl.query.len() + ddl.schema.len(),
            }
    }
}

/// Everything at or before `ts` has been given.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// Up to where. Never goes back; every later change is after it.
    pub ts: Ts,
    /// Where the source resumes after it; `None` when `ts` says it all.
    pub position: Option<SourcePosition>,
}

/// What a source gives.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// Changes, in commit order; at most a few thousand, or a few MiB, at a time.
    Changes(Vec<Change>),
    /// A mark between transactions.
    Resolved(Resolved),
}
