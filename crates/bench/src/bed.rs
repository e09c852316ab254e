//! What is measured on: a server or a folder, and in it a fresh database for each group of figures.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use metadata_api::store::MetadataStore;
use metadata_mysql::{MysqlOptions, MysqlStore};
use metadata_sqlite::{SqliteOptions, SqliteStore};
use tempfile::TempDir;
use test_servers::{Server, Storage};
use url::Url;
use uuid::Uuid;

use crate::database::Database;
use crate::process;
use crate::raw::Raw;

/// Twice the most captures, with as many bare connections beside them.
const MAX_CONNECTIONS: u32 = 12_000;

/// A database server that runs, or a folder for files.
pub struct Target {
    /// What it is.
    pub database: Database,
    /// Its version, as it says.
    pub version: String,
    place: Home,
    process: Option<u32>,
}

enum Home {
    /// The URL without a database; a container that was started for it ends with it.
    Server { url: String, _container: Option<Box<Server>> },
    /// The folder.
    Folder(PathBuf),
}

impl Target {
    /// Starts the server, with its data on disk and durable settings, unless the environment names one.
    pub async fn start(database: Database, sqlite_dir: &Path) -> Result<Self> {
        let Some(kind) = database.kind() else {
            std::fs::create_dir_all(sqlite_dir)
                .with_context(|| format!("--sqlite-dir {}", sqlite_dir.display()))?;
            let place = Home::Folder(sqlite_dir.to_owned());
            let mut target = Self { database, version: String::new(), place, process: None };
            let bed = target.bed().await?;
            target.version = bed.raw().await?.cell("SELECT sqlite_version()", 0).await?.unwrap_or_default();
            return Ok(target);
        };
        let (url, container) = if let Some(url) = kind.given_url() {
            (url, None)
        } else {
            let started = kind.try_start(Storage::Disk, MAX_CONNECTIONS).await;
            let server = started.map_err(|error| {
                anyhow!("no {database} server: {error}; run it by `make bench`, which builds the image")
            })?;
            (server.direct_url().to_owned(), Some(Box::new(server)))
        };
        let process = container.as_ref().and_then(|server| server.process());
        let version = Raw::server(&url).await?.cell("SELECT VERSION()", 0).await?.unwrap_or_default();
        Ok(Self { database, version, place: Home::Server { url, _container: container }, process })
    }

    /// A fresh, migrated database.
    pub async fn bed(&self) -> Result<Bed> {
        let place = match &self.place {
            Home::Folder(folder) => {
                let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(folder)?;
                let file = folder.path().join("cdc.db");
                SqliteStore::migrate(&SqliteOptions::new(&file)).await?;
                Place::File { file, _folder: Some(Arc::new(folder)) }
            }
            Home::Server { url, .. } => {
                let name = format!("cdc_bench_{}", Uuid::new_v4().simple());
                Raw::server(url).await?.text(&format!("CREATE DATABASE {name}")).await?;
                let mut url = Url::parse(url)?;
                url.set_path(&name);
                metadata_mysql::migrate(MysqlOptions::from_url(url.as_str())?).await?;
                Place::Server { url: url.into() }
            }
        };
        Ok(Bed { database: self.database, place })
    }

    /// How much processor time the server has used so far; `None` where there is no server of ours.
    pub fn server_time(&self) -> Option<Duration> {
        self.process.and_then(process::time_used)
    }

    /// How many statements clients have sent so far; `None` where the server does not count them.
    pub async fn statements(&self) -> Result<Option<f64>> {
        let Home::Server { url, .. } = &self.place else { return Ok(None) };
        if self.database == Database::Tidb {
            return Ok(None);
        }
        let mut raw = Raw::server(url).await?;
        let count = raw.cell("SHOW GLOBAL STATUS LIKE 'Questions'", 1).await?;
        Ok(count.and_then(|count| count.parse().ok()))
    }
}

/// A fresh database. Cheap to clone; a file goes with the last clone, a server's database by [`Bed::remove`] or with the
/// server.
#[derive(Clone)]
pub struct Bed {
    /// What it is.
    pub database: Database,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Server { url: String },
    File { file: PathBuf, _folder: Option<Arc<TempDir>> },
}

impl Bed {
    /// One that somebody else has made.
    pub fn at(database: Database, place: &str) -> Self {
        let place = if database == Database::Sqlite {
            Place::File { file: place.into(), _folder: None }
        } else {
            Place::Server { url: place.to_owned() }
        };
        Self { database, place }
    }

    /// Where it is, for [`Self::at`].
    pub fn place(&self) -> String {
        match &self.place {
            Place::Server { url } => url.clone(),
            Place::File { file, .. } => file.display().to_string(),
        }
    }

    /// A store of its own, as another process would have.
    pub async fn store(&self) -> Result<Arc<dyn MetadataStore>> {
        self.store_of(MysqlOptions::DEFAULT_MAX_CONNECTIONS).await
    }

    /// The same with so many connections in its pool.
    pub async fn store_of(&self, connections: u32) -> Result<Arc<dyn MetadataStore>> {
        Ok(match &self.place {
            Place::Server { url } => {
                let options = MysqlOptions::from_url(url)?.max_connections(connections)?;
                Arc::new(MysqlStore::open(options).await?)
            }
            Place::File { file, .. } => {
                let options = SqliteOptions { pool_size: connections, ..SqliteOptions::new(file) };
                Arc::new(SqliteStore::open(options).await?)
            }
        })
    }

    /// A bare connection.
    pub async fn raw(&self) -> Result<Raw> {
        match &self.place {
            Place::Server { url } => Raw::server(url).await,
            Place::File { file, .. } => Raw::file(file).await,
        }
    }

    /// So many bare connections.
    pub async fn raws(&self, count: usize) -> Result<Vec<Raw>> {
        let mut raws = Vec::with_capacity(count);
        for _ in 0..count {
            raws.push(self.raw().await?);
        }
        Ok(raws)
    }

    /// Makes `bare_TABLE` of each table: the same columns, keys and rows, for a baseline to work on.
    pub async fn copy_tables(&self, tables: &[&str]) -> Result<()> {
        let mut raw = self.raw().await?;
        for table in tables {
            if self.database == Database::Sqlite {
                let sql = format!("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = '{table}'");
                let create = raw.cell(&sql, 0).await?.ok_or_else(|| anyhow!("no table {table}"))?;
                let create = create.replacen(
                    &format!("CREATE TABLE {table}"),
                    &format!("CREATE TABLE bare_{table}"),
                    1,
                );
                raw.text(&create).await?;
            } else {
                raw.text(&format!("CREATE TABLE bare_{table} LIKE {table}")).await?;
            }
            raw.text(&format!("INSERT INTO bare_{table} SELECT * FROM {table}")).await?;
        }
        Ok(())
    }

    /// Drops a server's database.
    pub async fn remove(self) -> Result<()> {
        if let Place::Server { url } = &self.place {
            let name = Url::parse(url)?.path().trim_start_matches('/').to_owned();
            self.raw().await?.text(&format!("DROP DATABASE {name}")).await?;
        }
        Ok(())
    }
}

/// The machine, for the head of the report.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let model = process::processor().unwrap_or_else(|| env::consts::ARCH.to_owned());
    format!("{cores} cores ({model}), shared by client and database")
}
