//! What the store is worth on a server that is shared, in trouble, or not to be trusted.

use std::sync::Arc;
use std::time::Duration;

use metadata_api::MetadataError;
use metadata_api::model::{
    CaptureId, CaptureProgress, CaptureTerm, ChangefeedName, ChangefeedProgress, NewCapture, NewChangefeed,
    ReplicaConfig, SecretUri, Ts,
};
use metadata_api::store::{AdminStore as _, Authority, CaptureStore as _, QueryStore as _};
use metadata_mysql::{MysqlOptions, MysqlStore, migrate};
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, Executor as _, Row as _, query_scalar};
use test_servers::{Kind, drop_database, execute, fresh_database};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

pub fn options(url: &str) -> MysqlOptions {
    MysqlOptions::from_url(url).expect("a URL")
}

pub async fn migrated(kind: Kind) -> (String, MysqlStore) {
    let url = fresh_database(&kind.url().await).await;
    migrate(options(&url)).await.expect("an empty database");
    let store = MysqlStore::open(options(&url)).await.expect("it opens");
    (url, store)
}

pub fn new_capture() -> NewCapture {
    NewCapture {
        id: CaptureId::random(),
        advertise_addr: "127.0.0.1:8300".to_owned(),
        version: "v0".to_owned(),
        labels: std::collections::BTreeMap::new(),
        machine_id: String::new(),
    }
}

pub fn new_changefeed(id: &str) -> NewChangefeed {
    NewChangefeed {
        name: ChangefeedName::new("", id).expect("a name"),
        upstream_id: None,
        upstream_uri: SecretUri::parse("upstream_uri", "mysql://u:hunter2@h/").expect("a URI"),
        sink_uri: SecretUri::parse("sink_uri", "blackhole://").expect("a URI"),
        start_ts: Ts(100),
        target_ts: Ts::ZERO,
        config: ReplicaConfig::default(),
        creator_version: "v0".to_owned(),
        client_request_id: sqlx::types::Uuid::new_v4(),
        task_position: ChangefeedProgress::at(Ts(100)),
    }
}

/// A transaction that locks, in the server's own words.
pub fn begin(kind: Kind) -> &'static str {
    if kind == Kind::Tidb { "BEGIN PESSIMISTIC" } else { "BEGIN" }
}

/// An outsider that holds the fence row until it is dropped or told to go.
pub struct Outsider(MySqlConnection);

impl Outsider {
    pub async fn hold_the_fence(kind: Kind, url: &str) -> Self {
        let mut db = MySqlConnection::connect(url).await.expect("a connection");
        db.execute(begin(kind)).await.expect("a transaction");
        db.execute("SELECT revision FROM fence WHERE id = 1 FOR UPDATE").await.expect("the lock");
        Self(db)
    }

    pub async fn go(mut self) {
        self.0.execute("ROLLBACK").await.expect("it rolls back");
        self.0.close().await.expect("it closes");
    }
}

/// How many transactions are open on the database of `url`.
async fn open_transactions(kind: Kind, db: &mut MySqlConnection) -> i64 {
    let sql = match kind {
        Kind::Mysql | Kind::Mariadb => {
            "SELECT COUNT(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p \
             ON p.id = t.trx_mysql_thread_id WHERE p.db = DATABASE()"
        }
        Kind::Tidb => "SELECT COUNT(*) FROM information_schema.tidb_trx WHERE db = DATABASE()",
    };
    query_scalar(sql).fetch_one(db).await.expect("a count")
}

pub async fn wait_for_transactions(kind: Kind, db: &mut MySqlConnection, wanted: i64) {
    let open = async {
        while open_transactions(kind, db).await != wanted {
            // MySQL and MariaDB show the same as before to whoever asks again within 0.1 s of anybody's last time.
            sleep(Duration::from_millis(250)).await;
        }
    };
    timeout(Duration::from_secs(20), open).await.expect("the transactions that are wanted");
}

/// A call that is dropped half way leaves nothing open on the server, and the store goes on.
pub async fn a_dropped_call_leaves_nothing_open(kind: Kind) {
    let (url, store) = migrated(kind).await;
    let uuid =
        store.changefeed_create(Authority::Operator, &new_changefeed("one")).await.expect("created").uuid;
    let mut watcher = MySqlConnection::connect(&url).await.expect("a connection");
    let outsider = Outsider::hold_the_fence(kind, &url).await;
    let call = tokio::spawn({
        let store = store.clone();
        async move { store.changefeed_pause(uuid).await }
    });
    // The outsider's, and the one that waits for it.
    wait_for_transactions(kind, &mut watcher, 2).await;
    call.abort();
    assert!(call.await.expect_err("aborted").is_cancelled());
    outsider.go().await;
    wait_for_transactions(kind, &mut watcher, 0).await;
    let status = store.changefeed_statuses(Some(&[uuid])).await.expect("a read").remove(0);
    assert_eq!(status.version.0, 1, "nothing was applied");
    timeout(Duration::from_secs(2), store.changefeed_pause(uuid)).await.expect("at once").expect("paused");
    watcher.close().await.expect("it closes");
    drop_database(&url).await;
}

/// A lock wait that times out is rolled back before the pause, and tried again until the lock is free.
pub async fn a_lock_wait_is_tried_again(kind: Kind) {
    let (url, store) = migrated(kind).await;
    let mut watcher = MySqlConnection::connect(&url).await.expect("a connection");
    let outsider = Outsider::hold_the_fence(kind, &url).await;
    let call = tokio::spawn({
        let store = store.clone();
        async move { store.capture_register(&new_capture()).await }
    });
    sleep(Duration::from_millis(2_600)).await;
    outsider.go().await;
    // It gives up after ten seconds: an answer is one in time.
    call.await.expect("no panic").expect("registered, at a later try");
    wait_for_transactions(kind, &mut watcher, 0).await;
    watcher.close().await.expect("it closes");
    drop_database(&url).await;
}

/// A lock that is never given up is `Unavailable`, by name, and within bounds.
pub async fn a_lock_that_stays_is_unavailable(kind: Kind) {
    let (url, _) = migrated(kind).await;
    let options = options(&url).give_up_after(Duration::from_secs(3));
    let store = MysqlStore::open(options).await.expect("it opens");
    let outsider = Outsider::hold_the_fence(kind, &url).await;
    let started = Instant::now();
    let error = store.capture_register(&new_capture()).await.expect_err("the fence is held");
    assert!(matches!(error, MetadataError::Unavailable { transaction: "capture.register", .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    outsider.go().await;
    store.capture_register(&new_capture()).await.expect("registered");
    drop_database(&url).await;
}

/// The heartbeat has a connection of its own: it beats while the pool is exhausted and its transactions wait.
pub async fn a_starved_pool_costs_no_heartbeat(kind: Kind) {
    let (url, _) = migrated(kind).await;
    let store =
        MysqlStore::open(options(&url).max_connections(1).expect("in bounds")).await.expect("it opens");
    let store = Arc::new(store);
    let term = store.capture_register(&new_capture()).await.expect("registered");
    let mut channel = store.heartbeat_channel().await.expect("a channel");
    let outsider = Outsider::hold_the_fence(kind, &url).await;
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.capture_register(&new_capture()).await })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for seq in 1..=30 {
        let started = Instant::now();
        timeout(Duration::from_secs(1), channel.beat(term, seq - 1, seq))
            .await
            .expect("in time")
            .expect("a beat");
        slowest = slowest.max(started.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    println!("slowest beat: {slowest:?}");
    outsider.go().await;
    for call in calls {
        // Some gave up waiting for the pool; none is in an unknown state, and none of them hangs.
        match call.await.expect("no panic") {
            Ok(_) | Err(MetadataError::Unavailable { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    drop_database(&url).await;
}

/// A channel whose call was abandoned refuses the next one, which would read the wrong answer.
pub async fn an_abandoned_channel_says_so(kind: Kind) {
    let (url, store) = migrated(kind).await;
    let term = store.capture_register(&new_capture()).await.expect("registered");
    let mut channel = store.heartbeat_channel().await.expect("a channel");
    channel.beat(term, 0, 1).await.expect("a beat");
    let mut outsider = MySqlConnection::connect(&url).await.expect("a connection");
    outsider.execute(begin(kind)).await.expect("a transaction");
    outsider.execute("SELECT id FROM capture FOR UPDATE").await.expect("the lock");
    timeout(Duration::from_millis(300), channel.beat(term, 1, 2)).await.expect_err("the row is locked");
    let error = channel.beat(term, 1, 3).await.expect_err("abandoned");
    assert!(matches!(error, MetadataError::Unavailable { .. }), "{error:?}");
    outsider.execute("ROLLBACK").await.expect("it rolls back");
    let mut channel = store.heartbeat_channel().await.expect("another channel");
    // Whether the abandoned beat was applied or not, the next number allows for it.
    channel.beat(term, 1, 4).await.expect("a beat");
    outsider.close().await.expect("it closes");
    drop_database(&url).await;
}

/// No password in any `Debug` or error: a wrong one, a server that is not there, a database that is not there.
pub async fn no_password_is_ever_shown(kind: Kind) {
    let (url, store) = migrated(kind).await;
    let with_password = url.replace("root@", "root:hunter2@");
    let port = url::Url::parse(&url).expect("a URL").port().expect("a port");
    let mut shown = vec![format!("{store:?}"), format!("{:?}", options(&with_password))];
    for bad in [
        with_password.clone(),
        with_password.replace(&format!(":{port}"), ":1"),
        with_password.replace("root:", "nobody:"),
        url.replace("cdc_test_", "cdc_absent_").replace("root@", "root:@"),
    ] {
        let error = MysqlStore::open(options(&bad)).await.expect_err("it does not open");
        shown.push(format!("{error} {error:?}"));
        let error = migrate(options(&bad)).await.expect_err("it does not open");
        shown.push(format!("{error} {error:?}"));
    }
    for text in &shown {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(shown[2].contains("refuses the user"), "{}", shown[2]);
    assert!(shown.last().expect("the last").contains("create the database first"), "{shown:?}");
    drop_database(&url).await;
}

/// A read-only server is refused at the start; one that becomes so is waited for, and found again when it can write.
pub async fn a_read_only_server_is_refused(kind: Kind) {
    // Of its own: it is a setting of the whole server.
    let server = kind.start().await;
    let url = fresh_database(server.url()).await;
    migrate(options(&url)).await.expect("an empty database");
    let store = MysqlStore::open(options(&url)).await.expect("it opens");
    store.capture_register(&new_capture()).await.expect("registered");
    let (on, off) = match kind {
        Kind::Mysql => ("SET GLOBAL super_read_only = ON", "SET GLOBAL read_only = OFF"),
        Kind::Mariadb => ("SET GLOBAL read_only = ON", "SET GLOBAL read_only = OFF"),
        Kind::Tidb => ("SET GLOBAL tidb_super_read_only = ON", "SET GLOBAL tidb_super_read_only = OFF"),
    };
    execute(server.url(), on).await;
    for error in [
        MysqlStore::open(options(&url)).await.expect_err("refused"),
        migrate(options(&url)).await.expect_err("refused"),
    ] {
        assert!(matches!(error, MetadataError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains("read-only"), "{error}");
    }
    // MariaDB's root may write all the same.
    if kind != Kind::Mariadb {
        let error = store.capture_register(&new_capture()).await.expect_err("read-only");
        assert!(matches!(error, MetadataError::Unavailable { .. }), "{error:?}");
    }
    execute(server.url(), off).await;
    store.capture_register(&new_capture()).await.expect("registered");
}

/// A server's own defaults for sessions do not matter: what is its own transaction is committed by itself, a COMMIT ends
/// one and begins no other, and no list is cut.
pub async fn the_servers_own_defaults_do_not_matter(kind: Kind) {
    // Of its own: they are settings of the whole server.
    let server = kind.start().await;
    let url = fresh_database(server.url()).await;
    let mut odd = vec!["autocommit = 0", "sql_select_limit = 1", "transaction_isolation = 'SERIALIZABLE'"];
    match kind {
        Kind::Mysql => odd.push("completion_type = 'CHAIN'"),
        Kind::Mariadb => odd = vec!["autocommit = 0", "sql_select_limit = 1", "completion_type = 'CHAIN'"],
        Kind::Tidb => drop(odd.pop()),
    }
    for setting in odd {
        execute(server.url(), &format!("SET GLOBAL {setting}")).await;
    }
    migrate(options(&url)).await.expect("an empty database");
    let store = MysqlStore::open(options(&url)).await.expect("it opens");
    let term = store.capture_register(&new_capture()).await.expect("registered");
    store.capture_register(&new_capture()).await.expect("registered");
    store.heartbeat_channel().await.expect("a channel").beat(term, 0, 1).await.expect("a beat");
    store.capture_advance(term, 1, &CaptureProgress::default()).await.expect("progress");
    // Another process sees all of it.
    let other = MysqlStore::open(options(&url)).await.expect("it opens");
    assert_eq!(other.captures(None).await.expect("a read").len(), 2);
    let row = other.captures(Some(&[term.capture])).await.expect("a read").remove(0);
    assert_eq!(row.heartbeat_seq, 1);
    assert_eq!(other.capture_progress(term).await.expect("a read").0, 1);
}

/// A server that connects and then answers nothing is `Unavailable`, and nobody waits for ever: not a start, not a
/// migration.
pub async fn a_server_that_falls_silent_is_unavailable(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    migrate(options(&url)).await.expect("an empty database");
    let parsed = url::Url::parse(&url).expect("a URL");
    let server = format!("{}:{}", parsed.host_str().expect("a host"), parsed.port().expect("a port"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy = listener.local_addr().expect("an address");
    let proxying = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(forward_until(client, server.clone(), b"_sqlx_migrations"));
        }
    });
    let silent = format!("mysql://root@{proxy}{}?ssl-mode=DISABLED", parsed.path());
    let started = Instant::now();
    let (opened, migrated) = tokio::join!(
        timeout(Duration::from_secs(40), MysqlStore::open(options(&silent))),
        timeout(Duration::from_secs(40), migrate(options(&silent))),
    );
    let opened = opened.expect("in time").expect_err("nothing is answered");
    assert!(matches!(opened, MetadataError::Unavailable { .. }), "{opened:?}");
    let migrated = migrated.expect("in time").expect_err("nothing is answered");
    assert!(matches!(migrated, MetadataError::Unavailable { .. }), "{migrated:?}");
    println!("given up after {:?}", started.elapsed());
    proxying.abort();
    drop_database(&url).await;
}

/// Forwards both ways, until the client says `word`: from there nothing passes, and nothing is closed.
async fn forward_until(mut client: TcpStream, server: String, word: &'static [u8]) {
    let mut server = TcpStream::connect(server).await.expect("the server");
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let said = asked.get(..read.unwrap_or(0)).unwrap_or_default();
                if said.is_empty() {
                    return;
                }
                if said.windows(word.len()).any(|part| part == word) {
                    std::future::pending::<()>().await;
                }
                server.write_all(said).await.expect("it is sent");
            }
            read = server.read(&mut answered) => {
                let said = answered.get(..read.unwrap_or(0)).unwrap_or_default();
                if said.is_empty() {
                    return;
                }
                client.write_all(said).await.expect("it is sent");
            }
        }
    }
}

/// A member of a group that several may write to is refused: row locks do not hold between them. (Galera and too old
/// versions are not to be had for the tests: `dialect` has what their variables say.)
#[tokio::test]
async fn group_replication_in_multi_primary_mode_is_refused() {
    let arguments = [
        "--loose-plugin-load-add=group_replication.so",
        "--loose-group-replication-group-name=aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa",
        "--loose-group-replication-start-on-boot=OFF",
        "--loose-group-replication-single-primary-mode=OFF",
        "--loose-group-replication-enforce-update-everywhere-checks=ON",
    ];
    let server = Kind::Mysql.start_with(&arguments.map(str::to_owned), &[]).await;
    let url = fresh_database(server.url()).await;
    for error in [
        MysqlStore::open(options(&url)).await.expect_err("refused"),
        migrate(options(&url)).await.expect_err("refused"),
    ] {
        assert!(matches!(error, MetadataError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains("multi-primary"), "{error}");
    }
}

/// A pooled connection that was ended behind the store is replaced, and the call tried again on another.
pub async fn a_killed_connection_is_replaced(kind: Kind) {
    let (url, store) = migrated(kind).await;
    store.capture_register(&new_capture()).await.expect("registered");
    // Somebody ends every connection of the store behind its back.
    let mut db = MySqlConnection::connect(&url).await.expect("a connection");
    let own: u64 = query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut db).await.expect("an id");
    let name = url.rsplit('/').next().expect("a name").to_owned();
    for row in db.fetch_all("SHOW PROCESSLIST").await.expect("a list") {
        let id: u64 = row.try_get_unchecked("Id").expect("an id");
        let database: Option<String> = row.try_get_unchecked("db").expect("a name");
        if id != own && database.as_deref() == Some(name.as_str()) {
            execute(&url, &format!("KILL {id}")).await;
        }
    }
    let absent = CaptureTerm { capture: CaptureId::random() };
    store.capture_deregister(absent).await.expect("on another connection");
    assert_eq!(store.captures(None).await.expect("a read").len(), 1);
    db.close().await.expect("it closes");
    drop_database(&url).await;
}
