//! Attaching and detaching processors.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use metadata_api::decision::assignment::{plan_processors, wants_processors};
use metadata_api::model::{
    CaptureId, ChangefeedUuid, ProcessorSchedule, ProcessorTarget, ScheduleSnapshot, ScheduleState,
};
use metadata_api::observation::ControllerObservation;
use metadata_api::store::MAX_BATCH;
use metadata_api::{MetadataError, Result};
use metrics::counter;

/// So many changefeeds' processors are set at a time.
const SET_AT_ONCE: usize = 16;

/// Brings the processors of every changefeed in line with the snapshot: one read if any changefeed has or asks for several,
/// and one call for each whose processors are to change, many at a time. Says whether it is to be planned again soon, even if
/// nothing changes.
pub(super) async fn attend(
    controller: &dyn ControllerObservation,
    snapshot: &ScheduleSnapshot,
    may_launch: bool,
    heard: impl Fn(CaptureId) -> bool,
) -> Result<bool> {
    let wanting = snapshot.changefeeds.iter().filter(|feed| wants_processors(feed));
    let wanting: Vec<ChangefeedUuid> = wanting.map(|feed| feed.schedule.changefeed).collect();
    if wanting.is_empty() {
        return Ok(false);
    }
    let rows = rows(controller, &wanting).await?;
    let plan = plan_processors(snapshot, &rows, heard);
    let targets = plan.targets.into_iter().map(|(changefeed, mut targets)| {
        targets.retain(|target| may_launch || target.state != ScheduleState::Launched);
        (changefeed, targets)
    });
    // What is asked for at once may be committed at once.
    stream::iter(targets.filter(|(_, targets)| !targets.is_empty()))
        .map(|(changefeed, targets)| async move { set(controller, changefeed, &targets).await })
        .buffer_unordered(SET_AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(plan.waits)
}

/// One changefeed's: what its rows refuse keeps no other waiting.
async fn set(
    controller: &dyn ControllerObservation,
    changefeed: ChangefeedUuid,
    targets: &[ProcessorTarget],
) -> Result<()> {
    match controller.set_processors(changefeed, targets).await {
        Ok(_) => {
            let attached = targets.iter().filter(|target| target.state == ScheduleState::Launched).count();
            let detached = targets.len() - attached;
            counter!("cdc_controller_processors_attached_total").increment(attached as u64);
            counter!("cdc_controller_processors_detached_total").increment(detached as u64);
            tracing::info!(%changefeed, attached, detached, "scheduled processors");
        }
        Err(error) if error.is_fenced() || error.is_transient() => return Err(error),
        // The rows moved since the snapshot: the next look sees them as they are now.
        Err(MetadataError::Conflict { what }) => {
            tracing::debug!(%changefeed, what, "a plan of processors was overtaken");
        }
        Err(error) => tracing::warn!(%changefeed, %error, "planned processors were refused"),
    }
    Ok(())
}

/// The rows of these changefeeds; what one of them refuses is left out, and keeps no other waiting.
async fn rows(
    controller: &dyn ControllerObservation,
    wanting: &[ChangefeedUuid],
) -> Result<BTreeMap<ChangefeedUuid, Vec<ProcessorSchedule>>> {
    let which = (wanting.len() <= MAX_BATCH).then_some(wanting);
    let mut rows: BTreeMap<ChangefeedUuid, Vec<ProcessorSchedule>> =
        wanting.iter().map(|changefeed| (*changefeed, Vec::new())).collect();
    let refused = match controller.processors(which).await {
        Ok(found) => {
            for row in found.into_iter().map(|of| of.schedule) {
                if let Some(of) = rows.get_mut(&row.changefeed) {
                    of.push(row);
                }
            }
            return Ok(rows);
        }
        Err(error) => error,
    };
    if refused.is_fenced() || refused.is_transient() {
        return Err(refused);
    }
    for changefeed in wanting {
        match controller.processors(Some(&[*changefeed])).await {
            Ok(found) => drop(rows.insert(*changefeed, found.into_iter().map(|of| of.schedule).collect())),
            Err(error) if error.is_fenced() || error.is_transient() => return Err(error),
            Err(error) => {
                tracing::warn!(%changefeed, %error, "a changefeed's processors cannot be read, and are left alone");
                rows.remove(changefeed);
            }
        }
    }
    Ok(rows)
}
