//! The schema: the files of `migrations/`, compiled in.
//!
//! `sqlx migrate run` applies the very same files. What is done here in addition:
//!
//! * The lock is taken with a bound and its answer is checked; sqlx's own waits without end, ignores the answer (`MariaDB`
//!   gives NULL) and leaks it when a migration fails. It is the lock that sqlx takes, so that `sqlx migrate run` at the
//!   same moment waits as well.
//! * DDL commits by itself, so a kill in the middle leaves a migration marked as begun. Every file is re-runnable: the mark
//!   is removed under the lock, and the file runs again.

use std::collections::BTreeMap;
use std::time::Duration;

use metadata_api::{MetadataError, Result};
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::mysql::MySqlConnection;
use sqlx::{query, query_as, query_scalar};
use tokio::time::timeout;

use crate::connect::Connector;
use crate::dialect::Purpose;
use crate::options::MysqlOptions;
use crate::privileges::{current_user, explain_ddl, grant};
use crate::retry::{Class, TxError, TxResult, classify, into_opening_error, is_denied, is_no_such_table};
use crate::tx::bounded;

static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

const NAME: &str = "migrate";
const LOCK_TRIES: u32 = 12;
/// Per try, of which the server waits 10 s.
const LOCK_TIMEOUT: Duration = Duration::from_secs(15);
/// Per file. Creating an empty table takes a fraction of a second; an index on a big one takes longer.
const FILE_TIMEOUT: Duration = Duration::from_secs(600);

/// Brings the database's schema to this binary's, from an empty or an older one. Any number of processes may do so at the
/// same moment. Says how many files it applied.
///
/// # Errors
/// [`Schema`](MetadataError::Schema) when the schema is newer than this binary or its files were changed since;
/// [`Unsupported`](MetadataError::Unsupported) for a server that the store cannot be safe on or a user without
/// the privileges; [`Unavailable`](MetadataError::Unavailable) when the server does not answer, or another
/// process holds the migration lock for two minutes.
pub async fn migrate(options: MysqlOptions) -> Result<usize> {
    let connector = Connector::new(options);
    run(&connector).await.map_err(|error| into_opening_error(NAME, error))
}

async fn run(connector: &Connector) -> TxResult<usize> {
    let mut session = connector.connect(Purpose::Migration).await?;
    let connection = &mut session.raw;
    let limit = connector.options().read_timeout;
    let database = connector.options().database();
    let behind = bounded(NAME, limit, pending(connection, database)).await?;
    if behind == 0 {
        return Ok(0);
    }
    let lock = lock_name(database);
    acquire(connection, &lock).await?;
    let mut applied = apply(connection, database, limit).await;
    if let Err(error) = applied {
        applied = Err(explain_ddl(connection, database, behind, error).await);
    }
    // The lock ends with the session in any case; an orderly release lets the next one in at once.
    let release = query("DO RELEASE_LOCK(?)").bind(&lock).execute(&mut *connection);
    let _ = timeout(limit, release).await;
    applied
}

async fn acquire(connection: &mut MySqlConnection, lock: &str) -> TxResult<()> {
    for _ in 0..LOCK_TRIES {
        let got = bounded(NAME, LOCK_TIMEOUT, async {
            Ok(query_scalar("SELECT GET_LOCK(?, 10)").bind(lock).fetch_one(&mut *connection).await?)
        });
        let got: Option<i64> = match got.await {
            // `TiDB`'s lock is a row, and fails when many want it at once.
            Err(error) if classify(&error) == Class::Again => {
                tracing::info!(%error, "others want to migrate, too; asking again");
                continue;
            }
            got => got?,
        };
        match got {
            Some(1) => return Ok(()),
            Some(_) => tracing::info!("another process migrates; waiting for it"),
            None => break,
        }
    }
    Err(MetadataError::Unavailable {
        transaction: NAME,
        source: format!("the migration lock `{lock}` was not to be had; is another process migrating?")
            .into(),
    }
    .into())
}

async fn apply(connection: &mut MySqlConnection, database: &str, limit: Duration) -> TxResult<usize> {
    let pending = bounded(NAME, limit, pending(connection, database)).await?;
    if pending == 0 {
        return Ok(0);
    }
    timeout(FILE_TIMEOUT, connection.ensure_migrations_table("_sqlx_migrations"))
        .await
        .map_err(|_| TxError::TimedOut(NAME, FILE_TIMEOUT))?
        .map_err(from_driver)?;
    bounded(NAME, limit, async {
        Ok(query("DELETE FROM _sqlx_migrations WHERE success = FALSE").execute(&mut *connection).await?)
    })
    .await?;
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
    migrator.set_locking(false);
    timeout(FILE_TIMEOUT, migrator.run_direct(None, &mut *connection, false))
        .await
        .map_err(|_| TxError::TimedOut(NAME, FILE_TIMEOUT))?
        .map_err(from_driver)?;
    tracing::info!(files = pending, "schema migrated");
    Ok(pending)
}

/// Whether the schema is this binary's, and no other.
///
/// # Errors
/// `Schema`, with what to run.
pub(crate) async fn check(connection: &mut MySqlConnection, database: &str) -> TxResult<()> {
    match pending(connection, database).await? {
        0 => Ok(()),
        missing => Err(MetadataError::schema(format!(
            "{missing} of {} migrations are missing; run `cdc migrate` (or `sqlx migrate run`)",
            MIGRATOR.iter().count()
        ))
        .into()),
    }
}

/// How many files are not applied yet, those left half done included.
async fn pending(connection: &mut MySqlConnection, database: &str) -> TxResult<usize> {
    // Asked for at once: `information_schema` does not show what the user may not touch, which is not the same as absent.
    let rows: Result<Vec<(i64, bool, Vec<u8>)>, _> =
        query_as("SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version")
            .fetch_all(&mut *connection)
            .await;
    let rows = match rows {
        Ok(rows) => rows,
        Err(error) if is_no_such_table(&error) => Vec::new(),
        Err(error) if is_denied(&error) => {
            let user = current_user(connection).await?;
            let reason = format!(
                "{user} may not see what schema there is ({error}). If there is none yet, run `cdc migrate` first, as \
                 a user who may create tables; then: {}",
                grant("SELECT", database, Some("_sqlx_migrations"), &user)
            );
            return Err(MetadataError::Unsupported { reason }.into());
        }
        Err(error) => return Err(error.into()),
    };
    let mut applied: BTreeMap<_, _> =
        rows.into_iter().map(|(version, success, checksum)| (version, (success, checksum))).collect();
    let mut pending = 0;
    for file in MIGRATOR.iter() {
        match applied.remove(&file.version) {
            Some((true, checksum)) if checksum != *file.checksum => {
                return Err(MetadataError::schema(format!(
                    "migration {} of the database is not this binary's: its text was changed after it was applied",
                    file.version
                ))
                .into());
            }
            Some((true, _)) => {}
            Some((false, _)) | None => pending += 1,
        }
    }
    if let Some(newest) = applied.keys().next_back() {
        return Err(MetadataError::schema(format!(
            "the database has migration {newest}, which this binary does not know; use a newer binary"
        ))
        .into());
    }
    Ok(pending)
}

fn from_driver(error: MigrateError) -> TxError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        other => MetadataError::schema(format!("the migrations cannot be applied: {other}")).into(),
    }
}

/// The name of sqlx's own migration lock for this database.
fn lock_name(database: &str) -> String {
    format!("{:x}", 0x3d32_ad9e_i64 * i64::from(crc32(database.as_bytes())))
}

/// CRC-32 (ISO-HDLC), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn one_ddl_a_file_and_each_can_run_again() {
        for file in MIGRATOR.iter() {
            let sql: String = file
                .sql
                .as_str()
                .lines()
                .filter(|line| !line.trim_start().starts_with("--"))
                .collect::<Vec<_>>()
                .join("\n");
            let statements: Vec<&str> =
                sql.split(';').map(str::trim).filter(|statement| !statement.is_empty()).collect();
            let ddl = statements.iter().filter(|statement| !statement.starts_with("INSERT")).count();
            assert!(ddl == 0 || statements.len() == 1, "{}: {statements:?}", file.version);
            for statement in statements {
                assert!(
                    statement.starts_with("CREATE TABLE IF NOT EXISTS")
                        || statement.starts_with("INSERT IGNORE"),
                    "{}: {statement}",
                    file.version
                );
            }
        }
    }
}
