//! The database or the network is away, for all or for one.

use metadata_api::model::ScheduleState;
use metadata_memory::{Conditions, Lane, Path};

use super::{ms, secs};
use crate::world::{Behaviour, World, healthy};

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_for_7_s_fences_nobody_and_moves_nothing() {
    let (world, feeds) = World::running(3, 9).await;
    let (before, kept) = (world.owners(), ids(&world));
    world.pass(ms(300)).await;
    world.db.pause();
    world
        .throughout("everybody may act", secs(7), |world| {
            world.processes.iter().all(|process| process.capture.status().ready)
        })
        .await;
    world.db.resume();
    let launches = world.outside.launches().len();
    world
        .throughout("everybody may act", secs(60), |world| {
            world.processes.iter().all(|process| process.capture.status().ready)
        })
        .await;
    assert_eq!(world.owners(), before, "nothing moved");
    assert_eq!(ids(&world), kept);
    assert_eq!(world.outside.launches().len(), launches, "nothing was started again");
    assert!(world.all_move(&feeds, world.now() - secs(1)));
}

/// Every way in which a database can be away.
#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_for_20_s_stops_all_and_all_run_again_5_s_after_it_returns() {
    for refuses in [false, true] {
        for after in [0, 130, 470, 810] {
            let (world, feeds) = World::running(3, 9).await;
            let (before, kept) = (world.owners(), ids(&world));
            world.pass(ms(after)).await;
            let gone_at = world.now();
            if refuses {
                for process in &world.processes {
                    process.link.set_all(Conditions { path: Path::Refuses, ..healthy() });
                }
            } else {
                world.db.pause();
            }
            world
                .until("everybody has fenced", secs(10), |world| {
                    world.processes.iter().all(|process| !process.capture.status().ready)
                })
                .await;
            world
                .until("every task has ended", secs(2), |world| {
                    feeds.iter().all(|feed| world.outside.running(*feed) == 0)
                })
                .await;
            world
                .throughout("nothing is written", gone_at + secs(20) - world.now(), |world| {
                    feeds.iter().all(|feed| world.outside.running(*feed) == 0)
                })
                .await;
            let back_at = world.now();
            world.processes.iter().for_each(crate::world::Process::heal);
            world.db.resume();
            world.until("everything runs", secs(5), |world| world.all_move(&feeds, back_at)).await;
            world.pass(secs(60)).await;
            assert_eq!(world.owners(), before, "nothing moved");
            assert_eq!(ids(&world), kept, "they kept their ids");
        }
    }
}

fn ids(world: &World) -> Vec<Option<metadata_api::model::CaptureId>> {
    world.processes.iter().map(crate::world::Process::id).collect()
}

#[tokio::test(start_paused = true)]
async fn a_capture_that_is_cut_off_is_sealed_and_comes_back_under_a_new_id() {
    let (world, _) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let (lost, at, id) = (world.owned(victim), world.now(), world.processes[victim].id().unwrap());
    // What it sends now arrives much later, whether it waits or not.
    let slow = Conditions { there: secs(40), late: true, ..healthy() };
    world.processes[victim].link.set(Lane::Pool, slow);
    world.pass(secs(2)).await;
    world.processes[victim].cut();
    world.until("its work runs elsewhere", secs(21), |world| world.all_elsewhere(&lost, &[victim])).await;
    let last = world.outside.writes().iter().rfind(|write| write.process == victim).unwrap().at;
    assert!(last <= at + secs(2 + 12), "its last write, at {last:?}, was within deadline and grace");
    world.pass(secs(30)).await;
    assert!(world.capture(id).is_none(), "its rows are gone");
    world.processes[victim].heal();
    world
        .until("it is back under a new id", secs(5), |world| {
            let status = world.processes[victim].capture.status();
            status.ready && status.id != Some(id)
        })
        .await;
    world.until("it gets work", secs(10), |world| world.owned(victim).len() >= 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_suspended_flushes_nothing_more_under_its_old_epochs() {
    let (world, _) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let (lost, at) = (world.owned(victim), world.now());
    for feed in &lost {
        // So short that its limit alone would let it pass the deadline.
        world.outside.behave(*feed, Behaviour { timeout: secs(1), ..Behaviour::default() });
    }
    world.pass(secs(1)).await;
    let at = at + secs(1);
    let epochs: Vec<_> = lost.iter().map(|feed| world.schedule(*feed).unwrap().epoch).collect();
    world.processes[victim].suspend();
    world.until("its work runs elsewhere", secs(21), |world| world.all_elsewhere(&lost, &[victim])).await;
    world.pass(at + secs(60) - world.now()).await;
    let resumed_at = world.now();
    world.processes[victim].resume();
    world.until("it is back", secs(5), |world| world.processes[victim].capture.status().ready).await;
    world.until("it gets work", secs(20), |world| world.owned(victim).len() == 3).await;
    let zombies = world.outside.writes().into_iter().filter(|write| {
        write.process == victim && write.at >= resumed_at && epochs.contains(&write.term.epoch)
    });
    assert_eq!(zombies.count(), 0);
}

/// A suspension that is shorter than R, at each length: whatever happens, nothing is lost and all go on.
#[tokio::test(start_paused = true)]
async fn a_short_suspension_loses_nothing() {
    for length in [1, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17] {
        let (world, feeds) = World::running(2, 6).await;
        let victim = world.follower(&[]);
        world.processes[victim].suspend();
        world.pass(secs(length)).await;
        world.processes[victim].resume();
        world.pass(secs(25)).await;
        assert!(world.all_move(&feeds, world.now() - secs(1)), "after {length} s\n{world:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_capture_that_beats_but_does_not_see_its_orders_fences_within_10_s_and_then_ends() {
    let (world, _) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let at = world.now();
    let lost = world.owned(victim);
    world.processes[victim].link.set(Lane::Watch, Conditions { path: Path::Hangs, ..healthy() });
    world.until("it may not act", secs(10), |world| !world.processes[victim].capture.status().ready).await;
    world.until("it has ended", secs(10), |world| world.processes[victim].ended().is_some()).await;
    assert!(world.now() - at > secs(15));
    assert!(world.processes[victim].ended().unwrap().unwrap_err().contains("no poll"));
    world.until("its work runs elsewhere", secs(21), |world| world.all_elsewhere(&lost, &[victim])).await;
}

#[tokio::test(start_paused = true)]
async fn a_capture_that_sees_its_orders_but_does_not_beat_fences_within_10_s_and_is_sealed() {
    let (world, _) = World::running(3, 9).await;
    let victim = world.follower(&[]);
    let (id, lost) = (world.processes[victim].id(), world.owned(victim));
    world.processes[victim].link.set(Lane::Heartbeat, Conditions { path: Path::Hangs, ..healthy() });
    world.until("it may not act", secs(10), |world| !world.processes[victim].capture.status().ready).await;
    world.until("its work runs elsewhere", secs(21), |world| world.all_elsewhere(&lost, &[victim])).await;
    world.processes[victim].heal();
    world
        .until("it is back under a new id", secs(10), |world| {
            let status = world.processes[victim].capture.status();
            status.ready && status.id != id
        })
        .await;
}

/// A beat whose answers never come: the row moves, and the capture must not count on it.
#[tokio::test(start_paused = true)]
async fn heartbeats_whose_answers_are_lost_extend_nothing() {
    let (world, feeds) = World::running(2, 4).await;
    let victim = world.follower(&[]);
    world.processes[victim].link.set(Lane::Heartbeat, Conditions { answers_lost: true, ..healthy() });
    world.until("it may not act", secs(10), |world| !world.processes[victim].capture.status().ready).await;
    let id = world.processes[victim].id();
    world.pass(secs(20)).await;
    world.processes[victim].heal();
    let at = world.now();
    world.until("everything runs", secs(5), |world| world.all_move(&feeds, at)).await;
    assert_eq!(world.processes[victim].id(), id, "it was never stale");
}

#[tokio::test(start_paused = true)]
async fn a_mass_failure_is_waited_for_and_then_acted_on() {
    let (world, feeds) = World::running(6, 12).await;
    let controller = world.controller().unwrap();
    let at = world.now();
    let cut: Vec<usize> = (0..6).filter(|index| *index != controller).take(4).collect();
    let lost: Vec<_> = cut.iter().flat_map(|index| world.owned(*index)).collect();
    for index in &cut {
        world.processes[*index].cut();
    }
    world
        .throughout("nobody is declared offline", secs(15 + 58), |world| world.live_captures().len() == 6)
        .await;
    world.until("everything runs", secs(21 - 15 + 2), |world| world.all_elsewhere(&lost, &cut)).await;
    assert_eq!(world.live_captures().len(), 2);
    assert!(world.all_move(&feeds, at));
}

#[tokio::test(start_paused = true)]
async fn a_mass_failure_that_ends_in_time_moves_nothing() {
    let (world, feeds) = World::running(6, 12).await;
    let controller = world.controller().unwrap();
    let (at, before) = (world.now(), world.owners());
    for process in world.processes.iter().filter(|process| process.index != controller).take(4) {
        process.cut();
    }
    world.pass(secs(60)).await;
    world.processes.iter().for_each(crate::world::Process::heal);
    world.until("everything runs", secs(5), |world| world.all_move(&feeds, at + secs(60))).await;
    world.pass(secs(60)).await;
    assert_eq!(world.owners(), before);
}

/// Nobody is judged through the judge's own outage.
#[tokio::test(start_paused = true)]
async fn a_controller_that_was_cut_off_itself_seals_nobody_for_what_it_missed() {
    let (world, _) = World::running(3, 9).await;
    let controller = world.controller().unwrap();
    let since = world.now();
    // Longer than R for the others' numbers to stand still before its eyes, shorter than the lease.
    world.processes[controller].link.set_all(Conditions { path: Path::Refuses, ..healthy() });
    world.pass(secs(8)).await;
    world.processes[controller].heal();
    world.pass(secs(60)).await;
    assert!(world.checker.history(since).iter().all(|seen| seen.sealed.is_empty()));
}

/// The order of a pause is carried out while nobody leads.
#[tokio::test(start_paused = true)]
async fn a_pause_needs_no_controller() {
    use metadata_api::observation::ChangefeedAdmin as _;
    let (mut world, feeds) = World::running(3, 9).await;
    let controller = world.controller().unwrap();
    world.processes[controller].kill();
    let feed =
        *feeds.iter().find(|feed| world.owner(**feed).is_some_and(|owner| owner != controller)).unwrap();
    let name = world.name(feed).await;
    world.admin.pause(&name).await.unwrap();
    world
        .until("it has stopped", secs(3), |world| {
            world.schedule(feed).unwrap().state == ScheduleState::Removed && world.outside.running(feed) == 0
        })
        .await;
    assert_eq!(world.controller(), None);
    assert_eq!(world.checkpoint(feed), world.outside.high(feed));
}

/// Everybody was away; one comes back a little later than the controller, to which its number has stood still for 25 s.
#[tokio::test(start_paused = true)]
async fn nobody_is_judged_through_an_outage() {
    let (world, feeds) = World::running(3, 9).await;
    let (late, before, kept) = (world.follower(&[]), world.owners(), ids(&world));
    world.processes.iter().for_each(crate::world::Process::cut);
    world.pass(secs(20)).await;
    world.processes.iter().filter(|process| process.index != late).for_each(crate::world::Process::heal);
    world.pass(secs(5)).await;
    world.processes[late].heal();
    world.pass(secs(5)).await;
    assert!(world.all_move(&feeds, world.now() - secs(1)));
    assert_eq!((world.owners(), ids(&world)), (before, kept));
}
