//! A model of the cluster for a model checker: every decision in it is the function that production calls, and its database is
//! the memory store, which passes the conformance suite of the SQL stores.
//!
//! * [`decisions`]: the table of production's decisions, and the mutants that the checker must find;
//! * [`database`]: the memory store, driven one call at a time;
//! * [`state`] and its fingerprint: what two moments must have in common to be the same one;
//! * [`cluster`]: what can happen next; [`faults`]: what can go wrong.
//!
//! What is abstracted: time goes in ticks of a second, in each of which every process that runs beats, looks and does what there
//! is to do, in any order ([`Order::Any`](cluster::Order)) or one after the other ([`Order::Fixed`](cluster::Order)); a call of the
//! store is one step, unless a fault is between its parts; tasks write numbers.

#![expect(clippy::unused_self, reason = "a step is the cluster's, whether it asks a decision or not")]

mod calls;
pub mod cluster;
pub mod database;
pub mod decisions;
mod duties;
pub mod faults;
mod fingerprint;
mod office;
pub mod state;
pub mod studies;
mod work;
