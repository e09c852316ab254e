//! How things are measured: the store and its baseline take turns, so that a noisy machine is noisy for both.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::figure::{median, number, size};

/// A value of ours beside the baseline's.
#[derive(Clone, Copy, Debug)]
pub struct Versus {
    /// The median of the store's turns.
    pub value: f64,
    /// The median of the baseline's.
    pub baseline: f64,
}

impl Versus {
    /// The medians of turns that were taken in turns.
    pub fn of(ours: &[f64], bare: &[f64]) -> Self {
        Self { value: median(ours), baseline: median(bare) }
    }
}

/// Something that is done over and over, on several connections side by side.
pub struct Lanes<L, F> {
    lanes: Vec<L>,
    op: F,
}

impl<L, F> Lanes<L, F>
where
    L: Send + 'static,
    F: for<'a> Fn(&'a mut L) -> BoxFuture<'a, Result<()>> + Clone + Send + 'static,
{
    /// One lane a connection, and what each of them does.
    pub fn new(lanes: Vec<L>, op: F) -> Self {
        Self { lanes, op }
    }

    /// The lanes, for another use.
    pub fn into_lanes(self) -> Vec<L> {
        self.lanes
    }

    /// Does it for `turn`; how often a second, over all lanes.
    pub async fn rate(&mut self, turn: Duration) -> Result<f64> {
        let started = Instant::now();
        let until = started + turn;
        let mut tasks = JoinSet::new();
        for mut lane in self.lanes.drain(..) {
            let op = self.op.clone();
            tasks.spawn(async move {
                let mut done = 0_u64;
                while Instant::now() < until {
                    op(&mut lane).await?;
                    done += 1;
                }
                Ok::<_, anyhow::Error>((lane, done))
            });
        }
        let mut done = 0;
        while let Some(ended) = tasks.join_next().await {
            let (lane, count) = ended??;
            self.lanes.push(lane);
            done += count;
        }
        Ok(number(done) / started.elapsed().as_secs_f64())
    }

    /// Does it once each `every` in each lane, for `turn`; the lanes spread over `every`. A failure is counted.
    pub async fn paced(&mut self, every: Duration, turn: Duration) -> Result<Paced> {
        let started = Instant::now() + Duration::from_millis(50);
        let lanes = u32::try_from(self.lanes.len())?.max(1);
        let mut tasks = JoinSet::new();
        for (n, mut lane) in (0..lanes).zip(self.lanes.drain(..)) {
            let op = self.op.clone();
            tasks.spawn(async move {
                let mut paced = Paced::default();
                let mut due = started + every * n / lanes;
                while due < started + turn {
                    sleep_until(due).await;
                    match op(&mut lane).await {
                        Ok(()) => paced.waits.push(due.elapsed()),
                        Err(error) => paced.failures.push(error),
                    }
                    due += every;
                }
                (lane, paced)
            });
        }
        let mut all = Paced::default();
        while let Some(ended) = tasks.join_next().await {
            let (lane, paced) = ended?;
            self.lanes.push(lane);
            all.waits.extend(paced.waits);
            all.failures.extend(paced.failures);
        }
        all.took = started.elapsed();
        Ok(all)
    }
}

/// What came of a paced turn.
#[derive(Debug, Default)]
pub struct Paced {
    /// From when each was due to when it was done.
    pub waits: Vec<Duration>,
    /// What failed.
    pub failures: Vec<anyhow::Error>,
    /// How long the turn took.
    pub took: Duration,
}

impl Paced {
    /// How many were done after more than `limit`.
    pub fn late(&self, limit: Duration) -> f64 {
        size(self.waits.iter().filter(|wait| **wait > limit).count())
    }
}

/// Both take turns, after a short one that is not counted.
pub async fn versus<L, F, M, G>(
    rounds: usize,
    turn: Duration,
    ours: &mut Lanes<L, F>,
    bare: &mut Lanes<M, G>,
) -> Result<Versus>
where
    L: Send + 'static,
    F: for<'a> Fn(&'a mut L) -> BoxFuture<'a, Result<()>> + Clone + Send + 'static,
    M: Send + 'static,
    G: for<'a> Fn(&'a mut M) -> BoxFuture<'a, Result<()>> + Clone + Send + 'static,
{
    ours.rate(turn / 4).await?;
    bare.rate(turn / 4).await?;
    let (mut values, mut baselines) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        values.push(ours.rate(turn).await?);
        baselines.push(bare.rate(turn).await?);
    }
    Ok(Versus::of(&values, &baselines))
}

/// Does `op` once with each of `items`, spread over the lanes; how many a second.
pub async fn spread<L, T, F>(lanes: &mut Vec<L>, items: Vec<T>, op: F) -> Result<f64>
where
    L: Send + 'static,
    T: Send + 'static,
    F: for<'a> Fn(&'a mut L, T) -> BoxFuture<'a, Result<()>> + Clone + Send + 'static,
{
    let count = items.len();
    let mut shares: Vec<Vec<T>> = lanes.iter().map(|_| Vec::new()).collect();
    let width = shares.len().max(1);
    for (n, item) in items.into_iter().enumerate() {
        if let Some(share) = shares.get_mut(n % width) {
            share.push(item);
        }
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (mut lane, share) in lanes.drain(..).zip(shares) {
        let op = op.clone();
        tasks.spawn(async move {
            for item in share {
                op(&mut lane, item).await?;
            }
            Ok::<_, anyhow::Error>(lane)
        });
    }
    while let Some(ended) = tasks.join_next().await {
        lanes.push(ended??);
    }
    Ok(size(count) / started.elapsed().as_secs_f64())
}

/// Times of day-long range, in microseconds.
pub fn times(waits: impl IntoIterator<Item = Duration>) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new(3)?;
    for wait in waits {
        histogram.record(u64::try_from(wait.as_micros())?)?;
    }
    Ok(histogram)
}

/// A quantile in milliseconds.
pub fn quantile_ms(times: &Histogram<u64>, quantile: f64) -> f64 {
    number(times.value_at_quantile(quantile)) / 1e3
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::time::sleep;

    use super::*;

    fn nap(lane: &mut Duration) -> BoxFuture<'_, Result<()>> {
        sleep(*lane).map(Ok).boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_counts_all_lanes() {
        let mut lanes = Lanes::new(vec![Duration::from_millis(10); 4], nap);
        for _ in 0..2 {
            let rate = lanes.rate(Duration::from_secs(1)).await.unwrap();
            assert!((rate - 400.0).abs() < 8.0, "the lanes come back: {rate}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_paced_is_late_when_it_is_done_late() {
        let mut lanes = Lanes::new(vec![Duration::from_millis(10), Duration::from_millis(1_500)], nap);
        let second = Duration::from_secs(1);
        let paced = lanes.paced(second, second * 4).await.unwrap();
        assert_eq!((paced.waits.len(), paced.failures.len()), (8, 0));
        // The slow lane's, each later than the one before.
        assert!((paced.late(second) - 4.0).abs() < 1e-9);
        assert!(paced.waits.iter().max().unwrap() > &(second * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_counted_and_the_pace_goes_on() {
        let mut lanes = Lanes::new(vec![(); 3], |(): &mut ()| async { Err(anyhow::anyhow!("no")) }.boxed());
        let paced = lanes.paced(Duration::from_secs(1), Duration::from_secs(2)).await.unwrap();
        assert_eq!(paced.failures.len(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn items_are_spread_over_the_lanes() {
        let mut lanes = vec![(); 5];
        let items = (0..50).collect();
        let rate = spread(&mut lanes, items, |(), _: u32| sleep(Duration::from_millis(10)).map(Ok).boxed());
        let rate = rate.await.unwrap();
        assert!((rate - 500.0).abs() < 20.0, "{rate}");
    }

    #[test]
    fn quantiles_are_in_milliseconds() {
        let times = times((1..=100).map(Duration::from_millis)).unwrap();
        assert!((quantile_ms(&times, 0.5) - 50.0).abs() < 0.2);
        assert!((quantile_ms(&times, 1.0) - 100.0).abs() < 0.2);
    }
}
