//! The HTTP client: one try per call, errors as the server words them.

use std::fmt;

use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::api::error::ErrorBody;
use crate::api::model::ServerStatus;
use crate::args::CliFlags;
use crate::exit::Failure;
use crate::version;

/// The oldest server that TiCDC's client talks to.
const OLDEST: semver::Version = semver::Version::new(6, 2, 0);

/// A client of one server.
#[derive(Debug)]
pub struct Client {
    base: Url,
    http: reqwest::Client,
    login: Option<(String, Option<String>)>,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The server refused, or failed.
    Refused {
        /// The HTTP status.
        status: u16,
        /// As the server words it: `[CDC:...]text`.
        message: String,
    },
    /// The server could not be asked, or answered something strange.
    Failed(String),
}

impl CallError {
    /// Whether the server's text has this code. (TiCDC's own client goes by the text too.)
    pub fn has_code(&self, code: &str) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains(code))
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { message, .. } | Self::Failed(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::error(error.to_string())
    }
}

impl Client {
    /// A client as the flags want it. Asks nothing yet.
    ///
    /// # Errors
    /// [`Exit::Usage`](crate::exit::Exit::Usage) when the server's URL or a flag is one that does not work here.
    pub fn new(flags: &CliFlags) -> Result<Self, Failure> {
        if flags.pd.is_some() {
            return Err(Failure::usage(
                "--pd: there is no PD here; name any server of the cluster with --server",
            ));
        }
        if flags.ca.is_some() || flags.cert.is_some() || flags.key.is_some() {
            return Err(Failure::usage(
                "--ca, --cert and --key: TLS is not supported yet; use a plain http:// server",
            ));
        }
        let base = base_url(&flags.server)?;
        let mut http = reqwest::Client::builder();
        if is_local(&base) {
            // As Go's client does: a proxy never stands between a host and itself.
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| Failure::error(format!("the HTTP client: {error}")))?;
        let login = flags.user.clone().map(|user| (user, flags.password.clone()));
        Ok(Self { base, http, login })
    }

    /// What every command does first: is this a server that understands us?
    ///
    /// # Errors
    /// When it cannot be reached, or is too old.
    pub async fn handshake(&self) -> Result<ServerStatus, Failure> {
        let status: ServerStatus = self.get(&["status"], &[]).await?;
        match version::parse(&status.version) {
            Some(found) if found >= OLDEST => Ok(status),
            _ => Err(Failure::error(format!(
                "the server at {} says its version is `{}`; this client needs {OLDEST} or later",
                self.base,
                status.version.escape_debug()
            ))),
        }
    }

    /// `GET`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, CallError> {
        self.call(Method::GET, path, query, None::<&Value>).await
    }

    /// Any call under `/api/v2`. The answer must be JSON that reads as `T`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call<T: DeserializeOwned, B: Serialize>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&B>,
    ) -> Result<T, CallError> {
        let url = self.url(path)?;
        let mut request = self
            .http
            .request(method, url.clone())
            .query(query)
            .header("Accept", "application/json")
            .header("X-client-version", version::RELEASE)
            .header("X-Request-Id", uuid::Uuid::new_v4().to_string());
        if let Some((user, password)) = &self.login {
            request = request.basic_auth(user, password.as_deref());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| unreachable(&self.base, &error))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| unreachable(&self.base, &error))?;
        if !(200..=206).contains(&status.as_u16()) {
            return Err(refused(status.as_u16(), &bytes));
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            CallError::Failed(format!("the answer of {} is not what is expected: {error}", url.path()))
        })
    }

    fn url(&self, path: &[&str]) -> Result<Url, CallError> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| CallError::Failed(format!("--server {}: it is not an HTTP URL", self.base)))?
            .pop_if_empty()
            .extend(["api", "v2"])
            .extend(path);
        Ok(url)
    }
}

fn base_url(text: &str) -> Result<Url, Failure> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let mut url = Url::parse(&with_scheme).map_err(|error| {
        Failure::usage(format!("--server: it is not a URL such as http://127.0.0.1:8300: {error}"))
    })?;
    match url.scheme() {
        "http" if url.host_str().is_some_and(|host| !host.is_empty()) => {}
        "https" => return Err(Failure::usage("--server: TLS is not supported yet; use http://")),
        other => {
            return Err(Failure::usage(format!("--server: the scheme is `{other}`; use http://HOST:PORT")));
        }
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn unreachable(base: &Url, error: &reqwest::Error) -> CallError {
    // reqwest's own text ends before the cause, and names the URL, which may carry a password.
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let place = base.host_str().map_or_else(String::new, |host| {
        format!("{host}:{}", base.port_or_known_default().unwrap_or_default())
    });
    CallError::Failed(format!(
        "cannot reach the server at {place}: {cause}; is it running, and is --server right?"
    ))
}

fn refused(status: u16, bytes: &[u8]) -> CallError {
    let message = match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) if !body.error_msg.is_empty() => body.error_msg,
        _ => {
            let text: String = String::from_utf8_lossy(bytes).chars().take(500).collect();
            format!("call cdc api failed, code={status}, response={text}")
        }
    };
    CallError::Refused { status, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_be_given_without_scheme_and_with_a_base_path() {
        let flags = |server: &str| CliFlags { server: server.to_owned(), ..CliFlags::default() };
        for (server, wanted) in [
            ("127.0.0.1:8300", "http://127.0.0.1:8300/api/v2/changefeeds/a%2Fb"),
            ("http://h:1/", "http://h:1/api/v2/changefeeds/a%2Fb"),
            ("http://h:1/cdc?x=1#y", "http://h:1/cdc/api/v2/changefeeds/a%2Fb"),
        ] {
            let client = Client::new(&flags(server)).unwrap();
            assert_eq!(client.url(&["changefeeds", "a/b"]).unwrap().as_str(), wanted, "{server}");
        }
        for (server, wanted) in
            [("https://h", "TLS"), ("ftp://h", "http://HOST:PORT"), ("http://", "not a URL")]
        {
            let failure = Client::new(&flags(server)).unwrap_err();
            assert!(failure.message.contains(wanted), "{server}: {failure}");
        }
        let with_pd = CliFlags { pd: Some("http://p".into()), ..flags("h:1") };
        assert!(Client::new(&with_pd).unwrap_err().message.contains("--server"));
    }

    #[test]
    fn only_the_servers_own_text_is_shown() {
        let body = br#"{"error_msg":"[CDC:ErrX]no","error_code":"CDC:ErrX"}"#;
        let error = refused(400, body);
        assert_eq!(error.to_string(), "[CDC:ErrX]no");
        assert!(error.has_code("ErrX"));
        assert!(refused(502, b"<html>").to_string().contains("code=502"));
    }
}
