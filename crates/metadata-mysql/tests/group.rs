//! Calls that arrive together are committed together: a thousand pauses are not a thousand turns at the fence. Turns are counted
//! by the fence row's version, which each of them moves by one.

use std::sync::Arc;

use futures::future::join_all;
use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    CaptureTerm, ChangefeedInfo, ChangefeedUuid, FeedState, OwnerTerm, ProcessorAssignment, ProcessorTarget,
    ScheduleState, ScheduleTarget, Version,
};
use metadata_api::store::{
    AdminStore as _, Authority, CaptureStore as _, ControllerStore as _, ElectionStore as _, OwnerRelease,
    OwnerStore as _, QueryStore as _,
};
use metadata_api::{MetadataError, Result};
use metadata_mysql::MysqlStore;
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, query_scalar};
use test_servers::{Kind, drop_database, execute};

use crate::server::{Outsider, migrated, new_capture, new_changefeed, wait_for_transactions};

const COUNT: usize = 100;

/// A store, and who looks at its database from outside.
struct Watched {
    kind: Kind,
    url: String,
    store: MysqlStore,
    watcher: MySqlConnection,
}

impl Watched {
    async fn new(kind: Kind) -> Self {
        let (url, store) = migrated(kind).await;
        let watcher = MySqlConnection::connect(&url).await.expect("a connection");
        Self { kind, url, store, watcher }
    }

    async fn turns(&mut self) -> u64 {
        query_scalar("SELECT version FROM fence").fetch_one(&mut self.watcher).await.expect("a version")
    }

    /// Makes calls while somebody holds the fence: the first one waits for it, all others for the first. Gives their answers,
    /// and asserts that they took two turns at most.
    async fn together<T: Send + 'static>(
        &mut self,
        calls: impl IntoIterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
    ) -> Vec<Result<T>> {
        let before = self.turns().await;
        let outsider = Outsider::hold_the_fence(self.kind, &self.url).await;
        let mut calls = Box::pin(join_all(calls));
        // Everybody asks before anybody is answered.
        assert!(futures::poll!(calls.as_mut()).is_pending());
        let calls = tokio::spawn(calls);
        wait_for_transactions(self.kind, &mut self.watcher, 2).await;
        outsider.go().await;
        let answers = calls.await.expect("no panic");
        let turns = self.turns().await - before;
        assert!((1..=2).contains(&turns), "{turns} turns at the fence of {} calls", answers.len());
        answers
    }

    async fn create_all(&mut self) -> Vec<ChangefeedInfo> {
        let store = Arc::new(self.store.clone());
        let create = |n: usize| {
            let store = Arc::clone(&store);
            async move {
                store.changefeed_create(Authority::Operator, &new_changefeed(&format!("feed-{n}"))).await
            }
        };
        let created = self.together((0..COUNT).map(create).collect::<Vec<_>>()).await;
        created.into_iter().map(|created| created.expect("created")).collect()
    }

    async fn end(self) {
        self.watcher.close().await.expect("it closes");
        drop_database(&self.url).await;
    }
}

pub async fn creates_pauses_and_removals_share_a_turn(kind: Kind) {
    let mut watched = Watched::new(kind).await;
    // The clock is behind: whoever takes too few revisions gets some that were given before.
    execute(&watched.url, "UPDATE fence SET revision = 4000000000000000000").await;
    let created = watched.create_all().await;
    let mut uuids: Vec<ChangefeedUuid> = created.iter().map(|info| info.uuid).collect();
    for (n, info) in created.iter().enumerate() {
        assert_eq!(info.name.id.as_str(), format!("feed-{n}"), "each has its own answer");
    }
    uuids.sort_unstable();
    uuids.dedup();
    assert_eq!(uuids.len(), COUNT, "each has a uuid of its own");
    let revision = watched.store.schedule_snapshot().await.expect("a snapshot").revision;
    let given = 4_000_000_000_000_000_000..=revision.0;
    assert!(uuids.iter().all(|uuid| given.contains(&(uuid.0 - 1)) && given.contains(&uuid.0)), "{uuids:?}");

    // One that is not there is refused, and keeps nobody waiting.
    uuids.insert(1, ChangefeedUuid(7));
    let store = watched.store.clone();
    let pause = |uuid| {
        let store = store.clone();
        async move { store.changefeed_pause(uuid).await }
    };
    for (uuid, paused) in uuids.iter().zip(watched.together(uuids.clone().into_iter().map(pause)).await) {
        match paused {
            Ok(status) => assert_eq!((status.changefeed, status.state), (*uuid, FeedState::Stopped)),
            Err(error) => {
                assert!(uuid.0 == 7 && matches!(error, MetadataError::NotFound { .. }), "{uuid}: {error}");
            }
        }
    }
    let resume = |uuid| {
        let store = store.clone();
        async move { store.changefeed_resume(uuid, None).await }
    };
    uuids.remove(1);
    for resumed in watched.together(uuids.clone().into_iter().map(resume)).await {
        assert!(resumed.expect("resumed").state.is_runnable());
    }
    let remove = |uuid| {
        let store = store.clone();
        async move { store.changefeed_remove(Authority::Operator, uuid).await }
    };
    for removed in watched.together(uuids.clone().into_iter().map(remove)).await {
        assert_eq!(removed.expect("removed").state, FeedState::Removed);
    }
    assert!(watched.store.changefeed_overviews(None).await.expect("read").is_empty());
    watched.end().await;
}

pub async fn of_creates_that_share_a_turn_one_gets_the_name(kind: Kind) {
    let mut watched = Watched::new(kind).await;
    let store = watched.store.clone();
    let twice = new_changefeed("twice");
    let requests: Vec<_> =
        [new_changefeed("other"), twice.clone(), new_changefeed("more")].into_iter().collect();
    let create = |new| {
        let store = store.clone();
        async move { store.changefeed_create(Authority::Operator, &new).await }
    };
    for created in watched.together(requests.into_iter().map(create)).await {
        created.expect("created");
    }
    // The very same request gives what it made; another of that name is refused, and the rest is made.
    let requests = [new_changefeed("new"), twice.clone(), new_changefeed("twice"), new_changefeed("newer")];
    let calls = join_all(requests.into_iter().map(create)).await;
    let [new, same, taken, newer] = calls.as_slice() else { panic!("four answers") };
    assert_eq!(new.as_ref().expect("made").name.id.as_str(), "new");
    assert_eq!(newer.as_ref().expect("made").name.id.as_str(), "newer");
    assert_eq!(same.as_ref().expect("made before").client_request_id, twice.client_request_id);
    assert!(matches!(taken, Err(MetadataError::AlreadyExists { .. })), "{taken:?}");
    assert_eq!(store.changefeed_infos(None).await.expect("read").len(), 5);
    watched.end().await;
}

pub async fn launches_and_releases_share_a_turn(kind: Kind) {
    let mut watched = Watched::new(kind).await;
    let created = watched.create_all().await;
    let store = watched.store.clone();
    let me: CaptureTerm = store.capture_register(&new_capture()).await.expect("registered");
    let controller =
        store.election_campaign(me, &store.election().await.expect("a row")).await.expect("elected");
    let launch = |info: ChangefeedInfo| {
        let store = store.clone();
        let target = async move |store: &MysqlStore| {
            let row = store.changefeed_schedule(info.uuid).await?.expect("a schedule");
            Ok::<_, MetadataError>(ScheduleTarget {
                changefeed: info.uuid,
                expected_version: row.version,
                state: ScheduleState::Launched,
                owner: Some(me.capture),
            })
        };
        async move { target(&store).await }
    };
    let targets = join_all(created.into_iter().map(launch)).await;
    let set = |target: Result<ScheduleTarget>| {
        let store = store.clone();
        async move { store.owner_set(controller, &[target?]).await?.remove(0) }
    };
    let launched = watched.together(targets.into_iter().map(set)).await;
    let terms: Vec<OwnerTerm> =
        launched.into_iter().map(|row| row.expect("launched").term().expect("an owner")).collect();

    // How they are doing takes no turn at all, and each report has its own answer.
    let before = watched.turns().await;
    let report = |term: OwnerTerm| {
        let store = store.clone();
        async move { store.owner_transition(term, FeedEvent::Report(FeedState::Warning), None).await }
    };
    let over = OwnerTerm { epoch: metadata_api::model::OwnerEpoch(terms[1].epoch.0 - 1), ..terms[1] };
    let reports =
        join_all([vec![terms[0], over], terms[2..].to_vec()].concat().into_iter().map(report)).await;
    for (n, reported) in reports.into_iter().enumerate() {
        match reported {
            Ok(status) => assert_eq!((n == 1, status.state), (false, FeedState::Warning)),
            Err(error) => assert!(n == 1 && error.is_fenced(), "{n}: {error}"),
        }
    }
    assert_eq!(watched.turns().await, before);

    let release = |term| {
        let store = store.clone();
        async move {
            let release = OwnerRelease { term, task_position: None, end: None };
            store.owner_release(&[release]).await?.remove(0)
        }
    };
    for released in watched.together(terms.clone().into_iter().map(release)).await {
        released.expect("released");
    }
    for row in store.schedule_snapshot().await.expect("a snapshot").changefeeds {
        assert_eq!((row.schedule.state, row.schedule.owner), (ScheduleState::Removed, None));
    }
    watched.end().await;
}

pub async fn processors_of_many_changefeeds_share_a_turn(kind: Kind) {
    let mut watched = Watched::new(kind).await;
    let created = watched.create_all().await;
    let store = watched.store.clone();
    let register = || async { store.capture_register(&new_capture()).await.expect("registered") };
    let (me, other, gone) = (register().await, register().await, register().await);
    store.capture_deregister(gone).await.expect("deregistered");
    let controller =
        store.election_campaign(me, &store.election().await.expect("a row")).await.expect("elected");
    let snapshot = store.schedule_snapshot().await.expect("a snapshot");
    let targets = snapshot.changefeeds.iter().map(|row| ScheduleTarget {
        changefeed: row.schedule.changefeed,
        expected_version: row.schedule.version,
        state: ScheduleState::Launched,
        owner: Some(me.capture),
    });
    let targets: Vec<_> = targets.collect();
    for answer in store.owner_set(controller, &targets).await.expect("set") {
        answer.expect("launched");
    }
    let attach = |capture: CaptureTerm| ProcessorTarget {
        capture: capture.capture,
        expected_version: None,
        state: ScheduleState::Launched,
        assignment: ProcessorAssignment::default(),
    };
    // One names a capture that is gone: nothing of that call is done, and all of the others.
    let set = |(n, info): (usize, &ChangefeedInfo)| {
        let (store, changefeed) = (store.clone(), info.uuid);
        let targets = [attach(me), attach(if n == 1 { gone } else { other })];
        async move { store.processor_set(controller, changefeed, &targets).await }
    };
    let answers = watched.together(created.iter().enumerate().map(set).collect::<Vec<_>>()).await;
    for (n, (info, answer)) in created.iter().zip(answers).enumerate() {
        let rows = store.processor_schedules(info.uuid).await.expect("read");
        match answer {
            Ok(mut set) => {
                set.sort_by_key(|row| row.capture);
                assert_eq!((n == 1, set.len(), &set), (false, 2, &rows));
            }
            Err(error) => {
                assert!(n == 1 && matches!(error, MetadataError::Conflict { .. }), "{n}: {error}");
                assert_eq!(rows, []);
            }
        }
    }
    // Some attach, some detach, in one turn.
    let change = |(n, info): (usize, &ChangefeedInfo)| {
        let (store, changefeed) = (store.clone(), info.uuid);
        let target = ProcessorTarget {
            expected_version: (n != 1).then_some(Version(1)),
            state: if n == 1 { ScheduleState::Launched } else { ScheduleState::Removing },
            ..attach(other)
        };
        async move { store.processor_set(controller, changefeed, &[target]).await }
    };
    for (n, answer) in watched
        .together(created.iter().enumerate().map(change).collect::<Vec<_>>())
        .await
        .into_iter()
        .enumerate()
    {
        let wanted = if n == 1 { ScheduleState::Launched } else { ScheduleState::Removing };
        let rows = answer.expect("set");
        assert_eq!(rows.iter().map(|row| row.state).collect::<Vec<_>>(), [wanted]);
    }
    watched.end().await;
}
