//! How much of everything.

use std::time::Duration;

use crate::database::Database;

/// The sizes of one run.
#[derive(Clone, Debug)]
pub struct Scale {
    /// How often the store and its baseline take turns.
    pub rounds: usize,
    /// How long each turn is, where it is bounded by time.
    pub turn: Duration,
    /// Numbers of captures whose heartbeats are paced.
    pub captures: Vec<usize>,
    /// Numbers of whole captures: heartbeats, polls, election.
    pub idle: Vec<usize>,
    /// How long they are watched.
    pub watch: Duration,
    /// Numbers of changefeeds in one capture's progress.
    pub advance: Vec<usize>,
    /// How many changefeeds are created, launched, paused in a turn.
    pub changefeeds: usize,
    /// How many changefeeds are launched at once.
    pub launch: usize,
    /// How many changefeeds the snapshot and the poll meet.
    pub many: usize,
    /// How many captures share them.
    pub many_captures: usize,
    /// How many changefeeds are listed whole.
    pub list: usize,
    /// How many owner changes are watched.
    pub owner_changes: usize,
    /// How many clusters lose their controller, as many more an owner.
    pub clusters: usize,
    /// How many times each.
    pub kills: usize,
}

impl Scale {
    /// What the issue asks for.
    pub fn full(database: Database) -> Self {
        let sqlite = database == Database::Sqlite;
        Self {
            rounds: 5,
            turn: Duration::from_secs(2),
            // A file is for one host, where each connection is a thread and each commit a sync.
            captures: if sqlite { vec![100, 1_000] } else { vec![100, 1_000, 5_000] },
            idle: if sqlite { vec![100] } else { vec![100, 1_000] },
            watch: Duration::from_secs(60),
            advance: vec![1, 10, 100, 1_000],
            changefeeds: 500,
            launch: 10_000,
            many: 100_000,
            many_captures: 1_000,
            list: 1_000,
            owner_changes: 100,
            clusters: 10,
            kills: 2,
        }
    }

    /// Less than two minutes.
    pub fn quick(database: Database) -> Self {
        let sqlite = database == Database::Sqlite;
        Self {
            rounds: 3,
            turn: Duration::from_millis(300),
            captures: if sqlite { vec![50] } else { vec![100] },
            idle: if sqlite { vec![20] } else { vec![50] },
            watch: Duration::from_secs(4),
            advance: vec![10, 1_000],
            changefeeds: 30,
            launch: 2_000,
            many: 10_000,
            many_captures: 100,
            list: 1_000,
            owner_changes: 10,
            clusters: 2,
            kills: 1,
        }
    }
}
