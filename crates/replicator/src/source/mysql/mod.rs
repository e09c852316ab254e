//! `mysql://user:password@host:port/[db]`: the row binlog of `MySQL` 8.4 and 9.x.
//!
//! ```text
//!  mod.rs       the factory: check, prepare, open
//!  endpoint.rs  the URI, connections           server.rs    what we ask a server
//!  dump.rs      the binlog as a replica gets it, what refusals mean
//!  stream.rs    the open source: events through the assembler, marks while nothing happens
//!  idle.rs      where the log ends             assembler.rs events to transactions, without I/O
//!  search.rs    a start ts to a position       position.rs, gtid.rs   where to resume
//!  table.rs     what the binlog says of tables cells.rs, jsonb.rs, charset.rs  cells to values
//!  scope.rs     which changes are wanted
//! ```
//!
//! # Parameters
//!
//! `ssl-mode`: `disabled`, `preferred` (the default), `required` or `verify-identity`, as in `MySQL`'s own clients;
//! `ssl-ca`: a file of CA certificates, on each capture's host. With a `db` only changes of that schema are
//! replicated. The server's own schemas never are.
//!
//! # What the server must be
//!
//! `log_bin`, `binlog_format=ROW`, `binlog_row_image=FULL`, `binlog_row_metadata=FULL`, no `PARTIAL_JSON`; the user
//! needs REPLICATION SLAVE and REPLICATION CLIENT. Both are checked when a changefeed is made, the settings at each
//! launch too. What a session does against them (a statement in place of rows, a part of a row) ends the
//! changefeed with a clear error: what was changed cannot be told. So do two-phase XA transactions, and what was
//! rolled back in tables that cannot.
//!
//! # The time of a change
//!
//! `commitTs = max(commit time, previous + 1)`. The commit time is what the server wrote into the GTID event, in
//! microseconds, when the transaction entered the log: under the log's lock, so it grows in log order unless the
//! clock is set back. It is the *immediate* one, this server's: on a server that is itself a replica the original
//! one may be hours older than what was already promised. `previous` is the ts of the transaction before,
//! wanted or not, and travels in the position: whoever replays from whatever mark gets the same.
//!
//! An idle mark (nothing happened, what time is it?) does not touch `previous`. It is the server's clock, read
//! *before* asking where the log ends, minus one; and it is given once everything before that end was. Since
//! `SHOW BINARY LOG STATUS` takes the log's lock, what comes behind that end got its commit time after the clock was
//! read: no margin is needed. Only a clock that is set back breaks that; then the later transaction is moved
//! behind the mark (it is never lost), and a replay from before the mark may give it a smaller ts.
//!
//! # Where it resumes
//!
//! With `gtid_mode=ON` by the GTIDs that were read: a server that has them all may take over. Otherwise by file and
//! position, bound to the `server_uuid` and to the file's time of birth. A position that was purged is
//! `CDC:ErrStartTsBeforeGC`. A lost connection is an error that is retried: the changefeed is launched again
//! from its checkpoint. Transactions are read once more from their beginning.
//!
//! # On several captures
//!
//! Each processor reads the whole binlog and takes the rows of its part of the tables (`part.rs`), so that a part's position is a
//! start for every part that has not read less of the log. The changefeed's is that of the part that has read least, which need not
//! be the one with the least checkpoint. A statement that names no table (`CREATE DATABASE`) is in the first part. Parts do not wait for each
//! other: a table that is renamed may change its part, and what the sink gets of it before and after are then two streams.
//!
//! # Left
//!
//! An XA transaction that was prepared before the start and commits after it is not seen. After a takeover by a
//! server whose clock is behind, a transaction may be given twice with two commit ts. A start ts on a server
//! whose files hold no transaction is refused unless the oldest of them is an hour older. That the dump's own connection
//! reaches the server that the others reach is not checked. By GTIDs it is not noticed that a server's binlog was reset and its GTIDs used anew. The text
//! of `CREATE TABLE .. SELECT` that a session wrote as a statement passes as a DDL without its rows. Upstreams are
//! trusted not to send hostile events.
//!
//! # Memory
//!
//! At most a piece of a transaction (2 MiB or one row event), the library's packet buffer, and up to 4096 table
//! descriptions. A compressed transaction (`binlog_transaction_compression`) is decompressed whole, by the library;
//! a one-phase XA transaction is kept whole, up to 64 MiB.

use async_trait::async_trait;
use capture_runtime::task::{PreparedTask, TaskError, TaskSpec};
use metadata_api::model::{ChangefeedProgress, SourcePosition, TableId, Ts, UpstreamInfo};
use mysql_async::Conn;

use self::assembler::Assembler;
use self::dump::Identity;
use self::endpoint::Endpoint;
use self::idle::Idle;
use self::position::Position;
use self::scope::Scope;
use self::server::Facts;
use self::stream::MysqlSource;
use super::{Launch, Source, SourceFactory};
use crate::filter::Filter;
use crate::part::Part;
use crate::start::refuse_future_start;

mod assembler;
mod bytes;
mod cells;
mod charset;
mod dump;
mod endpoint;
mod gtid;
mod idle;
mod jsonb;
mod position;
mod scope;
mod search;
mod server;
mod stream;
mod table;

/// Opens binlogs. Knows nothing from one call to the next.
#[derive(Clone, Copy, Debug)]
pub struct MysqlFactory;

/// Connects to a server that can serve.
async fn connect(spec: &TaskSpec) -> Result<(Endpoint, Conn, Facts), TaskError> {
    let endpoint = Endpoint::from_uri(&spec.upstream_uri)?;
    let mut conn = endpoint.connect().await?;
    let facts = server::facts(&endpoint, &mut conn).await?;
    server::check_privileges(&endpoint, &mut conn).await?;
    Ok((endpoint, conn, facts))
}

#[async_trait]
impl SourceFactory for MysqlFactory {
    async fn check(&self, spec: &TaskSpec) -> Result<(), TaskError> {
        let (_, conn, _) = connect(spec).await?;
        close(conn);
        Ok(())
    }

    async fn prepare(&self, spec: &TaskSpec) -> Result<PreparedTask, TaskError> {
        let (endpoint, mut conn, facts) = connect(spec).await?;
        // The log's end first: what was committed before we looked is not after the start.
        let end = server::end(&endpoint, &mut conn).await?;
        let now = server::now(&endpoint, &mut conn).await?;
        refuse_future_start(spec.start_ts, now)?;
        let (start_ts, position) = match spec.start_ts {
            Some(start_ts) => (start_ts, search::position_of(&endpoint, &mut conn, &facts, start_ts).await?),
            None => (now, position_at(&endpoint, &facts, end, now)?),
        };
        close(conn);
        let position = Some(position.encode());
        Ok(PreparedTask {
            start_ts,
            task_position: ChangefeedProgress { position, ..ChangefeedProgress::at(start_ts) },
        })
    }

    /// By the names of the tables, into as many parts as there may be processors: each reads the whole log. Tables come and
    /// go, so that they could not be listed; where a table belongs is known before it is there.
    fn tables(&self, upstream: &UpstreamInfo, max_processors: u32) -> Result<Vec<TableId>, TaskError> {
        Endpoint::from_uri(&upstream.uri)?;
        Ok(Part::all(max_processors))
    }

    /// Where the part is that has read least of the log. Checkpoints do not tell: a part that idles is dated by its own marks, and
    /// another server has another clock. Without a position of each part that can be read, the checkpoint has to do.
    fn common_position(&self, shares: &[&ChangefeedProgress]) -> Option<SourcePosition> {
        let positions = shares.iter().map(|share| Position::decode(share.position.as_ref()?).ok());
        let least = positions.reduce(|one, other| Position::least(one?, other?)).flatten();
        least.map(|position| position.encode())
    }

    async fn open(&self, launch: &Launch) -> Result<Box<dyn Source>, TaskError> {
        let endpoint = Endpoint::from_uri(&launch.upstream.uri)?;
        let mut conn = endpoint.connect().await?;
        let facts = server::facts(&endpoint, &mut conn).await?;
        let given = launch.start.checkpoint_ts;
        let mut position = match &launch.start.position {
            Some(stored) => Position::decode(stored).map_err(|error| {
                endpoint.unable(format_args!("the task position is not one of a MySQL source: {error}"))
            })?,
            // An operator has set the checkpoint.
            None => search::position_of(&endpoint, &mut conn, &facts, given).await?,
        };
        check_same_server(&endpoint, &position, &facts)?;
        if position.server != facts.uuid {
            // By GTIDs another server may take over; its files are others.
            (position.server, position.file, position.pos) = (facts.uuid.clone(), String::new(), 4);
        }
        let collations = server::collations(&endpoint, &mut conn).await?;
        close(conn);
        let scope = Scope {
            db: endpoint.db().map(str::to_owned),
            ignores_case: facts.ignores_case,
            filter: Filter::from_config(&launch.info.config.0)?,
            part: launch.share.as_ref().map(Part::of).transpose()?,
        };
        let identity = Identity::of(launch, facts.server_id);
        Ok(Box::new(MysqlSource {
            idle: Idle::begin(endpoint.clone(), facts.uuid),
            endpoint,
            identity,
            assembler: Assembler::new(position, given, scope, collations),
            dump: None,
            end: None,
            collisions: 0,
        }))
    }
}

/// The end of the log as a start: what comes behind it is after `start_ts`.
fn position_at(
    endpoint: &Endpoint,
    facts: &Facts,
    end: server::End,
    start_ts: Ts,
) -> Result<Position, TaskError> {
    let gtids = if facts.gtids { Some(server::gtid_set(endpoint, &end.gtids)?) } else { None };
    Ok(Position {
        server: facts.uuid.clone(),
        file: end.file,
        pos: end.pos,
        file_created: None,
        gtids,
        previous: start_ts,
        skip_until: None,
    })
}

fn check_same_server(endpoint: &Endpoint, position: &Position, facts: &Facts) -> Result<(), TaskError> {
    if position.gtids.is_some() && !facts.gtids {
        return Err(endpoint.misconfigured(
            "gtid_mode is not ON any more, and the changefeed's position is a set of GTIDs: SET PERSIST gtid_mode = ON",
        ));
    }
    if position.gtids.is_none() && position.server != facts.uuid {
        return Err(endpoint.unable(format_args!(
            "it is another server: server_uuid {} in place of {}, and files and positions mean nothing there; set the \
             URI to the former server, or create the changefeed anew",
            facts.uuid, position.server
        )));
    }
    Ok(())
}

/// Says good-bye in the background.
fn close(conn: Conn) {
    drop(conn);
}
