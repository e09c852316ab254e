//! What the planner thinks of one changefeed, for an operator.

use super::memory::Calm;
use super::places::Places;
use super::{Action, PlanPolicy, decide};
use crate::model::{
    CaptureInfo, CaptureState, ChangefeedUuid, Placement, ScheduleSnapshot, ScheduleState, SnapshotChangefeed,
};

/// Where a changefeed stands and what the controller would do next about it, each with the reason, one line each. `None`
/// when the snapshot does not have it.
///
/// Any capture can say this, of the database alone: it is what [`plan`](super::plan) decides. Only the controller knows
/// what it leaves alone for a while because it has just moved.
pub fn explain(
    snapshot: &ScheduleSnapshot,
    policy: &PlanPolicy,
    changefeed: ChangefeedUuid,
) -> Option<Vec<String>> {
    if let Some(row) = snapshot.unreadable.iter().find(|row| row.changefeed == changefeed) {
        return Some(vec![format!("left alone until somebody mends its row: {}", row.reason)]);
    }
    let feed = snapshot.changefeeds.iter().find(|feed| feed.schedule.changefeed == changefeed)?;
    let mut lines = vec![standing(snapshot, feed)];
    let owner = feed.schedule.owner;
    let next = decide(snapshot, policy, &Calm::default()).into_iter().find(|step| match step.action {
        Action::SetOwner(target) => target.changefeed == changefeed,
        Action::Cleanup { changefeed: cleaned, .. } => cleaned == changefeed,
        Action::Release(capture) => owner == Some(capture),
    });
    if let Some(step) = next {
        let what = match step.action {
            Action::SetOwner(target) if target.state == ScheduleState::Launched => "launch",
            Action::SetOwner(_) => "stop here",
            Action::Release(_) => "take from its capture",
            Action::Cleanup { .. } => "delete",
        };
        lines.push(format!("next: {what}: {}", step.why));
    } else if let Some(reason) = stuck(snapshot, feed) {
        lines.push(reason);
    }
    Some(lines)
}

/// Where it is.
fn standing(snapshot: &ScheduleSnapshot, feed: &SnapshotChangefeed) -> String {
    let since = format!("since revision {}", feed.schedule.revision);
    let Some(owner) = feed.schedule.owner else {
        return if feed.state.is_runnable() && !feed.removed {
            format!("unowned {since}")
        } else {
            format!("not to run, being {}; unowned {since}", feed.state)
        };
    };
    let capture = snapshot.captures.iter().find(|capture| capture.id == owner);
    let at = match capture {
        Some(info) => format!("{owner} ({}, {})", info.advertise_addr, info.state),
        None => format!("{owner} (which has no row)"),
    };
    let weight = feed.placement.as_ref().map_or(1, |placement| placement.weight);
    match feed.schedule.state {
        ScheduleState::Removing => {
            format!("being stopped on {at} {since}, owner epoch {}", feed.schedule.epoch)
        }
        _ => format!(
            "on {at} {since}, owner epoch {}; weighs {weight} of a load of {} there",
            feed.schedule.epoch,
            load(snapshot, feed)
        ),
    }
}

/// What its owner has in all.
fn load(snapshot: &ScheduleSnapshot, feed: &SnapshotChangefeed) -> u64 {
    let same = snapshot.changefeeds.iter().filter(|other| other.schedule.owner == feed.schedule.owner);
    same.map(|other| other.placement.as_ref().map_or(1, |placement| u64::from(placement.weight))).sum()
}

/// Why nothing is done about it though something ought to be.
fn stuck(snapshot: &ScheduleSnapshot, feed: &SnapshotChangefeed) -> Option<String> {
    if !feed.state.is_runnable() || feed.removed {
        return None;
    }
    let draining = feed.schedule.owner.is_some_and(|owner| {
        let mut captures = snapshot.captures.iter();
        captures.any(|capture| capture.id == owner && capture.state == CaptureState::Draining)
    });
    let waits = feed.schedule.state == ScheduleState::Removed || draining;
    if !waits {
        return None;
    }
    if feed.live_processors > 0 && feed.schedule.state == ScheduleState::Removed {
        return Some(format!("waits for {} processors to stop", feed.live_processors));
    }
    match &feed.placement {
        Err(wrong) => Some(format!("stays: {wrong}; update the changefeed's configuration")),
        Ok(placement) => nowhere(snapshot, placement).or_else(|| {
            Some(
                if draining { "waits for its turn in the drain" } else { "waits for the controller" }
                    .to_owned(),
            )
        }),
    }
}

/// Why no capture may run it; `None` when some may.
fn nowhere(snapshot: &ScheduleSnapshot, placement: &Placement) -> Option<String> {
    let mut places = Places::new(snapshot, &Calm::default());
    let pool = places.pool(placement);
    if places.size(pool) > 0 {
        return None;
    }
    let alive = |capture: &&CaptureInfo| capture.state == CaptureState::Alive;
    Some(if placement.affinity.is_empty() || !snapshot.captures.iter().any(|capture| alive(&capture)) {
        "stays: no other capture is alive".to_owned()
    } else {
        format!("stays: no capture that is alive has the label {placement}")
    })
}
