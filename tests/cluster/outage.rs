//! The metadata database does not answer, for a short and for a long time.

use std::collections::BTreeMap;
use std::time::Duration;

use metadata_api::model::{BootTime, Ts};

use crate::harness::{Cluster, Kind, Look, SLACK, measured, now, on_every_store, wall_ms};

on_every_store! {
    everywhere:
    a_short_outage_stops_nothing_and_a_long_one_moves_nothing
}

/// One that nobody may notice.
const SHORT: Duration = Duration::from_secs(5);
/// One that is longer than any deadline.
const LONG: Duration = Duration::from_secs(20);
/// The deadline.
const DEADLINE: Duration = Duration::from_secs(10);
/// How much later than the deadline a flush may end.
const FLUSH_GRACE: Duration = Duration::from_secs(2);
/// Within which everything runs again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long it is watched that nobody is declared dead for an outage: longer than R.
const AFTERMATH: Duration = Duration::from_secs(18);
/// A sink that is written to four times a second has grown within this.
const LATELY: Duration = Duration::from_secs(1);

const FENCES: &str = "cdc_capture_self_fences_total";

async fn a_short_outage_stops_nothing_and_a_long_one_moves_nothing(kind: Kind) {
    let cluster = Cluster::start_on_own_database(kind, 3).await;
    cluster.create_feeds(12).await;
    cluster.balanced().await;
    cluster.all_move().await;
    let before = cluster.look().await;

    let paused = cluster.store.pause().await;
    tokio::time::sleep(SHORT).await;
    let standing = standing(&cluster, now());
    paused.resume().await;
    assert!(standing.is_empty(), "the files of these did not grow through {SHORT:?}: {standing:?}");
    cluster.all_move().await;
    nothing_moves(&cluster, &before, AFTERMATH).await;
    assert_eq!(fences(&cluster).await, [0; 3], "somebody fenced itself");

    let began = now();
    let paused = cluster.store.pause().await;
    let paused_at = now();
    tokio::time::sleep((began + LONG).since(now())).await;
    let last = cluster.watcher.written().values().map(|written| written.grown_at).max().unwrap();
    let mut readiness = Vec::new();
    for at in 0..cluster.len() {
        readiness.push(cluster.page(at, "/readyz").await.0);
    }
    let back_ms = wall_ms();
    let back_at = now();
    paused.resume().await;
    measured("database paused -> the last write", kind, last.since(began), DEADLINE + FLUSH_GRACE);
    assert!(last.since(paused_at) > SHORT, "they stopped after {:?} already", last.since(paused_at));
    assert_eq!(readiness, [503; 3], "whoever may not act is not ready");
    let again = run_again(&cluster, back_ms).await;
    measured("database back -> all run again", kind, again.since(back_at), AGAIN);
    nothing_moves(&cluster, &before, AFTERMATH).await;
    assert_eq!(fences(&cluster).await, [1; 3], "each fences itself once");
    cluster.finish().await;
}

/// The changefeeds whose files have not grown lately.
fn standing(cluster: &Cluster, at: BootTime) -> Vec<String> {
    let mut grown: BTreeMap<_, BootTime> = BTreeMap::new();
    for ((uuid, _), written) in cluster.watcher.written() {
        let last = grown.entry(uuid).or_default();
        *last = written.grown_at.max(*last);
    }
    let late = grown.iter().filter(|(_, last)| at.since(**last) > LATELY + SLACK / 2);
    late.map(|(uuid, last)| format!("{uuid}: {:?} ago", at.since(*last))).collect()
}

async fn fences(cluster: &Cluster) -> [u64; 3] {
    [cluster.counter(0, FENCES).await, cluster.counter(1, FENCES).await, cluster.counter(2, FENCES).await]
}

/// Waits until every changefeed has come to a time after the database was back: what was written before, and only
/// reported now, does not count.
async fn run_again(cluster: &Cluster, back_ms: u64) -> BootTime {
    let mut at = BTreeMap::new();
    let again = |look: &Look| {
        for (id, feed) in &look.feeds {
            if Ts(feed.checkpoint).physical_ms() > back_ms {
                at.entry(id.clone()).or_insert(look.at);
            }
        }
        if at.len() == look.feeds.len() {
            return Ok(at.values().copied().max().unwrap());
        }
        let missing: Vec<_> = look.feeds.iter().filter(|(id, _)| !at.contains_key(*id)).collect();
        Err(format!("{missing:#?}"))
    };
    cluster.wait_for("everything runs again", Duration::from_secs(30), again).await.0
}

/// For some time every look shows the same captures, and what each owns under which epoch.
async fn nothing_moves(cluster: &Cluster, before: &Look, limit: Duration) {
    let ids = |look: &Look| look.captures.iter().map(|capture| capture.id.clone()).collect::<Vec<_>>();
    let end = now() + limit;
    let same = |look: &Look| {
        assert_eq!(ids(look), ids(before), "the captures are not the same");
        assert_eq!(look.owners(), before.owners(), "something moved");
        if look.at >= end { Ok(()) } else { Err("not over yet".to_owned()) }
    };
    cluster.wait_for("nothing moves", limit + Duration::from_secs(10), same).await;
}
