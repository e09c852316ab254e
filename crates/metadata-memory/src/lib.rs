//! The metadata store in memory: a model of a database and of the network before it, for tests. It keeps nothing when the
//! process ends.
//!
//! * [`MemoryCluster`] is the database: one mutex around [`Tables`]. A transaction runs under it, whole or not at all; it
//!   can be paused, resumed, tampered with, and set back to a backup.
//! * [`MemoryStore`] is one process's handle on it. It implements every trait of [`metadata_api::store`] by calling the same
//!   pure decisions as the SQL stores, file for file in the same rooms.
//! * [`Link`] is that process's network: up, hanging, refusing, slow in either direction, losing answers, or delivering
//!   statements that their caller has given up ([`Conditions`]).
//! * [`Recorder`] is told of every transaction that committed, with the rows before and after: what checkers read.
//!
//! Latency is virtual: it is slept with `tokio::time`, so a paused clock makes it free. No time is read but from the
//! [`DatabaseClock`] that is passed in.
//!
//! # Faults
//!
//! | what happens | how |
//! |---|---|
//! | a partition | [`Path::Hangs`] on every lane: calls wait until their caller's limit, or the handle's own |
//! | a refused connection | [`Path::Refuses`] |
//! | one starved connection | a [`Conditions`] for one [`Lane`] |
//! | a lost COMMIT answer | [`Conditions::answers_lost`], or [`Faults`](metadata_api::store::faults::Faults) for one transaction |
//! | an abandoned statement that is applied after a newer one | [`Conditions::late`] with a long [`Conditions::there`] |
//! | a stopped database | [`MemoryCluster::pause`] |
//! | a restored backup | [`MemoryCluster::backup`], [`MemoryCluster::restore`] |
//! | a row that does not decode, or is gone | [`MemoryCluster::tamper`] |

mod admin;
mod capture;
mod channel;
mod cluster;
mod controller;
mod election;
mod link;
mod owner;
mod query;
mod signal;
mod store;
mod tables;
mod tx;

pub use cluster::{Backup, DatabaseClock, MemoryCluster, Recorder, Tamper};
pub use link::{Conditions, Lane, Link, Path};
pub use store::{MemoryOptions, MemoryStore};
pub use tables::{Change, Commit, FenceRow, InfoRow, ProgressRow, Row, Table, Tables};
