//! What these tests found: each was red before its fix.

use metadata_api::observation::ChangefeedAdmin as _;
use metadata_api::store::AdminStore as _;
use metadata_memory::{Conditions, Lane, Path};

use super::{ms, secs};
use crate::world::{Behaviour, Incident, World, healthy};

/// Regression: with the pool refusing and the revision moved, the controller looked again and again without a pause.
#[tokio::test(start_paused = true)]
async fn a_controller_whose_looks_fail_does_not_spin() {
    let (mut world, _) = World::running(2, 4).await;
    let controller = world.controller().unwrap();
    world.processes[controller].link.set(Lane::Pool, Conditions { path: Path::Refuses, ..healthy() });
    let feeds = world.create(2).await;
    world.pass(secs(5)).await;
    world.processes[controller].heal();
    world.until("everything runs", secs(3), |world| world.all_move(&feeds, secs(0))).await;
}

/// Regression: with the pool refusing, a capture that recovers tried again and again without a pause.
#[tokio::test(start_paused = true)]
async fn a_capture_that_cannot_recover_yet_does_not_spin() {
    let (world, feeds) = World::running(2, 4).await;
    world.db.pause();
    world.pass(secs(12)).await;
    for process in &world.processes {
        process.link.set(Lane::Pool, Conditions { path: Path::Refuses, ..healthy() });
    }
    world.db.resume();
    world.pass(secs(5)).await;
    world.processes.iter().for_each(crate::world::Process::heal);
    let at = world.now();
    world.until("everything runs", secs(3), |world| world.all_move(&feeds, at)).await;
}

/// Regression: a draining capture took the fence row at every poll, to campaign for a lease that it must not have.
#[tokio::test(start_paused = true)]
async fn a_draining_capture_does_not_campaign() {
    let (mut world, _) = World::running(1, 0).await;
    let id = world.processes[0].id().unwrap();
    world.store.capture_drain(id).await.unwrap();
    world.store.controller_depose().await.unwrap();
    world.pass(secs(1)).await;
    let tries = world.processes[0].faults.tries("election.campaign");
    world.pass(secs(30)).await;
    assert_eq!(world.controller(), None);
    assert_eq!(world.processes[0].faults.tries("election.campaign"), tries, "it did not even try");
    let other = world.start();
    world.until("another one leads", secs(3), |world| world.controller() == Some(other)).await;
}

// Regression: a capture whose polls are answered, but that can never read what they point at, lived on blind.
/// Regression: a capture whose polls are answered, but that can never read what they point at, lived on blind.
#[tokio::test(start_paused = true)]
async fn a_capture_that_cannot_read_what_it_owns_does_not_live_on_blind() {
    let (world, _) = World::running(2, 6).await;
    let victim = world.follower(&[]);
    let owned = world.owned(victim);
    let (first, second) = (world.name(owned[0]).await, world.name(owned[1]).await);
    // It releases one and never hears so; from then on the count of what it owns is wrong for it.
    world.processes[victim].faults.lose_answers("owner.release", 1);
    world.admin.pause(&first).await.unwrap();
    world.until("it has released one", secs(2), |world| world.owned(victim).len() == 2).await;
    world.processes[victim].link.set(Lane::Pool, Conditions { path: Path::Hangs, ..healthy() });
    world.pass(secs(1)).await;
    world.admin.pause(&second).await.unwrap();
    world.until("it stops what it was told to", secs(13), |world| world.outside.running(owned[1]) == 0).await;
    world
        .until("it ends, and its work moves", secs(40), |world| {
            world.processes[victim].ended().is_some() && world.all_elsewhere(&owned[2..], &[victim])
        })
        .await;
}

/// A pool that hangs costs nobody a lease as long as nothing is to be read over it.
#[tokio::test(start_paused = true)]
async fn a_capture_without_a_pool_goes_on_with_what_it_runs() {
    let (world, feeds) = World::running(2, 6).await;
    let victim = world.follower(&[]);
    world.processes[victim].link.set(Lane::Pool, Conditions { path: Path::Hangs, ..healthy() });
    world.throughout("it may act", secs(60), |world| world.processes[victim].capture.status().ready).await;
    assert!(world.all_move(&feeds, world.now() - secs(1)));
}

/// Regression: a controller whose heartbeats went through, and nothing else, stayed in office and did nothing for good.
#[tokio::test(start_paused = true)]
async fn a_controller_that_can_only_beat_makes_room_for_another() {
    let (mut world, _) = World::running(3, 3).await;
    let controller = world.controller().unwrap();
    world.processes[controller].link.set(Lane::Pool, Conditions { path: Path::Hangs, ..healthy() });
    world
        .until("another one leads", secs(35), |world| {
            world.controller().is_some_and(|leader| leader != controller)
        })
        .await;
    world.processes[controller].heal();
    let new = world.create(3).await;
    world.until("new ones run", secs(3), |world| world.all_move(&new, secs(0))).await;
}

/// Regression: after an outage longer than R, one failed poll after the first good heartbeat ended the process.
#[tokio::test(start_paused = true)]
async fn a_poll_that_fails_after_an_outage_ends_nobody() {
    let (world, feeds) = World::running(3, 6).await;
    let before = world.owners();
    for process in &world.processes {
        process.cut();
    }
    world.pass(secs(20)).await;
    for process in &world.processes {
        process.link.set(Lane::Heartbeat, healthy());
        process.link.set(Lane::Watch, Conditions { path: Path::Refuses, ..healthy() });
    }
    world.pass(secs(3)).await;
    let at = world.now();
    world.processes.iter().for_each(crate::world::Process::heal);
    world.until("everything runs", secs(5), |world| world.all_move(&feeds, at)).await;
    assert_eq!(world.owners(), before);
}

/// Regression: once its incarnation was over, a capture whose row nobody had sealed wrote a progress without the changefeeds
/// that did not run at that moment, and took their checkpoints back to where their owner had begun (I6).
#[tokio::test(start_paused = true)]
async fn what_is_forgotten_takes_no_checkpoint_back() {
    let (mut world, feeds) = World::running(1, 2).await;
    world.pass(secs(3)).await;
    let before = world.checkpoint(feeds[0]);
    // One waits to be tried again; the other takes its time to stop.
    world.outside.behave(feeds[1], Behaviour { stops_in: secs(3), ..Behaviour::default() });
    world.outside.incident(feeds[0], Incident::FailsRetryably);
    world.until("one failed", secs(1), |world| world.outside.running(feeds[0]) == 0).await;
    world.processes[0].drop_future();
    world.pass(secs(5)).await;
    assert!(world.checkpoint(feeds[0]) >= before);
}

/// Regression: a number counted as standing still from when it was asked for. A scan that was on its way for 3.5 s shows a
/// heartbeat that was sent just before it arrived: its capture was sealed 3.5 s too early, with flushes under way.
#[tokio::test(start_paused = true)]
async fn a_slow_scan_seals_nobody_before_its_time() {
    let (world, feeds) = World::running(2, 6).await;
    let (controller, victim) = (world.controller().unwrap(), world.follower(&[]));
    for feed in &feeds {
        let slow = Behaviour { pace: ms(10), latency: ms(2_990), ..Behaviour::default() };
        world.outside.behave(*feed, slow);
    }
    // One scan is on its way for 3.5 s.
    world.processes[controller].link.set(Lane::Pool, Conditions { there: ms(3_500), ..healthy() });
    world.pass(ms(1_200)).await;
    world.processes[controller].heal();
    world.pass(ms(1_200)).await;
    let id = world.processes[victim].id().unwrap();
    let before = world.capture(id).unwrap().heartbeat_at;
    world.until("it beats", secs(2), |world| world.capture(id).unwrap().heartbeat_at != before).await;
    let sent_at = world.now();
    world.processes[victim].cut();
    world.until("it is sealed", secs(60), |world| world.live_captures().len() == 1).await;
    assert!(world.now() - sent_at >= secs(15), "R after the last heartbeat, not {:?}", world.now() - sent_at);
}

/// Regression: the revision of a restored database passes what was seen before as soon as anybody writes. A capture that polled only
/// then took old orders for new ones, and launched them until its next heartbeat, while others still ran what came after.
#[tokio::test(start_paused = true)]
async fn old_orders_of_a_restored_database_are_not_carried_out() {
    let (world, _) = World::running(2, 4).await;
    world.pass(secs(3)).await;
    let victim = world.follower(&[]);
    let (id, feed) = (world.processes[victim].id(), world.owned(victim)[0]);
    let name = world.name(feed).await;
    let backup = world.db.backup();
    world.admin.pause(&name).await.unwrap();
    world.until("it is released", secs(2), |world| world.owned(victim).len() == 1).await;
    world.pass(secs(3)).await;
    // Its heartbeats, which would tell, do not get through; its polls do.
    world.processes[victim].link.set(Lane::Heartbeat, Conditions { path: Path::Refuses, ..healthy() });
    world.outside.database_restored(true);
    let launches = world.outside.launches_of(feed).len();
    world.db.restore(&backup);
    world.store.controller_depose().await.unwrap();
    world
        .throughout("nothing old is launched", secs(4), |world| {
            world.outside.launches_of(feed).len() == launches
        })
        .await;
    world.processes[victim].heal();
    world.until("it is another capture now", secs(5), |world| world.processes[victim].id() != id).await;
}
