//! What is decided, as a table of functions: [`Decisions::production`] is the code that production runs, and each mutant of
//! [`MUTANTS`] replaces one entry of it. Nothing outside this crate can name a mutant.

use std::fmt;
use std::time::Duration;

use capture_runtime::admission::{NotAdmitted, refusal};
use capture_runtime::launches::{Entry, LaunchStep, Situation, next_step};
use metadata_api::decision::lease::{self, ElectionView, Judgement, OfflineJudge, OwnBeats, TimePolicy};
use metadata_api::decision::planner::{Action, PlanPolicy, plan};
use metadata_api::model::{
    BootTime, CaptureId, ChangefeedProgress, ChangefeedSchedule, OwnerTerm, ScheduleSnapshot, ScheduleState,
};

/// One second, the model's unit of time.
pub const TICK: Duration = Duration::from_secs(1);

/// The time knobs of the model: those of the design, scaled down as far as [`TimePolicy::validate`] allows. Everybody beats once
/// in each tick.
pub const POLICY: TimePolicy = TimePolicy {
    heartbeat_interval: Duration::from_millis(750),
    heartbeat_timeout: Duration::from_millis(750),
    poll_interval: TICK,
    deadline: Duration::from_secs(3),
    controller_lease: Duration::from_secs(4),
    offline_after: Duration::from_secs(6),
    statement_timeout: Duration::from_secs(2),
    own_gap: Duration::from_secs(2),
    mass_failure_wait: Duration::from_secs(8),
};

/// The moments of one heartbeat and one look.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    /// When the heartbeat was sent.
    pub sent_at: BootTime,
    /// When its answer was taken in.
    pub answered_at: BootTime,
    /// When the last complete look began.
    pub look_began_at: BootTime,
}

/// Every decision that the model takes.
#[derive(Clone, Copy)]
pub struct Decisions {
    /// The time knobs.
    pub policy: TimePolicy,
    /// Until when a capture may act.
    pub acting_until: fn(Beat, &TimePolicy) -> BootTime,
    /// Whether a flush is refused, and why: fenced, stopping, time left to the deadline, the flush's limit.
    pub refusal: fn(bool, bool, Duration, Duration) -> Option<NotAdmitted>,
    /// What a capture does about one changefeed.
    pub next_step: fn(&Entry, Situation) -> LaunchStep,
    /// Whether a capture campaigns.
    pub may_campaign: fn(CaptureId, &ElectionView, BootTime, &TimePolicy) -> bool,
    /// Whom the controller judges dead.
    pub judge: fn(&mut OfflineJudge, BootTime, &OwnBeats, &TimePolicy) -> Judgement,
    /// What the controller does.
    pub plan: fn(&ScheduleSnapshot, bool) -> Vec<Action>,
    /// Where a launch begins: the database's word, and what this capture reported under the same epoch.
    pub start: fn(ChangefeedProgress, ChangefeedProgress) -> ChangefeedProgress,
    /// The token with which the database compares an owner's, given the row: the token itself. A mutant that compares less makes
    /// the rest of it match.
    pub compared: fn(OwnerTerm, &ChangefeedSchedule) -> OwnerTerm,
}

impl Decisions {
    /// What production runs.
    pub fn production() -> Self {
        Self {
            policy: POLICY,
            acting_until: |beat, policy| lease::acting_until(beat.sent_at, beat.look_began_at, policy),
            refusal,
            next_step,
            may_campaign: lease::may_campaign,
            judge: OfflineJudge::judge,
            plan: |snapshot, may_launch| plan(snapshot, &PlanPolicy { may_launch, ..PlanPolicy::default() }),
            start: ChangefeedProgress::further,
            compared: |term, _| term,
        }
    }
}

impl fmt::Debug for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decisions").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Production's decisions but for one.
pub type Mutant = fn() -> Decisions;

/// Mistakes that somebody might make, each of which the checker must find.
pub const MUTANTS: [(&str, Mutant); 8] = [
    ("drop the epoch check", || Decisions {
        compared: |term, row| row.term().unwrap_or(term),
        ..Decisions::production()
    }),
    ("compare the id instead of the epoch", || Decisions {
        compared: |term, row| row.term().filter(|now| now.capture == term.capture).unwrap_or(term),
        ..Decisions::production()
    }),
    ("anchor the deadline at the answer", || Decisions {
        acting_until: |beat, policy| lease::acting_until(beat.answered_at, beat.answered_at, policy),
        ..Decisions::production()
    }),
    ("release before stopping", || Decisions {
        next_step: |entry, now| match next_step(entry, now) {
            LaunchStep::Drain if entry.order.0 == ScheduleState::Removing => {
                LaunchStep::Release(entry.order.1)
            }
            step => step,
        },
        ..Decisions::production()
    }),
    ("an offline limit below the deadline", || Decisions {
        policy: TimePolicy { offline_after: Duration::from_secs(2), ..POLICY },
        ..Decisions::production()
    }),
    ("no passive admission", || Decisions {
        refusal: |fenced, stopping, left, timeout| {
            // Whoever looks at the deadline is the loop, and it has not come round yet.
            refusal(fenced, stopping, left.max(POLICY.deadline), timeout)
        },
        ..Decisions::production()
    }),
    ("count staleness through an outage", || Decisions {
        judge: |judge, now, _, policy| {
            let mut unbroken = OwnBeats::default();
            unbroken.succeeded(BootTime::default(), policy);
            let lenient = TimePolicy { own_gap: Duration::MAX, ..*policy };
            unbroken.succeeded(now, &lenient);
            judge.judge(now, &unbroken, policy)
        },
        ..Decisions::production()
    }),
    ("a checkpoint without max", || Decisions { start: |stored, _| stored, ..Decisions::production() }),
];
