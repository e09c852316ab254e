//! A cluster of whole captures to kill.
//!
//! Each capture lives in a tokio runtime of its own with a store of its own. To kill it is to drop that runtime: every
//! task of it ends where it waits, every socket closes, and nothing is released, said or written any more. To the database
//! and to the other captures this is what `kill -9` of a process is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use async_trait::async_trait;
use capture_runtime::clock::SystemClock;
use capture_runtime::task::{PreparedTask, TaskContext, TaskEnd, TaskError, TaskFactory, TaskSpec};
use capture_runtime::{Capture, CaptureConfig};
use metadata_api::decision::lease::TimePolicy;
use metadata_api::decision::planner::PlanPolicy;
use metadata_api::model::{CaptureId, ChangefeedUuid, Ts};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::bed::Bed;
use crate::seed;

/// How long a cluster may take to be up.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A task that began to run.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Whose.
    pub changefeed: ChangefeedUuid,
    /// Where.
    pub capture: CaptureId,
    /// When.
    pub at: Instant,
}

/// What changefeeds run here: they say that they have started, and come a little further each second.
struct Idler {
    starts: mpsc::UnboundedSender<Start>,
}

#[async_trait]
impl TaskFactory for Idler {
    async fn prepare(&self, spec: &TaskSpec) -> Result<PreparedTask, TaskError> {
        let start_ts = spec.start_ts.unwrap_or(Ts(1_000));
        Ok(PreparedTask { start_ts, task_position: seed::progress(start_ts.0) })
    }

    async fn run(&self, context: TaskContext) -> Result<TaskEnd, TaskError> {
        let (changefeed, capture) = (context.term.changefeed, context.term.capture);
        // Nobody listens any more when the measurement is over.
        let _ = self.starts.send(Start { changefeed, capture, at: Instant::now() });
        let mut ts = context.start.checkpoint_ts.0;
        loop {
            tokio::select! {
                () = context.stop.cancelled() => return Ok(TaskEnd::Stopped),
                () = sleep(Duration::from_secs(1)) => ts += 1,
            }
            context.reporter.report(seed::progress(ts));
        }
    }
}

/// One capture.
struct Node {
    capture: Capture,
    stop: CancellationToken,
    runtime: Option<Runtime>,
}

impl Node {
    async fn start(bed: &Bed, starts: mpsc::UnboundedSender<Start>) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let stop = CancellationToken::new();
        let (made, making) = oneshot::channel();
        let (bed, token) = (bed.clone(), stop.clone());
        runtime.spawn(async move {
            let capture = match new_capture(&bed, starts).await {
                Ok(capture) => capture,
                Err(error) => return drop(made.send(Err(error))),
            };
            let _ = made.send(Ok(capture.clone()));
            // Its end is seen by what it no longer does.
            let _ = capture.run(token).await;
        });
        let capture = match making.await {
            Ok(made) => made,
            Err(_) => Err(anyhow!("the capture's runtime has ended")),
        };
        match capture {
            Ok(capture) => Ok(Self { capture, stop, runtime: Some(runtime) }),
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    fn id(&self) -> Option<CaptureId> {
        self.capture.status().id
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A runtime must not be dropped by waiting within another one.
        self.kill();
    }
}

async fn new_capture(bed: &Bed, starts: mpsc::UnboundedSender<Start>) -> Result<Capture> {
    let config = CaptureConfig {
        advertise_addr: "127.0.0.1:8300".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: BTreeMap::new(),
        machine_id: String::new(),
        time: TimePolicy::default(),
        plan: PlanPolicy::default(),
        lineage: None,
    };
    Ok(Capture::new(bed.store().await?, Arc::new(Idler { starts }), SystemClock::shared(), config)?)
}

/// Some captures on one database.
pub struct Cluster {
    bed: Bed,
    nodes: Vec<Node>,
    sender: mpsc::UnboundedSender<Start>,
    /// Every task that begins to run.
    pub starts: mpsc::UnboundedReceiver<Start>,
    running: BTreeMap<ChangefeedUuid, CaptureId>,
}

impl Cluster {
    /// Starts so many, and waits until all take part and one of them leads.
    pub async fn start(bed: &Bed, size: usize) -> Result<Self> {
        let (sender, starts) = mpsc::unbounded_channel();
        let mut cluster =
            Self { bed: bed.clone(), nodes: Vec::new(), sender, starts, running: BTreeMap::new() };
        for _ in 0..size {
            cluster.add().await?;
        }
        cluster.await_ready().await?;
        Ok(cluster)
    }

    /// Starts one more.
    pub async fn add(&mut self) -> Result<()> {
        self.nodes.push(Node::start(&self.bed, self.sender.clone()).await?);
        Ok(())
    }

    /// Until each takes part, and one leads.
    pub async fn await_ready(&self) -> Result<()> {
        let started = Instant::now();
        while !self.nodes.iter().all(|node| node.capture.status().ready) || self.leader().is_none() {
            if started.elapsed() > START_LIMIT {
                bail!("a cluster of {} captures is not up after {START_LIMIT:?}", self.nodes.len());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Until each of so many changefeeds runs, evenly spread over the captures that live.
    pub async fn await_even(&mut self, changefeeds: usize) -> Result<()> {
        let started = Instant::now();
        loop {
            while let Ok(start) = self.starts.try_recv() {
                self.note(start);
            }
            let most = changefeeds.div_ceil(self.nodes.len().max(1));
            let even = |node: &Node| {
                let own = self.running.values().filter(|capture| Some(**capture) == node.id()).count();
                own > 0 && own <= most
            };
            if self.running.len() == changefeeds && self.nodes.iter().all(even) {
                return Ok(());
            }
            if started.elapsed() > START_LIMIT {
                bail!(
                    "{changefeeds} changefeeds are not spread evenly after {START_LIMIT:?}: {:?}",
                    self.running
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Takes in where a task began to run.
    pub fn note(&mut self, start: Start) {
        self.running.insert(start.changefeed, start.capture);
    }

    /// Which one leads.
    pub fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.capture.status().leading.is_some())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Kills the `n`th. Gives what ran there.
    pub fn kill(&mut self, n: usize) -> Vec<ChangefeedUuid> {
        let mut node = self.nodes.remove(n);
        let id = node.id();
        node.kill();
        self.running.iter().filter(|(_, capture)| Some(**capture) == id).map(|(feed, _)| *feed).collect()
    }

    /// Tells the `n`th to stop gracefully; it goes on until it has.
    pub fn tell_to_stop(&mut self, n: usize) -> Stopping {
        let node = self.nodes.remove(n);
        node.stop.cancel();
        Stopping(node)
    }

    /// Ends all, without ceremony.
    pub fn stop(mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
    }
}

/// A capture that was told to stop; dropping it kills it.
pub struct Stopping(#[expect(dead_code, reason = "it lives as long as this")] Node);
