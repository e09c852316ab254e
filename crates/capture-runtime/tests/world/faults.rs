//! Failures of single transactions, for one process; and what is looked at whenever one of its transactions commits.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use metadata_api::store::faults::{FaultKind, FaultPoint, Faults};

use super::Dice;

type OnCommit = Box<dyn Fn(&'static str) + Send + Sync>;

#[derive(Default)]
struct Plan {
    ordered: Vec<(&'static str, FaultPoint, Fault, usize)>,
    /// One in so many transactions loses its answer, before or after it committed.
    chance: Option<(u64, Dice)>,
    tried: BTreeMap<&'static str, usize>,
}

/// What is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Fails(FaultKind),
    Panics,
}

/// One process's plan.
#[derive(Clone, Default)]
pub struct PlannedFaults {
    plan: Arc<Mutex<Plan>>,
    on_commit: Arc<Mutex<Option<OnCommit>>>,
}

impl PlannedFaults {
    fn order(&self, transaction: &'static str, point: FaultPoint, fault: Fault, times: usize) {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        plan.ordered.push((transaction, point, fault, times));
    }

    /// The next so many commit, and nobody hears of it.
    pub fn lose_answers(&self, transaction: &'static str, times: usize) {
        self.order(transaction, FaultPoint::AfterCommit, Fault::Fails(FaultKind::AnswerLost), times);
    }

    /// The next so many COMMITs never arrive.
    pub fn lose_commits(&self, transaction: &'static str, times: usize) {
        self.order(transaction, FaultPoint::BeforeCommit, Fault::Fails(FaultKind::AnswerLost), times);
    }

    /// The database is too busy for the next so many tries.
    pub fn refuse(&self, transaction: &'static str, times: usize) {
        self.order(transaction, FaultPoint::BeforeBegin, Fault::Fails(FaultKind::Retryable), times);
    }

    /// The store's code panics.
    pub fn panic_in(&self, transaction: &'static str) {
        self.order(transaction, FaultPoint::BeforeBegin, Fault::Panics, 1);
    }

    /// From now on one in `n` transactions loses its COMMIT or its answer; `None` = no more.
    pub fn chance(&self, chance: Option<(u64, Dice)>) {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).chance = chance;
    }

    pub fn on_commit(&self, look: impl Fn(&'static str) + Send + Sync + 'static) {
        *self.on_commit.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(look));
    }

    /// How often a transaction was begun.
    pub fn tries(&self, transaction: &str) -> usize {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).tried.get(transaction).copied().unwrap_or(0)
    }

    /// How many ordered failures have not happened yet.
    pub fn left(&self) -> usize {
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        plan.ordered.iter().map(|(.., times)| times).sum()
    }

    fn due(&self, transaction: &'static str, point: FaultPoint) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        if point == FaultPoint::BeforeBegin {
            *plan.tried.entry(transaction).or_default() += 1;
        }
        let ordered = plan
            .ordered
            .iter_mut()
            .find(|(name, at, _, times)| *name == transaction && *at == point && *times > 0);
        if let Some((_, _, fault, times)) = ordered {
            *times -= 1;
            return Some(*fault);
        }
        let (one_in, dice) = plan.chance.as_ref()?;
        let lost = point != FaultPoint::BeforeBegin && dice.one_in(*one_in * 2);
        lost.then_some(Fault::Fails(FaultKind::AnswerLost))
    }
}

impl Faults for PlannedFaults {
    fn at(&self, transaction: &'static str, point: FaultPoint) -> Option<FaultKind> {
        if point == FaultPoint::AfterCommit
            && let Some(look) = &*self.on_commit.lock().unwrap_or_else(PoisonError::into_inner)
        {
            look(transaction);
        }
        match self.due(transaction, point)? {
            Fault::Fails(kind) => Some(kind),
            Fault::Panics => panic!("{transaction}: a planned panic in the store"),
        }
    }
}

impl fmt::Debug for PlannedFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlannedFaults").field("left", &self.left()).finish_non_exhaustive()
    }
}
