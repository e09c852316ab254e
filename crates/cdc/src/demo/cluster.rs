//! The demo's servers: real processes, and what is asked of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use capture_runtime::clock::{BootTime, Clock};
use reqwest::Method;
use rustix::process::Signal;
use tempfile::TempDir;
use url::Url;

use super::process::{ServerProcess, ask};
use super::scene::Scene;
use crate::api::model::{Capture, ChangeFeedInfo, ChangefeedCommonInfo, ChangefeedConfig, List};
use crate::args::DemoArgs;
use crate::exit::Failure;

/// The servers' names.
pub const NAMES: [&str; 3] = ["s1", "s2", "s3"];
/// How long a server may take to stop gracefully.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The demo's directory and servers.
pub struct Cluster {
    dir: Option<TempDir>,
    path: PathBuf,
    clock: Arc<dyn Clock>,
    servers: Vec<ServerProcess>,
}

impl Cluster {
    /// An empty directory, and no server yet.
    pub fn new(clock: Arc<dyn Clock>) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("cdc-demo-").tempdir()?;
        let path = dir.path().to_owned();
        let servers = NAMES.into_iter().map(|name| ServerProcess::new(&path, name)).collect();
        Ok(Self { dir: Some(dir), path, clock, servers })
    }

    /// Where the changefeeds write.
    pub fn sink_dir(&self) -> PathBuf {
        self.path.join("out")
    }

    /// Leaves the directory where it is.
    pub fn keep(&mut self) -> PathBuf {
        if let Some(dir) = self.dir.take() {
            return dir.keep();
        }
        self.path.clone()
    }

    /// Starts all servers, and waits until they take part.
    pub async fn start_all(&mut self) -> Result<(), Failure> {
        for name in NAMES {
            self.spawn(name)?;
        }
        for server in &mut self.servers {
            server.await_ready(&self.clock).await?;
        }
        Ok(())
    }

    /// Starts one server, and waits until it takes part.
    pub async fn start(&mut self, name: &str) -> Result<(), Failure> {
        self.spawn(name)?;
        find(&mut self.servers, name)?.await_ready(&self.clock).await
    }

    fn spawn(&mut self, name: &str) -> Result<(), Failure> {
        let program = std::env::current_exe()?;
        let store = format!("sqlite://{}", self.path.join("cdc.db").display());
        let label = format!("demo={name}");
        find(&mut self.servers, name)?.spawn(&program, &store, &["--label", &label])
    }

    /// Creates the changefeeds, each through another server.
    pub async fn create_changefeeds(&self, args: &DemoArgs) -> Result<(), Failure> {
        let out = Url::from_directory_path(self.sink_dir())
            .map_err(|()| Failure::error("the temporary directory has no absolute path"))?;
        for (n, server) in (1..=args.changefeeds).zip(self.servers.iter().cycle()) {
            let body = ChangefeedConfig {
                changefeed_id: feed_id(n),
                upstream_uri: upstream_uri(u64::from(args.rows_per_second), u64::from(n)),
                sink_uri: format!("{out}?protocol=canal-json"),
                ..ChangefeedConfig::default()
            };
            let created: Result<ChangeFeedInfo, _> =
                server.client()?.call(Method::POST, &["changefeeds"], &[], Some(&body)).await;
            created?;
        }
        Ok(())
    }

    /// Looks at captures and changefeeds, through the first server that answers.
    pub async fn look(&self, scene: &mut Scene, now: BootTime) {
        for server in self.servers.iter().filter(|server| !server.addr().is_empty()) {
            let Some(captures) = ask::<List<Capture>>(server.addr(), &["captures"]).await else { continue };
            let Some(feeds) = ask::<List<ChangefeedCommonInfo>>(server.addr(), &["changefeeds"]).await else {
                continue;
            };
            let seats = NAMES.into_iter().zip(&self.servers);
            let running = seats.map(|(name, server)| (name, server.addr().to_owned(), server.is_up()));
            scene.see(&captures.items, feeds.items, running.collect(), now);
            // Where a changefeed starts never changes, so it is asked once.
            for id in scene.without_start() {
                if let Some(info) = ask::<ChangeFeedInfo>(server.addr(), &["changefeeds", &id]).await {
                    scene.see_start(&id, &info);
                }
            }
            return;
        }
    }

    /// SIGKILL: nothing is handed over.
    pub async fn kill(&mut self, name: &str) -> Result<(), Failure> {
        find(&mut self.servers, name)?.kill().await
    }

    /// SIGTERM to all; how long the last took.
    pub async fn stop_all(&mut self) -> Result<Duration, Failure> {
        let start = self.clock.now();
        for server in &self.servers {
            server.signal(Signal::TERM)?;
        }
        for server in &mut self.servers {
            match server.ended(STOP_LIMIT).await? {
                Some(status) if !status.success() => {
                    return Err(server.failed(format_args!("ended with {status}")));
                }
                _ => {}
            }
        }
        Ok(self.clock.now().since(start))
    }

    /// Ends what is left.
    pub async fn kill_all(&mut self) {
        for server in &mut self.servers {
            // It may have ended by itself; then there is nothing to do.
            let _ = server.kill().await;
        }
    }
}

/// A changefeed's name.
pub fn feed_id(n: u16) -> String {
    format!("feed-{n:02}")
}

/// Where a changefeed's rows come from.
pub fn upstream_uri(rows_per_second: u64, seed: u64) -> String {
    format!("datagen://?tables=2&rows_per_second={rows_per_second}&seed={seed}")
}

fn find<'s>(servers: &'s mut [ServerProcess], name: &str) -> Result<&'s mut ServerProcess, Failure> {
    servers
        .iter_mut()
        .find(|server| server.name() == name)
        .ok_or_else(|| Failure::error(format!("there is no server {name}")))
}
