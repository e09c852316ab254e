//! Every server is told to stop and started again, one after the other, while 100 changefeeds run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use capture_runtime::clock::BootTime;
use metadata_api::model::ChangefeedUuid;
use tokio::task::JoinHandle;

use crate::harness::{
    Cluster, Kind, Look, PATIENCE, Watcher, measured, now, on_every_store, run_program, say,
};

on_every_store! {
    elsewhere_on_demand:
    a_rolling_restart_under_load_and_a_drain
}

const FEEDS: u16 = 100;
/// How fast each source is: all of them together are what matters here.
const ROWS_PER_SECOND: u64 = 5;
/// How long a changefeed may write nothing.
const GAP: Duration = Duration::from_secs(2);
/// How long a capture may take, from the signal until it is back and everything runs.
const CAPTURE: Duration = Duration::from_secs(30);
/// Between two looks at the files.
const LIST_EVERY: Duration = Duration::from_millis(50);

async fn a_rolling_restart_under_load_and_a_drain(kind: Kind) {
    let mut cluster = Cluster::start(kind, 3).await;
    cluster.create_feeds_at(FEEDS, ROWS_PER_SECOND).await;
    cluster.balanced().await;
    cluster.all_move().await;
    let before = launches(&cluster);

    let gaps = Gaps::start(&cluster.watcher);
    let calm = gaps.longest_after(Duration::from_secs(3)).await;
    say(&format!(
        "measured: longest time between two writes of a changefeed, nothing failing {calm:.1?} ({kind})"
    ));
    for at in 0..cluster.len() {
        let struck = cluster.terminate(at).await;
        cluster.ended(at).await;
        cluster.start_again(at).await;
        cluster.elsewhere(&struck).await;
        all_run(&cluster).await;
        let took = now().since(struck.at);
        measured(
            &format!("rolling restart: s{} with {} changefeeds", at + 1, struck.feeds.len()),
            kind,
            took,
            CAPTURE,
        );
    }
    measured("rolling restart: a changefeed's longest gap", kind, gaps.longest(), GAP);
    cluster.balanced().await;
    cluster.all_move().await;
    let (all, most) = moves(&before, &launches(&cluster));
    say(&format!(
        "measured: rolling restart of 3 captures: {all} moves of {FEEDS} changefeeds, at most {most} of one ({kind})"
    ));
    // Each leaves each server that it is on; it is on most of them once. The rest is balance, one at a time.
    assert!(most <= 5, "{most} moves of one changefeed");
    assert!(all <= 3 * usize::from(FEEDS), "{all} moves");

    // An operator empties the controller's capture.
    gaps.forget();
    let (look, before) = (cluster.look().await, launches(&cluster));
    let (leader, at) = cluster.controller().await;
    let through = cluster.server((at + 1) % cluster.len()).addr().to_owned();
    let began = now();
    let arguments = ["cli", "--server", &through, "capture", "drain", &leader];
    let output = run_program(&arguments, "").await;
    assert_eq!(output.exit, 0, "{output:?}");
    assert!(output.out.contains("is drained: it had"), "{output:?}");
    measured(
        "drain of the controller's capture, a third of 100 changefeeds",
        kind,
        now().since(began),
        CAPTURE,
    );
    all_run(&cluster).await;
    measured("drain: a changefeed's longest gap", kind, gaps.longest(), GAP);
    assert!(cluster.look().await.owned_by(&leader).is_empty());
    assert_ne!(cluster.controller().await.0, leader, "it handed the office over");
    cluster.all_move().await;
    let drained = look.owned_by(&leader).len();
    assert_eq!(moves(&before, &launches(&cluster)), (drained, 1), "nothing else moved, and nothing twice");
    cluster.finish_at(ROWS_PER_SECOND).await;
}

/// Waits until every changefeed has an owner that is launched.
async fn all_run(cluster: &Cluster) {
    let run = |look: &Look| {
        let idle: Vec<_> = look.feeds.iter().filter(|(_, feed)| feed.schedule != "launched").collect();
        if idle.is_empty() { Ok(()) } else { Err(format!("{idle:#?}")) }
    };
    cluster.wait_for("everything runs", PATIENCE, run).await;
}

/// How often each changefeed was launched: by the files, of which each owner epoch has its own.
fn launches(cluster: &Cluster) -> BTreeMap<ChangefeedUuid, usize> {
    let mut launches = BTreeMap::new();
    for (feed, _) in cluster.watcher.bytes().into_keys() {
        *launches.entry(feed).or_default() += 1;
    }
    launches
}

/// How many more there are: of all changefeeds, and of the one with most.
fn moves(
    before: &BTreeMap<ChangefeedUuid, usize>,
    after: &BTreeMap<ChangefeedUuid, usize>,
) -> (usize, usize) {
    let each = after.iter().map(|(feed, launches)| launches - before.get(feed).unwrap_or(&0));
    (each.clone().sum(), each.max().unwrap_or(0))
}

/// Looks at the files, and remembers for how long each changefeed wrote nothing.
struct Gaps {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    grown: BTreeMap<ChangefeedUuid, (u64, BootTime)>,
    longest: Duration,
}

impl Gaps {
    fn start(watcher: &Watcher) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let (list, of) = (watcher.lister(), seen.clone());
        let task = tokio::spawn(async move {
            loop {
                let mut sizes = BTreeMap::<ChangefeedUuid, u64>::new();
                let at = now();
                for ((feed, _), bytes) in list() {
                    *sizes.entry(feed).or_default() += bytes;
                }
                lock(&of).look(&sizes, at);
                tokio::time::sleep(LIST_EVERY).await;
            }
        });
        Self { seen, task }
    }

    /// The longest gap so far, those included that last.
    fn longest(&self) -> Duration {
        let seen = lock(&self.seen);
        let last = seen.grown.values().map(|(_, at)| now().since(*at)).max();
        seen.longest.max(last.unwrap_or_default())
    }

    async fn longest_after(&self, time: Duration) -> Duration {
        tokio::time::sleep(time).await;
        self.longest()
    }

    fn forget(&self) {
        *lock(&self.seen) = Seen::default();
    }
}

impl Seen {
    fn look(&mut self, sizes: &BTreeMap<ChangefeedUuid, u64>, at: BootTime) {
        for (feed, bytes) in sizes {
            let (before, grown_at) = self.grown.entry(*feed).or_insert((*bytes, at));
            if bytes > before {
                self.longest = self.longest.max(at.since(*grown_at));
                (*before, *grown_at) = (*bytes, at);
            }
        }
    }
}

impl Drop for Gaps {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
