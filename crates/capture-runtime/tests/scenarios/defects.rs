//! The defects of the original that concern the runtime, each by its number.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use capture_runtime::observer::CaptureObserver;
use futures::StreamExt as _;
use metadata_api::decision::lease::TimePolicy;
use metadata_api::model::{BootTime, CaptureId, FeedState, NewCapture, ScheduleState, Ts};
use metadata_api::observation::{
    CaptureObservation as _, ChangefeedAdmin as _, ControllerCallback, ControllerObservation, Elector as _,
};
use metadata_api::store::{AdminStore as _, ControllerStore as _};
use metadata_memory::{Conditions, Lane, Table, Tamper};

use super::{ms, secs};
use crate::world::{DbClock, ProcessClock, START, World, healthy};

/// Regression: defect 4 (a dead owner under a living controller is never rescheduled).
#[tokio::test(start_paused = true)]
async fn defect_04_a_dead_owner_under_a_living_controller_is_rescheduled() {
    let (mut world, feeds) = World::running(3, 9).await;
    let (controller, victim) = (world.controller().unwrap(), world.follower(&[]));
    let lost = world.owned(victim);
    assert_eq!(lost.len(), 3);
    world.processes[victim].kill();
    world.until("its work runs elsewhere", secs(21), |world| world.all_elsewhere(&lost, &[victim])).await;
    assert_eq!(world.controller(), Some(controller), "the controller lived on");
    assert!(world.all_move(&feeds, world.now() - secs(1)));
}

/// Regression: defect 5 (a dead capture's progress that cannot be used stops every controller).
#[tokio::test(start_paused = true)]
async fn defect_05_a_controller_does_not_fall_over_a_dead_captures_progress() {
    // It names a changefeed that was cleaned up since.
    let (mut world, feeds) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let lost = world.owned(victim);
    let (gone, rest) = lost.split_first().unwrap();
    let name = world.name(*gone).await;
    world.processes[victim].kill();
    world.admin.remove(&name).await.unwrap();
    world.until("the rest runs elsewhere", secs(21), |world| world.all_elsewhere(rest, &[victim])).await;
    world.until("the removed one is gone", secs(2), |world| world.schedule(*gone).is_none()).await;

    // It does not even decode: what it owned waits for a person, and nothing else does.
    let victim = world.follower(&[victim]);
    let id = world.processes[victim].id().unwrap();
    let stuck = world.owned(victim);
    world.db.tamper(Tamper::MakeProgressUnreadable(id));
    world.processes[victim].kill();
    world.pass(secs(30)).await;
    let new = world.create(3).await;
    world.until("new ones run", secs(3), |world| world.all_move(&new, secs(0))).await;
    let others: Vec<_> = feeds.iter().copied().filter(|feed| feed != gone && !stuck.contains(feed)).collect();
    assert!(world.all_move(&others, world.now() - secs(1)));
    assert!(stuck.iter().all(|feed| world.schedule(*feed).unwrap().owner == Some(id)));
}

/// Regression: defects 2 and 3 (a placed changefeed can never be moved; the owner's last word writes nothing).
#[tokio::test(start_paused = true)]
async fn defect_02_and_03_a_placed_changefeed_is_moved_and_its_release_is_written() {
    let (mut world, feeds) = World::running(1, 6).await;
    let new = world.start();
    world.until("the work is shared", secs(20), |world| world.owned(new).len() == 3).await;
    world.until("everything runs", secs(3), |world| world.all_move(&feeds, secs(0))).await;
    let moves: Vec<_> = world
        .checker
        .history(secs(0))
        .into_iter()
        .flat_map(|seen| seen.schedules)
        .filter(|(_, before, after)| before != after)
        .collect();
    let count = |from, to| moves.iter().filter(|(_, before, after)| (*before, *after) == (from, to)).count();
    assert_eq!(count(ScheduleState::Launched, ScheduleState::Removing), 3);
    assert_eq!(count(ScheduleState::Removing, ScheduleState::Removed), 3);
    assert_eq!(count(ScheduleState::Removed, ScheduleState::Launched), 6 + 3);
}

/// Regression: defects 6 and 16 (who resigned, or lost the lease and won it again, still passes with stale plans).
#[tokio::test(start_paused = true)]
async fn defect_06_and_16_a_former_term_passes_nothing() {
    let world = World::new(1);
    let clock = Arc::new(ProcessClock::new(world.time, world.dice.fork()));
    let observer = CaptureObserver::register(
        Arc::new(world.db.open()),
        clock,
        TimePolicy::default(),
        someone(&world, "a:1"),
        BootTime::default(),
    )
    .await
    .unwrap();
    // Each term is kept beyond its end.
    let terms: Arc<Mutex<Vec<Arc<dyn ControllerObservation>>>> = Arc::default();
    let life = {
        let (observer, terms) = (observer.clone(), terms.clone());
        tokio::spawn(async move {
            let keep: ControllerCallback = Arc::new(move |controller, cancel| {
                terms.lock().unwrap().push(controller);
                Box::pin(async move {
                    cancel.cancelled().await;
                    Ok(())
                })
            });
            observer.run(keep).await
        })
    };
    let led = |count: usize| terms.lock().unwrap().len() == count;
    world.until("it leads", secs(3), |_| led(1)).await;
    world.store.controller_depose().await.unwrap();
    // Nobody else is there: it wins again, after it has let others go first.
    world.until("it leads again", secs(8), |_| led(2)).await;
    let (first, second) = {
        let terms = terms.lock().unwrap();
        (terms[0].clone(), terms[1].clone())
    };
    assert_eq!(first.term().capture, second.term().capture);
    assert!(first.term().epoch < second.term().epoch);
    let new = {
        let mut world = World::new(2);
        world.request()
    };
    assert!(first.create_changefeed(&new).await.unwrap_err().is_fenced());
    // The runtime's own check apart, the store refuses it too.
    assert!(world.store.owner_set(first.term(), &[]).await.unwrap_err().is_fenced());
    second.create_changefeed(&new).await.unwrap();
    observer.step_down();
    observer.stepped_down().await;
    assert!(world.store.owner_set(second.term(), &[]).await.unwrap_err().is_fenced(), "since it resigned");
    observer.finish();
    life.await.unwrap().unwrap();
}

/// Regression: defect 10 (with 64 captures and nothing failing, members end themselves within seconds).
#[tokio::test(start_paused = true)]
async fn defect_10_64_captures_beat_for_120_s_and_none_ends() {
    let mut world = World::new(1);
    for _ in 0..64 {
        world.start();
    }
    world
        .until("all are ready", secs(5), |world| {
            world.processes.iter().all(|process| process.capture.status().ready)
        })
        .await;
    let ids: Vec<_> = world.processes.iter().map(crate::world::Process::id).collect();
    for _ in 0..120 {
        tokio::time::sleep(secs(1)).await;
        for process in &world.processes {
            let left = process.capture.status().deadline_left;
            assert!(left > secs(7), "each beats in time: {left:?}");
        }
    }
    world.check();
    assert_eq!(world.processes.iter().map(crate::world::Process::id).collect::<Vec<_>>(), ids);
    assert!(world.processes.iter().all(crate::world::Process::runs));
    let epoch = world.db.read(|tables| tables.election().unwrap().epoch);
    assert_eq!(epoch.0, 1, "nor did the controller change");
}

/// Regression: defect 12 (an owner change at equal state is not seen). The order's epoch changes between two looks.
#[tokio::test(start_paused = true)]
async fn defect_12_a_new_epoch_at_equal_state_is_seen() {
    let (world, feeds) = World::running(1, 1).await;
    let (feed, name) = (feeds[0], world.name(feeds[0]).await);
    let observer = world.processes[0].capture.observer().unwrap();
    let mut orders = observer.owner_changes();
    let first = orders.next().await.unwrap();
    assert_eq!((first.changefeed, first.state), (feed, ScheduleState::Launched));
    world.admin.pause(&name).await.unwrap();
    world.admin.resume(&name, None).await.unwrap();
    world
        .until("it runs again", secs(5), |world| {
            world.schedule(feed).unwrap().epoch > first.epoch && world.moves(feed, secs(0))
        })
        .await;
    let mut last = first;
    while last.epoch == first.epoch || last.state != ScheduleState::Launched {
        last = orders.next().await.unwrap();
    }
    assert_eq!(last.epoch, world.schedule(feed).unwrap().epoch);
}

/// Regression: defect 13 (the lease is counted from when the answer came).
#[tokio::test(start_paused = true)]
async fn defect_13_the_deadline_counts_from_when_the_heartbeat_was_sent() {
    let (world, _) = World::running(1, 1).await;
    let process = &world.processes[0];
    // Sent, carried out at once, and answered 800 ms later.
    process.link.set(Lane::Heartbeat, Conditions { there: ms(0), back: ms(800), ..healthy() });
    world.pass(secs(3)).await;
    for _ in 0..2_000 {
        // The moment at which the beat was carried out, which is when it was sent.
        let sent_at = DbClock::age_at(world.live_captures()[0].heartbeat_at);
        let until = world.now() + process.capture.status().deadline_left;
        assert!(until <= sent_at + secs(10), "{until:?} is later than 10 s after {sent_at:?}");
        tokio::time::sleep(ms(5)).await;
    }
}

/// Regression: defect 13 (the wait for the leader callback has no limit and stalls the heartbeats).
#[tokio::test(start_paused = true)]
async fn defect_13_a_controller_callback_that_hangs_stalls_nothing() {
    let world = World::new(1);
    let clock = Arc::new(ProcessClock::new(world.time, world.dice.fork()));
    let observer = CaptureObserver::register(
        Arc::new(world.db.open()),
        clock,
        TimePolicy::default(),
        someone(&world, "a:1"),
        BootTime::default(),
    )
    .await
    .unwrap();
    let life = {
        let observer = observer.clone();
        let hang: ControllerCallback = Arc::new(|_, _| Box::pin(std::future::pending()));
        tokio::spawn(async move { observer.run(hang).await })
    };
    world.until("it leads", secs(3), |_| observer.leading().is_some()).await;
    world
        .throughout("it beats and leads", secs(60), |_| {
            observer.deadline().left() > secs(8) && observer.leading().is_some()
        })
        .await;
    let at = world.now();
    observer.step_down();
    observer.stepped_down().await;
    assert!(world.now() - at <= secs(3), "the callback is dropped");
    assert_eq!(world.db.read(|tables| tables.election().unwrap().leader), None, "and the lease resigned");
    observer.finish();
    life.await.unwrap().unwrap();
}

/// Regression: defect 14 (panics when there is no election record and no leader).
#[tokio::test(start_paused = true)]
async fn defect_14_without_an_election_record_nobody_panics() {
    let (world, _) = World::running(2, 4).await;
    world.db.tamper(Tamper::DeleteAll(Table::Election));
    let observer = world.processes[0].capture.observer().unwrap();
    world.pass(secs(5)).await;
    assert!(world.processes.iter().all(crate::world::Process::runs));
    world.pass(secs(15)).await;
    assert!(matches!(observer.controller().await, Err(metadata_api::MetadataError::NoController)));
}

/// Regression: defect 15 (an expelled owner never learns of it; a stale owner's checkpoint may win).
#[tokio::test(start_paused = true)]
async fn defect_15_an_expelled_owner_learns_of_it_and_stops() {
    let (world, _) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let (owned, id) = (world.owned(victim), world.processes[victim].id().unwrap());
    let term = world.processes[world.controller().unwrap()].capture.status().leading.unwrap();
    // Somebody declares it offline although it lives.
    let beat = world.capture(id).unwrap().heartbeat_seq;
    world.outside.database_restored(true);
    assert!(world.store.capture_seal(term, id, beat).await.unwrap());
    world
        .until("it has stopped", secs(2), |world| {
            let ends = world.outside.ends();
            owned
                .iter()
                .all(|feed| ends.iter().any(|end| end.term.changefeed == *feed && end.term.capture == id))
        })
        .await;
    world.outside.database_restored(false);
    world.until("its work runs", secs(5), |world| world.all_move(&owned, secs(0))).await;
    assert_ne!(world.processes[victim].id(), Some(id));
}

/// Regression: defect 17 (the controller and owner processes were never written): created, launched, paused, resumed, moved,
/// finished, removed, all by what this crate runs.
#[tokio::test(start_paused = true)]
async fn defect_17_a_changefeeds_whole_life() {
    let (mut world, _) = World::running(2, 0).await;
    let feed = world.create_one(|new| new.target_ts = Ts(START.0 + 100)).await;
    let name = world.name(feed).await;
    world.until("it runs", secs(3), |world| world.moves(feed, secs(0))).await;
    world.until("it says so", secs(3), |world| world.state(feed) == Some(FeedState::Normal)).await;
    world.admin.pause(&name).await.unwrap();
    world.until("it has stopped", secs(2), |world| world.outside.running(feed) == 0).await;
    world.admin.resume(&name, None).await.unwrap();
    world.until("it runs", secs(3), |world| world.moves(feed, secs(0))).await;
    let owner = world.owner(feed).unwrap();
    world.processes[owner].stop.cancel();
    world.until("it runs elsewhere", secs(3), |world| world.all_elsewhere(&[feed], &[owner])).await;
    world.until("it has finished", secs(60), |world| world.state(feed) == Some(FeedState::Finished)).await;
    assert_eq!(world.outside.high(feed), Ts(START.0 + 100));
    world.admin.remove(&name).await.unwrap();
    world.until("it is cleaned up", secs(3), |world| world.schedule(feed).is_none()).await;
}

fn someone(world: &World, addr: &str) -> NewCapture {
    NewCapture {
        id: CaptureId(uuid::Uuid::from_u64_pair(world.dice.next(), world.dice.next())),
        advertise_addr: addr.to_owned(),
        version: "v1".to_owned(),
        labels: BTreeMap::new(),
        machine_id: String::new(),
    }
}
