//! The heartbeat's and the watch's own connections.

use async_trait::async_trait;
use metadata_api::model::{
    CaptureBeat, CaptureInfo, CaptureState, CaptureTerm, ControllerTerm, ElectionRecord, ScheduleState,
};
use metadata_api::store::{HeartbeatChannel, POLL_PAGE, PollAnswer, PollCursor, WatchChannel};
use metadata_api::{MetadataError, Result};

use crate::link::Lane;
use crate::tables::Table;
use crate::tx::{capture_gone, next};
use crate::{MemoryStore, Tables};

/// The heartbeat's connection.
pub(crate) struct Heartbeat {
    store: MemoryStore,
}

impl Heartbeat {
    pub(crate) async fn open(store: MemoryStore) -> Result<Self> {
        connect(&store, Lane::Heartbeat, "heartbeat.open").await?;
        Ok(Self { store })
    }
}

async fn connect(store: &MemoryStore, lane: Lane, name: &'static str) -> Result<()> {
    let reset = |reset: crate::link::Reset| reset.unavailable(name);
    store.options.link.there(lane).await.map_err(reset)?;
    store.cluster.running().await;
    store.options.link.back(lane).await.map_err(reset)
}

#[async_trait]
impl HeartbeatChannel for Heartbeat {
    async fn beat(&mut self, term: CaptureTerm, acknowledged: u64, next: u64) -> Result<()> {
        self.store
            .statement(Lane::Heartbeat, "capture.beat", move |tx| {
                let Some(row) = tx.tables.captures.get(&term.capture) else {
                    return Err(capture_gone(term.capture, "has no row: its registration has ended"));
                };
                tx.tables.readable(Table::Capture, &term.capture)?;
                let there = row.heartbeat_seq;
                let reason = if row.state == CaptureState::Offline {
                    "was sealed".to_owned()
                } else if there < acknowledged {
                    format!("went back to heartbeat {there} from {acknowledged}: the database was restored")
                } else if there >= next {
                    format!(
                        "has heartbeat {there} already, and sent {next}: another process beats under its id"
                    )
                } else {
                    let now = tx.now;
                    let row = CaptureInfo { heartbeat_seq: next, heartbeat_at: now, ..(**row).clone() };
                    tx.put_capture(term.capture, row);
                    return Ok(());
                };
                Err(capture_gone(term.capture, &reason))
            })
            .await
    }
}

/// The watch's connection.
pub(crate) struct Watch {
    store: MemoryStore,
}

impl Watch {
    pub(crate) async fn open(store: MemoryStore) -> Result<Self> {
        connect(&store, Lane::Watch, "watch.open").await?;
        Ok(Self { store })
    }
}

#[async_trait]
impl WatchChannel for Watch {
    async fn poll(&mut self, term: CaptureTerm, cursor: &PollCursor) -> Result<PollAnswer> {
        self.store.read_on(Lane::Watch, "capture.poll", |tables| poll(tables, term, cursor)).await
    }

    async fn lease_renew(&mut self, term: ControllerTerm) -> Result<()> {
        self.store
            .statement(Lane::Watch, "election.renew", move |tx| {
                let now = tx.tables.election()?;
                if now.leader != Some(term.capture) || now.epoch != term.epoch {
                    return Err(MetadataError::fenced(format!("{term} is over")));
                }
                let (lease_seq, version) = (now.lease_seq + 1, next(now.version));
                tx.put_election((), ElectionRecord { lease_seq, version, ..now });
                Ok(())
            })
            .await
    }
}

fn poll(tables: &Tables, term: CaptureTerm, cursor: &PollCursor) -> Result<PollAnswer> {
    let capture = term.capture;
    let election = tables.election()?;
    tables.fence_epoch()?;
    let beat =
        |row: &CaptureInfo| CaptureBeat { id: row.id, state: row.state, heartbeat_seq: row.heartbeat_seq };
    let own = tables.captures.get(&capture);
    if own.is_some() {
        tables.readable(Table::Capture, &capture)?;
    }
    let mut owned = 0;
    let mut schedules = Vec::new();
    for row in tables.owned_by(capture) {
        owned += 1;
        if (row.revision, row.changefeed) > cursor.schedules {
            schedules.push(row);
        }
    }
    let mut processors = Vec::new();
    let mut attached = 0;
    for row in tables.processors_on(capture) {
        attached += u64::from(row.state != ScheduleState::Removed);
        if (row.revision, row.changefeed) > cursor.processors {
            processors.push(row);
        }
    }
    schedules.sort_by_key(|row| (row.revision, row.changefeed));
    processors.sort_by_key(|row| (row.revision, row.changefeed));
    Ok(PollAnswer {
        identity: tables.identity.clone(),
        revision: tables.revision,
        election,
        controller: election.leader.and_then(|id| tables.captures.get(&id)).map(|row| beat(row)),
        own_state: own.map(|row| row.state),
        owned,
        attached,
        schedules: schedules.into_iter().take(POLL_PAGE).cloned().collect(),
        processors: processors.into_iter().take(POLL_PAGE).cloned().collect(),
    })
}
