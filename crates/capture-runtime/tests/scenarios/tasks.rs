//! What tasks do, and what becomes of their changefeeds.

use metadata_api::model::{ChangefeedUpdate, FeedState, ScheduleState, SecretUri, Ts, Version};
use metadata_api::observation::{CaptureObservation as _, ChangefeedAdmin as _};
use metadata_memory::{Conditions, Lane};

use super::{ms, secs};
use crate::world::{Behaviour, Incident, START, World, healthy};

#[tokio::test(start_paused = true)]
async fn a_task_that_fails_is_pending_then_warning_then_normal() {
    let (world, feeds) = World::running(1, 1).await;
    let feed = feeds[0];
    let stored = |world: &World| world.db.read(|tables| tables.status(feed).unwrap().clone());
    for _ in 0..3 {
        world.outside.incident(feed, Incident::FailsRetryably);
        let launches = world.outside.launches_of(feed).len();
        world.until("it says so", secs(8), |world| world.state(feed) == Some(FeedState::Pending)).await;
        assert_eq!(stored(&world).error.unwrap().code, "CDC:ErrTest");
        // It stays silent until its first flush, so that both states are seen.
        world.outside.behave(feed, Behaviour { pace: secs(5), ..Behaviour::default() });
        world
            .until("it runs again", secs(12), |world| world.outside.launches_of(feed).len() > launches)
            .await;
        world.until("it says so", secs(3), |world| world.state(feed) == Some(FeedState::Warning)).await;
        assert_eq!(stored(&world).warning.unwrap().code, "CDC:ErrTest");
        world.until("it is fine", secs(9), |world| world.state(feed) == Some(FeedState::Normal)).await;
        world.outside.behave(feed, Behaviour::default());
    }
    let epoch = world.schedule(feed).unwrap().epoch;
    let launches = world.outside.launches_of(feed);
    assert!(launches.iter().all(|launched| launched.term.epoch == epoch), "it is the same term");
    assert_eq!(launches.last().unwrap().launch, 4);
}

/// Regression: a capture whose changefeeds all failed in one moment asked for as many connections to say so.
#[tokio::test(start_paused = true)]
async fn many_failures_at_once_are_reported_by_turns() {
    let (world, feeds) = World::running(1, 30).await;
    world.processes[0].link.set(Lane::Pool, Conditions { there: ms(300), ..healthy() });
    for feed in &feeds {
        world.outside.incident(*feed, Incident::FailsRetryably);
    }
    let pending =
        |world: &World| feeds.iter().filter(|feed| world.state(**feed) == Some(FeedState::Pending)).count();
    world.until("the first says so", secs(8), |world| pending(world) > 0).await;
    assert!(pending(&world) <= 16, "{} were written at a time", pending(&world));
    world.until("all say so", secs(8), |world| pending(world) == feeds.len()).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fails_without_moving_waits_longer_each_time() {
    let (world, feeds) = World::running(1, 1).await;
    let feed = feeds[0];
    for _ in 0..5 {
        world.outside.incident(feed, Incident::FailsRetryably);
    }
    let at = world.now();
    world.until("the last failure", secs(400), |world| world.outside.launches_of(feed).len() == 6).await;
    let took = world.now() - at;
    // 10 + 20 + 40 + 80 + 160 s, give or take a tenth; and a moment for each to fail.
    assert!(took >= secs(279) && took <= secs(341 + 5), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_only_fails_is_given_up() {
    let (world, feeds) = World::running(2, 2).await;
    let feed = feeds[0];
    for _ in 0..100 {
        world.outside.incident(feed, Incident::FailsRetryably);
    }
    let at = world.now();
    world.until("it has failed", secs(60 * 45), |world| world.state(feed) == Some(FeedState::Failed)).await;
    let took = world.now() - at;
    assert!(took >= secs(30 * 60) && took <= secs(42 * 60), "{took:?}");
    let error = world.db.read(|tables| tables.status(feed).unwrap().error.clone()).unwrap();
    assert_eq!(error.code, "CDC:ErrChangefeedUnretryable");
    assert!(error.message.contains("CDC:ErrTest"), "{}", error.message);
    let schedule = world.schedule(feed).unwrap();
    assert_eq!((schedule.state, schedule.owner), (ScheduleState::Removed, None));
    assert_eq!(world.checkpoint(feed), world.outside.high(feed));
}

/// The database is away for longer than the changefeed's patience: that is not its fault.
#[tokio::test(start_paused = true)]
async fn an_outage_is_not_counted_as_failing() {
    let (world, feeds) = World::running(1, 1).await;
    let feed = feeds[0];
    for _ in 0..5 {
        world.outside.incident(feed, Incident::FailsRetryably);
    }
    world.until("it waits", secs(5), |world| world.state(feed) == Some(FeedState::Pending)).await;
    let launches = world.outside.launches_of(feed).len();
    world.processes[0].cut();
    world.pass(secs(31 * 60)).await;
    world.processes[0].heal();
    world
        .until("it was tried twice again", secs(60), |world| {
            world.outside.launches_of(feed).len() > launches + 1
        })
        .await;
    assert_ne!(world.state(feed), Some(FeedState::Failed));
}

#[tokio::test(start_paused = true)]
async fn a_new_owner_of_a_pending_changefeed_tries_at_once_and_tells_what_was_wrong() {
    let (mut world, feeds) = World::running(2, 2).await;
    let feed = feeds[0];
    world.outside.behave(feed, Behaviour { pace: secs(5), ..Behaviour::default() });
    for _ in 0..3 {
        world.outside.incident(feed, Incident::FailsRetryably);
    }
    world.until("it waits", secs(40), |world| world.outside.launches_of(feed).len() == 3).await;
    world.until("it says so", secs(3), |world| world.state(feed) == Some(FeedState::Pending)).await;
    let victim = world.process_of(world.schedule(feed).unwrap().owner.unwrap()).unwrap();
    world.processes[victim].kill();
    world.until("it runs elsewhere", secs(21), |world| world.outside.launches_of(feed).len() == 4).await;
    world.until("it says so", secs(3), |world| world.state(feed) == Some(FeedState::Warning)).await;
    let warning = world.db.read(|tables| tables.status(feed).unwrap().warning.clone()).unwrap();
    assert_eq!(warning.code, "CDC:ErrTest");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_or_ends_by_itself_is_tried_again() {
    let (world, feeds) = World::running(1, 2).await;
    world.outside.incident(feeds[0], Incident::Panics);
    world.outside.incident(feeds[1], Incident::EndsByItself);
    world.pass(secs(2)).await;
    assert!(feeds.iter().all(|feed| world.state(*feed) == Some(FeedState::Pending)));
    let at = world.now();
    world.until("both run again", secs(12), |world| world.all_move(&feeds, at)).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fails_for_good_is_released_as_failed() {
    let (world, feeds) = World::running(2, 2).await;
    let feed = feeds[0];
    world.outside.incident(feed, Incident::FailsFatally);
    world.until("it has failed", secs(3), |world| world.state(feed) == Some(FeedState::Failed)).await;
    let schedule = world.schedule(feed).unwrap();
    assert_eq!((schedule.state, schedule.owner), (ScheduleState::Removed, None), "in the same transaction");
    assert_eq!(world.checkpoint(feed), world.outside.high(feed));
    let error = world.db.read(|tables| tables.status(feed).unwrap().error.clone()).unwrap();
    assert_eq!(error.code, "CDC:ErrStartTsBeforeGC");
    let launches = world.outside.launches_of(feed).len();
    world.pass(secs(60)).await;
    assert_eq!(world.outside.launches_of(feed).len(), launches, "it waits for an operator");
    world.admin.resume(&world.name(feed).await, None).await.unwrap();
    world.until("it runs", secs(3), |world| world.all_move(&feeds, secs(0))).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_reaches_its_target_is_released_as_finished() {
    let (mut world, _) = World::running(2, 2).await;
    let feed = world.create_one(|new| new.target_ts = Ts(START.0 + 7)).await;
    world.until("it has finished", secs(10), |world| world.state(feed) == Some(FeedState::Finished)).await;
    assert_eq!(world.schedule(feed).unwrap().state, ScheduleState::Removed);
    assert_eq!(world.checkpoint(feed), Ts(START.0 + 7));
    assert_eq!(world.outside.high(feed), Ts(START.0 + 7));
}

/// Its last word is lost twice: said and not heard, and not said at all.
#[tokio::test(start_paused = true)]
async fn a_finished_changefeed_whose_release_is_lost_is_finished_all_the_same() {
    let (mut world, _) = World::running(1, 0).await;
    let faults = &world.processes[0].faults;
    faults.lose_commits("owner.release", 1);
    faults.lose_answers("owner.release", 1);
    let feed = world.create_one(|new| new.target_ts = Ts(START.0 + 7)).await;
    world.until("it has finished", secs(10), |world| world.state(feed) == Some(FeedState::Finished)).await;
    world.pass(secs(5)).await;
    assert_eq!(world.processes[0].faults.left(), 0);
    assert_eq!(world.state(feed), Some(FeedState::Finished));
    assert_eq!(world.outside.running(feed), 0);
}

#[tokio::test(start_paused = true)]
async fn an_update_is_picked_up_on_resume() {
    let (world, feeds) = World::running(2, 2).await;
    let (feed, name) = (feeds[0], world.name(feeds[0]).await);
    world.admin.pause(&name).await.unwrap();
    world
        .until("it has stopped", secs(2), |world| {
            world.schedule(feed).unwrap().state == ScheduleState::Removed
        })
        .await;
    assert_eq!(world.checkpoint(feed), world.outside.high(feed), "released where it stopped");
    let update = ChangefeedUpdate {
        sink_uri: Some(SecretUri::parse("sink_uri", "blackhole://second").unwrap()),
        ..ChangefeedUpdate::default()
    };
    world.admin.update(&name, Version(1), &update).await.unwrap();
    world.admin.resume(&name, None).await.unwrap();
    world.until("it runs", secs(3), |world| world.moves(feed, secs(0))).await;
    assert_eq!(world.outside.launches_of(feed).last().unwrap().sink, "blackhole://second");
}

/// A flush of unknown outcome may still happen: nobody else may start before this process has ended.
#[tokio::test(start_paused = true)]
async fn a_flush_of_unknown_outcome_is_never_released() {
    let (mut world, feeds) = World::running(2, 2).await;
    let (feed, name) = (feeds[0], world.name(feeds[0]).await);
    let owner = world.owner(feed).unwrap();
    world.outside.incident(feed, Incident::LosesSightOfAFlush);
    world.until("it ended", secs(2), |world| world.outside.running(feed) == 0).await;
    world.admin.pause(&name).await.unwrap();
    world
        .throughout("it is not released, nor started again", secs(60), |world| {
            world.schedule(feed).unwrap().state == ScheduleState::Removing && world.outside.running(feed) == 0
        })
        .await;
    world.processes[owner].stop.cancel();
    world.until("the process has ended", secs(5), |world| world.processes[owner].ended().is_some()).await;
    assert_eq!(world.processes[owner].ended(), Some(Ok(())));
    world.processes[owner].bury();
    assert_eq!(world.schedule(feed).unwrap().state, ScheduleState::Removing, "still not by itself");
    world
        .until("the controller takes it", secs(21), |world| {
            world.schedule(feed).unwrap().state == ScheduleState::Removed
        })
        .await;
}

/// It asks its admission again and again, and is refused; the process ends, and only then is its work somebody else's.
#[tokio::test(start_paused = true)]
async fn a_task_that_ignores_its_stop_ends_the_process() {
    let (mut world, feeds) = World::running(2, 4).await;
    let victim = world.follower(&[]);
    let stubborn = world.owned(victim)[0];
    world.outside.behave(stubborn, Behaviour { ignores_stop: true, ..Behaviour::default() });
    world.pass(secs(1)).await;
    let at = world.now();
    world.processes[victim].cut();
    world
        .until("the process ends", secs(10 + 4 + 1), |world| world.processes[victim].ended().is_some())
        .await;
    let error = world.processes[victim].ended().unwrap().unwrap_err();
    assert!(error.contains("TaskStuck") && error.contains(&stubborn.to_string()), "{error}");
    assert!(world.outside.refused() > 5);
    assert!(world.outside.last_write(stubborn).unwrap().at < at + secs(12));
    world.processes[victim].bury();
    world.until("everything runs", secs(10), |world| world.all_move(&feeds, at)).await;
}

/// A task that was merely told to stop may take its time; it stays `Removing`, its capture lives on.
#[tokio::test(start_paused = true)]
async fn a_task_that_takes_its_time_to_stop_is_waited_for() {
    let (world, feeds) = World::running(2, 4).await;
    let (feed, name) = (feeds[0], world.name(feeds[0]).await);
    world.outside.behave(feed, Behaviour { stops_in: secs(40), ..Behaviour::default() });
    world.admin.pause(&name).await.unwrap();
    world
        .throughout("it is not released", secs(40), |world| {
            world.schedule(feed).unwrap().state == ScheduleState::Removing
        })
        .await;
    world
        .until("it is released", secs(2), |world| {
            world.schedule(feed).unwrap().state == ScheduleState::Removed
        })
        .await;
    assert!(world.processes.iter().all(|process| process.capture.status().ready));
}

/// Regression: tasks that were fenced one after another were judged by the first one's time.
#[tokio::test(start_paused = true)]
async fn each_fenced_task_has_its_own_time_to_end() {
    let (world, feeds) = World::running(1, 4).await;
    for feed in &feeds {
        let slow = Behaviour { pace: secs(30), stops_in: secs(3), ..Behaviour::default() };
        world.outside.behave(*feed, slow);
    }
    world.pass(secs(1)).await;
    let observer = world.processes[0].capture.observer().unwrap();
    for feed in &feeds {
        observer.post_owner_removed(*feed, None).await.unwrap();
        world.pass(secs(2)).await;
    }
    world.pass(secs(10)).await;
    assert!(world.processes[0].ended().is_none(), "{world:?}");
}

/// Regression: a task that was started again while the write of its last reports was under way began before them, and then
/// took the stored checkpoint back (I6).
#[tokio::test(start_paused = true)]
async fn a_relaunch_begins_where_the_last_launch_reported() {
    let (world, feeds) = World::running(1, 1).await;
    let feed = feeds[0];
    // From now on the progress cannot be written, while everything else is answered at once.
    world.processes[0].faults.refuse("capture.advance", 1_000);
    world.outside.behave(feed, Behaviour { pace: ms(50), ..Behaviour::default() });
    world.pass(ms(300)).await;
    world.outside.incident(feed, Incident::FailsRetryably);
    world.until("it failed", secs(1), |world| world.outside.running(feed) == 0).await;
    world.outside.behave(feed, Behaviour { pace: secs(4), ..Behaviour::default() });
    let high = world.outside.high(feed);
    world.until("it runs again", secs(12), |world| world.outside.running(feed) == 1).await;
    assert_eq!(world.outside.launches_of(feed).last().unwrap().start, high);
    world.pass(secs(10)).await;
}

/// The store's code panics while something waits for its answer.
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_store_is_an_error_like_any_other() {
    let (world, feeds) = World::running(1, 1).await;
    let name = world.name(feeds[0]).await;
    world.processes[0].faults.panic_in("capture.advance");
    world.processes[0].faults.panic_in("owner.release");
    world.pass(secs(3)).await;
    world.admin.pause(&name).await.unwrap();
    world
        .until("it is released", secs(3), |world| {
            world.schedule(feeds[0]).unwrap().state == ScheduleState::Removed
        })
        .await;
    assert_eq!(world.checkpoint(feeds[0]), world.outside.high(feeds[0]));
    assert_eq!(world.processes[0].faults.left(), 0);
}

/// Regression: a release that had to wait took along whatever launch it found when its turn came.
#[tokio::test(start_paused = true)]
async fn a_release_is_of_the_launch_that_stopped() {
    for refusals in 0..6 {
        let (world, feeds) = World::running(1, 1).await;
        let (feed, name) = (feeds[0], world.name(feeds[0]).await);
        let before = world.schedule(feed).unwrap().epoch;
        world.processes[0].faults.lose_answers("owner.release", 1);
        world.admin.pause(&name).await.unwrap();
        world
            .until("it is released", secs(2), |world| {
                world.schedule(feed).unwrap().state == ScheduleState::Removed
            })
            .await;
        // Each try is refused 7 times inside the store; then the runtime waits half a second.
        world.processes[0].faults.refuse("owner.release", 7 * refusals);
        world.admin.resume(&name, None).await.unwrap();
        world.until("it runs", secs(8), |world| world.moves(feed, secs(0))).await;
        let history = world.checker.history(secs(0));
        let released = history.iter().filter(|seen| seen.transaction == "owner.release").count();
        assert_eq!(released, 1, "it was released once, with {refusals} refusals");
        assert!(world.schedule(feed).unwrap().epoch > before);
    }
}
