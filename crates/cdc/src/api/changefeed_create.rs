//! Creating changefeeds.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use capture_runtime::task::{PreparedTask, TaskSpec};
use metadata_api::model::{
    ChangefeedName, ChangefeedOverview, ChangefeedSchedule, ChangefeedStatus, FeedState, NewChangefeed,
    OwnerEpoch, Placement, ReplicaConfig, Revision, ScheduleState, SecretUri, Ts, UpstreamId, UpstreamInfo,
    Version,
};
use metadata_api::store::Authority;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::body::ApiBody;
use super::changefeed_word::resolved;
use super::error::{ApiError, code};
use super::mask::{unmask_config, uri_from_request};
use super::model::ChangefeedConfig;
use super::params::ApiQuery;
use super::{Api, body, changefeed_read, view};
use crate::version;

/// The header that names a create, so that it may be repeated.
const REQUEST_ID: &str = "x-request-id";

/// `POST /api/v2/changefeeds`.
pub async fn create(
    State(api): State<Api>,
    query: ApiQuery,
    headers: HeaderMap,
    ApiBody(asked): ApiBody<ChangefeedConfig>,
) -> Result<Response, ApiError> {
    let name = name(&asked, &query)?;
    let request_id = request_id(&asked, &headers)?;
    if let Some(there) = api.store.changefeed_overview(&name).await? {
        // The store decides; this only spares source and sink a visit.
        if there.info.client_request_id != request_id {
            return Err(ApiError::changefeed_already_exists(&name));
        }
        return Ok(body::ok(changefeed_read::in_full(&api, &there).await?));
    }
    let spec = spec(&api, name, &asked).await?;
    let prepared = prepare(&api, &spec).await?;
    check_target(prepared.start_ts, spec.target_ts)?;
    let new = NewChangefeed {
        name: spec.name,
        upstream_id: Some(UpstreamId(asked.upstream_id)).filter(|id| id.0 != 0),
        upstream_uri: spec.upstream_uri,
        sink_uri: spec.sink_uri,
        start_ts: prepared.start_ts,
        target_ts: spec.target_ts,
        config: spec.config,
        creator_version: version::RELEASE.to_owned(),
        client_request_id: request_id,
        task_position: prepared.task_position,
    };
    let overview = store(&api, new).await?;
    Ok(body::ok(view::info(&overview, &api.config_defaults)))
}

async fn store(api: &Api, new: NewChangefeed) -> Result<ChangefeedOverview, ApiError> {
    let info = resolved(|| api.store.changefeed_create(Authority::Operator, &new))
        .await
        .map_err(ApiError::about(&new.name))?;
    tracing::info!(
        changefeed = %info.name, uuid = info.uuid.0, upstream = %new.upstream_uri, sink = %info.sink_uri,
        start_ts = info.start_ts.0, "created by an operator"
    );
    // Told from what is known, not read again: it was created, whatever a second read would say.
    Ok(ChangefeedOverview {
        upstream: UpstreamInfo { id: info.upstream, uri: new.upstream_uri },
        status: ChangefeedStatus {
            changefeed: info.uuid,
            state: FeedState::Uninitialized,
            warning: None,
            error: None,
            version: Version(1),
        },
        schedule: ChangefeedSchedule {
            changefeed: info.uuid,
            owner: None,
            state: ScheduleState::Removed,
            epoch: OwnerEpoch(0),
            task_position: new.task_position.clone(),
            revision: Revision(info.uuid.0),
            version: Version(1),
        },
        progress: new.task_position,
        info,
    })
}

fn name(asked: &ChangefeedConfig, query: &ApiQuery) -> Result<ChangefeedName, ApiError> {
    let namespace = [&asked.namespace, &asked.keyspace, &query.namespace]
        .into_iter()
        .find(|text| !text.is_empty())
        .map_or("", String::as_str);
    let fresh;
    let id = if asked.changefeed_id.is_empty() {
        fresh = Uuid::new_v4().to_string();
        &fresh
    } else {
        &asked.changefeed_id
    };
    Ok(ChangefeedName::new(namespace, id)?)
}

/// The body's id counts before the header's. A header that is no UUID was somebody else's, a proxy's perhaps.
fn request_id(asked: &ChangefeedConfig, headers: &HeaderMap) -> Result<Uuid, ApiError> {
    if !asked.client_request_id.is_empty() {
        return Uuid::parse_str(&asked.client_request_id)
            .map_err(|_| ApiError::invalid_field("client_request_id", "it is not a UUID"));
    }
    let header = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    Ok(header.and_then(|text| Uuid::parse_str(text).ok()).unwrap_or_else(Uuid::new_v4))
}

async fn spec(api: &Api, name: ChangefeedName, asked: &ChangefeedConfig) -> Result<TaskSpec, ApiError> {
    if asked.sink_uri.is_empty() {
        return Err(ApiError::sink_uri(
            "sink_uri is empty, cannot create a changefeed without sink_uri; give one such as \
             file:///var/lib/cdc/out?protocol=canal-json",
        ));
    }
    let sink_uri = uri_from_request("sink_uri", &asked.sink_uri, None)?;
    let start_ts = check_start(api, asked.start_ts)?;
    let target_ts = Ts::new("target_ts", asked.target_ts)?;
    check_target(start_ts.unwrap_or(Ts::ZERO), target_ts)?;
    let mut config = asked.replica_config.clone().unwrap_or_default();
    // There is no secret yet that a mask could stand for.
    unmask_config(&mut config, &Map::new())?;
    check_placement(&config)?;
    let upstream_uri = upstream(api, asked).await?;
    Ok(TaskSpec { name, upstream_uri, sink_uri, start_ts, target_ts, config: ReplicaConfig(config) })
}

/// Refuses a `placement` that the planner could not follow.
pub fn check_placement(config: &Map<String, Value>) -> Result<(), ApiError> {
    let config = ReplicaConfig(config.clone());
    Placement::from_config(&config)
        .map(drop)
        .map_err(|wrong| ApiError::invalid(format!("invalid api parameter: replica_config.{wrong}")))
}

async fn upstream(api: &Api, asked: &ChangefeedConfig) -> Result<SecretUri, ApiError> {
    if !asked.upstream_uri.is_empty() {
        return Ok(uri_from_request("upstream_uri", &asked.upstream_uri, None)?);
    }
    if asked.upstream_id != 0 {
        let known = api.store.upstream(UpstreamId(asked.upstream_id)).await?;
        return known.map(|upstream| upstream.uri).ok_or_else(|| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "CDC:ErrUpstreamNotFound",
                format!(
                    "upstream not found, cluster-id: {}; give upstream_uri with it to add it",
                    asked.upstream_id
                ),
            )
        });
    }
    api.default_upstream.clone().ok_or_else(|| {
        ApiError::invalid_field(
            "upstream_uri",
            "it is missing, and this server has no default; give upstream_uri (cdc cli: --upstream-uri), such as \
             mysql://user:password@host:3306/ or datagen://?tables=1, or start the servers with --upstream-uri",
        )
    })
}

/// A timestamp that must not be in the future.
///
/// # Errors
/// 400 with the field.
pub fn check_ts(api: &Api, field: &'static str, ts: u64) -> Result<Ts, ApiError> {
    let ts = Ts::new(field, ts)?;
    if ts > api.latest_ts() {
        let shown = field.replace('_', "-");
        return Err(ApiError::invalid(format!(
            "invalid api parameter: invalid {shown} {ts}, larger than current tso {}",
            api.now()
        )));
    }
    Ok(ts)
}

/// A start; 0 = now.
///
/// # Errors
/// 400 when it is in the future.
pub fn check_start(api: &Api, start_ts: u64) -> Result<Option<Ts>, ApiError> {
    if start_ts == 0 { Ok(None) } else { check_ts(api, "start_ts", start_ts).map(Some) }
}

fn check_target(start_ts: Ts, target_ts: Ts) -> Result<(), ApiError> {
    if target_ts != Ts::ZERO && target_ts <= start_ts {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            code::TARGET_BEFORE_START,
            format!(
                "fail to create changefeed because target-ts {target_ts} is earlier than start-ts {start_ts}"
            ),
        ));
    }
    Ok(())
}

/// Asks source and sink, for a limited time.
///
/// # Errors
/// What they refuse; or that they do not answer.
pub async fn prepare(api: &Api, spec: &TaskSpec) -> Result<PreparedTask, ApiError> {
    match tokio::time::timeout(api.waits.prepare, api.tasks.prepare(spec)).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ApiError::invalid(format!(
            "invalid api parameter: upstream {} or sink {} did not answer within {:?}; nothing was changed",
            spec.upstream_uri, spec.sink_uri, api.waits.prepare
        ))),
    }
}
