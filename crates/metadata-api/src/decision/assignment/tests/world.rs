//! Owners, processors and a controller that act on what they have seen, however old it is; captures that die at any step.

use std::collections::VecDeque;

use super::*;

/// What a processor does, as far as the protocol goes: it knows its row as it last read it.
#[derive(Clone, Default)]
struct Processor {
    /// Its row, when it read it.
    seen: Option<Row>,
    /// What it runs: under which order, and how far it is.
    running: BTreeMap<TableId, (Version, u64)>,
    /// What it has stopped, told to or not, and not yet been allowed to forget.
    stopped: BTreeMap<TableId, (Version, u64)>,
}

#[derive(Clone)]
struct Row {
    term: ProcessorTerm,
    state: ScheduleState,
    version: Version,
    orders: TableOrders,
    /// The capture's progress row, as far as it is about this attachment.
    reports: BTreeMap<TableId, TableReport>,
}

struct World {
    epoch: OwnerEpoch,
    revision: u64,
    rows: BTreeMap<CaptureId, Row>,
    processors: BTreeMap<CaptureId, Processor>,
    /// Who is alive; whether it drains.
    captures: BTreeMap<CaptureId, bool>,
    next_capture: u8,
    /// What the owner keeps.
    tables: BTreeMap<TableId, ChangefeedProgress>,
    /// What owners have decided, and under which epoch, and not yet written; it arrives in any order.
    decisions: VecDeque<(OwnerEpoch, Decision)>,
    /// How far each table is outside.
    sink: BTreeMap<TableId, u64>,
    checkpoint: u64,
}

/// Something happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A processor does all that is its own at once.
    Turn(u8),
    Work(u8),
    Read(u8),
    Obey(u8),
    Report(u8),
    Release(u8),
    /// The first table that it runs cannot go on.
    Fail(u8),
    Decide,
    Write(u8),
    Schedule(u8),
    Drain(u8),
    Crash(u8),
    NewOwner,
    AddTable,
    DropTable(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..16_u8;
    let step = prop_oneof![
        8 => who.clone().prop_map(Step::Turn),
        4 => who.clone().prop_map(Step::Work),
        4 => who.clone().prop_map(Step::Read),
        4 => who.clone().prop_map(Step::Obey),
        4 => who.clone().prop_map(Step::Report),
        2 => who.clone().prop_map(Step::Release),
        2 => who.clone().prop_map(Step::Fail),
        6 => Just(Step::Decide),
        6 => who.clone().prop_map(Step::Write),
        3 => (1..4_u8).prop_map(Step::Schedule),
        1 => who.clone().prop_map(Step::Drain),
        1 => who.clone().prop_map(Step::Crash),
        1 => Just(Step::NewOwner),
        1 => Just(Step::AddTable),
        1 => who.prop_map(Step::DropTable),
    ];
    prop::collection::vec(step, 0..250)
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            epoch: OwnerEpoch(1),
            revision: 1,
            rows: BTreeMap::new(),
            processors: BTreeMap::new(),
            captures: BTreeMap::new(),
            next_capture: 0,
            tables: (0..5).map(|n| (table(n), at(1))).collect(),
            decisions: VecDeque::new(),
            sink: (0..5).map(|n| (table(n), 1)).collect(),
            checkpoint: 1,
        };
        (0..3).for_each(|_| world.join());
        world
    }

    fn join(&mut self) {
        let capture = id(self.next_capture);
        self.next_capture += 1;
        self.captures.insert(capture, false);
        self.processors.insert(capture, Processor::default());
    }

    fn pick(&self, n: u8) -> Option<CaptureId> {
        self.captures.keys().nth(usize::from(n) % self.captures.len().max(1)).copied()
    }

    fn view(&self) -> ChangefeedView {
        let view = |row: &Row| ProcessorView {
            term: row.term,
            state: row.state,
            version: row.version,
            orders: row.orders.clone(),
            reports: row.reports.clone(),
            may_carry: self.captures.get(&row.term.capture) == Some(&false),
        };
        ChangefeedView {
            owner_epoch: self.epoch,
            revision: Revision(self.revision),
            tables: self.tables.clone(),
            processors: self.rows.values().map(view).collect(),
        }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Turn(n) => self.pick(n).map_or(Ok(()), |capture| self.turn(capture))?,
            Step::Work(n) => self.pick(n).map_or(Ok(()), |capture| self.work(capture))?,
            Step::Read(n) => {
                self.pick(n).into_iter().for_each(|capture| self.read(capture));
            }
            Step::Obey(n) => self.pick(n).map_or(Ok(()), |capture| self.obey(capture))?,
            Step::Report(n) => self.pick(n).into_iter().for_each(|capture| self.report(capture)),
            Step::Release(n) => self.pick(n).into_iter().for_each(|capture| self.release(capture)),
            Step::Fail(n) => {
                if let Some(processor) = self.pick(n).and_then(|capture| self.processors.get_mut(&capture))
                    && let Some((table, at)) = processor.running.pop_first()
                {
                    processor.stopped.insert(table, at);
                }
            }
            Step::Decide => self.decide()?,
            Step::Write(n) => {
                // Mostly the newest, and now and then one that was thought lost.
                let late = if n < 8 { self.decisions.len().saturating_sub(1) } else { usize::from(n) - 8 };
                if let Some((epoch, decision)) = self.decisions.remove(late) {
                    self.write(epoch, decision);
                }
            }
            Step::Schedule(max) => self.schedule(max.into()),
            Step::Drain(n) => {
                if let Some(capture) = self.pick(n) {
                    self.captures.insert(capture, true);
                }
            }
            Step::Crash(n) => self.pick(n).into_iter().for_each(|capture| self.crash(capture)),
            // The next one starts from what the last has said, and that may be nothing at all.
            Step::NewOwner => {
                self.revision += 1;
                self.epoch = OwnerEpoch(self.revision);
            }
            Step::AddTable => {
                let new = table(self.sink.len());
                let checkpoint = self.checkpoint;
                if self.sink.len() < 12 {
                    self.sink.insert(new.clone(), checkpoint);
                    self.tables.insert(new, at(checkpoint));
                }
            }
            Step::DropTable(n) => {
                let dropped = self.tables.keys().nth(n.into()).cloned();
                if let Some(dropped) = dropped {
                    self.tables.remove(&dropped);
                }
            }
        }
        Ok(())
    }

    fn turn(&mut self, capture: CaptureId) -> Result<(), TestCaseError> {
        self.read(capture);
        self.obey(capture)?;
        self.work(capture)?;
        self.report(capture);
        self.release(capture);
        Ok(())
    }

    fn read(&mut self, capture: CaptureId) {
        self.processors.get_mut(&capture).unwrap().seen = self.rows.get(&capture).cloned();
    }

    fn work(&mut self, capture: CaptureId) -> Result<(), TestCaseError> {
        for (table, (_, position)) in &mut self.processors.get_mut(&capture).unwrap().running {
            let outside = self.sink.get_mut(table).unwrap();
            prop_assert!(*position <= *outside, "{table} has a gap: {position} after {outside}");
            *position += 1;
            *outside = (*outside).max(*position);
        }
        Ok(())
    }

    /// Carries out what was read; a table that it is told to run anew is stopped first, and not by halves.
    fn obey(&mut self, capture: CaptureId) -> Result<(), TestCaseError> {
        let processor = self.processors.get_mut(&capture).unwrap();
        let Some(seen) = processor.seen.clone() else { return Ok(()) };
        let stays = |table: &TableId, since: Version| {
            seen.state == ScheduleState::Launched
                && seen.orders.0.get(table).is_some_and(|order| order.since == since && !order.stop)
        };
        for (table, (since, position)) in std::mem::take(&mut processor.running) {
            if stays(&table, since) {
                processor.running.insert(table, (since, position));
            } else {
                processor.stopped.insert(table, (since, position));
            }
        }
        processor
            .stopped
            .retain(|table, (since, _)| seen.orders.0.get(table).is_some_and(|order| order.since == *since));
        let mut started = Vec::new();
        for (table, order) in &seen.orders.0 {
            let known = processor.running.contains_key(table) || processor.stopped.contains_key(table);
            if known || seen.state == ScheduleState::Removed {
                continue;
            }
            let from = (order.since, order.from.checkpoint_ts.0);
            if order.stop || seen.state == ScheduleState::Removing {
                processor.stopped.insert(table.clone(), from);
            } else {
                processor.running.insert(table.clone(), from);
                started.push(table.clone());
            }
        }
        for table in started {
            let running = self.processors.values().filter(|of| of.running.contains_key(&table));
            prop_assert_eq!(running.count(), 1, "{} runs twice", table);
        }
        Ok(())
    }

    fn report(&mut self, capture: CaptureId) {
        let processor = &self.processors[&capture];
        let Some(seen) = &processor.seen else { return };
        let Some(row) = self.rows.get_mut(&capture).filter(|row| row.term == seen.term) else { return };
        let report = |stopped: bool| {
            move |(table, (since, position)): (&TableId, &(Version, u64))| {
                (table.clone(), TableReport { since: *since, stopped, error: None, progress: at(*position) })
            }
        };
        row.reports = processor.running.iter().map(report(false)).collect();
        row.reports.extend(processor.stopped.iter().map(report(true)));
    }

    fn release(&mut self, capture: CaptureId) {
        let processor = self.processors.get_mut(&capture).unwrap();
        let Some(seen) = &processor.seen else { return };
        let Some(row) = self.rows.get_mut(&capture).filter(|row| row.term == seen.term) else { return };
        if seen.state == ScheduleState::Removing && processor.running.is_empty() {
            row.state = ScheduleState::Removed;
            row.version.0 += 1;
            *processor = Processor::default();
        }
    }

    fn decide(&mut self) -> Result<(), TestCaseError> {
        let view = self.view();
        let known = positions(&view);
        if let Some(checkpoint) = checkpoint(&known) {
            for (table, progress) in &known {
                prop_assert!(progress.checkpoint_ts >= checkpoint.checkpoint_ts);
                prop_assert!(progress.checkpoint_ts.0 <= self.sink[table], "{} is not outside", table);
            }
            prop_assert!(checkpoint.checkpoint_ts.0 >= self.checkpoint, "the checkpoint went back");
            self.checkpoint = checkpoint.checkpoint_ts.0;
        }
        let decision = assign(&view, &AssignPolicy { moves_in_flight: 2 });
        if !decision.writes.is_empty() {
            self.decisions.push_back((self.epoch, decision));
        }
        self.tables = known;
        Ok(())
    }

    /// What the store does: all or nothing, under the owner's token, while the rows are as they were seen.
    fn write(&mut self, epoch: OwnerEpoch, decision: Decision) {
        let rows = self.rows.iter().map(|(capture, row)| (*capture, row.version));
        if epoch != self.epoch || !rows.eq(decision.seen) {
            return;
        }
        for write in decision.writes {
            let row = self.rows.get_mut(&write.term.capture).unwrap();
            assert_eq!((row.term, row.state), (write.term, ScheduleState::Launched));
            row.version.0 += 1;
            row.orders = write.orders;
        }
    }

    fn schedule(&mut self, max_processors: usize) {
        let owner = OwnerTerm { changefeed: ChangefeedUuid(1), capture: id(0), epoch: self.epoch };
        let candidates = self.captures.iter().filter(|(_, drains)| !**drains);
        let candidate = Candidate { load: 0, is_heard: true };
        let candidates = candidates.map(|(capture, _)| (*capture, candidate)).collect();
        let row = |row: &Row| ProcessorSchedule {
            changefeed: row.term.changefeed,
            capture: row.term.capture,
            state: row.state,
            owner_epoch: row.term.owner_epoch,
            epoch: row.term.epoch,
            assignment: ProcessorAssignment::default(),
            revision: Revision(1),
            version: row.version,
        };
        let rows: Vec<_> = self.rows.values().map(row).collect();
        for target in choose_processors(Some(owner), max_processors, &candidates, &rows) {
            let capture = target.capture;
            if target.state == ScheduleState::Removing {
                let row = self.rows.get_mut(&capture).unwrap();
                (row.state, row.version) = (ScheduleState::Removing, Version(row.version.0 + 1));
                continue;
            }
            self.revision += 1;
            let term = ProcessorTerm {
                changefeed: owner.changefeed,
                capture,
                epoch: ProcessorEpoch(self.revision),
                owner_epoch: self.epoch,
            };
            let version = Version(self.rows.get(&capture).map_or(0, |row| row.version.0) + 1);
            let (orders, reports) = (TableOrders::default(), BTreeMap::new());
            let row = Row { term, state: ScheduleState::Launched, version, orders, reports };
            self.rows.insert(capture, row);
        }
    }

    /// It is sealed: by then its deadline has passed, and nothing of it is admitted. Another one comes in its place.
    fn crash(&mut self, capture: CaptureId) {
        self.captures.remove(&capture);
        self.processors.remove(&capture);
        if let Some(row) = self.rows.get_mut(&capture) {
            (row.state, row.version) = (ScheduleState::Removed, Version(row.version.0 + 1));
        }
        self.join();
    }

    /// Everybody does what is theirs, one after the other.
    fn calm_round(&mut self, max_processors: usize) -> Result<(), TestCaseError> {
        self.schedule(max_processors);
        for capture in self.captures.keys().copied().collect::<Vec<_>>() {
            self.turn(capture)?;
        }
        self.decide()?;
        while let Some((epoch, decision)) = self.decisions.pop_front() {
            self.write(epoch, decision);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order, no table runs twice, none is started after a gap, and the checkpoint neither goes
    /// back nor runs ahead. Then the trouble is over: soon everything runs once, evenly, and stands still.
    #[test]
    fn a_table_never_runs_twice_and_soon_runs(steps in steps(), max_processors in 1..4_usize) {
        let mut world = World::new();
        for step in steps {
            world.step(step)?;
        }
        world.captures.values_mut().for_each(|drains| *drains = false);
        let mut calm = 0;
        for round in 0.. {
            let before: Vec<_> = world.rows.values().map(|row| row.version).collect();
            world.calm_round(max_processors)?;
            let after: Vec<_> = world.rows.values().map(|row| row.version).collect();
            calm = if before == after { calm + 1 } else { 0 };
            if calm == 3 {
                break;
            }
            prop_assert!(round < 60, "it does not come to rest");
        }
        let mut loads = Vec::new();
        for row in world.rows.values().filter(|row| row.state == ScheduleState::Launched) {
            prop_assert_eq!(row.term.owner_epoch, world.epoch);
            let running = &world.processors[&row.term.capture].running;
            prop_assert!(running.keys().eq(row.orders.0.keys()), "it runs what it carries");
            loads.push(running.len());
        }
        prop_assert_eq!(loads.len(), max_processors);
        prop_assert_eq!(loads.iter().sum::<usize>(), world.tables.len(), "everything runs");
        let (least, most) = (loads.iter().min(), loads.iter().max());
        prop_assert!(most.unwrap() - least.unwrap() <= 1, "{:?}", loads);
    }
}
