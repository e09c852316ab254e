//! Faults between client and server, at every point of every transaction.
//!
//! Each call of each store trait is made once without a fault, through a proxy that writes its round trips down
//! ([`plan`]). From them come the cases ([`cases`]): this call, at this round trip, at this point of it, this fault. Each case is
//! run on the tables as they were before the call ([`sweep`]), and must leave them as they were, or as the call without a
//! fault left them, and say which, or say that it does not know; repeated by its caller it must end as without a fault;
//! and nothing of it may stay open on the server.
//!
//! On MySQL what is alike by construction takes turns; of these cases the other servers run a part ([`sweep::PARTS`]),
//! in which each call has its share. `CDC_FAULTS=all` runs every fault at every round trip on every server,
//! `CDC_FAULTS=turns` the cases of MySQL, `CDC_FAULTS=3/5` the third of five parts of them.
//! `CDC_FAULTS_ONLY=text` runs the cases whose name contains the text.

mod cases;
mod names;
mod plan;
mod server;
mod state;
mod sweep;

pub use server::{a_crash_loses_nothing_that_was_acknowledged, a_demoted_server_is_told_as_such};
pub use sweep::{a_slow_network_is_only_slow, every_transaction_at_every_point};

use std::sync::Arc;
use std::time::Duration;

use metadata_api::store::MetadataStore;
use metadata_api::store::faults::Faults;
use metadata_mysql::{MysqlOptions, MysqlStore};
use sqlx::mysql::MySqlConnection;
use sqlx::query_scalar;
use test_servers::Kind;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take that needs no more than the server's own timeouts. The machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Short lock waits, and with them short calls (4 s); more tries than usual, as the faults need some.
fn options(url: &str) -> MysqlOptions {
    let options = MysqlOptions::from_url(url).expect("a URL");
    options.lock_wait(Duration::from_secs(1)).expect("within bounds").give_up_after(Duration::from_secs(25))
}

/// Opens a store where nothing is wrong. A busy server does not answer a new connection at once, which is not what is tested.
async fn open(options: MysqlOptions, faults: Option<Arc<dyn Faults>>) -> Arc<dyn MetadataStore> {
    let started = Instant::now();
    loop {
        let opened = match &faults {
            Some(faults) => MysqlStore::open_with_faults(options.clone(), Arc::clone(faults)).await,
            None => MysqlStore::open(options.clone()).await,
        };
        match opened {
            Ok(store) => return Arc::new(store),
            Err(error) if error.is_transient() && started.elapsed() < LIMIT => {}
            Err(error) => panic!("it opens: {error:?}"),
        }
    }
}

/// How many transactions others have open on the database, and how many sessions. Fails while a statement runs whose text
/// MySQL cannot show (error 3854: the column is not utf8mb4).
async fn open_on_server(kind: Kind, db: &mut MySqlConnection) -> sqlx::Result<(i64, i64)> {
    let sessions =
        "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()";
    let sessions = query_scalar(sessions).fetch_one(&mut *db).await?;
    if sessions == 0 {
        // A transaction is a session's.
        return Ok((0, 0));
    }
    let transactions = match kind {
        // `innodb_trx` is a copy that is not renewed while it is asked for all the time, as the workers do together.
        Kind::Mysql => {
            "SELECT COUNT(*) FROM performance_schema.events_transactions_current t \
             JOIN performance_schema.threads p ON p.thread_id = t.thread_id \
             WHERE t.state = 'ACTIVE' AND p.processlist_db = DATABASE() AND p.processlist_id <> CONNECTION_ID()"
        }
        // There the performance schema is off unless it is asked for.
        Kind::Mariadb => {
            "SELECT COUNT(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p \
             ON p.id = t.trx_mysql_thread_id WHERE p.db = DATABASE() AND p.id <> CONNECTION_ID()"
        }
        Kind::Tidb => {
            "SELECT COUNT(*) FROM information_schema.cluster_tidb_trx \
             WHERE db = DATABASE() AND session_id <> CONNECTION_ID()"
        }
    };
    Ok((query_scalar(transactions).fetch_one(db).await?, sessions))
}

/// Waits until the database has no open transaction, and no more than `sessions` sessions of others.
async fn wait_for_quiet(kind: Kind, db: &mut MySqlConnection, sessions: i64) -> Result<(), String> {
    let mut last = Ok((0, 0));
    let quiet = async {
        loop {
            last = open_on_server(kind, db).await;
            if matches!(last, Ok((0, open)) if open <= sessions) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LIMIT, quiet).await.map_err(|_| format!("transactions and sessions stay open: {last:?}"))
}
