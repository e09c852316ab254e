//! A sink that hangs when a test says so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use capture_runtime::task::{TaskError, TaskSpec};
use replicator::Replicator;
use replicator::event::Change;
use replicator::sink::{FlushError, FlushGuard, Sink, SinkFactory};
use replicator::source::Launch;

use crate::steering::SINK_HANGS;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Puts [`Hanging`] around the `file` sink.
pub fn hanging(replicator: Replicator) -> Replicator {
    let (Some(inner), Some(dir)) = (replicator.sink_factory("file"), crate::data_dir()) else {
        return replicator;
    };
    replicator.with_sink("file", Arc::new(Hanging { inner, file: dir.join(SINK_HANGS) }))
}

struct Hanging<S> {
    inner: S,
    file: PathBuf,
}

#[async_trait]
impl SinkFactory for Hanging<Arc<dyn SinkFactory>> {
    async fn check(&self, spec: &TaskSpec) -> Result<(), TaskError> {
        self.inner.check(spec).await
    }

    async fn open(&self, launch: &Launch) -> Result<Box<dyn Sink>, TaskError> {
        let inner = self.inner.open(launch).await?;
        Ok(Box::new(Hanging { inner, file: self.file.clone() }))
    }
}

#[async_trait]
impl Sink for Hanging<Box<dyn Sink>> {
    fn add(&mut self, change: &Change) -> Result<(), TaskError> {
        self.inner.add(change)
    }

    fn pending_bytes(&self) -> usize {
        self.inner.pending_bytes()
    }

    async fn flush(&mut self, guard: &FlushGuard) -> Result<(), FlushError> {
        while self.file.exists() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.inner.flush(guard).await
    }
}
