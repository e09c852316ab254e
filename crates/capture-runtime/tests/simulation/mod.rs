//! A seeded simulation: captures and changefeeds, faults of all kinds in random order, and then none.
//!
//! While faults happen, safety is checked at every commit and at every write to the outside (see [`crate::world`]). When they
//! have ended everything that ought to run must soon run, on one capture each, evenly; and when all captures have stopped
//! nothing may be missing between what the database says and what is outside.
//!
//! `SEEDS=500 FIRST_SEED=1` runs so many seeds, one world a core; `SEED=17` a single one; `LOG=debug` with what the runtime says. A
//! world is small unless `SIZE` says otherwise; `CAPTURES`, `CHANGEFEEDS` and `FAULTS_FOR` (seconds) set one of its dimensions.

mod nemesis;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::thread::available_parallelism;
use std::time::Duration;

use metadata_api::model::{CaptureId, CaptureState, ChangefeedUuid, FeedState, ScheduleState};

use crate::world::{Dice, World};
use nemesis::Nemesis;

/// How many seeds run when nothing else is asked for.
const SEEDS: u64 = 20;

/// How large a world is, and for how long faults happen in it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    captures: usize,
    changefeeds: usize,
    faults_for: Duration,
}

impl Size {
    /// The size of a seed's world. `SIZE=full`: always 50 captures and 1,000 changefeeds for ten minutes; `SIZE=mixed`: three seeds
    /// in ten are that large, one in ten has all of the changefeeds on a few captures (so that polls come in pages), the others
    /// are smaller; else small.
    fn of(seed: u64) -> Self {
        let dice = Dice::new(seed ^ 0x51e0);
        let between = |least: u64, most: u64| least + dice.below(most - least + 1);
        let size = match std::env::var("SIZE").as_deref() {
            Ok("full") => (50, 1_000, 600),
            Ok("mixed") => match seed % 10 {
                0 | 3 | 7 => (50, 1_000, 600),
                5 => (between(2, 5), 1_000, between(60, 300)),
                _ => (between(2, 20), between(10, 200), between(150, 600)),
            },
            _ => (5, 30, 150),
        };
        let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Self {
            captures: number(env("CAPTURES").unwrap_or(size.0)),
            changefeeds: number(env("CHANGEFEEDS").unwrap_or(size.1)),
            faults_for: Duration::from_secs(env("FAULTS_FOR").unwrap_or(size.2)),
        }
    }
}

/// From the last fault until everything runs. The worst is a controller that must not judge yet what died at the end
/// of its own gap (2 R), waits because more than half are silent (60 s), and was just elected (a lease).
const ALL_RUN_WITHIN: Duration = Duration::from_secs(30 + 60 + 17);
/// One changefeed moves at a time, each move takes about 1.5 s.
const EVEN_WITHIN: Duration = Duration::from_secs(90);
const A_MOVE: Duration = Duration::from_secs(3);
/// More moves than so many are not waited for.
const MOST_MOVES: usize = 30;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The command that repeats what this thread is doing.
pub fn replay() -> String {
    let Some(seed) = SEED.get() else { return String::new() };
    let sizes: Vec<String> = ["SIZE", "CAPTURES", "CHANGEFEEDS", "FAULTS_FOR"]
        .iter()
        .filter_map(|name| std::env::var(name).ok().map(|value| format!("{name}={value} ")))
        .collect();
    let sizes = sizes.concat();
    format!(
        "replay it with: SEED={seed} {sizes}LOG=info cargo test --profile proof -p capture-runtime --test main seeds -- --nocapture"
    )
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// What is planned is not shown.
fn be_quiet_about_planned_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let shown = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let planned = info.payload_as_str().is_some_and(|text| text.contains("a planned panic"));
            if !planned {
                shown(info);
            }
        }));
    });
}

#[test]
fn seeds() {
    be_quiet_about_planned_panics();
    if let Ok(level) = std::env::var("LOG") {
        crate::world::log_to_stderr(&level);
    }
    let (first, count) = match env("SEED") {
        Some(seed) => (seed, 1),
        None => (env("FIRST_SEED").unwrap_or(1), env("SEEDS").unwrap_or(SEEDS)),
    };
    let next = AtomicU64::new(first);
    let done = Mutex::new(Done::default());
    // Each world has one thread; so many worlds at a time.
    let threads = available_parallelism().map_or(1, NonZero::get).min(usize::try_from(count).unwrap_or(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + count {
                        return;
                    }
                    let story = catch_unwind(AssertUnwindSafe(|| run(seed)));
                    done.lock().unwrap().take_in(seed, story.ok().as_ref());
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.failed.sort_unstable();
    eprintln!(
        "{count} seeds: {:.0} virtual hours, {} faults, {} writes; the slowest to run again: {:?}",
        done.lived.as_secs_f64() / 3_600.0,
        done.faults,
        done.writes,
        done.slowest
    );
    assert!(done.failed.is_empty(), "{} of {count} seeds failed: {:?}", done.failed.len(), done.failed);
}

/// What came of all seeds.
#[derive(Default)]
struct Done {
    failed: Vec<u64>,
    slowest: (Duration, u64),
    lived: Duration,
    faults: u64,
    writes: u64,
}

impl Done {
    fn take_in(&mut self, seed: u64, story: Option<&Story>) {
        let Some(story) = story else {
            eprintln!("seed {seed} failed");
            self.failed.push(seed);
            return;
        };
        self.slowest = self.slowest.max((story.all_ran_after, seed));
        self.lived += story.lived;
        self.faults += story.faults;
        self.writes += story.writes;
    }
}

/// Without it no seed could be replayed.
#[test]
fn a_seed_repeats_itself() {
    be_quiet_about_planned_panics();
    assert_eq!(run(4).digest, run(4).digest);
    assert_ne!(run(4).digest, run(5).digest);
}

/// What came of a run.
struct Story {
    digest: u64,
    all_ran_after: Duration,
    lived: Duration,
    faults: u64,
    writes: u64,
}

fn run(seed: u64) -> Story {
    SEED.set(Some(seed));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let story = runtime.block_on(story(seed));
    // A test that fails later on this thread is none of this seed's.
    SEED.set(None);
    story
}

async fn story(seed: u64) -> Story {
    let mut world = World::new(seed);
    world.outside.keep_no_history();
    let size = Size::of(seed);
    for _ in 0..size.captures {
        world.start();
    }
    let split = (size.changefeeds / 10).clamp(3, 20).min(size.changefeeds);
    let mut feeds = world.create(size.changefeeds - split).await;
    for n in 0..split {
        feeds.push(world.create_split(2 + n % 5, u32::try_from(2 + n % 4).unwrap_or(2)).await);
    }
    let mut nemesis = Nemesis::new(&world, feeds, size.captures);
    let end = world.now() + size.faults_for;
    while world.now() < end {
        nemesis.step(&mut world).await;
        world.check();
    }
    nemesis.make_peace(&mut world, size.captures).await;

    let quiet_at = world.now();
    let feeds = nemesis.feeds().to_vec();
    // What failed or was paused last shows only now.
    for _ in 0..10 {
        nemesis.resume_all(&mut world).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // One may be on its way to another capture at any moment: each must be seen to move, not all in one.
    let mut waiting: BTreeSet<ChangefeedUuid> = feeds.iter().copied().collect();
    let all_ran_after = world.now() - quiet_at
        + wait(&world, "everything runs", ALL_RUN_WITHIN - Duration::from_secs(10), |world| {
            let processes = world.by_id();
            waiting.retain(|feed| !runs(world, &processes, *feed, quiet_at));
            waiting.is_empty()
        })
        .await;
    even_out(&world).await;
    wait(&world, "what was removed is gone", EVEN_WITHIN, |world| {
        nemesis.removed().iter().all(|feed| world.schedule(*feed).is_none())
    })
    .await;
    let calm_at = world.now();
    let mut waiting: BTreeSet<ChangefeedUuid> = feeds.iter().copied().collect();
    wait(&world, "everything goes on running", Duration::from_secs(20), |world| {
        let processes = world.by_id();
        waiting.retain(|feed| !runs(world, &processes, *feed, calm_at));
        waiting.is_empty()
    })
    .await;

    for process in &world.processes {
        process.stop.cancel();
    }
    wait(&world, "all have stopped", Duration::from_secs(10), |world| {
        world.processes.iter().all(|process| !process.runs())
    })
    .await;
    for feed in feeds {
        let schedule = world.schedule(feed).unwrap();
        if !world.outside.last_writes(feed).is_empty() {
            // Tables of captures that stop in one moment stop one by one: the last word may be older than the last write.
            assert!(
                world.checkpoint(feed) <= world.outside.high(feed),
                "{feed} is not said to be further than it is"
            );
            continue;
        }
        let last = world.outside.last_write(feed).unwrap();
        if schedule.state != ScheduleState::Removed {
            // On its way to a capture that stopped before it saw the order: sealed, so that the next controller takes it.
            let owner = schedule.owner.and_then(|owner| world.capture(owner)).map(|row| row.state);
            assert_eq!(owner, Some(CaptureState::Offline), "{feed} was released, or its capture sealed");
            assert_ne!(last.term.epoch, schedule.epoch, "{feed} was released by who wrote it");
        }
        // What an earlier owner wrote after its last word is written again; what the last one wrote, it said.
        if last.term.epoch == schedule.epoch {
            assert_eq!(world.checkpoint(feed), last.to, "{feed} was released where it stopped");
        }
    }
    Story {
        digest: world.outside.digest(),
        all_ran_after,
        lived: world.now(),
        faults: nemesis.steps(),
        writes: world.outside.count_writes(),
    }
}

/// The work is shared evenly; where that takes many moves, it comes closer by one at least each [`A_MOVE`].
async fn even_out(world: &World) {
    let began = world.now();
    let before = world.moves_to_even();
    let worth_waiting_for = before.min(MOST_MOVES);
    let limit = EVEN_WITHIN.max(A_MOVE * u32::try_from(worth_waiting_for).unwrap_or(u32::MAX));
    wait(world, "the work is shared evenly, or more so", limit, |world| {
        world.is_even() || world.moves_to_even() + worth_waiting_for <= before
    })
    .await;
    tracing::info!(before, after = world.moves_to_even(), took = ?(world.now() - began), "evened out");
}

/// Whether a changefeed is where it ought to be: moving, or at its end.
fn runs(
    world: &World,
    processes: &BTreeMap<CaptureId, usize>,
    feed: ChangefeedUuid,
    since: Duration,
) -> bool {
    match world.state(feed) {
        Some(FeedState::Finished) => true,
        Some(state) => state.is_runnable() && world.moves_on(processes, feed, since),
        None => false,
    }
}

async fn wait(world: &World, what: &str, limit: Duration, mut holds: impl FnMut(&World) -> bool) -> Duration {
    let began = world.now();
    loop {
        world.check();
        if holds(world) {
            return world.now() - began;
        }
        assert!(world.now() - began < limit, "not within {limit:?}: {what}; {}\n{world:?}", replay());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
