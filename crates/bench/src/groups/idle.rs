//! Whole captures with nothing to do: heartbeats, polls, one of them controller; each with a store and connections of its
//! own, as in a process of its own. What they cost, and whether they live. Against bare statements at the same pace on as
//! many connections: one `UPDATE` and two `SELECT`s by key, a capture and second.

use std::time::Duration;

use anyhow::{Result, bail};
use capture_runtime::clock::{BootTime, SystemClock};
use capture_runtime::controller;
use capture_runtime::observer::CaptureObserver;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use metadata_api::decision::lease::TimePolicy;
use metadata_api::decision::planner::PlanPolicy;
use metadata_api::observation::CaptureObservation as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::captures::Reading;
use super::heartbeat::BareHeart;
use super::{Run, grouped, new_capture};
use crate::bed::Bed;
use crate::figure::size;
use crate::measure::Lanes;

const AT_ONCE: usize = 8;
/// How long all of them may take to be up.
const START_LIMIT: Duration = Duration::from_secs(60);

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    for count in run.scale.idle.clone() {
        run.say(format!("starting {} whole captures", grouped(count)));
        let bed = run.target.bed().await?;
        let (mut captures, mut lives) = (Vec::with_capacity(count), JoinSet::new());
        let mut registered = stream::iter((0..count).map(|_| register(&bed))).buffer_unordered(AT_ONCE);
        // Each beats at once: who is silent for long after it has registered is dead.
        while let Some(capture) = registered.try_next().await? {
            captures.push(capture.clone());
            let callback = controller::callback(PlanPolicy::default(), false);
            lives.spawn(async move { capture.run(callback).await });
        }
        drop(registered);
        await_all(&captures).await?;
        run.say(format!("{} whole captures idle", grouped(count)));
        let before = Reading::take(run.target).await?;
        let started = Instant::now();
        let late = watch(&captures, run.scale.watch).await;
        let grown = before.until_now(run.target).await?;
        let took = started.elapsed().as_secs_f64();
        let ended = captures.iter().filter(|capture| capture.fenced_error().is_some()).count();
        captures.iter().for_each(CaptureObserver::finish);
        lives.shutdown().await;
        drop(captures);
        let bare = bare(run, &bed, count).await?;

        let name = format!("idle_{count}");
        let seconds = size(count) * took;
        run.add(format!("{name}_late"), 100.0 * size(late) / seconds, "% late heartbeats or polls", None);
        run.add(format!("{name}_ended"), size(ended), "captures fenced", None);
        if let Some(statements) = grown.statements() {
            let mine = statements / seconds;
            run.add(format!("{name}_statements"), mine, "a capture and second", Some(3.0));
        }
        if let Some(time) = grown.time() {
            run.add(format!("{name}_cpu"), time.as_secs_f64() / took, "cores of the server", bare);
        }
        bed.remove().await?;
    }
    Ok(())
}

async fn register(bed: &Bed) -> Result<CaptureObserver> {
    let store = bed.store().await?;
    let (clock, policy) = (SystemClock::shared(), TimePolicy::default());
    Ok(CaptureObserver::register(store, clock, policy, new_capture(), BootTime::default()).await?)
}

/// Until each may act, and one of them leads.
async fn await_all(captures: &[CaptureObserver]) -> Result<()> {
    let started = Instant::now();
    while captures.iter().any(|capture| capture.deadline().has_passed())
        || captures.iter().all(|capture| capture.leading().is_none())
    {
        if started.elapsed() > START_LIMIT {
            bail!("{} captures are not up after {START_LIMIT:?}", captures.len());
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Counts how often a capture's deadline came closer than one late heartbeat or poll explains.
async fn watch(captures: &[CaptureObserver], length: Duration) -> usize {
    let policy = TimePolicy::default();
    let one_late = policy.heartbeat_interval.mul_f64(1.1) + policy.heartbeat_timeout;
    let least = policy.deadline.saturating_sub(one_late);
    let mut was_late = vec![false; captures.len()];
    let mut count = 0;
    let started = Instant::now();
    while started.elapsed() < length {
        sleep(Duration::from_millis(250)).await;
        for (capture, was_late) in captures.iter().zip(&mut was_late) {
            let late = capture.deadline().left() < least;
            count += usize::from(late && !*was_late);
            *was_late = late;
        }
    }
    count
}

/// The server's cores that the bare statements take.
async fn bare(run: &Run<'_>, bed: &Bed, count: usize) -> Result<Option<f64>> {
    if run.target.server_time().is_none() {
        return Ok(None);
    }
    let terms: Vec<_> = bed.store().await?.captures(None).await?.into_iter().take(count).collect();
    bed.copy_tables(&["capture"]).await?;
    let open = terms.iter().map(|row| async {
        let term = metadata_api::model::CaptureTerm { capture: row.id };
        Ok::<_, anyhow::Error>((BareHeart::new(bed, term).await?, BareHeart::new(bed, term).await?))
    });
    let pairs: Vec<_> = stream::iter(open).buffer_unordered(AT_ONCE).try_collect().await?;
    let (beats, looks) = pairs.into_iter().unzip();
    let mut beats = Lanes::new(beats, |heart: &mut BareHeart| heart.beat().boxed());
    let mut looks = Lanes::new(looks, |heart: &mut BareHeart| heart.look().boxed());
    let (second, half) = (Duration::from_secs(1), Duration::from_millis(500));
    tokio::try_join!(beats.paced(second, second), looks.paced(half, half))?;
    let length = run.scale.watch / 3;
    let before = Reading::take(run.target).await?;
    let started = Instant::now();
    tokio::try_join!(beats.paced(second, length), looks.paced(half, length))?;
    let took = started.elapsed().as_secs_f64();
    let time = before.until_now(run.target).await?.time();
    Ok(time.map(|time| time.as_secs_f64() / took))
}
