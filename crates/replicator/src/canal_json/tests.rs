use proptest::prelude::*;
use serde_json::json;

use super::*;

fn column(name: &str, kind: ColumnKind, unsigned: bool, primary_key: bool) -> Column {
    Column { name: name.to_owned(), kind, unsigned, primary_key }
}

fn line(change: &Change) -> String {
    let mut out = Vec::new();
    Encoder::default().encode(change, 1_700_000_000_123, &mut out);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.matches('\n').count(), 1);
    assert!(text.ends_with('\n'));
    text
}

fn change(columns: Vec<Column>, op: RowOp) -> Change {
    let table = Table { schema: "shop".to_owned(), name: "item \"x\"".to_owned(), columns };
    let commit_ts = Ts(Ts::from_physical_ms(1_700_000_000_000).0 + 7);
    Change::Row(RowChange { table: Arc::new(table), commit_ts, op })
}

#[test]
fn an_update_has_ticdcs_shape() {
    let columns =
        vec![column("id", ColumnKind::Int, true, true), column("näme", ColumnKind::VarChar, false, false)];
    let op = RowOp::Update {
        old: vec![Value::UInt(1), Value::Null],
        new: vec![Value::UInt(4_000_000_000), Value::Text("a\n\"ü\u{1F680}".to_owned())],
    };
    let wanted = json!({
        "id": 0, "database": "shop", "table": "item \"x\"", "pkNames": ["id"], "isDdl": false, "type": "UPDATE",
        "es": 1_700_000_000_000_u64, "ts": 1_700_000_000_123_u64, "sql": "",
        "sqlType": {"id": -5, "näme": 12}, "mysqlType": {"id": "int unsigned", "näme": "varchar"},
        "data": [{"id": "4000000000", "näme": "a\n\"ü\u{1F680}"}], "old": [{"id": "1", "näme": null}],
        "_tidb": {"commitTs": (1_700_000_000_000_u64 << 18) + 7}
    });
    let text = line(&change(columns, op));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), wanted);
    let order: Vec<usize> = [
        "\"id\":0",
        "\"database\"",
        "\"table\"",
        "\"pkNames\"",
        "\"isDdl\"",
        "\"type\"",
        "\"es\"",
        "\"ts\"",
        "\"sql\"",
        "\"sqlType\"",
        "\"mysqlType\"",
        "\"data\"",
        "\"old\"",
        "\"_tidb\"",
    ]
    .iter()
    .map(|key| text.find(key).unwrap())
    .collect();
    assert!(order.is_sorted(), "{text}");
}

#[test]
fn inserts_and_deletes_have_their_row_in_data() {
    let columns = || vec![column("a", ColumnKind::Int, false, false)];
    for (op, kind, value) in [
        (RowOp::Insert { new: vec![Value::Int(-1)] }, "INSERT", "-1"),
        (RowOp::Delete { old: vec![Value::Int(2)] }, "DELETE", "2"),
    ] {
        let message: Message = serde_json::from_str(&line(&change(columns(), op))).unwrap();
        assert_eq!((message.kind.as_str(), message.pk_names, message.old), (kind, None, None));
        assert_eq!(message.data.unwrap()[0]["a"].as_deref(), Some(value));
    }
}

#[test]
fn every_kind_of_value_is_a_string() {
    let cases = [
        (ColumnKind::TinyInt, true, Value::UInt(255), "255", 5),
        (ColumnKind::TinyInt, true, Value::UInt(127), "127", -6),
        (ColumnKind::TinyInt, false, Value::Int(-128), "-128", -6),
        (ColumnKind::SmallInt, true, Value::UInt(65535), "65535", 4),
        (ColumnKind::SmallInt, false, Value::Int(-32768), "-32768", 5),
        (ColumnKind::MediumInt, true, Value::UInt(16_777_215), "16777215", 4),
        (ColumnKind::Int, false, Value::Int(i64::from(i32::MIN)), "-2147483648", 4),
        (ColumnKind::BigInt, true, Value::UInt(u64::MAX), "18446744073709551615", 3),
        (ColumnKind::BigInt, false, Value::Int(i64::MIN), "-9223372036854775808", -5),
        (ColumnKind::Float, false, Value::Float(1.1), "1.1", 7),
        (ColumnKind::Double, false, Value::Double(1e21), "1000000000000000000000", 8),
        (ColumnKind::Decimal, false, Value::Text("-0.10".to_owned()), "-0.10", 3),
        (ColumnKind::Bit, false, Value::UInt(5), "5", -7),
        (ColumnKind::Year, false, Value::Int(2026), "2026", 12),
        (ColumnKind::Date, false, Value::Text("2026-02-28".to_owned()), "2026-02-28", 91),
        (ColumnKind::Time, false, Value::Text("-838:59:59".to_owned()), "-838:59:59", 92),
        (ColumnKind::DateTime, false, Value::Text("x".to_owned()), "x", 93),
        (ColumnKind::Timestamp, false, Value::Text("x".to_owned()), "x", 93),
        (ColumnKind::Char, false, Value::Text(String::new()), "", 1),
        (ColumnKind::Text, false, Value::Text("\u{0}\u{1f}\\\"".to_owned()), "\u{0}\u{1f}\\\"", 2005),
        (
            ColumnKind::Blob,
            false,
            Value::Bytes(vec![0, 10, 34, 92, 127, 128, 255]),
            "\0\n\"\\\u{7f}\u{80}\u{ff}",
            2004,
        ),
        (ColumnKind::Geometry, false, Value::Bytes(vec![1]), "\u{1}", 2004),
        (ColumnKind::Enum, false, Value::UInt(2), "2", 4),
        (ColumnKind::Set, false, Value::UInt(6), "6", -7),
        (ColumnKind::Json, false, Value::Text("{\"a\": 1}".to_owned()), "{\"a\": 1}", 12),
    ];
    for (kind, unsigned, value, text, jdbc) in cases {
        let columns = vec![column("c", kind, unsigned, false)];
        let message: Message =
            serde_json::from_str(&line(&change(columns, RowOp::Insert { new: vec![value] }))).unwrap();
        assert_eq!(message.data.unwrap()[0]["c"].as_deref(), Some(text), "{kind:?}");
        assert_eq!(message.sql_type.unwrap()["c"], jdbc, "{kind:?}");
        let sign = if unsigned { " unsigned" } else { "" };
        assert_eq!(message.mysql_type.unwrap()["c"], format!("{}{sign}", kind.sql_name()));
    }
}

#[test]
fn a_ddl_has_its_statement_and_no_columns() {
    for (query, kind) in [
        ("CREATE TABLE t (a int)", "CREATE"),
        ("create unique index i on t (a)", "CINDEX"),
        ("DROP INDEX i ON t", "DINDEX"),
        ("DROP TABLE t", "ERASE"),
        ("ALTER TABLE t ADD b int", "ALTER"),
        ("TRUNCATE t", "TRUNCATE"),
        ("RENAME TABLE t TO u", "RENAME"),
        ("CREATE DATABASE d", "QUERY"),
    ] {
        let ddl = DdlChange {
            schema: "d".to_owned(),
            table: Some("t".to_owned()),
            query: query.to_owned(),
            commit_ts: Ts(9 << 18),
        };
        let message: Message = serde_json::from_str(&line(&Change::Ddl(ddl))).unwrap();
        assert!(message.is_ddl && message.data.is_none() && message.mysql_type.is_none());
        assert_eq!((message.kind.as_str(), message.sql.as_str(), message.es), (kind, query, 9));
        assert_eq!(message.commit_ts(), Ts(9 << 18));
    }
}

#[test]
fn a_table_that_changed_is_not_taken_for_the_former_one() {
    let mut encoder = Encoder::default();
    for n in 0..50 {
        let name = format!("c{n}");
        let mut out = Vec::new();
        let op = RowOp::Insert { new: vec![Value::Int(n)] };
        encoder.encode(&change(vec![column(&name, ColumnKind::Int, false, false)], op), 0, &mut out);
        let message: Message = serde_json::from_slice(&out).unwrap();
        assert_eq!(message.data.unwrap()[0][&name].as_deref(), Some(n.to_string().as_str()));
    }
}

proptest! {
    #[test]
    fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let columns = vec![column("b", ColumnKind::Blob, false, false)];
        let op = RowOp::Insert { new: vec![Value::Bytes(bytes.clone())] };
        let message: Message = serde_json::from_str(&line(&change(columns, op))).unwrap();
        let text = message.data.unwrap()[0]["b"].clone().unwrap();
        prop_assert_eq!(&text, &text_from_bytes(&bytes));
        prop_assert_eq!(bytes_from_text(&text), Some(bytes));
    }

    #[test]
    fn text_and_floats_come_back(text: String, double in any::<f64>().prop_filter("finite", |f| f.is_finite()), float in any::<f32>().prop_filter("finite", |f| f.is_finite())) {
        let columns = vec![
            column(&text, ColumnKind::Text, false, true),
            column("\u{0}d", ColumnKind::Double, false, false),
            column("\u{0}f", ColumnKind::Float, false, false),
        ];
        prop_assume!(text != "\u{0}d" && text != "\u{0}f");
        let op = RowOp::Delete { old: vec![Value::Text(text.clone()), Value::Double(double), Value::Float(float)] };
        let message: Message = serde_json::from_str(&line(&change(columns, op))).unwrap();
        let row = &message.data.unwrap()[0];
        prop_assert_eq!(row[&text].as_ref(), Some(&text));
        prop_assert_eq!(row["\u{0}d"].as_ref().unwrap().parse::<f64>().unwrap().to_bits(), double.to_bits());
        prop_assert_eq!(row["\u{0}f"].as_ref().unwrap().parse::<f32>().unwrap().to_bits(), float.to_bits());
    }
}
