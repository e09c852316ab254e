//! Heartbeats as fast as they go, on 1, 16 and 64 connections, against a bare one-row `UPDATE` of a table like theirs.

use anyhow::Result;
use futures::FutureExt as _;
use metadata_api::model::CaptureTerm;
use metadata_api::store::{HeartbeatChannel, MetadataStore};

use super::{Run, new_capture};
use crate::bed::Bed;
use crate::database::Database;
use crate::measure::{Lanes, versus};
use crate::raw::{Raw, Value};

/// A capture's heartbeats.
pub struct Heart {
    channel: Box<dyn HeartbeatChannel>,
    /// Whose.
    pub term: CaptureTerm,
    seq: u64,
}

impl Heart {
    /// Registers a capture, and opens its channel: a connection of its own, whoever opens it.
    pub async fn register(store: &dyn MetadataStore) -> Result<Self> {
        let term = store.capture_register(&new_capture()).await?;
        Ok(Self { channel: store.heartbeat_channel().await?, term, seq: 0 })
    }

    /// One heartbeat.
    pub async fn beat(&mut self) -> Result<()> {
        self.seq += 1;
        Ok(self.channel.beat(self.term, self.seq - 1, self.seq).await?)
    }
}

/// The same row of a table like `capture`, written by a bare statement.
pub struct BareHeart {
    /// The connection.
    pub raw: Raw,
    database: Database,
    id: String,
    seq: u64,
}

impl BareHeart {
    /// On a table that [`Bed::copy_tables`] made.
    pub async fn new(bed: &Bed, term: CaptureTerm) -> Result<Self> {
        Ok(Self { raw: bed.raw().await?, database: bed.database, id: term.capture.to_string(), seq: 0 })
    }

    /// One `UPDATE`.
    pub async fn beat(&mut self) -> Result<()> {
        self.seq += 1;
        let sql = match self.database {
            Database::Sqlite => {
                "UPDATE bare_capture SET heartbeat_seq = ?, heartbeat_at = strftime('%Y-%m-%d %H:%M:%f', 'now') \
                 WHERE id = ?"
            }
            _ => "UPDATE bare_capture SET heartbeat_seq = ?, heartbeat_at = NOW(6) WHERE id = ?",
        };
        self.raw.prepared(sql, &[Value::Number(self.seq), Value::Text(&self.id)]).await?;
        Ok(())
    }

    /// One `SELECT` of the row.
    pub async fn look(&mut self) -> Result<()> {
        self.raw.prepared("SELECT * FROM bare_capture WHERE id = ?", &[Value::Text(&self.id)]).await?;
        Ok(())
    }
}

/// On how many connections.
const CONNECTIONS: [usize; 3] = [1, 16, 64];

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    run.say("opening heartbeat connections");
    let bed = run.target.bed().await?;
    let store = bed.store().await?;
    let (mut hearts, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS.into_iter().max().unwrap_or(0) {
        hearts.push(Heart::register(&*store).await?);
    }
    let terms: Vec<CaptureTerm> = hearts.iter().map(|heart| heart.term).collect();
    bed.copy_tables(&["capture"]).await?;
    for term in terms {
        bares.push(BareHeart::new(&bed, term).await?);
    }
    for connections in CONNECTIONS {
        run.say(format!("heartbeats on {connections} connections"));
        let some = hearts.drain(..connections).collect();
        let mut ours = Lanes::new(some, |heart: &mut Heart| heart.beat().boxed());
        let some = bares.drain(..connections).collect();
        let mut bare = Lanes::new(some, |heart: &mut BareHeart| heart.beat().boxed());
        let rate = versus(run.scale.rounds, run.scale.turn, &mut ours, &mut bare).await?;
        run.add(format!("heartbeat_conn_{connections}"), rate.value, "a second", Some(rate.baseline));
        hearts.extend(ours.into_lanes());
        bares.extend(bare.into_lanes());
    }
    drop((hearts, bares));
    bed.remove().await
}
