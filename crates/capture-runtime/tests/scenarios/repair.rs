//! What an operator does by force.

use std::sync::Arc;

use capture_runtime::repair::{ResetReport, force_remove_capture, reset};
use metadata_api::store::{MetadataStore, QueryStore as _};
use metadata_memory::MemoryOptions;

use super::{ms, secs};
use crate::world::{PlannedFaults, Process, ProcessClock, World};

#[tokio::test(start_paused = true)]
async fn a_capture_that_is_known_to_be_dead_need_not_be_waited_for() {
    let (mut world, _) = World::running(3, 9).await;
    for victim in [world.follower(&[]), world.controller().unwrap()] {
        let (lost, id) = (world.owned(victim), world.processes[victim].id().unwrap());
        world.processes[victim].kill();
        assert!(force_remove_capture(&world.store, id).await.unwrap());
        world.until("its work runs elsewhere", secs(3), |world| world.all_elsewhere(&lost, &[victim])).await;
        assert!(
            !force_remove_capture(&world.store, id).await.unwrap(),
            "it is gone, or declared dead already"
        );
        world.start();
        world.pass(secs(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_capture_that_lives_starts_anew() {
    let (world, feeds) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let id = world.processes[victim].id().unwrap();
    assert!(force_remove_capture(&world.store, id).await.unwrap());
    world
        .until("it is somebody else", secs(5), |world| {
            world.processes[victim].id().is_some_and(|new| new != id)
        })
        .await;
    let at = world.now();
    world.until("everything runs", secs(5), |world| world.all_move(&feeds, at)).await;
}

async fn reset_all(world: &World, store: Arc<dyn MetadataStore>) -> ResetReport {
    let clock = Arc::new(ProcessClock::new(world.time, world.dice.fork()));
    let mut told = Vec::new();
    let report = reset(store, clock, |left, total| told.push((left, total))).await.unwrap();
    assert_eq!(told.last().map(|(left, _)| *left), Some(0));
    assert!(told.is_sorted_by(|a, b| a.0 >= b.0), "{told:?}");
    report
}

#[tokio::test(start_paused = true)]
async fn a_reset_of_a_cluster_that_runs_expels_nobody() {
    let (mut world, _) = World::running(3, 9).await;
    let ids: Vec<_> = world.processes.iter().map(Process::id).collect();
    let at = world.now();
    let report = reset_all(&world, Arc::new(world.store.clone())).await;
    assert!(world.now() - at < secs(6), "{:?}", world.now() - at);
    assert_eq!(report, ResetReport { changefeeds: 9, expelled: [].into() });
    assert!(world.store.changefeed_infos(None).await.unwrap().is_empty());
    assert_eq!(world.store.captures(None).await.unwrap().len(), 3, "the reset's own row is gone");
    let feeds = world.create(4).await;
    let at = world.now();
    world.until("new ones run", secs(20), |world| world.all_move(&feeds, at)).await;
    assert_eq!(world.processes.iter().map(Process::id).collect::<Vec<_>>(), ids);
}

#[tokio::test(start_paused = true)]
async fn a_reset_takes_what_a_dead_capture_had() {
    let (mut world, _) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let id = world.processes[victim].id().unwrap();
    world.processes[victim].kill();
    let report = reset_all(&world, Arc::new(world.store.clone())).await;
    assert_eq!(report, ResetReport { changefeeds: 9, expelled: [id].into() });
    assert!(world.store.changefeed_infos(None).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_reset_of_nothing_is_done() {
    let (world, _) = World::running(1, 0).await;
    assert_eq!(reset_all(&world, Arc::new(world.store.clone())).await, ResetReport::default());
}

/// Each answer of the database is lost once.
#[tokio::test(start_paused = true)]
async fn a_reset_whose_answers_are_lost_is_as_good() {
    for lost in [
        "capture.register",
        "controller.depose",
        "election.campaign",
        "changefeed.remove",
        "changefeed.cleanup",
        "capture.deregister",
        "capture.release",
    ] {
        let (mut world, _) = World::running(2, 4).await;
        let victim = world.follower(&[]);
        world.processes[victim].kill();
        world.pass(ms(100)).await;
        let faults = PlannedFaults::default();
        faults.lose_answers(lost, 1);
        let options = MemoryOptions { faults: Some(Arc::new(faults.clone())), ..MemoryOptions::default() };
        let report = reset_all(&world, Arc::new(world.db.open_with(options))).await;
        assert_eq!((report.changefeeds, faults.left()), (4, 0), "{lost} was lost");
        assert!(world.store.changefeed_infos(None).await.unwrap().is_empty());
    }
}
