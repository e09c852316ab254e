//! Server processes on one store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use capture_runtime::clock::{BootTime, Clock, SystemClock};
use cdc::api::model::{Capture, ChangeFeedInfo, ChangefeedConfig, List, ServerStatus};
use cdc::cli::{CallError, Client};
use cdc::demo::check::check_all;
pub use cdc::demo::cluster::feed_id;
use cdc::demo::cluster::upstream_uri;
use cdc::demo::process::ServerProcess;
use cdc::demo::scene::Feed;
use metadata_api::model::{ChangefeedName, ChangefeedOverview, ScheduleState, Ts};
use metadata_api::store::MetadataStore;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use test_servers::proxy::Proxy;
use url::Url;

use super::{FeedLook, Kind, Look, PATIENCE, TestStore, Watcher, now};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cdc-under-test");
/// How fast each changefeed's source is.
pub const ROWS_PER_SECOND: u64 = 50;
/// How much of each log is shown when a test fails.
const LOG_LINES: usize = 40;

/// Server processes, the database that they share, and what is seen of them. Everything ends with it.
pub struct Cluster {
    /// Their store.
    pub store: TestStore,
    /// Looks at them.
    pub watcher: Watcher,
    dir: TempDir,
    servers: Vec<ServerProcess>,
    /// By which URL each server reaches the store.
    urls: Vec<String>,
    clock: Arc<dyn Clock>,
}

/// What a capture had when it was struck.
#[derive(Debug)]
pub struct Struck {
    /// When.
    pub at: BootTime,
    /// The capture.
    pub capture: String,
    /// Its changefeeds at that moment.
    pub feeds: BTreeMap<String, FeedLook>,
    /// Those of the others.
    pub others: BTreeMap<String, FeedLook>,
}

impl Cluster {
    /// `servers` servers on an empty store; all of them take part.
    pub async fn start(kind: Kind, servers: usize) -> Self {
        let dir = directory();
        let store = TestStore::new(kind, dir.path()).await;
        Self::on(store, dir, servers).await
    }

    /// The same, on a store that can be paused.
    pub async fn start_on_own_database(kind: Kind, servers: usize) -> Self {
        let dir = directory();
        let store = TestStore::that_can_be_paused(kind, dir.path()).await;
        Self::on(store, dir, servers).await
    }

    /// The same on a server of its own whose data outlives it, each server behind a proxy of its own.
    pub async fn start_behind_proxies(kind: Kind, servers: usize) -> (Self, Vec<Proxy>) {
        let store = TestStore::that_can_be_killed(kind).await;
        let mut proxies = Vec::new();
        for _ in 0..servers {
            proxies.push(Proxy::start(&store.url).await);
        }
        let urls = proxies.iter().map(|proxy| proxy.url(&store.url)).collect();
        (Self::reached_by(store, directory(), urls).await, proxies)
    }

    async fn on(store: TestStore, dir: TempDir, servers: usize) -> Self {
        let urls = vec![store.url.clone(); servers];
        Self::reached_by(store, dir, urls).await
    }

    async fn reached_by(store: TestStore, dir: TempDir, urls: Vec<String>) -> Self {
        let watcher = Watcher::start(&dir.path().join("out"));
        let servers = (1..=urls.len()).map(|n| ServerProcess::new(dir.path(), &format!("s{n}"))).collect();
        let mut cluster = Self { store, watcher, dir, servers, urls, clock: SystemClock::shared() };
        for at in 0..cluster.servers.len() {
            cluster.spawn(at);
        }
        for at in 0..cluster.servers.len() {
            cluster.await_ready(at).await;
        }
        cluster
    }

    fn spawn(&mut self, at: usize) {
        self.servers[at].spawn(Path::new(PROGRAM), &self.urls[at], &[]).expect("it starts");
    }

    async fn await_ready(&mut self, at: usize) {
        let clock = self.clock.clone();
        if let Err(failure) = self.servers[at].await_ready(&clock).await {
            panic!("{failure}");
        }
        self.tell_watcher(None);
    }

    /// Has the watcher ask every server that runs, but for `without`.
    fn tell_watcher(&self, without: Option<usize>) {
        let asked = self.servers.iter().enumerate().filter(|(at, _)| Some(*at) != without);
        let addrs = asked.map(|(_, server)| server.addr().to_owned()).filter(|addr| !addr.is_empty());
        self.watcher.set_addrs(addrs.collect());
    }

    /// How many servers there are, running or not.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// One server.
    pub fn server(&self, at: usize) -> &ServerProcess {
        &self.servers[at]
    }

    /// A client of one server.
    pub fn client(&self, at: usize) -> Client {
        self.servers[at].client().expect("it runs")
    }

    /// The cluster's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the changefeeds write.
    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// What the server says of itself.
    pub async fn status(&self, at: usize) -> ServerStatus {
        // Under /api it would not answer while it is not ready.
        let (_, text) = self.page(at, "/status").await;
        serde_json::from_str(&text).expect("a status")
    }

    /// The server of a capture.
    pub async fn server_of(&self, capture: &str) -> usize {
        for at in 0..self.servers.len() {
            if self.servers[at].is_up() && self.status(at).await.id == capture {
                return at;
            }
        }
        panic!("no server says that it is capture {capture}");
    }

    // ---- changefeeds ----

    /// Creates `feed-01` to `feed-{count}`, each through another server.
    pub async fn create_feeds(&self, count: u16) {
        self.create_feeds_at(count, ROWS_PER_SECOND).await;
    }

    /// The same, with sources of another speed: for [`Self::finish_at`].
    pub async fn create_feeds_at(&self, count: u16, rows_per_second: u64) {
        for n in 1..=count {
            let client = self.client(usize::from(n) % self.servers.len());
            let body = ChangefeedConfig {
                upstream_uri: upstream_uri(rows_per_second, u64::from(n)),
                ..feed_body(&self.out(), n)
            };
            self.create(&client, &body).await.expect("it is created");
        }
    }

    /// Creates one changefeed.
    pub async fn create(
        &self,
        client: &Client,
        body: &ChangefeedConfig,
    ) -> Result<ChangeFeedInfo, CallError> {
        client.call(Method::POST, &["changefeeds"], &[], Some(body)).await
    }

    /// Any call without a body through one server.
    pub async fn call(&self, at: usize, method: Method, path: &[&str]) -> Result<Value, CallError> {
        self.client(at).call(method, path, &[], None::<&Value>).await
    }

    // ---- seeing ----

    /// Looks until `seen` is content with what it sees, and says with what and when. What was asked before the call does not
    /// count.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut seen: impl FnMut(&Look) -> Result<T, String>,
    ) -> (T, BootTime) {
        let start = now();
        let mut looks = self.watcher.looks();
        let mut last = "no server answered".to_owned();
        let waited = tokio::time::timeout(limit, async {
            loop {
                looks.changed().await.expect("the watcher lives");
                let look = looks.borrow_and_update().clone();
                if look.asked_at < start {
                    continue;
                }
                match seen(&look) {
                    Ok(value) => return (value, look.at),
                    Err(why) => last = why,
                }
            }
        })
        .await;
        waited.unwrap_or_else(|_| panic!("{what}: not within {limit:?}; last seen: {last}"))
    }

    /// How it is now.
    pub async fn look(&self) -> Look {
        self.wait_for("a look", PATIENCE, |look| Ok(look.clone())).await.0
    }

    /// Waits until every changefeed has one owner that lives, and the captures' counts differ by at most 1.
    pub async fn balanced(&self) -> Look {
        self.balanced_but(&[]).await
    }

    /// The same, but for changefeeds that are stopped and rest.
    pub async fn balanced_but(&self, stopped: &[&str]) -> Look {
        let up = self.servers.iter().filter(|server| server.is_up()).count();
        let balanced = |look: &Look| {
            let counts = look.counts();
            let (least, most) = (counts.values().min(), counts.values().max());
            let spread = most.zip(least).map_or(0, |(most, least)| most - least);
            let stands = |id: &String, feed: &FeedLook| {
                let rests = stopped.contains(&id.as_str());
                feed.owner.is_none() == rests && feed.schedule == if rests { "removed" } else { "launched" }
            };
            let launched = look.feeds.iter().all(|(id, feed)| stands(id, feed));
            if look.captures.len() == up && counts.len() == up && launched && spread <= 1 {
                Ok(look.clone())
            } else {
                Err(format!("{counts:?}, all launched: {launched}, {:#?}", look.feeds))
            }
        };
        self.wait_for("every changefeed has an owner, evenly", PATIENCE, balanced).await.0
    }

    /// Waits until every changefeed that is not stopped moves.
    pub async fn all_move(&self) {
        let mut first: Option<Look> = None;
        let moves = |look: &Look| {
            let first = first.get_or_insert_with(|| look.clone());
            let stuck = look.feeds.iter().filter(|(id, feed)| {
                feed.state != "stopped"
                    && first.feeds.get(*id).is_none_or(|before| feed.checkpoint <= before.checkpoint)
            });
            let stuck: Vec<_> = stuck.map(|(id, feed)| format!("{id} {feed:?}")).collect();
            if stuck.is_empty() { Ok(()) } else { Err(format!("these stand still: {stuck:#?}")) }
        };
        self.wait_for("every changefeed moves", PATIENCE, moves).await;
    }

    /// Waits until every changefeed's checkpoint is past a moment of the wall clock, in milliseconds.
    pub async fn caught_up(&self, end_ms: u64) {
        let past = |look: &Look| {
            let behind = |checkpoint| Ts(checkpoint).physical_ms() <= end_ms;
            let late: Vec<_> = look.feeds.iter().filter(|(_, feed)| behind(feed.checkpoint)).collect();
            if late.is_empty() { Ok(()) } else { Err(format!("behind: {late:#?}")) }
        };
        self.wait_for("everything is in the files", 2 * PATIENCE, past).await;
    }

    /// The one that all servers name as controller, once they do, and its server.
    pub async fn controller(&self) -> (String, usize) {
        let start = now();
        loop {
            let views = self.controller_views().await;
            let running = self.servers.iter().filter(|server| server.is_up()).count();
            if let Some((Some(id), _)) = views.first()
                && views.len() == running
                && views.iter().all(|(named, is_it)| {
                    named.as_ref() == Some(id) && (*is_it == Some(id.clone()) || is_it.is_none())
                })
                && views.iter().filter(|(_, is_it)| is_it.is_some()).count() == 1
            {
                return (id.clone(), self.server_of(id).await);
            }
            assert!(now().since(start) < PATIENCE, "the servers do not agree on one controller: {views:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// For each running server: whom its list of captures names as controller, and its own id if it says that it is it.
    async fn controller_views(&self) -> Vec<(Option<String>, Option<String>)> {
        let mut views = Vec::new();
        for at in (0..self.servers.len()).filter(|at| self.servers[*at].is_up()) {
            let captures: List<Capture> = match self.client(at).get(&["captures"], &[]).await {
                Ok(captures) => captures,
                Err(_) => continue,
            };
            let named: Vec<String> = captures
                .items
                .into_iter()
                .filter(|capture| capture.is_owner)
                .map(|capture| capture.id)
                .collect();
            assert!(named.len() <= 1, "s{} names several controllers: {named:?}", at + 1);
            let status = self.status(at).await;
            views.push((named.into_iter().next(), status.is_owner.then_some(status.id)));
        }
        views
    }

    // ---- faults ----

    /// What a server's capture has, just before it is struck.
    pub async fn about_to_strike(&self, at: usize) -> Struck {
        let capture = self.status(at).await.id;
        self.tell_watcher(Some(at));
        let look = self.look().await;
        let feeds = look.owned_by(&capture);
        let others = look.feeds.into_iter().filter(|(id, _)| !feeds.contains_key(id)).collect();
        Struck { at: now(), capture, feeds, others }
    }

    /// SIGKILL.
    pub async fn kill(&mut self, at: usize) -> Struck {
        let mut struck = self.about_to_strike(at).await;
        struck.at = now();
        self.servers[at].kill().await.expect("it can be killed");
        struck
    }

    /// SIGKILL, without a look at what it has: also when nobody is left to ask.
    pub async fn kill_unseen(&mut self, at: usize) {
        self.tell_watcher(Some(at));
        self.servers[at].kill().await.expect("it can be killed");
    }

    /// SIGTERM; waits for nothing.
    pub async fn terminate(&mut self, at: usize) -> Struck {
        let mut struck = self.about_to_strike(at).await;
        struck.at = now();
        self.servers[at].signal(Signal::TERM).expect("it can be told");
        struck
    }

    /// Waits until a server that was told to stop has ended, well.
    pub async fn ended(&mut self, at: usize) {
        let ended = self.servers[at].ended(PATIENCE).await;
        match ended {
            Ok(Some(status)) => assert!(status.success(), "s{} ended with {status}", at + 1),
            Ok(None) => panic!("s{} did not run", at + 1),
            Err(failure) => panic!("{failure}"),
        }
    }

    /// The servers that ended by themselves since they were started, and how.
    pub fn ended_by_themselves(&mut self) -> Vec<(usize, ExitStatus)> {
        let ended = self.servers.iter_mut().enumerate();
        ended.filter_map(|(at, server)| Some((at, server.try_ended().expect("a status")?))).collect()
    }

    /// Starts a server again.
    pub async fn start_again(&mut self, at: usize) {
        self.spawn(at);
        self.await_ready(at).await;
    }

    /// Sends a signal; the watcher asks that server no more until [`Self::watch_all`].
    pub fn signal(&self, at: usize, signal: Signal) {
        self.tell_watcher(Some(at));
        self.servers[at].signal(signal).expect("it can be sent");
    }

    /// Has the watcher ask every server again.
    pub fn watch_all(&self) {
        self.tell_watcher(None);
    }

    /// Waits until all that a capture had runs elsewhere: another owner, a later epoch, and under it the checkpoint moves.
    /// How long after the strike that was.
    pub async fn elsewhere(&self, struck: &Struck) -> Duration {
        assert!(!struck.feeds.is_empty(), "the victim had nothing");
        let mut begun: BTreeMap<(String, u64), u64> = BTreeMap::new();
        let mut at = BTreeMap::new();
        let elsewhere = |look: &Look| {
            for (id, before) in &struck.feeds {
                let feed = look.feeds.get(id).ok_or_else(|| format!("{id} is gone"))?;
                let moved = feed.epoch > before.epoch
                    && feed.owner.as_ref().is_some_and(|owner| *owner != struck.capture)
                    && feed.schedule == "launched";
                if !moved {
                    continue;
                }
                let first = *begun.entry((id.clone(), feed.epoch)).or_insert(feed.checkpoint);
                if feed.checkpoint > first.max(before.checkpoint) {
                    at.entry(id.clone()).or_insert(look.at);
                }
            }
            let missing: Vec<_> = struck
                .feeds
                .keys()
                .filter(|id| !at.contains_key(*id))
                .map(|id| format!("{id} {:?}", look.feeds.get(id)))
                .collect();
            if missing.is_empty() {
                Ok(at.values().copied().max().unwrap_or(struck.at))
            } else {
                Err(format!("these do not run elsewhere: {missing:#?}"))
            }
        };
        let (last, _) = self.wait_for("all changefeeds run elsewhere", PATIENCE, elsewhere).await;
        last.since(struck.at)
    }

    /// Waits until another capture than `former` is named as controller; how long after `since` that was.
    pub async fn new_controller(&self, former: &str, since: BootTime) -> Duration {
        let other = |look: &Look| match look.controller() {
            Some(controller) if controller != former => Ok(()),
            seen => Err(format!("the controller is {seen:?}")),
        };
        let ((), at) = self.wait_for("a new controller", PATIENCE, other).await;
        at.since(since)
    }

    /// Waits until the store has no row of a capture that is no more: the controller deletes them in its own time.
    pub async fn no_ghosts(&self) {
        let (store, start) = (self.store.open().await, now());
        loop {
            let rows = store.captures(None).await.expect("captures");
            if rows.len() == self.servers.len() {
                return;
            }
            assert!(now().since(start) < PATIENCE, "rows of captures that are no more: {rows:#?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    // ---- reading closely ----

    /// A counter of one server, summed over its labels; 0 when it never counted.
    pub async fn counter(&self, at: usize, name: &str) -> u64 {
        let (status, text) = self.page(at, "/metrics").await;
        assert_eq!(status, 200, "{text}");
        let values = text.lines().filter_map(|line| {
            let (key, value) = line.rsplit_once(' ')?;
            let named = key.strip_prefix(name)?;
            (named.is_empty() || named.starts_with('{')).then(|| value.parse::<u64>().expect("a number"))
        });
        values.sum()
    }

    /// Any page of one server: status and text.
    pub async fn page(&self, at: usize, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.servers[at].addr());
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        let answer = client.get(url).send().await.expect("it answers");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    }

    /// A changefeed, read from the store itself.
    pub async fn stored(&self, store: &dyn MetadataStore, id: &str) -> Option<ChangefeedOverview> {
        let name = ChangefeedName::new("", id).expect("a name");
        store.changefeed_overview(&name).await.expect("an overview")
    }

    // ---- the end ----

    /// Ends a test whose changefeeds are all [`feed_body`]s: as [`Self::stop`], and the files have every row that the generator
    /// must have produced up to the checkpoint.
    pub async fn finish(self) {
        self.finish_at(ROWS_PER_SECOND).await;
    }

    /// The same for sources of this speed.
    pub async fn finish_at(mut self, rows_per_second: u64) {
        let overviews = self.stop().await;
        let feeds: Vec<Feed> = overviews
            .iter()
            .map(|of| Feed {
                id: of.info.name.id.to_string(),
                uuid: of.info.uuid,
                start_ts: of.info.start_ts,
                checkpoint: of.progress.checkpoint_ts,
                ..Feed::default()
            })
            .collect();
        let findings = check_all(&self.out(), &feeds, rows_per_second).expect("the files can be read");
        assert!(findings.is_clean(), "{}", findings.summary());
        self.store.close().await;
    }

    /// Stops all servers gracefully and checks what must be so at the end of every test: each ended well and released
    /// everything, no checkpoint went back, no epoch wrote after its successor had. The changefeeds as they are then.
    pub async fn stop(&mut self) -> Vec<ChangefeedOverview> {
        self.watcher.set_addrs(Vec::new());
        for server in &self.servers {
            server.signal(Signal::TERM).expect("it can be told");
        }
        for at in 0..self.servers.len() {
            if self.servers[at].is_up() {
                self.ended(at).await;
            }
        }
        assert_eq!(self.watcher.went_back(), Vec::<String>::new(), "checkpoints went back");
        let late = self.watcher.late_writes();
        assert!(late.is_empty(), "written after a later epoch had begun: {late:#?}");
        let store = self.store.open().await;
        let captures = store.captures(None).await.expect("captures");
        assert!(captures.is_empty(), "these captures did not deregister: {captures:#?}");
        let overviews = store.changefeed_overviews(None).await.expect("overviews");
        for of in &overviews {
            assert_eq!(of.schedule.state, ScheduleState::Removed, "not released: {of:#?}");
        }
        overviews
    }
}

/// Shows what the servers had to say of a test that fails.
impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for server in &self.servers {
            eprintln!("---- the end of the log of {} ----", server.name());
            for line in server.log_tail(LOG_LINES) {
                eprintln!("{line}");
            }
        }
    }
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("cdc-cluster-").tempdir().expect("a temporary directory")
}

/// What is asked for changefeed number `n`.
pub fn feed_body(out: &Path, n: u16) -> ChangefeedConfig {
    let out = Url::from_directory_path(out).expect("an absolute path");
    ChangefeedConfig {
        changefeed_id: feed_id(n),
        upstream_uri: upstream_uri(ROWS_PER_SECOND, u64::from(n)),
        sink_uri: format!("{out}?protocol=canal-json"),
        ..ChangefeedConfig::default()
    }
}
