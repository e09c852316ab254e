//! How this server and the cluster are.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, code};
use super::model::ServerStatus;
use super::{Api, body, layers};
use crate::version;

/// `GET /status` and `GET /api/*/status`. Asks nobody.
pub async fn server_status(State(api): State<Api>) -> Response {
    let id = api.capture.id();
    body::ok(ServerStatus {
        version: version::RELEASE.to_owned(),
        git_hash: version::GIT_HASH.to_owned(),
        id: id.map(|id| id.to_string()).unwrap_or_default(),
        cluster_id: api.cluster_id.clone(),
        pid: std::process::id(),
        is_owner: id.is_some() && api.capture.controller() == id,
        liveness: i32::from(api.capture.is_draining()),
    })
}

/// `GET /api/v2/health`: whether there is a controller and the metadata can be read.
pub async fn health(State(api): State<Api>) -> Result<Response, ApiError> {
    check_health(&api).await?;
    Ok(body::done())
}

/// `GET /api/v1/health`: the same, with an empty body.
pub async fn health_v1(State(api): State<Api>) -> Result<StatusCode, ApiError> {
    check_health(&api).await?;
    Ok(StatusCode::OK)
}

async fn check_health(api: &Api) -> Result<(), ApiError> {
    let unhealthy = |why: String| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            code::UNHEALTHY,
            format!("TiCDC cluster is unhealthy: {why}"),
        )
    };
    api.store.election().await.map_err(|error| unhealthy(error.to_string()))?;
    match api.capture.controller() {
        Some(_) => Ok(()),
        None => Err(unhealthy("no controller holds a valid lease".to_owned())),
    }
}

/// `GET /livez`: the process answers.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the capture takes part in the cluster.
pub async fn readyz(State(api): State<Api>) -> Response {
    if api.capture.is_ready() { "ok\n".into_response() } else { layers::not_ready().into_response() }
}

/// `GET /metrics`, for Prometheus.
pub async fn metrics(State(api): State<Api>) -> Response {
    let text =
        api.metrics.as_ref().map(metrics_exporter_prometheus::PrometheusHandle::render).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
