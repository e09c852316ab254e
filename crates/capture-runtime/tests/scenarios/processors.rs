//! Processors: what the controller attaches reaches the capture and the changefeed's owner, by whatever path.

use capture_runtime::controller::ControllerObserver;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use metadata_api::MetadataError;
use metadata_api::model::{
    ChangefeedUuid, ProcessorAssignment, ProcessorSchedule, ProcessorTarget, ProcessorTerm, ScheduleState,
    ScheduleTarget, Version,
};
use metadata_api::observation::{
    CaptureObservation as _, ChangefeedAdmin as _, ControllerObservation as _, ProcessorChange,
};
use metadata_api::store::{OwnerStore as _, QueryStore as _};
use metadata_memory::{Table, Tamper};
use serde_json::json;

use super::{ms, secs};
use crate::world::World;

/// A world whose captures leave processors to the test.
async fn by_hand(captures: usize, changefeeds: usize) -> (World, Vec<ChangefeedUuid>) {
    let mut world = World::new(1);
    world.processors_by_hand = true;
    world.filled(captures, changefeeds).await
}

type Changes = BoxStream<'static, ProcessorChange>;

/// Within two polls and the round trips of them.
async fn next(changes: &mut Changes) -> ProcessorChange {
    let news = tokio::time::timeout(ms(1_500), changes.next()).await;
    news.expect("news within 1.5 s").expect("the stream goes on")
}

/// Nothing is said for three polls.
async fn silent(changes: &mut Changes) -> bool {
    tokio::time::timeout(ms(1_500), changes.next()).await.is_err()
}

/// A capture's orders to be a processor.
fn orders(world: &World, process: usize) -> Changes {
    world.processes[process].capture.observer().unwrap().processor_changes()
}

/// What a changefeed's owner sees of its processors.
async fn seen_by_owner(world: &World, feed: ChangefeedUuid) -> Changes {
    let owner = world.processes[world.owner(feed).unwrap()].capture.observer().unwrap();
    owner.on_owner_launched(feed).await.unwrap().processor_changes()
}

/// The elected capture's view.
fn controller(world: &World) -> ControllerObserver {
    let observer = world.processes[world.controller().unwrap()].capture.observer().unwrap();
    let term = observer.leading().unwrap();
    ControllerObserver::new(observer, term)
}

async fn row(world: &World, feed: ChangefeedUuid, process: usize) -> Option<ProcessorSchedule> {
    let id = world.processes[process].id().unwrap();
    world.store.processor_schedules(feed).await.unwrap().into_iter().find(|row| row.capture == id)
}

/// Asks for one processor, as the controller.
async fn set(world: &World, feed: ChangefeedUuid, process: usize, state: ScheduleState) -> ProcessorTerm {
    let target = ProcessorTarget {
        capture: world.processes[process].id().unwrap(),
        expected_version: row(world, feed, process).await.map(|row| row.version),
        state,
        assignment: ProcessorAssignment(json!({ "tables": [process] })),
    };
    controller(world).set_processors(feed, &[target]).await.unwrap()[0].term()
}

async fn attach(world: &World, feed: ChangefeedUuid, process: usize) -> ProcessorTerm {
    set(world, feed, process, ScheduleState::Launched).await
}

async fn post_removed(world: &World, feed: ChangefeedUuid, process: usize) {
    let observer = world.processes[process].capture.observer().unwrap();
    observer.post_processor_removed(feed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn attached_and_detached() {
    let (world, feeds) = by_hand(3, 1).await;
    let (feed, owner) = (feeds[0], world.owner(feeds[0]).unwrap());
    let (one, other) = ((owner + 1) % 3, (owner + 2) % 3);
    let (mut ordered, mut others) = (orders(&world, one), orders(&world, other));
    let mut seen = seen_by_owner(&world, feed).await;

    let term = attach(&world, feed, one).await;
    let change = next(&mut ordered).await;
    assert_eq!((change.term, change.state), (term, ScheduleState::Launched));
    assert_eq!(change.assignment.0, json!({ "tables": [one] }));
    assert_eq!(term.owner_epoch, world.schedule(feed).unwrap().epoch);
    assert_eq!(next(&mut seen).await, change);

    // Whoever begins to listen later hears what is attached; two attachments are two.
    assert_eq!(next(&mut orders(&world, one)).await, change);
    let second = attach(&world, feed, other).await;
    assert_eq!(next(&mut others).await.term, second);
    assert_eq!(next(&mut seen).await.term, second);

    let detached = set(&world, feed, one, ScheduleState::Removing).await;
    assert_eq!(detached, term, "the term stays until it has stopped");
    for changes in [&mut ordered, &mut seen] {
        let change = next(changes).await;
        assert_eq!((change.term, change.state), (term, ScheduleState::Removing));
    }
    world.pass(secs(12)).await;
    assert_eq!(row(&world, feed, one).await.unwrap().state, ScheduleState::Removing);
    for _ in 0..2 {
        post_removed(&world, feed, one).await;
    }
    for changes in [&mut ordered, &mut seen] {
        let change = next(changes).await;
        assert_eq!((change.term, change.state), (term, ScheduleState::Removed));
    }

    // Its row is used again, under another epoch.
    let again = attach(&world, feed, one).await;
    assert!(again.epoch > term.epoch);
    assert_eq!(next(&mut ordered).await.term, again);
    assert_eq!(next(&mut seen).await.term, again);
    world.pass(secs(25)).await;
    assert!(
        silent(&mut ordered).await && silent(&mut others).await && silent(&mut seen).await,
        "and nothing is said twice"
    );
}

/// Between two looks it stopped and was attached anew: the states are equal, the epochs are not.
#[tokio::test(start_paused = true)]
async fn a_new_attachment_at_equal_state_is_seen() {
    let (world, feeds) = by_hand(2, 1).await;
    let (feed, owner) = (feeds[0], world.owner(feeds[0]).unwrap());
    let mut seen = seen_by_owner(&world, feed).await;
    // Being owner and processor are two things.
    let mut ordered = orders(&world, owner);
    let first = attach(&world, feed, owner).await;
    assert_eq!(next(&mut ordered).await.term, first);
    assert_eq!(next(&mut seen).await.term, first);
    world.store.processor_release(first).await.unwrap();
    let second = attach(&world, feed, owner).await;
    for changes in [&mut ordered, &mut seen] {
        let mut change = next(changes).await;
        while change.term != second {
            assert_ne!(change.state, ScheduleState::Launched, "the old one is never ordered again");
            change = next(changes).await;
        }
        assert_eq!(change.state, ScheduleState::Launched);
    }
    assert!(world.schedule(feed).unwrap().state == ScheduleState::Launched && world.moves(feed, secs(0)));
    // What is over is refused, whoever says it: its late word does not end the new one.
    let late = world.store.processor_release(first).await;
    assert!(matches!(late, Err(MetadataError::Fenced { .. })), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_sealed_capture_is_no_processor_any_more() {
    let (world, feeds) = by_hand(3, 1).await;
    let (feed, owner) = (feeds[0], world.owner(feeds[0]).unwrap());
    let lost = world.follower(&[owner]);
    let (mut ordered, mut seen) = (orders(&world, lost), seen_by_owner(&world, feed).await);
    let term = attach(&world, feed, lost).await;
    assert_eq!(next(&mut ordered).await.term, term);
    assert_eq!(next(&mut seen).await.term, term);
    let at = world.now();
    world.processes[lost].cut();
    let change = seen.next().await.unwrap();
    assert_eq!((change.term, change.state), (term, ScheduleState::Removed));
    assert!((secs(14)..secs(19)).contains(&(world.now() - at)), "{:?}", world.now() - at);
    world.processes[lost].heal();
    let change = ordered.next().await.unwrap();
    assert_eq!((change.term, change.state), (term, ScheduleState::Removed), "it hears that it is over");
    assert!(
        ordered.next().await.is_none(),
        "and nothing after that: its next incarnation is another capture"
    );
    assert!(world.moves(feed, at), "the owner went on");
}

/// A row that is gone leaves no revision behind, but the count does not match.
#[tokio::test(start_paused = true)]
async fn what_no_revision_tells_of_is_found() {
    let (world, feeds) = by_hand(2, 1).await;
    let (feed, owner) = (feeds[0], world.owner(feeds[0]).unwrap());
    let (mut ordered, mut seen) = (orders(&world, 1 - owner), seen_by_owner(&world, feed).await);
    let term = attach(&world, feed, 1 - owner).await;
    assert_eq!(next(&mut ordered).await.term, term);
    assert_eq!(next(&mut seen).await.term, term);
    world.db.tamper(Tamper::DeleteAll(Table::Processor));
    let change = next(&mut ordered).await;
    assert_eq!((change.term, change.state), (term, ScheduleState::Removed));
    let at = world.now();
    let change = seen.next().await.unwrap();
    assert_eq!((change.term, change.state), (term, ScheduleState::Removed));
    assert!(world.now() - at < secs(11), "the owner looks again at least each 10 s");
}

#[tokio::test(start_paused = true)]
async fn a_restored_database_ends_every_attachment() {
    let (world, feeds) = by_hand(2, 1).await;
    let (feed, owner) = (feeds[0], world.owner(feeds[0]).unwrap());
    let backup = world.db.backup();
    let (mut ordered, mut seen) = (orders(&world, 1 - owner), seen_by_owner(&world, feed).await);
    let term = attach(&world, feed, 1 - owner).await;
    assert_eq!(next(&mut ordered).await.term, term);
    assert_eq!(next(&mut seen).await.term, term);
    world.pass(secs(5)).await;
    let ids: Vec<_> = world.processes.iter().map(crate::world::Process::id).collect();
    world.outside.database_restored(true);
    world.db.restore(&backup);
    let change = next(&mut ordered).await;
    assert_eq!((change.term, change.state), (term, ScheduleState::Removed));
    assert!(ordered.next().await.is_none());
    assert!(seen.next().await.is_none(), "the owner is none any more, and says no more");
    world
        .until("both are back under new ids", secs(5), |world| {
            world
                .processes
                .iter()
                .all(|process| process.capture.status().ready && process.id() != ids[process.index])
        })
        .await;
    world.outside.database_restored(false);
    let at = world.now();
    world.until("it runs", secs(45), |world| world.moves(feed, at)).await;
    for process in 0..2 {
        assert!(silent(&mut orders(&world, process)).await, "what the backup does not know is not attached");
    }
    assert!(silent(&mut seen_by_owner(&world, feed).await).await);
}

/// A processor outlives its owner: the next owner is told of it, and the planner launches none before it has stopped.
#[tokio::test(start_paused = true)]
async fn an_owner_sees_who_serves_the_former_one() {
    let (world, feeds) = by_hand(3, 1).await;
    let (feed, owner) = (feeds[0], world.owner(feeds[0]).unwrap());
    let (one, other) = ((owner + 1) % 3, (owner + 2) % 3);
    let (mut ordered, mut seen) = (orders(&world, one), seen_by_owner(&world, feed).await);
    let term = attach(&world, feed, one).await;
    assert_eq!(next(&mut ordered).await.term, term);
    assert_eq!(next(&mut seen).await.term, term);

    let name = world.name(feed).await;
    world.admin.pause(&name).await.unwrap();
    world.until("it has stopped", secs(3), |world| world.schedule(feed).unwrap().owner.is_none()).await;
    assert!(tokio::time::timeout(secs(3), seen.next()).await.unwrap().is_none(), "its term is over");
    world.admin.resume(&name, None).await.unwrap();
    world
        .throughout("nobody owns it while a table may be written", secs(20), |world| {
            world.schedule(feed).unwrap().owner.is_none()
        })
        .await;

    // Not even a planner that did could hide it from the next owner.
    let target = ScheduleTarget {
        changefeed: feed,
        expected_version: Version(world.schedule(feed).unwrap().version.0),
        state: ScheduleState::Launched,
        owner: world.processes[other].id(),
    };
    let schedule = controller(&world).set_owner(target).await.unwrap();
    let mut seen = seen_by_owner(&world, feed).await;
    let change = next(&mut seen).await;
    assert_eq!((change.term, change.state), (term, ScheduleState::Launched));
    assert!(change.term.owner_epoch < schedule.epoch);
    assert!(silent(&mut ordered).await, "its own orders have not changed");
    post_removed(&world, feed, one).await;
    assert_eq!(next(&mut seen).await.state, ScheduleState::Removed);
    let again = attach(&world, feed, one).await;
    assert_eq!(again.owner_epoch, schedule.epoch);
    let mut change = next(&mut ordered).await;
    while change.state == ScheduleState::Removed {
        change = next(&mut ordered).await;
    }
    assert_eq!(change.term, again);
    assert_eq!(next(&mut seen).await.term, again);
}
