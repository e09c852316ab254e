//! Checkpoints: none is ever seen to go back, and what was acknowledged is not lost.

use std::collections::BTreeMap;

use metadata_api::model::{CaptureId, ChangefeedUuid, OwnerEpoch, Ts};

use super::{Known, Rule, Violation, broken, facts, rows_of};
use crate::concurrent::history::{Call, Event, Fact, Moment, Outcome};

pub(super) fn check(history: &[Event], violations: &mut Vec<Violation>) {
    let mut news: BTreeMap<ChangefeedUuid, Vec<(Moment, Ts)>> = BTreeMap::new();
    for (event, fact) in facts(history) {
        if let Fact::Checkpoint(changefeed, ts) = fact {
            news.entry(*changefeed).or_default().push((event.returned, *ts));
        }
    }
    acknowledged(history, &mut news);
    let known: BTreeMap<_, _> = news.into_iter().map(|(uuid, values)| (uuid, Known::new(values))).collect();
    for (event, fact) in facts(history) {
        let Fact::Checkpoint(changefeed, ts) = fact else { continue };
        let floor = known.get(changefeed).and_then(|known| known.before(event.invoked));
        if floor.is_some_and(|floor| *ts < floor) {
            let text = format!("changefeed {changefeed} was at {floor:?} before");
            broken(violations, Rule::CheckpointsGrow, event, text);
        }
    }
}

/// What captures were told is written, of launches that were certainly still theirs.
fn acknowledged(history: &[Event], news: &mut BTreeMap<ChangefeedUuid, Vec<(Moment, Ts)>>) {
    // Since when a launch is known, and since when it may be over.
    let mut launched: BTreeMap<(ChangefeedUuid, OwnerEpoch, CaptureId), Moment> = BTreeMap::new();
    for (event, row) in rows_of(history) {
        let Some(owner) = row.owner else { continue };
        let first = launched.entry((row.changefeed, row.epoch, owner)).or_insert(event.returned);
        *first = (*first).min(event.returned);
    }
    let mut released: BTreeMap<(ChangefeedUuid, OwnerEpoch), Moment> = BTreeMap::new();
    let mut taken: BTreeMap<CaptureId, Moment> = BTreeMap::new();
    for event in history.iter().filter(|event| event.outcome != Outcome::Refused) {
        let first = match &event.call {
            Call::Release(term) => released.entry((term.changefeed, term.epoch)).or_insert(event.invoked),
            Call::Take(_, capture) => taken.entry(*capture).or_insert(event.invoked),
            _ => continue,
        };
        *first = (*first).min(event.invoked);
    }
    for event in history.iter().filter(|event| event.outcome == Outcome::Done) {
        let Call::Advance(term, entries) = &event.call else { continue };
        for (changefeed, epoch, ts) in entries {
            let capture = term.capture;
            let began = launched.get(&(*changefeed, *epoch, capture)).is_some_and(|at| *at < event.invoked);
            let over = |ends: Option<&Moment>| ends.is_some_and(|at| *at < event.returned);
            if began && !over(released.get(&(*changefeed, *epoch))) && !over(taken.get(&capture)) {
                news.entry(*changefeed).or_default().push((event.returned, *ts));
            }
        }
    }
}
