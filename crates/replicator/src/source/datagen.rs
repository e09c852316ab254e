//! `datagen://`: see [`crate::datagen`] for what it produces.
//!
//! A change is given when the wall clock has passed its ts. The clock decides nothing else: two owners whose
//! clocks differ give the same changes with the same ts, one of them later. The position carries the base.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use capture_runtime::clock::Clock;
use capture_runtime::task::{PreparedTask, TaskError, TaskSpec};
use metadata_api::model::{ChangefeedProgress, SourcePosition, Ts};
use serde::{Deserialize, Serialize};

use super::{Launch, Source, SourceFactory};
use crate::datagen::{DatagenConfig, Generator};
use crate::event::{Change, Resolved, SourceEvent};
use crate::start::refuse_future_start;

/// How many changes are given at once.
const PIECE: u64 = 512;
/// How long to wait at most before saying how far it is.
const IDLE: Duration = Duration::from_millis(200);
/// How long to wait at least.
const NAP: Duration = Duration::from_millis(10);

/// Makes generators.
#[derive(Clone, Debug)]
pub(crate) struct DatagenFactory {
    pub(crate) clock: Arc<dyn Clock>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Position {
    base: Ts,
}

impl Position {
    fn encode(base: Ts) -> SourcePosition {
        SourcePosition(serde_json::json!({ "base": base }))
    }
}

#[async_trait]
impl SourceFactory for DatagenFactory {
    async fn check(&self, spec: &TaskSpec) -> Result<(), TaskError> {
        DatagenConfig::from_uri(&spec.upstream_uri).map(drop)
    }

    async fn prepare(&self, spec: &TaskSpec) -> Result<PreparedTask, TaskError> {
        self.check(spec).await?;
        let now = Ts::from_time(self.clock.wall());
        refuse_future_start(spec.start_ts, now)?;
        let start_ts = spec.start_ts.unwrap_or(now);
        let position = Some(Position::encode(start_ts));
        Ok(PreparedTask {
            start_ts,
            task_position: ChangefeedProgress { position, ..ChangefeedProgress::at(start_ts) },
        })
    }

    async fn open(&self, launch: &Launch) -> Result<Box<dyn Source>, TaskError> {
        let config = DatagenConfig::from_uri(&launch.upstream.uri)?;
        let base = match &launch.start.position {
            None => launch.info.start_ts,
            Some(position) => {
                Position::deserialize(&position.0)
                    .map_err(|error| {
                        TaskError::fatal(
                            "CDC:ErrChangefeedUnretryable",
                            format!("the task position is not one of datagen's: {error}"),
                        )
                    })?
                    .base
            }
        };
        let generator = Generator::new(config, base);
        let given = launch.start.checkpoint_ts.max(base);
        Ok(Box::new(Datagen {
            next: generator.count_until(given),
            generator,
            resolved: given,
            mark: None,
            clock: Arc::clone(&self.clock),
        }))
    }
}

struct Datagen {
    generator: Generator,
    /// The number of the next change.
    next: u64,
    /// The last mark that was given.
    resolved: Ts,
    /// A mark to give next.
    mark: Option<Ts>,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Source for Datagen {
    async fn next(&mut self) -> Result<SourceEvent, TaskError> {
        if let Some(ts) = self.mark.take() {
            self.resolved = ts;
            let position = Some(Position::encode(self.generator.base()));
            return Ok(SourceEvent::Resolved(Resolved { ts, position }));
        }
        loop {
            let now = Ts::from_time(self.clock.wall());
            let due = self.generator.count_until(now);
            if due > self.next {
                let end = due.min(self.next + PIECE);
                let changes: Vec<Change> =
                    (self.next..end).map(|n| self.generator.change(n).into()).collect();
                self.mark = Some(if end == due { now } else { self.generator.ts_of(end - 1) });
                self.next = end;
                return Ok(SourceEvent::Changes(changes));
            }
            if now.physical_ms() >= self.resolved.physical_ms() + u64::from(IDLE.subsec_millis()) {
                self.mark = Some(now);
                return Box::pin(self.next()).await;
            }
            let wait_ms = self.generator.ts_of(self.next).physical_ms().saturating_sub(now.physical_ms());
            tokio::time::sleep(Duration::from_millis(wait_ms).clamp(NAP, IDLE)).await;
        }
    }
}
