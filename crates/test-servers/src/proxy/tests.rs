use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, Executor as _, query, query_scalar};
use tokio::time::{sleep, timeout};

use super::{Act, CommandKind, Point, Proxy, Rule, When};
use crate::{Kind, drop_database, execute, fresh_database};

/// A database with one row, a direct way to it, and one through the proxy.
struct Scene {
    url: String,
    proxy: Proxy,
    direct: MySqlConnection,
}

impl Scene {
    async fn new() -> Self {
        let url = fresh_database(&Kind::Mysql.url().await).await;
        execute(&url, "CREATE TABLE t (id INT PRIMARY KEY, n INT NOT NULL)").await;
        execute(&url, "INSERT INTO t VALUES (1, 0)").await;
        let proxy = Proxy::start(&url).await;
        let direct = MySqlConnection::connect(&url).await.expect("a connection");
        Self { url, proxy, direct }
    }

    async fn client(&self) -> sqlx::Result<MySqlConnection> {
        MySqlConnection::connect(&self.proxy.url(&self.url)).await
    }

    async fn n(&mut self) -> i32 {
        query_scalar("SELECT n FROM t WHERE id = 1").fetch_one(&mut self.direct).await.expect("a number")
    }

    async fn wait_for_n(&mut self, wanted: i32) {
        let seen = async {
            while self.n().await != wanted {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), seen).await.expect("it is applied");
    }

    async fn wait_for_connections(&self, count: usize) {
        timeout(Duration::from_secs(20), self.proxy.wait_for_connections(count)).await.expect("they close");
    }

    async fn end(self) {
        self.direct.close().await.expect("it closes");
        drop_database(&self.url).await;
    }
}

const UPDATE: &str = "UPDATE t SET n = n + 1 WHERE id = ?";

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().map(|error| error.message().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_orders_everything_passes_and_is_written_down() {
    let mut scene = Scene::new().await;
    let mut client = scene.client().await.expect("a connection");
    scene.proxy.order([]);
    client.execute("SET @a = 1; BEGIN").await.expect("two results");
    for _ in 0..2 {
        query(UPDATE).bind(1).execute(&mut client).await.expect("an update");
    }
    let many: Vec<(i32, String)> = sqlx::query_as(
        "WITH RECURSIVE c AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM c WHERE n < 500) \
         SELECT n, REPEAT('x', n * 10) FROM c WHERE n > ? ORDER BY n",
    )
    .bind(0)
    .fetch_all(&mut client)
    .await
    .expect("many rows");
    assert_eq!((many.len(), many[499].1.len()), (500, 5_000));
    assert!(query("SELECT nonsense FROM t").execute(&mut client).await.is_err());
    client.ping().await.expect("a ping");
    client.execute("COMMIT").await.expect("a commit");
    let seen: Vec<_> = scene.proxy.seen().into_iter().map(|command| (command.kind, command.text)).collect();
    let kinds: Vec<_> = seen.iter().map(|(kind, _)| *kind).collect();
    let (prepare, execute, query) = (CommandKind::Prepare, CommandKind::Execute, CommandKind::Query);
    assert_eq!(
        kinds,
        [query, prepare, execute, execute, prepare, execute, prepare, CommandKind::Other, query],
        "{seen:?}"
    );
    assert_eq!(seen[2], (execute, UPDATE.to_owned()));
    assert_eq!(scene.n().await, 2);
    assert_eq!(scene.proxy.server_connections(), 1);
    client.close().await.expect("it closes");
    scene.wait_for_connections(0).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_before_during_or_after() {
    let mut scene = Scene::new().await;
    let mut applied = 0;
    for (point, executed) in [(Point::Before, false), (Point::Sent, true), (Point::Answered, true)] {
        let mut client = scene.client().await.expect("a connection");
        scene.proxy.order([Rule::new(When::statement("UPDATE t"), point, Act::Reset)]);
        let error = query(UPDATE).bind(1).execute(&mut client).await.expect_err("a reset");
        assert!(matches!(error, sqlx::Error::Io(_)), "{point:?}: {error:?}");
        assert_eq!(scene.proxy.met().len(), 1);
        scene.wait_for_connections(0).await;
        applied += i32::from(executed);
        assert_eq!(scene.n().await, applied, "{point:?}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_late_or_never_comes() {
    let mut scene = Scene::new().await;
    let soon = Duration::from_millis(300);
    let mut client = scene.client().await.expect("a connection");
    scene.proxy.order([Rule::new(When::statement("UPDATE t"), Point::Answered, Act::Delay(soon))]);
    let started = tokio::time::Instant::now();
    query(UPDATE).bind(1).execute(&mut client).await.expect("late, but it comes");
    assert!(started.elapsed() >= soon);
    scene.proxy.order([Rule::new(When::statement("UPDATE t"), Point::Before, Act::Late)]);
    timeout(soon, query(UPDATE).bind(1).execute(&mut client)).await.expect_err("it is held back");
    assert_eq!(scene.n().await, 1);
    drop(client);
    scene.wait_for_n(2).await;
    scene.wait_for_connections(0).await;
    scene.end().await;
}

/// Half-open: the server does not learn that its client has left, and ends the session by its own timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_connection_is_the_servers_to_end() {
    let mut scene = Scene::new().await;
    let mut client = scene.client().await.expect("a connection");
    client.execute("SET SESSION wait_timeout = 2").await.expect("set");
    client.execute("BEGIN").await.expect("a transaction");
    scene.proxy.order([Rule::new(When::statement("UPDATE t"), Point::Answered, Act::Hold)]);
    let soon = Duration::from_millis(300);
    timeout(soon, query(UPDATE).bind(1).execute(&mut client)).await.expect_err("no answer");
    drop(client);
    sleep(soon).await;
    assert_eq!(scene.proxy.server_connections(), 1, "the server knows nothing");
    scene.wait_for_connections(0).await;
    assert_eq!(scene.n().await, 0, "it rolled back");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_what_was_ordered() {
    let mut scene = Scene::new().await;
    let act = Act::Error { code: 1040, sqlstate: "08004", message: "Too many connections" };
    scene.proxy.order([Rule::new(When::connect(), Point::Before, act)]);
    let error = scene.client().await.expect_err("a full server");
    assert_eq!(code(&error).as_deref(), Some("Too many connections"), "{error:?}");
    let mut client = scene.client().await.expect("the second one passes");
    let act = Act::Error { code: 1213, sqlstate: "40001", message: "Deadlock" };
    for (point, n) in [(Point::Before, 0), (Point::Answered, 1)] {
        scene.proxy.order([Rule::new(When::statement("UPDATE t"), point, act.clone())]);
        let error = query(UPDATE).bind(1).execute(&mut client).await.expect_err("an error");
        assert_eq!(code(&error).as_deref(), Some("Deadlock"), "{point:?}: {error:?}");
        assert_eq!(scene.n().await, n, "{point:?}");
    }
    query(UPDATE).bind(1).execute(&mut client).await.expect("the connection is good");
    assert_eq!(scene.n().await, 2);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_fails_where_it_is_told() {
    let mut scene = Scene::new().await;
    for point in [Point::Before, Point::Sent, Point::Answered] {
        scene.proxy.order([Rule::new(When::connect(), point, Act::Reset)]);
        scene.client().await.map(drop).expect_err("a reset");
        scene.proxy.order([Rule::new(When::connect(), point, Act::Hold)]);
        timeout(Duration::from_millis(300), scene.client()).await.map(drop).expect_err("no answer");
    }
    let mut client = scene.client().await.expect("a connection");
    query(UPDATE).bind(1).execute(&mut client).await.expect("an update");
    assert_eq!(scene.n().await, 1);
    scene.end().await;
}
