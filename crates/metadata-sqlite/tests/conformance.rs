//! The suite that every store passes, each case on a file of its own.
#![expect(clippy::expect_used, reason = "a test: a panic is how it fails")]

use std::sync::Arc;

use async_trait::async_trait;
use metadata_api::store::MetadataStore;
use metadata_api::store::faults::Faults;
use metadata_conformance::harness::{Backend, Database, Features};
use metadata_sqlite::{SqliteOptions, SqliteStore};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tempfile::TempDir;

struct Sqlite;

#[async_trait]
impl Backend for Sqlite {
    async fn fresh(&self) -> Box<dyn Database> {
        let file = File(TempDir::new().expect("a directory"));
        SqliteStore::migrate(&file.options()).await.expect("a fresh file");
        Box::new(file)
    }

    fn features(&self) -> Features {
        Features { server_identity: false }
    }
}

struct File(TempDir);

impl File {
    fn options(&self) -> SqliteOptions {
        SqliteOptions::new(self.0.path().join("cdc.db"))
    }
}

#[async_trait]
impl Database for File {
    async fn open(&self) -> Arc<dyn MetadataStore> {
        Arc::new(SqliteStore::open(self.options()).await.expect("the file opens"))
    }

    async fn open_with(&self, faults: Arc<dyn Faults>) -> Arc<dyn MetadataStore> {
        let options = SqliteOptions { faults: Some(faults), ..self.options() };
        Arc::new(SqliteStore::open(options).await.expect("the file opens"))
    }

    async fn execute(&self, sql: &str) {
        let url = format!("sqlite://{}", self.options().path.display());
        let mut db = sqlx::SqliteConnection::connect(&url).await.expect("a connection");
        db.execute(AssertSqlSafe(sql.to_owned())).await.expect("the statement runs");
        db.close().await.expect("it closes");
    }

    async fn close(self: Box<Self>) {
        self.0.close().expect("the directory goes");
    }
}

metadata_conformance::conformance_suite!(Sqlite);
