//! Faults in random order, each with its end.

use std::time::Duration;

use chrono::TimeDelta;
use metadata_api::decision::lease::TimePolicy;
use metadata_api::model::{CaptureState, ChangefeedUpdate, ChangefeedUuid, FeedState, SecretUri, Version};
use metadata_api::observation::ChangefeedAdmin as _;
use metadata_api::store::{AdminStore as _, QueryStore as _};
use metadata_memory::{Backup, Conditions, Lane, Path};

use crate::world::{Behaviour, Dice, Incident, World, healthy};

/// How long after a restored backup a launch may still flush that the backup does not know, in milliseconds: a deadline, and the
/// grace.
const FENCED_WITHIN: u64 = 12_500;

/// Whether every process that the backup names will know that the database was set back: an answer that it had since shows it.
///
/// Who had none cannot know, and goes on with what the backup says it owns, at once; nothing can be promised of that.
fn all_will_know(world: &World, backup_at: Duration, backup: &Backup) -> bool {
    let deadline = TimePolicy::default().deadline;
    let named = backup.tables().captures().filter(|row| row.state != CaptureState::Offline);
    named.filter_map(|row| world.process_of(row.id)).all(|index| {
        let process = &world.processes[index];
        let left = process.capture.status().deadline_left;
        // A suspended process's clock stands still.
        !process.exists() || process.runs() && !left.is_zero() && world.now() + left > backup_at + deadline
    })
}

/// What ends a fault.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Heal(usize),
    Resume(usize),
    ResumeDatabase,
    TrustTheDatabase,
    Restart,
    NoMoreLostAnswers(usize),
    Behave(ChangefeedUuid),
    ResumeFeed(ChangefeedUuid),
}

/// The nemesis.
pub struct Nemesis {
    dice: Dice,
    feeds: Vec<ChangefeedUuid>,
    removed: Vec<ChangefeedUuid>,
    undo: Vec<(Duration, Undo)>,
    /// The longest pause between two faults, in milliseconds.
    longest_pause: u64,
    /// The longest pause between two flushes of a changefeed that is well, in milliseconds.
    pace: u64,
    steps: u64,
    /// When it was taken, and what.
    backup: Option<(Duration, Backup)>,
    /// Backups are restored, and then the database's clock is not set back: numbers are not used twice.
    restores: bool,
}

impl Nemesis {
    pub fn new(world: &World, feeds: Vec<ChangefeedUuid>, captures: usize) -> Self {
        let dice = world.dice.fork();
        let nemesis = Self {
            restores: dice.one_in(2),
            longest_pause: if captures > 20 { 1_500 } else { 4_000 },
            pace: if feeds.len() > 300 { 8_000 } else { 1_500 },
            dice,
            feeds,
            removed: Vec::new(),
            undo: Vec::new(),
            steps: 0,
            backup: None,
        };
        for feed in &nemesis.feeds {
            nemesis.calm(world, *feed);
        }
        nemesis
    }

    /// Every changefeed that was not removed.
    pub fn feeds(&self) -> &[ChangefeedUuid] {
        &self.feeds
    }

    /// How many faults there were.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Every changefeed that was.
    pub fn removed(&self) -> &[ChangefeedUuid] {
        &self.removed
    }

    /// Lets some time go by, ends what has had its time, and begins something new.
    pub async fn step(&mut self, world: &mut World) {
        tokio::time::sleep(self.dice.ms(20, self.longest_pause)).await;
        self.steps += 1;
        self.supervise(world);
        let now = world.now();
        let (due, later): (Vec<_>, Vec<_>) = self.undo.drain(..).partition(|(at, _)| *at <= now);
        self.undo = later;
        for (_, undo) in due {
            self.undo(world, undo).await;
        }
        match self.dice.below(100) {
            0..40 => self.trouble_a_process(world),
            40..52 => self.trouble_the_database(world),
            52..75 => self.trouble_a_changefeed(world),
            75..97 => self.operate(world).await,
            _ => {}
        }
    }

    /// A process that ended by itself is started again, as a supervisor does.
    fn supervise(&mut self, world: &mut World) {
        for index in 0..world.processes.len() {
            if world.processes[index].ended().is_some() && !world.processes[index].is_buried() {
                world.processes[index].bury();
                self.later(world, 500, 10_000, Undo::Restart);
            }
        }
    }

    fn later(&mut self, world: &World, least: u64, most: u64, undo: Undo) {
        self.undo.push((world.now() + self.dice.ms(least, most), undo));
    }

    async fn undo(&mut self, world: &mut World, undo: Undo) {
        match undo {
            Undo::Heal(index) => world.processes[index].heal(),
            Undo::Resume(index) => world.processes[index].resume(),
            Undo::ResumeDatabase => world.db.resume(),
            Undo::TrustTheDatabase => world.outside.database_restored(false),
            Undo::Restart => {
                world.start();
            }
            Undo::NoMoreLostAnswers(index) => world.processes[index].faults.chance(None),
            Undo::Behave(feed) => self.calm(world, feed),
            Undo::ResumeFeed(feed) => {
                if let Some(name) = self.name(world, feed).await {
                    let _ = world.admin.resume(&name, None).await;
                }
            }
        }
    }

    fn calm(&self, world: &World, feed: ChangefeedUuid) {
        let pace = self.dice.ms(400, self.pace);
        world.outside.behave(feed, Behaviour { pace, latency: self.dice.ms(1, 80), ..Behaviour::default() });
    }

    async fn name(&self, world: &World, feed: ChangefeedUuid) -> Option<metadata_api::model::ChangefeedName> {
        let infos = world.store.changefeed_infos(Some(&[feed])).await.ok()?;
        infos.first().map(|info| info.name.clone())
    }

    fn trouble_a_process(&mut self, world: &mut World) {
        let running: Vec<usize> =
            world.processes.iter().filter(|process| process.runs()).map(|process| process.index).collect();
        if running.is_empty() {
            return;
        }
        let index = *self.dice.pick(&running);
        let lanes = if self.dice.one_in(2) { Lane::ALL.to_vec() } else { vec![*self.dice.pick(&Lane::ALL)] };
        let set = |world: &World, conditions: Conditions| {
            for lane in &lanes {
                world.processes[index].link.set(*lane, conditions);
            }
        };
        match self.dice.below(11) {
            0 | 1 => {
                set(world, Conditions { path: Path::Hangs, ..healthy() });
                self.later(world, 500, 40_000, Undo::Heal(index));
            }
            2 => {
                set(world, Conditions { path: Path::Refuses, ..healthy() });
                self.later(world, 500, 30_000, Undo::Heal(index));
            }
            3 => {
                let (there, back) = (self.dice.ms(0, 1_800), self.dice.ms(0, 1_800));
                let late = self.dice.one_in(2);
                set(world, Conditions { there, back, late, ..healthy() });
                self.later(world, 500, 30_000, Undo::Heal(index));
            }
            4 => {
                set(world, Conditions { answers_lost: true, late: self.dice.one_in(2), ..healthy() });
                self.later(world, 500, 20_000, Undo::Heal(index));
            }
            5 => {
                // What is sent now arrives when everybody has forgotten it.
                set(world, Conditions { there: self.dice.ms(2_000, 30_000), late: true, ..healthy() });
                self.later(world, 500, 5_000, Undo::Heal(index));
            }
            6 | 7 => {
                world.processes[index].suspend();
                self.later(world, 500, 60_000, Undo::Resume(index));
            }
            8 => {
                world.processes[index].kill();
                self.later(world, 500, 20_000, Undo::Restart);
            }
            9 => {
                // The supervisor starts another when it has ended.
                world.processes[index].stop.cancel();
            }
            _ => {
                world.processes[index].faults.chance(Some((self.dice.below(8) + 2, self.dice.fork())));
                self.later(world, 5_000, 60_000, Undo::NoMoreLostAnswers(index));
            }
        }
    }

    fn trouble_the_database(&mut self, world: &mut World) {
        match self.dice.below(8) {
            6 => self.backup = Some((world.now(), world.db.backup())),
            7 => self.restore(world),
            0 | 1 => {
                let hours = TimeDelta::hours(i64::try_from(self.dice.below(3)).unwrap_or(0) - 1);
                match self.dice.index(world.processes.len() * 2) {
                    index if index < world.processes.len() => world.processes[index].clock.set_wall(hours),
                    _ if self.restores => {}
                    _ => world.db_clock.set_wall(hours),
                }
            }
            2 => {
                if !world.db.is_paused() {
                    world.db.pause();
                    self.later(world, 300, 25_000, Undo::ResumeDatabase);
                }
            }
            _ => {
                if !world.db.is_paused() {
                    world.db.pause();
                    self.later(world, 100, 3_000, Undo::ResumeDatabase);
                }
            }
        }
    }

    /// Somebody sets the database back to a backup, while everybody is at work. What was created since is gone, and what was
    /// removed since is back. Until each old launch must have fenced itself, the database does not name who writes.
    fn restore(&mut self, world: &mut World) {
        let is_trusted = !self.undo.iter().any(|(_, undo)| matches!(undo, Undo::TrustTheDatabase));
        let may = self.restores && is_trusted && !world.db.is_paused();
        let Some((_, backup)) = self.backup.take_if(|(at, backup)| may && all_will_know(world, *at, backup))
        else {
            return;
        };
        world.outside.database_restored(true);
        world.db.restore(&backup);
        let (there, removed) = world.db.read(|tables| {
            let is_removed = |feed| tables.status(feed).is_some_and(|row| row.state == FeedState::Removed);
            let (removed, there): (Vec<_>, Vec<_>) =
                tables.schedules().map(|row| row.changefeed).partition(|feed| is_removed(*feed));
            (there, removed)
        });
        (self.feeds, self.removed) = (there, removed);
        self.later(world, FENCED_WITHIN, FENCED_WITHIN, Undo::TrustTheDatabase);
    }

    fn trouble_a_changefeed(&mut self, world: &World) {
        let feed = *self.dice.pick(&self.feeds);
        match self.dice.below(8) {
            0 | 1 => world.outside.incident(feed, Incident::FailsRetryably),
            2 => world.outside.incident(feed, Incident::Panics),
            3 => world.outside.incident(feed, Incident::EndsByItself),
            4 => {
                world.outside.incident(feed, Incident::FailsFatally);
                self.later(world, 5_000, 30_000, Undo::ResumeFeed(feed));
            }
            _ => {
                let behaviour = Behaviour {
                    pace: self.dice.ms(1, 2_000),
                    latency: self.dice.ms(1, 3_000),
                    timeout: self.dice.ms(100, 3_000),
                    ignores_stop: false,
                    stops_in: self.dice.ms(0, 3_500),
                };
                world.outside.behave(feed, behaviour);
                self.later(world, 5_000, 40_000, Undo::Behave(feed));
            }
        }
    }

    /// What operators do. They are refused, or told that the database is away; they try something else then.
    async fn operate(&mut self, world: &mut World) {
        let feed = *self.dice.pick(&self.feeds);
        match self.dice.below(12) {
            0..3 => {
                if let Some(name) = self.name(world, feed).await {
                    let _ = world.admin.pause(&name).await;
                    self.later(world, 100, 20_000, Undo::ResumeFeed(feed));
                }
            }
            3..6 => self.undo(world, Undo::ResumeFeed(feed)).await,
            6 => {
                if let Some(name) = self.name(world, feed).await
                    && world.admin.remove(&name).await.is_ok()
                {
                    self.feeds.retain(|other| *other != feed);
                    self.removed.push(feed);
                    if !world.db.is_paused() {
                        let new = world.create_one(|_| {}).await;
                        self.calm(world, new);
                        self.feeds.push(new);
                    }
                }
            }
            7 => {
                if let Some(name) = self.name(world, feed).await {
                    let update = ChangefeedUpdate {
                        sink_uri: SecretUri::parse(
                            "sink_uri",
                            &format!("blackhole://{}", self.dice.below(9)),
                        )
                        .ok(),
                        ..ChangefeedUpdate::default()
                    };
                    let _ = world.admin.update(&name, Version(self.dice.below(4) + 1), &update).await;
                }
            }
            8 | 9 => drop(world.store.controller_depose().await),
            _ => {
                let alive: Vec<_> = world
                    .live_captures()
                    .into_iter()
                    .filter(|row| row.state == CaptureState::Alive)
                    .collect();
                if alive.len() > 2 {
                    let _ = world.store.capture_drain(self.dice.pick(&alive).id).await;
                }
            }
        }
    }

    /// Everything is as good as new, as far as an operator can make it.
    pub async fn make_peace(&mut self, world: &mut World, captures: usize) {
        let restored: Vec<_> =
            self.undo.drain(..).filter(|(_, undo)| matches!(undo, Undo::TrustTheDatabase)).collect();
        world.db.resume();
        if let Some((at, _)) = restored.first() {
            tokio::time::sleep(at.saturating_sub(world.now())).await;
            world.outside.database_restored(false);
        }
        self.supervise(world);
        self.undo.clear();
        for process in &world.processes {
            if process.exists() {
                if process.is_suspended() {
                    process.resume();
                }
                process.heal();
                process.faults.chance(None);
            }
        }
        world.outside.no_more_incidents();
        for feed in self.feeds.clone() {
            self.calm(world, feed);
        }
        // Whoever drains is replaced.
        for row in world.live_captures() {
            if row.state == CaptureState::Draining
                && let Some(index) = world.process_of(row.id)
            {
                world.processes[index].stop.cancel();
            }
        }
        let running =
            world.processes.iter().filter(|process| process.runs() && !process.stop.is_cancelled()).count();
        for _ in running..captures {
            world.start();
        }
        self.resume_all(world).await;
    }

    /// Resumes whatever was paused or has failed.
    pub async fn resume_all(&mut self, world: &mut World) {
        for feed in self.feeds.clone() {
            let state = world.state(feed).unwrap_or_default();
            if !state.is_runnable() && state != FeedState::Finished {
                self.undo(world, Undo::ResumeFeed(feed)).await;
            }
        }
    }
}
