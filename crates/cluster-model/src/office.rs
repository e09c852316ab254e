//! What a controller does: look, judge, plan, act; one call of the store after the other, with whatever comes between.

use metadata_api::MetadataError;
use metadata_api::decision::planner::Action;
use metadata_api::model::{CaptureBeat, CaptureId, ChangefeedUuid, ScheduleTarget, Version};
use metadata_api::store::{ControllerStore as _, MAX_BATCH};

use crate::cluster::{Cluster, Duty};
use crate::state::{Capture, Late, Office, State};

impl Cluster {
    pub(crate) fn office_duties(&self, capture: &Capture, office: &Office, duties: &mut Vec<Duty>) {
        if !office.to_do.is_empty() {
            duties.push(Duty::Act);
        } else if !office.to_seal.is_empty() {
            duties.push(Duty::Seal);
        } else if !capture.done.scan {
            if capture.held.is_none() {
                duties.push(Duty::Scan);
            }
        } else if !capture.done.plan && office.planned.is_none_or(|planned| capture.revision > planned) {
            duties.push(Duty::Plan);
        }
    }

    pub(crate) fn govern(&self, state: &mut State, index: usize, duty: Duty) {
        match duty {
            Duty::Scan => {
                if let Some(beats) = self.ask_scan(state, index) {
                    self.take_scan(state, index, &beats);
                }
            }
            Duty::Seal => self.seal(state, index),
            Duty::Plan => self.plan(state, index),
            _ => self.act(state, index),
        }
    }

    pub(crate) fn ask_scan(&self, state: &mut State, index: usize) -> Option<Vec<CaptureBeat>> {
        state.processes[index].capture.as_mut()?.done.scan = true;
        state.query(index, |store| async move { store.capture_beats().await })?.ok()
    }

    pub(crate) fn take_scan(&self, state: &mut State, index: usize, beats: &[CaptureBeat]) {
        let now = state.now;
        let Some(capture) = state.processes[index].capture.as_mut() else { return };
        capture.judge.observe(now, beats);
        let own = capture.own_beats;
        let judgement = (self.decisions.judge)(&mut capture.judge, now, &own, &self.decisions.policy);
        if let Some(office) = &mut capture.office {
            office.to_seal = judgement.stale;
        }
    }

    fn seal(&self, state: &mut State, index: usize) {
        let Some(office) = state.office(index) else { return };
        let term = office.term;
        let Some((capture, seq)) = office.to_seal.pop() else { return };
        let late = || Some(Late::Seal(term, capture, seq));
        let sealed =
            state.call(index, late, |store| async move { store.capture_seal(term, capture, seq).await });
        match sealed {
            Some(Ok(true)) => state.plan_again(index),
            Some(Ok(false)) => {}
            Some(Err(error)) => state.failed(index, &error),
            None => state.try_again(index),
        }
    }

    fn plan(&self, state: &mut State, index: usize) {
        let now = state.now;
        let process = &mut state.processes[index];
        let may_launch = now >= process.launch_from;
        if let Some(capture) = &mut process.capture {
            capture.done.plan = true;
        }
        let snapshot = state.query(index, |store| async move { store.schedule_snapshot().await });
        let (Some(Ok(snapshot)), Some(office)) = (snapshot, state.office(index)) else { return };
        office.to_do = (self.decisions.plan)(&snapshot, may_launch);
        office.planned = may_launch.then_some(snapshot.revision);
    }

    fn act(&self, state: &mut State, index: usize) {
        let Some(office) = state.office(index) else { return };
        let term = office.term;
        let targets: Vec<ScheduleTarget> = office
            .to_do
            .iter()
            .filter_map(|action| if let Action::SetOwner(target) = action { Some(*target) } else { None })
            .collect();
        let done = match office.to_do.first().copied() {
            None => return,
            Some(Action::Release(capture)) => {
                office.to_do.remove(0);
                self.release_capture(state, index, capture)
            }
            Some(Action::Cleanup { changefeed, expected_version }) => {
                office.to_do.remove(0);
                self.cleanup(state, index, changefeed, expected_version)
            }
            Some(Action::SetOwner(_)) => {
                office.to_do.retain(|action| !matches!(action, Action::SetOwner(_)));
                let late = || Some(Late::Set(term, targets.clone()));
                let (all, sent) = (targets.clone(), late());
                state.call(index, || sent, |store| async move { store.owner_set(term, &all).await.map(drop) })
            }
        };
        match done {
            Some(Ok(())) => {}
            Some(Err(error)) => state.failed(index, &error),
            None => state.try_again(index),
        }
    }

    fn release_capture(
        &self,
        state: &mut State,
        index: usize,
        capture: CaptureId,
    ) -> Option<Result<(), MetadataError>> {
        let term = state.office(index)?.term;
        let released = state.call(
            index,
            || None,
            |store| async move { store.capture_release(term, capture, MAX_BATCH).await.map(drop) },
        )?;
        if released.is_err() {
            return Some(released);
        }
        state.call(index, || None, |store| async move { store.capture_delete(term, capture).await })
    }

    fn cleanup(
        &self,
        state: &mut State,
        index: usize,
        changefeed: ChangefeedUuid,
        version: Version,
    ) -> Option<Result<(), MetadataError>> {
        let term = state.office(index)?.term;
        let targets = [(changefeed, version)];
        state.call(
            index,
            || None,
            |store| async move { store.changefeed_cleanup(term, &targets).await.map(drop) },
        )
    }
}
