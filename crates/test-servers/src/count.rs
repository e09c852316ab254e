//! A proxy that counts round trips: how often a client asks the server and waits for the answer.
//!
//! It reads the headers of the client's packets and nothing else, so the connection must be plain
//! (`ssl-mode=DISABLED`). A command begins a packet sequence with number 0; the packets of the log-in have higher numbers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use url::Url;

/// Commands that the server does not answer: `COM_QUIT`, `COM_STMT_SEND_LONG_DATA`, `COM_STMT_CLOSE`.
const UNANSWERED: [u8; 3] = [0x01, 0x18, 0x19];

/// The proxy. Dropping it ends its connections.
pub struct RoundTrips {
    address: SocketAddr,
    count: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl RoundTrips {
    /// Listens on a free port of the loopback address for the server of `url`.
    ///
    /// # Errors
    /// When the URL names no host and port, or no port can be had.
    pub async fn before(url: &str) -> io::Result<Self> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "the URL names no host and port");
        let parsed = Url::parse(url).map_err(|_| invalid())?;
        let server = format!("{}:{}", parsed.host_str().ok_or_else(invalid)?, parsed.port().unwrap_or(3306));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let count = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&count);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (server, counter) = (server.clone(), Arc::clone(&counter));
                // Either side's end is the connection's; both sides notice.
                connections.spawn(async move { forward(client, &server, &counter).await });
            }
        });
        Ok(Self { address, count, accepting })
    }

    /// `url`, led through the proxy.
    ///
    /// # Panics
    /// When `url` is none.
    pub fn through(&self, url: &str) -> String {
        let mut url = Url::parse(url).expect("a server's URL");
        url.set_host(Some(&self.address.ip().to_string())).expect("a host");
        url.set_port(Some(self.address.port())).expect("a port");
        url.set_query(Some("ssl-mode=DISABLED"));
        url.into()
    }

    /// How many round trips there were so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }
}

impl Drop for RoundTrips {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(client: TcpStream, server: &str, count: &AtomicU64) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asks = async {
        let mut packets = Packets::default();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from_client.read(&mut buffer).await?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                return to_server.shutdown().await;
            };
            // Before the server can answer, so that whoever has the answer sees the count.
            count.fetch_add(packets.round_trips(bytes), Ordering::AcqRel);
            to_server.write_all(bytes).await?;
        }
    };
    let answers = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(asks, answers).map(drop)
}

/// Where in the client's stream of packets we are.
#[derive(Default)]
struct Packets {
    header: Vec<u8>,
    /// Bytes of the present packet still to come.
    left: usize,
    /// The next byte is a command's first.
    command: bool,
}

impl Packets {
    /// How many commands that are answered begin in `bytes`.
    fn round_trips(&mut self, bytes: &[u8]) -> u64 {
        let mut count = 0;
        let mut rest = bytes.iter().copied();
        while let Some(byte) = rest.next() {
            if self.left == 0 {
                self.header.push(byte);
                if let [low, middle, high, sequence] = self.header[..] {
                    self.left = usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16;
                    self.command = sequence == 0;
                    self.header.clear();
                }
                continue;
            }
            if self.command {
                count += u64::from(!UNANSWERED.contains(&byte));
                self.command = false;
            }
            let skipped = (self.left - 1).min(rest.len());
            self.left -= 1 + skipped;
            if skipped > 0 {
                rest.nth(skipped - 1);
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&length[..3], &[sequence], payload].concat()
    }

    #[test]
    fn commands_are_counted_however_the_stream_is_cut() {
        let stream = [
            packet(1, b"\x03 log-in"),
            packet(3, b"password"),
            packet(0, b"\x03SELECT 1"),
            packet(0, b"\x19\0\0\0\0"),
            packet(0, b"\x16SELECT ?"),
            packet(0, b"\x17\x01\0\0\0"),
            packet(0, b"\x01"),
        ]
        .concat();
        for size in 1..=stream.len() {
            let mut packets = Packets::default();
            let count: u64 = stream.chunks(size).map(|part| packets.round_trips(part)).sum();
            assert_eq!(count, 3, "in parts of {size}");
        }
    }
}
