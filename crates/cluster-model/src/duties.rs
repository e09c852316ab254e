//! What a process does for itself: it registers, beats, looks, campaigns.

use std::collections::BTreeMap;

use capture_runtime::launches::Situation;
use metadata_api::Result;
use metadata_api::decision::lease::{ElectionView, LeaseWatch, OfflineJudge, OwnBeats};
use metadata_api::decision::schedule::ScheduledChangefeed;
use metadata_api::decision::watch::{Orders, apply_look, check_answer};
use metadata_api::model::{
    BootTime, CaptureId, CaptureProgress, CaptureState, CaptureTerm, NewCapture, Revision,
};
use metadata_api::store::{CaptureStore as _, ElectionStore as _, PollCursor};
use metadata_memory::MemoryStore;
use uuid::Uuid;

use crate::cluster::{Cluster, Duty};
use crate::decisions::Beat;
use crate::state::{Capture, Done, Held, Looked, Office, Path, State};

impl Cluster {
    /// Everything that is due for a process that runs, most urgent first.
    pub(crate) fn duties(&self, state: &State, index: usize) -> Vec<Duty> {
        let process = &state.processes[index];
        let Some(capture) = &process.capture else {
            // Without a network there is no registering, and nobody waits for it.
            return if process.path == Path::Up && state.db_up { vec![Duty::Register] } else { Vec::new() };
        };
        let mut duties = Vec::new();
        if capture.held.is_some() {
            duties.extend([Duty::Take, Duty::GiveUp]);
        } else {
            let due = [(capture.done.beat, Duty::Beat), (capture.done.look, Duty::Look)];
            duties.extend(due.into_iter().filter(|(done, _)| !done).map(|(_, duty)| duty));
        }
        let alive = state.is_alive(capture);
        if capture.situation.alive != alive {
            duties.push(Duty::Settle);
        }
        self.work_duties(state, index, capture, alive, &mut duties);
        if alive && !capture.situation.expelled {
            match &capture.office {
                Some(office) => self.office_duties(capture, office, &mut duties),
                None if !capture.done.campaign && self.may_campaign(state, capture) => {
                    duties.push(Duty::Campaign)
                }
                None => {}
            }
        }
        duties
    }

    /// Does one of them.
    pub(crate) fn perform(&self, state: &mut State, index: usize, duty: Duty) {
        match duty {
            Duty::Register => self.register(state, index),
            Duty::Take => self.take(state, index),
            Duty::GiveUp => {
                if let Some(capture) = &mut state.processes[index].capture {
                    capture.held = None;
                }
            }
            Duty::Settle => {}
            Duty::Beat => {
                if let Some((sent_at, next)) = self.send_beat(state, index) {
                    self.take_beat(state, index, sent_at, next);
                }
            }
            Duty::Look => {
                if let Some(look) = self.ask_look(state, index) {
                    self.take_look(state, index, look);
                }
            }
            Duty::Campaign => self.campaign(state, index),
            Duty::End(changefeed) => self.end(state, index, changefeed),
            Duty::Ask(changefeed) => self.ask(state, index, changefeed),
            Duty::Advance => drop(self.advance(state, index)),
            Duty::Recover => self.recover(state, index),
            Duty::Scan | Duty::Seal | Duty::Plan | Duty::Act => self.govern(state, index, duty),
        }
        self.settle(state, index);
    }

    fn register(&self, state: &mut State, index: usize) {
        let process = &mut state.processes[index];
        process.incarnations = process.incarnations.saturating_add(1);
        let id = CaptureId(Uuid::from_u128((index as u128) << 8 | u128::from(process.incarnations)));
        let new = NewCapture {
            id,
            advertise_addr: "model".to_owned(),
            version: String::new(),
            labels: BTreeMap::new(),
            machine_id: String::new(),
        };
        let registered =
            state.call(index, || None, |store| async move { store.capture_register(&new).await });
        let Some(Ok(term)) = registered else { return };
        state.processes[index].capture = Some(Capture {
            term,
            sent: 0,
            acknowledged: 0,
            last_beat: None,
            last_look: None,
            own_beats: OwnBeats::default(),
            lease: LeaseWatch::default(),
            judge: OfflineJudge::default(),
            identity: None,
            revision: Revision(0),
            own_state: None,
            election: None,
            until: BootTime::default(),
            orders: Orders::default(),
            situation: Situation { alive: false, recovering: false, stopping: false, expelled: false },
            feeds: BTreeMap::new(),
            progress_seq: 0,
            advanced: CaptureProgress::default(),
            office: None,
            held: None,
            done: Done::default(),
        });
    }

    /// What arrived while it was suspended.
    fn take(&self, state: &mut State, index: usize) {
        let held = state.processes[index].capture.as_mut().and_then(|capture| capture.held.take());
        match held {
            None => {}
            Some(Held::Beat(sent_at, next)) => self.take_beat(state, index, sent_at, next),
            Some(Held::Look(look)) => self.take_look(state, index, *look),
            Some(Held::Scan(beats)) => self.take_scan(state, index, &beats),
        }
    }

    // ---- heartbeats ----

    /// Sends a heartbeat. `Some` = the database took it in and answered, and the answer is on its way.
    pub(crate) fn send_beat(&self, state: &mut State, index: usize) -> Option<(BootTime, u64)> {
        let now = state.now;
        let capture = state.processes[index].capture.as_mut()?;
        capture.done.beat = true;
        capture.sent += 1;
        let (term, acknowledged, next) = (capture.term, capture.acknowledged, capture.sent);
        let answer = state.call(index, || None, |store| beat(store, term, acknowledged, next));
        match answer? {
            Ok(()) => Some((now, next)),
            Err(error) => {
                state.refused_for_good(index, error.is_fenced());
                None
            }
        }
    }

    fn take_beat(&self, state: &mut State, index: usize, sent_at: BootTime, next: u64) {
        let now = state.now;
        let Some(capture) = state.processes[index].capture.as_mut() else { return };
        capture.acknowledged = next;
        capture.last_beat = Some(sent_at);
        capture.own_beats.succeeded(sent_at, &self.decisions.policy);
        self.extend(capture, now);
    }

    /// Moves the deadline, which only moves forward.
    fn extend(&self, capture: &mut Capture, answered_at: BootTime) {
        if let (Some(sent_at), Some(look_began_at)) = (capture.last_beat, capture.last_look) {
            let beat = Beat { sent_at, answered_at, look_began_at };
            capture.until = capture.until.max((self.decisions.acting_until)(beat, &self.decisions.policy));
        }
    }

    // ---- looking ----

    /// Polls; reconciles when the counts do not match.
    pub(crate) fn ask_look(&self, state: &mut State, index: usize) -> Option<Looked> {
        let began_at = state.now;
        let capture = state.processes[index].capture.as_mut()?;
        capture.done.look = true;
        let (term, before, last) = (capture.term, capture.orders.clone(), capture.revision);
        let answer = state.query(index, |store| async move {
            store.watch_channel().await?.poll(term, &PollCursor::after(last)).await
        })?;
        let Ok(answer) = answer else { return None };
        let mut after = before.clone();
        for row in &answer.schedules {
            after.insert(row.changefeed, ScheduledChangefeed::from(row));
        }
        if answer.owned != after.len() as u64 {
            let all = state.query(index, |store| async move { store.capture_schedules(term).await })?.ok()?;
            after = all.rows.iter().map(|row| (row.changefeed, ScheduledChangefeed::from(row))).collect();
        }
        Some(Looked { began_at, answer, before, after })
    }

    fn take_look(&self, state: &mut State, index: usize, look: Looked) {
        let now = state.now;
        let Some(capture) = state.processes[index].capture.as_mut() else { return };
        let answer = look.answer;
        if check_answer(capture.identity.as_ref(), capture.revision, &answer).is_err() {
            return state.refused_for_good(index, true);
        }
        capture.identity = Some(answer.identity);
        capture.revision = answer.revision;
        capture.own_state = answer.own_state;
        capture.lease.observe(look.began_at, &answer.election);
        capture.election = Some(answer.election);
        if let Some(beat) = &answer.controller
            && beat.state != CaptureState::Offline
        {
            capture.judge.observe_one(now, beat.id, beat.heartbeat_seq);
        }
        apply_look(&mut capture.orders, &look.before, &look.after);
        capture.last_look = Some(look.began_at);
        self.extend(capture, now);
        self.renew(state, index);
        self.pass_orders_on(state, index);
    }

    fn renew(&self, state: &mut State, index: usize) {
        let Some(capture) = &state.processes[index].capture else { return };
        let Some(office) = &capture.office else { return };
        if !state.is_alive(capture) {
            return;
        }
        let term = office.term;
        let renewed = state.call(
            index,
            || None,
            |store| async move { store.watch_channel().await?.lease_renew(term).await },
        );
        if let Some(Err(error)) = renewed
            && error.is_fenced()
            && let Some(capture) = &mut state.processes[index].capture
        {
            capture.office = None;
        }
    }

    // ---- the election ----

    fn may_campaign(&self, state: &State, capture: &Capture) -> bool {
        let Some(record) = capture.election else { return false };
        let view = ElectionView { record, lease: capture.lease, own_state: capture.own_state };
        (self.decisions.may_campaign)(capture.term.capture, &view, state.now, &self.decisions.policy)
    }

    fn campaign(&self, state: &mut State, index: usize) {
        let Some(capture) = state.processes[index].capture.as_mut() else { return };
        capture.done.campaign = true;
        let (term, Some(record)) = (capture.term, capture.election) else { return };
        let won =
            state.call(index, || None, |store| async move { store.election_campaign(term, &record).await });
        if let Some(Ok(term)) = won
            && let Some(capture) = &mut state.processes[index].capture
        {
            capture.office = Some(Office { term, to_seal: Vec::new(), to_do: Vec::new(), planned: None });
        }
    }
}

/// One heartbeat, over a connection of its own.
async fn beat(store: MemoryStore, term: CaptureTerm, acknowledged: u64, next: u64) -> Result<()> {
    store.heartbeat_channel().await?.beat(term, acknowledged, next).await
}
