//! Bad input of each kind, to the API and to a server that starts: a clear error that names the field and the remedy, a
//! fitting status or exit code, and nothing changed.

use cdc::api::error::ErrorBody;
use serde_json::{Value, json};

use crate::harness::{Cluster, Kind, dump, on_every_store, run_program, wall_ms};

on_every_store! {
    elsewhere_on_demand:
    bad_requests_are_refused_and_change_nothing
    a_server_that_cannot_start_says_why_and_changes_nothing
}

/// In every secret place of these tests; it is never repeated.
const SECRET: &str = "hunter2";

/// A request, and how it is refused.
#[derive(Clone)]
struct Bad {
    method: &'static str,
    path: String,
    body: Vec<u8>,
    status: u16,
    code: &'static str,
    says: &'static [&'static str],
}

const INVALID: &str = "CDC:ErrAPIInvalidParam";
const SINK: &str = "CDC:ErrSinkURIInvalid";
const NOT_EXISTS: &str = "CDC:ErrChangeFeedNotExists";
const REFUSED: &str = "CDC:ErrChangefeedUpdateRefused";

fn bad(
    method: &'static str,
    path: impl Into<String>,
    body: impl Into<Vec<u8>>,
    (status, code): (u16, &'static str),
    says: &'static [&'static str],
) -> Bad {
    Bad { method, path: path.into(), body: body.into(), status, code, says }
}

/// A create with some members changed.
fn create(cluster: &Cluster, changes: Value, code: &'static str, says: &'static [&'static str]) -> Bad {
    let mut body = json!({
        "changefeed_id": "fine",
        "upstream_uri": "datagen://?tables=1",
        "sink_uri": format!("file://{}?protocol=canal-json", cluster.out().display()),
    });
    let Value::Object(changes) = changes else { panic!("members") };
    body.as_object_mut().unwrap().extend(changes);
    bad("POST", "changefeeds", body.to_string(), (400, code), says)
}

async fn bad_requests_are_refused_and_change_nothing(kind: Kind) {
    let cluster = Cluster::start(kind, 1).await;
    cluster.create_feeds(2).await;
    cluster.balanced().await;
    cluster.all_move().await;
    cluster.call(0, reqwest::Method::POST, &["changefeeds", "feed-02", "pause"]).await.unwrap();
    cluster.balanced_but(&["feed-02"]).await;
    let store = cluster.store.open().await;
    let before = dump(&*store).await;

    let mut wrong = Vec::new();
    let denied = format!("{}/", test_servers::mysql_url().await.replace("root@", "root:hunter2@"));
    let cases = [
        upstreams(&cluster, &denied),
        ids(&cluster),
        uris(&cluster),
        timestamps(&cluster),
        bodies(&cluster),
        words(),
    ]
    .concat();
    for case in cases {
        if let Err(why) = refused(&cluster, &case).await {
            wrong.push(format!(
                "{} {} {}: {why}",
                case.method,
                case.path,
                String::from_utf8_lossy(&case.body[..case.body.len().min(300)])
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(dump(&*store).await, before, "something changed");
    drop(store);
    cluster.all_move().await;
    cluster.finish().await;
}

fn ids(cluster: &Cluster) -> Vec<Bad> {
    let long = "x".repeat(129);
    vec![
        create(cluster, json!({"changefeed_id": "a_b"}), INVALID, &["changefeed_id", "a_b"]),
        create(cluster, json!({"changefeed_id": "a b"}), INVALID, &["changefeed_id"]),
        create(cluster, json!({"changefeed_id": "-a"}), INVALID, &["changefeed_id"]),
        create(cluster, json!({"changefeed_id": "\u{0}'; DROP TABLE fence"}), INVALID, &["changefeed_id"]),
        create(cluster, json!({"changefeed_id": long}), INVALID, &["changefeed_id", "128"]),
        create(cluster, json!({"namespace": "x/y"}), INVALID, &["namespace"]),
        create(cluster, json!({"client_request_id": "1"}), INVALID, &["client_request_id", "UUID"]),
        create(cluster, json!({"changefeed_id": "feed-01"}), "CDC:ErrChangeFeedAlreadyExists", &["feed-01"]),
        create(
            cluster,
            json!({"upstream_uri": "", "upstream_id": 77}),
            "CDC:ErrUpstreamNotFound",
            &["77", "upstream_uri"],
        ),
        bad("GET", "changefeeds/a_b", "", (400, INVALID), &["changefeed_id"]),
        bad("GET", "changefeeds/fine?namespace=x%20y", "", (400, INVALID), &["namespace"]),
        bad("DELETE", "changefeeds/a%2Fb", "", (400, INVALID), &["changefeed_id"]),
        bad("GET", "changefeeds/nobody", "", (400, NOT_EXISTS), &["default/nobody"]),
        bad("GET", "changefeeds?state=lost", "", (400, INVALID), &["state", "lost"]),
        bad("POST", "captures/nobody/drain", "", (400, "CDC:ErrCaptureNotExist"), &["nobody"]),
    ]
}

fn uris(cluster: &Cluster) -> Vec<Bad> {
    let upstream = |uri: &str, code, says| create(cluster, json!({"upstream_uri": uri}), code, says);
    let sink = |uri: &str, says| create(cluster, json!({"sink_uri": uri}), SINK, says);
    let file = cluster.dir().join("s1.log");
    let below_a_file = format!("file://{}/x?protocol=canal-json", file.display());
    vec![
        upstream("no uri", INVALID, &["upstream_uri"]),
        upstream("", INVALID, &["upstream_uri", "missing"]),
        upstream("postgres://u:hunter2@h/d", INVALID, &["upstream_uri", "postgres"]),
        upstream("datagen://?tables=0", INVALID, &["upstream_uri", "tables"]),
        upstream("datagen://?tables=1&rate=5", INVALID, &["upstream_uri", "rate"]),
        sink("", &["sink_uri", "file:///"]),
        sink("no uri", &["sink"]),
        sink("kafka://u:hunter2@h:9092/topic", &["kafka"]),
        sink("file://host/dir", &["file:///"]),
        sink("file:///", &["directory"]),
        sink("file:///tmp/x?protocol=avro", &["protocol", "canal-json"]),
        sink("file:///tmp/x?file-size=1", &["file-size"]),
        sink("file:///tmp/x?colour=blue", &["colour"]),
        create(cluster, json!({"sink_uri": below_a_file}), SINK, &["is not a directory"]),
    ]
}

/// Sources that do not answer, or not us.
fn upstreams(cluster: &Cluster, denied: &str) -> Vec<Bad> {
    let upstream = |uri: &str, code, says| create(cluster, json!({"upstream_uri": uri}), code, says);
    let lost = "CDC:ErrMySQLConnectionError";
    vec![
        upstream(
            "mysql://u:hunter2@127.0.0.1:1/",
            lost,
            &["upstream_uri", "mysql://u:xxxxx@127.0.0.1:1", "refused"],
        ),
        upstream("mysql://u:hunter2@no-such-host.invalid/", lost, &["upstream_uri", "no-such-host.invalid"]),
        upstream(denied, lost, &["upstream_uri", "xxxxx", "Access denied"]),
        upstream("mysql://u:hunter2@/", INVALID, &["upstream_uri", "host"]),
        upstream("mysql://u:hunter2@h/?ssl-mode=maybe", INVALID, &["upstream_uri", "ssl-mode"]),
    ]
}

fn timestamps(cluster: &Cluster) -> Vec<Bad> {
    let tomorrow = (wall_ms() + 86_400_000) << 18;
    let today = wall_ms() << 18;
    vec![
        create(cluster, json!({"start_ts": tomorrow}), INVALID, &["start-ts", "larger than current tso"]),
        create(cluster, json!({"start_ts": u64::MAX}), INVALID, &["start_ts"]),
        create(cluster, json!({"start_ts": -1}), INVALID, &["start_ts"]),
        create(cluster, json!({"start_ts": 1.5}), INVALID, &["start_ts"]),
        create(cluster, json!({"start_ts": "now"}), INVALID, &["start_ts"]),
        create(cluster, json!({"target_ts": u64::MAX}), INVALID, &["target_ts"]),
        create(
            cluster,
            json!({"start_ts": today, "target_ts": today - 1}),
            "CDC:ErrTargetTsBeforeStartTs",
            &["target-ts"],
        ),
        create(cluster, json!({"target_ts": today >> 1}), "CDC:ErrTargetTsBeforeStartTs", &["target-ts"]),
        bad(
            "POST",
            "changefeeds/feed-02/resume",
            json!({"overwrite_checkpoint_ts": tomorrow}).to_string(),
            (400, INVALID),
            &["overwrite", "larger than current tso"],
        ),
        bad(
            "PUT",
            "changefeeds/feed-02",
            json!({"target_ts": 5}).to_string(),
            (400, REFUSED),
            &["target_ts"],
        ),
        bad(
            "PUT",
            "changefeeds/feed-02",
            json!({"start_ts": today}).to_string(),
            (400, REFUSED),
            &["start_ts"],
        ),
    ]
}

fn bodies(cluster: &Cluster) -> Vec<Bad> {
    let post = |body: &str, says| bad("POST", "changefeeds", body, (400, INVALID), says);
    let config = |config: Value, says| create(cluster, json!({"replica_config": config}), INVALID, says);
    vec![
        post("{", &["malformed JSON"]),
        post("[]", &["must be a JSON object"]),
        post("id=fine", &["must be a JSON object"]),
        post("{} {}", &["malformed JSON"]),
        post("{\"changefeed_id\": 5}", &["changefeed_id", "string"]),
        post("{\"sink_uri\": {\"password\": \"hunter2\"}}", &["sink_uri", "string"]),
        post("{\"sink_uri\": \"\u{1}", &["malformed JSON"]),
        create(cluster, json!({"replica_config": []}), INVALID, &["replica_config"]),
        config(json!({"memory_quota": "much"}), &["memory_quota"]),
        config(json!({"filter": {"rules": "*.*"}}), &["rules"]),
        create(
            cluster,
            json!({"replica_config": {"filter": {"rules": ["["]}}}),
            "CDC:ErrFilterRuleInvalid",
            &["rules", "schema.table"],
        ),
        config(json!({"enable_sync_point": true}), &["enable_sync_point"]),
        bad("POST", "changefeeds", vec![b' '; (1 << 20) + 1], (413, INVALID), &["longer than"]),
        bad(
            "POST",
            "changefeeds",
            b"{\"changefeed_id\": \"\xFF\"}".to_vec(),
            (400, INVALID),
            &["malformed JSON"],
        ),
    ]
}

fn words() -> Vec<Bad> {
    let put = |body: Value, says| bad("PUT", "changefeeds/feed-01", body.to_string(), (400, REFUSED), says);
    vec![
        put(json!({"sink_uri": "blackhole://"}), &["stopped or failed", "pause it first"]),
        bad("PUT", "changefeeds/feed-02", "{}", (400, REFUSED), &["same"]),
        bad("PUT", "changefeeds/nobody", "{}", (400, NOT_EXISTS), &["default/nobody"]),
        bad(
            "PUT",
            "changefeeds/feed-02",
            json!({"sink_uri": "kafka://u:hunter2@h/t"}).to_string(),
            (400, SINK),
            &["kafka"],
        ),
        bad("POST", "changefeeds/nobody/pause", "", (400, NOT_EXISTS), &["default/nobody"]),
        bad("POST", "changefeeds/nobody/resume", "", (400, NOT_EXISTS), &["default/nobody"]),
        bad("PATCH", "changefeeds", "", (405, INVALID), &["PATCH"]),
        bad("POST", "changefeeds/feed-01/explode", "", (404, INVALID), &["explode"]),
    ]
}

/// Sends it; what is wrong with the answer.
async fn refused(cluster: &Cluster, case: &Bad) -> Result<(), String> {
    let url = format!("http://{}/api/v2/{}", cluster.server(0).addr(), case.path);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let method = case.method.parse().unwrap();
    let answer = client
        .request(method, url)
        .body(case.body.clone())
        .send()
        .await
        .map_err(|error| error.to_string())?;
    let status = answer.status().as_u16();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    let body: ErrorBody = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    let fits = status == case.status
        && body.error_code == case.code
        && body.error_msg.starts_with(&format!("[{}]", case.code))
        && case.says.iter().all(|part| body.error_msg.contains(part))
        && !text.contains(SECRET);
    if fits {
        Ok(())
    } else {
        Err(format!("{status} {text}, but wanted {} {} {:?}", case.status, case.code, case.says))
    }
}

async fn a_server_that_cannot_start_says_why_and_changes_nothing(kind: Kind) {
    let cluster = Cluster::start(kind, 1).await;
    cluster.create_feeds(1).await;
    cluster.balanced().await;
    cluster.all_move().await;
    let store = cluster.store.open().await;
    let before = dump(&*store).await;
    let url = cluster.store.url.clone();
    let fresh = cluster.dir().join("fresh");
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let fresh = text(&fresh);
    let here = text(cluster.server(0).data_dir());
    let addr = cluster.server(0).addr().to_owned();
    let file = |name: &str, content: &str| {
        let path = cluster.dir().join(name);
        std::fs::write(&path, content).unwrap();
        text(&path)
    };
    let unknown = file("unknown.toml", "adr = \"127.0.0.1:1\"\n");
    let no_toml = file("no.toml", "addr = \n");
    let rule = file("rule.toml", "[time]\noffline-after = \"11s\"\n");
    let no_dir = file("a-file", "");
    let no_database = file("garbage.db", &"no database ".repeat(1000));

    let server = ["server", "--addr", "127.0.0.1:0", "--data-dir", &fresh, "--store", &url];
    let mut cases: Vec<(Vec<&str>, i32, &[&str])> = vec![
        (
            vec!["server", "--addr", &addr, "--data-dir", &fresh, "--store", &url],
            5,
            &["--addr", "another program listens there"],
        ),
        (
            vec!["server", "--addr", "127.0.0.1:0", "--data-dir", &here, "--store", &url],
            5,
            &["data directory", "--data-dir of its own"],
        ),
        (vec!["server", "--addr", "127.0.0.1:0", "--data-dir", &no_dir, "--store", &url], 1, &["--data-dir"]),
        ([&server[..], &["--addr", "nowhere"]].concat(), 2, &["--addr"]),
        (vec!["server", "--addr", "nowhere", "--data-dir", &fresh, "--store", &url], 2, &["addr", "nowhere"]),
        ([&server[..], &["--config", &unknown]].concat(), 2, &["adr"]),
        ([&server[..], &["--config", &no_toml]].concat(), 2, &["no.toml"]),
        ([&server[..], &["--config", "/nowhere.toml"]].concat(), 2, &["/nowhere.toml"]),
        ([&server[..], &["--config", &rule]].concat(), 2, &["offline-after"]),
        ([&server[..], &["--log-level", "loud="]].concat(), 2, &["log-level"]),
        ([&server[..], &["--label", "no-value"]].concat(), 2, &["label"]),
        ([&server[..], &["--nope"]].concat(), 2, &["--nope"]),
        (
            [&server[..5], &["--store", "postgres://u:hunter2@h/d"]].concat(),
            2,
            &["--store", "postgres", "sqlite://"],
        ),
        ([&server[..5], &["--store", "mysql://u:hunter2@h:3306"]].concat(), 2, &["--store", "database"]),
        ([&server[..5], &["--store", "mysql://root:hunter2@127.0.0.1:1/x"]].concat(), 4, &["127.0.0.1:1"]),
    ];
    let garbage = format!("sqlite://{no_database}");
    let denied = url.replace("root@", "root:hunter2@");
    let absent = url.replace("cdc_test_", "cdc_absent_");
    match kind {
        Kind::Sqlite => {
            cases.push(([&server[..5], &["--store", &garbage]].concat(), 3, &["garbage.db", "database"]));
            cases.push((vec!["migrate", "--store", "sqlite:///nowhere/at/all/"], 2, &["--store"]));
        }
        Kind::Mysql | Kind::Mariadb | Kind::Tidb => {
            cases.push(([&server[..5], &["--store", &denied]].concat(), 3, &["denied"]));
            cases.push(([&server[..5], &["--store", &absent]].concat(), 3, &["cdc_absent_"]));
            cases.push((vec!["migrate", "--store", &denied], 3, &["denied"]));
        }
    }
    let mut wrong = Vec::new();
    for (args, exit, says) in cases {
        let output = run_program(&args, "").await;
        let all = format!("{}{}", output.out, output.err);
        let fits = output.exit == exit && says.iter().all(|part| output.err.contains(part));
        if !fits || (all.contains(SECRET) && !all.contains("Warning")) || all.contains("panicked") {
            wrong.push(format!("{args:?}: exit {}, wanted {exit} and {says:?}: {all}", output.exit));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(dump(&*store).await, before, "something changed");

    // Written by a later version.
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (20990101000000, 'later', TRUE, X'00', 0)";
    cluster.store.execute(newer).await;
    for args in [&server[..], &["migrate", "--store", &url]] {
        let output = run_program(args, "").await;
        assert!(output.exit == 3 && output.err.contains("newer"), "{args:?}: {} {}", output.exit, output.err);
    }
    assert_eq!(dump(&*store).await, before, "something changed");
    cluster.store.execute("DELETE FROM _sqlx_migrations WHERE version = 20990101000000").await;
    drop(store);
    cluster.all_move().await;
    cluster.finish().await;
}
