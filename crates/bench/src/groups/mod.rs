//! The groups of figures. Each works on databases of its own, one after the other: nothing else runs meanwhile.

mod admin;
mod advance;
mod captures;
mod cluster;
mod heartbeat;
mod idle;
mod launch;
mod lists;
mod owner_change;
mod plan;
mod poll;
mod snapshot;
mod takeover;

use std::collections::BTreeMap;

use anyhow::Result;
use futures::FutureExt as _;
use futures::future::{LocalBoxFuture, ready};
use metadata_api::model::{CaptureId, NewCapture};

pub use snapshot::probe;

use crate::bed::Target;
use crate::figure::Figure;
use crate::scale::Scale;

/// What a group is given, and where it puts its figures.
pub struct Run<'a> {
    /// What is measured.
    pub target: &'a Target,
    /// How much of everything.
    pub scale: &'a Scale,
    /// What came of it.
    pub figures: Vec<Figure>,
    /// Told what is being measured now.
    pub say: &'a (dyn Fn(String) + Sync),
}

impl Run<'_> {
    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str, baseline: Option<f64>) {
        self.figures.push(Figure::new(name, self.target.database, value, unit, baseline));
    }

    /// Says what is being measured now.
    pub fn say(&self, what: impl Into<String>) {
        (self.say)(what.into());
    }
}

/// A group: its name, and what it does.
pub struct Group {
    /// As `--only` names it.
    pub name: &'static str,
    /// Measures.
    pub run: for<'a> fn(&'a mut Run<'_>) -> LocalBoxFuture<'a, Result<()>>,
}

/// All of them, in the order in which they run.
pub static GROUPS: [Group; 12] = [
    Group { name: "heartbeat", run: |run| heartbeat::run(run).boxed_local() },
    Group { name: "captures", run: |run| captures::run(run).boxed_local() },
    Group { name: "idle", run: |run| idle::run(run).boxed_local() },
    Group { name: "advance", run: |run| advance::run(run).boxed_local() },
    Group { name: "admin", run: |run| admin::run(run).boxed_local() },
    Group { name: "launch", run: |run| launch::run(run).boxed_local() },
    Group { name: "plan", run: |run| ready(plan::run(run)).boxed_local() },
    Group { name: "snapshot", run: |run| snapshot::run(run).boxed_local() },
    Group { name: "poll", run: |run| poll::run(run).boxed_local() },
    Group { name: "lists", run: |run| lists::run(run).boxed_local() },
    Group { name: "owner_change", run: |run| owner_change::run(run).boxed_local() },
    Group { name: "takeover", run: |run| takeover::run(run).boxed_local() },
];

/// What a fresh capture says of itself.
fn new_capture() -> NewCapture {
    NewCapture {
        id: CaptureId::random(),
        advertise_addr: "127.0.0.1:8300".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: BTreeMap::new(),
        machine_id: String::new(),
    }
}

/// So many rows, for people.
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!([1, 1_000, 100_000, 1_234_567].map(grouped), ["1", "1,000", "100,000", "1,234,567"]);
    }
}
