//! The routes, on a real store.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use chrono::{TimeZone, Utc};
use metadata_api::decision::assignment::{TableOrder, TableOrders};
use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    CaptureProgress, CaptureTerm, ChangefeedProgress, FeedState, OwnedProgress, ProcessorAssignment,
    ProcessorReport, ProcessorTarget, RunningError, ScheduleState, TableId, TableReport, Ts, Version,
};
use metadata_api::store::OwnerEnd;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::error::code;
use crate::testing::{Fixture, register};

const SECRET: &str = "hunter2";

fn new_feed(id: &str) -> Value {
    json!({
        "changefeed_id": id, "sink_uri": "blackhole://", "upstream_uri": "datagen://?tables=1", "replica_config": null
    })
}

async fn create(fixture: &Fixture, id: &str) -> Value {
    fixture.ok("POST", "/api/v2/changefeeds", new_feed(id)).await
}

fn now_ms() -> u64 {
    use capture_runtime::clock::{Clock, SystemClock};
    u64::try_from(SystemClock.wall().timestamp_millis()).unwrap()
}

#[tokio::test]
async fn status_and_captures_have_the_contracts_shapes() {
    let fixture = Fixture::new().await;
    let other = register(fixture.store.as_ref(), "host-b:8300").await;
    fixture.store.capture_drain(other.capture).await.unwrap();
    let id = fixture.capture.id.to_string();
    for path in ["/status", "/api/v2/status", "/api/v1/status"] {
        let status = fixture.ok("GET", path, Value::Null).await;
        let cluster = status["cluster_id"].clone();
        assert_eq!(
            status,
            json!({
                "version": crate::version::RELEASE, "git_hash": crate::version::GIT_HASH, "id": id, "cluster_id": cluster,
                "pid": std::process::id(), "is_owner": true, "liveness": 0
            })
        );
    }
    let list = fixture.ok("GET", "/api/v2/captures", Value::Null).await;
    assert_eq!(list["total"], 2);
    let bare = fixture.ok("GET", "/api/v1/captures", Value::Null).await;
    assert_eq!(bare, list["items"]);
    let own = bare.as_array().unwrap().iter().find(|capture| capture["id"] == id.as_str()).unwrap();
    assert_eq!(
        (own["is_owner"].clone(), own["address"].clone(), own["is_draining"].clone()),
        (json!(true), json!("host-a:8300"), json!(false))
    );
    assert!(own["last_heartbeat"].as_str().unwrap().ends_with('Z'), "{own}");
    assert_eq!(own["labels"], json!({"zone": "a"}));
    assert!(bare.as_array().unwrap().iter().any(|capture| capture["is_draining"] == true));
    let health = fixture.ok("GET", "/api/v2/health", Value::Null).await;
    assert_eq!(health, json!({}));
    assert_eq!(fixture.call("GET", "/api/v1/health", "").await, (StatusCode::OK, Value::Null));
    fixture.capture.leads.store(false, Ordering::SeqCst);
    fixture.refused("GET", "/api/v2/health", Value::Null, 500, code::UNHEALTHY).await;
}

#[tokio::test]
async fn a_server_that_is_not_ready_says_so_everywhere_but_in_its_own_status() {
    let fixture = Fixture::new().await;
    fixture.capture.ready.store(false, Ordering::SeqCst);
    for path in ["/api/v2/status", "/api/v2/changefeeds", "/api/v1/captures", "/readyz"] {
        fixture.refused("GET", path, Value::Null, 503, code::NOT_READY).await;
    }
    fixture.ok("GET", "/status", Value::Null).await;
    let live = Request::get("/livez").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(fixture.api.clone(), live).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_is_created_is_answered_in_full_and_masked() {
    let fixture = Fixture::new().await;
    let body = json!({
        "namespace": "", "changefeed_id": "shop-1", "start_ts": 449_000_000_000_000_000_u64, "target_ts": 0,
        "sink_uri": format!("mysql://root:{SECRET}@sink:3306/"), "upstream_uri": format!("mysql://u:{SECRET}@up:3306/"),
        "replica_config": {
            "case_sensitive": true, "filter": {"rules": ["shop.*"]}, "sink": {"kafka_config": {"sasl_password": SECRET}},
            "new_key": {"kept": 1}
        },
        "pd_addrs": ["http://pd:2379"], "ca_path": "", "unknown": [1]
    });
    let created = fixture.ok("POST", "/api/v2/changefeeds?namespace=default", body).await;
    let read = fixture.ok("GET", "/api/v2/changefeeds/shop-1?keyspace=default&state=all", Value::Null).await;
    assert_eq!(created, read);
    let meta = fixture.ok("GET", "/api/v2/changefeeds/shop-1/meta_info", Value::Null).await;
    assert_eq!(meta, read);
    assert!(!read.to_string().contains(SECRET), "{read}");
    for (key, wanted) in [
        ("id", json!("shop-1")),
        ("namespace", json!("default")),
        ("keyspace", json!("default")),
        ("sink_uri", json!("mysql://root:xxxxx@sink:3306/")),
        ("upstream_uri", json!("mysql://u:xxxxx@up:3306/")),
        ("start_ts", json!(449_000_000_000_000_000_u64)),
        ("checkpoint_ts", json!(449_000_000_000_000_000_u64)),
        ("resolved_ts", json!(449_000_000_000_000_000_u64)),
        ("state", json!("normal")),
        ("creator_version", json!(crate::version::RELEASE)),
        ("owner", json!({"capture_id": null, "epoch": 0, "state": "removed"})),
    ] {
        assert_eq!(read[key], wanted, "{key}");
    }
    for absent in ["target_ts", "error", "admin_job_type", "task_status", "maintainer_addr"] {
        assert!(read.get(absent).is_none(), "{absent}");
    }
    let config = &read["config"];
    assert_eq!(config["case_sensitive"], true);
    assert_eq!(config["filter"], json!({"rules": ["shop.*"]}));
    assert_eq!(config["new_key"], json!({"kept": 1}), "unknown keys are kept");
    assert_eq!(config["sink"]["kafka_config"]["sasl_password"], "xxxxx");
    assert_eq!(config["sink"]["encoder_concurrency"], 32, "defaults are filled in");
    assert!(chrono::DateTime::parse_from_rfc3339(read["create_time"].as_str().unwrap()).is_ok());
    let time = read["checkpoint_time"].as_str().unwrap();
    assert!(chrono::NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.3f").is_ok(), "{time}");
    let stored = fixture.overview("shop-1").await.unwrap();
    assert_eq!(stored.info.sink_uri.expose(), format!("mysql://root:{SECRET}@sink:3306/"));
}

#[tokio::test]
async fn a_create_is_checked_before_anything_is_changed() {
    let fixture = Fixture::new().await;
    create(&fixture, "there").await;
    let future = (now_ms() + 3_600_000) << 18;
    let with = |key: &str, value: Value| {
        let mut body = new_feed("new");
        body[key] = value;
        body
    };
    let mysql = |host: &str| json!(format!("mysql://u:{SECRET}@{host}/"));
    for (body, code, text) in [
        (with("changefeed_id", json!("a_b")), code::INVALID_PARAM, "invalid changefeed_id"),
        (with("changefeed_id", json!("a".repeat(129))), code::INVALID_PARAM, "129"),
        (with("namespace", json!("a b")), code::INVALID_PARAM, "invalid namespace"),
        (
            with("changefeed_id", json!("there")),
            code::CHANGEFEED_ALREADY_EXISTS,
            "already exists, default/there",
        ),
        (with("sink_uri", json!("")), code::SINK_URI_INVALID, "sink_uri is empty"),
        (with("sink_uri", json!("no uri")), code::SINK_URI_INVALID, "not a URI"),
        (with("sink_uri", json!("mysql://u:xxxxx@h/")), code::SINK_URI_INVALID, "the mask"),
        (with("upstream_uri", json!("")), code::INVALID_PARAM, "--upstream-uri"),
        (with("upstream_uri", json!("::")), code::INVALID_PARAM, "invalid upstream_uri"),
        (with("upstream_uri", mysql("down")), "CDC:ErrMySQLConnectionError", "connection refused"),
        (with("upstream_uri", mysql("silent")), code::INVALID_PARAM, "did not answer"),
        (with("start_ts", json!(future)), code::INVALID_PARAM, "larger than current tso"),
        (with("start_ts", json!(u64::MAX)), code::INVALID_PARAM, "start_ts"),
        (with("start_ts", json!("1")), code::INVALID_PARAM, "`start_ts`"),
        (with("target_ts", json!(1)), code::TARGET_BEFORE_START, "target-ts 1"),
        (with("client_request_id", json!("x")), code::INVALID_PARAM, "client_request_id"),
        (with("replica_config", json!([])), code::INVALID_PARAM, "`replica_config`"),
    ] {
        let mut shown = body.clone();
        if body.get("target_ts").is_some() {
            shown["start_ts"] = json!(449_000_000_000_000_000_u64);
        }
        let message = fixture.refused("POST", "/api/v2/changefeeds", shown, 400, code).await;
        assert!(message.contains(text), "{body}: {message}");
        assert!(!message.contains(SECRET), "{message}");
    }
    let unknown_upstream = json!({"changefeed_id": "new", "sink_uri": "blackhole://", "upstream_id": 77});
    fixture.refused("POST", "/api/v2/changefeeds", unknown_upstream, 400, "CDC:ErrUpstreamNotFound").await;
    let list = fixture.ok("GET", "/api/v2/changefeeds?state=all", Value::Null).await;
    assert_eq!(list["total"], 1);
}

#[tokio::test]
async fn a_repeated_create_with_the_same_request_id_answers_the_same() {
    let fixture = Fixture::new().await;
    let id = uuid::Uuid::new_v4().to_string();
    let request = || {
        Request::post("/api/v2/changefeeds")
            .header("X-Request-Id", &id)
            .body(Body::from(new_feed("twice").to_string()))
            .unwrap()
    };
    let (status, first) = fixture.send(request()).await;
    assert_eq!(status, StatusCode::OK, "{first}");
    let (status, second) = fixture.send(request()).await;
    assert_eq!((status, &second), (StatusCode::OK, &first));
    fixture
        .refused("POST", "/api/v2/changefeeds", new_feed("twice"), 400, code::CHANGEFEED_ALREADY_EXISTS)
        .await;
    let fresh = fixture.ok("POST", "/api/v2/changefeeds", new_feed("")).await;
    assert!(uuid::Uuid::parse_str(fresh["id"].as_str().unwrap()).is_ok());
}

#[tokio::test]
async fn lists_are_sorted_filtered_and_masked() {
    let fixture = Fixture::new().await;
    for id in ["b", "a", "c"] {
        create(&fixture, id).await;
    }
    let mut elsewhere = new_feed("z");
    elsewhere["namespace"] = json!("other");
    fixture.ok("POST", "/api/v2/changefeeds", elsewhere).await;
    fixture.ok("POST", "/api/v2/changefeeds/c/pause?namespace=default", Value::Null).await;
    let term = fixture.launch("b").await;
    let error = RunningError {
        time: Utc.timestamp_opt(1_700_000_000, 0).unwrap(),
        addr: "host-a:8300".into(),
        code: "CDC:ErrMySQLConnectionError".into(),
        message: "lost".into(),
    };
    fixture.store.owner_transition(term, FeedEvent::Report(FeedState::Pending), Some(error)).await.unwrap();
    let list = fixture.ok("GET", "/api/v2/changefeeds", Value::Null).await;
    assert_eq!(list["total"], 3);
    let items = list["items"].as_array().unwrap();
    let shown: Vec<_> =
        items.iter().map(|item| (item["id"].as_str().unwrap(), item["state"].as_str().unwrap())).collect();
    assert_eq!(shown, [("a", "normal"), ("b", "warning"), ("c", "stopped")]);
    assert_eq!(items[0]["error"], Value::Null);
    assert_eq!(
        items[1]["error"],
        json!({"time": "2023-11-14T22:13:20Z", "addr": "host-a:8300", "code": "CDC:ErrMySQLConnectionError", "message": "lost"})
    );
    assert_eq!(items[1]["owner"]["capture_id"], fixture.capture.id.to_string());
    for key in [
        "upstream_id",
        "namespace",
        "id",
        "state",
        "checkpoint_tso",
        "checkpoint_time",
        "error",
        "upstream_uri",
    ] {
        assert!(items[0].get(key).is_some(), "{key}");
    }
    for (query, count) in [
        ("state=stopped", 1),
        ("state=normal", 1),
        ("state=pending", 1),
        ("state=all&namespace=other", 1),
        ("keyspace=none", 0),
    ] {
        let list = fixture.ok("GET", &format!("/api/v2/changefeeds?{query}"), Value::Null).await;
        assert_eq!(list["items"].as_array().unwrap().len(), count, "{query}");
    }
    fixture.refused("GET", "/api/v2/changefeeds?state=running", Value::Null, 400, code::INVALID_PARAM).await;
    let status = fixture.ok("GET", "/api/v2/changefeeds/b/status", Value::Null).await;
    assert_eq!(
        (status["state"].clone(), status["last_error"]["message"].clone()),
        (json!("pending"), json!("lost"))
    );
    let full = fixture.ok("GET", "/api/v2/changefeeds/b", Value::Null).await;
    assert_eq!(full["maintainer_addr"], "host-a:8300");
    assert_eq!(full["state"], "pending");
    let synced = fixture.ok("GET", "/api/v2/changefeeds/b/synced", Value::Null).await;
    assert_eq!(synced["synced"], false);
}

#[tokio::test]
async fn pause_and_resume_go_by_the_state_machine() {
    let fixture = Fixture::new().await;
    create(&fixture, "a").await;
    let term = fixture.launch("a").await;
    assert_eq!(fixture.ok("POST", "/api/v2/changefeeds/a/pause", Value::Null).await, json!({}));
    fixture.ok("POST", "/api/v2/changefeeds/a/pause", Value::Null).await;
    let paused = fixture.overview("a").await.unwrap();
    assert_eq!((paused.status.state, paused.schedule.state), (FeedState::Stopped, ScheduleState::Removing));
    fixture.release(term, None).await;
    fixture.ok("POST", "/api/v2/changefeeds/a/resume", json!({"overwrite_checkpoint_ts": 0})).await;
    let term = fixture.launch("a").await;
    fixture.release(term, Some(OwnerEnd::Finished)).await;
    let message =
        fixture.refused("POST", "/api/v2/changefeeds/a/pause", Value::Null, 400, code::UPDATE_REFUSED).await;
    assert!(message.contains("finished"), "{message}");
    let list = fixture.ok("GET", "/api/v2/changefeeds", Value::Null).await;
    assert_eq!(list["total"], 0, "finished is not live");
    assert_eq!(fixture.ok("GET", "/api/v2/changefeeds/a/synced", Value::Null).await["synced"], true);
    for (method, path) in [
        ("POST", "nope/pause"),
        ("POST", "nope/resume"),
        ("GET", "nope"),
        ("GET", "nope/status"),
        ("PUT", "nope"),
    ] {
        let path = format!("/api/v2/changefeeds/{path}");
        let message = fixture.refused(method, &path, Value::Null, 400, code::CHANGEFEED_NOT_EXISTS).await;
        assert!(message.contains("changefeed not exists, default/nope"), "{message}");
    }
}

#[tokio::test]
async fn a_checkpoint_is_overwritten_only_at_rest_and_not_into_the_future() {
    let fixture = Fixture::new().await;
    create(&fixture, "a").await;
    let term = fixture.launch("a").await;
    let ts = 449_000_000_000_000_000_u64;
    let path = "/api/v2/changefeeds/a/resume";
    let overwrite = |ts: u64| json!({"overwrite_checkpoint_ts": ts});
    fixture.refused("POST", path, overwrite(ts), 400, code::UPDATE_REFUSED).await;
    fixture.ok("POST", "/api/v2/changefeeds/a/pause", Value::Null).await;
    fixture.refused("POST", path, overwrite(ts), 400, code::UPDATE_REFUSED).await;
    fixture.release(term, None).await;
    fixture.refused("POST", path, overwrite((now_ms() + 3_600_000) << 18), 400, code::INVALID_PARAM).await;
    fixture.ok("POST", path, overwrite(ts)).await;
    assert_eq!(fixture.overview("a").await.unwrap().progress.checkpoint_ts.0, ts);
}

#[tokio::test]
async fn an_update_wants_a_changefeed_at_rest_and_a_difference() {
    let fixture = Fixture::new().await;
    let mut body = new_feed("a");
    body["sink_uri"] = json!(format!("mysql://u:{SECRET}@h/"));
    body["replica_config"] = json!({"sink": {"kafka_config": {"sasl_password": SECRET}}});
    fixture.ok("POST", "/api/v2/changefeeds", body).await;
    let path = "/api/v2/changefeeds/a";
    let target = (now_ms() + 86_400_000) << 18;
    let message = fixture.refused("PUT", path, json!({"target_ts": target}), 400, code::UPDATE_REFUSED).await;
    assert!(message.contains("can only update changefeed config when it is stopped or failed"), "{message}");
    let term = fixture.launch("a").await;
    fixture.ok("POST", "/api/v2/changefeeds/a/pause", Value::Null).await;
    // Its owner needs a moment to stop; the update waits for it.
    let update = fixture.call("PUT", path, json!({"target_ts": target}).to_string());
    let release = async {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        fixture.release(term, None).await;
    };
    let ((status, updated), ()) = tokio::join!(update, release);
    assert_eq!((status, updated["target_ts"].clone()), (StatusCode::OK, json!(target)), "{updated}");
    // What `cdc cli changefeed update` does: GET, edit, PUT the masked configuration back.
    let mut config = fixture.ok("GET", path, Value::Null).await["config"].clone();
    let message = fixture
        .refused("PUT", path, json!({"sink_uri": "", "replica_config": config}), 400, code::UPDATE_REFUSED)
        .await;
    assert!(message.contains("the same with the old one"), "{message}");
    config["case_sensitive"] = json!(true);
    let put = json!({"sink_uri": "mysql://u:xxxxx@h/", "replica_config": config});
    let updated = fixture.ok("PUT", path, put).await;
    assert_eq!(updated["config"]["case_sensitive"], true);
    let stored = fixture.overview("a").await.unwrap().info;
    assert_eq!(stored.sink_uri.expose(), format!("mysql://u:{SECRET}@h/"));
    assert_eq!(stored.config.0["sink"]["kafka_config"]["sasl_password"], SECRET);
    for (body, code, text) in [
        (json!({"start_ts": 5}), code::UPDATE_REFUSED, "can not update start_ts"),
        (json!({"target_ts": 1}), code::UPDATE_REFUSED, "can not update target_ts:1 less than start_ts"),
        (json!({"sink_uri": "mysql://u:xxxxx@elsewhere/"}), code::SINK_URI_INVALID, "the mask"),
        (
            json!({"upstream_uri": format!("mysql://u:{SECRET}@down/")}),
            "CDC:ErrMySQLConnectionError",
            "refused",
        ),
        (json!({}), code::UPDATE_REFUSED, "the same"),
    ] {
        let message = fixture.refused("PUT", path, body, 400, code).await;
        assert!(message.contains(text) && !message.contains(SECRET), "{message}");
    }
}

#[tokio::test]
async fn delete_waits_for_the_owner_and_may_be_repeated() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.ok("DELETE", "/api/v2/changefeeds/never", Value::Null).await, json!({}));
    create(&fixture, "a").await;
    fixture.ok("DELETE", "/api/v2/changefeeds/a", Value::Null).await;
    fixture.refused("GET", "/api/v2/changefeeds/a", Value::Null, 400, code::CHANGEFEED_NOT_EXISTS).await;
    create(&fixture, "a").await;
    let term = fixture.launch("a").await;
    let message =
        fixture.refused("DELETE", "/api/v2/changefeeds/a", Value::Null, 500, code::DELETION_UNFINISHED).await;
    assert!(message.contains("changefeed exists after deletion, default/a"), "{message}");
    fixture.refused("POST", "/api/v2/changefeeds", new_feed("a"), 400, code::CHANGEFEED_ALREADY_EXISTS).await;
    let list = fixture.ok("GET", "/api/v2/changefeeds?state=all", Value::Null).await;
    assert_eq!(list["items"][0]["state"], "removed");
    let release = async {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        fixture.release(term, None).await;
    };
    let ((status, answer), ()) = tokio::join!(fixture.call("DELETE", "/api/v2/changefeeds/a", ""), release);
    assert_eq!(status, StatusCode::OK, "{answer}");
    create(&fixture, "a").await;
}

#[tokio::test]
async fn a_drain_and_the_list_see_what_a_capture_carries_for_others() {
    let fixture = Fixture::new().await;
    create(&fixture, "a").await;
    let term = fixture.launch("a").await;
    let other = register(fixture.store.as_ref(), "host-b:8300").await.capture;
    let target = ProcessorTarget {
        capture: other,
        expected_version: None,
        state: ScheduleState::Launched,
        assignment: ProcessorAssignment::default(),
    };
    let rows = fixture.store.processor_set(fixture.controller, term.changefeed, &[target]).await.unwrap();
    let from = ChangefeedProgress::at(Ts(1_000 << 18));
    let order = |stop| TableOrder { since: Version(2), turn: rows[0].revision, from: from.clone(), stop };
    let orders = [(TableId("t0".to_owned()), order(false)), (TableId("t1".to_owned()), order(true))];
    let orders = TableOrders(orders.into()).encode().unwrap();
    let seen = [(other, rows[0].version)].into();
    fixture.store.processor_assign(term, &seen, &[(other, orders)].into()).await.unwrap();
    let progress = ChangefeedProgress::at(Ts(2_000 << 18));
    let report = TableReport { since: Version(2), stopped: false, error: None, progress };
    let said = ProcessorReport { epoch: rows[0].epoch, tables: [(TableId("t0".to_owned()), report)].into() };
    let mut entry = OwnedProgress::new(term.epoch, ChangefeedProgress::default());
    entry.processor = Some(said);
    let said = CaptureProgress([(term.changefeed, entry)].into());
    fixture.store.capture_advance(CaptureTerm { capture: other }, 1, &said).await.unwrap();

    let list = fixture.ok("GET", "/api/v2/processors", Value::Null).await;
    let item = &list["items"][0];
    assert_eq!(
        (&list["total"], &item["state"], &item["table_count"]),
        (&json!(1), &json!("launched"), &json!(2))
    );
    let path = format!("/api/v2/processors/a/{other}");
    let tables = fixture.ok("GET", &path, Value::Null).await["tables"].clone();
    let shown =
        |table: &Value| (table["table"].clone(), table["state"].clone(), table["checkpoint_ts"].clone());
    assert_eq!(shown(&tables[0]), (json!("t0"), json!("running"), json!(2_000_u64 << 18)));
    assert_eq!(shown(&tables[1]), (json!("t1"), json!("stopping"), json!(1_000_u64 << 18)));
    let info = fixture.ok("GET", "/api/v2/changefeeds/a", Value::Null).await;
    assert_eq!(info["task_status"][0]["tables"], tables);

    let drain = format!("/api/v2/captures/{other}/drain");
    let (_, answer) = fixture.call("POST", &drain, "").await;
    assert_eq!(answer, json!({"current_table_count": 1}));
    fixture.store.processor_release(rows[0].term()).await.unwrap();
    let (_, answer) = fixture.call("POST", &drain, "").await;
    assert_eq!(answer, json!({"current_table_count": 0}));
}

#[tokio::test]
async fn drain_and_resign_are_tiups() {
    let fixture = Fixture::new().await;
    create(&fixture, "a").await;
    fixture.launch("a").await;
    let id = fixture.capture.id;
    let drain = format!("/api/v2/captures/{id}/drain");
    let message = fixture.refused("POST", &drain, Value::Null, 400, code::SCHEDULER_REQUEST_FAILED).await;
    assert!(message.contains("only one capture alive"), "{message}");
    register(fixture.store.as_ref(), "host-b:8300").await;
    let body = json!({"capture_id": id}).to_string();
    for _ in 0..2 {
        let (status, answer) = fixture.call("PUT", "/api/v1/captures/drain", body.clone()).await;
        assert_eq!((status, answer), (StatusCode::ACCEPTED, json!({"current_table_count": 1})));
    }
    for strange in ["nope", "00000000-0000-4000-8000-000000000000"] {
        let path = format!("/api/v2/captures/{strange}/drain");
        fixture.refused("POST", &path, Value::Null, 400, code::CAPTURE_NOT_EXIST).await;
    }
    assert_eq!(fixture.call("POST", "/api/v1/owner/resign", "").await, (StatusCode::ACCEPTED, Value::Null));
    assert_eq!(fixture.store.election().await.unwrap().leader, None);
    assert_eq!(fixture.ok("POST", "/api/v2/owner/resign", Value::Null).await, json!({}));
}

#[tokio::test]
async fn what_ticdcs_client_asks_before_it_creates_is_answered() {
    let fixture = Fixture::new().await;
    let tso = fixture
        .ok("POST", "/api/v2/tso?namespace=default&namespace=default", json!({"id": 0, "pd_addrs": null}))
        .await;
    assert!(tso["timestamp"].as_u64().unwrap().abs_diff(now_ms()) < 60_000);
    assert_eq!(tso["logic_time"], 0);
    let start = (tso["timestamp"].as_u64().unwrap() << 18) + tso["logic_time"].as_u64().unwrap();
    let verify =
        json!({"replica_config": null, "start_ts": start, "sink_uri": "blackhole://", "ca_path": ""});
    let tables = fixture.ok("POST", "/api/v2/verify_table", verify).await;
    assert_eq!(tables["ineligible_tables"], json!([]));
    fixture
        .refused("POST", "/api/v2/verify_table", json!({"sink_uri": "x"}), 400, code::SINK_URI_INVALID)
        .await;
    let mut body = new_feed("a");
    body["start_ts"] = json!(start);
    fixture.ok("POST", "/api/v2/changefeeds", body).await;
    let processors = fixture.ok("GET", "/api/v2/processors", Value::Null).await;
    assert_eq!(processors, json!({"total": 0, "items": []}));
    let path = format!("/api/v2/processors/a/{}", fixture.capture.id);
    assert_eq!(fixture.ok("GET", &path, Value::Null).await, json!({"table_ids": [], "tables": []}));
    fixture.refused("GET", "/api/v2/processors/a/x", Value::Null, 400, code::CAPTURE_NOT_EXIST).await;
}

#[tokio::test]
async fn what_is_not_there_and_what_is_too_long_have_error_bodies_too() {
    let fixture = Fixture::new().await;
    fixture.refused("GET", "/api/v2/nothing", Value::Null, 404, code::INVALID_PARAM).await;
    fixture.refused("GET", "/api/v2/unsafe/metadata", Value::Null, 404, code::INVALID_PARAM).await;
    fixture.refused("PATCH", "/api/v2/changefeeds", Value::Null, 405, code::INVALID_PARAM).await;
    fixture.refused("GET", "/api/v2/changefeeds/%ff", Value::Null, 400, code::INVALID_PARAM).await;
    let long = json!({"changefeed_id": "x".repeat(2 << 20)});
    let message = fixture.refused("POST", "/api/v2/changefeeds", long, 413, code::INVALID_PARAM).await;
    assert!(message.contains("1048576"), "{message}");
    let page = Request::post("/api/v2/changefeeds/a/pause")
        .header("Host", "127.0.0.1:8300")
        .header("Origin", "http://evil.example")
        .body(Body::empty())
        .unwrap();
    let (status, answer) = fixture.send(page).await;
    assert_eq!((status, answer["error_code"].clone()), (StatusCode::FORBIDDEN, json!(code::UNAUTHORIZED)));
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let json = (any::<bool>(), "[a-z_]{1,12}", "\\PC{0,10}", any::<i64>()).prop_map(|(object, key, text, number)| {
        let value = json!({ key.as_str(): text, "start_ts": number, "changefeed_id": key, "sink_uri": text, "replica_config": {"x": [text]} });
        if object { value.to_string().into_bytes() } else { json!([value]).to_string().into_bytes() }
    });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), json]
}

/// Whatever the body and the path: no panic, and an error body with every refusal.
#[test]
fn no_body_and_no_path_breaks_the_api() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let routes = prop::sample::select(vec![
        ("POST", "/api/v2/changefeeds"),
        ("PUT", "/api/v2/changefeeds/{}"),
        ("POST", "/api/v2/changefeeds/{}/pause"),
        ("POST", "/api/v2/changefeeds/{}/resume"),
        ("DELETE", "/api/v2/changefeeds/{}"),
        ("GET", "/api/v2/changefeeds?state={}&namespace={}"),
        ("POST", "/api/v2/tso?{}"),
        ("POST", "/api/v2/verify_table"),
        ("PUT", "/api/v1/captures/drain"),
        ("POST", "/api/v2/captures/{}/drain"),
        ("GET", "/api/v2/processors/{}/{}"),
    ]);
    proptest!(ProptestConfig::with_cases(200), |(route in routes, part in "\\PC{1,8}", body in any_body())| {
        let part: String = url::form_urlencoded::byte_serialize(part.as_bytes()).collect();
        let (method, path) = route;
        let (status, answer) = runtime.block_on(fixture.call(method, &path.replace("{}", &part), body));
        if !status.is_success() {
            prop_assert!(status.is_client_error(), "{} {}", status, answer);
            prop_assert!(answer["error_msg"].as_str().is_some_and(|text| text.starts_with("[CDC:")), "{}", answer);
            prop_assert!(answer["error_code"].is_string());
        }
    });
}
