//! Stop anywhere, go on from the last mark: the same changes with the same commit ts.

use std::time::Duration;

use metadata_api::model::{ChangefeedProgress, Ts};
use mysql_async::prelude::Queryable as _;
use mysql_async::{BinlogStreamRequest, Conn, Opts};
use replicator::event::{Change, SourceEvent};
use replicator::source::SourceFactory as _;
use replicator::source::mysql::MysqlFactory;
use test_servers::Kind;
use tokio::time::{sleep, timeout};

use super::rows::check_marks;
use super::{Db, LIMIT, changes, launch, ops, progress, read_until, run, spec};

/// Turns GTIDs off: then positions are files and offsets.
pub(super) async fn without_gtids(conn: &mut Conn) {
    for mode in ["ON_PERMISSIVE", "OFF_PERMISSIVE", "OFF"] {
        run(conn, &format!("SET GLOBAL gtid_mode = {mode}")).await;
    }
}

/// Transactions of many shapes, with changes elsewhere between.
async fn write(db: &mut Db, other: &mut Db) {
    db.run("CREATE TABLE t (id INT PRIMARY KEY, n INT)").await;
    other.run("CREATE TABLE t (id INT PRIMARY KEY)").await;
    for n in 0..6 {
        db.run(&format!("INSERT INTO t (id, n) VALUES ({n}, 0), ({}, 1)", n + 100)).await;
        other.run(&format!("INSERT INTO t VALUES ({n})")).await;
        db.run("BEGIN").await;
        db.run(&format!("UPDATE t SET n = n + 1 WHERE id <= {n}")).await;
        db.run(&format!("DELETE FROM t WHERE id = {}", n + 100)).await;
        db.run("COMMIT").await;
        match n {
            1 => db.run("ALTER TABLE t ADD c VARCHAR(5) DEFAULT 'x'").await,
            2 => db.run("FLUSH BINARY LOGS").await,
            3 => db.run("SET binlog_transaction_compression = ON").await,
            4 => db.run("SET binlog_transaction_compression = OFF").await,
            _ => {}
        }
        if n > 2 {
            db.run(&format!("INSERT INTO t (id, n) SELECT id + {}, n FROM t WHERE id < 3", 1000 * n)).await;
        } else {
            db.run(&format!("UPDATE t SET n = n - 1 WHERE id = {n}")).await;
        }
    }
}

async fn resume_from_every_mark(server: &str) {
    let (mut db, mut other) = (Db::on(server).await, Db::on(server).await);
    let start = db.prepare().await.task_position;
    // Half of it is read while it is written: so there are idle marks between.
    let mut source = db.open(&start).await;
    let (mut whole, half) = {
        let mut writer = Db { url: db.url.clone(), name: db.name.clone(), conn: db_conn(&db.url).await };
        let write = async {
            write(&mut writer, &mut other).await;
            writer.now().await
        };
        let mut events = Vec::new();
        tokio::pin!(write);
        let until = loop {
            tokio::select! {
                until = &mut write => break until,
                event = source.next() => events.push(event.unwrap()),
            }
        };
        (events, until)
    };
    whole.extend(read_until(&mut *source, half).await.unwrap());
    check_marks(&whole);
    let all = changes(&whole);
    assert!(all.len() > 40, "{}", all.len());

    let anew = db.read(&start).await;
    assert!(changes(&anew) == all, "read anew at once, it is the same");
    let mut given = 0;
    let mut tried = 0;
    let mut last_idle: Option<usize> = None;
    for event in &whole {
        match event {
            SourceEvent::Changes(changes) => given += changes.len(),
            SourceEvent::Resolved(mark) => {
                // Idle marks at the same place are many; one is enough.
                if last_idle == Some(given) {
                    continue;
                }
                last_idle = Some(given);
                tried += 1;
                let rest = changes(&db.read(&progress(mark)).await);
                assert!(
                    rest == all[given..],
                    "from {mark:?}: {} changes in place of {}",
                    rest.len(),
                    all.len() - given
                );
            }
        }
    }
    assert!(tried > 15, "{tried} marks");
}

async fn db_conn(url: &str) -> Conn {
    Conn::new(Opts::from_url(url).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mark_resumes_by_gtids() {
    resume_from_every_mark(&test_servers::mysql_url().await).await;
}

/// One server of its own: everything that changes a server.
#[tokio::test(flavor = "multi_thread")]
async fn files_and_positions_start_times_and_purged_binlogs() {
    let server = Kind::Mysql.start().await;
    let mut conn = db_conn(server.url()).await;
    start_ts_is_found(server.url(), &mut conn).await;
    purged_is_told(server.url(), &mut conn).await;
    without_gtids(&mut conn).await;
    resume_from_every_mark(server.url()).await;
    start_ts_is_found(server.url(), &mut conn).await;
    purged_is_told(server.url(), &mut conn).await;
    another_binlog_is_told(server.url(), &mut conn).await;
}

/// A start in the past: exactly what came after it, wherever in the files.
async fn start_ts_is_found(server: &str, conn: &mut Conn) {
    let mut db = Db::on(server).await;
    let from_now = db.prepare().await.task_position;
    db.run("CREATE TABLE t (id INT PRIMARY KEY)").await;
    for id in 0..12 {
        db.run(&format!("INSERT INTO t VALUES ({id})")).await;
        if id % 4 == 3 {
            // Files without a transaction lie between the others.
            for _ in 0..3 {
                run(conn, "FLUSH BINARY LOGS").await;
            }
        }
    }
    let all = changes(&db.read(&from_now).await);
    assert_eq!(all.len(), 13);
    for at in [0, 1, 5, 6, 11, 12] {
        let start_ts = all[at].commit_ts();
        let prepared = MysqlFactory
            .prepare(&capture_runtime::task::TaskSpec { start_ts: Some(start_ts), ..spec(&db.url) })
            .await
            .unwrap();
        assert_eq!((prepared.start_ts, prepared.task_position.checkpoint_ts), (start_ts, start_ts));
        let events = db.read(&prepared.task_position).await;
        check_marks(&events);
        assert!(changes(&events) == all[at + 1..], "after change {at}");
        // An operator's checkpoint has no position.
        assert!(
            changes(&db.read(&ChangefeedProgress::at(start_ts)).await) == all[at + 1..],
            "after change {at}"
        );
    }
    let future = Ts::from_physical_ms(db.now().await.physical_ms() + 3_600_000);
    let spec = capture_runtime::task::TaskSpec { start_ts: Some(future), ..spec(&db.url) };
    let error = MysqlFactory.prepare(&spec).await.unwrap_err();
    assert_eq!(error.code, "CDC:ErrAPIInvalidParam");
    assert!(error.message.contains("larger than current tso"), "{error}");
}

async fn purged_is_told(server: &str, conn: &mut Conn) {
    let mut db = Db::on(server).await;
    let before = db.prepare().await;
    db.run("CREATE TABLE t (id INT PRIMARY KEY)").await;
    run(conn, "FLUSH BINARY LOGS").await;
    db.run("INSERT INTO t VALUES (1)").await;
    let files: Vec<mysql_async::Row> = conn.query("SHOW BINARY LOGS").await.unwrap();
    let newest: String = files.last().unwrap().get(0).unwrap();
    // A file that a dump still reads is not purged at first.
    loop {
        run(conn, &format!("PURGE BINARY LOGS TO '{newest}'")).await;
        let files: Vec<mysql_async::Row> = conn.query("SHOW BINARY LOGS").await.unwrap();
        if files.len() == 1 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    let error = db.read_err(&before.task_position).await;
    assert_eq!((&*error.code, error.retryable), ("CDC:ErrStartTsBeforeGC", false), "{error}");
    let spec = capture_runtime::task::TaskSpec { start_ts: Some(before.start_ts), ..spec(&db.url) };
    let error = MysqlFactory.prepare(&spec).await.unwrap_err();
    assert_eq!(error.code, "CDC:ErrStartTsBeforeGC");
    assert!(error.message.contains(&format!("start-ts {}", before.start_ts)), "{error}");
}

/// The same file name, but not the same file.
async fn another_binlog_is_told(server: &str, conn: &mut Conn) {
    run(conn, "RESET BINARY LOGS AND GTIDS").await;
    let mut db = Db::on(server).await;
    let start = db.prepare().await.task_position;
    db.run("CREATE TABLE t (id INT PRIMARY KEY)").await;
    let events = db.read(&start).await;
    let Some(SourceEvent::Resolved(mark)) = events.last() else { panic!("no mark") };
    // Files are told apart by the second of their birth.
    let second = mark.ts.physical_ms() / 1000;
    while super::now(conn).await.physical_ms() / 1000 <= second {
        sleep(Duration::from_millis(50)).await;
    }
    run(conn, "RESET BINARY LOGS AND GTIDS").await;
    for id in 0..20 {
        db.run(&format!("INSERT INTO t VALUES ({id})")).await;
    }
    let error = db.read_err(&progress(mark)).await;
    assert_eq!((&*error.code, error.retryable), ("CDC:ErrChangefeedUnretryable", false), "{error}");
    assert!(error.message.contains("reset"), "{error}");

    let mut position = mark.position.clone().unwrap();
    position.0["server"] = "3e11fa47-71ca-11e1-9e33-c80aa9429562".into();
    let moved = ChangefeedProgress { position: Some(position), ..progress(mark) };
    let error = MysqlFactory.open(&launch(&db.url, 1, &moved)).await.err().unwrap();
    assert_eq!(error.code, "CDC:ErrChangefeedUnretryable");
    assert!(error.message.contains("another server"), "{error}");
}

/// A user of its own, so that its connections can be told from those of other tests.
async fn with_user(db: &mut Db) -> String {
    let user = db.user();
    db.run(&format!("CREATE USER {user} IDENTIFIED BY 'hunter2'")).await;
    db.run(&format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {user}")).await;
    let mut url = url::Url::parse(&db.url).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("hunter2")).unwrap();
    url.into()
}

/// The connection of this user's dump.
async fn dump_of(db: &mut Db) -> u64 {
    let sql = format!(
        "SELECT ID FROM performance_schema.processlist WHERE USER = '{}' AND COMMAND LIKE 'Binlog Dump%'",
        db.user()
    );
    let find = async {
        loop {
            if let Some(id) = db.conn.query_first(&sql).await.unwrap() {
                return id;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, find).await.expect("a dump")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_connection_is_an_error_to_try_again_after() {
    let mut db = Db::new().await;
    db.run("CREATE TABLE t (id INT PRIMARY KEY)").await;
    let url = with_user(&mut db).await;
    let start = db.prepare().await.task_position;
    db.run("INSERT INTO t VALUES (1)").await;
    let until = db.now().await;
    let mut source = MysqlFactory.open(&launch(&url, 1, &start)).await.unwrap();
    let mut events = read_until(&mut *source, until).await.unwrap();
    let id = dump_of(&mut db).await;
    db.run(&format!("KILL {id}")).await;
    let error = loop {
        match timeout(LIMIT, source.next()).await.unwrap() {
            Ok(event) => events.push(event),
            Err(error) => break error,
        }
    };
    assert_eq!((&*error.code, error.retryable), ("CDC:ErrMySQLConnectionError", true), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");

    db.run("INSERT INTO t VALUES (2)").await;
    let Some(SourceEvent::Resolved(mark)) =
        events.iter().rev().find(|event| matches!(event, SourceEvent::Resolved(_)))
    else {
        panic!("no mark")
    };
    events.extend(db.read(&progress(mark)).await);
    check_marks(&events);
    assert_eq!(ops(&events).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_our_identity_does_not_stop_us() {
    let mut db = Db::new().await;
    db.run("CREATE TABLE t (id INT PRIMARY KEY)").await;
    let url = with_user(&mut db).await;
    let start = db.prepare().await.task_position;
    db.run("INSERT INTO t VALUES (1)").await;
    let until = db.now().await;
    let mut source = MysqlFactory.open(&launch(&url, 1, &start)).await.unwrap();
    let mut events = read_until(&mut *source, until).await.unwrap();

    let id = dump_of(&mut db).await;
    let sql = format!(
        "SELECT CAST(VARIABLE_VALUE AS CHAR) FROM performance_schema.user_variables_by_thread \
         JOIN performance_schema.threads USING (THREAD_ID) WHERE PROCESSLIST_ID = {id} AND VARIABLE_NAME = 'replica_uuid'"
    );
    let uuid: String = db.conn.query_first(&sql).await.unwrap().expect("our name");
    let mut thief = db_conn(&db.url).await;
    run(&mut thief, &format!("SET @replica_uuid = '{uuid}', @slave_uuid = '{uuid}'")).await;
    let stolen = thief.get_binlog_stream(BinlogStreamRequest::new(77)).await.unwrap();

    db.run("INSERT INTO t VALUES (2)").await;
    let until = db.now().await;
    events.extend(read_until(&mut *source, until).await.unwrap());
    check_marks(&events);
    let rows = changes(&events).into_iter().filter(|change| matches!(change, Change::Row(_))).count();
    assert_eq!(rows, 2);
    assert_ne!(dump_of(&mut db).await, id, "it came back on another connection");
    drop(stolen);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_marks_follow_the_servers_clock() {
    let mut db = Db::new().await;
    let start = db.prepare().await;
    let mut source = db.open(&start.task_position).await;
    let begun = db.now().await;
    let mut marks = Vec::new();
    while marks.len() < 3 {
        if let SourceEvent::Resolved(mark) = timeout(LIMIT, source.next()).await.unwrap().unwrap() {
            marks.push(mark);
        }
    }
    assert!(marks[1].ts > begun && marks[2].ts < db.now().await, "{marks:?}");
    // They do not touch what later changes are compared with: other tests' transactions, all before.
    let previous = |at: usize| marks[at].position.as_ref().unwrap().0["previous"].as_u64().unwrap();
    assert!(previous(1) < marks[1].ts.0 && previous(2) < marks[2].ts.0);
}

/// Eight writers at once: had a mark promised too much, a later change would have been moved behind it, and would have
/// another ts when it is read anew.
#[tokio::test(flavor = "multi_thread")]
async fn marks_promise_nothing_too_early() {
    let mut db = Db::new().await;
    db.run("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, n INT)").await;
    let start = db.prepare().await.task_position;
    let mut source = db.open(&start).await;
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let url = db.url.clone();
            tokio::spawn(async move {
                let mut conn = db_conn(&url).await;
                for n in 0..150 {
                    run(&mut conn, &format!("INSERT INTO t (n) VALUES ({n})")).await;
                    if n % 50 == writer {
                        sleep(Duration::from_millis(300)).await;
                    }
                }
            })
        })
        .collect();
    let mut live = read_until(&mut *source, db.now().await).await.unwrap();
    for writer in writers {
        writer.await.unwrap();
    }
    live.extend(read_until(&mut *source, db.now().await).await.unwrap());
    check_marks(&live);
    let anew = db.read(&start).await;
    assert_eq!(changes(&live).len(), 1200);
    assert!(changes(&live) == changes(&anew));
}
