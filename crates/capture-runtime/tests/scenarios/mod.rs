//! One named test for each thing that must hold.

mod answers;
mod bounds;
mod defects;
mod found;
mod members;
mod outages;
mod planning;
mod processors;
mod repair;
mod restarts;
mod restored;
mod split;
mod stopping;
mod tasks;

use std::time::Duration;

/// So many seconds.
const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// So many milliseconds.
const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
