//! The rows, and what a transaction changed of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use metadata_api::codec::{Cell, current_progress};
use metadata_api::model::{
    CaptureId, CaptureInfo, CaptureProgress, ChangefeedInfo, ChangefeedProgress, ChangefeedSchedule,
    ChangefeedStatus, ChangefeedUuid, ClusterIdentity, ControllerEpoch, ElectionRecord, ProcessorSchedule,
    Revision, ScheduleState, UpstreamId, UpstreamInfo, Version,
};
use metadata_api::{MetadataError, Result};
use uuid::Uuid;

/// A table, as the SQL stores name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the design's table list says what each holds")]
pub enum Table {
    Election,
    Fence,
    Capture,
    Progress,
    Upstream,
    ChangefeedInfo,
    ChangefeedState,
    Schedule,
    Processor,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 9] = [
        Self::Election,
        Self::Fence,
        Self::Capture,
        Self::Progress,
        Self::Upstream,
        Self::ChangefeedInfo,
        Self::ChangefeedState,
        Self::Schedule,
        Self::Processor,
    ];

    /// Its name in SQL.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Election => "election",
            Self::Fence => "fence",
            Self::Capture => "capture",
            Self::Progress => "progress",
            Self::Upstream => "upstream",
            Self::ChangefeedInfo => "changefeed_info",
            Self::ChangefeedState => "changefeed_state",
            Self::Schedule => "schedule",
            Self::Processor => "processor",
        }
    }
}

/// The fence row's epoch: who may write as controller now; 0 = nobody. Its revision is in [`Tables::revision`].
pub type FenceRow = ControllerEpoch;

/// A changefeed's info row.
#[derive(Clone, Debug, PartialEq)]
pub struct InfoRow {
    /// What the changefeed is to do.
    pub info: ChangefeedInfo,
    /// It is removed and its schedule was `Removed`: others may have its name.
    pub name_freed: bool,
}

/// A capture's progress row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProgressRow {
    /// The capture's own number of the last write.
    pub seq: u64,
    /// What it wrote.
    pub value: CaptureProgress,
    /// It accepts no more.
    pub sealed: bool,
}

/// One row as it was and as it is; `None` = absent.
#[derive(Clone, Debug)]
pub struct Row<K, V> {
    /// Its key.
    pub key: K,
    /// As it was.
    pub before: Option<Arc<V>>,
    /// As it is.
    pub after: Option<Arc<V>>,
}

/// One row that a transaction changed.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is the row of the table of the same name")]
pub enum Change {
    Election(Row<(), ElectionRecord>),
    Fence(Row<(), FenceRow>),
    Capture(Row<CaptureId, CaptureInfo>),
    Progress(Row<CaptureId, ProgressRow>),
    Upstream(Row<UpstreamId, UpstreamInfo>),
    Info(Row<ChangefeedUuid, InfoRow>),
    Status(Row<ChangefeedUuid, ChangefeedStatus>),
    Schedule(Row<ChangefeedUuid, ChangefeedSchedule>),
    Processor(Row<(ChangefeedUuid, CaptureId), ProcessorSchedule>),
}

/// A transaction that committed.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Its name, as in the errors and spans of every store.
    pub transaction: &'static str,
    /// When, on the database's own monotonic clock.
    pub at: Duration,
    /// The revision that it took, if it did.
    pub revision: Option<Revision>,
    /// What it changed, in order.
    pub changes: Vec<Change>,
}

/// The rows of a table by the capture that they name.
type ByCapture<V> = BTreeMap<CaptureId, BTreeMap<ChangefeedUuid, Arc<V>>>;

/// All that the database holds.
#[derive(Clone, Debug)]
pub struct Tables {
    pub(crate) identity: ClusterIdentity,
    pub(crate) revision: Revision,
    pub(crate) fence: BTreeMap<(), Arc<FenceRow>>,
    pub(crate) election: BTreeMap<(), Arc<ElectionRecord>>,
    pub(crate) captures: BTreeMap<CaptureId, Arc<CaptureInfo>>,
    pub(crate) progresses: BTreeMap<CaptureId, Arc<ProgressRow>>,
    pub(crate) upstreams: BTreeMap<UpstreamId, Arc<UpstreamInfo>>,
    pub(crate) infos: BTreeMap<ChangefeedUuid, Arc<InfoRow>>,
    pub(crate) statuses: BTreeMap<ChangefeedUuid, Arc<ChangefeedStatus>>,
    pub(crate) schedules: BTreeMap<ChangefeedUuid, Arc<ChangefeedSchedule>>,
    pub(crate) processors: BTreeMap<(ChangefeedUuid, CaptureId), Arc<ProcessorSchedule>>,
    /// An index: the schedules that name a capture and are not `Removed`.
    owned: ByCapture<ChangefeedSchedule>,
    /// An index: the processor rows that name a capture.
    carried: ByCapture<ProcessorSchedule>,
    /// Tables whose values somebody made unreadable.
    pub(crate) corrupt: BTreeSet<Table>,
    /// Rows, by their keys' text, that somebody made unreadable.
    pub(crate) corrupt_rows: BTreeSet<(Table, String)>,
    /// Changefeeds whose processors somebody made unreadable.
    pub(crate) corrupt_processors: BTreeSet<ChangefeedUuid>,
}

impl Tables {
    /// Freshly migrated.
    pub(crate) fn new(cluster_id: Uuid) -> Self {
        let mut tables = Self {
            identity: ClusterIdentity { cluster_id, server_id: String::new() },
            revision: Revision(0),
            fence: BTreeMap::new(),
            election: BTreeMap::new(),
            captures: BTreeMap::new(),
            progresses: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            infos: BTreeMap::new(),
            statuses: BTreeMap::new(),
            schedules: BTreeMap::new(),
            processors: BTreeMap::new(),
            owned: BTreeMap::new(),
            carried: BTreeMap::new(),
            corrupt: BTreeSet::new(),
            corrupt_rows: BTreeSet::new(),
            corrupt_processors: BTreeSet::new(),
        };
        tables.reset_election();
        tables
    }

    /// Nobody ever campaigned.
    pub(crate) fn reset_election(&mut self) {
        let election = ElectionRecord {
            leader: None,
            epoch: ControllerEpoch(0),
            lease_seq: 0,
            cooldown: None,
            version: Version(1),
        };
        self.election = BTreeMap::from([((), Arc::new(election))]);
        self.fence = BTreeMap::from([((), Arc::new(ControllerEpoch(0)))]);
    }

    /// The revision of the last transaction that took one.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The election row.
    ///
    /// # Errors
    /// `Corrupt` when somebody deleted it.
    pub fn election(&self) -> Result<ElectionRecord> {
        self.election.get(&()).map(|row| **row).ok_or_else(|| missing_row("election"))
    }

    /// Which controller epoch may write now; 0 = none.
    ///
    /// # Errors
    /// `Corrupt` when somebody deleted the row.
    pub fn fence_epoch(&self) -> Result<ControllerEpoch> {
        self.fence.get(&()).map(|row| **row).ok_or_else(|| missing_row("fence"))
    }

    /// Every capture row, ordered by id.
    pub fn captures(&self) -> impl Iterator<Item = &CaptureInfo> {
        self.captures.values().map(|row| &**row)
    }

    /// A changefeed's processor rows, ordered by capture.
    pub fn processors(&self, changefeed: ChangefeedUuid) -> impl Iterator<Item = &ProcessorSchedule> {
        crate::query::processors(self, changefeed)
    }

    /// A capture's row.
    pub fn capture(&self, id: CaptureId) -> Option<&CaptureInfo> {
        self.captures.get(&id).map(|row| &**row)
    }

    /// Every capture's progress row, ordered by id.
    pub fn progress_rows(&self) -> impl Iterator<Item = (CaptureId, &ProgressRow)> {
        self.progresses.iter().map(|(id, row)| (*id, &**row))
    }

    /// Every schedule row, ordered by uuid.
    pub fn schedules(&self) -> impl Iterator<Item = &ChangefeedSchedule> {
        self.schedules.values().map(|row| &**row)
    }

    /// A changefeed's schedule.
    pub fn schedule(&self, changefeed: ChangefeedUuid) -> Option<&ChangefeedSchedule> {
        self.schedules.get(&changefeed).map(|row| &**row)
    }

    /// A changefeed's state row.
    pub fn status(&self, changefeed: ChangefeedUuid) -> Option<&ChangefeedStatus> {
        self.statuses.get(&changefeed).map(|row| &**row)
    }

    /// How far a changefeed has come (I6).
    pub fn progress(&self, changefeed: ChangefeedUuid) -> Option<ChangefeedProgress> {
        self.schedule(changefeed).map(|schedule| self.progress_of(schedule))
    }

    /// How far each changefeed has come that a capture owns, ordered by uuid.
    pub fn owned_progresses(
        &self,
        capture: CaptureId,
    ) -> impl Iterator<Item = (ChangefeedUuid, ChangefeedProgress)> {
        let reported = self.progresses.get(&capture).map(|row| &row.value);
        self.owned_by(capture).map(move |row| (row.changefeed, current_progress(row, reported)))
    }

    pub(crate) fn progress_of(&self, schedule: &ChangefeedSchedule) -> ChangefeedProgress {
        let row = schedule.owner.and_then(|owner| self.progresses.get(&owner));
        current_progress(schedule, row.map(|row| &row.value))
    }

    /// The schedules that name a capture and are not `Removed`, ordered by uuid.
    pub fn owned_by(&self, capture: CaptureId) -> impl Iterator<Item = &ChangefeedSchedule> {
        self.owned.get(&capture).into_iter().flat_map(BTreeMap::values).map(|row| &**row)
    }

    /// The processor rows that name a capture, ordered by uuid.
    pub(crate) fn processors_on(&self, capture: CaptureId) -> impl Iterator<Item = &ProcessorSchedule> {
        self.carried.get(&capture).into_iter().flat_map(BTreeMap::values).map(|row| &**row)
    }

    /// An error when the changefeed's processor rows were made unreadable.
    pub(crate) fn readable_processors(&self, changefeed: ChangefeedUuid) -> Result<()> {
        if self.corrupt_processors.contains(&changefeed) {
            return Err(MetadataError::corrupt("processor", changefeed, "assignment", "tampered with"));
        }
        Ok(())
    }

    /// An error when the table's values, or this row's, were made unreadable.
    pub(crate) fn readable(&self, table: Table, key: &dyn Display) -> Result<()> {
        let row = !self.corrupt_rows.is_empty() && self.corrupt_rows.contains(&(table, key.to_string()));
        if !row && !self.corrupt.contains(&table) {
            return Ok(());
        }
        let column = match table {
            Table::Progress => "value",
            Table::Schedule => "owner_state",
            Table::ChangefeedInfo => "config",
            _ => "state",
        };
        Err(Cell::new(table.name(), key, column).corrupt("somebody made it unreadable"))
    }

    /// Makes a change, or takes it back.
    pub(crate) fn apply(&mut self, change: &Change, back: bool) {
        match change {
            Change::Election(row) => set(&mut self.election, row, back),
            Change::Fence(row) => set(&mut self.fence, row, back),
            Change::Capture(row) => set(&mut self.captures, row, back),
            Change::Progress(row) => set(&mut self.progresses, row, back),
            Change::Upstream(row) => set(&mut self.upstreams, row, back),
            Change::Info(row) => set(&mut self.infos, row, back),
            Change::Status(row) => set(&mut self.statuses, row, back),
            Change::Schedule(row) => {
                set(&mut self.schedules, row, back);
                let owner = |row: &ChangefeedSchedule| {
                    if row.state == ScheduleState::Removed { None } else { row.owner }
                };
                let (old, new) = ends(row, back);
                index(&mut self.owned, row.key, old, new, owner);
            }
            Change::Processor(row) => {
                set(&mut self.processors, row, back);
                let (old, new) = ends(row, back);
                index(&mut self.carried, row.key.0, old, new, |row| Some(row.capture));
            }
        }
    }

    /// Deletes every row of a table, behind every store's back.
    pub(crate) fn clear(&mut self, table: Table) {
        match table {
            Table::Election => self.election.clear(),
            Table::Fence => self.fence.clear(),
            Table::Capture => self.captures.clear(),
            Table::Progress => self.progresses.clear(),
            Table::Upstream => self.upstreams.clear(),
            Table::ChangefeedInfo => self.infos.clear(),
            Table::ChangefeedState => self.statuses.clear(),
            Table::Schedule => {
                self.schedules.clear();
                self.owned.clear();
            }
            Table::Processor => {
                self.processors.clear();
                self.carried.clear();
            }
        }
    }
}

/// A row before and after a change is made, or taken back.
fn ends<K, V>(row: &Row<K, V>, back: bool) -> (Option<&Arc<V>>, Option<&Arc<V>>) {
    let (before, after) = (row.before.as_ref(), row.after.as_ref());
    if back { (after, before) } else { (before, after) }
}

/// Brings an index in line with a row that was `old` and is `new`. `names`: which capture it names there.
fn index<V>(
    index: &mut ByCapture<V>,
    changefeed: ChangefeedUuid,
    old: Option<&Arc<V>>,
    new: Option<&Arc<V>>,
    names: impl Fn(&V) -> Option<CaptureId>,
) {
    let named = |row: Option<&Arc<V>>| row.and_then(|row| names(row));
    let (before, after) = (named(old), named(new));
    if let Some(before) = before
        && Some(before) != after
        && let Some(rows) = index.get_mut(&before)
    {
        rows.remove(&changefeed);
        if rows.is_empty() {
            index.remove(&before);
        }
    }
    if let (Some(after), Some(row)) = (after, new) {
        index.entry(after).or_default().insert(changefeed, Arc::clone(row));
    }
}

fn set<K: Ord + Copy, V>(table: &mut BTreeMap<K, Arc<V>>, row: &Row<K, V>, back: bool) {
    match ends(row, back).1 {
        Some(value) => table.insert(row.key, Arc::clone(value)),
        None => table.remove(&row.key),
    };
}

/// One of the rows that the migrations insert is not there.
pub(crate) fn missing_row(table: &'static str) -> MetadataError {
    MetadataError::corrupt(table, 1, "id", "the row that the migrations wrote is gone")
}
