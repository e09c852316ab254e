//! When a changefeed that fails is tried again, and when no more: as `TiCDC`'s feed state manager does.
//!
//! The first pause is 10 s, each further one twice as long, up to 10 min. Progress makes it start anew. Who fails again and
//! again without any progress for the changefeed's `changefeed_error_stuck_duration` is given up.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use metadata_api::model::{BootTime, Ts};

/// The first and the longest pause before a failed changefeed is tried again.
const RETRY_FROM: Duration = Duration::from_secs(10);
const RETRY_TO: Duration = Duration::from_mins(10);

/// What becomes of a changefeed that has just failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is tried again after this long.
    RetryIn(Duration),
    /// It has failed for this long without progress: only an operator can mend it.
    GiveUp(Duration),
}

/// A changefeed that failed and has not moved since.
#[derive(Debug)]
pub(super) struct Failing {
    since: BootTime,
    checkpoint: Ts,
    backoff: ExponentialBackoff,
}

impl Failing {
    /// A changefeed's first failure, with its checkpoint then.
    pub(super) fn new(now: BootTime, checkpoint: Ts) -> Self {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(RETRY_FROM)
            .with_max_delay(RETRY_TO)
            .without_max_times()
            .build();
        Self { since: now, checkpoint, backoff }
    }

    /// Whether what stands at `checkpoint` has moved since it began to fail.
    pub(super) fn is_over(&self, checkpoint: Ts) -> bool {
        checkpoint > self.checkpoint
    }

    /// What to do about a failure.
    pub(super) fn verdict(&mut self, now: BootTime, give_up_after: Duration) -> Verdict {
        let lasts = now.since(self.since);
        if lasts >= give_up_after {
            return Verdict::GiveUp(lasts);
        }
        Verdict::RetryIn(self.backoff.next().unwrap_or(RETRY_TO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_ten_minutes_until_it_is_given_up() {
        let limit = Duration::from_mins(30);
        let mut failing = Failing::new(BootTime::default(), Ts(5));
        let (mut now, mut pauses) = (BootTime::default(), Vec::new());
        loop {
            match failing.verdict(now, limit) {
                Verdict::RetryIn(pause) => {
                    pauses.push(pause.as_secs());
                    now = now + pause;
                }
                Verdict::GiveUp(lasted) => {
                    assert!(lasted >= limit && lasted < limit + RETRY_TO, "{lasted:?}");
                    break;
                }
            }
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 600, 600]);
        assert!(!failing.is_over(Ts(5)) && failing.is_over(Ts(6)));
    }

    #[test]
    fn nothing_is_tried_again_without_patience() {
        let mut failing = Failing::new(BootTime::default(), Ts(0));
        assert_eq!(failing.verdict(BootTime::default(), Duration::ZERO), Verdict::GiveUp(Duration::ZERO));
    }
}
