//! [`ControllerObservation`] on any store.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use metadata_api::decision::lease::Judgement;
use metadata_api::model::{
    BootTime, CaptureId, CaptureInfo, CaptureState, ChangefeedInfo, ChangefeedSchedule, ChangefeedUuid,
    ControllerTerm, NewChangefeed, ProcessorSchedule, ProcessorStatus, ProcessorTarget, Revision,
    ScheduleSnapshot, ScheduleState, ScheduleTarget,
};
use metadata_api::observation::ControllerObservation;
use metadata_api::store::{Authority, MAX_BATCH};
use metadata_api::{MetadataError, Result};
use metrics::counter;

use crate::observer::{CaptureObserver, lock};

/// How long [`ControllerObservation::wait_for_change`] waits at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The elected capture's fenced view of the store.
pub struct ControllerObserver {
    capture: CaptureObserver,
    term: ControllerTerm,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The revision of the last snapshot.
    snapshot: Option<Revision>,
    captures: BTreeMap<CaptureId, CaptureState>,
    judgement: Judgement,
    mass_failure_said: bool,
}

impl ControllerObserver {
    /// The view of whoever won `term`.
    pub fn new(capture: CaptureObserver, term: ControllerTerm) -> Self {
        Self { capture, term, seen: Mutex::default() }
    }

    /// An error when this capture knows that the term is over: then nothing more is sent in its name. (What it does not
    /// know yet, the epoch in each write tells it.)
    fn check_office(&self) -> Result<()> {
        let inner = &self.capture.inner;
        if self.capture.leading() == Some(self.term)
            && !inner.fence_token().is_cancelled()
            && !inner.deadline.has_passed()
        {
            return Ok(());
        }
        Err(MetadataError::fenced(format!("{} is over", self.term)))
    }

    /// Scans the heartbeats and seals who is stale. Says whether anybody was sealed.
    async fn seal_stale(&self) -> Result<bool> {
        let inner = &self.capture.inner;
        let beats = inner.store.capture_beats().await?;
        let answered_at = inner.clock.now();
        let judgement = {
            let mut observed = lock(&inner.observed);
            let own = observed.own_beats;
            observed.judge.observe(answered_at, &beats);
            observed.judge.judge(answered_at, &own, &inner.policy)
        };
        self.note(&judgement);
        let mut sealed = false;
        for (capture, judged_seq) in &judgement.stale {
            self.check_office()?;
            if inner.store.capture_seal(self.term, *capture, *judged_seq).await? {
                tracing::warn!(%capture, "a capture was silent for {:?} and is offline now", inner.policy.offline_after);
                counter!("cdc_controller_sealed_captures_total").increment(1);
                sealed = true;
            }
        }
        Ok(sealed)
    }

    /// A database that does not know any more what it committed was failed over: the watch will see it. Without that a launch
    /// that was lost would be waited for until something else moves the revision.
    fn wrote(&self, revisions: impl Iterator<Item = Revision>) {
        let newest = revisions.max();
        let mut observed = lock(&self.capture.inner.observed);
        observed.written = newest.map_or(observed.written, |newest| newest.max(observed.written));
    }

    fn note(&self, judgement: &Judgement) {
        let mut seen = lock(&self.seen);
        if judgement.mass_failure && !seen.mass_failure_said {
            tracing::warn!(
                "more than half of the captures are silent: waiting up to {:?} before any is declared offline",
                self.capture.inner.policy.mass_failure_wait
            );
        }
        seen.mass_failure_said = judgement.mass_failure;
        seen.judgement = judgement.clone();
    }
}

impl fmt::Debug for ControllerObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerObserver").field("term", &self.term).finish_non_exhaustive()
    }
}

#[async_trait]
impl ControllerObservation for ControllerObserver {
    fn term(&self) -> ControllerTerm {
        self.term
    }

    async fn create_changefeed(&self, new: &NewChangefeed) -> Result<ChangefeedInfo> {
        self.check_office()?;
        self.capture.inner.store.changefeed_create(Authority::Controller(self.term), new).await
    }

    async fn remove_changefeed(&self, changefeed: ChangefeedUuid) -> Result<()> {
        self.check_office()?;
        let authority = Authority::Controller(self.term);
        self.capture.inner.store.changefeed_remove(authority, changefeed).await.map(drop)
    }

    async fn cleanup_changefeed(&self, changefeed: ChangefeedUuid) -> Result<bool> {
        let store = &self.capture.inner.store;
        let Some(schedule) = store.changefeed_schedule(changefeed).await? else { return Ok(false) };
        if schedule.state != ScheduleState::Removed {
            return Ok(false);
        }
        self.check_office()?;
        Ok(store.changefeed_cleanup(self.term, &[(changefeed, schedule.version)]).await? > 0)
    }

    async fn refresh_captures(&self) -> Result<(Vec<CaptureInfo>, bool)> {
        self.seal_stale().await?;
        let captures = self.capture.inner.store.captures(None).await?;
        let states: BTreeMap<_, _> = captures.iter().map(|capture| (capture.id, capture.state)).collect();
        let mut seen = lock(&self.seen);
        let changed = seen.captures != states;
        seen.captures = states;
        Ok((captures, changed))
    }

    async fn release_capture(&self, capture: CaptureId) -> Result<()> {
        let store = &self.capture.inner.store;
        self.check_office()?;
        while store.capture_release(self.term, capture, MAX_BATCH).await? == MAX_BATCH {
            self.check_office()?;
        }
        self.check_office()?;
        store.capture_delete(self.term, capture).await
    }

    async fn wait_for_change(&self) {
        let inner = &self.capture.inner;
        let mut polled = inner.polled.subscribe();
        let next_at = lock(&self.seen).judgement.next_at;
        let limit = next_at.map_or(LOOK_EVERY, |at| at.since(inner.clock.now()).min(LOOK_EVERY));
        let changed = async {
            while !self.has_changed() {
                if polled.changed().await.is_err() {
                    return;
                }
            }
        };
        // At the limit somebody's number may have stood still for long enough, or it is time for the scan.
        let _ = tokio::time::timeout(limit.max(Duration::from_millis(10)), changed).await;
    }

    fn has_changed(&self) -> bool {
        let newest = lock(&self.capture.inner.observed).revision;
        lock(&self.seen).snapshot.is_none_or(|snapshot| newest > snapshot)
    }

    fn may_launch(&self) -> bool {
        self.capture.inner.clock.now() >= self.capture.inner.launch_from
    }

    fn now(&self) -> BootTime {
        self.capture.inner.clock.now()
    }

    async fn set_owner(&self, target: ScheduleTarget) -> Result<ChangefeedSchedule> {
        self.check_office()?;
        let mut answers = self.capture.inner.store.owner_set(self.term, &[target]).await?;
        self.wrote(answers.iter().flatten().map(|schedule| schedule.revision));
        answers
            .pop()
            .unwrap_or_else(|| Err(MetadataError::conflict("the store gave no answer for the target")))
    }

    async fn set_owners(&self, targets: &[ScheduleTarget]) -> Result<Vec<Result<ChangefeedSchedule>>> {
        let mut answers = Vec::with_capacity(targets.len());
        for batch in targets.chunks(MAX_BATCH) {
            self.check_office()?;
            let set = self.capture.inner.store.owner_set(self.term, batch).await?;
            self.wrote(set.iter().flatten().map(|schedule| schedule.revision));
            answers.extend(set);
        }
        Ok(answers)
    }

    async fn set_processors(
        &self,
        changefeed: ChangefeedUuid,
        targets: &[ProcessorTarget],
    ) -> Result<Vec<ProcessorSchedule>> {
        self.check_office()?;
        let set = self.capture.inner.store.processor_set(self.term, changefeed, targets).await?;
        self.wrote(set.iter().map(|row| row.revision));
        Ok(set)
    }

    async fn processors(&self, which: Option<&[ChangefeedUuid]>) -> Result<Vec<ProcessorStatus>> {
        self.capture.inner.store.processors(which).await
    }

    async fn changefeed_schedule(&self, changefeed: ChangefeedUuid) -> Result<Option<ChangefeedSchedule>> {
        self.capture.inner.store.changefeed_schedule(changefeed).await
    }

    async fn schedule_snapshot(&self) -> Result<ScheduleSnapshot> {
        let snapshot = self.capture.inner.store.schedule_snapshot().await?;
        lock(&self.seen).snapshot = Some(snapshot.revision);
        Ok(snapshot)
    }
}
