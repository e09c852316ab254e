//! The command line.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Parser, Subcommand, ValueEnum};

use crate::database::Database;

/// Measures the metadata store, each figure beside the raw baseline of the same run.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What to measure, with commas between
    #[arg(long, env = "DATABASE", value_enum, value_delimiter = ',', default_value = "mysql")]
    pub database: Vec<Database>,
    /// Smaller and shorter: less than two minutes a database
    #[arg(long, env = "QUICK", value_parser = FalseyValueParser::new())]
    pub quick: bool,
    /// Only these groups of figures, with commas between (default: all)
    #[arg(long, env = "ONLY", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Where the figures go
    #[arg(long, default_value = "bench-results.json")]
    pub json: PathBuf,
    /// Where `SQLite`'s files lie while they are measured: on a disk, not in memory
    #[arg(long, default_value = "target")]
    pub sqlite_dir: PathBuf,
    /// What this program does when it calls itself
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What this program does when it calls itself.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Takes one measurement in a process of its own, whose memory nothing else has touched
    #[command(hide = true)]
    Probe {
        /// What
        what: Probe,
        /// On which database
        database: Database,
        /// Where: a URL, or a file
        place: String,
    },
}

/// A measurement that wants a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// A controller's start: campaign, captures, snapshot, plan
    Store,
    /// The same rows, by bare `SELECT`s
    Bare,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["bench", "--database", "sqlite,mysql", "--quick"]).unwrap();
        assert_eq!(args.database, [Database::Sqlite, Database::Mysql]);
        assert!(args.quick && args.command.is_none());
    }

    #[test]
    fn an_unknown_database_is_refused_with_those_that_there_are() {
        let error = Args::try_parse_from(["bench", "--database", "oracle"]).unwrap_err().to_string();
        assert!(error.contains("oracle") && error.contains("mariadb"), "{error}");
    }
}
