//! Several stores on one database at once, as several processes: who wins, and that nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metadata_api::MetadataError;
use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    CaptureTerm, ChangefeedStatus, ChangefeedUpdate, ChangefeedUuid, FeedState, NewChangefeed, OwnerEpoch,
    Revision, ScheduleState, ScheduleTarget, Ts, UpstreamId, Version,
};
use metadata_api::store::{Assigned, Authority, MetadataStore, OwnerRelease, PollCursor};
use tokio::sync::Notify;

use crate::harness::{Cluster, Refusal, at, join_all, progress_of, refused};

/// N captures campaign on one observation: exactly one wins, with the next epoch.
pub async fn of_many_campaigns_exactly_one_wins(c: &Cluster) {
    let mut challengers = Vec::new();
    for _ in 0..6 {
        challengers.push((c.open().await, c.capture().await));
    }
    for round in 1..=10 {
        let observed = c.store.election().await.unwrap();
        let tasks = challengers.iter().map(|(store, capture)| {
            let (store, capture) = (store.clone(), *capture);
            tokio::spawn(async move { store.election_campaign(capture, &observed).await })
        });
        let outcomes = join_all(tasks.collect()).await;
        let lost = outcomes.iter().filter(|outcome| refused(outcome, Refusal::Conflict)).count();
        assert_eq!(lost, challengers.len() - 1, "{outcomes:?}");
        let winner = outcomes.into_iter().find_map(Result::ok).expect("one won");
        let row = c.store.election().await.unwrap();
        assert_eq!((row.leader, row.epoch), (Some(winner.capture), winner.epoch));
        assert_eq!(winner.epoch.0, round, "epochs grow by exactly one");
        if round % 3 == 0 {
            c.store.election_resign(winner).await.unwrap();
        }
    }
}

/// Two controllers: from the moment that the newer one was elected every write of the older is refused, and all that it
/// had written is of revisions before.
pub async fn an_older_controller_writes_nothing_after_a_newer(c: &Cluster) {
    let old = c.controller().await;
    let owner = c.capture().await;
    let challenger = c.capture().await;
    let uuids = c.create_many("race", 6).await;
    let (elected, written) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let mut tasks = Vec::new();
    for changefeed in uuids.clone() {
        let (store, elected, written) = (c.open().await, elected.clone(), written.clone());
        tasks.push(tokio::spawn(async move {
            let mut last = Revision(0);
            loop {
                let schedule = store.changefeed_schedule(changefeed).await.unwrap().unwrap();
                let target = ScheduleTarget {
                    changefeed,
                    expected_version: schedule.version,
                    state: ScheduleState::Launched,
                    owner: Some(owner.capture),
                };
                let over = elected.load(Ordering::SeqCst);
                let outcome = store.owner_set(old, &[target]).await;
                if refused(&outcome, Refusal::Fenced) {
                    return last;
                }
                assert!(!over, "a write of the older controller was accepted after the newer was elected");
                let row = outcome.unwrap().remove(0).unwrap();
                last = row.revision;
                written.notify_one();
                let release = OwnerRelease { term: row.term().unwrap(), task_position: None, end: None };
                store.owner_release(&[release]).await.unwrap().remove(0).unwrap();
            }
        }));
    }
    for _ in 0..20 {
        written.notified().await;
    }
    let other = c.open().await;
    let observed = other.election().await.unwrap();
    let new = other.election_campaign(challenger, &observed).await.unwrap();
    elected.store(true, Ordering::SeqCst);
    let extra = c.create("extra").await.uuid;
    let first = c.launch(new, owner, extra).await;
    let last = join_all(tasks).await;
    assert!(last.iter().all(|last| last.0 < first.epoch.0), "{last:?} {first:?}");
}

/// Eight writers commit while watchers poll: no watcher misses a change to its rows, and each sees them in the order of
/// revisions, with every change up to the revision that it was told.
pub async fn watchers_miss_no_revision(c: &Cluster) {
    const WRITERS: usize = 8;
    const EACH: usize = 12;
    let controller = c.controller().await;
    let captures = [c.capture().await, c.capture().await, c.capture().await];
    let done = Arc::new(AtomicBool::new(false));
    let start = c.revision().await;
    let mut watchers = Vec::new();
    for capture in captures {
        watchers.push(tokio::spawn(watch(c.open().await, capture, start, done.clone())));
    }
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let store = c.open().await;
        let news: Vec<_> = (0..EACH).map(|n| c.new_changefeed(&format!("w{writer}-{n}"))).collect();
        writers.push(tokio::spawn(async move {
            let mut launched = Vec::new();
            for (n, new) in news.iter().enumerate() {
                let changefeed = store.changefeed_create(Authority::Operator, new).await.unwrap().uuid;
                let capture = captures[(writer + n) % captures.len()];
                let target = ScheduleTarget {
                    changefeed,
                    expected_version: Version(1),
                    state: ScheduleState::Launched,
                    owner: Some(capture.capture),
                };
                let row = store.owner_set(controller, &[target]).await.unwrap().remove(0).unwrap();
                launched.push((capture, changefeed, row.epoch));
                if n % 2 == 1 {
                    store.changefeed_pause(launched[n / 2].1).await.unwrap();
                }
            }
            launched
        }));
    }
    let launched: Vec<_> = join_all(writers).await.into_iter().flatten().collect();
    done.store(true, Ordering::SeqCst);
    let seen = join_all(watchers).await;
    assert_eq!(launched.len(), WRITERS * EACH);
    for (capture, seen) in captures.iter().zip(seen) {
        let mine = launched.iter().filter(|(owner, ..)| owner == capture);
        for (_, changefeed, epoch) in mine {
            let rows = seen.get(changefeed).unwrap_or_else(|| panic!("{changefeed} was never seen"));
            assert!(rows.iter().all(|(_, of)| of == epoch), "{rows:?} {epoch}");
            let last = c.schedule(*changefeed).await;
            assert_eq!(rows.last().map(|row| row.0), Some(last.revision), "its last change was seen");
        }
    }
}

type Seen = BTreeMap<ChangefeedUuid, Vec<(Revision, OwnerEpoch)>>;

/// Polls without a pause until `done`; checks what each answer says about the rows between `last` and its revision.
async fn watch(
    store: Arc<dyn MetadataStore>,
    capture: CaptureTerm,
    start: Revision,
    done: Arc<AtomicBool>,
) -> Seen {
    let mut channel = store.watch_channel().await.unwrap();
    let mut seen = Seen::new();
    let (mut last, mut count) = (start, 0);
    loop {
        let over = done.load(Ordering::SeqCst);
        let answer = channel.poll(capture, &PollCursor::after(last)).await.unwrap();
        assert!(!answer.has_more());
        assert!(answer.revision >= last, "the revision went back");
        assert!(answer.schedules.is_sorted_by_key(|row| (row.revision, row.changefeed)));
        for row in &answer.schedules {
            assert!(row.revision > last && row.revision <= answer.revision, "{row:?} {last} {answer:?}");
            let rows = seen.entry(row.changefeed).or_default();
            assert!(rows.last().is_none_or(|(before, _)| *before < row.revision));
            rows.push((row.revision, row.epoch));
        }
        assert!(answer.owned >= count, "nothing was taken from it");
        assert_eq!(answer.owned, seen.len() as u64, "the count and the rows are of one moment");
        (last, count) = (answer.revision, answer.owned);
        if over {
            return seen;
        }
        tokio::task::yield_now().await;
    }
}

/// A sealed capture that still writes: nothing that it sends after the seal is accepted, and its work resumes exactly at
/// what was.
pub async fn a_sealed_capture_that_still_writes(c: &Cluster) {
    let o = c.owned("zombie").await;
    let (sealed, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let wrote = Arc::new(Notify::new());
    let zombie = {
        let (store, sealed, acknowledged) = (c.open().await, sealed.clone(), acknowledged.clone());
        let wrote = wrote.clone();
        tokio::spawn(async move {
            for n in 1.. {
                let over = sealed.load(Ordering::SeqCst);
                let value = progress_of(&[(o.changefeed, o.owner.epoch, at(1_000 + n))]);
                let outcome = store.capture_advance(o.capture, n, &value).await;
                if refused(&outcome, Refusal::Fenced) {
                    return;
                }
                assert!(!over, "a progress was accepted after the seal");
                acknowledged.store(n, Ordering::SeqCst);
                wrote.notify_one();
            }
        })
    };
    for _ in 0..10 {
        wrote.notified().await;
    }
    c.seal(o.controller, o.capture).await;
    sealed.store(true, Ordering::SeqCst);
    join_all(vec![zombie]).await;
    let before = c.progress(o.changefeed).await;
    assert_eq!(c.store.capture_release(o.controller, o.capture.capture, 10).await.unwrap(), 1);
    let row = c.schedule(o.changefeed).await;
    assert_eq!(row.task_position, before);
    assert_eq!(
        row.task_position,
        at(1_000 + acknowledged.load(Ordering::SeqCst)),
        "nothing acknowledged is lost"
    );
}

/// Seal and beat race: either the capture is sealed and does not beat, or it beats and is not sealed.
pub async fn a_capture_is_sealed_or_beats(c: &Cluster) {
    let controller = c.controller().await;
    let other = c.open().await;
    for _ in 0..40 {
        let capture = c.capture().await;
        let mut channel = c.store.heartbeat_channel().await.unwrap();
        let seal = {
            let other = other.clone();
            tokio::spawn(async move { other.capture_seal(controller, capture.capture, 0).await.unwrap() })
        };
        let beat = tokio::spawn(async move { channel.beat(capture, 0, 1).await });
        let (sealed, beaten) = (seal.await.unwrap(), beat.await.unwrap());
        assert_eq!(sealed, refused(&beaten, Refusal::Fenced), "{beaten:?}");
        let row = c.capture_row(capture).await.unwrap();
        assert_eq!(row.heartbeat_seq, u64::from(!sealed));
        assert_eq!(row.state == metadata_api::model::CaptureState::Offline, sealed);
    }
}

/// An owner whose epoch is over, and does not know: nothing that it sends after its release is accepted.
pub async fn an_owner_that_still_writes(c: &Cluster) {
    let o = c.owned("late").await;
    let (released, wrote) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let mut tasks = Vec::new();
    for writer in 0..3 {
        let (store, released, wrote) = (c.open().await, released.clone(), wrote.clone());
        tasks.push(tokio::spawn(async move {
            for n in writer.. {
                let over = released.load(Ordering::SeqCst);
                let state = [FeedState::Normal, FeedState::Warning, FeedState::Pending][n % 3];
                let outcome = store.owner_transition(o.owner, FeedEvent::Report(state), None).await;
                if refused(&outcome, Refusal::Fenced) {
                    return;
                }
                assert!(!over, "a report was accepted after the release");
                wrote.notify_one();
            }
        }));
    }
    for _ in 0..10 {
        wrote.notified().await;
    }
    c.release(o.owner).await;
    released.store(true, Ordering::SeqCst);
    let status = c.status(o.changefeed).await;
    let next = c.launch(o.controller, o.capture, o.changefeed).await;
    join_all(tasks).await;
    assert_eq!(c.status(o.changefeed).await, status);
    c.store.owner_transition(next, FeedEvent::Report(FeedState::Normal), None).await.unwrap();
}

/// Of several creates of one name exactly one wins, each round anew.
pub async fn of_many_creates_of_a_name_exactly_one_wins(c: &Cluster) {
    let mut stores = Vec::new();
    for _ in 0..6 {
        stores.push(c.open().await);
    }
    for round in 0..6 {
        let tasks = stores.iter().map(|store| {
            let (store, new) = (store.clone(), c.new_changefeed(&format!("same-{}", round / 2)));
            tokio::spawn(async move { store.changefeed_create(Authority::Operator, &new).await })
        });
        let outcomes = join_all(tasks.collect()).await;
        let lost = outcomes.iter().filter(|outcome| refused(outcome, Refusal::AlreadyExists)).count();
        assert_eq!(lost, stores.len() - usize::from(round % 2 == 0), "{outcomes:?}");
    }
    assert_eq!(c.store.changefeed_overviews(None).await.unwrap().len(), 3);
    assert_eq!(c.store.changefeed_infos(None).await.unwrap().len(), 3);
}

/// Several creates with one request id make one changefeed, and all are told of it.
pub async fn many_creates_of_one_request_make_one(c: &Cluster) {
    let new = NewChangefeed { upstream_id: Some(UpstreamId(9)), ..c.new_changefeed("one") };
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let (store, new) = (c.open().await, new.clone());
        tasks.push(tokio::spawn(
            async move { store.changefeed_create(Authority::Operator, &new).await.unwrap() },
        ));
    }
    let infos = join_all(tasks).await;
    assert!(infos.iter().all(|info| *info == infos[0]), "{infos:?}");
    assert_eq!(c.store.changefeed_infos(None).await.unwrap().len(), 1);
}

/// Creates that share a new upstream all succeed, and it is there once.
pub async fn many_creates_share_an_upstream(c: &Cluster) {
    let mut tasks = Vec::new();
    for n in 0..6 {
        let new = NewChangefeed { upstream_id: Some(UpstreamId(9)), ..c.new_changefeed(&format!("n-{n}")) };
        let store = c.open().await;
        tasks.push(tokio::spawn(async move {
            store.changefeed_create(Authority::Operator, &new).await.unwrap().uuid
        }));
    }
    let uuids: BTreeSet<_> = join_all(tasks).await.into_iter().collect();
    assert_eq!(uuids.len(), 6);
    assert!(c.store.upstream(UpstreamId(9)).await.unwrap().is_some());
}

/// Several registrations of one id make one row; several ids do not disturb each other.
pub async fn many_registrations_of_one_id_make_one_row(c: &Cluster) {
    let same = c.new_capture();
    let mut tasks = Vec::new();
    for n in 0..8 {
        let new = if n % 2 == 0 { same.clone() } else { c.new_capture() };
        let store = c.open().await;
        tasks.push(tokio::spawn(async move { store.capture_register(&new).await.unwrap() }));
    }
    join_all(tasks).await;
    assert_eq!(c.store.captures(None).await.unwrap().len(), 5);
}

/// Of several launches on one version exactly one is applied.
pub async fn of_many_launches_exactly_one_is_applied(c: &Cluster) {
    let controller = c.controller().await;
    let mut stores = Vec::new();
    for _ in 0..6 {
        stores.push((c.open().await, c.capture().await));
    }
    for round in 0..8 {
        let changefeed = c.create(&format!("launch-{round}")).await.uuid;
        let now = c.launch_target(changefeed, stores[0].1).await;
        let mut tasks = Vec::new();
        for (store, capture) in &stores {
            let (store, target) = (store.clone(), ScheduleTarget { owner: Some(capture.capture), ..now });
            tasks.push(tokio::spawn(async move {
                store.owner_set(controller, &[target]).await.unwrap().remove(0)
            }));
        }
        let outcomes = join_all(tasks).await;
        let lost = outcomes.iter().filter(|outcome| refused(outcome, Refusal::Conflict)).count();
        assert_eq!(lost, stores.len() - 1, "{outcomes:?}");
        let winner = outcomes.into_iter().find_map(Result::ok).unwrap();
        assert_eq!(c.schedule(changefeed).await, winner);
        assert_eq!(winner.version, Version(2));
    }
}

/// An owner's release and a controller's of the same launch: one takes it, the other finds it gone.
pub async fn a_launch_is_released_once(c: &Cluster) {
    for round in 0..12 {
        let o = c.owned(&format!("once-{round}")).await;
        c.seal(o.controller, o.capture).await;
        let before = c.schedule(o.changefeed).await.version;
        let (one, two) = (c.open().await, c.open().await);
        let taken =
            tokio::spawn(
                async move { one.capture_release(o.controller, o.capture.capture, 10).await.unwrap() },
            );
        let released = tokio::spawn(async move {
            let release = OwnerRelease { term: o.owner, task_position: Some(at(500)), end: None };
            two.owner_release(&[release]).await.unwrap().remove(0)
        });
        let (taken, released) = (taken.await.unwrap(), released.await.unwrap());
        let fenced = refused(&released, Refusal::Fenced);
        assert_eq!(taken, usize::from(fenced), "{released:?}");
        let row = c.schedule(o.changefeed).await;
        assert_eq!((row.state, row.owner), (ScheduleState::Removed, None));
        assert_eq!(row.task_position, at(if fenced { 100 } else { 500 }));
        assert_eq!(row.version, Version(before.0 + 1));
    }
}

/// Operators, the owner and the controller at once on one changefeed: each success is one step of the state row, no step
/// is lost, each follows from the one before, and removed is for good.
pub async fn operators_and_owner_lose_no_update(c: &Cluster) {
    for round in 0..4 {
        let o = c.owned(&format!("contended-{round}")).await;
        let mut tasks = Vec::new();
        for writer in 0..5 {
            let store = c.open().await;
            tasks.push(tokio::spawn(async move {
                let mut seen: Vec<ChangefeedStatus> = Vec::new();
                for n in 0..8 {
                    let outcome = match (writer, n) {
                        (0, 7) => store.changefeed_remove(Authority::Operator, o.changefeed).await,
                        (0 | 1, _) => store.changefeed_pause(o.changefeed).await,
                        (2, _) => store.changefeed_resume(o.changefeed, None).await,
                        (3, 6) => {
                            let release = OwnerRelease { term: o.owner, task_position: None, end: None };
                            store.owner_release(&[release]).await.unwrap().remove(0).unwrap();
                            continue;
                        }
                        (_, n) => {
                            let state = if n % 2 == 0 { FeedState::Normal } else { FeedState::Warning };
                            store.owner_transition(o.owner, FeedEvent::Report(state), None).await
                        }
                    };
                    match outcome {
                        Ok(status) => seen.push(status),
                        Err(MetadataError::InvalidTransition { .. } | MetadataError::Fenced { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
                seen
            }));
        }
        let mut steps: BTreeMap<Version, ChangefeedStatus> = BTreeMap::new();
        for status in join_all(tasks).await.into_iter().flatten() {
            let before = steps.insert(status.version, status.clone());
            assert!(before.is_none_or(|before| before == status), "two steps of one version");
        }
        let last = c.status(o.changefeed).await;
        assert_eq!(last.state, FeedState::Removed);
        let versions: Vec<_> = steps.keys().map(|version| version.0).filter(|version| *version > 1).collect();
        let wanted: Vec<_> = (2..=last.version.0).collect();
        assert_eq!(versions, wanted, "each step was told to somebody");
        let removed = steps.values().filter(|status| status.state == FeedState::Removed).count();
        assert_eq!(removed, 1, "and nothing follows it");
        let row = c.schedule(o.changefeed).await;
        assert_eq!((row.state, row.owner), (ScheduleState::Removed, None));
    }
}

/// Read-modify-write by version: eight writers, no update lost.
pub async fn updates_by_version_lose_nothing(c: &Cluster) {
    let info = c.create("counter").await;
    c.store.changefeed_pause(info.uuid).await.unwrap();
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let store = c.open().await;
        tasks.push(tokio::spawn(async move {
            let mut done = 0;
            while done < 5 {
                let now = store.changefeed_infos(Some(&[info.uuid])).await.unwrap().remove(0);
                let next = Ts(now.target_ts.0.max(1_000) + 1);
                let update = ChangefeedUpdate { target_ts: Some(next), ..ChangefeedUpdate::default() };
                let outcome = store.changefeed_update(info.uuid, now.version, &update).await;
                done += u64::from(!refused(&outcome, Refusal::Conflict));
            }
        }));
    }
    join_all(tasks).await;
    let now = c.info(info.uuid).await;
    assert_eq!((now.target_ts, now.version), (Ts(1_040), Version(info.version.0 + 40)));
}

/// Each read is of one moment: two schedules that always change together are never seen apart, nor state and schedule.
pub async fn reads_are_of_one_moment(c: &Cluster) {
    let controller = c.controller().await;
    let capture = c.capture().await;
    let pair = c.create_many("pair", 2).await;
    let paused = c.create("paused").await;
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for _ in 0..2 {
        let (store, done, pair, name) = (c.open().await, done.clone(), pair.clone(), paused.name.clone());
        readers.push(tokio::spawn(async move {
            let mut channel = store.watch_channel().await.unwrap();
            while !done.load(Ordering::SeqCst) {
                let snapshot = store.schedule_snapshot().await.unwrap();
                let row = |n: usize| &snapshot.changefeeds[n].schedule;
                assert_eq!((row(0).changefeed, row(1).changefeed), (pair[0], pair[1]));
                assert_eq!((row(0).state, row(0).epoch), (row(1).state, row(1).epoch));
                assert!(snapshot.changefeeds.iter().all(|row| row.schedule.revision <= snapshot.revision));
                let third = &snapshot.changefeeds[2];
                assert!(
                    !(third.state == FeedState::Stopped && third.schedule.state == ScheduleState::Launched)
                );
                let Assigned { revision, rows, .. } = store.capture_schedules(capture).await.unwrap();
                let mine = rows.iter().filter(|row| pair.contains(&row.changefeed)).count();
                assert_ne!(mine, 1, "{rows:?}");
                assert!(rows.iter().all(|row| row.revision <= revision));
                let answer = channel.poll(capture, &PollCursor::after(Revision(0))).await.unwrap();
                assert_eq!(answer.owned, answer.schedules.len() as u64);
                assert!(answer.schedules.iter().all(|row| row.revision <= answer.revision));
                let overview = store.changefeed_overview(&name).await.unwrap().unwrap();
                let launched = overview.schedule.state == ScheduleState::Launched;
                assert!(!(overview.status.state == FeedState::Stopped && launched), "{overview:?}");
            }
        }));
    }
    for _ in 0..25 {
        let terms = c.launch_many(controller, capture, &pair).await;
        let third = c.launch(controller, capture, paused.uuid).await;
        c.store.changefeed_pause(paused.uuid).await.unwrap();
        c.release(third).await;
        c.store.changefeed_resume(paused.uuid, None).await.unwrap();
        let releases: Vec<_> =
            terms.into_iter().map(|term| OwnerRelease { term, task_position: None, end: None }).collect();
        for answer in c.store.owner_release(&releases).await.unwrap() {
            answer.unwrap();
        }
    }
    done.store(true, Ordering::SeqCst);
    join_all(readers).await;
}

/// I6: a changefeed wanders from capture to capture, by release and by seal; no reader ever sees its checkpoint go back.
pub async fn a_checkpoint_never_goes_back(c: &Cluster) {
    let controller = c.controller().await;
    let info = c.create("wanders").await;
    let (uuid, done) = (info.uuid, Arc::new(AtomicBool::new(false)));
    let mut readers = Vec::new();
    for reader in 0..3 {
        let (store, done, name) = (c.open().await, done.clone(), info.name.clone());
        readers.push(tokio::spawn(async move {
            let mut last = Ts::ZERO;
            while !done.load(Ordering::SeqCst) {
                let now = match reader {
                    0 => store.changefeed_progresses(Some(&[uuid])).await.unwrap()[&uuid].clone(),
                    1 => store.changefeed_progresses(None).await.unwrap()[&uuid].clone(),
                    _ => store.changefeed_overview(&name).await.unwrap().unwrap().progress,
                };
                assert!(now.checkpoint_ts >= last, "reader {reader}: {} after {last}", now.checkpoint_ts);
                assert_eq!(now, at(now.checkpoint_ts.0), "the whole value");
                last = now.checkpoint_ts;
            }
        }));
    }
    let mut ts = 100;
    for round in 0..30 {
        let capture = c.capture().await;
        let owner = c.launch(controller, capture, uuid).await;
        for seq in 1..=3 {
            ts += 1;
            let value = progress_of(&[(uuid, owner.epoch, at(ts))]);
            c.store.capture_advance(capture, seq, &value).await.unwrap();
        }
        if round % 2 == 0 {
            c.release(owner).await;
        } else {
            c.seal(controller, capture).await;
            assert_eq!(c.store.capture_release(controller, capture.capture, 10).await.unwrap(), 1);
            c.store.capture_delete(controller, capture.capture).await.unwrap();
        }
        assert_eq!(c.progress(uuid).await, at(ts));
    }
    done.store(true, Ordering::SeqCst);
    join_all(readers).await;
}

/// A call that is dropped half way leaves nothing open: no lock, no transaction, and nothing half done.
pub async fn a_cancelled_call_leaves_nothing_open(c: &Cluster) {
    let store = c.open().await;
    let mut maybe = 0;
    for polls in 0..40_usize {
        let new = c.new_changefeed(&format!("cancelled-{polls}"));
        {
            let mut call = store.changefeed_create(Authority::Operator, &new);
            for _ in 0..polls {
                if futures::poll!(call.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        maybe += 1;
        // Neither another process nor the same is kept waiting by it.
        c.create(&format!("other-{polls}")).await;
        let again = store.changefeed_create(Authority::Operator, &new).await.unwrap();
        assert_eq!(again.name, new.name);
        c.schedule(again.uuid).await;
        c.status(again.uuid).await;
    }
    assert_eq!(c.store.changefeed_infos(None).await.unwrap().len(), 2 * maybe);
}
