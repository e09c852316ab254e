//! What runs on a timer finds its rows by an index: its cost does not grow with the cluster.
//!
//! The statements are those that the store sends, as the server wrote them down, not copies of them.

use metadata_api::model::{CaptureProgress, CaptureTerm, ChangefeedUuid, Revision};
use metadata_api::store::{
    CaptureStore as _, ControllerStore as _, ElectionStore as _, PollCursor, QueryStore as _,
};
use metadata_mysql::{MysqlOptions, MysqlStore, migrate};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};
use test_servers::{Kind, execute, fresh_database};

const CHANGEFEEDS: u64 = 10_000;
const CAPTURES: u64 = 1_000;

/// The capture that works; it has 10 changefeeds, like any other.
const ME: &str = "00000000-0000-4000-8000-000000000007";

/// The controller's scan of heartbeats, which is of one small row a capture, and of nothing else.
const SCANS: [&str; 2] = ["SELECT id, state, heartbeat_seq FROM capture", "SELECT id, advertise_addr,"];

async fn seed(url: &str) {
    let id = |n: u64| format!("'00000000-0000-4000-8000-{n:012}'");
    let captures: Vec<_> =
        (0..CAPTURES).map(|n| format!("({}, 'a:1', 'v0', '{{}}', '', 'alive', 1)", id(n))).collect();
    let progress: Vec<_> = (0..CAPTURES).map(|n| format!("({}, '{{}}')", id(n))).collect();
    let feeds = |row: &dyn Fn(u64) -> String| (1..=CHANGEFEEDS).map(row).collect::<Vec<_>>();
    for (head, rows) in [
        ("capture (id, advertise_addr, binary_version, labels, machine_id, state, revision)", captures),
        ("progress (capture_id, value)", progress),
        (
            "schedule (changefeed_uuid, owner, owner_state, owner_epoch, task_position, revision)",
            feeds(&|n| format!("({n}, {}, 'launched', 5, '{{\"checkpoint_ts\":1}}', {n})", id(n % CAPTURES))),
        ),
        (
            "processor (changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment, revision)",
            feeds(&|n| format!("({n}, {}, 'launched', 5, 5, 'null', {n})", id(n % CAPTURES))),
        ),
        ("changefeed_state (changefeed_uuid, state)", feeds(&|n| format!("({n}, 'normal')"))),
        (
            "changefeed_info (uuid, namespace, id, upstream_id, sink_uri, start_ts, target_ts, config, creator_version, \
             client_request_id)",
            feeds(&|n| {
                format!("({n}, 'default', 'feed-{n}', 1, 'blackhole://', 1, 0, '{{}}', 'v0', {})", id(n))
            }),
        ),
    ] {
        for rows in rows.chunks(1_000) {
            execute(url, &format!("INSERT INTO {head} VALUES {}", rows.join(", "))).await;
        }
    }
    execute(url, "INSERT INTO upstream (id, endpoints, credentials) VALUES (1, 'datagen://', '')").await;
    execute(url, &format!("UPDATE fence SET revision = {CHANGEFEEDS}")).await;
    execute(url, "ANALYZE TABLE schedule, processor, capture, progress, changefeed_info, changefeed_state")
        .await;
}

/// Everything that a capture and the controller do on a timer.
async fn a_second_of_a_capture(store: &MysqlStore) {
    let me = CaptureTerm { capture: ME.parse().expect("an id") };
    let controller =
        store.election_campaign(me, &store.election().await.expect("a row")).await.expect("elected");
    store.heartbeat_channel().await.expect("a channel").beat(me, 0, 1).await.expect("a beat");
    let mut watch = store.watch_channel().await.expect("a channel");
    for revision in [0, CHANGEFEEDS] {
        let answer = watch.poll(me, &PollCursor::after(Revision(revision))).await.expect("a poll");
        assert_eq!((answer.owned, answer.attached), (10, 10));
    }
    watch.lease_renew(controller).await.expect("renewed");
    store.capture_advance(me, 1, &CaptureProgress::default()).await.expect("advanced");
    store.capture_progress(me).await.expect("read");
    assert_eq!(store.capture_schedules(me).await.expect("read").rows.len(), 10);
    assert_eq!(store.capture_processors(me).await.expect("read").rows.len(), 10);
    let own = [ChangefeedUuid(7), ChangefeedUuid(1_007)];
    assert_eq!(store.owner_launches(me, &own).await.expect("read").len(), 2);
    store.changefeed_progresses(Some(&own)).await.expect("read");
    assert_eq!(store.processors(Some(&own)).await.expect("read").len(), 2);
    store.changefeed_schedule(own[0]).await.expect("read");
    store.capture_beats().await.expect("read");
    store.captures(None).await.expect("read");
}

pub async fn timed_statements_use_indexes_with_10000_changefeeds(kind: Kind) {
    // Of its own: what is written down is what the whole server is asked.
    let server = kind.start().await;
    let url = fresh_database(server.url()).await;
    let options = || MysqlOptions::from_url(&url).expect("a URL");
    migrate(options()).await.expect("an empty database");
    seed(&url).await;
    let store = MysqlStore::open(options()).await.expect("it opens");
    let mut db = MySqlConnection::connect(&url).await.expect("a connection");
    let plans = if kind == Kind::Tidb {
        // Forgets what was asked so far: the migrations, and the checks of a store that opens.
        execute(&url, "SET GLOBAL tidb_enable_stmt_summary = OFF").await;
        execute(&url, "SET GLOBAL tidb_enable_stmt_summary = ON").await;
        a_second_of_a_capture(&store).await;
        tidb_plans(&mut db).await
    } else {
        execute(&url, "SET GLOBAL log_output = 'TABLE'").await;
        execute(&url, "SET GLOBAL general_log = ON").await;
        a_second_of_a_capture(&store).await;
        execute(&url, "SET GLOBAL general_log = OFF").await;
        explained(kind, &mut db).await
    };
    for wanted in [
        "UPDATE capture SET heartbeat_seq",
        "UPDATE election",
        "UPDATE progress",
        "FROM cluster k",
        "FROM processor p LEFT JOIN capture c",
        SCANS[0],
    ] {
        assert!(plans.iter().any(|plan| plan.statement.contains(wanted)), "`{wanted}` was not written down");
    }
    for plan in &plans {
        let may_scan = SCANS.iter().any(|scan| plan.statement.starts_with(scan));
        assert!(
            plan.scanned.iter().all(|table| may_scan && table == "capture"),
            "{:?} scanned whole by:\n{}",
            plan.scanned,
            plan.statement
        );
        assert!(may_scan || plan.rows <= 100, "{} rows looked at by:\n{}", plan.rows, plan.statement);
    }
}

/// How the server runs a statement.
struct Plan {
    statement: String,
    /// Tables that are read whole, or by a whole index.
    scanned: Vec<String>,
    /// Of how many rows of the largest table it expects to look at.
    rows: i64,
}

/// Explains each statement of the general log.
async fn explained(kind: Kind, db: &mut MySqlConnection) -> Vec<Plan> {
    // A tree is the default of newer MySQLs; MariaDB knows no other table than this, and no name for it.
    let explain = if kind == Kind::Mysql { "EXPLAIN FORMAT = TRADITIONAL" } else { "EXPLAIN" };
    let log = "SELECT DISTINCT CONVERT(argument USING utf8mb4) FROM mysql.general_log \
               WHERE command_type IN ('Query', 'Execute')";
    let mut plans = Vec::new();
    for row in db.fetch_all(log).await.expect("the log") {
        let text: String = row.try_get_unchecked(0).expect("a statement");
        // A comment in front would hide the EXPLAIN.
        let statement = text.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
        if !["SELECT", "UPDATE", "INSERT", "DELETE"].iter().any(|verb| statement.starts_with(verb))
            || statement.starts_with("SELECT @@")
        {
            continue;
        }
        let explain =
            sqlx::raw_sql(AssertSqlSafe(format!("{explain} {statement}"))).fetch_all(&mut *db).await;
        let mut plan = Plan { statement, scanned: Vec::new(), rows: 0 };
        for row in explain.expect("a plan") {
            let text = |column| {
                row.try_get_unchecked::<Option<String>, _>(column).expect("a column").unwrap_or_default()
            };
            let (table, access) = (text("table"), text("type"));
            let rows = row.try_get_unchecked::<Option<i64>, _>("rows").expect("a column").unwrap_or(0);
            if table.starts_with('<') || table.is_empty() || table == "r" {
                continue;
            }
            plan.rows = plan.rows.max(rows);
            if ["ALL", "index"].contains(&access.as_str()) {
                plan.scanned.push(table);
            }
        }
        plans.push(plan);
    }
    plans
}

/// `TiDB` keeps the plan of each statement that it ran.
async fn tidb_plans(db: &mut MySqlConnection) -> Vec<Plan> {
    let log = "SELECT query_sample_text, plan FROM information_schema.statements_summary \
               WHERE schema_name = DATABASE() AND stmt_type IN ('Select', 'Update')";
    let mut plans = Vec::new();
    for row in db.fetch_all(log).await.expect("the summary") {
        let text = |column: usize| {
            row.try_get_unchecked::<Option<String>, _>(column).expect("a column").unwrap_or_default()
        };
        let (text, plan) = (text(0), text(1));
        let statement = text.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
        // A reader names the scan below it; the scan itself names its table.
        let whole = plan.lines().filter(|line| line.contains("FullScan") && line.contains("table:"));
        let scanned = whole.map(|line| {
            let table = line.split("table:").nth(1).unwrap_or(line);
            table.split([',', '\t', ' ']).next().unwrap_or(table).to_owned()
        });
        plans.push(Plan { statement, scanned: scanned.collect(), rows: 0 });
    }
    plans
}
