//! Which server this is, what it cannot be trusted with, and what differs in how it is spoken to.
//!
//! The only place that knows of differences outside a statement's own text. Everything else is SQL that MySQL, TiDB and
//! MariaDB understand alike.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use metadata_api::{MetadataError, Result};

/// A family of servers that are spoken to alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Oracle's MySQL and what calls itself so.
    Mysql,
    /// `TiDB`, which answers with MySQL's version and its own after it.
    Tidb,
    /// `MariaDB`.
    Mariadb,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mysql => "MySQL",
            Self::Tidb => "TiDB",
            Self::Mariadb => "MariaDB",
        })
    }
}

/// What the server said about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// How it is spoken to.
    pub dialect: Dialect,
    /// Its version, without what it says for compatibility.
    pub version: (u16, u16),
    /// `SELECT VERSION()` as it is, for people.
    pub version_text: String,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.dialect, self.version_text)
    }
}

/// Asks for all that [`Server::from_variables`] looks at. A server leaves out what it does not have; a limit of its own on
/// lists must leave out nothing, and the session is not set up yet.
pub(crate) const PROBE: &str = "SET sql_select_limit = 18446744073709551615; SHOW GLOBAL VARIABLES WHERE Variable_name IN \
     ('version', 'read_only', 'super_read_only', 'innodb_read_only', 'tidb_super_read_only', \
     'tidb_restricted_read_only', 'wsrep_on', 'group_replication_single_primary_mode', \
     'group_replication_group_name')";

impl Server {
    /// Reads the answer to [`PROBE`].
    ///
    /// # Errors
    /// [`MetadataError::Unsupported`] with the reason and the remedy, when the store cannot be safe on this server.
    pub(crate) fn from_variables(variables: &BTreeMap<String, String>) -> Result<Self> {
        let value = |name: &str| variables.get(name).map_or("", String::as_str);
        let on = |name: &str| is_on(value(name));
        let server = Self::from_version(value("version"))?;
        for name in [
            "read_only",
            "super_read_only",
            "innodb_read_only",
            "tidb_super_read_only",
            "tidb_restricted_read_only",
        ] {
            if on(name) {
                return Err(unsupported(format!(
                    "{server} is read-only ({name} = {}); connect to the primary, never to a replica",
                    value(name)
                )));
            }
        }
        if on("wsrep_on") {
            return Err(unsupported(format!(
                "{server} is a node of a Galera cluster (wsrep_on = ON), which may lose acknowledged updates when \
                 several nodes are written to; use a server with one primary"
            )));
        }
        if !value("group_replication_group_name").is_empty() && !on("group_replication_single_primary_mode") {
            return Err(unsupported(format!(
                "{server} is a member of a group replication in multi-primary mode, where row locks do not hold \
                 between members; switch the group to single-primary mode"
            )));
        }
        Ok(server)
    }

    fn from_version(text: &str) -> Result<Self> {
        let (dialect, own, oldest) = if let Some((_, own)) = text.split_once("-TiDB-") {
            (Dialect::Tidb, own.trim_start_matches('v'), (6, 5))
        } else if let Some((before, _)) = text.split_once("-MariaDB") {
            // A replication-compatible server says `5.5.5-10.11.6-MariaDB`.
            (Dialect::Mariadb, before.rsplit('-').next().unwrap_or(before), (10, 6))
        } else {
            (Dialect::Mysql, text, (8, 0))
        };
        let mut numbers = own.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return Err(unsupported(format!(
                "the server's version `{}` is not understood",
                text.escape_debug()
            )));
        };
        if (major, minor) < oldest {
            return Err(unsupported(format!(
                "{dialect} {text} is too old; {dialect} {}.{} or newer is needed",
                oldest.0, oldest.1
            )));
        }
        Ok(Self { dialect, version: (major, minor), version_text: text.to_owned() })
    }
}

/// Whether a variable is on, in every spelling. (`NO_LOCK` and `NO_LOCK_NO_ADMIN` are `MariaDB` 12's stricter ways of being
/// read-only.)
pub(crate) fn is_on(value: &str) -> bool {
    let value = value.to_ascii_uppercase();
    matches!(value.as_str(), "ON" | "1" | "TRUE") || value.starts_with("NO_LOCK")
}

fn unsupported(reason: String) -> MetadataError {
    MetadataError::Unsupported { reason }
}

/// What a connection is for; decides how long the server lets it idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// One of the pool's: it may hold row locks, so the server ends it soon after its client has vanished.
    Pool,
    /// A heartbeat or watch connection: it never holds a lock between two calls, and stays.
    Channel,
    /// The one that holds the migration lock, for as long as a migration takes.
    Migration,
}

impl Dialect {
    /// How a transaction begins. `TiDB`'s default mode may be changed under us, and only a pessimistic one locks.
    pub(crate) const fn begin(self) -> &'static str {
        match self {
            Self::Tidb => "BEGIN PESSIMISTIC",
            Self::Mysql | Self::Mariadb => "BEGIN",
        }
    }

    /// Sets up a session, in one round trip; ends with a row: the server's identity, and the values of
    /// what may make it read-only, with commas between.
    pub(crate) fn session_setup(self, purpose: Purpose, lock_wait: Duration, read: Duration) -> String {
        // SET NAMES' collation is that of literals and parameters; columns carry their own.
        let mut settings = vec![
            "NAMES utf8mb4 COLLATE utf8mb4_bin".to_owned(),
            "time_zone = '+00:00'".to_owned(),
            "sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,\
             NO_ENGINE_SUBSTITUTION'"
                .to_owned(),
            format!("innodb_lock_wait_timeout = {}", whole_seconds(lock_wait)),
            // What a server's own defaults may say otherwise: a heartbeat is committed by itself, and no list is cut.
            "autocommit = 1".to_owned(),
            "sql_select_limit = 18446744073709551615".to_owned(),
            // For a table that somebody locked or alters, where the default is a year; and so that no migration of ours
            // stands in the way of all that queue up behind it.
            format!("lock_wait_timeout = {}", whole_seconds(lock_wait)),
        ];
        let idle = match purpose {
            Purpose::Pool => Some(IDLE_TRANSACTION_SECONDS),
            Purpose::Channel => Some(IDLE_CHANNEL_SECONDS),
            Purpose::Migration => None,
        };
        if let Some(idle) = idle {
            settings.push(format!("wait_timeout = {idle}"));
            // Migrations run as long as they take; a read by anybody else does not.
            settings.push(match self {
                Self::Mysql | Self::Tidb => format!("max_execution_time = {}", read.as_millis()),
                Self::Mariadb => format!("max_statement_time = {}", whole_seconds(read)),
            });
        }
        match self {
            Self::Mysql => settings.push(NO_CHAIN.to_owned()),
            Self::Tidb => {
                settings.push("tidb_txn_mode = 'pessimistic'".to_owned());
                settings.push(format!("tidb_idle_transaction_timeout = {IDLE_TRANSACTION_SECONDS}"));
            }
            Self::Mariadb => {
                settings.push(NO_CHAIN.to_owned());
                settings.push(format!("idle_transaction_timeout = {IDLE_TRANSACTION_SECONDS}"));
            }
        }
        format!(
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; SET {}; SELECT {}, {}",
            settings.join(", "),
            match self {
                Self::Mysql => "@@server_uuid",
                // No identity of its own that outlives it: `TiDB` is many servers on one store; MariaDB's is a hash of
                // its machine, which a cloned server shares.
                Self::Tidb | Self::Mariadb => "''",
            },
            match self {
                Self::Mysql => "CONCAT_WS(',', @@global.read_only, @@global.super_read_only)",
                Self::Mariadb => "CONCAT(@@global.read_only)",
                Self::Tidb =>
                    "CONCAT_WS(',', @@global.tidb_restricted_read_only, @@global.tidb_super_read_only)",
            },
        )
    }
}

/// After COMMIT no transaction is open and the connection stays, whatever the server's default. (`TiDB` knows nothing else.)
const NO_CHAIN: &str = "completion_type = 'NO_CHAIN'";

/// After this the server ends a transaction whose client says nothing: a partitioned client must not hold the fence row
/// (without it, for MySQL's 28,800 s). A client that is cut off between its log-in and the set-up leaves a session of the
/// server's own timeout, which no client can shorten; it holds no lock.
const IDLE_TRANSACTION_SECONDS: u64 = 5;

/// After this the server frees the slot of a vanished capture's heartbeat or watch connection.
const IDLE_CHANNEL_SECONDS: u64 = 60;

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn versions_are_told_apart() {
        for (text, dialect, version) in [
            ("9.7.4-2", Dialect::Mysql, (9, 7)),
            ("8.4.0", Dialect::Mysql, (8, 4)),
            ("8.0.36-0ubuntu0.22.04.1", Dialect::Mysql, (8, 0)),
            ("8.0.11-TiDB-v8.1.0", Dialect::Tidb, (8, 1)),
            ("5.7.25-TiDB-v6.5.3-serverless", Dialect::Tidb, (6, 5)),
            ("11.8.9-MariaDB-4 from Debian-log", Dialect::Mariadb, (11, 8)),
            ("5.5.5-10.11.6-MariaDB", Dialect::Mariadb, (10, 11)),
        ] {
            let server = Server::from_version(text).unwrap();
            assert_eq!((server.dialect, server.version), (dialect, version), "{text}");
        }
    }

    #[test]
    fn what_is_not_safe_is_refused_with_the_reason() {
        for (pairs, reason) in [
            (&[("version", "5.7.44")][..], "8.0 or newer"),
            (&[("version", "5.7.25-TiDB-v6.1.0")], "6.5 or newer"),
            (&[("version", "10.5.2-MariaDB")], "10.6 or newer"),
            (&[("version", "")], "not understood"),
            (&[("version", "9.7.4"), ("read_only", "ON")], "read-only"),
            (&[("version", "9.7.4"), ("super_read_only", "1")], "read-only"),
            (&[("version", "12.0.2-MariaDB"), ("read_only", "NO_LOCK")], "read-only"),
            (&[("version", "8.0.11-TiDB-v8.1.0"), ("tidb_super_read_only", "ON")], "read-only"),
            (&[("version", "11.8.9-MariaDB"), ("wsrep_on", "ON")], "Galera"),
            (
                &[
                    ("version", "8.4.0"),
                    ("group_replication_group_name", "aaaaaaaa"),
                    ("group_replication_single_primary_mode", "OFF"),
                ],
                "single-primary",
            ),
        ] {
            let error = Server::from_variables(&variables(pairs)).unwrap_err();
            assert!(matches!(error, MetadataError::Unsupported { .. }), "{error:?}");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn a_usual_server_is_accepted() {
        for pairs in [
            &[("version", "9.7.4-2"), ("read_only", "OFF"), ("group_replication_single_primary_mode", "ON")]
                [..],
            &[("version", "11.8.9-MariaDB"), ("wsrep_on", "OFF"), ("read_only", "OFF")],
            &[("version", "8.0.11-TiDB-v8.1.0"), ("tidb_restricted_read_only", "OFF")],
        ] {
            assert!(Server::from_variables(&variables(pairs)).is_ok());
        }
    }

    #[test]
    fn only_a_pool_connection_is_ended_soon() {
        let setup =
            |purpose| Dialect::Mysql.session_setup(purpose, Duration::from_secs(2), Duration::from_secs(10));
        assert!(setup(Purpose::Pool).contains("wait_timeout = 5,"));
        assert!(setup(Purpose::Channel).contains("wait_timeout = 60,"));
        let migration = setup(Purpose::Migration);
        assert!(
            !migration.contains(" wait_timeout") && !migration.contains("max_execution_time"),
            "{migration}"
        );
        assert!(migration.contains("innodb_lock_wait_timeout = 2"));
    }
}
