//! Replays a changefeed's lines into tables: what a downstream that applies them by key would have.
//!
//! Delivery is at least once, so a line may come again under a greater epoch, after lines that are newer. A row is
//! therefore only changed by lines whose `commitTs` is not before the last that changed it; within a
//! transaction, which is repeated whole, their order counts. `TRUNCATE` and `DROP` empty a table; other statements
//! do not change rows, so a column that was added later is missing from rows that were written before.

use std::collections::BTreeMap;
use std::io;

use metadata_api::model::Ts;

use super::{Line, Lines};
use crate::canal_json::Message;

/// A row: its columns' texts, as in [`Message::data`]; `None` is NULL.
pub type ReplayedRow = BTreeMap<String, Option<String>>;

/// The texts of a row's key, in the order of [`Message::pk_names`].
pub type Key = Vec<String>;

/// Tables as the lines leave them.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    tables: BTreeMap<(String, String), BTreeMap<Key, Replayed>>,
    lines: u64,
}

/// A row, or that it is gone, and since when.
#[derive(Clone, Debug)]
struct Replayed {
    commit_ts: Ts,
    row: Option<ReplayedRow>,
}

impl Replay {
    /// Replays all lines.
    ///
    /// # Errors
    /// What the file system says; [`io::ErrorKind::InvalidData`] as [`Self::apply`].
    pub fn of(lines: Lines) -> io::Result<Self> {
        let mut replay = Self::default();
        for line in lines {
            replay.apply(&line?)?;
        }
        Ok(replay)
    }

    /// Applies one line.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] with the place of the line, when it is not canal-json, or is of a table without a
    /// primary key: rows that come again could not be told from rows that are there twice.
    pub fn apply(&mut self, line: &Line) -> io::Result<()> {
        let message = line.message()?;
        let place = (message.database.clone(), message.table.clone());
        let fail = |reason: &str| {
            let at = format!("{}-{} at byte {}", line.author, line.seq, line.offset);
            io::Error::new(io::ErrorKind::InvalidData, format!("{at}: {}.{}: {reason}", place.0, place.1))
        };
        self.lines += 1;
        if message.is_ddl {
            self.apply_ddl(&message);
            return Ok(());
        }
        let keys = message.pk_names.as_deref().ok_or_else(|| fail("it has no primary key"))?;
        let key = |row: &ReplayedRow| {
            let texts = keys.iter().map(|name| row.get(name).cloned().flatten()).collect::<Option<Key>>();
            texts.ok_or_else(|| fail("a row lacks a column of the primary key"))
        };
        let first = |rows: &Option<Vec<ReplayedRow>>| rows.as_ref().and_then(|rows| rows.first().cloned());
        let data = first(&message.data).ok_or_else(|| fail("it has no row"))?;
        let (at, commit_ts) = (key(&data)?, message.commit_ts());
        let old = first(&message.old).as_ref().map(key).transpose()?;
        let table = self.tables.entry(place.clone()).or_default();
        let mut put = |key: Key, row: Option<ReplayedRow>| {
            if table.get(&key).is_none_or(|known| known.commit_ts <= commit_ts) {
                table.insert(key, Replayed { commit_ts, row });
            }
        };
        if let Some(old) = old.filter(|old| *old != at) {
            put(old, None);
        }
        let row = (message.kind != "DELETE").then_some(data);
        put(at, row);
        Ok(())
    }

    fn apply_ddl(&mut self, message: &Message) {
        if !matches!(message.kind.as_str(), "TRUNCATE" | "ERASE") {
            return;
        }
        let commit_ts = message.commit_ts();
        if let Some(table) = self.tables.get_mut(&(message.database.clone(), message.table.clone())) {
            for known in table.values_mut().filter(|known| known.commit_ts <= commit_ts) {
                *known = Replayed { commit_ts, row: None };
            }
        }
    }

    /// The rows of a table, by key. A table that no line names has none.
    pub fn rows(&self, schema: &str, table: &str) -> BTreeMap<&Key, &ReplayedRow> {
        let table = self.tables.get(&(schema.to_owned(), table.to_owned()));
        let rows = table.into_iter().flatten();
        rows.filter_map(|(key, known)| Some((key, known.row.as_ref()?))).collect()
    }

    /// How many lines were applied.
    pub fn line_count(&self) -> u64 {
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use metadata_api::model::OwnerEpoch;

    use super::*;
    use crate::reader::Author;

    fn line(epoch: u64, kind: &str, ts: u64, new: Option<(&str, &str)>, old: Option<(&str, &str)>) -> Line {
        let row = |(id, name): (&str, &str)| serde_json::json!([{"id": id, "name": name}]);
        let ddl = new.is_none();
        let text = serde_json::json!({
            "id": 0, "database": "s", "table": "t", "pkNames": (!ddl).then_some(["id"]), "isDdl": ddl, "type": kind,
            "es": 0, "ts": 0, "sql": "", "sqlType": null, "mysqlType": null, "data": new.map(row), "old": old.map(row),
            "_tidb": {"commitTs": ts}
        });
        Line { author: Author::owner(OwnerEpoch(epoch)), seq: 1, offset: 0, text: text.to_string() }
    }

    fn names(replay: &Replay) -> Vec<(String, String)> {
        let rows = replay.rows("s", "t").into_iter();
        rows.map(|(key, row)| (key[0].clone(), row["name"].clone().unwrap())).collect()
    }

    fn pairs(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
        wanted.iter().map(|(key, name)| ((*key).to_owned(), (*name).to_owned())).collect()
    }

    #[test]
    fn repeated_lines_change_nothing() {
        let lines = [
            line(1, "INSERT", 1, Some(("1", "a")), None),
            line(1, "INSERT", 2, Some(("2", "b")), None),
            line(1, "UPDATE", 3, Some(("3", "a")), Some(("1", "a"))),
            line(1, "DELETE", 4, Some(("2", "b")), None),
            line(1, "INSERT", 5, Some(("4", "c")), None),
            line(1, "UPDATE", 5, Some(("4", "d")), Some(("4", "c"))),
        ];
        let mut replay = Replay::default();
        for line in &lines {
            replay.apply(line).unwrap();
        }
        assert_eq!(names(&replay), pairs(&[("3", "a"), ("4", "d")]));
        // A new owner repeats from the middle: what is newer stays, at every step but inside a transaction.
        for (at, line) in lines.iter().enumerate().skip(1) {
            replay.apply(&Line { author: Author::owner(OwnerEpoch(2)), ..line.clone() }).unwrap();
            let name = if at == 4 { "c" } else { "d" };
            assert_eq!(names(&replay), pairs(&[("3", "a"), ("4", name)]), "after line {at}");
        }
        assert_eq!(replay.line_count(), 11);
    }

    #[test]
    fn a_truncated_table_is_empty_but_for_what_came_later() {
        let mut replay = Replay::default();
        for line in [
            line(1, "INSERT", 1, Some(("1", "a")), None),
            line(1, "INSERT", 3, Some(("2", "b")), None),
            line(2, "TRUNCATE", 2, None, None),
            line(2, "ALTER", 4, None, None),
        ] {
            replay.apply(&line).unwrap();
        }
        assert_eq!(names(&replay), pairs(&[("2", "b")]));
    }

    #[test]
    fn a_table_without_a_key_is_refused_with_the_place() {
        let mut line = line(3, "INSERT", 1, Some(("1", "a")), None);
        line.text = line.text.replace("[\"id\"]", "null");
        let error = Replay::default().apply(&line).unwrap_err().to_string();
        assert!(error.contains("3-1 at byte 0: s.t") && error.contains("primary key"), "{error}");
    }
}
