//! How model values are stored, and how stored ones become model values: what every SQL store needs in the same
//! way. Pure; reading fails with [`Corrupt`](crate::MetadataError::Corrupt), writing with
//! [`InvalidArgument`](crate::MetadataError::InvalidArgument) and the field that does not fit.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{Display, Write as _};
use std::hash::Hash;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::decision::feed_state::FeedEvent;
use crate::model::{
    CaptureId, CaptureProgress, ChangefeedProgress, ChangefeedSchedule, ChangefeedStatus, FeedState,
    NewCapture, NewChangefeed, OwnedProgress, ProcessorAssignment, ProcessorEpoch, ProcessorReport,
    ReplicaConfig, RunningError, ScheduleState, SecretUri, Ts,
};
use crate::store::MAX_BATCH;
use crate::{MetadataError, Result};

/// The most bytes of a short text: an address, a version, a machine id.
pub const MAX_SHORT: usize = 255;
/// The most bytes of a URI.
pub const MAX_URI: usize = 16 << 10;
/// The most bytes of a capture's labels, as JSON.
pub const MAX_LABELS: usize = 16 << 10;
/// The most bytes of a changefeed's configuration, as JSON.
pub const MAX_CONFIG: usize = 1 << 20;
/// How deep it may be nested, and a source's position, too: both are read with the databases' JSON functions, which fail beyond
/// a depth (MariaDB's 32, MySQL's 100). A position has up to six levels above it in a capture's progress.
const MAX_DEPTH: usize = 24;
/// The most bytes of a processor's assignment, as JSON.
pub const MAX_ASSIGNMENT: usize = 1 << 20;
/// The most bytes of one changefeed's progress, as JSON.
pub const MAX_POSITION: usize = 64 << 10;
/// The same, with what a processor says of each of its tables.
pub const MAX_REPORT: usize = 1 << 20;
/// The most bytes of a capture's whole progress, as JSON. (`TiDB` takes rows of 6 MiB.)
pub const MAX_PROGRESS: usize = 4 << 20;
/// The most bytes of an error's or a warning's message; what is longer is cut.
pub const MAX_MESSAGE: usize = 16 << 10;

/// Where a value is stored, for the text of [`Corrupt`](MetadataError::Corrupt).
#[derive(Clone, Copy)]
pub struct Cell<'a> {
    table: &'static str,
    key: &'a dyn Display,
    column: &'static str,
}

impl<'a> Cell<'a> {
    /// The column `column` of the row `key`.
    pub fn new(table: &'static str, key: &'a dyn Display, column: &'static str) -> Self {
        Self { table, key, column }
    }

    /// The error for a value that does not belong there.
    pub fn corrupt(self, reason: impl Display) -> MetadataError {
        MetadataError::corrupt(self.table, self.key.to_string(), self.column, reason.to_string())
    }

    /// A value in its stored spelling: a state, a UUID, a capture id.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn parse<T: FromStr<Err: Display>>(self, text: &str) -> Result<T> {
        text.parse().map_err(|reason| self.corrupt(reason))
    }

    /// The same for a column that may be NULL.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn parse_opt<T: FromStr<Err: Display>>(self, text: Option<&str>) -> Result<Option<T>> {
        text.map(|text| self.parse(text)).transpose()
    }

    /// A JSON value.
    ///
    /// # Errors
    /// `Corrupt`; the reason says where in the text, never what stands there.
    pub fn json<T: DeserializeOwned>(self, text: &str) -> Result<T> {
        serde_json::from_str(text).map_err(|error| {
            self.corrupt(format!(
                "it is not the JSON that belongs there: {:?} error at line {} column {}",
                error.classify(),
                error.line(),
                error.column()
            ))
        })
    }

    /// The same for a column that may be NULL.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn json_opt<T: DeserializeOwned>(self, text: Option<&str>) -> Result<Option<T>> {
        text.map(|text| self.json(text)).transpose()
    }

    /// A URI. What does not parse is not repeated in the error.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn uri(self, text: &str) -> Result<SecretUri> {
        SecretUri::parse(self.column, text).map_err(|_| self.corrupt("it is not a URI"))
    }

    /// A timestamp.
    ///
    /// # Errors
    /// `Corrupt` when it is out of range.
    pub fn ts(self, value: u64) -> Result<Ts> {
        Ts::new(self.column, value).map_err(|error| self.corrupt(error))
    }
}

/// The two columns of an upstream: its endpoints, fit for people, and its credentials, which are the whole URI where
/// it has secrets and else empty. So the URI comes back exactly as it was given.
///
/// # Errors
/// `InvalidArgument` when it is too long.
pub fn split_uri(field: &'static str, uri: &SecretUri) -> Result<(String, String)> {
    check_uri(field, uri)?;
    Ok(if uri.has_secret() {
        (uri.masked().to_owned(), uri.expose().to_owned())
    } else {
        (uri.expose().to_owned(), String::new())
    })
}

/// The URI from an upstream's two columns.
///
/// # Errors
/// `Corrupt` when one does not parse, or when the two are of different URIs: somebody edited one of them.
pub fn join_uri(key: &dyn Display, endpoints: &str, credentials: &str) -> Result<SecretUri> {
    if credentials.is_empty() {
        return Cell::new("upstream", key, "endpoints").uri(endpoints);
    }
    let cell = Cell::new("upstream", key, "credentials");
    let uri = cell.uri(credentials)?;
    if uri.masked() != endpoints {
        return Err(cell.corrupt("they are of another URI than the endpoints"));
    }
    Ok(uri)
}

/// Checks that a URI fits.
///
/// # Errors
/// `InvalidArgument`.
pub fn check_uri(field: &'static str, uri: &SecretUri) -> Result<()> {
    check_len(field, uri.expose().len(), MAX_URI)
}

/// Checks a registering capture's texts.
///
/// # Errors
/// `InvalidArgument` with the field.
pub fn check_capture(capture: &NewCapture) -> Result<()> {
    if capture.advertise_addr.is_empty() {
        return Err(MetadataError::invalid("advertise_addr", "it is empty; it must be host:port"));
    }
    check_len("advertise_addr", capture.advertise_addr.len(), MAX_SHORT)?;
    check_len("version", capture.version.len(), MAX_SHORT)?;
    check_len("machine_id", capture.machine_id.len(), MAX_SHORT)
}

/// Checks a new changefeed, by [`NewChangefeed::validate`] and for what fits.
///
/// # Errors
/// `InvalidArgument` with the field.
pub fn check_changefeed(new: &NewChangefeed) -> Result<()> {
    new.validate()?;
    check_uri("upstream_uri", &new.upstream_uri)?;
    check_uri("sink_uri", &new.sink_uri)?;
    check_len("creator_version", new.creator_version.len(), MAX_SHORT)
}

/// Checks that a batch is not too large and names nothing twice.
///
/// # Errors
/// `InvalidArgument`.
pub fn check_batch<K: Eq + Hash + Display>(
    field: &'static str,
    keys: impl IntoIterator<Item = K>,
) -> Result<()> {
    let mut seen = HashSet::new();
    for key in keys {
        if seen.contains(&key) {
            return Err(MetadataError::invalid(field, format!("{key} is named twice")));
        }
        seen.insert(key);
    }
    if seen.len() > MAX_BATCH {
        return Err(MetadataError::invalid(
            field,
            format!("{} are too many; at most {MAX_BATCH}", seen.len()),
        ));
    }
    Ok(())
}

fn check_len(field: &'static str, len: usize, max: usize) -> Result<()> {
    if len > max {
        return Err(MetadataError::invalid(field, format!("it has {len} bytes; at most {max} are allowed")));
    }
    Ok(())
}

fn encode<T: Serialize>(field: &'static str, value: &T, max: usize) -> Result<String> {
    let text =
        serde_json::to_string(value).map_err(|error| MetadataError::invalid(field, error.to_string()))?;
    check_len(field, text.len(), max)?;
    Ok(text)
}

/// A capture's labels.
///
/// # Errors
/// `InvalidArgument` when they do not fit.
pub fn encode_labels(capture: &NewCapture) -> Result<String> {
    encode("labels", &capture.labels, MAX_LABELS)
}

/// A changefeed's configuration.
///
/// # Errors
/// `InvalidArgument` when it does not fit.
pub fn encode_config(config: &ReplicaConfig) -> Result<String> {
    let depth = 1 + config.0.values().map(depth).max().unwrap_or(0);
    check_depth("replica_config", depth)?;
    encode("replica_config", config, MAX_CONFIG)
}

fn check_depth(field: &'static str, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        let reason = format!("it is nested {depth} deep; at most {MAX_DEPTH} is allowed");
        return Err(MetadataError::invalid(field, reason));
    }
    Ok(())
}

/// How deep a value is nested; 0 = it holds no other.
fn depth(value: &serde_json::Value) -> usize {
    let inner = match value {
        serde_json::Value::Array(items) => items.iter().map(depth).max(),
        serde_json::Value::Object(members) => members.values().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}

/// What a processor carries.
///
/// # Errors
/// `InvalidArgument` when it does not fit.
pub fn encode_assignment(assignment: &ProcessorAssignment) -> Result<String> {
    encode("assignment", assignment, MAX_ASSIGNMENT)
}

/// Checks what an owner assigns to its processors.
///
/// # Errors
/// `InvalidArgument` when there are too many, or one does not fit.
pub fn check_assignments(assignments: &BTreeMap<CaptureId, ProcessorAssignment>) -> Result<()> {
    check_batch("assignments", assignments.keys().copied())?;
    assignments.values().try_for_each(|assignment| encode_assignment(assignment).map(drop))
}

/// One changefeed's progress.
///
/// # Errors
/// `InvalidArgument` of `field` when it does not fit or a timestamp is out of range.
pub fn encode_position(field: &'static str, position: &ChangefeedProgress) -> Result<String> {
    check_position(field, position)?;
    encode(field, position, MAX_POSITION)
}

fn check_position(field: &'static str, position: &ChangefeedProgress) -> Result<()> {
    for ts in [position.checkpoint_ts, position.resolved_ts, position.min_table_barrier_ts] {
        Ts::new(field, ts.0)?;
    }
    position.position.as_ref().map_or(Ok(()), |position| check_depth(field, depth(&position.0)))
}

/// One changefeed's entry in a capture's progress. Each position in it may become the changefeed's own, and so must fit alone.
fn encode_entry(entry: &OwnedProgress) -> Result<String> {
    let Some(report) = &entry.processor else {
        check_position("progress", &entry.progress)?;
        return encode("progress", entry, MAX_POSITION);
    };
    encode_position("progress", &entry.progress)?;
    for (table, of_it) in &report.tables {
        encode_position("progress", &of_it.progress)
            .map_err(|error| named(error, format_args!("table {table}")))?;
    }
    encode("progress", entry, MAX_REPORT)
}

/// The error, with what it is about.
fn named(error: MetadataError, of: impl Display) -> MetadataError {
    match error {
        MetadataError::InvalidArgument { field, reason } => {
            MetadataError::invalid(field, format!("of {of}: {reason}"))
        }
        other => other,
    }
}

/// A capture's whole progress.
///
/// # Errors
/// `InvalidArgument`, field `progress`, with the changefeed whose entry does not fit.
pub fn encode_progress(progress: &CaptureProgress) -> Result<String> {
    let mut whole = String::from("{");
    for (uuid, entry) in &progress.0 {
        let text = encode_entry(entry).map_err(|error| named(error, format_args!("changefeed {uuid}")))?;
        if whole.len() > 1 {
            whole.push(',');
        }
        let _ = write!(whole, "\"{uuid}\":{text}");
        if whole.len() >= MAX_PROGRESS {
            return Err(MetadataError::invalid(
                "progress",
                format!("with changefeed {uuid} the capture's whole progress is over {MAX_PROGRESS} bytes"),
            ));
        }
    }
    whole.push('}');
    Ok(whole)
}

/// What a processor row's capture reported under the row's epoch: `text` is the member of the capture's progress. What cannot
/// be read says nothing, and so that nothing has stopped: the processor keeps its tables.
pub fn processor_report(text: Option<&str>, epoch: ProcessorEpoch) -> Option<ProcessorReport> {
    let report: ProcessorReport = serde_json::from_str(text?).ok()?;
    (report.epoch == epoch).then_some(report)
}

/// An error or a warning; a message that is too long is cut.
///
/// # Errors
/// `InvalidArgument` when its other texts do not fit.
pub fn encode_error(field: &'static str, error: Option<&RunningError>) -> Result<Option<String>> {
    let Some(error) = error else { return Ok(None) };
    check_len(field, error.code.len().max(error.addr.len()), MAX_SHORT)?;
    encode(field, &cut_message(error), 8 * MAX_MESSAGE).map(Some)
}

/// The error or warning as [`encode_error`] stores it.
pub fn cut_message(error: &RunningError) -> RunningError {
    let mut error = error.clone();
    if error.message.len() > MAX_MESSAGE {
        error.message.truncate(error.message.floor_char_boundary(MAX_MESSAGE));
        error.message.push_str(" [..]");
    }
    error
}

/// How far a changefeed has come (I6): while its schedule is `Removed`, the task position; else the entry *of the
/// current owner epoch* in `reported`, the progress of the schedule's owner, if it is ahead of the task position. The
/// whole value of one of them.
pub fn current_progress(
    schedule: &ChangefeedSchedule,
    reported: Option<&CaptureProgress>,
) -> ChangefeedProgress {
    let task_position = schedule.task_position.clone();
    if schedule.state == ScheduleState::Removed {
        return task_position;
    }
    match reported.and_then(|progress| progress.0.get(&schedule.changefeed)) {
        Some(entry) if entry.owner_epoch == schedule.epoch => task_position.further(entry.progress.clone()),
        _ => task_position,
    }
}

/// The state row that follows from `event`, which led to the state `next`.
///
/// `error` becomes the error of `Failed` and `Pending`, and the warning of `Warning`. `Normal`, `Finished` and
/// `Resume` clear both; everything else leaves them. The version stays: the write moves it.
#[must_use]
pub fn next_status(
    current: &ChangefeedStatus,
    event: FeedEvent,
    next: FeedState,
    error: Option<&RunningError>,
) -> ChangefeedStatus {
    let mut status = ChangefeedStatus { state: next, ..current.clone() };
    match event {
        FeedEvent::Resume | FeedEvent::Report(FeedState::Normal | FeedState::Finished) => {
            status.warning = None;
            status.error = None;
        }
        FeedEvent::Report(FeedState::Failed | FeedState::Pending) => status.error = error.map(cut_message),
        FeedEvent::Report(FeedState::Warning) => status.warning = error.map(cut_message),
        _ => {}
    }
    status
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::model::{CaptureId, ChangefeedUuid, OwnerEpoch, Revision, SourcePosition, Version};

    #[test]
    fn a_configuration_is_not_nested_deeper_than_every_database_reads() {
        let nested = |depth: usize| {
            let value = (2..depth).fold(json!([]), |inner, _| json!([inner]));
            encode_config(&ReplicaConfig([("x".to_owned(), value)].into_iter().collect()))
        };
        nested(MAX_DEPTH).unwrap();
        let error = nested(MAX_DEPTH + 1).unwrap_err().to_string();
        assert!(error.contains("replica_config") && error.contains("25 deep; at most 24"), "{error}");
    }

    #[test]
    fn an_upstream_comes_back_as_it_was_given_and_its_endpoints_show_no_secret() {
        for text in [
            "mysql://root@127.0.0.1:3306/",
            "mysql://u:hunter2@h:3306/db?a=%20b&c",
            "mysql://u:hunt%3Aer2@h/?pass%77ord=hunter2&x=1",
            "datagen://?tables=3",
            "kafka://xxxxx/t",
        ] {
            let uri = SecretUri::parse("upstream_uri", text).unwrap();
            let (endpoints, credentials) = split_uri("upstream_uri", &uri).unwrap();
            assert!(!endpoints.contains("hunt"), "{endpoints}");
            assert_eq!(join_uri(&1, &endpoints, &credentials).unwrap(), uri);
        }
        let error = join_uri(&1, "mysql://h/", "mysql://u:hunter2@h/").unwrap_err().to_string();
        assert!(
            error.contains("upstream") && error.contains("credentials") && !error.contains("hunter2"),
            "{error}"
        );
    }

    fn progress(checkpoint: u64) -> ChangefeedProgress {
        ChangefeedProgress {
            position: Some(SourcePosition(json!({"gtid": checkpoint}))),
            ..ChangefeedProgress::at(Ts(checkpoint))
        }
    }

    fn schedule(state: ScheduleState, epoch: u64, checkpoint: u64) -> ChangefeedSchedule {
        ChangefeedSchedule {
            changefeed: ChangefeedUuid(7),
            owner: (state != ScheduleState::Removed).then(|| CaptureId(Uuid::nil())),
            state,
            epoch: OwnerEpoch(epoch),
            task_position: progress(checkpoint),
            revision: Revision(1),
            version: Version(1),
        }
    }

    proptest! {
        /// Regression: defect 15 (progress merged in arbitrary order, so a stale owner's checkpoint may win).
        #[test]
        fn defect_15_only_the_current_owners_word_counts_and_never_goes_back(
            state in prop::sample::select(ScheduleState::ALL.to_vec()),
            epoch in 0..3_u64, entry_epoch in 0..3_u64, task in 0..9_u64, entry in 0..9_u64,
        ) {
            let reported = CaptureProgress(BTreeMap::from([(
                ChangefeedUuid(7),
                OwnedProgress::new(OwnerEpoch(entry_epoch), progress(entry)),
            )]));
            let now = current_progress(&schedule(state, epoch, task), Some(&reported));
            let counts = state != ScheduleState::Removed && epoch == entry_epoch && entry > task;
            prop_assert_eq!(now, progress(if counts { entry } else { task }));
        }

        #[test]
        fn a_progress_comes_back_as_it_was_written(entries in prop::collection::btree_map(any::<u64>(), (any::<u64>(), 0..=Ts::MAX.0), 0..20)) {
            let whole = CaptureProgress(entries.into_iter().map(|(uuid, (epoch, ts))| {
                (ChangefeedUuid(uuid), OwnedProgress::new(OwnerEpoch(epoch), progress(ts)))
            }).collect());
            let text = encode_progress(&whole).unwrap();
            let back: CaptureProgress = Cell::new("progress", &1, "value").json(&text).unwrap();
            prop_assert_eq!(back, whole);
        }

        #[test]
        fn no_text_panics_a_decoder(text in ".{0,40}") {
            let cell = Cell::new("progress", &1, "value");
            let _ = cell.json::<CaptureProgress>(&text);
            let _ = cell.json::<ReplicaConfig>(&text);
            let _ = cell.parse::<ScheduleState>(&text);
            let _ = cell.uri(&text);
        }
    }

    #[test]
    fn what_does_not_fit_names_its_changefeed() {
        let huge = ChangefeedProgress {
            position: Some(SourcePosition(json!("x".repeat(MAX_POSITION)))),
            ..Default::default()
        };
        let owned = OwnedProgress::new(OwnerEpoch(1), huge);
        let whole = CaptureProgress(BTreeMap::from([(ChangefeedUuid(4711), owned)]));
        let error = encode_progress(&whole).unwrap_err();
        assert!(
            matches!(&error, MetadataError::InvalidArgument { field: "progress", reason } if reason.contains("4711"))
        );

        let large = ChangefeedProgress {
            position: Some(SourcePosition(json!("x".repeat(MAX_POSITION / 2)))),
            ..Default::default()
        };
        let many = (0..200).map(|n| (ChangefeedUuid(n), OwnedProgress::new(OwnerEpoch(1), large.clone())));
        let error = encode_progress(&CaptureProgress(many.collect())).unwrap_err().to_string();
        assert!(error.contains("changefeed 1"), "{error}");
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let error = RunningError {
            time: chrono::DateTime::UNIX_EPOCH,
            addr: String::new(),
            code: "CDC:ErrX".into(),
            message: "ü".repeat(MAX_MESSAGE),
        };
        let cut = cut_message(&error);
        assert!(cut.message.len() <= MAX_MESSAGE + 8 && cut.message.ends_with("ü [..]"));
        assert_eq!(cut_message(&RunningError { message: "short".into(), ..error.clone() }).message, "short");
    }
}
