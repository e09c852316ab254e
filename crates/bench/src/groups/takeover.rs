//! Takeover times: the controller killed, an owner killed, the controller resigned. Several clusters of three captures at
//! once, each on a database of its own, with the default time knobs: lease 12 s, offline after 15 s.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::future::try_join_all;
use metadata_api::decision::lease::TimePolicy;
use metadata_api::model::ControllerEpoch;
use metadata_api::store::MetadataStore;
use tokio::time::{Instant, sleep, timeout_at};

use super::Run;
use super::cluster::Cluster;
use crate::bed::Bed;
use crate::figure::median;
use crate::seed::seed;

const CAPTURES: usize = 3;
const CHANGEFEEDS: usize = 6;
/// How long any takeover may take.
const LIMIT: Duration = Duration::from_secs(90);

/// Seconds.
#[derive(Default)]
struct Times {
    killed: Vec<f64>,
    resigned: Vec<f64>,
    owner: Vec<f64>,
}

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    let (clusters, kills) = (run.scale.clusters, run.scale.kills);
    run.say(format!("killing {} controllers and {} owners", clusters * kills, clusters * kills));
    let mut beds = Vec::new();
    for _ in 0..2 * clusters {
        beds.push(run.target.bed().await?);
    }
    let (controllers, owners) = beds.split_at(clusters);
    let (led, owned) = tokio::try_join!(
        try_join_all(controllers.iter().map(|bed| lose_controllers(bed, kills))),
        try_join_all(owners.iter().map(|bed| lose_owners(bed, kills))),
    )?;
    let mut all = Times::default();
    for times in led.into_iter().chain(owned) {
        all.killed.extend(times.killed);
        all.resigned.extend(times.resigned);
        all.owner.extend(times.owner);
    }
    let policy = TimePolicy::default();
    let (lease, offline) = (policy.controller_lease.as_secs_f64(), policy.offline_after.as_secs_f64());
    report(run, "takeover_controller", &all.killed, "s (lease)", Some(lease));
    report(run, "resign_controller", &all.resigned, "s", None);
    report(run, "takeover_owner", &all.owner, "s (offline after)", Some(offline));
    for bed in beds {
        bed.remove().await?;
    }
    Ok(())
}

/// Median, minimum and maximum.
fn report(run: &mut Run<'_>, name: &str, times: &[f64], unit: &'static str, bound: Option<f64>) {
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = times.iter().copied().fold(0.0, f64::max);
    run.add(format!("{name}_min"), least, unit, bound);
    run.add(name, median(times), unit, bound);
    run.add(format!("{name}_max"), most, unit, bound);
}

async fn lose_controllers(bed: &Bed, kills: usize) -> Result<Times> {
    let store = bed.store().await?;
    let mut cluster = Cluster::start(bed, CAPTURES).await?;
    let mut times = Times::default();
    for _ in 0..kills {
        let epoch = store.election().await?.epoch;
        let Some(leader) = cluster.leader() else { bail!("nobody leads") };
        let killed_at = Instant::now();
        cluster.kill(leader);
        times.killed.push(until_next(&*store, epoch, killed_at).await?);
        cluster.add().await?;
        cluster.await_ready().await?;
    }
    for _ in 0..kills {
        let epoch = store.election().await?.epoch;
        let Some(leader) = cluster.leader() else { bail!("nobody leads") };
        let told_at = Instant::now();
        let stopping = cluster.tell_to_stop(leader);
        times.resigned.push(until_next(&*store, epoch, told_at).await?);
        cluster.add().await?;
        cluster.await_ready().await?;
        drop(stopping);
    }
    cluster.stop();
    Ok(times)
}

/// Until a later epoch is elected; seconds since `from`.
async fn until_next(store: &dyn MetadataStore, epoch: ControllerEpoch, from: Instant) -> Result<f64> {
    while store.election().await?.epoch <= epoch {
        if from.elapsed() > LIMIT {
            bail!("no controller was elected within {LIMIT:?}");
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(from.elapsed().as_secs_f64())
}

async fn lose_owners(bed: &Bed, kills: usize) -> Result<Times> {
    seed(bed, CHANGEFEEDS, |_| None).await?;
    let mut cluster = Cluster::start(bed, CAPTURES).await?;
    let mut times = Times::default();
    for kill in 0..kills {
        cluster.await_even(CHANGEFEEDS).await?;
        let Some(leader) = cluster.leader() else { bail!("nobody leads") };
        let killed_at = Instant::now();
        let mut waiting: BTreeSet<_> = cluster.kill((leader + 1) % cluster.len()).into_iter().collect();
        if waiting.is_empty() {
            bail!("the killed capture ran nothing");
        }
        let mut last = killed_at;
        while !waiting.is_empty() {
            match timeout_at(killed_at + LIMIT, cluster.starts.recv()).await {
                Ok(Some(start)) => {
                    waiting.remove(&start.changefeed);
                    last = last.max(start.at);
                    cluster.note(start);
                }
                _ => bail!("{} changefeeds of a killed owner run nowhere after {LIMIT:?}", waiting.len()),
            }
        }
        times.owner.push((last - killed_at).as_secs_f64());
        if kill + 1 < kills {
            cluster.add().await?;
            cluster.await_ready().await?;
        }
    }
    cluster.stop();
    Ok(times)
}
