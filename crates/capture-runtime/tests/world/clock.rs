//! The world's time, and each process's and the database's clocks on it.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use capture_runtime::clock::{BootTime, Clock};
use chrono::{DateTime, TimeDelta, Utc};
use metadata_memory::DatabaseClock;
use tokio::time::Instant;

use super::Dice;

/// How often a clock may be read at one and the same instant before it must be a loop that never waits.
const MOST_READS_AT_ONCE: u64 = 200_000;

/// The world's time: tokio's, paused, counted from the world's beginning.
#[derive(Clone, Copy, Debug)]
pub struct WorldTime(Instant);

impl WorldTime {
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// How old the world is.
    pub fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// One host's clocks. They begin anywhere, and stand still while the process is suspended: nothing of it runs then that
/// could tell.
pub struct ProcessClock {
    time: WorldTime,
    boot: Duration,
    frozen: Mutex<Option<Duration>>,
    dice: Dice,
    wall_ms: AtomicI64,
    read_at: AtomicU64,
    reads: AtomicU64,
}

impl ProcessClock {
    pub fn new(time: WorldTime, dice: Dice) -> Self {
        let boot = dice.ms(1_000, 10_000_000);
        Self {
            time,
            boot,
            frozen: Mutex::default(),
            dice,
            wall_ms: AtomicI64::new(0),
            read_at: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        }
    }

    /// Stands still until [`Self::go_on`].
    pub fn freeze(&self) {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.time.now());
    }

    /// Jumps to where it would be.
    pub fn go_on(&self) {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sets the wall clock this far off.
    pub fn set_wall(&self, off: TimeDelta) {
        self.wall_ms.store(off.num_milliseconds(), Ordering::SeqCst);
    }

    fn since_boot(&self, now: Duration) -> Duration {
        let frozen = *self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        self.boot + frozen.unwrap_or(now)
    }

    /// A loop that goes round without waiting would stop virtual time, and with it every test, for good.
    fn look_for_spinning(&self, now: Duration) {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        if self.read_at.swap(nanos, Ordering::SeqCst) != nanos {
            self.reads.store(0, Ordering::SeqCst);
        }
        if self.reads.fetch_add(1, Ordering::SeqCst) == MOST_READS_AT_ONCE {
            let replay = crate::simulation::replay();
            eprintln!("a loop goes round and round at {now:?} without waiting; {replay}");
            std::process::abort();
        }
    }
}

impl fmt::Debug for ProcessClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessClock")
            .field("since_boot", &self.since_boot(self.time.now()))
            .finish_non_exhaustive()
    }
}

impl Clock for ProcessClock {
    fn now(&self) -> BootTime {
        let now = self.time.now();
        self.look_for_spinning(now);
        BootTime::from_boot(self.since_boot(now))
    }

    fn wall(&self) -> DateTime<Utc> {
        let now = TimeDelta::from_std(self.time.now()).unwrap_or_default();
        birth() + now + TimeDelta::milliseconds(self.wall_ms.load(Ordering::SeqCst))
    }

    fn random(&self) -> u64 {
        self.dice.next()
    }
}

/// The database server's clocks.
#[derive(Debug)]
pub struct DbClock {
    time: WorldTime,
    wall_ms: AtomicI64,
}

impl DbClock {
    pub fn new(time: WorldTime) -> Self {
        Self { time, wall_ms: AtomicI64::new(0) }
    }

    /// How old the world was when this wall clock, never having been set, showed `wall`.
    pub fn age_at(wall: DateTime<Utc>) -> Duration {
        (wall - birth()).to_std().unwrap_or_default()
    }

    /// Sets the wall clock this far off.
    pub fn set_wall(&self, off: TimeDelta) {
        self.wall_ms.store(off.num_milliseconds(), Ordering::SeqCst);
    }
}

impl DatabaseClock for DbClock {
    fn monotonic(&self) -> Duration {
        self.time.now()
    }

    fn wall(&self) -> DateTime<Utc> {
        let now = TimeDelta::from_std(self.time.now()).unwrap_or_default();
        birth() + now + TimeDelta::milliseconds(self.wall_ms.load(Ordering::SeqCst))
    }
}

/// When the world began, for people.
fn birth() -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_700_000_000_000).unwrap_or_default()
}
