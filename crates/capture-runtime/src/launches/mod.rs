//! What this capture runs, and the promises around it.
//!
//! It is one event loop over all changefeeds that the capture owns. For each it keeps an [`Entry`]; whenever
//! something happens (an order, a task's end, an answer of the store, the deadline) it asks the pure function
//! [`next_step`] what to do about it. Nothing else decides.
//!
//! * A launch order is carried out only after the store has said, in one statement, that the order still stands and from
//!   where to start.
//! * A relaunch waits until the former launch's task has ended and every flush it admitted has an outcome.
//! * After the capture fenced itself (the deadline passed) nothing is launched until *all* tasks have ended, the
//!   progress is written with a higher sequence and the row was read back.
//! * What has stopped is released, many at a time, at most one such transaction under way.

mod entry;
mod failing;
mod feed;
mod manager;
mod state_report;

pub use entry::{Entry, LaunchStep, Outcome, Phase, Situation, next_step};
pub(crate) use manager::{Exit, run};
