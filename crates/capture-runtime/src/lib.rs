//! The capture runtime: what turns a [metadata store](metadata_api::store) into a running CDC cluster.
//!
//! It knows no store by name and nothing of what a changefeed does: it is given an
//! `Arc<dyn MetadataStore>`, a [`TaskFactory`](task::TaskFactory) and a [`Clock`](clock::Clock), and a
//! [`Capture`] made of them lives until it is told to stop.
//!
//! # A capture's life
//!
//! 1. It **registers** under a fresh id, its heartbeat connection opened first.
//! 2. It **beats** once a second, on that connection and nothing else ([`observer`]). Each success moves the one
//!    [`Deadline`](admission::Deadline) that all it runs shares: 10 s from when the heartbeat was *sent*.
//! 3. It **watches**: one poll each half second tells who is controller, what is new for it and how much it owns.
//! 4. It **campaigns** when the lease is vacant or has stood still for its whole length; when it wins it looks, plans
//!    and acts as [`controller`] until its own deadline passes or its epoch is refused.
//! 5. It **runs** what it owns ([`launches`]): each launch has an [`Admission`](admission::Admission) of its own, asked before
//!    every flush; what has stopped is released.
//! 6. If the **database is away** beyond the deadline, everything stops by itself; when it is back, and the row was not
//!    sealed meanwhile, it goes on from the stored progress with the same id.
//! 7. If it was **sealed**, everything stops and it registers anew.
//! 8. If its process **crashed**, the next one in the same place takes its work at once, given proof ([`Lineage`]).
//! 9. Told to **stop**, it steps down, announces it, drains, releases, deregisters; heartbeats go on to the end.
//!
//! Embedding it in a CDC of your own: implement [`TaskFactory`](task::TaskFactory), open a store, and run a [`Capture`].
//! [`admin::Admin`] creates, pauses, resumes, updates and removes changefeeds, on any process.

pub mod admin;
pub mod admission;
mod capture;
pub mod clock;
pub mod controller;
mod error;
pub mod launches;
mod lineage;
pub mod observer;
pub mod owner;
mod pace;
pub mod repair;
pub mod task;

pub use capture::{Capture, CaptureConfig, CaptureStatus};
pub use error::RuntimeError;
pub use lineage::Lineage;
