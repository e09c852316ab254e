//! Each member of the observation traits does what it says.

use std::sync::Arc;

use metadata_api::MetadataError;
use metadata_api::model::{
    CaptureProgress, CaptureState, ChangefeedUpdate, FeedState, OwnedProgress, RunningError, ScheduleState,
    SecretUri, Ts, Version,
};
use metadata_api::observation::{
    CaptureObservation as _, ChangefeedAdmin as _, Elector as _, OwnerObservation, Querier as _,
};
use metadata_memory::{Conditions, Lane, Path};

use super::secs;
use crate::world::{World, healthy, progress};

#[tokio::test(start_paused = true)]
async fn querier() {
    let (world, feeds) = World::running(2, 3).await;
    let observer = world.processes[0].capture.observer().unwrap();
    world.pass(secs(3)).await;
    let some = &feeds[1..];
    assert_eq!(observer.changefeed_infos(None).await.unwrap().len(), 3);
    let infos = observer.changefeed_infos(Some(some)).await.unwrap();
    assert_eq!(infos.iter().map(|info| info.uuid).collect::<Vec<_>>(), some);
    let states = observer.changefeed_states(Some(some)).await.unwrap();
    assert!(states.iter().all(|status| status.state == FeedState::Normal) && states.len() == 2);
    assert_eq!(observer.changefeed_states(None).await.unwrap().len(), 3);
    let progresses = observer.changefeed_progresses(Some(some)).await.unwrap();
    assert_eq!(progresses.keys().copied().collect::<Vec<_>>(), some);
    assert!(some.iter().all(|feed| progresses[feed].checkpoint_ts == world.checkpoint(*feed)));
    assert_eq!(observer.changefeed_progresses(None).await.unwrap().len(), 3);
    let nobody = metadata_api::model::ChangefeedUuid(7);
    assert!(observer.changefeed_infos(Some(&[nobody])).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn elector() {
    let (mut world, _) = World::running(3, 0).await;
    let (controller, follower) = (world.controller().unwrap(), world.follower(&[]));
    let observer = world.processes[follower].capture.observer().unwrap();
    world.until("it has seen", secs(2), |_| observer.observed_controller().is_some()).await;
    assert_eq!(observer.self_info().advertise_addr, format!("process-{follower}:8300"));
    assert_eq!(Some(observer.self_info().id), world.processes[follower].id());
    let leader = observer.controller().await.unwrap();
    assert_eq!(Some(leader.id), world.processes[controller].id());
    assert_eq!(leader.state, CaptureState::Alive);
    assert_eq!(observer.captures(&[]).await.unwrap().len(), 3);
    assert_eq!(
        observer.captures(&[leader.id]).await.unwrap(),
        observer.captures(&[leader.id, leader.id]).await.unwrap()
    );
    // Everybody names the same one, for as long as its lease is valid on their clocks, and nobody after that.
    world
        .until("all agree", secs(2), |world| {
            world.processes.iter().all(|process| process.capture.status().controller == Some(leader.id))
        })
        .await;
    for index in 0..3 {
        if index != follower {
            world.processes[index].kill();
        }
    }
    world.processes[follower].link.set(Lane::Pool, Conditions { path: Path::Refuses, ..healthy() });
    world.until("it names nobody", secs(13), |_| observer.observed_controller().is_none()).await;
    assert!(matches!(observer.controller().await, Err(MetadataError::NoController)));
}

/// Whoever resigned last lets the others go first; when there are no others, it leads again.
#[tokio::test(start_paused = true)]
async fn cooldown() {
    use metadata_api::store::AdminStore as _;
    let (world, _) = World::running(3, 0).await;
    for _ in 0..5 {
        let former = world.controller().unwrap();
        world.store.controller_depose().await.unwrap();
        world
            .until("another one leads", secs(2), |world| {
                world.controller().is_some_and(|leader| leader != former)
            })
            .await;
        world.pass(secs(1)).await;
    }
    let (alone, _) = World::running(1, 0).await;
    alone.store.controller_depose().await.unwrap();
    alone.until("it leads again", secs(5), |world| world.controller() == Some(0)).await;
}

#[tokio::test(start_paused = true)]
async fn capture_observation() {
    let (world, feeds) = World::running(1, 1).await;
    let (feed, name) = (feeds[0], world.name(feeds[0]).await);
    let observer = world.processes[0].capture.observer().unwrap();
    let before = world.live_captures()[0].heartbeat_seq;
    observer.heartbeat().await.unwrap();
    assert_eq!(world.live_captures()[0].heartbeat_seq, before + 1);

    // A beat into the void is over after its limit, and its outcome unknown.
    world.processes[0].link.set(Lane::Heartbeat, Conditions { path: Path::Hangs, ..healthy() });
    let at = world.now();
    let error = observer.heartbeat().await.unwrap_err();
    assert!(matches!(error, MetadataError::Unknown { .. }), "{error}");
    assert!(world.now() - at <= secs(2), "it waits for the loop's own beat, and then 1 s");
    world.processes[0].heal();

    let owner = observer.on_owner_launched(feed).await.unwrap();
    assert_eq!((owner.self_uuid(), owner.term().epoch), (feed, world.schedule(feed).unwrap().epoch));

    world.admin.pause(&name).await.unwrap();
    world.until("it is released", secs(2), |world| world.schedule(feed).unwrap().owner.is_none()).await;
    assert!(observer.on_owner_launched(feed).await.is_err_and(|error| error.is_fenced()));
    observer.post_owner_removed(feed, Some(progress(Ts(5_000)))).await.unwrap();
    assert!(world.checkpoint(feed) < Ts(5_000), "it was released already, and that is a success");

    // Its own progress, in the application's words; what an epoch that is over says moves nothing.
    let mut said = CaptureProgress::default();
    said.0.insert(feed, OwnedProgress::new(owner.term().epoch, progress(Ts(9_000))));
    observer.advance(&said).await.unwrap();
    assert!(world.checkpoint(feed) < Ts(9_000));
}

#[tokio::test(start_paused = true)]
async fn capture_observation_after_the_seal() {
    use metadata_api::store::ControllerStore as _;
    let (world, _) = World::running(2, 0).await;
    let victim = world.follower(&[]);
    let observer = world.processes[victim].capture.observer().unwrap();
    let term = world.processes[world.controller().unwrap()].capture.status().leading.unwrap();
    let row = world.capture(observer.term().capture).unwrap();
    assert!(world.store.capture_seal(term, row.id, row.heartbeat_seq).await.unwrap());
    assert!(observer.advance(&CaptureProgress::default()).await.unwrap_err().is_fenced());
    assert!(observer.heartbeat().await.unwrap_err().is_fenced());
    observer.fenced().await;
    assert!(observer.fenced_error().is_some());
}

fn trouble(message: &str) -> RunningError {
    RunningError {
        time: chrono::DateTime::UNIX_EPOCH,
        addr: "a:1".to_owned(),
        code: "CDC:ErrTest".to_owned(),
        message: message.to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn owner_observation() {
    let (world, feeds) = World::running(1, 4).await;
    let observer = world.processes[0].capture.observer().unwrap();
    let mut owners: Vec<Arc<dyn OwnerObservation>> = Vec::new();
    for feed in &feeds {
        owners.push(observer.on_owner_launched(*feed).await.unwrap());
    }
    let update = ChangefeedUpdate {
        sink_uri: Some(SecretUri::parse("sink_uri", "blackhole://second").unwrap()),
        ..ChangefeedUpdate::default()
    };
    owners[0].set_changefeed_warning(trouble("w")).await.unwrap();
    assert_eq!(world.state(feeds[0]), Some(FeedState::Warning));
    owners[0].set_changefeed_pending(trouble("p")).await.unwrap();
    assert_eq!(world.state(feeds[0]), Some(FeedState::Pending));
    owners[0].set_changefeed_normal().await.unwrap();
    assert_eq!(world.state(feeds[0]), Some(FeedState::Normal));
    let refused = owners[0].update_changefeed(Version(1), &update).await;
    assert!(matches!(refused, Err(MetadataError::InvalidTransition { .. })), "it runs: {refused:?}");

    // What ends the run is an order to stop, by the same path as an operator's.
    owners[0].pause_changefeed().await.unwrap();
    assert_eq!(world.state(feeds[0]), Some(FeedState::Stopped));
    assert_eq!(world.schedule(feeds[0]).unwrap().state, ScheduleState::Removing);
    owners[0].update_changefeed(Version(1), &update).await.unwrap();
    owners[0].resume_changefeed().await.unwrap();
    owners[1].set_changefeed_failed(trouble("f")).await.unwrap();
    owners[2].set_changefeed_finished().await.unwrap();
    owners[3].set_changefeed_removed().await.unwrap();
    world
        .until("all of it is carried out", secs(5), |world| {
            world.moves(feeds[0], secs(0))
                && world.outside.launches_of(feeds[0]).last().unwrap().sink == "blackhole://second"
                && world.state(feeds[1]) == Some(FeedState::Failed)
                && world.state(feeds[2]) == Some(FeedState::Finished)
                && world.schedule(feeds[3]).is_none()
        })
        .await;
    for owner in owners {
        assert!(owner.set_changefeed_normal().await.unwrap_err().is_fenced(), "the term is over");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_asks_for_needs_no_controller_and_no_owner() {
    let mut world = World::new(1);
    let feed = world.create(1).await[0];
    let name = world.name(feed).await;
    world.admin.pause(&name).await.unwrap();
    world.checker.forget_checkpoint(feed);
    world.outside.expect(feed, Ts(2_000));
    world.admin.resume(&name, Some(&progress(Ts(2_000)))).await.unwrap();
    world.start();
    world.until("it runs", secs(5), |world| world.moves(feed, secs(0))).await;
    assert_eq!(world.outside.launches_of(feed)[0].start, Ts(2_000));
    let missing = metadata_api::model::ChangefeedName::new("", "missing").unwrap();
    assert!(matches!(world.admin.pause(&missing).await, Err(MetadataError::NotFound { .. })));
}
