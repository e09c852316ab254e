//! Pure, total decisions: no clock, no I/O, no randomness that is not passed in.
//!
//! * [`schedule`] - which schedule states may follow which; what changed between two views of a schedule.
//! * [`feed_state`] - which changefeed states may follow which, and at whose word.
//! * [`lease`] - the time knobs and their rules; when a lease or a capture may be judged dead.
//! * [`assignment`] - who are the processors of a changefeed, and which of them carries which table.
//! * [`planner`] - what a controller does about a snapshot of the cluster.
//!
//! Stores enforce the first two inside their transactions, the runtime acts on the others, and each is
//! property-tested here.

pub mod assignment;
mod by_id;
pub mod feed_state;
pub mod lease;
pub mod planner;
pub mod schedule;
pub mod watch;
