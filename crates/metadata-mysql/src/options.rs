//! Where the database is, and how long to wait for it: the store's URL.

use std::fmt;
use std::time::Duration;

use metadata_api::model::SecretUri;
use metadata_api::{MetadataError, Result};
use sqlx::ConnectOptions as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

/// The driver's parameters, in their first spelling; the second is without the hyphen.
const TLS_KEYS: [&str; 4] = ["ssl-mode", "ssl-ca", "ssl-cert", "ssl-key"];
/// Ours.
const OWN_KEYS: [&str; 4] = ["max-connections", "connect-timeout", "read-timeout", "give-up-after"];

/// What waits in all must be over before the rest of a cluster acts on it.
const TIMEOUTS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// Where the database is and how long to wait for it. `Debug` and `Display` show no password.
#[derive(Clone)]
pub struct MysqlOptions {
    /// sqlx's own type prints the password in its `Debug`, so it stays in here.
    pub(crate) driver: MySqlConnectOptions,
    shown: String,
    pub(crate) max_connections: u32,
    pub(crate) lock_wait: Duration,
    pub(crate) call_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) give_up: Duration,
}

impl MysqlOptions {
    /// How many pool connections a capture may hold unless told otherwise.
    pub const DEFAULT_MAX_CONNECTIONS: u32 = 4;
    /// The most that may be asked for: a thousand captures share one server's `max_connections`.
    pub const MAX_CONNECTIONS: u32 = 64;

    /// Reads `mysql://user:password@host:port/database?key=value&..`:
    ///
    /// | key | meaning | default |
    /// |---|---|---|
    /// | `ssl-mode` | `DISABLED`; `PREFERRED`: TLS where the server has it; `REQUIRED`: TLS, with whomever; `VERIFY_CA`: with a certificate of `ssl-ca`'s (or a public authority's); `VERIFY_IDENTITY`: and for this host's name | `PREFERRED` |
    /// | `ssl-ca` | file of PEM certificates of authorities; wants one of the two verifying modes | the public ones |
    /// | `ssl-cert`, `ssl-key` | files of the client's own certificate and key in PEM, together; they want a mode that insists on TLS | none |
    /// | `max-connections` | how many connections the pool may hold, besides the heartbeat's and the watch's own: 1 to 64 | 4 |
    /// | `connect-timeout` | for connecting, TLS and log-in included: 500ms to 30s | 3s |
    /// | `read-timeout` | for one read, here and at the server: 500ms to 30s | 10s |
    /// | `give-up-after` | after how long a call stops trying again: 500ms to 30s | 10s |
    ///
    /// The files are read anew for each connection, so that certificates may be replaced under a running process.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`], field `store`; the text is repeated only with its password masked.
    pub fn from_url(url: &str) -> Result<Self> {
        let uri = SecretUri::parse("store", url)?;
        let wanted = "it must be mysql://user:password@host:port/database";
        let parsed = url::Url::parse(url).map_err(|error| invalid(format!("{wanted}: {error}")))?;
        if parsed.scheme() != "mysql" {
            return Err(invalid(format!("`{uri}`: {wanted} (TiDB and MariaDB as well)")));
        }
        let host = parsed.host_str().unwrap_or_default();
        if host.is_empty() {
            return Err(invalid(format!("`{uri}` names no host; {wanted}")));
        }
        let database = parsed.path().trim_start_matches('/');
        if database.is_empty() || database.contains('/') {
            return Err(invalid(format!("`{uri}` names no database; {wanted}")));
        }
        let in_context = |reason: String| invalid(format!("`{uri}`: {reason}"));
        let driver = MySqlConnectOptions::from_url(&parsed)
            .map_err(|error| in_context(error.to_string()))?
            // The driver would look `[::1]` up as a name.
            .host(host.trim_start_matches('[').trim_end_matches(']'))
            // `Dialect::session_setup` does all of it, in one round trip.
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .set_names(false);
        let mut options = Self {
            driver,
            shown: uri.masked().to_owned(),
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
            lock_wait: Duration::from_secs(2),
            call_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(10),
            give_up: Duration::from_secs(10),
        };
        let pairs: Vec<(String, String)> = parsed.query_pairs().into_owned().collect();
        options.read_own_keys(&pairs).map_err(in_context)?;
        check_tls(&options.driver, &pairs).map_err(in_context)?;
        Ok(options)
    }

    fn read_own_keys(&mut self, pairs: &[(String, String)]) -> Result<(), String> {
        let mut seen = Vec::new();
        for (key, value) in pairs {
            if seen.contains(&canonical(key)) {
                return Err(format!("`{}` is there twice", key.escape_debug()));
            }
            seen.push(canonical(key));
            match key.as_str() {
                "max-connections" => {
                    self.max_connections = value
                        .parse()
                        .ok()
                        .filter(|max| (1..=Self::MAX_CONNECTIONS).contains(max))
                        .ok_or_else(|| {
                            let shown = value.escape_debug();
                            format!("{key} is `{shown}`; it must be 1 to {}", Self::MAX_CONNECTIONS)
                        })?;
                }
                "connect-timeout" => self.connect_timeout = duration(key, value)?,
                "read-timeout" => self.read_timeout = duration(key, value)?,
                "give-up-after" => self.give_up = duration(key, value)?,
                _ if canonical(key).is_some() => {}
                _ => {
                    return Err(format!(
                        "unknown parameter `{}`; known are {}, {}",
                        key.escape_debug(),
                        TLS_KEYS.join(", "),
                        OWN_KEYS.join(", ")
                    ));
                }
            }
        }
        Ok(())
    }

    /// Uses this password instead of the URL's: from the environment or a file, so that it is in no process list.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.driver = self.driver.password(password);
        self
    }

    /// How many connections the pool may hold, besides the heartbeat's and the watch's own.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] unless it is 1 to [`Self::MAX_CONNECTIONS`].
    pub fn max_connections(mut self, max: u32) -> Result<Self> {
        if !(1..=Self::MAX_CONNECTIONS).contains(&max) {
            return Err(MetadataError::invalid(
                "max_connections",
                format!("{max} is not within 1 to {}", Self::MAX_CONNECTIONS),
            ));
        }
        self.max_connections = max;
        Ok(self)
    }

    /// How long a statement may wait for a row lock, in whole seconds. It must stay below the controller's lease.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] unless it is 1 s to 5 s.
    pub fn lock_wait(mut self, wait: Duration) -> Result<Self> {
        if !(1..=5).contains(&wait.as_secs()) || wait.subsec_nanos() != 0 {
            return Err(MetadataError::invalid(
                "lock_wait",
                format!("{wait:?} is not 1 s to 5 s in whole seconds"),
            ));
        }
        self.lock_wait = wait;
        self.call_timeout = wait.saturating_add(Duration::from_secs(3));
        Ok(self)
    }

    /// After how long a call stops trying again. Each single try has a bound of its own.
    #[must_use]
    pub fn give_up_after(mut self, give_up: Duration) -> Self {
        self.give_up = give_up;
        self
    }

    /// The URL with its secrets masked.
    pub fn masked_url(&self) -> &str {
        &self.shown
    }

    /// The database's (schema's) name.
    pub fn database(&self) -> &str {
        self.driver.get_database().unwrap_or_default()
    }
}

fn invalid(reason: String) -> MetadataError {
    MetadataError::invalid("store", reason)
}

/// The key in its first spelling, if it is a known one.
fn canonical(key: &str) -> Option<&'static str> {
    let tls = TLS_KEYS.into_iter().find(|known| key == *known || key == known.replace('-', ""));
    tls.or_else(|| OWN_KEYS.into_iter().find(|known| key == *known))
}

fn duration(key: &str, value: &str) -> Result<Duration, String> {
    let [min, max] = TIMEOUTS;
    humantime::parse_duration(value).ok().filter(|time| (min..=max).contains(time)).ok_or_else(|| {
        format!("{key} is `{}`; it must be {min:?} to {max:?}, as in 3s or 800ms", value.escape_debug())
    })
}

/// Refuses what the driver would pass over in silence: a certificate that nobody looks at is no protection.
fn check_tls(driver: &MySqlConnectOptions, pairs: &[(String, String)]) -> Result<(), String> {
    let file = |key: &'static str| {
        pairs.iter().find(|(given, _)| canonical(given) == Some(key)).map(|(_, path)| (key, path.as_str()))
    };
    let mode = driver.get_ssl_mode();
    let (ca, cert, key) = (file("ssl-ca"), file("ssl-cert"), file("ssl-key"));
    if ca.is_some() && !matches!(mode, MySqlSslMode::VerifyCa | MySqlSslMode::VerifyIdentity) {
        return Err("ssl-ca does nothing without ssl-mode=VERIFY_CA or ssl-mode=VERIFY_IDENTITY".to_owned());
    }
    if cert.is_some() != key.is_some() {
        return Err("ssl-cert and ssl-key go together".to_owned());
    }
    if cert.is_some() && matches!(mode, MySqlSslMode::Disabled | MySqlSslMode::Preferred) {
        return Err(
            "ssl-cert wants a mode that insists on TLS: ssl-mode=REQUIRED, VERIFY_CA or VERIFY_IDENTITY"
                .to_owned(),
        );
    }
    for ((key, path), marker) in [(ca, "CERTIFICATE-----"), (cert, "CERTIFICATE-----"), (key, "KEY-----")]
        .into_iter()
        .filter_map(|(file, marker)| Some((file?, marker)))
    {
        let text = std::fs::read(path).map_err(|error| format!("{key}={}: {error}", path.escape_debug()))?;
        if !String::from_utf8_lossy(&text).contains(marker) {
            return Err(format!(
                "{key}={}: there is no `{marker}` in it; it must be PEM",
                path.escape_debug()
            ));
        }
    }
    Ok(())
}

#[expect(clippy::missing_fields_in_debug, reason = "the driver's options print the password")]
impl fmt::Debug for MysqlOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlOptions")
            .field("url", &self.shown)
            .field("max_connections", &self.max_connections)
            .field("lock_wait", &self.lock_wait)
            .field("call_timeout", &self.call_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("give_up", &self.give_up)
            .finish()
    }
}

impl fmt::Display for MysqlOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "mysql://cdc:hunter2@db.example:3307/meta?ssl-mode=REQUIRED";

    #[test]
    fn a_url_is_read_and_its_password_never_shown() {
        let options = MysqlOptions::from_url(URL).unwrap();
        assert_eq!(options.database(), "meta");
        for shown in [format!("{options}"), format!("{options:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains("db.example:3307"), "{shown}");
        }
        let shown = format!("{:?}", options.password("swordfish"));
        assert!(!shown.contains("swordfish"), "{shown}");
    }

    #[test]
    fn a_wrong_url_is_refused_with_the_field_and_without_the_password() {
        for (url, reason) in [
            ("postgres://u:hunter2@h/db", "mysql://"),
            ("mysql://u:hunter2@h", "no database"),
            ("mysql://u:hunter2@h/", "no database"),
            ("mysql://u:hunter2@h/a/b", "no database"),
            ("mysql:///db", "no host"),
            ("mysql://u:hunter2@h/db?sslmodus=REQUIRED", "unknown parameter `sslmodus`"),
            ("mysql://u:hunter2@h/db?ssl-mode=perhaps", "perhaps"),
            ("mysql://u:hunter2@h/db?max-connections=0", "max-connections is `0`; it must be 1 to 64"),
            ("mysql://u:hunter2@h/db?max-connections=65", "1 to 64"),
            ("mysql://u:hunter2@h/db?max-connections=many", "`many`"),
            ("mysql://u:hunter2@h/db?connect-timeout=3", "500ms to 30s"),
            ("mysql://u:hunter2@h/db?read-timeout=1h", "500ms to 30s"),
            ("mysql://u:hunter2@h/db?give-up-after=0s", "500ms to 30s"),
            ("mysql://u:hunter2@h/db?give-up-after=3s&give-up-after=4s", "twice"),
            ("mysql://u:hunter2@h/db?ssl-mode=REQUIRED&sslmode=DISABLED", "twice"),
            ("mysql://u:hunter2@h/db?ssl-ca=/etc/ca.pem", "ssl-ca does nothing without ssl-mode=VERIFY_CA"),
            ("mysql://u:hunter2@h/db?ssl-mode=REQUIRED&ssl-ca=/etc/ca.pem", "ssl-ca does nothing"),
            ("mysql://u:hunter2@h/db?ssl-mode=VERIFY_CA&ssl-ca=/not/there.pem", "ssl-ca=/not/there.pem"),
            ("mysql://u:hunter2@h/db?ssl-mode=VERIFY_CA&ssl-ca=/proc/version", "must be PEM"),
            ("mysql://u:hunter2@h/db?ssl-mode=REQUIRED&ssl-cert=/c.pem", "go together"),
            ("mysql://u:hunter2@h/db?ssl-cert=/c.pem&ssl-key=/k.pem", "insists on TLS"),
            ("hunter2", "store"),
        ] {
            let error = MysqlOptions::from_url(url).unwrap_err();
            assert!(
                matches!(error, MetadataError::InvalidArgument { field: "store", .. }),
                "{url}: {error:?}"
            );
            let text = format!("{error} {error:?}");
            assert!(text.contains(reason), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
    }

    #[test]
    fn knobs_are_bounded() {
        let options = || MysqlOptions::from_url(URL).unwrap();
        assert!(options().max_connections(0).is_err());
        assert!(options().max_connections(65).is_err());
        assert!(options().max_connections(8).is_ok());
        assert!(options().lock_wait(Duration::from_millis(1500)).is_err());
        assert!(options().lock_wait(Duration::from_secs(6)).is_err());
        assert!(options().lock_wait(Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn the_url_carries_the_knobs() {
        let url = "mysql://cdc@[::1]:3307/meta?max-connections=8&connect-timeout=800ms&read-timeout=20s&give-up-after=5s";
        let options = MysqlOptions::from_url(url).unwrap();
        assert_eq!(options.max_connections, 8);
        assert_eq!(options.connect_timeout, Duration::from_millis(800));
        assert_eq!(options.read_timeout, Duration::from_secs(20));
        assert_eq!(options.give_up, Duration::from_secs(5));
        assert_eq!(options.driver.get_host(), "::1", "an address, not a name");
    }
}
