//! One case for each line of the list of what the Go original does wrong (`cdcv2/metadata/sql` of pingcap/tiflow) that
//! concerns a store. Lines 12 and 13 concern decisions (property tests in `metadata-api`), 10 in part and 17 the runtime.

use std::collections::BTreeSet;

use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    CaptureProgress, ChangefeedUpdate, ControllerEpoch, FeedState, NewChangefeed, Revision, ScheduleState, Ts,
};
use metadata_api::store::{Authority, OwnerEnd, OwnerRelease, PollCursor};

use crate::harness::{Cluster, Refusal, assert_refused, at, join_all, progress_of, running_error};

/// The first `CreateChangefeed` of any upstream fails: it waits for an error that its query never returns.
pub async fn defect_01_the_first_changefeed_of_an_upstream_is_created(c: &Cluster) {
    let info = c.create("first").await;
    let upstream = c.store.upstream(info.upstream).await.unwrap().expect("the upstream came with it");
    assert_eq!(upstream.uri.expose(), c.new_changefeed("x").upstream_uri.expose());
}

/// `SetOwner(Removing)` is always refused, so a placed changefeed can never be moved.
pub async fn defect_02_a_placed_changefeed_is_moved(c: &Cluster) {
    let o = c.owned("moved").await;
    let other = c.capture().await;
    c.set_owner(o.controller, c.removing_target(o.changefeed).await).await;
    c.release(o.owner).await;
    let moved = c.launch(o.controller, other, o.changefeed).await;
    assert_eq!(moved.capture, other.capture);
    assert_eq!(c.store.owner_launches(other, &[o.changefeed]).await.unwrap().len(), 1);
    assert_eq!(c.store.capture_schedules(o.capture).await.unwrap().rows, []);
}

/// `PostOwnerRemoved` returns success and writes neither `Removed` nor a nil owner, for its ORM drops zero values.
pub async fn defect_03_zero_values_are_written(c: &Cluster) {
    let o = c.owned("zero").await;
    c.release(o.owner).await;
    let row = c.open().await.changefeed_schedule(o.changefeed).await.unwrap().unwrap();
    assert_eq!((row.state, row.owner), (ScheduleState::Removed, None));

    let new = NewChangefeed { target_ts: Ts(5_000), ..c.new_changefeed("target") };
    let info = c.store.changefeed_create(Authority::Operator, &new).await.unwrap();
    c.store.changefeed_pause(info.uuid).await.unwrap();
    let update = ChangefeedUpdate { target_ts: Some(Ts::ZERO), ..ChangefeedUpdate::default() };
    c.store.changefeed_update(info.uuid, info.version, &update).await.unwrap();
    assert_eq!(c.info(info.uuid).await.target_ts, Ts::ZERO);

    let owner = c.launch(o.controller, o.capture, o.changefeed).await;
    let release = OwnerRelease {
        term: owner,
        task_position: None,
        end: Some(OwnerEnd::Failed(running_error("CDC:ErrGone"))),
    };
    c.store.owner_release(&[release]).await.unwrap().remove(0).unwrap();
    assert!(c.status(o.changefeed).await.error.is_some());
    c.store.changefeed_resume(o.changefeed, None).await.unwrap();
    assert_eq!(c.status(o.changefeed).await.error, None);
}

/// A dead owner under a living controller is never rescheduled.
pub async fn defect_04_a_dead_owner_is_replaced_by_the_same_controller(c: &Cluster) {
    let o = c.owned("orphan").await;
    let value = progress_of(&[(o.changefeed, o.owner.epoch, at(777))]);
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    let heir = c.capture().await;
    c.seal(o.controller, o.capture).await;
    assert_eq!(c.store.capture_release(o.controller, o.capture.capture, 500).await.unwrap(), 1);
    c.store.capture_delete(o.controller, o.capture.capture).await.unwrap();
    c.launch(o.controller, heir, o.changefeed).await;
    let launch = c.store.owner_launches(heir, &[o.changefeed]).await.unwrap().remove(0);
    assert_eq!(launch.progress, at(777));
    assert_eq!(c.capture_row(o.capture).await, None);
}

/// If a dead capture's last progress names a changefeed that was cleaned up since, every new controller fails at start.
pub async fn defect_05_a_progress_of_what_was_cleaned_up_does_no_harm(c: &Cluster) {
    let o = c.owned("stays").await;
    let gone = c.create("gone").await.uuid;
    let former = c.launch(o.controller, o.capture, gone).await;
    let value = progress_of(&[(gone, former.epoch, at(500)), (o.changefeed, o.owner.epoch, at(600))]);
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    c.store.changefeed_remove(Authority::Operator, gone).await.unwrap();
    c.release(former).await;
    let version = c.schedule(gone).await.version;
    assert_eq!(c.store.changefeed_cleanup(o.controller, &[(gone, version)]).await.unwrap(), 1);
    let next = c.controller().await;
    c.seal(next, o.capture).await;
    assert_eq!(c.store.capture_release(next, o.capture.capture, 500).await.unwrap(), 1);
    assert_eq!(c.schedule(o.changefeed).await.task_position, at(600));
    c.store.capture_delete(next, o.capture.capture).await.unwrap();
    assert_eq!(c.store.changefeed_infos(None).await.unwrap().len(), 1, "and what was gone stays gone");
}

/// A capture with no progress row panics the original's controller.
pub async fn defect_05_a_capture_without_a_progress_row_is_released(c: &Cluster) {
    let o = c.owned("norow").await;
    c.execute("DELETE FROM progress").await;
    assert_refused(c.store.capture_progress(o.capture).await, Refusal::Fenced);
    assert_refused(c.store.capture_advance(o.capture, 1, &CaptureProgress::default()).await, Refusal::Fenced);
    assert_eq!(c.progress(o.changefeed).await, at(100));
    let launch = c.store.owner_launches(o.capture, &[o.changefeed]).await.unwrap().remove(0);
    assert_eq!(launch.progress, at(100));
    c.seal(o.controller, o.capture).await;
    assert_eq!(c.store.capture_release(o.controller, o.capture.capture, 500).await.unwrap(), 1);
    assert_eq!(c.schedule(o.changefeed).await.task_position, at(100));
    c.store.capture_delete(o.controller, o.capture.capture).await.unwrap();
}

/// The same for a capture that has no row at all, as after a restored backup: it counts as offline.
pub async fn defect_05_a_capture_without_a_row_is_released(c: &Cluster) {
    let o = c.owned("nocapture").await;
    let processor = c.attach(o.controller, o.changefeed, o.capture).await;
    c.execute("DELETE FROM capture").await;
    assert!(c.store.capture_seal(o.controller, o.capture.capture, 0).await.unwrap());
    assert_eq!(c.store.capture_release(o.controller, o.capture.capture, 500).await.unwrap(), 2);
    assert_eq!(c.schedule(o.changefeed).await.state, ScheduleState::Removed);
    assert_refused(c.store.processor_release(processor.term()).await, Refusal::Fenced);
    c.store.capture_delete(o.controller, o.capture.capture).await.unwrap();
    let heir = c.capture().await;
    c.launch(o.controller, heir, o.changefeed).await;
}

/// After `ResignLeader` returned, the old leader still passes the leader lock.
pub async fn defect_06_a_resigned_term_passes_no_check(c: &Cluster) {
    let term = c.controller().await;
    let capture = c.capture().await;
    let changefeed = c.create("after").await.uuid;
    let target = c.launch_target(changefeed, capture).await;
    c.store.election_resign(term).await.unwrap();
    c.refuses(Refusal::Fenced, c.store.owner_set(term, &[target])).await;
    c.refuses(Refusal::Fenced, c.open().await.owner_set(term, &[target])).await;
    assert_eq!(c.store.election().await.unwrap().leader, None, "the empty leader is written");
}

/// Concurrent writers on one changefeed: 345 of 400 updates fail and are not retried.
pub async fn defect_07_concurrent_writers_all_succeed(c: &Cluster) {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 25;
    let o = c.owned("busy").await;
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let store = c.open().await;
        tasks.push(tokio::spawn(async move {
            for n in 0..WRITES {
                let warning = running_error(&format!("CDC:Err{writer}-{n}"));
                let event = FeedEvent::Report(FeedState::Warning);
                store.owner_transition(o.owner, event, Some(warning)).await.expect("a report");
            }
        }));
    }
    join_all(tasks).await;
    let version = c.status(o.changefeed).await.version.0;
    assert_eq!(version, 1 + WRITERS * WRITES, "each of them counted");
}

/// Looking up something that does not exist is an error, and a removed changefeed's name stays taken until cleanup.
pub async fn defect_08_absent_is_no_error_and_a_removed_name_is_free(c: &Cluster) {
    let name = c.new_changefeed("name").name;
    assert_eq!(c.store.changefeed_overview(&name).await.unwrap(), None);
    let first = c.create("name").await.uuid;
    c.store.changefeed_remove(Authority::Operator, first).await.unwrap();
    assert_eq!(c.store.changefeed_overview(&name).await.unwrap(), None);
    let second = c.create("name").await.uuid;
    assert_ne!(first, second);
    let controller = c.controller().await;
    let version = c.schedule(first).await.version;
    assert_eq!(c.store.changefeed_cleanup(controller, &[(first, version)]).await.unwrap(), 1);
    assert_eq!(c.store.changefeed_overview(&name).await.unwrap().unwrap().info.uuid, second);
}

/// On TiDB no write is fenced, and owner changes are never delivered: 0 of 1,000.
pub async fn defect_09_a_thousand_owner_changes_are_delivered(c: &Cluster) {
    let controller = c.controller().await;
    let mine = c.capture().await;
    let uuids = c.create_many("delivered", 50).await;
    let mut channel = c.store.watch_channel().await.unwrap();
    let mut last = channel.poll(mine, &PollCursor::after(Revision(0))).await.unwrap().revision;
    let mut delivered = 0;
    for _ in 0..10 {
        let terms = c.launch_many(controller, mine, &uuids).await;
        let answer = channel.poll(mine, &PollCursor::after(last)).await.unwrap();
        assert!(answer.schedules.iter().all(|row| row.state == ScheduleState::Launched));
        delivered += answer.schedules.len();
        last = answer.revision;
        for uuid in &uuids[..49] {
            c.store.changefeed_pause(*uuid).await.unwrap();
        }
        c.set_owner(controller, c.removing_target(uuids[49]).await).await;
        let answer = channel.poll(mine, &PollCursor::after(last)).await.unwrap();
        assert!(answer.schedules.iter().all(|row| row.state == ScheduleState::Removing));
        delivered += answer.schedules.len();
        last = answer.revision;
        let releases: Vec<_> =
            terms.into_iter().map(|term| OwnerRelease { term, task_position: None, end: None }).collect();
        for answer in c.store.owner_release(&releases).await.unwrap() {
            answer.unwrap();
        }
        for uuid in &uuids {
            c.store.changefeed_resume(*uuid, None).await.unwrap();
        }
    }
    assert_eq!(delivered, 1_000);
    let old = controller;
    c.controller().await;
    let target = c.launch_target(uuids[0], mine).await;
    c.refuses(Refusal::Fenced, c.store.owner_set(old, &[target])).await;
}

/// All renewals are a CAS on one growing row: 64 captures end themselves with nothing failing.
pub async fn defect_10_heartbeats_do_not_meet(c: &Cluster) {
    const BEATS: u64 = 10;
    let mut tasks = Vec::new();
    for _ in 0..64 {
        let capture = c.capture().await;
        let mut channel = c.store.heartbeat_channel().await.unwrap();
        tasks.push(tokio::spawn(async move {
            for next in 1..=BEATS {
                channel.beat(capture, next - 1, next).await.expect("a beat");
            }
        }));
    }
    join_all(tasks).await;
    let beats = c.store.capture_beats().await.unwrap();
    assert_eq!(beats.len(), 64);
    assert!(beats.iter().all(|beat| beat.heartbeat_seq == BEATS));
}

/// The watch goes by clocks, truncated: updates are lost when two fall into one tick.
pub async fn defect_11_changes_in_one_tick_are_all_seen(c: &Cluster) {
    let controller = c.controller().await;
    let mine = c.capture().await;
    let uuid = c.create("tick").await.uuid;
    let mut channel = c.store.watch_channel().await.unwrap();
    let mut last = c.revision().await;
    let mut revisions = BTreeSet::new();
    for _ in 0..100 {
        let owner = c.launch(controller, mine, uuid).await;
        let answer = channel.poll(mine, &PollCursor::after(last)).await.unwrap();
        assert_eq!(answer.schedules.len(), 1);
        assert!(revisions.insert(answer.schedules[0].revision), "a revision is used once");
        assert!(answer.schedules[0].revision > last, "it only grows");
        last = answer.revision;
        c.release(owner).await;
        assert_eq!(channel.poll(mine, &PollCursor::after(last)).await.unwrap().owned, 0);
    }
}

/// It panics when there is no election record and no leader.
pub async fn defect_14_a_missing_election_row_is_an_error(c: &Cluster) {
    let capture = c.capture().await;
    let vacant = c.store.election().await.unwrap();
    assert_eq!((vacant.leader, vacant.epoch), (None, ControllerEpoch(0)));
    c.execute("DELETE FROM election").await;
    c.store.election().await.expect_err("there is no record");
    c.store.election_campaign(capture, &vacant).await.expect_err("there is no record");
    let mut channel = c.store.watch_channel().await.unwrap();
    channel.poll(capture, &PollCursor::after(Revision(0))).await.expect_err("there is no record");
    c.store.captures(None).await.expect("all else reads");
}

/// An expelled owner never learns of it.
pub async fn defect_15_an_expelled_owner_learns_of_it(c: &Cluster) {
    let o = c.owned("expelled").await;
    let mut channel = c.store.watch_channel().await.unwrap();
    let before = channel.poll(o.capture, &PollCursor::after(Revision(0))).await.unwrap();
    assert_eq!(before.owned, 1);
    c.seal(o.controller, o.capture).await;
    c.store.capture_release(o.controller, o.capture.capture, 500).await.unwrap();
    let after = channel.poll(o.capture, &PollCursor::after(before.revision)).await.unwrap();
    assert_eq!(after.owned, 0, "the count does not match what it runs");
    assert_eq!(after.own_state, Some(metadata_api::model::CaptureState::Offline));
    let report = FeedEvent::Report(FeedState::Normal);
    c.refuses(Refusal::Fenced, c.store.owner_transition(o.owner, report, None)).await;
}

/// Progress rows are merged in arbitrary order, so a stale owner's checkpoint may win.
pub async fn defect_15_a_stale_owners_checkpoint_never_wins(c: &Cluster) {
    let o = c.owned("stale").await;
    let stale = progress_of(&[(o.changefeed, o.owner.epoch, at(900))]);
    c.set_owner(o.controller, c.removing_target(o.changefeed).await).await;
    c.release(o.owner).await;
    // The former owner goes on reporting, from before and from after the next one's launch.
    for n in 1..=6 {
        c.store.capture_advance(o.capture, n, &stale).await.unwrap();
        let heir = c.capture().await;
        let owner = c.launch(o.controller, heir, o.changefeed).await;
        let value = progress_of(&[(o.changefeed, owner.epoch, at(100 + n))]);
        c.store.capture_advance(heir, 1, &value).await.unwrap();
        assert_eq!(c.progress(o.changefeed).await, at(100 + n));
        c.release(owner).await;
        assert_eq!(c.progress(o.changefeed).await, at(100 + n));
    }
}

/// Fenced by leader *id* only: a leader that lost and regained the lease passes with stale plans.
pub async fn defect_16_a_regained_lease_does_not_revive_the_old_term(c: &Cluster) {
    let capture = c.capture().await;
    let first = c.elect(capture).await;
    let changefeed = c.create("plan").await.uuid;
    let plan = [c.launch_target(changefeed, capture).await];
    let between = c.controller().await;
    let again = c.elect(capture).await;
    assert_eq!(c.store.election().await.unwrap().leader, Some(first.capture));
    assert!(first.epoch < between.epoch && between.epoch < again.epoch);
    c.refuses(Refusal::Fenced, c.store.owner_set(first, &plan)).await;
    c.refuses(Refusal::Fenced, c.store.owner_set(between, &plan)).await;
    c.store.owner_set(again, &plan).await.unwrap().remove(0).unwrap();
}
