//! What a capture does for itself.

use std::collections::BTreeMap;

use async_trait::async_trait;
use metadata_api::codec::{MAX_REPORT, check_batch, check_capture, encode_labels, encode_progress};
use metadata_api::model::{
    CaptureInfo, CaptureProgress, CaptureState, CaptureTerm, ChangefeedProgress, ChangefeedSchedule,
    ChangefeedUuid, NewCapture, OwnedProgress, OwnerLaunch, ProcessorSchedule, ScheduleState, Ts,
};
use metadata_api::store::{Assigned, CaptureStore, HeartbeatChannel, WatchChannel};
use metadata_api::{MetadataError, Result};

use crate::channel::{Heartbeat, Watch};
use crate::link::Lane;
use crate::query::overview;
use crate::tables::{ProgressRow, Table};
use crate::tx::capture_gone;
use crate::{MemoryStore, Tables};

#[async_trait]
impl CaptureStore for MemoryStore {
    async fn capture_register(&self, capture: &NewCapture) -> Result<CaptureTerm> {
        check_capture(capture)?;
        encode_labels(capture)?;
        self.write("capture.register", |tx| {
            tx.take()?;
            match tx.capture_state(capture.id)? {
                Some(CaptureState::Offline) => {
                    return Err(capture_gone(capture.id, "was sealed: register with a new id"));
                }
                Some(CaptureState::Alive | CaptureState::Draining) => {}
                None => {
                    let (new, now) = (capture.clone(), tx.now);
                    let row = CaptureInfo {
                        id: new.id,
                        advertise_addr: new.advertise_addr,
                        version: new.version,
                        labels: new.labels,
                        machine_id: new.machine_id,
                        state: CaptureState::Alive,
                        heartbeat_seq: 0,
                        heartbeat_at: now,
                        started_at: now,
                    };
                    tx.put_capture(capture.id, row);
                    tx.put_progress(capture.id, ProgressRow::default());
                }
            }
            Ok(CaptureTerm { capture: capture.id })
        })
        .await
    }

    async fn heartbeat_channel(&self) -> Result<Box<dyn HeartbeatChannel>> {
        Ok(Box::new(Heartbeat::open(self.clone()).await?))
    }

    async fn watch_channel(&self) -> Result<Box<dyn WatchChannel>> {
        Ok(Box::new(Watch::open(self.clone()).await?))
    }

    async fn capture_advance(&self, term: CaptureTerm, seq: u64, progress: &CaptureProgress) -> Result<()> {
        check_progress(progress)?;
        let value = progress.clone();
        self.statement(Lane::Pool, "capture.advance", move |tx| {
            let (there, _) = progress_row(tx.tables, term, false)?;
            if seq <= there {
                return Err(MetadataError::conflict(format!(
                    "capture {} has written progress {there} already, and this is {seq}",
                    term.capture
                )));
            }
            tx.put_progress(term.capture, ProgressRow { seq, value, sealed: false });
            Ok(())
        })
        .await
    }

    async fn capture_progress(&self, term: CaptureTerm) -> Result<(u64, CaptureProgress)> {
        self.read("capture.progress", |tables| {
            progress_row(tables, term, true).map(|(seq, value)| (seq, value.clone()))
        })
        .await
    }

    async fn capture_schedules(&self, term: CaptureTerm) -> Result<Assigned<ChangefeedSchedule>> {
        self.read("capture.schedules", |tables| {
            tables.fence_epoch()?;
            let read = |row: &ChangefeedSchedule| {
                let readable = tables.readable(Table::Schedule, &row.changefeed);
                (row.changefeed, readable.map(|()| row.clone()))
            };
            Assigned::of(tables.revision, tables.owned_by(term.capture).map(read))
        })
        .await
    }

    async fn capture_processors(&self, term: CaptureTerm) -> Result<Assigned<ProcessorSchedule>> {
        self.read("capture.processors", |tables| {
            tables.fence_epoch()?;
            let rows = tables.processors_on(term.capture).filter(|row| row.state != ScheduleState::Removed);
            let read = |row: &ProcessorSchedule| {
                (row.changefeed, tables.readable_processors(row.changefeed).map(|()| row.clone()))
            };
            Assigned::of(tables.revision, rows.map(read))
        })
        .await
    }

    async fn owner_launches(
        &self,
        term: CaptureTerm,
        changefeeds: &[ChangefeedUuid],
    ) -> Result<Vec<OwnerLaunch>> {
        check_batch("changefeeds", changefeeds.iter().copied())?;
        self.read("capture.launches", |tables| {
            let mut launches = BTreeMap::new();
            for uuid in changefeeds {
                let mine = tables.schedule(*uuid).filter(|schedule| {
                    schedule.state == ScheduleState::Launched && schedule.owner == Some(term.capture)
                });
                if let (Some(owner), Some(row)) =
                    (mine.and_then(ChangefeedSchedule::term), tables.infos.get(uuid))
                {
                    let overview = overview(tables, row)?;
                    let launch = OwnerLaunch {
                        term: owner,
                        info: overview.info,
                        upstream: overview.upstream,
                        status: overview.status,
                        progress: overview.progress,
                    };
                    launches.insert(*uuid, launch);
                }
            }
            Ok(launches.into_values().collect())
        })
        .await
    }

    async fn capture_deregister(&self, term: CaptureTerm) -> Result<()> {
        self.write("capture.deregister", |tx| {
            tx.take()?;
            if tx.capture_state(term.capture)?.is_none() {
                return Ok(());
            }
            if tx.is_named(term.capture) {
                tx.seal(term.capture);
            } else {
                tx.delete_capture(term.capture);
            }
            Ok(())
        })
        .await
    }
}

/// A capture's own progress row.
fn progress_row(tables: &Tables, term: CaptureTerm, read: bool) -> Result<(u64, &CaptureProgress)> {
    let row = tables.progresses.get(&term.capture);
    let row = row.ok_or_else(|| capture_gone(term.capture, "has no progress row"))?;
    if row.sealed {
        return Err(capture_gone(term.capture, "was sealed"));
    }
    if read {
        tables.readable(Table::Progress, &term.capture)?;
    }
    Ok((row.seq, &row.value))
}

/// Whether a progress fits, without encoding what certainly does.
fn check_progress(progress: &CaptureProgress) -> Result<()> {
    let most = progress.0.values().map(most_bytes);
    if most.sum::<Option<usize>>().is_some_and(|most| most < MAX_REPORT) {
        return Ok(());
    }
    encode_progress(progress).map(drop)
}

/// How many bytes an entry takes at most, where its parts are plain and surely may be written; `None`: it must be encoded.
fn most_bytes(entry: &OwnedProgress) -> Option<usize> {
    /// More than an entry or a table's report takes, with its key, beside the table's name.
    const PLAIN: usize = 320;
    let is_plain = |at: &ChangefeedProgress| {
        let furthest = at.checkpoint_ts.max(at.resolved_ts).max(at.min_table_barrier_ts);
        furthest <= Ts::MAX && at.position.as_ref().is_none_or(|position| position.0.is_u64())
    };
    let mut bytes = PLAIN;
    for (table, report) in entry.processor.iter().flat_map(|report| &report.tables) {
        if report.error.is_some() || !is_plain(&report.progress) {
            return None;
        }
        // Each byte of a name may have to be escaped.
        bytes += PLAIN + 6 * table.0.len();
    }
    is_plain(&entry.progress).then_some(bytes)
}
