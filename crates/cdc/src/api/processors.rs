//! Which captures carry shares of which changefeeds.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::response::Response;
use metadata_api::decision::assignment::{TableOrder, TableOrders};
use metadata_api::model::{ChangefeedName, ChangefeedOverview, ProcessorStatus, ScheduleState, TableId};

use super::Api;
use super::body;
use super::error::ApiError;
use super::json_time::JsonTime;
use super::model::{CaptureTaskStatus, CarriedTable, List, ProcessorCommonInfo, ProcessorDetail};
use super::params::{NamedCapture, NamedChangefeed};
use super::view::running_error;

/// `GET /api/v2/processors`: of all namespaces.
pub async fn list(State(api): State<Api>) -> Result<Response, ApiError> {
    let live: Vec<_> = api.store.processors(None).await?.into_iter().filter(is_live).collect();
    let mut items = Vec::new();
    if !live.is_empty() {
        let carried: BTreeSet<_> = live.iter().map(|of| of.schedule.changefeed).collect();
        let carried: Vec<_> = carried.into_iter().collect();
        let infos = api.store.changefeed_infos(Some(&carried)).await?;
        let names: BTreeMap<_, ChangefeedName> =
            infos.into_iter().map(|info| (info.uuid, info.name)).collect();
        for of in &live {
            let Some(name) = names.get(&of.schedule.changefeed) else { continue };
            items.push(ProcessorCommonInfo {
                namespace: name.namespace.to_string(),
                keyspace: name.namespace.to_string(),
                changefeed_id: name.id.to_string(),
                capture_id: of.schedule.capture.to_string(),
                state: of.schedule.state.as_str().to_owned(),
                table_count: tables(of).len(),
            });
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
    let rows = api.store.processors(Some(&[overview.info.uuid])).await?;
    let found = rows.iter().find(|of| of.schedule.capture == capture && is_live(of));
    Ok(body::ok(ProcessorDetail { table_ids: Vec::new(), tables: found.map(tables).unwrap_or_default() }))
}

/// The captures that carry tables of one changefeed.
///
/// # Errors
/// The store's.
pub async fn task_status(api: &Api, of: &ChangefeedOverview) -> Result<Vec<CaptureTaskStatus>, ApiError> {
    let rows = api.store.processors(Some(&[of.info.uuid])).await?;
    let live = rows.iter().filter(|of| is_live(of));
    Ok(live
        .map(|of| CaptureTaskStatus {
            capture_id: of.schedule.capture.to_string(),
            table_ids: Vec::new(),
            tables: tables(of),
        })
        .collect())
}

fn is_live(of: &ProcessorStatus) -> bool {
    of.schedule.state != ScheduleState::Removed
}

/// What it carries, by table. Of orders that an application has made in a form of its own nothing is shown.
fn tables(of: &ProcessorStatus) -> Vec<CarriedTable> {
    let orders = TableOrders::read(&of.schedule.assignment).unwrap_or_default();
    let reports = of.report.as_ref().map(|report| &report.tables);
    let carried = |(table, order): (&TableId, &TableOrder)| {
        let report = reports.and_then(|reports| reports.get(table));
        let report = report.filter(|report| report.since == order.since);
        let state = match report {
            Some(report) if report.error.is_some() => "failed",
            Some(report) if report.stopped => "stopped",
            _ if order.stop || of.schedule.state == ScheduleState::Removing => "stopping",
            Some(_) => "running",
            None => "waiting",
        };
        let checkpoint = report.map_or(order.from.checkpoint_ts, |report| report.progress.checkpoint_ts);
        CarriedTable {
            table: table.to_string(),
            state: state.to_owned(),
            checkpoint_ts: checkpoint.0,
            checkpoint_time: JsonTime::from_ts(checkpoint),
            error: report.and_then(|report| report.error.as_ref()).map(|failed| running_error(&failed.error)),
        }
    };
    orders.0.iter().map(carried).collect()
}
