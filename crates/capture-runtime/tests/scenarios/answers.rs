//! Answers that never come: the transaction committed, or did not, and the caller cannot know (I5).

use metadata_api::observation::ChangefeedAdmin as _;
use metadata_memory::{Conditions, Lane, Path};

use super::{ms, secs};
use crate::world::{World, healthy};

#[tokio::test(start_paused = true)]
async fn a_registration_whose_answer_is_lost_is_repeated_under_the_same_id() {
    for lose in ["answers", "commits"] {
        let mut world = World::new(7);
        let index = world.start();
        let faults = &world.processes[index].faults;
        if lose == "answers" {
            faults.lose_answers("capture.register", 2);
        } else {
            faults.lose_commits("capture.register", 2);
        }
        world.until("it is ready", secs(5), |world| world.processes[index].capture.status().ready).await;
        assert_eq!(world.processes[index].faults.left(), 0);
        assert_eq!(world.live_captures().len(), 1, "one row");
        assert_eq!(Some(world.live_captures()[0].id), world.processes[index].id());
    }
}

/// Regression: registered, not heard of, sealed for its silence, refused: the process ended.
#[tokio::test(start_paused = true)]
async fn a_registration_that_was_sealed_before_it_was_heard_of_goes_on_under_another_id() {
    let (mut world, _) = World::running(2, 2).await;
    let controller = world.controller().unwrap();
    // It does not come to deleting the sealed row.
    world.processes[controller].faults.refuse("capture.delete", 1_000_000);
    let index = world.start();
    world.processes[index].link.set(Lane::Pool, Conditions { answers_lost: true, ..healthy() });
    world.until("its row is written", secs(2), |world| world.live_captures().len() == 3).await;
    world.processes[index].cut();
    world.until("it is sealed", secs(20), |world| world.live_captures().len() == 2).await;
    world.processes[index].heal();
    world.until("it is ready", secs(5), |world| world.processes[index].capture.status().ready).await;
    assert_eq!(world.live_captures().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_campaign_whose_answer_is_lost_is_campaigned_for_again_at_once() {
    let mut world = World::new(3);
    let index = world.start();
    world.processes[index].faults.lose_answers("election.campaign", 2);
    world.until("it leads", secs(5), |world| world.controller() == Some(index)).await;
    let epoch = world.processes[index].capture.status().leading.unwrap().epoch;
    assert_eq!(epoch.0, 3, "each lost answer was an acquisition");
}

#[tokio::test(start_paused = true)]
async fn a_launch_whose_answer_is_lost_is_looked_up_not_repeated() {
    let (mut world, _) = World::running(3, 0).await;
    let controller = world.controller().unwrap();
    world.processes[controller].faults.lose_answers("owner.set", 1);
    world.processes[controller].faults.lose_commits("owner.set", 1);
    let feeds = world.create(9).await;
    world.until("everything runs", secs(5), |world| world.all_move(&feeds, secs(0))).await;
    assert!(feeds.iter().all(|feed| world.outside.launches_of(*feed).len() == 1), "each was started once");
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_answer_is_lost_is_done() {
    let (world, feeds) = World::running(2, 2).await;
    let (feed, name) = (feeds[0], world.name(feeds[0]).await);
    let owner = world.owner(feed).unwrap();
    world.processes[owner].faults.lose_commits("owner.release", 1);
    world.processes[owner].faults.lose_answers("owner.release", 1);
    world.admin.pause(&name).await.unwrap();
    world.until("it is released", secs(4), |world| world.schedule(feed).unwrap().owner.is_none()).await;
    world.admin.resume(&name, None).await.unwrap();
    world.until("it runs again", secs(5), |world| world.moves(feed, secs(0))).await;
    world.pass(secs(10)).await;
    assert!(world.moves(feed, world.now() - secs(1)));
}

#[tokio::test(start_paused = true)]
async fn a_resignation_whose_answer_is_lost_costs_a_lease_at_most() {
    for lose in ["answers", "commits"] {
        let (world, _) = World::running(2, 2).await;
        let stops = world.controller().unwrap();
        let faults = &world.processes[stops].faults;
        if lose == "answers" {
            faults.lose_answers("election.resign", 1);
        } else {
            faults.lose_commits("election.resign", 1);
        }
        world.processes[stops].stop.cancel();
        world
            .until("another one leads", secs(17), |world| {
                world.controller().is_some_and(|leader| leader != stops)
            })
            .await;
    }
}

/// An abandoned heartbeat is applied after a newer one: it changes nothing.
#[tokio::test(start_paused = true)]
async fn late_statements_change_nothing() {
    let (world, feeds) = World::running(2, 4).await;
    let victim = world.follower(&[]);
    let id = world.processes[victim].id();
    for _ in 0..20 {
        // Given up after 1 s, applied after 2.5 s, between prompt ones.
        world.processes[victim].link.set_all(Conditions { there: ms(2_500), late: true, ..healthy() });
        world.pass(ms(1_500)).await;
        world.processes[victim].heal();
        world.pass(secs(4)).await;
    }
    assert_eq!(world.processes[victim].id(), id, "it never lost its row");
    assert!(world.all_move(&feeds, world.now() - secs(1)));
}

/// What a sealed capture sent before it was sealed arrives after: the progress row takes no more.
#[tokio::test(start_paused = true)]
async fn what_arrives_after_the_seal_is_refused() {
    let (world, _) = World::running(2, 4).await;
    let victim = world.follower(&[]);
    let owned = world.owned(victim);
    world.processes[victim].link.set(Lane::Pool, Conditions { there: secs(40), late: true, ..healthy() });
    world.pass(secs(3)).await;
    world.processes[victim].link.set(Lane::Heartbeat, Conditions { path: Path::Hangs, ..healthy() });
    world.processes[victim].link.set(Lane::Watch, Conditions { path: Path::Hangs, ..healthy() });
    world.until("its work runs elsewhere", secs(21), |world| world.all_elsewhere(&owned, &[victim])).await;
    world.pass(secs(60)).await;
}
