//! A `cdc server` as a child process: started, found, signalled, and never left behind.
//!
//! The child listens on a port that the system chooses, and says which in its data directory's lock file. It is killed
//! when its [`ServerProcess`] is dropped, and by the kernel when the thread that started it ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use capture_runtime::clock::Clock;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};

use crate::api::model::{Capture, List};
use crate::args::CliFlags;
use crate::cli::Client;
use crate::exit::Failure;
use crate::lock::read_holder;

/// How long a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long one question may take.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// One server, running or not.
#[derive(Debug)]
pub struct ServerProcess {
    name: String,
    data_dir: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    addr: String,
}

impl ServerProcess {
    /// One that was not started yet. Its data directory `name` and its log `name.log` are in `dir`.
    pub fn new(dir: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            data_dir: dir.join(name),
            log: dir.join(format!("{name}.log")),
            child: None,
            addr: String::new(),
        }
    }

    /// `s1`, `s2`, ..
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where it listens; empty = it does not, or it is not known yet.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Whether it was started, and was not ended by one of the methods here.
    pub fn is_up(&self) -> bool {
        self.child.is_some()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// A client of it.
    ///
    /// # Errors
    /// When it has no address.
    pub fn client(&self) -> Result<Client, Failure> {
        client(&self.addr)
    }

    /// Starts `program server` on `store`, with `args` in addition; does not wait.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn spawn(&mut self, program: &Path, store: &str, args: &[&str]) -> Result<(), Failure> {
        let errors = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(program)
            .args(["server", "--addr", "127.0.0.1:0"])
            .args(["--die-with-parent", &std::process::id().to_string()])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(args)
            // Not in the process list: it may have a password.
            .env("CDC_STORE", store)
            .env_remove("CDC_STORE_PASSWORD")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()?;
        self.child = Some(child);
        self.addr.clear();
        Ok(())
    }

    /// Waits until it takes part in the cluster.
    ///
    /// # Errors
    /// When it ended, or does not answer for 20 s; with the end of its log.
    pub async fn await_ready(&mut self, clock: &Arc<dyn Clock>) -> Result<(), Failure> {
        let start = clock.now();
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                return Err(self.failed(format_args!("ended ({status})")));
            }
            let pid = self.pid();
            // The lock file of a predecessor names another process.
            let holder = read_holder(&self.data_dir).filter(|holder| Some(holder.pid) == pid);
            if let Some(holder) = holder.filter(|holder| !holder.addr.is_empty()) {
                self.addr = holder.addr;
                if ask::<List<Capture>>(&self.addr, &["captures"]).await.is_some() {
                    return Ok(());
                }
            }
            if clock.now().since(start) > START_LIMIT {
                return Err(self.failed(format_args!("is not ready after {START_LIMIT:?}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends it a signal; nothing happens when it does not run.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = self.pid().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        match pid {
            Some(pid) => Ok(kill_process(pid, signal).map_err(std::io::Error::from)?),
            None => Ok(()),
        }
    }

    /// SIGKILL: nothing is handed over.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill(&mut self) -> Result<(), Failure> {
        self.addr.clear();
        match self.child.take() {
            Some(mut child) => Ok(child.kill().await?),
            None => Ok(()),
        }
    }

    /// Waits until it has ended by itself; `None` when it does not run.
    ///
    /// # Errors
    /// When it has not within `limit`; with the end of its log.
    pub async fn ended(&mut self, limit: Duration) -> Result<Option<ExitStatus>, Failure> {
        self.addr.clear();
        let Some(mut child) = self.child.take() else { return Ok(None) };
        match tokio::time::timeout(limit, child.wait()).await {
            Ok(status) => Ok(Some(status?)),
            Err(_) => Err(self.failed(format_args!("did not stop within {limit:?}"))),
        }
    }

    /// How it has ended by itself; `None` while it runs, or when it was not started.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn try_ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let ended = child.try_wait()?;
        if ended.is_some() {
            self.child = None;
            self.addr.clear();
        }
        Ok(ended)
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> Vec<String> {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let last: Vec<&str> = text.lines().rev().take(lines).collect();
        last.into_iter().rev().map(str::to_owned).collect()
    }

    /// An error about it, with the end of its log.
    pub fn failed(&self, what: impl std::fmt::Display) -> Failure {
        Failure::error(format!("{} {what}: {}", self.name, self.log_tail(3).join(" | ")))
    }
}

/// A client of the server at `addr`.
///
/// # Errors
/// When `addr` is none.
pub fn client(addr: &str) -> Result<Client, Failure> {
    Client::new(&CliFlags { server: addr.to_owned(), ..CliFlags::default() })
}

/// Asks the server at `addr`; `None` when it does not answer, or not with a `T`.
pub async fn ask<T: DeserializeOwned>(addr: &str, path: &[&str]) -> Option<T> {
    let client = client(addr).ok()?;
    tokio::time::timeout(ASK_LIMIT, client.get(path, &[("state", "all")])).await.ok()?.ok()
}
