//! The part of the event loop that runs what this capture carries as a processor.

use std::sync::Arc;

use metadata_api::model::{ChangefeedInfo, ProcessorTerm, RunningError, TableError, UpstreamInfo};
use metadata_api::{MetadataError, Result};
use metrics::counter;

use super::feed::{Begin, Running, run_caught};
use super::manager::{ASK_AGAIN, Event, Manager, caught};
use super::shares::ShareWork;
use crate::task::{Share, TaskContext, TaskEnd, TaskError};

/// What a processor of a changefeed is to run.
pub(super) type Spec = (Arc<ChangefeedInfo>, UpstreamInfo);

/// The most bytes of a message in a report: all of a capture's reports lie in one value.
const MESSAGE: usize = 1 << 10;

/// The error with a message that is not too long.
fn brief(mut error: RunningError) -> RunningError {
    if error.message.len() > MESSAGE {
        error.message.truncate(error.message.floor_char_boundary(MESSAGE));
    }
    error
}

impl Manager {
    /// Brings what is carried in line with what is known now.
    pub(super) fn settle_shares(&mut self) {
        let now = self.now();
        for work in self.shares.settle(now, self.situation, &self.advanced) {
            match work {
                ShareWork::Load(term) => self.load_share(term),
                ShareWork::Release(term) => self.release_processor(term),
                ShareWork::Launch { share, launch, start } => {
                    let Some(carried) = self.shares.get_mut(share.processor) else { continue };
                    let Some((info, upstream)) = carried.spec.clone() else { continue };
                    let begin = Begin {
                        term: carried.owner_term(),
                        share: Some(share.clone()),
                        launch,
                        info,
                        upstream,
                        start,
                    };
                    let (running, context) = Running::begin(begin, self.observer.deadline().clone());
                    let term = running.term;
                    tracing::info!(
                        changefeed = %running.info.name, uuid = %term.changefeed, epoch = %term.epoch, table = %share.table,
                        checkpoint_ts = %running.start.checkpoint_ts, launch, "launching a table"
                    );
                    counter!("cdc_table_launches_total").increment(1);
                    carried.started(&share, running);
                    self.run_share(share, context);
                }
            }
        }
    }

    fn run_share(&mut self, share: Share, context: TaskContext) {
        let factory = self.factory.clone();
        self.tasks.spawn(async move {
            let result = run_caught(factory.run(context), "the table's task panicked; see the log").await;
            Event::ShareEnded { share, result }
        });
    }

    fn load_share(&mut self, term: ProcessorTerm) {
        let store = self.observer.store().clone();
        self.asks.spawn(async move {
            let looked = async {
                let infos = store.changefeed_infos(Some(&[term.changefeed])).await?;
                let info = infos.into_iter().next();
                let info =
                    info.ok_or_else(|| MetadataError::not_found(format!("changefeed {}", term.changefeed)))?;
                let upstream = store.upstream(info.upstream).await?;
                let upstream = upstream
                    .ok_or_else(|| MetadataError::not_found(format!("upstream {}", info.upstream)))?;
                Ok((Arc::new(info), upstream))
            };
            Event::ShareLoaded { term, result: caught("processor.load", looked).await }
        });
    }

    pub(super) fn share_loaded(&mut self, term: ProcessorTerm, result: Result<Spec>) {
        let ask_from = self.now() + ASK_AGAIN;
        let Some(carried) = self.shares.get_mut(term) else { return };
        carried.asking = false;
        match result {
            Ok(spec) => carried.spec = Some(spec),
            Err(error) => {
                tracing::warn!(processor = %term, %error, "could not look up what to run; asking again");
                carried.ask_from = ask_from;
            }
        }
    }

    pub(super) fn share_ended(&mut self, share: &Share, result: Result<TaskEnd, TaskError>) {
        let (time, addr) =
            (self.observer.inner.clock.wall(), self.observer.inner.info.advertise_addr.clone());
        let Some(carried) = self.shares.get_mut(share.processor) else { return };
        let Some(told) = carried.was_told(&share.table) else { return };
        let failed = |error: TaskError| {
            let retryable = error.retryable;
            let error = RunningError {
                time,
                addr: addr.clone(),
                code: error.code.into_owned(),
                message: error.message,
            };
            TableError { error: brief(error), retryable }
        };
        let end = match result {
            Ok(TaskEnd::Finished) => Ok(()),
            Ok(TaskEnd::Stopped) if told => Ok(()),
            Err(error) if told => {
                tracing::info!(table = %share.table, %error, "a table ended with an error after it was told to stop");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(processor = %share.processor, table = %share.table, %error, "a table's task failed");
                Err(failed(error))
            }
            Ok(TaskEnd::Stopped) => {
                let message = "the table's task ended by itself";
                Err(failed(TaskError::retryable("CDC:ErrInternalServerError", message)))
            }
        };
        let unknown =
            "a flush ended without a known outcome: the table is not given away before this capture ends";
        let unknown = failed(TaskError::retryable("CDC:ErrSinkUnknownOutcome", unknown));
        carried.ended(&share.table, end, unknown);
        // Whoever waits for the table waits for this word.
        self.advance_soon = true;
    }

    fn release_processor(&mut self, term: ProcessorTerm) {
        let store = self.observer.store().clone();
        self.asks.spawn(async move {
            let result = caught("processor.release", store.processor_release(term)).await;
            Event::ShareReleased { term, result: result.map(drop) }
        });
    }

    pub(super) fn share_released(&mut self, term: ProcessorTerm, result: Result<()>) {
        let ask_from = self.now() + ASK_AGAIN;
        let Some(carried) = self.shares.get_mut(term) else { return };
        carried.asking = false;
        match result {
            Err(error) if !error.is_fenced() => {
                tracing::warn!(processor = %term, %error, "could not release a processor; trying again");
                carried.ask_from = ask_from;
            }
            // Released now, or before.
            _ => {
                carried.released();
                self.observer.forget_attachment(term);
            }
        }
    }
}
