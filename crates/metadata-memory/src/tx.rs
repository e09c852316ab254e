//! A transaction: the rows under the mutex, and what it has changed of them so far.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use metadata_api::codec::{encode_error, encode_position};
use metadata_api::model::{
    CaptureId, CaptureInfo, CaptureState, ChangefeedProgress, ChangefeedSchedule, ChangefeedStatus,
    ChangefeedUuid, ControllerEpoch, ControllerTerm, ElectionRecord, OwnerTerm, ProcessorSchedule, Revision,
    ScheduleState, UpstreamId, UpstreamInfo, Version,
};
use metadata_api::store::Authority;
use metadata_api::{MetadataError, Result};

use crate::tables::{Change, FenceRow, InfoRow, ProgressRow, Row, Table, Tables};

/// A running transaction. When it is refused, or changes nothing, the revision that it took is given back too.
pub(crate) struct Tx<'a> {
    pub(crate) tables: &'a mut Tables,
    /// The database's clock.
    pub(crate) now: DateTime<Utc>,
    revision: Option<Revision>,
    changes: Vec<Change>,
}

macro_rules! writes {
    ($($put:ident, $table:ident, $variant:ident, $key:ty, $row:ty;)*) => {
        $(pub(crate) fn $put(&mut self, key: $key, row: impl Into<Option<$row>>) {
            let before = self.tables.$table.get(&key).cloned();
            let after = row.into().map(Arc::new);
            self.write(Change::$variant(Row { key, before, after }));
        })*
    };
}

impl<'a> Tx<'a> {
    pub(crate) fn new(tables: &'a mut Tables, now: DateTime<Utc>) -> Self {
        Self { tables, now, revision: None, changes: Vec::new() }
    }

    writes! {
        put_election, election, Election, (), ElectionRecord;
        put_fence, fence, Fence, (), FenceRow;
        put_capture, captures, Capture, CaptureId, CaptureInfo;
        put_progress, progresses, Progress, CaptureId, ProgressRow;
        put_upstream, upstreams, Upstream, UpstreamId, UpstreamInfo;
        put_info, infos, Info, ChangefeedUuid, InfoRow;
        put_status_row, statuses, Status, ChangefeedUuid, ChangefeedStatus;
        put_schedule, schedules, Schedule, ChangefeedUuid, ChangefeedSchedule;
        put_processor, processors, Processor, (ChangefeedUuid, CaptureId), ProcessorSchedule;
    }

    fn write(&mut self, change: Change) {
        self.tables.apply(&change, false);
        self.changes.push(change);
    }

    /// What it changed, and its revision, which is the database's now.
    pub(crate) fn commit(self) -> (Option<Revision>, Vec<Change>) {
        let revision = self.revision.filter(|_| !self.changes.is_empty());
        if let Some(revision) = revision {
            self.tables.revision = revision;
        }
        (revision, self.changes)
    }

    /// Takes everything back.
    pub(crate) fn roll_back(self) {
        for change in self.changes.iter().rev() {
            self.tables.apply(change, true);
        }
    }

    // ---- the fence ----

    /// Takes the fence for its revision.
    pub(crate) fn take(&mut self) -> Result<Revision> {
        self.tables.fence_epoch()?;
        let clock = u64::try_from(self.now.timestamp_micros()).unwrap_or(0);
        let revision = Revision(clock.max(self.tables.revision.0 + 1));
        self.revision = Some(revision);
        Ok(revision)
    }

    /// The same as controller. Epoch 0 is nobody's.
    pub(crate) fn take_as_controller(&mut self, term: ControllerTerm) -> Result<Revision> {
        let epoch = self.tables.fence_epoch()?;
        if epoch != term.epoch || epoch == ControllerEpoch(0) {
            return Err(MetadataError::fenced(format!("{term} is over")));
        }
        self.take()
    }

    /// The same in the name of `authority`.
    pub(crate) fn take_as(&mut self, authority: Authority) -> Result<Revision> {
        match authority {
            Authority::Operator => self.take(),
            Authority::Controller(term) => self.take_as_controller(term),
        }
    }

    // ---- rows ----

    pub(crate) fn capture_state(&self, capture: CaptureId) -> Result<Option<CaptureState>> {
        let Some(row) = self.tables.captures.get(&capture) else { return Ok(None) };
        self.tables.readable(Table::Capture, &capture)?;
        Ok(Some(row.state))
    }

    pub(crate) fn schedule(&self, changefeed: ChangefeedUuid) -> Result<ChangefeedSchedule> {
        let schedule = self.tables.schedule(changefeed).cloned().ok_or_else(|| no_changefeed(changefeed))?;
        self.tables.readable(Table::Schedule, &changefeed)?;
        Ok(schedule)
    }

    pub(crate) fn status(&self, changefeed: ChangefeedUuid) -> Result<ChangefeedStatus> {
        let status = self.tables.status(changefeed).cloned().ok_or_else(|| no_changefeed(changefeed))?;
        self.tables.readable(Table::ChangefeedState, &changefeed)?;
        Ok(status)
    }

    pub(crate) fn info(&self, changefeed: ChangefeedUuid) -> Result<InfoRow> {
        self.tables.infos.get(&changefeed).map(|row| (**row).clone()).ok_or_else(|| no_changefeed(changefeed))
    }

    /// The schedule of a launch, if `term` holds.
    pub(crate) fn lock_owner(&self, term: OwnerTerm) -> Result<ChangefeedSchedule> {
        match self.tables.schedule(term.changefeed) {
            Some(schedule)
                if schedule.state != ScheduleState::Removed
                    && schedule.owner == Some(term.capture)
                    && schedule.epoch == term.epoch =>
            {
                self.tables.readable(Table::Schedule, &term.changefeed)?;
                Ok(schedule.clone())
            }
            _ => Err(MetadataError::fenced(format!("{term} is over"))),
        }
    }

    /// Writes a state row, one version further.
    pub(crate) fn write_status(&mut self, mut new: ChangefeedStatus) -> Result<ChangefeedStatus> {
        encode_error("warning", new.warning.as_ref())?;
        encode_error("error", new.error.as_ref())?;
        new.version = next(new.version);
        self.put_status_row(new.changefeed, new.clone());
        Ok(new)
    }

    /// `Launched` to `Removing`, so that the owner is told to stop.
    pub(crate) fn start_removing(&mut self, schedule: &ChangefeedSchedule, revision: Revision) {
        let new = ChangefeedSchedule {
            state: ScheduleState::Removing,
            revision,
            version: next(schedule.version),
            ..schedule.clone()
        };
        self.put_schedule(schedule.changefeed, new);
    }

    /// To `Removed`, with this task position.
    pub(crate) fn release(
        &mut self,
        schedule: &ChangefeedSchedule,
        task_position: ChangefeedProgress,
        revision: Revision,
    ) -> Result<()> {
        if task_position != schedule.task_position {
            encode_position("task_position", &task_position)?;
        }
        let new = ChangefeedSchedule {
            owner: None,
            state: ScheduleState::Removed,
            task_position,
            revision,
            version: next(schedule.version),
            ..schedule.clone()
        };
        self.put_schedule(schedule.changefeed, new);
        Ok(())
    }

    /// Notes when the removal was asked, once. The name is free at once when nobody runs what it names, or a part of it.
    pub(crate) fn note_removal(&mut self, schedule: &ChangefeedSchedule) -> Result<()> {
        let changefeed = schedule.changefeed;
        let mut row = self.info(changefeed)?;
        if row.info.removed_at.is_none() {
            row.info.removed_at = Some(self.now);
            row.name_freed = schedule.state == ScheduleState::Removed && !self.is_carried(changefeed);
            row.info.version = next(row.info.version);
            self.put_info(changefeed, row);
        }
        Ok(())
    }

    /// Whether a processor of it is not `Removed`.
    pub(crate) fn is_carried(&self, changefeed: ChangefeedUuid) -> bool {
        crate::query::processors(self.tables, changefeed).any(|row| row.state != ScheduleState::Removed)
    }

    /// Frees the name of a changefeed that is removed and whose schedule is `Removed`, unless somebody still carries a part of
    /// it: then it is free when the changefeed is cleaned up.
    pub(crate) fn free_name(&mut self, changefeed: ChangefeedUuid) -> Result<()> {
        let mut row = self.info(changefeed)?;
        if !row.name_freed && !self.is_carried(changefeed) {
            row.name_freed = true;
            row.info.version = next(row.info.version);
            self.put_info(changefeed, row);
        }
        Ok(())
    }

    /// Seals a capture's progress row, if it has one.
    pub(crate) fn seal_progress(&mut self, capture: CaptureId) {
        if let Some(row) = self.tables.progresses.get(&capture)
            && !row.sealed
        {
            let row = ProgressRow { sealed: true, ..(**row).clone() };
            self.put_progress(capture, row);
        }
    }

    /// Declares a capture offline and seals its progress.
    pub(crate) fn seal(&mut self, capture: CaptureId) {
        if let Some(row) = self.tables.captures.get(&capture)
            && row.state != CaptureState::Offline
        {
            let row = CaptureInfo { state: CaptureState::Offline, ..(**row).clone() };
            self.put_capture(capture, row);
        }
        self.seal_progress(capture);
    }

    /// Whether a schedule or processor that is not `Removed` names the capture.
    pub(crate) fn is_named(&self, capture: CaptureId) -> bool {
        self.tables.owned_by(capture).next().is_some()
            || self.tables.processors_on(capture).any(|row| row.state != ScheduleState::Removed)
    }

    /// Deletes a capture's rows, its `Removed` processor rows with them.
    pub(crate) fn delete_capture(&mut self, capture: CaptureId) {
        let removed = |row: &&ProcessorSchedule| row.state == ScheduleState::Removed;
        let rows: Vec<_> =
            self.tables.processors_on(capture).filter(removed).map(|row| row.changefeed).collect();
        for changefeed in rows {
            self.put_processor((changefeed, capture), None);
        }
        if self.tables.captures.contains_key(&capture) {
            self.put_capture(capture, None);
        }
        if self.tables.progresses.contains_key(&capture) {
            self.put_progress(capture, None);
        }
    }
}

/// The next version of a row.
pub(crate) const fn next(version: Version) -> Version {
    Version(version.0.saturating_add(1))
}

/// The changefeed is gone, or never was.
pub(crate) fn no_changefeed(changefeed: ChangefeedUuid) -> MetadataError {
    MetadataError::not_found(format!("changefeed {changefeed}"))
}

/// What errors call a changefeed's state.
pub(crate) fn state_of(changefeed: ChangefeedUuid) -> String {
    format!("the state of changefeed {changefeed}")
}

/// Why a write of a capture found no row of its own to write.
pub(crate) fn capture_gone(capture: CaptureId, reason: &str) -> MetadataError {
    MetadataError::fenced(format!("capture {capture} {reason}"))
}
