//! An owner is stopped for half a minute, and goes on: a zombie.

use std::collections::BTreeMap;
use std::time::Duration;

use metadata_api::model::{CaptureId, CaptureState, ChangefeedUuid, OwnerEpoch};
use replicator::reader;
use rustix::process::Signal;

use crate::harness::{Cluster, Kind, PATIENCE, Struck, measured, now, on_every_store, say, wall_ms};

on_every_store! {
    elsewhere_on_demand:
    a_stopped_owner_writes_nothing_more_and_starts_anew
}

/// How long it is stopped.
const STOPPED: Duration = Duration::from_secs(30);
/// Within which its changefeeds run elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(21);

async fn a_stopped_owner_writes_nothing_more_and_starts_anew(kind: Kind) {
    let cluster = Cluster::start(kind, 3).await;
    cluster.create_feeds(12).await;
    cluster.balanced().await;
    cluster.all_move().await;
    let (_, leader) = cluster.controller().await;
    let at = (leader + 1) % cluster.len();

    let (struck, stopped_ms) = stop(&cluster, at).await;
    let store = cluster.store.open().await;
    let mut epochs = BTreeMap::new();
    for (id, feed) in &struck.feeds {
        let of = cluster.stored(&*store, id).await.expect("it is there");
        epochs.insert(of.info.uuid, OwnerEpoch(feed.epoch));
    }
    let took = cluster.elsewhere(&struck).await;
    measured("owner stopped (SIGSTOP) -> running elsewhere", kind, took, ELSEWHERE);
    tokio::time::sleep((struck.at + STOPPED).since(now())).await;

    cluster.signal(at, Signal::CONT);
    let continued = now();
    let id = another_id(&cluster, at, &struck.capture).await;
    let noticed = now();
    say(&format!(
        "measured: owner continued (SIGCONT) -> registered anew {:.1} s (no bound, {kind})",
        noticed.since(continued).as_secs_f64()
    ));
    let at_notice = cluster.watcher.bytes();
    cluster.watch_all();
    cluster.balanced().await;
    cluster.all_move().await;
    let look = cluster.look().await;
    assert!(!look.owned_by(&id).is_empty(), "the new capture {id} got nothing: {:?}", look.counts());

    // Its old epochs: no byte since it noticed, and no line that was made after it was stopped.
    let bytes = cluster.watcher.bytes();
    for (uuid, epoch) in &epochs {
        let key = (*uuid, *epoch);
        assert_eq!(bytes[&key], at_notice[&key], "{uuid}: epoch {epoch} grew after it was fenced");
        assert_nothing_made_after(&cluster, *uuid, *epoch, stopped_ms);
    }
    // And the store wanted nothing of it: its row is sealed, and it was told so.
    let old: CaptureId = struck.capture.parse().expect("an id");
    let rows = store.captures(Some(&[old])).await.expect("captures");
    assert!(rows.iter().all(|row| row.state == CaptureState::Offline), "not sealed: {rows:#?}");
    assert!(cluster.counter(at, "cdc_capture_self_fences_total").await >= 1, "it did not fence itself");
    drop(store);
    cluster.finish().await;
}

/// SIGSTOP, at a moment at which it does not hold the store's lock: on SQLite nobody else could write then. With the wall
/// clock after it.
async fn stop(cluster: &Cluster, at: usize) -> (Struck, u64) {
    for tries in 1_u64.. {
        let mut struck = cluster.about_to_strike(at).await;
        struck.at = now();
        cluster.signal(at, Signal::STOP);
        let stopped_ms = wall_ms();
        if cluster.store.can_write().await {
            return (struck, stopped_ms);
        }
        cluster.signal(at, Signal::CONT);
        assert!(tries < 10, "each time it was stopped it held the lock of the SQLite file");
        tokio::time::sleep(Duration::from_millis(10 * tries)).await;
        cluster.all_move().await;
    }
    unreachable!("it returns or fails before it runs out of numbers")
}

/// Waits until the server says that it is another capture than `former`.
async fn another_id(cluster: &Cluster, at: usize, former: &str) -> String {
    let start = now();
    loop {
        let id = cluster.status(at).await.id;
        if !id.is_empty() && id != former {
            return id;
        }
        assert!(now().since(start) < PATIENCE, "it still says that it is {id:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How much later than SIGSTOP was sent a line may have been made: the signal takes a moment to arrive.
const ARRIVAL_MS: u64 = 100;

fn assert_nothing_made_after(cluster: &Cluster, uuid: ChangefeedUuid, epoch: OwnerEpoch, stopped_ms: u64) {
    let lines = reader::lines(&reader::changefeed_dir(&cluster.out(), uuid)).expect("files");
    let mut seen = 0;
    for line in lines.map(|line| line.expect("a line")).filter(|line| line.author.epoch == epoch) {
        let made = line.message().expect("canal-json").ts;
        assert!(made <= stopped_ms + ARRIVAL_MS, "{} ms after it was stopped: {line:?}", made - stopped_ms);
        seen += 1;
    }
    assert!(seen > 0, "{uuid}: epoch {epoch} wrote nothing at all");
}
