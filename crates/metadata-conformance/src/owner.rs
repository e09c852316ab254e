//! `OwnerStore`: what only a changefeed's owner does. (Processors: [`crate::processor`].)

use metadata_api::codec;
use metadata_api::decision::feed_state::{FeedEvent, feed_transition};
use metadata_api::model::{
    ChangefeedUpdate, ChangefeedUuid, FeedState, OwnerEpoch, OwnerTerm, RunningError, ScheduleState, Ts,
    Version,
};
use metadata_api::store::{Authority, MAX_BATCH, OwnerEnd, OwnerRelease};

use crate::harness::{Cluster, Owned, Refusal, assert_refused, at, progress_of, running_error, uri};

/// A row that does not decode is refused on its own: no other release waits for somebody to mend it.
pub async fn what_does_not_decode_is_refused_on_its_own(c: &Cluster) {
    let o = c.owned("unreadable").await;
    let nowhere = OwnerTerm { changefeed: ChangefeedUuid(1), ..o.owner };
    c.execute("UPDATE changefeed_state SET state = 'dancing'").await;
    let release = |term| OwnerRelease { term, task_position: None, end: None };
    let mut answers = c.store.owner_release(&[release(o.owner), release(nowhere)]).await.unwrap();
    assert_refused(answers.remove(1), Refusal::Fenced);
    assert_refused(answers.remove(0), Refusal::Corrupt("changefeed_state"));
    assert_eq!(c.schedule(o.changefeed).await.state, ScheduleState::Launched);
}

/// Every event the owner may send.
fn events() -> Vec<FeedEvent> {
    let reports = FeedState::ALL.into_iter().map(FeedEvent::Report);
    [FeedEvent::Pause, FeedEvent::Resume, FeedEvent::Remove].into_iter().chain(reports).collect()
}

/// Whether the event ends the run, so that the owner is told to stop.
fn ends_the_run(event: FeedEvent) -> bool {
    matches!(
        event,
        FeedEvent::Pause
            | FeedEvent::Remove
            | FeedEvent::Report(FeedState::Failed | FeedState::Finished | FeedState::Removed)
    )
}

/// Each event in each state does what the state machine says, to the state row and to the schedule.
pub async fn every_event_in_every_state(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    let pairs: Vec<_> = FeedState::ALL
        .into_iter()
        .flat_map(|from| events().into_iter().map(move |event| (from, event)))
        .collect();
    let uuids = c.create_many("matrix", pairs.len()).await;
    let terms = c.launch_many(controller, capture, &uuids).await;
    for ((from, event), owner) in pairs.into_iter().zip(terms) {
        c.bring_to(owner, from).await;
        let call = c.store.owner_transition(owner, event, None);
        match feed_transition("c", from, event) {
            Err(_) => {
                let rows = async || {
                    let uuid = owner.changefeed;
                    (c.status(uuid).await, c.schedule(uuid).await, c.info(uuid).await, c.revision().await)
                };
                let before = rows().await;
                assert_refused(call.await, Refusal::InvalidTransition);
                assert_eq!(rows().await, before, "{from} {event:?}");
            }
            Ok(to) => {
                let (status, schedule) =
                    (c.status(owner.changefeed).await, c.schedule(owner.changefeed).await);
                let revision = c.revision().await;
                let answer = call.await.unwrap();
                assert_eq!(answer, c.status(owner.changefeed).await);
                assert_eq!(answer.state, to, "{from} {event:?}");
                assert!(answer.version >= status.version);
                let after = c.schedule(owner.changefeed).await;
                if ends_the_run(event) && schedule.state == ScheduleState::Launched {
                    assert_eq!(after.state, ScheduleState::Removing, "{from} {event:?}");
                    assert!(after.revision > revision, "{from} {event:?}: the owner must be told");
                    assert_eq!(after.version, Version(schedule.version.0 + 1));
                } else {
                    assert_eq!(after.state, schedule.state, "{from} {event:?}");
                }
                assert_eq!((after.owner, after.epoch), (schedule.owner, schedule.epoch));
                assert_eq!(after.task_position, schedule.task_position);
                let removed_at = c.info(owner.changefeed).await.removed_at;
                assert_eq!(removed_at.is_some(), to == FeedState::Removed, "{from} {event:?}");
            }
        }
    }
}

/// `normal`, `warning` and `pending` write the state row only: no fence, no revision, the schedule as it was.
pub async fn a_report_takes_no_revision(c: &Cluster) {
    let o = c.owned("report").await;
    let (revision, schedule) = (c.revision().await, c.schedule(o.changefeed).await);
    let mut version = c.status(o.changefeed).await.version;
    for state in [FeedState::Normal, FeedState::Warning, FeedState::Pending, FeedState::Normal] {
        let status = c.store.owner_transition(o.owner, FeedEvent::Report(state), None).await.unwrap();
        assert_eq!((status.state, status.version), (state, Version(version.0 + 1)));
        version = status.version;
    }
    assert_eq!(c.revision().await, revision);
    assert_eq!(c.schedule(o.changefeed).await, schedule);
}

/// What others act on takes a revision.
pub async fn what_others_act_on_takes_a_revision(c: &Cluster) {
    for event in [
        FeedEvent::Pause,
        FeedEvent::Remove,
        FeedEvent::Report(FeedState::Failed),
        FeedEvent::Report(FeedState::Finished),
        FeedEvent::Report(FeedState::Removed),
    ] {
        let o = c.owned(&format!("acts-{}", uuid::Uuid::new_v4().simple())).await;
        let before = c.revision().await;
        c.store.owner_transition(o.owner, event, None).await.unwrap();
        assert!(c.revision().await > before, "{event:?}");
        assert_eq!(c.schedule(o.changefeed).await.revision, c.revision().await, "{event:?}");
    }
    let o = c.owned("resumed").await;
    c.bring_to(o.owner, FeedState::Stopped).await;
    let before = c.revision().await;
    c.store.owner_transition(o.owner, FeedEvent::Resume, None).await.unwrap();
    assert!(c.revision().await > before, "resume");
}

/// Where an error is stored, what clears it, and what leaves it.
pub async fn errors_and_warnings_are_kept_and_cleared(c: &Cluster) {
    let o = c.owned("errors").await;
    let report = |state, error| c.store.owner_transition(o.owner, FeedEvent::Report(state), error);
    let (warning, error) = (running_error("CDC:ErrWarn"), running_error("CDC:ErrPending"));
    let status = report(FeedState::Warning, Some(warning.clone())).await.unwrap();
    assert_eq!((status.warning.as_ref(), status.error), (Some(&warning), None));
    let status = report(FeedState::Pending, Some(error.clone())).await.unwrap();
    assert_eq!(status.error.as_ref(), Some(&error));
    assert_eq!(c.open().await.changefeed_statuses(None).await.unwrap()[0], status, "it reads back whole");
    let status = report(FeedState::Normal, None).await.unwrap();
    assert_eq!((status.warning, status.error), (None, None), "normal clears both");

    report(FeedState::Warning, Some(warning.clone())).await.unwrap();
    let before = report(FeedState::Pending, Some(error.clone())).await.unwrap();
    let status = c.store.owner_transition(o.owner, FeedEvent::Pause, None).await.unwrap();
    assert_eq!((&status.warning, &status.error), (&before.warning, &before.error), "pause leaves both");
    let status = c.store.owner_transition(o.owner, FeedEvent::Resume, None).await.unwrap();
    assert_eq!((status.warning, status.error), (None, None), "resume clears both");

    let status = report(FeedState::Failed, Some(error.clone())).await.unwrap();
    assert_eq!(status.error.as_ref(), Some(&error));
    let status = c.store.owner_transition(o.owner, FeedEvent::Remove, None).await.unwrap();
    assert_eq!(status.error.as_ref(), Some(&error), "remove leaves both");

    let o = c.owned("finishes").await;
    c.bring_to(o.owner, FeedState::Warning).await;
    let event = FeedEvent::Report(FeedState::Finished);
    let status = c.store.owner_transition(o.owner, event, None).await.unwrap();
    assert_eq!((status.warning, status.error), (None, None), "finished clears both");
}

/// The terms that are not the current one of `o`.
fn foreign_terms(o: &Owned) -> [OwnerTerm; 5] {
    [
        OwnerTerm { epoch: OwnerEpoch(o.owner.epoch.0 - 1), ..o.owner },
        OwnerTerm { epoch: OwnerEpoch(o.owner.epoch.0 + 1), ..o.owner },
        OwnerTerm { epoch: OwnerEpoch(0), ..o.owner },
        OwnerTerm { capture: o.controller.capture, ..o.owner },
        OwnerTerm { changefeed: ChangefeedUuid(1), ..o.owner },
    ]
}

/// Whoever's term is over, or never was, writes nothing.
pub async fn only_the_current_owner_writes(c: &Cluster) {
    let o = c.owned("fenced").await;
    for term in foreign_terms(&o) {
        assert_fenced_everywhere(c, term).await;
    }
    c.set_owner(o.controller, c.removing_target(o.changefeed).await).await;
    c.store
        .owner_transition(o.owner, FeedEvent::Report(FeedState::Normal), None)
        .await
        .expect("still the owner");
    c.release(o.owner).await;
    assert_fenced_everywhere(c, o.owner).await;
    c.launch(o.controller, o.capture, o.changefeed).await;
    assert_fenced_everywhere(c, o.owner).await;
}

async fn assert_fenced_everywhere(c: &Cluster, term: OwnerTerm) {
    for event in events() {
        let call = c.store.owner_transition(term, event, Some(running_error("CDC:ErrOver")));
        c.refuses(Refusal::Fenced, call).await;
    }
    let update = ChangefeedUpdate { target_ts: Some(Ts(9_000)), ..ChangefeedUpdate::default() };
    c.refuses(Refusal::Fenced, c.store.owner_update(term, Version(1), &update)).await;
    for end in [None, Some(OwnerEnd::Finished), Some(OwnerEnd::Failed(running_error("CDC:ErrOver")))] {
        let release = OwnerRelease { term, task_position: Some(at(9_000)), end };
        let answers = c.changes_nothing(c.store.owner_release(&[release])).await;
        assert_refused(answers.into_iter().next().expect("one answer"), Refusal::Fenced);
    }
}

/// An owner updates its changefeed while it stands still, and the owner's token still holds.
pub async fn an_owner_updates_what_stands_still(c: &Cluster) {
    let o = c.owned("update").await;
    let version = c.info(o.changefeed).await.version;
    let update = ChangefeedUpdate {
        target_ts: Some(Ts(5_000)),
        sink_uri: Some(uri("blackhole:///?a=b")),
        ..ChangefeedUpdate::default()
    };
    for state in [FeedState::Uninitialized, FeedState::Normal, FeedState::Warning, FeedState::Pending] {
        c.bring_to(o.owner, state).await;
        let call = c.store.owner_update(o.owner, version, &update);
        c.refuses(Refusal::InvalidTransition, call).await;
    }
    for (n, state) in [FeedState::Stopped, FeedState::Failed].into_iter().enumerate() {
        let o = c.owned(&format!("still-{n}")).await;
        c.bring_to(o.owner, state).await;
        let before = c.info(o.changefeed).await;
        let stale = Version(before.version.0 + 1);
        c.refuses(Refusal::Conflict, c.store.owner_update(o.owner, stale, &update)).await;
        let low = ChangefeedUpdate { target_ts: Some(Ts(99)), ..ChangefeedUpdate::default() };
        let call = c.store.owner_update(o.owner, before.version, &low);
        c.refuses(Refusal::InvalidField("target_ts"), call).await;
        let info = c.store.owner_update(o.owner, before.version, &update).await.unwrap();
        assert_eq!(info, c.info(o.changefeed).await);
        assert_eq!(info.target_ts, Ts(5_000));
        assert_eq!(info.sink_uri.expose(), "blackhole:///?a=b");
        assert_eq!(info.version, Version(before.version.0 + 1));
        assert_eq!((info.config, info.start_ts), (before.config, before.start_ts));
    }
    for (n, state) in [FeedState::Finished, FeedState::Removed].into_iter().enumerate() {
        let o = c.owned(&format!("over-{n}")).await;
        c.bring_to(o.owner, state).await;
        let version = c.info(o.changefeed).await.version;
        let call = c.store.owner_update(o.owner, version, &update);
        c.refuses(Refusal::InvalidTransition, call).await;
    }
}

/// A release goes to `Removed` from both states, with no owner, the epoch kept, and one revision for all.
pub async fn a_release_is_removed_without_owner(c: &Cluster) {
    let controller = c.controller().await;
    let (one, two) = (c.capture().await, c.capture().await);
    let uuids = c.create_many("release", 3).await;
    let mut terms = c.launch_many(controller, one, &uuids[..2]).await;
    terms.push(c.launch(controller, two, uuids[2]).await);
    c.set_owner(controller, c.removing_target(uuids[1]).await).await;
    let before = [c.schedule(uuids[0]).await, c.schedule(uuids[1]).await, c.schedule(uuids[2]).await];
    let releases: Vec<_> =
        terms.iter().rev().map(|term| OwnerRelease { term: *term, task_position: None, end: None }).collect();
    let answers = c.store.owner_release(&releases).await.unwrap();
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    for (term, before) in terms.iter().zip(before) {
        let row = c.schedule(term.changefeed).await;
        assert_eq!((row.owner, row.state), (None, ScheduleState::Removed));
        assert_eq!((row.epoch, row.task_position), (term.epoch, before.task_position));
        assert_eq!(row.revision, c.revision().await, "one revision");
        assert!(row.version > before.version);
        assert_eq!(c.status(term.changefeed).await.state, FeedState::Uninitialized);
    }
}

/// I6: the furthest of the row's position, the given one, and the current epoch's entry; whole.
pub async fn a_release_takes_the_furthest_position(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    // Given, entry of this epoch, entry of another epoch; and what is to remain of them and the row's 100.
    let cases = [
        (None, None, None, 100),
        (Some(200), None, None, 200),
        (Some(50), None, None, 100),
        (None, Some(300), None, 300),
        (Some(200), Some(300), None, 300),
        (Some(400), Some(300), None, 400),
        (Some(50), Some(60), None, 100),
        (None, None, Some(900), 100),
        (Some(200), None, Some(900), 200),
    ];
    let uuids = c.create_many("furthest", cases.len()).await;
    let terms = c.launch_many(controller, capture, &uuids).await;
    let mut entries = Vec::new();
    for ((_, current, foreign, _), term) in cases.iter().zip(&terms) {
        entries.extend(current.map(|ts| (term.changefeed, term.epoch, at(ts))));
        entries.extend(foreign.map(|ts| (term.changefeed, OwnerEpoch(term.epoch.0 - 1), at(ts))));
    }
    c.store.capture_advance(capture, 1, &progress_of(&entries)).await.unwrap();
    let releases: Vec<_> = cases
        .iter()
        .zip(&terms)
        .map(|((given, ..), term)| OwnerRelease { term: *term, task_position: given.map(at), end: None })
        .collect();
    for answer in c.store.owner_release(&releases).await.unwrap() {
        answer.unwrap();
    }
    for (case, term) in cases.iter().zip(&terms) {
        assert_eq!(c.schedule(term.changefeed).await.task_position, at(case.3), "{case:?}");
        assert_eq!(c.progress(term.changefeed).await, at(case.3), "{case:?}");
    }
}

/// An owner that ends writes the state with its release, unless an operator was first.
pub async fn a_release_says_how_it_ended(c: &Cluster) {
    let error = running_error("CDC:ErrGone");
    for (n, end) in [OwnerEnd::Finished, OwnerEnd::Failed(error.clone())].into_iter().enumerate() {
        for (m, was) in [FeedState::Uninitialized, FeedState::Normal, FeedState::Warning, FeedState::Pending]
            .into_iter()
            .enumerate()
        {
            let o = c.owned(&format!("end-{n}-{m}")).await;
            c.bring_to(o.owner, was).await;
            let release =
                OwnerRelease { term: o.owner, task_position: Some(at(700)), end: Some(end.clone()) };
            c.store.owner_release(&[release]).await.unwrap().remove(0).unwrap();
            let status = c.status(o.changefeed).await;
            assert_eq!(status.state, end.state());
            match &end {
                OwnerEnd::Finished => assert_eq!((status.warning, status.error), (None, None)),
                OwnerEnd::Failed(_) => assert_eq!(status.error.as_ref(), Some(&error)),
            }
            let row = c.schedule(o.changefeed).await;
            assert_eq!((row.state, row.task_position), (ScheduleState::Removed, at(700)));
        }
        for (m, was) in [FeedState::Stopped, FeedState::Failed, FeedState::Finished, FeedState::Removed]
            .into_iter()
            .enumerate()
        {
            let o = c.owned(&format!("late-{n}-{m}")).await;
            c.bring_to(o.owner, was).await;
            let before = c.status(o.changefeed).await;
            let release =
                OwnerRelease { term: o.owner, task_position: Some(at(700)), end: Some(end.clone()) };
            c.store.owner_release(&[release]).await.unwrap().remove(0).unwrap();
            let status = c.status(o.changefeed).await;
            assert_eq!((status.state, &status.error), (was, &before.error), "{was} stays");
            let row = c.schedule(o.changefeed).await;
            assert_eq!((row.state, row.task_position), (ScheduleState::Removed, at(700)));
        }
    }
}

/// The greatest batch there may be, each with its own error and position, in one transaction of one revision.
pub async fn five_hundred_are_released_at_once(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    let uuids = c.create_many("batch", MAX_BATCH).await;
    let terms = c.launch_many(controller, capture, &uuids).await;
    let releases: Vec<_> = terms
        .iter()
        .zip(1_000..)
        .map(|(term, n)| OwnerRelease {
            term: *term,
            task_position: Some(at(n)),
            end: Some(OwnerEnd::Failed(running_error(&format!("CDC:Err{n}")))),
        })
        .collect();
    let answers = c.store.owner_release(&releases).await.unwrap();
    assert!(answers.len() == MAX_BATCH && answers.iter().all(Result::is_ok));
    let statuses = c.store.changefeed_statuses(None).await.unwrap();
    let snapshot = c.store.schedule_snapshot().await.unwrap();
    for (n, (status, row)) in (1_000..).zip(statuses.iter().zip(&snapshot.changefeeds)) {
        assert_eq!(status.error, Some(running_error(&format!("CDC:Err{n}"))));
        assert_eq!((row.state, row.schedule.state), (FeedState::Failed, ScheduleState::Removed));
        assert_eq!((&row.schedule.task_position, row.schedule.revision), (&at(n), snapshot.revision));
    }
}

/// Releases are applied or refused on their own, in the order given; released is released.
pub async fn each_release_is_refused_on_its_own(c: &Cluster) {
    let o = c.owned("mine").await;
    let gone = c.create("gone").await.uuid;
    let over = c.launch(o.controller, o.capture, gone).await;
    c.release(over).await;
    let nowhere = OwnerTerm { changefeed: ChangefeedUuid(1), ..o.owner };
    let releases: Vec<_> = [nowhere, o.owner, over]
        .into_iter()
        .map(|term| OwnerRelease { term, task_position: Some(at(500)), end: Some(OwnerEnd::Finished) })
        .collect();
    let before = (c.schedule(gone).await, c.status(gone).await);
    let mut answers = c.store.owner_release(&releases).await.unwrap();
    assert_eq!(answers.len(), 3);
    assert_refused(answers.remove(2), Refusal::Fenced);
    answers.remove(1).unwrap();
    assert_refused(answers.remove(0), Refusal::Fenced);
    assert_eq!((c.schedule(gone).await, c.status(gone).await), before);
    assert_eq!(c.schedule(o.changefeed).await.task_position, at(500));
    let answers = c.changes_nothing(c.store.owner_release(&releases)).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(metadata_api::MetadataError::is_fenced)));
    assert!(c.store.owner_release(&[]).await.unwrap().is_empty());
}

/// Too many releases, or one changefeed twice, are refused whole.
pub async fn a_bad_batch_of_releases_is_refused_whole(c: &Cluster) {
    let o = c.owned("batch").await;
    let release = OwnerRelease { term: o.owner, task_position: Some(at(500)), end: None };
    let twice = [release.clone(), release.clone()];
    c.refuses(Refusal::InvalidArgument, c.store.owner_release(&twice)).await;
    let other_epoch = OwnerTerm { epoch: OwnerEpoch(1), ..o.owner };
    let twice = [release.clone(), OwnerRelease { term: other_epoch, ..release.clone() }];
    c.refuses(Refusal::InvalidArgument, c.store.owner_release(&twice)).await;
    let many: Vec<_> = (0..=MAX_BATCH as u64)
        .map(|n| OwnerRelease {
            term: OwnerTerm { changefeed: ChangefeedUuid(n + 1), ..o.owner },
            ..release.clone()
        })
        .collect();
    c.refuses(Refusal::InvalidArgument, c.store.owner_release(&many)).await;
    assert_eq!(c.store.owner_release(&many[..MAX_BATCH]).await.unwrap().len(), MAX_BATCH);
}

/// The release of a removed changefeed frees its name; that of a stopped one does not.
pub async fn a_release_frees_the_name_of_what_was_removed(c: &Cluster) {
    let o = c.owned("freed").await;
    c.store.changefeed_remove(Authority::Operator, o.changefeed).await.unwrap();
    let new = c.new_changefeed("freed");
    c.refuses(Refusal::AlreadyExists, c.store.changefeed_create(Authority::Operator, &new)).await;
    let release = OwnerRelease {
        term: o.owner,
        task_position: None,
        end: Some(OwnerEnd::Failed(running_error("CDC:E"))),
    };
    c.store.owner_release(&[release]).await.unwrap().remove(0).unwrap();
    assert_eq!(c.status(o.changefeed).await.state, FeedState::Removed);
    c.store.changefeed_create(Authority::Operator, &new).await.unwrap();

    let o = c.owned("held").await;
    c.store.changefeed_pause(o.changefeed).await.unwrap();
    c.release(o.owner).await;
    let new = c.new_changefeed("held");
    c.refuses(Refusal::AlreadyExists, c.store.changefeed_create(Authority::Operator, &new)).await;
}

/// The longest error that is kept is stored whole; a longer message is cut, not refused; the rest must fit.
pub async fn the_longest_error_is_kept(c: &Cluster) {
    let o = c.owned("long").await;
    let longest = RunningError {
        addr: "a".repeat(codec::MAX_SHORT),
        code: "c".repeat(codec::MAX_SHORT),
        message: "\u{1}".repeat(codec::MAX_MESSAGE),
        ..running_error("unused")
    };
    for state in [FeedState::Warning, FeedState::Pending] {
        let event = FeedEvent::Report(state);
        let status = c.store.owner_transition(o.owner, event, Some(longest.clone())).await.unwrap();
        assert_eq!(status, c.status(o.changefeed).await);
        let kept = if state == FeedState::Warning { status.warning } else { status.error };
        assert_eq!(kept.as_ref(), Some(&longest));
        let longer = RunningError { message: "ü".repeat(codec::MAX_MESSAGE), ..longest.clone() };
        let status = c.store.owner_transition(o.owner, event, Some(longer.clone())).await.unwrap();
        assert_eq!(status, c.status(o.changefeed).await);
        let kept = if state == FeedState::Warning { status.warning } else { status.error };
        assert_eq!(kept, Some(codec::cut_message(&longer)));
        let bad = RunningError { code: "c".repeat(codec::MAX_SHORT + 1), ..longest.clone() };
        let call = c.store.owner_transition(o.owner, event, Some(bad));
        c.refuses(Refusal::InvalidArgument, call).await;
    }
}
