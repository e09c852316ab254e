//! `cdc cli unsafe`, the program, on a cluster that runs.

use std::time::Duration;

use crate::harness::{Cluster, Kind, Output, PATIENCE, measured, on_every_store, run_program};

on_every_store! {
    elsewhere_on_demand:
    what_is_unsafe_asks_and_then_does_it
}

/// Within which a capture that is known to be dead is replaced.
const KNOWN: Duration = Duration::from_secs(3);

async fn what_is_unsafe_asks_and_then_does_it(kind: Kind) {
    let mut cluster = Cluster::start(kind, 3).await;
    let (_, leader) = cluster.controller().await;
    cluster.create_feeds(6).await;
    cluster.balanced().await;
    cluster.all_move().await;
    let store = cluster.store.url.clone();
    let run = async |args: &[&str], input: &str| {
        run_program(&[&["cli", "unsafe", "--store", &store], args].concat(), input).await
    };

    // Nothing happens to whoever does not say yes, or says something wrong.
    let before = cluster.look().await.owners();
    let asked = run(&["reset"], "n\n").await;
    assert_eq!(asked.exit, 0, "{asked:?}");
    assert!(
        asked.out.contains("every changefeed of cluster") && asked.out.contains("6 changefeeds"),
        "{asked:?}"
    );
    assert!(asked.out.contains("[y/N]") && asked.out.ends_with("Nothing was changed.\n"), "{asked:?}");
    refused(&run(&["force-remove", "nobody"], "").await, 2, "must be a UUID");
    refused(
        &run(&["force-remove", "00000000-0000-4000-8000-000000000000"], "").await,
        1,
        "ErrCaptureNotExist",
    );
    refused(&run_program(&["cli", "unsafe", "reset"], "y\n").await, 2, "--store");
    let nowhere = format!("sqlite://{}/nowhere.db", cluster.dir().display());
    refused(&run_program(&["cli", "unsafe", "reset", "--store", &nowhere], "y\n").await, 2, "no such file");
    assert_eq!(cluster.look().await.owners(), before);

    // Of a capture that is known to be dead nobody waits for the silence.
    let struck = cluster.kill((leader + 1) % 3).await;
    let removed = run(&["force-remove", &struck.capture], "y\n").await;
    assert_eq!(removed.exit, 0, "{removed:?}");
    assert!(
        removed.out.contains("2 changefeeds) is declared dead") && removed.out.contains("12 s"),
        "{removed:?}"
    );
    let took = cluster.elsewhere(&struck).await;
    measured("owner killed, and removed by force -> running elsewhere", kind, took, KNOWN);
    refused(&run(&["force-remove", &struck.capture, "--no-confirm"], "").await, 1, "declared dead already");
    cluster.start_again((leader + 1) % 3).await;

    let reset = run(&["reset", "--no-confirm"], "").await;
    assert_eq!(reset.exit, 0, "{reset:?}");
    assert!(reset.out.ends_with("Deleted 6 changefeeds: the cluster is empty.\n"), "{reset:?}");
    assert!(!reset.out.contains("did not stop"), "{reset:?}");
    let empty = |look: &crate::harness::Look| {
        if look.feeds.is_empty() && look.captures.len() == 3 { Ok(()) } else { Err(format!("{look:?}")) }
    };
    cluster.wait_for("no changefeeds, and three captures", PATIENCE, empty).await;
    cluster.create_feeds(6).await;
    cluster.balanced().await;
    cluster.all_move().await;
    cluster.finish().await;
}

/// It was refused with this exit code, and says this.
fn refused(output: &Output, exit: i32, part: &str) {
    assert_eq!(output.exit, exit, "{output:?}");
    assert!(output.err.contains(part), "`{part}` is not in: {output:?}");
}
