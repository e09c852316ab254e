//! A process crashes and is started again in the same place.

use std::time::Duration;

use super::{ms, secs};
use metadata_memory::Path;

use crate::world::World;

/// Kills one, starts another in its place after a while, and says how long its work then stood still.
async fn crash_and_restart(world: &mut World, victim: usize) -> Duration {
    let lost = world.owned(victim);
    assert!(!lost.is_empty());
    world.processes[victim].kill();
    world.pass(ms(700)).await;
    let at = world.now();
    world.restart(victim);
    world.until("its work runs", secs(2), |world| world.all_move(&lost, at)).await
}

#[tokio::test(start_paused = true)]
async fn a_restart_takes_its_work_back_within_2_s() {
    let (mut world, feeds) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let kept: Vec<_> = feeds.iter().copied().filter(|feed| !world.owned(victim).contains(feed)).collect();
    let before = world.owners();
    crash_and_restart(&mut world, victim).await;
    let restarted = world.processes.len() - 1;
    assert_eq!(world.owned(restarted).len(), 3, "it has least, so it gets it back");
    assert!(kept.iter().all(|feed| world.owners()[feed] == before[feed]), "nothing else moved");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_controller_costs_no_lease() {
    let (mut world, _) = World::running(3, 9).await;
    let victim = world.controller().unwrap();
    crash_and_restart(&mut world, victim).await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_of_one_restarts_within_2_s() {
    let (mut world, _) = World::running(1, 5).await;
    crash_and_restart(&mut world, 0).await;
    // And again, which is of the id that the second was.
    crash_and_restart(&mut world, 1).await;
}

#[tokio::test(start_paused = true)]
async fn every_process_of_a_cluster_restarts_within_2_s() {
    let (mut world, feeds) = World::running(3, 9).await;
    for process in 0..3 {
        world.processes[process].kill();
    }
    world.pass(ms(100)).await;
    let at = world.now();
    for process in 0..3 {
        world.restart(process);
    }
    world.until("everything runs", secs(2), |world| world.all_move(&feeds, at)).await;
}

#[tokio::test(start_paused = true)]
async fn without_proof_everybody_waits() {
    let (mut world, _) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let lost = world.owned(victim);
    world.processes[victim].kill();
    world.start();
    world
        .throughout("nobody takes its work", secs(13), |world| {
            lost.iter().all(|feed| world.owner(*feed) == Some(victim))
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_row_of_another_machine_is_no_proof() {
    let (mut world, _) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let lost = world.owned(victim);
    world.processes[victim].kill();
    world.restart_on(victim, "another machine");
    world
        .throughout("nobody takes its work", secs(13), |world| {
            lost.iter().all(|feed| world.owner(*feed) == Some(victim))
        })
        .await;
}

/// The answers to what it does for its predecessor are lost, each once.
#[tokio::test(start_paused = true)]
async fn a_restart_whose_answers_are_lost_is_as_good() {
    for lost in ["election.resign", "capture.deregister"] {
        let (mut world, feeds) = World::running(2, 4).await;
        let victim = world.controller().unwrap();
        world.processes[victim].kill();
        world.pass(ms(300)).await;
        let at = world.now();
        let restarted = world.restart(victim);
        world.processes[restarted].faults.lose_answers(lost, 1);
        world.until("everything runs", secs(3), |world| world.all_move(&feeds, at)).await;
        assert_eq!(world.processes[restarted].faults.left(), 0, "{lost} was lost");
    }
}

/// A database that does not answer holds the start up for a moment only, and costs the fast restart, nothing else.
#[tokio::test(start_paused = true)]
async fn a_restart_without_a_database_goes_on_as_usual() {
    let (mut world, feeds) = World::running(2, 4).await;
    let victim = world.follower(&[]);
    world.processes[victim].kill();
    let restarted = world.restart(victim);
    world.processes[restarted]
        .link
        .set_all(metadata_memory::Conditions { path: Path::Hangs, ..crate::world::healthy() });
    world.pass(secs(5)).await;
    world.processes[restarted].heal();
    let at = world.now();
    world.until("everything runs", secs(21), |world| world.all_move(&feeds, at)).await;
}
