//! Waiting for an owner to stop: a poll of the one row, bounded.

use std::time::Duration;

use metadata_api::MetadataError;
use metadata_api::model::{ChangefeedName, ChangefeedOverview, ChangefeedUuid, ScheduleState};

use super::Api;

/// Between two looks. The owner itself polls every half second.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks at a changefeed until `done` says so, or `limit` has passed: then the last sight of it is the answer. A
/// database that does not answer for a moment is looked at again.
///
/// # Errors
/// The store's, when the last look failed.
pub async fn until(
    api: &Api,
    name: &ChangefeedName,
    limit: Duration,
    done: impl Fn(Option<&ChangefeedOverview>) -> bool,
) -> Result<Option<ChangefeedOverview>, MetadataError> {
    let start = api.clock.now();
    loop {
        let seen = api.store.changefeed_overview(name).await;
        let over = api.clock.now().since(start) >= limit;
        match seen {
            Ok(seen) if over || done(seen.as_ref()) => return Ok(seen),
            Err(error) if over || !error.is_transient() => return Err(error),
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// The same until nobody runs the changefeed of this uuid, or a part of it (any more).
///
/// # Errors
/// As [`until`].
pub async fn until_at_rest(
    api: &Api,
    name: &ChangefeedName,
    changefeed: ChangefeedUuid,
    limit: Duration,
) -> Result<Option<ChangefeedOverview>, MetadataError> {
    let start = api.clock.now();
    let seen = until(api, name, limit, is_at_rest(changefeed)).await?;
    while api.clock.now().since(start) < limit {
        match api.store.processor_schedules(changefeed).await {
            Ok(rows) if rows.iter().all(|row| row.state == ScheduleState::Removed) => break,
            Err(error) if !error.is_transient() => return Err(error),
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
    Ok(seen)
}

/// Whether nobody owns the changefeed of this uuid (any more).
fn is_at_rest(changefeed: ChangefeedUuid) -> impl Fn(Option<&ChangefeedOverview>) -> bool {
    move |seen| {
        seen.is_none_or(|of| of.info.uuid != changefeed || of.schedule.state == ScheduleState::Removed)
    }
}

/// Whether the name is free, or another changefeed's.
pub fn is_gone(changefeed: ChangefeedUuid) -> impl Fn(Option<&ChangefeedOverview>) -> bool {
    move |seen| seen.is_none_or(|of| of.info.uuid != changefeed)
}
