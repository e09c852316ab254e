//! The server itself in trouble: it crashes, it is demoted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metadata_api::MetadataError;
use metadata_api::model::{CaptureId, NewCapture};
use metadata_api::store::{CaptureStore as _, QueryStore as _};
use metadata_mysql::{MysqlOptions, MysqlStore, migrate};
use test_servers::proxy::Proxy;
use test_servers::{Kind, Server, execute};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use url::Url;

use super::LIMIT;

/// A server of its own with a cluster's database on it, which a store reaches through a proxy, so that the address stays
/// whatever becomes of the server.
struct Scene {
    server: Server,
    proxy: Proxy,
    store: MysqlStore,
}

impl Scene {
    async fn new(kind: Kind) -> Self {
        let server = kind.start_on_disk().await;
        execute(server.url(), "CREATE DATABASE cdc_test_meta").await;
        execute(server.url(), "CREATE USER cdc@'%' IDENTIFIED BY ''").await;
        execute(
            server.url(),
            "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON cdc_test_meta.* TO cdc@'%'",
        )
        .await;
        let proxy = Proxy::start(server.url()).await;
        let mut url = Url::parse(&proxy.url(server.url())).expect("a URL");
        url.set_path("cdc_test_meta");
        url.set_username("cdc").expect("it takes a user");
        let options = MysqlOptions::from_url(url.as_str()).expect("a URL");
        migrate(options.clone()).await.expect("an empty database");
        let options = options.give_up_after(Duration::from_secs(3));
        let store = MysqlStore::open(options).await.expect("it opens");
        Self { server, proxy, store }
    }
}

/// What became of one registration.
struct Registered {
    new: NewCapture,
    outcome: Result<(), MetadataError>,
}

fn new_capture() -> NewCapture {
    NewCapture {
        id: CaptureId::random(),
        advertise_addr: "127.0.0.1:8300".to_owned(),
        version: "v0".to_owned(),
        labels: std::collections::BTreeMap::new(),
        machine_id: String::new(),
    }
}

/// Several writers that register captures without end; and what became of each.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    outcomes: mpsc::UnboundedReceiver<Registered>,
    all: Vec<Registered>,
}

impl Writers {
    fn start(store: &MysqlStore) -> Self {
        let (sender, outcomes) = mpsc::unbounded_channel();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |_| {
            let (store, sender, stop) = (store.clone(), sender.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let new = new_capture();
                    let outcome = store.capture_register(&new).await.map(drop);
                    if sender.send(Registered { new, outcome }).is_err() {
                        return;
                    }
                }
            })
        };
        let tasks = (0..4).map(writer).collect();
        Self { stop, tasks, outcomes, all: Vec::new() }
    }

    /// Waits for the next `count` outcomes of a kind.
    async fn wait_for(&mut self, count: usize, wanted: impl Fn(&Registered) -> bool) {
        let mut met = 0;
        let enough = async {
            while met < count {
                let next = self.outcomes.recv().await.expect("the writers go on");
                met += usize::from(wanted(&next));
                self.all.push(next);
            }
        };
        timeout(LIMIT, enough).await.expect("so many outcomes");
    }

    async fn end(mut self) -> Vec<Registered> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no panic");
        }
        while let Ok(next) = self.outcomes.try_recv() {
            self.all.push(next);
        }
        self.all
    }
}

/// Each outcome is what is in the table: registered, not registered, or unknown, and then a repeated call settles it.
async fn check(store: &MysqlStore, all: &[Registered]) {
    for Registered { new, outcome } in all {
        let there = store.captures(Some(&[new.id])).await.expect("a read").len();
        match outcome {
            Ok(()) => assert_eq!(there, 1, "acknowledged, and lost"),
            Err(MetadataError::Unavailable { .. }) => assert_eq!(there, 0, "{outcome:?}"),
            Err(MetadataError::Unknown { .. }) => {
                store.capture_register(new).await.expect("a repeated call");
                let there = store.captures(Some(&[new.id])).await.expect("a read").len();
                assert_eq!(there, 1, "{outcome:?}");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// A server that is killed under load and comes back: nothing acknowledged is lost, nothing is told wrong, and the store goes
/// on by itself.
pub async fn a_crash_loses_nothing_that_was_acknowledged(kind: Kind) {
    let Scene { mut server, proxy, store } = Scene::new(kind).await;
    let mut writers = Writers::start(&store);
    for _ in 0..2 {
        writers.wait_for(20, |one| one.outcome.is_ok()).await;
        server.crash_and_restart().await;
        proxy.lead_to(server.url());
        writers.wait_for(20, |one| one.outcome.is_ok()).await;
    }
    let all = writers.end().await;
    let failed = all.iter().filter(|one| one.outcome.is_err()).count();
    println!("{} registrations, {failed} of which failed", all.len());
    check(&store, &all).await;
}

/// A server that turns read-only under load, as after a failover: nothing is written by the old connections, the error says
/// what it is, and the store goes on when it may write again.
pub async fn a_demoted_server_is_told_as_such(kind: Kind) {
    let Scene { server, proxy: _proxy, store } = Scene::new(kind).await;
    let (demote, promote) = match kind {
        Kind::Mysql => ("SET GLOBAL super_read_only = ON", "SET GLOBAL read_only = OFF"),
        Kind::Mariadb => ("SET GLOBAL read_only = ON", "SET GLOBAL read_only = OFF"),
        Kind::Tidb => (
            "SET GLOBAL tidb_super_read_only = ON",
            "SET GLOBAL tidb_restricted_read_only = OFF; SET GLOBAL tidb_super_read_only = OFF",
        ),
    };
    let term = store.capture_register(&new_capture()).await.expect("registered");
    let mut heartbeat = store.heartbeat_channel().await.expect("a channel");
    heartbeat.beat(term, 0, 1).await.expect("a beat");
    let mut writers = Writers::start(&store);
    writers.wait_for(20, |one| one.outcome.is_ok()).await;
    execute(server.url(), demote).await;
    writers.wait_for(8, |one| one.outcome.is_err()).await;
    let refused = writers.all.iter().rev().find_map(|one| one.outcome.as_ref().err()).expect("one of them");
    let text = std::iter::successors(Some(refused as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ");
    assert!(text.contains("read-only") || text.contains("read only"), "{text}");
    let error = heartbeat.beat(term, 1, 2).await.expect_err("a beat is a write");
    assert!(error.is_transient(), "{error:?}");
    execute(server.url(), promote).await;
    writers.wait_for(8, |one| one.outcome.is_ok()).await;
    check(&store, &writers.end().await).await;
    let again = async {
        loop {
            let beat = async { store.heartbeat_channel().await?.beat(term, 1, 3).await };
            if beat.await.is_ok() {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LIMIT, again).await.expect("a beat on another channel");
}
