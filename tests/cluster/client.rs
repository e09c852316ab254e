//! `cdc cli`, the program: what scripts rely on. Standard output, standard error and exit codes.

use serde_json::Value;

use crate::harness::{Cluster, Kind, Output, on_every_store, run_program};

on_every_store! {
    elsewhere_on_demand:
    the_client_prints_what_scripts_parse
}

/// The source of `feed-07`.
const SOURCE: &str = "datagen://?tables=2&rows_per_second=50&seed=7";

async fn the_client_prints_what_scripts_parse(kind: Kind) {
    let cluster = Cluster::start(kind, 2).await;
    let addr = cluster.server(1).addr().to_owned();
    let cli = async |args: &[&str]| run_program(&[&["cli", "--server", &addr], args].concat(), "").await;
    let sink = format!("file://{}/?protocol=canal-json", cluster.out().display());

    let created =
        cli(&["changefeed", "create", "-c", "feed-07", "--upstream-uri", SOURCE, "--sink-uri", &sink]).await;
    let text = ok(&created);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("Create changefeed successfully!"));
    assert_eq!(lines.next(), Some("ID: feed-07"));
    let info: Value = serde_json::from_str(lines.next().unwrap().strip_prefix("Info: ").unwrap()).unwrap();
    assert_eq!((&info["id"], &info["namespace"]), (&"feed-07".into(), &"default".into()));
    cluster.balanced().await;
    cluster.all_move().await;

    let listed: Value = serde_json::from_str(ok(&cli(&["changefeed", "list"]).await)).unwrap();
    assert_eq!(listed[0]["id"], "feed-07");
    assert_eq!(listed[0]["summary"]["state"], "normal");
    assert!(listed[0]["summary"]["tso"].as_u64().unwrap() > 0);
    let queried: Value =
        serde_json::from_str(ok(&cli(&["changefeed", "query", "-c", "feed-07"]).await)).unwrap();
    assert_eq!(queried["owner"]["state"], "launched");
    assert!(queried["checkpoint_tso"].as_u64().unwrap() > 0, "{queried:#}");
    let captures: Value = serde_json::from_str(ok(&cli(&["capture", "list"]).await)).unwrap();
    let owners = captures.as_array().unwrap().iter().filter(|capture| capture["is-owner"] == true).count();
    assert_eq!((captures.as_array().unwrap().len(), owners), (2, 1));
    let table = cli(&["capture", "list", "--output", "table"]).await;
    assert!(ok(&table).contains(&addr), "{table:?}");

    assert_eq!(ok(&cli(&["changefeed", "pause", "-c", "feed-07"]).await), "");
    let listed: Value = serde_json::from_str(ok(&cli(&["changefeed", "list"]).await)).unwrap();
    assert_eq!(listed[0]["summary"]["state"], "stopped");
    let updated =
        cli(&["changefeed", "update", "-c", "feed-07", "--target-ts", "900000000000000000", "--no-confirm"])
            .await;
    assert!(ok(&updated).contains("Update changefeed config successfully!"), "{updated:?}");
    assert_eq!(ok(&cli(&["changefeed", "resume", "-c", "feed-07"]).await), "");
    cluster.all_move().await;

    let other = cli(&[
        "changefeed",
        "create",
        "-c",
        "feed-08",
        "--upstream-uri",
        SOURCE,
        "--sink-uri",
        "blackhole://",
    ])
    .await;
    ok(&other);
    let removed = cli(&["changefeed", "remove", "-c", "feed-08"]).await;
    assert!(
        ok(&removed).starts_with("Changefeed remove successfully.\nID: feed-08\nCheckpointTs: "),
        "{removed:?}"
    );
    let again = cli(&["changefeed", "remove", "-c", "feed-08"]).await;
    assert_eq!(ok(&again), "Changefeed not found.\nID: feed-08\n");

    errors_have_their_code(&addr).await;
    cluster.finish().await;
}

/// What is refused is said on standard error, with an exit code.
async fn errors_have_their_code(addr: &str) {
    for (args, exit, says) in [
        (
            &["changefeed", "query", "-c", "feed-08"][..],
            1,
            "[CDC:ErrChangeFeedNotExists]changefeed not exists, default/feed-08",
        ),
        (&["changefeed", "pause", "-c", "feed-08"], 1, "[CDC:ErrChangeFeedNotExists]"),
        (&["changefeed", "pause", "-c", "a_b"], 2, "changefeed_id"),
        (&["changefeed", "pause"], 2, "--changefeed-id"),
        (&["changefeed", "create", "-c", "x", "--upstream-uri", SOURCE], 1, "sink"),
        (
            &[
                "changefeed",
                "create",
                "-c",
                "feed-07",
                "--upstream-uri",
                SOURCE,
                "--sink-uri",
                "blackhole://",
            ],
            1,
            "already exists",
        ),
        (
            &["changefeed", "update", "-c", "feed-07", "--target-ts", "910000000000000000", "--no-confirm"],
            1,
            "pause it first",
        ),
        (
            &["changefeed", "resume", "-c", "feed-07", "--overwrite-checkpoint-ts", "soon"],
            1,
            "only accept 'now'",
        ),
        (&["changefeed", "explode"], 2, "explode"),
        (&["--server", "127.0.0.1:1", "capture", "list"], 2, "--server"),
    ] {
        let output = run_program(&[&["cli", "--server", addr], args].concat(), "").await;
        assert!(
            output.exit == exit && output.err.contains(says),
            "{args:?} wanted {exit}, {says:?}: {output:?}"
        );
        assert!(!output.out.contains(says), "{args:?}: errors go to standard error: {output:?}");
    }
    let nobody = run_program(&["cli", "--server", "127.0.0.1:1", "capture", "list"], "").await;
    assert!(
        nobody.exit == 1 && nobody.err.contains("127.0.0.1:1") && nobody.err.contains("is it running"),
        "{nobody:?}"
    );
    let version = run_program(&["version"], "").await;
    assert!(ok(&version).starts_with("Release Version: v8."), "{version:?}");
}

/// Standard output of a command that went well and said nothing on standard error.
fn ok(output: &Output) -> &str {
    assert!(output.exit == 0 && output.err.is_empty(), "{output:?}");
    &output.out
}
