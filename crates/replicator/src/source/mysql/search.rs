//! Finds where in the binlog a start ts is.
//!
//! The first transaction of a file tells. From the oldest file on, the first one that begins after the start ends
//! the search: everything after the start lies in the file before it, or later. So nothing is missed when a clock was
//! set back between two files. What lies between the place found and the start is read and left out. A file without
//! transactions says nothing.

use capture_runtime::task::TaskError;
use metadata_api::model::Ts;
use mysql_async::Conn;
use mysql_async::binlog::events::EventData;

use super::dump::{Dump, From, Identity};
use super::endpoint::Endpoint;
use super::gtid::GtidSet;
use super::position::{Position, ts_from_micros};
use super::server::{self, Facts};

/// A file's time may be that of the beginning of the statement that made the server begin it: what was committed by then
/// may be later than it by as much as a statement takes.
const LONG_STATEMENT_S: u64 = 3600;

/// What the beginning of a file says.
#[derive(Debug, Default)]
struct Head {
    created: u32,
    previous_gtids: GtidSet,
    first_commit: Option<Ts>,
    /// The first transaction has no GTID.
    anonymous: bool,
}

/// The position from which everything after `start_ts` can be read.
pub(super) async fn position_of(
    endpoint: &Endpoint,
    conn: &mut Conn,
    facts: &Facts,
    start_ts: Ts,
) -> Result<Position, TaskError> {
    let files = server::files(endpoint, conn).await?;
    let oldest = files.first().ok_or_else(|| endpoint.misconfigured("the server has no binlog files"))?;
    let identity = Identity::new(0, start_ts.0, 0, facts.server_id);
    let mut found = Ok(None);
    for file in &files {
        match head(endpoint, identity, file).await {
            Ok(head) => match head.first_commit {
                Some(first) if first <= start_ts => found = Ok(Some((file, head))),
                Some(_) => break,
                None => {}
            },
            // One that the server does not send (of another gtid_mode, perhaps): only a start after it can be served.
            Err(error) => found = Err(error),
        }
    }
    let (file, head) = match found? {
        Some(found) => found,
        None => (oldest, oldest_head(endpoint, identity, oldest, start_ts).await?),
    };
    if facts.gtids && head.anonymous {
        // Asked by GTIDs, the server would refuse to send it.
        return Err(endpoint.purged(format_args!(
            "start-ts {start_ts} lies before gtid_mode = ON: {file} begins with transactions without GTIDs; choose a \
             later start_ts, or leave it out to begin now"
        )));
    }
    Ok(Position {
        server: facts.uuid.clone(),
        file: file.clone(),
        pos: 4,
        file_created: Some(head.created),
        gtids: facts.gtids.then_some(head.previous_gtids),
        previous: Ts::ZERO,
        skip_until: Some(start_ts),
    })
}

/// The start lies before the first transaction that there is: fine if nothing was ever before it, or nothing that is later
/// than the start.
async fn oldest_head(
    endpoint: &Endpoint,
    identity: Identity,
    file: &str,
    start_ts: Ts,
) -> Result<Head, TaskError> {
    let head = head(endpoint, identity, file).await?;
    let created = ts_from_micros(u64::from(head.created) * 1_000_000);
    let first_ever = head.previous_gtids == GtidSet::default()
        && file.rsplit_once('.').is_some_and(|(_, number)| number.parse() == Ok(1_u64));
    if first_ever && start_ts >= created {
        return Ok(head);
    }
    // Without a transaction in it, it tells by its own age.
    let surely_after = ts_from_micros((u64::from(head.created) + LONG_STATEMENT_S) * 1_000_000);
    if head.first_commit.is_none() && start_ts >= surely_after {
        return Ok(head);
    }
    let first = head.first_commit.unwrap_or(created);
    Err(endpoint.purged(format_args!(
        "start-ts {start_ts} is earlier than or equal to GC safepoint at {first}, the first transaction of its first \
         file {file}; leave start_ts out to begin now"
    )))
}

async fn head(endpoint: &Endpoint, identity: Identity, file: &str) -> Result<Head, TaskError> {
    let mut dump = Dump::open(endpoint, identity, From::File(file)).await?;
    let mut head = Head::default();
    let mut begun = false;
    loop {
        let Some(event) = endpoint.bounded(dump.next()).await?? else { return Ok(head) };
        match event.read_data().map_err(|error| endpoint.unable(format_args!("{file}: {error}")))? {
            Some(EventData::FormatDescriptionEvent(_)) if !begun => {
                begun = true;
                head.created = event.header().timestamp();
            }
            // The next file.
            Some(EventData::FormatDescriptionEvent(_)) => return Ok(head),
            Some(EventData::PreviousGtidsEvent(previous)) => {
                let parts = previous.sids().iter().map(|sid| {
                    let ranges =
                        sid.intervals().iter().map(|range| (range.start(), range.end().saturating_sub(1)));
                    (sid.uuid(), sid.tag().map(|tag| tag.as_str().to_owned()), ranges.collect())
                });
                head.previous_gtids = GtidSet::from_parts(parts);
            }
            Some(EventData::GtidEvent(gtid)) => {
                head.first_commit = Some(ts_from_micros(gtid.immediate_commit_timestamp()));
                return Ok(head);
            }
            Some(EventData::AnonymousGtidEvent(gtid)) => {
                head.anonymous = true;
                head.first_commit = Some(ts_from_micros(gtid.0.immediate_commit_timestamp()));
                return Ok(head);
            }
            _ => {}
        }
    }
}
