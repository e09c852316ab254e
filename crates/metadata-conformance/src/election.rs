//! `ElectionStore`: who is controller.

use metadata_api::model::{CaptureId, CaptureTerm, ControllerEpoch, ControllerTerm, ElectionRecord, Version};

use crate::harness::{Cluster, Refusal};

/// The first campaign takes epoch 1, and everything about it is in the row.
pub async fn a_vacant_lease_is_taken_with_the_next_epoch(c: &Cluster) {
    let vacant = c.store.election().await.unwrap();
    let capture = c.capture().await;
    let term = c.store.election_campaign(capture, &vacant).await.unwrap();
    assert_eq!(term, ControllerTerm { capture: capture.capture, epoch: ControllerEpoch(1) });
    let record = c.open().await.election().await.unwrap();
    assert_eq!((record.leader, record.epoch), (Some(capture.capture), ControllerEpoch(1)));
    assert_ne!(record.lease_seq, vacant.lease_seq, "the lease sequence moves");
    assert_eq!(record.cooldown, None);
    assert!(record.version > vacant.version);
    c.store.capture_delete(term, CaptureId::random()).await.expect("the term may write");
}

/// Each acquisition, whether of a vacant lease, a foreign one or one's own, takes the next epoch.
pub async fn epochs_grow_by_exactly_one(c: &Cluster) {
    let (one, two) = (c.capture().await, c.capture().await);
    for (n, capture) in [one, two, two, one].into_iter().enumerate() {
        let term = c.elect(capture).await;
        assert_eq!(term.epoch, ControllerEpoch(n as u64 + 1));
        assert_eq!(c.store.election().await.unwrap().epoch, term.epoch);
    }
    let term = c.elect(two).await;
    c.store.election_resign(term).await.unwrap();
    assert_eq!(c.elect(one).await.epoch, ControllerEpoch(6), "a resigned epoch is not used again");
}

/// A campaign on anything but the row as it is now is a conflict.
pub async fn a_campaign_wants_the_lease_that_was_observed(c: &Cluster) {
    let (one, two) = (c.capture().await, c.capture().await);
    let vacant = c.store.election().await.unwrap();
    c.elect(one).await;
    let now = c.store.election().await.unwrap();
    let stale = [
        vacant,
        ElectionRecord { leader: None, ..now },
        ElectionRecord { leader: Some(two.capture), ..now },
        ElectionRecord { epoch: ControllerEpoch(0), ..now },
        ElectionRecord { epoch: ControllerEpoch(2), ..now },
        ElectionRecord { lease_seq: now.lease_seq + 1, ..now },
        ElectionRecord { lease_seq: now.lease_seq.wrapping_sub(1), ..now },
    ];
    for observed in &stale {
        c.refuses(Refusal::Conflict, c.store.election_campaign(two, observed)).await;
    }
    c.store.election_campaign(two, &now).await.unwrap();
}

/// A lease that was renewed since it was observed cannot be taken.
pub async fn a_renewed_lease_cannot_be_taken(c: &Cluster) {
    let term = c.controller().await;
    let challenger = c.capture().await;
    let observed = c.store.election().await.unwrap();
    c.store.watch_channel().await.unwrap().lease_renew(term).await.unwrap();
    c.refuses(Refusal::Conflict, c.store.election_campaign(challenger, &observed)).await;
    c.store.capture_delete(term, CaptureId::random()).await.expect("the term may write");
}

/// Nobody but an `alive` capture is elected.
pub async fn only_an_alive_capture_is_elected(c: &Cluster) {
    let controller = c.controller().await;
    let draining = c.capture().await;
    c.store.capture_drain(draining.capture).await.unwrap();
    let offline = c.capture().await;
    c.seal(controller, offline).await;
    let absent = CaptureTerm { capture: CaptureId::random() };
    let observed = c.store.election().await.unwrap();
    for capture in [draining, offline, absent] {
        c.refuses(Refusal::Fenced, c.store.election_campaign(capture, &observed)).await;
    }
    c.store.election_resign(controller).await.unwrap();
    let observed = c.store.election().await.unwrap();
    for capture in [draining, offline, absent] {
        c.refuses(Refusal::Fenced, c.store.election_campaign(capture, &observed)).await;
    }
}

/// A lost answer: the row names me with an epoch that I do not hold, so I campaign at once, and the lost epoch is over.
pub async fn a_lost_acquisition_is_taken_again(c: &Cluster) {
    let capture = c.capture().await;
    let lost = c.elect(capture).await;
    let held = c.elect(capture).await;
    assert!(held.epoch > lost.epoch);
    c.refuses(Refusal::Fenced, c.store.capture_delete(lost, CaptureId::random())).await;
    c.refuses(Refusal::Fenced, c.store.election_resign(lost)).await;
    c.store.capture_delete(held, CaptureId::random()).await.unwrap();
}

/// Resigning leaves no leader, keeps the epoch, names the capture for cooldown, and ends the term.
pub async fn resigning_ends_the_term(c: &Cluster) {
    let term = c.controller().await;
    c.store.election_resign(term).await.unwrap();
    let record = c.store.election().await.unwrap();
    assert_eq!((record.leader, record.epoch), (None, term.epoch));
    assert_eq!(record.cooldown, Some(term.capture));
    assert_fenced_everywhere(c, term).await;
    // Not even with the epoch that the fence has meanwhile.
    assert_fenced_everywhere(c, ControllerTerm { epoch: ControllerEpoch(0), ..term }).await;
}

/// The lease sequence moves with renewals and acquisitions, and stays when the lease is given back or taken away.
pub async fn a_vacant_lease_keeps_its_sequence(c: &Cluster) {
    for deposed in [false, true] {
        let term = c.controller().await;
        let held = c.store.election().await.unwrap();
        if deposed {
            c.store.controller_depose().await.unwrap();
        } else {
            c.store.election_resign(term).await.unwrap();
        }
        let vacant = ElectionRecord {
            leader: None,
            cooldown: Some(term.capture),
            version: Version(held.version.0 + 1),
            ..held
        };
        assert_eq!(c.store.election().await.unwrap(), vacant);
    }
}

/// Cooldown is a hint: the acquisition clears it, and the one that it names may campaign too.
pub async fn an_acquisition_clears_the_cooldown(c: &Cluster) {
    let (one, two) = (c.capture().await, c.capture().await);
    for next in [two, one] {
        let term = c.elect(one).await;
        c.store.election_resign(term).await.unwrap();
        assert_eq!(c.store.election().await.unwrap().cooldown, Some(one.capture));
        c.elect(next).await;
        assert_eq!(c.store.election().await.unwrap().cooldown, None);
    }
}

/// Only the term that leads can resign.
pub async fn only_the_current_term_resigns(c: &Cluster) {
    let old = c.controller().await;
    let new = c.controller().await;
    c.refuses(Refusal::Fenced, c.store.election_resign(old)).await;
    let impostor = ControllerTerm { capture: old.capture, epoch: new.epoch };
    c.refuses(Refusal::Fenced, c.store.election_resign(impostor)).await;
    let future = ControllerTerm { capture: new.capture, epoch: ControllerEpoch(new.epoch.0 + 1) };
    c.refuses(Refusal::Fenced, c.store.election_resign(future)).await;
    c.store.election_resign(new).await.unwrap();
    c.refuses(Refusal::Fenced, c.store.election_resign(new)).await;
}

/// Where nobody ever led, the fence's epoch 0 is nobody's.
pub async fn epoch_zero_is_nobodys(c: &Cluster) {
    let capture = c.capture().await;
    assert_fenced_everywhere(c, ControllerTerm { capture: capture.capture, epoch: ControllerEpoch(0) }).await;
}

/// From a takeover on every write of the former controller is refused, and changes nothing.
pub async fn a_takeover_fences_the_former_controller(c: &Cluster) {
    let old = c.controller().await;
    let new = c.controller().await;
    assert_fenced_everywhere(c, old).await;
    assert_fenced_everywhere(c, ControllerTerm { epoch: ControllerEpoch(new.epoch.0 + 1), ..new }).await;
    c.store.capture_delete(new, CaptureId::random()).await.unwrap();
}

/// Every write that carries a controller term refuses `term`.
pub(crate) async fn assert_fenced_everywhere(c: &Cluster, term: ControllerTerm) {
    use metadata_api::store::Authority;
    use uuid::Uuid;

    use crate::harness::attach_target;
    let request = c.new_changefeed(&format!("refused-{}", Uuid::new_v4().simple()));
    let changefeed = c.create(&format!("fenced-{}", Uuid::new_v4().simple())).await.uuid;
    let capture = c.capture().await;
    let schedule = c.schedule(changefeed).await;
    let target = c.launch_target(changefeed, capture).await;
    let store = &c.store;
    c.refuses(Refusal::Fenced, store.owner_set(term, &[target])).await;
    c.refuses(Refusal::Fenced, store.processor_set(term, changefeed, &[attach_target(capture, None)])).await;
    c.refuses(Refusal::Fenced, store.changefeed_cleanup(term, &[(changefeed, schedule.version)])).await;
    c.refuses(Refusal::Fenced, store.capture_seal(term, capture.capture, 0)).await;
    c.refuses(Refusal::Fenced, store.capture_release(term, capture.capture, 10)).await;
    c.refuses(Refusal::Fenced, store.capture_delete(term, capture.capture)).await;
    c.refuses(Refusal::Fenced, store.changefeed_create(Authority::Controller(term), &request)).await;
    c.refuses(Refusal::Fenced, store.changefeed_remove(Authority::Controller(term), changefeed)).await;
    let mut channel = store.watch_channel().await.unwrap();
    c.refuses(Refusal::Fenced, channel.lease_renew(term)).await;
    c.refuses(Refusal::Fenced, store.election_resign(term)).await;
}
