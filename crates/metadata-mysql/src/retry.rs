//! The retry table: what a failed statement, COMMIT or connection means, and how long to wait before another try.
//!
//! ```text
//! before COMMIT   lock wait, deadlock, write conflict, full server   nothing was applied: again
//!                 connection lost, timeout                           nothing was applied: again, on another connection
//!                 read-only server                                   again, with every pooled connection dropped
//!                 anything else                                      the caller's to know
//! COMMIT          answered with one of COMMIT_REFUSED                nothing was applied: again
//!                 anything else that is not OK                       Unknown
//! one statement   the server's answer, unless one of UNDETERMINED    as before COMMIT
//! (autocommit)    no answer                                          Unknown
//! ```

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use metadata_api::MetadataError;

pub(crate) type TxResult<T> = Result<T, TxError>;

/// Why a transaction's closure, or the connection under it, failed.
#[derive(Debug)]
pub(crate) enum TxError {
    /// The answer is final: it goes to the caller as it is.
    Store(MetadataError),
    /// The driver's, to be classed.
    Db(sqlx::Error),
    /// A row that is written without the fence moved between two statements: the closure wants to run again.
    Moved(&'static str),
    /// Nothing came back in time; the connection is gone.
    TimedOut(&'static str, Duration),
    /// The server turned out to be read-only.
    ReadOnly,
}

impl From<MetadataError> for TxError {
    fn from(error: MetadataError) -> Self {
        Self::Store(error)
    }
}

impl From<sqlx::Error> for TxError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error)
    }
}

impl std::fmt::Display for TxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Db(error) => error.fmt(f),
            Self::Moved(what) => write!(f, "{what} moved while it was being written, again and again"),
            Self::TimedOut(what, after) => write!(f, "{what} took longer than {after:?}"),
            Self::ReadOnly => {
                f.write_str("the server is read-only; connect to the primary (after a failover: wait for it)")
            }
        }
    }
}

impl std::error::Error for TxError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Db(error) => Some(error),
            _ => None,
        }
    }
}

/// What an error says about the transaction that it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The server refused it, and would not next time. The connection is good.
    Again,
    /// The connection is gone, or cannot be trusted any more.
    Lost,
    /// The server cannot write: every pooled connection leads to it.
    Demoted,
    /// Another try would give the same.
    Final,
}

/// 1020: `MariaDB`'s snapshot isolation met a newer row. 1040 and 1203: too many connections. 1205: lock wait. 1213: deadlock. 1062: a duplicate; every closure looks first, so
/// a second run finds it. 1317, 1969 and 3024: the statement was killed or took too long. 1412: somebody
/// altered a table since the snapshot began. 8002, 8005, 8022, 8028, 9004,
/// 9007: `TiDB`'s conflicts; 9001 to 9003, 9005: its storage is busy or has no leader.
const AGAIN: [u16; 20] = [
    1020, 1040, 1062, 1203, 1205, 1213, 1317, 1412, 1969, 3024, 8002, 8005, 8022, 8028, 9001, 9002, 9003,
    9004, 9005, 9007,
];

/// 1053 shutdown, 1152 to 1161 network, 1927 killed, 2006 and 2013 (a proxy's), 3168 and 3169 (session closed by the
/// server), 4031 idle too long, 8229 (`TiDB`: idle transaction ended).
const LOST: [u16; 15] =
    [1053, 1152, 1153, 1154, 1158, 1159, 1160, 1161, 1927, 2006, 2013, 3168, 3169, 4031, 8229];

/// 1290, 1792, 1836: read-only in its various ways; 3100: a member of a group refuses.
const DEMOTED: [u16; 4] = [1290, 1792, 1836, 3100];

/// The answers to COMMIT that say: nothing was applied. `TiDB` reports there what others report at the statement.
const COMMIT_REFUSED: [u16; 10] = [1062, 1205, 1213, 1290, 1836, 8002, 8005, 8022, 8028, 9007];

/// `TiDB`'s catch-all, told apart by its text: a pessimistic lock lived in memory and was lost.
const TIDB_UNKNOWN: u16 = 1105;
const TIDB_LOST_LOCK: &str = "PessimisticLockNotFound";
/// The same of a statement: its row moved each time that its lock was to be had, and it gave up before it wrote anything.
const TIDB_CROWDED: &str = "pessimistic lock retry limit reached";

/// 1105: anything; 1180: an error during COMMIT; 1317: interrupted; 8501: `TiDB` itself does not know. In answer to a statement
/// that is its own transaction they leave open whether it was applied.
const UNDETERMINED: [u16; 4] = [TIDB_UNKNOWN, 1180, 1317, 8501];

fn server_error(error: &sqlx::Error) -> Option<(u16, &str)> {
    let sqlx::Error::Database(error) = error else { return None };
    let error = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()?;
    Some((error.number(), error.message()))
}

/// Whether the user may not do what the statement does.
pub(crate) fn is_denied(error: &sqlx::Error) -> bool {
    matches!(server_error(error), Some((1044 | 1142 | 1143 | 1227 | 1370 | 8121, _)))
}

/// Whether the table is not there.
pub(crate) fn is_no_such_table(error: &sqlx::Error) -> bool {
    matches!(server_error(error), Some((1146, _)))
}

/// What `error` says before COMMIT was sent.
pub(crate) fn classify(error: &TxError) -> Class {
    match error {
        TxError::Store(_) => Class::Final,
        TxError::Moved(_) => Class::Again,
        TxError::TimedOut(..) => Class::Lost,
        TxError::ReadOnly => Class::Demoted,
        TxError::Db(error) => match (server_error(error), error) {
            (Some((number, message)), _) => classify_number(number, message),
            (
                None,
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::WorkerCrashed,
            ) => Class::Lost,
            _ => Class::Final,
        },
    }
}

fn classify_number(number: u16, message: &str) -> Class {
    match number {
        TIDB_UNKNOWN if message.contains(TIDB_LOST_LOCK) || message.contains(TIDB_CROWDED) => Class::Again,
        number if AGAIN.contains(&number) => Class::Again,
        number if LOST.contains(&number) => Class::Lost,
        number if DEMOTED.contains(&number) => Class::Demoted,
        _ => Class::Final,
    }
}

/// Whether the server answered COMMIT with a refusal, so that certainly nothing was applied.
pub(crate) fn commit_refused(error: &sqlx::Error) -> bool {
    server_error(error).is_some_and(|(number, message)| {
        COMMIT_REFUSED.contains(&number) || (number == TIDB_UNKNOWN && message.contains(TIDB_LOST_LOCK))
    })
}

/// Whether the server answered, and knew what it said: then an autocommit statement that failed was not applied.
pub(crate) fn was_answered(error: &TxError) -> bool {
    match error {
        TxError::Db(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_))
        | TxError::TimedOut(..) => false,
        // The server ended the session, perhaps in the middle.
        TxError::Db(error) => {
            server_error(error).is_none_or(|(number, message)| statement_refused(number, message))
        }
        TxError::Store(_) | TxError::Moved(_) | TxError::ReadOnly => true,
    }
}

/// Whether this answer to a statement that is its own transaction says that it was not applied.
fn statement_refused(number: u16, message: &str) -> bool {
    let without_lock =
        number == TIDB_UNKNOWN && (message.contains(TIDB_LOST_LOCK) || message.contains(TIDB_CROWDED));
    without_lock || !(LOST.contains(&number) || UNDETERMINED.contains(&number))
}

/// The caller's error, once trying again is over.
pub(crate) fn into_metadata_error(transaction: &'static str, error: TxError) -> MetadataError {
    if let TxError::Store(error) = error {
        return error;
    }
    if let TxError::Db(db) = &error {
        match server_error(db) {
            Some((1146 | 1054, message)) => {
                return MetadataError::schema(format!("{message}; run `cdc migrate` with this binary"));
            }
            Some((1044, message)) => {
                return MetadataError::Unsupported {
                    reason: format!(
                        "the server refuses the user: {message}; GRANT SELECT, INSERT, UPDATE, DELETE ON that database \
                         TO that user"
                    ),
                };
            }
            Some((1045 | 1698, message)) => {
                return MetadataError::Unsupported {
                    reason: format!(
                        "the server refuses the user: {message}; the name or the password is wrong, it may not come \
                         from this host, or it must use TLS or a client certificate (ssl-mode, ssl-cert, ssl-key)"
                    ),
                };
            }
            Some((3159, message)) => {
                return MetadataError::Unsupported {
                    reason: format!("{message}; the store's URL says ssl-mode=DISABLED"),
                };
            }
            Some((_, message)) if is_denied(db) => {
                return MetadataError::Unsupported {
                    reason: format!("the server refuses the user: {message}; see README for the grants"),
                };
            }
            Some((1049, message)) => {
                return MetadataError::Unsupported {
                    reason: format!("{message}; create the database first"),
                };
            }
            _ => {}
        }
        // Each `fetch_one` is of a row that the migrations wrote.
        if matches!(db, sqlx::Error::RowNotFound) {
            return first_rows_missing();
        }
        if let sqlx::Error::ColumnDecode { index, source } = db {
            return MetadataError::corrupt(
                "(joined)",
                transaction,
                "(see reason)",
                format!("{index}: {source}"),
            );
        }
    }
    MetadataError::Unavailable { transaction, source: Box::new(error) }
}

/// A row that the migrations wrote, and nobody deletes, is not there.
pub(crate) fn first_rows_missing() -> MetadataError {
    MetadataError::schema(
        "a row that the migrations wrote (in cluster, fence or election) is gone; restore the database from a backup, \
         or start with an empty one",
    )
}

/// The same for a store that is being opened, or migrated: there a TLS that cannot work is for whoever set it up to know.
/// Later on, it may be a server in the middle of changing its certificate.
pub(crate) fn into_opening_error(transaction: &'static str, error: TxError) -> MetadataError {
    let reason = match &error {
        TxError::Db(sqlx::Error::Io(io)) => io.get_ref().and_then(|error| tls_refusal(error.downcast_ref()?)),
        TxError::Db(sqlx::Error::Tls(error)) => Some(format!("TLS: {error}")),
        // The driver's text names a feature of its own that we leave out: a password encrypted for whoever asks.
        TxError::Db(sqlx::Error::Configuration(error)) if error.to_string().contains("RSA") => Some(
            "the user's authentication (caching_sha2_password or sha256_password) sends no password without TLS; the \
             store's URL wants ssl-mode=REQUIRED, or better VERIFY_IDENTITY"
                .to_owned(),
        ),
        TxError::Db(sqlx::Error::Configuration(error)) => Some(error.to_string()),
        _ => None,
    };
    match reason {
        Some(reason) => MetadataError::Unsupported { reason },
        None => into_metadata_error(transaction, error),
    }
}

fn tls_refusal(error: &rustls::Error) -> Option<String> {
    match error {
        rustls::Error::InvalidCertificate(_) => Some(format!(
            "the server's certificate is refused ({error}): it must be of an authority in ssl-ca, and with \
             ssl-mode=VERIFY_IDENTITY for the host's name in the store's URL"
        )),
        rustls::Error::AlertReceived(_) => Some(format!(
            "the server refuses our side of TLS ({error}): ssl-cert must be of an authority that the server knows"
        )),
        rustls::Error::PeerIncompatible(_) => {
            Some(format!("the server's TLS is too old or too weak ({error})"))
        }
        _ => None,
    }
}

/// Delays between tries: jittered, doubling, capped, without end: how long in all is for the caller to bound.
pub(crate) fn delays() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_millis(400))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_retry_table() {
        for number in [1020, 1040, 1205, 1213, 8002, 8005, 8022, 8028, 9004, 9007, 1062] {
            assert_eq!(classify_number(number, ""), Class::Again, "{number}");
        }
        for number in [2006, 2013, 4031, 1927, 1053] {
            assert_eq!(classify_number(number, ""), Class::Lost, "{number}");
        }
        for number in [1290, 1836] {
            assert_eq!(classify_number(number, ""), Class::Demoted, "{number}");
        }
        for number in [1064, 1146, 1045, 1406, 8501] {
            assert_eq!(classify_number(number, ""), Class::Final, "{number}");
        }
        assert_eq!(classify_number(1105, "tikv aborts txn: PessimisticLockNotFound"), Class::Again);
        assert_eq!(classify_number(1105, "pessimistic lock retry limit reached"), Class::Again);
        assert_eq!(classify_number(1105, "something else"), Class::Final);
    }

    #[test]
    fn an_answer_may_leave_the_outcome_open() {
        for number in [1205, 1213, 8022, 9007, 1290, 1064, 1062] {
            assert!(statement_refused(number, ""), "{number}");
        }
        assert!(statement_refused(1105, "tikv aborts txn: PessimisticLockNotFound"));
        assert!(statement_refused(1105, "pessimistic lock retry limit reached"));
        for number in [1105, 1180, 1317, 8501, 2013, 1053] {
            assert!(!statement_refused(number, "something else"), "{number}");
        }
    }

    #[test]
    fn what_the_driver_says_of_the_connection() {
        let io = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert_eq!(classify(&io().into()), Class::Lost);
        assert_eq!(classify(&sqlx::Error::RowNotFound.into()), Class::Final);
        assert_eq!(classify(&TxError::TimedOut("x", Duration::ZERO)), Class::Lost);
        assert_eq!(classify(&TxError::Moved("x")), Class::Again);
        assert!(!commit_refused(&io()));
        assert!(!was_answered(&io().into()));
        assert!(was_answered(&TxError::ReadOnly));
        for number in [1180, 1317, 8501, 2013, 1053] {
            assert!(!statement_refused(number, ""), "{number} does not say what became of the statement");
        }
        for number in [1205, 1213, 1062, 1290, 9007] {
            assert!(statement_refused(number, ""), "{number}");
        }
    }

    #[test]
    fn delays_are_short_and_grow_no_further() {
        let delays: Vec<_> = delays().take(100).collect();
        assert_eq!(delays.len(), 100, "how long in all is for the caller to bound");
        assert!(delays.iter().all(|delay| *delay <= Duration::from_millis(800)), "{delays:?}");
    }

    #[test]
    fn a_final_answer_goes_through_unchanged() {
        let error = into_metadata_error("t", MetadataError::fenced("gone").into());
        assert!(error.is_fenced());
        let error = into_metadata_error("owner.pause", TxError::ReadOnly);
        assert!(error.is_transient() && error.to_string().contains("owner.pause"), "{error}");
    }
}
