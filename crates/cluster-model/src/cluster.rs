//! What can happen next.

use std::collections::BTreeMap;
use std::time::Duration;

use metadata_api::Result;
use metadata_api::model::{
    BootTime, CaptureState, ChangefeedName, ChangefeedProgress, ChangefeedUuid, NewChangefeed, OwnerTerm,
    ReplicaConfig, ScheduleState, SecretUri, Ts,
};
use metadata_api::store::{AdminStore as _, Authority};
use stateright::{Model, Property};
use uuid::Uuid;

use crate::database::Database;
use crate::decisions::{Decisions, TICK};
use crate::faults::Fault;
use crate::state::{Capture, Life, Path, Process, Sink, State, Violation};

/// In which order those that run do what is due in a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Any.
    Any,
    /// One process after the other; only faults come between.
    Fixed,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Production's, or a mutant's.
    pub decisions: Decisions,
    /// How many processes.
    pub processes: usize,
    /// How many changefeeds.
    pub changefeeds: usize,
    /// In which order.
    pub order: Order,
    /// How many faults.
    pub faults: u8,
    /// Which.
    pub kinds: &'static [Fault],
    /// Ticks before anything is left to chance: the cluster has settled, or what the first states want has happened.
    pub warm: u8,
    /// What befalls it meanwhile: in which tick, and what.
    pub opening: &'static [(u8, Step)],
    /// How far changefeeds go.
    pub cap: u64,
    /// After so many ticks without anything wrong everything must be as it should; 0 = not looked at.
    pub bound: u8,
    /// Nobody may be declared dead: there is nothing wrong but with the database.
    pub nobody_dies: bool,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A second goes by.
    Tick,
    /// A process does something that is due.
    Do(usize, Duty),
    /// A task begins a flush.
    Flush(usize, ChangefeedUuid),
    /// A flush reaches the outside.
    Write(usize),
    /// A flush ends for its process.
    Expire(usize),
    /// A statement arrives that its sender has given up.
    Arrive(usize),
    /// A suspended process goes on.
    Resume(usize),
    /// A killed process is started again.
    Restart(usize),
    /// A process's network is as it should be.
    Heal(usize),
    /// The database answers again.
    DatabaseUp,
    /// Something goes wrong.
    Fault(Fault, usize, ChangefeedUuid),
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Registers.
    Register,
    /// Takes in an answer that arrived while it was suspended.
    Take,
    /// Drops it: its limit was over.
    GiveUp,
    /// Notices that the deadline has passed.
    Settle,
    /// A task that was told to stop ends.
    End(ChangefeedUuid),
    /// Sends a heartbeat.
    Beat,
    /// Polls, and renews the lease.
    Look,
    /// Asks the store for a launch, or for a release.
    Ask(ChangefeedUuid),
    /// Writes its progress.
    Advance,
    /// Writes its progress and reads it back, after it fenced itself.
    Recover,
    /// Campaigns.
    Campaign,
    /// As controller, scans the heartbeats.
    Scan,
    /// Seals one whom it judged.
    Seal,
    /// Reads a snapshot and plans.
    Plan,
    /// Does what it planned.
    Act,
}

impl Cluster {
    /// The first moment.
    ///
    /// # Errors
    /// What the memory store refuses: a mistake of the model's.
    fn begin(&self) -> Result<State> {
        let mut db = Database::new();
        let mut sinks = BTreeMap::new();
        for n in 0..self.changefeeds {
            let new = changefeed(n)?;
            let made =
                db.write(|store| async move { store.changefeed_create(Authority::Operator, &new).await })?;
            sinks.insert(made.uuid, Sink::default());
        }
        let process = Process {
            life: Life::Runs,
            path: Path::Up,
            capture: None,
            incarnations: 0,
            launch_from: BootTime::default(),
        };
        let mut state = State {
            now: BootTime::from_boot(Duration::from_secs(100)),
            db,
            db_up: true,
            processes: vec![process; self.processes],
            flushes: Vec::new(),
            inbox: Vec::new(),
            sinks,
            faults_left: 0,
            calm: 0,
            violation: None,
        };
        for tick in 0..self.warm {
            state.faults_left = u8::MAX;
            for (_, step) in self.opening.iter().filter(|(at, _)| *at == tick) {
                self.apply(&mut state, *step);
            }
            while let Some(duty) = self.all_duties(&state).into_iter().next() {
                self.apply(&mut state, duty);
            }
            self.apply(&mut state, Step::Tick);
        }
        state.calm = 0;
        state.faults_left = self.faults;
        Ok(state)
    }

    /// Everything that is due, of everybody who runs.
    fn all_duties(&self, state: &State) -> Vec<Step> {
        let running = (0..state.processes.len()).filter(|index| state.processes[*index].life == Life::Runs);
        running
            .flat_map(|index| self.duties(state, index).into_iter().map(move |duty| Step::Do(index, duty)))
            .collect()
    }

    /// Does one step.
    fn apply(&self, state: &mut State, step: Step) {
        match step {
            Step::Tick => self.tick(state),
            Step::Do(index, duty) => self.perform(state, index, duty),
            Step::Flush(index, changefeed) => self.flush(state, index, changefeed),
            Step::Write(flush) => self.reach(state, flush),
            Step::Expire(flush) => self.expire(state, flush),
            Step::Arrive(late) => self.arrive(state, late),
            Step::Resume(index) | Step::Restart(index) => state.processes[index].life = Life::Runs,
            Step::Heal(index) => state.processes[index].path = Path::Up,
            Step::DatabaseUp => state.db_up = true,
            Step::Fault(fault, index, changefeed) => self.break_something(state, fault, index, changefeed),
        }
        self.look_for_violations(state);
    }

    fn tick(&self, state: &mut State) {
        state.now = state.now + TICK;
        for capture in state.processes.iter_mut().filter_map(|process| process.capture.as_mut()) {
            capture.done = crate::state::Done::default();
        }
        let well = state.db_up
            && state.inbox.is_empty()
            && state.processes.iter().all(|process| process.life == Life::Runs && process.path == Path::Up);
        state.calm = if well && self.bound > 0 { (state.calm + 1).min(self.bound) } else { 0 };
    }

    /// Whether a second may go by, as far as flushes are concerned: none has outlived its limit, and whoever runs has heard of
    /// what was written.
    fn may_tick(state: &State) -> bool {
        state.flushes.iter().all(|flush| {
            let hears = state.processes[flush.process].life == Life::Runs;
            if flush.written { !hears } else { state.now < flush.ends_by }
        })
    }

    fn look_for_violations(&self, state: &mut State) {
        if state.violation.is_some() {
            return;
        }
        let writers = self.writers(state);
        let two = writers
            .iter()
            .any(|one| writers.iter().any(|other| one.changefeed == other.changefeed && one != other));
        if two {
            state.violation = Some(Violation::TwoWriters);
        }
        let tables = state.db.tables();
        for row in tables.schedules() {
            let at = tables.progress(row.changefeed).unwrap_or_default().checkpoint_ts.0;
            if state.sinks.get(&row.changefeed).is_some_and(|sink| at > sink.high) {
                state.violation = Some(Violation::Skipped);
            }
        }
        if self.nobody_dies && tables.captures().any(|row| row.state == CaptureState::Offline) {
            state.violation = Some(Violation::OutageMoved);
        }
        if self.bound > 0 && state.calm == self.bound && self.is_lost(state) {
            state.violation = Some(Violation::Lost);
        }
    }

    /// Every launch that has a flush on its way, or would be admitted to one at this very moment if it asked.
    fn writers(&self, state: &State) -> Vec<OwnerTerm> {
        let mut writers: Vec<OwnerTerm> = state
            .flushes
            .iter()
            .filter(|flush| !flush.written && state.now <= flush.ends_by)
            .map(|flush| flush.term)
            .collect();
        for process in state.processes.iter().filter(|process| process.life != Life::Dead) {
            let Some(capture) = &process.capture else { continue };
            for (changefeed, feed) in &capture.feeds {
                if let Some(running) = feed.running
                    && self.refused(state, capture, &running, TICK).is_none()
                {
                    let term = OwnerTerm {
                        changefeed: *changefeed,
                        capture: capture.term.capture,
                        epoch: running.epoch,
                    };
                    writers.push(term);
                }
            }
        }
        writers
    }

    /// Whether a changefeed is not where it ought to be.
    fn is_lost(&self, state: &State) -> bool {
        let tables = state.db.tables();
        tables.schedules().any(|row| {
            let runnable = tables.status(row.changefeed).is_some_and(|status| status.state.is_runnable());
            if !runnable {
                return row.state != ScheduleState::Removed;
            }
            let runs = |capture: &Capture| {
                Some(capture.term.capture) == row.owner
                    && capture.feeds.get(&row.changefeed).and_then(|feed| feed.running).is_some_and(
                        |running| {
                            running.epoch == row.epoch
                                && self.refused(state, capture, &running, TICK).is_none()
                        },
                    )
            };
            row.state != ScheduleState::Launched
                || !state.processes.iter().filter_map(|process| process.capture.as_ref()).any(runs)
        })
    }

    /// What may happen whether anything is due or not. In a fixed order most of it is between ticks: what a process that did not
    /// notice yet that its deadline has passed might flush, and what arrives late, is not.
    fn by_chance(&self, state: &State, between_ticks: bool, steps: &mut Vec<Step>) {
        let whenever = between_ticks || self.order == Order::Any;
        for (index, process) in state.processes.iter().enumerate() {
            match process.life {
                Life::Suspended if whenever => steps.push(Step::Resume(index)),
                Life::Dead if whenever => steps.push(Step::Restart(index)),
                Life::Runs if whenever || self.is_unsettled(state, process) => {
                    steps.extend(
                        self.flushable(state, index).into_iter().map(|feed| Step::Flush(index, feed)),
                    );
                }
                Life::Suspended | Life::Dead | Life::Runs => {}
            }
            if whenever && process.path != Path::Up && process.life == Life::Runs {
                steps.push(Step::Heal(index));
            }
        }
        for (index, flush) in state.flushes.iter().enumerate() {
            if whenever && !flush.written {
                steps.push(Step::Write(index));
            }
            let known = state.processes[flush.process].life == Life::Runs;
            if flush.written && known || !flush.written && state.now >= flush.ends_by {
                steps.push(Step::Expire(index));
            }
        }
        if state.db_up {
            steps.extend((0..state.inbox.len()).map(Step::Arrive));
        } else if whenever {
            steps.push(Step::DatabaseUp);
        }
    }

    fn is_unsettled(&self, state: &State, process: &Process) -> bool {
        process.capture.as_ref().is_some_and(|capture| capture.situation.alive && !state.is_alive(capture))
    }
}

impl Model for Cluster {
    type State = State;
    type Action = Step;

    #[expect(clippy::expect_used, reason = "nothing can be checked without a first state")]
    fn init_states(&self) -> Vec<State> {
        vec![self.begin().expect("the memory store refuses nothing of this")]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.violation.is_some() {
            return;
        }
        let duties = self.all_duties(state);
        let between_ticks = duties.is_empty();
        if between_ticks && Self::may_tick(state) {
            steps.push(Step::Tick);
        }
        let next = match duties.first() {
            Some(Step::Do(index, _)) => Some(*index),
            _ => None,
        };
        match self.order {
            Order::Any => steps.extend(duties),
            Order::Fixed => {
                // Whether an answer that came late is taken in or dropped is nobody's choice.
                let first = duties.first().copied();
                steps.extend(duties.into_iter().filter(|step| {
                    Some(*step) == first
                        || matches!((first, step), (Some(Step::Do(a, Duty::Take)), Step::Do(b, Duty::GiveUp)) if a == *b)
                }));
            }
        }
        self.by_chance(state, between_ticks, steps);
        if state.faults_left > 0 {
            self.faults(state, next, steps);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, step);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn not(state: &State, what: Violation) -> bool {
            state.violation != Some(what)
        }
        vec![
            Property::always("no two admitted writers", |_, state| not(state, Violation::TwoWriters)),
            Property::always("no older epoch writes", |_, state| not(state, Violation::EpochWentBack)),
            Property::always("no checkpoint goes back", |_, state| not(state, Violation::CheckpointWentBack)),
            Property::always("nothing is skipped", |_, state| not(state, Violation::Skipped)),
            Property::always("an outage moves nothing", |_, state| not(state, Violation::OutageMoved)),
            Property::always("no changefeed is lost", |_, state| not(state, Violation::Lost)),
        ]
    }
}

fn changefeed(n: usize) -> Result<NewChangefeed> {
    Ok(NewChangefeed {
        name: ChangefeedName::new("", &format!("feed-{n}"))?,
        upstream_id: None,
        upstream_uri: SecretUri::parse("upstream_uri", "datagen://")?,
        sink_uri: SecretUri::parse("sink_uri", "blackhole://")?,
        start_ts: Ts(0),
        target_ts: Ts::ZERO,
        config: ReplicaConfig::default(),
        creator_version: String::new(),
        client_request_id: Uuid::from_u128(n as u128),
        task_position: ChangefeedProgress::at(Ts(0)),
    })
}
