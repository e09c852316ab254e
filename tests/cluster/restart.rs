//! A server is killed and started again in the same place.

use std::fs;
use std::time::Duration;

use crate::harness::{Cluster, Kind, measured, on_every_store};

on_every_store! {
    elsewhere_on_demand:
    a_restart_takes_its_work_back_at_once_if_the_lock_proves_that_it_may
}

/// Within which a server that was killed and started again runs what it had.
const RESTART: Duration = Duration::from_secs(2);
/// Within which a crashed owner's changefeeds run elsewhere.
const CRASH: Duration = Duration::from_secs(21);
/// Before which nobody can know that a capture which fell silent is dead: R, less what its last heartbeat is old.
const SILENCE: Duration = Duration::from_secs(13);

async fn a_restart_takes_its_work_back_at_once_if_the_lock_proves_that_it_may(kind: Kind) {
    let mut cluster = Cluster::start(kind, 3).await;
    let (_, leader) = cluster.controller().await;
    cluster.create_feeds(20).await;
    cluster.balanced().await;
    cluster.all_move().await;

    for (what, at) in [
        ("owner killed and started again -> running", (leader + 1) % 3),
        ("controller killed and started again -> running", leader),
    ] {
        let struck = cluster.kill(at).await;
        cluster.start_again(at).await;
        let took = cluster.elsewhere(&struck).await;
        measured(what, kind, took, RESTART);
        assert_eq!(cluster.counter(at, "cdc_capture_fast_restarts_total").await, 1);
        cluster.balanced().await;
        cluster.all_move().await;
    }

    // Somebody tidied up: the lock that the next one gets proves nothing.
    let (_, leader) = cluster.controller().await;
    let at = (leader + 1) % 3;
    let struck = cluster.kill(at).await;
    fs::rename(cluster.server(at).data_dir().join("cdc.lock"), cluster.dir().join("old.lock"))
        .expect("renamed");
    cluster.start_again(at).await;
    let took = cluster.elsewhere(&struck).await;
    assert!(took >= SILENCE, "{took:?}: nobody could know that it was dead");
    measured("owner killed and started again without a proof -> running elsewhere", kind, took, CRASH);
    assert_eq!(cluster.counter(at, "cdc_capture_fast_restarts_total").await, 0);
    cluster.all_move().await;
    cluster.finish().await;
}
