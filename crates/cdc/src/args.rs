//! The command line.
//!
//! Flags of TiCDC's that mean something here mean the same; those that only mean something with a TiDB cluster's PD are
//! accepted and have no effect, so that `TiUP` and existing scripts can start this server.

#![expect(clippy::doc_markdown, reason = "these comments are the help text that people read")]
#![allow(rustdoc::broken_intra_doc_links, reason = "the same: brackets there are what may be left out")]

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use metadata_api::model::Placement;

use crate::{exit, version};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "cdc", version = version::RELEASE, about = "Change data capture on a SQL metadata store", after_help = exit::HELP)]
pub struct CdcArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `cdc` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a capture, and serve the HTTP API
    #[command(after_help = exit::HELP)]
    Server(Box<ServerArgs>),
    /// Create, look at and manage changefeeds, through the HTTP API of any server
    Cli(Box<CliArgs>),
    /// Bring the metadata database's schema up to date, and exit (a server does it at its start as well)
    #[command(after_help = exit::HELP)]
    Migrate(MigrateArgs),
    /// Show three servers share changefeeds, lose one and go on; needs nothing else
    Demo(DemoArgs),
    /// Print the version
    Version,
}

/// Where the metadata lies.
#[derive(Debug, Default, Args)]
pub struct StoreArgs {
    /// sqlite://PATH for one host, or mysql://user@host:port/database (MySQL, MariaDB, TiDB) [env: CDC_STORE] [default:
    /// the file cdc.db in the data directory]. A password in this argument works, but everybody on the host sees it in
    /// the process list: better in CDC_STORE, CDC_STORE_PASSWORD or --store-password-file
    #[arg(long, global = true, value_name = "URL")]
    pub store: Option<String>,
    /// A file whose first line is the password of the mysql URL [env: CDC_STORE_PASSWORD has the password itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub store_password_file: Option<PathBuf>,
}

/// `cdc server`.
#[derive(Debug, Default, Args)]
pub struct ServerArgs {
    /// Where the metadata lies.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Where to listen. There is no authentication: bind to the loopback address or to a network you trust [default:
    /// 127.0.0.1:8300]
    #[arg(long, value_name = "HOST:PORT")]
    pub addr: Option<String>,
    /// The address that others are told [default: --addr]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_addr: Option<String>,
    /// This server's own directory; two servers never share one [default: cdc-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// A TOML file with the same settings; flags and environment win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// error, warn, info, debug or trace, or directives such as info,sqlx=warn [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Write the log to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// A mark of this capture; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// The upstream of changefeeds that name none, as TiCDC's cdc cli creates them. A password is better in the
    /// environment [env: CDC_UPSTREAM]
    #[arg(long, value_name = "URI")]
    pub upstream_uri: Option<String>,
    /// Accepted for TiUP, without effect: there is no PD here
    #[arg(long, value_name = "URLS", help_heading = "Accepted from TiCDC, without effect")]
    pub pd: Option<String>,
    /// Accepted for TiUP, without effect: TLS is not served
    #[arg(long, value_name = "FILE", help_heading = "Accepted from TiCDC, without effect")]
    pub ca: Option<String>,
    /// Accepted for TiUP, without effect: TLS is not served
    #[arg(long, value_name = "FILE", help_heading = "Accepted from TiCDC, without effect")]
    pub cert: Option<String>,
    /// Accepted for TiUP, without effect: TLS is not served
    #[arg(long, value_name = "FILE", help_heading = "Accepted from TiCDC, without effect")]
    pub key: Option<String>,
    /// Accepted for TiUP, without effect: there is no TLS client to check
    #[arg(long, value_name = "NAMES", help_heading = "Accepted from TiCDC, without effect")]
    pub cert_allowed_cn: Option<String>,
    /// Accepted for TiUP, without effect: there is no GC safepoint here
    #[arg(long, value_name = "SECONDS", help_heading = "Accepted from TiCDC, without effect")]
    pub gc_ttl: Option<String>,
    /// Accepted for TiUP, without effect: set the TZ environment variable instead
    #[arg(long, value_name = "ZONE", help_heading = "Accepted from TiCDC, without effect")]
    pub tz: Option<String>,
    /// Accepted for TiUP, without effect: a metadata database is one cluster
    #[arg(long, value_name = "ID", help_heading = "Accepted from TiCDC, without effect")]
    pub cluster_id: Option<String>,
    /// Accepted for TiUP, without effect
    #[arg(long, value_name = "DIR", hide = true)]
    pub sort_dir: Option<String>,
    /// End at once when the process with this id, which started this one, ends: for the demo and for tests
    #[arg(long, value_name = "PID", hide = true)]
    pub die_with_parent: Option<i32>,
}

/// `cdc migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Where the metadata lies.
    #[command(flatten)]
    pub store: StoreArgs,
    /// The directory of the default store
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// `cdc demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// How long it runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(40..=3600))]
    pub seconds: u64,
    /// How many changefeeds
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(3..=200))]
    pub changefeeds: u16,
    /// How many rows a second each of them gets
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rows_per_second: u32,
    /// Keep the directory with the files, the metadata and the logs
    #[arg(long)]
    pub keep: bool,
    /// Print lines even when standard output is a terminal
    #[arg(long)]
    pub plain: bool,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// As TiCDC prints them.
    #[default]
    Json,
    /// For people.
    Table,
}

/// `cdc cli`. Its flags may stand before or after the commands.
#[derive(Debug, Args)]
pub struct CliArgs {
    /// Flags of all commands.
    #[command(flatten)]
    pub flags: CliFlags,
    /// What to do.
    #[command(subcommand)]
    pub command: CliCommand,
}

/// Flags of all `cdc cli` commands.
#[derive(Clone, Debug, Default, Args)]
pub struct CliFlags {
    /// Any server of the cluster
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:8300")]
    pub server: String,
    /// How lists and queries are printed
    #[arg(long, global = true, value_enum, default_value_t)]
    pub output: Output,
    /// The changefeed
    #[arg(
        short = 'c',
        long,
        global = true,
        value_name = "ID",
        default_value = "",
        hide_default_value = true
    )]
    pub changefeed_id: String,
    /// The changefeed's namespace
    #[arg(
        short = 'n',
        long,
        global = true,
        value_name = "NAME",
        default_value = "default",
        visible_alias = "keyspace",
        short_alias = 'k'
    )]
    pub namespace: String,
    /// Answer yes to every question
    #[arg(long, global = true)]
    pub no_confirm: bool,
    /// Sent to the server, which does not ask for it yet
    #[arg(long, global = true, env = "TICDC_USER", hide_env_values = true)]
    pub user: Option<String>,
    /// Sent to the server, which does not ask for it yet
    #[arg(long, global = true, env = "TICDC_PASSWORD", hide_env_values = true)]
    pub password: Option<String>,
    /// Not here: name a server with --server
    #[arg(long, global = true, hide = true)]
    pub pd: Option<String>,
    /// Not supported yet
    #[arg(long, global = true, hide = true)]
    pub ca: Option<String>,
    /// Not supported yet
    #[arg(long, global = true, hide = true)]
    pub cert: Option<String>,
    /// Not supported yet
    #[arg(long, global = true, hide = true)]
    pub key: Option<String>,
    /// Accepted, without effect: the client writes no log
    #[arg(long, global = true, hide = true)]
    pub log_level: Option<String>,
}

/// What `cdc cli` manages.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// What a server is asked for.
    #[command(flatten)]
    Remote(RemoteCommand),
    /// Repairs on the metadata database itself, without a server; they ask before they do anything
    Unsafe(UnsafeArgs),
}

/// What `cdc cli` asks a server for.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Changefeeds: replication jobs
    #[command(subcommand)]
    Changefeed(ChangefeedCommand),
    /// Captures: the servers
    #[command(subcommand)]
    Capture(CaptureCommand),
    /// Processors: shares of changefeeds on captures
    #[command(subcommand)]
    Processor(ProcessorCommand),
}

/// `cdc cli changefeed`.
#[derive(Debug, Subcommand)]
pub enum ChangefeedCommand {
    /// Create a changefeed
    Create(Box<CreateArgs>),
    /// List changefeeds
    List {
        /// Also those that are finished or removed
        #[arg(short, long)]
        all: bool,
    },
    /// Show one changefeed
    Query {
        /// Only how it is doing
        #[arg(short, long)]
        simple: bool,
    },
    /// Change a changefeed that is stopped or failed
    Update(Box<FeedArgs>),
    /// Stop a changefeed until it is resumed
    Pause,
    /// Let a changefeed that is stopped, failed or finished go on
    Resume {
        /// Where it goes on: now, or a timestamp
        #[arg(long, value_name = "now|TSO")]
        overwrite_checkpoint_ts: Option<String>,
        /// Upstream flags of TiCDC's.
        #[command(flatten)]
        ignored: IgnoredUpstream,
    },
    /// Remove a changefeed, and wait until it has stopped
    Remove,
    /// Print how far a changefeed is behind, again and again
    Statistics {
        /// Between two lines, in seconds
        #[arg(short = 'I', long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        interval: u64,
    },
}

/// `cdc cli changefeed create`.
#[derive(Clone, Debug, Default, Args)]
pub struct CreateArgs {
    /// Changes after it are replicated; from now on unless given
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub start_ts: u64,
    /// What create and update share.
    #[command(flatten)]
    pub feed: FeedArgs,
}

/// What create and update share.
#[derive(Clone, Debug, Default, Args)]
pub struct FeedArgs {
    /// Where changes come from: mysql://user:password@host:port/[db] or datagen://?tables=&rows_per_second=&seed=
    #[arg(long, value_name = "URI")]
    pub upstream_uri: Option<String>,
    /// Where changes go to: file:///dir?protocol=canal-json or blackhole://
    #[arg(long, value_name = "URI")]
    pub sink_uri: Option<String>,
    /// The last change to replicate; without end unless given
    #[arg(long, value_name = "TSO")]
    pub target_ts: Option<u64>,
    /// A TOML file in the form of TiCDC's changefeed configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// On how many captures at most its tables are replicated at once; 1 unless given: its owner does all
    ///
    /// The same as max-processors under [placement] in the file of --config.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(Placement::MAX_PROCESSORS)))]
    pub max_processors: Option<u32>,
    /// The schema registry's URI
    #[arg(long, value_name = "URI")]
    pub schema_registry: Option<String>,
    /// Accepted, without effect: there is no GC safepoint here
    #[arg(long)]
    pub disable_gc_check: bool,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub sort_engine: Option<String>,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub sort_dir: Option<String>,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub tz: Option<String>,
    /// Upstream flags of TiCDC's.
    #[command(flatten)]
    pub ignored: IgnoredUpstream,
}

/// TiCDC's flags for another PD. An upstream is named by `--upstream-uri` here.
#[derive(Clone, Debug, Default, Args)]
pub struct IgnoredUpstream {
    /// Not here.
    #[arg(long, hide = true)]
    pub upstream_pd: Option<String>,
    /// Not here.
    #[arg(long, hide = true)]
    pub upstream_ca: Option<String>,
    /// Not here.
    #[arg(long, hide = true)]
    pub upstream_cert: Option<String>,
    /// Not here.
    #[arg(long, hide = true)]
    pub upstream_key: Option<String>,
}

/// `cdc cli capture`.
#[derive(Debug, Subcommand)]
pub enum CaptureCommand {
    /// List captures
    List,
    /// Empty a capture: its changefeeds move to others, a few at a time, and it gets none until it was restarted
    ///
    /// A changefeed that no other capture may run (its placement.affinity asks for labels that none has) stays and goes on.
    /// A capture that is the controller hands that over first. Ends with 0 when nothing is left, with 1 when it was refused
    /// or not done in time.
    Drain {
        /// The capture
        #[arg(value_name = "ID")]
        id: String,
        /// Ask for it and return at once
        #[arg(long)]
        no_wait: bool,
        /// How long to wait at most, in seconds; the drain goes on after that
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        timeout: u64,
    },
}

/// `cdc cli processor`.
#[derive(Debug, Subcommand)]
pub enum ProcessorCommand {
    /// List processors
    List,
    /// Show the tables of one
    Query {
        /// The capture
        #[arg(short = 'p', long, value_name = "ID")]
        capture_id: String,
    },
}

/// `cdc cli unsafe`.
#[derive(Debug, Args)]
pub struct UnsafeArgs {
    /// Where the metadata lies; must be given, here or in CDC_STORE.
    #[command(flatten)]
    pub store: StoreArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: UnsafeCommand,
}

/// What `cdc cli unsafe` can do.
#[derive(Debug, Subcommand)]
pub enum UnsafeCommand {
    /// Delete every changefeed and its position; servers that run go on without work
    Reset,
    /// Declare a capture dead at once, when you know that its process is
    ForceRemove {
        /// The capture's id, as `cdc cli capture list` shows it
        #[arg(value_name = "CAPTURE_ID")]
        capture_id: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<CdcArgs, clap::Error> {
        CdcArgs::try_parse_from(line.split_whitespace())
    }

    fn cli(line: &str) -> CliArgs {
        match parse(line).unwrap().command {
            Command::Cli(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        CdcArgs::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_commands() {
        for line in [
            "cdc cli changefeed pause --server http://h:1 -c x -n ns",
            "cdc cli --server=http://h:1 changefeed -c=x -n ns pause",
            "cdc cli changefeed --changefeed-id x --keyspace ns pause --server http://h:1",
            "cdc cli -k ns -c x --server http://h:1 changefeed pause",
        ] {
            let args = cli(line);
            assert!(
                matches!(
                    args.command,
                    CliCommand::Remote(RemoteCommand::Changefeed(ChangefeedCommand::Pause))
                ),
                "{line}"
            );
            let flags = args.flags;
            assert_eq!(
                (flags.server.as_str(), flags.changefeed_id.as_str(), flags.namespace.as_str()),
                ("http://h:1", "x", "ns"),
                "{line}"
            );
        }
    }

    #[test]
    fn ticdcs_lines_are_understood() {
        for line in [
            "cdc cli changefeed create --server=http://h:1 --sink-uri blackhole:// --start-ts 1 --target-ts 2 --config f \
             --schema-registry http://r --disable-gc-check --no-confirm --sort-engine unified --tz UTC --upstream-pd http://p",
            "cdc cli changefeed list -a",
            "cdc cli changefeed query -s -c x",
            "cdc cli changefeed resume -c x --overwrite-checkpoint-ts now --no-confirm",
            "cdc cli changefeed update -c x --target-ts 5 --max-processors 2 --no-confirm",
            "cdc cli changefeed remove -c x",
            "cdc cli changefeed statistics -c x -I 3",
            "cdc cli capture list",
            "cdc cli processor list",
            "cdc cli processor query -c x -p y",
            "cdc cli unsafe reset --store mysql://u@h/d --no-confirm",
            "cdc cli unsafe --store sqlite://x force-remove y",
            "cdc version",
            "cdc migrate --store sqlite://x",
            "cdc server --addr A:1 --advertise-addr A:1 --pd P --data-dir D --ca C --cert C --key K --gc-ttl 5 --tz Z \
             --cluster-id C --config conf/cdc.toml --log-file F --log-level debug --label zone=a --label rack=b",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_lines_are_usage_errors() {
        for line in ["cdc", "cdc nothing", "cdc cli changefeed", "cdc demo --seconds 1", "cdc server --nope"]
        {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
