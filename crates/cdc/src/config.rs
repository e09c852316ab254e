//! The server's settings: flags, then environment, then the file, then defaults.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use metadata_api::MetadataError;
use metadata_api::decision::lease::TimePolicy;
use metadata_api::decision::planner::PlanPolicy;
use metadata_api::model::SecretUri;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

use crate::args::{ServerArgs, StoreArgs};
use crate::exit::Failure;
use crate::store_url::StoreUrl;

/// Where a server listens unless told otherwise.
pub const DEFAULT_ADDR: &str = "127.0.0.1:8300";
/// A server's directory unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "cdc-data";

/// A server's settings, complete and checked.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where the metadata lies.
    pub store: StoreUrl,
    /// Where to listen.
    pub addr: String,
    /// What others are told; `None` = where it listens.
    pub advertise_addr: Option<String>,
    /// Its own directory.
    pub data_dir: PathBuf,
    /// Directives of the log.
    pub log_level: String,
    /// Where the log goes; `None` = standard error.
    pub log_file: Option<PathBuf>,
    /// The capture's marks.
    pub labels: BTreeMap<String, String>,
    /// The upstream of changefeeds that name none.
    pub upstream: Option<SecretUri>,
    /// The time knobs.
    pub time: TimePolicy,
    /// The planner's knobs.
    pub plan: PlanPolicy,
    /// What is to be logged as soon as there is a log.
    pub warnings: Vec<String>,
}

/// The file that `--config` names. Every key is optional; unknown keys are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct FileConfig {
    addr: Option<String>,
    advertise_addr: Option<String>,
    data_dir: Option<PathBuf>,
    store: Option<String>,
    store_password_file: Option<PathBuf>,
    upstream_uri: Option<String>,
    log_level: Option<String>,
    log_file: Option<PathBuf>,
    labels: BTreeMap<String, String>,
    time: TimeConfig,
    planner: PlannerConfig,
}

/// The `[planner]` table. Whichever server is the controller goes by its own.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct PlannerConfig {
    moves_in_flight: Option<usize>,
    drains_in_flight: Option<usize>,
    #[serde(deserialize_with = "duration")]
    changefeed_cooldown: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    capture_cooldown: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    capture_cooldown_max: Option<Duration>,
}

/// The `[time]` table: durations such as `"10s"` or `"500ms"`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct TimeConfig {
    #[serde(deserialize_with = "duration")]
    heartbeat_interval: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    heartbeat_timeout: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    poll_interval: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    deadline: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    controller_lease: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    offline_after: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    statement_timeout: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    own_gap: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    mass_failure_wait: Option<Duration>,
}

/// The longest time that a knob may be set to.
const MAX_KNOB: Duration = Duration::from_secs(24 * 3600);

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!("`{text}` is not a duration such as \"10s\" or \"500ms\": {error}"))
    })?;
    if parsed > MAX_KNOB {
        return Err(serde::de::Error::custom(format!("{text} is longer than a day")));
    }
    Ok(Some(parsed))
}

impl TimeConfig {
    fn policy(&self) -> Result<TimePolicy, Failure> {
        let default = TimePolicy::default();
        let policy = TimePolicy {
            heartbeat_interval: self.heartbeat_interval.unwrap_or(default.heartbeat_interval),
            heartbeat_timeout: self.heartbeat_timeout.unwrap_or(default.heartbeat_timeout),
            poll_interval: self.poll_interval.unwrap_or(default.poll_interval),
            deadline: self.deadline.unwrap_or(default.deadline),
            controller_lease: self.controller_lease.unwrap_or(default.controller_lease),
            offline_after: self.offline_after.unwrap_or(default.offline_after),
            statement_timeout: self.statement_timeout.unwrap_or(default.statement_timeout),
            own_gap: self.own_gap.unwrap_or(default.own_gap),
            mass_failure_wait: self.mass_failure_wait.unwrap_or(default.mass_failure_wait),
        };
        checked("time", policy.validate()).map(|()| policy)
    }
}

impl PlannerConfig {
    fn policy(&self) -> Result<PlanPolicy, Failure> {
        let default = PlanPolicy::default();
        let policy = PlanPolicy {
            moves_in_flight: self.moves_in_flight.unwrap_or(default.moves_in_flight),
            drains_in_flight: self.drains_in_flight.unwrap_or(default.drains_in_flight),
            feed_cooldown: self.changefeed_cooldown.unwrap_or(default.feed_cooldown),
            capture_cooldown: self.capture_cooldown.unwrap_or(default.capture_cooldown),
            capture_cooldown_max: self.capture_cooldown_max.unwrap_or(default.capture_cooldown_max),
            ..default
        };
        checked("planner", policy.validate()).map(|()| policy)
    }
}

/// A refusal of a table's values, in the words of the file.
fn checked(table: &str, valid: metadata_api::Result<()>) -> Result<(), Failure> {
    match valid {
        Err(MetadataError::InvalidArgument { field, reason }) => {
            let key = field.replace('_', "-").replace("feed-cooldown", "changefeed-cooldown");
            Err(Failure::usage(format!("[{table}] {key}: {reason}")))
        }
        other => Ok(other?),
    }
}

/// What the environment says; a variable that is empty is not set.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl ServerConfig {
    /// Puts flags, environment, file and defaults together, and checks all of it.
    ///
    /// # Errors
    /// [`Exit::Usage`](crate::exit::Exit::Usage) with the setting and what would be right.
    pub fn resolve(args: &ServerArgs, env: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let file = match &args.config {
            Some(path) => FileConfig::read(path)?,
            None => FileConfig::default(),
        };
        let mut warnings = ignored_flags(args);
        let data_dir =
            args.data_dir.clone().or(file.data_dir).unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
        let from_file = StoreArgs { store: file.store, store_password_file: file.store_password_file };
        let store = resolve_store(&args.store, &from_file, &env, &data_dir, &mut warnings)?;
        let addr = args.addr.clone().or(file.addr).unwrap_or_else(|| DEFAULT_ADDR.to_owned());
        check_addr("--addr", &addr)?;
        let advertise_addr = args.advertise_addr.clone().or(file.advertise_addr);
        check_advertised(&addr, advertise_addr.as_deref())?;
        if !is_loopback(&addr) {
            warnings.push(format!(
                "listening on {addr}, which is not a loopback address, and there is no authentication: whoever reaches the \
                 port can read and change every changefeed"
            ));
        }
        let upstream = args.upstream_uri.clone().or_else(|| env("CDC_UPSTREAM")).or(file.upstream_uri);
        let log_level = args.log_level.clone().or(file.log_level).unwrap_or_else(|| "info".to_owned());
        crate::logging::check_level(&log_level)?;
        let mut labels = file.labels;
        for label in &args.labels {
            let (key, value) = label
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| Failure::usage(format!("--label {label}: it must be KEY=VALUE")))?;
            labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(Self {
            store,
            addr,
            advertise_addr,
            data_dir,
            log_level,
            log_file: args.log_file.clone().or(file.log_file),
            labels,
            upstream: upstream.map(|text| SecretUri::parse("upstream_uri", &text)).transpose()?,
            time: file.time.policy()?,
            plan: file.planner.policy()?,
            warnings,
        })
    }
}

impl FileConfig {
    fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("--config {}: {error}", path.display())))?;
        toml::from_str(&text).map_err(|error| {
            // The error's own text quotes the line, which may hold a password.
            let line = error
                .span()
                .map_or(1, |span| text.get(..span.start).map_or(1, |head| head.lines().count().max(1)));
            Failure::usage(format!("--config {} line {line}: {}", path.display(), error.message()))
        })
    }
}

/// Finds out where the metadata lies.
///
/// # Errors
/// [`Exit::Usage`](crate::exit::Exit::Usage) with what would be right.
pub fn resolve_store(
    args: &StoreArgs,
    from_file: &StoreArgs,
    env: &impl Fn(&str) -> Option<String>,
    data_dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<StoreUrl, Failure> {
    let password =
        match (&args.store_password_file, env("CDC_STORE_PASSWORD"), &from_file.store_password_file) {
            (Some(path), _, _) => Some(read_password("--store-password-file", path)?),
            (None, Some(password), _) => Some(SecretString::from(password)),
            (None, None, Some(path)) => Some(read_password("store-password-file", path)?),
            (None, None, None) => None,
        };
    let store = store_url(args, from_file, env, data_dir, password.as_ref(), warnings)?;
    if password.is_some() && matches!(store, StoreUrl::Sqlite(_)) {
        warnings.push(format!("a password is given and has no use: {store} has none"));
    }
    Ok(store)
}

fn store_url(
    args: &StoreArgs,
    from_file: &StoreArgs,
    env: &impl Fn(&str) -> Option<String>,
    data_dir: &Path,
    password: Option<&SecretString>,
    warnings: &mut Vec<String>,
) -> Result<StoreUrl, Failure> {
    if let Some(text) = &args.store {
        if StoreUrl::parse(text, None)?.has_password() {
            warnings.push(
                "the store's password is in an argument, where everybody on this host sees it in the process list; put it \
                 into CDC_STORE_PASSWORD or --store-password-file"
                    .to_owned(),
            );
        }
        return StoreUrl::parse(text, password);
    }
    match env("CDC_STORE").or_else(|| from_file.store.clone()) {
        Some(text) => StoreUrl::parse(&text, password),
        None => Ok(StoreUrl::default_in(data_dir)),
    }
}

fn read_password(setting: &str, path: &Path) -> Result<SecretString, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{setting} {}: {error}", path.display())))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(SecretString::from(line)),
        _ => Err(Failure::usage(format!("{setting} {}: its first line is empty", path.display()))),
    }
}

fn ignored_flags(args: &ServerArgs) -> Vec<String> {
    let mut warnings = Vec::new();
    if args.ca.is_some() || args.cert.is_some() || args.key.is_some() {
        warnings.push("--ca, --cert and --key have no effect: this server does not serve TLS yet".to_owned());
    }
    for (flag, given) in [
        ("--pd", args.pd.is_some()),
        ("--gc-ttl", args.gc_ttl.is_some()),
        ("--tz", args.tz.is_some()),
        ("--cluster-id", args.cluster_id.is_some()),
    ] {
        if given {
            warnings.push(format!("{flag} is accepted for TiUP's sake and has no effect here"));
        }
    }
    warnings
}

fn split_addr(addr: &str) -> Option<(&str, u16)> {
    let (host, port) = addr.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port))
}

fn check_addr(flag: &str, addr: &str) -> Result<(), Failure> {
    match split_addr(addr) {
        Some((host, _)) if !host.is_empty() => Ok(()),
        _ => Err(Failure::usage(format!("{flag} {addr}: it must be HOST:PORT, such as {DEFAULT_ADDR}"))),
    }
}

/// Others cannot reach "any address" or "any port".
fn check_advertised(addr: &str, advertised: Option<&str>) -> Result<(), Failure> {
    let shown = advertised.unwrap_or(addr);
    check_addr("--advertise-addr", shown)?;
    let unspecified = split_addr(shown)
        .and_then(|(host, _)| host.parse::<IpAddr>().ok())
        .is_some_and(|ip| ip.is_unspecified());
    if unspecified {
        return Err(Failure::usage(format!(
            "--advertise-addr must be given when --addr is {addr}: others cannot reach this server under {shown}"
        )));
    }
    Ok(())
}

fn is_loopback(addr: &str) -> bool {
    split_addr(addr).is_some_and(|target| {
        target.to_socket_addrs().is_ok_and(|mut found| found.all(|found| found.ip().is_loopback()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    fn with_file(text: &str) -> Result<ServerConfig, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let args = ServerArgs { config: Some(file.path().to_owned()), ..ServerArgs::default() };
        ServerConfig::resolve(&args, nothing)
    }

    #[test]
    fn nothing_given_is_a_loopback_server_on_a_file() {
        let config = ServerConfig::resolve(&ServerArgs::default(), nothing).unwrap();
        assert_eq!(config.addr, "127.0.0.1:8300");
        assert_eq!(config.store, StoreUrl::Sqlite("cdc-data/cdc.db".into()));
        assert_eq!(config.time, TimePolicy::default());
        assert_eq!(config.plan, PlanPolicy::default());
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "addr = \"127.0.0.1:1\"\nstore = \"sqlite://file.db\"\ndata-dir = \"d\"\n[labels]\nzone = \"a\"\n";
        std::fs::write(file.path(), text).unwrap();
        let mut args = ServerArgs { config: Some(file.path().to_owned()), ..ServerArgs::default() };
        let env = |name: &str| (name == "CDC_STORE").then(|| "sqlite://env.db".to_owned());
        let store = |args: &ServerArgs, env: &dyn Fn(&str) -> Option<String>| {
            ServerConfig::resolve(args, env).unwrap().store.to_string()
        };
        assert_eq!(store(&args, &nothing), "sqlite://file.db");
        assert_eq!(store(&args, &env), "sqlite://env.db");
        args.store.store = Some("sqlite://flag.db".to_owned());
        args.labels = vec!["zone=b".to_owned(), "rack=1=2".to_owned()];
        let config = ServerConfig::resolve(&args, env).unwrap();
        assert_eq!(config.store.to_string(), "sqlite://flag.db");
        assert_eq!(config.addr, "127.0.0.1:1");
        assert_eq!(config.labels.get("zone").unwrap(), "b");
        assert_eq!(config.labels.get("rack").unwrap(), "1=2");
    }

    #[test]
    fn the_time_knobs_are_read_and_their_rules_kept() {
        let config =
            with_file("[time]\ndeadline = \"8s\"\noffline-after = \"12s\"\npoll-interval = \"250ms\"\n")
                .unwrap();
        assert_eq!(config.time.deadline, Duration::from_secs(8));
        assert_eq!(config.time.poll_interval, Duration::from_millis(250));
        for (text, wanted) in [
            ("[time]\ndeadline = \"8s\"\noffline-after = \"9s\"\n", "offline-after"),
            ("[time]\nheartbeat-interval = \"1\"\n", "line 2"),
            ("[time]\nheartbeat = \"1s\"\n", "heartbeat"),
            ("[time]\ndeadline = \"3000h\"\n", "longer than a day"),
            ("addr = 5\n", "line 1"),
            ("\n\nnope = 1\n", "nope"),
            ("addr = \n", "line 1"),
        ] {
            let failure = with_file(text).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains(wanted), "{text}: {failure}");
        }
    }

    #[test]
    fn the_planners_knobs_are_read_and_their_rules_kept() {
        let config = with_file(
            "[planner]\nmoves-in-flight = 5\ndrains-in-flight = 50\nchangefeed-cooldown = \"1m\"\n\
             capture-cooldown = \"10s\"\ncapture-cooldown-max = \"2m\"\n",
        )
        .unwrap();
        let s = Duration::from_secs;
        let wanted = PlanPolicy {
            moves_in_flight: 5,
            drains_in_flight: 50,
            feed_cooldown: s(60),
            capture_cooldown: s(10),
            capture_cooldown_max: s(120),
            ..PlanPolicy::default()
        };
        assert_eq!(config.plan, wanted);
        for (text, wanted) in [
            ("[planner]\nmoves-in-flight = 0\n", "[planner] moves-in-flight: 0 is not from 1 to 500"),
            ("[planner]\ndrains-in-flight = 501\n", "[planner] drains-in-flight: 501 is not from 1 to 500"),
            ("[planner]\ncapture-cooldown = \"2m\"\n", "[planner] capture-cooldown: 120s is longer than"),
            ("[planner]\nchangefeed-cooldown = \"25h\"\n", "longer than a day"),
            ("[planner]\nmay-launch = false\n", "may-launch"),
            ("[planner]\nmoves-in-flight = -1\n", "line 2"),
        ] {
            let failure = with_file(text).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains(wanted), "{text}: {failure}");
        }
    }

    #[test]
    fn a_broken_file_never_shows_a_password() {
        for text in
            ["store = mysql://u:hunter2@h/d\n", "store = \"mysql://u:hunter2@h/d\n", "store = [\"hunter2\"]"]
        {
            let failure = with_file(text).unwrap_err();
            assert!(!failure.message.contains("hunter2"), "{failure}");
        }
    }

    #[test]
    fn a_password_in_an_argument_works_with_a_warning() {
        let mut args = ServerArgs::default();
        args.store.store = Some("mysql://u:hunter2@h/d".to_owned());
        let config = ServerConfig::resolve(&args, nothing).unwrap();
        assert!(
            config.warnings.iter().any(|warning| warning.contains("process list")),
            "{:?}",
            config.warnings
        );
        assert!(!format!("{config:?}").contains("hunter2"));
        let env = |name: &str| match name {
            "CDC_STORE" => Some("mysql://u@h/d".to_owned()),
            "CDC_STORE_PASSWORD" => Some("hunter2".to_owned()),
            _ => None,
        };
        let config = ServerConfig::resolve(&ServerArgs::default(), env).unwrap();
        assert!(config.store.has_password() && config.warnings.is_empty(), "{:?}", config.warnings);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2\nrest").unwrap();
        args.store.store = Some("mysql://u@h/d".to_owned());
        args.store.store_password_file = Some(file.path().to_owned());
        let config = ServerConfig::resolve(&args, nothing).unwrap();
        let StoreUrl::Mysql(uri) = config.store else { panic!() };
        assert_eq!(uri.expose(), "mysql://u:hunter2@h/d");
    }

    #[test]
    fn of_several_passwords_the_flags_wins_then_the_environments() {
        let [flag, setting] = ["flag", "setting"].map(|password| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), format!("{password}\r\n")).unwrap();
            file
        });
        let from_file = StoreArgs {
            store: Some("mysql://u@h/d".to_owned()),
            store_password_file: Some(setting.path().into()),
        };
        let with_env = |name: &str| (name == "CDC_STORE_PASSWORD").then(|| "env".to_owned());
        let resolved = |flag: Option<&Path>, env: &dyn Fn(&str) -> Option<String>| {
            let args = StoreArgs { store: None, store_password_file: flag.map(Path::to_owned) };
            let store = resolve_store(&args, &from_file, &env, Path::new("d"), &mut Vec::new()).unwrap();
            let StoreUrl::Mysql(uri) = store else { panic!() };
            uri.expose().to_owned()
        };
        assert_eq!(resolved(Some(flag.path()), &with_env), "mysql://u:flag@h/d");
        assert_eq!(resolved(None, &with_env), "mysql://u:env@h/d");
        assert_eq!(resolved(None, &nothing), "mysql://u:setting@h/d");
    }

    #[test]
    fn a_password_for_a_file_is_warned_of() {
        let env = |name: &str| (name == "CDC_STORE_PASSWORD").then(|| "hunter2".to_owned());
        let config = ServerConfig::resolve(&ServerArgs::default(), env).unwrap();
        assert!(
            config.warnings.iter().any(|warning| warning.contains("has no use")),
            "{:?}",
            config.warnings
        );
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn addresses_are_checked_and_an_open_one_is_warned_of() {
        for (addr, advertise, wanted) in [
            ("127.0.0.1", None, "HOST:PORT"),
            (":8300", None, "HOST:PORT"),
            ("h:99999", None, "HOST:PORT"),
            ("0.0.0.0:8300", None, "--advertise-addr must be given"),
            ("[::]:8300", None, "--advertise-addr must be given"),
            ("127.0.0.1:8300", Some("h"), "--advertise-addr h"),
        ] {
            let args = ServerArgs {
                addr: Some(addr.to_owned()),
                advertise_addr: advertise.map(str::to_owned),
                ..ServerArgs::default()
            };
            let failure = ServerConfig::resolve(&args, nothing).unwrap_err();
            assert!(failure.message.contains(wanted), "{addr}: {failure}");
        }
        let args = ServerArgs {
            addr: Some("0.0.0.0:8300".to_owned()),
            advertise_addr: Some("host-a:8300".to_owned()),
            pd: Some("http://p".to_owned()),
            ..ServerArgs::default()
        };
        let config = ServerConfig::resolve(&args, nothing).unwrap();
        assert!(
            config.warnings.iter().any(|warning| warning.contains("no authentication")),
            "{:?}",
            config.warnings
        );
        assert!(config.warnings.iter().any(|warning| warning.contains("--pd")), "{:?}", config.warnings);
        assert!(is_loopback("[::1]:1") && is_loopback("127.0.0.2:1") && !is_loopback("0.0.0.0:1"));
    }
}
