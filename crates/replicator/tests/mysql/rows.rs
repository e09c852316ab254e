//! Inserts, updates, deletes, DDL, and which of them are wanted.

use std::sync::Arc;

use replicator::event::{Change, ColumnKind, RowOp, SourceEvent, Value};

use super::{Db, changes, ops, text};

#[tokio::test(flavor = "multi_thread")]
async fn inserts_updates_and_deletes_come_as_they_were_made() {
    let (mut db, mut other) = (Db::new().await, Db::new().await);
    db.run("CREATE TABLE t (id INT PRIMARY KEY, name VARCHAR(20))").await;
    other.run("CREATE TABLE t (id INT PRIMARY KEY)").await;
    db.run("INSERT INTO t VALUES (1, 'before')").await;
    let prepared = db.prepare().await;
    db.run("INSERT INTO t VALUES (2, 'grün 🦀'), (3, NULL)").await;
    other.run("INSERT INTO t VALUES (1)").await;
    db.run("UPDATE t SET name = 'x' WHERE id = 2").await;
    db.run("DELETE FROM t WHERE id = 3").await;
    let events = db.read(&prepared.task_position).await;

    let row = |id: i64, name: Value| vec![Value::Int(id), name];
    let wanted = [
        RowOp::Insert { new: row(2, text("grün 🦀")) },
        RowOp::Insert { new: row(3, Value::Null) },
        RowOp::Update { old: row(2, text("grün 🦀")), new: row(2, text("x")) },
        RowOp::Delete { old: row(3, Value::Null) },
    ];
    assert_eq!(ops(&events), wanted.map(|op| ("t".to_owned(), op)));

    let rows: Vec<_> = changes(&events)
        .into_iter()
        .map(|change| match change {
            Change::Row(row) => row,
            Change::Ddl(ddl) => panic!("{ddl:?}"),
        })
        .collect();
    assert!(rows.iter().all(|row| Arc::ptr_eq(&row.table, &rows[0].table)), "the table did not change");
    let columns = &rows[0].table.columns;
    assert_eq!(rows[0].table.schema, db.name);
    assert_eq!(
        (columns[0].name.as_str(), columns[0].kind, columns[0].primary_key),
        ("id", ColumnKind::Int, true)
    );
    assert_eq!(
        (columns[1].name.as_str(), columns[1].kind, columns[1].primary_key),
        ("name", ColumnKind::VarChar, false)
    );
    // One ts for a transaction, growing, all after the start; a mark after each.
    let stamps: Vec<_> = rows.iter().map(|row| row.commit_ts).collect();
    assert!(stamps[0] == stamps[1] && stamps[1] < stamps[2] && stamps[2] < stamps[3], "{stamps:?}");
    assert!(prepared.start_ts < stamps[0]);
    check_marks(&events);
}

/// Marks never go back; a change is after all marks before it, and at or before the next.
pub(super) fn check_marks(events: &[SourceEvent]) {
    let (mut mark, mut last) = (0, 0);
    for event in events {
        match event {
            SourceEvent::Changes(changes) => {
                for change in changes {
                    let ts = change.commit_ts().0;
                    assert!(ts > mark && ts >= last, "{ts} after the mark {mark} and the change {last}");
                    last = ts;
                }
            }
            SourceEvent::Resolved(resolved) => {
                assert!(resolved.ts.0 > mark && resolved.ts.0 >= last, "{resolved:?} after {mark}, {last}");
                mark = resolved.ts.0;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_comes_in_order_and_changes_the_columns() {
    let mut db = Db::new().await;
    let start = db.prepare().await.task_position;
    db.run("CREATE TABLE t (id INT UNSIGNED PRIMARY KEY)").await;
    db.run("INSERT INTO t VALUES (1)").await;
    db.run("ALTER TABLE t ADD COLUMN größe DOUBLE NOT NULL DEFAULT 1.5 FIRST").await;
    db.run("INSERT INTO t (id) VALUES (2)").await;
    db.run("ALTER TABLE t DROP COLUMN größe").await;
    db.run("INSERT INTO t VALUES (3)").await;
    db.run("CREATE TEMPORARY TABLE tmp (a INT)").await;
    db.run("DROP TEMPORARY TABLE tmp").await;
    db.run("CREATE TABLE u AS SELECT id AS a FROM t WHERE id = 3").await;
    db.run("TRUNCATE t").await;
    db.run("CREATE VIEW v AS SELECT 1").await;
    db.run("RENAME TABLE u TO w").await;
    db.run("DROP TABLE t").await;
    db.run("CREATE USER IF NOT EXISTS root@'%'").await;
    let events = db.read(&start).await;
    check_marks(&events);

    let seen: Vec<String> = changes(&events)
        .into_iter()
        .map(|change| match change {
            Change::Row(row) => {
                let names: Vec<_> = row.table.columns.iter().map(|column| column.name.as_str()).collect();
                format!("{} {} {:?}", row.table.name, names.join(","), row.op)
            }
            Change::Ddl(ddl) => {
                assert_eq!(ddl.schema, db.name);
                let words: Vec<_> = ddl.query.split_whitespace().take(3).collect();
                format!("{} / {}", ddl.table.as_deref().unwrap_or("-"), words.join(" "))
            }
        })
        .collect();
    let wanted = [
        "t / CREATE TABLE t",
        "t id Insert { new: [UInt(1)] }",
        "t / ALTER TABLE t",
        "t größe,id Insert { new: [Double(1.5), UInt(2)] }",
        "t / ALTER TABLE t",
        "t id Insert { new: [UInt(3)] }",
        "u / CREATE TABLE `u`",
        "u a Insert { new: [UInt(3)] }",
        "t / TRUNCATE t",
        "v / CREATE ALGORITHM=UNDEFINED DEFINER=`root`@`%`",
        "u / RENAME TABLE u",
        "t / DROP TABLE `t`",
    ];
    assert_eq!(seen, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_in_other_character_sets_become_utf8() {
    let mut db = Db::new().await;
    db.run("CREATE TABLE t (id INT PRIMARY KEY)").await;
    let start = db.prepare().await.task_position;
    db.run("SET NAMES latin1").await;
    mysql_async::prelude::Queryable::query_drop(&mut db.conn, &b"ALTER TABLE t COMMENT = 'gr\xFCn'"[..])
        .await
        .unwrap();
    let events = db.read(&start).await;
    let Change::Ddl(ddl) = &changes(&events)[0] else { panic!("{events:?}") };
    assert_eq!(ddl.query, "ALTER TABLE t COMMENT = 'grün'");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filter_leaves_tables_undecoded() {
    let mut db = Db::new().await;
    // The character set of a table that is left out does not matter.
    db.run("CREATE TABLE skipped (id INT PRIMARY KEY, a VARCHAR(9) CHARACTER SET big5)").await;
    db.run("CREATE TABLE kept (id INT PRIMARY KEY)").await;
    let start = db.prepare().await.task_position;
    db.run("INSERT INTO skipped VALUES (1, 'a')").await;
    db.run("INSERT INTO kept VALUES (1)").await;
    let until = db.now().await;
    let mut launch = super::launch(&db.url, 1, &start);
    let mut info = (*launch.info).clone();
    let rules = serde_json::json!({"filter": {"rules": ["*.*", "!*.skipped"]}});
    info.config.0 = rules.as_object().unwrap().clone();
    launch.info = Arc::new(info);
    let mut source = replicator::source::SourceFactory::open(&super::MysqlFactory, &launch).await.unwrap();
    let events = super::read_until(&mut *source, until).await.unwrap();
    assert_eq!(ops(&events), [("kept".to_owned(), RowOp::Insert { new: vec![Value::Int(1)] })]);

    let error = db.read_err(&start).await;
    assert_eq!(error.code, "CDC:ErrChangefeedUnretryable");
    for part in ["skipped", "column a", "big5", "utf8mb4"] {
        assert!(error.message.contains(part), "{error}");
    }
}
