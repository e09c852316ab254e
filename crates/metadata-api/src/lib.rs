//! The contract of a SQL-backed metadata store for change data capture (CDC).
//!
//! A CDC cluster is a set of **captures** (processes) that agree through one SQL database on who may
//! write what. This crate holds everything they agree *on*, and no way of doing it: no SQL, no runtime,
//! no I/O.
//!
//! * [`model`] - the words of the domain as types: captures, changefeeds, schedules, positions.
//! * [`store`] - the traits that a **backend** implements. Transactions only, no background work.
//! * [`observation`] - the traits that an **application** uses, in the shape of tiflow's
//!   `cdcv2/metadata`; the `capture-runtime` crate implements them on any store.
//! * [`decision`] - pure, total functions: the state machines, the schedule diff, the lease arithmetic and
//!   the planner. Production, simulation and model checker call the very same ones.
//! * [`MetadataError`] - one error type, by what the caller can do about it.

pub mod codec;
pub mod decision;
mod error;
pub mod model;
pub mod observation;
pub mod store;

pub use error::{MetadataError, Result};
