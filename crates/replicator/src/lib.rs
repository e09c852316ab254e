//! What a changefeed runs: sources, sinks, and what moves changes between them.
//!
//! # How to add a source or a sink
//!
//! 1. A **source** implements [`source::Source`] (`next` gives changes and marks between transactions) and
//!    [`source::SourceFactory`] (checks a URI, fixes a start, opens at a position). What it must promise: changes
//!    in commit order; `commit_ts` the same whoever replays from whatever position; a mark only where everything
//!    before it was given; its position in the mark, as JSON, if a ts alone does not say where to resume.
//! 2. A **sink** implements [`sink::Sink`] (`add` takes into memory, `flush` returns when it is durable) and
//!    [`sink::SinkFactory`]. What it must promise: nothing goes outside except in `flush`; a flush in several
//!    steps asks its [`sink::FlushGuard`] before each; what it writes is named or fenced by the owner epoch.
//! 3. Give it to the replicator: `Replicator::new(clock).with_source("mine", Arc::new(MyFactory))`, and that to
//!    the runtime as its [`TaskFactory`](capture_runtime::task::TaskFactory).
//!
//! # What is there
//!
//! | scheme | what | where |
//! |---|---|---|
//! | `datagen://?tables=&rows_per_second=&seed=` | a deterministic source that needs nothing | [`datagen`] |
//! | `mysql://user:pw@host:port/[db]` | `MySQL`'s row binlog | [`source::mysql`] |
//! | `blackhole://` | keeps nothing | `sink/blackhole.rs` |
//! | `file:///dir?protocol=canal-json` | files of lines ([`canal_json`]), read back by [`reader`] and replayed by [`reader::replay`] | `sink/file` |
//!
//! Delivery is at least once. The rows of a table come in commit order within an owner epoch, and `checkpoint_ts`
//! moves only after the sink is durable.
//!
//! # Metrics
//!
//! All with the labels `namespace` and `changefeed`.
//!
//! | name | kind | what |
//! |---|---|---|
//! | `ticdc_sink_rows_total{type}` | counter | rows given to the sink: `insert`, `update`, `delete` |
//! | `ticdc_sink_ddl_total` | counter | DDL statements given to the sink |
//! | `ticdc_sink_bytes_total` | counter | bytes made durable |
//! | `ticdc_sink_flush_duration_seconds` | histogram | from admission to durable |
//! | `ticdc_sink_execution_error` | counter | flushes that failed |
//! | `ticdc_sink_flush_refused_total{reason}` | counter | flushes not admitted: `fenced`, `stopping`, `too_long` |

pub mod canal_json;
mod config;
pub mod datagen;
mod ddl;
pub mod event;
pub mod filter;
mod meters;
mod params;
mod part;
mod pipeline;
pub mod reader;
mod replicator;
pub mod sink;
pub mod source;
mod start;
#[cfg(test)]
mod testing;

pub use config::{check_replica_config, default_replica_config};
pub use replicator::Replicator;
