use std::collections::BTreeMap;

use chrono::DateTime;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::model::{CaptureInfo, ChangefeedProgress, ChangefeedSchedule, FeedState, OwnerEpoch, Revision};

fn id(n: u8) -> CaptureId {
    CaptureId(Uuid::from_u128(u128::from(n) + 1))
}

fn capture(n: u8, state: CaptureState) -> CaptureInfo {
    CaptureInfo {
        id: id(n),
        advertise_addr: "127.0.0.1:8300".into(),
        version: String::new(),
        labels: BTreeMap::new(),
        machine_id: String::new(),
        state,
        heartbeat_seq: 0,
        heartbeat_at: DateTime::UNIX_EPOCH,
        started_at: DateTime::UNIX_EPOCH,
    }
}

fn feed(n: u64, owner: Option<u8>, state: ScheduleState, feed: FeedState) -> SnapshotChangefeed {
    let state = if owner.is_none() { ScheduleState::Removed } else { state };
    SnapshotChangefeed {
        schedule: ChangefeedSchedule {
            changefeed: ChangefeedUuid(n),
            owner: owner.filter(|_| state != ScheduleState::Removed).map(id),
            state,
            epoch: OwnerEpoch(1),
            task_position: ChangefeedProgress::default(),
            revision: Revision(1),
            version: Version(1),
        },
        state: feed,
        removed: feed == FeedState::Removed,
        live_processors: 0,
        placement: Ok(Placement::default()),
    }
}

fn snapshots() -> impl Strategy<Value = ScheduleSnapshot> {
    let captures = prop::collection::vec(
        prop::sample::select(vec![
            CaptureState::Alive,
            CaptureState::Alive,
            CaptureState::Alive,
            CaptureState::Draining,
            CaptureState::Offline,
        ]),
        0..6,
    );
    let feeds = prop::collection::vec(
        (
            prop::option::of(0..8_u8),
            prop::sample::select(ScheduleState::ALL.to_vec()),
            prop::sample::select(FeedState::ALL.to_vec()),
        ),
        0..40,
    );
    (captures, feeds).prop_map(|(captures, feeds)| ScheduleSnapshot {
        unreadable: Vec::new(),
        revision: Revision(1),
        captures: (0..).zip(captures).map(|(n, state)| capture(n, state)).collect(),
        changefeeds: (1..).zip(feeds).map(|(n, (owner, state, s))| feed(n, owner, state, s)).collect(),
    })
}

/// What the store and the captures would make of the actions.
fn apply(snapshot: &mut ScheduleSnapshot, actions: &[Action]) {
    for action in actions {
        match *action {
            Action::SetOwner(target) => {
                let feed = snapshot
                    .changefeeds
                    .iter_mut()
                    .find(|feed| feed.schedule.changefeed == target.changefeed)
                    .unwrap();
                feed.schedule.version.0 += 1;
                if target.state == ScheduleState::Launched {
                    feed.schedule.state = ScheduleState::Launched;
                    feed.schedule.owner = target.owner;
                } else {
                    feed.schedule.state = ScheduleState::Removing;
                }
            }
            Action::Release(capture) => {
                for feed in &mut snapshot.changefeeds {
                    if feed.schedule.owner == Some(capture) {
                        feed.schedule.owner = None;
                        feed.schedule.state = ScheduleState::Removed;
                    }
                }
                snapshot.captures.retain(|info| info.id != capture);
            }
            Action::Cleanup { changefeed, .. } => {
                snapshot.changefeeds.retain(|feed| feed.schedule.changefeed != changefeed);
            }
        }
    }
    for feed in &mut snapshot.changefeeds {
        if feed.schedule.state == ScheduleState::Removing {
            feed.schedule.state = ScheduleState::Removed;
            feed.schedule.owner = None;
        }
    }
}

proptest! {
    /// Never two owners: only what is `Removed` is launched, on an alive capture, once.
    #[test]
    fn only_what_nobody_owns_is_launched(snapshot in snapshots(), may_launch: bool) {
        let policy = PlanPolicy { may_launch, ..PlanPolicy::default() };
        let mut seen = BTreeSet::new();
        for action in plan(&snapshot, &policy) {
            let Action::SetOwner(target) = action else { continue };
            prop_assert!(seen.insert(target.changefeed), "planned twice");
            let feed =
                snapshot.changefeeds.iter().find(|f| f.schedule.changefeed == target.changefeed).unwrap();
            match target.state {
                ScheduleState::Launched => {
                    prop_assert!(may_launch);
                    prop_assert_eq!(feed.schedule.state, ScheduleState::Removed);
                    prop_assert!(feed.state.is_runnable() && !feed.removed);
                    let on_alive = snapshot.captures.iter().any(|capture| {
                        Some(capture.id) == target.owner && capture.state == CaptureState::Alive
                    });
                    prop_assert!(on_alive);
                }
                ScheduleState::Removing => prop_assert_eq!(feed.schedule.state, ScheduleState::Launched),
                ScheduleState::Removed => prop_assert!(false, "the planner never writes Removed"),
            }
        }
    }

    /// It converges: soon nothing is left to do, and then everything that ought to run runs, evenly.
    #[test]
    fn it_converges_and_then_stands_still(mut snapshot in snapshots()) {
        let policy = PlanPolicy::default();
        let mut rounds = 0;
        loop {
            let actions = plan(&snapshot, &policy);
            let moving = |f: &SnapshotChangefeed| f.schedule.state == ScheduleState::Removing;
            if actions.is_empty() && !snapshot.changefeeds.iter().any(moving) {
                break;
            }
            apply(&mut snapshot, &actions);
            rounds += 1;
            prop_assert!(rounds < 100, "still acting: {actions:?}");
        }
        let alive: Vec<_> =
            snapshot.captures.iter().filter(|c| c.state == CaptureState::Alive).map(|c| c.id).collect();
        let mut counts = vec![0_usize; alive.len()];
        for feed in &snapshot.changefeeds {
            prop_assert!(!feed.removed, "not cleaned up");
            let position = feed.schedule.owner.and_then(|o| alive.iter().position(|a| *a == o));
            prop_assert_eq!(position.is_some(), feed.state.is_runnable() && !alive.is_empty());
            if let Some(position) = position {
                counts[position] += 1;
            }
        }
        let (low, high) = (counts.iter().min().copied(), counts.iter().max().copied());
        prop_assert!(high.unwrap_or(0) - low.unwrap_or(0) <= 1, "{counts:?}");
    }
}

/// Regression: defect 4 (a dead owner under a living controller is never rescheduled).
#[test]
fn defect_4_a_dead_owner_is_released_and_its_work_relaunched() {
    let mut snapshot = ScheduleSnapshot {
        unreadable: Vec::new(),
        revision: Revision(1),
        captures: vec![capture(0, CaptureState::Alive), capture(1, CaptureState::Offline)],
        changefeeds: vec![
            feed(1, Some(1), ScheduleState::Launched, FeedState::Normal),
            feed(2, Some(7), ScheduleState::Removing, FeedState::Normal),
        ],
    };
    let actions = plan(&snapshot, &PlanPolicy::default());
    assert_eq!(actions, [Action::Release(id(1)), Action::Release(id(7))]);
    apply(&mut snapshot, &actions);
    assert_eq!(plan(&snapshot, &PlanPolicy::default()).len(), 2);
}

#[test]
fn what_still_has_a_processor_is_neither_launched_nor_cleaned_up() {
    let mut waiting = feed(1, None, ScheduleState::Removed, FeedState::Normal);
    waiting.live_processors = 1;
    let mut removed = feed(2, None, ScheduleState::Removed, FeedState::Removed);
    removed.live_processors = 1;
    let snapshot = ScheduleSnapshot {
        unreadable: Vec::new(),
        revision: Revision(1),
        captures: vec![capture(0, CaptureState::Alive)],
        changefeeds: vec![waiting, removed],
    };
    assert!(plan(&snapshot, &PlanPolicy::default()).is_empty());
}

/// A changefeed of this weight, for captures in this zone.
fn placed(n: u64, owner: Option<u8>, weight: u32, zone: Option<u8>) -> SnapshotChangefeed {
    let affinity = zone.map(|zone| ("zone".to_owned(), zone.to_string())).into_iter().collect();
    SnapshotChangefeed {
        placement: Ok(Placement { weight, affinity, ..Placement::default() }),
        ..feed(n, owner, ScheduleState::Launched, FeedState::Normal)
    }
}

/// Captures in two zones, some draining; changefeeds of many weights, some bound to a zone, anywhere or nowhere.
fn weighted() -> impl Strategy<Value = ScheduleSnapshot> {
    let states = prop::sample::select(vec![CaptureState::Alive, CaptureState::Alive, CaptureState::Draining]);
    let captures = prop::collection::vec((states, 0..2_u8), 1..7);
    let feeds =
        prop::collection::vec((prop::option::of(0..6_u8), 1..20_u32, prop::option::of(0..3_u8)), 0..40);
    (captures, feeds).prop_map(|(captures, feeds)| {
        let count = captures.len();
        let zoned = |(n, (state, zone)): (u8, (CaptureState, u8))| CaptureInfo {
            labels: [("zone".to_owned(), zone.to_string())].into(),
            ..capture(n, state)
        };
        ScheduleSnapshot {
            unreadable: Vec::new(),
            revision: Revision(1),
            captures: (0..).zip(captures).map(zoned).collect(),
            changefeeds: (1..)
                .zip(feeds)
                .map(|(n, (owner, weight, zone))| {
                    placed(n, owner.filter(|owner| usize::from(*owner) < count), weight, zone)
                })
                .collect(),
        }
    })
}

fn admits(snapshot: &ScheduleSnapshot, feed: &SnapshotChangefeed, owner: CaptureId) -> bool {
    let capture = snapshot.captures.iter().find(|capture| capture.id == owner).unwrap();
    feed.placement.as_ref().unwrap().admits(&capture.labels)
}

/// The sum of the squares of the loads of the alive captures.
fn imbalance(snapshot: &ScheduleSnapshot) -> u64 {
    let alive = snapshot.captures.iter().filter(|capture| capture.state == CaptureState::Alive);
    alive.map(|capture| load(snapshot, capture.id).pow(2)).sum()
}

fn load(snapshot: &ScheduleSnapshot, capture: CaptureId) -> u64 {
    let owned = snapshot.changefeeds.iter().filter(|feed| feed.schedule.owner == Some(capture));
    owned.map(|feed| u64::from(feed.placement.as_ref().unwrap().weight)).sum()
}

/// Plans and applies until nothing is left to do; gives the steps of each round.
fn settle(snapshot: &mut ScheduleSnapshot, policy: &PlanPolicy) -> Vec<Vec<Step>> {
    let mut rounds = Vec::new();
    loop {
        let steps = decide(snapshot, policy, &Calm::default());
        if steps.is_empty() {
            return rounds;
        }
        apply(snapshot, &steps.iter().map(|step| step.action).collect::<Vec<_>>());
        rounds.push(steps);
        assert!(rounds.len() < 500, "still acting: {:?}", rounds.last());
    }
}

proptest! {
    /// Weights, labels and drains: what may run somewhere runs there and nowhere else, a drained capture keeps only what
    /// may run nowhere else, no pair of captures could be brought closer by a move, and then it stands still.
    #[test]
    fn it_settles_where_everything_may_be(mut snapshot in weighted()) {
        settle(&mut snapshot, &PlanPolicy::default());
        for feed in &snapshot.changefeeds {
            let somewhere = snapshot
                .captures
                .iter()
                .any(|capture| capture.state == CaptureState::Alive && admits(&snapshot, feed, capture.id));
            match feed.schedule.owner {
                None => prop_assert!(!somewhere, "it runs nowhere"),
                Some(owner) => {
                    let capture = snapshot.captures.iter().find(|capture| capture.id == owner).unwrap();
                    prop_assert!(capture.state == CaptureState::Alive || !somewhere, "it was to be drained");
                    prop_assert!(admits(&snapshot, feed, owner));
                    if capture.state != CaptureState::Alive {
                        continue;
                    }
                    let weight = u64::from(feed.placement.as_ref().unwrap().weight);
                    for other in &snapshot.captures {
                        if other.state == CaptureState::Alive && admits(&snapshot, feed, other.id) {
                            prop_assert!(load(&snapshot, other.id) + weight >= load(&snapshot, owner));
                        }
                    }
                }
            }
        }
    }

    /// With everything running where it may, each move lowers the imbalance, and the affinity holds all the while.
    #[test]
    fn no_move_makes_it_worse(mut snapshot in weighted()) {
        settle(&mut snapshot, &PlanPolicy { moves_in_flight: 0, ..PlanPolicy::default() });
        let mut before = imbalance(&snapshot);
        for steps in settle(&mut snapshot.clone(), &PlanPolicy::default()) {
            let actions: Vec<_> = steps.iter().map(|step| step.action).collect();
            apply(&mut snapshot, &actions);
            if steps.iter().any(|step| matches!(step.why, Why::Unowned { .. })) {
                let after = imbalance(&snapshot);
                prop_assert!(after < before, "{before} became {after} by {steps:?}");
                before = after;
            } else {
                prop_assert_eq!(steps.len(), 1);
            }
        }
    }

    /// Of equal changefeeds it moves no more than must move.
    #[test]
    fn it_moves_the_minimum(counts in prop::collection::vec(0..30_u8, 1..6)) {
        let owners = (0..).zip(&counts).flat_map(|(n, count)| std::iter::repeat_n(n, usize::from(*count)));
        let mut snapshot = ScheduleSnapshot {
        unreadable: Vec::new(),
            revision: Revision(1),
            captures: (0..).zip(&counts).map(|(n, _)| capture(n, CaptureState::Alive)).collect(),
            changefeeds: (1..).zip(owners).map(|(n, owner)| placed(n, Some(owner), 1, None)).collect(),
        };
        let (total, captures) = (snapshot.changefeeds.len(), counts.len());
        let mut sorted: Vec<_> = counts.iter().map(|count| usize::from(*count)).collect();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        // Those that have most keep the larger shares.
        let share = |n: usize| total / captures + usize::from(n < total % captures);
        let least: usize = sorted.iter().enumerate().map(|(n, has)| has.saturating_sub(share(n))).sum();
        let rounds = settle(&mut snapshot, &PlanPolicy::default());
        let moves = rounds.iter().flatten().filter(|step| matches!(step.why, Why::Balance { .. })).count();
        prop_assert_eq!(moves, least);
    }

    /// A drain ends, takes no more at a time than it may, and moves each changefeed once.
    #[test]
    fn a_drain_ends(captures in 2..6_u8, feeds in 0..60_u64, at_a_time in 1..12_usize) {
        let owner = |n: u64| u8::try_from(n % u64::from(captures)).unwrap();
        let mut snapshot = ScheduleSnapshot {
        unreadable: Vec::new(),
            revision: Revision(1),
            captures: (0..captures).map(|n| capture(n, CaptureState::Alive)).collect(),
            changefeeds: (1..=feeds).map(|n| placed(n, Some(owner(n)), 1, None)).collect(),
        };
        snapshot.captures[0].state = CaptureState::Draining;
        let policy = PlanPolicy { drains_in_flight: at_a_time, ..PlanPolicy::default() };
        let mut moved = BTreeSet::new();
        for steps in settle(&mut snapshot, &policy) {
            let stops: Vec<_> = steps
                .iter()
                .filter_map(|step| match (step.action, &step.why) {
                    (Action::SetOwner(target), Why::Draining(_)) => Some(target.changefeed),
                    _ => None,
                })
                .collect();
            prop_assert!(stops.len() <= at_a_time);
            for feed in stops {
                prop_assert!(moved.insert(feed), "moved twice");
            }
        }
        prop_assert_eq!(load(&snapshot, id(0)), 0);
    }
}

fn at(seconds: u64) -> BootTime {
    BootTime::from_boot(Duration::from_secs(1000 + seconds))
}

/// A plan while every capture's heart beats.
fn heard(
    snapshot: &mut ScheduleSnapshot,
    policy: &PlanPolicy,
    memory: &mut PlanMemory,
    now: BootTime,
) -> Plan {
    snapshot.captures.iter_mut().for_each(|capture| capture.heartbeat_seq += 1);
    plan_calmly(snapshot, policy, memory, now)
}

/// Two captures: one has everything.
fn lopsided(feeds: u64) -> ScheduleSnapshot {
    ScheduleSnapshot {
        unreadable: Vec::new(),
        revision: Revision(1),
        captures: (0..2)
            .map(|n| CaptureInfo { advertise_addr: format!("a:{n}"), ..capture(n, CaptureState::Alive) })
            .collect(),
        changefeeds: (1..=feeds).map(|n| placed(n, Some(0), 1, None)).collect(),
    }
}

#[test]
fn a_new_controller_moves_nothing_for_balance_at_once_and_says_when_it_will() {
    let (policy, mut memory) = (PlanPolicy::default(), PlanMemory::default());
    let mut snapshot = lopsided(4);
    let cooldown = policy.capture_cooldown.as_secs();
    let plan = heard(&mut snapshot, &policy, &mut memory, at(0));
    assert_eq!(plan, Plan { steps: Vec::new(), again_at: Some(at(cooldown)) });
    let plan = heard(&mut snapshot, &policy, &mut memory, at(cooldown));
    assert!(matches!(plan.steps[..], [Step { why: Why::Balance { .. }, .. }]), "{plan:?}");
}

#[test]
fn failover_and_drain_wait_for_no_cooldown() {
    let (policy, mut memory) = (PlanPolicy::default(), PlanMemory::default());
    let mut snapshot = lopsided(4);
    snapshot.captures[0].state = CaptureState::Draining;
    assert_eq!(heard(&mut snapshot, &policy, &mut memory, at(0)).steps.len(), 4);
    snapshot.captures[0].state = CaptureState::Offline;
    let plan = heard(&mut snapshot, &policy, &mut memory, at(1));
    assert_eq!(plan.steps[0].why, Why::CaptureDead(id(0)));
}

/// What has just changed hands is left alone; others are not.
#[test]
fn a_changefeed_that_has_just_moved_rests() {
    let (policy, mut memory) = (PlanPolicy::default(), PlanMemory::default());
    let mut snapshot = lopsided(3);
    heard(&mut snapshot, &policy, &mut memory, at(0));
    snapshot.changefeeds[0] = placed(1, None, 1, None);
    let launched = heard(&mut snapshot, &policy, &mut memory, at(100));
    assert!(matches!(launched.steps[..], [Step { why: Why::Unowned { .. }, .. }]), "{launched:?}");
    // The other one may not move.
    snapshot.captures[0].labels = [("zone".to_owned(), "7".to_owned())].into();
    snapshot.changefeeds = vec![placed(1, Some(0), 1, None), placed(2, Some(0), 1, Some(7))];
    let rest = policy.feed_cooldown.as_secs();
    let resting = heard(&mut snapshot, &policy, &mut memory, at(100 + rest - 1));
    assert_eq!(resting, Plan { steps: Vec::new(), again_at: Some(at(100 + rest)) });
    assert_eq!(heard(&mut snapshot, &policy, &mut memory, at(100 + rest)).steps.len(), 1);
}

/// Nobody knows yet that it is dead; but nothing goes there while it is silent.
#[test]
fn a_capture_that_is_silent_gets_nothing_that_another_may_run() {
    let (policy, mut memory) = (PlanPolicy::default(), PlanMemory::default());
    let mut snapshot = lopsided(4);
    snapshot.changefeeds.push(placed(9, None, 1, None));
    plan_calmly(&snapshot, &policy, &mut memory, at(0));
    snapshot.captures[0].heartbeat_seq += 1;
    let silent = plan_calmly(&snapshot, &policy, &mut memory, at(100));
    let [Step { why: Why::Unowned { to, .. }, .. }] = silent.steps[..] else { panic!("{silent:?}") };
    assert_eq!(to, id(0), "it has more, but it is heard");
    snapshot.changefeeds.pop();
    let silent = plan_calmly(&snapshot, &policy, &mut memory, at(101));
    assert_eq!(silent, Plan { steps: Vec::new(), again_at: Some(at(101) + policy.silent_after) });
    snapshot.captures.iter_mut().for_each(|capture| capture.heartbeat_seq += 1);
    assert_eq!(plan_calmly(&snapshot, &policy, &mut memory, at(102)).steps.len(), 1);
}

/// Nor is anything sent there that runs well on a capture which is to be emptied.
#[test]
fn a_drain_sends_nothing_to_who_is_silent() {
    let (policy, mut memory) = (PlanPolicy::default(), PlanMemory::default());
    let mut snapshot = lopsided(4);
    plan_calmly(&snapshot, &policy, &mut memory, at(0));
    snapshot.captures[0].state = CaptureState::Draining;
    snapshot.captures[0].heartbeat_seq += 1;
    let silent = plan_calmly(&snapshot, &policy, &mut memory, at(100));
    assert_eq!(silent, Plan { steps: Vec::new(), again_at: Some(at(100) + policy.silent_after) });
    assert_eq!(heard(&mut snapshot, &policy, &mut memory, at(101)).steps.len(), 4);
}

#[test]
fn what_is_stuck_elsewhere_holds_up_no_drain() {
    let policy = PlanPolicy { drains_in_flight: 3, ..PlanPolicy::default() };
    let mut snapshot = ScheduleSnapshot {
        unreadable: Vec::new(),
        revision: Revision(1),
        captures: (0..3).map(|n| capture(n, CaptureState::Alive)).collect(),
        changefeeds: (1..=8).map(|n| placed(n, Some(u8::from(n > 4)), 1, None)).collect(),
    };
    snapshot.captures[0].state = CaptureState::Draining;
    snapshot.changefeeds[4..].iter_mut().for_each(|feed| feed.schedule.state = ScheduleState::Removing);
    assert_eq!(plan(&snapshot, &policy).len(), 3);
    snapshot.changefeeds[..2].iter_mut().for_each(|feed| feed.schedule.state = ScheduleState::Removing);
    assert_eq!(plan(&snapshot, &policy).len(), 1, "two of three are on their way");
}

/// Who joins too often gets only what nobody
/// else may run.
#[test]
fn a_capture_that_flaps_gets_no_work_for_a_while() {
    let (policy, mut memory) = (PlanPolicy::default(), PlanMemory::default());
    let mut snapshot = lopsided(2);
    snapshot.captures.push(CaptureInfo { advertise_addr: "b:1".into(), ..capture(9, CaptureState::Alive) });
    snapshot.changefeeds = vec![placed(1, Some(0), 1, None), placed(2, Some(1), 1, None)];
    snapshot.changefeeds.push(placed(3, None, 1, None));
    for join in 0..policy.flaps {
        snapshot.captures[2].id = id(20 + u8::try_from(join).unwrap());
        let flapper = snapshot.captures[2].id;
        let plan = heard(&mut snapshot, &policy, &mut memory, at(100 + 10 * join as u64));
        let Action::SetOwner(target) = plan.steps[0].action else { panic!("{plan:?}") };
        assert_eq!(target.owner == Some(flapper), join + 1 < policy.flaps, "join {join}: {plan:?}");
    }
    // Better there than nowhere.
    snapshot.captures.retain(|capture| capture.advertise_addr == "b:1");
    snapshot.changefeeds = vec![placed(3, None, 1, None)];
    let plan = heard(&mut snapshot, &policy, &mut memory, at(150));
    assert_eq!(plan.steps.len(), 1, "{plan:?}");
}

#[test]
fn what_is_on_its_way_counts_where_it_goes() {
    let mut snapshot = lopsided(4);
    snapshot.changefeeds[3].schedule.state = ScheduleState::Removing;
    let policy = PlanPolicy { moves_in_flight: 5, ..PlanPolicy::default() };
    let steps = plan(&snapshot, &policy);
    assert_eq!(steps.len(), 1, "3 and 1 on its way become 2 and 2: {steps:?}");
}

#[test]
fn it_says_why() {
    let mut snapshot = lopsided(2);
    let why = |snapshot: &ScheduleSnapshot| {
        explain(snapshot, &PlanPolicy::default(), ChangefeedUuid(1)).unwrap().join("\n")
    };
    assert!(why(&snapshot).contains("since revision 1, owner epoch 1; weighs 1 of a load of 2 there"));
    assert!(why(&snapshot).contains("next: stop here: its capture"));
    snapshot.changefeeds[0] = placed(1, None, 1, Some(7));
    assert_eq!(
        why(&snapshot),
        "unowned since revision 1\nstays: no capture that is alive has the label zone=7"
    );
    snapshot.changefeeds[0].placement = Err("placement.weight is `0`: it must be more".to_owned());
    assert!(why(&snapshot).ends_with("it must be more; update the changefeed's configuration"));
    snapshot.changefeeds[0] = placed(1, Some(0), 1, Some(7));
    snapshot.captures[0].labels = [("zone".to_owned(), "7".to_owned())].into();
    snapshot.captures[0].state = CaptureState::Draining;
    assert!(why(&snapshot).ends_with("stays: no capture that is alive has the label zone=7"));
    assert_eq!(explain(&snapshot, &PlanPolicy::default(), ChangefeedUuid(99)), None);
}

/// Grows with the product of captures and changefeeds only if somebody lets it: then this takes minutes.
#[test]
fn a_thousand_captures_and_ten_thousand_changefeeds() {
    let snapshot = large();
    let steps = decide(&snapshot, &PlanPolicy::default(), &Calm::default());
    assert!(steps.len() > 3_000);
}

fn large() -> ScheduleSnapshot {
    let numbered = |n: u64| CaptureInfo {
        id: CaptureId(Uuid::from_u128(u128::from(n) + 1)),
        labels: [("zone".to_owned(), (n % 3).to_string()), ("host".to_owned(), n.to_string())].into(),
        ..capture(0, CaptureState::Alive)
    };
    let captures: Vec<_> = (0..1_000).map(numbered).collect();
    let changefeeds = (0..10_000_u64)
        .map(|n| {
            let mut feed = placed(n + 1, None, 1 + u32::try_from(n % 7).unwrap(), None);
            feed.placement.as_mut().unwrap().affinity = match n % 3 {
                0 => BTreeMap::new(),
                1 => [("zone".to_owned(), (n % 3).to_string())].into(),
                _ => [("host".to_owned(), (n % 1_000).to_string())].into(),
            };
            if n % 2 == 0 {
                feed.schedule.owner = Some(CaptureId(Uuid::from_u128(u128::from(n % 1_000) + 1)));
                feed.schedule.state = ScheduleState::Launched;
            }
            feed
        })
        .collect();
    ScheduleSnapshot { revision: Revision(1), captures, changefeeds, ..ScheduleSnapshot::default() }
}

/// A policy with which nothing would ever move, or a number that was mistyped, is refused, by name.
#[test]
fn each_broken_rule_of_a_policy_is_named() {
    let good = PlanPolicy::default();
    good.validate().unwrap();
    let day = Duration::from_secs(24 * 3600);
    PlanPolicy { moves_in_flight: 500, feed_cooldown: day, ..good }.validate().unwrap();
    for (policy, field) in [
        (PlanPolicy { moves_in_flight: 0, ..good }, "moves_in_flight"),
        (PlanPolicy { drains_in_flight: 501, ..good }, "drains_in_flight"),
        (PlanPolicy { feed_cooldown: 2 * day, ..good }, "feed_cooldown"),
        (PlanPolicy { capture_cooldown_max: 2 * day, ..good }, "capture_cooldown_max"),
        (PlanPolicy { capture_cooldown: day, ..good }, "capture_cooldown"),
        (PlanPolicy { silent_after: 2 * day, ..good }, "silent_after"),
        (PlanPolicy { flap_window: 2 * day, ..good }, "flap_window"),
    ] {
        match policy.validate() {
            Err(MetadataError::InvalidArgument { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{policy:?} gave {other:?}"),
        }
    }
}
