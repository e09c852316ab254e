//! Tables as the binlog describes them: a table map event before the rows of each statement, with names, signs,
//! character sets and the primary key in its optional part (`binlog_row_metadata=FULL`).

use std::collections::HashMap;
use std::sync::Arc;

use mysql_async::binlog::events::{OptionalMetadataField, TableMapEvent};
use mysql_async::consts::ColumnType;

use super::bytes::{Malformed, Read};
use super::cells::CellType;
use super::charset::{Charset, Collations};
use crate::event::{Column, ColumnKind, Table};

/// More descriptions than this are not kept. A transaction may have more table numbers.
const KEPT: usize = 4096;
/// `table_id` and flags, which differ between events about the same table.
const POST_HEADER: usize = 8;

/// One table as it was.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) table: Arc<Table>,
    /// How each stored column lies in a row.
    pub(super) cells: Vec<CellType>,
}

/// What is known of a table number.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Its rows are wanted.
    Wanted(Arc<Layout>),
    /// Its rows are not.
    Unwanted,
}

/// The tables seen so far. The same description gives the same [`Table`].
#[derive(Debug, Default)]
pub(super) struct Tables {
    by_content: HashMap<Box<[u8]>, Known>,
    by_number: HashMap<u64, Known>,
}

impl Tables {
    /// Takes note of a table map event. `wanted` is asked once for each description.
    pub(super) fn see(
        &mut self,
        event: &TableMapEvent<'_>,
        raw: &[u8],
        collations: &Collations,
        wanted: impl FnOnce(&str, &str) -> bool,
    ) -> Read<()> {
        let content = raw.get(POST_HEADER..).ok_or_else(|| Malformed::new("a table map is cut off"))?;
        let known = if let Some(known) = self.by_content.get(content) {
            known.clone()
        } else {
            let known = if wanted(&event.database_name(), &event.table_name()) {
                Known::Wanted(Arc::new(layout(event, collations)?))
            } else {
                Known::Unwanted
            };
            if self.by_content.len() >= KEPT {
                self.by_content.clear();
            }
            self.by_content.insert(content.into(), known.clone());
            known
        };
        self.by_number.insert(event.table_id(), known);
        Ok(())
    }

    /// No description outlives its transaction; within one, each number may still be used.
    pub(super) fn transaction_begins(&mut self) {
        if self.by_number.len() >= KEPT {
            self.by_number.clear();
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<&Known> {
        self.by_number.get(&number)
    }
}

/// The optional part, one list for each kind of column.
#[derive(Default)]
struct Optional {
    unsigned: Vec<bool>,
    charsets: Charsets,
    names: Vec<String>,
    primary_key: Vec<u64>,
}

/// Collations: one each, or a default and exceptions by place.
#[derive(Default)]
struct Charsets {
    each: Option<Vec<u16>>,
    default: u16,
    exceptions: HashMap<u64, u16>,
}

impl Charsets {
    fn get(&self, place: usize) -> Read<u16> {
        match &self.each {
            Some(each) => {
                each.get(place).copied().ok_or_else(|| Malformed::new("a column has no character set"))
            }
            None => Ok(self.exceptions.get(&(place as u64)).copied().unwrap_or(self.default)),
        }
    }
}

fn layout(event: &TableMapEvent<'_>, collations: &Collations) -> Read<Layout> {
    let (schema, name) = (event.database_name().into_owned(), event.table_name().into_owned());
    let fail =
        |error: &dyn std::fmt::Display| Malformed(format!("the description of {schema}.{name}: {error}"));
    let optional = optional(event).map_err(|error| fail(&error))?;
    let count = usize::try_from(event.columns_count()).unwrap_or(usize::MAX);
    if optional.names.len() != count {
        return Err(fail(&"it has no column names: SET GLOBAL binlog_row_metadata = FULL"));
    }
    let (mut columns, mut cells) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let (mut numbers, mut texts) = (0, 0);
    for (place, name) in optional.names.into_iter().enumerate() {
        let kind = event.get_column_type(place).map_err(|error| fail(&error))?;
        let kind = kind.ok_or_else(|| fail(&"a column has no type"))?;
        let meta = event.get_column_metadata(place).unwrap_or_default();
        let mut unsigned = false;
        if kind.is_numeric_type() {
            unsigned = optional.unsigned.get(numbers).copied().unwrap_or_default();
            numbers += 1;
        }
        let charset = if kind.is_character_type() {
            texts += 1;
            collations.charset(u64::from(optional.charsets.get(texts - 1)?))
        } else {
            Charset::Binary
        };
        let (kind, cell) = column(kind, meta, unsigned, charset).map_err(|error| fail(&error))?;
        // A YEAR is kept as a number without sign; nobody calls it unsigned.
        let unsigned = unsigned && kind != ColumnKind::Year;
        let primary_key = optional.primary_key.contains(&(place as u64));
        columns.push(Column { name, kind, unsigned, primary_key });
        cells.push(cell);
    }
    Ok(Layout { table: Arc::new(Table { schema, name, columns }), cells })
}

fn optional(event: &TableMapEvent<'_>) -> Read<Optional> {
    let fail = |error: std::io::Error| Malformed(error.to_string());
    let mut found = Optional::default();
    for field in event.iter_optional_meta() {
        match field.map_err(fail)? {
            OptionalMetadataField::Signedness(bits) => found.unsigned = bits.iter().by_vals().collect(),
            OptionalMetadataField::DefaultCharset(charset) => {
                found.charsets.default = charset.default_charset();
                for exception in charset.iter_non_default() {
                    let exception = exception.map_err(fail)?;
                    found.charsets.exceptions.insert(exception.column_index(), exception.charset());
                }
            }
            OptionalMetadataField::ColumnCharset(charsets) => {
                found.charsets.each = Some(charsets.iter_charsets().collect::<Result<_, _>>().map_err(fail)?);
            }
            OptionalMetadataField::ColumnName(names) => {
                let names: Result<Vec<String>, _> =
                    names.iter_names().map(|name| name.map(|name| name.name().into_owned())).collect();
                found.names = names.map_err(fail)?;
            }
            OptionalMetadataField::SimplePrimaryKey(key) => {
                found.primary_key = key.iter_indexes().collect::<Result<_, _>>().map_err(fail)?;
            }
            OptionalMetadataField::PrimaryKeyWithPrefix(key) => {
                let columns: Result<Vec<u64>, _> =
                    key.iter_keys().map(|column| column.map(|column| column.column_index())).collect();
                found.primary_key = columns.map_err(fail)?;
            }
            _ => {}
        }
    }
    Ok(found)
}

/// What a column is, and how its cells are stored. `meta` is the fixed part of its description.
fn column(kind: ColumnType, meta: &[u8], unsigned: bool, charset: Charset) -> Read<(ColumnKind, CellType)> {
    let byte =
        |at: usize| meta.get(at).map(|byte| usize::from(*byte)).ok_or_else(|| Malformed::new("too short"));
    let int = |bytes| CellType::Int { bytes, unsigned };
    let text = charset != Charset::Binary;
    let cell = |length_bytes, size, charset| {
        if charset == Charset::Binary {
            CellType::Bytes { length_bytes, size }
        } else {
            CellType::Text { length_bytes, charset }
        }
    };
    let length_bytes = |longest| if longest < 256 { 1 } else { 2 };
    let decimals = || match byte(0)? {
        decimals @ 0..=6 => Ok(decimals),
        other => Err(Malformed(format!("a time with {other} decimals"))),
    };
    Ok(match kind {
        ColumnType::MYSQL_TYPE_TINY => (ColumnKind::TinyInt, int(1)),
        ColumnType::MYSQL_TYPE_SHORT => (ColumnKind::SmallInt, int(2)),
        ColumnType::MYSQL_TYPE_INT24 => (ColumnKind::MediumInt, int(3)),
        ColumnType::MYSQL_TYPE_LONG => (ColumnKind::Int, int(4)),
        ColumnType::MYSQL_TYPE_LONGLONG => (ColumnKind::BigInt, int(8)),
        ColumnType::MYSQL_TYPE_FLOAT => (ColumnKind::Float, CellType::Float),
        ColumnType::MYSQL_TYPE_DOUBLE => (ColumnKind::Double, CellType::Double),
        ColumnType::MYSQL_TYPE_NEWDECIMAL => {
            (ColumnKind::Decimal, CellType::Decimal { precision: byte(0)?, scale: byte(1)? })
        }
        ColumnType::MYSQL_TYPE_BIT => {
            (ColumnKind::Bit, CellType::Bit { bytes: byte(1)? + usize::from(byte(0)? > 0) })
        }
        ColumnType::MYSQL_TYPE_YEAR => (ColumnKind::Year, CellType::Year),
        ColumnType::MYSQL_TYPE_DATE | ColumnType::MYSQL_TYPE_NEWDATE => (ColumnKind::Date, CellType::Date),
        ColumnType::MYSQL_TYPE_TIME2 => (ColumnKind::Time, CellType::Time { decimals: decimals()? }),
        ColumnType::MYSQL_TYPE_DATETIME2 => {
            (ColumnKind::DateTime, CellType::DateTime { decimals: decimals()? })
        }
        ColumnType::MYSQL_TYPE_TIMESTAMP2 => {
            (ColumnKind::Timestamp, CellType::Timestamp { decimals: decimals()? })
        }
        ColumnType::MYSQL_TYPE_STRING => {
            // The two highest bits of the length are hidden in the type, turned around.
            let size = byte(1)? | ((byte(0)? & 0x30) ^ 0x30) << 4;
            let kind = if text { ColumnKind::Char } else { ColumnKind::Binary };
            (kind, cell(length_bytes(size), size, charset))
        }
        ColumnType::MYSQL_TYPE_VARCHAR | ColumnType::MYSQL_TYPE_VAR_STRING => {
            let longest = byte(0)? | byte(1)? << 8;
            let kind = if text { ColumnKind::VarChar } else { ColumnKind::VarBinary };
            (kind, cell(length_bytes(longest), 0, charset))
        }
        ColumnType::MYSQL_TYPE_BLOB => {
            let kind = match (byte(0)?, text) {
                (1, true) => ColumnKind::TinyText,
                (2, true) => ColumnKind::Text,
                (3, true) => ColumnKind::MediumText,
                (4, true) => ColumnKind::LongText,
                (1, false) => ColumnKind::TinyBlob,
                (2, false) => ColumnKind::Blob,
                (3, false) => ColumnKind::MediumBlob,
                (4, false) => ColumnKind::LongBlob,
                (other, _) => return Err(Malformed(format!("a blob with lengths of {other} bytes"))),
            };
            (kind, cell(byte(0)?, 0, charset))
        }
        ColumnType::MYSQL_TYPE_ENUM => (ColumnKind::Enum, CellType::Number { bytes: byte(1)?.min(8) }),
        ColumnType::MYSQL_TYPE_SET => (ColumnKind::Set, CellType::Number { bytes: byte(1)?.min(8) }),
        ColumnType::MYSQL_TYPE_JSON => (ColumnKind::Json, CellType::Json { length_bytes: byte(0)?.min(8) }),
        ColumnType::MYSQL_TYPE_GEOMETRY => (ColumnKind::Geometry, cell(byte(0)?.min(8), 0, Charset::Binary)),
        ColumnType::MYSQL_TYPE_VECTOR => (ColumnKind::Vector, cell(byte(0)?.min(8), 0, Charset::Binary)),
        other => (ColumnKind::Blob, CellType::Unknown(other as u8)),
    })
}
