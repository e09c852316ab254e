//! Transactions: large, compressed, rolled back, XA; and sessions that write what cannot be followed.

use replicator::event::{RowOp, SourceEvent, Value};

use super::rows::check_marks;
use super::{Db, changes, ops};

async fn with_table() -> Db {
    let mut db = Db::new().await;
    db.run("CREATE TABLE t (id INT PRIMARY KEY, pad VARCHAR(100))").await;
    db
}

fn ids(events: &[SourceEvent]) -> Vec<i64> {
    ops(events)
        .into_iter()
        .map(|(_, op)| match op {
            RowOp::Insert { new } => match new[0] {
                Value::Int(id) => id,
                ref other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        })
        .collect()
}

async fn insert_many(db: &mut Db, count: i64) {
    db.run("BEGIN").await;
    for first in (0..count).step_by(1000) {
        let list: Vec<String> =
            (first..count.min(first + 1000)).map(|id| format!("({id}, REPEAT('x', 90))")).collect();
        db.run(&format!("INSERT INTO t VALUES {}", list.join(","))).await;
    }
    db.run("COMMIT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_comes_in_pieces_without_a_mark_between() {
    let mut db = with_table().await;
    let start = db.prepare().await.task_position;
    insert_many(&mut db, 10_000).await;
    let events = db.read(&start).await;
    check_marks(&events);
    assert_eq!(ids(&events), (0..10_000).collect::<Vec<_>>());
    let first = events.iter().position(|event| matches!(event, SourceEvent::Changes(_))).unwrap();
    let last = events.iter().rposition(|event| matches!(event, SourceEvent::Changes(_))).unwrap();
    assert!(last - first >= 3, "{} pieces", last - first + 1);
    assert!(events[first..=last].iter().all(|event| match event {
        SourceEvent::Changes(changes) => changes.len() <= 2048,
        SourceEvent::Resolved(_) => false,
    }));
    let all = changes(&events);
    assert!(all.iter().all(|change| change.commit_ts() == all[0].commit_ts()));
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_transactions_are_the_same() {
    let mut db = with_table().await;
    let start = db.prepare().await.task_position;
    db.run("SET binlog_transaction_compression = ON").await;
    insert_many(&mut db, 5000).await;
    db.run("INSERT INTO t VALUES (5000, REPEAT('y', 100))").await;
    db.run("SET binlog_transaction_compression = OFF").await;
    db.run("INSERT INTO t VALUES (5001, NULL)").await;
    let events = db.read(&start).await;
    check_marks(&events);
    assert_eq!(ids(&events), (0..5002).collect::<Vec<_>>());
    // A resume right behind a compressed transaction meets what follows.
    let marks: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            SourceEvent::Resolved(mark) => Some(mark.clone()),
            SourceEvent::Changes(_) => None,
        })
        .collect();
    let behind = marks.iter().find(|mark| mark.ts == changes(&events)[5000].commit_ts()).unwrap();
    assert_eq!(ids(&db.read(&super::progress(behind)).await), [5001]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_rolled_back_does_not_come() {
    let mut db = with_table().await;
    let start = db.prepare().await.task_position;
    for sql in [
        "BEGIN",
        "INSERT INTO t VALUES (1, NULL)",
        "SAVEPOINT a",
        "INSERT INTO t VALUES (2, NULL)",
        "ROLLBACK TO a",
        "INSERT INTO t VALUES (3, NULL)",
        "COMMIT",
        "BEGIN",
        "INSERT INTO t VALUES (4, NULL)",
        "ROLLBACK",
        "XA START 'one'",
        "INSERT INTO t VALUES (5, NULL)",
        "XA END 'one'",
        "XA COMMIT 'one' ONE PHASE",
    ] {
        db.run(sql).await;
    }
    let events = db.read(&start).await;
    check_marks(&events);
    assert_eq!(ids(&events), [1, 3, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_followed_ends_the_changefeed_with_a_reason() {
    let cases: [(&[&str], &[&str]); 4] = [
        (
            &["SET binlog_format = STATEMENT", "INSERT INTO t VALUES (1, NULL)"],
            &["binlog_format must be ROW"],
        ),
        (
            &["SET binlog_row_image = MINIMAL", "UPDATE t SET pad = 'x'"],
            &["binlog_row_image must be FULL", "t:"],
        ),
        (
            &["SET binlog_row_value_options = PARTIAL_JSON", "UPDATE j SET j = JSON_SET(j, '$.a', 2)"],
            &["binlog_row_value_options", "j:"],
        ),
        (
            &[
                "XA START 'two'",
                "INSERT INTO t VALUES (1, NULL)",
                "XA END 'two'",
                "XA PREPARE 'two'",
                "XA COMMIT 'two'",
            ],
            &["XA PREPARE"],
        ),
    ];
    for (statements, wanted) in cases {
        let mut db = with_table().await;
        let mut other = with_table().await;
        db.run("CREATE TABLE j (id INT PRIMARY KEY, j JSON)").await;
        db.run(r#"INSERT INTO j VALUES (1, '{"a": 1, "b": "a long text, so that a part is smaller than the whole"}')"#)
            .await;
        db.run("INSERT INTO t VALUES (7, NULL)").await;
        let start = db.prepare().await.task_position;
        let elsewhere = other.prepare().await.task_position;
        for sql in statements {
            db.run(&sql.replace("'two'", &format!("'{}'", db.name))).await;
        }
        let error = db.read_err(&start).await;
        assert_eq!((&*error.code, error.retryable), ("CDC:ErrChangefeedUnretryable", false), "{error}");
        for part in wanted {
            assert!(error.message.contains(part), "{error} lacks {part}");
        }
        // A changefeed of another database goes on.
        other.run("INSERT INTO t VALUES (1, NULL)").await;
        assert_eq!(ids(&other.read(&elsewhere).await), [1]);
    }
}
