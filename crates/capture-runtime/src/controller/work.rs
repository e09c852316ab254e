//! Look, plan, act.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use metadata_api::decision::planner::{Action, PlanMemory, PlanPolicy, Step, plan_calmly};
use metadata_api::model::{
    BootTime, CaptureId, CaptureInfo, CaptureState, ChangefeedUuid, ScheduleSnapshot, ScheduleState,
    ScheduleTarget,
};
use metadata_api::observation::{ControllerCallback, ControllerObservation};
use metadata_api::{MetadataError, Result};
use metrics::{counter, gauge, histogram};
use tokio_util::sync::CancellationToken;

use super::processors::attend;

/// After a look that failed: a database in need is not asked again as fast as it refuses.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// A controller that has reached nothing for so long gives the office back: its heartbeats go through, but what it would
/// act with does not, and another capture may do better.
const USELESS_AFTER: Duration = Duration::from_secs(10);

/// The callback that runs [`run`] whenever this capture is elected.
///
/// `processors`: whether processors are attached and detached; if not, that is left to the application.
pub fn callback(policy: PlanPolicy, processors: bool) -> ControllerCallback {
    Arc::new(move |controller, cancel| {
        async move { run(&*controller, &policy, processors, &cancel).await }.boxed()
    })
}

/// While some row cannot be read, everything is planned so often: somebody who mends it by hand tells nobody.
const UNREADABLE_EVERY: Duration = Duration::from_secs(10);

/// What a controller remembers from look to look. A successor misses none of it.
#[derive(Default)]
struct Mind {
    plan: PlanMemory,
    unreadable: BTreeSet<ChangefeedUuid>,
}

impl Mind {
    /// Says what has become unreadable, once.
    fn note_unreadable(&mut self, snapshot: &ScheduleSnapshot) {
        let now: BTreeSet<ChangefeedUuid> = snapshot.unreadable.iter().map(|row| row.changefeed).collect();
        for row in snapshot.unreadable.iter().filter(|row| !self.unreadable.contains(&row.changefeed)) {
            tracing::error!(
                changefeed = %row.changefeed,
                reason = row.reason,
                "a changefeed is left alone until somebody mends its row"
            );
        }
        gauge!("cdc_controller_unreadable_changefeeds").set(count(now.len()));
        self.unreadable = now;
    }
}

impl Drop for Mind {
    /// Whoever leads next counts anew.
    fn drop(&mut self) {
        gauge!("cdc_controller_unreadable_changefeeds").set(0.0);
    }
}

/// Looks, plans and acts until cancelled or fenced, or until its own capture drains and another one may lead: then the
/// office is given back, so that the next controller moves the work.
///
/// The scan of heartbeats runs once a second; a snapshot is read and planned only when something changed since the last
/// one. A database that cannot be reached is waited for a while: the term ends by the capture's own deadline, or when
/// nothing but heartbeats has gone through for 10 s.
///
/// # Errors
/// [`Fenced`](MetadataError::Fenced) when the term is over; a transient one when the office is given back.
pub async fn run(
    controller: &dyn ControllerObservation,
    policy: &PlanPolicy,
    processors: bool,
    cancel: &CancellationToken,
) -> Result<()> {
    let mut mind = Mind::default();
    let mut again = Again::Now;
    let mut failing = false;
    let mut useless = pin!(tokio::time::sleep(USELESS_AFTER));
    while !cancel.is_cancelled() {
        let looked = tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            looked = look(controller, policy, processors, &mut mind, again) => looked,
        };
        match looked {
            Ok(None) => {
                tracing::info!("this capture drains: handing the office of controller over first");
                return Ok(());
            }
            Ok(Some(next)) => {
                failing = false;
                again = next;
                useless.set(tokio::time::sleep(USELESS_AFTER));
            }
            Err(error) if error.is_fenced() => return Err(error),
            Err(error) if error.is_transient() && useless.is_elapsed() => return Err(error),
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "the controller could not finish a look; it will look again");
                }
                failing = true;
                again = Again::Now;
                counter!("cdc_controller_failures_total").increment(1);
                if !error.is_transient() {
                    useless.set(tokio::time::sleep(USELESS_AFTER));
                }
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    () = &mut useless => {}
                    () = tokio::time::sleep(AFTER_FAILURE) => {}
                }
            }
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = controller.wait_for_change() => {}
        }
    }
    Ok(())
}

/// When the controller plans even if it sees no change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// Not at all.
    Never,
    /// At the next look.
    Now,
    /// When a cool-down ends.
    At(BootTime),
}

/// One round. Says when to plan again, even if nothing else changes; `None` when this capture drains, and another one may
/// lead.
async fn look(
    controller: &dyn ControllerObservation,
    policy: &PlanPolicy,
    processors: bool,
    mind: &mut Mind,
    again: Again,
) -> Result<Option<Again>> {
    let (captures, changed) = controller.refresh_captures().await?;
    let now = controller.now();
    mind.plan.hear(&captures, now);
    if drains(controller.term().capture, &captures, |other| mind.plan.is_heard(other, policy, now)) {
        return Ok(None);
    }
    let due = match again {
        Again::Never => false,
        Again::Now => true,
        Again::At(at) => now >= at,
    };
    if !changed && !due && !controller.has_changed() {
        return Ok(Some(again));
    }
    let may_launch = policy.may_launch && controller.may_launch();
    let (mut next, mut waits) = (Again::Never, false);
    // What was taken from a capture is given to another at once, not when the watch has seen that it was taken.
    for _ in 0..2 {
        let snapshot = controller.schedule_snapshot().await?;
        mind.note_unreadable(&snapshot);
        let policy = PlanPolicy { may_launch, ..*policy };
        let plan = plan_calmly(&snapshot, &policy, &mut mind.plan, controller.now());
        histogram!("cdc_controller_plan_actions").record(count(plan.steps.len()));
        let mended = (!snapshot.unreadable.is_empty()).then(|| now + UNREADABLE_EVERY);
        next = plan.again_at.into_iter().chain(mended).min().map_or(Again::Never, Again::At);
        let acted = act(controller, &plan.steps, !snapshot.unreadable.is_empty()).await;
        if acted.as_ref().is_err_and(|error| error.is_fenced() || error.is_transient()) {
            return acted.map(|()| None);
        }
        if processors {
            let heard = |capture| mind.plan.may_carry(capture, &policy, now);
            waits = attend(controller, &snapshot, may_launch, heard).await?;
        }
        acted?;
        if !plan.steps.iter().any(|step| matches!(step.action, Action::Release(_))) {
            break;
        }
    }
    Ok(Some(if may_launch && !waits { next } else { Again::Now }))
}

/// Whether the controller's own capture is to be emptied, and another one, that lives, can be elected.
fn drains(own: CaptureId, captures: &[CaptureInfo], is_heard: impl Fn(CaptureId) -> bool) -> bool {
    let drains = |capture: &CaptureInfo| capture.id == own && capture.state == CaptureState::Draining;
    let may_lead = |capture: &CaptureInfo| {
        capture.id != own && capture.state == CaptureState::Alive && is_heard(capture.id)
    };
    captures.iter().any(drains) && captures.iter().any(may_lead)
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

/// Carries the actions out. What one capture's or changefeed's rows refuse (a progress that does not decode, say) does not
/// keep the others waiting; the error is given back when all else is done. `unreadable`: some changefeed cannot be read, and an
/// offline capture that it names keeps its rows.
async fn act(controller: &dyn ControllerObservation, steps: &[Step], unreadable: bool) -> Result<()> {
    let mut targets = Vec::new();
    let mut refused = Ok(());
    for step in steps {
        let done = match &step.action {
            Action::Release(capture) => release(controller, *capture).await,
            Action::Cleanup { changefeed, .. } => cleanup(controller, *changefeed).await,
            Action::SetOwner(target) => {
                tracing::debug!(changefeed = %target.changefeed, state = %target.state, why = %step.why, "planned");
                targets.push(*target);
                Ok(())
            }
        };
        match done {
            Err(MetadataError::Conflict { what })
                if unreadable && matches!(step.action, Action::Release(_)) =>
            {
                tracing::debug!(what, "an offline capture keeps its rows");
            }
            Err(error) if !error.is_fenced() && !error.is_transient() => refused = refused.and(Err(error)),
            done => done?,
        }
    }
    if !targets.is_empty() {
        set_owners(controller, &targets).await?;
    }
    refused
}

async fn release(controller: &dyn ControllerObservation, capture: CaptureId) -> Result<()> {
    controller.release_capture(capture).await?;
    tracing::info!(%capture, "took everything from an offline capture");
    Ok(())
}

async fn cleanup(controller: &dyn ControllerObservation, changefeed: ChangefeedUuid) -> Result<()> {
    if controller.cleanup_changefeed(changefeed).await? {
        tracing::info!(%changefeed, "cleaned up a removed changefeed");
    }
    Ok(())
}

async fn set_owners(controller: &dyn ControllerObservation, targets: &[ScheduleTarget]) -> Result<()> {
    let answers = controller.set_owners(targets).await?;
    let (mut launched, mut stopped) = (0_u64, 0_u64);
    for (target, answer) in targets.iter().zip(answers) {
        match answer {
            Ok(_) if target.state == ScheduleState::Launched => launched += 1,
            Ok(_) => stopped += 1,
            // The row moved since the snapshot: the next look sees it as it is now.
            Err(MetadataError::Conflict { what }) => {
                tracing::debug!(changefeed = %target.changefeed, what, "a plan was overtaken");
            }
            Err(error) => {
                tracing::warn!(changefeed = %target.changefeed, %error, "a planned step was refused")
            }
        }
    }
    counter!("cdc_controller_launches_total").increment(launched);
    counter!("cdc_controller_stops_total").increment(stopped);
    tracing::info!(launched, stopped, "scheduled changefeeds");
    Ok(())
}
