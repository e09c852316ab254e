//! Real database servers for the tests.
//!
//! A test asks for a server's URL. Where a server already runs, the environment names it (`CDC_TEST_MYSQL_URL`, ..); else
//! one is started in a container, from the image that `tests/servers/up` has made (`CDC_TEST_MYSQL_IMAGE`, ..). It is
//! shared by all tests of the process and removed when the process ends, in whatever way. Without either the test
//! **fails** and says how to get one; no test passes for want of a server.

#![expect(
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::expect_used,
    reason = "for tests only: what is missing fails the test that wanted it"
)]

pub mod count;
mod pki;
pub mod proxy;

use std::env;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use testcontainers::core::{IntoContainerPort as _, Mount, WaitFor};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use url::Url;
use uuid::Uuid;

pub use pki::Pki;

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// MySQL.
    Mysql,
    /// `MariaDB`.
    Mariadb,
    /// `TiDB`, with its storage in the same process.
    Tidb,
}

/// How long a server may take from its container's start to its first answer. Machines of the tests are busy.
const START_LIMIT: Duration = Duration::from_mins(3);
/// How many clients may connect at once, unless told otherwise.
const MAX_CONNECTIONS: u32 = 1000;

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
            Self::Tidb => "tidb",
        }
    }

    fn variable(self, what: &str) -> String {
        format!("CDC_TEST_{}_{what}", self.name().to_ascii_uppercase())
    }

    const fn default_image(self) -> &'static str {
        match self {
            Self::Mysql => "cdc-test/mysql:9.7",
            Self::Mariadb => "cdc-test/mariadb:11.8",
            Self::Tidb => "cdc-test/tidb:8.1",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Mysql | Self::Mariadb => 3306,
            Self::Tidb => 4000,
        }
    }

    fn help(self, reason: impl Display) -> String {
        format!(
            "this test needs a {name} server and has none: {reason}\n\
             Run the tests by `make test`, which builds what is missing; or `make servers` first; or set {url} to the URL \
             of a server that runs, as in mysql://root@127.0.0.1:{port}",
            name = self.name(),
            url = self.variable("URL"),
            port = self.port(),
        )
    }

    /// The URL, without a database, of the server that the environment names.
    pub fn given_url(self) -> Option<String> {
        env::var(self.variable("URL")).ok().map(|url| url.trim_end_matches('/').to_owned())
    }

    /// Starts a server of its own, which ends with the returned value. Its data is in memory: the tests create hundreds of
    /// databases, and each file is synced.
    pub async fn start(self) -> Server {
        self.start_with(&[], &[]).await
    }

    /// The same with its data on disk, so that it may be restarted: [`Server::crash_and_restart`].
    pub async fn start_on_disk(self) -> Server {
        self.or_help(self.try_start(Storage::Disk, MAX_CONNECTIONS).await)
    }

    /// The same that speaks TLS with the certificate of `pki`, and wants clients' certificates, if they have any, to be of
    /// its authority.
    pub async fn start_with_tls(self, pki: &Pki) -> Server {
        let mut files: Vec<_> = ["ca.pem", "server.pem", "server-key.pem"]
            .map(|name| (format!("/tls/{name}"), pki.read(name)))
            .into();
        let [ca, cert, key] = ["ca=/tls/ca.pem", "cert=/tls/server.pem", "key=/tls/server-key.pem"]
            .map(|it| format!("--ssl-{it}"));
        if self != Self::Tidb {
            return self.start_with(&[ca, cert, key], &files).await;
        }
        let config = "[security]\nssl-ca = \"/tls/ca.pem\"\nssl-cert = \"/tls/server.pem\"\nssl-key = \"/tls/server-key.pem\"\n";
        files.push(("/tls/tidb.toml".to_owned(), config.to_owned()));
        self.start_with(&["--config=/tls/tidb.toml".to_owned()], &files).await
    }

    /// The same with further arguments, and with these files in it.
    pub async fn start_with(self, arguments: &[String], files: &[(String, String)]) -> Server {
        self.or_help(self.launch(Storage::Memory, MAX_CONNECTIONS, arguments, files).await)
    }

    /// A server with a choice of where the data is and how many clients may connect.
    ///
    /// # Errors
    /// What is missing, in words.
    pub async fn try_start(self, storage: Storage, max_connections: u32) -> Result<Server, String> {
        self.launch(storage, max_connections, &[], &[]).await
    }

    fn or_help(self, started: Result<Server, String>) -> Server {
        started.unwrap_or_else(|error| panic!("{}", self.help(error)))
    }

    async fn launch(
        self,
        storage: Storage,
        max_connections: u32,
        arguments: &[String],
        files: &[(String, String)],
    ) -> Result<Server, String> {
        let text = env::var(self.variable("IMAGE")).unwrap_or_else(|_| self.default_image().to_owned());
        let (name, tag) = text.rsplit_once(':').unwrap_or((text.as_str(), "latest"));
        let ready = match self {
            // Not the line of the throw-away server by which the public images initialise: that has port 0.
            Self::Mysql | Self::Mariadb => WaitFor::message_on_stderr("port: 3306  "),
            Self::Tidb => WaitFor::message_on_stdout("server is running MySQL protocol"),
        };
        let image = GenericImage::new(name, tag).with_exposed_port(self.port().tcp()).with_wait_for(ready);
        let mut request = image
            .with_startup_timeout(START_LIMIT)
            .with_env_var("MYSQL_ALLOW_EMPTY_PASSWORD", "yes")
            .with_env_var("MARIADB_ALLOW_EMPTY_ROOT_PASSWORD", "yes");
        let mut command = arguments.to_vec();
        let data = match self {
            Self::Mysql | Self::Mariadb => {
                command.extend([
                    format!("--max-connections={max_connections}"),
                    "--binlog-row-metadata=FULL".to_owned(),
                ]);
                "/var/lib/mysql"
            }
            Self::Tidb => {
                command.extend(["--store=unistore".to_owned(), "--path=/data".to_owned()]);
                "/data"
            }
        };
        if storage == Storage::Memory {
            request = request.with_mount(Mount::tmpfs_mount(data));
        }
        request = request.with_cmd(command);
        for (path, text) in files {
            request = request.with_copy_to(path.as_str(), text.clone().into_bytes());
        }
        let container = request.start().await.map_err(|error| format!("{text}: {error}"))?;
        let guard = remove_at_exit(container.id());
        let mut server =
            Server { kind: self, url: String::new(), direct_url: String::new(), container, _guard: guard };
        server.find().await?;
        Ok(server)
    }

    /// Whether the shared server is somebody else's, who will want no databases left on it.
    pub fn is_borrowed(self) -> bool {
        self.given_url().is_some()
    }

    /// The URL, without a database, of the server that all tests of this process share.
    pub async fn url(self) -> String {
        static MYSQL: OnceCell<(String, Option<Server>)> = OnceCell::const_new();
        static MARIADB: OnceCell<(String, Option<Server>)> = OnceCell::const_new();
        static TIDB: OnceCell<(String, Option<Server>)> = OnceCell::const_new();
        let cell = match self {
            Self::Mysql => &MYSQL,
            Self::Mariadb => &MARIADB,
            Self::Tidb => &TIDB,
        };
        let find = async || {
            if let Some(url) = self.given_url() {
                wait_for_answer(&url).await.unwrap_or_else(|error| panic!("{}", self.help(error)));
                return (url, None);
            }
            let server = self.start().await;
            (server.url.clone(), Some(server))
        };
        let (url, server) = cell.get_or_init(find).await;
        if let Some(server) = server {
            server.assert_alive().await;
        }
        url.clone()
    }
}

/// Where a server keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In memory, where that can be had: for tests.
    Memory,
    /// On the engine's disk, with the image's durable settings: for measurements.
    Disk,
}

/// A server in a container. Dropping it removes the container.
pub struct Server {
    kind: Kind,
    url: String,
    direct_url: String,
    container: ContainerAsync<GenericImage>,
    _guard: Guard,
}

impl Server {
    /// Its URL, without a database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills the server and starts it again on the data that it left; returns when it answers. Its URL is another then. Wants
    /// [`Kind::start_on_disk`].
    pub async fn crash_and_restart(&mut self) {
        self.kill().await;
        self.restart().await;
    }

    /// Kills the server. Wants [`Kind::start_on_disk`], if it is to be started again.
    ///
    /// TiDB is told to stop, and killed when it does not: unistore, its storage in one process, is not made to survive a kill, and
    /// forgets what it has acknowledged in the last moment.
    pub async fn kill(&self) {
        let patience = if self.kind == Kind::Tidb { 10 } else { 0 };
        self.container.stop_with_timeout(Some(patience)).await.expect("it is killed");
    }

    /// Starts a killed server on the data that it left; returns when it answers. Its URL is another then.
    pub async fn restart(&mut self) {
        self.container.start().await.expect("it starts again");
        self.find().await.unwrap_or_else(|error| panic!("{}", self.kind.help(error)));
    }

    /// Finds out where it is, and waits until it answers there.
    async fn find(&mut self) -> Result<(), String> {
        let text = |error: testcontainers::TestcontainersError| error.to_string();
        let port = self.container.get_host_port_ipv4(self.kind.port()).await.map_err(text)?;
        // The library takes a `/.dockerenv` for proof that the engine runs outside of where we are, and answers the
        // gateway's address; where its port is on this host all the same, `localhost` is the name in our certificates.
        let host = match reachable(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).await {
            Some(_) => "localhost".to_owned(),
            None => self.container.get_host().await.map_err(text)?.to_string(),
        };
        self.url = format!("mysql://root@{host}:{port}");
        wait_for_answer(&self.url).await.map_err(|error| error.to_string())?;
        // Only where the engine runs on this host; elsewhere there is no such address. The library looks for the network by
        // the container's mode, which on some engines is called `default` and its network `bridge`.
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let addresses = docker(&["inspect", "--format", format, self.container.id()]);
        let address = addresses.split_whitespace().find_map(|address| address.parse().ok());
        let direct = match address {
            Some(address) => reachable(SocketAddr::new(address, self.kind.port())).await,
            None => None,
        };
        self.direct_url =
            direct.map_or_else(|| self.url.clone(), |address| format!("mysql://root@{address}"));
        Ok(())
    }

    /// Its URL on the container's own address, which saves the engine's proxy between; [`Self::url`] where that cannot be
    /// reached.
    pub fn direct_url(&self) -> &str {
        &self.direct_url
    }

    /// The server's process on this host, for `/proc`; `None` when the engine does not say.
    pub fn process(&self) -> Option<u32> {
        let asked = docker(&["inspect", "--format", "{{.State.Pid}}", self.container.id()]);
        asked.trim().parse().ok().filter(|pid| *pid > 0)
    }

    /// Fails with what became of the server if it has ended: whoever asks for it next would be told `connection refused`, and
    /// its last words would go with the container.
    async fn assert_alive(&self) {
        let host = self.url.trim_start_matches("mysql://root@");
        if matches!(timeout(Duration::from_secs(1), TcpStream::connect(host)).await, Ok(Ok(_))) {
            return;
        }
        let id = self.container.id();
        let state = docker(&["inspect", "--format", "{{json .State}}", id]);
        assert!(
            state.contains(r#""Running":true"#),
            "the {} server that the tests share has ended: {state}\n{}",
            self.kind.name(),
            last_words(&docker(&["logs", id])),
        );
    }

    /// The container's id.
    pub fn container_id(&self) -> &str {
        self.container.id()
    }
}

/// Of a server's log: from where a process of Go says that it cannot go on (thousands of lines before its end), and the end.
fn last_words(log: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = log.lines().collect();
    let gives_up =
        |line: &&str| ["fatal error: ", "panic: ", "runtime: "].iter().any(|word| line.starts_with(word));
    let end = lines.len().saturating_sub(LINES);
    let from = lines.iter().position(gives_up).filter(|from| *from < end);
    let words = from.into_iter().flat_map(|from| lines.iter().skip(from).take(LINES));
    words.chain(lines.iter().skip(end)).copied().collect::<Vec<_>>().join("\n")
}

/// What the engine's client answers, or why it does not.
fn docker(arguments: &[&str]) -> String {
    match Command::new("docker").args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&text).into_owned()
        }
        Err(error) => format!("docker {arguments:?}: {error}"),
    }
}

/// Ends its child when it is dropped; a child whose pipe closes does what it waits for and ends as well.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Removes the container when this process ends, however it ends: a shell waits for the end of a pipe. What lives in a
/// `static` is never dropped, and a process that was killed drops nothing.
fn remove_at_exit(container: &str) -> Guard {
    let child = Command::new("sh")
        .args(["-c", "cat >/dev/null; docker rm --force --volumes \"$0\" >/dev/null 2>&1", container])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("a shell");
    Guard(child)
}

/// `address` if something listens there.
async fn reachable(address: SocketAddr) -> Option<SocketAddr> {
    let connecting = TcpStream::connect(address);
    matches!(timeout(Duration::from_secs(1), connecting).await, Ok(Ok(_))).then_some(address)
}

async fn wait_for_answer(url: &str) -> Result<(), sqlx::Error> {
    let started = Instant::now();
    loop {
        match MySqlConnection::connect(url).await {
            Ok(connection) => return connection.close().await,
            Err(error) if started.elapsed() > START_LIMIT => return Err(error),
            Err(sqlx::Error::Database(error)) => return Err(sqlx::Error::Database(error)),
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}

/// The URL of the MySQL server that the tests share.
pub async fn mysql_url() -> String {
    Kind::Mysql.url().await
}

/// The URL of the `MariaDB` server that the tests share.
pub async fn mariadb_url() -> String {
    Kind::Mariadb.url().await
}

/// The URL of the `TiDB` server that the tests share.
pub async fn tidb_url() -> String {
    Kind::Tidb.url().await
}

/// Creates an empty database on the server at `url` and gives its URL.
pub async fn fresh_database(url: &str) -> String {
    let name = format!("cdc_test_{}", Uuid::new_v4().simple());
    execute(url, &format!("CREATE DATABASE {name}")).await;
    let mut url = Url::parse(url).expect("a server's URL");
    url.set_path(&name);
    url.into()
}

/// Drops the database of a URL that [`fresh_database`] gave.
pub async fn drop_database(url: &str) {
    let name = Url::parse(url).expect("a database's URL").path().trim_start_matches('/').to_owned();
    assert!(name.starts_with("cdc_test_"), "{name} is not a database of the tests");
    execute(url, &format!("DROP DATABASE {name}")).await;
}

/// Waits until no session but the asking one is on the database at `url`: then nobody can write to it any more.
pub async fn sessions_are_gone(url: &str, limit: Duration) {
    let mut connection = MySqlConnection::connect(url).await.expect("a connection");
    let started = Instant::now();
    loop {
        // Not their statements. MySQL makes up the whole row all the same, and refuses (3854) while anybody's statement has a
        // character of four bytes: that is to be asked again.
        let others: Vec<String> = match sqlx::query_scalar(
            "SELECT CONCAT_WS(' ', id, command, time, state) FROM information_schema.processlist \
             WHERE db = DATABASE() AND id <> CONNECTION_ID()",
        )
        .fetch_all(&mut connection)
        .await
        {
            Err(sqlx::Error::Database(error)) if error.message().contains("utf8mb3") => {
                vec![error.to_string()]
            }
            others => others.expect("the sessions"),
        };
        if others.is_empty() {
            break;
        }
        assert!(started.elapsed() < limit, "after {limit:?} there are still sessions: {others:#?}");
        sleep(Duration::from_millis(10)).await;
    }
    connection.close().await.expect("it closes");
}

/// Runs SQL on the server or database at `url`, on a connection of its own.
pub async fn execute(url: &str, sql: &str) {
    let mut connection = MySqlConnection::connect(url).await.expect("a connection");
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    connection.close().await.expect("it closes");
}
