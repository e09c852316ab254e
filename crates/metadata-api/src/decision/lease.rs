//! Time: the knobs and their rules, and when somebody may be judged dead.
//!
//! Nothing here reads a clock. Each observer passes in moments of its own `CLOCK_BOOTTIME` and the sequence
//! numbers it has seen; a number that stands still for long enough *on the observer's own clock* is stale.
//! Being judged stale never decides anything by itself: a transaction that checks the judged number under
//! a row lock does (invariant I1).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{BootTime, CaptureBeat, CaptureId, CaptureState, ElectionRecord};
use crate::{MetadataError, Result};

/// How long after the deadline a flush that was admitted before it may still be under way.
pub const FLUSH_GRACE: Duration = Duration::from_secs(2);

/// The time knobs. [`TimePolicy::default`] is the design's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimePolicy {
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// The limit of one heartbeat call; past it the connection is closed and the outcome unknown.
    pub heartbeat_timeout: Duration,
    /// Between two watch polls.
    pub poll_interval: Duration,
    /// How long after a successful heartbeat *was sent* the capture may act.
    pub deadline: Duration,
    /// How long a challenger must have seen the same lease sequence.
    pub controller_lease: Duration,
    /// How long the controller must have seen the same heartbeat sequence before it seals a capture ("R").
    pub offline_after: Duration,
    /// The limit of one statement, and of one lock wait.
    pub statement_timeout: Duration,
    /// A longer pause between two of the observer's own successful heartbeats is a gap: nobody is judged
    /// through it.
    pub own_gap: Duration,
    /// When more than half of 5 or more captures go stale together, how much longer the controller waits.
    pub mass_failure_wait: Duration,
}

impl Default for TimePolicy {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(1),
            poll_interval: Duration::from_millis(500),
            deadline: Duration::from_secs(10),
            controller_lease: Duration::from_secs(12),
            offline_after: Duration::from_secs(15),
            statement_timeout: Duration::from_secs(2),
            own_gap: Duration::from_secs(3),
            mass_failure_wait: Duration::from_secs(60),
        }
    }
}

impl TimePolicy {
    /// The shortest controller lease that is accepted.
    pub const MIN_CONTROLLER_LEASE: Duration = Duration::from_secs(4);

    /// Checks every rule between the knobs.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] with the knob that breaks a rule, and the rule.
    pub fn validate(&self) -> Result<()> {
        let rules: [(bool, &'static str, String); 7] = [
            (
                !self.heartbeat_interval.is_zero() && !self.poll_interval.is_zero(),
                "heartbeat_interval",
                "it and poll_interval must be longer than 0".into(),
            ),
            (
                (self.heartbeat_interval + self.heartbeat_timeout) * 2 <= self.deadline,
                "deadline",
                format!(
                    "{:?} must be at least twice heartbeat_interval + heartbeat_timeout ({:?}), so that one lost \
                     heartbeat fences nobody",
                    self.deadline,
                    (self.heartbeat_interval + self.heartbeat_timeout) * 2
                ),
            ),
            (
                self.offline_after * 2 >= self.deadline * 3,
                "offline_after",
                format!(
                    "{:?} must be at least 1.5 x deadline ({:?}): a capture must have fenced itself well before \
                     its work runs elsewhere",
                    self.offline_after,
                    self.deadline * 3 / 2
                ),
            ),
            (
                self.offline_after > self.deadline + FLUSH_GRACE,
                "offline_after",
                format!(
                    "{:?} must be longer than deadline + {FLUSH_GRACE:?} ({:?}): a flush admitted just before the \
                     deadline must have ended",
                    self.offline_after,
                    self.deadline + FLUSH_GRACE
                ),
            ),
            (
                self.controller_lease >= Self::MIN_CONTROLLER_LEASE,
                "controller_lease",
                format!("{:?} must be at least {:?}", self.controller_lease, Self::MIN_CONTROLLER_LEASE),
            ),
            (
                self.statement_timeout < self.controller_lease,
                "statement_timeout",
                format!(
                    "{:?} must be below controller_lease {:?}",
                    self.statement_timeout, self.controller_lease
                ),
            ),
            (
                self.own_gap >= self.heartbeat_interval + self.heartbeat_timeout
                    && self.own_gap < self.offline_after,
                "own_gap",
                format!(
                    "{:?} must be at least heartbeat_interval + heartbeat_timeout and below offline_after",
                    self.own_gap
                ),
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, field, reason)) => Err(MetadataError::InvalidArgument { field, reason }),
            None => Ok(()),
        }
    }
}

/// Until when a capture may act whose last heartbeat that succeeded was *sent* at `beat_sent_at`, and whose last complete look
/// at its orders *began* at `look_began_at`: a capture that beats but does not see its orders must not live on.
///
/// Never from when an answer arrived: whoever judges this capture saw the heartbeat before that, and a process may be
/// suspended between the two for as long as anybody likes.
pub fn acting_until(beat_sent_at: BootTime, look_began_at: BootTime, policy: &TimePolicy) -> BootTime {
    beat_sent_at.min(look_began_at) + policy.deadline
}

/// What a capture has seen of the election and of its own row.
#[derive(Clone, Copy, Debug)]
pub struct ElectionView {
    /// The election row.
    pub record: ElectionRecord,
    /// Since when its lease stands still.
    pub lease: LeaseWatch,
    /// The capture's own state; `None` = it has no row.
    pub own_state: Option<CaptureState>,
}

/// Whether the capture `me` may campaign now on what it has `seen`: the lease is vacant or has stood still for its whole length,
/// or names `me` although it does not lead (its own COMMIT, whose answer was lost).
///
/// Who drains does not; who resigned last lets the others go first, for three heartbeats.
pub fn may_campaign(me: CaptureId, seen: &ElectionView, now: BootTime, policy: &TimePolicy) -> bool {
    if seen.own_state != Some(CaptureState::Alive) {
        return false;
    }
    if seen.record.leader.is_none() && seen.record.cooldown == Some(me) {
        let patience = policy.heartbeat_interval * 3;
        return seen.lease.expires_at(policy).is_some_and(|since| now >= since + patience);
    }
    seen.record.leader == Some(me) || seen.lease.may_campaign(now, policy)
}

/// A value and since when the observer has seen it stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Standing<T> {
    /// The value.
    pub value: T,
    /// Since when, on the observer's own clock.
    pub since: BootTime,
}

/// Leader, epoch and lease sequence, and since when they stand still.
pub type LeaseReading = Standing<(Option<CaptureId>, u64, u64)>;

/// A challenger's view of the controller's lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaseWatch {
    seen: Option<LeaseReading>,
}

impl LeaseWatch {
    /// The last reading; `None` before any.
    pub fn standing(&self) -> Option<LeaseReading> {
        self.seen
    }

    /// Takes in a reading that was *asked for* at `asked_at`.
    pub fn observe(&mut self, asked_at: BootTime, record: &ElectionRecord) {
        let value = (record.leader, record.epoch.0, record.lease_seq);
        if self.seen.is_none_or(|seen| seen.value != value) {
            self.seen = Some(Standing { value, since: asked_at });
        }
    }

    /// When the lease that was last seen runs out, by the observer's own clock; `None` before any reading.
    pub fn expires_at(&self, policy: &TimePolicy) -> Option<BootTime> {
        let seen = self.seen?;
        seen.value.0.map(|_| seen.since + policy.controller_lease).or(Some(seen.since))
    }

    /// The controller of the last reading, while its lease is still valid at `now`.
    pub fn valid_leader(&self, now: BootTime, policy: &TimePolicy) -> Option<CaptureId> {
        let seen = self.seen?;
        (now < seen.since + policy.controller_lease).then_some(seen.value.0).flatten()
    }

    /// The reading of a controller that had missed its renewals, by a look that was asked for at `looked_at`, for as long as a gap in
    /// this capture's own heartbeats would be: it may be dead, and others with it. Whoever may be elected then looks at everybody's
    /// number, so that it need not begin to count their silence when it is. One look will do: a number only grows, so one that is the
    /// same at the election has stood still in between. `None` once the lease has run out: who is elected looks anyway.
    pub fn silent(&self, looked_at: BootTime, policy: &TimePolicy) -> Option<LeaseReading> {
        let silence = |seen: &LeaseReading| looked_at.since(seen.since);
        self.seen.filter(|seen| {
            seen.value.0.is_some()
                && silence(seen) >= policy.own_gap
                && silence(seen) < policy.controller_lease
        })
    }

    /// Whether the lease is vacant or has stood still for its whole length.
    pub fn may_campaign(&self, now: BootTime, policy: &TimePolicy) -> bool {
        self.expires_at(policy).is_some_and(|expires| now >= expires)
    }
}

/// The observer's own successful heartbeats, as the measure of whether it could have seen anybody else's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnBeats {
    last: Option<BootTime>,
    /// Since when they have gone on without a gap.
    since: Option<BootTime>,
    /// Whether a gap was before that.
    after_gap: bool,
}

impl OwnBeats {
    /// Takes in a heartbeat of the observer's own that was sent at `sent_at` and succeeded.
    pub fn succeeded(&mut self, sent_at: BootTime, policy: &TimePolicy) {
        let gap = self.last.is_some_and(|last| sent_at.since(last) > policy.own_gap);
        if gap || self.last.is_none() {
            self.since = Some(sent_at);
            self.after_gap = gap;
        }
        self.last = Some(sent_at);
    }

    /// When the last one was sent; `None` before the first.
    pub fn last(&self) -> Option<BootTime> {
        self.last
    }

    /// Whether a gap was before the present run of them.
    pub fn came_after_gap(&self) -> bool {
        self.after_gap
    }

    /// Since when they have gone on without a gap; `None` before the first.
    pub fn unbroken_since(&self) -> Option<BootTime> {
        self.since
    }

    /// The earliest moment at which a number that stands still since `since` may be judged stale, or `None`
    /// while the observer itself is in a gap.
    fn judged_at(&self, since: BootTime, now: BootTime, policy: &TimePolicy) -> Option<BootTime> {
        let (last, began) = (self.last?, self.since?);
        if now.since(last) > policy.own_gap {
            return None;
        }
        let own = if self.after_gap { policy.offline_after * 2 } else { policy.offline_after };
        Some((since + policy.offline_after).max(began + own))
    }
}

/// The controller's view of everybody's heartbeats.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct OfflineJudge {
    seen: BTreeMap<CaptureId, Standing<u64>>,
    /// Since when more than half of the captures have been stale together.
    mass_failure_since: Option<BootTime>,
}

/// What [`OfflineJudge::judge`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Who may be sealed, with the heartbeat sequence that was judged.
    pub stale: Vec<(CaptureId, u64)>,
    /// More than half of 5 or more captures are stale together, and the extra wait is not over.
    pub mass_failure: bool,
    /// When the next capture will be stale if its number goes on standing still.
    pub next_at: Option<BootTime>,
}

impl OfflineJudge {
    /// Every capture's number as last seen, and since when it stands still; ordered by id.
    pub fn standing(&self) -> impl Iterator<Item = (CaptureId, Standing<u64>)> + '_ {
        self.seen.iter().map(|(id, seen)| (*id, *seen))
    }

    /// Since when more than half of the captures have been stale together, if they are.
    pub fn mass_failure_since(&self) -> Option<BootTime> {
        self.mass_failure_since
    }

    /// Takes in one capture's number, in a reading that was *answered* at `answered_at`.
    ///
    /// Not when it was asked for: the heartbeat that it shows may have been sent while the question was on its way, and its
    /// capture acts until the deadline, and flushes for the grace, counted from then.
    pub fn observe_one(&mut self, answered_at: BootTime, capture: CaptureId, heartbeat_seq: u64) {
        match self.seen.get_mut(&capture) {
            Some(seen) if seen.value == heartbeat_seq => {}
            Some(seen) => *seen = Standing { value: heartbeat_seq, since: answered_at },
            None => {
                self.seen.insert(capture, Standing { value: heartbeat_seq, since: answered_at });
            }
        }
    }

    /// Takes in a scan of all captures that was *answered* at `answered_at`; forgets who is not in it, or sealed.
    pub fn observe(&mut self, answered_at: BootTime, beats: &[CaptureBeat]) {
        let live: BTreeMap<CaptureId, u64> = beats
            .iter()
            .filter(|beat| beat.state != CaptureState::Offline)
            .map(|beat| (beat.id, beat.heartbeat_seq))
            .collect();
        self.seen.retain(|id, _| live.contains_key(id));
        for (id, seq) in live {
            self.observe_one(answered_at, id, seq);
        }
    }

    /// Forgets everybody but `kept`.
    pub fn forget_but(&mut self, kept: Option<CaptureId>) {
        self.seen.retain(|capture, _| Some(*capture) == kept);
        self.mass_failure_since = None;
    }

    /// Who may be sealed at `now`, by an observer with these heartbeats of its own.
    pub fn judge(&mut self, now: BootTime, own: &OwnBeats, policy: &TimePolicy) -> Judgement {
        let mut judgement = Judgement::default();
        for (id, seen) in &self.seen {
            match own.judged_at(seen.since, now, policy) {
                Some(due) if due <= now => judgement.stale.push((*id, seen.value)),
                Some(due) => {
                    judgement.next_at = Some(judgement.next_at.map_or(due, |next| next.min(due)));
                }
                None => {}
            }
        }
        let total = self.seen.len();
        if total >= 5 && judgement.stale.len() * 2 > total {
            let since = *self.mass_failure_since.get_or_insert(now);
            let over_at = since + policy.mass_failure_wait;
            if now < over_at {
                judgement.mass_failure = true;
                judgement.stale.clear();
                judgement.next_at = Some(judgement.next_at.map_or(over_at, |next| next.min(over_at)));
            }
        } else {
            self.mass_failure_since = None;
        }
        judgement
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::model::{ControllerEpoch, Version};

    fn at(ms: u64) -> BootTime {
        BootTime::from_boot(Duration::from_millis(ms))
    }

    fn capture(n: u128) -> CaptureId {
        CaptureId(Uuid::from_u128(n))
    }

    fn record(lease_seq: u64) -> ElectionRecord {
        ElectionRecord {
            leader: Some(capture(1)),
            epoch: ControllerEpoch(1),
            lease_seq,
            cooldown: None,
            version: Version(1),
        }
    }

    /// A silence is what answered polls have seen; it begins after a gap, ends with the lease, and is another after each renewal.
    #[test]
    fn a_controller_is_silent_from_a_gap_until_its_lease_runs_out() {
        let policy = TimePolicy::default();
        let mut watch = LeaseWatch::default();
        assert_eq!(watch.silent(at(60_000), &policy), None);
        watch.observe(at(1_000), &record(1));
        assert_eq!(watch.silent(at(3_999), &policy), None);
        let first = watch.silent(at(4_000), &policy);
        assert!(first.is_some() && watch.silent(at(12_999), &policy) == first);
        assert_eq!(watch.silent(at(13_000), &policy), None, "whoever is elected now looks anyway");
        watch.observe(at(5_000), &record(2));
        assert_eq!(watch.silent(at(5_000), &policy), None);
        let second = watch.silent(at(8_000), &policy);
        assert!(second.is_some() && second != first);
        watch.observe(at(9_000), &ElectionRecord { leader: None, ..record(2) });
        assert_eq!(watch.silent(at(15_000), &policy), None, "nobody is in office");
    }

    /// Two looks far apart judge as many would: who beat in between is not stale, who did not is, from the first look on.
    #[test]
    fn two_looks_far_apart_are_enough() {
        let policy = TimePolicy::default();
        let mut own = OwnBeats::default();
        (0..30).for_each(|second| own.succeeded(at(second * 1_000), &policy));
        let beat =
            |id, heartbeat_seq| CaptureBeat { id: capture(id), state: CaptureState::Alive, heartbeat_seq };
        let mut judge = OfflineJudge::default();
        judge.observe(at(10_000), &[beat(2, 5), beat(3, 5)]);
        judge.observe(at(24_999), &[beat(2, 5), beat(3, 6)]);
        assert_eq!(judge.judge(at(24_999), &own, &policy).stale, []);
        assert_eq!(judge.judge(at(25_000), &own, &policy).stale, [(capture(2), 5)]);
    }

    #[test]
    fn the_default_policy_is_the_designs_and_keeps_its_rules() {
        let policy = TimePolicy::default();
        policy.validate().unwrap();
        assert_eq!(policy.controller_lease, Duration::from_secs(10 + 1 + 1));
        assert_eq!(policy.deadline, Duration::from_secs(10));
    }

    #[test]
    fn each_broken_rule_is_named() {
        let good = TimePolicy::default();
        let s = Duration::from_secs;
        for (policy, field) in [
            (TimePolicy { heartbeat_interval: s(0), ..good }, "heartbeat_interval"),
            (TimePolicy { heartbeat_interval: s(9), ..good }, "deadline"),
            (TimePolicy { offline_after: s(14), ..good }, "offline_after"),
            (TimePolicy { deadline: s(4), offline_after: s(6), own_gap: s(3), ..good }, "offline_after"),
            (TimePolicy { controller_lease: s(3), ..good }, "controller_lease"),
            (TimePolicy { statement_timeout: s(12), ..good }, "statement_timeout"),
            (TimePolicy { own_gap: s(1), ..good }, "own_gap"),
        ] {
            match policy.validate() {
                Err(MetadataError::InvalidArgument { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{policy:?} gave {other:?}"),
            }
        }
    }

    #[test]
    fn a_vacant_lease_may_be_taken_at_once_and_a_held_one_after_its_whole_length() {
        let policy = TimePolicy::default();
        let mut watch = LeaseWatch::default();
        assert!(!watch.may_campaign(at(99_000), &policy), "nothing was read yet");
        watch.observe(at(1_000), &ElectionRecord { leader: None, ..record(0) });
        assert!(watch.may_campaign(at(1_000), &policy));
        watch.observe(at(2_000), &record(1));
        watch.observe(at(9_000), &record(1));
        assert!(!watch.may_campaign(at(13_999), &policy));
        assert_eq!(watch.valid_leader(at(13_999), &policy), Some(capture(1)));
        assert!(watch.may_campaign(at(14_000), &policy));
        assert_eq!(watch.valid_leader(at(14_000), &policy), None);
        watch.observe(at(14_000), &record(2));
        assert!(!watch.may_campaign(at(14_001), &policy));
    }

    #[test]
    fn nobody_is_judged_through_an_outage_and_a_controller_waits_2r_after_it() {
        let policy = TimePolicy::default();
        let (mut judge, mut own) = (OfflineJudge::default(), OwnBeats::default());
        judge.observe_one(at(0), capture(1), 7);
        for ms in (0..=10_000).step_by(1_000) {
            own.succeeded(at(ms), &policy);
        }
        // The database is away from 10 s to 40 s: no heartbeat of its own.
        assert!(judge.judge(at(20_000), &own, &policy).stale.is_empty());
        for ms in (40_000..=70_000).step_by(1_000) {
            own.succeeded(at(ms), &policy);
            let expected = ms >= 70_000;
            assert_eq!(!judge.judge(at(ms), &own, &policy).stale.is_empty(), expected, "at {ms}");
        }
    }

    #[test]
    fn nobody_is_judged_before_the_observer_has_beaten_for_r() {
        let policy = TimePolicy::default();
        let (mut judge, mut own) = (OfflineJudge::default(), OwnBeats::default());
        judge.observe_one(at(0), capture(1), 7);
        // It reads from the beginning; its first own heartbeat succeeds at 10 s.
        for ms in (10_000..=25_000).step_by(1_000) {
            own.succeeded(at(ms), &policy);
            let stale = !judge.judge(at(ms), &own, &policy).stale.is_empty();
            assert_eq!(stale, ms == 25_000, "at {ms}");
        }
        assert_eq!(own.unbroken_since(), Some(at(10_000)));
    }

    #[test]
    fn a_mass_failure_waits_and_then_goes_on() {
        let policy = TimePolicy::default();
        let (mut judge, mut own) = (OfflineJudge::default(), OwnBeats::default());
        for n in 0..6 {
            judge.observe_one(at(0), capture(n), 1);
        }
        let mut sealed_at = None;
        for ms in (0..=100_000_u64).step_by(1_000) {
            own.succeeded(at(ms), &policy);
            for n in 0..2 {
                judge.observe_one(at(ms), capture(n), ms);
            }
            let judgement = judge.judge(at(ms), &own, &policy);
            assert_eq!(judgement.mass_failure, (15_000..75_000).contains(&ms), "at {ms}");
            if !judgement.stale.is_empty() && sealed_at.is_none() {
                assert_eq!(judgement.stale.len(), 4);
                sealed_at = Some(ms);
            }
        }
        assert_eq!(sealed_at, Some(75_000));
    }

    proptest! {
        /// Whatever the schedule of readings: who beat within the last R is never judged stale, and who has been
        /// silent for R, watched without a gap, always is.
        #[test]
        fn stale_means_silent_for_r(beats in prop::collection::vec(1..40_u64, 1..30), silent_s in 0..40_u64) {
            let policy = TimePolicy::default();
            let (mut judge, mut own) = (OfflineJudge::default(), OwnBeats::default());
            let (mut now, mut seq) = (0, 0);
            let target = capture(9);
            for gap in beats {
                for _ in 0..gap.min(14) {
                    now += 1_000;
                    own.succeeded(at(now), &policy);
                    judge.observe_one(at(now), target, seq);
                    prop_assert!(judge.judge(at(now), &own, &policy).stale.is_empty());
                }
                seq += 1;
                judge.observe_one(at(now), target, seq);
            }
            for s in 1..=silent_s {
                own.succeeded(at(now + s * 1_000), &policy);
                judge.observe_one(at(now + s * 1_000), target, seq);
                let stale = !judge.judge(at(now + s * 1_000), &own, &policy).stale.is_empty();
                prop_assert_eq!(stale, s >= 15);
            }
        }
    }
}
