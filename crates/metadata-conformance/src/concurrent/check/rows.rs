//! Schedules: what watchers see of them, and that there is one owner.

use std::collections::{BTreeMap, BTreeSet};

use metadata_api::model::{CaptureId, ChangefeedUuid, OwnerEpoch, Revision, ScheduleState, Version};

use super::{Rule, Violation, broken, facts, rows_of};
use crate::concurrent::history::{Call, Event, Fact, Moment, Outcome, Row};

/// A changefeed's rows by version, as far as anybody was told.
#[derive(Default)]
struct Story<'h> {
    rows: Vec<(Row, &'h Event)>,
    /// The last version, if it is known to be.
    last: Option<Version>,
}

impl Story<'_> {
    /// The row as it was at `revision`, if that is certain: the next version came later, or there is none.
    fn at(&self, revision: Revision) -> Option<&Row> {
        let later = self.rows.partition_point(|(row, _)| row.revision <= revision);
        let (row, _) = &self.rows[later.checked_sub(1)?];
        let next = self.rows.get(later).is_some_and(|(next, _)| next.version.0 == row.version.0 + 1);
        (next || self.last == Some(row.version)).then_some(row)
    }
}

pub(super) fn check(history: &[Event], violations: &mut Vec<Violation>) {
    let mut versions: BTreeMap<(ChangefeedUuid, Version), (Row, &Event)> = BTreeMap::new();
    let mut stories: BTreeMap<ChangefeedUuid, Story<'_>> = BTreeMap::new();
    for (event, row) in rows_of(history) {
        let (first, _) = versions.entry((row.changefeed, row.version)).or_insert((*row, event));
        if first != row {
            broken(
                violations,
                Rule::RevisionsGrow,
                event,
                format!("one version, and another row: {first:?}"),
            );
        }
        if event.call == Call::Last {
            stories.entry(row.changefeed).or_default().last = Some(row.version);
        }
    }
    for ((changefeed, _), row) in versions {
        stories.entry(changefeed).or_default().rows.push(row);
    }
    for story in stories.values() {
        follow(story, violations);
    }
    watchers(history, &stories, violations);
    relaunches(history, violations);
}

/// From one version to the next.
fn follow(story: &Story<'_>, violations: &mut Vec<Violation>) {
    let mut owners: BTreeMap<OwnerEpoch, CaptureId> = BTreeMap::new();
    let mut before: Option<Row> = None;
    for (row, event) in &story.rows {
        if let Some(before) = before {
            if row.revision <= before.revision {
                broken(violations, Rule::RevisionsGrow, event, format!("a later version of {before:?}"));
            }
            let adjacent = row.version.0 == before.version.0 + 1;
            let relaunched = row.state == ScheduleState::Launched && row.epoch != before.epoch;
            if adjacent && relaunched && before.state != ScheduleState::Removed {
                broken(violations, Rule::OneOwner, event, format!("launched over {before:?}"));
            }
            if row.epoch < before.epoch {
                broken(violations, Rule::OneOwner, event, format!("an older launch than {before:?}"));
            }
        }
        if let Some(owner) = row.owner {
            let first = *owners.entry(row.epoch).or_insert(owner);
            if first != owner {
                broken(violations, Rule::OneOwner, event, format!("the launch was on {first}"));
            }
        }
        before = Some(*row);
    }
}

fn watchers(
    history: &[Event],
    stories: &BTreeMap<ChangefeedUuid, Story<'_>>,
    violations: &mut Vec<Violation>,
) {
    for event in history.iter().filter(|event| event.outcome == Outcome::Done) {
        let Call::Poll(term, after) = &event.call else { continue };
        let revision = event.facts.iter().find_map(|fact| match fact {
            Fact::Revision(revision) => Some(*revision),
            _ => None,
        });
        let Some(revision) = revision else { continue };
        let mut seen = BTreeSet::new();
        for fact in &event.facts {
            let Fact::Saw(row) = fact else { continue };
            seen.insert((row.changefeed, row.version));
            if row.revision <= *after || row.revision > revision {
                broken(
                    violations,
                    Rule::WatchersSeeAll,
                    event,
                    format!("not between the revisions: {row:?}"),
                );
            }
        }
        for story in stories.values() {
            let Some(row) = story.at(revision) else { continue };
            let concerns = row.owner == Some(term.capture) && row.revision > *after;
            if concerns && !seen.contains(&(row.changefeed, row.version)) {
                broken(violations, Rule::WatchersSeeAll, event, format!("it missed {row:?}"));
            }
        }
    }
}

/// Each launch but the first comes after something that may have ended the former.
fn relaunches(history: &[Event], violations: &mut Vec<Violation>) {
    let mut ends: BTreeMap<(ChangefeedUuid, OwnerEpoch), Moment> = BTreeMap::new();
    let mut taken: BTreeMap<CaptureId, Moment> = BTreeMap::new();
    for event in history.iter().filter(|event| event.outcome != Outcome::Refused) {
        match &event.call {
            Call::Release(term) => {
                let first = ends.entry((term.changefeed, term.epoch)).or_insert(event.invoked);
                *first = (*first).min(event.invoked);
            }
            Call::Take(_, capture) => {
                let first = taken.entry(*capture).or_insert(event.invoked);
                *first = (*first).min(event.invoked);
            }
            _ => {}
        }
    }
    let mut launches: BTreeMap<ChangefeedUuid, BTreeMap<OwnerEpoch, (CaptureId, Moment, &Event)>> =
        BTreeMap::new();
    for (event, fact) in facts(history) {
        let (Fact::Wrote(row) | Fact::Saw(row)) = fact else { continue };
        let Some(owner) = row.owner else { continue };
        let known = launches.entry(row.changefeed).or_default();
        let first = known.entry(row.epoch).or_insert((owner, event.returned, event));
        if event.returned < first.1 {
            *first = (owner, event.returned, event);
        }
    }
    for (changefeed, epochs) in launches {
        let all: Vec<_> = epochs.into_iter().collect();
        for pair in all.windows(2) {
            let [(former, (owner, ..)), (_, (_, launched, event))] = pair else { continue };
            let released = ends.get(&(changefeed, *former)).is_some_and(|at| at < launched);
            let taken = taken.get(owner).is_some_and(|at| at < launched);
            if !(released || taken) {
                let text = format!("nobody had ended the launch of epoch {former} on {owner}");
                broken(violations, Rule::OneOwner, event, text);
            }
        }
    }
}
