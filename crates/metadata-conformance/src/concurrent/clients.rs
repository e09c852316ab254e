//! What the clients do. Each is a loop of random choices; what it may do by its token it also tries when that is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    CaptureId, CaptureState, CaptureTerm, ChangefeedName, ChangefeedProgress, ChangefeedUuid, ControllerTerm,
    FeedState, NewCapture, NewChangefeed, OwnedProgress, OwnerTerm, ReplicaConfig, Revision,
    ScheduleSnapshot, ScheduleState, ScheduleTarget, Ts,
};
use metadata_api::store::faults::{FaultKind, FaultPoint, Faults};
use metadata_api::store::{
    Authority, HeartbeatChannel, MetadataStore, OwnerRelease, PollAnswer, PollCursor, WatchChannel,
};
use metadata_api::{MetadataError, Result};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::history::{Call, Fact, Recorder, Row};
use crate::harness::{Cluster, at, uri};

/// How many changefeeds there are at once, about.
const FEEDS: usize = 16;

/// What the clients know of each other. In earnest they would read it.
pub(super) struct World {
    recorder: Arc<Recorder>,
    seed: u64,
    end: Instant,
    captures: Mutex<Vec<CaptureId>>,
    feeds: Mutex<Vec<ChangefeedUuid>>,
    /// Every term there ever was.
    terms: Mutex<Vec<ControllerTerm>>,
}

/// Loses one answer in many, and refuses as often.
#[derive(Debug)]
struct SomeFaults(Mutex<StdRng>);

impl Faults for SomeFaults {
    fn at(&self, _: &'static str, _: FaultPoint) -> Option<FaultKind> {
        let mut rng = lock(&self.0);
        if !rng.random_bool(0.01) {
            return None;
        }
        Some(if rng.random_bool(0.5) { FaultKind::AnswerLost } else { FaultKind::Retryable })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(super) fn new(recorder: Arc<Recorder>, seed: u64, duration: Duration) -> Self {
        Self {
            recorder,
            seed,
            end: Instant::now() + duration,
            captures: Mutex::default(),
            feeds: Mutex::default(),
            terms: Mutex::default(),
        }
    }

    fn rng(&self, client: usize) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(31).wrapping_add(client as u64))
    }

    pub(super) async fn store(&self, c: &Cluster, client: usize) -> Arc<dyn MetadataStore> {
        c.open_with(Arc::new(SomeFaults(Mutex::new(self.rng(client + 100))))).await
    }

    /// A short pause; whether there is time left.
    async fn goes_on(&self, rng: &mut StdRng) -> bool {
        sleep(Duration::from_micros(rng.random_range(0..4_000))).await;
        Instant::now() < self.end
    }

    fn some_feed(&self, rng: &mut StdRng) -> Option<ChangefeedUuid> {
        lock(&self.feeds).choose(rng).copied()
    }
}

/// What no client must ever be told.
fn is_expected(error: &MetadataError) -> bool {
    matches!(
        error,
        MetadataError::Fenced { .. }
            | MetadataError::Conflict { .. }
            | MetadataError::NotFound { .. }
            | MetadataError::AlreadyExists { .. }
            | MetadataError::InvalidTransition { .. }
            | MetadataError::Unavailable { .. }
            | MetadataError::Unknown { .. }
    )
}

/// The answer, if it went well.
fn done<T>(answer: Result<T>) -> Option<T> {
    if let Err(error) = &answer {
        assert!(is_expected(error), "{error:?}");
    }
    answer.ok()
}

fn nothing<T>(_: &T) -> Vec<Fact> {
    Vec::new()
}

/// Registers a fresh capture, however often it takes.
async fn register(world: &World, store: &Arc<dyn MetadataStore>) -> CaptureTerm {
    let new = NewCapture {
        id: CaptureId::random(),
        advertise_addr: "127.0.0.1:8300".to_owned(),
        version: "v0.1.0".to_owned(),
        labels: BTreeMap::new(),
        machine_id: String::new(),
    };
    loop {
        match store.capture_register(&new).await {
            Ok(term) => {
                let mut captures = lock(&world.captures);
                captures.push(term.capture);
                // The newest: those that are long dead are of no interest.
                let old = captures.len().saturating_sub(12);
                captures.drain(..old);
                return term;
            }
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
}

/// Campaigns, schedules, seals and takes; and does so by terms that are over as well.
pub(super) async fn controller(world: Arc<World>, client: usize, store: Arc<dyn MetadataStore>) {
    let mut rng = world.rng(client);
    let mut me = register(&world, &store).await;
    while world.goes_on(&mut rng).await {
        let term = {
            let terms = lock(&world.terms);
            let old = rng.random_bool(0.2);
            if old { terms.choose(&mut rng).copied() } else { terms.last().copied() }
        };
        let Some(term) = term.filter(|_| !rng.random_bool(0.04)) else {
            campaign(&world, client, &store, &mut me).await;
            continue;
        };
        let controller = Controller { world: &world, client, store: &*store, term };
        match rng.random_range(0..100) {
            0..45 => controller.schedule(&mut rng).await,
            45..52 => controller.lose_a_capture(&mut rng).await,
            52..75 => controller.take(&mut rng).await,
            75..80 => controller.clean_up().await,
            80..99 => controller.renew().await,
            _ => controller.resign().await,
        }
    }
}

async fn campaign(world: &World, client: usize, store: &Arc<dyn MetadataStore>, me: &mut CaptureTerm) {
    let read = world.recorder.call(client, Call::Read, store.election(), |row| vec![row.into()]);
    let Some(observed) = done(read.await) else { return };
    let call = store.election_campaign(*me, &observed);
    let won = world.recorder.call(client, Call::Campaign(*me), call, |term| vec![Fact::Elected(*term)]).await;
    if matches!(won, Err(MetadataError::Fenced { .. })) {
        *me = register(world, store).await;
    }
    if let Some(term) = done(won) {
        lock(&world.terms).push(term);
    }
}

/// One call in a controller's name.
struct Controller<'w> {
    world: &'w World,
    client: usize,
    store: &'w dyn MetadataStore,
    term: ControllerTerm,
}

impl Controller<'_> {
    async fn write<T>(
        &self,
        call: impl Future<Output = Result<T>>,
        facts: impl FnOnce(&T) -> Vec<Fact>,
    ) -> Option<T> {
        done(self.world.recorder.call(self.client, Call::AsController(self.term), call, facts).await)
    }

    async fn snapshot(&self) -> Option<ScheduleSnapshot> {
        let call = self.store.schedule_snapshot();
        let facts = |snapshot: &ScheduleSnapshot| {
            let rows = snapshot.changefeeds.iter().map(|row| Fact::Saw(Row::from(&row.schedule)));
            rows.chain([Fact::Revision(snapshot.revision)]).collect()
        };
        done(self.world.recorder.call(self.client, Call::Read, call, facts).await)
    }

    /// Launches what nobody owns, and now and then takes something from its owner.
    async fn schedule(&self, rng: &mut StdRng) {
        let Some(snapshot) = self.snapshot().await else { return };
        let alive: Vec<_> =
            snapshot.captures.iter().filter(|capture| capture.state == CaptureState::Alive).collect();
        let mut targets = Vec::new();
        for row in &snapshot.changefeeds {
            let Some(capture) = alive.choose(rng) else { return };
            let (state, owner) = match row.schedule.state {
                ScheduleState::Removed if row.state.is_runnable() => {
                    (ScheduleState::Launched, Some(capture.id))
                }
                // A planner that is wrong: the store has to refuse it.
                ScheduleState::Launched if rng.random_bool(0.03) => {
                    (ScheduleState::Launched, Some(capture.id))
                }
                ScheduleState::Launched if rng.random_bool(0.1) => (ScheduleState::Removing, None),
                _ => continue,
            };
            let (changefeed, expected_version) = (row.schedule.changefeed, row.schedule.version);
            targets.push(ScheduleTarget { changefeed, expected_version, state, owner });
        }
        targets.truncate(4);
        let call = self.store.owner_set(self.term, &targets);
        self.write(call, |answers| answers.iter().flatten().map(|row| Fact::Wrote(Row::from(row))).collect())
            .await;
    }

    async fn lose_a_capture(&self, rng: &mut StdRng) {
        let beats = self.world.recorder.call(self.client, Call::Read, self.store.capture_beats(), nothing);
        let Some(beats) = done(beats.await) else { return };
        let Some(beat) = beats.choose(rng) else { return };
        let call = self.store.capture_seal(self.term, beat.id, beat.heartbeat_seq);
        self.write(call, |sealed| sealed.then_some(Fact::Sealed(beat.id)).into_iter().collect()).await;
    }

    async fn take(&self, rng: &mut StdRng) {
        let Some(snapshot) = self.snapshot().await else { return };
        let offline = snapshot.captures.iter().filter(|capture| capture.state == CaptureState::Offline);
        let offline: Vec<_> = offline.map(|capture| capture.id).collect();
        // Of somebody who is alive nothing is taken.
        let known = lock(&self.world.captures).choose(rng).copied();
        let capture = if rng.random_bool(0.1) { known } else { offline.choose(rng).copied() };
        let Some(capture) = capture else { return };
        let call = self.store.capture_release(self.term, capture, rng.random_range(1..6));
        let call = self.world.recorder.call(self.client, Call::Take(self.term, capture), call, nothing);
        if done(call.await) == Some(0) && rng.random_bool(0.5) {
            self.write(self.store.capture_delete(self.term, capture), nothing).await;
        }
    }

    async fn clean_up(&self) {
        let Some(snapshot) = self.snapshot().await else { return };
        let over = snapshot.changefeeds.iter().filter(|row| row.removed);
        let over: Vec<_> = over.map(|row| (row.schedule.changefeed, row.schedule.version)).collect();
        self.write(self.store.changefeed_cleanup(self.term, &over), nothing).await;
        lock(&self.world.feeds).retain(|feed| !over.iter().any(|(gone, _)| gone == feed));
    }

    async fn renew(&self) {
        let Some(mut channel) = done(self.store.watch_channel().await) else { return };
        self.write(channel.lease_renew(self.term), nothing).await;
    }

    async fn resign(&self) {
        self.write(self.store.election_resign(self.term), nothing).await;
    }
}

/// A launch that a capture believes to have.
struct Launch {
    term: OwnerTerm,
    ts: u64,
    stops: bool,
}

/// One life of a capture: until it is fenced, and a little longer.
struct Capture<'w> {
    world: &'w World,
    client: usize,
    store: Arc<dyn MetadataStore>,
    term: CaptureTerm,
    heartbeat: Option<Box<dyn HeartbeatChannel>>,
    watch: Option<Box<dyn WatchChannel>>,
    /// The last beat that was acknowledged, and the last that was sent.
    beats: (u64, u64),
    seq: u64,
    after: Revision,
    launches: BTreeMap<ChangefeedUuid, Launch>,
    /// How many more calls it makes that nobody wants; `None` = it is alive as far as it knows.
    undead: Option<u32>,
}

/// Registers, beats, watches, runs what it is told to, is sealed, goes on for a while, and comes back as another.
pub(super) async fn capture(world: Arc<World>, client: usize, store: Arc<dyn MetadataStore>) {
    let mut rng = world.rng(client);
    loop {
        let term = register(&world, &store).await;
        let mut life = Capture {
            world: &world,
            client,
            store: Arc::clone(&store),
            term,
            heartbeat: None,
            watch: None,
            beats: (0, 0),
            seq: 0,
            after: Revision(0),
            launches: BTreeMap::new(),
            undead: None,
        };
        while life.undead != Some(0) {
            if !world.goes_on(&mut rng).await {
                return;
            }
            life.step(&mut rng).await;
        }
    }
}

impl Capture<'_> {
    async fn step(&mut self, rng: &mut StdRng) {
        if let Some(left) = &mut self.undead {
            *left -= 1;
        }
        match rng.random_range(0..100) {
            0..20 => self.beat().await,
            20..50 => self.poll().await,
            50..75 => self.advance(rng).await,
            75..85 => self.report(rng).await,
            _ => self.release(rng).await,
        }
    }

    fn fenced<T>(&mut self, answer: &Result<T>) {
        if matches!(answer, Err(MetadataError::Fenced { .. })) && self.undead.is_none() {
            self.undead = Some(10);
        }
    }

    async fn beat(&mut self) {
        let mut channel = match self.heartbeat.take() {
            Some(channel) => channel,
            None => match done(self.store.heartbeat_channel().await) {
                Some(channel) => channel,
                None => return,
            },
        };
        self.beats.1 += 1;
        let call = channel.beat(self.term, self.beats.0, self.beats.1);
        let answer = self.world.recorder.call(self.client, Call::Beat(self.term), call, nothing).await;
        self.fenced(&answer);
        if done(answer).is_some() {
            self.beats.0 = self.beats.1;
            self.heartbeat = Some(channel);
        }
    }

    async fn poll(&mut self) {
        let mut channel = match self.watch.take() {
            Some(channel) => channel,
            None => match done(self.store.watch_channel().await) {
                Some(channel) => channel,
                None => return,
            },
        };
        let cursor = PollCursor::after(self.after);
        let call = channel.poll(self.term, &cursor);
        let facts = |answer: &PollAnswer| {
            let rows = answer.schedules.iter().map(|row| Fact::Saw(Row::from(row)));
            rows.chain([Fact::Revision(answer.revision), Fact::from(&answer.election)]).collect()
        };
        let call = self.world.recorder.call(self.client, Call::Poll(self.term, self.after), call, facts);
        let Some(answer) = done(call.await) else { return };
        self.watch = Some(channel);
        assert!(!answer.has_more(), "one page");
        self.after = answer.revision;
        if answer.own_state != Some(CaptureState::Alive) && self.undead.is_none() {
            self.undead = Some(10);
        }
        let mut news = Vec::new();
        for row in &answer.schedules {
            let Some(term) = row.term() else { continue };
            let stops = row.state == ScheduleState::Removing;
            match self.launches.get_mut(&row.changefeed) {
                Some(launch) if launch.term == term => launch.stops = stops,
                _ => news.push((term, stops)),
            }
        }
        for (term, stops) in news {
            self.start(term, stops).await;
        }
    }

    /// What it starts from is what the store says.
    async fn start(&mut self, term: OwnerTerm, stops: bool) {
        let which = [term.changefeed];
        let call = self.store.owner_launches(self.term, &which);
        let call = self.world.recorder.call(self.client, Call::Read, call, |launches| {
            let each = launches.iter();
            each.map(|row| Fact::Checkpoint(row.term.changefeed, row.progress.checkpoint_ts)).collect()
        });
        let found = done(call.await).unwrap_or_default();
        let found = found.into_iter().find(|launch| launch.term == term);
        let ts = found.map_or(0, |launch| launch.progress.checkpoint_ts.0);
        self.launches.insert(term.changefeed, Launch { term, ts, stops });
    }

    async fn advance(&mut self, rng: &mut StdRng) {
        let mut entries = Vec::new();
        let mut value = metadata_api::model::CaptureProgress::default();
        for (changefeed, launch) in self.launches.iter_mut().filter(|(_, launch)| launch.ts > 0) {
            launch.ts += rng.random_range(0..3_u64);
            let epoch = launch.term.epoch;
            entries.push((*changefeed, epoch, Ts(launch.ts)));
            value.0.insert(*changefeed, OwnedProgress::new(epoch, at(launch.ts)));
        }
        self.seq += 1;
        let call = self.store.capture_advance(self.term, self.seq, &value);
        let call = self.world.recorder.call(self.client, Call::Advance(self.term, entries), call, nothing);
        let answer = call.await;
        self.fenced(&answer);
        done(answer);
    }

    fn some_launch(&self, rng: &mut StdRng) -> Option<&Launch> {
        let launches: Vec<_> = self.launches.values().collect();
        launches.choose(rng).copied()
    }

    async fn report(&mut self, rng: &mut StdRng) {
        let Some(term) = self.some_launch(rng).map(|launch| launch.term) else { return };
        let state = if rng.random_bool(0.5) { FeedState::Normal } else { FeedState::Warning };
        let call = self.store.owner_transition(term, FeedEvent::Report(state), None);
        done(self.world.recorder.call(self.client, Call::AsOwner(term), call, nothing).await);
    }

    /// Mostly of what it was told to stop. What it was told is over it forgets, now and then only after a second word.
    async fn release(&mut self, rng: &mut StdRng) {
        let Some(launch) = self.some_launch(rng).filter(|launch| launch.stops || rng.random_bool(0.1)) else {
            return;
        };
        let term = launch.term;
        let task_position = (launch.ts > 0).then(|| at(launch.ts));
        let releases = [OwnerRelease { term, task_position, end: None }];
        let call = async { self.store.owner_release(&releases).await?.remove(0) };
        let answer = self.world.recorder.call(self.client, Call::Release(term), call, nothing).await;
        let over = matches!(answer, Ok(()) | Err(MetadataError::Fenced { .. }));
        done(answer);
        if over && rng.random_bool(0.8) {
            self.launches.remove(&term.changefeed);
        }
    }
}

/// Creates, pauses, resumes, removes, drains, deposes.
pub(super) async fn operator(world: Arc<World>, client: usize, store: Arc<dyn MetadataStore>) {
    let mut rng = world.rng(client);
    while world.goes_on(&mut rng).await {
        if lock(&world.feeds).len() < FEEDS {
            create(&world, client, &*store).await;
            continue;
        }
        let Some(feed) = world.some_feed(&mut rng) else { continue };
        let capture = lock(&world.captures).choose(&mut rng).copied();
        let call = async {
            match (rng.random_range(0..1_000), capture) {
                (0..3, Some(capture)) => store.capture_drain(capture).await,
                (0..8, _) => store.controller_depose().await,
                (8..30, _) => store.changefeed_remove(Authority::Operator, feed).await.map(drop),
                (30..100, _) => store.changefeed_pause(feed).await.map(drop),
                (100..300, _) => store.changefeed_resume(feed, None).await.map(drop),
                _ => Ok(()),
            }
        };
        done(world.recorder.call(client, Call::Operate, call, nothing).await);
    }
}

/// Creates a changefeed, however often it takes.
async fn create(world: &World, client: usize, store: &dyn MetadataStore) {
    let new = NewChangefeed {
        name: ChangefeedName::new("", &format!("h-{}", Uuid::new_v4().simple())).expect("a name"),
        upstream_id: None,
        upstream_uri: uri("mysql://root@127.0.0.1:3306/"),
        sink_uri: uri("blackhole://"),
        start_ts: Ts(100),
        target_ts: Ts::ZERO,
        config: ReplicaConfig::default(),
        creator_version: "v0.1.0".to_owned(),
        client_request_id: Uuid::new_v4(),
        task_position: ChangefeedProgress::at(Ts(100)),
    };
    loop {
        let call = store.changefeed_create(Authority::Operator, &new);
        let answer = world.recorder.call(client, Call::Operate, call, nothing).await;
        match answer {
            Ok(info) => return lock(&world.feeds).push(info.uuid),
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
}

/// Reads checkpoints and the election.
pub(super) async fn reader(world: Arc<World>, client: usize, store: Arc<dyn MetadataStore>) {
    let mut rng = world.rng(client);
    while world.goes_on(&mut rng).await {
        if rng.random_bool(0.3) {
            let call = world.recorder.call(client, Call::Read, store.election(), |row| vec![row.into()]);
            done(call.await);
        }
        let one = world.some_feed(&mut rng).map(|feed| [feed]);
        let which = one.as_ref().map(<[_; 1]>::as_slice).filter(|_| rng.random_bool(0.5));
        let call = world.recorder.call(client, Call::Read, store.changefeed_progresses(which), |all| {
            all.iter().map(|(changefeed, now)| Fact::Checkpoint(*changefeed, now.checkpoint_ts)).collect()
        });
        done(call.await);
    }
}
