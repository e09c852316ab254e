//! `AdminStore`: what an operator may ask of any capture.

use std::collections::BTreeSet;

use metadata_api::codec;
use metadata_api::model::{
    CaptureState, ChangefeedName, ChangefeedProgress, ChangefeedUpdate, ChangefeedUuid, FeedState,
    NewChangefeed, ReplicaConfig, ScheduleState, SourcePosition, Ts, UpstreamId, Version,
};
use metadata_api::store::{Authority, OwnerRelease};
use serde_json::json;

use crate::harness::{Cluster, Refusal, assert_refused, at, uri};

/// The uuid is the revision of the creating transaction, and the schedule carries it too.
pub async fn a_changefeed_is_named_by_its_revision(c: &Cluster) {
    let before = c.revision().await;
    let info = c.create("one").await;
    let revision = c.revision().await;
    assert!(revision > before);
    assert_eq!(info.uuid, ChangefeedUuid(revision.0));
    assert_eq!(c.schedule(info.uuid).await.revision, revision);
    assert!(c.create("two").await.uuid > info.uuid);
}

/// A revision is the greater of the last one's successor and the clock: it grows when the clock is behind, and numbers are
/// not used again after a restored backup.
pub async fn revisions_come_from_the_row_and_the_clock(c: &Cluster) {
    const AHEAD: u64 = 1 << 50;
    let first = c.create("first").await.uuid.0;
    c.execute(&format!("UPDATE fence SET revision = revision + {AHEAD}")).await;
    assert_eq!(c.create("clock-behind").await.uuid.0, first + AHEAD + 1);
    assert_eq!(c.revision().await.0, first + AHEAD + 1);
    c.execute(&format!("UPDATE fence SET revision = {}", first - 1_000_000)).await;
    let restored = c.create("restored").await.uuid.0;
    assert!(restored > first && restored < first + AHEAD, "{restored} {first}");
    assert!(first > 1_600_000_000_000_000 && first < 1 << 52, "about microseconds since 1970: {first}");
}

/// A create that is repeated with its request id finds what the first one made, whatever became of it since.
pub async fn a_repeated_create_finds_the_first(c: &Cluster) {
    let o = c.owned("unrelated").await;
    let new = c.new_changefeed("repeat");
    let first = c.store.changefeed_create(Authority::Operator, &new).await.unwrap();
    assert_eq!(c.changes_nothing(c.store.changefeed_create(Authority::Operator, &new)).await, first);
    let authority = Authority::Controller(o.controller);
    assert_eq!(c.changes_nothing(c.store.changefeed_create(authority, &new)).await, first);
    c.store.changefeed_pause(first.uuid).await.unwrap();
    assert_eq!(c.changes_nothing(c.open().await.changefeed_create(Authority::Operator, &new)).await, first);
    c.store.changefeed_remove(Authority::Operator, first.uuid).await.unwrap();
    let found = c.changes_nothing(c.store.changefeed_create(Authority::Operator, &new)).await;
    assert_eq!(found.uuid, first.uuid, "it is not made anew under a name that became free");
}

/// A name that is held is refused to another request, upper and lower case apart, namespaces apart.
pub async fn a_name_is_held_by_one(c: &Cluster) {
    c.create("taken").await;
    let call = |namespace: &str, id: &str| {
        let name = ChangefeedName::new(namespace, id).unwrap();
        NewChangefeed { name, ..c.new_changefeed("unused") }
    };
    let taken = call("", "taken");
    let text =
        c.refuses(Refusal::AlreadyExists, c.store.changefeed_create(Authority::Operator, &taken)).await;
    assert!(text.contains("taken"), "{text}");
    for new in [call("other", "taken"), call("", "Taken"), call("DEFAULT", "taken")] {
        c.store.changefeed_create(Authority::Operator, &new).await.unwrap();
    }
    let longest = call(&"n".repeat(128), &"i".repeat(128));
    let info = c.store.changefeed_create(Authority::Operator, &longest).await.unwrap();
    assert_eq!(info.name, longest.name);
}

/// A create is checked before any SQL.
pub async fn a_create_is_validated(c: &Cluster) {
    let good = c.new_changefeed("checked");
    let bad = [
        ("target_ts", NewChangefeed { target_ts: Ts(99), ..good.clone() }),
        ("target_ts", NewChangefeed { target_ts: Ts(u64::MAX), ..good.clone() }),
        (
            "start_ts",
            NewChangefeed { start_ts: Ts(u64::MAX), task_position: at(u64::MAX - 5), ..good.clone() },
        ),
        ("task_position", NewChangefeed { task_position: at(99), ..good.clone() }),
    ];
    for (field, new) in &bad {
        let call = c.store.changefeed_create(Authority::Operator, new);
        c.refuses(Refusal::InvalidField(field), call).await;
    }
    let edge = NewChangefeed { target_ts: Ts(100), ..good };
    assert_eq!(c.store.changefeed_create(Authority::Operator, &edge).await.unwrap().target_ts, Ts(100));
}

/// Without an upstream id each changefeed gets a fresh upstream; with one it shares it, if it is the same.
pub async fn an_upstream_is_shared_by_its_id(c: &Cluster) {
    let (one, two) = (c.create("fresh-1").await, c.create("fresh-2").await);
    assert_ne!(one.upstream, two.upstream);
    let shared = |id: &str, text: &str| NewChangefeed {
        upstream_id: Some(UpstreamId(42)),
        upstream_uri: uri(text),
        ..c.new_changefeed(id)
    };
    let first = shared("shared-1", "mysql://u:one@h:3306/");
    let info = c.store.changefeed_create(Authority::Operator, &first).await.unwrap();
    assert_eq!(info.upstream, UpstreamId(42));
    let second = shared("shared-2", "mysql://u:one@h:3306/");
    assert_eq!(
        c.store.changefeed_create(Authority::Operator, &second).await.unwrap().upstream,
        UpstreamId(42)
    );
    for text in ["mysql://u:one@other:3306/", "mysql://u:two@h:3306/"] {
        let third = shared("shared-3", text);
        let call = c.store.changefeed_create(Authority::Operator, &third);
        let text = c.refuses(Refusal::InvalidArgument, call).await;
        assert!(!text.contains("one") && !text.contains("two"), "no password in an error: {text}");
    }
    assert_eq!(
        c.store.upstream(UpstreamId(42)).await.unwrap().unwrap().uri.expose(),
        "mysql://u:one@h:3306/"
    );
    // What is removed and stopped holds its name no more, nor its upstream: cleanup may be a while.
    for name in ["shared-1", "shared-2"] {
        let name = ChangefeedName::new("", name).unwrap();
        let uuid = c.store.changefeed_overview(&name).await.unwrap().unwrap().info.uuid;
        c.store.changefeed_remove(Authority::Operator, uuid).await.unwrap();
    }
    let third = shared("shared-3", "mysql://u:two@h:3306/");
    c.store.changefeed_create(Authority::Operator, &third).await.unwrap();
    assert_eq!(
        c.store.upstream(UpstreamId(42)).await.unwrap().unwrap().uri.expose(),
        "mysql://u:two@h:3306/"
    );
    // The id that another changefeed's fresh upstream got is as good as any.
    let joined = NewChangefeed { upstream_id: Some(one.upstream), ..c.new_changefeed("joined") };
    c.store.changefeed_create(Authority::Operator, &joined).await.unwrap();
}

/// A controller may create and remove while its term holds.
pub async fn a_controller_creates_and_removes(c: &Cluster) {
    let controller = c.controller().await;
    let new = c.new_changefeed("by-controller");
    let info = c.store.changefeed_create(Authority::Controller(controller), &new).await.unwrap();
    let status = c.store.changefeed_remove(Authority::Controller(controller), info.uuid).await.unwrap();
    assert_eq!(status.state, FeedState::Removed);
    c.controller().await;
    let new = c.new_changefeed("too-late");
    let late = Authority::Controller(controller);
    c.refuses(Refusal::Fenced, c.store.changefeed_create(late, &new)).await;
    c.refuses(Refusal::Fenced, c.store.changefeed_remove(late, info.uuid)).await;
}

/// An update replaces what it gives, keeps the rest, and takes a revision.
pub async fn an_update_replaces_what_it_gives(c: &Cluster) {
    let first = c.create("update").await;
    c.store.changefeed_pause(first.uuid).await.unwrap();
    let config = ReplicaConfig(json!({ "new": true }).as_object().unwrap().clone());
    let updates = [
        ChangefeedUpdate { sink_uri: Some(uri("blackhole://")), ..ChangefeedUpdate::default() },
        ChangefeedUpdate { upstream_uri: Some(uri("mysql://a:b@c/")), ..ChangefeedUpdate::default() },
        ChangefeedUpdate { target_ts: Some(Ts(100)), ..ChangefeedUpdate::default() },
        ChangefeedUpdate { config: Some(config), ..ChangefeedUpdate::default() },
        ChangefeedUpdate { target_ts: Some(Ts::ZERO), ..ChangefeedUpdate::default() },
        ChangefeedUpdate::default(),
    ];
    let mut wanted = first.clone();
    let mut upstream = "mysql://root:up'stream%20pw@127.0.0.1:3306/".to_owned();
    for update in updates {
        let before = c.revision().await;
        let info = c.store.changefeed_update(first.uuid, wanted.version, &update).await.unwrap();
        assert_eq!(info, c.info(first.uuid).await);
        assert!(info.version > wanted.version);
        wanted.version = info.version;
        wanted.sink_uri = update.sink_uri.unwrap_or(wanted.sink_uri);
        wanted.target_ts = update.target_ts.unwrap_or(wanted.target_ts);
        wanted.config = update.config.unwrap_or(wanted.config);
        upstream = update.upstream_uri.map_or(upstream, |uri| uri.expose().to_owned());
        assert_eq!(info, wanted);
        assert_eq!(info.sink_uri.expose(), wanted.sink_uri.expose());
        assert_eq!(c.store.upstream(first.upstream).await.unwrap().unwrap().uri.expose(), upstream);
        assert!(c.revision().await > before, "it takes a revision");
    }
}

/// An update wants the version it was made on, a changefeed that stands still and has no owner, and sense.
pub async fn an_update_is_refused_unless_it_stands_still(c: &Cluster) {
    let update = ChangefeedUpdate { target_ts: Some(Ts(7_000)), ..ChangefeedUpdate::default() };
    let store = &c.store;
    c.refuses(Refusal::NotFound, store.changefeed_update(ChangefeedUuid(1), Version(1), &update)).await;
    let controller = c.controller().await;
    let capture = c.capture().await;
    for (n, state) in FeedState::ALL.into_iter().enumerate() {
        let uuid = c.create(&format!("still-{n}")).await.uuid;
        let owner = c.launch(controller, capture, uuid).await;
        c.bring_to(owner, state).await;
        let version = c.info(uuid).await.version;
        c.refuses(Refusal::InvalidTransition, store.changefeed_update(uuid, version, &update)).await;
        c.release(owner).await;
        let version = c.info(uuid).await.version;
        if matches!(state, FeedState::Stopped | FeedState::Failed) {
            let stale = Version(version.0 + 1);
            c.refuses(Refusal::Conflict, store.changefeed_update(uuid, stale, &update)).await;
            let low = ChangefeedUpdate { target_ts: Some(Ts(99)), ..ChangefeedUpdate::default() };
            let call = store.changefeed_update(uuid, version, &low);
            c.refuses(Refusal::InvalidField("target_ts"), call).await;
            store.changefeed_update(uuid, version, &update).await.unwrap();
            c.refuses(Refusal::Conflict, store.changefeed_update(uuid, version, &update)).await;
        } else {
            c.refuses(Refusal::InvalidTransition, store.changefeed_update(uuid, version, &update)).await;
        }
    }
}

/// An upstream that others use too is not changed under them.
pub async fn a_shared_upstream_is_not_updated(c: &Cluster) {
    for id in ["share-1", "share-2"] {
        let new = NewChangefeed { upstream_id: Some(UpstreamId(5)), ..c.new_changefeed(id) };
        c.store.changefeed_create(Authority::Operator, &new).await.unwrap();
    }
    let info = c.store.changefeed_infos(None).await.unwrap().remove(0);
    c.store.changefeed_pause(info.uuid).await.unwrap();
    let update =
        ChangefeedUpdate { upstream_uri: Some(uri("mysql://a:b@c/")), ..ChangefeedUpdate::default() };
    let call = c.store.changefeed_update(info.uuid, info.version, &update);
    c.refuses(Refusal::InvalidArgument, call).await;
}

/// Pausing: durable at once without an owner; with one, the owner is told to stop.
pub async fn a_pause_tells_the_owner(c: &Cluster) {
    let lonely = c.create("lonely").await.uuid;
    let before = c.revision().await;
    let status = c.store.changefeed_pause(lonely).await.unwrap();
    assert_eq!(status, c.status(lonely).await);
    assert_eq!((status.state, status.version), (FeedState::Stopped, Version(2)));
    assert_eq!(c.schedule(lonely).await.state, ScheduleState::Removed);
    assert!(c.revision().await > before, "it takes a revision");

    let o = c.owned("owned").await;
    let before = c.schedule(o.changefeed).await;
    let status = c.store.changefeed_pause(o.changefeed).await.unwrap();
    assert_eq!(status.state, FeedState::Stopped);
    let row = c.schedule(o.changefeed).await;
    assert_eq!((row.owner, row.state, row.epoch), (before.owner, ScheduleState::Removing, before.epoch));
    assert_eq!((row.revision, row.version), (c.revision().await, Version(before.version.0 + 1)));
    c.release(o.owner).await;
    assert_eq!(c.status(o.changefeed).await.state, FeedState::Stopped);
}

/// Pausing what is paused is done already; what does not run cannot be paused.
pub async fn a_pause_in_every_state(c: &Cluster) {
    c.refuses(Refusal::NotFound, c.store.changefeed_pause(ChangefeedUuid(1))).await;
    for (n, state) in FeedState::ALL.into_iter().enumerate() {
        let o = c.owned(&format!("pause-{n}")).await;
        c.bring_to(o.owner, state).await;
        let call = c.store.changefeed_pause(o.changefeed);
        match state {
            FeedState::Stopped => {
                assert_eq!(c.changes_nothing(call).await.state, FeedState::Stopped);
                c.release(o.owner).await;
                let call = c.store.changefeed_pause(o.changefeed);
                assert_eq!(c.changes_nothing(call).await.state, FeedState::Stopped);
            }
            FeedState::Failed | FeedState::Finished | FeedState::Removed => {
                c.refuses(Refusal::InvalidTransition, call).await;
            }
            _ => assert_eq!(call.await.unwrap().state, FeedState::Stopped, "{state}"),
        }
    }
}

/// Resuming what runs is done already; what waits for an operator becomes `normal`, with nothing held against it.
pub async fn a_resume_in_every_state(c: &Cluster) {
    c.refuses(Refusal::NotFound, c.store.changefeed_resume(ChangefeedUuid(1), None)).await;
    for (n, state) in FeedState::ALL.into_iter().enumerate() {
        let o = c.owned(&format!("resume-{n}")).await;
        c.bring_to(o.owner, state).await;
        if !state.is_runnable() {
            c.release(o.owner).await;
        }
        let schedule = c.schedule(o.changefeed).await;
        let call = c.store.changefeed_resume(o.changefeed, None);
        match state {
            FeedState::Removed => drop(c.refuses(Refusal::InvalidTransition, call).await),
            FeedState::Stopped | FeedState::Failed | FeedState::Finished => {
                let before = c.revision().await;
                let status = call.await.unwrap();
                assert_eq!(status, c.status(o.changefeed).await);
                assert_eq!((status.state, status.warning, status.error), (FeedState::Normal, None, None));
                assert!(c.revision().await > before, "{state}: it takes a revision");
                let after = c.schedule(o.changefeed).await;
                assert_eq!(
                    (after.state, after.task_position),
                    (ScheduleState::Removed, schedule.task_position)
                );
                c.launch(o.controller, o.capture, o.changefeed).await;
            }
            _ => assert_eq!(c.changes_nothing(call).await.state, state),
        }
    }
}

/// A changefeed that is resumed while its owner is still stopping is not taken from it: it stays `Removing`.
pub async fn a_resume_does_not_stop_a_stop(c: &Cluster) {
    let o = c.owned("stopping").await;
    c.store.changefeed_pause(o.changefeed).await.unwrap();
    let status = c.store.changefeed_resume(o.changefeed, None).await.unwrap();
    assert_eq!(status.state, FeedState::Normal);
    let row = c.schedule(o.changefeed).await;
    assert_eq!((row.state, row.owner), (ScheduleState::Removing, Some(o.capture.capture)));
    c.release(o.owner).await;
    let owner = c.launch(o.controller, o.capture, o.changefeed).await;
    assert!(owner.epoch > o.owner.epoch);
}

/// `overwrite` sets the task position, back too, but only where nobody runs it and an operator has the word.
pub async fn an_overwrite_sets_the_task_position(c: &Cluster) {
    let back = at(101);
    for (n, state) in FeedState::ALL.into_iter().enumerate() {
        let o = c.owned(&format!("overwrite-{n}")).await;
        c.bring_to(o.owner, state).await;
        let resume = || c.store.changefeed_resume(o.changefeed, Some(&back));
        c.refuses(Refusal::InvalidTransition, resume()).await;
        let release = OwnerRelease { term: o.owner, task_position: Some(at(9_000)), end: None };
        c.store.owner_release(&[release]).await.unwrap().remove(0).unwrap();
        if matches!(state, FeedState::Stopped | FeedState::Failed | FeedState::Finished) {
            let before = c.schedule(o.changefeed).await;
            let status = resume().await.unwrap();
            assert_eq!((status.state, status.error), (FeedState::Normal, None));
            let row = c.schedule(o.changefeed).await;
            assert_eq!((row.task_position, row.state), (back.clone(), ScheduleState::Removed));
            assert!(row.version > before.version && row.revision > before.revision);
            assert_eq!(c.progress(o.changefeed).await, back);
        } else {
            c.refuses(Refusal::InvalidTransition, resume()).await;
        }
    }
    c.refuses(
        Refusal::NotFound,
        c.store.changefeed_resume(ChangefeedUuid(1), Some(&ChangefeedProgress::default())),
    )
    .await;
    let out_of_range = ChangefeedProgress { checkpoint_ts: Ts(u64::MAX), ..back };
    c.refuses(
        Refusal::InvalidField("overwrite_checkpoint_ts"),
        c.store.changefeed_resume(ChangefeedUuid(1), Some(&out_of_range)),
    )
    .await;
}

/// Removing: from every state, for good; again it is done already.
pub async fn a_remove_in_every_state(c: &Cluster) {
    c.refuses(Refusal::NotFound, c.store.changefeed_remove(Authority::Operator, ChangefeedUuid(1))).await;
    for (n, state) in FeedState::ALL.into_iter().enumerate() {
        let o = c.owned(&format!("remove-{n}")).await;
        c.bring_to(o.owner, state).await;
        let before = (c.schedule(o.changefeed).await, c.revision().await);
        let status = c.store.changefeed_remove(Authority::Operator, o.changefeed).await.unwrap();
        assert_eq!(status, c.status(o.changefeed).await);
        assert_eq!(status.state, FeedState::Removed);
        assert!(c.info(o.changefeed).await.removed_at.is_some());
        let row = c.schedule(o.changefeed).await;
        assert_eq!((row.state, row.owner), (ScheduleState::Removing, before.0.owner), "{state}");
        if before.0.state == ScheduleState::Launched {
            assert!(row.revision > before.1, "{state}: the owner must be told");
        }
        let call = c.store.changefeed_remove(Authority::Operator, o.changefeed);
        assert_eq!(c.changes_nothing(call).await, status);
        c.release(o.owner).await;
        let call = c.store.changefeed_remove(Authority::Operator, o.changefeed);
        assert_eq!(c.changes_nothing(call).await, status);
    }
}

/// What nobody runs is removed, and its name freed, in one write of each of its rows: their versions say how often they changed.
pub async fn a_remove_writes_each_row_once(c: &Cluster) {
    let made = c.create("remove-once").await;
    let before = c.dump().await;
    c.store.changefeed_remove(Authority::Operator, made.uuid).await.unwrap();
    assert_eq!(before.written_twice(&c.dump().await), [""; 0]);
    assert_eq!(c.info(made.uuid).await.version, Version(made.version.0 + 1));
    c.create("remove-once").await;
}

/// A name is taken while the owner stops, free when it has stopped, and then anybody's; uuids are never used again.
pub async fn a_name_is_free_when_its_owner_has_stopped(c: &Cluster) {
    let o = c.owned("name").await;
    c.store.changefeed_remove(Authority::Operator, o.changefeed).await.unwrap();
    let new = c.new_changefeed("name");
    c.refuses(Refusal::AlreadyExists, c.store.changefeed_create(Authority::Operator, &new)).await;
    c.release(o.owner).await;
    let second = c.store.changefeed_create(Authority::Operator, &new).await.unwrap();
    let other = c.new_changefeed("name");
    c.refuses(Refusal::AlreadyExists, c.store.changefeed_create(Authority::Operator, &other)).await;
    let overview = c.store.changefeed_overview(&new.name).await.unwrap().unwrap();
    assert_eq!(overview.info.uuid, second.uuid);

    // Without an owner it is free at once; any number of the removed have had the same name.
    let mut uuids = BTreeSet::from([o.changefeed, second.uuid]);
    let mut last = second.uuid;
    for _ in 0..3 {
        c.store.changefeed_remove(Authority::Operator, last).await.unwrap();
        assert_eq!(c.store.changefeed_overview(&new.name).await.unwrap(), None);
        last = c.create("name").await.uuid;
        assert!(uuids.insert(last), "a new uuid each time");
    }
    assert_eq!(c.store.changefeed_infos(None).await.unwrap().len(), 5);
    assert_eq!(c.store.changefeed_overviews(None).await.unwrap().len(), 1);
    // The old one's rows are its own: pausing the new one is not pausing them.
    c.store.changefeed_pause(last).await.unwrap();
    assert_eq!(c.status(o.changefeed).await.state, FeedState::Removed);
}

/// Draining takes a revision once, and stops new work.
pub async fn a_draining_capture_gets_no_new_work(c: &Cluster) {
    let o = c.owned("stays").await;
    let before = c.revision().await;
    c.store.capture_drain(o.capture.capture).await.unwrap();
    assert!(c.revision().await > before, "it takes a revision");
    let row = c.capture_row(o.capture).await.unwrap();
    assert_eq!(row.state, CaptureState::Draining);
    c.changes_nothing(c.store.capture_drain(o.capture.capture)).await;
    assert_eq!(c.schedule(o.changefeed).await.state, ScheduleState::Launched, "it hands over what it has");
    let next = c.create("next").await.uuid;
    let target = c.launch_target(next, o.capture).await;
    let answer = c.store.owner_set(o.controller, &[target]).await.unwrap().remove(0);
    assert_refused(answer, Refusal::Conflict);
    c.seal(o.controller, o.capture).await;
    c.refuses(Refusal::InvalidTransition, c.store.capture_drain(o.capture.capture)).await;
}

/// Deposing takes the lease from whoever holds it, at once.
pub async fn deposing_ends_the_controllers_term(c: &Cluster) {
    c.changes_nothing(c.store.controller_depose()).await;
    let term = c.controller().await;
    c.open().await.controller_depose().await.unwrap();
    let record = c.store.election().await.unwrap();
    assert_eq!((record.leader, record.epoch, record.cooldown), (None, term.epoch, Some(term.capture)));
    crate::election::assert_fenced_everywhere(c, term).await;
    c.changes_nothing(c.store.controller_depose()).await;
    let next = c.controller().await;
    assert_eq!(next.epoch.0, term.epoch.0 + 1);
}

/// What is too long for its column is refused before any SQL; what just fits is stored, and reads back whole.
pub async fn what_just_fits_is_stored(c: &Cluster) {
    let long_uri = |len: usize| uri(&format!("{:x<len$}", "kafka://h/", len = len));
    let config = |len: usize| {
        let value = json!({ "k": "x".repeat(len - r#"{"k":""}"#.len()) });
        ReplicaConfig(value.as_object().unwrap().clone())
    };
    let position = |len: usize| ChangefeedProgress {
        position: Some(SourcePosition(json!("p".repeat(len)))),
        ..ChangefeedProgress::at(Ts(100))
    };
    let fits = NewChangefeed {
        upstream_uri: long_uri(codec::MAX_URI),
        sink_uri: long_uri(codec::MAX_URI),
        config: config(codec::MAX_CONFIG),
        creator_version: "v".repeat(codec::MAX_SHORT),
        task_position: position(codec::MAX_POSITION - 200),
        ..c.new_changefeed("fits")
    };
    let bad = [
        NewChangefeed { upstream_uri: long_uri(codec::MAX_URI + 1), ..fits.clone() },
        NewChangefeed { sink_uri: long_uri(codec::MAX_URI + 1), ..fits.clone() },
        NewChangefeed { config: config(codec::MAX_CONFIG + 1), ..fits.clone() },
        NewChangefeed { creator_version: "v".repeat(codec::MAX_SHORT + 1), ..fits.clone() },
        NewChangefeed { task_position: position(codec::MAX_POSITION), ..fits.clone() },
    ];
    for new in &bad {
        c.refuses(Refusal::InvalidArgument, c.store.changefeed_create(Authority::Operator, new)).await;
    }
    let info = c.store.changefeed_create(Authority::Operator, &fits).await.unwrap();
    let overview = c.store.changefeed_overview(&fits.name).await.unwrap().unwrap();
    assert_eq!(overview.info, info);
    assert_eq!(info.config, fits.config);
    assert_eq!(info.sink_uri.expose(), fits.sink_uri.expose());
    assert_eq!(overview.upstream.uri.expose(), fits.upstream_uri.expose());
    assert_eq!(overview.progress, fits.task_position);
    c.store.changefeed_pause(info.uuid).await.unwrap();
    let updates = [
        ChangefeedUpdate { sink_uri: Some(long_uri(codec::MAX_URI + 1)), ..ChangefeedUpdate::default() },
        ChangefeedUpdate { upstream_uri: Some(long_uri(codec::MAX_URI + 1)), ..ChangefeedUpdate::default() },
        ChangefeedUpdate { config: Some(config(codec::MAX_CONFIG + 1)), ..ChangefeedUpdate::default() },
    ];
    for update in &updates {
        let call = c.store.changefeed_update(info.uuid, info.version, update);
        c.refuses(Refusal::InvalidArgument, call).await;
    }
    let far = position(codec::MAX_POSITION);
    c.refuses(Refusal::InvalidArgument, c.store.changefeed_resume(info.uuid, Some(&far))).await;
    let wrong = ChangefeedProgress { resolved_ts: Ts(u64::MAX), ..ChangefeedProgress::at(Ts(100)) };
    c.refuses(Refusal::InvalidArgument, c.store.changefeed_resume(info.uuid, Some(&wrong))).await;
}
