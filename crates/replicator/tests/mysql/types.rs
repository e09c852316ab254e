//! Every column type: what the binlog gives is what SELECT says, cell by cell.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Row, Value as Sql};
use replicator::event::{ColumnKind, RowOp, Value};

use super::{Db, ops};

/// A column: its name, its type, and values as SQL, NULL besides.
const COLUMNS: &[(&str, &str, &[&str])] = &[
    ("ti", "TINYINT", &["-128", "127", "0"]),
    ("tu", "TINYINT UNSIGNED", &["255", "0"]),
    ("si", "SMALLINT", &["-32768", "32767"]),
    ("su", "SMALLINT UNSIGNED", &["65535"]),
    ("mi", "MEDIUMINT", &["-8388608", "8388607", "-1"]),
    ("mu", "MEDIUMINT UNSIGNED", &["16777215", "8388608"]),
    ("ii", "INT", &["-2147483648", "2147483647"]),
    ("iu", "INT UNSIGNED ZEROFILL", &["4294967295", "7"]),
    ("bi", "BIGINT", &["-9223372036854775808", "9223372036854775807"]),
    ("bu", "BIGINT UNSIGNED", &["18446744073709551615", "9223372036854775808"]),
    ("bo", "BOOLEAN", &["TRUE", "FALSE"]),
    ("fl", "FLOAT", &["-3.402823466E+38", "1.17549435E-38", "0.1", "16777217"]),
    ("fu", "FLOAT UNSIGNED", &["0.5"]),
    ("db", "DOUBLE", &["-1.7976931348623157E+308", "2.2250738585072014E-308", "0.1", "-0.0"]),
    (
        "d0",
        "DECIMAL(65,30)",
        &[
            "-99999999999999999999999999999999999.999999999999999999999999999999",
            "0.000000000000000000000000000001",
            "0",
        ],
    ),
    ("d1", "DECIMAL(10,0)", &["-9999999999", "42"]),
    ("d2", "DECIMAL(9,9)", &["-0.123456789", "0.1"]),
    ("d3", "DECIMAL(20,2) UNSIGNED", &["123456789012345678.90", "1000000000.00"]),
    ("b1", "BIT(1)", &["b'1'", "b'0'"]),
    ("b9", "BIT(9)", &["b'100000001'"]),
    ("bx", "BIT(64)", &["18446744073709551615", "1"]),
    ("ye", "YEAR", &["1901", "2155", "0", "2026"]),
    ("da", "DATE", &["'1000-01-01'", "'9999-12-31'", "'0000-00-00'", "'2024-02-29'"]),
    ("t0", "TIME", &["'-838:59:59'", "'838:59:59'", "'00:00:00'", "'-00:00:01'"]),
    ("t1", "TIME(1)", &["'-00:00:00.1'", "'-12:34:56.9'", "'01:02:03.4'"]),
    ("t2", "TIME(2)", &["'-00:00:00.01'", "'-838:59:58.99'", "'01:02:03.45'"]),
    ("t3", "TIME(3)", &["'-00:00:00.001'", "'23:59:59.999'"]),
    ("t5", "TIME(5)", &["'-00:00:00.00001'", "'23:59:59.99999'"]),
    ("t6", "TIME(6)", &["'-00:00:00.000001'", "'-838:59:58.999999'", "'23:59:59.123456'"]),
    ("n0", "DATETIME", &["'1000-01-01 00:00:00'", "'9999-12-31 23:59:59'", "'0000-00-00 00:00:00'"]),
    ("n1", "DATETIME(1)", &["'2026-01-02 03:04:05.6'"]),
    ("n4", "DATETIME(4)", &["'2026-01-02 03:04:05.6789'", "'2026-12-31 23:59:59.0001'"]),
    ("n6", "DATETIME(6)", &["'2026-01-02 03:04:05.000001'", "'9999-12-31 23:59:59.499999'"]),
    ("s0", "TIMESTAMP NULL", &["'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'", "'0000-00-00 00:00:00'"]),
    ("s3", "TIMESTAMP(3) NULL", &["'2026-07-02 03:04:05.006'"]),
    ("s6", "TIMESTAMP(6) NULL", &["'2038-01-19 03:14:07.499999'", "'2026-07-02 03:04:05.000006'"]),
    ("c1", "CHAR(5)", &["'ab '", "''", "'🦀üß'"]),
    ("c2", "CHAR(255)", &["REPEAT('🦀', 255)", "'x'"]),
    ("c3", "CHAR(10) CHARACTER SET latin1", &["'grün €'"]),
    ("v1", "VARCHAR(10)", &["'ab '", "''", "'grün 🦀'"]),
    ("v2", "VARCHAR(300)", &["REPEAT('ü', 300)"]),
    ("v3", "VARCHAR(20) CHARACTER SET gbk", &["'你好，世界'"]),
    ("v4", "VARCHAR(20) CHARACTER SET utf16", &["'grün 🦀'"]),
    ("v5", "VARCHAR(20) CHARACTER SET utf8mb3", &["'grün 你'"]),
    ("v6", "VARCHAR(20) CHARACTER SET cp932", &["'日本語カナ'"]),
    ("v7", "VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin", &["'plain'"]),
    ("y1", "BINARY(5)", &["X'0102'", "X'00'", "X'FF00FF0000'", "''"]),
    ("y2", "BINARY(255)", &["X'01'"]),
    ("y3", "VARBINARY(10)", &["X'0100'", "X''", "X'FFFE'"]),
    ("y4", "VARBINARY(300)", &["REPEAT(X'00FF', 150)"]),
    ("x1", "TINYTEXT", &["'grün'", "''"]),
    ("x2", "TEXT", &["REPEAT('ü🦀', 5000)"]),
    ("x3", "MEDIUMTEXT", &["REPEAT('text', 20000)"]),
    ("x4", "LONGTEXT CHARACTER SET latin1", &["REPEAT('ü', 70000)"]),
    ("z1", "TINYBLOB", &["X'00FF'", "''"]),
    ("z2", "BLOB", &["X'FFFEFD00'"]),
    ("z3", "MEDIUMBLOB", &["REPEAT(X'0001FF', 50000)"]),
    ("z4", "LONGBLOB", &["REPEAT(X'0001FEFF', 1310720)"]),
    ("e1", "ENUM('a','ü','c')", &["'ü'", "1", "'c'"]),
    ("e2", "SET('a','b','c','d','e','f','g','h','i')", &["'a,i'", "''", "511"]),
    ("e3", "SET('a','b') CHARACTER SET latin1", &["'b'"]),
    ("ge", "GEOMETRY", &["ST_GeomFromText('POINT(1 2)')", "ST_GeomFromText('LINESTRING(0 0,1 1)', 4326)"]),
    ("pt", "POINT", &["ST_GeomFromText('POINT(-1.5 2e10)')"]),
    ("ve", "VECTOR(3)", &["STRING_TO_VECTOR('[1,-2.5,3e10]')"]),
    (
        "js",
        "JSON",
        &[
            r#"'{"bb": 1, "a": [1, -2, 3.0, 1e30, 1.5e-20, true, false, null, "x\\n\\"\\\\\\u0001\\u001f🦀"], "": {}}'"#,
            r"'null'",
            r"'[]'",
            r#"'"text"'"#,
            "'-9223372036854775808'",
            "'18446744073709551615'",
            "'[0.1, -0.0, 100000000000000000000, 123456789012345.5, 1e15, 1e14, 65535, -32769, 4294967296]'",
            "CAST(CAST('12.340' AS DECIMAL(10,3)) AS JSON)",
            "JSON_ARRAY(CAST('2026-01-02' AS DATE), CAST('-12:34:56.5' AS TIME(1)), CAST('2026-01-02 03:04:05.000006' AS DATETIME(6)), TIMESTAMP'2026-01-02 03:04:05')",
            "JSON_OBJECT('blob', REPEAT(X'00FF', 100), 'bit', b'101', 'point', ST_GeomFromText('POINT(1 2)'))",
            "JSON_OBJECT('big', REPEAT('ü', 70000), 'i', 70000, 'u', 3000000000, 'n', JSON_ARRAY(1, JSON_OBJECT('k', 2)))",
        ],
    ),
];

/// How many rows give each value a place.
fn row_count() -> usize {
    COLUMNS.iter().map(|(_, _, values)| values.len()).max().unwrap() + 1
}

/// The values of row `n`: each column's in turn, and NULL after the last.
fn literals(n: usize) -> Vec<&'static str> {
    COLUMNS
        .iter()
        .map(|(_, _, values)| values.get(n % (values.len() + 1)).copied().unwrap_or("NULL"))
        .collect()
}

/// The same cell as SELECT gives it; `binary` by the protocol that keeps floating-point numbers exact.
fn same(kind: ColumnKind, value: &Value, shown: &Sql, exact: &Sql) -> bool {
    match (value, shown) {
        (Value::Null, Sql::NULL) => true,
        (Value::Float(number), _) => {
            matches!(exact, Sql::Float(other) if other.to_bits() == number.to_bits())
        }
        (Value::Double(number), _) => {
            matches!(exact, Sql::Double(other) if other.to_bits() == number.to_bits())
        }
        (Value::Int(number), Sql::Bytes(shown)) => std::str::from_utf8(shown).unwrap().parse() == Ok(*number),
        (Value::UInt(number), Sql::Bytes(shown)) => {
            std::str::from_utf8(shown).unwrap().parse() == Ok(*number)
        }
        (Value::Text(text), Sql::Bytes(shown)) => text.as_bytes() == shown.as_slice(),
        (Value::Bytes(bytes), Sql::Bytes(shown)) => {
            assert!(!matches!(kind, ColumnKind::Char | ColumnKind::VarChar | ColumnKind::Text));
            bytes == shown
        }
        _ => false,
    }
}

async fn check_rows(db: &mut Db, rows: &[Vec<Value>], kinds: &[ColumnKind]) {
    let list: Vec<String> = COLUMNS
        .iter()
        .map(|(name, sql, _)| match sql.split(['(', ' ']).next().unwrap() {
            "BIT" | "ENUM" | "SET" => format!("{name} + 0"),
            _ => (*name).to_owned(),
        })
        .collect();
    let sql = format!("SELECT {} FROM t ORDER BY id", list.join(", "));
    let shown: Vec<Row> = db.conn.query(&sql).await.unwrap();
    let exact: Vec<Row> = db.conn.exec(&sql, ()).await.unwrap();
    assert_eq!(rows.len(), shown.len());
    let mut wrong = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        for (at, (name, _, _)) in COLUMNS.iter().enumerate() {
            let value = &row[at + 1];
            if !same(kinds[at + 1], value, shown[n].as_ref(at).unwrap(), exact[n].as_ref(at).unwrap()) {
                let brief: String = format!("{value:?}").chars().take(200).collect();
                let shown: String = format!("{:?}", shown[n].as_ref(at).unwrap()).chars().take(300).collect();
                wrong.push(format!("row {n}, {name}: {brief} is not {shown}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_what_select_says() {
    let mut db = Db::new().await;
    db.run("SET time_zone = '+05:30', sql_mode = ''").await;
    let columns: Vec<String> = COLUMNS.iter().map(|(name, sql, _)| format!("{name} {sql}")).collect();
    db.run(&format!("CREATE TABLE t (id INT PRIMARY KEY, {})", columns.join(", "))).await;
    let start = db.prepare().await.task_position;
    for n in 0..row_count() {
        db.run(&format!("INSERT INTO t VALUES ({n}, {})", literals(n).join(", "))).await;
    }
    db.run("SET time_zone = '+00:00'").await;
    let events = db.read(&start).await;
    let inserted: Vec<Vec<Value>> = ops(&events)
        .into_iter()
        .map(|(_, op)| match op {
            RowOp::Insert { new } => new,
            other => panic!("{other:?}"),
        })
        .collect();
    let table = super::changes(&events)
        .iter()
        .find_map(|change| match change {
            replicator::event::Change::Row(row) => Some(row.table.clone()),
            replicator::event::Change::Ddl(_) => None,
        })
        .unwrap();
    let kinds: Vec<ColumnKind> = table.columns.iter().map(|column| column.kind).collect();
    for (column, (name, sql, _)) in table.columns[1..].iter().zip(COLUMNS) {
        assert_eq!(column.name, *name);
        let wanted = match sql.split(['(', ' ']).next().unwrap().to_lowercase().as_str() {
            "boolean" => "tinyint".to_owned(),
            "point" => "geometry".to_owned(),
            other => other.to_owned(),
        };
        assert_eq!(column.kind.sql_name(), wanted, "{name}");
        assert_eq!(column.unsigned, sql.contains("UNSIGNED"), "{name}");
    }
    check_rows(&mut db, &inserted, &kinds).await;

    // The images of an update and of a delete are the same cells.
    let start = db.prepare().await.task_position;
    db.run("UPDATE t SET id = id + 1000 ORDER BY id").await;
    db.run("DELETE FROM t").await;
    let events = db.read(&start).await;
    let (mut updated, mut deleted) = (Vec::new(), Vec::new());
    for (_, op) in ops(&events) {
        match op {
            RowOp::Update { old, new } => {
                assert_eq!(old[1..], new[1..]);
                updated.push(old);
            }
            RowOp::Delete { old } => deleted.push(old),
            RowOp::Insert { .. } => panic!("{op:?}"),
        }
    }
    let bits = |rows: &[Vec<Value>]| format!("{:?}", rows.iter().map(|row| &row[1..]).collect::<Vec<_>>());
    assert!(bits(&updated) == bits(&inserted) && bits(&deleted) == bits(&inserted));
}

/// Columns that the server keeps for itself, and keys of several kinds.
#[tokio::test(flavor = "multi_thread")]
async fn generated_invisible_and_hidden_columns_and_keys() {
    let mut db = Db::new().await;
    db.run(
        "CREATE TABLE g (a INT, b INT INVISIBLE DEFAULT 5, s INT AS (a + 1) STORED, v INT AS (a + 2) VIRTUAL, \
         j JSON, name VARCHAR(50), PRIMARY KEY (name(10), a), KEY f ((a * 2)), \
         KEY m ((CAST(j->'$.n' AS UNSIGNED ARRAY))))",
    )
    .await;
    db.run("CREATE TABLE nokey (a INT)").await;
    db.run("SET sql_generate_invisible_primary_key = ON").await;
    db.run("CREATE TABLE hidden (a INT)").await;
    let start = db.prepare().await.task_position;
    db.run(r#"INSERT INTO g (a, j, name) VALUES (1, '{"n": [1, 2]}', 'x')"#).await;
    db.run("UPDATE g SET a = 2").await;
    db.run("INSERT INTO nokey VALUES (1)").await;
    db.run("INSERT INTO hidden VALUES (1)").await;
    let events = db.read(&start).await;
    let rows: Vec<_> = super::changes(&events)
        .into_iter()
        .filter_map(|change| match change {
            replicator::event::Change::Row(row) => Some(row),
            replicator::event::Change::Ddl(_) => None,
        })
        .collect();
    let names = |at: usize| rows[at].table.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
    let keys = |at: usize| {
        rows[at].table.columns.iter().filter(|c| c.primary_key).map(|c| c.name.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(names(0), ["a", "b", "s", "v", "j", "name"]);
    assert_eq!(keys(0), ["a", "name"]);
    let row = |a: i64| {
        vec![
            Value::Int(a),
            Value::Int(5),
            Value::Int(a + 1),
            Value::Int(a + 2),
            super::text(r#"{"n": [1, 2]}"#),
            super::text("x"),
        ]
    };
    assert_eq!(rows[0].op, RowOp::Insert { new: row(1) });
    assert_eq!(rows[1].op, RowOp::Update { old: row(1), new: row(2) });
    assert_eq!((names(2), keys(2)), (vec!["a"], vec![]));
    assert_eq!((names(3), keys(3)), (vec!["my_row_id", "a"], vec!["my_row_id"]));
}

/// Every code of every set, as the server converts it. Sets that we do not claim are errors.
#[tokio::test(flavor = "multi_thread")]
async fn character_sets_agree_with_the_server() {
    let mut db = Db::new().await;
    db.run("SET sql_mode = ''").await;
    // One and two bytes; the Unicode sets have their own way.
    db.run("CREATE TABLE codes (b VARBINARY(2) PRIMARY KEY)").await;
    db.run(
        "INSERT INTO codes WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 255) \
         SELECT CHAR(n) FROM n UNION ALL SELECT CONCAT(CHAR(a.n), CHAR(b.n)) FROM n a JOIN n b WHERE a.n > 127",
    )
    .await;
    let sets: Vec<(String, u64)> = db
        .conn
        .query("SELECT CHARACTER_SET_NAME, MAXLEN FROM information_schema.CHARACTER_SETS ORDER BY 1")
        .await
        .unwrap();
    let (mut agreed, mut refused, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for (set, longest) in sets.iter().filter(|(set, _)| set != "binary") {
        db.run(&format!(
            "CREATE TABLE c_{set} (id INT AUTO_INCREMENT PRIMARY KEY, t TEXT CHARACTER SET {set})"
        ))
        .await;
        let start = db.prepare().await.task_position;
        // What is no code of the set becomes NULL. What the server itself cannot convert is left out, and so are
        // halves of surrogates, of which it makes nothing or what is not UTF-8.
        db.run(&format!(
            "INSERT INTO c_{set} (t) SELECT s FROM (SELECT CONVERT(b USING {set}) s FROM codes WHERE LENGTH(b) <= {longest}) c \
             WHERE s IS NOT NULL AND (CONVERT(s USING utf8mb4) NOT LIKE '%?%' OR s = CONVERT('?' USING {set})) \
             AND LENGTH(CONVERT(s USING utf8mb4)) > 0"
        ))
        .await;
        let shown: Vec<Vec<u8>> = db.conn.query(format!("SELECT t FROM c_{set} ORDER BY id")).await.unwrap();
        let shown: Vec<String> = shown
            .into_iter()
            .map(|text| String::from_utf8(text).unwrap_or_else(|error| panic!("{set}: {error:?}")))
            .collect();
        let until = db.now().await;
        let mut source = db.open(&start).await;
        match super::read_until(&mut *source, until).await {
            Err(error) if error.message.contains("is not supported") => refused.push(set.as_str()),
            Err(error) => wrong.push(format!("{set}: {error}")),
            Ok(events) => {
                let read: Vec<Value> = ops(&events)
                    .into_iter()
                    .map(|(_, op)| match op {
                        RowOp::Insert { mut new } => new.remove(1),
                        other => panic!("{other:?}"),
                    })
                    .collect();
                assert_eq!(read.len(), shown.len());
                assert!(shown.len() > 90, "{set}: {} codes", shown.len());
                let differ: Vec<String> = read
                    .iter()
                    .zip(&shown)
                    .filter(|(read, shown)| **read != super::text(shown))
                    .map(|(read, shown)| format!("{read:?} for {shown:?}"))
                    .collect();
                if differ.is_empty() {
                    agreed.push(set.as_str());
                } else {
                    let some = differ[..differ.len().min(12)].join(", ");
                    wrong.push(format!("{set}: {} of {}: {some}", differ.len(), shown.len()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(refused, ["big5", "eucjpms", "gb18030", "gb2312", "sjis", "ujis"]);
    assert_eq!(agreed.len() + refused.len() + 1, sets.len());
}
