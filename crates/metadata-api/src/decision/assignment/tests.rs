use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::model::{ChangefeedUuid, ProcessorEpoch, Revision, RunningError, TableError, Ts};

mod world;

fn id(n: u8) -> CaptureId {
    CaptureId(Uuid::from_u128(u128::from(n) + 1))
}

fn table(n: usize) -> TableId {
    TableId(format!("t{n:02}"))
}

fn at(ts: u64) -> ChangefeedProgress {
    ChangefeedProgress::at(Ts(ts))
}

/// A processor that runs so many tables, the first of them `first`.
fn running(n: u8, first: usize, count: usize) -> ProcessorView {
    let order = |_| TableOrder { since: Version(1), turn: Revision(0), from: at(1), stop: false };
    ProcessorView {
        term: ProcessorTerm {
            changefeed: ChangefeedUuid(1),
            capture: id(n),
            epoch: ProcessorEpoch(1),
            owner_epoch: OwnerEpoch(1),
        },
        state: ScheduleState::Launched,
        version: Version(1),
        orders: TableOrders((first..first + count).map(|n| (table(n), order(n))).collect()),
        reports: BTreeMap::new(),
        may_carry: true,
    }
}

fn view(tables: usize, processors: Vec<ProcessorView>) -> ChangefeedView {
    let tables = (0..tables).map(|n| (table(n), at(1))).collect();
    ChangefeedView { owner_epoch: OwnerEpoch(1), revision: Revision(0), tables, processors }
}

fn stops(writes: &[AssignmentWrite]) -> usize {
    writes.iter().flat_map(|write| write.orders.0.values()).filter(|order| order.stop).count()
}

const NO_LIMIT: AssignPolicy = AssignPolicy { moves_in_flight: usize::MAX };

#[test]
fn a_table_moves_in_two_steps() {
    let mut view = view(2, vec![running(0, 0, 2), running(1, 0, 0)]);
    let writes = assign(&view, &AssignPolicy::default()).writes;
    assert_eq!(writes.len(), 1, "first, and only, the old one is told to stop: {writes:?}");
    assert_eq!((writes[0].term.capture, stops(&writes)), (id(0), 1));
    view.processors[0].orders = writes[0].orders.clone();
    view.processors[0].version = Version(2);

    let moved = table(1);
    let report =
        |since, stopped, ts| TableReport { since: Version(since), stopped, error: None, progress: at(ts) };
    for (what, report) in [
        ("nothing was said", None),
        ("it still runs it", Some(report(1, false, 7))),
        ("it stopped it when it had it before", Some(report(0, true, 7))),
    ] {
        view.processors[0].reports = report.map(|report| (moved.clone(), report)).into_iter().collect();
        assert!(assign(&view, &AssignPolicy::default()).writes.is_empty(), "{what}");
    }
    view.processors[0].reports.insert(moved.clone(), report(1, true, 9));
    let writes = assign(&view, &AssignPolicy::default()).writes;
    let order = TableOrder { since: Version(2), turn: Revision(0), from: at(9), stop: false };
    assert_eq!(writes.len(), 2);
    assert!(!writes[0].orders.0.contains_key(&moved), "the old one forgets it in the same transaction");
    assert_eq!(writes[1].orders.0, BTreeMap::from([(moved, order)]));
}

#[test]
fn a_table_waits_for_whoever_serves_a_former_owner() {
    for (state, since, stopped, is_free) in [
        (ScheduleState::Launched, 1, false, false),
        (ScheduleState::Removing, 1, false, false),
        (ScheduleState::Removing, 2, true, false),
        (ScheduleState::Removing, 1, true, true),
        (ScheduleState::Removed, 1, false, true),
    ] {
        let mut former = running(0, 0, 1);
        former.term.owner_epoch = OwnerEpoch(0);
        former.state = state;
        // An operator may have set the changefeed back since.
        let report = TableReport { since: Version(since), stopped, error: None, progress: at(99) };
        former.reports.insert(table(0), report);
        let writes = assign(&view(1, vec![former, running(1, 0, 0)]), &AssignPolicy::default()).writes;
        if is_free {
            assert_eq!(writes[0].orders.0[&table(0)].from, at(1), "{state}");
        } else {
            assert!(writes.is_empty(), "it may run the table, and is {state}: {writes:?}");
        }
    }
}

#[test]
fn what_stopped_by_itself_is_given_anew() {
    let mut view = view(1, vec![running(0, 0, 1)]);
    let error = TableError {
        error: RunningError {
            time: chrono::DateTime::UNIX_EPOCH,
            addr: "a:1".into(),
            code: "CDC:ErrX".into(),
            message: "no".into(),
        },
        retryable: true,
    };
    let report = TableReport { since: Version(1), stopped: true, error: Some(error), progress: at(7) };
    view.processors[0].reports.insert(table(0), report);
    assert_eq!(view.processors[0].failures().map(|(table, _)| table).collect::<Vec<_>>(), [&table(0)]);
    assert!(!view.processors[0].is_at_work());
    let writes = assign(&view, &AssignPolicy::default()).writes;
    let order = TableOrder { since: Version(2), turn: Revision(0), from: at(7), stop: false };
    assert_eq!(writes[0].orders.0, BTreeMap::from([(table(0), order)]));
    view.processors[0].orders = writes[0].orders.clone();
    assert_eq!(view.processors[0].failures().count(), 0, "that was about another order");
    assert!(view.processors[0].is_at_work());
}

#[test]
fn who_drains_gives_everything_away() {
    let mut draining = running(0, 0, 9);
    draining.may_carry = false;
    let writes = assign(&view(9, vec![draining, running(1, 0, 0)]), &AssignPolicy::default()).writes;
    assert_eq!(stops(&writes), 9, "whatever the limit of moves that only even out");
}

#[test]
fn a_table_that_is_not_replicated_any_more_is_stopped_and_forgotten() {
    let mut view = view(1, vec![running(0, 0, 2)]);
    let writes = assign(&view, &AssignPolicy::default()).writes;
    assert!(writes[0].orders.0[&table(1)].stop && !writes[0].orders.0[&table(0)].stop);
    view.processors[0].orders = writes[0].orders.clone();
    let stopped = TableReport { since: Version(1), stopped: true, error: None, progress: at(9) };
    view.processors[0].reports.insert(table(1), stopped);
    let writes = assign(&view, &AssignPolicy::default()).writes;
    assert_eq!(writes[0].orders.0.keys().collect::<Vec<_>>(), [&table(0)]);
}

#[test]
fn the_checkpoint_is_the_least_of_the_tables() {
    let mut view = view(2, vec![running(0, 0, 2)]);
    assert_eq!(checkpoint(&positions(&view)), Some(at(1)));
    let report = |ts| TableReport { since: Version(1), stopped: false, error: None, progress: at(ts) };
    view.processors[0].reports.insert(table(0), report(9));
    assert_eq!(checkpoint(&positions(&view)), Some(at(1)), "the other one is still where it was");
    view.processors[0].reports.insert(table(1), report(5));
    assert_eq!(checkpoint(&positions(&view)), Some(at(5)));
    // The last word of who was removed counts, and what its tables did before does not.
    view.processors[0].state = ScheduleState::Removed;
    view.processors.push(running(1, 0, 2));
    assert_eq!(checkpoint(&positions(&view)), Some(at(5)));
    view.tables.clear();
    assert_eq!(checkpoint(&positions(&view)), None);
}

#[test]
fn an_assignment_reads_back() {
    let orders = running(0, 0, 2).orders;
    let mut row = ProcessorSchedule {
        changefeed: ChangefeedUuid(1),
        capture: id(0),
        state: ScheduleState::Launched,
        owner_epoch: OwnerEpoch(1),
        epoch: ProcessorEpoch(1),
        assignment: orders.encode().unwrap(),
        revision: Revision(1),
        version: Version(1),
    };
    assert_eq!(TableOrders::decode(&row).unwrap(), orders);
    row.assignment = ProcessorAssignment::default();
    assert_eq!(TableOrders::decode(&row).unwrap(), TableOrders::default());
    row.assignment = ProcessorAssignment(serde_json::json!({ "t": { "since": "x" } }));
    let error = TableOrders::decode(&row).unwrap_err();
    assert!(matches!(error, MetadataError::Corrupt { .. }), "{error}");
}

/// The fewest that must move so that no two differ by two: whoever has most keeps the odd ones.
fn fewest_moves(loads: &[usize]) -> usize {
    let total: usize = loads.iter().sum();
    let (least, rest) = (total / loads.len(), total % loads.len());
    let shares = 0..1_usize << loads.len();
    let shares = shares.filter(|odd| odd.count_ones() as usize == rest);
    let moves = |odd: usize| {
        let surplus = |(n, load): (usize, &usize)| load.saturating_sub(least + (odd >> n & 1));
        loads.iter().enumerate().map(surplus).sum()
    };
    shares.map(moves).min().unwrap()
}

proptest! {
    /// As few as possible are stopped, in any order, and within the limit.
    #[test]
    fn it_moves_the_minimum(loads in prop::collection::vec(0..9_usize, 1..6), limit in 0..6_usize) {
        let mut first = 0;
        let mut processors = Vec::new();
        for (n, load) in (0..).zip(&loads) {
            processors.push(running(n, first, *load));
            first += load;
        }
        let view = view(first, processors);
        prop_assert_eq!(stops(&assign(&view, &NO_LIMIT).writes), fewest_moves(&loads));
        let limited = assign(&view, &AssignPolicy { moves_in_flight: limit }).writes;
        prop_assert_eq!(stops(&limited), fewest_moves(&loads).min(limit));
        for write in limited {
            let before = &view.processors.iter().find(|of| of.term == write.term).unwrap().orders.0;
            prop_assert!(write.orders.0.keys().eq(before.keys()), "nothing is given before it has stopped");
        }
    }

    /// Whatever the rows are: soon exactly as many serve as are wanted, on candidates; nobody is detached who could stay, and
    /// who is attached had no row that lived.
    #[test]
    fn the_wanted_number_of_captures_serves(
        rows in prop::collection::btree_map(0..8_u8, (prop::sample::select(ScheduleState::ALL.to_vec()), 1..3_u64), 0..8),
        candidates in prop::collection::btree_map(0..8_u8, (0..5_usize, prop::bool::weighted(0.8)), 0..8),
        max_processors in 0..6_usize,
        owner in prop::option::of(0..8_u8),
    ) {
        let row = |(n, (state, epoch)): (&u8, &(ScheduleState, u64))| ProcessorSchedule {
            changefeed: ChangefeedUuid(1),
            capture: id(*n),
            state: *state,
            owner_epoch: OwnerEpoch(*epoch),
            epoch: ProcessorEpoch(1),
            assignment: ProcessorAssignment::default(),
            revision: Revision(1),
            version: Version(1),
        };
        let mut rows: Vec<_> = rows.iter().map(row).collect();
        let candidate = |(load, is_heard): (usize, bool)| Candidate { load, is_heard };
        let candidates: BTreeMap<_, _> = candidates.iter().map(|(n, of)| (id(*n), candidate(*of))).collect();
        let owner = owner.map(|n| OwnerTerm { changefeed: ChangefeedUuid(1), capture: id(n), epoch: OwnerEpoch(2) });
        let serves = |row: &ProcessorSchedule| {
            row.state == ScheduleState::Launched && owner.is_some_and(|owner| owner.epoch == row.owner_epoch)
                && candidates.contains_key(&row.capture)
        };
        let could_stay = rows.iter().filter(|row| serves(row)).count();
        let stays = |capture: &CaptureId| rows.iter().any(|row| row.capture == *capture && serves(row));
        let could_come = candidates.iter().filter(|(capture, of)| of.is_heard && !stays(capture)).count();
        let wanted = if owner.is_some() { max_processors.max(1).min(could_stay + could_come) } else { 0 };
        let leaving: Vec<_> =
            rows.iter().filter(|row| row.state != ScheduleState::Removed && !serves(row)).map(|row| row.capture).collect();
        for round in 0.. {
            let targets = choose_processors(owner, max_processors, &candidates, &rows);
            if targets.is_empty() && rows.iter().all(|row| row.state != ScheduleState::Removing) {
                break;
            }
            prop_assert!(round < 4, "still at it: {targets:?}");
            let mut left = 0;
            for target in targets {
                let at = rows.iter().position(|row| row.capture == target.capture);
                prop_assert_eq!(at.map(|at| rows[at].version), target.expected_version);
                match (target.state, at) {
                    (ScheduleState::Removing, Some(at)) => {
                        prop_assert_eq!(rows[at].state, ScheduleState::Launched);
                        left += usize::from(serves(&rows[at]));
                        rows[at].state = ScheduleState::Removing;
                    }
                    (ScheduleState::Launched, at) => {
                        prop_assert!(candidates[&target.capture].is_heard);
                        prop_assert!(at.is_none_or(|at| rows[at].state == ScheduleState::Removed));
                        rows.retain(|row| row.capture != target.capture);
                        let epoch = owner.unwrap().epoch;
                        rows.push(ProcessorSchedule {
                            capture: target.capture, owner_epoch: epoch, state: ScheduleState::Launched, ..row((&0, &(target.state, 0)))
                        });
                    }
                    other => prop_assert!(false, "never asked: {other:?}"),
                }
            }
            prop_assert_eq!(left, if round == 0 { could_stay.saturating_sub(wanted) } else { 0 });
            // Then whoever was told to has stopped.
            for row in rows.iter_mut().filter(|row| row.state == ScheduleState::Removing) {
                row.state = ScheduleState::Removed;
            }
        }
        let serving = rows.iter().filter(|row| serves(row)).count();
        prop_assert_eq!(serving, wanted);
        prop_assert_eq!(rows.iter().filter(|row| row.state == ScheduleState::Launched).count(), wanted);
        let own = |owner: &OwnerTerm| {
            candidates.get(&owner.capture).is_some_and(|of| of.is_heard) && !leaving.contains(&owner.capture)
        };
        if let Some(owner) = owner.filter(|owner| wanted > could_stay && own(owner)) {
            prop_assert!(rows.iter().any(|row| row.capture == owner.capture && serves(row)), "the owner's own is first");
        }
    }
}
