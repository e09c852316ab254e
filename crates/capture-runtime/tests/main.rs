//! Whole captures on the store in memory, in virtual time. A run is a function of its seed.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unchecked_time_subtraction,
    reason = "a panic is how a test fails"
)]

mod scenarios;
mod simulation;
mod world;
