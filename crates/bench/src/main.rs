//! `make bench`: every figure of the metadata store and the capture runtime, beside the raw baseline of the same run.
//!
//! | room | what is in it |
//! |---|---|
//! | `groups/` | the groups of figures, one a file: what is done, and what it is compared with |
//! | `measure` | how: the store and the baseline take turns, on as many connections; medians |
//! | `bed`, `raw`, `seed` | the databases, bare connections by the store's own driver, bulk rows |
//! | `figure`, `expected`, `report` | the numbers, what is wanted of them, the table and the file |
//!
//! Servers are started in containers with their data on disk and durable settings (`tests/servers`), one at a time; the
//! client connects to the container's own address, as the baselines do. A server that the environment names is taken as
//! it is. The process ends with 1 when something could not be measured; a slow figure is a figure.

mod args;
mod bed;
mod database;
mod expected;
mod figure;
mod groups;
mod measure;
mod process;
mod raw;
mod report;
mod scale;
mod seed;

use std::io::{IsTerminal as _, stderr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use args::{Args, Command};
use bed::{Bed, Target};
use database::Database;
use figure::Figure;
use groups::{GROUPS, Group, Run};
use scale::Scale;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether everything could be measured.
async fn run(args: &Args) -> Result<bool> {
    if let Some(Command::Probe { what, database, place }) = &args.command {
        let probed = groups::probe(*what, &Bed::at(*database, place)).await?;
        println!("{}", serde_json::to_string(&probed)?);
        return Ok(true);
    }
    let groups = chosen(&args.only)?;
    process::raise_file_limit();
    let mut figures = Vec::new();
    let mut whole = true;
    for database in &args.database {
        let (measured, complete) = measure(args, *database, &groups).await?;
        figures.extend(measured);
        whole &= complete;
    }
    println!("{}", report::table(&figures));
    report::write(&args.json, &figures)?;
    println!("{} figures are in {}", figures.len(), args.json.display());
    Ok(whole)
}

/// The groups that `--only` names; all without it.
fn chosen(only: &[String]) -> Result<Vec<&'static Group>> {
    let only: Vec<&str> = only.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = only.iter().find(|name| GROUPS.iter().all(|group| group.name != **name)) {
        let known = GROUPS.iter().map(|group| group.name).collect::<Vec<_>>().join(", ");
        bail!("--only: there is no group `{unknown}`; there are {known}");
    }
    Ok(GROUPS.iter().filter(|group| only.is_empty() || only.contains(&group.name)).collect())
}

async fn measure(args: &Args, database: Database, groups: &[&Group]) -> Result<(Vec<Figure>, bool)> {
    let progress = Progress::new(groups.len());
    progress.say(database, "starting the server");
    let target = Target::start(database, &args.sqlite_dir).await.with_context(|| database.to_string())?;
    progress.print(&format!("{database} {} on {}", target.version, bed::machine()));
    let scale = if args.quick { Scale::quick(database) } else { Scale::full(database) };
    let say = |what: String| progress.say(database, &what);
    let mut run = Run { target: &target, scale: &scale, figures: Vec::new(), say: &say };
    let mut complete = true;
    for group in groups {
        let started = Instant::now();
        if let Err(error) = (group.run)(&mut run).await {
            progress.print(&format!("{database}: {} could not be measured: {error:#}", group.name));
            complete = false;
        }
        progress.done(database, group.name, started.elapsed());
    }
    progress.finish();
    Ok((run.figures, complete))
}

/// What is going on, for people: a bar on a terminal, else a line a group.
struct Progress {
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    fn new(groups: usize) -> Self {
        let bar = ProgressBar::new(groups as u64);
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {elapsed_precise} [{bar:24}] {pos}/{len} {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, terminal: stderr().is_terminal() }
    }

    fn say(&self, database: Database, what: &str) {
        self.bar.set_message(format!("{database}: {what}"));
    }

    fn print(&self, line: &str) {
        if self.terminal {
            self.bar.println(line);
        } else {
            eprintln!("{line}");
        }
    }

    fn done(&self, database: Database, group: &str, took: Duration) {
        self.bar.inc(1);
        if !self.terminal {
            eprintln!("{database}: {group} took {:.0} s", took.as_secs_f64());
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_there_is_can_be_chosen() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(ToString::to_string).collect();
            chosen(&only).map(|groups| groups.len())
        };
        assert_eq!(names(&[]).unwrap(), GROUPS.len());
        assert_eq!(names(&[""]).unwrap(), GROUPS.len());
        assert_eq!(names(&["poll", "lists"]).unwrap(), 2);
        let error = names(&["polls"]).unwrap_err().to_string();
        assert!(error.contains("`polls`") && error.contains("owner_change"), "{error}");
    }
}
