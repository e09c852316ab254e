//! What an operator asks for, through a server that owns nothing of it: with a controller, and while there is none.

use std::time::Duration;

use cdc::api::error::code;
use cdc::api::model::{ChangeFeedInfo, ChangefeedConfig};
use cdc::cli::CallError;
use metadata_api::model::{ChangefeedUuid, FeedState, ScheduleState, Ts};
use metadata_api::store::MetadataStore;
use reqwest::Method;

use crate::harness::{
    Cluster, Kind, Look, PATIENCE, feed_body, feed_id, measured, now, on_every_store, wall_ms,
};

on_every_store! {
    elsewhere_on_demand:
    words_are_kept_through_any_server_with_a_controller_and_without
}

/// Within which a removal is complete although owner and controller are dead: as any crash.
const CRASH: Duration = Duration::from_secs(21);
/// Within which a living owner stops.
const GRACEFUL: Duration = Duration::from_secs(3);
/// How often one is paused and resumed. It takes longer than ten seconds, so that not each time a reconcile of the owner's
/// happens to come to the help of a pause that did not reach it.
const OFTEN: usize = 5;

async fn words_are_kept_through_any_server_with_a_controller_and_without(kind: Kind) {
    let mut cluster = Cluster::start(kind, 3).await;
    cluster.create_feeds(9).await;
    cluster.balanced().await;
    cluster.all_move().await;
    let store = cluster.store.open().await;

    let look = cluster.look().await;
    let (_, leader) = cluster.controller().await;
    let owner = (leader + 1) % cluster.len();
    let through = (leader + 2) % cluster.len();
    let owned = look.owned_by(&cluster.status(owner).await.id);
    let mut ids = owned.keys().cloned();
    let (paused, removed, kept) = (ids.next().unwrap(), ids.next().unwrap(), ids.next().unwrap());
    let mut longest = Duration::ZERO;
    for _ in 0..OFTEN {
        longest = longest.max(stopped(&cluster, &*store, through, &paused).await);
        cluster.call(through, Method::POST, &["changefeeds", &paused, "resume"]).await.unwrap();
        cluster.balanced().await;
        cluster.all_move().await;
    }
    measured("paused -> its owner has stopped, at most", kind, longest, GRACEFUL);
    every_word(&cluster, &*store, through, [&paused, &removed, &kept]).await;
    cluster.balanced().await;
    cluster.all_move().await;

    // The same with the controller dead, and nobody elected yet. Its own changefeeds have no living owner either.
    let look = cluster.look().await;
    let (controller, leader) = cluster.controller().await;
    let election = store.election().await.unwrap();
    let (owner, through) = ((leader + 1) % cluster.len(), (leader + 2) % cluster.len());
    let owned = look.owned_by(&cluster.status(owner).await.id);
    let orphans: Vec<String> = look.owned_by(&controller).into_keys().collect();
    let mut ids = owned.keys().cloned();
    let (paused, removed, kept) = (ids.next().unwrap(), ids.next().unwrap(), ids.next().unwrap());
    let struck = cluster.kill(leader).await;
    every_word(&cluster, &*store, through, [&paused, &removed, &kept]).await;
    pause(&cluster, &*store, through, &orphans[0]).await;
    let after = store.election().await.unwrap();
    assert_eq!(
        (after.leader, after.epoch),
        (election.leader, election.epoch),
        "that was without a controller"
    );

    // Removing what a dead capture owns takes until that capture is declared dead.
    let answer = cluster.call(through, Method::DELETE, &["changefeeds", &orphans[1]]).await;
    answer.unwrap();
    measured("owner and controller killed -> removal complete", kind, now().since(struck.at), CRASH);
    let gone = get(&cluster, owner, &orphans[1]).await.unwrap_err();
    assert!(gone.has_code(code::CHANGEFEED_NOT_EXISTS), "{gone}");
    cluster.start_again(leader).await;
    let look = cluster.balanced_but(&[&orphans[0]]).await;
    assert_eq!(look.feeds[&orphans[0]].state, "stopped", "the pause outlived owner and controller");
    assert!(!look.feeds.contains_key(&orphans[1]));
    cluster.call(through, Method::POST, &["changefeeds", &orphans[0], "resume"]).await.unwrap();
    cluster.balanced().await;
    cluster.all_move().await;
    drop(store);
    cluster.finish().await;
}

/// Pause, update, resume, remove and re-create, all through one server; each is in the store when the call returns.
async fn every_word(cluster: &Cluster, store: &dyn MetadataStore, through: usize, ids: [&str; 3]) {
    let [paused, removed, kept] = ids;
    stopped(cluster, store, through, paused).await;

    // Only what is stopped may be changed.
    let target = Ts::from_physical_ms(wall_ms() + 86_400_000);
    let body = ChangefeedConfig { target_ts: target.0, ..ChangefeedConfig::default() };
    let before = cluster.stored(store, kept).await.unwrap();
    let refused = update(cluster, through, kept, &body).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused { status: 400, .. }), "{refused:?}");
    assert!(
        refused.has_code(code::UPDATE_REFUSED) && refused.to_string().contains("pause it first"),
        "{refused}"
    );
    let after = cluster.stored(store, kept).await.unwrap();
    assert_eq!((after.info, after.status.state), (before.info, before.status.state));

    update(cluster, through, paused, &body).await.unwrap();
    let of = cluster.stored(store, paused).await.unwrap();
    assert_eq!((of.info.target_ts, of.status.state), (target, FeedState::Stopped));

    cluster.call(through, Method::POST, &["changefeeds", paused, "resume"]).await.unwrap();
    assert_eq!(cluster.stored(store, paused).await.unwrap().status.state, FeedState::Normal);

    let old = cluster.stored(store, removed).await.unwrap();
    cluster.call(through, Method::DELETE, &["changefeeds", removed]).await.unwrap();
    assert!(cluster.stored(store, removed).await.is_none(), "it holds its name still");
    let gone = get(cluster, through, removed).await.unwrap_err();
    assert!(gone.has_code(code::CHANGEFEED_NOT_EXISTS), "{gone}");
    let silent = written(cluster, old.info.uuid);

    let n = removed.rsplit('-').next().unwrap().parse().unwrap();
    assert_eq!(feed_id(n), removed);
    let body = feed_body(&cluster.out(), n);
    let created = cluster.create(&cluster.client(through), &body).await.unwrap();
    let new = cluster.stored(store, removed).await.unwrap();
    assert_eq!((new.info.uuid.0, new.info.target_ts), (created.gid.low, Ts::ZERO));
    assert!(new.info.uuid > old.info.uuid, "another changefeed");
    let again = cluster.create(&cluster.client(through), &body).await.unwrap_err();
    assert!(again.has_code(code::CHANGEFEED_ALREADY_EXISTS), "{again}");
    assert_eq!(written(cluster, old.info.uuid), silent, "the removed one wrote on");
}

/// Pauses a changefeed and waits until its owner has stopped; how long that took.
async fn stopped(cluster: &Cluster, store: &dyn MetadataStore, through: usize, id: &str) -> Duration {
    let asked_at = now();
    pause(cluster, store, through, id).await;
    let rests = |look: &Look| match &look.feeds[id] {
        feed if feed.schedule == "removed" => Ok(()),
        feed => Err(format!("{feed:?}")),
    };
    let ((), at) = cluster.wait_for("its owner has stopped", PATIENCE, rests).await;
    at.since(asked_at)
}

/// Pauses a changefeed; it is stopped in the store when the call returns, whoever runs it.
async fn pause(cluster: &Cluster, store: &dyn MetadataStore, through: usize, id: &str) {
    cluster.call(through, Method::POST, &["changefeeds", id, "pause"]).await.unwrap();
    let of = cluster.stored(store, id).await.unwrap();
    assert_eq!(of.status.state, FeedState::Stopped);
    assert_ne!(of.schedule.state, ScheduleState::Launched, "its owner was told");
}

async fn get(cluster: &Cluster, through: usize, id: &str) -> Result<ChangeFeedInfo, CallError> {
    cluster.client(through).get(&["changefeeds", id], &[]).await
}

async fn update(
    cluster: &Cluster,
    through: usize,
    id: &str,
    body: &ChangefeedConfig,
) -> Result<ChangeFeedInfo, CallError> {
    cluster.client(through).call(Method::PUT, &["changefeeds", id], &[], Some(body)).await
}

/// How much there is of a changefeed in its files, by all epochs.
fn written(cluster: &Cluster, uuid: ChangefeedUuid) -> u64 {
    let all = cluster.watcher.bytes();
    all.iter().filter(|((of, _), _)| *of == uuid).map(|(_, bytes)| bytes).sum()
}
