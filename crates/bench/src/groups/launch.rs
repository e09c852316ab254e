//! Thousands of changefeeds from unowned to launched: by the controller's own look, plan and act on the store, against the
//! bare reads and writes of the same rows in as many transactions; and by a whole cluster, until every task runs.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use metadata_api::decision::planner::{Action, PlanPolicy, plan};
use metadata_api::model::{CaptureId, ControllerTerm};
use metadata_api::store::{MAX_BATCH, MetadataStore};
use tokio::time::{Instant, timeout_at};

use super::cluster::Cluster;
use super::{Run, grouped, new_capture};
use crate::bed::Bed;
use crate::measure::Versus;
use crate::raw::Raw;
use crate::seed;

/// How many captures share them.
const CAPTURES: usize = 10;
/// How long a whole cluster may take.
const LIMIT: Duration = Duration::from_secs(120);

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    by_the_store(run).await?;
    by_a_cluster(run).await
}

async fn by_the_store(run: &mut Run<'_>) -> Result<()> {
    let count = run.scale.launch;
    run.say(format!("launching {} changefeeds", grouped(count)));
    let bed = run.target.bed().await?;
    seed::seed(&bed, count, |_| None).await?;
    let store = bed.store().await?;
    let mut terms = Vec::new();
    for _ in 0..CAPTURES {
        terms.push(store.capture_register(&new_capture()).await?);
    }
    let Some(first) = terms.first() else { bail!("no capture") };
    let controller = store.election_campaign(*first, &store.election().await?).await?;
    bed.copy_tables(&["fence", "schedule", "changefeed_info", "changefeed_state"]).await?;
    let mut raw = bed.raw().await?;
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..run.scale.rounds.min(3) {
        let started = Instant::now();
        let launched = look_plan_act(&*store, controller).await?;
        mine.push(started.elapsed().as_secs_f64());
        if launched != count {
            bail!("{launched} of {count} changefeeds were launched");
        }
        let started = Instant::now();
        bare(&mut raw, &bed, count, first.capture).await?;
        theirs.push(started.elapsed().as_secs_f64());
        raw.text("UPDATE schedule SET owner = NULL, owner_state = 'removed'").await?;
    }
    let time = Versus::of(&mine, &theirs);
    run.add(format!("launch_{count}"), time.value, "s", Some(time.baseline));
    drop((store, raw));
    bed.remove().await
}

/// What a controller does when it finds changefeeds that nobody owns.
async fn look_plan_act(store: &dyn MetadataStore, controller: ControllerTerm) -> Result<usize> {
    let snapshot = store.schedule_snapshot().await?;
    let actions = plan(&snapshot, &PlanPolicy::default());
    let targets: Vec<_> = actions
        .into_iter()
        .filter_map(|action| match action {
            Action::SetOwner(target) => Some(target),
            Action::Release(_) | Action::Cleanup { .. } => None,
        })
        .collect();
    let mut launched = 0;
    for batch in targets.chunks(MAX_BATCH) {
        for answer in store.owner_set(controller, batch).await? {
            answer?;
            launched += 1;
        }
    }
    Ok(launched)
}

async fn bare(raw: &mut Raw, bed: &Bed, count: usize, owner: CaptureId) -> Result<()> {
    let select = "SELECT s.*, t.state, i.removed_at FROM bare_schedule s \
         JOIN bare_changefeed_info i ON i.uuid = s.changefeed_uuid \
         JOIN bare_changefeed_state t ON t.changefeed_uuid = s.changefeed_uuid";
    raw.rows(&format!("{select} ORDER BY s.changefeed_uuid")).await?;
    let uuids: Vec<_> = (0..count).map(|n| seed::uuid(n).to_string()).collect();
    for batch in uuids.chunks(MAX_BATCH) {
        let list = batch.join(", ");
        raw.text(bed.database.begin()).await?;
        raw.text("UPDATE bare_fence SET revision = revision + 1 WHERE id = 1").await?;
        raw.rows(&format!("{select} WHERE s.changefeed_uuid IN ({list})")).await?;
        raw.text(&format!(
            "UPDATE bare_schedule SET owner = '{owner}', owner_state = 'launched', owner_epoch = 7, revision = 7, \
             version = version + 1 WHERE changefeed_uuid IN ({list})"
        ))
        .await?;
        raw.text("COMMIT").await?;
    }
    Ok(())
}

async fn by_a_cluster(run: &mut Run<'_>) -> Result<()> {
    let count = run.scale.launch;
    run.say(format!("a cluster launches {} changefeeds", grouped(count)));
    let bed = run.target.bed().await?;
    let mut cluster = Cluster::start(&bed, 4).await?;
    seed::seed(&bed, count, |_| None).await?;
    // The cluster notices by the revision, which an operator's transaction would have moved with the rows.
    let mut raw = bed.raw().await?;
    let started = Instant::now();
    raw.text("UPDATE fence SET revision = revision + 1 WHERE id = 1").await?;
    let mut running = BTreeSet::new();
    while running.len() < count {
        match timeout_at(started + LIMIT, cluster.starts.recv()).await {
            Ok(Some(start)) => drop(running.insert(start.changefeed)),
            _ => bail!("{} of {count} changefeeds run after {LIMIT:?}", running.len()),
        }
    }
    run.add(format!("launch_{count}_running"), started.elapsed().as_secs_f64(), "s", None);
    cluster.stop();
    drop(raw);
    bed.remove().await
}
