//! `cdc demo`: a real cluster on this host, and what it does when it loses a member.
//!
//! ```text
//! 0 s    three `cdc server` processes on one SQLite file; changefeeds from datagen:// to file://, through all three
//! 10 s   SIGKILL to the server that owns most (the controller, among equals)
//!        wait until every one of its changefeeds has moved on elsewhere, say how long it took
//! +3 s   start that server again; it gets work again
//! end    SIGTERM to all, then each file is checked against what the generator must have produced
//! ```
//!
//! The exit code is 0 only if no row is missing, wrong or out of order, and everything was taken over. The children never
//! outlive the demo: they are killed when it ends in any orderly way, and the kernel kills them when it does not.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use capture_runtime::clock::{BootTime, Clock, SystemClock};

use crate::args::DemoArgs;
use crate::exit::{Exit, Failure};
use crate::signals;

pub mod check;
pub mod cluster;
pub mod process;
pub mod scene;
mod screen;
pub mod takeover;

use cluster::Cluster;
use scene::Scene;
use screen::Screen;
use takeover::Takeover;

/// When a server is killed.
const KILL_AT: Duration = Duration::from_secs(10);
/// How long after the takeover it is started again.
const RESTART_AFTER: Duration = Duration::from_secs(3);
/// Between two looks at the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Runs the demo.
///
/// # Errors
/// When something is missing at the end, or the cluster could not be started; the directory is kept then.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let signals = signals::listen()?;
    let clock = SystemClock::shared();
    let mut screen = Screen::open(!args.plain && std::io::stdout().is_terminal())?;
    let mut cluster = Cluster::new(clock.clone())?;
    let outcome = tokio::select! {
        outcome = play(&args, &clock, &mut cluster, &mut screen) => outcome,
        () = signals.first.cancelled() => Err(Failure::new(Exit::Forced, "stopped by a signal")),
    };
    screen.close();
    cluster.kill_all().await;
    if let Ok(scene) = &outcome {
        println_all(&scene.story())?;
    }
    let verdict = match outcome {
        Ok(scene) => judge(&args, &cluster, &scene).await,
        Err(failure) => Err(failure),
    };
    if verdict.is_err() || args.keep {
        println_all(&[format!("Files, metadata and logs are kept in {}", cluster.keep().display())])?;
    }
    verdict
}

fn println_all(lines: &[String]) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// From the first server to the graceful stop of all.
async fn play(
    args: &DemoArgs,
    clock: &Arc<dyn Clock>,
    cluster: &mut Cluster,
    screen: &mut Screen,
) -> Result<Scene, Failure> {
    let mut scene = Scene::new(clock.now(), u64::from(args.rows_per_second));
    screen.say(&mut scene, "starting three servers on one SQLite file".to_owned(), clock.now())?;
    cluster.start_all().await?;
    cluster.create_changefeeds(args).await?;
    scene.start = clock.now();
    let text = format!(
        "{} changefeeds of {} rows a second each, created through all three servers",
        args.changefeeds, args.rows_per_second
    );
    screen.say(&mut scene, text, clock.now())?;
    let end = scene.start + Duration::from_secs(args.seconds);
    let mut takeover: Option<Takeover> = None;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let now = clock.now();
        cluster.look(&mut scene, now).await;
        act(cluster, &mut scene, screen, &mut takeover, now).await?;
        if screen.draw(&scene, now)? {
            return Err(Failure::new(Exit::Forced, "stopped by a key"));
        }
        if now >= end {
            break;
        }
    }
    screen.say(
        &mut scene,
        "stopping all servers gracefully, then checking the files".to_owned(),
        clock.now(),
    )?;
    screen.draw(&scene, clock.now())?;
    let took = cluster.stop_all().await?;
    screen.say(&mut scene, format!("all have stopped after {:.1} s", took.as_secs_f64()), clock.now())?;
    if let Some(takeover) = takeover {
        scene.takeover = Some(takeover);
    }
    Ok(scene)
}

/// Kill, watch the takeover, start again: what is due now.
async fn act(
    cluster: &mut Cluster,
    scene: &mut Scene,
    screen: &mut Screen,
    takeover: &mut Option<Takeover>,
    now: BootTime,
) -> Result<(), Failure> {
    match takeover {
        None if now.since(scene.start) >= KILL_AT => {
            if let Some(victim) = scene.busiest() {
                let begun = Takeover::begin(scene, &victim, now);
                cluster.kill(&victim).await?;
                screen.say(scene, begun.announcement(), now)?;
                *takeover = Some(begun);
            }
        }
        None => {}
        Some(running) => {
            for event in running.watch(scene, now) {
                screen.say(scene, event, now)?;
            }
            if let Some(done) = running.done_at
                && !running.restarted
                && now.since(done) >= RESTART_AFTER
            {
                running.restarted = true;
                cluster.start(&running.server).await?;
                screen.say(scene, format!("{} started again, as a new capture", running.server), now)?;
            }
        }
    }
    Ok(())
}

async fn judge(args: &DemoArgs, cluster: &Cluster, scene: &Scene) -> Result<(), Failure> {
    let feeds = scene.feeds.clone();
    let out = cluster.sink_dir();
    let rows_per_second = u64::from(args.rows_per_second);
    let found = tokio::task::spawn_blocking(move || check::check_all(&out, &feeds, rows_per_second))
        .await
        .map_err(|error| Failure::error(format!("the check: {error}")))??;
    println_all(&[found.summary()])?;
    let taken_over = scene.takeover.as_ref().is_some_and(|takeover| takeover.done_at.is_some());
    if !found.is_clean() {
        return Err(Failure::error("rows are missing, wrong or out of order"));
    }
    if !taken_over {
        return Err(Failure::error("the killed server's changefeeds were not taken over in time"));
    }
    Ok(())
}
