//! The two connections of a capture's own: one for heartbeats, one for the watch poll and the lease.
//!
//! Neither is ever the pool's, and nothing here takes a lock but that of the one row that it updates. Dropping a channel
//! closes its socket. There are no retries: the runtime opens another channel.

use async_trait::async_trait;
use metadata_api::codec::Cell;
use metadata_api::model::{
    CaptureBeat, CaptureState, CaptureTerm, ClusterIdentity, ControllerTerm, ElectionRecord, Revision,
};
use metadata_api::store::faults::{FaultKind, FaultPoint};
use metadata_api::store::{HeartbeatChannel, PollAnswer, PollCursor, WatchChannel};
use metadata_api::{MetadataError, Result};
use sqlx::{query, query_file_as};

use crate::connect::Session;
use crate::dialect::Purpose;
use crate::retry::{TxResult, first_rows_missing, into_metadata_error, was_answered};
use crate::rows::{BeatRow, ElectionRow, ProcessorRow, ScheduleRow};
use crate::tx::Runner;

/// A connection of its own. It remembers whether a call was abandoned in the middle: then whatever would be read next
/// is the answer to that one.
pub(crate) struct Channel {
    session: Session,
    runner: Runner,
    abandoned: bool,
}

impl Channel {
    pub(crate) async fn open(runner: &Runner, name: &'static str) -> Result<Self> {
        let session = runner.pool().connector().connect(Purpose::Channel).await;
        let session = session.map_err(|error| into_metadata_error(name, error))?;
        Ok(Self { session, runner: runner.clone(), abandoned: false })
    }

    fn begin_call(&mut self, name: &'static str, writes: bool) -> Result<()> {
        if self.abandoned {
            let reason = "a former call on this channel was abandoned; open another channel";
            return Err(MetadataError::Unavailable { transaction: name, source: reason.into() });
        }
        if writes {
            self.meet_fault(name, FaultPoint::BeforeBegin)?;
            self.meet_fault(name, FaultPoint::BeforeCommit)?;
        }
        self.abandoned = true;
        Ok(())
    }

    fn end_call<T>(&mut self, name: &'static str, writes: bool, answer: TxResult<T>) -> Result<T> {
        self.abandoned = answer.as_ref().is_err_and(|error| !was_answered(error));
        let value = answer.map_err(|error| {
            if writes && !was_answered(&error) {
                MetadataError::Unknown { transaction: name, source: Box::new(error) }
            } else {
                into_metadata_error(name, error)
            }
        })?;
        if writes && self.runner.fault(name, FaultPoint::AfterCommit).is_some() {
            return Err(unknown(name));
        }
        Ok(value)
    }

    fn meet_fault(&self, name: &'static str, point: FaultPoint) -> Result<()> {
        match self.runner.fault(name, point) {
            None => Ok(()),
            Some(FaultKind::AnswerLost) if point == FaultPoint::BeforeCommit => Err(unknown(name)),
            Some(_) => {
                Err(MetadataError::Unavailable { transaction: name, source: "an ordered failure".into() })
            }
        }
    }
}

fn unknown(transaction: &'static str) -> MetadataError {
    MetadataError::Unknown { transaction, source: "an ordered failure".into() }
}

#[async_trait]
impl HeartbeatChannel for Channel {
    async fn beat(&mut self, term: CaptureTerm, acknowledged: u64, next: u64) -> Result<()> {
        self.begin_call("heartbeat.beat", true)?;
        let answer = beat(&mut self.session, term, acknowledged, next).await;
        self.end_call("heartbeat.beat", true, answer)
    }
}

/// One row of a poll: the head, repeated, and a schedule row, a processor row, or neither.
struct PollRow {
    cluster_id: String,
    fence_revision: u64,
    leader_id: Option<String>,
    controller_epoch: u64,
    lease_seq: u64,
    cooldown: Option<String>,
    election_version: u64,
    leader_state: Option<String>,
    leader_beat: Option<u64>,
    own_state: Option<String>,
    owned: i64,
    attached: i64,
    is_processor: Option<i64>,
    changefeed_uuid: Option<u64>,
    capture_id: Option<String>,
    state: Option<String>,
    owner_epoch: Option<u64>,
    epoch: Option<u64>,
    body: Option<String>,
    revision: Option<u64>,
    version: Option<u64>,
}

#[async_trait]
impl WatchChannel for Channel {
    async fn poll(&mut self, term: CaptureTerm, cursor: &PollCursor) -> Result<PollAnswer> {
        self.begin_call("watch.poll", false)?;
        let answer = poll(&mut self.session, term, cursor).await;
        self.end_call("watch.poll", false, answer)
    }

    async fn lease_renew(&mut self, term: ControllerTerm) -> Result<()> {
        self.begin_call("lease.renew", true)?;
        let answer = renew(&mut self.session, term).await;
        self.end_call("lease.renew", true, answer)
    }
}

async fn beat(session: &mut Session, term: CaptureTerm, acknowledged: u64, next: u64) -> TxResult<()> {
    let id = term.capture.to_string();
    let done = query!(
        "UPDATE capture SET heartbeat_seq = ?, heartbeat_at = NOW(6) \
         WHERE id = ? AND state <> 'offline' AND heartbeat_seq >= ? AND heartbeat_seq < ?",
        next,
        id,
        acknowledged,
        next
    )
    .execute(&mut session.raw)
    .await?;
    if done.rows_affected() != 0 {
        return Ok(());
    }
    let row = query!("SELECT state, heartbeat_seq FROM capture WHERE id = ?", id)
        .fetch_optional(&mut session.raw)
        .await?;
    let reason = match row {
        None => "it has no row".to_owned(),
        Some(row) if row.state == CaptureState::Offline.as_str() => "it is sealed (offline)".to_owned(),
        Some(row) if row.heartbeat_seq < acknowledged => format!(
            "its heartbeat sequence went back to {} after {acknowledged} was acknowledged: another database, or a \
             restored one",
            row.heartbeat_seq
        ),
        Some(row) => format!("its heartbeat sequence is {} already, not below {next}", row.heartbeat_seq),
    };
    Err(MetadataError::fenced(format!("capture {}: {reason}", term.capture)).into())
}

async fn poll(session: &mut Session, term: CaptureTerm, cursor: &PollCursor) -> TxResult<PollAnswer> {
    let id = term.capture.to_string();
    let ((schedule, schedule_uuid), (processor, processor_uuid)) = (cursor.schedules, cursor.processors);
    let rows = query_file_as!(
        PollRow,
        "src/poll.sql",
        id,
        id,
        id,
        id,
        schedule.0,
        schedule.0,
        schedule_uuid.0,
        id,
        processor.0,
        processor.0,
        processor_uuid.0
    )
    .fetch_all(&mut session.raw)
    .await?;
    Ok(poll_answer(&session.server_id, term, rows)?)
}

async fn renew(session: &mut Session, term: ControllerTerm) -> TxResult<()> {
    let done = query!(
        "UPDATE election SET lease_seq = lease_seq + 1, version = version + 1 \
         WHERE id = 1 AND leader_id = ? AND controller_epoch = ?",
        term.capture.to_string(),
        term.epoch.0
    )
    .execute(&mut session.raw)
    .await?;
    if done.rows_affected() == 0 {
        return Err(MetadataError::fenced(term.to_string()).into());
    }
    Ok(())
}

fn poll_answer(server_id: &str, term: CaptureTerm, rows: Vec<PollRow>) -> Result<PollAnswer> {
    let head = rows.first().ok_or_else(first_rows_missing)?;
    let leader = head.leader_id.clone();
    let controller = match (leader.clone(), head.leader_state.clone(), head.leader_beat) {
        (Some(id), Some(state), Some(heartbeat_seq)) => {
            Some(CaptureBeat::try_from(BeatRow { id, state, heartbeat_seq })?)
        }
        _ => None,
    };
    let mut answer = PollAnswer {
        identity: ClusterIdentity {
            cluster_id: Cell::new("cluster", &1, "cluster_id").parse(&head.cluster_id)?,
            server_id: server_id.to_owned(),
        },
        revision: Revision(head.fence_revision),
        election: ElectionRecord::try_from(ElectionRow {
            leader_id: leader,
            controller_epoch: head.controller_epoch,
            lease_seq: head.lease_seq,
            cooldown: head.cooldown.clone(),
            version: head.election_version,
        })?,
        controller,
        own_state: Cell::new("capture", &term.capture, "state").parse_opt(head.own_state.as_deref())?,
        owned: u64::try_from(head.owned).unwrap_or(0),
        attached: u64::try_from(head.attached).unwrap_or(0),
        schedules: Vec::new(),
        processors: Vec::new(),
    };
    for row in rows {
        // Outer-joined: all of them are there, or none is.
        let PollRow {
            is_processor: Some(is_processor),
            changefeed_uuid: Some(changefeed_uuid),
            capture_id,
            state: Some(state),
            owner_epoch: Some(owner_epoch),
            epoch: Some(epoch),
            body: Some(body),
            revision: Some(revision),
            version: Some(version),
            ..
        } = row
        else {
            continue;
        };
        if is_processor == 0 {
            answer.schedules.push(
                ScheduleRow {
                    changefeed_uuid,
                    owner: capture_id,
                    owner_state: state,
                    owner_epoch,
                    task_position: body,
                    schedule_revision: revision,
                    schedule_version: version,
                }
                .try_into()?,
            );
        } else {
            answer.processors.push(
                ProcessorRow {
                    changefeed_uuid,
                    capture_id: capture_id.unwrap_or_default(),
                    state,
                    owner_epoch,
                    epoch,
                    assignment: body,
                    revision,
                    version,
                }
                .try_into()?,
            );
        }
    }
    Ok(answer)
}

impl From<Channel> for Box<dyn HeartbeatChannel> {
    fn from(channel: Channel) -> Self {
        Box::new(channel)
    }
}

impl From<Channel> for Box<dyn WatchChannel> {
    fn from(channel: Channel) -> Self {
        Box::new(channel)
    }
}

#[cfg(test)]
mod tests {
    use metadata_api::store::POLL_PAGE;

    /// The page's size stands in the statement's text.
    #[test]
    fn a_page_is_what_the_contract_says() {
        assert_eq!(POLL_PAGE, 500);
        assert_eq!(include_str!("poll.sql").matches("LIMIT 500").count(), 2);
    }
}
