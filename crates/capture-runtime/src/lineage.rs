//! What a process knows of the one before it in the same place, so that a restart after a crash is fast.
//!
//! Others learn that a capture died by its silence, which takes about 17 s. Whoever starts *in its place* may know at once:
//! it holds a lock that the kernel lets go of only when the process is gone. Given such a proof, a capture does before it
//! registers what its predecessor could not do any more: it resigns the office, if that was its, and deregisters it.
//!
//! This is the one way by which work is taken from a capture without waiting for its deadline. The rest is as ever: the row is
//! sealed under the fence row's lock, the controller releases what it had, and launches it under new owner epochs.

use std::fmt;

use metadata_api::model::CaptureId;

/// Proofs about the former process, and a memory for the next.
///
/// The calls are made from asynchronous code and must return at once: a small local file is fine.
pub trait Lineage: fmt::Debug + Send + Sync {
    /// The capture that the former process was last, if it is **proven** that nothing of that process can act any more: that
    /// it has ended, has left no child, and that no flush of it can still reach a sink which is not fenced by the owner
    /// epoch. `None` when there is the least doubt; then everybody waits as usual.
    fn dead_predecessor(&self) -> Option<CaptureId>;

    /// This process is about to register as `capture`: for its successor to find. Called before the store hears of the id.
    /// What cannot be remembered costs the successor its fast restart, nothing else.
    fn remember(&self, capture: CaptureId);
}
