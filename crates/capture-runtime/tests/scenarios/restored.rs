//! The database is set back to a backup, or is another one.

use metadata_api::model::ScheduleState;

use super::secs;
use crate::world::World;

/// Two of three owners see it at once; the third is cut off, and acts on its old orders until its deadline. Nothing may be
/// launched before it has fenced itself.
#[tokio::test(start_paused = true)]
async fn a_restored_backup_fences_everybody_and_nothing_is_launched_for_r() {
    let (mut world, mut feeds) = World::running(3, 3).await;
    // In the backup these have no owner yet: whoever looks at it as controller wants to launch them.
    feeds.extend(world.create(6).await);
    let backup = world.db.backup();
    world.until("everything runs", secs(5), |world| world.all_move(&feeds, secs(0))).await;
    world.until("evenly", secs(30), World::is_even).await;
    world.pass(secs(5)).await;
    let cut = world.follower(&[]);
    assert!(feeds[3..].iter().any(|feed| world.owner(*feed) == Some(cut)), "it runs one of them");
    let ids: Vec<_> = world.processes.iter().map(crate::world::Process::id).collect();
    world.outside.database_restored(true);
    world.processes[cut].cut();
    let at = world.now();
    world.db.restore(&backup);
    world
        .until("the others are back under new ids", secs(5), |world| {
            world
                .processes
                .iter()
                .filter(|process| process.index != cut)
                .all(|process| process.capture.status().ready && process.id() != ids[process.index])
        })
        .await;
    let launches = world.outside.launches().len();
    world
        .throughout("nothing is launched", at + secs(15) - world.now(), |world| {
            world.outside.launches().len() == launches
        })
        .await;
    world.outside.database_restored(false);
    world.processes[cut].heal();
    world.until("everything runs", secs(45), |world| world.all_move(&feeds, at)).await;
    assert!(world.processes.iter().all(|process| process.id() != ids[process.index]));
}

/// No number went back but the heartbeats': somebody restored while everybody was cut off.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_went_back_is_a_restored_database() {
    use metadata_memory::Tamper;
    let (world, feeds) = World::running(2, 4).await;
    world.pass(secs(20)).await;
    let ids: Vec<_> = world.processes.iter().map(crate::world::Process::id).collect();
    world.db.tamper(Tamper::SetHeartbeats(3));
    world
        .until("all are back under new ids", secs(5), |world| {
            world
                .processes
                .iter()
                .all(|process| process.capture.status().ready && process.id() != ids[process.index])
        })
        .await;
    let at = world.now();
    world.until("everything runs", secs(50), |world| world.all_move(&feeds, at)).await;
}

#[tokio::test(start_paused = true)]
async fn another_database_under_the_same_address_is_not_acted_on() {
    let (mut world, feeds) = World::running(2, 4).await;
    let (other, _) = World::running(1, 2).await;
    let ids: Vec<_> = world.processes.iter().map(crate::world::Process::id).collect();
    for process in &other.processes {
        process.stop.cancel();
    }
    other.until("its capture has stopped", secs(5), |other| other.processes[0].ended().is_some()).await;
    world.outside.database_restored(true);
    world.db.restore(&other.db.backup());
    world
        .until("all are back under new ids", secs(5), |world| {
            world
                .processes
                .iter()
                .all(|process| process.capture.status().ready && process.id() != ids[process.index])
        })
        .await;
    assert!(feeds.iter().all(|feed| world.outside.running(*feed) == 0), "nothing of the old one runs");
    world.outside.database_restored(false);
    let new = world.create(2).await;
    let took = world.until("new ones run", secs(20), |world| world.all_move(&new, secs(0))).await;
    assert!(took > secs(10), "and nothing was launched for R");
}

/// Nothing but the revision went back. Whoever polls first sees it, and by registering anew takes it beyond where it was: the
/// others have only their heartbeats to tell, which a real backup sets back too.
#[tokio::test(start_paused = true)]
async fn a_revision_that_went_back_is_a_restored_database() {
    use metadata_api::model::Revision;
    use metadata_memory::Tamper;
    let (world, _) = World::running(2, 4).await;
    world.pass(secs(5)).await;
    let ids: Vec<_> = world.processes.iter().map(crate::world::Process::id).collect();
    world.db.tamper(Tamper::SetRevision(Revision(7)));
    world
        .until("one is back under a new id", secs(5), |world| {
            world
                .processes
                .iter()
                .any(|process| process.capture.status().ready && process.id() != ids[process.index])
        })
        .await;
}

/// A failover to a server that had not got the last commit: nobody but the controller, which was told that it is committed, can
/// know. It must not wait for ever for what it launched.
#[tokio::test(start_paused = true)]
async fn a_launch_that_a_failover_loses_is_made_again() {
    let (mut world, _) = World::running(2, 4).await;
    let beats = |world: &World| {
        world.db.read(|tables| tables.captures().map(|row| row.heartbeat_seq).collect::<Vec<_>>())
    };
    for _ in 0..20 {
        let feed = world.create(1).await[0];
        let backup = world.db.backup();
        let before = beats(&world);
        world
            .until("it is launched", secs(5), |world| {
                world.schedule(feed).unwrap().state == ScheduleState::Launched
            })
            .await;
        if beats(&world) != before {
            // A heartbeat that goes back would tell as well.
            continue;
        }
        world.outside.database_restored(true);
        world.db.restore(&backup);
        let at = world.now();
        world.until("it runs", secs(60), |world| world.all_move(&[feed], at)).await;
        world.outside.database_restored(false);
        return;
    }
    panic!("there was a heartbeat each time");
}
