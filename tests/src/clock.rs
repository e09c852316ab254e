//! A wall clock that a test sets wrong.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use capture_runtime::clock::{BootTime, Clock, SystemClock};
use chrono::{DateTime, TimeDelta, Utc};

use crate::steering::WALL_CLOCK;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The system's clocks, but for the wall clock.
#[derive(Debug)]
pub struct SteeredClock {
    file: PathBuf,
    /// When it was looked at last, and what it said.
    seen: Mutex<(BootTime, TimeDelta)>,
}

impl SteeredClock {
    pub fn new(data_dir: &Path) -> Self {
        Self { file: data_dir.join(WALL_CLOCK), seen: Mutex::default() }
    }

    fn wrong_by(&self) -> TimeDelta {
        let now = SystemClock.now();
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if now.since(seen.0) >= LOOK_EVERY {
            let text = std::fs::read_to_string(&self.file).unwrap_or_default();
            *seen = (now, TimeDelta::seconds(text.trim().parse().unwrap_or(0)));
        }
        seen.1
    }
}

impl Clock for SteeredClock {
    fn now(&self) -> BootTime {
        SystemClock.now()
    }

    fn wall(&self) -> DateTime<Utc> {
        SystemClock.wall() + self.wrong_by()
    }
}
