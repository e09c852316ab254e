//! Failures on order, so that tests see what a lost answer does. Production installs none.

use std::fmt::Debug;

/// Where in a transaction a failure is to happen. A write that is its own transaction has the same three points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultPoint {
    /// Before anything is sent.
    BeforeBegin,
    /// After the last statement, instead of COMMIT.
    BeforeCommit,
    /// After COMMIT was answered.
    AfterCommit,
}

/// Which failure is to happen.
///
/// | point | [`Retryable`](Self::Retryable) | [`AnswerLost`](Self::AnswerLost) |
/// |---|---|---|
/// | `BeforeBegin` | tried again | tried again |
/// | `BeforeCommit` | rolled back, tried again | rolled back, [`Unknown`](crate::MetadataError::Unknown): COMMIT was sent and never arrived |
/// | `AfterCommit` | committed, `Unknown` | committed, `Unknown` |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The database refuses for now, as by a lock wait that timed out.
    Retryable,
    /// The connection is lost with the answer.
    AnswerLost,
}

/// A test's plan of failures. Asked at each point of each transaction of a store that was opened with it.
pub trait Faults: Debug + Send + Sync {
    /// Which failure `transaction` (its name, as in [`Unknown`](crate::MetadataError::Unknown)) is to meet here, if any.
    fn at(&self, transaction: &'static str, point: FaultPoint) -> Option<FaultKind>;
}
