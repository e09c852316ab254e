//! Which databases there are to measure.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;
use test_servers::Kind;

/// A database that the store runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Database {
    /// A file.
    Sqlite,
    /// MySQL, in a container.
    Mysql,
    /// `MariaDB`, in a container.
    Mariadb,
    /// `TiDB`, in a container.
    Tidb,
}

impl Database {
    /// The server to start; `None` for the one that needs none.
    pub const fn kind(self) -> Option<Kind> {
        match self {
            Self::Sqlite => None,
            Self::Mysql => Some(Kind::Mysql),
            Self::Mariadb => Some(Kind::Mariadb),
            Self::Tidb => Some(Kind::Tidb),
        }
    }

    /// The present moment, as the store's own statements write it.
    pub const fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "strftime('%Y-%m-%d %H:%M:%f', 'now')",
            _ => "NOW(6)",
        }
    }

    /// How a transaction begins.
    pub const fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Tidb => "BEGIN PESSIMISTIC",
            Self::Mysql | Self::Mariadb => "BEGIN",
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
            Self::Tidb => "tidb",
        })
    }
}
