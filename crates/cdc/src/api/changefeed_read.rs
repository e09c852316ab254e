//! Looking at changefeeds.

use axum::extract::State;
use axum::response::Response;
use metadata_api::decision::planner::explain;
use metadata_api::model::{ChangefeedName, ChangefeedOverview, FeedState, Name, Ts};

use super::error::ApiError;
use super::json_time::JsonTime;
use super::model::{ChangeFeedInfo, List, Scheduling, SyncedStatus};
use super::params::{ApiQuery, NamedChangefeed};
use super::view::StateFilter;
use super::{Api, body, processors, view};

/// Finds a changefeed by name.
///
/// # Errors
/// 400 `ErrChangeFeedNotExists`, or the store's.
pub async fn find(api: &Api, name: &ChangefeedName) -> Result<ChangefeedOverview, ApiError> {
    api.store.changefeed_overview(name).await?.ok_or_else(|| ApiError::changefeed_not_exists(name))
}

/// `GET /api/v2/changefeeds`: of one namespace, sorted by id.
pub async fn list(State(api): State<Api>, query: ApiQuery) -> Result<Response, ApiError> {
    let filter =
        StateFilter::parse(&query.state).map_err(|reason| ApiError::invalid_field("state", reason))?;
    let namespace = match query.namespace.as_str() {
        "" => ChangefeedName::DEFAULT_NAMESPACE,
        given => given,
    };
    let namespace = Name::new("namespace", namespace)?;
    let found = api.store.changefeed_overviews(Some(&namespace)).await?;
    let items: Vec<_> =
        found.iter().filter(|of| filter.admits(of.status.state)).map(view::common_info).collect();
    Ok(body::ok(List::from(items)))
}

/// `GET /api/v2/changefeeds/{id}`, and `.../meta_info`, which here is masked too.
pub async fn get(
    State(api): State<Api>,
    NamedChangefeed(name): NamedChangefeed,
) -> Result<Response, ApiError> {
    let overview = find(&api, &name).await?;
    Ok(body::ok(in_full(&api, &overview).await?))
}

/// A changefeed with the captures that carry it.
///
/// # Errors
/// The store's.
pub async fn in_full(api: &Api, overview: &ChangefeedOverview) -> Result<ChangeFeedInfo, ApiError> {
    let mut info = view::info(overview, &api.config_defaults);
    info.task_status = processors::task_status(api, overview).await?;
    if let Some(owner) = overview.schedule.owner {
        let captures = api.store.captures(Some(&[owner])).await?;
        info.maintainer_addr = captures.into_iter().next().map(|capture| capture.advertise_addr);
    }
    Ok(info)
}

/// `GET /api/v2/changefeeds/{id}/status`.
pub async fn status(
    State(api): State<Api>,
    NamedChangefeed(name): NamedChangefeed,
) -> Result<Response, ApiError> {
    let overview = find(&api, &name).await?;
    Ok(body::ok(view::status(&overview)))
}

/// `GET /api/v2/changefeeds/{id}/synced`. When the last row was written is not recorded, so only a changefeed that
/// reached its target is surely synced.
pub async fn synced(
    State(api): State<Api>,
    NamedChangefeed(name): NamedChangefeed,
) -> Result<Response, ApiError> {
    let overview = find(&api, &name).await?;
    let synced = overview.status.state == FeedState::Finished;
    let checkpoint = overview.progress.checkpoint_ts;
    let info = if synced {
        "Data syncing is finished".to_owned()
    } else {
        let lag_ms = api.now().physical_ms().saturating_sub(checkpoint.physical_ms());
        format!(
            "The checkpoint is {lag_ms} ms behind; whether more changes are to come is known only for a changefeed with a \
             target_ts that it has reached"
        )
    };
    Ok(body::ok(SyncedStatus {
        synced,
        sink_checkpoint_ts: JsonTime::from_ts(checkpoint),
        puller_resolved_ts: JsonTime::from_ts(overview.progress.resolved_ts.max(checkpoint)),
        last_synced_ts: JsonTime::from_ts(Ts::ZERO),
        now_ts: JsonTime::local(api.clock.wall()),
        info,
    }))
}

/// `GET /api/v2/changefeeds/{id}/scheduling`: what the planner says of it, of the database as it is now. Any capture
/// answers, since it is the controller's own pure function; what the controller remembers of the last minute is its own.
pub async fn scheduling(
    State(api): State<Api>,
    NamedChangefeed(name): NamedChangefeed,
) -> Result<Response, ApiError> {
    let uuid = find(&api, &name).await?.info.uuid;
    let snapshot = api.store.schedule_snapshot().await?;
    let decisions =
        explain(&snapshot, &api.plan, uuid).ok_or_else(|| ApiError::changefeed_not_exists(&name))?;
    Ok(body::ok(Scheduling { decisions }))
}
