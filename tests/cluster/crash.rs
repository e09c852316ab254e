//! Captures and controllers are killed, and told to stop.

use std::time::Duration;

use crate::harness::{Cluster, Kind, Struck, measured, on_every_store};

on_every_store! {
    everywhere:
    owners_and_controllers_die_and_are_told_to_stop
}

/// Within which a crashed owner's changefeeds run elsewhere.
const CRASH: Duration = Duration::from_secs(21);
/// Within which there is another controller.
const ELECTION: Duration = Duration::from_secs(17);
/// Within which all is handed over.
const GRACEFUL: Duration = Duration::from_secs(3);

async fn owners_and_controllers_die_and_are_told_to_stop(kind: Kind) {
    let mut cluster = Cluster::start(kind, 3).await;
    let (controller, leader) = cluster.controller().await;
    cluster.create_feeds(20).await;
    let look = cluster.balanced().await;
    assert_eq!((look.feeds.len(), look.captures.len()), (20, 3));
    assert_eq!(look.controller(), Some(controller.as_str()));
    cluster.all_move().await;

    let struck = cluster.kill(other_than(&cluster, leader)).await;
    let took = cluster.elsewhere(&struck).await;
    measured("owner killed -> running elsewhere", kind, took, CRASH);
    undisturbed(&cluster, &struck).await;
    restart(&mut cluster).await;

    let (controller, leader) = cluster.controller().await;
    let struck = cluster.kill(leader).await;
    let election = cluster.new_controller(&controller, struck.at);
    let (election, took) = tokio::join!(election, cluster.elsewhere(&struck));
    measured("controller killed -> another one", kind, election, ELECTION);
    measured("controller and owner in one process killed -> running elsewhere", kind, took, CRASH);
    undisturbed(&cluster, &struck).await;
    restart(&mut cluster).await;

    let (_, leader) = cluster.controller().await;
    let at = other_than(&cluster, leader);
    let struck = cluster.terminate(at).await;
    let took = cluster.elsewhere(&struck).await;
    measured("owner told to stop -> running elsewhere", kind, took, GRACEFUL);
    cluster.ended(at).await;
    restart(&mut cluster).await;

    let (controller, leader) = cluster.controller().await;
    let struck = cluster.terminate(leader).await;
    let election = cluster.new_controller(&controller, struck.at);
    let (election, took) = tokio::join!(election, cluster.elsewhere(&struck));
    measured("controller told to stop -> another one", kind, election, GRACEFUL);
    measured("controller and owner told to stop -> running elsewhere", kind, took, GRACEFUL);
    cluster.ended(leader).await;
    cluster.all_move().await;
    cluster.finish().await;
}

/// A server that is not the controller's.
fn other_than(cluster: &Cluster, leader: usize) -> usize {
    (leader + 1) % cluster.len()
}

/// Starts the server that is down, and waits until it has its share.
async fn restart(cluster: &mut Cluster) {
    let down = (0..cluster.len()).find(|at| !cluster.server(*at).is_up()).expect("one is down");
    cluster.start_again(down).await;
    cluster.balanced().await;
    cluster.all_move().await;
}

/// Whoever was not struck has kept what it had, under the same epochs.
async fn undisturbed(cluster: &Cluster, struck: &Struck) {
    let look = cluster.look().await;
    for (id, before) in &struck.others {
        let feed = look.feeds.get(id);
        let same = feed.is_some_and(|feed| (&feed.owner, feed.epoch) == (&before.owner, before.epoch));
        assert!(same, "{id} was disturbed: {before:?} became {feed:?}");
    }
}
