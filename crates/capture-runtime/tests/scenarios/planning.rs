//! What the planner makes of a cluster over time: drains end, restarts cost little, and nothing moves without need.

use std::collections::BTreeMap;
use std::time::Duration;

use metadata_api::model::{CaptureState, ChangefeedUuid};
use metadata_api::observation::ChangefeedAdmin as _;
use metadata_api::store::AdminStore as _;
use metadata_memory::{Table, Tamper};
use serde_json::json;

use super::secs;
use crate::world::World;

/// How often each changefeed was launched so far.
fn launches(world: &World) -> BTreeMap<ChangefeedUuid, usize> {
    world.owners().into_keys().map(|feed| (feed, world.outside.launches_of(feed).len())).collect()
}

/// How much more often, all of them and the one that moved most.
fn more(world: &World, before: &BTreeMap<ChangefeedUuid, usize>) -> (usize, usize) {
    let after = launches(world);
    let moved = before.iter().map(|(feed, launches)| after[feed] - launches);
    (moved.clone().sum(), moved.max().unwrap_or(0))
}

/// The longest time between two writes of one changefeed, since then.
fn longest_gap(world: &World, feeds: &[ChangefeedUuid], since: Duration) -> Duration {
    let mut last: BTreeMap<_, _> = feeds.iter().map(|feed| (*feed, since)).collect();
    let mut longest = Duration::ZERO;
    for write in world.outside.writes().iter().filter(|write| write.at >= since) {
        if let Some(last) = last.get_mut(&write.term.changefeed) {
            longest = longest.max(write.at - *last);
            *last = write.at;
        }
    }
    last.values().fold(longest, |longest, last| longest.max(world.now() - *last))
}

/// A hundred changefeeds on two captures leave one of them within 30 s, none of them for longer than 2 s.
#[tokio::test(start_paused = true)]
async fn a_drain_of_100_ends_within_30_s_with_gaps_of_2_s_at_most() {
    let (world, feeds) = World::running(3, 300).await;
    let drained = world.follower(&[]);
    let (lost, before, at) = (world.owned(drained), launches(&world), world.now());
    assert_eq!(lost.len(), 100);
    world.store.capture_drain(world.processes[drained].id().unwrap()).await.unwrap();
    let took = world
        .until("its work runs elsewhere", secs(30), |world| world.all_elsewhere(&lost, &[drained]))
        .await;
    let gap = longest_gap(&world, &feeds, at);
    println!("100 drained in {took:?}, the longest gap {gap:?}");
    assert!(gap <= secs(2), "{gap:?}");
    world.pass(secs(60)).await;
    assert_eq!(more(&world, &before), (100, 1), "nothing else moved, and nothing twice");
    world.check();
}

/// A controller that is told to drain itself gives the office to another one first, which then moves the work.
#[tokio::test(start_paused = true)]
async fn a_controller_that_drains_itself_hands_the_office_over_first() {
    let (world, feeds) = World::running(3, 30).await;
    let former = world.controller().unwrap();
    let (lost, at) = (world.owned(former), world.now());
    world.store.capture_drain(world.processes[former].id().unwrap()).await.unwrap();
    world
        .until("another one leads, and nothing has moved", secs(4), |world| {
            let another = world.controller().is_some_and(|leader| leader != former);
            assert!(another || world.owned(former).len() == lost.len(), "it moved work as it went");
            another
        })
        .await;
    world.until("its work runs elsewhere", secs(6), |world| world.all_elsewhere(&lost, &[former])).await;
    assert!(longest_gap(&world, &feeds, at) <= secs(2));
    world
        .throughout("it stays so", secs(60), |world| {
            world.controller() != Some(former) && world.owned(former).is_empty()
        })
        .await;
    world.check();
}

/// Regression: a controller that drained gave the office to whoever had a row, dead or not, and then nobody led: not the dead
/// one, and not the one that drained.
#[tokio::test(start_paused = true)]
async fn a_controller_that_drains_itself_gives_the_office_to_nobody_dead() {
    let (mut world, _) = World::running(2, 6).await;
    let leader = world.controller().unwrap();
    world.processes[1 - leader].kill();
    world.pass(secs(4)).await;
    world.store.capture_drain(world.processes[leader].id().unwrap()).await.unwrap();
    world.throughout("it leads on", secs(60), |world| world.controller() == Some(leader)).await;
}

/// The last one there is nobody to drain to: it leads on, and its work stays.
#[tokio::test(start_paused = true)]
async fn what_may_run_nowhere_else_is_not_drained() {
    let (world, feeds) = World::running(1, 4).await;
    world.store.capture_drain(world.processes[0].id().unwrap()).await.unwrap();
    let at = world.now();
    world
        .throughout("it runs on", secs(30), |world| {
            world.controller() == Some(0) && world.owned(0).len() == feeds.len()
        })
        .await;
    assert!(world.all_move(&feeds, at + secs(25)));
    assert_eq!(world.live_captures()[0].state, CaptureState::Draining);
}

/// A capture that crashes and comes back every half minute, at the same address, costs next to nothing: the first time it
/// gets a few, then it is left alone for longer and longer.
#[tokio::test(start_paused = true)]
async fn a_capture_that_flaps_causes_no_storm() {
    let (mut world, _) = World::running(2, 40).await;
    let before = launches(&world);
    world.addr = Some("flaps:8300".to_owned());
    for _ in 0..10 {
        let flapping = world.start();
        world.pass(secs(8)).await;
        world.processes[flapping].kill();
        world.pass(secs(22)).await;
    }
    let (all, most) = more(&world, &before);
    println!("10 flaps: {all} moves, {most} of one changefeed at most");
    assert!(all <= 20 && most <= 4, "{all} moves, {most} of one");
    // Once it stays, it gets its share.
    world.start();
    world.until("evenly", secs(180), World::is_even).await;
    world.check();
}

/// Labels are honoured when an owner dies, and when nobody is left that has them.
#[tokio::test(start_paused = true)]
async fn affinity_is_honoured_on_failover() {
    let (mut world, others) = World::running(1, 3).await;
    let in_a: BTreeMap<_, _> = [("zone".to_owned(), "a".to_owned())].into();
    world.labels = in_a.clone();
    let (first, second) = (world.start(), world.start());
    world
        .until("both are ready", secs(5), |world| {
            world.processes.iter().all(|process| process.capture.status().ready)
        })
        .await;
    let mut bound = Vec::new();
    for _ in 0..6 {
        let feed = world
            .create_one(|new| {
                new.config.0.insert("placement".to_owned(), json!({"affinity": {"zone": "a"}}));
            })
            .await;
        bound.push(feed);
    }
    world.until("they run", secs(5), |world| world.all_elsewhere(&bound, &[0])).await;
    world.processes[first].kill();
    world.until("they run in the zone", secs(21), |world| world.all_elsewhere(&bound, &[0, first])).await;
    world.processes[second].kill();
    world
        .throughout("nobody else takes them", secs(60), |world| {
            bound.iter().all(|feed| world.owner(*feed).is_none_or(|owner| owner == second))
        })
        .await;
    assert!(bound.iter().all(|feed| world.owner(*feed).is_none()), "they wait");
    assert!(others.iter().all(|feed| world.owner(*feed) == Some(0)), "what is bound to nothing runs on");
    world.start();
    world.until("they run again", secs(5), |world| world.all_elsewhere(&bound, &[0, first, second])).await;
    world.check();
}

/// Each capture is told to stop and started again in turn: a changefeed moves when its own capture stops, and little more.
#[tokio::test(start_paused = true)]
async fn a_rolling_restart_moves_each_changefeed_a_bounded_number_of_times() {
    let (mut world, feeds) = World::running(3, 60).await;
    let (before, at) = (launches(&world), world.now());
    for process in 0..3 {
        world.processes[process].stop.cancel();
        world.until("it has stopped", secs(5), |world| world.processes[process].ended().is_some()).await;
        world.addr = Some(format!("process-{process}:8300"));
        let again = world.start();
        world.until("it is back", secs(5), |world| world.processes[again].capture.status().ready).await;
        world.until("everything runs", secs(5), |world| world.all_elsewhere(&feeds, &[process])).await;
    }
    world.until("evenly", secs(90), World::is_even).await;
    world.pass(secs(60)).await;
    let (all, most) = more(&world, &before);
    let gap = longest_gap(&world, &feeds, at);
    println!("rolling restart of 3 with 60: {all} moves, {most} of one at most, the longest gap {gap:?}");
    assert!(most <= 4, "{most} moves of one changefeed");
    assert!(all <= 60 * 2 + 20, "{all} moves");
    assert!(gap <= secs(2), "{gap:?}");
    world.check();
}

/// A changefeed whose row does not decode keeps its dead owner, and stops neither the failover of the others nor what is
/// created; once the row is mended it goes on by itself.
#[tokio::test(start_paused = true)]
async fn a_damaged_row_holds_up_nobody_else_and_is_taken_when_it_is_mended() {
    let (mut world, feeds) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let id = world.processes[victim].id().unwrap();
    let lost = world.owned(victim);
    let (damaged, rest) = lost.split_first().unwrap();
    world.db.tamper(Tamper::MakeFeedUnreadable(Table::Schedule, *damaged));
    world.processes[victim].kill();
    world.until("the rest runs elsewhere", secs(21), |world| world.all_elsewhere(rest, &[victim])).await;
    let new = world.create(3).await;
    world.until("new ones run", secs(3), |world| world.all_move(&new, secs(0))).await;
    let joined = world.start();
    world.until("who joins gets its part", secs(90), |world| world.owned(joined).len() >= 3).await;
    assert_eq!(world.schedule(*damaged).unwrap().owner, Some(id));
    assert!(world.db.read(|tables| tables.capture(id).is_some()), "it is still named");

    world.db.tamper(Tamper::MendRows);
    world.until("it is taken", secs(12), |world| world.all_elsewhere(&[*damaged], &[victim])).await;
    world
        .until("nothing names the dead any more", secs(12), |world| {
            world.db.read(|tables| tables.capture(id).is_none())
        })
        .await;
    world.until("everything runs", secs(3), |world| world.all_move(&feeds, world.now() - secs(1))).await;
}

/// A row that is damaged under its live owner stops nothing: what it runs goes on, also what is launched there later, and the row
/// counts for what it was once it is mended.
#[tokio::test(start_paused = true)]
async fn a_damaged_row_of_a_live_owner_stops_nothing() {
    let (mut world, feeds) = World::running(2, 8).await;
    let victim = world.follower(&[]);
    let id = world.processes[victim].id();
    let (owned, epochs) = (world.owned(victim), world.owners());
    // One is released while the others cannot be read.
    let (well, damaged) = owned.split_first().unwrap();
    for feed in damaged {
        world.db.tamper(Tamper::MakeFeedUnreadable(Table::Schedule, *feed));
    }
    let new = world.create(4).await;
    let name = world.name(*well).await;
    world.admin.pause(&name).await.unwrap();
    world.until("it is released", secs(5), |world| world.owner(*well).is_none()).await;
    world.pass(secs(30)).await;
    world.admin.resume(&name, None).await.unwrap();
    world.until("it runs again", secs(5), |world| world.moves(*well, world.now() - secs(1))).await;
    world.until("new ones run", secs(3), |world| world.all_move(&new, secs(0))).await;
    world
        .throughout("everything runs on", secs(60), |world| {
            world.processes[victim].id() == id && world.all_move(&feeds, world.now().saturating_sub(secs(2)))
        })
        .await;
    assert!(damaged.iter().all(|feed| world.owners()[feed] == epochs[feed]), "nothing happened to them");
    world.db.tamper(Tamper::MendRows);
    world.pass(secs(30)).await;
    assert!(world.all_move(&feeds, world.now() - secs(2)));
    world.check();
}

/// A changefeed that cannot be looked up when it is to be launched keeps those that are launched with it from nothing.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_launched_holds_up_no_other_launch() {
    let (mut world, feeds) = World::running(2, 8).await;
    let victim = world.follower(&[]);
    let lost = world.owned(victim);
    // The first may be looked up by itself.
    let (damaged, rest) = lost.split_last().unwrap();
    world.db.tamper(Tamper::MakeFeedUnreadable(Table::ChangefeedInfo, *damaged));
    world.processes[victim].kill();
    world.until("the rest runs elsewhere", secs(21), |world| world.all_elsewhere(rest, &[victim])).await;
    assert!(!world.all_elsewhere(&[*damaged], &[victim]));
    world.db.tamper(Tamper::MendRows);
    world.until("everything runs", secs(3), |world| world.all_move(&feeds, world.now() - secs(1))).await;
}
