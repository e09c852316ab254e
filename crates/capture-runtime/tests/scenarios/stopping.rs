//! The order of a graceful stop, and that it ends whatever is the matter.

use metadata_api::model::{CaptureState, ScheduleState};
use metadata_memory::{Conditions, Lane, Path};

use super::{ms, secs};
use crate::world::{Behaviour, World, healthy};

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_releases_where_it_stopped_and_deregisters() {
    let (world, feeds) = World::running(2, 8).await;
    // Flushes are under way most of the time.
    for feed in &feeds {
        let busy = Behaviour { pace: ms(10), latency: ms(700), ..Behaviour::default() };
        world.outside.behave(*feed, busy);
    }
    world.pass(secs(2)).await;
    let stops = world.follower(&[]);
    let (owned, id, at) = (world.owned(stops), world.processes[stops].id().unwrap(), world.now());
    world.processes[stops].stop.cancel();
    world.until("it has ended", secs(3), |world| world.processes[stops].ended() == Some(Ok(()))).await;
    assert!(world.capture(id).is_none(), "deregistered");
    let history = world.checker.history(at);
    let names: Vec<_> = history.iter().map(|seen| seen.transaction).collect();
    let place = |name| names.iter().position(|seen| *seen == name).unwrap();
    assert!(place("capture.drain") < place("owner.release"), "{names:?}");
    assert!(names.iter().rposition(|name| *name == "owner.release") < Some(place("capture.deregister")));
    for feed in owned {
        // The next owner began exactly where this one had stopped: nothing was written twice.
        let writes: Vec<_> =
            world.outside.writes().into_iter().filter(|write| write.term.changefeed == feed).collect();
        assert!(writes.windows(2).all(|pair| pair[0].to == pair[1].from), "{feed}");
        let released = history.iter().find(|seen| {
            seen.schedules.iter().any(|(key, _, after)| *key == feed && *after == ScheduleState::Removed)
        });
        let last = writes.iter().rfind(|write| write.process == stops).unwrap();
        assert!(last.at <= released.unwrap().at);
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_stops_resigns_first_and_its_successor_leads_at_once() {
    let (world, _) = World::running(3, 6).await;
    let stops = world.controller().unwrap();
    world.processes[stops].stop.cancel();
    world
        .until("another one leads", secs(2), |world| world.controller().is_some_and(|leader| leader != stops))
        .await;
    world.until("it has ended", secs(3), |world| world.processes[stops].ended() == Some(Ok(()))).await;
    let resigned = world.checker.history(secs(0)).iter().any(|seen| seen.transaction == "election.resign");
    assert!(resigned);
}

/// However the network is, for each kind of connection: the process ends, in bounded time.
#[tokio::test(start_paused = true)]
async fn a_stop_ends_whatever_is_the_matter_with_the_database() {
    let hangs = Conditions { path: Path::Hangs, ..healthy() };
    let refuses = Conditions { path: Path::Refuses, ..healthy() };
    let deaf = Conditions { answers_lost: true, ..healthy() };
    for conditions in [hangs, refuses, deaf] {
        for lanes in [&Lane::ALL[..], &[Lane::Pool], &[Lane::Watch], &[Lane::Heartbeat]] {
            for leads in [false, true] {
                let (world, _) = World::running(2, 4).await;
                let stops = if leads { world.controller().unwrap() } else { world.follower(&[]) };
                for lane in lanes {
                    world.processes[stops].link.set(*lane, conditions);
                }
                world.pass(ms(300)).await;
                world.processes[stops].stop.cancel();
                world.until("it has ended", secs(30), |world| world.processes[stops].ended().is_some()).await;
                let ended = world.processes[stops].ended().unwrap();
                assert_eq!(ended, Ok(()), "{conditions:?} on {lanes:?}");
            }
        }
    }
}

/// Regression: a stop while the first heartbeat had not succeeded yet could wait for ever.
#[tokio::test(start_paused = true)]
async fn a_capture_that_never_beat_can_stop() {
    let (mut world, _) = World::running(2, 4).await;
    let controller = world.controller().unwrap();
    let new = world.start();
    // Its connection opens, and no beat is answered in time.
    world.processes[new].link.set(Lane::Heartbeat, Conditions { back: ms(1_500), ..healthy() });
    world.until("it has registered", secs(2), |world| world.processes[new].id().is_some()).await;
    // Nothing is moved to who does not beat, but who has just registered gets its share of what is new.
    world.create(6).await;
    world.until("it was given work", secs(10), |world| !world.owned(new).is_empty()).await;
    // Nobody is left to take it away.
    world.processes[controller].kill();
    let other = world.follower(&[new]);
    world.processes[other].kill();
    world.processes[new].stop.cancel();
    world.until("it has ended", secs(30), |world| world.processes[new].ended() == Some(Ok(()))).await;
}

/// Regression: a capture that was told to stop while it registered left a row without a process, which was given work.
#[tokio::test(start_paused = true)]
async fn a_stop_during_registration_leaves_no_row() {
    let mut world = World::new(1);
    let index = world.start();
    world.processes[index].link.set(Lane::Pool, Conditions { back: secs(1), ..healthy() });
    world.until("its row is written", secs(2), |world| world.live_captures().len() == 1).await;
    assert!(world.processes[index].id().is_none(), "and it does not know");
    world.processes[index].stop.cancel();
    world.until("it has ended", secs(5), |world| world.processes[index].ended() == Some(Ok(()))).await;
    assert!(world.live_captures().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_deregistration_that_is_lost_is_repeated_and_otherwise_found_out() {
    for (lost, rows) in [(1, 1), (9, 1), (0, 1)] {
        let (world, feeds) = World::running(2, 4).await;
        let stops = world.follower(&[]);
        world.processes[stops].faults.lose_commits("capture.deregister", lost);
        world.processes[stops].stop.cancel();
        world.until("it has ended", secs(6), |world| world.processes[stops].ended() == Some(Ok(()))).await;
        assert_eq!(world.live_captures().len(), if lost > 5 { 2 } else { 1 });
        world.until("its row is gone", secs(21), |world| world.live_captures().len() == rows).await;
        world.pass(secs(2)).await;
        assert!(world.all_move(&feeds, world.now() - secs(1)));
    }
}

/// Whoever drops a capture's future does not stop it, but nothing is written any more, and nothing goes on.
#[tokio::test(start_paused = true)]
async fn a_capture_that_is_dropped_writes_no_more() {
    let (mut world, feeds) = World::running(2, 4).await;
    let victim = world.follower(&[]);
    let owned = world.owned(victim);
    world.processes[victim].drop_future();
    world
        .until("its tasks end", secs(1), |world| owned.iter().all(|feed| world.outside.running(*feed) == 0))
        .await;
    world.until("its work runs elsewhere", secs(21), |world| world.all_move(&feeds, secs(1))).await;
    assert!(world.db.read(|tables| tables.captures().all(|row| row.state != CaptureState::Draining)));
}
