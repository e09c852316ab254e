//! `cdc server`: a capture and its HTTP API, in one process. The only place that picks a store.
//!
//! ```text
//! lock the data directory -> listen -> migrate and open the store -> run the capture, serve the API
//!   SIGTERM, SIGINT:  the capture hands everything over (the API goes on answering), then the process ends with 0
//!   a second signal:  the process ends at once
//! ```

use std::sync::Arc;
use std::time::Duration;

use capture_runtime::{Capture, CaptureConfig, RuntimeError};
use metadata_api::decision::lease::TimePolicy;
use metadata_api::store::MetadataStore;
use metadata_mysql::{MysqlOptions, MysqlStore};
use metadata_sqlite::{SqliteOptions, SqliteStore};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use replicator::Replicator;
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiParts, Waits, router};
use crate::config::ServerConfig;
use crate::exit::{Exit, Failure};
use crate::lineage;
use crate::lock::DataDir;
use crate::store_url::StoreUrl;
use crate::{Parts, signals, version};

/// How long answers in hand may hold up the end of the process.
const HTTP_GRACE: Duration = Duration::from_secs(2);
/// Upper bounds of histogram buckets, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// Runs a server until it is told to stop.
///
/// # Errors
/// [`Failure`] with the exit code that fits.
pub async fn run(config: ServerConfig, parts: Parts) -> Result<(), Failure> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let signals = signals::listen()?;
    let server = tokio::select! {
        server = Server::start(config, parts) => server?,
        () = signals.first.cancelled() => return Ok(()),
    };
    tokio::select! {
        ended = server.live(signals.first.clone()) => ended,
        () = signals.second.cancelled() => {
            Err(Failure::new(Exit::Forced, "a second signal: ending at once, without handing over"))
        }
    }
}

/// Everything that runs in the process.
struct Server {
    capture: Capture,
    api: axum::Router,
    listener: TcpListener,
    metrics: PrometheusHandle,
}

impl Server {
    async fn start(config: ServerConfig, parts: Parts) -> Result<Self, Failure> {
        let mut data_dir = DataDir::lock(&config.data_dir)?;
        let listener = listen(&config.addr).await?;
        let advertise_addr = advertised(&config, &listener)?;
        let store = open_store(&config.store, &config.time).await?;
        let cluster_id = store.identity().await?.cluster_id.to_string();
        let metrics = PrometheusBuilder::new()
            .set_buckets(&BUCKETS)
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| Failure::error(format!("metrics: {error}")))?;
        let clock = parts.clock;
        let tasks = Arc::new((parts.extend)(Replicator::new(clock.clone())));
        let capture = Capture::new(
            store.clone(),
            tasks.clone(),
            clock.clone(),
            CaptureConfig {
                advertise_addr: advertise_addr.clone(),
                version: version::RELEASE.to_owned(),
                labels: config.labels,
                machine_id: lineage::machine_id(),
                time: config.time,
                plan: config.plan,
                lineage: Some(Arc::new(data_dir.lineage())),
            },
        )?;
        let api = router(ApiParts {
            plan: config.plan,
            store,
            tasks,
            clock,
            capture: Arc::new(capture.clone()),
            cluster_id: cluster_id.clone(),
            default_upstream: config.upstream,
            config_defaults: config_defaults(),
            metrics: Some(metrics.clone()),
            waits: Waits::default(),
        });
        data_dir.announce(&advertise_addr)?;
        tracing::info!(
            addr = %advertise_addr, store = %config.store, data_dir = %data_dir.path().display(), cluster = cluster_id,
            version = version::RELEASE, "listening"
        );
        data_dir.hold_for_life();
        Ok(Self { capture, api, listener, metrics })
    }

    async fn live(self, stop: CancellationToken) -> Result<(), Failure> {
        let http_stop = CancellationToken::new();
        let mut http = {
            let (listener, api, stop) = (self.listener, self.api, http_stop.clone());
            AbortOnDrop(tokio::spawn(async move {
                axum::serve(listener, api).with_graceful_shutdown(stop.cancelled_owned()).await
            }))
        };
        let _upkeep = AbortOnDrop(tokio::spawn(upkeep(self.metrics)));
        let ended = tokio::select! {
            ended = self.capture.run(stop) => ended.map_err(capture_failure),
            served = &mut http.0 => Err(Failure::error(match served {
                Ok(Ok(())) => "the HTTP server ended".to_owned(),
                Ok(Err(error)) => format!("the HTTP server ended: {error}"),
                Err(error) => format!("the HTTP server ended: {error}"),
            })),
        };
        http_stop.cancel();
        if ended.is_ok() {
            let _ = tokio::time::timeout(HTTP_GRACE, &mut http.0).await;
            tracing::info!("stopped");
        }
        ended
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Lets the metrics forget what was read.
async fn upkeep(metrics: PrometheusHandle) {
    let mut every = tokio::time::interval(Duration::from_secs(5));
    loop {
        every.tick().await;
        metrics.run_upkeep();
    }
}

fn capture_failure(error: RuntimeError) -> Failure {
    match error {
        RuntimeError::Metadata(error) => Failure::from(error).context("the capture ended"),
        RuntimeError::TaskStuck { .. } => Failure::new(Exit::CaptureLost, error.to_string()),
        other => Failure::error(other.to_string()),
    }
}

async fn listen(addr: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(addr).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::new(
            Exit::InUse,
            format!("--addr {addr}: another program listens there; stop it, or give another port"),
        ),
        _ => Failure::error(format!("--addr {addr}: {error}")),
    })
}

/// What others are told. A port of 0 is replaced by the one that was found.
fn advertised(config: &ServerConfig, listener: &TcpListener) -> Result<String, Failure> {
    let shown = config.advertise_addr.as_ref().unwrap_or(&config.addr);
    match shown.rsplit_once(':') {
        Some((host, "0")) => Ok(format!("{host}:{}", listener.local_addr()?.port())),
        _ => Ok(shown.clone()),
    }
}

/// `replica_config` of changefeeds that were given none.
pub fn config_defaults() -> Map<String, Value> {
    match replicator::default_replica_config() {
        Value::Object(defaults) => defaults,
        _ => Map::new(),
    }
}

/// Brings the schema up to date.
///
/// # Errors
/// [`Exit::Schema`] when it is newer than this binary; [`Exit::StoreUnreachable`]; [`Exit::Usage`].
pub async fn migrate_store(url: &StoreUrl, time: &TimePolicy) -> Result<(), Failure> {
    match url {
        StoreUrl::Sqlite(_) => {
            let options = sqlite_options(url, time)?;
            SqliteStore::migrate(&options).await?;
        }
        StoreUrl::Mysql(_) => {
            metadata_mysql::migrate(mysql_options(url, time)?).await?;
        }
    }
    Ok(())
}

/// Brings the schema up to date, and opens the store.
///
/// # Errors
/// As [`migrate_store`].
pub async fn open_store(url: &StoreUrl, time: &TimePolicy) -> Result<Arc<dyn MetadataStore>, Failure> {
    let opened: Result<Arc<dyn MetadataStore>, Failure> = async {
        migrate_store(url, time).await?;
        Ok(match url {
            StoreUrl::Sqlite(_) => {
                Arc::new(SqliteStore::open(sqlite_options(url, time)?).await?) as Arc<dyn MetadataStore>
            }
            StoreUrl::Mysql(_) => Arc::new(MysqlStore::open(mysql_options(url, time)?).await?),
        })
    }
    .await;
    opened.map_err(|failure| failure.context(format!("--store {url}")))
}

fn sqlite_options(url: &StoreUrl, time: &TimePolicy) -> Result<SqliteOptions, Failure> {
    let StoreUrl::Sqlite(path) = url else { return Err(Failure::usage("not an sqlite URL")) };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .map_err(|error| Failure::usage(format!("{}: {error}", parent.display())))?;
    }
    let mut options = SqliteOptions::new(path);
    options.statement_timeout = time.statement_timeout;
    options.heartbeat_timeout = time.heartbeat_timeout;
    Ok(options)
}

fn mysql_options(url: &StoreUrl, time: &TimePolicy) -> Result<MysqlOptions, Failure> {
    let StoreUrl::Mysql(uri) = url else { return Err(Failure::usage("not a mysql URL")) };
    MysqlOptions::from_url(uri.expose())?
        .lock_wait(time.statement_timeout)
        .map_err(|error| Failure::usage(format!("[time] statement-timeout: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `cdc server` and `cdc migrate` end with.
    async fn refusals(url: &str) -> [Failure; 2] {
        let url = StoreUrl::parse(url, None).unwrap();
        let time = TimePolicy::default();
        let server = open_store(&url, &time).await.err().unwrap();
        [server, migrate_store(&url, &time).await.unwrap_err()]
    }

    /// A database that cannot be used is refused by both, with the reason and the exit code that says so.
    #[tokio::test]
    async fn a_database_that_cannot_be_used_is_refused_with_the_reason() {
        let kind = test_servers::Kind::Mysql;
        let server = kind.start().await;
        let root = test_servers::fresh_database(server.url()).await;
        let database = root.rsplit('/').next().unwrap();
        let user = root.replace("root@", "cdc:hunter2@");
        test_servers::execute(
            &root,
            &format!(
                "CREATE USER cdc@'%' IDENTIFIED BY 'hunter2'; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.* TO cdc@'%'"
            ),
        )
        .await;
        let assert_refused = async |url: &str, part: &str| {
            for failure in refusals(url).await {
                assert_eq!(failure.exit, Exit::Schema, "{failure}");
                assert!(failure.message.contains(part), "`{part}` is not in: {failure}");
                assert!(!failure.message.contains("hunter2"), "{failure}");
            }
        };
        assert_refused(&user.replace("cdc:hunter2", "cdc:hunter22"), "refuses the user").await;
        assert_refused(&user, "`cdc migrate`").await;
        assert_refused(&user, &format!("CREATE, ALTER, INDEX ON `{database}`.* TO 'cdc'@'%'")).await;
        assert_refused(&format!("{user}?ssl-mode=VERIFY_CA"), "certificate is refused").await;
        let time = TimePolicy::default();
        migrate_store(&StoreUrl::parse(&root, None).unwrap(), &time).await.unwrap();
        open_store(&StoreUrl::parse(&user, None).unwrap(), &time).await.expect("no DDL is to be done");
        test_servers::execute(&root, "SET GLOBAL super_read_only = ON").await;
        assert_refused(&user, "read-only").await;
        for failure in refusals(&format!("{user}?max-connections=1000")).await {
            assert_eq!(failure.exit, Exit::Usage, "{failure}");
            assert!(failure.message.contains("1 to 64"), "{failure}");
        }
    }
}
