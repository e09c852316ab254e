//! `file:///dir?protocol=canal-json`: one JSON object a line, in files that each author (an owner epoch, or a processor's
//! order under one) has for itself.
//!
//! ```text
//! {dir}/{changefeed uuid}/{owner epoch}-{sequence}.json
//! {dir}/{changefeed uuid}/{owner epoch}-{turn}-{capture id}-{table}-{sequence}.json
//! ```
//!
//! The second are those of processors: a table that moves on to another is in other files from then on. The turn grows with each
//! order to run the table, so that a table's files are in order as [reader](crate::reader) reads them.
//!
//! * **A zombie never writes into its successor's file**: the epoch is in the name, files are created exclusively,
//!   and no epoch touches another's.
//! * **Durable before the checkpoint moves**: a flush ends with `fdatasync` of each file it wrote and, when it
//!   made one, `fsync` of the directory.
//! * **A torn line is never data**: a line is complete when its newline is there. What a failed or refused flush
//!   left behind is cut off by the next launch of the same author (who never outlives its process, so what
//!   was durable is known); of another author's files the [reader](crate::reader) leaves the torn tail out.
//! * **Order**: of one author `commitTs` never goes back. A relaunch of the same author leaves out what its
//!   predecessor made durable beyond the task position; a new epoch repeats it.
//! * Nothing is written, made or cut before the first admitted flush. Files are rotated by size (`file-size`
//!   bytes, 64 MiB unless given, exceeded only by a line that is longer), and never deleted.
//!
//! Captures on several hosts need a directory that they share.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use capture_runtime::clock::Clock;
use capture_runtime::task::{TaskError, TaskSpec};
use metadata_api::model::{ChangefeedUuid, ReplicaConfig, SecretUri, Ts};
use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;
use serde_json::Value;

use super::{FlushError, FlushGuard, Sink, SinkFactory};
use crate::canal_json::Encoder;
use crate::config::PROTOCOL;
use crate::event::Change;
use crate::params::{Params, UriField};
use crate::reader::{Author, changefeed_dir};
use crate::source::Launch;

mod writer;

use writer::{DurableEnd, SegmentWriter};

const DEFAULT_FILE_SIZE: u64 = 64 << 20;

/// Makes file sinks, and remembers for the process's life what each epoch made durable.
#[derive(Debug)]
pub(crate) struct FileFactory {
    clock: Arc<dyn Clock>,
    marks: Marks,
}

/// What each author made durable: of a changefeed, only those of the last owner epoch here.
type Marks = Arc<Mutex<HashMap<(ChangefeedUuid, Author), Mark>>>;

/// What an author made durable so far.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The last change that is durable; those before it are, too.
    last: Ts,
    /// Where its files end.
    end: DurableEnd,
}

struct Settings {
    dir: PathBuf,
    file_size: u64,
}

impl FileFactory {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, marks: Arc::default() }
    }
}

impl Settings {
    fn parse(uri: &SecretUri, config: &ReplicaConfig) -> Result<Self, TaskError> {
        let params = Params::parse(UriField::Sink, uri, &["protocol", "file-size"])?;
        let shape = "write file:///absolute/directory?protocol=canal-json";
        if params.url().host_str().is_some_and(|host| !host.is_empty()) {
            return Err(
                params.invalid(format_args!("what follows file:// is a host, and there is none: {shape}"))
            );
        }
        let dir = params
            .url()
            .to_file_path()
            .map_err(|()| params.invalid(format_args!("it has no absolute path: {shape}")))?;
        if dir == Path::new("/") {
            return Err(params.invalid(format_args!("the directory is missing: {shape}")));
        }
        let in_config = config.0.get("sink").and_then(|sink| sink.get("protocol")).and_then(Value::as_str);
        let protocol = params.get("protocol").or(in_config.filter(|text| !text.is_empty()));
        if let Some(other) = protocol.filter(|protocol| *protocol != PROTOCOL) {
            return Err(params.invalid(format_args!(
                "parameter `protocol` is `{}`; this build writes canal-json only",
                other.escape_debug()
            )));
        }
        let file_size = params.number("file-size", DEFAULT_FILE_SIZE, 1 << 10..=1 << 40)?;
        Ok(Self { dir, file_size })
    }
}

#[async_trait]
impl SinkFactory for FileFactory {
    async fn check(&self, spec: &TaskSpec) -> Result<(), TaskError> {
        let settings = Settings::parse(&spec.sink_uri, &spec.config)?;
        let dir = settings.dir;
        let verdict = tokio::task::spawn_blocking(move || check_writable(&dir)).await;
        match verdict {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(UriField::Sink.invalid(&spec.sink_uri, reason)),
            Err(error) => Err(TaskError::retryable(
                "CDC:ErrInternalServerError",
                format!("the check of the sink's directory did not end: {error}"),
            )),
        }
    }

    async fn open(&self, launch: &Launch) -> Result<Box<dyn Sink>, TaskError> {
        let settings = Settings::parse(&launch.info.sink_uri, &launch.info.config)?;
        let term = launch.term;
        let author = Author::of(term, launch.share.as_ref());
        let key = (term.changefeed, author.clone());
        let mark = self.marks.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        let (last, end) = mark.map_or((Ts::ZERO, None), |mark| (mark.last, Some(mark.end)));
        Ok(Box::new(FileSink {
            key,
            durable_before: last,
            last,
            encoder: Encoder::default(),
            pending: Vec::new(),
            writer: Some(SegmentWriter::new(
                settings.dir.clone(),
                changefeed_dir(&settings.dir, term.changefeed),
                author,
                settings.file_size,
                end,
            )),
            clock: Arc::clone(&self.clock),
            marks: Arc::clone(&self.marks),
        }))
    }
}

/// Whether files can be made in `dir`, or `dir` itself in the nearest directory above it. Leaves no trace.
fn check_writable(dir: &Path) -> Result<(), String> {
    for place in dir.ancestors() {
        let shown = place.display();
        match std::fs::metadata(place) {
            // Below a file nothing is; that file is the next place.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(format!("{shown} cannot be looked at: {error}")),
            Ok(meta) if !meta.is_dir() => {
                return Err(format!("{shown} is not a directory; name one, or a path where one can be made"));
            }
            Ok(_) => {}
        }
        rustix::fs::access(place, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| not_writable(place, error))?;
        // A file without a name: tells a read-only or full file system, and is gone at once.
        return match rustix::fs::open(place, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR) {
            Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(()),
            Err(error) => Err(not_writable(place, error)),
        };
    }
    Err(format!("no part of {} exists", dir.display()))
}

fn not_writable(place: &Path, error: Errno) -> String {
    format!(
        "directory {} cannot be written to: {error}; let the user that runs the captures write there",
        place.display()
    )
}

struct FileSink {
    key: (ChangefeedUuid, Author),
    /// Changes before it are durable since an earlier launch of this author.
    durable_before: Ts,
    /// The last change that was added.
    last: Ts,
    encoder: Encoder,
    pending: Vec<u8>,
    /// `None` only while a flush has it, and after one that did not return.
    writer: Option<SegmentWriter>,
    clock: Arc<dyn Clock>,
    marks: Marks,
}

#[async_trait]
impl Sink for FileSink {
    fn add(&mut self, change: &Change) -> Result<(), TaskError> {
        let commit_ts = change.commit_ts();
        if commit_ts < self.durable_before {
            return Ok(());
        }
        let now_ms = Ts::from_time(self.clock.wall()).physical_ms();
        self.encoder.encode(change, now_ms, &mut self.pending);
        self.last = self.last.max(commit_ts);
        Ok(())
    }

    fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    async fn flush(&mut self, guard: &FlushGuard) -> Result<(), FlushError> {
        let Some(mut writer) = self.writer.take() else {
            return Err(did_not_return("an earlier flush").into());
        };
        let bytes = std::mem::take(&mut self.pending);
        let guard = guard.clone();
        let io = tokio::task::spawn_blocking(move || {
            let answer = writer.write(&bytes, &guard);
            (writer, bytes, answer)
        });
        let (writer, mut bytes, answer) = io.await.map_err(|error| did_not_return(&error.to_string()))?;
        if let Some(end) = writer.durable_end() {
            let last = if answer.is_ok() { self.last } else { self.durable_before };
            let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
            let (changefeed, author) = &self.key;
            marks.retain(|(of, by), _| of != changefeed || by.epoch >= author.epoch);
            // After a failed flush, what an earlier one made durable still is.
            let last = marks.get(&self.key).map_or(last, |kept| kept.last.max(last));
            marks.insert(self.key.clone(), Mark { last, end });
        }
        self.writer = Some(writer);
        bytes.clear();
        self.pending = bytes;
        answer
    }
}

fn did_not_return(what: &str) -> TaskError {
    TaskError::retryable(
        "CDC:ErrInternalServerError",
        format!("a write to the sink's files did not return: {what}"),
    )
}

#[cfg(test)]
mod tests;
