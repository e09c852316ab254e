//! From a real server to files, as the runtime runs it: the files, replayed by key, equal the source's tables.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use capture_runtime::admission::{Admission, Deadline};
use capture_runtime::clock::{Clock, SystemClock};
use capture_runtime::task::{ProgressReporter, TaskContext, TaskEnd, TaskFactory as _, TaskSpec};
use metadata_api::model::{ChangefeedProgress, ChangefeedUuid, OwnerEpoch, SecretUri, Ts};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Row, Value as Sql};
use replicator::Replicator;
use replicator::canal_json::text_from_bytes;
use replicator::reader::replay::Replay;
use replicator::reader::{changefeed_dir, lines};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Db, LIMIT, launch, spec};

/// One launch, with a deadline far away.
struct Running {
    task: JoinHandle<Result<TaskEnd, capture_runtime::task::TaskError>>,
    stop: CancellationToken,
    deadline: Deadline,
    reports: watch::Receiver<ChangefeedProgress>,
}

fn start(db: &Db, sink: &str, epoch: u64, from: &ChangefeedProgress) -> Running {
    let clock: Arc<dyn Clock> = SystemClock::shared();
    let deadline = Deadline::new(Arc::clone(&clock));
    deadline.extend(clock.now() + Duration::from_secs(3600));
    let admission = Admission::new(deadline.clone());
    let (reporter, reports) = ProgressReporter::new(admission.clone(), from.clone());
    let launch = launch(&db.url, epoch, from);
    let mut info = (*launch.info).clone();
    info.sink_uri = SecretUri::parse("sink_uri", sink).unwrap();
    let stop = CancellationToken::new();
    let context = TaskContext {
        term: launch.term,
        share: None,
        launch: 1,
        info: Arc::new(info),
        upstream: launch.upstream,
        start: from.clone(),
        admission,
        reporter,
        stop: stop.clone(),
    };
    assert_eq!(launch.term.epoch, OwnerEpoch(epoch));
    let task = tokio::spawn(async move { Replicator::new(clock).run(context).await });
    Running { task, stop, deadline, reports }
}

impl Running {
    async fn reach(&mut self, ts: Ts) -> ChangefeedProgress {
        let reached = timeout(LIMIT, self.reports.wait_for(|progress| progress.checkpoint_ts >= ts)).await;
        reached.expect("the checkpoint moves in time").expect("it runs").clone()
    }

    async fn end(self) -> TaskEnd {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("it ends in time").unwrap().unwrap()
    }
}

/// What SELECT says of a table, in the words of canal-json.
async fn selected(
    db: &mut Db,
    table: &str,
    columns: &[(&str, &str)],
) -> BTreeMap<Vec<String>, BTreeMap<String, Option<String>>> {
    let list: Vec<String> = columns.iter().map(|(_, expression)| (*expression).to_owned()).collect();
    let rows: Vec<Row> = db.conn.query(format!("SELECT {} FROM {table}", list.join(", "))).await.unwrap();
    rows.into_iter()
        .map(|row| {
            let cells: BTreeMap<String, Option<String>> = columns
                .iter()
                .zip(row.unwrap())
                .map(|((name, expression), cell)| {
                    let text = match cell {
                        Sql::NULL => None,
                        // What has no character set is read as ISO-8859-1.
                        Sql::Bytes(bytes) if expression.starts_with('b') => Some(text_from_bytes(&bytes)),
                        Sql::Bytes(bytes) => Some(String::from_utf8(bytes).unwrap()),
                        other => panic!("{other:?}"),
                    };
                    ((*name).to_owned(), text)
                })
                .collect();
            (vec![cells["id"].clone().unwrap()], cells)
        })
        .collect()
}

async fn write(db: &mut Db, round: i64) {
    let base = round * 10_000;
    db.run("BEGIN").await;
    for first in (0..10_000).step_by(1000) {
        let list: Vec<String> = (first..first + 1000)
            .map(|n| format!("({}, 'grün {n} 🦀', {n}.50, NULL, NOW(6))", base + n))
            .collect();
        db.run(&format!("INSERT INTO wide VALUES {}", list.join(","))).await;
    }
    db.run("COMMIT").await;
    for n in 0..20 {
        db.run(&format!("INSERT INTO small VALUES ({}, {n}, '[1, 2.0]')", base + n)).await;
        db.run(&format!("UPDATE wide SET name = NULL, blob_ = X'00FF22' WHERE id % 97 = {n}")).await;
        db.run(&format!("UPDATE small SET id = id + 1000 WHERE id = {}", base + n)).await;
        if n % 3 == 0 {
            db.run(&format!("DELETE FROM wide WHERE id % 89 = {n}")).await;
        }
    }
    db.run(&format!(
        "INSERT INTO wide VALUES ({}, 'big', 1, REPEAT(X'0001FF', 1800000), NULL)",
        base + 10_000 - 1_000_000
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_replayed_equal_the_source() {
    let mut db = Db::new().await;
    db.run(
        "CREATE TABLE wide (id BIGINT PRIMARY KEY, name VARCHAR(50), price DECIMAL(10,2), blob_ LONGBLOB, \
         at TIMESTAMP(6) NULL)",
    )
    .await;
    db.run("CREATE TABLE small (id INT PRIMARY KEY, n INT UNSIGNED, doc JSON)").await;
    let dir = tempfile::tempdir().unwrap();
    let sink = format!("file://{}?protocol=canal-json", dir.path().display());
    let replicator = Replicator::new(SystemClock::shared());
    let request = TaskSpec { sink_uri: SecretUri::parse("sink_uri", &sink).unwrap(), ..spec(&db.url) };
    let prepared = capture_runtime::task::TaskFactory::prepare(&replicator, &request).await.unwrap();

    // The first owner loses its lease somewhere in the middle, with nothing said; the second starts from what the first
    // had reported, and is stopped; the third ends it.
    let mut first = start(&db, &sink, 1, &prepared.task_position);
    write(&mut db, 0).await;
    let before = db.now().await;
    first.reach(before).await;
    write(&mut db, 1).await;
    let reported = first.reports.borrow().clone();
    first.task.abort();
    drop(first.deadline);

    let mut second = start(&db, &sink, 2, &reported);
    let now = db.now().await;
    second.reach(now).await;
    write(&mut db, 2).await;
    let reports = second.reports.clone();
    assert_eq!(second.end().await, TaskEnd::Stopped);
    let reported = reports.borrow().clone();

    let mut third = start(&db, &sink, 3, &reported);
    let now = db.now().await;
    third.reach(now).await;
    assert_eq!(third.end().await, TaskEnd::Stopped);

    let replay = Replay::of(lines(&changefeed_dir(dir.path(), ChangefeedUuid(7))).unwrap()).unwrap();
    db.run("SET time_zone = '+00:00'").await;
    for (table, columns) in [
        ("wide", vec![("id", "id"), ("name", "name"), ("price", "price"), ("blob_", "blob_"), ("at", "at")]),
        ("small", vec![("id", "id"), ("n", "n"), ("doc", "doc")]),
    ] {
        let wanted = selected(&mut db, table, &columns).await;
        let found = replay.rows(&db.name, table);
        assert_eq!(found.len(), wanted.len(), "{table}");
        assert!(wanted.len() > 50);
        for (key, row) in &wanted {
            assert!(found.get(key) == Some(&row), "{table} {key:?}");
        }
    }
    let mut last = BTreeMap::new();
    for line in lines(&changefeed_dir(dir.path(), ChangefeedUuid(7))).unwrap() {
        let line = line.unwrap();
        let ts = line.message().unwrap().commit_ts();
        let before = last.insert(line.author.epoch, ts);
        assert!(before.is_none_or(|before| before <= ts), "within an epoch commit ts do not go back");
    }
    assert_eq!(last.len(), 3, "three epochs wrote");
}
