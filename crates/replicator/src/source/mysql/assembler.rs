//! Binlog events to transactions: no I/O, so that it can be read as a state machine.
//!
//! ```text
//!             GTID                      BEGIN / XA START             rows, DDL
//! (between) --------> Open{begun: no} ---------------------> begun <----------+
//!     ^                   |  DDL, other statement              |              |
//!     |                   v                                    | XID / COMMIT / one-phase XA
//!     +------------ end: the rest of the changes, then a mark <+
//! ```
//!
//! A transaction is given in pieces when it is large; a mark comes only at its end. Transactions without a wanted
//! change give a mark now and then only.

use std::collections::VecDeque;
use std::sync::Arc;

use metadata_api::model::Ts;
use mysql_async::binlog::events::{Event, EventData, GtidEvent, QueryEvent, RowsEventData, TableMapEvent};
use mysql_async::binlog::{BinlogChecksumAlg, EventType};

use super::bytes::{Bytes, Malformed};
use super::charset::Collations;
use super::gtid::Gtid;
use super::position::{Position, ts_from_micros};
use super::scope::{Scope, Session};
use super::server::End;
use super::table::{Known, Layout, Tables};
use crate::ddl::{self, Statement};
use crate::event::{Change, DdlChange, Resolved, Row, RowChange, RowOp, SourceEvent, Value};

/// A piece of a transaction: as many changes at most,
const PIECE: usize = 2048;
/// or about as many bytes.
const PIECE_BYTES: usize = 2 << 20;
/// What an XA transaction may hold: it is kept until it is known to commit.
const XA_BYTES: usize = 64 << 20;
/// After so many transactions without a wanted change a mark says how far we are.
const QUIET: u32 = 1000;

/// Why events cannot be followed any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stuck {
    /// What was read is damaged, or unlike anything that a server writes.
    #[error("at {at}: {reason}")]
    Damaged {
        /// Where, for people.
        at: String,
        /// What.
        reason: String,
    },
    /// Something that cannot be replicated.
    #[error("at {at}: {reason}")]
    Refused {
        /// Where, for people.
        at: String,
        /// What, and what would be right.
        reason: String,
    },
}

struct Open {
    gtid: Option<Gtid>,
    commit_ts: Ts,
    begun: bool,
    xa: bool,
    /// It is in the sink already, or before the start.
    skipped: bool,
    /// Whether it had a wanted change.
    concerns: bool,
    /// Whether a piece of it was given.
    given: bool,
    changes: Vec<Change>,
    bytes: usize,
}

/// A compressed transaction under way.
struct Payload {
    ends_at: u32,
    /// Bytes of events that are still to come.
    left: u64,
}

/// The state machine.
pub(super) struct Assembler {
    at: Position,
    /// The ts of the last mark: what comes later is after it.
    marked: Ts,
    scope: Scope,
    collations: Collations,
    tables: Tables,
    /// The server has begun to send, from where we asked: until then an end of its log says nothing.
    begun: bool,
    open: Option<Open>,
    payload: Option<Payload>,
    quiet: u32,
    out: VecDeque<SourceEvent>,
}

impl Assembler {
    /// One that goes on at `at`, after everything at or before `marked` was given.
    pub(super) fn new(at: Position, marked: Ts, scope: Scope, collations: Collations) -> Self {
        Self {
            marked: if at.skip_until.is_some() { Ts::ZERO } else { marked },
            at,
            scope,
            collations,
            tables: Tables::default(),
            begun: false,
            open: None,
            payload: None,
            quiet: 0,
            out: VecDeque::new(),
        }
    }

    /// Where reading would go on if it began anew.
    pub(super) fn position(&self) -> &Position {
        &self.at
    }

    /// What is to be given next.
    pub(super) fn pop(&mut self) -> Option<SourceEvent> {
        self.out.pop_front()
    }

    /// Forgets the transaction under way, to read it again from [`Self::position`]. `false` when a part of it was
    /// given already.
    pub(super) fn rewind(&mut self) -> bool {
        let clean = self.open.as_ref().is_none_or(|open| !open.given) && self.out.is_empty();
        if clean {
            self.begun = false;
            self.open = None;
            self.payload = None;
        }
        clean
    }

    /// The log ended there at that time of the server, so if everything before it was given, everything up to that
    /// time was. `false`: not yet, ask again.
    pub(super) fn reach(&mut self, end: &End) -> bool {
        if !self.begun || !self.at.is_at_or_after(&end.file, end.pos) {
            return false;
        }
        if self.open.is_some() {
            // Its own mark will be greater.
            return true;
        }
        // Strictly before: another transaction may still commit in the same microsecond.
        let ts = Ts(end.now.0.saturating_sub(1));
        if ts > self.marked && self.at.skip_until.is_none_or(|until| ts >= until) {
            self.mark(ts);
        }
        true
    }

    /// Takes the next event.
    pub(super) fn take(&mut self, event: &Event) -> Result<(), Stuck> {
        self.account(event)?;
        let header = event.header();
        let data = match event.read_data() {
            Ok(Some(data)) => data,
            // Of a later version; the flag says that it may be left out.
            Ok(None) if header.flags_raw() & 0x80 != 0 => return Ok(()),
            Ok(None) => {
                return Err(
                    self.damaged(format_args!("an event of unknown type {}", header.event_type_raw()))
                );
            }
            Err(error) => return Err(self.damaged(error)),
        };
        // What is inside a compressed transaction has no place of its own in the log.
        let inner = self.payload.is_some();
        let ends_at = self.payload.as_ref().map_or(header.log_pos(), |payload| payload.ends_at);
        let result = match data {
            EventData::FormatDescriptionEvent(_) => self.file_begins(header.timestamp()),
            EventData::RotateEvent(rotate) => {
                let name = String::from_utf8_lossy(rotated_to(event, rotate.name_raw()));
                if self.at.file != name {
                    self.at.file = name.into_owned();
                    self.at.file_created = None;
                }
                self.at.pos = rotate.position();
                return Ok(());
            }
            EventData::HeartbeatEvent => {
                if event.data() != self.at.file.as_bytes() {
                    return Ok(());
                }
                Ok(())
            }
            EventData::GtidEvent(gtid) => {
                let tag = gtid.tag().map(ToString::to_string);
                let name = Gtid::new(gtid.sid(), tag.as_deref(), gtid.gno());
                self.begin(Some(name), &gtid, header.timestamp())
            }
            EventData::AnonymousGtidEvent(gtid) => self.begin(None, &gtid.0, header.timestamp()),
            EventData::QueryEvent(query) => self.query(&query, ends_at),
            EventData::XidEvent(_) => self.end(ends_at),
            EventData::TableMapEvent(map) => self.table_map(&map, event.data()),
            EventData::RowsEvent(rows) => self.rows(&rows),
            EventData::XaPrepareLogEvent(data) => self.xa_prepare(&data, ends_at),
            EventData::ExecuteLoadQueryEvent(load) => self.statement(&load.schema(), None),
            EventData::IncidentEvent(_) => Err(self.refused(
                "the server says that events may be missing here (an incident event): create the changefeed anew",
            )),
            _ => Ok(()),
        };
        if self.open.is_none() && header.log_pos() != 0 && !inner {
            self.at.advance(header.log_pos());
        }
        result
    }

    /// The same name with another birth is another file: the binlog was reset. GTIDs need no such check.
    fn file_begins(&mut self, created: u32) -> Result<(), Stuck> {
        if self.at.gtids.is_none() && self.at.file_created.is_some_and(|known| known != created) {
            return Err(self.refused(
                "the file is not the one that was read before: the server's binlog was reset, or it is another server; \
                 create the changefeed anew",
            ));
        }
        self.at.file_created = Some(created);
        self.begun = true;
        Ok(())
    }

    /// Keeps count of what a compressed transaction holds: the library gives nothing where it cannot decompress.
    fn account(&mut self, event: &Event) -> Result<(), Stuck> {
        let header = event.header();
        if let Some(payload) = &mut self.payload {
            let size = u64::from(header.event_size());
            if size > payload.left {
                return Err(self.damaged("a compressed transaction ends before its end"));
            }
            payload.left -= size;
            return Ok(());
        }
        if header.event_type_raw() == EventType::TRANSACTION_PAYLOAD_EVENT as u8 {
            let Ok(Some(EventData::TransactionPayloadEvent(payload))) = event.read_data() else {
                return Err(self.damaged("a compressed transaction is cut off"));
            };
            let left = match payload.uncompressed_size() {
                0 => payload.payload_size(),
                size => size,
            };
            self.payload = Some(Payload { ends_at: header.log_pos(), left });
        }
        Ok(())
    }

    fn begin(&mut self, gtid: Option<Gtid>, event: &GtidEvent, seconds: u32) -> Result<(), Stuck> {
        if self.open.is_some() {
            return Err(self.damaged("a transaction begins before the one before it has ended"));
        }
        let micros = match event.immediate_commit_timestamp() {
            0 => u64::from(seconds) * 1_000_000,
            micros => micros,
        };
        self.start(gtid, micros);
        Ok(())
    }

    fn start(&mut self, gtid: Option<Gtid>, micros: u64) -> &mut Open {
        self.tables.transaction_begins();
        let commit_ts = ts_from_micros(micros).max(self.at.previous.next()).max(self.marked.next());
        self.open.insert(Open {
            gtid,
            commit_ts,
            begun: false,
            xa: false,
            skipped: self.at.skip_until.is_some_and(|until| commit_ts <= until),
            concerns: false,
            given: false,
            changes: Vec::new(),
            bytes: 0,
        })
    }

    fn query(&mut self, event: &QueryEvent<'_>, ends_at: u32) -> Result<(), Stuck> {
        let raw = event.query_raw();
        let text = String::from_utf8_lossy(raw);
        let statement = ddl::classify(&text);
        let Some(open) = &mut self.open else {
            return Err(self.damaged(format_args!("a statement outside any transaction: {}", brief(&text))));
        };
        match statement {
            Statement::Begin => open.begun = true,
            Statement::Rollback | Statement::RollbackToSavepoint if open.concerns => {
                return Err(self.refused(
                    "a transaction was rolled back after it had changed a table that cannot roll back; what of it \
                     remains cannot be told: use InnoDB, and create the changefeed anew",
                ));
            }
            Statement::Commit | Statement::Rollback => return self.end(ends_at),
            Statement::Xa => {
                let words = ddl::words(&text, 2);
                match words.get(1).map(String::as_str) {
                    Some("START" | "BEGIN") => (open.begun, open.xa) = (true, true),
                    Some("END") => {}
                    // Of a transaction that was refused if it had changed anything wanted.
                    _ => return self.end(ends_at),
                }
            }
            Statement::Other if !open.begun => {}
            // Inside a transaction whatever is not known may change rows: `SELECT f()`.
            Statement::Dml | Statement::Other => {
                let session = self.session(event)?;
                self.statement(&event.schema(), session.touched.as_deref())?;
            }
            Statement::Ddl { schema, table } => self.ddl(event, schema, table)?,
            Statement::Savepoint | Statement::RollbackToSavepoint => {}
        }
        if self.open.as_ref().is_some_and(|open| !open.begun) { self.end(ends_at) } else { Ok(()) }
    }

    fn session(&self, event: &QueryEvent<'_>) -> Result<Session, Stuck> {
        Session::read(event.status_vars_raw()).map_err(|error| self.damaged(error))
    }

    /// A statement that changes rows, in place of the rows.
    fn statement(&self, schema: &str, touched: Option<&[String]>) -> Result<(), Stuck> {
        if self.open.as_ref().is_some_and(|open| open.skipped) || !self.scope.may_concern(schema, touched) {
            return Ok(());
        }
        Err(self.refused(
            "a session wrote a statement in place of rows: binlog_format must be ROW in every session; what the \
             statement changed cannot be told, so create the changefeed anew",
        ))
    }

    fn ddl(
        &mut self,
        event: &QueryEvent<'_>,
        schema: Option<String>,
        table: Option<String>,
    ) -> Result<(), Stuck> {
        let session = self.session(event)?;
        let schema = schema.unwrap_or_else(|| event.schema().into_owned());
        let touches = session.touched.as_deref().unwrap_or_default();
        let wanted = self.scope.wants_schema(&schema)
            || self.scope.db.is_some() && touches.iter().any(|name| self.scope.wants_schema(name));
        if !wanted || !self.scope.has_table(&schema, table.as_deref()) {
            return Ok(());
        }
        if self.open.as_ref().is_none_or(|open| open.skipped) {
            return Ok(());
        }
        let charset = session.charset(&self.collations);
        let query = charset.decode(event.query_raw()).unwrap_or_else(|error| {
            // The server runs such a text, and its changes are in the log already.
            tracing::warn!(at = self.place(), %error, "a DDL statement's text is not valid; what is not is replaced");
            charset.decode_lossily(event.query_raw())
        });
        if ddl::words(&query, 2).get(1).is_some_and(|word| word == "TEMPORARY") {
            return Ok(());
        }
        if let Some(open) = &mut self.open {
            open.push(Change::Ddl(DdlChange { schema, table, query, commit_ts: open.commit_ts }));
        }
        Ok(())
    }

    fn table_map(&mut self, map: &TableMapEvent<'_>, raw: &[u8]) -> Result<(), Stuck> {
        let Self { tables, scope, collations, .. } = self;
        let seen = tables.see(map, raw, collations, |schema, table| scope.wants_table(schema, table));
        seen.map_err(|error| self.damaged(error))
    }

    fn rows(&mut self, rows: &RowsEventData<'_>) -> Result<(), Stuck> {
        let layout = match self.tables.get(rows.table_id()) {
            Some(Known::Wanted(layout)) => Arc::clone(layout),
            Some(Known::Unwanted) => return Ok(()),
            // The number that ends a statement without rows.
            None if rows.rows_data().is_empty() => return Ok(()),
            None => return Err(self.damaged("rows of a table that was not described")),
        };
        let Some(open) = self.open.as_mut() else {
            return Err(self.damaged("rows outside any transaction"));
        };
        if open.skipped {
            return Ok(());
        }
        // Rows without columns would never end.
        if layout.cells.is_empty() || rows.num_columns() != layout.cells.len() as u64 {
            return Err(self.damaged(format_args!(
                "rows of {} columns for a table of {}",
                rows.num_columns(),
                layout.cells.len()
            )));
        }
        let commit_ts = open.commit_ts;
        let name = format!("{}.{}", layout.table.schema, layout.table.name);
        if let Some(reason) = incomplete(rows) {
            return Err(self.refused(format_args!("{name}: {reason}; create the changefeed anew")));
        }
        let mut from = Bytes(rows.rows_data());
        while !from.is_empty() {
            let op = match operation(rows, &layout, &mut from) {
                Ok(op) => op,
                Err(error) => return Err(self.refused(format_args!("a row of {name}: {error}"))),
            };
            self.push(Change::Row(RowChange { table: Arc::clone(&layout.table), commit_ts, op }))?;
        }
        Ok(())
    }

    fn push(&mut self, change: Change) -> Result<(), Stuck> {
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        open.push(change);
        if open.xa && open.bytes > XA_BYTES {
            return Err(self.refused(format_args!(
                "an XA transaction of more than {} MiB: it is kept in memory until it is known to commit; make it \
                 smaller, or use a transaction without XA",
                XA_BYTES >> 20
            )));
        }
        if !open.xa && (open.changes.len() >= PIECE || open.bytes >= PIECE_BYTES) {
            open.given = true;
            open.bytes = 0;
            self.out.push_back(SourceEvent::Changes(std::mem::take(&mut open.changes)));
        }
        Ok(())
    }

    fn xa_prepare(&mut self, data: &[u8], ends_at: u32) -> Result<(), Stuck> {
        let one_phase = data.first().is_some_and(|flag| *flag != 0);
        if !one_phase && self.open.as_ref().is_some_and(|open| open.concerns) {
            return Err(self.refused(
                "a transaction was prepared by XA PREPARE: whether it commits is decided later in the binlog, which is \
                 not supported; use XA COMMIT .. ONE PHASE or transactions without XA, and create the changefeed anew",
            ));
        }
        self.end(ends_at)
    }

    /// The transaction has committed.
    fn end(&mut self, ends_at: u32) -> Result<(), Stuck> {
        let Some(open) = self.open.take() else {
            return Err(self.damaged("a transaction ends that has not begun"));
        };
        if self.payload.take().is_some_and(|payload| payload.left != 0) {
            return Err(self.damaged("a compressed transaction goes on after its end"));
        }
        self.at.advance(ends_at);
        self.at.previous = open.commit_ts;
        if let (Some(gtids), Some(gtid)) = (&mut self.at.gtids, &open.gtid) {
            gtids.insert(gtid);
        }
        if open.skipped {
            return Ok(());
        }
        if !open.changes.is_empty() {
            self.out.push_back(SourceEvent::Changes(open.changes));
        }
        self.quiet += 1;
        if open.concerns || self.quiet >= QUIET {
            self.mark(open.commit_ts);
        }
        Ok(())
    }

    fn mark(&mut self, ts: Ts) {
        // A request by file and position cannot name a place past 4 GiB; the file ends there anyway.
        if self.at.gtids.is_none() && self.at.pos > u64::from(u32::MAX) {
            return;
        }
        self.quiet = 0;
        self.marked = ts;
        self.at.skip_until = None;
        self.out.push_back(SourceEvent::Resolved(Resolved { ts, position: Some(self.at.encode()) }));
    }

    fn place(&self) -> String {
        let gtid = self.open.as_ref().and_then(|open| open.gtid.as_ref());
        let after = format!("after {}:{}", self.at.file, self.at.pos);
        gtid.map_or(after.clone(), |gtid| format!("{gtid}, {after}"))
    }

    fn damaged(&self, reason: impl std::fmt::Display) -> Stuck {
        Stuck::Damaged { at: self.place(), reason: reason.to_string() }
    }

    fn refused(&self, reason: impl std::fmt::Display) -> Stuck {
        Stuck::Refused { at: self.place(), reason: reason.to_string() }
    }
}

impl Open {
    fn push(&mut self, change: Change) {
        self.concerns = true;
        self.bytes += change.size();
        self.changes.push(change);
    }
}

/// The next file's name. The first event of a dump comes before the server has said that it sends checksums, so the
/// library takes its checksum for a part of the name.
fn rotated_to<'e>(event: &Event, name: &'e [u8]) -> &'e [u8] {
    /// The CRC-32 of anything followed by its own CRC-32.
    const RESIDUE: u32 = 0x2144_DF1C;
    match name.split_last_chunk::<4>() {
        Some((name, _)) if event.calc_checksum(BinlogChecksumAlg::BINLOG_CHECKSUM_ALG_CRC32) == RESIDUE => {
            name
        }
        _ => name,
    }
}

/// A statement's beginning, for a message.
fn brief(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Why the rows do not have all of their columns.
fn incomplete(rows: &RowsEventData<'_>) -> Option<&'static str> {
    if matches!(rows, RowsEventData::PartialUpdateRowsEvent(_)) {
        return Some(
            "a session wrote a part of a JSON value only: binlog_row_value_options must be empty in every session",
        );
    }
    let images = [rows.columns_before_image(), rows.columns_after_image()];
    let whole = images.into_iter().flatten().all(|image| image.count_zeros() == 0);
    (!whole)
        .then_some("a session wrote a part of its rows only: binlog_row_image must be FULL in every session")
}

fn operation(rows: &RowsEventData<'_>, layout: &Layout, from: &mut Bytes<'_>) -> Result<RowOp, Malformed> {
    let mut image = || row(layout, from);
    Ok(match (rows.columns_before_image().is_some(), rows.columns_after_image().is_some()) {
        (false, _) => RowOp::Insert { new: image()? },
        (true, false) => RowOp::Delete { old: image()? },
        (true, true) => RowOp::Update { old: image()?, new: image()? },
    })
}

fn row(layout: &Layout, from: &mut Bytes<'_>) -> Result<Row, Malformed> {
    let nulls = from.take(layout.cells.len().div_ceil(8))?;
    let cells = layout.cells.iter().enumerate();
    cells
        .map(|(place, cell)| {
            let null = nulls.get(place / 8).is_some_and(|byte| byte >> (place % 8) & 1 == 1);
            if null {
                return Ok(Value::Null);
            }
            cell.read(from).map_err(|error| {
                let column = layout.table.columns.get(place).map_or("", |column| column.name.as_str());
                Malformed(format!("column {column}: {error}"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
