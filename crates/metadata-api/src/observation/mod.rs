//! What an application uses, in the shape of the interfaces of tiflow's `cdcv2/metadata`.
//!
//! | trait | who holds one |
//! |---|---|
//! | [`Querier`] | anybody |
//! | [`Elector`] | a capture |
//! | [`CaptureObservation`] | a capture |
//! | [`ControllerObservation`] | the capture that was elected, through its callback |
//! | [`OwnerObservation`] | the capture that owns a changefeed |
//! | [`ChangefeedAdmin`] | whoever serves operators; any capture |
//!
//! The `capture-runtime` crate implements all of them on any [`MetadataStore`](crate::store::MetadataStore).

mod admin;
mod capture;
mod controller;
mod elector;
mod owner;
mod querier;

pub use admin::ChangefeedAdmin;
pub use capture::{CaptureObservation, OwnerChange, ProcessorChange};
pub use controller::ControllerObservation;
pub use elector::{ControllerCallback, Elector};
pub use owner::OwnerObservation;
pub use querier::Querier;
