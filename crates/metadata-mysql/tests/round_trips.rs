//! How often each operation asks the server and waits, counted by a proxy between. A batch of 500 costs what one does, and
//! what runs on a timer costs one.

use std::sync::Arc;

use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    CaptureId, CaptureProgress, CaptureTerm, ChangefeedName, ChangefeedProgress, ChangefeedUuid,
    ControllerTerm, FeedState, NewCapture, NewChangefeed, OwnerTerm, ProcessorAssignment, ProcessorTarget,
    ReplicaConfig, Revision, ScheduleState, ScheduleTarget, SecretUri, Ts, Version,
};
use metadata_api::store::{
    AdminStore as _, Authority, CaptureStore as _, ControllerStore as _, ElectionStore as _, MAX_BATCH,
    OwnerRelease, OwnerStore as _, PollCursor, QueryStore as _,
};
use metadata_mysql::{MysqlOptions, MysqlStore, migrate};
use sqlx::types::Uuid;
use test_servers::count::RoundTrips;
use test_servers::{Kind, drop_database, fresh_database};

/// A store behind the counter.
struct Counted {
    url: String,
    counter: RoundTrips,
    store: Arc<MysqlStore>,
}

impl Counted {
    async fn new(kind: Kind) -> Self {
        let url = fresh_database(&kind.url().await).await;
        migrate(MysqlOptions::from_url(&url).expect("a URL")).await.expect("an empty database");
        let counter = RoundTrips::before(&url).await.expect("a proxy");
        let options = MysqlOptions::from_url(&counter.through(&url)).expect("a URL");
        let options = options.max_connections(1).expect("in bounds");
        let store = Arc::new(MysqlStore::open(options).await.expect("it opens"));
        Self { url, counter, store }
    }

    /// How many round trips `call` takes on a connection that is open and has prepared its statements: each is made once
    /// before, by the caller, and at once, since an idle connection of the pool is dropped after 2 s.
    async fn of<T>(&self, call: impl Future<Output = metadata_api::Result<T>>) -> (u64, T) {
        let before = self.counter.count();
        let answer = call.await.expect("it works");
        (self.counter.count() - before, answer)
    }

    async fn register(&self) -> metadata_api::Result<CaptureTerm> {
        let id = CaptureId::random();
        let (advertise_addr, version) = ("127.0.0.1:8300".to_owned(), "v0".to_owned());
        let capture =
            NewCapture { id, advertise_addr, version, labels: [].into(), machine_id: String::new() };
        self.store.capture_register(&capture).await
    }

    async fn create(&self) -> metadata_api::Result<ChangefeedUuid> {
        let request = Uuid::new_v4();
        let new = NewChangefeed {
            name: ChangefeedName::new("", &format!("feed-{}", request.simple())).expect("a name"),
            upstream_id: None,
            upstream_uri: SecretUri::parse("upstream_uri", "datagen://").expect("a URI"),
            sink_uri: SecretUri::parse("sink_uri", "blackhole://").expect("a URI"),
            start_ts: Ts(100),
            target_ts: Ts::ZERO,
            config: ReplicaConfig::default(),
            creator_version: "v0".to_owned(),
            client_request_id: request,
            task_position: ChangefeedProgress::at(Ts(100)),
        };
        Ok(self.store.changefeed_create(Authority::Operator, &new).await?.uuid)
    }

    /// Launches that work, all in one call.
    async fn targets(&self, capture: CaptureTerm, feeds: &[ChangefeedUuid]) -> Vec<ScheduleTarget> {
        let snapshot = self.store.schedule_snapshot().await.expect("a snapshot");
        let rows = snapshot.changefeeds.into_iter().filter(|row| feeds.contains(&row.schedule.changefeed));
        rows.map(|row| ScheduleTarget {
            changefeed: row.schedule.changefeed,
            expected_version: row.schedule.version,
            state: ScheduleState::Launched,
            owner: Some(capture.capture),
        })
        .collect()
    }

    /// Launches, and counts; then releases, and counts.
    async fn launch_and_release(
        &self,
        controller: ControllerTerm,
        capture: CaptureTerm,
        feeds: &[ChangefeedUuid],
    ) -> [u64; 2] {
        let targets = self.targets(capture, feeds).await;
        let (launch, answers) = self.of(self.store.owner_set(controller, &targets)).await;
        let releases: Vec<_> = answers
            .into_iter()
            .map(|answer| OwnerRelease {
                term: answer.expect("launched").term().expect("an owner"),
                task_position: Some(ChangefeedProgress::at(Ts(200))),
                end: None,
            })
            .collect();
        assert_eq!(releases.len(), feeds.len());
        let (release, answers) = self.of(self.store.owner_release(&releases)).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        [launch, release]
    }

    async fn launched(
        &self,
        controller: ControllerTerm,
        capture: CaptureTerm,
        feed: ChangefeedUuid,
    ) -> OwnerTerm {
        let targets = self.targets(capture, &[feed]).await;
        let mut answers = self.store.owner_set(controller, &targets).await.expect("an answer");
        answers.remove(0).expect("launched").term().expect("an owner")
    }
}

/// What a capture does each second costs one round trip each, and nothing else.
pub async fn what_runs_on_a_timer_is_one_round_trip(kind: Kind) {
    let counted = Counted::new(kind).await;
    let store = &counted.store;
    let me = counted.register().await.expect("registered");
    let controller =
        store.election_campaign(me, &store.election().await.expect("a row")).await.expect("elected");
    let mut heart = store.heartbeat_channel().await.expect("a channel");
    let mut watch = store.watch_channel().await.expect("a channel");
    let cursor = PollCursor::after(Revision(0));
    heart.beat(me, 0, 1).await.expect("a beat");
    watch.poll(me, &cursor).await.expect("a poll");
    watch.lease_renew(controller).await.expect("renewed");
    store.capture_advance(me, 1, &CaptureProgress::default()).await.expect("advanced");
    store.capture_schedules(me).await.expect("read");
    store.capture_beats().await.expect("read");
    let own = [counted.create().await.expect("created")];
    store.processors(Some(&own)).await.expect("read");
    assert_eq!(counted.of(heart.beat(me, 1, 2)).await.0, 1, "beat");
    assert_eq!(counted.of(watch.poll(me, &cursor)).await.0, 1, "poll");
    assert_eq!(counted.of(watch.lease_renew(controller)).await.0, 1, "lease_renew");
    assert_eq!(counted.of(store.capture_advance(me, 2, &CaptureProgress::default())).await.0, 1, "advance");
    assert_eq!(counted.of(store.capture_schedules(me)).await.0, 1, "the full reconcile");
    assert_eq!(counted.of(store.capture_beats()).await.0, 1, "the controller's scan");
    assert_eq!(counted.of(store.captures(None)).await.0, 1, "captures");
    assert_eq!(counted.of(store.processors(Some(&own))).await.0, 1, "an owner's processors");
    drop_database(&counted.url).await;
}

/// Each list is one round trip, whatever its length, and so is the snapshot of everything.
pub async fn a_list_is_one_round_trip(kind: Kind) {
    let counted = Counted::new(kind).await;
    let store = &counted.store;
    let me = counted.register().await.expect("registered");
    let feed = counted.create().await.expect("created");
    store.schedule_snapshot().await.expect("a snapshot");
    store.changefeed_schedule(feed).await.expect("read");
    assert_eq!(counted.of(store.changefeed_infos(None)).await.0, 1, "infos");
    assert_eq!(counted.of(store.changefeed_statuses(None)).await.0, 1, "states");
    assert_eq!(counted.of(store.changefeed_progresses(None)).await.0, 1, "progress");
    assert_eq!(counted.of(store.changefeed_overviews(None)).await.0, 1, "overviews");
    assert_eq!(counted.of(store.processors(None)).await.0, 1, "processors");
    assert_eq!(counted.of(store.changefeed_schedule(feed)).await.0, 1, "schedule");
    assert_eq!(counted.of(store.owner_launches(me, &[feed])).await.0, 1, "launches");
    assert_eq!(counted.of(store.schedule_snapshot()).await.0, 1, "snapshot");
    drop_database(&counted.url).await;
}

/// What operators, the controller and owners write is three: BEGIN with the fence and what is read under it; the writes of
/// all in the batch; COMMIT. (The Go original: create 11, `set_owner` 5 each, without a batch.)
pub async fn a_write_takes_few_round_trips_and_a_batch_no_more(kind: Kind) {
    let counted = Counted::new(kind).await;
    let store = &counted.store;
    let me = counted.register().await.expect("registered");
    assert_eq!(counted.of(counted.register()).await.0, 3, "register");
    let former = store.election_campaign(me, &store.election().await.expect("a row")).await.expect("elected");
    store.election_resign(former).await.expect("resigned");
    let controller =
        store.election_campaign(me, &store.election().await.expect("a row")).await.expect("elected");
    let mut feeds = vec![counted.create().await.expect("created")];
    let (create, feed) = counted.of(counted.create()).await;
    assert_eq!(create, 3, "create");
    feeds.push(feed);

    counted.launch_and_release(controller, me, &feeds[..1]).await;
    let one = counted.launch_and_release(controller, me, &feeds[..1]).await;
    assert_eq!(one, [3, 3], "set_owner, release");
    counted.launched(controller, me, feed).await;
    store.changefeed_pause(feeds[0]).await.expect("paused");
    assert_eq!(counted.of(store.changefeed_pause(feed)).await.0, 3, "pause of what runs");
    store.changefeed_resume(feed, None).await.expect("resumed");
    assert_eq!(counted.of(store.changefeed_pause(feed)).await.0, 3, "pause of what stops already");
    assert_eq!(counted.of(store.changefeed_resume(feed, None)).await.0, 3, "resume");
    store.changefeed_remove(Authority::Operator, feeds[0]).await.expect("removed");
    let running = counted.create().await.expect("created");
    let term = counted.launched(controller, me, running).await;
    let report = FeedEvent::Report(FeedState::Normal);
    store.owner_transition(term, report, None).await.expect("reported");
    assert_eq!(counted.of(store.owner_transition(term, report, None)).await.0, 3, "a report");
    let (remove, _) = counted.of(store.changefeed_remove(Authority::Controller(controller), running)).await;
    assert_eq!(remove, 3, "remove of what runs");

    let split = counted.create().await.expect("created");
    counted.launched(controller, me, split).await;
    let target = |state, expected_version| {
        [ProcessorTarget {
            capture: me.capture,
            expected_version,
            state,
            assignment: ProcessorAssignment::default(),
        }]
    };
    let (attach, detach) =
        (target(ScheduleState::Launched, None), target(ScheduleState::Removing, Some(Version(1))));
    assert_eq!(counted.of(store.processor_set(controller, split, &attach)).await.0, 3, "attach");
    assert_eq!(counted.of(store.processor_set(controller, split, &detach)).await.0, 3, "detach");

    let mut many = Vec::with_capacity(MAX_BATCH);
    for _ in 0..MAX_BATCH {
        many.push(counted.create().await.expect("created"));
    }
    assert_eq!(counted.launch_and_release(controller, me, &many).await, one, "500 cost what one costs");
    assert_eq!(counted.of(store.election_resign(controller)).await.0, 4, "resign");
    let observed = store.election().await.expect("a row");
    assert_eq!(
        counted.of(store.election_campaign(me, &observed)).await.0,
        6,
        "campaign, with its look before"
    );
    drop_database(&counted.url).await;
}
