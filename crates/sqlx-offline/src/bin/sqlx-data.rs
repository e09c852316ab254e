//! Writes `sqlx-data.json` anew, against fresh databases with this tree's migrations. Run by `tools/sqlx-data`.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, SqliteConnection};

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let file = root.join(sqlx_offline::FILE);
    let mut check = false;
    let mut parts = Vec::new();
    for argument in env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            "sqlite" | "mysql" => parts.push(argument),
            other => bail!("`{other}` is none of --check, sqlite, mysql"),
        }
    }
    let mut fresh = Queries::new();
    for part in parts {
        let (database, queries) = match part.as_str() {
            "mysql" => ("MySQL", mysql(&root)?),
            _ => ("SQLite", sqlite(&root)?),
        };
        eprintln!("{database}: {} queries", queries.len());
        fresh.insert(database.to_owned(), queries.into());
    }
    // Read only now: somebody may have regenerated the other part meanwhile.
    let mut all = sqlx_offline::read(&file).map_err(anyhow::Error::msg)?;
    all.extend(fresh);
    let text = sqlx_offline::render(all).map_err(anyhow::Error::msg)?;
    let before = fs::read_to_string(&file).unwrap_or_default();
    if check && text != before {
        bail!("{} is stale: run tools/sqlx-data and commit it", sqlx_offline::FILE);
    }
    if text != before {
        fs::write(&file, text)?;
    }
    Ok(())
}

type Queries = serde_json::Map<String, serde_json::Value>;

/// Checks one store's crate against a live database, and collects the queries that the check saw.
fn check_against(root: &Path, package: &str, url: &OsStr) -> Result<Queries> {
    let dir = tempfile::tempdir()?;
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["check", "--quiet", "--lib", "--package", package])
        .current_dir(root)
        .env("DATABASE_URL", url)
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", dir.path())
        .status()
        .context("cargo check")?;
    if !status.success() {
        bail!("{package} does not compile against the database");
    }
    sqlx_offline::collect(dir.path()).map_err(anyhow::Error::msg)
}

#[tokio::main(flavor = "current_thread")]
async fn sqlite(root: &Path) -> Result<Queries> {
    let dir = tempfile::tempdir()?;
    let url = format!("sqlite://{}", dir.path().join("schema.sqlite").display());
    let mut db = SqliteConnection::connect(&format!("{url}?mode=rwc")).await?;
    Migrator::new(root.join("crates/metadata-sqlite/migrations")).await?.run(&mut db).await?;
    db.close().await?;
    check_against(root, "metadata-sqlite", OsStr::new(&url))
}

#[cfg(feature = "mysql")]
#[tokio::main(flavor = "current_thread")]
async fn mysql(root: &Path) -> Result<Queries> {
    let server = env::var("CDC_TEST_MYSQL_URL").context("CDC_TEST_MYSQL_URL: the URL of a MySQL server")?;
    let (server, _) =
        server.trim_end_matches('/').split_once('?').unwrap_or((server.trim_end_matches('/'), ""));
    // The database that the URL may name is left alone: the schema goes to one of its own.
    let authority = server.strip_prefix("mysql://").context("the URL must begin with mysql://")?;
    let host = authority.split('/').next().unwrap_or(authority);
    let name = format!("sqlx_data_{}", std::process::id());
    let mut db = sqlx::MySqlConnection::connect(&format!("mysql://{host}")).await?;
    let run = async {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut db).await?;
        let url = format!("mysql://{host}/{name}");
        let mut schema = sqlx::MySqlConnection::connect(&url).await?;
        Migrator::new(root.join("migrations")).await?.run(&mut schema).await?;
        schema.close().await?;
        check_against(root, "metadata-mysql", OsStr::new(&url))
    };
    let queries = run.await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name}"))).execute(&mut db).await?;
    // Columns name the database they come from, which is another at each run.
    let text = serde_json::to_string(&queries?)?.replace(&format!("{name}."), "");
    Ok(serde_json::from_str(&text)?)
}

#[cfg(not(feature = "mysql"))]
fn mysql(_root: &Path) -> Result<Queries> {
    bail!("built without the feature `mysql`: run tools/sqlx-data")
}
