//! Asks a server for its binlog, as a replica does, and says what its refusals mean.

use capture_runtime::task::TaskError;
use futures::StreamExt as _;
use mysql_async::binlog::BinlogChecksumAlg;
use mysql_async::binlog::events::Event;
use mysql_async::prelude::Queryable as _;
use mysql_async::{BinlogStream, BinlogStreamRequest};

use super::endpoint::Endpoint;
use super::position::Position;
use crate::source::Launch;

/// How often the server says that nothing happens.
pub(super) const HEARTBEAT_MS: u64 = 1000;
/// How long the server waits for us to take what it sends: the sink may be slower than that for a while.
const SEND_LIMIT_S: u32 = 600;

/// Whom the server takes us for.
///
/// The number derives from the launch, so that an operator can tell (`SHOW REPLICAS`). A server ends the dump of a
/// replica when another of the same `server_uuid` comes; ours is random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    seed: u64,
    attempt: u64,
    /// The server's own number, which nobody may take.
    server: u32,
}

impl Identity {
    /// Of one launch of a changefeed.
    pub(super) fn new(changefeed: u64, epoch: u64, launch: u64, server: u32) -> Self {
        let seed = [changefeed, epoch, launch].into_iter().fold(0, |seed, part| mix(seed ^ part));
        Self { seed, attempt: 0, server }
    }

    /// That of a launch.
    pub(super) fn of(launch: &Launch, server: u32) -> Self {
        let share = launch.share.as_ref().map_or(0, |share| {
            let table = crc32fast::hash(share.table.0.as_bytes());
            mix(share.turn.0 ^ mix(table.into()))
        });
        Self::new(launch.term.changefeed.0, launch.term.epoch.0 ^ share, launch.launch, server)
    }

    /// Another one.
    pub(super) fn next(self) -> Self {
        Self { attempt: self.attempt + 1, ..self }
    }

    /// The `server_id`: in the upper half, where people do not number their servers.
    pub(super) fn server_id(self) -> u32 {
        let number = u32::try_from(mix(self.seed ^ mix(self.attempt)) >> 32).unwrap_or_default() | 1 << 31;
        if number == self.server { number ^ 1 } else { number }
    }
}

/// `SplitMix64`.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// Where a dump begins.
pub(super) enum From<'a> {
    /// At a position; by GTIDs if it has them.
    Position(&'a Position),
    /// At the beginning of a file, only up to the end of the log.
    File(&'a str),
}

/// Why a dump ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Another replica came under our identity.
    Collision(TaskError),
    /// Anything else.
    Other(TaskError),
}

impl std::convert::From<Ended> for TaskError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Collision(error) | Ended::Other(error) => error,
        }
    }
}

/// A binlog being read.
pub(super) struct Dump {
    stream: BinlogStream,
    endpoint: Endpoint,
}

impl Dump {
    /// Asks for the binlog. That the server refuses shows at the first event.
    pub(super) async fn open(
        endpoint: &Endpoint,
        identity: Identity,
        from: From<'_>,
    ) -> Result<Self, TaskError> {
        let mut conn = endpoint.connect().await?;
        // The library asks for checksums under the old name; the new one comes first.
        let beat = HEARTBEAT_MS * 1_000_000;
        endpoint
            .ask(conn.query_drop(format!(
                "SET @source_binlog_checksum = 'CRC32', @source_heartbeat_period = {beat}, \
                 @master_heartbeat_period = {beat}, @replica_uuid = UUID(), @slave_uuid = UUID(), \
                 SESSION net_write_timeout = {SEND_LIMIT_S}"
            )))
            .await?;
        let request = BinlogStreamRequest::new(identity.server_id()).with_hostname(b"cdc");
        let request = match from {
            From::Position(at) => match &at.gtids {
                Some(gtids) => request.with_gtid().with_gtid_set(gtids.sids()),
                None => request.with_filename(at.file.as_bytes()).with_pos(at.pos),
            },
            From::File(file) => request.with_filename(file.as_bytes()).with_non_blocking(),
        };
        let stream = endpoint.ask(conn.get_binlog_stream(request)).await?;
        Ok(Self { stream, endpoint: endpoint.clone() })
    }

    /// Waits for the next event; `None` at the end of a dump that has one. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Ended> {
        let event = match self.stream.next().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(ended(&self.endpoint, &error)),
            Some(Ok(event)) => event,
        };
        if is_damaged(&event) {
            // Perhaps only on its way here: another try tells.
            return Err(Ended::Other(self.endpoint.lost(format_args!(
                "the checksum of an event that ends at {} is wrong",
                event.header().log_pos()
            ))));
        }
        Ok(Some(event))
    }
}

fn is_damaged(event: &Event) -> bool {
    // Inside a compressed transaction there are none; its own event has one.
    let inner = !event.footer().get_checksum_enabled();
    if inner
        || !matches!(
            event.footer().get_checksum_alg(),
            Ok(Some(BinlogChecksumAlg::BINLOG_CHECKSUM_ALG_CRC32))
        )
    {
        return false;
    }
    event.checksum().is_some_and(|sum| {
        u32::from_le_bytes(sum) != event.calc_checksum(BinlogChecksumAlg::BINLOG_CHECKSUM_ALG_CRC32)
    })
}

/// What the end of a dump means.
fn ended(endpoint: &Endpoint, error: &mysql_async::Error) -> Ended {
    const ER_SOURCE_FATAL_ERROR_READING_BINLOG: u16 = 1236;
    let mysql_async::Error::Server(server) = error else { return Ended::Other(endpoint.lost(error)) };
    if server.code != ER_SOURCE_FATAL_ERROR_READING_BINLOG {
        return Ended::Other(endpoint.lost(error));
    }
    match meaning(&server.message) {
        Meaning::Collision => Ended::Collision(endpoint.lost(error)),
        Meaning::Purged => Ended::Other(endpoint.purged(format_args!(
            "{error}; create the changefeed anew, and keep the binlog longer (binlog_expire_logs_seconds)"
        ))),
        Meaning::Elsewhere => Ended::Other(endpoint.unable(format_args!(
            "{error}; the server was reset or restored, or it is another one: create the changefeed anew"
        ))),
        Meaning::Unknown => Ended::Other(endpoint.lost(error)),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Collision,
    Purged,
    Elsewhere,
    Unknown,
}

/// The server has one number for many refusals; its texts tell them apart.
fn meaning(message: &str) -> Meaning {
    let message = message.to_ascii_lowercase();
    let says = |part: &str| message.contains(part);
    if says("same server_uuid/server_id") {
        Meaning::Collision
    } else if says("purged") || says("could not find first log file") || says("first log file name") {
        Meaning::Purged
    } else if says("more gtids than") || says("position > file size") || says("impossible position") {
        Meaning::Elsewhere
    } else {
        Meaning::Unknown
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn identities_differ_by_launch_and_attempt_and_from_the_server() {
        let mut seen = BTreeSet::new();
        for (changefeed, epoch, launch) in [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1)] {
            let identity = Identity::new(changefeed, epoch, launch, 1);
            assert_eq!(identity, Identity::new(changefeed, epoch, launch, 1));
            seen.extend([
                identity.server_id(),
                identity.next().server_id(),
                identity.next().next().server_id(),
            ]);
        }
        assert_eq!(seen.len(), 12);
        let number = Identity::new(1, 1, 1, 1).server_id();
        assert_ne!(Identity::new(1, 1, 1, number).server_id(), number);
        assert!(seen.iter().all(|number| *number >= 1 << 31));
    }

    #[test]
    fn refusals_are_told_apart() {
        for (message, wanted) in [
            (
                "A replica with the same server_uuid/server_id as this replica has connected to the source; the \
                 first event '' at 4, the last event read from './binlog.000001' at 126.",
                Meaning::Collision,
            ),
            (
                "Cannot replicate because the source purged required binary logs. Replicate the missing \
                 transactions from elsewhere, or provision a new replica from backup.",
                Meaning::Purged,
            ),
            ("Could not find first log file name in binary log index file", Meaning::Purged),
            (
                "Replica has more GTIDs than the source has, using the source's SERVER_UUID.",
                Meaning::Elsewhere,
            ),
            ("Client requested source to start replication from position > file size", Meaning::Elsewhere),
            ("log event entry exceeded max_allowed_packet", Meaning::Unknown),
        ] {
            assert_eq!(meaning(message), wanted, "{message}");
        }
    }
}
