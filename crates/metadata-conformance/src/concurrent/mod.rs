//! Histories: random clients at once on one database, and whether what they were told can all be true.
//!
//! Controllers whose epochs rise (and that go on writing by those that are over), captures that beat, watch, own, are sealed
//! and go on writing, operators and a reader, each with a store of its own that loses some of its answers
//! (`clients`), write down what they do and are told ([`history`]); a pure function says what in that cannot have been
//! ([`check`](mod@check)).
//!
//! `CDC_HISTORY_SECONDS` (20 unless told otherwise) is how long they go on, `CDC_HISTORY_SEED` which choices they make; the
//! interleaving is the machine's.

pub mod check;
mod clients;
pub mod history;

use std::collections::BTreeMap;
use std::env;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;

use crate::harness::{Cluster, join_all};
use clients::World;
use history::{Call, Event, Fact, Outcome, Recorder, Row};

/// How long the clients go on.
pub(crate) fn duration() -> Duration {
    let seconds = env::var("CDC_HISTORY_SECONDS").map_or(20, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("CDC_HISTORY_SECONDS is `{text}`; it must be a number of seconds"))
    });
    Duration::from_secs(seconds)
}

fn seed() -> u64 {
    env::var("CDC_HISTORY_SEED").map_or_else(
        |_| rand::rng().random(),
        |text| text.parse().unwrap_or_else(|_| panic!("CDC_HISTORY_SEED is `{text}`; it must be a number")),
    )
}

/// What many clients are told at once can all be true.
pub async fn many_clients_make_a_lawful_history(c: &Cluster) {
    let seed = seed();
    println!("CDC_HISTORY_SEED={seed}");
    let recorder = Arc::new(Recorder::default());
    let world = Arc::new(World::new(Arc::clone(&recorder), seed, duration()));
    let mut tasks = Vec::new();
    for n in 0..3 {
        tasks.push(tokio::spawn(clients::controller(Arc::clone(&world), n, world.store(c, n).await)));
    }
    for n in 3..7 {
        tasks.push(tokio::spawn(clients::capture(Arc::clone(&world), n, world.store(c, n).await)));
    }
    for n in 7..9 {
        tasks.push(tokio::spawn(clients::operator(Arc::clone(&world), n, world.store(c, n).await)));
    }
    tasks.push(tokio::spawn(clients::reader(Arc::clone(&world), 9, world.store(c, 9).await)));
    join_all(tasks).await;
    let last = recorder.call(10, Call::Last, c.store.schedule_snapshot(), |snapshot| {
        let rows = snapshot.changefeeds.iter().map(|row| Fact::Saw(Row::from(&row.schedule)));
        rows.chain([Fact::Revision(snapshot.revision)]).collect()
    });
    last.await.expect("schedule_snapshot");
    let history = recorder.history();
    let violations = check::check(&history);
    let text: Vec<_> = violations.iter().take(10).map(ToString::to_string).collect();
    assert!(
        violations.is_empty(),
        "seed {seed}: {} violations in {} calls:\n{}",
        violations.len(),
        history.len(),
        text.join("\n")
    );
    assert_worth(&history);
}

/// A history of so many calls has some of each kind.
const WORTH: usize = 4_000;

/// That it was not peace that made it lawful. (On a machine that is busy with other things it may be short.)
fn assert_worth(history: &[Event]) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for event in history {
        let what = match (event.outcome, &event.call) {
            (Outcome::Unknown, _) => "of unknown outcome",
            (Outcome::Refused, Call::AsController(_) | Call::Take(..)) => "refused controllers",
            (Outcome::Refused, Call::AsOwner(_) | Call::Release(_)) => "refused owners",
            (Outcome::Refused, Call::Beat(_) | Call::Advance(..)) => "refused captures",
            (Outcome::Done, Call::Campaign(_)) => "elections",
            (Outcome::Done, Call::Take(..)) => "takes",
            (Outcome::Done, Call::Release(_)) => "releases",
            (Outcome::Done, Call::Advance(..)) => "progresses",
            (Outcome::Done, Call::Poll(..)) => "polls",
            (Outcome::Done, Call::AsController(_)) => "writes of controllers",
            _ => continue,
        };
        *counts.entry(what).or_default() += 1;
    }
    println!("{} calls: {counts:?}", history.len());
    assert!(counts.len() == 10 || history.len() < WORTH, "each kind happens: {counts:?}");
    assert!(history.len() > 100, "it is no history");
}
