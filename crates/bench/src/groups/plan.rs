//! The planner alone: 10,000 changefeeds on 1,000 captures, with weights and labels; against one pass over the snapshot that
//! adds up the loads, which is the least that any planner must do. No database takes part.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use chrono::DateTime;
use metadata_api::decision::planner::{PlanMemory, PlanPolicy, plan_calmly};
use metadata_api::model::{
    BootTime, CaptureId, CaptureInfo, CaptureState, ChangefeedProgress, ChangefeedSchedule, ChangefeedUuid,
    FeedState, OwnerEpoch, Placement, Revision, ScheduleSnapshot, ScheduleState, SnapshotChangefeed, Version,
};
use tokio::time::Instant;

use super::Run;
use crate::measure::Versus;

const CAPTURES: usize = 1_000;
const CHANGEFEEDS: usize = 10_000;
const ROUNDS: usize = 11;

pub fn run(run: &mut Run<'_>) -> Result<()> {
    // All unowned: a launch each. All on a tenth of the captures: the largest balance. All evenly: nothing to do.
    let share = |captures: usize| move |n: usize| Some(n % captures);
    for (name, snapshot, least) in [
        ("plan_10000", snapshot(|_| None), CHANGEFEEDS),
        ("plan_10000_lopsided", snapshot(share(CAPTURES / 10)), 1),
        ("plan_10000_even", snapshot(share(CAPTURES)), 0),
    ] {
        run.say(name);
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let steps = planned(&snapshot);
            mine.push(started.elapsed().as_secs_f64() * 1e3);
            ensure!(steps >= least, "{name}: {steps} steps were planned");
            let started = Instant::now();
            let loads = loads(&snapshot);
            theirs.push(started.elapsed().as_secs_f64() * 1e3);
            ensure!(loads.len() <= CAPTURES, "{name}: {} captures have a load", loads.len());
        }
        let time = Versus::of(&mine, &theirs);
        run.add(name, time.value, "ms", Some(time.baseline));
    }
    Ok(())
}

/// Plans as a controller does that has led for a long time.
fn planned(snapshot: &ScheduleSnapshot) -> usize {
    let policy = PlanPolicy { capture_cooldown: Duration::ZERO, ..PlanPolicy::default() };
    plan_calmly(snapshot, &policy, &mut PlanMemory::default(), BootTime::default()).steps.len()
}

fn loads(snapshot: &ScheduleSnapshot) -> BTreeMap<CaptureId, u64> {
    let mut loads = BTreeMap::new();
    for feed in &snapshot.changefeeds {
        if let (Some(owner), Ok(placement)) = (feed.schedule.owner, &feed.placement) {
            *loads.entry(owner).or_default() += u64::from(placement.weight);
        }
    }
    loads
}

fn snapshot(owner: impl Fn(usize) -> Option<usize>) -> ScheduleSnapshot {
    let captures: Vec<_> = (0..CAPTURES)
        .map(|n| CaptureInfo {
            id: CaptureId::random(),
            advertise_addr: format!("host-{n}:8300"),
            version: String::new(),
            labels: [("zone".to_owned(), (n % 3).to_string()), ("host".to_owned(), n.to_string())].into(),
            machine_id: String::new(),
            state: CaptureState::Alive,
            heartbeat_seq: 0,
            heartbeat_at: DateTime::UNIX_EPOCH,
            started_at: DateTime::UNIX_EPOCH,
        })
        .collect();
    let changefeeds = (0..CHANGEFEEDS)
        .map(|n| {
            let owner = owner(n).and_then(|at| captures.get(at)).map(|capture| capture.id);
            SnapshotChangefeed {
                schedule: ChangefeedSchedule {
                    changefeed: ChangefeedUuid(n as u64 + 1),
                    owner,
                    state: owner.map_or(ScheduleState::Removed, |_| ScheduleState::Launched),
                    epoch: OwnerEpoch(1),
                    task_position: ChangefeedProgress::default(),
                    revision: Revision(1),
                    version: Version(1),
                },
                state: FeedState::Normal,
                removed: false,
                live_processors: 0,
                placement: Ok(placement(n, owner.is_some())),
            }
        })
        .collect();
    ScheduleSnapshot { revision: Revision(1), captures, changefeeds, ..ScheduleSnapshot::default() }
}

/// What is unowned has weights and labels of every kind. What runs weighs the same, and may run anywhere.
fn placement(n: usize, runs: bool) -> Placement {
    if runs {
        return Placement::default();
    }
    let affinity = match n % 3 {
        0 => BTreeMap::new(),
        1 => [("zone".to_owned(), (n % 2).to_string())].into(),
        _ => [("host".to_owned(), (n % CAPTURES).to_string())].into(),
    };
    Placement { weight: u32::try_from(n % 7 + 1).unwrap_or(1), affinity, ..Placement::default() }
}
