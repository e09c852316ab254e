//! The idle watch poll: with very many changefeeds in the cluster it costs what it costs with 10. And what it costs,
//! against a bare `SELECT` by key.

use anyhow::Result;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use metadata_api::model::{CaptureId, CaptureTerm};
use metadata_api::store::{PollCursor, WatchChannel};

use super::{Run, grouped};
use crate::bed::Bed;
use crate::measure::{Lanes, versus};
use crate::raw::Raw;
use crate::seed::seed;

/// How many changefeeds the polling capture has, in the large cluster as in the small one.
const OWN: usize = 10;

struct Poller {
    channel: Box<dyn WatchChannel>,
    term: CaptureTerm,
    cursor: PollCursor,
}

impl Poller {
    async fn open(bed: &Bed, capture: CaptureId) -> Result<Self> {
        let term = CaptureTerm { capture };
        let mut channel = bed.store().await?.watch_channel().await?;
        let zero = PollCursor::after(metadata_api::model::Revision(0));
        let answer = channel.poll(term, &zero).await?;
        anyhow::ensure!(answer.owned == OWN as u64, "the capture has {} changefeeds", answer.owned);
        Ok(Self { channel, term, cursor: PollCursor::after(answer.revision) })
    }

    async fn poll(&mut self) -> Result<()> {
        let answer = self.channel.poll(self.term, &self.cursor).await?;
        anyhow::ensure!(answer.schedules.is_empty(), "there is nothing new");
        Ok(())
    }
}

fn poll(poller: &mut Poller) -> BoxFuture<'_, Result<()>> {
    poller.poll().boxed()
}

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    let count = run.scale.many;
    run.say(format!("seeding {} changefeeds", grouped(count)));
    let captures: Vec<_> = (0..run.scale.many_captures).map(|_| CaptureId::random()).collect();
    let Some((me, others)) = captures.split_first() else { return Ok(()) };
    let owner = |n: usize| if n < OWN { Some(*me) } else { others.get(n % others.len()).copied() };
    let (small, large) = (run.target.bed().await?, run.target.bed().await?);
    seed(&small, OWN, owner).await?;
    seed(&large, count, owner).await?;
    run.say(format!("polling with 10 and with {} changefeeds", grouped(count)));
    let mut with_few = Lanes::new(vec![Poller::open(&small, *me).await?], poll);
    let mut with_many = Lanes::new(vec![Poller::open(&large, *me).await?], poll);
    let mut bare = Lanes::new(vec![small.raw().await?], |raw: &mut Raw| {
        async move { raw.prepared("SELECT * FROM fence WHERE id = 1", &[]).await.map(drop) }.boxed()
    });
    let (rounds, turn) = (run.scale.rounds, run.scale.turn);
    let against_few = versus(rounds, turn, &mut with_many, &mut with_few).await?;
    let against_bare = versus(rounds, turn, &mut with_few, &mut bare).await?;
    let unit = "polls a second";
    run.add(format!("poll_{count}_against_10"), against_few.value, unit, Some(against_few.baseline));
    run.add("poll_10", against_bare.value, unit, Some(against_bare.baseline));
    drop((with_few, with_many, bare));
    small.remove().await?;
    large.remove().await
}
