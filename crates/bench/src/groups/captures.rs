//! The heartbeats of very many captures, one a second each, each on a connection of its own, in one process; against as
//! many bare one-row `UPDATE`s a second on as many connections.
//!
//! These are the heartbeats alone, whose number decides who lives: 5,000 *whole* captures would ask 10,000 polls a second
//! as well, which is half of what two cores answer if nothing else runs. Whole captures are the group `idle`.

use std::time::Duration;

use anyhow::Result;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};

use super::heartbeat::{BareHeart, Heart};
use super::{Run, grouped};
use crate::bed::{Bed, Target};
use crate::figure::{number, size};
use crate::measure::{Lanes, Paced};

/// The runtime's own limit of one heartbeat.
const LATE: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_secs(1);
/// How many connections are opened at a time.
const AT_ONCE: usize = 16;

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    for count in run.scale.captures.clone() {
        run.say(format!("opening {} heartbeat connections", grouped(count)));
        let bed = run.target.bed().await?;
        let hearts = open(&bed, count).await?;
        bed.copy_tables(&["capture"]).await?;
        let terms: Vec<_> = hearts.iter().map(|heart| heart.term).collect();
        let mut ours = Lanes::new(hearts, |heart: &mut Heart| heart.beat().boxed());
        // The first statement of a connection is prepared; that is not an idle capture's life. Ours beat before the others are
        // opened: a server ends a channel that is silent for a minute, as no capture's is.
        ours.paced(EVERY, EVERY).await?;
        let bare: Vec<_> = stream::iter(terms.into_iter().map(|term| BareHeart::new(&bed, term)))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let mut bare = Lanes::new(bare, |heart: &mut BareHeart| heart.beat().boxed());
        bare.paced(EVERY, EVERY).await?;
        run.say(format!("{} captures beat once a second", grouped(count)));
        let half = run.scale.watch / 2;
        let (mut mine, mut theirs) = (Watched::default(), Watched::default());
        for _ in 0..2 {
            let before = Reading::take(run.target).await?;
            let paced = ours.paced(EVERY, half).await?;
            mine.add(&paced, &before.until_now(run.target).await?);
            let before = Reading::take(run.target).await?;
            let paced = bare.paced(EVERY, half / 3).await?;
            theirs.add(&paced, &before.until_now(run.target).await?);
        }
        let name = format!("captures_{count}");
        run.add(&name, mine.rate(), "heartbeats a second", Some(theirs.rate()));
        run.add(format!("{name}_late"), mine.late(), "% later than 1 s", Some(theirs.late()));
        run.add(format!("{name}_conflicts"), size(mine.failures), "refused or failed", None);
        if let Some(statements) = mine.statements {
            let each = statements / (size(count) * mine.took.as_secs_f64());
            run.add(format!("{name}_statements"), each, "a capture and second", None);
        }
        if let Some(cores) = mine.cores() {
            run.add(format!("{name}_cpu"), cores, "cores of the server", theirs.cores());
        }
        drop((ours, bare));
        bed.remove().await?;
    }
    Ok(())
}

/// Registers captures and opens their channels, a few at a time.
async fn open(bed: &Bed, count: usize) -> Result<Vec<Heart>> {
    let store = bed.store().await?;
    let hearts = stream::iter((0..count).map(|_| Heart::register(&*store)));
    hearts.buffer_unordered(AT_ONCE).try_collect().await
}

/// The server's counters at a moment.
pub struct Reading {
    statements: Option<f64>,
    time: Option<Duration>,
}

impl Reading {
    /// Reads them.
    pub async fn take(target: &Target) -> Result<Self> {
        Ok(Self { statements: target.statements().await?, time: target.server_time() })
    }

    /// How much they grew.
    pub async fn until_now(self, target: &Target) -> Result<Self> {
        let time = target.server_time();
        let statements = target.statements().await?;
        Ok(Self {
            statements: self.statements.zip(statements).map(|(before, now)| now - before),
            time: self.time.zip(time).map(|(before, now)| now.saturating_sub(before)),
        })
    }

    /// Statements that clients sent.
    pub fn statements(&self) -> Option<f64> {
        self.statements
    }

    /// Processor time of the server.
    pub fn time(&self) -> Option<Duration> {
        self.time
    }
}

/// What came of several paced turns.
#[derive(Default)]
struct Watched {
    done: usize,
    late: f64,
    failures: usize,
    took: Duration,
    statements: Option<f64>,
    time: Option<Duration>,
}

impl Watched {
    fn add(&mut self, paced: &Paced, grown: &Reading) {
        self.done += paced.waits.len();
        self.late += paced.late(LATE);
        self.failures += paced.failures.len();
        self.took += paced.took;
        self.statements = grown.statements.map(|more| self.statements.unwrap_or(0.0) + more);
        self.time = grown.time.map(|more| self.time.unwrap_or_default() + more);
    }

    fn rate(&self) -> f64 {
        size(self.done) / self.took.as_secs_f64()
    }

    /// In percent.
    fn late(&self) -> f64 {
        100.0 * self.late / number(self.done.max(1) as u64)
    }

    fn cores(&self) -> Option<f64> {
        self.time.map(|time| time.as_secs_f64() / self.took.as_secs_f64())
    }
}
