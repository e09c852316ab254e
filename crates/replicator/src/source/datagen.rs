//! `datagen://`: see [`crate::datagen`] for what it produces.
//!
//! A change is given when the wall clock has passed its ts. The clock decides nothing else: two owners whose
//! clocks differ give the same changes with the same ts, one of them later. The position carries the base.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use capture_runtime::clock::Clock;
use capture_runtime::task::{PreparedTask, Share, TaskError, TaskSpec};
use metadata_api::model::{ChangefeedProgress, SourcePosition, TableId, Ts, UpstreamInfo};
use serde::{Deserialize, Serialize};

use super::{Launch, Source, SourceFactory};
use crate::datagen::{DatagenConfig, Generator};
use crate::event::{Change, Resolved, SourceEvent};
use crate::part::Part;
use crate::start::refuse_future_start;

/// How many changes are given at once.
const PIECE: u64 = 512;
/// How long to wait at most before saying how far it is.
const IDLE: Duration = Duration::from_millis(200);
/// How long to wait at least.
const NAP: Duration = Duration::from_millis(10);
/// Into how many parts it is split at most; with so many tables or fewer, each is one.
const MAX_PARTS: u64 = 64;
/// What a table's name begins with; its number follows.
const TABLE: &str = "datagen.t";

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

    fn tables(&self, upstream: &UpstreamInfo, _max_processors: u32) -> Result<Vec<TableId>, TaskError> {
        let tables = DatagenConfig::from_uri(&upstream.uri)?.tables;
        Ok(if tables <= MAX_PARTS {
            (0..tables).map(|index| TableId(format!("{TABLE}{index}"))).collect()
        } else {
            Part::all(u32::try_from(MAX_PARTS).unwrap_or(1))
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
        let part = launch.share.as_ref().map(|share| part(share, config.tables)).transpose()?;
        let generator = Generator::new(config, base);
        let given = launch.start.checkpoint_ts.max(base);
        Ok(Box::new(Datagen {
            next: generator.count_until(given),
            generator,
            part,
            resolved: given,
            mark: None,
            clock: Arc::clone(&self.clock),
        }))
    }
}

/// The part that a share names: of all tables, as many parts as there are tables, or less.
fn part(share: &Share, tables: u64) -> Result<Part, TaskError> {
    let index = share.table.0.strip_prefix(TABLE).and_then(|index| index.parse().ok());
    match (index, u32::try_from(tables)) {
        (Some(index), Ok(tables)) if index < tables => Ok(Part::new(index, tables)),
        _ => Part::of(share),
    }
}

struct Datagen {
    generator: Generator,
    /// Which tables are given; `None`: all.
    part: Option<Part>,
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
                let is_mine =
                    |n: &u64| self.part.is_none_or(|part| part.has_number(self.generator.table_of(*n)));
                let numbers = (self.next..end).filter(is_mine);
                let changes: Vec<Change> = numbers.map(|n| self.generator.change(n).into()).collect();
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
