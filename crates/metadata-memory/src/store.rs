//! One process's handle on the database.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metadata_api::store::faults::{FaultKind, FaultPoint, Faults};
use metadata_api::{MetadataError, Result};

use crate::cluster::{MemoryCluster, Ticket};
use crate::link::{Lane, Link};
use crate::tables::Tables;
use crate::tx::Tx;

/// How often a transaction that certainly did not happen is tried again.
const MAX_RETRIES: usize = 6;

/// What one process's handle is made of.
#[derive(Clone, Debug)]
pub struct MemoryOptions {
    /// Its network.
    pub link: Link,
    /// Failures of single transactions, if any.
    pub faults: Option<Arc<dyn Faults>>,
    /// After how long a call on the pool gives up by itself, in either direction. (Channels leave that to their callers.)
    pub call_limit: Duration,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self { link: Link::default(), faults: None, call_limit: Duration::from_secs(4) }
    }
}

/// One process's handle on a [`MemoryCluster`].
#[derive(Clone)]
pub struct MemoryStore {
    pub(crate) cluster: MemoryCluster,
    pub(crate) options: Arc<MemoryOptions>,
}

impl MemoryStore {
    pub(crate) fn new(cluster: MemoryCluster, options: MemoryOptions) -> Self {
        Self { cluster, options: Arc::new(options) }
    }

    /// Its network.
    pub fn link(&self) -> &Link {
        &self.options.link
    }

    /// Its database.
    pub fn cluster(&self) -> &MemoryCluster {
        &self.cluster
    }

    /// A plain read over the pool.
    pub(crate) async fn read<T>(
        &self,
        name: &'static str,
        body: impl FnOnce(&Tables) -> Result<T>,
    ) -> Result<T> {
        let answer = self.within(name, false, self.read_on(Lane::Pool, name, body)).await?;
        Ok(answer)
    }

    /// A plain read over `lane`, without a limit.
    pub(crate) async fn read_on<T>(
        &self,
        lane: Lane,
        name: &'static str,
        body: impl FnOnce(&Tables) -> Result<T>,
    ) -> Result<T> {
        let reset = |reset: crate::link::Reset| reset.unavailable(name);
        self.options.link.there(lane).await.map_err(reset)?;
        self.cluster.running().await;
        let answer = self.cluster.query(body);
        self.options.link.back(lane).await.map_err(reset)?;
        answer
    }

    /// A named transaction over the pool.
    pub(crate) async fn write<T>(
        &self,
        name: &'static str,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        self.meet_faults(name, MAX_RETRIES)?;
        let link = &self.options.link;
        let there = async {
            link.there(Lane::Pool).await.map_err(|reset| reset.unavailable(name))?;
            self.cluster.running().await;
            Ok(())
        };
        self.within(name, false, there).await?;
        let answer = self.cluster.transact(name, body);
        if answer.is_ok() {
            self.lose_answer(name)?;
        }
        let back = async { link.back(Lane::Pool).await.map_err(|reset| reset.unknown(name)) };
        self.within(name, true, back).await?;
        answer
    }

    /// A write that is one statement and its own transaction. On the heartbeat's and the watch's lane it is tried once and
    /// without a limit.
    pub(crate) async fn statement<T: Send + 'static>(
        &self,
        lane: Lane,
        name: &'static str,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.meet_faults(name, if lane == Lane::Pool { MAX_RETRIES } else { 0 })?;
        let sent = self.send(lane, name, body);
        let answer = if lane == Lane::Pool { self.within(name, true, sent).await } else { sent.await };
        if answer.is_ok() {
            self.lose_answer(name)?;
        }
        answer
    }

    async fn send<T: Send + 'static>(
        &self,
        lane: Lane,
        name: &'static str,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let link = &self.options.link;
        // Before it is sent nothing can have happened.
        link.connected(lane).await.map_err(|reset| reset.unavailable(name))?;
        let conditions = link.conditions(lane);
        let answer = Arc::new(Mutex::new(None));
        let sent = Sent {
            cluster: &self.cluster,
            ticket: self.cluster.send(conditions.there, name, body, answer.clone()),
            late: conditions.late,
        };
        link.travel(lane, conditions.there).await.map_err(|reset| reset.unknown(name))?;
        self.cluster.running().await;
        self.cluster.arrived(sent.ticket);
        drop(sent);
        let result = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        link.back(lane).await.map_err(|reset| reset.unknown(name))?;
        result.unwrap_or_else(|| {
            Err(MetadataError::Unknown { transaction: name, source: "the statement was lost".into() })
        })
    }

    async fn within<T>(
        &self,
        name: &'static str,
        applied: bool,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::time::timeout(self.options.call_limit, call).await.unwrap_or_else(|late| {
            Err(if applied {
                MetadataError::Unknown { transaction: name, source: late.into() }
            } else {
                MetadataError::Unavailable { transaction: name, source: late.into() }
            })
        })
    }

    /// The failures on order before a transaction, and at its COMMIT.
    fn meet_faults(&self, name: &'static str, retries: usize) -> Result<()> {
        let Some(faults) = &self.options.faults else { return Ok(()) };
        for _ in 0..=retries {
            if faults.at(name, FaultPoint::BeforeBegin).is_some() {
                continue;
            }
            match faults.at(name, FaultPoint::BeforeCommit) {
                None => return Ok(()),
                Some(FaultKind::Retryable) => {}
                Some(FaultKind::AnswerLost) => {
                    return Err(MetadataError::Unknown {
                        transaction: name,
                        source: "COMMIT was lost".into(),
                    });
                }
            }
        }
        Err(MetadataError::Unavailable { transaction: name, source: "the database is busy".into() })
    }

    /// The failure on order after COMMIT.
    fn lose_answer(&self, name: &'static str) -> Result<()> {
        let lost = self.options.faults.as_ref().and_then(|faults| faults.at(name, FaultPoint::AfterCommit));
        match lost {
            None => Ok(()),
            Some(_) => {
                Err(MetadataError::Unknown { transaction: name, source: "the answer was lost".into() })
            }
        }
    }
}

/// A statement on its way: giving it up takes it back, unless it is to arrive late.
struct Sent<'a> {
    cluster: &'a MemoryCluster,
    ticket: Ticket,
    late: bool,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.late {
            self.cluster.take_back(self.ticket);
        }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("options", &self.options).finish_non_exhaustive()
    }
}
