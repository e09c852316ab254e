//! The suite that every store passes, on each kind of server, each case on a database that nobody else uses, as a user
//! that may do what [`PRIVILEGES`](metadata_mysql::PRIVILEGES) says and nothing else.
//!
//! Creating a schema is the better half of a short case, so on a server of the tests' own a database is used again: all
//! rows are deleted and the first ones written anew, once no session on it is left that could still write.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use metadata_api::store::MetadataStore;
use metadata_api::store::faults::Faults;
use metadata_conformance::harness::{Backend, Database, Features};
use metadata_mysql::{MysqlOptions, MysqlStore, migrate};
use test_servers::{Kind, drop_database, execute, fresh_database, sessions_are_gone};

use crate::grants::User;

/// A kind of server.
pub struct Server(pub Kind);

#[async_trait]
impl Backend for Server {
    async fn fresh(&self) -> Box<dyn Database> {
        let kind = self.0;
        let schema = match Schema::left_by_another_case(kind) {
            Some(schema) => {
                execute(&schema.url, EMPTY).await;
                schema
            }
            None => Schema::create(kind).await,
        };
        Box::new(schema)
    }

    fn features(&self) -> Features {
        Features { server_identity: self.0 == Kind::Mysql }
    }
}

/// How long the sessions of a case that ended may stay: a statement that waits for a lock is not ended by its client's end.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// How long a call may try again. The cases let eight writers meet at one row on a machine that does much else, and `TiDB`
/// gives a lock to any of those who wait: the unlucky one of them is to be late, and not to fail.
const PATIENCE: Duration = Duration::from_mins(1);

/// Takes every table back to what the last migration left.
const EMPTY: &str = concat!(
    "DELETE FROM capture; DELETE FROM upstream; DELETE FROM changefeed_info; DELETE FROM changefeed_state; \
     DELETE FROM schedule; DELETE FROM processor; DELETE FROM progress; DELETE FROM cluster; DELETE FROM fence; \
     DELETE FROM election; ",
    include_str!("../../../migrations/0011_first_rows.sql")
);

struct Schema {
    kind: Kind,
    /// As root.
    url: String,
    /// As the store's own user.
    store_url: String,
}

static LEFT: Mutex<Vec<Schema>> = Mutex::new(Vec::new());

impl Schema {
    async fn create(kind: Kind) -> Self {
        let url = fresh_database(&kind.url().await).await;
        migrate(MysqlOptions::from_url(&url).expect("a URL")).await.expect("an empty database");
        let user = User::create(&url).await;
        user.grant_all().await;
        Self { kind, store_url: user.url(), url }
    }

    fn options(&self) -> MysqlOptions {
        MysqlOptions::from_url(&self.store_url).expect("a URL").give_up_after(PATIENCE)
    }

    fn left_by_another_case(kind: Kind) -> Option<Self> {
        let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        let at = left.iter().position(|schema| schema.kind == kind)?;
        Some(left.swap_remove(at))
    }
}

#[async_trait]
impl Database for Schema {
    async fn open(&self) -> Arc<dyn MetadataStore> {
        Arc::new(MysqlStore::open(self.options()).await.expect("the database opens"))
    }

    async fn open_with(&self, faults: Arc<dyn Faults>) -> Arc<dyn MetadataStore> {
        Arc::new(MysqlStore::open_with_faults(self.options(), faults).await.expect("the database opens"))
    }

    async fn execute(&self, sql: &str) {
        execute(&self.url, sql).await;
    }

    async fn close(self: Box<Self>) {
        if self.kind.is_borrowed() {
            User::of(&self.url).drop().await;
            return drop_database(&self.url).await;
        }
        sessions_are_gone(&self.url, GONE_WITHIN).await;
        LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(*self);
    }
}

/// A table that [`EMPTY`] does not know would carry rows from case to case.
#[test]
fn every_table_is_emptied() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    for file in std::fs::read_dir(folder).expect("the migrations") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("its text");
        for statement in text.split("CREATE TABLE IF NOT EXISTS ").skip(1) {
            let table = statement.split_whitespace().next().expect("a name");
            assert!(EMPTY.contains(&format!("DELETE FROM {table};")), "{table}");
        }
    }
}
