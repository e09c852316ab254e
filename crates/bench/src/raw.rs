//! A bare connection, by the same driver as the store's: what the baselines are measured on.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use sqlx::mysql::MySqlConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _, query, raw_sql};

/// A value of a prepared statement.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Text.
    Text(&'a str),
    /// A number below 2^63.
    Number(u64),
}

/// A connection.
pub enum Raw {
    /// To a server.
    Server(MySqlConnection),
    /// To a file.
    File(SqliteConnection),
}

impl Raw {
    /// Connects to a server, by the URL that the store is given.
    pub async fn server(url: &str) -> Result<Self> {
        Ok(Self::Server(MySqlConnection::connect(url).await?))
    }

    /// Opens a file with the durability of the store's own connections. It waits for locks as `SQLite` itself does, and
    /// copies of the store's tables have no parents for their foreign keys.
    pub async fn file(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(false)
            .busy_timeout(Duration::from_secs(60))
            .disable_statement_logging();
        Ok(Self::File(options.connect().await?))
    }

    /// Runs a prepared statement. Says how many rows it met.
    pub async fn prepared(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64> {
        macro_rules! run {
            ($connection:expr) => {{
                let mut query = query(AssertSqlSafe(sql));
                for value in values {
                    query = match *value {
                        Value::Text(text) => query.bind(text),
                        Value::Number(number) => query.bind(number.cast_signed()),
                    };
                }
                query.execute($connection).await?.rows_affected()
            }};
        }
        Ok(match self {
            Self::Server(connection) => run!(connection),
            Self::File(connection) => run!(connection),
        })
    }

    /// Runs plain text, of one or several statements, in one round trip.
    pub async fn text(&mut self, sql: &str) -> Result<()> {
        let statements = raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::Server(connection) => statements.execute(connection).await.map(|_| ())?,
            Self::File(connection) => statements.execute(connection).await.map(|_| ())?,
        }
        Ok(())
    }

    /// Reads everything that plain text gives, and says how many rows that was.
    pub async fn rows(&mut self, sql: &str) -> Result<usize> {
        let statements = raw_sql(AssertSqlSafe(sql.to_owned()));
        Ok(match self {
            Self::Server(connection) => statements.fetch_all(connection).await?.len(),
            Self::File(connection) => statements.fetch_all(connection).await?.len(),
        })
    }

    /// The text in column `column` of the first row; `None` when there is no row.
    pub async fn cell(&mut self, sql: &str, column: usize) -> Result<Option<String>> {
        let statements = raw_sql(AssertSqlSafe(sql.to_owned()));
        Ok(match self {
            Self::Server(connection) => match statements.fetch_all(connection).await?.first() {
                Some(row) => Some(row.try_get_unchecked(column)?),
                None => None,
            },
            Self::File(connection) => match statements.fetch_all(connection).await?.first() {
                Some(row) => Some(row.try_get_unchecked(column)?),
                None => None,
            },
        })
    }
}
