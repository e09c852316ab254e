//! What the nemesis does to a cluster.

use std::fs;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use reqwest::Method;
use rustix::process::Signal;
use test_servers::proxy::{Act, Point, Proxy, Rule, When};

use super::history::History;
use super::steering::{SINK_HANGS, WALL_CLOCK};
use crate::binlog::{connect, schema};
use crate::harness::{Cluster, PATIENCE, Random};

/// Something that goes wrong, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for a capture that is not the controller; started again after a while, with or without a proof of its death.
    OwnerKilled,
    /// SIGKILL for the controller.
    ControllerKilled,
    /// Both at once.
    BothKilled,
    /// SIGKILL for all.
    AllKilled,
    /// SIGTERM, and started again.
    ToldToStop,
    /// SIGSTOP for so many seconds.
    Suspended(u64),
    /// Nothing of one capture reaches the database.
    CutOffThere,
    /// No answer of the database reaches one capture.
    CutOffBack,
    /// One capture's connections are reset again and again, before, during and after statements.
    Resets,
    /// Each of its round trips takes 2 s longer.
    Slow,
    /// The database commits, and one capture never hears of it.
    SwallowedCommits,
    /// The database's server is killed, and away for so many seconds.
    DatabaseKilled(u64),
    /// It answers nothing for 20 s.
    DatabasePaused,
    /// The wall clock of one capture is an hour ahead.
    WallClockAhead,
    /// The wall clock of one capture is an hour behind.
    WallClockBehind,
    /// The database is what it was a while ago.
    Restored,
    /// An operator drains a capture, then restarts its server.
    Drained,
    /// Flushes of one capture hang for 15 s.
    SinkHangs,
}

impl Fault {
    /// Each once.
    pub const ALL: [Self; 21] = [
        Self::OwnerKilled,
        Self::ControllerKilled,
        Self::BothKilled,
        Self::AllKilled,
        Self::ToldToStop,
        Self::Suspended(5),
        Self::Suspended(20),
        Self::Suspended(60),
        Self::CutOffThere,
        Self::CutOffBack,
        Self::Resets,
        Self::Slow,
        Self::SwallowedCommits,
        Self::DatabaseKilled(5),
        Self::DatabaseKilled(30),
        Self::DatabasePaused,
        Self::WallClockAhead,
        Self::WallClockBehind,
        Self::Restored,
        Self::Drained,
        Self::SinkHangs,
    ];

    /// Whether nothing may move because of it.
    pub fn moves_nothing(self) -> bool {
        matches!(self, Self::WallClockAhead | Self::WallClockBehind | Self::DatabasePaused)
    }

    /// How long after it is over everything must run again.
    pub fn recovery(self) -> Duration {
        Duration::from_secs(match self {
            // Everybody registers anew, and the new controller launches nothing for R.
            Self::Restored => 45,
            // Two processes at once.
            _ => 30,
        })
    }
}

/// What it is done to.
pub struct Victims<'a> {
    pub cluster: &'a mut Cluster,
    pub proxies: &'a [Proxy],
    pub history: &'a History,
    pub backup: &'a Backup,
    pub random: &'a mut Random,
}

impl Victims<'_> {
    /// Does it, and undoes it. What was struck.
    pub async fn strike(&mut self, fault: Fault) -> String {
        let any = self.random.below(self.cluster.len());
        match fault {
            Fault::OwnerKilled => {
                let (_, leader) = self.cluster.controller().await;
                let at = (leader + 1 + self.random.below(2)) % self.cluster.len();
                self.kill(&[at]).await
            }
            Fault::ControllerKilled => {
                let (_, leader) = self.cluster.controller().await;
                self.kill(&[leader]).await
            }
            Fault::BothKilled => {
                let (_, leader) = self.cluster.controller().await;
                self.kill(&[leader, (leader + 1) % self.cluster.len()]).await
            }
            Fault::AllKilled => self.kill(&(0..self.cluster.len()).collect::<Vec<_>>()).await,
            Fault::ToldToStop => {
                self.cluster.terminate(any).await;
                self.cluster.ended(any).await;
                self.cluster.start_again(any).await;
                one(any)
            }
            Fault::Suspended(seconds) => {
                self.cluster.signal(any, Signal::STOP);
                pass(seconds).await;
                self.cluster.signal(any, Signal::CONT);
                self.cluster.watch_all();
                one(any)
            }
            Fault::CutOffThere => self.every_round_trip(any, Point::Before).await,
            Fault::CutOffBack => self.every_round_trip(any, Point::Answered).await,
            Fault::Resets => {
                let mut rules = Vec::new();
                for _ in 0..40 {
                    let point = [Point::Before, Point::Sent, Point::Answered][self.random.below(3)];
                    rules.push(Rule::new(When::command(self.random.below(300)), point, Act::Reset));
                }
                self.order(any, rules, 10).await
            }
            Fault::Slow => {
                self.proxies[any].set_latency(Duration::from_secs(2));
                pass(15).await;
                self.proxies[any].set_latency(Duration::ZERO);
                one(any)
            }
            Fault::SwallowedCommits => {
                let hold = |when: When, times| Rule::new(when.times(times), Point::Answered, Act::Hold);
                let rules = vec![hold(When::commit(), 8), hold(When::statement("UPDATE progress"), 3)];
                self.order(any, rules, 12).await
            }
            Fault::DatabaseKilled(seconds) => {
                self.cluster.store.kill().await;
                pass(seconds).await;
                self.cluster.store.restart().await;
                let url = &self.cluster.store.url;
                for proxy in self.proxies {
                    proxy.lead_to(url);
                }
                self.history.lead_to(url);
                "the database".to_owned()
            }
            Fault::DatabasePaused => {
                let paused = self.cluster.store.pause().await;
                pass(20).await;
                paused.resume().await;
                "the database".to_owned()
            }
            Fault::WallClockAhead => self.marked(any, WALL_CLOCK, "3600", 10).await,
            Fault::WallClockBehind => self.marked(any, WALL_CLOCK, "-3600", 10).await,
            Fault::Restored => {
                self.history.suspend();
                self.cluster.watcher.restoring();
                self.backup.restore(&self.cluster.store.url).await;
                self.cluster.watcher.restored();
                self.history.begin_anew();
                "the database".to_owned()
            }
            Fault::Drained => self.drain(any).await,
            Fault::SinkHangs => self.marked(any, SINK_HANGS, "", 15).await,
        }
    }

    async fn kill(&mut self, victims: &[usize]) -> String {
        for at in victims {
            self.cluster.kill_unseen(*at).await;
        }
        let pause = self.random.below_u64(10);
        pass(pause).await;
        let mut struck = Vec::new();
        for at in victims {
            let proven = self.random.below(2) == 0;
            if !proven {
                let data_dir = self.cluster.server(*at).data_dir().to_owned();
                fs::remove_file(data_dir.join("cdc.lock")).expect("its lock");
            }
            self.cluster.start_again(*at).await;
            struck.push(format!(
                "{}, started again after {pause} s {} a proof",
                one(*at),
                if proven { "with" } else { "without" }
            ));
        }
        struck.join("; ")
    }

    async fn every_round_trip(&mut self, at: usize, point: Point) -> String {
        let seconds = 3 + self.random.below_u64(22);
        let all = Rule::new(When::command(0).times(usize::MAX), point, Act::Hold);
        self.order(at, vec![all], seconds).await
    }

    async fn order(&self, at: usize, rules: Vec<Rule>, seconds: u64) -> String {
        self.proxies[at].order(rules);
        pass(seconds).await;
        self.proxies[at].order([]);
        format!("{} for {seconds} s", one(at))
    }

    /// A file in the data directory, for a while: see `cdc-under-test`.
    async fn marked(&self, at: usize, name: &str, text: &str, seconds: u64) -> String {
        let file = self.cluster.server(at).data_dir().join(name);
        fs::write(&file, text).expect("a file");
        pass(seconds).await;
        fs::remove_file(&file).expect("it is there");
        one(at)
    }

    async fn drain(&mut self, at: usize) -> String {
        let capture = self.cluster.status(at).await.id;
        let other = (at + 1) % self.cluster.len();
        self.cluster
            .call(other, Method::POST, &["captures", &capture, "drain"])
            .await
            .expect("it is drained");
        let empty = |look: &crate::harness::Look| {
            let left = look.owned_by(&capture).len();
            if left == 0 { Ok(()) } else { Err(format!("{left} changefeeds are left")) }
        };
        self.cluster.wait_for("a drained capture has nothing", PATIENCE, empty).await;
        self.cluster.terminate(at).await;
        self.cluster.ended(at).await;
        self.cluster.start_again(at).await;
        one(at)
    }
}

fn one(at: usize) -> String {
    format!("s{}", at + 1)
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// A copy of the metadata database.
pub struct Backup {
    tables: Vec<String>,
    schema: String,
}

impl Backup {
    /// Takes one, into a schema beside it.
    pub async fn take(url: &str) -> Self {
        let schema = format!("{}_backup", schema(url));
        let mut conn = connect(url).await;
        let tables: Vec<String> = conn.query("SHOW TABLES").await.expect("the tables");
        let backup =
            Self { tables: tables.into_iter().filter(|table| table != "_sqlx_migrations").collect(), schema };
        for sql in [
            format!("DROP DATABASE IF EXISTS {}", backup.schema),
            format!("CREATE DATABASE {}", backup.schema),
        ] {
            conn.query_drop(sql).await.expect("a schema");
        }
        for table in &backup.tables {
            let sql = format!("CREATE TABLE {}.{table} LIKE {table}", backup.schema);
            conn.query_drop(sql).await.expect("a table");
        }
        // Nobody changes what belongs together while the fence is held.
        conn.query_drop("BEGIN").await.expect("BEGIN");
        conn.query_drop("SELECT * FROM fence WHERE id = 1 FOR UPDATE").await.expect("the fence");
        for table in &backup.tables {
            let sql = format!("INSERT INTO {}.{table} SELECT * FROM {table}", backup.schema);
            conn.query_drop(sql).await.expect("a copy");
        }
        conn.query_drop("COMMIT").await.expect("COMMIT");
        conn.disconnect().await.expect("it closes");
        backup
    }

    /// Puts it back, in one transaction.
    async fn restore(&self, url: &str) {
        let mut conn = connect(url).await;
        for tries in 1.. {
            match self.try_restore(&mut conn).await {
                Ok(()) => break,
                // Heartbeats lock their rows in an order of their own.
                Err(error) if tries < 20 => {
                    conn.query_drop("ROLLBACK").await.unwrap_or_else(|_| panic!("{error}"));
                }
                Err(error) => panic!("the backup could not be put back: {error}"),
            }
        }
        conn.disconnect().await.expect("it closes");
    }

    async fn try_restore(&self, conn: &mut mysql_async::Conn) -> Result<(), mysql_async::Error> {
        conn.query_drop("BEGIN").await?;
        conn.query_drop("SELECT * FROM fence WHERE id = 1 FOR UPDATE").await?;
        for table in &self.tables {
            conn.query_drop(format!("DELETE FROM {table}")).await?;
            conn.query_drop(format!("INSERT INTO {table} SELECT * FROM {}.{table}", self.schema)).await?;
        }
        conn.query_drop("COMMIT").await
    }
}
