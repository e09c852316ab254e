//! A TCP proxy between a client and a MySQL server, which fails where a test says.
//!
//! It reads packets, so it knows each statement's text and each answer's end, and can act between any two of them:
//!
//! ```text
//! client --request--> [Before] --> server      nothing of it was seen by the server
//!                     [Sent]                   the server works on it
//! client <-- [Answered] <--answer-- server     it was executed, and nobody knows
//! ```
//!
//! What is ordered ([`Rule`]) happens exactly there and so many times; everything else passes unchanged. Without orders the
//! proxy only writes down what comes by ([`Proxy::seen`]), from which a test learns where it could act.
//!
//! The client has to connect without TLS: [`Proxy::url`] says so.

mod connection;
mod packet;
mod script;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use url::Url;

pub use script::{Act, Command, CommandKind, Point, Rule, When};

use script::Script;

/// A running proxy. Dropping it ends every connection through it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    /// Where the server is: `host:port`.
    server: Mutex<String>,
    script: Mutex<Script>,
    connections: AtomicU64,
    /// What each round trip takes longer, in microseconds.
    latency: AtomicU64,
    /// How many connections to the server are open, and how many of them an order has broken or their client has left.
    open: watch::Sender<Open>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Open {
    all: usize,
    broken: usize,
}

/// Counts one connection to the server for as long as it lives.
struct ServerConnection {
    shared: Arc<Shared>,
    broken: bool,
}

impl ServerConnection {
    fn set_broken(&mut self, broken: bool) {
        let before = std::mem::replace(&mut self.broken, broken);
        if before != broken {
            self.shared.open.send_modify(|open| {
                open.broken = open.broken + usize::from(broken) - usize::from(before);
            });
        }
    }
}

impl Drop for ServerConnection {
    fn drop(&mut self) {
        self.set_broken(false);
        self.shared.open.send_modify(|open| open.all -= 1);
    }
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meet(&self, command: Command) -> Option<(Point, Act)> {
        self.script().meet(command)
    }

    fn server_connection(self: &Arc<Self>) -> ServerConnection {
        self.open.send_modify(|open| open.all += 1);
        ServerConnection { shared: Arc::clone(self), broken: false }
    }

    fn server(&self) -> String {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn latency(&self) -> Duration {
        Duration::from_micros(self.latency.load(Ordering::Relaxed))
    }
}

impl Proxy {
    /// Listens on a port of its own, for the server that `url` names.
    pub async fn start(url: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            server: Mutex::new(address(url)),
            script: Mutex::default(),
            connections: AtomicU64::new(0),
            latency: AtomicU64::new(0),
            open: watch::Sender::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self { port, shared, accepting }
    }

    /// The URL by which a database of the server is reached through the proxy.
    pub fn url(&self, database: &str) -> String {
        let mut url = Url::parse(database).expect("a database's URL");
        url.set_host(Some("127.0.0.1")).expect("it takes a host");
        url.set_port(Some(self.port)).expect("it takes a port");
        url.set_query(Some("ssl-mode=disabled"));
        url.into()
    }

    /// Replaces the orders, and forgets what came by.
    pub fn order(&self, rules: impl Into<Vec<Rule>>) {
        *self.shared.script() = Script::new(rules.into());
    }

    /// Every round trip since the last [`Self::order`].
    pub fn seen(&self) -> Vec<Command> {
        self.shared.script().seen().to_vec()
    }

    /// Those of them that met an order.
    pub fn met(&self) -> Vec<Command> {
        self.shared.script().met().to_vec()
    }

    /// Leads new connections to the server that `url` names: it has moved.
    pub fn lead_to(&self, url: &str) {
        *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner) = address(url);
    }

    /// What each round trip takes longer from now on.
    pub fn set_latency(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).expect("a short time");
        self.shared.latency.store(micros, Ordering::Relaxed);
    }

    /// How many connections to the server are open. One whose client has left counts until the server has closed it.
    pub fn server_connections(&self) -> usize {
        self.shared.open.borrow().all
    }

    /// Returns when no more than `count` connections to the server are open.
    pub async fn wait_for_connections(&self, count: usize) {
        // The sender is in `self`.
        let _ = self.shared.open.subscribe().wait_for(|open| open.all <= count).await;
    }

    /// Returns when the server has closed every connection that an order has broken, and every one whose client has left:
    /// what they had sent is done, or was given up.
    pub async fn wait_for_broken(&self) {
        // The sender is in `self`.
        let _ = self.shared.open.subscribe().wait_for(|open| open.broken == 0).await;
    }
}

/// `host:port` of a URL.
fn address(url: &str) -> String {
    let url = Url::parse(url).expect("a server's URL");
    format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(3306))
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let number = shared.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(connection::serve(Arc::clone(&shared), number, client));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
