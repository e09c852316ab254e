//! A small lazy pool.
//!
//! sqlx's own pings each connection as it is given back, a round trip that nobody counts, and works in the background. This
//! one opens what is asked for, keeps what came back whole, and closes the rest at once:
//!
//! * a connection idle for longer than [`MAX_IDLE`] is dropped instead of used, since the server ends it at 5 s;
//! * a guard that is dropped without [`Pooled::give_back`] closes its socket, so a cancelled call leaves nothing open on
//!   the server;
//! * [`Pool::forget`] makes every connection that is out or idle close instead of coming back: after a failover
//!   they lead to the old primary.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::connect::{Connector, Session};
use crate::dialect::Purpose;
use crate::retry::{TxError, TxResult};

/// Well below the session's `wait_timeout` of 5 s.
const MAX_IDLE: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(crate) struct Pool {
    connector: Connector,
    permits: Arc<Semaphore>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    idle: Mutex<Vec<Idle>>,
    generation: AtomicU64,
}

struct Idle {
    session: Session,
    since: Instant,
}

/// A connection on loan.
pub(crate) struct Pooled {
    session: Session,
    generation: u64,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(connector: Connector) -> Self {
        let max = connector.options().max_connections;
        Self { connector, permits: Arc::new(Semaphore::new(max as usize)), shared: Arc::default() }
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// A connection, waiting for one at most as long as a statement may wait for a lock.
    pub(crate) async fn acquire(&self) -> TxResult<Pooled> {
        let wait = self.connector.options().lock_wait;
        let permit = timeout(wait, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| TxError::TimedOut("waiting for a pool connection", wait))?
            .map_err(|_| sqlx::Error::PoolClosed)?;
        let generation = self.shared.generation.load(Ordering::Acquire);
        let session = match self.shared.take_idle() {
            Some(session) => session,
            None => self.connector.connect(Purpose::Pool).await?,
        };
        Ok(Pooled { session, generation, shared: Arc::clone(&self.shared), _permit: permit })
    }

    /// Closes what is idle, and what is on loan when it comes back.
    pub(crate) fn forget(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.shared.idle().clear();
    }
}

impl Shared {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        // A panic elsewhere leaves the list as good as it was.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<Session> {
        let mut idle = self.idle();
        idle.retain(|idle| idle.since.elapsed() < MAX_IDLE);
        idle.pop().map(|idle| idle.session)
    }
}

impl Pooled {
    /// Keeps the connection for the next caller. Only for one that has no transaction open and no answer outstanding.
    pub(crate) fn give_back(self) {
        let Self { session, generation, shared, _permit } = self;
        let mut idle = shared.idle();
        if generation == shared.generation.load(Ordering::Acquire) {
            idle.push(Idle { session, since: Instant::now() });
        }
    }

    pub(crate) fn server_id(&self) -> &str {
        &self.session.server_id
    }
}

impl Deref for Pooled {
    type Target = MySqlConnection;

    fn deref(&self) -> &MySqlConnection {
        &self.session.raw
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        &mut self.session.raw
    }
}
