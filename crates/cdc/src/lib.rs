//! The `cdc` binary, as a library so that all of it can be tested in-process.
//!
//! * [`args`] - the command line.
//! * [`config`] - a server's settings: flags, environment, file, defaults.
//! * [`server`] - a capture and its API in one process; the only place that picks a store.
//! * [`api`] - the HTTP API.
//! * [`cli`] - the operator's client.
//! * [`demo`] - a real cluster on this host that loses a member.
//! * [`local`] - what the API needs of the capture that runs in this process.
//! * [`lineage`] - the proof that the former server of a data directory is dead.
//! * [`exit`] - exit codes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use capture_runtime::clock::{Clock, SystemClock};
use clap::Parser;
use metadata_api::decision::lease::TimePolicy;
use replicator::Replicator;

pub mod api;
pub mod args;
pub mod cli;
pub mod config;
pub mod demo;
pub mod exit;
pub mod lineage;
pub mod local;
pub mod lock;
pub mod logging;
pub mod server;
mod signals;
pub mod store_url;
#[cfg(test)]
mod testing;
pub mod version;

use args::{CdcArgs, Command, MigrateArgs, StoreArgs};
use config::ServerConfig;
use exit::{Exit, Failure};

/// What a program that is built on this one may replace: it may have sources and sinks of its own, and another clock.
pub struct Parts {
    /// The clocks and dice of everything that a server runs.
    pub clock: Arc<dyn Clock>,
    /// Adds to the sources and sinks, or replaces some: [`Replicator::with_source`], [`Replicator::with_sink`].
    pub extend: fn(Replicator) -> Replicator,
}

impl Default for Parts {
    fn default() -> Self {
        Self { clock: SystemClock::shared(), extend: std::convert::identity }
    }
}

/// The program: reads the command line, runs what it says, and says how it ended.
pub fn main() -> ExitCode {
    main_with(Parts::default())
}

/// The same of other parts.
pub fn main_with(parts: Parts) -> ExitCode {
    // clap itself ends the process with 2 on a wrong command line, and with 0 after --help.
    let command = CdcArgs::parse().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return ended(Err(Failure::error(format!("the runtime could not be started: {error}"))));
        }
    };
    let result = runtime.block_on(run(command, parts));
    // What still blocks a thread (a flush, perhaps) does not hold up the end: it ends with the process.
    runtime.shutdown_background();
    ended(result)
}

fn ended(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            if !failure.message.is_empty() {
                // Nobody is left to be told when standard error is gone.
                let _ = writeln!(std::io::stderr(), "Error: {failure}");
            }
            failure.exit.into()
        }
    }
}

async fn run(command: Command, parts: Parts) -> Result<(), Failure> {
    match command {
        Command::Server(args) => {
            if let Some(parent) = args.die_with_parent {
                signals::die_with(parent)?;
            }
            let config = ServerConfig::resolve(&args, config::environment)?;
            logging::start(&config.log_level, config.log_file.as_deref())?;
            server::run(config, parts).await
        }
        Command::Cli(args) => {
            let mut input = std::io::stdin().lock();
            let terminal = cli::Terminal { out: &mut std::io::stdout(), input: &mut input };
            cli::run(*args, terminal).await
        }
        Command::Migrate(args) => migrate(&args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Version => Ok(std::io::stdout().write_all(version::text().as_bytes())?),
    }
}

async fn migrate(args: &MigrateArgs) -> Result<(), Failure> {
    let mut warnings = Vec::new();
    let data_dir = args.data_dir.clone().unwrap_or_else(|| PathBuf::from(config::DEFAULT_DATA_DIR));
    let store = config::resolve_store(
        &args.store,
        &StoreArgs::default(),
        &config::environment,
        &data_dir,
        &mut warnings,
    )?;
    for warning in warnings {
        writeln!(std::io::stderr(), "Warning: {warning}")?;
    }
    server::migrate_store(&store, &TimePolicy::default())
        .await
        .map_err(|failure| failure.context(format!("--store {store}")))?;
    writeln!(std::io::stdout(), "The schema of {store} is up to date.")?;
    Ok(())
}
