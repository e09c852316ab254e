//! The bounds of the design, from the fault to the changefeeds running elsewhere, without slack.

use super::secs;
use crate::world::World;

#[tokio::test(start_paused = true)]
async fn an_owner_that_crashes_costs_its_changefeeds_21_s() {
    let (mut world, _) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let lost = world.owned(victim);
    world.processes[victim].kill();
    world.until("its work runs elsewhere", secs(21), |world| world.all_elsewhere(&lost, &[victim])).await;
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_crashes_has_a_successor_within_17_s_and_nothing_else_moves() {
    let (mut world, feeds) = World::running(3, 9).await;
    let victim = world.controller().unwrap();
    let others: Vec<_> = feeds.iter().copied().filter(|feed| world.owner(*feed) != Some(victim)).collect();
    let (before, at) = (world.owners(), world.now());
    world.processes[victim].kill();
    world.until("another controller", secs(17), |world| world.controller().is_some()).await;
    assert!(world.all_move(&others, at), "the others' changefeeds went on");
    assert!(others.iter().all(|feed| world.owners()[feed] == before[feed]));
}

#[tokio::test(start_paused = true)]
async fn controller_and_owner_in_one_cost_21_s() {
    let (mut world, _) = World::running(3, 9).await;
    let victim = world.controller().unwrap();
    let lost = world.owned(victim);
    world.processes[victim].kill();
    world.until("its work runs elsewhere", secs(21), |world| world.all_elsewhere(&lost, &[victim])).await;
}

#[tokio::test(start_paused = true)]
async fn two_processes_at_once_cost_26_s() {
    let (mut world, feeds) = World::running(4, 12).await;
    let (first, second) = (world.controller().unwrap(), world.follower(&[]));
    let at = world.now();
    world.processes[first].kill();
    world.processes[second].kill();
    world.until("everything runs", secs(26), |world| world.all_move(&feeds, at)).await;
}

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_costs_3_s_whoever_stops() {
    let (world, _) = World::running(4, 12).await;
    for stops in [world.follower(&[]), world.controller().unwrap()] {
        let lost = world.owned(stops);
        world.processes[stops].stop.cancel();
        world.until("its work runs elsewhere", secs(3), |world| world.all_elsewhere(&lost, &[stops])).await;
        world.until("it has ended", secs(3), |world| world.processes[stops].ended() == Some(Ok(()))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_costs_3_s_and_the_capture_lives_on_without_work() {
    use metadata_api::store::AdminStore as _;
    let (world, _) = World::running(3, 9).await;
    let drained = world.follower(&[]);
    let (lost, id) = (world.owned(drained), world.processes[drained].id().unwrap());
    world.store.capture_drain(id).await.unwrap();
    world.until("its work runs elsewhere", secs(3), |world| world.all_elsewhere(&lost, &[drained])).await;
    world
        .throughout("it lives without work", secs(60), |world| {
            world.processes[drained].id() == Some(id) && world.owned(drained).is_empty()
        })
        .await;
    assert!(world.processes[drained].capture.status().ready);
}
