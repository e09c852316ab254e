//! Which server, as whom: the upstream URI, and connections made by it.

use std::time::Duration;

use capture_runtime::task::TaskError;
use metadata_api::model::SecretUri;
use mysql_async::{Conn, DriverError, Opts, OptsBuilder, SslOpts};

use crate::params::{Params, UriField};

/// How long connecting may take, handshake included.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer to one of our own questions may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// A row event holds a row twice, and a row may be as large as the server's `max_allowed_packet`.
const LARGEST_PACKET: usize = 1 << 30;

/// How far TLS is wanted; `MySQL`'s own words and meanings. Its `VERIFY_CA` is left out: the driver cannot check a
/// certificate without the name in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SslMode {
    Disabled,
    Preferred,
    Required,
    VerifyIdentity,
}

/// A server and an account on it.
#[derive(Clone)]
pub(super) struct Endpoint {
    uri: SecretUri,
    plain: Opts,
    tls: Option<Opts>,
    mode: SslMode,
    db: Option<String>,
}

impl Endpoint {
    /// Takes an upstream URI apart.
    pub(super) fn from_uri(uri: &SecretUri) -> Result<Self, TaskError> {
        let params = Params::parse(UriField::Upstream, uri, &["ssl-mode", "ssl-ca"])?;
        let url = params.url();
        if url.host_str().unwrap_or_default().is_empty() {
            return Err(params.invalid("it names no host; it must be mysql://user:password@host:port/[db]"));
        }
        if url.username().is_empty() {
            return Err(params.invalid("it names no user; it must be mysql://user:password@host:port/[db]"));
        }
        if url.fragment().is_some() {
            return Err(params.invalid("`#` must be written as %23"));
        }
        let mut bare = url.clone();
        bare.set_query(None);
        // The driver's own errors may show what was given.
        let opts = Opts::from_url(bare.as_str()).map_err(|_| {
            params.invalid("user, password and database must be UTF-8, with % and / percent-encoded")
        })?;
        let db = opts.db_name().filter(|db| !db.is_empty()).map(str::to_owned);
        if url.path().trim_matches('/').contains('/') {
            return Err(
                params.invalid("its path has several parts; it must be the name of one database, or empty")
            );
        }
        let mode = ssl_mode(&params)?;
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let builder = OptsBuilder::from_opts(opts)
            .ip_or_hostname(host)
            .tcp_port(url.port().unwrap_or(3306))
            .db_name(None::<String>)
            .prefer_socket(false)
            .stmt_cache_size(0)
            .max_allowed_packet(Some(LARGEST_PACKET))
            .wait_timeout(Some(28_800))
            .tcp_keepalive(Some(Duration::from_secs(10)))
            .setup(vec!["SET time_zone = '+00:00'"]);
        let tls = (mode != SslMode::Disabled)
            .then(|| Opts::from(builder.clone().ssl_opts(ssl_opts(mode, params.get("ssl-ca")))));
        Ok(Self { uri: uri.clone(), plain: builder.into(), tls, mode, db })
    }

    /// The database whose changes are wanted; all when there is none.
    pub(super) fn db(&self) -> Option<&str> {
        self.db.as_deref()
    }

    /// A refusal of the URI; `reason` says what would be right.
    pub(super) fn invalid(&self, reason: impl std::fmt::Display) -> TaskError {
        UriField::Upstream.invalid(&self.uri, reason)
    }

    /// A refusal of the server's settings; `reason` says what would be right.
    pub(super) fn misconfigured(&self, reason: impl std::fmt::Display) -> TaskError {
        TaskError::fatal(
            "CDC:ErrMySQLInvalidConfig",
            format!("invalid config of the MySQL server: upstream_uri '{}': {reason}", self.uri),
        )
    }

    /// The connection could not be made, or was lost.
    pub(super) fn lost(&self, reason: impl std::fmt::Display) -> TaskError {
        TaskError::retryable(
            "CDC:ErrMySQLConnectionError",
            format!("fail to open MySQL connection: upstream_uri '{}': {reason}", self.uri),
        )
    }

    /// Something that the source cannot do, or that trying again does not mend.
    pub(super) fn unable(&self, reason: impl std::fmt::Display) -> TaskError {
        TaskError::fatal(
            "CDC:ErrChangefeedUnretryable",
            format!("the changefeed cannot go on: upstream_uri '{}': {reason}", self.uri),
        )
    }

    /// The binlog does not reach back that far.
    pub(super) fn purged(&self, reason: impl std::fmt::Display) -> TaskError {
        TaskError::fatal(
            "CDC:ErrStartTsBeforeGC",
            format!(
                "fail to create or maintain changefeed because the binlog of '{}' does not reach back that far: \
                 {reason}",
                self.uri
            ),
        )
    }

    /// Connects, and logs in.
    pub(super) async fn connect(&self) -> Result<Conn, TaskError> {
        let connecting = async {
            let Some(tls) = &self.tls else { return Conn::new(self.plain.clone()).await };
            match Conn::new(tls.clone()).await {
                Err(mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer))
                    if self.mode == SslMode::Preferred =>
                {
                    Conn::new(self.plain.clone()).await
                }
                other => other,
            }
        };
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(error)) => Err(self.lost(error)),
            Err(_) => Err(self.lost(format_args!("no answer within {} s", CONNECT_LIMIT.as_secs()))),
        }
    }

    /// Waits for an answer to one of our own questions.
    pub(super) async fn ask<T>(
        &self,
        question: impl Future<Output = mysql_async::Result<T>>,
    ) -> Result<T, TaskError> {
        self.bounded(question).await?.map_err(|error| self.lost(error))
    }

    /// As [`Self::ask`]; the caller looks at what the server says.
    pub(super) async fn bounded<T>(&self, question: impl Future<Output = T>) -> Result<T, TaskError> {
        tokio::time::timeout(ANSWER_LIMIT, question)
            .await
            .map_err(|_| self.lost(format_args!("no answer within {} s", ANSWER_LIMIT.as_secs())))
    }
}

fn ssl_mode(params: &Params<'_>) -> Result<SslMode, TaskError> {
    let mode = match params.get("ssl-mode").map(|text| text.to_ascii_lowercase().replace('_', "-")).as_deref()
    {
        None | Some("preferred") => SslMode::Preferred,
        Some("disabled") => SslMode::Disabled,
        Some("required") => SslMode::Required,
        Some("verify-identity") => SslMode::VerifyIdentity,
        Some(other) => {
            return Err(params.invalid(format_args!(
                "parameter `ssl-mode` is `{}`; it must be disabled, preferred, required or verify-identity",
                other.escape_debug()
            )));
        }
    };
    if params.get("ssl-ca").is_some() && mode != SslMode::VerifyIdentity {
        return Err(params.invalid("parameter `ssl-ca` needs ssl-mode=verify-identity"));
    }
    Ok(mode)
}

fn ssl_opts(mode: SslMode, ca: Option<&str>) -> SslOpts {
    let opts = SslOpts::default();
    match mode {
        SslMode::Disabled | SslMode::Preferred | SslMode::Required => {
            opts.with_danger_accept_invalid_certs(true).with_danger_skip_domain_validation(true)
        }
        SslMode::VerifyIdentity => match ca {
            // Who names a CA trusts that one only.
            Some(path) => opts
                .with_root_certs(vec![std::path::PathBuf::from(path).into()])
                .with_disable_built_in_roots(true),
            None => opts,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Result<Endpoint, TaskError> {
        Endpoint::from_uri(&SecretUri::parse("upstream_uri", text).unwrap())
    }

    #[test]
    fn the_parts_of_a_uri() {
        let found =
            endpoint("mysql://u%40x:p%2Fw@db.example:3307/sh%C3%B6p?ssl-mode=VERIFY_IDENTITY&ssl-ca=/ca.pem")
                .unwrap();
        assert_eq!((found.db(), found.mode), (Some("shöp"), SslMode::VerifyIdentity));
        assert_eq!((found.plain.user(), found.plain.pass()), (Some("u@x"), Some("p/w")));
        assert_eq!((found.plain.ip_or_hostname(), found.plain.tcp_port()), ("db.example", 3307));
        let found = endpoint("mysql://u@[::1]").unwrap();
        assert_eq!((found.db(), found.mode), (None, SslMode::Preferred));
        assert_eq!((found.plain.ip_or_hostname(), found.plain.tcp_port()), ("::1", 3306));
        assert!(endpoint("mysql://u@h/?ssl-mode=disabled").unwrap().tls.is_none());
    }

    #[test]
    fn what_is_wrong_is_refused_without_the_password() {
        for (text, wanted) in [
            ("mysql://u:hunter2@h/db?color=red", "`color` is unknown; known are ssl-mode, ssl-ca"),
            ("mysql://u:hunter2@h/a/b", "several parts"),
            ("mysql://:hunter2@h/", "names no user"),
            ("mysql:///db", "names no host"),
            ("mysql://u:hunter2@h/db#x", "%23"),
            ("mysql://u:hunter2@h/?ssl-mode=maybe", "`ssl-mode` is `maybe`"),
            ("mysql://u:hunter2@h/?ssl-ca=/x", "needs ssl-mode=verify-identity"),
        ] {
            let error = endpoint(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
            assert_eq!(error.code, "CDC:ErrAPIInvalidParam");
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(wanted) && shown.contains("upstream_uri"), "{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}
