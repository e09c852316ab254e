//! One process's network.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use metadata_api::{MetadataError, Result};

use crate::signal::Signal;

/// One of the three kinds of connection that a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The heartbeat's own.
    Heartbeat,
    /// The watch's own: polls and lease renewals.
    Watch,
    /// The pool: everything else.
    Pool,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 3] = [Self::Heartbeat, Self::Watch, Self::Pool];
}

/// Whether anything gets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Path {
    /// Yes.
    #[default]
    Up,
    /// Packets are dropped: a call waits until the path is up again, or somebody's limit.
    Hangs,
    /// Connections are reset: a call fails at once.
    Refuses,
}

/// How a lane is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Whether anything gets through, in either direction.
    pub path: Path,
    /// How long a request takes to the database.
    pub there: Duration,
    /// How long an answer takes back.
    pub back: Duration,
    /// Requests arrive and are carried out; answers never come.
    pub answers_lost: bool,
    /// A single-statement write whose caller gave it up is carried out all the same when it arrives, perhaps after newer
    /// ones. (Otherwise giving a call up before it arrived takes it back.)
    pub late: bool,
}

/// One process's network. Clones are the same network.
#[derive(Clone, Debug)]
pub struct Link {
    lanes: Arc<Signal<[Conditions; 3]>>,
}

impl Default for Link {
    fn default() -> Self {
        Self { lanes: Arc::new(Signal::new([Conditions::default(); 3])) }
    }
}

impl Link {
    /// How a lane is doing.
    pub fn conditions(&self, lane: Lane) -> Conditions {
        self.lanes.get()[lane as usize]
    }

    /// Changes one lane. What is under way goes on under the new conditions.
    pub fn set(&self, lane: Lane, conditions: Conditions) {
        self.lanes.modify(|lanes| lanes[lane as usize] = conditions);
    }

    /// Changes every lane.
    pub fn set_all(&self, conditions: Conditions) {
        self.lanes.modify(|lanes| *lanes = [conditions; 3]);
    }

    /// As good as new.
    pub fn heal(&self) {
        self.set_all(Conditions::default());
    }

    /// Whether every lane is as good as new.
    pub fn is_healthy(&self) -> bool {
        Lane::ALL.iter().all(|lane| self.conditions(*lane) == Conditions::default())
    }

    /// A partition: nothing gets through, and nobody is told.
    pub fn cut(&self) {
        self.set_all(Conditions { path: Path::Hangs, ..Conditions::default() });
    }

    /// Waits until the lane is up.
    ///
    /// # Errors
    /// When it refuses.
    pub(crate) async fn connected(&self, lane: Lane) -> Result<(), Reset> {
        let lanes = self.lanes.wait_for(|lanes| lanes[lane as usize].path != Path::Hangs).await;
        if lanes[lane as usize].path == Path::Refuses { Err(Reset) } else { Ok(()) }
    }

    /// Takes a request to the database.
    pub(crate) async fn there(&self, lane: Lane) -> Result<(), Reset> {
        self.connected(lane).await?;
        self.travel(lane, self.conditions(lane).there).await
    }

    /// Is on the way for `time`, and arrives if the lane is up then.
    pub(crate) async fn travel(&self, lane: Lane, time: Duration) -> Result<(), Reset> {
        if time.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(time).await;
        self.connected(lane).await
    }

    /// Takes an answer back.
    pub(crate) async fn back(&self, lane: Lane) -> Result<(), Reset> {
        let conditions = self.conditions(lane);
        if conditions.answers_lost {
            return pending().await;
        }
        self.travel(lane, conditions.back).await
    }
}

/// The connection was reset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reset;

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was reset")
    }
}

impl std::error::Error for Reset {}

impl Reset {
    pub(crate) fn unavailable(self, transaction: &'static str) -> MetadataError {
        MetadataError::Unavailable { transaction, source: self.into() }
    }

    pub(crate) fn unknown(self, transaction: &'static str) -> MetadataError {
        MetadataError::Unknown { transaction, source: self.into() }
    }
}
