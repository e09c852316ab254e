//! `cdc cli`: TiCDC's operator's client, over the HTTP API of any server of the cluster.
//!
//! What it prints on standard output is TiCDC's, so that scripts that parse it go on working: JSON, and the lines that
//! create, update and remove print. Errors go to standard error, and the exit code is 1.

use std::io::{BufRead, Write};
use std::time::Duration;

use serde::Serialize;

use crate::api::model;
use crate::args::{
    CaptureCommand, CliArgs, CliCommand, CliFlags, Output, ProcessorCommand, RemoteCommand, UnsafeArgs,
};
use crate::exit::Failure;

mod changefeed;
mod client;
mod configure;
mod drain;
mod repair;
mod replica_config;
mod table;
#[cfg(test)]
mod tests;

pub use client::{CallError, Client};

/// Where a command reads answers to its questions and prints. Tests have their own.
pub struct Terminal<'a> {
    /// Standard output.
    pub out: &'a mut dyn Write,
    /// Standard input.
    pub input: &'a mut dyn BufRead,
}

impl Terminal<'_> {
    /// Prints one line.
    fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.out, "{text}")?;
        Ok(self.out.flush()?)
    }

    /// Prints JSON with two blanks of indentation, as TiCDC does.
    fn json<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|error| Failure::error(error.to_string()))?;
        self.line(&text)
    }

    /// Asks a question; anything but `y` is no.
    fn confirms(&mut self, question: &str) -> Result<bool, Failure> {
        self.line(question)?;
        let mut answer = String::new();
        self.input.read_line(&mut answer)?;
        Ok(answer.trim().eq_ignore_ascii_case("y"))
    }
}

/// What a command works with.
struct Context<'a> {
    client: Client,
    flags: CliFlags,
    terminal: Terminal<'a>,
}

impl Context<'_> {
    /// The namespace, as both generations of servers read it.
    fn namespace(&self) -> [(&'static str, &str); 2] {
        [("namespace", &self.flags.namespace), ("keyspace", &self.flags.namespace)]
    }

    /// The changefeed that the command is about.
    fn changefeed_id(&self) -> Result<String, Failure> {
        let id = &self.flags.changefeed_id;
        if id.is_empty() {
            return Err(Failure::usage(
                "required flag(s) \"changefeed-id\" not set; give --changefeed-id (-c)",
            ));
        }
        metadata_api::model::ChangefeedName::new(&self.flags.namespace, id)?;
        Ok(id.clone())
    }
}

/// Runs one command.
///
/// # Errors
/// What the server refused, or why it could not be asked.
pub async fn run(args: CliArgs, mut terminal: Terminal<'_>) -> Result<(), Failure> {
    let command = match args.command {
        CliCommand::Remote(command) => command,
        CliCommand::Unsafe(UnsafeArgs { store, command }) => {
            return repair::run(&mut terminal, &args.flags, &store, command).await;
        }
    };
    let client = Client::new(&args.flags)?;
    let mut context = Context { client, flags: args.flags, terminal };
    context.client.handshake().await?;
    match command {
        RemoteCommand::Changefeed(command) => changefeed::run(&mut context, command).await,
        RemoteCommand::Capture(CaptureCommand::List) => captures(&mut context).await,
        RemoteCommand::Capture(CaptureCommand::Drain { id, no_wait, timeout }) => {
            drain::run(&mut context, &id, no_wait, Duration::from_secs(timeout)).await
        }
        RemoteCommand::Processor(ProcessorCommand::List) => processors(&mut context).await,
        RemoteCommand::Processor(ProcessorCommand::Query { capture_id }) => {
            let id = context.changefeed_id()?;
            let path = ["processors", &id, &capture_id];
            let found: model::ProcessorDetail = context.client.get(&path, &context.namespace()).await?;
            context.terminal.json(&found)
        }
    }
}

/// A capture as TiCDC prints it, with kebab-case keys.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct PrintedCapture {
    id: String,
    is_owner: bool,
    address: String,
    cluster_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_draining: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_heartbeat: Option<String>,
}

async fn captures(context: &mut Context<'_>) -> Result<(), Failure> {
    let found: model::List<model::Capture> = context.client.get(&["captures"], &[]).await?;
    if context.flags.output == Output::Table {
        return context.terminal.line(&table::captures(&found.items));
    }
    let printed: Vec<_> = found
        .items
        .into_iter()
        .map(|capture| PrintedCapture {
            id: capture.id,
            is_owner: capture.is_owner,
            address: capture.address,
            cluster_id: capture.cluster_id,
            is_draining: capture.is_draining,
            last_heartbeat: capture.last_heartbeat,
        })
        .collect();
    context.terminal.json(&printed)
}

async fn processors(context: &mut Context<'_>) -> Result<(), Failure> {
    let found: model::List<model::ProcessorCommonInfo> = context.client.get(&["processors"], &[]).await?;
    if context.flags.output == Output::Table {
        return context.terminal.line(&table::processors(&found.items));
    }
    context.terminal.json(&found.items)
}
