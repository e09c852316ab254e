//! Ways to a situation: captures, a controller, changefeeds in any state.

use std::collections::BTreeMap;

use chrono::DateTime;
use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    CaptureId, CaptureInfo, CaptureProgress, CaptureTerm, ChangefeedInfo, ChangefeedName, ChangefeedProgress,
    ChangefeedSchedule, ChangefeedStatus, ChangefeedUuid, ControllerTerm, FeedState, NewCapture,
    NewChangefeed, OwnedProgress, OwnerEpoch, OwnerTerm, ProcessorAssignment, ProcessorReport,
    ProcessorSchedule, ProcessorTarget, ReplicaConfig, Revision, RunningError, ScheduleState, ScheduleTarget,
    SecretUri, SourcePosition, TableId, TableReport, Ts, Version,
};
use metadata_api::store::{Authority, MAX_BATCH, OwnerRelease};
use serde_json::json;
use uuid::Uuid;

use super::{Cluster, dump};

/// A changefeed with an owner, and who is who.
#[derive(Clone, Copy, Debug)]
pub struct Owned {
    /// Who launched it.
    pub controller: ControllerTerm,
    /// Who owns it.
    pub capture: CaptureTerm,
    /// Which it is.
    pub changefeed: ChangefeedUuid,
    /// The launch.
    pub owner: OwnerTerm,
}

/// A position at `ts` that can be told from any other: each of its fields differs.
pub fn at(ts: u64) -> ChangefeedProgress {
    ChangefeedProgress {
        checkpoint_ts: Ts(ts),
        resolved_ts: Ts(ts + 2),
        min_table_barrier_ts: Ts(ts + 1),
        position: Some(SourcePosition(json!({ "file": format!("binlog.{ts}"), "offset": ts }))),
    }
}

/// A capture's whole progress value.
pub fn progress_of(entries: &[(ChangefeedUuid, OwnerEpoch, ChangefeedProgress)]) -> CaptureProgress {
    CaptureProgress(
        entries
            .iter()
            .map(|(uuid, epoch, progress)| (*uuid, OwnedProgress::new(*epoch, progress.clone())))
            .collect(),
    )
}

/// What a processor says of a table that runs: it is at `ts`.
pub fn table_at(since: Version, ts: u64) -> TableReport {
    TableReport { since, stopped: false, error: None, progress: at(ts) }
}

/// A processor's word on each of its tables.
pub fn report_of<'a>(
    row: &ProcessorSchedule,
    tables: impl IntoIterator<Item = (&'a str, TableReport)>,
) -> ProcessorReport {
    let tables = tables.into_iter().map(|(name, table)| (TableId(name.to_owned()), table));
    ProcessorReport { epoch: row.epoch, tables: tables.collect() }
}

/// What a capture says of a changefeed of which it is only a processor: of the whole it says nothing.
pub fn share_of(row: &ProcessorSchedule, report: &ProcessorReport) -> OwnedProgress {
    let nothing = OwnedProgress::new(row.owner_epoch, ChangefeedProgress::default());
    OwnedProgress { processor: Some(report.clone()), ..nothing }
}

/// An error to report, with text that a narrow column or a narrow character set would not hold.
pub fn running_error(code: &str) -> RunningError {
    RunningError {
        time: DateTime::from_timestamp(1_700_000_000, 123_000_000).expect("a time"),
        addr: "127.0.0.1:8300".to_owned(),
        code: code.to_owned(),
        message: format!("{code}: \"Störung\" \\ '%_;-- 🦀 {}", "x".repeat(2_000)),
    }
}

/// A URI that is known to parse.
pub fn uri(text: &str) -> SecretUri {
    SecretUri::parse("uri", text).expect("a URI")
}

impl Cluster {
    /// What a fresh capture says of itself.
    pub fn new_capture(&self) -> NewCapture {
        let id = CaptureId::random();
        NewCapture {
            id,
            advertise_addr: "127.0.0.1:8300".to_owned(),
            version: "v0.1.0".to_owned(),
            labels: BTreeMap::from([("zone".to_owned(), "a-ü🦀".to_owned())]),
            machine_id: "0123456789abcdef".to_owned(),
        }
    }

    /// Registers a fresh capture.
    pub async fn capture(&self) -> CaptureTerm {
        self.store.capture_register(&self.new_capture()).await.expect("capture_register")
    }

    /// Makes `capture` the controller, whoever was.
    pub async fn elect(&self, capture: CaptureTerm) -> ControllerTerm {
        let observed = self.store.election().await.expect("election");
        self.store.election_campaign(capture, &observed).await.expect("election_campaign")
    }

    /// Registers a fresh capture and makes it the controller, whoever was.
    pub async fn controller(&self) -> ControllerTerm {
        let capture = self.capture().await;
        self.elect(capture).await
    }

    /// A request for a changefeed `default/{id}` that starts at 100.
    pub fn new_changefeed(&self, id: &str) -> NewChangefeed {
        let config = json!({ "case-sensitive": true, "filter": { "rules": ["a.*", "ü.🦀"] }, "n": 12 });
        NewChangefeed {
            name: ChangefeedName::new("", id).expect("a name"),
            upstream_id: None,
            upstream_uri: uri("mysql://root:up'stream%20pw@127.0.0.1:3306/"),
            sink_uri: uri("mysql://root:s;nk\"pw@127.0.0.1:3307/?worker-count=4"),
            start_ts: Ts(100),
            target_ts: Ts::ZERO,
            config: ReplicaConfig(config.as_object().expect("an object").clone()),
            creator_version: "v0.1.0".to_owned(),
            client_request_id: Uuid::new_v4(),
            task_position: at(100),
        }
    }

    /// Creates the changefeed `default/{id}`.
    pub async fn create(&self, id: &str) -> ChangefeedInfo {
        let new = self.new_changefeed(id);
        self.store.changefeed_create(Authority::Operator, &new).await.expect("changefeed_create")
    }

    /// Creates `count` changefeeds, `default/{prefix}-{n}`, ordered by uuid.
    pub async fn create_many(&self, prefix: &str, count: usize) -> Vec<ChangefeedUuid> {
        let mut uuids = Vec::with_capacity(count);
        for n in 0..count {
            uuids.push(self.create(&format!("{prefix}-{n}")).await.uuid);
        }
        uuids
    }

    /// What [`ControllerStore::owner_set`](metadata_api::store::ControllerStore::owner_set) is to be asked to launch
    /// `changefeed` on `capture`, as its schedule is now.
    pub async fn launch_target(&self, changefeed: ChangefeedUuid, capture: CaptureTerm) -> ScheduleTarget {
        ScheduleTarget {
            changefeed,
            expected_version: self.schedule(changefeed).await.version,
            state: ScheduleState::Launched,
            owner: Some(capture.capture),
        }
    }

    /// The same for `Removing`.
    pub async fn removing_target(&self, changefeed: ChangefeedUuid) -> ScheduleTarget {
        ScheduleTarget {
            changefeed,
            expected_version: self.schedule(changefeed).await.version,
            state: ScheduleState::Removing,
            owner: None,
        }
    }

    /// Applies one target, which must work.
    pub async fn set_owner(&self, controller: ControllerTerm, target: ScheduleTarget) -> ChangefeedSchedule {
        let mut answers = self.store.owner_set(controller, &[target]).await.expect("owner_set");
        assert_eq!(answers.len(), 1, "one answer for each target");
        answers.remove(0).expect("the target applied")
    }

    /// Launches one changefeed.
    pub async fn launch(
        &self,
        controller: ControllerTerm,
        capture: CaptureTerm,
        changefeed: ChangefeedUuid,
    ) -> OwnerTerm {
        let target = self.launch_target(changefeed, capture).await;
        self.set_owner(controller, target).await.term().expect("an owner")
    }

    /// Launches many, in as few calls as may be.
    pub async fn launch_many(
        &self,
        controller: ControllerTerm,
        capture: CaptureTerm,
        changefeeds: &[ChangefeedUuid],
    ) -> Vec<OwnerTerm> {
        let snapshot = self.store.schedule_snapshot().await.expect("schedule_snapshot");
        let versions: BTreeMap<_, _> =
            snapshot.changefeeds.iter().map(|row| (row.schedule.changefeed, row.schedule.version)).collect();
        let mut terms = Vec::with_capacity(changefeeds.len());
        for chunk in changefeeds.chunks(MAX_BATCH) {
            let targets: Vec<_> = chunk
                .iter()
                .map(|changefeed| ScheduleTarget {
                    changefeed: *changefeed,
                    expected_version: versions[changefeed],
                    state: ScheduleState::Launched,
                    owner: Some(capture.capture),
                })
                .collect();
            for answer in self.store.owner_set(controller, &targets).await.expect("owner_set") {
                terms.push(answer.expect("launched").term().expect("an owner"));
            }
        }
        terms
    }

    /// A changefeed `default/{id}` launched on a capture that is not the controller.
    pub async fn owned(&self, id: &str) -> Owned {
        let controller = self.controller().await;
        let capture = self.capture().await;
        let changefeed = self.create(id).await.uuid;
        let owner = self.launch(controller, capture, changefeed).await;
        Owned { controller, capture, changefeed, owner }
    }

    /// Releases one launch, which must work.
    pub async fn release(&self, owner: OwnerTerm) {
        let release = OwnerRelease { term: owner, task_position: None, end: None };
        let answers = self.store.owner_release(&[release]).await.expect("owner_release");
        assert_eq!(answers.len(), 1, "one answer for each release");
        for answer in answers {
            answer.expect("released");
        }
    }

    /// Brings a launched, uninitialized changefeed to `state`, by the owner's word.
    pub async fn bring_to(&self, owner: OwnerTerm, state: FeedState) {
        let (event, error) = match state {
            FeedState::Uninitialized => return,
            FeedState::Stopped => (FeedEvent::Pause, None),
            FeedState::Removed => (FeedEvent::Remove, None),
            FeedState::Normal | FeedState::Finished => (FeedEvent::Report(state), None),
            FeedState::Pending | FeedState::Warning | FeedState::Failed => {
                (FeedEvent::Report(state), Some(running_error("CDC:ErrBefore")))
            }
        };
        let status = self.store.owner_transition(owner, event, error).await.expect("owner_transition");
        assert_eq!(status.state, state);
    }

    /// Attaches a processor, which must work.
    pub async fn attach(
        &self,
        controller: ControllerTerm,
        changefeed: ChangefeedUuid,
        capture: CaptureTerm,
    ) -> ProcessorSchedule {
        let rows = self.store.processor_schedules(changefeed).await.expect("processor_schedules");
        let expected_version = rows.iter().find(|row| row.capture == capture.capture).map(|row| row.version);
        let target = attach_target(capture, expected_version);
        let mut rows =
            self.store.processor_set(controller, changefeed, &[target]).await.expect("processor_set");
        assert_eq!(rows.len(), 1, "one row for each target");
        rows.remove(0)
    }

    /// A changefeed's schedule, which exists.
    pub async fn schedule(&self, changefeed: ChangefeedUuid) -> ChangefeedSchedule {
        self.store.changefeed_schedule(changefeed).await.expect("changefeed_schedule").expect("a schedule")
    }

    /// A changefeed's state row, which exists.
    pub async fn status(&self, changefeed: ChangefeedUuid) -> ChangefeedStatus {
        let mut rows =
            self.store.changefeed_statuses(Some(&[changefeed])).await.expect("changefeed_statuses");
        assert_eq!(rows.len(), 1, "one state row");
        rows.remove(0)
    }

    /// A changefeed's info, which exists.
    pub async fn info(&self, changefeed: ChangefeedUuid) -> ChangefeedInfo {
        let mut rows = self.store.changefeed_infos(Some(&[changefeed])).await.expect("changefeed_infos");
        assert_eq!(rows.len(), 1, "one info row");
        rows.remove(0)
    }

    /// How far a changefeed that exists has come.
    pub async fn progress(&self, changefeed: ChangefeedUuid) -> ChangefeedProgress {
        let mut rows =
            self.store.changefeed_progresses(Some(&[changefeed])).await.expect("changefeed_progresses");
        assert_eq!(rows.len(), 1, "one progress");
        rows.remove(&changefeed).expect("its progress")
    }

    /// A capture's row, if it has one.
    pub async fn capture_row(&self, capture: CaptureTerm) -> Option<CaptureInfo> {
        let mut rows = self.store.captures(Some(&[capture.capture])).await.expect("captures");
        assert!(rows.len() <= 1, "at most one row");
        rows.pop()
    }

    /// The fence row's revision.
    pub async fn revision(&self) -> Revision {
        dump::revision(&*self.store).await
    }

    /// Beats once: `acknowledged`, then `next`; it must work.
    pub async fn beat(&self, capture: CaptureTerm, acknowledged: u64, next: u64) {
        let mut channel = self.store.heartbeat_channel().await.expect("a heartbeat channel");
        channel.beat(capture, acknowledged, next).await.expect("a heartbeat");
    }

    /// Seals a capture with the heartbeat sequence that it has; it must work.
    pub async fn seal(&self, controller: ControllerTerm, capture: CaptureTerm) {
        let judged = self.capture_row(capture).await.map_or(0, |row| row.heartbeat_seq);
        let sealed =
            self.store.capture_seal(controller, capture.capture, judged).await.expect("capture_seal");
        assert!(sealed, "nobody beat meanwhile");
    }
}

/// A `Launched` target with an assignment.
pub fn attach_target(capture: CaptureTerm, expected_version: Option<Version>) -> ProcessorTarget {
    ProcessorTarget {
        capture: capture.capture,
        expected_version,
        state: ScheduleState::Launched,
        assignment: ProcessorAssignment(json!({ "tables": [1, 2, 3], "name": "ü🦀" })),
    }
}

/// A `Removing` target.
pub fn detach_target(capture: CaptureTerm, expected_version: Version) -> ProcessorTarget {
    ProcessorTarget {
        capture: capture.capture,
        expected_version: Some(expected_version),
        state: ScheduleState::Removing,
        assignment: ProcessorAssignment::default(),
    }
}
