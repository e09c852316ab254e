//! Whether a history is lawful. Pure: from what clients were told, and when, to what cannot have been.
//!
//! Only what is certain counts: a call that returned before another was made came before it; of two that overlap nothing is
//! said. A call of unknown outcome is no evidence, and excuses what it may have caused.

mod checkpoints;
mod rows;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;

use super::history::{Event, Fact, Moment, Outcome, Row};

/// What every history must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A controller epoch has one holder.
    OneHolderAnEpoch,
    /// Controller epochs and lease sequences grow.
    EpochsGrow,
    /// Revisions grow, and each write has its own.
    RevisionsGrow,
    /// Nothing is written by a token after a newer one, or after its end.
    OldToken,
    /// A watcher sees every change of its rows.
    WatchersSeeAll,
    /// A checkpoint does not go back, and what was acknowledged is not lost.
    CheckpointsGrow,
    /// A changefeed has one owner, and the next one only after the former is done with.
    OneOwner,
}

/// A rule that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// The calls, and what is wrong with them.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.text)
    }
}

/// Everything that cannot have been.
pub fn check(history: &[Event]) -> Vec<Violation> {
    let mut violations = Vec::new();
    tokens::check(history, &mut violations);
    rows::check(history, &mut violations);
    checkpoints::check(history, &mut violations);
    violations
}

fn broken(violations: &mut Vec<Violation>, rule: Rule, event: &Event, text: impl fmt::Display) {
    violations.push(Violation { rule, text: format!("{text}\n    {event:?}") });
}

/// What calls that went well say.
fn facts(history: &[Event]) -> impl Iterator<Item = (&Event, &Fact)> {
    let done = history.iter().filter(|event| event.outcome == Outcome::Done);
    done.flat_map(|event| event.facts.iter().map(move |fact| (event, fact)))
}

/// The schedule rows among them.
fn rows_of(history: &[Event]) -> impl Iterator<Item = (&Event, &Row)> {
    facts(history).filter_map(|(event, fact)| match fact {
        Fact::Wrote(row) | Fact::Saw(row) => Some((event, row)),
        _ => None,
    })
}

/// Since when what is known: the greatest value that was known before a moment.
#[derive(Debug)]
struct Known<T>(Vec<(Moment, T)>);

impl<T: Ord + Copy> Known<T> {
    fn new(values: impl IntoIterator<Item = (Moment, T)>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_unstable();
        let mut greatest: Option<T> = None;
        for (_, value) in &mut values {
            let now = greatest.map_or(*value, |before| before.max(*value));
            (greatest, *value) = (Some(now), now);
        }
        Self(values)
    }

    fn before(&self, moment: Moment) -> Option<T> {
        let count = self.0.partition_point(|(known, _)| *known < moment);
        count.checked_sub(1).map(|last| self.0[last].1)
    }
}
