//! What a backend implements: one trait a role, joined as [`MetadataStore`].
//!
//! A store does transactions only; it does nothing that nobody called for, and decides nothing by time. Each method is one
//! named transaction (or one plain statement) and says which token it checks. The rules that hold for
//! all of them:
//!
//! * **Fencing** (I1, I8). A write in a role carries the role's term. The term is checked under a row lock in the
//!   write's own transaction; a term that is over gives [`Fenced`](crate::MetadataError::Fenced) and changes nothing.
//! * **Lock order** (I2). `fence`, `election`, `upstream`, then per uuid ascending `schedule`, `processor`,
//!   `changefeed_info`, `changefeed_state`; then `capture`, `progress`.
//! * **Conditional writes** (I3). The condition is in the `WHERE`, and the affected-row count is checked.
//! * **Revisions** (I4). A change that others act on takes a revision under the fence row's lock in its own
//!   transaction: `max(revision + 1, microseconds of the database's clock)`. The rows it changed carry it. (Calls of several
//!   callers may share a transaction; creates then take a revision each, for their uuids.)
//! * **Lost answers** (I5). A write whose answer was lost is [`Unknown`](crate::MetadataError::Unknown); a transaction
//!   that certainly did not happen is retried inside and then [`Unavailable`](crate::MetadataError::Unavailable).
//! * **Absent is not an error.** A lookup of something that does not exist gives `None` or leaves it out.
//!
//! Cancelling a call (dropping its future) leaves nothing open on the server: the connection is closed. Whether the call was
//! made is unknown then, as when an answer is lost; where it shares a transaction with others it may be made a little later.
//!
//! How to add a store: implement the traits of this module, file by file, in a crate of your own, and run the
//! `metadata-conformance` suite on it.

mod admin;
mod capture;
mod controller;
mod election;
pub mod faults;
mod owner;
mod query;

pub use admin::{AdminStore, Authority};
pub use capture::{Assigned, CaptureStore, HeartbeatChannel, PollAnswer, PollCursor, WatchChannel};
pub use controller::ControllerStore;
pub use election::ElectionStore;
pub use owner::{OwnerEnd, OwnerRelease, OwnerStore};
pub use query::QueryStore;

/// The most changefeeds that one transaction may touch. Batch methods refuse more with
/// [`InvalidArgument`](crate::MetadataError::InvalidArgument); callers split.
pub const MAX_BATCH: usize = 500;

/// The most rows of a kind that one poll answers.
pub const POLL_PAGE: usize = 500;

/// A whole store.
pub trait MetadataStore:
    QueryStore
    + ElectionStore
    + CaptureStore
    + ControllerStore
    + OwnerStore
    + AdminStore
    + std::fmt::Debug
    + 'static
{
}

impl<T> MetadataStore for T where
    T: QueryStore
        + ElectionStore
        + CaptureStore
        + ControllerStore
        + OwnerStore
        + AdminStore
        + std::fmt::Debug
        + 'static
{
}
