//! Moments on an observer's own clock.

use std::ops::Add;
use std::time::Duration;

/// A moment on this host's `CLOCK_BOOTTIME`: it never goes back, nobody sets it, and it goes on while the
/// host is suspended (invariant I1). Only differences within one boot mean something; it is never stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(Duration);

impl BootTime {
    /// `since_boot` after the boot.
    pub const fn from_boot(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// How long after the boot.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// How much later `self` is than `earlier`; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }
}
