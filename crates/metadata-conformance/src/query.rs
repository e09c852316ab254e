//! `QueryStore`: plain reads.

use metadata_api::model::{
    CaptureId, ChangefeedName, ChangefeedUuid, ControllerEpoch, FeedState, Name, NewChangefeed, OwnerEpoch,
    ReplicaConfig, ScheduleState, Ts, UpstreamId, Version,
};
use metadata_api::store::Authority;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{Cluster, at, lines, progress_of, uri};

/// A fresh database is empty, and looking into it is no error.
pub async fn an_empty_cluster_reads_as_empty(c: &Cluster) {
    let store = &c.store;
    let election = store.election().await.unwrap();
    assert_eq!(election.leader, None);
    assert_eq!(election.epoch, ControllerEpoch(0));
    assert_eq!(election.cooldown, None);
    assert_eq!(store.captures(None).await.unwrap(), []);
    assert_eq!(store.capture_beats().await.unwrap(), []);
    assert_eq!(store.changefeed_infos(None).await.unwrap(), []);
    assert_eq!(store.changefeed_statuses(None).await.unwrap(), []);
    assert!(store.changefeed_progresses(None).await.unwrap().is_empty());
    assert_eq!(store.processors(None).await.unwrap(), []);
    assert_eq!(store.changefeed_overviews(None).await.unwrap(), []);
    let snapshot = store.schedule_snapshot().await.unwrap();
    assert!(snapshot.captures.is_empty() && snapshot.changefeeds.is_empty());
}

/// What is asked for by key and does not exist is left out.
pub async fn what_does_not_exist_is_left_out(c: &Cluster) {
    let here = c.create("here").await.uuid;
    let capture = c.capture().await;
    let store = &c.store;
    let gone = [ChangefeedUuid(1), here, ChangefeedUuid(u64::MAX)];
    assert_eq!(store.changefeed_infos(Some(&gone)).await.unwrap().len(), 1);
    assert_eq!(store.changefeed_statuses(Some(&gone)).await.unwrap().len(), 1);
    let progresses = store.changefeed_progresses(Some(&gone)).await.unwrap();
    assert_eq!(progresses.into_keys().collect::<Vec<_>>(), [here]);
    let captures = store.captures(Some(&[CaptureId::random(), capture.capture])).await.unwrap();
    assert_eq!(captures.iter().map(|row| row.id).collect::<Vec<_>>(), [capture.capture]);
    assert_eq!(store.upstream(UpstreamId(7)).await.unwrap(), None);
    assert_eq!(store.changefeed_schedule(ChangefeedUuid(1)).await.unwrap(), None);
    assert_eq!(store.processor_schedules(ChangefeedUuid(1)).await.unwrap(), []);
    assert_eq!(store.processors(Some(&gone)).await.unwrap(), []);
    let absent = ChangefeedName::new("", "absent").unwrap();
    assert_eq!(store.changefeed_overview(&absent).await.unwrap(), None);
    let nowhere = Name::new("namespace", "nowhere").unwrap();
    assert_eq!(store.changefeed_overviews(Some(&nowhere)).await.unwrap(), []);
}

/// `Some` of nothing is nothing, not everything.
pub async fn some_of_nothing_is_nothing(c: &Cluster) {
    let o = c.owned("here").await;
    c.attach(o.controller, o.changefeed, o.capture).await;
    let store = &c.store;
    assert_eq!(store.captures(Some(&[])).await.unwrap(), []);
    assert_eq!(store.changefeed_infos(Some(&[])).await.unwrap(), []);
    assert_eq!(store.changefeed_statuses(Some(&[])).await.unwrap(), []);
    assert!(store.changefeed_progresses(Some(&[])).await.unwrap().is_empty());
    assert_eq!(store.processors(Some(&[])).await.unwrap(), []);
}

/// The identity is the database's: the same through every store, another on another database.
pub async fn the_identity_is_the_databases(c: &Cluster) {
    let identity = c.store.identity().await.unwrap();
    assert_ne!(identity.cluster_id, Uuid::nil());
    assert_eq!(c.open().await.identity().await.unwrap(), identity);
    assert_eq!(identity.server_id.is_empty(), !c.features.server_identity, "{identity:?}");
    c.controller().await;
    c.create("changes-nothing-of-it").await;
    assert_eq!(c.store.identity().await.unwrap(), identity);
}

/// Captures come ordered by id, each once.
pub async fn captures_are_ordered_by_id(c: &Cluster) {
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(c.capture().await.capture);
    }
    let mut sorted = ids.clone();
    sorted.sort();
    let all = c.store.captures(None).await.unwrap();
    assert_eq!(all.iter().map(|row| row.id).collect::<Vec<_>>(), sorted);
    let beats = c.store.capture_beats().await.unwrap();
    assert_eq!(beats.iter().map(|row| row.id).collect::<Vec<_>>(), sorted);
    ids.truncate(4);
    let asked: Vec<_> = ids.iter().chain(&ids).copied().collect();
    let some = c.store.captures(Some(&asked)).await.unwrap();
    ids.sort();
    assert_eq!(some.iter().map(|row| row.id).collect::<Vec<_>>(), ids);
}

/// What was created reads back, bit by bit, in all three rows and the upstream.
pub async fn a_changefeed_reads_back_as_created(c: &Cluster) {
    let config = json!({
        "text": "\"\\ '%_;-- \u{0} ü 🦀\n", "deep": [[[{ "": null }]]], "big": u64::MAX, "neg": i64::MIN,
        "float": 0.5, "long": "x".repeat(20_000),
    });
    let new = NewChangefeed {
        upstream_id: Some(UpstreamId(u64::MAX)),
        upstream_uri: uri("mysql://ro%6Ft:p%40ss'w\"ord@[::1]:3306/db?ssl-ca=/a/b&Token=abc"),
        sink_uri: uri("kafka://h1:9092/topic?sasl-password=s%2Fecret&protocol=canal-json"),
        start_ts: Ts(1),
        target_ts: Ts::MAX,
        config: ReplicaConfig(config.as_object().unwrap().clone()),
        task_position: at(Ts::MAX.0 - 2),
        ..c.new_changefeed("whole")
    };
    let created = c.store.changefeed_create(Authority::Operator, &new).await.unwrap();
    let other = c.open().await;
    let info = other.changefeed_infos(None).await.unwrap().remove(0);
    assert_eq!(info, created);
    assert_eq!(info.name, new.name);
    assert_eq!(info.upstream, UpstreamId(u64::MAX));
    assert_eq!(info.sink_uri.expose(), new.sink_uri.expose());
    assert_eq!((info.start_ts, info.target_ts), (Ts(1), Ts::MAX));
    assert_eq!(info.config, new.config);
    assert_eq!(info.creator_version, new.creator_version);
    assert_eq!(info.client_request_id, new.client_request_id);
    assert_eq!(info.removed_at, None);
    assert_eq!(info.version, Version(1));
    let upstream = other.upstream(UpstreamId(u64::MAX)).await.unwrap().unwrap();
    assert_eq!(upstream.id, UpstreamId(u64::MAX));
    assert_eq!(upstream.uri.expose(), new.upstream_uri.expose());
    let status = other.changefeed_statuses(None).await.unwrap().remove(0);
    assert_eq!(status.changefeed, info.uuid);
    assert_eq!(status.state, FeedState::Uninitialized);
    assert_eq!((status.warning, status.error, status.version), (None, None, Version(1)));
    let schedule = other.changefeed_schedule(info.uuid).await.unwrap().unwrap();
    assert_eq!((schedule.owner, schedule.state), (None, ScheduleState::Removed));
    assert_eq!((schedule.epoch, schedule.version), (OwnerEpoch(0), Version(1)));
    assert_eq!(schedule.task_position, new.task_position);
    assert_eq!(c.progress(info.uuid).await, new.task_position);
}

/// Lists of changefeeds come ordered by uuid, whatever the order asked in, each once.
pub async fn changefeeds_are_ordered_by_uuid(c: &Cluster) {
    let uuids = c.create_many("ordered", 6).await;
    assert!(uuids.is_sorted(), "{uuids:?}");
    let mut asked: Vec<_> = uuids.iter().rev().copied().collect();
    asked.extend(&uuids);
    for which in [None, Some(asked.as_slice())] {
        let infos = c.store.changefeed_infos(which).await.unwrap();
        assert_eq!(infos.iter().map(|row| row.uuid).collect::<Vec<_>>(), uuids);
        let statuses = c.store.changefeed_statuses(which).await.unwrap();
        assert_eq!(statuses.iter().map(|row| row.changefeed).collect::<Vec<_>>(), uuids);
        let progresses = c.store.changefeed_progresses(which).await.unwrap();
        assert_eq!(progresses.into_keys().collect::<Vec<_>>(), uuids);
    }
    let snapshot = c.store.schedule_snapshot().await.unwrap();
    assert_eq!(snapshot.changefeeds.iter().map(|row| row.schedule.changefeed).collect::<Vec<_>>(), uuids);
}

/// A long list of keys is asked like a short one: reads have no batch limit.
pub async fn a_long_list_of_keys_is_no_trouble(c: &Cluster) {
    let o = c.owned("needle").await;
    let (uuid, capture) = (o.changefeed, o.capture.capture);
    c.attach(o.controller, uuid, o.capture).await;
    let mut asked: Vec<_> = (1..=33_000).map(ChangefeedUuid).collect();
    asked.push(uuid);
    assert_eq!(c.store.changefeed_infos(Some(&asked)).await.unwrap().len(), 1);
    assert_eq!(c.store.changefeed_statuses(Some(&asked)).await.unwrap().len(), 1);
    assert_eq!(c.store.changefeed_progresses(Some(&asked)).await.unwrap().len(), 1);
    assert_eq!(c.store.processors(Some(&asked)).await.unwrap().len(), 1);
    let mut asked: Vec<_> = (1..=2_000).map(|n| CaptureId(Uuid::from_u128(n))).collect();
    asked.push(capture);
    assert_eq!(c.store.captures(Some(&asked)).await.unwrap().len(), 1);
}

/// Overviews come ordered by (namespace, id), byte by byte, of all namespaces or of one, and names that differ in case
/// only are different names.
pub async fn overviews_are_ordered_by_name(c: &Cluster) {
    for (namespace, id) in
        [("b", "x"), ("a", "y"), ("a", "B"), ("a", "b"), ("A", "b"), ("a", "a-1"), ("", "b")]
    {
        let new =
            NewChangefeed { name: ChangefeedName::new(namespace, id).unwrap(), ..c.new_changefeed("unused") };
        c.store.changefeed_create(Authority::Operator, &new).await.unwrap();
    }
    let names = |list: Vec<metadata_api::model::ChangefeedOverview>| -> Vec<String> {
        list.iter().map(|row| row.info.name.to_string()).collect()
    };
    let all = names(c.store.changefeed_overviews(None).await.unwrap());
    assert_eq!(all, ["A/b", "a/B", "a/a-1", "a/b", "a/y", "b/x", "default/b"]);
    let a = Name::new("namespace", "a").unwrap();
    let some = names(c.store.changefeed_overviews(Some(&a)).await.unwrap());
    assert_eq!(some, ["a/B", "a/a-1", "a/b", "a/y"]);
    for (namespace, id, there) in [("a", "B", true), ("A", "b", true), ("A", "B", false), ("B", "x", false)] {
        let name = ChangefeedName::new(namespace, id).unwrap();
        let found = c.store.changefeed_overview(&name).await.unwrap();
        assert_eq!(found.is_some(), there, "{name}");
        assert!(found.is_none_or(|row| row.info.name == name));
    }
}

/// An overview is all the rows of one changefeed, as they read one by one.
pub async fn an_overview_is_the_rows_together(c: &Cluster) {
    let o = c.owned("together").await;
    c.bring_to(o.owner, FeedState::Warning).await;
    let value = progress_of(&[(o.changefeed, o.owner.epoch, at(250))]);
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    let info = c.info(o.changefeed).await;
    let overview = c.store.changefeed_overview(&info.name).await.unwrap().unwrap();
    assert_eq!(overview.upstream, c.store.upstream(info.upstream).await.unwrap().unwrap());
    assert_eq!(overview.info, info);
    assert_eq!(overview.status, c.status(o.changefeed).await);
    assert_eq!(overview.schedule, c.schedule(o.changefeed).await);
    assert_eq!(overview.progress, at(250));
    assert_eq!(c.store.changefeed_overviews(None).await.unwrap(), [overview]);
}

/// A removed changefeed is listed until it is cleaned up, and holds its name until its schedule is `Removed`.
pub async fn the_removed_are_listed_until_cleaned_up(c: &Cluster) {
    let o = c.owned("doomed").await;
    let name = c.info(o.changefeed).await.name;
    c.store.changefeed_remove(Authority::Operator, o.changefeed).await.unwrap();
    assert!(c.info(o.changefeed).await.removed_at.is_some());
    assert_eq!(c.status(o.changefeed).await.state, FeedState::Removed);
    assert_eq!(c.schedule(o.changefeed).await.state, ScheduleState::Removing);
    let held = c.store.changefeed_overview(&name).await.unwrap().expect("it holds its name still");
    assert_eq!(held.info.uuid, o.changefeed);
    assert_eq!(c.store.changefeed_overviews(None).await.unwrap().len(), 1);

    c.release(o.owner).await;
    assert_eq!(c.store.changefeed_overview(&name).await.unwrap(), None);
    assert_eq!(c.store.changefeed_overviews(None).await.unwrap(), []);
    assert_eq!(c.store.changefeed_infos(None).await.unwrap().len(), 1);
    assert_eq!(c.store.changefeed_statuses(None).await.unwrap().len(), 1);
    assert_eq!(c.store.changefeed_progresses(None).await.unwrap().len(), 1);
    assert_eq!(c.store.schedule_snapshot().await.unwrap().changefeeds.len(), 1);

    let version = c.schedule(o.changefeed).await.version;
    let count = c.store.changefeed_cleanup(o.controller, &[(o.changefeed, version)]).await.unwrap();
    assert_eq!(count, 1);
    assert_eq!(c.store.changefeed_infos(None).await.unwrap(), []);
    assert_eq!(c.store.changefeed_statuses(None).await.unwrap(), []);
    assert!(c.store.changefeed_progresses(None).await.unwrap().is_empty());
    assert_eq!(c.store.changefeed_schedule(o.changefeed).await.unwrap(), None);
}

/// I6: which entry of which row counts as a changefeed's progress, in each way of reading it.
pub async fn progress_is_the_current_owners_if_it_is_ahead(c: &Cluster) {
    let o = c.owned("ahead").await;
    let stranger = c.capture().await;
    let current = o.owner.epoch;
    let (older, newer) = (OwnerEpoch(current.0 - 1), OwnerEpoch(current.0 + 1));
    let mut seq = 0;
    // By whom, under which epoch, how far; and what must be read then. The task position is 100.
    let steps = [
        (o.capture, older, 900, 100),
        (o.capture, newer, 900, 100),
        (o.capture, OwnerEpoch(0), 900, 100),
        (stranger, current, 900, 100),
        (o.capture, current, 99, 100),
        (o.capture, current, 300, 300),
        (o.capture, current, 200, 200),
        (o.capture, older, 900, 100),
        (o.capture, current, 400, 400),
    ];
    for (capture, epoch, ts, want) in steps {
        seq += 1;
        let value = progress_of(&[(o.changefeed, epoch, at(ts))]);
        c.store.capture_advance(capture, seq, &value).await.unwrap();
        assert_read_everywhere(c, o.changefeed, want).await;
        let launch = c.store.owner_launches(o.capture, &[o.changefeed]).await.unwrap().remove(0);
        assert_eq!(launch.progress, at(want), "owner_launches");
    }
    // It is the same while the owner is being removed.
    let target = c.removing_target(o.changefeed).await;
    c.set_owner(o.controller, target).await;
    assert_read_everywhere(c, o.changefeed, 400).await;
    // Once it is removed only the task position counts, although the entry goes on.
    c.release(o.owner).await;
    let value = progress_of(&[(o.changefeed, current, at(800))]);
    c.store.capture_advance(o.capture, seq + 1, &value).await.unwrap();
    assert_read_everywhere(c, o.changefeed, 400).await;
    // The next launch on the same capture does not take up the last one's entry.
    c.launch(o.controller, o.capture, o.changefeed).await;
    assert_read_everywhere(c, o.changefeed, 400).await;
}

/// I6: equal checkpoints: the task position stays, whole.
pub async fn at_equal_checkpoints_the_task_position_is_read(c: &Cluster) {
    let o = c.owned("equal").await;
    let mut same = at(100);
    same.position = None;
    let value = progress_of(&[(o.changefeed, o.owner.epoch, same)]);
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    assert_read_everywhere(c, o.changefeed, 100).await;
}

/// I6: a progress is passed on whole; a field that the further one lacks is not filled from the other.
pub async fn progress_is_never_merged_by_field(c: &Cluster) {
    let o = c.owned("whole").await;
    let mut ahead = at(101);
    (ahead.resolved_ts, ahead.min_table_barrier_ts, ahead.position) = (Ts(101), Ts(101), None);
    let value = progress_of(&[(o.changefeed, o.owner.epoch, ahead.clone())]);
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    assert_eq!(c.progress(o.changefeed).await, ahead);
    c.release(o.owner).await;
    assert_eq!(c.schedule(o.changefeed).await.task_position, ahead);
}

/// That each way of reading a changefeed's progress finds it at `want`.
pub(crate) async fn assert_read_everywhere(c: &Cluster, changefeed: ChangefeedUuid, want: u64) {
    let want = at(want);
    assert_eq!(c.progress(changefeed).await, want, "changefeed_progresses of some");
    let all = c.store.changefeed_progresses(None).await.unwrap();
    assert_eq!(all.get(&changefeed), Some(&want), "changefeed_progresses of all");
    let overviews = c.store.changefeed_overviews(None).await.unwrap();
    let overview = overviews.iter().find(|row| row.info.uuid == changefeed).expect("an overview");
    assert_eq!(overview.progress, want, "changefeed_overviews:\n{}", lines(&overviews));
    let name = &overview.info.name;
    let overview = c.store.changefeed_overview(name).await.unwrap().unwrap();
    assert_eq!(overview.progress, want, "changefeed_overview");
}

/// Processor rows come ordered by capture id, the `Removed` ones included.
pub async fn processor_rows_are_ordered_by_capture(c: &Cluster) {
    let o = c.owned("spread").await;
    let mut captures = Vec::new();
    for _ in 0..4 {
        let capture = c.capture().await;
        let row = c.attach(o.controller, o.changefeed, capture).await;
        captures.push(capture.capture);
        if captures.len() == 2 {
            c.store.processor_release(row.term()).await.unwrap();
        }
    }
    captures.sort();
    let rows = c.store.processor_schedules(o.changefeed).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.capture).collect::<Vec<_>>(), captures);
    let removed = rows.iter().filter(|row| row.state == ScheduleState::Removed).count();
    assert_eq!(removed, 1);
}

/// A row that does not decode is `Corrupt`, by table and column, never a panic, and others still read.
pub async fn a_row_that_does_not_decode_is_corrupt(c: &Cluster) {
    use crate::harness::{Refusal, assert_refused};
    let o = c.owned("corrupt").await;
    let (uuid, capture) = (o.changefeed, o.capture);
    c.attach(o.controller, uuid, capture).await;
    c.execute("UPDATE changefeed_state SET state = 'dancing'").await;
    let text = assert_refused(c.store.changefeed_statuses(None).await, Refusal::Corrupt("changefeed_state"));
    assert!(text.contains("state") && text.contains(&uuid.to_string()), "{text}");
    assert_refused(c.store.changefeed_overviews(None).await, Refusal::Corrupt("changefeed_state"));
    assert_refused(c.store.changefeed_pause(uuid).await, Refusal::Corrupt("changefeed_state"));
    assert_eq!(c.store.changefeed_infos(None).await.unwrap().len(), 1);
    c.execute("UPDATE capture SET state = 'tired'").await;
    assert_refused(c.store.captures(None).await, Refusal::Corrupt("capture"));
    assert_refused(c.store.capture_beats().await, Refusal::Corrupt("capture"));
    assert_refused(c.store.processors(None).await, Refusal::Corrupt("capture"));
    assert_refused(
        c.store
            .capture_register(&metadata_api::model::NewCapture { id: capture.capture, ..c.new_capture() })
            .await,
        Refusal::Corrupt("capture"),
    );
}
