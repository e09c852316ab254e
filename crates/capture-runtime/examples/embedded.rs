//! A CDC of your own on these crates: two captures share four changefeeds, whose "replication" is to print a line.
//!
//! ```sh
//! cargo run -p capture-runtime --example embedded
//! ```
//!
//! What is yours is [`Printer`]: it implements [`TaskFactory`]. The rest is what any process of such a cluster does: open
//! a store, run a [`Capture`], and let operators work through [`Admin`]. Here both captures live in one process; in
//! production each is a process of its own, and the store a MySQL that they share (`metadata_mysql::MysqlStore`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use capture_runtime::admin::Admin;
use capture_runtime::clock::{Clock, SystemClock};
use capture_runtime::task::{
    NotAdmitted, PreparedTask, TaskContext, TaskEnd, TaskError, TaskFactory, TaskSpec,
};
use capture_runtime::{Capture, CaptureConfig};
use metadata_api::decision::lease::TimePolicy;
use metadata_api::decision::planner::PlanPolicy;
use metadata_api::model::{ChangefeedName, ChangefeedProgress, NewChangefeed, ReplicaConfig, SecretUri, Ts};
use metadata_api::observation::ChangefeedAdmin as _;
use metadata_api::store::MetadataStore;
use metadata_sqlite::{SqliteOptions, SqliteStore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long one line may take to reach the terminal.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// What a changefeed runs here.
struct Printer {
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl TaskFactory for Printer {
    /// Is asked before a changefeed is created; here anything goes, from now on.
    async fn prepare(&self, spec: &TaskSpec) -> Result<PreparedTask, TaskError> {
        let start_ts = spec.start_ts.unwrap_or_else(|| Ts::from_time(self.clock.wall()));
        Ok(PreparedTask { start_ts, task_position: ChangefeedProgress::at(start_ts) })
    }

    /// One launch: until told to stop, something goes outside, admitted first and reported after.
    async fn run(&self, context: TaskContext) -> Result<TaskEnd, TaskError> {
        let mut every = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                () = context.stop.cancelled() => return Ok(TaskEnd::Stopped),
                _ = every.tick() => {}
            }
            // Nothing goes outside without this: the process may have been stopped for a minute just now.
            let permit = match context.admission.admit(FLUSH_TIMEOUT) {
                Ok(permit) => permit,
                Err(NotAdmitted::TooLong) => continue,
                Err(NotAdmitted::Stopping | NotAdmitted::Fenced) => return Ok(TaskEnd::Stopped),
            };
            let now = Ts::from_time(self.clock.wall());
            println!(
                "{} at epoch {} on {}: up to {now}",
                context.info.name, context.term.epoch, context.term.capture
            );
            permit.done();
            // From here a successor goes on, should this capture die.
            context.reporter.report(ChangefeedProgress::at(now));
        }
    }
}

/// One capture of the cluster; it runs until `stop`.
fn start_capture(
    store: Arc<dyn MetadataStore>,
    advertise_addr: &str,
    stop: CancellationToken,
) -> anyhow::Result<tokio::task::JoinHandle<Result<(), capture_runtime::RuntimeError>>> {
    let clock = SystemClock::shared();
    let config = CaptureConfig {
        advertise_addr: advertise_addr.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: [].into(),
        machine_id: String::new(),
        time: TimePolicy::default(),
        plan: PlanPolicy::default(),
        lineage: None,
    };
    let capture = Capture::new(store, Arc::new(Printer { clock: clock.clone() }), clock, config)?;
    Ok(tokio::spawn(async move { capture.run(stop).await }))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let options = SqliteOptions::new(dir.path().join("cdc.db"));
    SqliteStore::migrate(&options).await?;
    let store: Arc<dyn MetadataStore> = Arc::new(SqliteStore::open(options).await?);

    let stop = CancellationToken::new();
    let captures = [
        start_capture(store.clone(), "host-a:8300", stop.clone())?,
        start_capture(store.clone(), "host-b:8300", stop.clone())?,
    ];

    let admin = Admin::new(store.clone());
    let start_ts = Ts::from_time(SystemClock.wall());
    for n in 1..=4 {
        let created = admin
            .create(&NewChangefeed {
                name: ChangefeedName::new("default", &format!("feed-{n}"))?,
                upstream_id: None,
                upstream_uri: SecretUri::parse("upstream_uri", "clock://")?,
                sink_uri: SecretUri::parse("sink_uri", "terminal://")?,
                start_ts,
                target_ts: Ts::ZERO,
                config: ReplicaConfig::default(),
                creator_version: env!("CARGO_PKG_VERSION").to_owned(),
                client_request_id: Uuid::new_v4(),
                task_position: ChangefeedProgress::at(start_ts),
            })
            .await?;
        println!("created {} with uuid {}", created.name, created.uuid);
    }

    tokio::time::sleep(Duration::from_secs(5)).await;
    println!("stopping: each capture drains, releases what it owns, and deregisters");
    stop.cancel();
    for capture in captures {
        capture.await??;
    }
    for schedule in store.schedule_snapshot().await?.changefeeds {
        println!(
            "{} is {} and goes on after {}",
            schedule.schedule.changefeed,
            schedule.schedule.state,
            schedule.schedule.task_position.checkpoint_ts
        );
    }
    Ok(())
}
