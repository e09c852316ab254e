//! A controller's start with very many changefeeds: the snapshot, and all that comes with it, in time and memory; against
//! the bare `SELECT`s of the same rows. Each in a process of its own, whose memory nothing else has touched.

use std::process::Stdio;

use anyhow::{Context as _, Result, anyhow, bail};
use metadata_api::decision::planner::{PlanPolicy, plan};
use metadata_api::model::CaptureId;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::Instant;

use super::{Run, grouped, new_capture};
use crate::args::Probe;
use crate::bed::Bed;
use crate::measure::Versus;
use crate::process;
use crate::seed::seed;

/// What a process says of its measurement.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Probed {
    /// The snapshot alone.
    snapshot_ms: f64,
    /// From the campaign to the plan; of the baseline, the snapshot again.
    start_ms: f64,
    /// By how much the process grew at most.
    grown_mib: f64,
}

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    let count = run.scale.many;
    run.say(format!("seeding {} changefeeds", grouped(count)));
    let bed = run.target.bed().await?;
    let captures: Vec<_> = (0..run.scale.many_captures).map(|_| CaptureId::random()).collect();
    seed(&bed, count, |n| captures.get(n % captures.len()).copied()).await?;
    run.say(format!("a controller starts with {} changefeeds", grouped(count)));
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..run.scale.rounds {
        mine.push(ask(Probe::Store, &bed).await?);
        theirs.push(ask(Probe::Bare, &bed).await?);
    }
    let versus = |of: fn(&Probed) -> f64| {
        let values = |probed: &[Probed]| probed.iter().map(of).collect::<Vec<_>>();
        Versus::of(&values(&mine), &values(&theirs))
    };
    let (snapshot, start, grown) = (
        versus(|probed| probed.snapshot_ms),
        versus(|probed| probed.start_ms),
        versus(|probed| probed.grown_mib),
    );
    run.add(format!("snapshot_{count}"), snapshot.value, "ms", Some(snapshot.baseline));
    run.add(format!("snapshot_{count}_memory"), grown.value, "MiB more at most", Some(grown.baseline));
    run.add(format!("controller_start_{count}"), start.value, "ms", Some(start.baseline));
    bed.remove().await
}

/// Takes a measurement in another process.
async fn ask(what: Probe, bed: &Bed) -> Result<Probed> {
    let what = if what == Probe::Store { "store" } else { "bare" };
    let program = std::env::current_exe()?;
    let output = Command::new(program)
        .args(["probe", what, &bed.database.to_string(), &bed.place()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await?;
    if !output.status.success() {
        bail!("the measuring process ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("what the measuring process said")
}

/// What the other process does.
pub async fn probe(what: Probe, bed: &Bed) -> Result<Probed> {
    match what {
        Probe::Store => probe_store(bed).await,
        Probe::Bare => probe_bare(bed).await,
    }
}

async fn probe_store(bed: &Bed) -> Result<Probed> {
    let store = bed.store().await?;
    let term = store.capture_register(&new_capture()).await?;
    let before = process::memory();
    let started = Instant::now();
    store.election_campaign(term, &store.election().await?).await?;
    store.capture_beats().await?;
    store.captures(None).await?;
    let asked = Instant::now();
    let snapshot = store.schedule_snapshot().await?;
    let snapshot_ms = asked.elapsed().as_secs_f64() * 1e3;
    let actions = plan(&snapshot, &PlanPolicy::default());
    let start_ms = started.elapsed().as_secs_f64() * 1e3;
    let grown_mib = grown(before)?;
    drop((snapshot, actions));
    // So that the next process finds the rows as this one did.
    store.capture_deregister(term).await?;
    Ok(Probed { snapshot_ms, start_ms, grown_mib })
}

async fn probe_bare(bed: &Bed) -> Result<Probed> {
    let mut raw = bed.raw().await?;
    raw.text("SELECT 1").await?;
    let before = process::memory();
    let started = Instant::now();
    raw.rows("SELECT revision FROM fence WHERE id = 1").await?;
    raw.rows("SELECT * FROM capture ORDER BY id").await?;
    raw.rows(SNAPSHOT).await?;
    let snapshot_ms = started.elapsed().as_secs_f64() * 1e3;
    Ok(Probed { snapshot_ms, start_ms: snapshot_ms, grown_mib: grown(before)? })
}

/// The rows of a snapshot, plainly joined.
pub const SNAPSHOT: &str = "SELECT s.changefeed_uuid, s.owner, s.owner_state, s.owner_epoch, s.task_position, s.revision, \
     s.version, t.state, i.removed_at FROM schedule s JOIN changefeed_info i ON i.uuid = s.changefeed_uuid \
     JOIN changefeed_state t ON t.changefeed_uuid = s.changefeed_uuid ORDER BY s.changefeed_uuid";

fn grown(before: Option<(u64, u64)>) -> Result<f64> {
    let missing = || anyhow!("/proc/self/status does not say how much memory this process has");
    let (had, _) = before.ok_or_else(missing)?;
    let (_, most) = process::memory().ok_or_else(missing)?;
    Ok(crate::figure::number(most.saturating_sub(had)) / 1024.0)
}
