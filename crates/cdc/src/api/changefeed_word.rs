//! An operator's word: pause, resume, remove. Durable when it is answered, whoever owns the changefeed, or nobody.
//!
//! Each may be repeated, so an outcome that is unknown is resolved by repeating it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use backon::{ExponentialBuilder, Retryable};
use metadata_api::model::{ChangefeedOverview, ChangefeedProgress};
use metadata_api::store::Authority;
use metadata_api::{MetadataError, Result as StoreResult};

use super::body::{self, ApiBody};
use super::changefeed_create::{check_ts, prepare};
use super::changefeed_read::find;
use super::error::{ApiError, code};
use super::model::ResumeChangefeedConfig;
use super::params::NamedChangefeed;
use super::{Api, wait};
use capture_runtime::task::TaskSpec;

/// Repeats a call that may be repeated while its outcome is unknown. (What certainly did not happen, the store has
/// retried itself.)
///
/// # Errors
/// The last one.
pub async fn resolved<T, F, Fut>(call: F) -> StoreResult<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = StoreResult<T>>,
{
    call.retry(ExponentialBuilder::default().with_jitter().with_max_times(3))
        .when(|error| matches!(error, MetadataError::Unknown { .. }))
        .await
}

/// `POST /api/v2/changefeeds/{id}/pause`. What is in the body is ignored.
pub async fn pause(
    State(api): State<Api>,
    NamedChangefeed(name): NamedChangefeed,
) -> Result<Response, ApiError> {
    let uuid = find(&api, &name).await?.info.uuid;
    resolved(|| api.store.changefeed_pause(uuid)).await.map_err(ApiError::about(&name))?;
    tracing::info!(changefeed = %name, "paused by an operator");
    Ok(body::done())
}

/// `POST /api/v2/changefeeds/{id}/resume`.
pub async fn resume(
    State(api): State<Api>,
    NamedChangefeed(name): NamedChangefeed,
    ApiBody(asked): ApiBody<ResumeChangefeedConfig>,
) -> Result<Response, ApiError> {
    let mut overview = find(&api, &name).await?;
    let uuid = overview.info.uuid;
    let mut overwrite = None;
    if asked.overwrite_checkpoint_ts != 0 {
        if let Some(seen) = wait::until_at_rest(&api, &name, uuid, api.waits.stopped).await? {
            overview = seen;
        }
        overwrite = Some(new_start(&api, &overview, asked.overwrite_checkpoint_ts).await?);
    }
    resolved(|| api.store.changefeed_resume(uuid, overwrite.as_ref()))
        .await
        .map_err(ApiError::about(&name))?;
    tracing::info!(changefeed = %name, overwrite_checkpoint_ts = asked.overwrite_checkpoint_ts, "resumed by an operator");
    Ok(body::done())
}

/// Where a changefeed goes on after its checkpoint was overwritten: the source says, or refuses.
async fn new_start(api: &Api, of: &ChangefeedOverview, ts: u64) -> Result<ChangefeedProgress, ApiError> {
    let ts = check_ts(api, "overwrite_checkpoint_ts", ts)?;
    if of.info.target_ts.0 != 0 && ts >= of.info.target_ts {
        return Err(ApiError::invalid_field(
            "overwrite_checkpoint_ts",
            format!("{ts} is not before the changefeed's target_ts {}", of.info.target_ts),
        ));
    }
    let spec = TaskSpec {
        name: of.info.name.clone(),
        upstream_uri: of.upstream.uri.clone(),
        sink_uri: of.info.sink_uri.clone(),
        start_ts: Some(ts),
        target_ts: of.info.target_ts,
        config: of.info.config.clone(),
    };
    Ok(prepare(api, &spec).await?.task_position)
}

/// `DELETE /api/v2/changefeeds/{id}`: answers when its owner has stopped and the name is free. Removing what is not
/// there is done already.
pub async fn remove(
    State(api): State<Api>,
    NamedChangefeed(name): NamedChangefeed,
) -> Result<Response, ApiError> {
    let Some(overview) = api.store.changefeed_overview(&name).await? else { return Ok(body::done()) };
    let uuid = overview.info.uuid;
    match resolved(|| api.store.changefeed_remove(Authority::Operator, uuid)).await {
        Ok(_) => tracing::info!(changefeed = %name, "removed by an operator"),
        Err(MetadataError::NotFound { .. }) => return Ok(body::done()),
        Err(error) => return Err(ApiError::about(&name)(error)),
    }
    let seen = wait::until(&api, &name, api.waits.removed, wait::is_gone(uuid)).await?;
    if wait::is_gone(uuid)(seen.as_ref()) {
        return Ok(body::done());
    }
    Err(ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        code::DELETION_UNFINISHED,
        format!(
            "changefeed exists after deletion, {name}: it is removed, but its owner has not stopped yet; the name is free \
             when it has, or when the owner was declared dead"
        ),
    ))
}
