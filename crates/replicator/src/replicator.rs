//! The [`TaskFactory`] that the binary gives to the runtime.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use capture_runtime::clock::Clock;
use capture_runtime::task::{
    GIVE_UP_AFTER, PreparedTask, TaskContext, TaskEnd, TaskError, TaskFactory, TaskSpec,
};
use metadata_api::model::{
    ChangefeedInfo, ChangefeedProgress, Placement, SecretUri, SourcePosition, TableId, Ts, UpstreamId,
    UpstreamInfo,
};

use crate::config::{check_replica_config, error_stuck_duration};
use crate::filter::Filter;
use crate::meters::Meters;
use crate::params::UriField;
use crate::pipeline::{self, Pipeline};
use crate::sink::SinkFactory;
use crate::sink::blackhole::BlackholeFactory;
use crate::sink::file::FileFactory;
use crate::source::datagen::DatagenFactory;
use crate::source::mysql::MysqlFactory;
use crate::source::{Launch, SourceFactory};

/// Runs changefeeds: finds the source and the sink by their URIs' schemes, and moves changes between them.
/// One a process.
#[derive(Clone)]
pub struct Replicator {
    clock: Arc<dyn Clock>,
    sources: BTreeMap<String, Arc<dyn SourceFactory>>,
    sinks: BTreeMap<String, Arc<dyn SinkFactory>>,
}

impl Replicator {
    /// One with the sources and sinks of this crate: `datagen`, `mysql`; `blackhole`, `file`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let bare = Self { clock: Arc::clone(&clock), sources: BTreeMap::new(), sinks: BTreeMap::new() };
        bare.with_source("datagen", Arc::new(DatagenFactory { clock: Arc::clone(&clock) }))
            .with_source("mysql", Arc::new(MysqlFactory))
            .with_sink("blackhole", Arc::new(BlackholeFactory))
            .with_sink("file", Arc::new(FileFactory::new(clock)))
    }

    /// Adds a source, or replaces the one of the same scheme.
    #[must_use]
    pub fn with_source(mut self, scheme: &str, factory: Arc<dyn SourceFactory>) -> Self {
        self.sources.insert(scheme.to_owned(), factory);
        self
    }

    /// Adds a sink, or replaces the one of the same scheme.
    #[must_use]
    pub fn with_sink(mut self, scheme: &str, factory: Arc<dyn SinkFactory>) -> Self {
        self.sinks.insert(scheme.to_owned(), factory);
        self
    }

    /// The sink of a scheme, to be wrapped and given back with [`Self::with_sink`].
    pub fn sink_factory(&self, scheme: &str) -> Option<Arc<dyn SinkFactory>> {
        self.sinks.get(scheme).cloned()
    }

    /// Checks a request as [`TaskFactory::prepare`] does, but fixes no start and does not judge `start_ts`:
    /// what an *update* wants, whose changefeed started long ago.
    ///
    /// # Errors
    /// [`TaskError`] whose message names the field and what would be right.
    pub async fn check(&self, spec: &TaskSpec) -> Result<(), TaskError> {
        check_replica_config(&spec.config)?;
        if let Some(start_ts) = spec.start_ts {
            check_target(start_ts, spec.target_ts)?;
        }
        let source = self.source(&spec.upstream_uri)?;
        let sink = self.sink(&spec.sink_uri)?;
        self.check_processors(spec)?;
        sink.check(spec).await?;
        source.check(spec).await
    }

    /// A changefeed that asks for several processors has a source that can be split.
    fn check_processors(&self, spec: &TaskSpec) -> Result<(), TaskError> {
        let placement = Placement::from_config(&spec.config).map_err(invalid_placement)?;
        if placement.max_processors < 2 {
            return Ok(());
        }
        let upstream = UpstreamInfo { id: UpstreamId(0), uri: spec.upstream_uri.clone() };
        if self.source(&spec.upstream_uri)?.tables(&upstream, placement.max_processors)?.is_empty() {
            return Err(invalid_placement(format!(
                "placement.max_processors is `{}`: a source of scheme `{}` cannot be split, so it must be 1",
                placement.max_processors,
                spec.upstream_uri.scheme()
            )));
        }
        Ok(())
    }

    fn source(&self, uri: &SecretUri) -> Result<&Arc<dyn SourceFactory>, TaskError> {
        self.sources
            .get(uri.scheme())
            .ok_or_else(|| unknown_scheme(UriField::Upstream, uri, self.sources.keys()))
    }

    fn sink(&self, uri: &SecretUri) -> Result<&Arc<dyn SinkFactory>, TaskError> {
        self.sinks.get(uri.scheme()).ok_or_else(|| unknown_scheme(UriField::Sink, uri, self.sinks.keys()))
    }
}

impl fmt::Debug for Replicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicator")
            .field("sources", &self.sources.keys())
            .field("sinks", &self.sinks.keys())
            .finish_non_exhaustive()
    }
}

fn unknown_scheme<'k>(
    field: UriField,
    uri: &SecretUri,
    known: impl Iterator<Item = &'k String>,
) -> TaskError {
    let known: Vec<String> = known.map(|scheme| format!("{scheme}://")).collect();
    field.invalid(
        uri,
        format_args!("scheme `{}` is not supported; there are {}", uri.scheme(), known.join(", ")),
    )
}

fn invalid_placement(reason: String) -> TaskError {
    TaskError::fatal("CDC:ErrAPIInvalidParam", reason)
}

fn check_target(start_ts: Ts, target_ts: Ts) -> Result<(), TaskError> {
    if target_ts != Ts::ZERO && target_ts <= start_ts {
        return Err(TaskError::fatal(
            "CDC:ErrTargetTsBeforeStartTs",
            format!(
                "fail to create changefeed because target-ts {target_ts} is earlier than start-ts {start_ts}: \
                 target_ts must be greater, or 0 for a changefeed without end"
            ),
        ));
    }
    Ok(())
}

#[async_trait]
impl TaskFactory for Replicator {
    async fn prepare(&self, spec: &TaskSpec) -> Result<PreparedTask, TaskError> {
        check_replica_config(&spec.config)?;
        let source = self.source(&spec.upstream_uri)?;
        let sink = self.sink(&spec.sink_uri)?;
        self.check_processors(spec)?;
        sink.check(spec).await?;
        let prepared = source.prepare(spec).await?;
        check_target(prepared.start_ts, spec.target_ts)?;
        Ok(prepared)
    }

    fn give_up_after(&self, info: &ChangefeedInfo) -> Duration {
        error_stuck_duration(&info.config).unwrap_or(GIVE_UP_AFTER)
    }

    fn runs_processors(&self) -> bool {
        true
    }

    async fn tables(
        &self,
        info: &ChangefeedInfo,
        upstream: &UpstreamInfo,
    ) -> Result<Vec<TableId>, TaskError> {
        let placement = Placement::from_config(&info.config).map_err(invalid_placement)?;
        self.source(&upstream.uri)?.tables(upstream, placement.max_processors)
    }

    fn common_position(
        &self,
        upstream: &UpstreamInfo,
        tables: &[&ChangefeedProgress],
    ) -> Option<SourcePosition> {
        self.source(&upstream.uri).ok().and_then(|source| source.common_position(tables))
    }

    async fn run(&self, context: TaskContext) -> Result<TaskEnd, TaskError> {
        let launch = Launch::from(&context);
        let filter = Filter::from_config(&launch.info.config.0)?;
        let sink = self.sink(&launch.info.sink_uri)?.open(&launch).await?;
        let source = tokio::select! {
            () = context.stop.cancelled() => return Ok(TaskEnd::Stopped),
            source = self.source(&launch.upstream.uri)?.open(&launch) => source?,
        };
        let reporter = context.reporter;
        pipeline::run(Pipeline {
            source,
            sink,
            filter,
            target_ts: launch.info.target_ts,
            meters: Meters::new(&launch.info.name),
            start: launch.start,
            admission: context.admission,
            report: Box::new(move |progress| reporter.report(progress)),
            stop: context.stop,
            clock: Arc::clone(&self.clock),
        })
        .await
    }
}
