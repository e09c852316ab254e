//! The tables that this capture carries as a processor.
//!
//! Orders come in the assignment of the capture's processor rows; what was done about them goes into its progress row. What
//! a table's task ended with is not tried again here: it is reported, and the owner decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use metadata_api::decision::assignment::TableOrders;
use metadata_api::model::{
    BootTime, CaptureProgress, ChangefeedInfo, ChangefeedProgress, ChangefeedUuid, OwnedProgress, OwnerTerm,
    ProcessorReport, ProcessorStatus, ProcessorTerm, ScheduleState, TableError, TableId, TableReport,
    UpstreamInfo, Version,
};
use metadata_api::observation::ProcessorChange;

use super::entry::Situation;
use super::feed::Running;
use super::share_step::{ShareEntry, ShareStep, share_step};
use crate::task::Share;

/// How long what was said about tables that are not carried any more goes on being said: the owner reads it once a second.
const LAST_WORD: Duration = Duration::from_secs(30);

/// All that this capture carries, by changefeed.
#[derive(Default)]
pub(super) struct Shares(BTreeMap<ChangefeedUuid, Carried>);

/// One attachment.
pub(super) struct Carried {
    pub(super) term: ProcessorTerm,
    state: ScheduleState,
    orders: TableOrders,
    tables: BTreeMap<TableId, Table>,
    /// What to run; looked up once an attachment.
    pub(super) spec: Option<(Arc<ChangefeedInfo>, UpstreamInfo)>,
    /// A question to the store about it is under way.
    pub(super) asking: bool,
    /// No question before it: the last one failed.
    pub(super) ask_from: BootTime,
    over_at: Option<BootTime>,
    /// Another attachment of the same changefeed, that waits until nothing of this one runs.
    next: Option<ProcessorChange>,
}

#[derive(Default)]
struct Table {
    running: Option<(Version, Running)>,
    stopped: Option<(Version, Option<TableError>)>,
    /// How far it is, by the last word of the task that ran last, and under which order that was.
    progress: Option<(Version, ChangefeedProgress)>,
    /// A flush of it ended without anybody knowing how: what is to be said of that.
    unknown_flush: Option<TableError>,
    launches: u64,
}

/// Where tables stopped that this capture carried: the owner they were carried for is to go on from there.
#[derive(Debug)]
pub(crate) struct LastWord {
    /// As [`Carried::owner_term`].
    pub(crate) owner: OwnerTerm,
    pub(crate) tables: BTreeSet<TableId>,
}

impl LastWord {
    /// Whether the changefeed's `rows` show that nobody is to read it any more: its owner has given every table to somebody else, and
    /// that it does when it sees this capture's row `Removed`, with its report; or nobody is left whom it could give any.
    pub(crate) fn is_settled(&self, rows: &[ProcessorStatus]) -> bool {
        let others = rows.iter().map(|of| &of.schedule).filter(|row| {
            row.changefeed == self.owner.changefeed
                && row.owner_epoch == self.owner.epoch
                && row.capture != self.owner.capture
                && row.state == ScheduleState::Launched
        });
        let orders: Vec<_> =
            others.map(|row| TableOrders::read(&row.assignment).unwrap_or_default()).collect();
        let is_given = |table| orders.iter().any(|orders| orders.0.contains_key(table));
        orders.is_empty() || self.tables.iter().all(is_given)
    }
}

/// What the event loop is to do.
pub(super) enum ShareWork {
    /// Look up what to run.
    Load(ProcessorTerm),
    /// Start a table: which launch of it, and from where.
    Launch { share: Share, launch: u64, start: ChangefeedProgress },
    /// Write `Removed`.
    Release(ProcessorTerm),
}

impl Shares {
    /// Takes in an order.
    pub(super) fn order(&mut self, change: ProcessorChange) {
        match self.0.get_mut(&change.term.changefeed) {
            Some(carried) if carried.term == change.term => carried.take(&change),
            // It was taken away before it could begin.
            Some(carried) if carried.next.as_ref().is_some_and(|next| next.term == change.term) => {
                carried.next = Some(change).filter(|next| next.state != ScheduleState::Removed);
            }
            _ if change.state == ScheduleState::Removed => {}
            Some(carried) => carried.next = Some(change),
            None => {
                self.0.insert(change.term.changefeed, Carried::new(&change));
            }
        }
    }

    pub(super) fn get_mut(&mut self, term: ProcessorTerm) -> Option<&mut Carried> {
        self.0.get_mut(&term.changefeed).filter(|carried| carried.term == term)
    }

    /// Brings everything in line with what is known now, but for what is given back. `written`: what the progress row has.
    pub(super) fn settle(
        &mut self,
        now: BootTime,
        situation: Situation,
        written: &CaptureProgress,
    ) -> Vec<ShareWork> {
        let mut work = Vec::new();
        self.0.retain(|changefeed, carried| {
            if carried.is_quiet()
                && let Some(next) = carried.next.take()
            {
                *carried = Carried::new(&next);
            }
            carried.settle(now, situation, &mut work);
            carried.release(now, situation, said_of(written, *changefeed), &mut work);
            !carried.is_forgotten(now, situation)
        });
        work
    }

    /// Every task.
    pub(super) fn running(&mut self) -> impl Iterator<Item = (&ChangefeedUuid, &mut Running)> {
        self.0.iter_mut().flat_map(|(changefeed, carried)| {
            let running = carried.tables.values_mut().filter_map(|table| table.running.as_mut());
            running.map(move |(_, running)| (changefeed, running))
        })
    }

    /// Nothing is attached to this capture any more that it knows of.
    pub(super) fn are_released(&self) -> bool {
        self.0.values().all(|carried| carried.state == ScheduleState::Removed)
    }

    /// What the owners must have read before this capture's rows may go.
    pub(super) fn last_words(&self) -> Vec<LastWord> {
        let said = self.0.values().filter(|carried| !carried.tables.is_empty());
        said.map(|carried| LastWord {
            owner: carried.owner_term(),
            tables: carried.report().tables.into_keys().collect(),
        })
        .collect()
    }

    /// What is attached will stay so: flushes of it ended without anybody knowing how.
    pub(super) fn are_unreleasable(&self) -> bool {
        let is_over = |carried: &Carried| carried.state == ScheduleState::Removed || carried.is_unknown();
        self.0.values().all(is_over)
    }

    /// Adds what is to be said to the capture's progress.
    pub(super) fn report_into(&self, entries: &mut BTreeMap<ChangefeedUuid, OwnedProgress>) {
        for (changefeed, carried) in &self.0 {
            if carried.tables.is_empty() {
                continue;
            }
            let nothing = || OwnedProgress::new(carried.term.owner_epoch, ChangefeedProgress::default());
            entries.entry(*changefeed).or_insert_with(nothing).processor = Some(carried.report());
        }
    }
}

/// What is said of a processor in a capture's progress.
fn said_of(progress: &CaptureProgress, changefeed: ChangefeedUuid) -> Option<&ProcessorReport> {
    progress.0.get(&changefeed)?.processor.as_ref()
}

impl Carried {
    fn new(change: &ProcessorChange) -> Self {
        let mut carried = Self {
            term: change.term,
            state: change.state,
            orders: TableOrders::default(),
            tables: BTreeMap::new(),
            spec: None,
            asking: false,
            ask_from: BootTime::default(),
            over_at: None,
            next: None,
        };
        carried.take(change);
        carried
    }

    fn take(&mut self, change: &ProcessorChange) {
        self.state = change.state;
        if change.state == ScheduleState::Removed {
            return;
        }
        match TableOrders::read(&change.assignment) {
            Ok(orders) => self.orders = orders,
            // Who goes on under the orders that it has can still be told to stop.
            Err(error) => {
                tracing::warn!(processor = %self.term, %error, "orders that cannot be read are not followed");
            }
        }
    }

    fn settle(&mut self, now: BootTime, situation: Situation, work: &mut Vec<ShareWork>) {
        // Of an attachment that another one follows nothing may go on.
        let state = if self.next.is_some() { ScheduleState::Removed } else { self.state };
        for table in self.orders.0.keys() {
            if !self.tables.contains_key(table) && state != ScheduleState::Removed {
                self.tables.insert(table.clone(), Table::default());
            }
        }
        let mut wants_spec = false;
        self.tables.retain(|id, table| {
            let order = self.orders.0.get(id);
            let entry = table.entry(state, order.map(|order| (order.since, order.stop)));
            match share_step(&entry, situation) {
                ShareStep::Wait => {}
                ShareStep::Drain => table.running.iter_mut().for_each(|(_, running)| running.drain()),
                ShareStep::Fence => table.running.iter_mut().for_each(|(_, running)| running.fence()),
                ShareStep::Stopped(since) => {
                    table.stopped = Some((since, None));
                    table.progress = order.map(|order| (since, table.start(&order.from)));
                }
                ShareStep::Launch(since) => match (&self.spec, order) {
                    (Some(_), Some(order)) => {
                        table.launches += 1;
                        let start = table.start(&order.from);
                        let share =
                            Share { table: id.clone(), processor: self.term, since, turn: order.turn };
                        work.push(ShareWork::Launch { share, launch: table.launches, start });
                    }
                    _ => wants_spec = true,
                },
                // The last word is kept; it is said for a while after the attachment is over.
                ShareStep::Drop => return state == ScheduleState::Removed,
            }
            true
        });
        if wants_spec && !self.asking && now >= self.ask_from {
            self.asking = true;
            work.push(ShareWork::Load(self.term));
        }
    }

    /// Releases what is to be detached, once nothing of it runs and what it did is written.
    fn release(
        &mut self,
        now: BootTime,
        situation: Situation,
        written: Option<&ProcessorReport>,
        work: &mut Vec<ShareWork>,
    ) {
        let wanted = match self.state {
            ScheduleState::Removed => false,
            ScheduleState::Removing => true,
            ScheduleState::Launched => situation.stopping,
        };
        // Asked last: it makes the report.
        let said = || self.tables.is_empty() || written == Some(&self.report());
        let may = situation.alive && !situation.expelled && !situation.recovering;
        if wanted && may && self.is_quiet() && !self.asking && now >= self.ask_from && said() {
            self.asking = true;
            work.push(ShareWork::Release(self.term));
        }
    }

    /// Nothing of it runs, or may still.
    fn is_quiet(&self) -> bool {
        self.tables.values().all(|table| table.running.is_none() && table.unknown_flush.is_none())
    }

    fn is_unknown(&self) -> bool {
        self.tables.values().any(|table| table.unknown_flush.is_some())
    }

    fn is_forgotten(&mut self, now: BootTime, situation: Situation) -> bool {
        if situation.expelled {
            return self.tables.values().all(|table| table.running.is_none());
        }
        if self.state != ScheduleState::Removed || !self.is_quiet() {
            return false;
        }
        now.since(*self.over_at.get_or_insert(now)) >= LAST_WORD
    }

    fn report(&self) -> ProcessorReport {
        let tables = self.tables.iter().filter_map(|(id, table)| Some((id.clone(), table.report()?)));
        ProcessorReport { epoch: self.term.epoch, tables: tables.collect() }
    }

    /// The owner's term that it serves, as this capture runs for it.
    pub(super) fn owner_term(&self) -> OwnerTerm {
        let ProcessorTerm { changefeed, capture, owner_epoch, .. } = self.term;
        OwnerTerm { changefeed, capture, epoch: owner_epoch }
    }

    /// Its row says `Removed` by this capture's own word.
    pub(super) fn released(&mut self) {
        self.state = ScheduleState::Removed;
    }

    /// A table's task has been started.
    pub(super) fn started(&mut self, share: &Share, running: Running) {
        if let Some(table) = self.tables.get_mut(&share.table) {
            table.running = Some((share.since, running));
        }
    }

    /// A table's task has ended: as it was told to, at the target, or because it could not go on. What ends because it was
    /// fenced has not stopped: it may be run again. `unknown` is said of a flush that ended without anybody knowing how.
    pub(super) fn ended(&mut self, table: &TableId, end: Result<(), TableError>, unknown: TableError) {
        let Some(table) = self.tables.get_mut(table) else { return };
        let Some((since, running)) = table.running.take() else { return };
        table.progress = Some((since, running.latest.borrow().clone()));
        if running.admission.outstanding() > 0 {
            table.unknown_flush = Some(unknown);
        }
        if running.is_fenced() || table.unknown_flush.is_some() {
            return;
        }
        table.stopped = Some((since, end.err()));
    }

    /// Whether a table's task was told to stop, or fenced; `None` when there is none.
    pub(super) fn was_told(&self, table: &TableId) -> Option<bool> {
        self.tables.get(table)?.running.as_ref().map(|(_, running)| running.was_told())
    }
}

impl Table {
    fn entry(&self, attachment: ScheduleState, order: Option<(Version, bool)>) -> ShareEntry {
        ShareEntry {
            attachment,
            order,
            running: self.running.as_ref().map(|(since, running)| (*since, running.phase)),
            stopped: self.stopped.as_ref().map(|(since, _)| *since),
            unknown_flush: self.unknown_flush.is_some(),
        }
    }

    /// Where it goes on, when it is ordered to from `from`: what this attachment has done is not done again.
    fn start(&self, from: &ChangefeedProgress) -> ChangefeedProgress {
        let done = self.progress.as_ref().map(|(_, progress)| progress.clone());
        done.map_or_else(|| from.clone(), |done| from.clone().further(done))
    }

    /// What is said of it; `None` before it has run or was told to stop.
    fn report(&self) -> Option<TableReport> {
        if let Some((since, running)) = &self.running {
            let progress = running.latest.borrow().clone();
            return Some(TableReport { since: *since, stopped: false, error: None, progress });
        }
        let (since, progress) = self.progress.clone()?;
        let stopped = self.stopped.as_ref().filter(|(stopped, _)| *stopped == since);
        let error = stopped.and_then(|(_, error)| error.clone()).or_else(|| self.unknown_flush.clone());
        Some(TableReport { since, stopped: stopped.is_some(), error, progress })
    }
}
