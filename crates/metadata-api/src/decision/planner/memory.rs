//! What a controller remembers between plans, so that nothing moves too often.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, PlanPolicy, Step};
use crate::model::{BootTime, CaptureId, CaptureInfo, ChangefeedUuid, ScheduleSnapshot, ScheduleState};

/// What one controller remembers, on its own clock. Never stored: a new controller begins with nothing, takes every
/// capture for one that has just joined, and so moves nothing for the sake of balance for the first
/// [`capture_cooldown`](PlanPolicy::capture_cooldown).
#[derive(Clone, Debug, Default)]
pub struct PlanMemory {
    /// Every capture that was in the last snapshot.
    captures: BTreeMap<CaptureId, Seen>,
    /// When something joined at an address. A capture that is started again has another id.
    joins: BTreeMap<String, Vec<BootTime>>,
    /// When a changefeed last changed hands.
    moved: BTreeMap<ChangefeedUuid, BootTime>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Until then it is one that has just joined.
    calm_at: BootTime,
    flaps: bool,
    /// Its last heartbeat, and the first look that saw it.
    beat: u64,
    heard_at: BootTime,
    /// Whether its heart was seen to beat at all. The first number says nothing: who left it may be dead.
    beats: bool,
}

impl Seen {
    fn is_silent(&self, policy: &PlanPolicy, now: BootTime) -> bool {
        now.since(self.heard_at) >= policy.silent_after
    }
}

/// Who is left alone now.
#[derive(Clone, Debug, Default)]
pub(super) struct Calm {
    /// Captures that have just joined, or are silent: neither emptied nor filled for the sake of balance.
    pub unsettled: BTreeSet<CaptureId>,
    /// Those that have joined too often, or are silent: they get nothing while anybody else can have it.
    pub shunned: BTreeSet<CaptureId>,
    /// Changefeeds that have just moved.
    pub resting: BTreeSet<ChangefeedUuid>,
    /// When the first of them is to be left alone no longer.
    pub first_end: Option<BootTime>,
}

impl PlanMemory {
    /// Notes whose heartbeats were seen at `now`. The more often it is told, the sooner it knows who is silent.
    pub fn hear(&mut self, captures: &[CaptureInfo], now: BootTime) {
        for capture in captures {
            if let Some(seen) = self.captures.get_mut(&capture.id)
                && seen.beat != capture.heartbeat_seq
            {
                (seen.beat, seen.heard_at, seen.beats) = (capture.heartbeat_seq, now, true);
            }
        }
    }

    /// Whether this controller has seen the capture's heart beat, and not longer than
    /// [`silent_after`](PlanPolicy::silent_after) ago.
    pub fn is_heard(&self, capture: CaptureId, policy: &PlanPolicy, now: BootTime) -> bool {
        let seen = self.captures.get(&capture);
        seen.is_some_and(|seen| seen.beats && !seen.is_silent(policy, now))
    }

    /// Whether the capture may be made a processor: its heart was [heard](Self::is_heard), and it does not
    /// [flap](PlanPolicy::flaps), or its cool-down has passed.
    pub fn may_carry(&self, capture: CaptureId, policy: &PlanPolicy, now: BootTime) -> bool {
        let flaps = self.captures.get(&capture).is_some_and(|seen| seen.flaps && now < seen.calm_at);
        self.is_heard(capture, policy, now) && !flaps
    }

    /// Notes who has joined and who is gone.
    pub(super) fn look(&mut self, snapshot: &ScheduleSnapshot, policy: &PlanPolicy, now: BootTime) {
        let present: BTreeSet<_> = snapshot.captures.iter().map(|capture| capture.id).collect();
        self.hear(&snapshot.captures, now);
        self.captures.retain(|id, _| present.contains(id));
        self.joins.retain(|_, joins| {
            joins.retain(|at| now.since(*at) < policy.flap_window);
            !joins.is_empty()
        });
        self.moved.retain(|_, at| now.since(*at) < policy.feed_cooldown);
        for capture in &snapshot.captures {
            if self.captures.contains_key(&capture.id) {
                continue;
            }
            let joins = self.joins.entry(capture.advertise_addr.clone()).or_default();
            joins.push(now);
            // One that comes back once was restarted, which is nothing to wonder at.
            let before = u32::try_from(joins.len().saturating_sub(2)).unwrap_or(u32::MAX);
            let wait = policy
                .capture_cooldown
                .saturating_mul(2_u32.saturating_pow(before))
                .min(policy.capture_cooldown_max.max(policy.capture_cooldown));
            let flaps = joins.len() >= policy.flaps;
            let seen =
                Seen { calm_at: now + wait, flaps, beat: capture.heartbeat_seq, heard_at: now, beats: false };
            self.captures.insert(capture.id, seen);
        }
    }

    /// Notes what a plan moves. A changefeed that runs for the first time has not moved.
    pub(super) fn act(&mut self, snapshot: &ScheduleSnapshot, steps: &[Step], now: BootTime) {
        let launched = steps.iter().filter_map(|step| match step.action {
            Action::SetOwner(target) if target.state == ScheduleState::Launched => Some(target.changefeed),
            _ => None,
        });
        let launched: BTreeSet<_> = launched.collect();
        if launched.is_empty() {
            return;
        }
        for feed in snapshot.changefeeds.iter().filter(|feed| feed.schedule.epoch.0 > 0) {
            if launched.contains(&feed.schedule.changefeed) {
                self.moved.insert(feed.schedule.changefeed, now);
            }
        }
    }

    /// Who is left alone at `now`.
    pub(super) fn calm(&self, policy: &PlanPolicy, now: BootTime) -> Calm {
        let mut calm = Calm::default();
        let mut ends = Vec::new();
        for (id, seen) in &self.captures {
            let joined = now < seen.calm_at;
            let silent = seen.is_silent(policy, now);
            if joined || silent {
                calm.unsettled.insert(*id);
                // Who is silent may be heard at any time.
                ends.push(if silent { now + policy.silent_after } else { seen.calm_at });
            }
            if silent || (joined && seen.flaps) {
                calm.shunned.insert(*id);
            }
        }
        for (feed, at) in &self.moved {
            calm.resting.insert(*feed);
            ends.push(*at + policy.feed_cooldown);
        }
        calm.first_end = ends.into_iter().min();
        calm
    }
}
