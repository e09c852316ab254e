//! The heartbeat's and the watch's own connections: never of the pool, so that a starved pool costs no lease.
//!
//! Dropping a channel closes its connection. A statement that was sent before may still be applied; the heartbeat
//! sequence and the lease's token allow for that.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metadata_api::codec::Cell;
use metadata_api::model::{
    CaptureBeat, CaptureState, CaptureTerm, ChangefeedSchedule, ClusterIdentity, ControllerTerm,
    ElectionRecord, ProcessorSchedule, Revision,
};
use metadata_api::store::faults::{FaultKind, FaultPoint};
use metadata_api::store::{HeartbeatChannel, POLL_PAGE, PollAnswer, PollCursor, WatchChannel};
use metadata_api::{MetadataError, Result};
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Sqlite, SqliteConnection};

use crate::connect::{FileId, Patience, SqliteOptions};
use crate::fence::{capture_gone, missing_row};
use crate::query::no_identity;
use crate::rows::{BeatRow, ElectionRow, ProcessorRow, ScheduleRow, bound, id, ordered, stored};
use crate::tx::{Injected, is_busy, unavailable, unknown};

/// A connection of one's own.
struct Channel {
    db: SqliteConnection,
    options: Arc<SqliteOptions>,
}

impl Channel {
    async fn open(options: &Arc<SqliteOptions>) -> Result<Self> {
        Ok(Self { db: options.connect().await?, options: Arc::clone(options) })
    }

    /// Runs a write statement that is its own transaction, once: the caller's next call is the second try. Gives the
    /// number of rows.
    async fn write<'q>(
        &mut self,
        name: &'static str,
        limit: Duration,
        statement: impl Fn() -> Query<'q, Sqlite, SqliteArguments>,
    ) -> Result<u64> {
        if let Some(fault) = Injected::at(&self.options, name, FaultPoint::BeforeBegin) {
            return Err(MetadataError::Unavailable { transaction: name, source: fault.into() });
        }
        if let Some(fault) = Injected::at(&self.options, name, FaultPoint::BeforeCommit) {
            return Err(match fault.kind() {
                FaultKind::Retryable => {
                    MetadataError::Unavailable { transaction: name, source: fault.into() }
                }
                FaultKind::AnswerLost => unknown(name, fault),
            });
        }
        let patience = Patience::new(limit);
        let done = loop {
            match statement().execute(&mut self.db).await {
                Ok(done) => break done.rows_affected(),
                Err(error) if !is_busy(&error) => return Err(unknown(name, error)),
                Err(error) => {
                    if !patience.again(&error).await {
                        return Err(unavailable(name, error, &self.options));
                    }
                }
            }
        };
        match Injected::at(&self.options, name, FaultPoint::AfterCommit) {
            Some(fault) => Err(unknown(name, fault)),
            None => Ok(done),
        }
    }
}

/// The heartbeat's connection.
pub(crate) struct Heartbeat {
    channel: Channel,
    file: FileId,
}

impl Heartbeat {
    pub(crate) async fn open(options: &Arc<SqliteOptions>, file: FileId) -> Result<Self> {
        file.check(&options.path)?;
        Ok(Self { channel: Channel::open(options).await?, file })
    }

    /// Why a beat found no row.
    async fn refusal(&mut self, term: CaptureTerm, acknowledged: u64, next: u64) -> Result<MetadataError> {
        let key = term.capture.to_string();
        let row = sqlx::query_as!(BeatRow, "SELECT id, state, heartbeat_seq FROM capture WHERE id = ?", key)
            .fetch_optional(&mut self.channel.db)
            .await
            .map_err(|error| unavailable("capture.beat", error, &self.channel.options))?;
        let Some(row) = row.map(CaptureBeat::try_from).transpose()? else {
            return Ok(capture_gone(term.capture, "has no row: its registration has ended"));
        };
        let there = row.heartbeat_seq;
        Ok(capture_gone(
            term.capture,
            &if row.state == CaptureState::Offline {
                "was sealed".to_owned()
            } else if there < acknowledged {
                format!("went back to heartbeat {there} from {acknowledged}: the database was restored")
            } else {
                format!("has heartbeat {there} already, and sent {next}: another process beats under its id")
            },
        ))
    }
}

#[async_trait]
impl HeartbeatChannel for Heartbeat {
    async fn beat(&mut self, term: CaptureTerm, acknowledged: u64, next: u64) -> Result<()> {
        self.file.check(&self.channel.options.path)?;
        let key = term.capture.to_string();
        let (acknowledged_seq, next_seq) = (bound(acknowledged), ordered("next", next)?);
        let limit = self.channel.options.heartbeat_timeout;
        let statement = || {
            sqlx::query!(
                "UPDATE capture
                 SET heartbeat_seq = ?, heartbeat_at = strftime('%Y-%m-%d %H:%M:%f', 'now'),
                     update_at = CURRENT_TIMESTAMP
                 WHERE id = ? AND state <> 'offline' AND heartbeat_seq >= ? AND heartbeat_seq < ?",
                next_seq,
                key,
                acknowledged_seq,
                next_seq
            )
        };
        let done = self.channel.write("capture.beat", limit, statement).await?;
        if done == 0 { Err(self.refusal(term, acknowledged, next).await?) } else { Ok(()) }
    }
}

/// The watch's connection.
pub(crate) struct Watch {
    channel: Channel,
}

impl Watch {
    pub(crate) async fn open(options: &Arc<SqliteOptions>) -> Result<Self> {
        Ok(Self { channel: Channel::open(options).await? })
    }
}

/// One row of a poll's answer: the head (kind 0), a schedule (1) or a processor (2).
struct PollRow {
    kind: i64,
    revision: Option<i64>,
    version: Option<i64>,
    // The head: its revision is the fence's, its version the election's.
    cluster_id: Option<String>,
    leader_id: Option<String>,
    cooldown: Option<String>,
    controller_epoch: Option<i64>,
    lease_seq: Option<i64>,
    controller_state: Option<String>,
    controller_seq: Option<i64>,
    own_state: Option<String>,
    owned: Option<i64>,
    attached: Option<i64>,
    // A schedule or a processor.
    changefeed_uuid: Option<i64>,
    capture_id: Option<String>,
    state: Option<String>,
    owner_epoch: Option<i64>,
    epoch: Option<i64>,
    body: Option<String>,
}

#[async_trait]
impl WatchChannel for Watch {
    async fn poll(&mut self, term: CaptureTerm, cursor: &PollCursor) -> Result<PollAnswer> {
        let key = term.capture.to_string();
        let (schedule_revision, schedule_uuid) = (bound(cursor.schedules.0.0), bound(cursor.schedules.1.0));
        let (processor_revision, processor_uuid) =
            (bound(cursor.processors.0.0), bound(cursor.processors.1.0));
        let page = i64::try_from(POLL_PAGE).unwrap_or(i64::MAX);
        let rows = sqlx::query_as!(
            PollRow,
            r#"SELECT 0 AS "kind!: i64", f.revision AS "revision?: i64", e.version AS "version?: i64",
                      (SELECT cluster_id FROM cluster WHERE id = 1) AS "cluster_id?: String",
                      e.leader_id AS "leader_id?: String", e.cooldown AS "cooldown?: String",
                      e.controller_epoch AS "controller_epoch?: i64", e.lease_seq AS "lease_seq?: i64",
                      l.state AS "controller_state?: String", l.heartbeat_seq AS "controller_seq?: i64",
                      (SELECT state FROM capture WHERE id = ?1) AS "own_state?: String",
                      (SELECT COUNT(*) FROM schedule WHERE owner = ?1 AND owner_state <> 'removed') AS "owned?: i64",
                      (SELECT COUNT(*) FROM processor WHERE capture_id = ?1 AND state <> 'removed')
                          AS "attached?: i64",
                      NULL AS "changefeed_uuid?: i64", NULL AS "capture_id?: String", NULL AS "state?: String",
                      NULL AS "owner_epoch?: i64", NULL AS "epoch?: i64", NULL AS "body?: String"
               FROM fence f JOIN election e ON e.id = f.id LEFT JOIN capture l ON l.id = e.leader_id
               WHERE f.id = 1
               UNION ALL
               SELECT * FROM (
                   SELECT 1, revision, version, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                          changefeed_uuid, owner, owner_state, owner_epoch, NULL, task_position
                   FROM schedule
                   WHERE owner = ?1 AND (revision, changefeed_uuid) > (?2, ?3)
                   ORDER BY revision, changefeed_uuid LIMIT ?6)
               UNION ALL
               SELECT * FROM (
                   SELECT 2, revision, version, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                          changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment
                   FROM processor
                   WHERE capture_id = ?1 AND (revision, changefeed_uuid) > (?4, ?5)
                   ORDER BY revision, changefeed_uuid LIMIT ?6)"#,
            key,
            schedule_revision,
            schedule_uuid,
            processor_revision,
            processor_uuid,
            page
        )
        .fetch_all(&mut self.channel.db)
        .await
        .map_err(|error| unavailable("capture.poll", error, &self.channel.options))?;
        answer(rows, term)
    }

    async fn lease_renew(&mut self, term: ControllerTerm) -> Result<()> {
        let (leader, epoch) = (term.capture.to_string(), stored(term.epoch.0));
        let limit = self.channel.options.statement_timeout;
        let statement = || {
            sqlx::query!(
                "UPDATE election
                 SET lease_seq = lease_seq + 1, version = version + 1, update_at = CURRENT_TIMESTAMP
                 WHERE id = 1 AND leader_id = ? AND controller_epoch = ?",
                leader,
                epoch
            )
        };
        let done = self.channel.write("election.renew", limit, statement).await?;
        if done == 0 { Err(MetadataError::fenced(format!("{term} is over"))) } else { Ok(()) }
    }
}

/// Puts a poll's rows together. `None` where a column must have a value: the row is not of the kind it says.
fn answer(rows: Vec<PollRow>, term: CaptureTerm) -> Result<PollAnswer> {
    let mut head = None;
    let mut schedules = Vec::new();
    let mut processors = Vec::new();
    for row in rows {
        match row.kind {
            0 => head = Some(head_of(row, term)?),
            1 => schedules.push(ChangefeedSchedule::try_from(schedule_of(row).ok_or_else(missing_row)?)?),
            _ => processors.push(ProcessorSchedule::try_from(processor_of(row).ok_or_else(missing_row)?)?),
        }
    }
    let head = head.ok_or_else(missing_row)?;
    Ok(PollAnswer { schedules, processors, ..head })
}

fn head_of(row: PollRow, term: CaptureTerm) -> Result<PollAnswer> {
    let cluster_id = row.cluster_id.ok_or_else(no_identity)?;
    let controller = match (&row.leader_id, row.controller_state, row.controller_seq) {
        (Some(leader), Some(state), Some(heartbeat_seq)) => {
            Some(CaptureBeat::try_from(BeatRow { id: leader.clone(), state, heartbeat_seq })?)
        }
        _ => None,
    };
    let election = ElectionRow {
        leader_id: row.leader_id,
        controller_epoch: row.controller_epoch.ok_or_else(missing_row)?,
        lease_seq: row.lease_seq.ok_or_else(missing_row)?,
        cooldown: row.cooldown,
        version: row.version.ok_or_else(missing_row)?,
    };
    Ok(PollAnswer {
        identity: ClusterIdentity {
            cluster_id: Cell::new("cluster", &1, "cluster_id").parse(&cluster_id)?,
            server_id: String::new(),
        },
        revision: Revision(id(row.revision.ok_or_else(missing_row)?)),
        election: ElectionRecord::try_from(election)?,
        controller,
        own_state: Cell::new("capture", &term.capture, "state").parse_opt(row.own_state.as_deref())?,
        owned: id(row.owned.unwrap_or(0)),
        attached: id(row.attached.unwrap_or(0)),
        schedules: Vec::new(),
        processors: Vec::new(),
    })
}

fn schedule_of(row: PollRow) -> Option<ScheduleRow> {
    Some(ScheduleRow {
        changefeed_uuid: row.changefeed_uuid?,
        owner: row.capture_id,
        owner_state: row.state?,
        owner_epoch: row.owner_epoch?,
        task_position: row.body?,
        revision: row.revision?,
        version: row.version?,
    })
}

fn processor_of(row: PollRow) -> Option<ProcessorRow> {
    Some(ProcessorRow {
        changefeed_uuid: row.changefeed_uuid?,
        capture_id: row.capture_id?,
        state: row.state?,
        owner_epoch: row.owner_epoch?,
        epoch: row.epoch?,
        assignment: row.body?,
        revision: row.revision?,
        version: row.version?,
    })
}
