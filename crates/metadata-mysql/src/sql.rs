//! Statements over lists, as text.
//!
//! A list makes every statement a new one, and a prepared statement that is used once costs a second round trip, under
//! the fence row's lock. So lists go as plain text, which is safe because only four things can be put into one: this
//! crate's own SQL, numbers, UUIDs, and text as a hexadecimal literal.

use std::fmt::Write;

use futures::TryStreamExt;
use sqlx::mysql::{MySqlConnection, MySqlQueryResult, MySqlRow};
use sqlx::{AssertSqlSafe, Either, FromRow, RawSql};
use uuid::Uuid;

use crate::retry::{TxError, TxResult};

/// What one statement's text may come to, about; below every server's default `max_allowed_packet` (16 MiB and more).
const MAX_STATEMENT: usize = 4 << 20;

/// A statement being written, or several with `;` between, which are one round trip.
pub(crate) struct Sql(String);

/// What one statement answered.
pub(crate) struct Answer {
    /// How many rows its condition met.
    pub(crate) matched: u64,
    /// What it gave to `LAST_INSERT_ID()`.
    pub(crate) last_insert_id: u64,
    rows: Vec<MySqlRow>,
}

impl Answer {
    pub(crate) fn rows<T>(&self) -> TxResult<Vec<T>>
    where
        T: for<'r> FromRow<'r, MySqlRow>,
    {
        Ok(self.rows.iter().map(T::from_row).collect::<Result<_, _>>()?)
    }
}

impl Sql {
    pub(crate) fn new(sql: &'static str) -> Self {
        Self(sql.to_owned())
    }

    /// SQL of this crate.
    pub(crate) fn push(&mut self, sql: &'static str) -> &mut Self {
        self.0.push_str(sql);
        self
    }

    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        // Writing to a `String` does not fail.
        let _ = write!(self.0, "{number}");
        self
    }

    pub(crate) fn uuid(&mut self, uuid: Uuid) -> &mut Self {
        let _ = write!(self.0, "'{}'", uuid.hyphenated());
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.0.reserve(2 * text.len() + 16);
        self.0.push_str("_utf8mb4 x'");
        for byte in text.bytes() {
            for nibble in [byte >> 4, byte & 15] {
                self.0.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        self.0.push('\'');
        self
    }

    /// `items` with commas between, each written by `each`; `NULL` for none, so that `IN (..)` finds nothing.
    pub(crate) fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut each: impl for<'a> FnMut(&'a mut Self, T) -> &'a mut Self,
    ) -> &mut Self {
        let mut first = true;
        for item in items {
            if !first {
                self.0.push_str(", ");
            }
            first = false;
            each(self, item);
        }
        if first { self.push("NULL") } else { self }
    }

    pub(crate) fn numbers(&mut self, numbers: impl IntoIterator<Item = u64>) -> &mut Self {
        self.list(numbers, |sql, number| sql.number(number))
    }

    pub(crate) fn uuids(&mut self, uuids: impl IntoIterator<Item = Uuid>) -> &mut Self {
        self.list(uuids, |sql, uuid| sql.uuid(uuid))
    }

    /// Another statement, after this one.
    pub(crate) fn then(&mut self, next: &Self) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push_str("; ");
        }
        self.0.push_str(&next.0);
        self
    }

    fn query(self) -> RawSql {
        sqlx::raw_sql(AssertSqlSafe(self.0))
    }

    pub(crate) async fn execute(self, connection: &mut MySqlConnection) -> TxResult<MySqlQueryResult> {
        Ok(self.query().execute(connection).await?)
    }

    /// Runs `count` statements in one round trip. The first one that fails is the last one that runs; what those before it did
    /// is the transaction's, so this must be in one, and must not end it.
    pub(crate) async fn run(self, connection: &mut MySqlConnection, count: usize) -> TxResult<Vec<Answer>> {
        let mut answers = Vec::with_capacity(count);
        let mut rows = Vec::new();
        self.stream(connection, count, |answered| {
            match answered {
                Either::Left(done) => answers.push(Answer {
                    matched: done.rows_affected(),
                    last_insert_id: done.last_insert_id(),
                    rows: std::mem::take(&mut rows),
                }),
                Either::Right(row) => rows.push(row),
            }
            Ok(())
        })
        .await?;
        Ok(answers)
    }

    /// The same, handing out each row as it comes, and each statement's end.
    async fn stream(
        self,
        connection: &mut MySqlConnection,
        count: usize,
        mut each: impl FnMut(Either<MySqlQueryResult, MySqlRow>) -> TxResult<()> + Send,
    ) -> TxResult<()> {
        let mut answers = 0;
        let mut stream = self.query().fetch_many(connection);
        while let Some(next) = stream.try_next().await? {
            answers += usize::from(next.is_left());
            each(next)?;
        }
        if answers == count {
            return Ok(());
        }
        let what = format!("{answers} answers to {count} statements");
        Err(sqlx::Error::Protocol(what).into())
    }

    /// Reads of one moment, in one round trip: a transaction begins, asks, and ends. `each` gets every row as it comes, with the
    /// place of its statement in `reads`. When it fails the transaction may still be open.
    pub(crate) async fn read_moment(
        connection: &mut MySqlConnection,
        reads: &[Self],
        mut each: impl FnMut(usize, &MySqlRow) -> TxResult<()> + Send,
    ) -> TxResult<()> {
        // Two statements before them, and one after. The level is the next transaction's only.
        let mut sql = Self::new(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT",
        );
        for read in reads {
            sql.then(read);
        }
        sql.push("; COMMIT");
        let mut ended = 0_usize;
        sql.stream(connection, reads.len() + 3, |answered| match answered {
            Either::Left(_) => {
                ended += 1;
                Ok(())
            }
            Either::Right(row) => each(ended.saturating_sub(2), &row),
        })
        .await
    }

    pub(crate) async fn fetch<T>(self, connection: &mut MySqlConnection) -> TxResult<Vec<T>>
    where
        T: for<'r> FromRow<'r, MySqlRow>,
    {
        let rows = self.query().fetch_all(connection).await?;
        Ok(rows.iter().map(T::from_row).collect::<Result<_, _>>()?)
    }
}

/// Conditional writes that are sent together. All of them are under the fence, none depends on another's answer, and when
/// one does not meet what it must the transaction is rolled back with all.
#[derive(Default)]
pub(crate) struct Batch(Vec<Conditional>);

struct Conditional {
    sql: Sql,
    /// How many rows it must meet, and what has moved if it does not.
    must_match: Option<(usize, &'static str)>,
}

impl Batch {
    /// A write that must meet `rows` rows; `what` has moved if it does not.
    pub(crate) fn expect(&mut self, sql: Sql, rows: usize, what: &'static str) {
        self.0.push(Conditional { sql, must_match: Some((rows, what)) });
    }

    /// A write of whatever it meets.
    pub(crate) fn add(&mut self, sql: Sql) {
        self.0.push(Conditional { sql, must_match: None });
    }

    /// Nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends them, in this order, in as few round trips as their length allows.
    pub(crate) async fn send(self, connection: &mut MySqlConnection) -> TxResult<()> {
        for part in parts(&self.0, |write| write.sql.0.len() / 2) {
            let mut text = Sql::new("");
            for write in part {
                text.then(&write.sql);
            }
            let answers = text.run(connection, part.len()).await?;
            for (write, answer) in part.iter().zip(answers) {
                if let Some((rows, what)) = write.must_match
                    && answer.matched != rows as u64
                {
                    return Err(TxError::Moved(what));
                }
            }
        }
        Ok(())
    }
}

/// By which column an UPDATE of several rows tells them apart.
pub(crate) struct Key<R> {
    pub(crate) column: &'static str,
    pub(crate) write: for<'a> fn(&'a mut Sql, &R) -> &'a mut Sql,
}

/// `column = value` in an UPDATE of several rows: the value itself where all rows get the same, else
/// `CASE key WHEN .. THEN .. END`.
pub(crate) fn set_column<R, V: PartialEq>(
    sql: &mut Sql,
    column: &'static str,
    key: &Key<R>,
    rows: &[R],
    of: impl Fn(&R) -> V,
    mut write: impl for<'a> FnMut(&'a mut Sql, &V) -> &'a mut Sql,
) {
    sql.push(column).push(" = ");
    let values: Vec<V> = rows.iter().map(of).collect();
    let Some(first) = values.first() else { return };
    if values.iter().all(|value| value == first) {
        write(sql, first);
        return;
    }
    sql.push("CASE ").push(key.column);
    for (row, value) in rows.iter().zip(&values) {
        sql.push(" WHEN ");
        (key.write)(sql, row);
        sql.push(" THEN ");
        write(sql, value);
    }
    sql.push(" END");
}

/// `WHERE key IN (..) AND version = ..`: each row with the version it was read with.
pub(crate) fn where_versions<R>(sql: &mut Sql, key: &Key<R>, rows: &[R], version: impl Fn(&R) -> u64) {
    sql.push(" WHERE ")
        .push(key.column)
        .push(" IN (")
        .list(rows, |sql, row| (key.write)(sql, row))
        .push(") AND ");
    set_column(sql, "version", key, rows, version, |sql, version| sql.number(*version));
}

/// Parts of `rows` whose texts fit into one statement.
pub(crate) fn parts<R>(rows: &[R], size: impl Fn(&R) -> usize) -> Vec<&[R]> {
    let (mut parts, mut rest, mut sum, mut taken) = (Vec::new(), rows, 0, 0);
    for row in rows {
        let next = 2 * size(row) + 128;
        if taken > 0 && sum + next > MAX_STATEMENT {
            let (part, left) = rest.split_at(taken);
            parts.push(part);
            (rest, sum, taken) = (left, 0, 0);
        }
        sum += next;
        taken += 1;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

/// `NULL` or the value.
pub(crate) fn optional<'a, T>(
    sql: &'a mut Sql,
    value: Option<T>,
    write: impl FnOnce(&'a mut Sql, T) -> &'a mut Sql,
) -> &'a mut Sql {
    match value {
        Some(value) => write(sql, value),
        None => sql.push("NULL"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whichever of the writes does not meet its rows, the batch says so, and what.
    #[tokio::test]
    async fn a_batch_says_which_write_met_too_little() {
        use sqlx::Connection as _;

        let database = test_servers::fresh_database(&test_servers::mysql_url().await).await;
        test_servers::execute(&database, "CREATE TABLE t (id INT PRIMARY KEY, n INT NOT NULL)").await;
        test_servers::execute(&database, "INSERT INTO t VALUES (1, 0), (2, 0)").await;
        let mut connection = MySqlConnection::connect(&database).await.unwrap();
        for (first, second, moved) in [(1, 2, None), (3, 2, Some("one")), (1, 3, Some("two"))] {
            let mut batch = Batch::default();
            for (id, what) in [(first, "one"), (second, "two")] {
                let mut sql = Sql::new("UPDATE t SET n = 1 WHERE id = ");
                sql.number(id);
                batch.expect(sql, 1, what);
                batch.add(Sql::new("UPDATE t SET n = 1 WHERE id = 4"));
            }
            let met = match batch.send(&mut connection).await {
                Ok(()) => None,
                Err(TxError::Moved(what)) => Some(what),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(met, moved);
        }
        connection.close().await.unwrap();
        test_servers::drop_database(&database).await;
    }

    #[test]
    fn text_can_never_end_its_literal() {
        let mut sql = Sql::new("SELECT ");
        sql.text("'; DROP TABLE fence; -- \\ é");
        assert_eq!(sql.0.matches('\'').count(), 2, "{}", sql.0);
        assert!(!sql.0.contains("DROP"), "{}", sql.0);
    }

    #[test]
    fn an_empty_list_finds_nothing() {
        let mut sql = Sql::new("a IN (");
        sql.numbers([]).push(") OR b IN (").uuids([Uuid::nil()]).push(")");
        assert_eq!(sql.0, "a IN (NULL) OR b IN ('00000000-0000-0000-0000-000000000000')");
    }

    #[test]
    fn parts_are_whole_and_bounded() {
        let rows: Vec<usize> = vec![MAX_STATEMENT / 4; 9];
        let parts = parts(&rows, |size| *size);
        assert!(parts.len() > 1 && parts.iter().all(|part| !part.is_empty()), "{}", parts.len());
        assert_eq!(parts.concat(), rows);
        assert!(super::parts(&[] as &[usize], |size| *size).is_empty());
        assert_eq!(super::parts(&[MAX_STATEMENT], |size| *size).len(), 1);
    }

    #[test]
    fn equal_values_need_no_case() {
        let write = |rows: &[(u64, u64)]| {
            let mut sql = Sql::new("UPDATE t SET ");
            let key = Key { column: "id", write: |sql, row: &(u64, u64)| sql.number(row.0) };
            set_column(&mut sql, "a", &key, rows, |row| row.1, |sql, value| sql.number(*value));
            where_versions(&mut sql, &key, rows, |row| row.1);
            sql.0
        };
        assert_eq!(write(&[(1, 5), (2, 5)]), "UPDATE t SET a = 5 WHERE id IN (1, 2) AND version = 5");
        assert_eq!(
            write(&[(1, 5), (2, 6)]),
            "UPDATE t SET a = CASE id WHEN 1 THEN 5 WHEN 2 THEN 6 END WHERE id IN (1, 2) AND \
             version = CASE id WHEN 1 THEN 5 WHEN 2 THEN 6 END"
        );
    }
}
