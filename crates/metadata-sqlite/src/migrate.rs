//! The schema: writing it, and checking that it is the one this binary works with.

use std::collections::BTreeMap;

use metadata_api::{MetadataError, Result};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection as _, SqliteConnection};

use crate::connect::SqliteOptions;
use crate::tx;

/// The migrations that this binary knows. They only add: an older server may still be running.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Brings the file to this binary's schema, creating it if there is none. All of it is one transaction under the
/// file's write lock: any number of processes may do this at the same time, and one that is killed leaves nothing.
pub(crate) async fn migrate(options: &SqliteOptions) -> Result<()> {
    options.check_path(true)?;
    let mut db = options.connect_migrate().await?;
    let failed = |error| failed(error, options);
    let mut tx = db.begin_with("BEGIN IMMEDIATE").await.map_err(MigrateError::from).map_err(failed)?;
    // Not `run`: with its `Acquire` the future would not be `Send` ("not general enough").
    MIGRATIONS.run_direct(None, &mut *tx, false).await.map_err(failed)?;
    tx.commit().await.map_err(|error| tx::unknown("migrate", error))?;
    db.close().await.map_err(|error| tx::unavailable("migrate", error, options))
}

fn failed(error: MigrateError, options: &SqliteOptions) -> MetadataError {
    match error {
        MigrateError::VersionMissing(version) => newer(version, options),
        MigrateError::VersionMismatch(version) => changed(version, options),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            tx::unavailable("migrate", error, options)
        }
        other => MetadataError::schema(other.to_string()),
    }
}

fn changed(version: i64, options: &SqliteOptions) -> MetadataError {
    MetadataError::schema(format!(
        "migration {version} of {} is not the one that this binary has under this number: the file was made by \
         another program, or by an unreleased version",
        options.shown()
    ))
}

fn newer(version: i64, options: &SqliteOptions) -> MetadataError {
    MetadataError::schema(format!(
        "{} has migration {version}, which is newer than this binary: run a binary of that version",
        options.shown()
    ))
}

/// Checks that exactly this binary's migrations were applied.
pub(crate) async fn check(options: &SqliteOptions, db: &mut SqliteConnection) -> Result<()> {
    let failed = |error| tx::unavailable("schema.check", error, options);
    let remedy = format!("run `cdc migrate --store sqlite://{}`", options.shown());
    let tables: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'",
    )
    .fetch_one(&mut *db)
    .await
    .map_err(failed)?;
    if tables == 0 {
        return Err(MetadataError::schema(format!("{} has no schema yet: {remedy}", options.shown())));
    }
    let applied: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY version")
            .fetch_all(&mut *db)
            .await
            .map_err(failed)?;
    if let Some((version, _)) = applied.iter().find(|(version, _)| !MIGRATIONS.version_exists(*version)) {
        return Err(newer(*version, options));
    }
    let applied: BTreeMap<i64, Vec<u8>> = applied.into_iter().collect();
    if let Some(other) = MIGRATIONS
        .iter()
        .find(|migration| applied.get(&migration.version).is_some_and(|there| **there != *migration.checksum))
    {
        return Err(changed(other.version, options));
    }
    if let Some(missing) = MIGRATIONS.iter().find(|migration| !applied.contains_key(&migration.version)) {
        return Err(MetadataError::schema(format!(
            "{} lacks migration {} ({}): {remedy}",
            options.shown(),
            missing.version,
            missing.description
        )));
    }
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *db).await.map_err(failed)?;
    if mode != "wal" {
        return Err(MetadataError::Unsupported {
            reason: format!(
                "{} cannot be put into WAL mode (it is in mode `{mode}`): its file system does not support it",
                options.shown()
            ),
        });
    }
    Ok(())
}
