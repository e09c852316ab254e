//! `ControllerStore`: owners, dead captures, cleanup. (Processors: [`crate::processor`].)

use std::collections::BTreeSet;

use metadata_api::model::{
    CaptureId, CaptureState, CaptureTerm, ChangefeedUuid, ControllerTerm, FeedState, OwnerEpoch, Placement,
    ScheduleState, ScheduleTarget, UpstreamId, Version,
};
use metadata_api::store::{Authority, MAX_BATCH};

use serde_json::json;

use crate::harness::{Cluster, Refusal, assert_refused, at, progress_of};

/// A row that does not decode is refused on its own: no other target waits for somebody to mend it.
pub async fn what_does_not_decode_is_refused_on_its_own(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    let uuid = c.create("unreadable").await.uuid;
    let target = c.launch_target(uuid, capture).await;
    let nowhere = ScheduleTarget { changefeed: ChangefeedUuid(1), ..target };
    c.execute("UPDATE changefeed_state SET state = 'dancing'").await;
    let mut answers = c.store.owner_set(controller, &[nowhere, target]).await.unwrap();
    assert_refused(answers.remove(1), Refusal::Corrupt("changefeed_state"));
    assert_refused(answers.remove(0), Refusal::NotFound);
    assert_eq!(c.schedule(uuid).await.state, ScheduleState::Removed);
}

/// The snapshot is every capture and every changefeed that is not cleaned up, with what the planner needs.
pub async fn the_snapshot_is_what_the_rows_say(c: &Cluster) {
    let o = c.owned("one").await;
    let processor = c.capture().await;
    let gone = c.capture().await;
    c.attach(o.controller, o.changefeed, processor).await;
    let row = c.attach(o.controller, o.changefeed, gone).await;
    c.store.processor_release(row.term()).await.unwrap();
    let removed = c.create("removed").await.uuid;
    c.store.changefeed_remove(Authority::Operator, removed).await.unwrap();
    let stopped = c.create("stopped").await.uuid;
    c.store.changefeed_pause(stopped).await.unwrap();
    c.store.capture_drain(gone.capture).await.unwrap();

    let snapshot = c.store.schedule_snapshot().await.unwrap();
    assert_eq!(snapshot.revision, c.revision().await);
    assert_eq!(snapshot.captures, c.store.captures(None).await.unwrap());
    let mut got = Vec::new();
    for row in &snapshot.changefeeds {
        assert_eq!(row.schedule, c.schedule(row.schedule.changefeed).await);
        got.push((row.schedule.changefeed, row.state, row.removed, row.live_processors));
    }
    assert_eq!(
        got,
        [
            (o.changefeed, FeedState::Uninitialized, false, 1),
            (removed, FeedState::Removed, true, 0),
            (stopped, FeedState::Stopped, false, 0),
        ]
    );
}

/// The snapshot says where a changefeed may run, from its configuration.
pub async fn the_snapshot_says_where_a_changefeed_may_run(c: &Cluster) {
    let mut new = c.new_changefeed("bound");
    let placement = json!({"weight": 7, "affinity": {"zone": "ü'🦀", "rack": "b"}});
    new.config.0.insert(Placement::KEY.to_owned(), placement);
    let bound = c.store.changefeed_create(Authority::Operator, &new).await.unwrap().uuid;
    let free = c.create("free").await.uuid;
    let read = async || {
        let rows = c.store.schedule_snapshot().await.unwrap().changefeeds;
        rows.into_iter().map(|row| (row.schedule.changefeed, row.placement)).collect::<Vec<_>>()
    };
    let wanted = Placement::from_config(&new.config).unwrap();
    assert_eq!((wanted.weight, wanted.affinity["zone"].as_str()), (7, "ü'🦀"));
    assert_eq!(read().await, [(bound, Ok(wanted)), (free, Ok(Placement::default()))]);
}

/// A launch sets owner, state and epoch, keeps the position, and is of one revision with the others of its call.
pub async fn a_launch_names_its_revision(c: &Cluster) {
    let controller = c.controller().await;
    let (one, two) = (c.capture().await, c.capture().await);
    let uuids = c.create_many("launch", 3).await;
    let before: Vec<_> = [c.schedule(uuids[0]).await, c.schedule(uuids[1]).await].into();
    // Not in the order of uuids: answers come in the order asked.
    let targets = [c.launch_target(uuids[1], two).await, c.launch_target(uuids[0], one).await];
    let earlier = c.revision().await;
    let answers = c.store.owner_set(controller, &targets).await.unwrap();
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().map(|row| row.changefeed).collect::<Vec<_>>(), [uuids[1], uuids[0]]);
    let revision = c.revision().await;
    assert!(revision > earlier);
    for (row, (capture, before)) in answers.iter().zip([(two, &before[1]), (one, &before[0])]) {
        assert_eq!(*row, c.schedule(row.changefeed).await);
        assert_eq!((row.owner, row.state), (Some(capture.capture), ScheduleState::Launched));
        assert_eq!((row.epoch, row.revision), (OwnerEpoch(revision.0), revision));
        assert_eq!(row.version, Version(before.version.0 + 1));
        assert_eq!(row.task_position, before.task_position);
    }
    assert_eq!(c.status(uuids[0]).await.version, Version(1), "the state row is not touched");
    assert_eq!(c.schedule(uuids[2]).await.version, Version(1), "nor is another schedule");
}

/// `Removing` keeps owner and epoch, and takes a revision, so that the owner is told.
pub async fn removing_keeps_owner_and_epoch(c: &Cluster) {
    let o = c.owned("leave").await;
    let before = c.schedule(o.changefeed).await;
    let target = c.removing_target(o.changefeed).await;
    let row = c.set_owner(o.controller, target).await;
    assert_eq!(row, c.schedule(o.changefeed).await);
    assert_eq!((row.owner, row.state, row.epoch), (before.owner, ScheduleState::Removing, before.epoch));
    assert_eq!(row.version, Version(before.version.0 + 1));
    assert_eq!(row.revision, c.revision().await);
    assert!(row.revision > before.revision);
    assert_eq!(row.task_position, before.task_position);
}

/// Each launch has an epoch of its own, and the former one's term is over.
pub async fn a_relaunch_has_a_new_epoch(c: &Cluster) {
    let o = c.owned("again").await;
    c.release(o.owner).await;
    let released = c.schedule(o.changefeed).await;
    assert_eq!(
        (released.epoch, released.owner),
        (o.owner.epoch, None),
        "the epoch stays, the owner does not"
    );
    let second = c.launch(o.controller, o.capture, o.changefeed).await;
    assert!(second.epoch > o.owner.epoch);
    let event = metadata_api::decision::feed_state::FeedEvent::Report(FeedState::Normal);
    c.refuses(Refusal::Fenced, c.store.owner_transition(o.owner, event, None)).await;
    c.store.owner_transition(second, event, None).await.unwrap();
}

/// Each target is applied or refused on its own; what is refused is as it was.
pub async fn each_target_is_refused_on_its_own(c: &Cluster) {
    let controller = c.controller().await;
    let (alive, draining, offline) = (c.capture().await, c.capture().await, c.capture().await);
    c.store.capture_drain(draining.capture).await.unwrap();
    c.seal(controller, offline).await;
    let absent = CaptureTerm { capture: CaptureId::random() };
    let uuids = c.create_many("each", 14).await;
    let stopped = uuids[7];
    c.store.changefeed_pause(stopped).await.unwrap();
    let removed = uuids[8];
    c.store.changefeed_remove(Authority::Operator, removed).await.unwrap();
    let launched = uuids[9];
    c.launch(controller, alive, launched).await;
    let removing = uuids[10];
    c.launch(controller, alive, removing).await;
    c.set_owner(controller, c.removing_target(removing).await).await;

    let launch = |uuid, capture| c.launch_target(uuid, capture);
    let with_owner = |target: ScheduleTarget, owner| ScheduleTarget { owner, ..target };
    let stale = ScheduleTarget { expected_version: Version(2), ..launch(uuids[1], alive).await };
    let to_removed =
        ScheduleTarget { state: ScheduleState::Removed, owner: None, ..launch(uuids[5], alive).await };
    let nowhere = ScheduleTarget { changefeed: ChangefeedUuid(1), ..launch(uuids[0], alive).await };
    let cases = [
        (launch(uuids[0], alive).await, None),
        (stale, Some(Refusal::Conflict)),
        (launch(uuids[2], draining).await, Some(Refusal::Conflict)),
        (launch(uuids[3], offline).await, Some(Refusal::Conflict)),
        (launch(uuids[4], absent).await, Some(Refusal::Conflict)),
        (to_removed, Some(Refusal::InvalidArgument)),
        (with_owner(launch(uuids[6], alive).await, None), Some(Refusal::InvalidArgument)),
        (launch(stopped, alive).await, Some(Refusal::Conflict)),
        (launch(removed, alive).await, Some(Refusal::Conflict)),
        (launch(launched, alive).await, Some(Refusal::InvalidTransition)),
        (launch(removing, alive).await, Some(Refusal::InvalidTransition)),
        (c.removing_target(uuids[11]).await, Some(Refusal::InvalidTransition)),
        (nowhere, Some(Refusal::NotFound)),
        (launch(uuids[13], alive).await, None),
    ];
    let targets: Vec<_> = cases.iter().map(|(target, _)| *target).collect();
    let before = c.store.schedule_snapshot().await.unwrap();
    let answers = c.store.owner_set(controller, &targets).await.unwrap();
    assert_eq!(answers.len(), cases.len());
    for ((target, wanted), answer) in cases.iter().zip(answers) {
        match wanted {
            None => assert_eq!(answer.expect("applied").changefeed, target.changefeed),
            Some(wanted) => drop(assert_refused(answer, *wanted)),
        }
    }
    let after = c.store.schedule_snapshot().await.unwrap();
    for (before, after) in before.changefeeds.iter().zip(&after.changefeeds) {
        let applied = [uuids[0], uuids[13]].contains(&before.schedule.changefeed);
        assert_eq!(before == after, !applied, "{before:?}\n{after:?}");
    }
    // A removal names nobody, or the owner.
    let removal = with_owner(c.removing_target(launched).await, Some(draining.capture));
    let answers = c.store.owner_set(controller, &[removal]).await.unwrap();
    assert_refused(answers.into_iter().next().unwrap(), Refusal::InvalidArgument);
    let removal = with_owner(removal, Some(alive.capture));
    c.set_owner(controller, removal).await;
    // Removing twice is refused too.
    let answers = c.store.owner_set(controller, &[c.removing_target(removing).await]).await.unwrap();
    assert_refused(answers.into_iter().next().unwrap(), Refusal::InvalidTransition);
}

/// A changefeed that failed, finished or was stopped on its owner is not launched until it is resumed.
pub async fn only_what_is_runnable_is_launched(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    for state in FeedState::ALL {
        let id = format!("in-{}", if state.as_str().is_empty() { "none" } else { state.as_str() });
        let changefeed = c.create(&id).await.uuid;
        let owner = c.launch(controller, capture, changefeed).await;
        c.bring_to(owner, state).await;
        c.release(owner).await;
        let target = c.launch_target(changefeed, capture).await;
        let answer = c.store.owner_set(controller, &[target]).await.unwrap().remove(0);
        if state.is_runnable() {
            assert_eq!(answer.unwrap().state, ScheduleState::Launched, "{state}");
        } else {
            assert_refused(answer, Refusal::Conflict);
            assert_eq!(c.schedule(changefeed).await.state, ScheduleState::Removed, "{state}");
        }
    }
}

/// Too many targets, or one changefeed twice, are refused whole.
pub async fn a_bad_batch_is_refused_whole(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    let uuid = c.create("twice").await.uuid;
    let target = c.launch_target(uuid, capture).await;
    c.refuses(Refusal::InvalidArgument, c.store.owner_set(controller, &[target, target])).await;
    let many: Vec<_> = (0..=MAX_BATCH as u64)
        .map(|n| ScheduleTarget { changefeed: ChangefeedUuid(n + 1), ..target })
        .collect();
    c.refuses(Refusal::InvalidArgument, c.store.owner_set(controller, &many)).await;
    let answers = c.store.owner_set(controller, &many[..MAX_BATCH]).await.unwrap();
    assert!(answers.iter().all(|answer| matches!(answer, Err(metadata_api::MetadataError::NotFound { .. }))));
    let many: Vec<_> = (0..=MAX_BATCH as u64).map(|n| (ChangefeedUuid(n + 1), Version(1))).collect();
    c.refuses(Refusal::InvalidArgument, c.store.changefeed_cleanup(controller, &many)).await;
    assert_eq!(c.store.changefeed_cleanup(controller, &many[..MAX_BATCH]).await.unwrap(), 0);
    c.seal(controller, capture).await;
    for limit in [0, MAX_BATCH + 1] {
        // None would be "no more", and for ever.
        let call = c.store.capture_release(controller, capture.capture, limit);
        c.refuses(Refusal::InvalidField("limit"), call).await;
    }
    assert_eq!(c.store.owner_set(controller, &[]).await.unwrap().len(), 0);
}

/// Cleanup deletes exactly what is removed, without owner, of the given version, and without processors.
pub async fn cleanup_deletes_what_qualifies_only(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    let uuids = c.create_many("clean", 6).await;
    let [gone, moved, live, busy, attached, unasked] = uuids[..] else { unreachable!() };
    c.launch(controller, capture, busy).await;
    let owner = c.launch(controller, capture, attached).await;
    let row = c.attach(controller, attached, capture).await;
    c.release(owner).await;
    for uuid in [gone, moved, busy, attached, unasked] {
        c.store.changefeed_remove(Authority::Operator, uuid).await.unwrap();
    }
    let mut targets = Vec::new();
    for uuid in [gone, moved, live, busy, attached] {
        targets.push((uuid, c.schedule(uuid).await.version));
    }
    targets[1].1 = Version(targets[1].1.0 + 1);
    targets.push((ChangefeedUuid(1), Version(1)));
    let upstream = c.info(gone).await.upstream;
    let others: Vec<_> =
        c.store.changefeed_infos(Some(&[moved, live, busy, attached, unasked])).await.unwrap();
    let before = c.revision().await;
    assert_eq!(c.store.changefeed_cleanup(controller, &targets).await.unwrap(), 1);
    assert!(c.revision().await > before, "it takes a revision");
    assert_eq!(c.store.changefeed_infos(None).await.unwrap(), others);
    assert_eq!(c.store.changefeed_statuses(None).await.unwrap().len(), 5);
    assert_eq!(c.store.changefeed_schedule(gone).await.unwrap(), None);
    assert_eq!(c.store.upstream(upstream).await.unwrap(), None, "nobody uses it any more");
    for info in others {
        assert!(c.store.upstream(info.upstream).await.unwrap().is_some(), "{}", info.name);
    }
    // When its processor has stopped, the last obstacle is gone, and the row goes with it.
    c.store.processor_release(row.term()).await.unwrap();
    assert_eq!(c.store.changefeed_cleanup(controller, &targets[4..5]).await.unwrap(), 1);
    assert_eq!(c.store.processor_schedules(attached).await.unwrap(), []);
    assert_eq!(c.store.changefeed_cleanup(controller, &targets[4..5]).await.unwrap(), 0, "again: nothing");
}

/// An upstream goes with its last changefeed, and not before.
pub async fn an_upstream_goes_with_its_last_changefeed(c: &Cluster) {
    let controller = c.controller().await;
    let mut new = c.new_changefeed("first");
    new.upstream_id = Some(UpstreamId(77));
    let first = c.store.changefeed_create(Authority::Operator, &new).await.unwrap().uuid;
    let mut new = c.new_changefeed("second");
    new.upstream_id = Some(UpstreamId(77));
    let second = c.store.changefeed_create(Authority::Operator, &new).await.unwrap().uuid;
    for (uuid, left) in [(first, true), (second, false)] {
        c.store.changefeed_remove(Authority::Operator, uuid).await.unwrap();
        assert!(c.store.upstream(UpstreamId(77)).await.unwrap().is_some());
        let version = c.schedule(uuid).await.version;
        assert_eq!(c.store.changefeed_cleanup(controller, &[(uuid, version)]).await.unwrap(), 1);
        assert_eq!(c.store.upstream(UpstreamId(77)).await.unwrap().is_some(), left);
    }
}

/// A capture is sealed only with the heartbeat that was judged; and then it is, however often one asks.
pub async fn sealing_wants_the_heartbeat_that_was_judged(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    c.beat(capture, 0, 4).await;
    for judged in [0, 3, 5] {
        assert!(!c.changes_nothing(c.store.capture_seal(controller, capture.capture, judged)).await);
    }
    c.beat(capture, 4, 5).await;
    assert!(!c.changes_nothing(c.store.capture_seal(controller, capture.capture, 4)).await);
    let before = c.revision().await;
    assert!(c.store.capture_seal(controller, capture.capture, 5).await.unwrap());
    assert!(c.revision().await > before, "it takes a revision");
    assert_eq!(c.capture_row(capture).await.unwrap().state, CaptureState::Offline);
    for judged in [5, 0, 99] {
        assert!(
            c.changes_nothing(c.store.capture_seal(controller, capture.capture, judged)).await,
            "offline"
        );
    }
    let absent = CaptureId::random();
    assert!(c.changes_nothing(c.store.capture_seal(controller, absent, 0)).await, "absent");
    let draining = c.capture().await;
    c.store.capture_drain(draining.capture).await.unwrap();
    assert!(c.store.capture_seal(controller, draining.capture, 0).await.unwrap());
    assert_eq!(c.capture_row(draining).await.unwrap().state, CaptureState::Offline);
}

/// Nothing is taken from a capture that may still act.
pub async fn nothing_is_taken_from_a_live_capture(c: &Cluster) {
    let o = c.owned("live").await;
    let take = |controller: ControllerTerm| c.store.capture_release(controller, o.capture.capture, 10);
    c.refuses(Refusal::Conflict, take(o.controller)).await;
    c.refuses(Refusal::Conflict, c.store.capture_delete(o.controller, o.capture.capture)).await;
    c.store.capture_drain(o.capture.capture).await.unwrap();
    c.refuses(Refusal::Conflict, take(o.controller)).await;
    c.refuses(Refusal::Conflict, c.store.capture_delete(o.controller, o.capture.capture)).await;
    c.seal(o.controller, o.capture).await;
    c.refuses(Refusal::Conflict, c.store.capture_delete(o.controller, o.capture.capture)).await;
    assert_eq!(take(o.controller).await.unwrap(), 1);
    c.store.capture_delete(o.controller, o.capture.capture).await.unwrap();
    c.changes_nothing(c.store.capture_delete(o.controller, o.capture.capture)).await;
    assert_eq!(c.changes_nothing(take(o.controller)).await, 0);
}

/// I6: what is taken from a sealed capture resumes at the further of task position and the entry of the same epoch.
pub async fn a_release_takes_the_furthest_position_of_its_epoch(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    let uuids = c.create_many("taken", 6).await;
    let terms = c.launch_many(controller, capture, &uuids).await;
    c.set_owner(controller, c.removing_target(uuids[1]).await).await;
    let epoch = |n: usize| terms[n].epoch;
    let value = progress_of(&[
        (uuids[0], epoch(0), at(300)),
        (uuids[1], epoch(1), at(301)),
        (uuids[2], epoch(2), at(50)),
        (uuids[3], OwnerEpoch(epoch(3).0 - 1), at(303)),
        (uuids[4], OwnerEpoch(epoch(4).0 + 1), at(304)),
        (ChangefeedUuid(1), OwnerEpoch(1), at(900)),
    ]);
    c.store.capture_advance(capture, 1, &value).await.unwrap();
    c.seal(controller, capture).await;
    let before: Vec<_> = c.store.schedule_snapshot().await.unwrap().changefeeds;
    let earlier = c.revision().await;
    assert_eq!(c.store.capture_release(controller, capture.capture, MAX_BATCH).await.unwrap(), 6);
    let wanted = [300, 301, 100, 100, 100, 100];
    for ((uuid, want), before) in uuids.iter().zip(wanted).zip(before) {
        let row = c.schedule(*uuid).await;
        assert_eq!((row.owner, row.state), (None, ScheduleState::Removed));
        assert_eq!(row.task_position, at(want), "{uuid}");
        assert_eq!(row.epoch, before.schedule.epoch);
        assert_eq!(row.version, Version(before.schedule.version.0 + 1));
        assert!(row.revision > earlier);
        assert_eq!(c.progress(*uuid).await, at(want));
        assert_eq!(c.status(*uuid).await.state, FeedState::Uninitialized);
    }
}

/// Work is taken in batches of at most `limit`, processors too, and each batch is restartable by another controller.
pub async fn a_release_goes_in_batches(c: &Cluster) {
    let first = c.controller().await;
    let (capture, other) = (c.capture().await, c.capture().await);
    let mine = c.create_many("mine", 3).await;
    c.launch_many(first, capture, &mine).await;
    let theirs = c.create_many("theirs", 2).await;
    c.launch_many(first, other, &theirs).await;
    for uuid in &theirs {
        c.attach(first, *uuid, capture).await;
    }
    c.seal(first, capture).await;
    let mut left = 5;
    for (limit, want) in [(2, 2), (2, 2), (2, 1), (2, 0)] {
        let controller = c.controller().await;
        c.refuses(Refusal::Fenced, c.store.capture_release(first, capture.capture, limit)).await;
        if left > 0 {
            c.refuses(Refusal::Conflict, c.store.capture_delete(controller, capture.capture)).await;
        }
        assert_eq!(c.store.capture_release(controller, capture.capture, limit).await.unwrap(), want);
        left -= want;
        let schedules = c.store.capture_schedules(capture).await.unwrap().rows.len();
        let processors = c.store.capture_processors(capture).await.unwrap().rows.len();
        assert_eq!(schedules + processors, left);
    }
    for uuid in &theirs {
        assert_eq!(c.schedule(*uuid).await.state, ScheduleState::Launched, "another's is left");
        let rows = c.store.processor_schedules(*uuid).await.unwrap();
        assert_eq!(rows[0].state, ScheduleState::Removed);
    }
    let controller = c.controller().await;
    c.store.capture_delete(controller, capture.capture).await.unwrap();
    assert_eq!(c.store.processor_schedules(theirs[0]).await.unwrap(), [], "its `Removed` rows go with it");
}

/// When a removed changefeed is taken from a sealed capture, its name is free.
pub async fn a_release_frees_the_name_of_what_was_removed(c: &Cluster) {
    let o = c.owned("name").await;
    c.store.changefeed_remove(Authority::Operator, o.changefeed).await.unwrap();
    let new = c.new_changefeed("name");
    c.refuses(Refusal::AlreadyExists, c.store.changefeed_create(Authority::Operator, &new)).await;
    c.seal(o.controller, o.capture).await;
    c.refuses(Refusal::AlreadyExists, c.store.changefeed_create(Authority::Operator, &new)).await;
    assert_eq!(c.store.capture_release(o.controller, o.capture.capture, 5).await.unwrap(), 1);
    let second = c.store.changefeed_create(Authority::Operator, &new).await.unwrap();
    assert_ne!(second.uuid, o.changefeed);
}

/// A stopped changefeed that is taken stays stopped: it is not launched again.
pub async fn a_release_leaves_the_state_alone(c: &Cluster) {
    let o = c.owned("stays").await;
    c.store.changefeed_pause(o.changefeed).await.unwrap();
    let status = c.status(o.changefeed).await;
    c.seal(o.controller, o.capture).await;
    assert_eq!(c.store.capture_release(o.controller, o.capture.capture, 5).await.unwrap(), 1);
    assert_eq!(c.status(o.changefeed).await, status);
    assert_eq!(c.schedule(o.changefeed).await.state, ScheduleState::Removed);
}

/// A changefeed of which something does not decode is told apart, and stops neither what is planned for the others nor what is
/// taken from a dead capture. It keeps its owner, and with it the capture's rows.
pub async fn what_does_not_decode_stops_no_other(c: &Cluster) {
    let o = c.owned("taken").await;
    let mut feeds = vec![o.changefeed];
    for name in ["damaged", "stateless", "also-taken"] {
        let uuid = c.create(name).await.uuid;
        let target = c.launch_target(uuid, o.capture).await;
        c.store.owner_set(o.controller, &[target]).await.unwrap().remove(0).unwrap();
        feeds.push(uuid);
    }
    let [taken, damaged, stateless, also] = feeds[..] else { panic!("four") };
    let well = c.store.schedule_snapshot().await.unwrap();
    assert_eq!((well.changefeeds.len(), well.unreadable.len()), (4, 0));
    c.execute(&format!("UPDATE schedule SET owner_state = 'dancing' WHERE changefeed_uuid = {damaged}"))
        .await;
    c.execute(&format!("UPDATE changefeed_state SET state = 'dancing' WHERE changefeed_uuid = {stateless}"))
        .await;
    let snapshot = c.store.schedule_snapshot().await.unwrap();
    let readable: BTreeSet<_> = snapshot.changefeeds.iter().map(|feed| feed.schedule.changefeed).collect();
    assert_eq!(readable, BTreeSet::from([taken, also]));
    let mut unreadable = snapshot.unreadable;
    unreadable.sort_by_key(|row| row.changefeed != damaged);
    let reasons: Vec<_> = unreadable.iter().map(|row| (row.changefeed, row.reason.as_str())).collect();
    let [(first, schedule), (second, state)] = reasons[..] else { panic!("{reasons:?}") };
    assert_eq!((first, second), (damaged, stateless));
    assert!(schedule.contains("owner_state") && schedule.contains(&damaged.to_string()), "{schedule}");
    assert!(state.contains("changefeed_state") && state.contains(&stateless.to_string()), "{state}");

    // Its owner reads the others, and is told which it could not read.
    let mine = c.store.capture_schedules(o.capture).await.unwrap();
    assert!(mine.rows.iter().map(|row| row.changefeed).eq([taken, stateless, also]), "{mine:?}");
    assert_eq!(mine.unreadable, BTreeSet::from([damaged]));

    c.seal(o.controller, o.capture).await;
    // One at a time: what is passed over takes nobody's place.
    for _ in 0..3 {
        assert_eq!(c.store.capture_release(o.controller, o.capture.capture, 1).await.unwrap(), 1);
    }
    assert_eq!(c.store.capture_release(o.controller, o.capture.capture, 1).await.unwrap(), 0);
    for uuid in [taken, stateless, also] {
        assert_eq!(c.schedule(uuid).await.state, ScheduleState::Removed);
    }
    let call = c.store.capture_delete(o.controller, o.capture.capture);
    assert_refused(call.await, Refusal::Conflict);
    let target = ScheduleTarget {
        changefeed: damaged,
        owner: None,
        state: ScheduleState::Removing,
        expected_version: Version(2),
    };
    let answer = c.store.owner_set(o.controller, &[target]).await.unwrap().remove(0);
    assert_refused(answer, Refusal::Corrupt("schedule"));
}

/// A sealed progress that does not decode stops the release, by name, rather than losing a position.
pub async fn a_corrupt_progress_stops_the_release(c: &Cluster) {
    let o = c.owned("corrupt").await;
    let value = progress_of(&[(o.changefeed, o.owner.epoch, at(500))]);
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    c.seal(o.controller, o.capture).await;
    c.execute("UPDATE progress SET value = '{\"1\": {\"owner'").await;
    let call = c.store.capture_release(o.controller, o.capture.capture, 5);
    assert_refused(call.await, Refusal::Corrupt("progress"));
    assert_eq!(c.schedule(o.changefeed).await.state, ScheduleState::Launched);
}
