//! The one error type of stores and observations.

use std::error::Error as StdError;
use std::fmt;

/// The result of every store and observation call.
pub type Result<T, E = MetadataError> = std::result::Result<T, E>;

/// What went wrong, classed by what the caller can do about it.
///
/// No variant ever carries a password: connection strings and URIs are masked before they get here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The token that the call carried is over: somebody else holds the role now, or nobody does.
    /// Stop acting in that role; nothing was changed.
    #[error("fenced: {what}")]
    Fenced {
        /// Which token was refused, for a log line.
        what: String,
    },
    /// The row moved since it was read. Nothing was changed; read again and decide again.
    #[error("conflict: {what}")]
    Conflict {
        /// Which row moved, and how.
        what: String,
    },
    /// The thing that was named does not exist. Nothing was changed.
    #[error("{what} does not exist")]
    NotFound {
        /// What was looked for, with its key.
        what: String,
    },
    /// The name is taken by another live thing. Nothing was changed.
    #[error("{what} already exists")]
    AlreadyExists {
        /// What is there already, with its key.
        what: String,
    },
    /// The state machine has no such edge. Nothing was changed.
    #[error("{what} cannot go from {from} to {to}")]
    InvalidTransition {
        /// Whose state it is.
        what: String,
        /// The state it is in.
        from: String,
        /// The state that was asked for.
        to: String,
    },
    /// An argument is not acceptable. Nothing was sent to the database.
    #[error("invalid {field}: {reason}")]
    InvalidArgument {
        /// The name of the argument, as the API spells it.
        field: &'static str,
        /// The value (masked where secret) and what would be right.
        reason: String,
    },
    /// The database cannot serve the call now, after the retries that were due. Nothing was changed.
    #[error("{transaction}: the database is unavailable: {source}")]
    Unavailable {
        /// The name of the transaction.
        transaction: &'static str,
        /// What the driver said.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The answer to a COMMIT (or to a write that is its own transaction) was lost: it may or may not have
    /// been applied. Resolve it by a locking re-read, or by repeating an idempotent call.
    #[error("{transaction}: the outcome is unknown: {source}")]
    Unknown {
        /// The name of the transaction.
        transaction: &'static str,
        /// What the driver said.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A stored row does not decode. The row is left as it is.
    #[error("corrupt row: table {table}, key {key}, column {column}: {reason}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The row's key, as text.
        key: String,
        /// The column that does not decode.
        column: &'static str,
        /// What was found and what was expected.
        reason: String,
    },
    /// The database's schema is not the one this binary works with: migrations are missing, half done, or
    /// newer than the binary.
    #[error("schema: {reason}")]
    Schema {
        /// What is wrong and what to run.
        reason: String,
    },
    /// The database is one that the store cannot be safe on: read-only, an unsupported version or mode.
    #[error("unsupported database: {reason}")]
    Unsupported {
        /// What was found and what would be right.
        reason: String,
    },
    /// Nobody is known to hold a valid controller lease now.
    #[error("no controller holds a valid lease")]
    NoController,
}

impl MetadataError {
    /// A [`MetadataError::Fenced`].
    pub fn fenced(what: impl Into<String>) -> Self {
        Self::Fenced { what: what.into() }
    }

    /// A [`MetadataError::Conflict`].
    pub fn conflict(what: impl Into<String>) -> Self {
        Self::Conflict { what: what.into() }
    }

    /// A [`MetadataError::NotFound`].
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// A [`MetadataError::AlreadyExists`].
    pub fn already_exists(what: impl Into<String>) -> Self {
        Self::AlreadyExists { what: what.into() }
    }

    /// A [`MetadataError::InvalidArgument`].
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { field, reason: reason.into() }
    }

    /// A [`MetadataError::InvalidTransition`].
    pub fn transition(what: impl Into<String>, from: impl fmt::Display, to: impl fmt::Display) -> Self {
        Self::InvalidTransition { what: what.into(), from: from.to_string(), to: to.to_string() }
    }

    /// A [`MetadataError::Corrupt`].
    pub fn corrupt(
        table: &'static str,
        key: impl fmt::Display,
        column: &'static str,
        reason: impl fmt::Display,
    ) -> Self {
        Self::Corrupt { table, key: key.to_string(), column, reason: reason.to_string() }
    }

    /// A [`MetadataError::Schema`].
    pub fn schema(reason: impl Into<String>) -> Self {
        Self::Schema { reason: reason.into() }
    }

    /// Whether the caller has lost the role that its token stood for.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }

    /// Whether the database, not the request, is at fault, so that the same call may work later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unknown { .. })
    }
}
