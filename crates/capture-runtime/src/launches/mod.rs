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
//! * What it carries as a processor of others' changefeeds, table by table, is decided upon by [`share_step`] in the same
//!   way, under the same deadline, and reported in the same progress row.
//! * A changefeed that asks for several processors is not run by its owner but coordinated (`coordinator.rs`).
//! * What has stopped is released, many at a time, at most one such transaction under way.

mod carrying;
mod coordinator;
mod entry;
mod failing;
mod feed;
mod manager;
mod share_step;
mod shares;
mod shown;
mod state_report;

pub use entry::{Entry, LaunchStep, Outcome, Phase, Situation, next_step};
pub(crate) use manager::{Exit, run};
pub use share_step::{ShareEntry, ShareStep, share_step};
pub(crate) use shares::LastWord;
