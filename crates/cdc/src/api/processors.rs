//! Which captures carry shares of which changefeeds.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use metadata_api::model::{ChangefeedName, ChangefeedOverview, ProcessorSchedule, ScheduleState};
use serde_json::Value;

use super::Api;
use super::body;
use super::error::ApiError;
use super::model::{CaptureTaskStatus, List, ProcessorCommonInfo, ProcessorDetail};
use super::params::{NamedCapture, NamedChangefeed};

/// `GET /api/v2/processors`: of all namespaces.
pub async fn list(State(api): State<Api>) -> Result<Response, ApiError> {
    let snapshot = api.store.schedule_snapshot().await?;
    let carried: Vec<_> = snapshot
        .changefeeds
        .iter()
        .filter(|of| of.live_processors > 0)
        .map(|of| of.schedule.changefeed)
        .collect();
    let mut items = Vec::new();
    if !carried.is_empty() {
        let infos = api.store.changefeed_infos(Some(&carried)).await?;
        let names: BTreeMap<_, ChangefeedName> =
            infos.into_iter().map(|info| (info.uuid, info.name)).collect();
        for (changefeed, name) in names {
            for row in api.store.processor_schedules(changefeed).await?.iter().filter(|row| is_live(row)) {
                items.push(ProcessorCommonInfo {
                    namespace: name.namespace.to_string(),
                    keyspace: name.namespace.to_string(),
                    changefeed_id: name.id.to_string(),
                    capture_id: row.capture.to_string(),
                });
            }
        }
    }
    items.sort_by(|a, b| {
        (&a.namespace, &a.changefeed_id, &a.capture_id).cmp(&(&b.namespace, &b.changefeed_id, &b.capture_id))
    });
    Ok(body::ok(List::from(items)))
}

/// `GET /api/v2/processors/{id}/{capture_id}`: its tables. A capture that carries nothing of the changefeed has none.
pub async fn get(
    State(api): State<Api>,
    NamedChangefeed(name): NamedChangefeed,
    NamedCapture(capture): NamedCapture,
) -> Result<Response, ApiError> {
    let overview = api.store.changefeed_overview(&name).await?;
    let overview = overview.ok_or_else(|| ApiError::changefeed_not_exists(&name))?;
    if api.store.captures(Some(&[capture])).await?.is_empty() {
        return Err(ApiError::capture_not_exist(capture));
    }
    let rows = api.store.processor_schedules(overview.info.uuid).await?;
    let table_ids =
        rows.iter().find(|row| row.capture == capture && is_live(row)).map(table_ids).unwrap_or_default();
    Ok(body::ok(ProcessorDetail { table_ids }))
}

/// The captures that carry shares of one changefeed.
///
/// # Errors
/// The store's.
pub async fn task_status(api: &Api, of: &ChangefeedOverview) -> Result<Vec<CaptureTaskStatus>, ApiError> {
    let rows = api.store.processor_schedules(of.info.uuid).await?;
    Ok(rows
        .iter()
        .filter(|row| is_live(row))
        .map(|row| CaptureTaskStatus { capture_id: row.capture.to_string(), table_ids: table_ids(row) })
        .collect())
}

fn is_live(row: &ProcessorSchedule) -> bool {
    row.state != ScheduleState::Removed
}

/// The assignment is the owner's to shape; where it lists table ids, they are shown.
fn table_ids(row: &ProcessorSchedule) -> Vec<i64> {
    let list = match &row.assignment.0 {
        Value::Object(members) => members.get("table_ids"),
        other => Some(other),
    };
    list.and_then(Value::as_array)
        .map(|ids| ids.iter().filter_map(Value::as_i64).collect())
        .unwrap_or_default()
}
