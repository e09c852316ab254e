//! The suite that every store passes, each case on a database of its own.
#![expect(clippy::expect_used, reason = "a statement that the model cannot read is a mistake in the test")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use metadata_api::model::{ChangefeedUuid, Revision};
use metadata_api::store::MetadataStore;
use metadata_api::store::faults::Faults;
use metadata_conformance::harness::{Backend, Database, Features};
use metadata_memory::{DatabaseClock, MemoryCluster, MemoryOptions, Table, Tamper};

#[derive(Debug)]
struct SystemClock;

impl DatabaseClock for SystemClock {
    fn monotonic(&self) -> Duration {
        // Nothing is late here.
        Duration::ZERO
    }

    #[expect(clippy::disallowed_methods, reason = "this is the database server's clock")]
    fn wall(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

struct Memory;

#[async_trait]
impl Backend for Memory {
    async fn fresh(&self) -> Box<dyn Database> {
        Box::new(Db(MemoryCluster::new(Arc::new(SystemClock))))
    }

    fn features(&self) -> Features {
        Features { server_identity: false }
    }
}

struct Db(MemoryCluster);

#[async_trait]
impl Database for Db {
    async fn open(&self) -> Arc<dyn MetadataStore> {
        Arc::new(self.0.open())
    }

    async fn open_with(&self, faults: Arc<dyn Faults>) -> Arc<dyn MetadataStore> {
        Arc::new(self.0.open_with(MemoryOptions { faults: Some(faults), ..MemoryOptions::default() }))
    }

    async fn execute(&self, sql: &str) {
        for statement in sql.split(';') {
            self.0.tamper(tamper(&self.0, statement));
        }
    }

    async fn close(self: Box<Self>) {}
}

/// There is no SQL here: what the suite's statements do is said in the model's own words.
fn tamper(cluster: &MemoryCluster, statement: &str) -> Tamper {
    let table = |name: &str| {
        let found = Table::ALL.into_iter().find(|table| table.name() == name);
        found.unwrap_or_else(|| panic!("no table `{name}`, in `{statement}`"))
    };
    let words: Vec<&str> = statement.split_whitespace().collect();
    match words.as_slice() {
        ["DELETE", "FROM", name] => Tamper::DeleteAll(table(name)),
        ["UPDATE", "capture", "SET", "heartbeat_seq", "=", value] => {
            Tamper::SetHeartbeats(value.parse().expect("a number"))
        }
        ["UPDATE", "fence", "SET", "controller_epoch", "=", "0"]
        | ["UPDATE", "election", "SET", "leader_id", "=", "NULL,", ..] => Tamper::ResetElection,
        ["UPDATE", "fence", "SET", "revision", "=", "revision", "+", ahead] => {
            let now = cluster.read(|tables| tables.revision().0);
            Tamper::SetRevision(Revision(now + ahead.parse::<u64>().expect("a number")))
        }
        ["UPDATE", "fence", "SET", "revision", "=", value] => {
            Tamper::SetRevision(Revision(value.parse().expect("a number")))
        }
        [
            "UPDATE",
            name @ "changefeed_state",
            "SET",
            "state",
            "=",
            _,
            "WHERE",
            "changefeed_uuid",
            "=",
            uuid,
        ]
        | [
            "UPDATE",
            name @ "schedule",
            "SET",
            "owner_state",
            "=",
            _,
            "WHERE",
            "changefeed_uuid",
            "=",
            uuid,
        ] => Tamper::MakeFeedUnreadable(table(name), ChangefeedUuid(uuid.parse().expect("a number"))),
        ["UPDATE", "processor", "SET", "state", "=", _, "WHERE", "changefeed_uuid", "=", uuid] => {
            Tamper::MakeProcessorsUnreadable(ChangefeedUuid(uuid.parse().expect("a number")))
        }
        ["UPDATE", name @ ("capture" | "changefeed_state"), "SET", "state", "=", _]
        | ["UPDATE", name @ "progress", "SET", "value", "=", ..] => Tamper::MakeUnreadable(table(name)),
        _ => panic!("the model does not know `{statement}`"),
    }
}

metadata_conformance::conformance_suite!(Memory);
