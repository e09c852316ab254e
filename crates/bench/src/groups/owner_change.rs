//! From the COMMIT of an owner change to the capture that it concerns seeing it, through its own watch.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use capture_runtime::clock::{BootTime, Clock as _, SystemClock};
use capture_runtime::controller;
use capture_runtime::observer::CaptureObserver;
use futures::StreamExt as _;
use futures::future::try_join_all;
use metadata_api::decision::lease::TimePolicy;
use metadata_api::decision::planner::PlanPolicy;
use metadata_api::model::{ChangefeedUuid, ControllerTerm, ScheduleState, ScheduleTarget, Version};
use metadata_api::observation::CaptureObservation as _;
use metadata_api::store::OwnerRelease;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{Run, new_capture};
use crate::measure::{quantile_ms, times};
use crate::seed::{seed, uuid};

/// How many captures wait for changes side by side.
const CAPTURES: usize = 5;
/// How long a change may take to be seen.
const LIMIT: Duration = Duration::from_secs(10);

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    run.say("owner changes, seen by their captures");
    let bed = run.target.bed().await?;
    seed(&bed, CAPTURES, |_| None).await?;
    let store = bed.store_of(8).await?;
    let boss = store.capture_register(&new_capture()).await?;
    let term = store.election_campaign(boss, &store.election().await?).await?;
    let policy = TimePolicy::default();
    let (mut captures, mut lives) = (Vec::new(), JoinSet::new());
    for _ in 0..CAPTURES {
        let info = new_capture();
        let capture = CaptureObserver::register(
            bed.store().await?,
            SystemClock::shared(),
            policy,
            info,
            BootTime::default(),
        )
        .await?;
        // They watch, and leave the office to whoever holds the term.
        capture.step_down();
        let life = capture.clone();
        lives.spawn(async move { life.run(controller::callback(PlanPolicy::default(), false)).await });
        captures.push(capture);
    }
    let each = run.scale.owner_changes.div_ceil(CAPTURES);
    let watched = captures.iter().enumerate().map(|(n, capture)| watch(capture, term, uuid(n), each));
    let waits: Vec<Duration> = try_join_all(watched).await?.into_iter().flatten().collect();
    captures.iter().for_each(CaptureObserver::finish);
    lives.shutdown().await;
    let times = times(waits)?;
    let interval = policy.poll_interval.as_secs_f64() * 1e3;
    run.add("owner_change_p50", quantile_ms(&times, 0.5), "ms (poll interval / 2)", Some(interval / 2.0));
    run.add("owner_change_max", quantile_ms(&times, 1.0), "ms (poll interval)", Some(interval));
    drop((captures, store));
    bed.remove().await
}

/// Launches one changefeed on the capture, again and again, and waits for the news each time.
async fn watch(
    capture: &CaptureObserver,
    term: ControllerTerm,
    changefeed: ChangefeedUuid,
    times: usize,
) -> Result<Vec<Duration>> {
    let store = capture.store();
    let mut changes = capture.owner_changes();
    let mut version = Version(1);
    let mut waits = Vec::with_capacity(times);
    for _ in 0..times {
        // At any moment of the poll's interval.
        sleep(Duration::from_millis(SystemClock.random() % 500)).await;
        let target = ScheduleTarget {
            changefeed,
            expected_version: version,
            state: ScheduleState::Launched,
            owner: Some(capture.term().capture),
        };
        let answer = store.owner_set(term, &[target]).await?.pop().context("one answer for each target")?;
        let committed = Instant::now();
        let launched = answer?;
        loop {
            let change = timeout(LIMIT, changes.next()).await.context("the change was not seen")?;
            let Some(change) = change else { bail!("the watch has ended") };
            if change.state == ScheduleState::Launched && change.epoch == launched.epoch {
                break;
            }
        }
        waits.push(committed.elapsed());
        let owner = launched.term().context("a launch has an owner")?;
        let release = OwnerRelease { term: owner, task_position: None, end: None };
        store.owner_release(&[release]).await?.pop().context("one answer for each release")??;
        version = Version(launched.version.0 + 1);
    }
    Ok(waits)
}
