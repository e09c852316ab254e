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
//! What cannot go on, and what has reached the target, stops by itself and says so; nobody has to tell it.
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

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::by_id::ById;
use crate::model::{
    CaptureId, CaptureInfo, CaptureState, ChangefeedProgress, ChangefeedUuid, OwnerEpoch, OwnerTerm,
    ProcessorAssignment, ProcessorSchedule, ProcessorStatus, ProcessorTarget, ProcessorTerm, Revision,
    ScheduleSnapshot, ScheduleState, SnapshotChangefeed, TableId, TableReport, Ts, Version,
};
use crate::{MetadataError, Result};

#[cfg(test)]
mod tests;

/// What a processor is to do about one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableOrder {
    /// Names the order to run it: the version that the processor's row got with it. Another one than that under which the
    /// table runs means: stop that, then run this.
    pub since: Version,
    /// Grows with each order to run the table, whoever gets it: what a sink names its pieces by, so that they are in order.
    /// A revision of the cluster, older than the one that the order was written at.
    pub turn: Revision,
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
        Self::read(&row.assignment).map_err(|reason| {
            let key = format!("{}, {}", row.changefeed, row.capture);
            MetadataError::corrupt("processor", key, "assignment", reason)
        })
    }

    /// Reads an assignment. That of a fresh attachment carries nothing.
    ///
    /// # Errors
    /// Why it is none of [`Self::encode`]'s.
    pub fn read(assignment: &ProcessorAssignment) -> Result<Self, String> {
        if assignment.0.is_null() {
            return Ok(Self::default());
        }
        Self::deserialize(&assignment.0).map_err(|error| error.to_string())
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
    /// What the store says of a processor.
    ///
    /// # Errors
    /// [`MetadataError::Corrupt`] when its assignment is none of [`TableOrders::encode`]'s.
    pub fn of(status: ProcessorStatus) -> Result<Self> {
        Ok(Self {
            term: status.schedule.term(),
            state: status.schedule.state,
            version: status.schedule.version,
            orders: TableOrders::decode(&status.schedule)?,
            reports: status.report.map(|report| report.tables).unwrap_or_default(),
            may_carry: status.capture == Some(CaptureState::Alive),
        })
    }

    /// Whether this row may still be writing the table.
    fn holds(&self, table: &TableId) -> bool {
        self.state != ScheduleState::Removed
            && self.orders.0.get(table).is_some_and(|order| !self.has_stopped(table, order))
    }

    /// Whether what was ordered does not run any more, and will not again: it was told to stop, or stopped by itself.
    fn has_stopped(&self, table: &TableId, order: &TableOrder) -> bool {
        self.reports.get(table).is_some_and(|report| report.stopped && report.since == order.since)
    }

    /// Whether it may still be writing anything of the changefeed.
    pub fn is_at_work(&self) -> bool {
        self.state != ScheduleState::Removed
            && self.orders.0.iter().any(|(table, order)| !self.has_stopped(table, order))
    }

    /// What stopped by itself because it could not go on, and has not been forgotten since.
    pub fn failures(&self) -> impl Iterator<Item = (&TableId, &TableReport)> {
        let failed = |(table, report): &(&TableId, &TableReport)| {
            report.error.is_some()
                && self.orders.0.get(*table).is_some_and(|order| order.since == report.since)
        };
        self.reports.iter().filter(failed)
    }
}

/// One changefeed, as its owner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangefeedView {
    /// The owner's epoch.
    pub owner_epoch: OwnerEpoch,
    /// The greatest revision that the owner has seen: not less than that of any row, nor of what it wrote itself.
    pub revision: Revision,
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

/// How far the whole changefeed has come, given the [`positions`] of its tables: each number is the least of theirs. Which
/// position of the source's own is a start for all of them is the source's to say. `None` where there are no tables.
pub fn checkpoint(positions: &BTreeMap<TableId, ChangefeedProgress>) -> Option<ChangefeedProgress> {
    let least = |of: fn(&ChangefeedProgress) -> Ts| positions.values().map(of).min();
    Some(ChangefeedProgress {
        checkpoint_ts: least(|table| table.checkpoint_ts)?,
        resolved_ts: least(|table| table.resolved_ts)?,
        min_table_barrier_ts: least(|table| table.min_table_barrier_ts)?,
        position: None,
    })
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
            orders.0.insert(table, TableOrder { since, turn: self.view.revision, from, stop: false });
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

/// A capture that may be a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The load that it has otherwise.
    pub load: usize,
    /// Its heart was heard a moment ago. If not, it may be dead: it keeps what it has until that is certain, and gets nothing.
    pub is_heard: bool,
}

/// What the controller asks of processors now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessorPlan {
    /// What it asks, by changefeed, in the order of their ids.
    pub targets: Vec<(ChangefeedUuid, Vec<ProcessorTarget>)>,
    /// Something would be attached to a capture that was not heard of lately: it is to be planned again soon, whether or not
    /// anything changes.
    pub waits: bool,
}

/// What the controller asks of a changefeed's processor rows, so that `max_processors` captures (at least one) carry it.
///
/// `owner` is the changefeed's owner while its schedule is `Launched` and it ought to run; without one, everybody is
/// detached. `candidates` are the captures that are alive and not draining.
///
/// Whoever serves this owner on a candidate stays. Others are detached, and so is what is too many: who has most load goes
/// first, the owner's own capture last. What is missing is attached: the owner's own capture first, then who has least load.
/// A row that is being detached is waited for: it is neither counted nor attached again before it is `Removed`.
pub fn choose_processors(
    owner: Option<OwnerTerm>,
    max_processors: usize,
    candidates: &BTreeMap<CaptureId, Candidate>,
    rows: &[ProcessorSchedule],
) -> Vec<ProcessorTarget> {
    let is_owner = |capture: &CaptureId| owner.is_some_and(|owner| owner.capture == *capture);
    let load = |capture: &CaptureId| candidates.get(capture).map_or(usize::MAX, |of| of.load);
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
    if serving.len() >= wanted {
        return targets;
    }

    let rows: BTreeMap<CaptureId, &ProcessorSchedule> = rows.iter().map(|row| (row.capture, row)).collect();
    let is_vacant =
        |capture: &CaptureId| rows.get(capture).is_none_or(|row| row.state == ScheduleState::Removed);
    let mut vacant: BTreeSet<_> = candidates
        .iter()
        .filter(|(capture, of)| of.is_heard && is_vacant(capture))
        .map(|(capture, of)| (!is_owner(capture), of.load, *capture))
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

/// Whether the controller has anything to look after among a changefeed's processors: it has some, or may get some.
pub fn wants_processors(feed: &SnapshotChangefeed) -> bool {
    feed.live_processors > 0 || (serves(feed).is_some() && max_processors(feed) > 1)
}

/// What the controller asks of the processor rows of every changefeed of the snapshot that [`wants_processors`], in the order
/// of their ids; `rows` are theirs, and whoever is not among them is left alone. Captures that are alive may carry what asks for no label that they have not; `heard` says
/// whose heart was heard a moment ago. A capture's load is the weight of what it owns, and one for each processor.
///
/// A changefeed whose placement cannot be read is left alone.
pub fn plan_processors(
    snapshot: &ScheduleSnapshot,
    rows: &BTreeMap<ChangefeedUuid, Vec<ProcessorSchedule>>,
    heard: impl Fn(CaptureId) -> bool,
) -> ProcessorPlan {
    let alive = snapshot.captures.iter().filter(|info| info.state == CaptureState::Alive);
    let alive: BTreeMap<CaptureId, &CaptureInfo> = alive.map(|info| (info.id, info)).collect();
    let mut loads: ById<usize> = ById::default();
    for feed in &snapshot.changefeeds {
        let weight = feed.placement.as_ref().map_or(1, |placement| placement.weight);
        if let Some(owner) = feed.schedule.owner {
            *loads.entry(owner).or_default() += usize::try_from(weight).unwrap_or(usize::MAX);
        }
    }
    for row in rows.values().flatten().filter(|row| row.state != ScheduleState::Removed) {
        *loads.entry(row.capture).or_default() += 1;
    }
    let candidate =
        |id: &CaptureId| (*id, Candidate { load: loads.get(id).copied().unwrap_or(0), is_heard: heard(*id) });
    // Who may carry what asks for no label: nearly all.
    let mut anywhere: BTreeMap<CaptureId, Candidate> = alive.keys().map(candidate).collect();
    let mut plan = ProcessorPlan::default();
    for feed in snapshot.changefeeds.iter().filter(|feed| wants_processors(feed)) {
        let (Ok(placement), Some(own)) = (&feed.placement, rows.get(&feed.schedule.changefeed)) else {
            continue;
        };
        let owner = serves(feed).filter(|_| placement.max_processors > 1);
        let admits = |id: &CaptureId| alive.get(id).is_some_and(|info| placement.admits(&info.labels));
        let candidates = if placement.affinity.is_empty() {
            Cow::Borrowed(&anywhere)
        } else {
            let admitted = anywhere.iter().filter(|(id, _)| admits(id));
            Cow::Owned(admitted.map(|(id, of)| (*id, *of)).collect())
        };
        let targets = choose_processors(owner, max_processors(feed), &candidates, own);
        if !plan.waits && candidates.values().any(|of| !of.is_heard) {
            let all_heard = candidates.iter().map(|(id, of)| (*id, Candidate { is_heard: true, ..*of }));
            let wanted = choose_processors(owner, max_processors(feed), &all_heard.collect(), own);
            plan.waits = wanted.len() > targets.len();
        }
        for target in targets.iter().filter(|target| target.state == ScheduleState::Launched) {
            if let Some(of) = anywhere.get_mut(&target.capture) {
                of.load += 1;
            }
        }
        if !targets.is_empty() {
            plan.targets.push((feed.schedule.changefeed, targets));
        }
    }
    plan
}

/// Whom processors of the changefeed serve, if they are to serve anybody.
fn serves(feed: &SnapshotChangefeed) -> Option<OwnerTerm> {
    let runs = feed.schedule.state == ScheduleState::Launched && feed.state.is_runnable() && !feed.removed;
    feed.schedule.term().filter(|_| runs)
}

fn max_processors(feed: &SnapshotChangefeed) -> usize {
    let placement = feed.placement.as_ref();
    placement.map_or(1, |placement| usize::try_from(placement.max_processors).unwrap_or(usize::MAX))
}

fn detach(row: &ProcessorSchedule) -> ProcessorTarget {
    ProcessorTarget {
        capture: row.capture,
        expected_version: Some(row.version),
        state: ScheduleState::Removing,
        assignment: ProcessorAssignment::default(),
    }
}
