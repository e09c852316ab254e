//! Everything that can be read through a store, as comparable text.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};

use metadata_api::model::{CaptureId, CaptureTerm, ChangefeedUuid, Revision, Version};
use metadata_api::store::{MetadataStore, PollCursor};
use uuid::Uuid;

use super::Timeless;

/// Everything readable at some moment: what it is, and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    values: BTreeMap<String, String>,
    versions: BTreeMap<String, Version>,
    /// Without the database clock's times.
    timeless: bool,
}

impl Dump {
    fn put<T: Timeless>(&mut self, key: impl Into<String>, value: &T) {
        let text =
            if self.timeless { format!("{:?}", value.clone().timeless()) } else { format!("{value:?}") };
        self.values.insert(key.into(), text);
    }

    fn put_row<T: Timeless>(&mut self, key: impl Into<String>, value: &T, version: Version) {
        let key = key.into();
        self.put(key.clone(), value);
        self.versions.insert(key, version);
    }

    /// The rows whose version moved by more than one step: they were written twice.
    pub fn written_twice(&self, after: &Self) -> Vec<String> {
        let twice = |key: &str, version: Version| {
            after.versions.get(key).is_some_and(|later| later.0 > version.0 + 1)
        };
        self.versions
            .iter()
            .filter(|(key, version)| twice(key, **version))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// What is different in `after`; empty when nothing is.
    pub fn changes_to(&self, after: &Self) -> String {
        let mut text = String::new();
        for (key, old) in &self.values {
            match after.values.get(key) {
                Some(new) if new == old => {}
                Some(new) => {
                    let _ = writeln!(text, "  {key}\n    - {old}\n    + {new}");
                }
                None => {
                    let _ = writeln!(text, "  {key}\n    - {old}");
                }
            }
        }
        for (key, new) in after.values.iter().filter(|(key, _)| !self.values.contains_key(*key)) {
            let _ = writeln!(text, "  {key}\n    + {new}");
        }
        text
    }
}

/// Everything readable, the revision included.
pub async fn dump(store: &dyn MetadataStore) -> Dump {
    let mut dump = dump_rows(store).await;
    dump.put("revision", &revision(store).await);
    dump
}

/// The fence row's revision.
pub async fn revision(store: &dyn MetadataStore) -> Revision {
    let nobody = CaptureTerm { capture: CaptureId(Uuid::nil()) };
    let mut channel = store.watch_channel().await.expect("a watch channel");
    let cursor = PollCursor::after(Revision(u64::MAX >> 1));
    channel.poll(nobody, &cursor).await.expect("a poll").revision
}

/// Everything readable but the revision.
pub async fn dump_rows(store: &dyn MetadataStore) -> Dump {
    let mut dump = Dump::default();
    dump.put("identity", &store.identity().await.expect("identity"));
    read_rows(store, &mut dump).await;
    dump
}

/// Everything readable that two databases on which the same was done have in common, revisions aside.
pub async fn dump_timeless(store: &dyn MetadataStore) -> Dump {
    let mut dump = Dump { timeless: true, ..Dump::default() };
    read_rows(store, &mut dump).await;
    dump
}

/// The part of [`dump_timeless`] that the planner reads, in one statement.
pub async fn dump_planned(store: &dyn MetadataStore) -> Dump {
    let mut dump = Dump { timeless: true, ..Dump::default() };
    read_planned(store, &mut dump).await;
    dump
}

async fn read_planned(store: &dyn MetadataStore, dump: &mut Dump) {
    let snapshot = store.schedule_snapshot().await.expect("schedule_snapshot");
    dump.put("snapshot captures", &snapshot.captures);
    dump.put("snapshot changefeeds", &snapshot.changefeeds);
}

async fn read_rows(store: &dyn MetadataStore, dump: &mut Dump) {
    let election = store.election().await.expect("election");
    dump.put_row("election", &election, election.version);

    for capture in store.captures(None).await.expect("captures") {
        let (id, term) = (capture.id, CaptureTerm { capture: capture.id });
        dump.put(format!("capture {id}"), &capture);
        dump.put(
            format!("capture {id} progress"),
            &store.capture_progress(term).await.map_err(|error| error.is_fenced()),
        );
        let schedules = store.capture_schedules(term).await.expect("capture_schedules").rows;
        dump.put(format!("capture {id} schedules"), &schedules);
        let processors = store.capture_processors(term).await.expect("capture_processors").rows;
        dump.put(format!("capture {id} processors"), &processors);
    }
    dump.put("beats", &store.capture_beats().await.expect("capture_beats"));

    let infos = store.changefeed_infos(None).await.expect("changefeed_infos");
    for info in &infos {
        let uuid = info.uuid;
        dump.put_row(format!("changefeed {uuid} info"), info, info.version);
        dump.put(format!("changefeed {uuid} sink"), &info.sink_uri.expose().to_owned());
        let upstream = store.upstream(info.upstream).await.expect("upstream");
        dump.put(
            format!("upstream {}", info.upstream),
            &upstream.map(|upstream| upstream.uri.expose().to_owned()),
        );
        let schedule =
            store.changefeed_schedule(uuid).await.expect("changefeed_schedule").expect("a schedule");
        dump.put_row(format!("changefeed {uuid} schedule"), &schedule, schedule.version);
        for row in store.processor_schedules(uuid).await.expect("processor_schedules") {
            dump.put_row(format!("changefeed {uuid} processor {}", row.capture), &row, row.version);
        }
    }
    for status in store.processors(None).await.expect("processors") {
        let (uuid, capture) = (status.schedule.changefeed, status.schedule.capture);
        dump.put(format!("changefeed {uuid} processor {capture} report"), &status);
    }
    let all: Vec<ChangefeedUuid> = infos.iter().map(|info| info.uuid).collect();
    for status in store.changefeed_statuses(None).await.expect("changefeed_statuses") {
        dump.put_row(format!("changefeed {} status", status.changefeed), &status, status.version);
    }
    for (uuid, progress) in store.changefeed_progresses(Some(&all)).await.expect("changefeed_progresses") {
        dump.put(format!("changefeed {uuid} progress"), &progress);
    }
    for overview in store.changefeed_overviews(None).await.expect("changefeed_overviews") {
        dump.put(format!("overview {}", overview.info.name), &overview);
    }
    read_planned(store, dump).await;
}
