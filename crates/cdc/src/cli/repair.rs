//! `cdc cli unsafe`: repairs that work on the metadata database itself, so that they need no server that runs.
//!
//! Each says what it is about to do and what that risks, and asks.

use std::sync::Arc;

use capture_runtime::clock::{Clock, SystemClock};
use capture_runtime::repair;
use indicatif::{ProgressBar, ProgressStyle};
use metadata_api::decision::lease::TimePolicy;
use metadata_api::model::{CaptureId, CaptureState};
use metadata_api::store::MetadataStore;

use super::Terminal;
use crate::args::{CliFlags, StoreArgs, UnsafeCommand};
use crate::config;
use crate::exit::Failure;
use crate::server::open_store;
use crate::store_url::StoreUrl;

/// What a capture that was declared dead may still do, in words.
const RISK: &str = "A process that still runs, and is only slow or cut off from the database, goes on writing for up to 12 s \
    while another writes the same changefeeds: a sink that is not fenced by the owner epoch may get rows twice, or an older \
    version of a row after a newer.";

/// Runs one command.
///
/// # Errors
/// [`Exit::Usage`](crate::exit::Exit::Usage) when no store is named; what the store says.
pub(super) async fn run(
    terminal: &mut Terminal<'_>,
    flags: &CliFlags,
    store: &StoreArgs,
    command: UnsafeCommand,
) -> Result<(), Failure> {
    let (url, store) = open(store).await?;
    match command {
        UnsafeCommand::Reset => reset(terminal, flags, &url, store).await,
        UnsafeCommand::ForceRemove { capture_id } => {
            force_remove(terminal, flags, &url, &*store, &capture_id).await
        }
    }
}

async fn open(args: &StoreArgs) -> Result<(StoreUrl, Arc<dyn MetadataStore>), Failure> {
    // Not the default: in a wrong directory that would be a new, empty database.
    if args.store.is_none() && config::environment("CDC_STORE").is_none() {
        return Err(Failure::usage(
            "--store (or CDC_STORE) must name the cluster's metadata database: there is no default here",
        ));
    }
    let mut warnings = Vec::new();
    let url = config::resolve_store(
        args,
        &StoreArgs::default(),
        &config::environment,
        config::DEFAULT_DATA_DIR.as_ref(),
        &mut warnings,
    )?;
    if let StoreUrl::Sqlite(path) = &url
        && !path.exists()
    {
        return Err(Failure::usage(format!(
            "--store {url}: there is no such file; name the cluster's metadata database"
        )));
    }
    let store = open_store(&url, &TimePolicy::default()).await?;
    Ok((url, store))
}

async fn reset(
    terminal: &mut Terminal<'_>,
    flags: &CliFlags,
    url: &StoreUrl,
    store: Arc<dyn MetadataStore>,
) -> Result<(), Failure> {
    let cluster = store.identity().await?.cluster_id;
    let changefeeds = store.changefeed_infos(None).await?.len();
    let captures = store.captures(None).await?.len();
    terminal.line(&format!(
        "This deletes every changefeed of cluster {cluster} in {url}: {changefeeds} changefeeds, and how far each has come. What they \
         wrote stays. The servers ({captures} captures) stop what they run and go on without work; from one that does not stop \
         within 10 s it is taken. {RISK}"
    ))?;
    if !flags.no_confirm && !terminal.confirms("Confirm that you want that, at your own risk [y/N]")? {
        return terminal.line("Nothing was changed.");
    }
    let total = u64::try_from(changefeeds).unwrap_or(u64::MAX);
    // On standard error, and only if that is a terminal.
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos} of {len} changefeeds deleted ({elapsed})")
    {
        bar.set_style(style);
    }
    let clock: Arc<dyn Clock> = SystemClock::shared();
    let show = |left: usize, of: usize| {
        bar.set_length(u64::try_from(of).unwrap_or(u64::MAX));
        bar.set_position(u64::try_from(of.saturating_sub(left)).unwrap_or(0));
    };
    let done = repair::reset(store, clock, show).await;
    bar.finish_and_clear();
    let report =
        done.map_err(|error| Failure::from(error).context("not everything is deleted; run it again"))?;
    for capture in &report.expelled {
        terminal.line(&format!("Capture {capture} did not stop: what it had was taken from it."))?;
    }
    terminal.line(&format!("Deleted {} changefeeds: the cluster is empty.", report.changefeeds))
}

async fn force_remove(
    terminal: &mut Terminal<'_>,
    flags: &CliFlags,
    url: &StoreUrl,
    store: &dyn MetadataStore,
    capture_id: &str,
) -> Result<(), Failure> {
    let id: CaptureId = capture_id.parse().map_err(|_| {
        Failure::usage(format!(
            "capture id `{capture_id}`: it must be a UUID as `cdc cli capture list` shows it"
        ))
    })?;
    let found = store.captures(Some(&[id])).await?;
    let Some(capture) = found.first().filter(|capture| capture.state != CaptureState::Offline) else {
        return Err(Failure::error(format!(
            "[CDC:ErrCaptureNotExist]capture not exists, {id}: there is none in {url}, or it was declared dead already"
        )));
    };
    let owned = store.capture_schedules(metadata_api::model::CaptureTerm { capture: id }).await?.rows.len();
    terminal.line(&format!(
        "Capture {id} at {} (heartbeat at {}, {owned} changefeeds) is declared dead, and the controller gives what it has to \
         others at once. {RISK} Without this command a capture that is silent is declared dead after about 17 s.",
        capture.advertise_addr,
        capture.heartbeat_at.format("%Y-%m-%d %H:%M:%S UTC"),
    ))?;
    if !flags.no_confirm
        && !terminal.confirms("Confirm that its process is dead, or that you take the risk [y/N]")?
    {
        return terminal.line("Nothing was changed.");
    }
    repair::force_remove_capture(store, id).await?;
    terminal.line(&format!("Capture {id} is declared dead."))
}
