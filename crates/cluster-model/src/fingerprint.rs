//! Two states are the same when nothing that is ever compared differs: moments count by their age (up to more than any limit),
//! revisions and epochs by their order, versions and sequences by whether they are still the database's. So the states are
//! finitely many, and the checker can see all of them.

use std::hash::{DefaultHasher, Hash, Hasher};

use metadata_api::decision::planner::Action;
use metadata_api::decision::watch::Orders;
use metadata_api::model::{
    BootTime, CaptureId, CaptureProgress, ChangefeedUuid, ElectionRecord, ScheduleTarget, Version,
};
use metadata_memory::Tables;

use crate::state::{Capture, Feed, Held, Late, State};

/// The numbers of a state that are compared by their order.
struct Ranks(Vec<u64>);

impl Ranks {
    fn of(&self, number: u64) -> usize {
        self.0.binary_search(&number).unwrap_or(usize::MAX)
    }
}

/// Calls `each` with every revision and epoch of the state.
fn numbers(state: &State, mut each: impl FnMut(u64)) {
    let tables = state.db.tables();
    each(tables.revision().0);
    for row in tables.schedules() {
        each(row.epoch.0);
    }
    for (_, row) in tables.progress_rows() {
        progress_numbers(&row.value, &mut each);
    }
    for capture in state.processes.iter().filter_map(|process| process.capture.as_ref()) {
        capture_numbers(capture, &mut each);
    }
    for flush in &state.flushes {
        each(flush.term.epoch.0);
    }
    for sink in state.sinks.values() {
        each(sink.epoch.0);
    }
    for late in &state.inbox {
        match late {
            Late::Advance(_, _, progress) => progress_numbers(progress, &mut each),
            Late::Release(release) => each(release.term.epoch.0),
            Late::Set(..) | Late::Seal(..) => {}
        }
    }
}

fn progress_numbers(progress: &CaptureProgress, each: &mut impl FnMut(u64)) {
    for entry in progress.0.values() {
        each(entry.owner_epoch.0);
    }
}

fn orders_numbers(orders: &Orders, each: &mut impl FnMut(u64)) {
    for order in orders.values() {
        each(order.epoch.0);
    }
}

fn capture_numbers(capture: &Capture, each: &mut impl FnMut(u64)) {
    each(capture.revision.0);
    orders_numbers(&capture.orders, each);
    progress_numbers(&capture.advanced, each);
    if let Some(revision) = capture.office.as_ref().and_then(|office| office.planned) {
        each(revision.0);
    }
    if let Some(Held::Look(look)) = &capture.held {
        each(look.answer.revision.0);
        orders_numbers(&look.before, each);
        orders_numbers(&look.after, each);
    }
    for feed in capture.feeds.values() {
        each(feed.order.1.0);
        let epochs = [
            feed.running.map(|running| running.epoch),
            feed.ended.map(|(epoch, _)| epoch),
            feed.progress.map(|(epoch, _)| epoch),
        ];
        epochs.into_iter().flatten().for_each(|epoch| each(epoch.0));
    }
}

/// Hashes one state.
struct Print<'a, H> {
    state: &'a State,
    tables: &'a Tables,
    ranks: Ranks,
    to: &'a mut H,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, to: &mut H) {
        let mut ranks = Vec::with_capacity(24);
        numbers(self, |number| ranks.push(number));
        ranks.sort_unstable();
        ranks.dedup();
        let mut print = Print { state: self, tables: self.db.tables(), ranks: Ranks(ranks), to };
        print.database();
        print.rest();
    }
}

fn print(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        print(self) == print(other)
    }
}

impl<H: Hasher> Print<'_, H> {
    fn put(&mut self, value: impl Hash) {
        value.hash(self.to);
    }

    fn rank(&mut self, number: u64) {
        let rank = self.ranks.of(number);
        self.put(rank);
    }

    fn age(&mut self, at: BootTime) {
        let age = self.state.age(at);
        self.put(age);
    }

    fn ahead(&mut self, until: BootTime) {
        let left = self.state.left(until);
        self.put(left);
    }

    fn progress(&mut self, progress: &CaptureProgress) {
        self.put(progress.0.len());
        for (uuid, entry) in &progress.0 {
            self.put((uuid, entry.progress.checkpoint_ts));
            self.rank(entry.owner_epoch.0);
        }
    }

    fn orders(&mut self, orders: &Orders) {
        self.put(orders.len());
        for order in orders.values() {
            self.put((order.changefeed, order.state, order.owner));
            self.rank(order.epoch.0);
        }
    }

    /// Whether a heartbeat is before, at or after the database's.
    fn heartbeat(&mut self, capture: CaptureId, seq: u64) {
        let there = self.tables.captures().find(|row| row.id == capture).map(|row| row.heartbeat_seq);
        // How many were lost on the way is nothing that anybody compares.
        self.put(there.map(|there| there.cmp(&seq)));
    }

    fn same_heartbeat(&mut self, capture: CaptureId, seq: u64) {
        let same = self.tables.captures().any(|row| row.id == capture && row.heartbeat_seq == seq);
        self.put((capture, same));
    }

    fn epoch(&mut self, epoch: u64) {
        let there = self.tables.election().map(|row| row.epoch.0).unwrap_or_default();
        self.put(there == epoch);
    }

    fn election(&mut self, seen: Option<ElectionRecord>) {
        let now = self.tables.election().ok();
        let same = match (seen, now) {
            (Some(seen), Some(now)) => (seen.epoch, seen.lease_seq) == (now.epoch, now.lease_seq),
            _ => false,
        };
        self.put((same, seen.map(|seen| (seen.leader, seen.cooldown))));
        if let Some(seen) = seen {
            self.epoch(seen.epoch.0);
        }
    }

    fn version(&mut self, changefeed: ChangefeedUuid, expected: Version) {
        let same = self.tables.schedule(changefeed).is_some_and(|row| row.version == expected);
        self.put((changefeed, same));
    }

    fn target(&mut self, target: &ScheduleTarget) {
        self.version(target.changefeed, target.expected_version);
        self.put((target.state, target.owner));
    }

    fn database(&mut self) {
        let tables = self.tables;
        self.put((self.state.db_up, self.state.db.clock_jumped, self.state.faults_left, self.state.calm));
        self.put(self.state.violation);
        self.rank(tables.revision().0);
        self.put(tables.fence_epoch().is_ok_and(|epoch| epoch.0 == 0));
        self.election(tables.election().ok());
        self.put((tables.captures().count(), tables.progress_rows().count(), tables.schedules().count()));
        for row in tables.captures() {
            self.put((row.id, row.state));
        }
        for (id, row) in tables.progress_rows() {
            self.put((id, row.sealed));
            self.progress(&row.value);
        }
        for row in tables.schedules() {
            self.put((row.changefeed, row.owner, row.state, row.task_position.checkpoint_ts));
            self.put(tables.status(row.changefeed).map(|status| status.state));
            self.rank(row.epoch.0);
        }
    }

    fn rest(&mut self) {
        let state = self.state;
        self.put((state.flushes.len(), state.inbox.len()));
        for process in &state.processes {
            self.put((process.life, process.path, process.incarnations, process.capture.is_some()));
            self.ahead(process.launch_from);
            if let Some(capture) = &process.capture {
                self.capture(capture);
            }
        }
        for flush in &state.flushes {
            self.put((flush.process, flush.term.changefeed, flush.term.capture, flush.from, flush.written));
            self.rank(flush.term.epoch.0);
            self.ahead(flush.ends_by);
        }
        for (uuid, sink) in &state.sinks {
            self.put((uuid, sink.high));
            self.rank(sink.epoch.0);
        }
        for late in &state.inbox {
            self.late(late);
        }
    }

    fn late(&mut self, late: &Late) {
        self.put(std::mem::discriminant(late));
        match late {
            Late::Advance(term, seq, progress) => {
                let newer = self.tables.progress_rows().any(|(id, row)| id == term.capture && row.seq < *seq);
                self.put((term.capture, newer));
                self.progress(progress);
            }
            Late::Release(release) => {
                let position = release.task_position.as_ref().map(|position| position.checkpoint_ts);
                self.put((release.term.changefeed, release.term.capture, position));
                self.rank(release.term.epoch.0);
            }
            Late::Set(term, targets) => {
                self.epoch(term.epoch.0);
                for target in targets {
                    self.target(target);
                }
            }
            Late::Seal(term, capture, seq) => {
                self.epoch(term.epoch.0);
                self.same_heartbeat(*capture, *seq);
            }
        }
    }

    fn capture(&mut self, capture: &Capture) {
        self.put(capture.term.capture);
        self.heartbeat(capture.term.capture, capture.acknowledged);
        self.heartbeat(capture.term.capture, capture.sent);
        for at in [capture.last_beat, capture.last_look] {
            self.put(at.map(|at| self.state.age(at)));
        }
        let own = &capture.own_beats;
        let moments = [own.last(), own.unbroken_since()].map(|at| at.map(|at| self.state.age(at)));
        self.put((moments, own.came_after_gap()));
        self.put((capture.lease.standing().is_some(), capture.judge.standing().count(), capture.feeds.len()));
        if let Some(seen) = capture.lease.standing() {
            let now = self.tables.election().ok().map(|row| (row.leader, row.epoch.0, row.lease_seq));
            self.put((seen.value.0, now == Some(seen.value)));
            self.age(seen.since);
        }
        for (id, seen) in capture.judge.standing() {
            self.same_heartbeat(id, seen.value);
            self.age(seen.since);
        }
        self.put(capture.judge.mass_failure_since().map(|at| self.state.age(at)));
        self.rank(capture.revision.0);
        self.put(capture.own_state);
        self.election(capture.election);
        self.ahead(capture.until);
        self.orders(&capture.orders);
        let now = capture.situation;
        self.put((now.alive, now.recovering, now.stopping, now.expelled));
        for (uuid, feed) in &capture.feeds {
            self.put(uuid);
            self.feed(feed);
        }
        let row = self.tables.progress_rows().find(|(id, _)| *id == capture.term.capture);
        self.put(row.map(|(_, row)| capture.progress_seq.cmp(&row.seq)));
        self.progress(&capture.advanced);
        self.office(capture);
        self.put(capture.done);
        self.held(capture);
    }

    fn feed(&mut self, feed: &Feed) {
        self.put((feed.order.0, feed.asking.map(|asking| std::mem::discriminant(&asking))));
        self.rank(feed.order.1.0);
        self.put((feed.running.is_some(), feed.ended.is_some(), feed.progress.is_some()));
        if let Some(running) = feed.running {
            self.put((running.phase as u8, running.fenced, running.at));
            self.rank(running.epoch.0);
        }
        if let Some((epoch, outcome)) = feed.ended {
            self.put(outcome as u8);
            self.rank(epoch.0);
        }
        if let Some((epoch, at)) = feed.progress {
            self.put(at);
            self.rank(epoch.0);
        }
    }

    fn office(&mut self, capture: &Capture) {
        self.put(capture.office.is_some());
        let Some(office) = &capture.office else { return };
        self.epoch(office.term.epoch.0);
        self.put((office.to_seal.len(), office.to_do.len()));
        for (id, seq) in &office.to_seal {
            self.same_heartbeat(*id, *seq);
        }
        for action in &office.to_do {
            self.put(std::mem::discriminant(action));
            match action {
                Action::SetOwner(target) => self.target(target),
                Action::Release(capture) => self.put(capture),
                Action::Cleanup { changefeed, expected_version } => {
                    self.version(*changefeed, *expected_version)
                }
            }
        }
        self.put(office.planned.is_some());
        if let Some(revision) = office.planned {
            self.rank(revision.0);
        }
    }

    fn held(&mut self, capture: &Capture) {
        self.put(capture.held.is_some());
        self.put(capture.held.as_ref().map(std::mem::discriminant));
        match &capture.held {
            None => {}
            Some(Held::Beat(at, next)) => {
                self.age(*at);
                self.heartbeat(capture.term.capture, *next);
            }
            Some(Held::Look(look)) => {
                self.put(look.answer.controller.as_ref().map(|beat| beat.state));
                self.age(look.began_at);
                self.rank(look.answer.revision.0);
                self.put(look.answer.own_state);
                self.election(Some(look.answer.election));
                if let Some(beat) = &look.answer.controller {
                    self.same_heartbeat(beat.id, beat.heartbeat_seq);
                }
                self.orders(&look.before);
                self.orders(&look.after);
            }
            Some(Held::Scan(beats)) => {
                self.put(beats.len());
                for beat in beats {
                    self.put(beat.state);
                    self.same_heartbeat(beat.id, beat.heartbeat_seq);
                }
            }
        }
    }
}
