//! The open source: events of the dump through the [`Assembler`], and marks while nothing happens.

use std::time::Duration;

use async_trait::async_trait;
use capture_runtime::task::TaskError;
use tokio::time::Instant;

use super::assembler::{Assembler, Stuck};
use super::dump::{Dump, Ended, From, HEARTBEAT_MS, Identity};
use super::endpoint::Endpoint;
use super::idle::Idle;
use super::server::End;
use crate::event::SourceEvent;
use crate::source::Source;

/// A server that sends nothing for so long, not even that nothing happens, is gone. One large event must come through
/// within it; that the server is gone, keepalive and the idle connection find sooner.
const SILENCE: Duration = Duration::from_millis(60 * HEARTBEAT_MS);
/// How often to come back under another identity.
const ATTEMPTS: u32 = 5;

pub(super) struct MysqlSource {
    pub(super) endpoint: Endpoint,
    pub(super) identity: Identity,
    pub(super) assembler: Assembler,
    pub(super) dump: Option<Dump>,
    pub(super) idle: Idle,
    /// An end that was not reached yet.
    pub(super) end: Option<End>,
    pub(super) collisions: u32,
}

enum Incoming {
    Event(Result<Option<mysql_async::binlog::events::Event>, Ended>),
    End(Result<End, TaskError>),
    Silence,
}

#[async_trait]
impl Source for MysqlSource {
    async fn next(&mut self) -> Result<SourceEvent, TaskError> {
        // Only the time that we wait counts: not that for which the sink made us wait.
        let mut heard = Instant::now();
        loop {
            if let Some(event) = self.assembler.pop() {
                return Ok(event);
            }
            if self.end.as_ref().is_some_and(|end| self.assembler.reach(end)) {
                self.end = None;
                continue;
            }
            let dump = if let Some(dump) = &mut self.dump {
                dump
            } else {
                let from = From::Position(self.assembler.position());
                self.dump.insert(Dump::open(&self.endpoint, self.identity, from).await?)
            };
            let incoming = tokio::select! {
                biased;
                event = dump.next() => Incoming::Event(event),
                end = self.idle.next(), if self.end.is_none() => Incoming::End(end),
                () = tokio::time::sleep_until(heard + SILENCE) => Incoming::Silence,
            };
            match incoming {
                Incoming::Event(Ok(Some(event))) => {
                    heard = Instant::now();
                    self.assembler.take(&event).map_err(|stuck| self.stuck(&stuck))?;
                }
                Incoming::Event(Ok(None)) => {
                    return Err(self.endpoint.lost("the server ended the binlog dump"));
                }
                Incoming::Event(Err(Ended::Collision(error))) => self.collided(error)?,
                Incoming::Event(Err(Ended::Other(error))) => return Err(error),
                Incoming::End(end) => self.end = Some(end?),
                Incoming::Silence => {
                    return Err(self.endpoint.lost(format_args!(
                        "the server has not sent even a heartbeat for {} s",
                        SILENCE.as_secs()
                    )));
                }
            }
        }
    }
}

impl MysqlSource {
    /// Another replica took our identity: come back under another one.
    fn collided(&mut self, error: TaskError) -> Result<(), TaskError> {
        self.collisions += 1;
        if self.collisions > ATTEMPTS || !self.assembler.rewind() {
            return Err(error);
        }
        self.identity = self.identity.next();
        tracing::warn!(server_id = self.identity.server_id(), %error, "another replica has our identity; trying another");
        self.dump = None;
        Ok(())
    }

    fn stuck(&self, stuck: &Stuck) -> TaskError {
        match stuck {
            Stuck::Damaged { .. } => TaskError::fatal(
                "CDC:ErrCorruptedDataMutation",
                format!("the binlog cannot be read: {stuck}"),
            ),
            Stuck::Refused { .. } => self.endpoint.unable(stuck),
        }
    }
}
