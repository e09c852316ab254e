//! The client against the API, over real HTTP.

use clap::Parser;
use serde_json::{Value, json};

use super::{Terminal, run};
use crate::args::{CdcArgs, Command};
use crate::exit::{Exit, Failure};
use crate::testing::Fixture;

struct Remote {
    fixture: Fixture,
    addr: String,
}

impl Remote {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let api = fixture.api.clone();
        tokio::spawn(async move { axum::serve(listener, api).await });
        Self { fixture, addr }
    }

    /// Runs a command line with these answers to its questions.
    async fn answering(&self, line: &str, answers: &str) -> (String, Result<(), Failure>) {
        let line = format!("cdc cli --server {} {line}", self.addr);
        let Command::Cli(args) = CdcArgs::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!()
        };
        let mut out = Vec::new();
        let mut input = answers.as_bytes();
        let result = run(*args, Terminal { out: &mut out, input: &mut input }).await;
        (String::from_utf8(out).unwrap(), result)
    }

    async fn ok(&self, line: &str) -> String {
        let (out, result) = self.answering(line, "").await;
        result.unwrap_or_else(|failure| panic!("{line}: {failure}"));
        out
    }

    async fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(line).await).unwrap()
    }

    async fn fails(&self, line: &str) -> Failure {
        self.answering(line, "").await.1.unwrap_err()
    }
}

const CREATE: &str = "changefeed create --upstream-uri datagen:// --sink-uri blackhole:// --no-confirm";

#[tokio::test]
async fn a_changefeeds_life_prints_what_ticdc_prints() {
    let remote = Remote::new().await;
    let out = remote.ok(&format!("{CREATE} -c shop")).await;
    let mut lines = out.lines();
    assert_eq!(lines.next(), Some("Create changefeed successfully!"));
    assert_eq!(lines.next(), Some("ID: shop"));
    let info: Value = serde_json::from_str(lines.next().unwrap().strip_prefix("Info: ").unwrap()).unwrap();
    assert_eq!(info["id"], "shop");
    let list = remote.json("changefeed list").await;
    assert_eq!(
        list,
        json!([{"id": "shop", "namespace": "default", "summary": {
            "state": "normal", "tso": info["checkpoint_ts"], "checkpoint": info["checkpoint_time"], "error": null
        }}])
    );
    let query = remote.json("changefeed query -c shop").await;
    assert_eq!(query["checkpoint_tso"], info["checkpoint_ts"]);
    assert!(query.get("checkpoint_ts").is_none());
    assert_eq!(query["create_time"].as_str().unwrap().len(), "2006-01-02 15:04:05.000".len());
    let simple = remote.json("changefeed query -s -c shop").await;
    assert_eq!(simple["state"], "normal");
    assert_eq!(remote.ok("changefeed pause -c shop").await, "");
    let out = remote.ok("changefeed update -c shop --sink-uri blackhole://?x=1 --no-confirm").await;
    assert!(out.contains("Diff of changefeed config:\nsink_uri: "), "{out}");
    assert!(out.contains("Update changefeed config successfully! \nID: shop\nInfo: {"), "{out}");
    assert_eq!(remote.ok("changefeed resume -c shop").await, "");
    let out = remote.ok("changefeed remove -c shop").await;
    assert!(out.starts_with("Changefeed remove successfully.\nID: shop\nCheckpointTs: "), "{out}");
    assert!(out.contains("\nSinkURI: blackhole://"), "{out}");
    assert_eq!(remote.ok("changefeed remove -c shop").await, "Changefeed not found.\nID: shop\n");
    assert_eq!(remote.json("changefeed list -a").await, json!([]));
}

#[tokio::test]
async fn captures_and_processors_are_listed() {
    let remote = Remote::new().await;
    let captures = remote.json("capture list").await;
    let id = remote.fixture.capture.id.to_string();
    assert_eq!(captures[0]["id"], id.as_str());
    assert_eq!(
        (captures[0]["is-owner"].clone(), captures[0]["address"].clone()),
        (json!(true), json!("host-a:8300"))
    );
    assert!(captures[0]["cluster-id"].is_string());
    assert_eq!(remote.json("processor list").await, json!([]));
    remote.ok(&format!("{CREATE} -c shop")).await;
    assert_eq!(
        remote.json(&format!("processor query -c shop -p {id}")).await,
        json!({"table_ids": [], "tables": []})
    );
    for (line, wanted) in [
        ("capture list --output table", "controller"),
        ("changefeed list --output table", "datagen://"),
        ("changefeed query -c shop --output table", "without end"),
        ("processor list --output table", "changefeed"),
    ] {
        let out = remote.ok(line).await;
        assert!(out.contains(wanted), "{line}: {out}");
    }
}

#[tokio::test]
async fn an_update_with_a_file_keeps_secrets_and_asks() {
    let remote = Remote::new().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("feed.toml");
    std::fs::write(&file, "case-sensitive = true\n[sink.kafka-config]\nsasl-password = \"hunter2\"\n")
        .unwrap();
    remote.ok(&format!("{CREATE} -c shop --config {}", file.display())).await;
    remote.ok("changefeed pause -c shop").await;
    let update = "changefeed update -c shop --target-ts 479000000000000000";
    let (out, result) = remote.answering(update, "n\n").await;
    result.unwrap();
    assert!(
        out.contains("target_ts: null -> 479000000000000000") && out.ends_with("No update to changefeed.\n"),
        "{out}"
    );
    let (out, result) = remote.answering(update, "y\n").await;
    result.unwrap();
    assert!(out.contains("Update changefeed config successfully!"), "{out}");
    assert!(!out.contains("hunter2"), "{out}");
    let stored = remote.fixture.overview("shop").await.unwrap().info;
    assert_eq!(stored.config.0["sink"]["kafka_config"]["sasl_password"], "hunter2");
    assert_eq!(stored.config.0["case_sensitive"], true);
    assert_eq!(stored.target_ts.0, 479_000_000_000_000_000);
    let out = remote.ok(update).await;
    assert_eq!(out, "changefeed config is the same with the old one, do nothing\n");
    std::fs::write(&file, "case-sensitiv = true\n").unwrap();
    let failure = remote.fails(&format!("{CREATE} -c other --config {}", file.display())).await;
    assert!(failure.message.contains("case-sensitiv"), "{failure}");
}

#[tokio::test]
async fn errors_are_the_servers_words_and_exit_1() {
    let remote = Remote::new().await;
    for (line, wanted) in [
        ("changefeed query -c nope", "[CDC:ErrChangeFeedNotExists]changefeed not exists, default/nope"),
        ("changefeed pause -c nope", "[CDC:ErrChangeFeedNotExists]"),
        ("changefeed create --sink-uri blackhole://", "--upstream-uri"),
        ("changefeed create --upstream-uri datagen://", "without a sink-uri"),
        ("changefeed create --sink-uri x --upstream-uri datagen://", "[CDC:ErrSinkURIInvalid]"),
        ("changefeed resume -c nope --overwrite-checkpoint-ts now", "[CDC:ErrChangeFeedNotExists]"),
    ] {
        let failure = remote.fails(line).await;
        assert_eq!(failure.exit, Exit::Error, "{line}: {failure}");
        assert!(failure.message.contains(wanted), "{line}: {failure}");
    }
    for (line, wanted) in [
        ("changefeed pause", "changefeed-id"),
        ("changefeed pause -c a_b", "changefeed_id"),
        ("changefeed create --sink-uri blackhole:// --upstream-pd http://p", "--upstream-uri"),
    ] {
        let failure = remote.fails(line).await;
        assert_eq!(failure.exit, Exit::Usage, "{line}: {failure}");
        assert!(failure.message.contains(wanted), "{line}: {failure}");
    }
    remote.ok(&format!("{CREATE} -c shop")).await;
    let failure = remote.fails(&format!("{CREATE} -c shop")).await;
    assert!(failure.message.contains("already exists"), "{failure}");
    let failure = remote.fails("changefeed resume -c shop --overwrite-checkpoint-ts soon").await;
    assert!(failure.message.contains("ErrCliInvalidCheckpointTs"), "{failure}");
    let (out, result) =
        remote.answering("changefeed resume -c shop --overwrite-checkpoint-ts 5", "n\n").await;
    assert!(out.contains("[Y/N]"), "{out}");
    let failure = result.unwrap_err();
    assert_eq!((failure.exit, failure.message.as_str()), (Exit::Ok, ""));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_with_the_remedy() {
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let line = ["cdc", "cli", "--server", &nobody, "capture", "list"];
    let Command::Cli(args) = CdcArgs::try_parse_from(line).unwrap().command else { panic!() };
    let failure = run(*args, Terminal { out: &mut Vec::new(), input: &mut "".as_bytes() }).await.unwrap_err();
    assert_eq!(failure.exit, Exit::Error);
    assert!(failure.message.contains(&nobody) && failure.message.contains("--server"), "{failure}");
}

#[tokio::test]
async fn a_capture_is_drained() {
    let remote = Remote::new().await;
    let own = remote.fixture.capture.id;
    let failure = remote.fails(&format!("capture drain {own}")).await;
    assert!(failure.message.contains("only one capture alive"), "{failure}");
    let other = crate::testing::register(remote.fixture.store.as_ref(), "host-b:8300").await;
    let out = remote.ok(&format!("capture drain {}", other.capture)).await;
    assert_eq!(out, format!("Capture {} is drained: it had 0 changefeeds and has none.\n", other.capture));
    let out = remote.ok(&format!("capture drain --no-wait {}", other.capture)).await;
    assert_eq!(out, format!("Capture {} drains; it has 0 changefeeds left.\n", other.capture));
    let nobody = uuid::Uuid::from_u128(7);
    let failure = remote.fails(&format!("capture drain {nobody}")).await;
    assert!(failure.message.contains("ErrCaptureNotExist"), "{failure}");
}

#[tokio::test]
async fn query_says_why_a_changefeed_is_where_it_is() {
    let remote = Remote::new().await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[placement]\nweight = 3\n[placement.affinity]\nzone = \"moon\"\n").unwrap();
    remote.ok(&format!("{CREATE} -c shop --config {}", config.display())).await;
    let query = remote.json("changefeed query -c shop").await;
    let decisions: Vec<_> =
        query["scheduling"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert!(decisions[0].starts_with("unowned since revision "), "{decisions:?}");
    assert_eq!(decisions[1], "stays: no capture that is alive has the label zone=moon");
    let table = remote.ok("changefeed query -c shop --output table").await;
    assert!(table.contains("zone=moon"), "{table}");
    std::fs::write(&config, "[placement]\nweight = 0\n").unwrap();
    let failure = remote.fails(&format!("{CREATE} -c other --config {}", config.display())).await;
    assert!(failure.message.contains("replica_config.placement.weight is `0`"), "{failure}");
}
