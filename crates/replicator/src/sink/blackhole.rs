//! `blackhole://`: takes everything, keeps nothing. For measuring sources and for trying out the runtime.

use async_trait::async_trait;
use capture_runtime::task::{TaskError, TaskSpec};

use super::{FlushError, FlushGuard, Sink, SinkFactory};
use crate::event::Change;
use crate::params::{Params, UriField};
use crate::source::Launch;

/// Makes blackholes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlackholeFactory;

#[async_trait]
impl SinkFactory for BlackholeFactory {
    async fn check(&self, spec: &TaskSpec) -> Result<(), TaskError> {
        let params = Params::parse(UriField::Sink, &spec.sink_uri, &[])?;
        params.no_place("a blackhole has no host and no path: write blackhole://")
    }

    async fn open(&self, _launch: &Launch) -> Result<Box<dyn Sink>, TaskError> {
        Ok(Box::new(Blackhole { pending: 0 }))
    }
}

struct Blackhole {
    pending: usize,
}

#[async_trait]
impl Sink for Blackhole {
    fn add(&mut self, change: &Change) -> Result<(), TaskError> {
        self.pending += change.size();
        Ok(())
    }

    fn pending_bytes(&self) -> usize {
        self.pending
    }

    async fn flush(&mut self, guard: &FlushGuard) -> Result<(), FlushError> {
        guard.check()?;
        self.pending = 0;
        Ok(())
    }
}
