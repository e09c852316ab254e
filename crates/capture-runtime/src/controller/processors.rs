//! Attaching and detaching processors.

use metadata_api::decision::assignment::{plan_processors, wants_processors};
use metadata_api::model::{CaptureId, ChangefeedUuid, ScheduleSnapshot, ScheduleState};
use metadata_api::observation::ControllerObservation;
use metadata_api::store::MAX_BATCH;
use metadata_api::{MetadataError, Result};
use metrics::counter;

/// Brings the processors of every changefeed in line with the snapshot: one read if any changefeed has or asks for several,
/// and one transaction for each whose processors are to change. Says whether it is to be planned again soon, even if
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
    let which = (wanting.len() <= MAX_BATCH).then_some(&wanting[..]);
    let rows: Vec<_> = controller.processors(which).await?.into_iter().map(|of| of.schedule).collect();
    let plan = plan_processors(snapshot, &rows, heard);
    for (changefeed, mut targets) in plan.targets {
        targets.retain(|target| may_launch || target.state != ScheduleState::Launched);
        if targets.is_empty() {
            continue;
        }
        match controller.set_processors(changefeed, &targets).await {
            Ok(_) => {
                let attached =
                    targets.iter().filter(|target| target.state == ScheduleState::Launched).count();
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
    }
    Ok(plan.waits)
}
