//! Captures: the list, and handing over.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use metadata_api::MetadataError;
use metadata_api::model::{CaptureId, CaptureState, ScheduleState};
use serde::Deserialize;

use super::body::{self, ApiBody, null_is_default};
use super::error::{ApiError, code};
use super::model::{Capture, DrainCaptureResp, List};
use super::params::{NamedCapture, parse_capture};
use super::{Api, view};

async fn captures(api: &Api) -> Result<Vec<Capture>, ApiError> {
    let controller = api.capture.controller();
    let found = api.store.captures(None).await?;
    Ok(found
        .iter()
        .filter(|info| info.state != CaptureState::Offline)
        .map(|info| view::capture(info, controller, &api.cluster_id))
        .collect())
}

/// `GET /api/v2/captures`: those that are not declared dead.
pub async fn list(State(api): State<Api>) -> Result<Response, ApiError> {
    Ok(body::ok(List::from(captures(&api).await?)))
}

/// `GET /api/v1/captures`: the same as a bare array.
pub async fn list_v1(State(api): State<Api>) -> Result<Response, ApiError> {
    Ok(body::ok(captures(&api).await?))
}

/// `POST /api/v2/captures/{capture_id}/drain`.
pub async fn drain_by_path(
    State(api): State<Api>,
    NamedCapture(capture): NamedCapture,
) -> Result<Response, ApiError> {
    drain(&api, capture).await
}

/// The body of `PUT /api/v1/captures/drain`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct DrainBody {
    #[serde(deserialize_with = "null_is_default")]
    capture_id: String,
}

/// `PUT /api/v1/captures/drain`.
pub async fn drain_by_body(
    State(api): State<Api>,
    ApiBody(asked): ApiBody<DrainBody>,
) -> Result<Response, ApiError> {
    drain(&api, parse_capture(&asked.capture_id)?).await
}

/// Takes all work from a capture; it gets none again until it was restarted. Repeated until the count is 0.
async fn drain(api: &Api, capture: CaptureId) -> Result<Response, ApiError> {
    let all = api.store.captures(None).await?;
    let target = all.iter().find(|info| info.id == capture);
    match target.map(|info| info.state) {
        None | Some(CaptureState::Offline) => return Err(ApiError::capture_not_exist(capture)),
        Some(CaptureState::Draining) => {}
        Some(CaptureState::Alive) => {
            let others = all.iter().any(|info| info.id != capture && info.state == CaptureState::Alive);
            if !others {
                return Err(ApiError::new(
                    StatusCode::BAD_REQUEST,
                    code::SCHEDULER_REQUEST_FAILED,
                    "scheduler request failed, only one capture alive",
                ));
            }
            api.store.capture_drain(capture).await.map_err(|error| match error {
                MetadataError::NotFound { .. } => ApiError::capture_not_exist(capture),
                other => other.into(),
            })?;
        }
    }
    let owned = api.store.changefeed_overviews(None).await?.into_iter().map(|of| of.schedule);
    let owned = owned.filter(|of| of.owner == Some(capture) && of.state != ScheduleState::Removed);
    let carried = api.store.processors(None).await?.into_iter().map(|of| of.schedule);
    let carried = carried.filter(|of| of.capture == capture && of.state != ScheduleState::Removed);
    // As their owner, as a processor of them, or both.
    let left: BTreeSet<_> = owned.map(|of| of.changefeed).chain(carried.map(|of| of.changefeed)).collect();
    Ok(body::answer(StatusCode::ACCEPTED, DrainCaptureResp { current_table_count: left.len() }))
}

/// `POST /api/v2/owner/resign`: takes the lease from the controller; another capture will be elected.
pub async fn resign(State(api): State<Api>) -> Result<Response, ApiError> {
    api.store.controller_depose().await?;
    Ok(body::done())
}

/// `POST /api/v1/owner/resign`: the same, answered 202 and empty.
pub async fn resign_v1(State(api): State<Api>) -> Result<StatusCode, ApiError> {
    api.store.controller_depose().await?;
    Ok(StatusCode::ACCEPTED)
}
