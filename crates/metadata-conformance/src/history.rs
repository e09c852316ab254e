//! Random histories: operations by tokens that hold and tokens that are over, against a small model of the rows.
//!
//! The model says of each operation whether it must be applied or for which reasons it may be refused, and what the
//! schedule and state rows are after it. A failure names the seed; `CDC_CONFORMANCE_SEED` runs that one alone.

use std::collections::BTreeMap;

use metadata_api::MetadataError;
use metadata_api::decision::feed_state::{FeedEvent, feed_transition};
use metadata_api::model::{
    CaptureState, CaptureTerm, ChangefeedUuid, ControllerTerm, FeedState, OwnerEpoch, OwnerTerm,
    ScheduleState, ScheduleTarget, Version,
};
use metadata_api::store::{Authority, OwnerEnd, OwnerRelease};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::harness::{Cluster, Refusal, at, progress_of, running_error};

const STEPS: usize = 150;

/// One changefeed of the model.
#[derive(Clone, Debug)]
struct Feed {
    uuid: ChangefeedUuid,
    state: FeedState,
    schedule: ScheduleState,
    owner: Option<CaptureTerm>,
    epoch: OwnerEpoch,
    task_position: u64,
    /// What the store's rows had when last looked at.
    versions: (Version, Version),
}

/// One capture of the model: its state, and the entries of its progress.
#[derive(Clone, Debug)]
struct Capture {
    term: CaptureTerm,
    state: CaptureState,
    seq: u64,
    entries: BTreeMap<ChangefeedUuid, (OwnerEpoch, u64)>,
}

/// The model, and every token that was ever given out.
struct Model<'c> {
    c: &'c Cluster,
    rng: StdRng,
    feeds: BTreeMap<ChangefeedUuid, Feed>,
    captures: Vec<Capture>,
    controller: ControllerTerm,
    controllers: Vec<ControllerTerm>,
    owners: Vec<OwnerTerm>,
    log: Vec<String>,
}

/// What an operation must come to.
type Reasons = Vec<Refusal>;

impl Model<'_> {
    fn feed(&mut self) -> Feed {
        let feeds: Vec<_> = self.feeds.values().collect();
        (*feeds.choose(&mut self.rng).expect("a changefeed")).clone()
    }

    fn capture(&mut self) -> usize {
        self.rng.random_range(0..self.captures.len())
    }

    fn controller(&mut self) -> ControllerTerm {
        if self.rng.random_bool(0.8) {
            return self.controller;
        }
        *self.controllers.choose(&mut self.rng).expect("a controller")
    }

    /// A token of an owner: mostly one that holds.
    fn owner(&mut self) -> Option<OwnerTerm> {
        if self.rng.random_bool(0.8) {
            let current: Vec<_> = self.feeds.values().filter_map(Feed::term).collect();
            return current.choose(&mut self.rng).copied();
        }
        self.owners.choose(&mut self.rng).copied()
    }

    fn holds(&self, owner: OwnerTerm) -> bool {
        self.feeds.get(&owner.changefeed).is_some_and(|feed| feed.term() == Some(owner))
    }

    fn fenced(&self, controller: ControllerTerm) -> Reasons {
        if controller == self.controller { vec![] } else { vec![Refusal::Fenced] }
    }

    /// How far the owner's entry is, if it counts.
    fn reported(&self, feed: &Feed) -> Option<u64> {
        let owner = feed.owner?;
        let capture = self.captures.iter().find(|capture| capture.term == owner)?;
        capture.entries.get(&feed.uuid).filter(|(epoch, _)| *epoch == feed.epoch).map(|(_, ts)| *ts)
    }

    fn progress(&self, feed: &Feed) -> u64 {
        feed.task_position.max(self.reported(feed).unwrap_or(0))
    }

    fn check<T: std::fmt::Debug>(
        &mut self,
        what: &str,
        reasons: &[Refusal],
        outcome: &Result<T, MetadataError>,
    ) -> bool {
        self.log.push(format!("{what} -> {outcome:.200?}"));
        let right = match outcome {
            Ok(_) => reasons.is_empty(),
            Err(error) => reasons.iter().any(|reason| reason.is(error)),
        };
        assert!(right, "{what}: want {reasons:?} (empty: success), got {outcome:?}\n{}", self.tail());
        outcome.is_ok()
    }

    fn tail(&self) -> String {
        self.log[self.log.len().saturating_sub(15)..].join("\n")
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100_u32) {
            0..22 => self.set_owner().await,
            22..40 => self.advance().await,
            40..55 => self.transition().await,
            55..67 => self.release().await,
            67..74 => self.pause().await,
            74..82 => self.resume().await,
            82..85 => self.remove().await,
            85..89 => self.create().await,
            89..91 => self.drain().await,
            91..95 => self.lose_capture().await,
            95..97 => self.cleanup().await,
            _ => self.elect().await,
        }
    }

    async fn set_owner(&mut self) {
        let (controller, feed, n) = (self.controller(), self.feed(), self.capture());
        let capture = self.captures[n].clone();
        let launch = self.rng.random_bool(0.7);
        let stale = self.rng.random_bool(0.1);
        let target = ScheduleTarget {
            changefeed: feed.uuid,
            expected_version: Version(feed.versions.0.0 + u64::from(stale)),
            state: if launch { ScheduleState::Launched } else { ScheduleState::Removing },
            owner: launch.then_some(capture.term.capture),
        };
        let what = format!("owner_set {controller} {target:?}");
        let outcome = self.c.store.owner_set(controller, &[target]).await;
        let fenced = self.fenced(controller);
        if !self.check(&what, &fenced, &outcome) {
            return;
        }
        let mut reasons = Reasons::new();
        if stale {
            reasons.push(Refusal::Conflict);
        }
        if launch && (capture.state != CaptureState::Alive || !feed.state.is_runnable()) {
            reasons.push(Refusal::Conflict);
        }
        if feed.schedule != if launch { ScheduleState::Removed } else { ScheduleState::Launched } {
            reasons.push(Refusal::InvalidTransition);
        }
        let outcome = outcome.unwrap().remove(0);
        if self.check(&what, &reasons, &outcome) {
            let row = outcome.unwrap();
            let feed = self.feeds.get_mut(&feed.uuid).expect("it exists");
            feed.schedule = target.state;
            if launch {
                assert!(row.epoch > feed.epoch, "epochs grow");
                (feed.owner, feed.epoch) = (Some(capture.term), row.epoch);
                self.owners.push(row.term().expect("an owner"));
            }
        }
    }

    async fn advance(&mut self) {
        let n = self.capture();
        let late = self.rng.random_bool(0.1);
        let mut entries = self.captures[n].entries.clone();
        for _ in 0..3 {
            let feed = self.feed();
            let epoch = match self.rng.random_range(0..4) {
                0 => OwnerEpoch(feed.epoch.0.saturating_sub(1)),
                _ => feed.epoch,
            };
            entries.insert(feed.uuid, (epoch, self.progress(&feed) + self.rng.random_range(0..20) - 5));
        }
        let capture = self.captures[n].clone();
        let seq = if late { capture.seq } else { capture.seq + self.rng.random_range(1..4) };
        let value: Vec<_> = entries.iter().map(|(uuid, (epoch, ts))| (*uuid, *epoch, at(*ts))).collect();
        let mut reasons = Reasons::new();
        if capture.state == CaptureState::Offline {
            reasons.push(Refusal::Fenced);
        } else if late {
            reasons.push(Refusal::Conflict);
        }
        let outcome = self.c.store.capture_advance(capture.term, seq, &progress_of(&value)).await;
        if self.check(&format!("advance {} {seq} {entries:?}", capture.term.capture), &reasons, &outcome) {
            (self.captures[n].seq, self.captures[n].entries) = (seq, entries);
        }
    }

    async fn transition(&mut self) {
        let Some(owner) = self.owner() else { return };
        let reports = FeedState::ALL.into_iter().map(FeedEvent::Report);
        let events: Vec<_> =
            [FeedEvent::Pause, FeedEvent::Resume].into_iter().chain(reports.take(7)).collect();
        let event = *events.choose(&mut self.rng).expect("an event");
        let holds = self.holds(owner);
        let next = self.feeds.get(&owner.changefeed).map(|feed| feed_transition("c", feed.state, event));
        let reasons = match &next {
            _ if !holds => vec![Refusal::Fenced],
            Some(Err(_)) => vec![Refusal::InvalidTransition],
            _ => vec![],
        };
        let outcome = self.c.store.owner_transition(owner, event, None).await;
        if self.check(&format!("transition {owner} {event:?}"), &reasons, &outcome) {
            let feed = self.feeds.get_mut(&owner.changefeed).expect("it exists");
            feed.state = next.expect("it exists").expect("an edge");
            let ends = event == FeedEvent::Pause
                || matches!(event, FeedEvent::Report(FeedState::Failed | FeedState::Finished));
            if ends {
                feed.schedule = ScheduleState::Removing;
            }
        }
    }

    async fn release(&mut self) {
        let Some(owner) = self.owner() else { return };
        let given = self.rng.random_bool(0.5).then(|| {
            let now = self.feeds.get(&owner.changefeed).map_or(100, |feed| feed.task_position);
            now + self.rng.random_range(0..30) - 10
        });
        let end = match self.rng.random_range(0..6) {
            0 => Some(OwnerEnd::Finished),
            1 => Some(OwnerEnd::Failed(running_error("CDC:ErrHistory"))),
            _ => None,
        };
        let reasons = if self.holds(owner) { vec![] } else { vec![Refusal::Fenced] };
        let what = format!("release {owner} {given:?} {:?}", end.as_ref().map(OwnerEnd::state));
        let state = end.as_ref().map(OwnerEnd::state);
        let release = OwnerRelease { term: owner, task_position: given.map(at), end };
        let outcome = self.c.store.owner_release(&[release]).await.unwrap().remove(0);
        if self.check(&what, &reasons, &outcome) {
            let mut feed = self.feeds[&owner.changefeed].clone();
            feed.task_position = self.progress(&feed).max(given.unwrap_or(0));
            (feed.schedule, feed.owner) = (ScheduleState::Removed, None);
            if let Some(state) = state.filter(|_| feed.state.is_runnable()) {
                feed.state = state;
            }
            self.feeds.insert(feed.uuid, feed);
        }
    }

    async fn pause(&mut self) {
        let feed = self.feed();
        let next = feed_transition("c", feed.state, FeedEvent::Pause);
        let reasons = if next.is_ok() { vec![] } else { vec![Refusal::InvalidTransition] };
        let outcome = self.c.store.changefeed_pause(feed.uuid).await;
        if self.check(&format!("pause {}", feed.uuid), &reasons, &outcome) {
            let feed = self.feeds.get_mut(&feed.uuid).expect("it exists");
            feed.stop(FeedState::Stopped);
        }
    }

    async fn resume(&mut self) {
        let feed = self.feed();
        let overwrite = self.rng.random_bool(0.3).then(|| self.rng.random_range(100..200_u64));
        let waits = matches!(feed.state, FeedState::Stopped | FeedState::Failed | FeedState::Finished);
        let allowed = match overwrite {
            Some(_) => waits && feed.schedule == ScheduleState::Removed,
            None => feed.state != FeedState::Removed,
        };
        let reasons = if allowed { vec![] } else { vec![Refusal::InvalidTransition] };
        let position = overwrite.map(at);
        let outcome = self.c.store.changefeed_resume(feed.uuid, position.as_ref()).await;
        if self.check(&format!("resume {} {overwrite:?}", feed.uuid), &reasons, &outcome) {
            let feed = self.feeds.get_mut(&feed.uuid).expect("it exists");
            if waits {
                feed.state = FeedState::Normal;
            }
            feed.task_position = overwrite.unwrap_or(feed.task_position);
        }
    }

    async fn remove(&mut self) {
        let feed = self.feed();
        let controller = self.controller();
        let operator = self.rng.random_bool(0.5);
        let (authority, reasons) = if operator {
            (Authority::Operator, vec![])
        } else {
            (Authority::Controller(controller), self.fenced(controller))
        };
        let outcome = self.c.store.changefeed_remove(authority, feed.uuid).await;
        if self.check(&format!("remove {} {authority:?}", feed.uuid), &reasons, &outcome) {
            let feed = self.feeds.get_mut(&feed.uuid).expect("it exists");
            feed.stop(FeedState::Removed);
        }
    }

    async fn create(&mut self) {
        let info = self.c.create(&format!("history-{}", uuid::Uuid::new_v4().simple())).await;
        self.log.push(format!("create {}", info.uuid));
        self.feeds.insert(info.uuid, Feed::new(info.uuid));
    }

    async fn drain(&mut self) {
        let n = self.capture();
        let offline = self.captures[n].state == CaptureState::Offline;
        let reasons = if offline { vec![Refusal::InvalidTransition] } else { vec![] };
        let outcome = self.c.store.capture_drain(self.captures[n].term.capture).await;
        if self.check(&format!("drain {}", self.captures[n].term.capture), &reasons, &outcome) {
            self.captures[n].state = CaptureState::Draining;
            let term = self.c.capture().await;
            self.captures.push(Capture::new(term));
        }
    }

    async fn lose_capture(&mut self) {
        let (controller, n) = (self.controller(), self.capture());
        let capture = self.captures[n].term;
        let outcome = self.c.store.capture_seal(controller, capture.capture, 0).await;
        let fenced = self.fenced(controller);
        if !self.check(&format!("seal {} {controller}", capture.capture), &fenced, &outcome) {
            return;
        }
        assert!(outcome.unwrap(), "nobody beats");
        self.captures[n].state = CaptureState::Offline;
        let outcome = self.c.store.capture_release(controller, capture.capture, 100).await;
        self.check(&format!("take {}", capture.capture), &[], &outcome);
        let taken: Vec<_> = self.feeds.values().filter(|feed| feed.owner == Some(capture)).cloned().collect();
        assert_eq!(outcome.unwrap(), taken.len(), "{}", self.tail());
        for mut feed in taken {
            feed.task_position = self.progress(&feed);
            (feed.schedule, feed.owner) = (ScheduleState::Removed, None);
            self.feeds.insert(feed.uuid, feed);
        }
        let term = self.c.capture().await;
        self.captures.push(Capture::new(term));
    }

    async fn cleanup(&mut self) {
        let targets: Vec<_> = self.feeds.values().map(|feed| (feed.uuid, feed.versions.0)).collect();
        let controller = self.controller();
        let outcome = self.c.store.changefeed_cleanup(controller, &targets).await;
        let fenced = self.fenced(controller);
        if !self.check(&format!("cleanup {controller}"), &fenced, &outcome) {
            return;
        }
        let before = self.feeds.len();
        self.feeds
            .retain(|_, feed| feed.state != FeedState::Removed || feed.schedule != ScheduleState::Removed);
        assert_eq!(outcome.unwrap(), (before - self.feeds.len()) as u64, "{}", self.tail());
        while self.feeds.len() < 4 {
            self.create().await;
        }
    }

    async fn elect(&mut self) {
        self.controller = self.c.controller().await;
        self.log.push(format!("elect {}", self.controller));
        self.controllers.push(self.controller);
        self.captures.push(Capture::new(CaptureTerm { capture: self.controller.capture }));
    }

    /// Every row is what the model says; what did not change was not written.
    async fn compare(&mut self) {
        let snapshot = self.c.store.schedule_snapshot().await.unwrap();
        let progresses = self.c.store.changefeed_progresses(None).await.unwrap();
        let statuses = self.c.store.changefeed_statuses(None).await.unwrap();
        assert_eq!(snapshot.changefeeds.len(), self.feeds.len(), "{}", self.tail());
        let mut seen = self.feeds.clone();
        for (row, status) in snapshot.changefeeds.iter().zip(statuses) {
            let schedule = &row.schedule;
            let feed = &self.feeds[&schedule.changefeed];
            let got = (row.state, schedule.state, schedule.owner, schedule.epoch);
            let owner = feed.owner.map(|term| term.capture);
            assert_eq!(got, (feed.state, feed.schedule, owner, feed.epoch), "{}\n{}", feed.uuid, self.tail());
            assert_eq!(status.state, feed.state);
            assert_eq!(row.removed, feed.state == FeedState::Removed);
            assert_eq!(schedule.task_position, at(feed.task_position), "{}\n{}", feed.uuid, self.tail());
            assert_eq!(progresses[&feed.uuid], at(self.progress(feed)), "{}\n{}", feed.uuid, self.tail());
            let versions = (schedule.version, status.version);
            assert!(versions.0 >= feed.versions.0 && versions.1 >= feed.versions.1);
            seen.get_mut(&feed.uuid).expect("it exists").versions = versions;
        }
        self.feeds = seen;
    }
}

impl Feed {
    fn new(uuid: ChangefeedUuid) -> Self {
        Self {
            uuid,
            state: FeedState::Uninitialized,
            schedule: ScheduleState::Removed,
            owner: None,
            epoch: OwnerEpoch(0),
            task_position: 100,
            versions: (Version(1), Version(1)),
        }
    }

    fn term(&self) -> Option<OwnerTerm> {
        let owner = self.owner?;
        Some(OwnerTerm { changefeed: self.uuid, capture: owner.capture, epoch: self.epoch })
    }

    fn stop(&mut self, state: FeedState) {
        self.state = state;
        if self.schedule == ScheduleState::Launched {
            self.schedule = ScheduleState::Removing;
        }
    }
}

impl Capture {
    fn new(term: CaptureTerm) -> Self {
        Self { term, state: CaptureState::Alive, seq: 0, entries: BTreeMap::new() }
    }
}

/// Several random histories do what the model says.
pub async fn random_histories_do_what_the_model_says(c: &Cluster) {
    let seeds = match std::env::var("CDC_CONFORMANCE_SEED") {
        Ok(seed) => vec![seed.parse().expect("CDC_CONFORMANCE_SEED is a number")],
        Err(_) => vec![1, 2, 3, rand::rng().random()],
    };
    for seed in seeds {
        println!("seed {seed}");
        for feed in c.store.changefeed_infos(None).await.unwrap() {
            c.store.changefeed_remove(Authority::Operator, feed.uuid).await.unwrap();
        }
        let controller = c.controller().await;
        clear(c, controller).await;
        let mut model = Model {
            c,
            rng: StdRng::seed_from_u64(seed),
            feeds: BTreeMap::new(),
            captures: Vec::new(),
            controller,
            controllers: vec![controller],
            owners: Vec::new(),
            log: vec![format!("seed {seed}")],
        };
        for _ in 0..3 {
            model.captures.push(Capture::new(c.capture().await));
        }
        for _ in 0..6 {
            model.create().await;
        }
        for _ in 0..STEPS {
            model.step().await;
            model.compare().await;
        }
    }
}

/// Ends and cleans up whatever an earlier history left.
async fn clear(c: &Cluster, controller: ControllerTerm) {
    let mut targets = Vec::new();
    for row in c.store.schedule_snapshot().await.unwrap().changefeeds {
        if let Some(term) = row.schedule.term() {
            c.release(term).await;
        }
        targets.push((row.schedule.changefeed, c.schedule(row.schedule.changefeed).await.version));
    }
    let count = c.store.changefeed_cleanup(controller, &targets).await.unwrap();
    assert_eq!(count, targets.len() as u64);
}
