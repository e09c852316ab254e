//! What the tests of the API and of the client share: a real SQLite store in a temporary directory, a capture and a
//! replicator of which the test says what they do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use capture_runtime::clock::{Clock, SystemClock};
use capture_runtime::task::{PreparedTask, TaskContext, TaskEnd, TaskError, TaskFactory, TaskSpec};
use metadata_api::model::{
    CaptureId, CaptureTerm, ChangefeedName, ChangefeedOverview, ChangefeedProgress, ControllerTerm,
    NewCapture, OwnerTerm, ScheduleState, ScheduleTarget, Ts,
};
use metadata_api::store::{MetadataStore, OwnerEnd, OwnerRelease};
use metadata_sqlite::{SqliteOptions, SqliteStore};
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;

use crate::api::{ApiParts, Waits, router};
use crate::local::LocalCapture;
use crate::server::config_defaults;

/// A capture that is what the test says.
pub struct TestCapture {
    /// Its id.
    pub id: CaptureId,
    /// Whether it takes part.
    pub ready: AtomicBool,
    /// Whether it is the controller.
    pub leads: AtomicBool,
}

impl LocalCapture for TestCapture {
    fn id(&self) -> Option<CaptureId> {
        Some(self.id)
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    fn is_draining(&self) -> bool {
        false
    }

    fn controller(&self) -> Option<CaptureId> {
        self.leads.load(Ordering::SeqCst).then_some(self.id)
    }
}

/// Accepts `datagen` to `blackhole` and `mysql`; refuses a host called `down`.
#[derive(Debug)]
pub struct TestTasks;

#[async_trait]
impl TaskFactory for TestTasks {
    async fn prepare(&self, spec: &TaskSpec) -> Result<PreparedTask, TaskError> {
        if spec.upstream_uri.expose().contains("@down") {
            return Err(TaskError::retryable(
                "CDC:ErrMySQLConnectionError",
                "upstream_uri: connection refused",
            ));
        }
        if spec.upstream_uri.expose().contains("@silent") {
            std::future::pending::<()>().await;
        }
        let start_ts = spec.start_ts.unwrap_or_else(|| Ts::from_time(SystemClock.wall()));
        Ok(PreparedTask { start_ts, task_position: ChangefeedProgress::at(start_ts) })
    }

    async fn run(&self, _: TaskContext) -> Result<TaskEnd, TaskError> {
        Ok(TaskEnd::Stopped)
    }
}

/// A store with one registered capture that is the controller, and the API on it.
pub struct Fixture {
    /// The store.
    pub store: Arc<dyn MetadataStore>,
    /// The local capture.
    pub capture: Arc<TestCapture>,
    /// All routes.
    pub api: Router,
    /// The controller's token.
    pub controller: ControllerTerm,
    _dir: TempDir,
}

impl Fixture {
    /// Everything, fresh.
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(dir.path().join("cdc.db"));
        SqliteStore::migrate(&options).await.unwrap();
        let store: Arc<dyn MetadataStore> = Arc::new(SqliteStore::open(options).await.unwrap());
        let id = register(store.as_ref(), "host-a:8300").await.capture;
        let term = CaptureTerm { capture: id };
        let controller = store.election_campaign(term, &store.election().await.unwrap()).await.unwrap();
        let capture =
            Arc::new(TestCapture { id, ready: AtomicBool::new(true), leads: AtomicBool::new(true) });
        let cluster_id = store.identity().await.unwrap().cluster_id.to_string();
        let api = router(ApiParts {
            plan: metadata_api::decision::planner::PlanPolicy::default(),
            store: store.clone(),
            tasks: Arc::new(TestTasks),
            clock: SystemClock::shared(),
            capture: capture.clone(),
            cluster_id,
            default_upstream: None,
            config_defaults: config_defaults(),
            metrics: None,
            waits: Waits {
                removed: Duration::from_millis(400),
                stopped: Duration::from_millis(400),
                prepare: Duration::from_millis(400),
            },
        });
        Self { store, capture, api, controller, _dir: dir }
    }

    /// One call; the answer's status and JSON (`null` when it is empty).
    pub async fn call(&self, method: &str, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            // What the curl recipe that people copy makes of it.
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body.into())
            .unwrap();
        self.send(request).await
    }

    /// One request.
    pub async fn send(&self, request: Request<Body>) -> (StatusCode, Value) {
        let response = self.api.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 10 << 20).await.unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let json = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
        };
        (status, json)
    }

    /// A call that must succeed.
    pub async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.call(method, path, text).await;
        assert_eq!(status, StatusCode::OK, "{method} {path}: {answer}");
        answer
    }

    /// A call that must be refused; the text of the error.
    pub async fn refused(&self, method: &str, path: &str, body: Value, status: u16, code: &str) -> String {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (found, answer) = self.call(method, path, text).await;
        assert_eq!(found.as_u16(), status, "{method} {path}: {answer}");
        assert_eq!(answer["error_code"], code, "{method} {path}: {answer}");
        let message = answer["error_msg"].as_str().unwrap().to_owned();
        assert!(message.starts_with(&format!("[{code}]")), "{message}");
        message
    }

    /// A changefeed, read from the store.
    pub async fn overview(&self, id: &str) -> Option<ChangefeedOverview> {
        self.store.changefeed_overview(&ChangefeedName::new("", id).unwrap()).await.unwrap()
    }

    /// Launches a changefeed on the fixture's capture.
    pub async fn launch(&self, id: &str) -> OwnerTerm {
        let schedule = self.overview(id).await.unwrap().schedule;
        let target = ScheduleTarget {
            changefeed: schedule.changefeed,
            expected_version: schedule.version,
            state: ScheduleState::Launched,
            owner: Some(self.capture.id),
        };
        let launched = self.store.owner_set(self.controller, &[target]).await.unwrap().remove(0).unwrap();
        launched.term().unwrap()
    }

    /// What an owner does when it has stopped.
    pub async fn release(&self, term: OwnerTerm, end: Option<OwnerEnd>) {
        let release = OwnerRelease { term, task_position: None, end };
        self.store.owner_release(&[release]).await.unwrap().remove(0).unwrap();
    }
}

/// Registers a capture.
pub async fn register(store: &dyn MetadataStore, addr: &str) -> CaptureTerm {
    let new = NewCapture {
        id: CaptureId::random(),
        advertise_addr: addr.to_owned(),
        version: "v8.5.7".to_owned(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        machine_id: String::new(),
    };
    store.capture_register(&new).await.unwrap()
}
