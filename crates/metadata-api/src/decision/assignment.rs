//! Which captures are processors of a changefeed, and which of them carries which of its tables.
//!
//! The controller attaches and detaches ([`choose_processors`]); the owner gives tables to those who are attached
//! ([`assign`]). Neither talks to a processor: orders are written into its row, and what it did about them is in its
//! capture's progress row ([`TableReport`]). A table moves in two steps:
//!
//! ```text
//! on p ──owner: stop──> stopping on p ──p: stopped, at x──> free ──owner, one transaction: p forgets it, q runs it from x──> on q
//!                            └──── p is Removed: it said so itself, or its capture was sealed ────^
//! ```
//!
//! **Never two** (invariant I7). A table is given away only when *no* row holds it. A row holds what it was ordered to run
//! until it has reported that very order as stopped, or is `Removed`; and it holds it whichever owner epoch it serves. Each
//! order is named by the version that its row got with it, so that no report about an earlier order of the same table on
//! the same row is taken for an answer. What was decided is written under the owner's token, all or nothing, and only while
//! *every* row of the changefeed is as it was seen, those that are not written included: a decision whose answer was lost
//! may be carried out after the next one, and both may have found the same table free.
//!
//! **Never a gap.** A table starts at the furthest that this owner's processors have reported as durable, or where the owner
//! itself was started. What processors of *former* owners reported is not looked at: an operator may have set the changefeed
//! back since. So a table that lost its owner may repeat, and its sink is to be fenced like any other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{
    CaptureId, ChangefeedProgress, OwnerEpoch, OwnerTerm, ProcessorAssignment, ProcessorSchedule,
    ProcessorTarget, ProcessorTerm, ScheduleState, Version,
};
use crate::{MetadataError, Result};

#[cfg(test)]
mod tests;

/// A table, or whatever else a source can be split by, under the name that the source gives it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableId(pub String);

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a processor is to do about one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableOrder {
    /// Names the order to run it: the version that the processor's row got with it. Another one than that under which the
    /// table runs means: stop that, then run this.
    pub since: Version,
    /// Where to start.
    pub from: ChangefeedProgress,
    /// Stop it, and report where it stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
}

/// All that a processor carries: the value of its [`ProcessorAssignment`]. What is not in it is not to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableOrders(pub BTreeMap<TableId, TableOrder>);

impl TableOrders {
    /// Reads what a row carries. A fresh attachment carries nothing.
    ///
    /// # Errors
    /// [`MetadataError::Corrupt`] when it is none of [`Self::encode`]'s.
    pub fn decode(row: &ProcessorSchedule) -> Result<Self> {
        if row.assignment.0.is_null() {
            return Ok(Self::default());
        }
        Self::deserialize(&row.assignment.0).map_err(|error| {
            let key = format!("{}, {}", row.changefeed, row.capture);
            MetadataError::corrupt("processor", key, "assignment", error.to_string())
        })
    }

    /// The value to store.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] when a position is none that JSON can hold.
    pub fn encode(&self) -> Result<ProcessorAssignment> {
        let value = serde_json::to_value(self);
        value
            .map(ProcessorAssignment)
            .map_err(|error| MetadataError::invalid("assignment", error.to_string()))
    }
}

/// What a processor says of one table, in its capture's progress row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableReport {
    /// Which order it is about.
    pub since: Version,
    /// It does not run it any more, nothing of it is under way, and it will not run it again under this order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// How far the table is in the sink, durably.
    pub progress: ChangefeedProgress,
}

/// One processor row, with what its capture last reported.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessorView {
    /// Which attachment.
    pub term: ProcessorTerm,
    /// Its state.
    pub state: ScheduleState,
    /// The row's version.
    pub version: Version,
    /// What it was ordered.
    pub orders: TableOrders,
    /// What it reported *under this attachment's epoch*, the sealed word of a dead capture included.
    pub reports: BTreeMap<TableId, TableReport>,
    /// Its capture is alive and not draining: it may be given tables.
    pub may_carry: bool,
}

impl ProcessorView {
    /// Whether this row may still be writing the table.
    fn holds(&self, table: &TableId) -> bool {
        self.state != ScheduleState::Removed
            && self.orders.0.get(table).is_some_and(|order| !self.has_stopped(table, order))
    }

    /// Whether the order to stop has been carried out.
    fn has_stopped(&self, table: &TableId, order: &TableOrder) -> bool {
        let report = self.reports.get(table);
        order.stop && report.is_some_and(|report| report.stopped && report.since == order.since)
    }
}

/// One changefeed, as its owner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangefeedView {
    /// The owner's epoch.
    pub owner_epoch: OwnerEpoch,
    /// Every table that is to be replicated, and where it starts as far as the owner knows by itself: from its launch, and
    /// from what [`positions`] gave before. (It keeps that: the rows of who was attached anew have forgotten it.)
    pub tables: BTreeMap<TableId, ChangefeedProgress>,
    /// Every processor row, the `Removed` ones included, in any order.
    pub processors: Vec<ProcessorView>,
}

/// What an owner may do at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssignPolicy {
    /// How many tables may be moving to even out the counts. Tables of who must not carry them move regardless.
    pub moves_in_flight: usize,
}

impl Default for AssignPolicy {
    fn default() -> Self {
        Self { moves_in_flight: 4 }
    }
}

/// What an owner has decided: written in one transaction or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The version of every processor row of the changefeed, the `Removed` ones included. Whoever writes checks, under the
    /// owner's token, that they are exactly these.
    pub seen: BTreeMap<CaptureId, Version>,
    /// What is written; empty when there is nothing to do but wait.
    pub writes: Vec<AssignmentWrite>,
}

/// New orders for one processor. Its row is `Launched`, and its version grows by one.
#[derive(Clone, Debug, PartialEq)]
pub struct AssignmentWrite {
    /// Which attachment.
    pub term: ProcessorTerm,
    /// All that it is to carry from now on.
    pub orders: TableOrders,
}

/// How far each table has come, by the owner's own word and that of the processors that serve it; always whole, the one with
/// the greater checkpoint (I6).
pub fn positions(view: &ChangefeedView) -> BTreeMap<TableId, ChangefeedProgress> {
    let mut positions = view.tables.clone();
    for processor in view.processors.iter().filter(|of| of.term.owner_epoch == view.owner_epoch) {
        let ordered = processor.orders.0.iter().map(|(table, order)| (table, &order.from));
        let reported = processor.reports.iter().map(|(table, report)| (table, &report.progress));
        for (table, progress) in ordered.chain(reported) {
            if let Some(position) = positions.get_mut(table)
                && progress.checkpoint_ts > position.checkpoint_ts
            {
                position.clone_from(progress);
            }
        }
    }
    positions
}

/// How far the whole changefeed has come: each number is the least of its tables', and no position is the source's own.
/// `None` where there are no tables.
pub fn checkpoint(view: &ChangefeedView) -> Option<ChangefeedProgress> {
    let least = |one: ChangefeedProgress, other: ChangefeedProgress| ChangefeedProgress {
        checkpoint_ts: one.checkpoint_ts.min(other.checkpoint_ts),
        resolved_ts: one.resolved_ts.min(other.resolved_ts),
        min_table_barrier_ts: one.min_table_barrier_ts.min(other.min_table_barrier_ts),
        position: None,
    };
    let plain = |progress| ChangefeedProgress { position: None, ..progress };
    positions(view).into_values().map(plain).reduce(least)
}

/// What the owner writes next.
///
/// In order: orders to stop that were carried out are forgotten; what is not to be replicated any more, and what is on a
/// capture that may not carry it, is told to stop; tables that nobody holds go to whoever has least; and while some have two
/// or more tables more than others, as few as possible of theirs are told to stop, at most
/// [`moves_in_flight`](AssignPolicy::moves_in_flight) at a time.
pub fn assign(view: &ChangefeedView, policy: &AssignPolicy) -> Decision {
    let mut desk = Desk::new(view);
    desk.settle();
    desk.give();
    desk.even_out(policy.moves_in_flight);
    let seen = view.processors.iter().map(|of| (of.term.capture, of.version)).collect();
    Decision { seen, writes: desk.writes() }
}

/// The orders that this owner may change, while they are being changed.
struct Desk<'a> {
    view: &'a ChangefeedView,
    /// The rows that serve this owner and are `Launched`, by capture: only these are written.
    mine: BTreeMap<CaptureId, (&'a ProcessorView, TableOrders)>,
    /// Of these, who may carry tables, and how many it is to run.
    load: BTreeMap<CaptureId, usize>,
}

impl<'a> Desk<'a> {
    fn new(view: &'a ChangefeedView) -> Self {
        let mine = view
            .processors
            .iter()
            .filter(|of| of.state == ScheduleState::Launched && of.term.owner_epoch == view.owner_epoch)
            .map(|of| (of.term.capture, (of, of.orders.clone())))
            .collect();
        Self { view, mine, load: BTreeMap::new() }
    }

    /// Forgets what has stopped, stops what must not run, and counts what is left.
    fn settle(&mut self) {
        for (capture, (processor, orders)) in &mut self.mine {
            orders.0.retain(|table, order| !processor.has_stopped(table, order));
            for (table, order) in &mut orders.0 {
                order.stop |= !processor.may_carry || !self.view.tables.contains_key(table);
            }
            if processor.may_carry {
                self.load.insert(*capture, orders.0.values().filter(|order| !order.stop).count());
            }
        }
    }

    /// Gives what nobody holds to whoever has least; ties go to the lowest id.
    fn give(&mut self) {
        let positions = positions(self.view);
        for (table, from) in positions {
            if self.view.processors.iter().any(|processor| processor.holds(&table)) {
                continue;
            }
            let Some((capture, count)) = self.load.iter_mut().min_by_key(|(id, count)| (**count, **id))
            else {
                return;
            };
            let Some((processor, orders)) = self.mine.get_mut(capture) else { return };
            *count += 1;
            let since = Version(processor.version.0 + 1);
            orders.0.insert(table, TableOrder { since, from, stop: false });
        }
    }

    /// Stops what is too much somewhere. Whoever has most keeps the one that cannot be shared: so the fewest move.
    fn even_out(&mut self, moves_in_flight: usize) {
        let (Some(least), Some(rest)) = (
            self.view.tables.len().checked_div(self.load.len()),
            self.view.tables.len().checked_rem(self.load.len()),
        ) else {
            return;
        };
        let moving = self.mine.values().flat_map(|(_, orders)| orders.0.values());
        let moving = moving.filter(|order| order.stop).count();
        let mut budget = moves_in_flight.saturating_sub(moving);
        let mut by_load: Vec<_> = self.load.iter().map(|(id, count)| (*count, *id)).collect();
        by_load.sort_by_key(|(count, id)| (Reverse(*count), *id));
        for (rank, (count, capture)) in by_load.into_iter().enumerate() {
            let share = least + usize::from(rank < rest);
            let Some((processor, orders)) = self.mine.get_mut(&capture) else { continue };
            let given = Version(processor.version.0 + 1);
            let surplus = orders.0.values_mut().rev().filter(|order| !order.stop && order.since != given);
            for order in surplus.take(count.saturating_sub(share).min(budget)) {
                order.stop = true;
                budget -= 1;
            }
        }
    }

    fn writes(self) -> Vec<AssignmentWrite> {
        let changed = self.mine.into_values().filter(|(processor, orders)| processor.orders != *orders);
        changed.map(|(processor, orders)| AssignmentWrite { term: processor.term, orders }).collect()
    }
}

/// What the controller asks of a changefeed's processor rows, so that `max_processors` captures (at least one) carry it.
///
/// `owner` is the changefeed's owner while its schedule is `Launched` and it ought to run; without one, everybody is
/// detached. `candidates` are the captures that are alive and not draining, each with the load it has otherwise.
///
/// Whoever serves this owner on a candidate stays. Others are detached, and so is what is too many: who has most load goes
/// first, the owner's own capture last. What is missing is attached: the owner's own capture first, then who has least load.
/// A row that is being detached is waited for: it is neither counted nor attached again before it is `Removed`.
pub fn choose_processors(
    owner: Option<OwnerTerm>,
    max_processors: usize,
    candidates: &BTreeMap<CaptureId, usize>,
    rows: &[ProcessorSchedule],
) -> Vec<ProcessorTarget> {
    let is_owner = |capture: &CaptureId| owner.is_some_and(|owner| owner.capture == *capture);
    let load = |capture: &CaptureId| candidates.get(capture).copied().unwrap_or(usize::MAX);
    let mut targets = Vec::new();
    let mut serving = Vec::new();
    for row in rows.iter().filter(|row| row.state == ScheduleState::Launched) {
        let serves = owner.is_some_and(|owner| owner.epoch == row.owner_epoch);
        if serves && candidates.contains_key(&row.capture) {
            serving.push(row);
        } else {
            targets.push(detach(row));
        }
    }
    if owner.is_none() {
        return targets;
    }
    let wanted = max_processors.max(1).min(candidates.len());
    serving.sort_by_key(|row| (!is_owner(&row.capture), load(&row.capture), row.capture));
    targets.extend(serving.iter().skip(wanted).map(|row| detach(row)));

    let rows: BTreeMap<CaptureId, &ProcessorSchedule> = rows.iter().map(|row| (row.capture, row)).collect();
    let vacant =
        |capture: &&CaptureId| rows.get(*capture).is_none_or(|row| row.state == ScheduleState::Removed);
    let mut vacant: BTreeSet<_> = candidates
        .keys()
        .filter(vacant)
        .map(|capture| (!is_owner(capture), load(capture), *capture))
        .collect();
    for _ in serving.len()..wanted {
        let Some((_, _, capture)) = vacant.pop_first() else { break };
        targets.push(ProcessorTarget {
            capture,
            expected_version: rows.get(&capture).map(|row| row.version),
            state: ScheduleState::Launched,
            assignment: ProcessorAssignment::default(),
        });
    }
    targets
}

fn detach(row: &ProcessorSchedule) -> ProcessorTarget {
    ProcessorTarget {
        capture: row.capture,
        expected_version: Some(row.version),
        state: ScheduleState::Removing,
        assignment: ProcessorAssignment::default(),
    }
}
