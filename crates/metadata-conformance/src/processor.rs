//! Processors: `processor_set` of `ControllerStore`, `processor_assign` and `processor_release` of `OwnerStore`. What they
//! report is in [`report`](crate::report).

use std::collections::{BTreeMap, BTreeSet};

use metadata_api::model::{
    CaptureId, CaptureTerm, ChangefeedProgress, ChangefeedUpdate, ChangefeedUuid, OwnerEpoch, OwnerTerm,
    ProcessorAssignment, ProcessorEpoch, ProcessorSchedule, ProcessorTarget, ProcessorTerm, ScheduleState,
    Ts, Version,
};
use metadata_api::store::{Authority, MAX_BATCH};
use serde_json::json;

use crate::harness::{Cluster, Refusal, attach_target, detach_target};

/// An attachment names its own revision and the owner epoch that it serves.
pub async fn an_attachment_serves_the_current_owner_epoch(c: &Cluster) {
    let o = c.owned("serve").await;
    let (one, two) = (c.capture().await, c.capture().await);
    let schedule = c.schedule(o.changefeed).await;
    let targets = [attach_target(two, None), attach_target(one, None)];
    let rows = c.store.processor_set(o.controller, o.changefeed, &targets).await.unwrap();
    let revision = c.revision().await;
    let stored = c.store.processor_schedules(o.changefeed).await.unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| stored.contains(row)), "{rows:?}\n{stored:?}");
    for row in &rows {
        assert_eq!((row.changefeed, row.state), (o.changefeed, ScheduleState::Launched));
        assert_eq!(row.epoch, ProcessorEpoch(revision.0));
        assert_eq!((row.owner_epoch, row.revision), (o.owner.epoch, revision));
        assert_eq!(row.version, Version(1));
        assert_eq!(row.assignment, targets[0].assignment);
    }
    assert_eq!(c.schedule(o.changefeed).await, schedule, "the schedule is not touched");
}

/// Detaching keeps epoch and served owner epoch; releasing keeps them too.
pub async fn a_processor_goes_by_removing_to_removed(c: &Cluster) {
    let o = c.owned("leave").await;
    let processor = c.capture().await;
    let attached = c.attach(o.controller, o.changefeed, processor).await;
    let targets = [detach_target(processor, attached.version)];
    let row = c.store.processor_set(o.controller, o.changefeed, &targets).await.unwrap().remove(0);
    assert_eq!((row.state, row.version), (ScheduleState::Removing, Version(2)));
    assert_eq!((row.epoch, row.owner_epoch), (attached.epoch, attached.owner_epoch));
    assert!(row.revision > attached.revision);
    let released = c.store.processor_release(attached.term()).await.unwrap();
    assert_eq!(released, c.store.processor_schedules(o.changefeed).await.unwrap()[0]);
    assert_eq!((released.state, released.version), (ScheduleState::Removed, Version(3)));
    assert_eq!((released.epoch, released.owner_epoch), (attached.epoch, attached.owner_epoch));
    assert_eq!(released.revision, c.revision().await);
    c.refuses(Refusal::Fenced, c.store.processor_release(attached.term())).await;
}

/// Whose owner has stopped may still be carried: it gets no new configuration and no new position before nobody does.
pub async fn what_a_processor_carries_is_not_at_rest(c: &Cluster) {
    let o = c.owned("carried").await;
    let row = c.attach(o.controller, o.changefeed, c.capture().await).await;
    c.store.changefeed_pause(o.changefeed).await.unwrap();
    c.release(o.owner).await;
    let position = ChangefeedProgress::at(Ts(2_000));
    let update = ChangefeedUpdate { target_ts: Some(Ts(9_000)), ..ChangefeedUpdate::default() };
    let version = c.info(o.changefeed).await.version;
    let overwrite = || c.store.changefeed_resume(o.changefeed, Some(&position));
    let configure = || c.store.changefeed_update(o.changefeed, version, &update);
    c.refuses(Refusal::InvalidTransition, overwrite()).await;
    c.refuses(Refusal::InvalidTransition, configure()).await;
    c.store.processor_release(row.term()).await.unwrap();
    configure().await.unwrap();
    overwrite().await.unwrap();
    assert_eq!(c.progress(o.changefeed).await, position);
}

/// Two changefeeds never write under one name: it is free when neither an owner nor a processor is left.
pub async fn a_name_is_held_while_a_processor_lives(c: &Cluster) {
    for removed_first in [false, true] {
        let name = format!("held-{removed_first}");
        let o = c.owned(&name).await;
        let processor = c.capture().await;
        let row = c.attach(o.controller, o.changefeed, processor).await;
        if removed_first {
            c.store.changefeed_remove(Authority::Operator, o.changefeed).await.unwrap();
            c.release(o.owner).await;
        } else {
            c.release(o.owner).await;
            c.store.changefeed_remove(Authority::Operator, o.changefeed).await.unwrap();
        }
        let new = c.new_changefeed(&name);
        c.refuses(Refusal::AlreadyExists, c.store.changefeed_create(Authority::Operator, &new)).await;
        let schedule = c.schedule(o.changefeed).await;
        let targets = [(o.changefeed, schedule.version)];
        assert_eq!(c.store.changefeed_cleanup(o.controller, &targets).await.unwrap(), 0);
        c.store.processor_release(row.term()).await.unwrap();
        assert_eq!(c.store.changefeed_cleanup(o.controller, &targets).await.unwrap(), 1);
        c.store.changefeed_create(Authority::Operator, &new).await.unwrap();
    }
    // A capture that was both has gone as both: nothing is left that could hold the name.
    let o = c.owned("both").await;
    c.attach(o.controller, o.changefeed, o.capture).await;
    c.store.changefeed_remove(Authority::Operator, o.changefeed).await.unwrap();
    c.store.capture_deregister(o.capture).await.unwrap();
    c.store.capture_release(c.elect(c.capture().await).await, o.capture.capture, MAX_BATCH).await.unwrap();
    c.create("both").await;
}

/// A processor may release by itself, without having been told.
pub async fn a_processor_releases_by_itself(c: &Cluster) {
    let o = c.owned("self").await;
    let row = c.attach(o.controller, o.changefeed, o.capture).await;
    let released = c.store.processor_release(row.term()).await.unwrap();
    assert_eq!(released.state, ScheduleState::Removed);
    assert_eq!(c.schedule(o.changefeed).await.state, ScheduleState::Launched, "the owner goes on");
}

/// The row of a processor that was removed is used again, with a new epoch and the owner epoch of then.
pub async fn a_removed_row_is_used_again(c: &Cluster) {
    let o = c.owned("again").await;
    let processor = c.capture().await;
    let first = c.attach(o.controller, o.changefeed, processor).await;
    let removed = c.store.processor_release(first.term()).await.unwrap();
    c.release(o.owner).await;
    let second_owner = c.launch(o.controller, o.capture, o.changefeed).await;
    let target = ProcessorTarget {
        assignment: ProcessorAssignment(json!([4])),
        ..attach_target(processor, Some(removed.version))
    };
    let row = c.store.processor_set(o.controller, o.changefeed, &[target]).await.unwrap().remove(0);
    assert_eq!(row.version, Version(removed.version.0 + 1));
    assert!(row.epoch > first.epoch);
    assert_eq!(row.owner_epoch, second_owner.epoch);
    assert_eq!(row.assignment, ProcessorAssignment(json!([4])));
    c.refuses(Refusal::Fenced, c.store.processor_release(first.term())).await;
    c.store.processor_release(row.term()).await.unwrap();
}

/// All or nothing: one bad target, and none is applied.
pub async fn processors_are_set_all_or_nothing(c: &Cluster) {
    let o = c.owned("all").await;
    let (one, two, three) = (c.capture().await, c.capture().await, c.capture().await);
    let (draining, offline) = (c.capture().await, c.capture().await);
    c.store.capture_drain(draining.capture).await.unwrap();
    c.seal(o.controller, offline).await;
    let row = c.attach(o.controller, o.changefeed, two).await;
    let leaving = c.attach(o.controller, o.changefeed, three).await;
    let targets = [detach_target(three, leaving.version)];
    let leaving = c.store.processor_set(o.controller, o.changefeed, &targets).await.unwrap().remove(0);
    let absent = CaptureTerm { capture: CaptureId::random() };
    let to_removed = ProcessorTarget { state: ScheduleState::Removed, ..detach_target(two, row.version) };
    let bad = [
        (attach_target(two, None), Refusal::Conflict),
        (detach_target(two, Version(row.version.0 + 1)), Refusal::Conflict),
        (attach_target(draining, None), Refusal::Conflict),
        (attach_target(offline, None), Refusal::Conflict),
        (attach_target(absent, None), Refusal::Conflict),
        (attach_target(two, Some(row.version)), Refusal::InvalidTransition),
        (attach_target(three, Some(leaving.version)), Refusal::InvalidTransition),
        (detach_target(three, leaving.version), Refusal::InvalidTransition),
        (to_removed, Refusal::InvalidArgument),
        (
            ProcessorTarget { expected_version: None, ..detach_target(draining, Version(1)) },
            Refusal::InvalidField("expected_version"),
        ),
        (attach_target(one, None), Refusal::InvalidArgument),
    ];
    for (bad, wanted) in bad {
        for targets in [[attach_target(one, None), bad.clone()], [bad, attach_target(one, None)]] {
            c.refuses(wanted, c.store.processor_set(o.controller, o.changefeed, &targets)).await;
        }
    }
    let many: Vec<_> =
        (0..=MAX_BATCH).map(|_| attach_target(CaptureTerm { capture: CaptureId::random() }, None)).collect();
    c.refuses(Refusal::InvalidArgument, c.store.processor_set(o.controller, o.changefeed, &many)).await;
}

/// A version is wanted where there is no row: the row was deleted since.
pub async fn a_version_of_a_row_that_is_not_there_is_a_conflict(c: &Cluster) {
    let o = c.owned("norow").await;
    let processor = c.capture().await;
    let targets = [attach_target(processor, Some(Version(1)))];
    c.refuses(Refusal::Conflict, c.store.processor_set(o.controller, o.changefeed, &targets)).await;
}

/// Processors are attached only while the owner's schedule is `Launched`.
pub async fn processors_want_a_launched_schedule(c: &Cluster) {
    let o = c.owned("launched").await;
    let processor = c.capture().await;
    let targets = [attach_target(processor, None)];
    let store = &c.store;
    c.refuses(Refusal::NotFound, store.processor_set(o.controller, ChangefeedUuid(1), &targets)).await;
    c.set_owner(o.controller, c.removing_target(o.changefeed).await).await;
    c.refuses(Refusal::Conflict, store.processor_set(o.controller, o.changefeed, &targets)).await;
    c.release(o.owner).await;
    c.refuses(Refusal::Conflict, store.processor_set(o.controller, o.changefeed, &targets)).await;
    let never = c.create("never").await.uuid;
    c.refuses(Refusal::Conflict, store.processor_set(o.controller, never, &targets)).await;
    c.store.changefeed_remove(Authority::Operator, never).await.unwrap();
    c.refuses(Refusal::Conflict, store.processor_set(o.controller, never, &targets)).await;
}

/// Only the attachment itself releases: its epoch and the owner epoch that it serves are both its token.
pub async fn only_the_attachment_itself_releases(c: &Cluster) {
    let o = c.owned("token").await;
    let (mine, other) = (c.capture().await, c.capture().await);
    let term = c.attach(o.controller, o.changefeed, mine).await.term();
    let wrong = [
        ProcessorTerm { epoch: ProcessorEpoch(term.epoch.0 + 1), ..term },
        ProcessorTerm { epoch: ProcessorEpoch(0), ..term },
        ProcessorTerm { owner_epoch: OwnerEpoch(term.owner_epoch.0 - 1), ..term },
        ProcessorTerm { owner_epoch: OwnerEpoch(term.owner_epoch.0 + 1), ..term },
        ProcessorTerm { capture: other.capture, ..term },
        ProcessorTerm { changefeed: ChangefeedUuid(1), ..term },
    ];
    for term in wrong {
        c.refuses(Refusal::Fenced, c.store.processor_release(term)).await;
    }
    c.store.processor_release(term).await.unwrap();
}

/// The owner's end does not end its processors: I7 wants each of them `Removed` or sealed by itself.
pub async fn processors_outlive_their_owner(c: &Cluster) {
    let o = c.owned("outlive").await;
    let processor = c.capture().await;
    let row = c.attach(o.controller, o.changefeed, processor).await;
    c.release(o.owner).await;
    assert_eq!(c.store.processor_schedules(o.changefeed).await.unwrap(), std::slice::from_ref(&row));
    c.launch(o.controller, o.capture, o.changefeed).await;
    let snapshot = c.store.schedule_snapshot().await.unwrap();
    assert_eq!(snapshot.changefeeds[0].live_processors, 1);
    c.store
        .processor_release(row.term())
        .await
        .expect("it serves the former epoch, and says that it stopped");
    let snapshot = c.store.schedule_snapshot().await.unwrap();
    assert_eq!(snapshot.changefeeds[0].live_processors, 0);
}

/// An assignment that does not fit is refused; one that just fits is stored.
pub async fn the_longest_assignment_is_stored(c: &Cluster) {
    let o = c.owned("assignment").await;
    let assignment = |len: usize| ProcessorAssignment(json!("a".repeat(len - 2)));
    let target = |len| [ProcessorTarget { assignment: assignment(len), ..attach_target(o.capture, None) }];
    let call = target(metadata_api::codec::MAX_ASSIGNMENT + 1);
    c.refuses(Refusal::InvalidArgument, c.store.processor_set(o.controller, o.changefeed, &call)).await;
    let fits = target(metadata_api::codec::MAX_ASSIGNMENT);
    c.store.processor_set(o.controller, o.changefeed, &fits).await.unwrap();
    let rows = c.store.processor_schedules(o.changefeed).await.unwrap();
    assert!(rows[0].assignment == fits[0].assignment, "it reads back whole");
}

/// The version of each row, as an owner saw it.
fn seen(rows: &[ProcessorSchedule]) -> BTreeMap<CaptureId, Version> {
    rows.iter().map(|row| (row.capture, row.version)).collect()
}

fn given(captures: &[CaptureId]) -> BTreeMap<CaptureId, ProcessorAssignment> {
    captures.iter().map(|capture| (*capture, ProcessorAssignment(json!({ "t": [7] })))).collect()
}

/// Its rows get the assignment and nothing else, the others are left alone, and all of it is one revision.
pub async fn an_owner_assigns_to_its_processors(c: &Cluster) {
    let o = c.owned("give").await;
    let mut rows = Vec::new();
    for _ in 0..3 {
        let capture = c.capture().await;
        rows.push(c.attach(o.controller, o.changefeed, capture).await);
    }
    rows.sort_by_key(|row| row.capture);
    let (seen, given) = (seen(&rows), given(&[rows[2].capture, rows[0].capture]));
    let answer = c.store.processor_assign(o.owner, &seen, &given).await.unwrap();
    let revision = c.revision().await;
    for index in [0, 2] {
        let row = &mut rows[index];
        assert!(revision > row.revision);
        (row.revision, row.version) = (revision, Version(2));
        row.assignment = ProcessorAssignment(json!({ "t": [7] }));
    }
    assert_eq!(c.store.processor_schedules(o.changefeed).await.unwrap(), rows);
    assert_eq!(answer, [rows[0].clone(), rows[2].clone()]);
    assert!(c.store.processor_assign(o.owner, &seen, &BTreeMap::new()).await.unwrap().is_empty());
    assert_eq!(c.revision().await, revision, "nothing was asked, and nothing done");
}

/// What was decided on other rows than there are is not written, even where its own rows are as they were.
pub async fn an_assignment_wants_every_row_as_it_was_seen(c: &Cluster) {
    let o = c.owned("saw").await;
    let (one, two) = (c.capture().await, c.capture().await);
    let mut rows = Vec::new();
    for capture in [one, two] {
        rows.push(c.attach(o.controller, o.changefeed, capture).await);
    }
    let given = given(&[one.capture]);
    let right = seen(&rows);
    let mut wrong = vec![seen(&rows[..1]), BTreeMap::new()];
    for version in [Version(0), Version(2)] {
        wrong.push(BTreeMap::from([(one.capture, Version(1)), (two.capture, version)]));
        wrong.push(BTreeMap::from([(one.capture, version), (two.capture, Version(1))]));
    }
    let mut more = right.clone();
    more.insert(CaptureId::random(), Version(1));
    wrong.push(more);
    for seen in wrong {
        c.refuses(Refusal::Conflict, c.store.processor_assign(o.owner, &seen, &given)).await;
    }
    // The other one said meanwhile that it has stopped: its row is `Removed`, and counts.
    c.store.processor_release(rows[1].term()).await.unwrap();
    c.refuses(Refusal::Conflict, c.store.processor_assign(o.owner, &right, &given)).await;
    let rows = c.store.processor_schedules(o.changefeed).await.unwrap();
    c.store.processor_assign(o.owner, &seen(&rows), &given).await.unwrap();
}

/// The owner's epoch is its token; one that is over assigns nothing, whatever it saw.
pub async fn only_the_owner_assigns(c: &Cluster) {
    let o = c.owned("owner").await;
    let row = c.attach(o.controller, o.changefeed, o.capture).await;
    let (seen, given) = (seen(std::slice::from_ref(&row)), given(&[row.capture]));
    let wrong = [
        OwnerTerm { epoch: OwnerEpoch(o.owner.epoch.0 + 1), ..o.owner },
        OwnerTerm { epoch: OwnerEpoch(o.owner.epoch.0 - 1), ..o.owner },
        OwnerTerm { capture: c.capture().await.capture, ..o.owner },
        OwnerTerm { changefeed: ChangefeedUuid(1), ..o.owner },
    ];
    for term in wrong {
        c.refuses(Refusal::Fenced, c.store.processor_assign(term, &seen, &given)).await;
    }
    c.release(o.owner).await;
    c.refuses(Refusal::Fenced, c.store.processor_assign(o.owner, &seen, &given)).await;
    c.launch(o.controller, o.capture, o.changefeed).await;
    c.refuses(Refusal::Fenced, c.store.processor_assign(o.owner, &seen, &given)).await;
}

/// Whoever is told to stop, has stopped, or serves a former owner is given nothing.
pub async fn only_who_is_launched_for_this_owner_is_assigned(c: &Cluster) {
    let o = c.owned("whom").await;
    let (former, leaving, left) = (c.capture().await, c.capture().await, c.capture().await);
    c.attach(o.controller, o.changefeed, former).await;
    c.release(o.owner).await;
    let owner = c.launch(o.controller, o.capture, o.changefeed).await;
    let row = c.attach(o.controller, o.changefeed, leaving).await;
    let targets = [detach_target(leaving, row.version)];
    c.store.processor_set(o.controller, o.changefeed, &targets).await.unwrap();
    let row = c.attach(o.controller, o.changefeed, left).await;
    c.store.processor_release(row.term()).await.unwrap();
    let good = c.attach(o.controller, o.changefeed, o.capture).await.capture;
    let rows = c.store.processor_schedules(o.changefeed).await.unwrap();
    let seen = seen(&rows);
    let strangers = [former.capture, leaving.capture, left.capture, CaptureId::random()];
    for bad in strangers {
        for given in [given(&[bad]), given(&[good, bad])] {
            let call = c.store.processor_assign(owner, &seen, &given);
            c.refuses(Refusal::InvalidField("assignments"), call).await;
        }
    }
    let long = "a".repeat(metadata_api::codec::MAX_ASSIGNMENT);
    let long = BTreeMap::from([(good, ProcessorAssignment(json!(long)))]);
    c.refuses(Refusal::InvalidField("assignment"), c.store.processor_assign(owner, &seen, &long)).await;
    c.store.processor_assign(owner, &seen, &given(&[good])).await.unwrap();
}

/// Both found the same table free, and give it to different processors: one of the two has looked at what is over.
pub async fn of_two_assignments_on_one_view_one_is_written(c: &Cluster) {
    let o = c.owned("race").await;
    let (one, two) = (c.capture().await, c.capture().await);
    for capture in [one, two] {
        c.attach(o.controller, o.changefeed, capture).await;
    }
    for _ in 0..5 {
        let rows = c.store.processor_schedules(o.changefeed).await.unwrap();
        let (seen, to_one, to_two) = (seen(&rows), given(&[one.capture]), given(&[two.capture]));
        let (first, second) = futures::join!(
            c.store.processor_assign(o.owner, &seen, &to_one),
            c.store.processor_assign(o.owner, &seen, &to_two)
        );
        let written = [&first, &second].into_iter().filter(|answer| answer.is_ok()).count();
        let conflict = |answer: &metadata_api::Result<Vec<ProcessorSchedule>>| {
            matches!(answer, Err(metadata_api::MetadataError::Conflict { .. }))
        };
        assert!(written == 1 && (conflict(&first) || conflict(&second)), "{first:?}\n{second:?}");
    }
}

/// A processor that does not decode is left out by name, and stops no other.
pub async fn a_processor_that_does_not_decode_is_left_out(c: &Cluster) {
    let (well, damaged) = (c.owned("well").await, c.create("damaged").await.uuid);
    let target = c.launch_target(damaged, well.capture).await;
    c.store.owner_set(well.controller, &[target]).await.unwrap().remove(0).unwrap();
    let row = c.attach(well.controller, well.changefeed, well.capture).await;
    c.attach(well.controller, damaged, well.capture).await;
    c.execute(&format!("UPDATE processor SET state = 'dancing' WHERE changefeed_uuid = {damaged}")).await;
    let mine = c.store.capture_processors(well.capture).await.unwrap();
    assert_eq!((mine.rows, mine.unreadable), (vec![row], BTreeSet::from([damaged])));
}
