//! Servers and accounts that cannot serve: refused, with what would be right.

use capture_runtime::task::TaskError;
use mysql_async::{Conn, Opts};
use replicator::source::SourceFactory as _;
use replicator::source::mysql::MysqlFactory;
use test_servers::{Kind, mysql_url};
use url::Url;

use super::{Db, run, spec};

async fn refused(upstream: &str) -> TaskError {
    let Err(error) = MysqlFactory.check(&spec(upstream)).await else { panic!("{upstream} is accepted") };
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    error
}

fn with_account(url: &str, user: &str, password: &str) -> Url {
    let mut url = Url::parse(url).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some(password)).unwrap();
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_refused_one_by_one() {
    let server = Kind::Mysql.start().await;
    let mut conn = Conn::new(Opts::from_url(server.url()).unwrap()).await.unwrap();
    for (name, wrong, right) in [
        ("binlog_format", "STATEMENT", "ROW"),
        ("binlog_row_image", "MINIMAL", "FULL"),
        ("binlog_row_metadata", "MINIMAL", "FULL"),
        ("binlog_row_value_options", "PARTIAL_JSON", "''"),
    ] {
        run(&mut conn, &format!("SET GLOBAL {name} = {wrong}")).await;
        let error = refused(server.url()).await;
        assert_eq!((&*error.code, error.retryable), ("CDC:ErrMySQLInvalidConfig", false));
        for part in [name, wrong, &format!("SET PERSIST {name} = {right}")] {
            assert!(error.message.contains(part), "{error} lacks {part}");
        }
        run(&mut conn, &format!("SET GLOBAL {name} = {right}")).await;
    }
    MysqlFactory.check(&spec(server.url())).await.unwrap();

    // A running changefeed meets the change as an error of its own.
    let mut db = Db::on(server.url()).await;
    db.run("CREATE TABLE t (id INT PRIMARY KEY)").await;
    let start = db.prepare().await.task_position;
    let until = db.now().await;
    let mut source = db.open(&start).await;
    super::read_until(&mut *source, until).await.unwrap();
    run(&mut conn, "SET GLOBAL binlog_row_metadata = MINIMAL").await;
    db.run("INSERT INTO t VALUES (1)").await;
    let until = db.now().await;
    let error = super::read_until(&mut *source, until).await.unwrap_err();
    assert!(error.message.contains("SET GLOBAL binlog_row_metadata = FULL") && !error.retryable, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_privileges_are_named_and_roles_count() {
    let mut db = Db::new().await;
    let user = db.user();
    db.run(&format!("CREATE USER {user} IDENTIFIED BY 'hunter2'")).await;
    let url = with_account(&db.url, &user, "hunter2");
    for (granted, missing) in
        [("REPLICATION SLAVE", "REPLICATION CLIENT"), ("REPLICATION CLIENT", "REPLICATION SLAVE")]
    {
        db.run(&format!("GRANT {granted} ON *.* TO {user}")).await;
        let error = refused(url.as_str()).await;
        assert_eq!((&*error.code, error.retryable), ("CDC:ErrMySQLInvalidConfig", false));
        for part in [
            &format!("lacks the privilege {missing}"),
            &format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '{user}'@'%'"),
        ] {
            assert!(error.message.contains(part), "{error} lacks {part}");
        }
        db.run(&format!("REVOKE {granted} ON *.* FROM {user}")).await;
    }
    db.run(&format!("CREATE ROLE r_{user}")).await;
    db.run(&format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO r_{user}")).await;
    db.run(&format!("GRANT r_{user} TO {user}")).await;
    db.run(&format!("SET DEFAULT ROLE r_{user} TO {user}")).await;
    MysqlFactory.check(&spec(url.as_str())).await.unwrap();
}

/// `caching_sha2_password` with TLS and without: then the driver encrypts the password by the server's key.
#[tokio::test(flavor = "multi_thread")]
async fn passwords_work_on_each_kind_of_connection_and_are_never_shown() {
    let mut db = Db::new().await;
    let user = db.user();
    db.run(&format!("CREATE USER {user} IDENTIFIED BY 'hunter2/%'")).await;
    db.run(&format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {user}")).await;
    for mode in ["disabled", "preferred", "required"] {
        // Forget the password, so that the whole exchange is needed.
        db.run("FLUSH PRIVILEGES").await;
        let mut url = with_account(&db.url, &user, "hunter2%2F%25");
        url.set_query(Some(&format!("ssl-mode={mode}")));
        MysqlFactory.check(&spec(url.as_str())).await.unwrap();
    }
    let mut url = with_account(&db.url, &user, "hunter2%2F%25");
    url.set_query(Some("ssl-mode=verify-identity"));
    let error = refused(url.as_str()).await;
    assert!(error.message.contains("certificate"), "{error}");

    for mode in ["disabled", "required"] {
        let mut url = with_account(&db.url, &user, "hunter2-wrong");
        url.set_query(Some(&format!("ssl-mode={mode}")));
        let error = refused(url.as_str()).await;
        assert_eq!(error.code, "CDC:ErrMySQLConnectionError");
        assert!(error.message.contains("Access denied") && error.message.contains(&user), "{error}");
    }
    db.run(&format!("ALTER USER {user} REQUIRE SSL")).await;
    let mut url = with_account(&db.url, &user, "hunter2%2F%25");
    url.set_query(Some("ssl-mode=disabled"));
    assert!(refused(url.as_str()).await.message.contains("Access denied"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_told_at_once() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = refused(&format!("mysql://u:hunter2@127.0.0.1:{port}/db")).await;
    assert_eq!((&*error.code, error.retryable), ("CDC:ErrMySQLConnectionError", true));
    assert!(error.message.contains("mysql://u:xxxxx@127.0.0.1"), "{error}");

    // Somebody who says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = refused(&format!("mysql://u:hunter2@127.0.0.1:{port}/db")).await;
    assert_eq!(error.code, "CDC:ErrMySQLConnectionError");
    assert!(error.message.contains("within 5 s"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_is_refused_as_a_source() {
    let error = refused(&Kind::Mariadb.url().await).await;
    assert_eq!((&*error.code, error.retryable), ("CDC:ErrAPIInvalidParam", false));
    assert!(error.message.contains("MariaDB") && error.message.contains("MySQL 8.4 and 9.x"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_of_another_source_is_refused() {
    let db = Db::new().await;
    let mut start = db.prepare().await.task_position;
    start.position = Some(metadata_api::model::SourcePosition(serde_json::json!({"base": 5})));
    let error = MysqlFactory.open(&super::launch(&mysql_url().await, 1, &start)).await.err().unwrap();
    assert_eq!((&*error.code, error.retryable), ("CDC:ErrChangefeedUnretryable", false));
}
