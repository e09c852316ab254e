//! The `mysql://` source on a real server. Each test has a database of its own on the shared server; what changes
//! the server as a whole has a server of its own.

use std::sync::Arc;
use std::time::Duration;

use capture_runtime::task::{PreparedTask, TaskError, TaskSpec};
use chrono::DateTime;
use metadata_api::model::{
    CaptureId, ChangefeedInfo, ChangefeedName, ChangefeedProgress, ChangefeedUuid, OwnerEpoch, OwnerTerm,
    ReplicaConfig, SecretUri, Ts, UpstreamId, UpstreamInfo, Version,
};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts};
use replicator::event::{Change, Resolved, RowOp, SourceEvent, Value};
use replicator::source::mysql::MysqlFactory;
use replicator::source::{Launch, Source, SourceFactory as _};
use test_servers::{fresh_database, mysql_url};
use tokio::time::timeout;
use url::Url;

mod end_to_end;
mod refusals;
mod resume;
mod rows;
mod transactions;
mod types;

/// The machines of the tests are busy.
const LIMIT: Duration = Duration::from_secs(120);

/// A database with a connection to write with.
pub(crate) struct Db {
    pub(crate) url: String,
    pub(crate) name: String,
    pub(crate) conn: Conn,
}

impl Db {
    /// On the shared server.
    pub(crate) async fn new() -> Self {
        Self::on(&mysql_url().await).await
    }

    pub(crate) async fn on(server: &str) -> Self {
        let url = fresh_database(server).await;
        let name = Url::parse(&url).unwrap().path().trim_start_matches('/').to_owned();
        let conn = Conn::new(Opts::from_url(&url).unwrap()).await.unwrap();
        Self { url, name, conn }
    }

    /// A name for a user of the test's own; they are 32 characters at most.
    pub(crate) fn user(&self) -> String {
        self.name.chars().take(30).collect()
    }

    pub(crate) async fn run(&mut self, sql: &str) {
        run(&mut self.conn, sql).await;
    }

    /// The server's time, as a ts.
    pub(crate) async fn now(&mut self) -> Ts {
        now(&mut self.conn).await
    }

    /// A start of now.
    pub(crate) async fn prepare(&self) -> PreparedTask {
        MysqlFactory.prepare(&spec(&self.url)).await.unwrap()
    }

    pub(crate) async fn open(&self, start: &ChangefeedProgress) -> Box<dyn Source> {
        MysqlFactory.open(&launch(&self.url, 1, start)).await.unwrap()
    }

    /// What comes after `start`, until now.
    pub(crate) async fn read(&mut self, start: &ChangefeedProgress) -> Vec<SourceEvent> {
        let until = self.now().await;
        let mut source = self.open(start).await;
        read_until(&mut *source, until).await.unwrap()
    }

    /// As [`Self::read`], which ends with an error.
    pub(crate) async fn read_err(&mut self, start: &ChangefeedProgress) -> TaskError {
        let until = self.now().await;
        let mut source = self.open(start).await;
        match read_until(&mut *source, until).await {
            Err(error) => error,
            Ok(events) => panic!("no error: {events:?}"),
        }
    }
}

pub(crate) async fn run(conn: &mut Conn, sql: &str) {
    conn.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

pub(crate) async fn now(conn: &mut Conn) -> Ts {
    let sql = "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS UNSIGNED)";
    let micros: u64 = conn.query_first(sql).await.unwrap().unwrap();
    Ts(Ts::from_physical_ms(micros / 1000).0 | (micros % 1000) << 8)
}

/// Reads until a mark at or after `until`.
pub(crate) async fn read_until(source: &mut dyn Source, until: Ts) -> Result<Vec<SourceEvent>, TaskError> {
    let mut events = Vec::new();
    loop {
        let event = timeout(LIMIT, source.next()).await.expect("an event in time")?;
        let end = matches!(&event, SourceEvent::Resolved(mark) if mark.ts >= until);
        events.push(event);
        if end {
            return Ok(events);
        }
    }
}

pub(crate) fn changes(events: &[SourceEvent]) -> Vec<Change> {
    events
        .iter()
        .filter_map(|event| match event {
            SourceEvent::Changes(changes) => Some(changes.clone()),
            SourceEvent::Resolved(_) => None,
        })
        .flatten()
        .collect()
}

/// What happened to rows, as (table, operation).
pub(crate) fn ops(events: &[SourceEvent]) -> Vec<(String, RowOp)> {
    changes(events)
        .into_iter()
        .filter_map(|change| match change {
            Change::Row(row) => Some((row.table.name.clone(), row.op)),
            Change::Ddl(_) => None,
        })
        .collect()
}

pub(crate) fn progress(mark: &Resolved) -> ChangefeedProgress {
    ChangefeedProgress { position: mark.position.clone(), ..ChangefeedProgress::at(mark.ts) }
}

pub(crate) fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

pub(crate) fn uri(text: &str) -> SecretUri {
    SecretUri::parse("upstream_uri", text).unwrap()
}

pub(crate) fn spec(upstream: &str) -> TaskSpec {
    TaskSpec {
        name: ChangefeedName::new("default", "test").unwrap(),
        upstream_uri: uri(upstream),
        sink_uri: SecretUri::parse("sink_uri", "blackhole://").unwrap(),
        start_ts: None,
        target_ts: Ts::ZERO,
        config: ReplicaConfig::default(),
    }
}

pub(crate) fn launch(upstream: &str, epoch: u64, start: &ChangefeedProgress) -> Launch {
    let info = ChangefeedInfo {
        uuid: ChangefeedUuid(7),
        name: ChangefeedName::new("default", "test").unwrap(),
        upstream: UpstreamId(1),
        sink_uri: SecretUri::parse("sink_uri", "blackhole://").unwrap(),
        start_ts: start.checkpoint_ts,
        target_ts: Ts::ZERO,
        config: ReplicaConfig::default(),
        creator_version: "v0".to_owned(),
        client_request_id: CaptureId::random().0,
        created_at: DateTime::UNIX_EPOCH,
        removed_at: None,
        version: Version(1),
    };
    Launch {
        share: None,
        term: OwnerTerm { changefeed: info.uuid, capture: CaptureId::random(), epoch: OwnerEpoch(epoch) },
        launch: 1,
        info: Arc::new(info),
        upstream: UpstreamInfo { id: UpstreamId(1), uri: uri(upstream) },
        start: start.clone(),
    }
}
