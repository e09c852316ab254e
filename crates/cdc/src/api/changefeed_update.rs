//! Changing what a changefeed is to do.

use axum::extract::State;
use axum::response::Response;
use capture_runtime::task::TaskSpec;
use metadata_api::decision::feed_state::check_updatable;
use metadata_api::model::{ChangefeedOverview, ChangefeedUpdate, ReplicaConfig, SecretUri, Ts};

use super::body::{self, ApiBody};
use super::changefeed_create::{check_placement, prepare};
use super::changefeed_read::{find, in_full};
use super::error::ApiError;
use super::mask::{unmask_config, uri_from_request};
use super::model::ChangefeedConfig;
use super::params::NamedChangefeed;
use super::view::effective_config;
use super::{Api, wait};

/// `PUT /api/v2/changefeeds/{id}`: replaces target, sink, upstream and configuration, each if it is given. A
/// configuration is replaced whole, and what it leaves out is the default. Secrets that are given as their mask stay.
pub async fn update(
    State(api): State<Api>,
    NamedChangefeed(name): NamedChangefeed,
    ApiBody(asked): ApiBody<ChangefeedConfig>,
) -> Result<Response, ApiError> {
    let mut current = find(&api, &name).await?;
    let uuid = current.info.uuid;
    check_state(&current)?;
    // Paused a moment ago, its owner or processors are still stopping.
    let seen = wait::until_at_rest(&api, &name, uuid, api.waits.stopped).await?;
    current = seen.ok_or_else(|| ApiError::changefeed_not_exists(&name))?;
    check_state(&current)?;
    let update = changes(&api, &current, asked)?;
    let spec = TaskSpec {
        name: name.clone(),
        upstream_uri: update.upstream_uri.as_ref().unwrap_or(&current.upstream.uri).clone(),
        sink_uri: update.sink_uri.as_ref().unwrap_or(&current.info.sink_uri).clone(),
        // Only to be checked: where it goes on stays.
        start_ts: None,
        target_ts: Ts::ZERO,
        config: update.config.as_ref().unwrap_or(&current.info.config).clone(),
    };
    prepare(&api, &spec).await?;
    api.store
        .changefeed_update(current.info.uuid, current.info.version, &update)
        .await
        .map_err(ApiError::about(&name))?;
    tracing::info!(changefeed = %name, "updated by an operator");
    let updated = find(&api, &name).await?;
    Ok(body::ok(in_full(&api, &updated).await?))
}

fn check_state(of: &ChangefeedOverview) -> Result<(), ApiError> {
    check_updatable("", of.status.state).map_err(|_| {
        ApiError::refused(format!(
            "can only update changefeed config when it is stopped or failed (it is {}; pause it first)",
            of.status.state
        ))
    })
}

/// What the request changes.
fn changes(
    api: &Api,
    current: &ChangefeedOverview,
    asked: ChangefeedConfig,
) -> Result<ChangefeedUpdate, ApiError> {
    if asked.start_ts != 0 && asked.start_ts != current.info.start_ts.0 {
        return Err(ApiError::refused(format!(
            "can not update start_ts:{} to {}; resume with overwrite_checkpoint_ts, or create another changefeed",
            current.info.start_ts, asked.start_ts
        )));
    }
    let mut update = ChangefeedUpdate {
        sink_uri: changed_uri("sink_uri", &asked.sink_uri, &current.info.sink_uri)?,
        upstream_uri: changed_uri("upstream_uri", &asked.upstream_uri, &current.upstream.uri)?,
        ..ChangefeedUpdate::default()
    };
    if asked.target_ts != 0 && asked.target_ts != current.info.target_ts.0 {
        let target = Ts::new("target_ts", asked.target_ts)?;
        if target <= current.info.start_ts {
            return Err(ApiError::refused(format!(
                "can not update target_ts:{target} less than start_ts:{}",
                current.info.start_ts
            )));
        }
        update.target_ts = Some(target);
    }
    if let Some(mut config) = asked.replica_config {
        let old = effective_config(&api.config_defaults, &current.info.config.0);
        unmask_config(&mut config, &old)?;
        check_placement(&config)?;
        if effective_config(&api.config_defaults, &config) != old {
            update.config = Some(ReplicaConfig(config));
        }
    }
    let nothing = update.sink_uri.is_none()
        && update.upstream_uri.is_none()
        && update.target_ts.is_none()
        && update.config.is_none();
    if nothing {
        return Err(ApiError::refused("changefeed config is the same with the old one, do nothing"));
    }
    Ok(update)
}

fn changed_uri(field: &'static str, text: &str, current: &SecretUri) -> Result<Option<SecretUri>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let uri = uri_from_request(field, text, Some(current))?;
    Ok((uri != *current).then_some(uri))
}
