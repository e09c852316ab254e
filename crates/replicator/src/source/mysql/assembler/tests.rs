//! Without a server: events made by hand. A statement that creates a table stands for any wanted change.

use mysql_async::binlog::BinlogVersion;
use mysql_async::binlog::events::FormatDescriptionEvent;
use proptest::prelude::*;

use super::*;
use crate::filter::Filter;

const FILE: &str = "binlog.000001";

fn position(previous: Ts) -> Position {
    Position {
        server: "s".to_owned(),
        file: FILE.to_owned(),
        pos: 4,
        file_created: None,
        gtids: None,
        previous,
        skip_until: None,
    }
}

fn assembler(at: Position, marked: Ts) -> Assembler {
    let filter = Filter::new(["*.*"], false).unwrap();
    let scope = Scope { db: Some("d".to_owned()), ignores_case: false, filter, part: None };
    let mut assembler = Assembler::new(at, marked, scope, Collations::default());
    assembler.take(&event(EventType::FORMAT_DESCRIPTION_EVENT, 0, &fde())).unwrap();
    assembler
}

fn fde() -> Vec<u8> {
    let lengths = FormatDescriptionEvent::new(BinlogVersion::Version4);
    let mut data = vec![4, 0];
    data.extend([0; 50]);
    data.extend([0; 4]);
    data.push(19);
    data.extend(lengths.event_type_header_lengths());
    // No checksums: the number of the algorithm, and the room for one.
    data.extend([0; 5]);
    data
}

fn event(kind: EventType, log_pos: u32, data: &[u8]) -> Event {
    let size = u32::try_from(19 + data.len()).unwrap();
    let mut bytes = Vec::new();
    bytes.extend(1_u32.to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend(log_pos.to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    Event::read(&FormatDescriptionEvent::new(BinlogVersion::Version4), &bytes[..]).unwrap()
}

fn gtid(micros: u64, log_pos: u32) -> Event {
    let mut data = vec![0; 25];
    data.push(2);
    data.extend([0; 16]);
    data.extend(&micros.to_le_bytes()[..7]);
    data.push(0);
    data.extend(90_700_u32.to_le_bytes());
    event(EventType::ANONYMOUS_GTID_EVENT, log_pos, &data)
}

fn query(schema: &str, text: &str, log_pos: u32) -> Event {
    query_of_bytes(schema, text.as_bytes(), log_pos)
}

fn query_of_bytes(schema: &str, text: &[u8], log_pos: u32) -> Event {
    let mut data = vec![0; 8];
    data.push(u8::try_from(schema.len()).unwrap());
    data.extend([0; 4]);
    data.extend(schema.as_bytes());
    data.push(0);
    data.extend(text);
    event(EventType::QUERY_EVENT, log_pos, &data)
}

/// A table `t` of so many INT columns, named `a`.
fn table_map(number: u8, schema: &str, columns: u8) -> Event {
    table_map_numbered(u32::from(number), schema, columns)
}

fn table_map_numbered(number: u32, schema: &str, columns: u8) -> Event {
    let mut data = number.to_le_bytes().to_vec();
    data.extend([0; 4]);
    data.push(u8::try_from(schema.len()).unwrap());
    data.extend(schema.as_bytes());
    data.extend([0, 1, b't', 0, columns]);
    data.extend(vec![3; columns.into()]);
    data.push(0);
    data.extend(vec![0; usize::from(columns).div_ceil(8)]);
    if columns > 0 {
        // The names: kind 4, then how long they are.
        data.extend([4, 2 * columns]);
        data.extend([1, b'a'].repeat(columns.into()));
    }
    event(EventType::TABLE_MAP_EVENT, 0, &data)
}

/// Rows to insert into a table of so many columns.
fn rows(number: u8, columns: u8, cells: &[u8]) -> Event {
    let mut data = vec![number, 0, 0, 0, 0, 0, 0, 0, 2, 0, columns];
    data.extend(vec![0xFF; usize::from(columns).div_ceil(8)]);
    data.extend(cells);
    event(EventType::WRITE_ROWS_EVENT, 0, &data)
}

/// One transaction of the log.
#[derive(Clone, Copy, Debug)]
struct Written {
    micros: u64,
    wanted: bool,
    begins: u32,
    ends: u32,
}

/// A log whose clock steps by these.
fn log(steps: &[(i64, bool)]) -> Vec<Written> {
    let (mut micros, mut pos) = (1_700_000_000_000_000_u64, 4);
    steps
        .iter()
        .map(|(step, wanted)| {
            micros = micros.saturating_add_signed(*step);
            pos += 100;
            Written { micros, wanted: *wanted, begins: pos - 100, ends: pos }
        })
        .collect()
}

fn read(assembler: &mut Assembler, written: &Written) -> Vec<SourceEvent> {
    let schema = if written.wanted { "d" } else { "other" };
    assembler.take(&gtid(written.micros, written.begins + 50)).unwrap();
    assembler.take(&query(schema, "CREATE TABLE t (a INT)", written.ends)).unwrap();
    drain(assembler)
}

fn drain(assembler: &mut Assembler) -> Vec<SourceEvent> {
    std::iter::from_fn(|| assembler.pop()).collect()
}

fn stamps(events: &[SourceEvent]) -> Vec<Ts> {
    let changes = events.iter().filter_map(|event| match event {
        SourceEvent::Changes(changes) => Some(changes),
        SourceEvent::Resolved(_) => None,
    });
    changes.flatten().map(Change::commit_ts).collect()
}

/// What is before a mark is at or before its ts, what is after it is after.
fn check_marks(events: &[SourceEvent]) {
    let mut mark = Ts::ZERO;
    for event in events {
        match event {
            SourceEvent::Changes(changes) => assert!(changes.iter().all(|change| change.commit_ts() > mark)),
            SourceEvent::Resolved(resolved) => {
                assert!(resolved.ts > mark);
                mark = resolved.ts;
            }
        }
    }
}

fn steps(back: bool) -> impl Strategy<Value = Vec<(i64, bool)>> {
    let step = if back { -3000_i64..3000 } else { 0..3000 };
    // Many transactions of the same microsecond.
    prop::collection::vec((prop_oneof![Just(0), step], any::<bool>()), 1..30)
}

proptest! {
    /// Whatever the clock does, without idle marks: from each mark the same ts for the same transaction.
    #[test]
    fn every_mark_resumes_the_same(steps in steps(true)) {
        let log = log(&steps);
        let mut whole = assembler(position(Ts(7)), Ts(7));
        let events: Vec<SourceEvent> = log.iter().flat_map(|written| read(&mut whole, written)).collect();
        check_marks(&events);
        let all = stamps(&events);
        prop_assert_eq!(all.len(), log.iter().filter(|written| written.wanted).count());
        prop_assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        for event in &events {
            let SourceEvent::Resolved(mark) = event else { continue };
            let at = Position::decode(mark.position.as_ref().unwrap()).unwrap();
            let rest: Vec<&Written> = log.iter().filter(|written| u64::from(written.begins) >= at.pos).collect();
            let mut again = assembler(at, mark.ts);
            let events: Vec<SourceEvent> = rest.into_iter().flat_map(|written| read(&mut again, written)).collect();
            let wanted: Vec<Ts> = all.iter().copied().filter(|ts| *ts > mark.ts).collect();
            prop_assert_eq!(stamps(&events), wanted);
        }
    }

    /// Idle marks change no ts, as long as the clock is not set back.
    #[test]
    fn idle_marks_change_nothing(steps in steps(false), idle in prop::collection::vec(any::<bool>(), 30)) {
        let log = log(&steps);
        let mut plain = assembler(position(Ts(7)), Ts(7));
        let wanted = stamps(&log.iter().flat_map(|written| read(&mut plain, written)).collect::<Vec<_>>());
        let mut marked = assembler(position(Ts(7)), Ts(7));
        let mut events = Vec::new();
        for (written, idle) in log.iter().zip(idle) {
            events.extend(read(&mut marked, written));
            if idle {
                // The clock when the next transaction has not come yet.
                let end = End { now: ts_from_micros(written.micros), file: FILE.to_owned(), pos: written.ends.into(), gtids: String::new() };
                assert!(marked.reach(&end));
                events.extend(drain(&mut marked));
            }
        }
        check_marks(&events);
        prop_assert_eq!(stamps(&events), wanted);
    }

    /// A clock that was set back behind an idle mark: the change comes after the mark, and is not lost.
    #[test]
    fn nothing_is_lost_behind_a_mark(steps in steps(true), ahead in 0_u64..10_000) {
        let log = log(&steps);
        let mut assembler = assembler(position(Ts(7)), Ts(7));
        let mut events = Vec::new();
        for written in &log {
            events.extend(read(&mut assembler, written));
            let now = ts_from_micros(written.micros + ahead);
            assembler.reach(&End { now, file: FILE.to_owned(), pos: written.ends.into(), gtids: String::new() });
            events.extend(drain(&mut assembler));
        }
        check_marks(&events);
        prop_assert_eq!(stamps(&events).len(), log.iter().filter(|written| written.wanted).count());
    }

    /// A start before which the log is read too: exactly what is after it.
    #[test]
    fn what_is_before_the_start_is_skipped(steps in steps(true), at in 0_usize..30) {
        let log = log(&steps);
        let mut whole = assembler(position(Ts::ZERO), Ts::ZERO);
        let all = stamps(&log.iter().flat_map(|written| read(&mut whole, written)).collect::<Vec<_>>());
        let start = all.get(at).copied().unwrap_or(Ts(5));
        let mut late = assembler(Position { skip_until: Some(start), ..position(Ts::ZERO) }, start);
        let events: Vec<SourceEvent> = log.iter().flat_map(|written| read(&mut late, written)).collect();
        check_marks(&events);
        prop_assert!(events.iter().all(|event| !matches!(event, SourceEvent::Resolved(mark) if mark.ts <= start)));
        prop_assert_eq!(stamps(&events), all.into_iter().filter(|ts| *ts > start).collect::<Vec<_>>());
    }
}

#[test]
fn an_end_says_nothing_before_the_server_has_begun() {
    let filter = Filter::new(["*.*"], false).unwrap();
    let scope = Scope { db: None, ignores_case: false, filter, part: None };
    let mut assembler = Assembler::new(position(Ts(7)), Ts(7), scope, Collations::default());
    // A server that was reset has less than we have read; it will refuse in a moment.
    let end = End { now: Ts(1 << 40), file: FILE.to_owned(), pos: 4, gtids: String::new() };
    assert!(!assembler.reach(&end));
    assembler.take(&event(EventType::FORMAT_DESCRIPTION_EVENT, 0, &fde())).unwrap();
    assert!(assembler.reach(&end));
    assert!(matches!(assembler.pop(), Some(SourceEvent::Resolved(mark)) if mark.ts == Ts((1 << 40) - 1)));
}

#[test]
fn another_file_of_the_same_name_is_told() {
    let filter = Filter::new(["*.*"], false).unwrap();
    let scope = Scope { db: None, ignores_case: false, filter, part: None };
    let at = Position { file_created: Some(99), ..position(Ts(7)) };
    let mut assembler = Assembler::new(at, Ts(7), scope, Collations::default());
    let stuck = assembler.take(&event(EventType::FORMAT_DESCRIPTION_EVENT, 0, &fde())).unwrap_err();
    assert!(matches!(stuck, Stuck::Refused { .. }), "{stuck}");
    assert!(stuck.to_string().contains("reset") && stuck.to_string().contains(FILE), "{stuck}");
}

#[test]
fn statements_in_place_of_rows_and_rollbacks_are_refused() {
    for (schema, statements, wanted) in [
        ("d", &["BEGIN", "INSERT INTO t VALUES (1)"][..], "binlog_format"),
        ("d", &["BEGIN", "WITH c AS (SELECT 1) UPDATE t SET a = 1"], "binlog_format"),
        ("d", &["BEGIN", "SELECT f()"], "binlog_format"),
        ("d", &["BEGIN", "(SELECT `d`.`f`(1))"], "binlog_format"),
        ("d", &["BEGIN", "SAVEPOINT `a`", "ROLLBACK TO `a`", "COMMIT"], ""),
        ("d", &["GRANT ALL ON *.* TO x"], ""),
        ("other", &["BEGIN", "SELECT f()", "COMMIT"], ""),
        ("d", &["BEGIN", "CREATE TABLE t (a INT)", "ROLLBACK"], "rolled back"),
        ("d", &["BEGIN", "CREATE TABLE t (a INT)", "ROLLBACK TO `a`"], "rolled back"),
        ("other", &["BEGIN", "INSERT INTO t VALUES (1)", "COMMIT"], ""),
        ("other", &["BEGIN", "CREATE TABLE t (a INT)", "ROLLBACK"], ""),
    ] {
        let mut assembler = assembler(position(Ts(7)), Ts(7));
        assembler.take(&gtid(1, 10)).unwrap();
        let stuck: Vec<String> = statements
            .iter()
            .filter_map(|text| assembler.take(&query(schema, text, 100)).err())
            .map(|stuck| stuck.to_string())
            .collect();
        match wanted {
            "" => assert!(stuck.is_empty(), "{stuck:?}"),
            wanted => assert!(stuck.len() == 1 && stuck[0].contains(wanted), "{stuck:?}"),
        }
    }
}

#[test]
fn a_statement_may_describe_any_number_of_tables() {
    let mut assembler = assembler(position(Ts(7)), Ts(7));
    assembler.take(&gtid(1, 10)).unwrap();
    assembler.take(&query("d", "BEGIN", 20)).unwrap();
    for number in 1..=5000 {
        assembler.take(&table_map_numbered(number, "other", 1)).unwrap();
    }
    assembler.take(&rows(1, 1, &[0, 5, 0, 0, 0])).unwrap();
    assembler.take(&query("d", "COMMIT", 30)).unwrap();
    // Numbers mean nothing in the next transaction: so many are forgotten.
    assembler.take(&gtid(2, 40)).unwrap();
    assembler.take(&query("d", "BEGIN", 50)).unwrap();
    let stuck = assembler.take(&rows(1, 1, &[0, 5, 0, 0, 0])).unwrap_err();
    assert!(stuck.to_string().contains("not described"), "{stuck}");
}

#[test]
fn rows_must_fit_their_table() {
    let good = |event: &Event| {
        let mut assembler = assembler(position(Ts(7)), Ts(7));
        assembler.take(&gtid(1, 10)).unwrap();
        assembler.take(&query("d", "BEGIN", 20)).unwrap();
        assembler.take(&table_map(1, "d", 1)).unwrap();
        assembler.take(&table_map(2, "d", 0)).and_then(|()| assembler.take(event))
    };
    good(&rows(1, 1, &[0, 5, 0, 0, 0])).unwrap();
    for (event, wanted) in [
        (rows(2, 0, &[0, 5, 0, 0, 0]), "0 columns"),
        (rows(1, 2, &[0, 5, 0, 0, 0]), "2 columns"),
        (rows(1, 1, &[0, 5, 0]), "4 bytes expected"),
    ] {
        let stuck = good(&event).unwrap_err();
        assert!(stuck.to_string().contains(wanted), "{stuck}");
    }
}

#[test]
fn a_statement_that_is_no_valid_text_goes_on() {
    let mut assembler = assembler(position(Ts(7)), Ts(7));
    assembler.take(&gtid(1, 10)).unwrap();
    assembler.take(&query_of_bytes("d", b"CREATE TABLE t (a INT COMMENT '\xFF')", 100)).unwrap();
    let Some(SourceEvent::Changes(changes)) = assembler.pop() else { panic!("no change") };
    let [Change::Ddl(ddl)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!(ddl.query, "CREATE TABLE t (a INT COMMENT '\u{FFFD}')");
}

#[test]
fn quiet_transactions_give_a_mark_now_and_then() {
    let log = log(&vec![(1, false); 2500]);
    let mut assembler = assembler(position(Ts(7)), Ts(7));
    let events: Vec<SourceEvent> = log.iter().flat_map(|written| read(&mut assembler, written)).collect();
    assert_eq!(events.len(), 2);
    check_marks(&events);
}
