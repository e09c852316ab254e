//! Opens connections, and sets their sessions up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use tokio::time::timeout;

use crate::dialect::{PROBE, Purpose, Server, is_on};
use crate::options::MysqlOptions;
use crate::retry::{TxError, TxResult};

/// Opens connections and sets their sessions up.
#[derive(Clone)]
pub(crate) struct Connector {
    options: Arc<MysqlOptions>,
    server: Arc<OnceLock<Server>>,
}

/// A connection with its session set up. Dropping it closes the socket at once, so that the server rolls back whatever
/// was open.
pub(crate) struct Session {
    pub(crate) raw: MySqlConnection,
    /// `@@server_uuid`, or empty.
    pub(crate) server_id: String,
}

impl Connector {
    pub(crate) fn new(options: MysqlOptions) -> Self {
        Self { options: Arc::new(options), server: Arc::new(OnceLock::new()) }
    }

    pub(crate) fn options(&self) -> &MysqlOptions {
        &self.options
    }

    /// A new session. The first one finds out what server this is.
    pub(crate) async fn connect(&self, purpose: Purpose) -> TxResult<Session> {
        let limit = self.options.connect_timeout;
        timeout(limit, self.establish(purpose)).await.unwrap_or(Err(TxError::TimedOut("connecting", limit)))
    }

    /// What server this is, once somebody connected.
    pub(crate) fn known_server(&self) -> Option<&Server> {
        self.server.get()
    }

    async fn establish(&self, purpose: Purpose) -> TxResult<Session> {
        let mut raw = self.options.driver.connect().await?;
        let dialect = if let Some(server) = self.server.get() {
            server.dialect
        } else {
            let server = probe(&mut raw).await?;
            tracing::info!(%server, store = %self.options, "connected");
            self.server.get_or_init(|| server).dialect
        };
        let setup = dialect.session_setup(purpose, self.options.lock_wait, self.options.read_timeout);
        let rows = sqlx::raw_sql(AssertSqlSafe(setup)).fetch_all(&mut raw).await?;
        let row = rows.last().ok_or(sqlx::Error::RowNotFound)?;
        if row.try_get_unchecked::<String, _>(1)?.split(',').any(is_on) {
            return Err(TxError::ReadOnly);
        }
        Ok(Session { server_id: row.try_get_unchecked(0)?, raw })
    }
}

async fn probe(raw: &mut MySqlConnection) -> TxResult<Server> {
    let rows = raw.fetch_all(PROBE).await?;
    let mut variables = BTreeMap::new();
    for row in &rows {
        variables.insert(row.try_get_unchecked::<String, _>(0)?, row.try_get_unchecked::<String, _>(1)?);
    }
    Ok(Server::from_variables(&variables)?)
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("options", &self.options)
            .field("server", &self.server.get())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use test_servers::Kind;

    use super::*;
    use crate::dialect::Dialect;

    macro_rules! on_every_server {
        ($($case:ident)*) => {
            on_every_server! { @on mysql Mysql: $($case)* }
            on_every_server! { @on mariadb Mariadb: $($case)* }
            on_every_server! { @on tidb Tidb: $($case)* }
        };
        (@on $module:ident $kind:ident: $($case:ident)*) => {
            mod $module {
                $(#[tokio::test]
                async fn $case() {
                    super::$case(test_servers::Kind::$kind).await;
                })*
            }
        };
    }

    on_every_server! {
        a_session_is_what_it_should_be
        a_silent_clients_locks_are_freed
    }

    /// What the server makes of the session set-up, for each purpose.
    async fn a_session_is_what_it_should_be(kind: Kind) {
        let database = test_servers::fresh_database(&kind.url().await).await;
        let connector = Connector::new(MysqlOptions::from_url(&database).unwrap());
        for (purpose, idle) in [(Purpose::Pool, 5), (Purpose::Channel, 60)] {
            let mut session = connector.connect(purpose).await.unwrap();
            let transaction = match connector.known_server().unwrap().dialect {
                Dialect::Mysql => "@@session.wait_timeout, @@session.transaction_isolation",
                Dialect::Mariadb => "@@session.idle_transaction_timeout, @@session.tx_isolation",
                Dialect::Tidb => "@@session.tidb_idle_transaction_timeout, @@session.transaction_isolation",
            };
            let sql = format!(
                "SELECT @@session.wait_timeout, @@session.innodb_lock_wait_timeout, @@session.time_zone, \
                 @@session.sql_mode, @@session.collation_connection, {transaction}"
            );
            let row = session.raw.fetch_one(AssertSqlSafe(sql)).await.unwrap();
            let number = |n: usize| row.try_get_unchecked::<i64, _>(n).unwrap();
            let text = |n: usize| row.try_get_unchecked::<String, _>(n).unwrap();
            assert_eq!((number(0), number(1)), (idle, 2));
            assert_eq!(text(2), "+00:00");
            assert!(text(3).contains("STRICT_ALL_TABLES"), "{}", text(3));
            assert_eq!(text(4), "utf8mb4_bin");
            assert!(purpose == Purpose::Channel || number(5) == 5, "an idle transaction ends after 5 s");
            assert_eq!(text(6), "READ-COMMITTED");
        }
        test_servers::drop_database(&database).await;
    }

    /// A capture that is cut off in the middle of a transaction closes nothing: the server ends what it holds, long before
    /// its own 28,800 s.
    async fn a_silent_clients_locks_are_freed(kind: Kind) {
        let database = test_servers::fresh_database(&kind.url().await).await;
        test_servers::execute(&database, "CREATE TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (1)")
            .await;
        let connector = Connector::new(MysqlOptions::from_url(&database).unwrap());
        let mut silent = connector.connect(Purpose::Pool).await.unwrap();
        let begin = connector.known_server().unwrap().dialect.begin();
        silent.raw.execute(begin).await.unwrap();
        silent.raw.execute("SELECT id FROM t FOR UPDATE").await.unwrap();
        let started = tokio::time::Instant::now();
        loop {
            let mut other = connector.connect(Purpose::Pool).await.unwrap();
            other.raw.execute(begin).await.unwrap();
            match other.raw.execute("SELECT id FROM t FOR UPDATE").await {
                Ok(_) => break,
                Err(error) => println!("after {:?}: {error}", started.elapsed()),
            }
            assert!(started.elapsed() < std::time::Duration::from_secs(20), "it is still locked");
        }
        let freed = started.elapsed();
        assert!(freed > std::time::Duration::from_secs(2), "it was locked at first: {freed:?}");
        drop(silent);
        test_servers::drop_database(&database).await;
    }
}
