//! `CaptureStore`: what a capture does for itself.

use std::collections::BTreeMap;

use metadata_api::codec;
use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    CaptureId, CaptureProgress, CaptureState, CaptureTerm, ChangefeedUuid, NewCapture, OwnerEpoch,
    ScheduleState, SourcePosition,
};
use metadata_api::store::{Assigned, MAX_BATCH};
use serde_json::json;

use crate::harness::{Cluster, Refusal, assert_refused, at, progress_of};

/// A registered capture is `alive`, has not beaten, has an empty progress, and all that it said of itself.
pub async fn registering_writes_the_row(c: &Cluster) {
    let new = c.new_capture();
    let before = c.revision().await;
    let term = c.store.capture_register(&new).await.unwrap();
    assert_eq!(term, CaptureTerm { capture: new.id });
    assert!(c.revision().await > before, "it takes a revision");
    let row = c.capture_row(term).await.unwrap();
    assert_eq!(row.id, new.id);
    assert_eq!(row.advertise_addr, new.advertise_addr);
    assert_eq!(row.version, new.version);
    assert_eq!(row.labels, new.labels);
    assert_eq!(row.machine_id, new.machine_id);
    assert_eq!((row.state, row.heartbeat_seq), (CaptureState::Alive, 0));
    assert_eq!(c.store.capture_progress(term).await.unwrap(), (0, CaptureProgress::default()));
    assert_eq!(c.store.capture_schedules(term).await.unwrap().rows, []);
    assert_eq!(c.store.capture_processors(term).await.unwrap().rows, []);
}

/// Registering the same id again is done already, also when it beat, advanced or drains meanwhile.
pub async fn registering_twice_is_done_already(c: &Cluster) {
    let new = c.new_capture();
    let term = c.store.capture_register(&new).await.unwrap();
    assert_eq!(c.changes_nothing(c.store.capture_register(&new)).await, term);
    c.beat(term, 0, 3).await;
    let value = progress_of(&[(ChangefeedUuid(1), OwnerEpoch(1), at(5))]);
    c.store.capture_advance(term, 2, &value).await.unwrap();
    assert_eq!(c.changes_nothing(c.store.capture_register(&new)).await, term);
    c.store.capture_drain(term.capture).await.unwrap();
    assert_eq!(c.changes_nothing(c.store.capture_register(&new)).await, term);
}

/// What does not fit is refused before any SQL; what just fits is taken.
pub async fn registering_checks_what_it_is_given(c: &Cluster) {
    let good = c.new_capture();
    let huge = "x".repeat(1 << 20);
    let bad = [
        NewCapture { advertise_addr: String::new(), ..good.clone() },
        NewCapture { advertise_addr: "a".repeat(256), ..good.clone() },
        NewCapture { version: huge.clone(), ..good.clone() },
        NewCapture { machine_id: huge.clone(), ..good.clone() },
        NewCapture { labels: BTreeMap::from([("k".to_owned(), huge.repeat(17))]), ..good.clone() },
    ];
    for new in &bad {
        c.refuses(Refusal::InvalidArgument, c.store.capture_register(new)).await;
    }
    let longest = NewCapture {
        advertise_addr: "a".repeat(codec::MAX_SHORT),
        version: "v".repeat(codec::MAX_SHORT),
        machine_id: "m".repeat(codec::MAX_SHORT),
        labels: BTreeMap::from([("k".to_owned(), "l".repeat(codec::MAX_LABELS - r#"{"k":""}"#.len()))]),
        ..good.clone()
    };
    let term = c.store.capture_register(&longest).await.unwrap();
    let row = c.capture_row(term).await.unwrap();
    assert_eq!((row.version, row.labels), (longest.version, longest.labels));
    let bare = NewCapture {
        labels: BTreeMap::new(),
        version: String::new(),
        machine_id: String::new(),
        ..c.new_capture()
    };
    let term = c.store.capture_register(&bare).await.unwrap();
    assert_eq!(c.capture_row(term).await.unwrap().machine_id, "");
}

/// Sealed is for good: nothing that carries the capture's term is accepted any more, and it does not come back.
pub async fn a_sealed_capture_is_refused_everything(c: &Cluster) {
    let o = c.owned("sealed").await;
    let new = NewCapture { id: o.capture.capture, ..c.new_capture() };
    let value = progress_of(&[(o.changefeed, o.owner.epoch, at(200))]);
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    c.beat(o.capture, 0, 1).await;
    let mut channel = c.store.heartbeat_channel().await.unwrap();
    c.seal(o.controller, o.capture).await;
    assert_eq!(c.capture_row(o.capture).await.unwrap().state, CaptureState::Offline);
    let store = &c.store;
    let observed = store.election().await.unwrap();
    let further = progress_of(&[(o.changefeed, o.owner.epoch, at(300))]);
    c.refuses(Refusal::Fenced, channel.beat(o.capture, 1, 2)).await;
    c.refuses(Refusal::Fenced, store.capture_advance(o.capture, 2, &further)).await;
    c.refuses(Refusal::Fenced, store.capture_progress(o.capture)).await;
    c.refuses(Refusal::Fenced, store.capture_register(&new)).await;
    c.refuses(Refusal::Fenced, store.election_campaign(o.capture, &observed)).await;
    c.refuses(Refusal::InvalidTransition, store.capture_drain(o.capture.capture)).await;
    // What it wrote before counts, until and after its work was taken.
    assert_eq!(c.progress(o.changefeed).await, at(200));
    assert_eq!(store.capture_release(o.controller, o.capture.capture, 10).await.unwrap(), 1);
    assert_eq!(c.schedule(o.changefeed).await.task_position, at(200));
    let event = FeedEvent::Report(metadata_api::model::FeedState::Normal);
    c.refuses(Refusal::Fenced, store.owner_transition(o.owner, event, None)).await;
    let release =
        metadata_api::store::OwnerRelease { term: o.owner, task_position: Some(at(300)), end: None };
    let answers = c.changes_nothing(store.owner_release(&[release])).await;
    assert_refused(answers.into_iter().next().unwrap(), Refusal::Fenced);
}

/// A progress replaces the whole value before it, keeps its sequence, and takes no revision.
pub async fn advancing_replaces_the_whole_value(c: &Cluster) {
    let term = c.capture().await;
    let (one, two) = (ChangefeedUuid(11), ChangefeedUuid(u64::MAX));
    let first = progress_of(&[(one, OwnerEpoch(1), at(10)), (two, OwnerEpoch(2), at(20))]);
    let revision = c.revision().await;
    c.store.capture_advance(term, 5, &first).await.unwrap();
    assert_eq!(c.store.capture_progress(term).await.unwrap(), (5, first));
    let second = progress_of(&[(one, OwnerEpoch(3), at(7))]);
    c.store.capture_advance(term, 9, &second).await.unwrap();
    assert_eq!(c.store.capture_progress(term).await.unwrap(), (9, second));
    c.store.capture_advance(term, 10, &CaptureProgress::default()).await.unwrap();
    assert_eq!(c.store.capture_progress(term).await.unwrap(), (10, CaptureProgress::default()));
    assert_eq!(c.revision().await, revision);
}

/// I6: a progress that arrives late, after a newer one, is refused.
pub async fn a_late_progress_is_refused(c: &Cluster) {
    let o = c.owned("late").await;
    let late = progress_of(&[(o.changefeed, o.owner.epoch, at(150))]);
    let newer = progress_of(&[(o.changefeed, o.owner.epoch, at(200))]);
    c.store.capture_advance(o.capture, 7, &newer).await.unwrap();
    for seq in [6, 7, 1, 0] {
        c.refuses(Refusal::Conflict, c.store.capture_advance(o.capture, seq, &late)).await;
    }
    assert_eq!(c.progress(o.changefeed).await, at(200));
}

/// A capture without a row has no progress to write or read.
pub async fn an_absent_capture_is_fenced(c: &Cluster) {
    let absent = CaptureTerm { capture: CaptureId::random() };
    c.refuses(Refusal::Fenced, c.store.capture_advance(absent, 1, &CaptureProgress::default())).await;
    c.refuses(Refusal::Fenced, c.store.capture_progress(absent)).await;
    c.refuses(Refusal::NotFound, c.store.capture_drain(absent.capture)).await;
    assert_eq!(c.store.capture_schedules(absent).await.unwrap().rows, []);
    assert_eq!(c.store.capture_processors(absent).await.unwrap().rows, []);
    assert_eq!(c.store.owner_launches(absent, &[]).await.unwrap(), []);
}

/// A progress that does not fit is refused by the name of the changefeed that is too big.
pub async fn a_progress_that_does_not_fit_names_the_changefeed(c: &Cluster) {
    let term = c.capture().await;
    let (small, big) = (ChangefeedUuid(1_001), ChangefeedUuid(1_002));
    let mut huge = at(10);
    huge.position = Some(SourcePosition(json!("x".repeat(20 << 20))));
    let value = progress_of(&[(small, OwnerEpoch(1), at(10)), (big, OwnerEpoch(1), huge)]);
    let text = c.refuses(Refusal::InvalidArgument, c.store.capture_advance(term, 1, &value)).await;
    assert!(text.contains("1002"), "{text}");
    assert!(text.len() < 1_000, "the value itself is not repeated");
}

/// Many changefeeds of one capture fit into its one progress: 10,000 moved by one failure is a design size.
pub async fn a_progress_of_many_changefeeds_fits(c: &Cluster) {
    let term = c.capture().await;
    let entries: Vec<_> = (1..=10_000).map(|n| (ChangefeedUuid(n), OwnerEpoch(n), at(n))).collect();
    let value = progress_of(&entries);
    c.store.capture_advance(term, 1, &value).await.unwrap();
    assert_eq!(c.store.capture_progress(term).await.unwrap(), (1, value));
}

/// The full reconcile: what names the capture and is not `Removed`, ordered, as of the revision that comes with it.
pub async fn the_reconcile_lists_what_the_capture_has(c: &Cluster) {
    let controller = c.controller().await;
    let (mine, other) = (c.capture().await, c.capture().await);
    let uuids = c.create_many("mine", 5).await;
    let terms = c.launch_many(controller, mine, &uuids[..4]).await;
    c.launch(controller, other, uuids[4]).await;
    c.release(terms[1]).await;
    let target = c.removing_target(uuids[2]).await;
    c.set_owner(controller, target).await;
    let Assigned { revision, rows, .. } = c.store.capture_schedules(mine).await.unwrap();
    assert_eq!(revision, c.revision().await);
    let wanted = [c.schedule(uuids[0]).await, c.schedule(uuids[2]).await, c.schedule(uuids[3]).await];
    assert_eq!(rows, wanted);
    assert_eq!(rows[1].state, ScheduleState::Removing);
    assert!(rows.iter().all(|row| row.revision <= revision));

    let attached = c.attach(controller, uuids[3], other).await;
    let detached = c.attach(controller, uuids[0], other).await;
    c.store.processor_release(detached.term()).await.unwrap();
    let Assigned { revision, rows, .. } = c.store.capture_processors(other).await.unwrap();
    assert_eq!(revision, c.revision().await);
    assert_eq!(rows, [attached]);
    assert_eq!(c.store.capture_processors(mine).await.unwrap().rows, []);
}

/// Launches are of what the capture owns and is `Launched`; all else is left out.
pub async fn owner_launches_leaves_out_what_is_not_launched_here(c: &Cluster) {
    let controller = c.controller().await;
    let (mine, other) = (c.capture().await, c.capture().await);
    let uuids = c.create_many("launches", 6).await;
    c.launch_many(controller, mine, &uuids[..4]).await;
    c.launch(controller, other, uuids[4]).await;
    let target = c.removing_target(uuids[1]).await;
    c.set_owner(controller, target).await;
    c.release(c.schedule(uuids[2]).await.term().unwrap()).await;
    let mut asked: Vec<_> = uuids.iter().rev().copied().collect();
    asked.push(ChangefeedUuid(1));
    let launches = c.store.owner_launches(mine, &asked).await.unwrap();
    let got: Vec<_> = launches.iter().map(|launch| launch.term.changefeed).collect();
    assert_eq!(got, [uuids[0], uuids[3]], "ordered by uuid");
    for launch in launches {
        let uuid = launch.term.changefeed;
        let info = c.info(uuid).await;
        assert_eq!(Some(launch.term), c.schedule(uuid).await.term());
        assert_eq!(launch.upstream, c.store.upstream(info.upstream).await.unwrap().unwrap());
        assert_eq!(launch.upstream.uri.expose(), "mysql://root:up'stream%20pw@127.0.0.1:3306/");
        assert_eq!(launch.info, info);
        assert_eq!(launch.status, c.status(uuid).await);
        assert_eq!(launch.progress, c.progress(uuid).await);
    }
    let too_many: Vec<_> = (0..=MAX_BATCH as u64).map(ChangefeedUuid).collect();
    c.refuses(Refusal::InvalidArgument, c.store.owner_launches(mine, &too_many)).await;
    assert_eq!(c.store.owner_launches(mine, &too_many[..MAX_BATCH]).await.unwrap(), []);
    c.refuses(Refusal::InvalidArgument, c.store.owner_launches(mine, &[uuids[0], uuids[0]])).await;
}

/// Deregistering without work deletes the capture's rows, at a revision; again it is done already.
pub async fn deregistering_without_work_deletes_the_rows(c: &Cluster) {
    let o = c.owned("once").await;
    let row = c.attach(o.controller, o.changefeed, o.capture).await;
    c.store.processor_release(row.term()).await.unwrap();
    c.release(o.owner).await;
    let before = c.revision().await;
    c.store.capture_deregister(o.capture).await.unwrap();
    assert!(c.revision().await > before, "it takes a revision");
    assert_eq!(c.capture_row(o.capture).await, None);
    assert_refused(c.store.capture_progress(o.capture).await, Refusal::Fenced);
    c.changes_nothing(c.store.capture_deregister(o.capture)).await;
    let absent = CaptureTerm { capture: CaptureId::random() };
    c.changes_nothing(c.store.capture_deregister(absent)).await;
}

/// Deregistering with work left, of whatever kind and state, seals the capture and leaves the work to the controller.
pub async fn deregistering_with_work_seals(c: &Cluster) {
    for kind in ["launched", "removing", "attached", "detaching"] {
        let o = c.owned(kind).await;
        let leaver = match kind {
            "launched" => o.capture,
            "removing" => {
                let target = c.removing_target(o.changefeed).await;
                c.set_owner(o.controller, target).await;
                o.capture
            }
            _ => {
                let processor = c.capture().await;
                let row = c.attach(o.controller, o.changefeed, processor).await;
                if kind == "detaching" {
                    let target = crate::harness::detach_target(processor, row.version);
                    c.store.processor_set(o.controller, o.changefeed, &[target]).await.unwrap();
                }
                processor
            }
        };
        let schedule = c.schedule(o.changefeed).await;
        let processors = c.store.processor_schedules(o.changefeed).await.unwrap();
        let before = c.revision().await;
        c.store.capture_deregister(leaver).await.unwrap();
        assert!(c.revision().await > before, "{kind}: it takes a revision");
        assert_eq!(c.capture_row(leaver).await.unwrap().state, CaptureState::Offline, "{kind}");
        assert_refused(c.store.capture_progress(leaver).await, Refusal::Fenced);
        let mut channel = c.store.heartbeat_channel().await.unwrap();
        assert_refused(channel.beat(leaver, 0, 9).await, Refusal::Fenced);
        assert_eq!(c.schedule(o.changefeed).await, schedule, "{kind}: the schedule is left");
        assert_eq!(c.store.processor_schedules(o.changefeed).await.unwrap(), processors, "{kind}");
        c.changes_nothing(c.store.capture_deregister(leaver)).await;
        assert_eq!(c.store.capture_release(o.controller, leaver.capture, 10).await.unwrap(), 1, "{kind}");
        c.store.capture_delete(o.controller, leaver.capture).await.unwrap();
        assert_eq!(c.capture_row(leaver).await, None, "{kind}");
    }
}
