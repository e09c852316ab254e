//! `HeartbeatChannel` and `WatchChannel`: the two connections of a capture's own.

use std::collections::BTreeSet;

use metadata_api::model::{
    CaptureId, CaptureState, CaptureTerm, ChangefeedUuid, ControllerEpoch, ControllerTerm, Revision,
    ScheduleState,
};
use metadata_api::store::{POLL_PAGE, PollAnswer, PollCursor, WatchChannel};

use crate::harness::{Cluster, Refusal, assert_refused};

/// A beat moves the sequence and the time, and nothing else: not even the revision.
pub async fn a_beat_moves_the_sequence_only(c: &Cluster) {
    let (one, two) = (c.capture().await, c.capture().await);
    let (before, revision) = (c.capture_row(one).await.unwrap(), c.revision().await);
    let untouched = c.capture_row(two).await;
    let mut channel = c.store.heartbeat_channel().await.unwrap();
    let (mut acknowledged, mut last_at) = (0, before.heartbeat_at);
    for next in [1, 2, 7] {
        channel.beat(one, acknowledged, next).await.unwrap();
        acknowledged = next;
        let row = c.capture_row(one).await.unwrap();
        assert_eq!(row.heartbeat_seq, next);
        assert!(row.heartbeat_at >= last_at);
        last_at = row.heartbeat_at;
        assert_eq!(
            row,
            metadata_api::model::CaptureInfo {
                heartbeat_seq: row.heartbeat_seq,
                heartbeat_at: row.heartbeat_at,
                ..before.clone()
            }
        );
    }
    assert_eq!(c.capture_row(two).await, untouched);
    assert_eq!(c.revision().await, revision);
    let beats = c.store.capture_beats().await.unwrap();
    let mine = beats.iter().find(|beat| beat.id == one.capture).unwrap();
    assert_eq!((mine.heartbeat_seq, mine.state), (7, CaptureState::Alive));
}

/// A beat whose answer was lost is allowed for by the next one, whether it was applied or not.
pub async fn a_beat_after_a_lost_answer_is_accepted(c: &Cluster) {
    let capture = c.capture().await;
    let mut channel = c.store.heartbeat_channel().await.unwrap();
    channel.beat(capture, 0, 1).await.unwrap();
    drop(channel);
    let mut channel = c.store.heartbeat_channel().await.unwrap();
    // 1 was applied, its answer lost: nothing is acknowledged.
    channel.beat(capture, 0, 2).await.unwrap();
    // 3 never arrived.
    channel.beat(capture, 2, 4).await.unwrap();
    assert_eq!(c.capture_row(capture).await.unwrap().heartbeat_seq, 4);
}

/// A beat that arrives late, or is repeated, is refused and takes nothing back.
pub async fn a_late_beat_is_refused(c: &Cluster) {
    let capture = c.capture().await;
    let mut channel = c.store.heartbeat_channel().await.unwrap();
    channel.beat(capture, 0, 5).await.unwrap();
    for next in [1, 4, 5] {
        c.refuses(Refusal::Fenced, channel.beat(capture, 0, next)).await;
    }
    channel.beat(capture, 5, 6).await.expect("a refused beat does no harm to the channel");
}

/// A row that fell below what was acknowledged belongs to a restored database, and the text says so.
pub async fn a_row_that_went_back_is_fenced(c: &Cluster) {
    let capture = c.capture().await;
    let mut channel = c.store.heartbeat_channel().await.unwrap();
    channel.beat(capture, 0, 10).await.unwrap();
    c.execute("UPDATE capture SET heartbeat_seq = 3").await;
    let text = c.refuses(Refusal::Fenced, channel.beat(capture, 10, 11)).await;
    assert!(text.contains("back"), "{text}");
}

/// Whoever has no row, or a sealed one, does not beat; the texts tell which.
pub async fn the_reason_of_a_fenced_beat_is_in_its_text(c: &Cluster) {
    let controller = c.controller().await;
    let sealed = c.capture().await;
    c.seal(controller, sealed).await;
    let absent = CaptureTerm { capture: CaptureId::random() };
    let mut channel = c.store.heartbeat_channel().await.unwrap();
    let sealed = c.refuses(Refusal::Fenced, channel.beat(sealed, 0, 1)).await;
    let absent = c.refuses(Refusal::Fenced, channel.beat(absent, 0, 1)).await;
    assert!(sealed.contains("sealed") || sealed.contains("offline"), "{sealed}");
    assert!(absent.contains("absent") || absent.contains("no row"), "{absent}");
}

/// A draining capture goes on beating and advancing: it still hands over.
pub async fn a_draining_capture_beats(c: &Cluster) {
    let capture = c.capture().await;
    c.store.capture_drain(capture.capture).await.unwrap();
    c.beat(capture, 0, 1).await;
    let row = c.capture_row(capture).await.unwrap();
    assert_eq!((row.state, row.heartbeat_seq), (CaptureState::Draining, 1));
    c.store.capture_advance(capture, 1, &metadata_api::model::CaptureProgress::default()).await.unwrap();
}

/// A renewal moves the lease sequence and nothing else.
pub async fn a_renewal_moves_the_lease_only(c: &Cluster) {
    let term = c.controller().await;
    let mut channel = c.store.watch_channel().await.unwrap();
    let mut last = c.store.election().await.unwrap();
    let revision = c.revision().await;
    for _ in 0..3 {
        channel.lease_renew(term).await.unwrap();
        let now = c.store.election().await.unwrap();
        assert!(now.lease_seq > last.lease_seq);
        assert_eq!((now.leader, now.epoch, now.cooldown), (last.leader, last.epoch, last.cooldown));
        last = now;
    }
    assert_eq!(c.revision().await, revision);
}

/// Only the leader of the current epoch renews.
pub async fn only_the_current_term_renews(c: &Cluster) {
    let old = c.controller().await;
    let new = c.controller().await;
    let mut channel = c.store.watch_channel().await.unwrap();
    let wrong = [
        old,
        ControllerTerm { capture: old.capture, epoch: new.epoch },
        ControllerTerm { capture: new.capture, epoch: old.epoch },
        ControllerTerm { capture: new.capture, epoch: ControllerEpoch(new.epoch.0 + 1) },
    ];
    for term in wrong {
        c.refuses(Refusal::Fenced, channel.lease_renew(term)).await;
    }
    channel.lease_renew(new).await.expect("a refused renewal does no harm to the channel");
    c.store.controller_depose().await.unwrap();
    c.refuses(Refusal::Fenced, channel.lease_renew(new)).await;
}

/// A poll shows the election, the leader's heartbeat, the capture itself and the revision, all at one moment.
pub async fn a_poll_shows_the_cluster(c: &Cluster) {
    let stranger = CaptureTerm { capture: CaptureId::random() };
    let mut channel = c.store.watch_channel().await.unwrap();
    let start = PollCursor::after(Revision(0));
    let answer = channel.poll(stranger, &start).await.unwrap();
    assert_eq!(answer.identity, c.store.identity().await.unwrap());
    assert_eq!(answer.election, c.store.election().await.unwrap());
    assert_eq!((answer.controller, answer.own_state), (None, None));
    assert_eq!((answer.owned, answer.attached), (0, 0));
    assert!(answer.schedules.is_empty() && answer.processors.is_empty() && !answer.has_more());

    let controller = c.controller().await;
    let capture = c.capture().await;
    c.beat(CaptureTerm { capture: controller.capture }, 0, 6).await;
    let answer = channel.poll(capture, &start).await.unwrap();
    assert_eq!(answer.election, c.store.election().await.unwrap());
    let leader = answer.controller.expect("the leader's row");
    assert_eq!((leader.id, leader.heartbeat_seq), (controller.capture, 6));
    assert_eq!(answer.own_state, Some(CaptureState::Alive));
    c.store.capture_drain(capture.capture).await.unwrap();
    let answer = channel.poll(capture, &start).await.unwrap();
    assert_eq!(answer.own_state, Some(CaptureState::Draining));
    c.seal(controller, capture).await;
    let answer = channel.poll(capture, &start).await.unwrap();
    assert_eq!(answer.own_state, Some(CaptureState::Offline));
    c.store.election_resign(controller).await.unwrap();
    assert_eq!(channel.poll(capture, &start).await.unwrap().controller, None);
}

/// Each change to a row that names the capture comes once after the cursor, in the order of revisions.
pub async fn a_poll_shows_what_is_new(c: &Cluster) {
    let controller = c.controller().await;
    let (mine, other) = (c.capture().await, c.capture().await);
    let mut channel = c.store.watch_channel().await.unwrap();
    let start = channel.poll(mine, &PollCursor::after(Revision(0))).await.unwrap();
    let uuids = c.create_many("new", 3).await;
    for (uuid, capture) in [(uuids[2], mine), (uuids[0], mine), (uuids[1], other)] {
        c.launch(controller, capture, uuid).await;
    }
    let answer = channel.poll(mine, &PollCursor::after(start.revision)).await.unwrap();
    let got: Vec<_> = answer.schedules.iter().map(|row| row.changefeed).collect();
    assert_eq!(got, [uuids[2], uuids[0]], "ordered by revision");
    assert_eq!(answer.schedules, [c.schedule(uuids[2]).await, c.schedule(uuids[0]).await]);
    assert_eq!((answer.owned, answer.attached), (2, 0));
    assert_eq!(answer.revision, c.revision().await);

    let quiet = channel.poll(mine, &PollCursor::after(answer.revision)).await.unwrap();
    assert_eq!(
        (quiet.schedules.len(), quiet.owned),
        (0, 2),
        "nothing is new, and the count says what there is"
    );

    let target = c.removing_target(uuids[0]).await;
    let row = c.set_owner(controller, target).await;
    let row2 = c.attach(controller, uuids[1], mine).await;
    let attached = row2.term();
    let answer = channel.poll(mine, &PollCursor::after(quiet.revision)).await.unwrap();
    assert_eq!(answer.schedules, [row]);
    assert_eq!(answer.processors, [row2]);
    assert_eq!((answer.owned, answer.attached), (2, 1));

    // What it loses no longer names it: the count tells.
    c.release(c.schedule(uuids[0]).await.term().unwrap()).await;
    let lost = channel.poll(mine, &PollCursor::after(answer.revision)).await.unwrap();
    assert_eq!((lost.schedules.len(), lost.owned, lost.attached), (0, 1, 1));

    // A processor's row stays when it is `Removed`: it is seen once more, and no longer counts.
    let removed = c.store.processor_release(attached).await.unwrap();
    let ended = channel.poll(mine, &PollCursor::after(lost.revision)).await.unwrap();
    assert_eq!(ended.processors, [removed]);
    assert_eq!((ended.owned, ended.attached), (1, 0));
}

/// A channel goes on seeing what others commit: no poll reads an old snapshot.
pub async fn a_channel_never_reads_an_old_snapshot(c: &Cluster) {
    let controller = c.controller().await;
    let mine = c.capture().await;
    let mut channel = c.store.watch_channel().await.unwrap();
    let other = c.open().await;
    for n in 1..=5 {
        let uuid = c.create(&format!("fresh-{n}")).await.uuid;
        let target = c.launch_target(uuid, mine).await;
        let row = other.owner_set(controller, &[target]).await.unwrap().remove(0).unwrap();
        let answer = channel.poll(mine, &PollCursor::after(Revision(0))).await.unwrap();
        assert_eq!(answer.owned, n);
        assert_eq!(answer.revision, row.revision);
        assert_eq!(answer.schedules.last(), Some(&row));
    }
}

/// Pages are keyed (revision, uuid): with 1,100 launches of three revisions nothing is left out and nothing comes twice.
pub async fn pages_leave_nothing_out(c: &Cluster) {
    let controller = c.controller().await;
    let mine = c.capture().await;
    let uuids = c.create_many("page", 1_100).await;
    let mut channel = c.store.watch_channel().await.unwrap();
    let before = c.revision().await;
    c.launch_many(controller, mine, &uuids).await;
    let all = read_all(&mut *channel, mine, PollCursor::after(before)).await;
    assert_eq!(all.iter().map(|page| page.schedules.len()).collect::<Vec<_>>(), [500, 500, 100]);
    assert!(all.iter().all(|page| page.owned == 1_100));
    let rows: Vec<_> = all.iter().flat_map(|page| &page.schedules).collect();
    assert!(rows.is_sorted_by_key(|row| (row.revision, row.changefeed)));
    let seen: BTreeSet<_> = rows.iter().map(|row| row.changefeed).collect();
    assert_eq!(seen, uuids.iter().copied().collect());
    let revisions: BTreeSet<_> = rows.iter().map(|row| row.revision).collect();
    assert_eq!(revisions.len(), 3, "one revision a transaction");

    // From the middle of a revision.
    let cursor =
        PollCursor { schedules: (rows[700].revision, rows[700].changefeed), ..PollCursor::after(before) };
    let answer = channel.poll(mine, &cursor).await.unwrap();
    assert_eq!(answer.schedules.len(), 399);
    assert_eq!(&answer.schedules[0], rows[701]);

    // The full reconcile has no pages.
    assert_eq!(c.store.capture_schedules(mine).await.unwrap().rows.len(), 1_100);
    let snapshot = c.store.schedule_snapshot().await.unwrap();
    assert_eq!(snapshot.changefeeds.len(), 1_100);

    // And a sealed capture's work is taken in as many batches.
    c.seal(controller, mine).await;
    let mut taken = Vec::new();
    loop {
        let count = c.store.capture_release(controller, mine.capture, POLL_PAGE).await.unwrap();
        taken.push(count);
        if count < POLL_PAGE {
            break;
        }
    }
    assert_eq!(taken, [500, 500, 100]);
    let snapshot = c.store.schedule_snapshot().await.unwrap();
    assert!(snapshot.changefeeds.iter().all(|row| row.schedule.state == ScheduleState::Removed));
}

/// Processor rows are paged by a cursor of their own.
pub async fn processor_pages_go_by_their_own_cursor(c: &Cluster) {
    let controller = c.controller().await;
    let (owner, mine) = (c.capture().await, c.capture().await);
    let uuids = c.create_many("both", 510).await;
    c.launch_many(controller, owner, &uuids).await;
    let before = c.revision().await;
    for uuid in &uuids {
        c.attach(controller, *uuid, mine).await;
    }
    c.launch(controller, mine, c.create("owned").await.uuid).await;
    let mut channel = c.store.watch_channel().await.unwrap();
    let all = read_all(&mut *channel, mine, PollCursor::after(before)).await;
    assert_eq!(all.iter().map(|page| page.processors.len()).collect::<Vec<_>>(), [500, 10]);
    assert_eq!(all.iter().map(|page| page.schedules.len()).collect::<Vec<_>>(), [1, 0]);
    assert_eq!((all[0].owned, all[0].attached), (1, 510));
    let seen: Vec<ChangefeedUuid> =
        all.iter().flat_map(|page| &page.processors).map(|row| row.changefeed).collect();
    assert_eq!(seen, uuids);
}

async fn read_all(
    channel: &mut dyn WatchChannel,
    capture: CaptureTerm,
    start: PollCursor,
) -> Vec<PollAnswer> {
    let (mut pages, mut cursor) = (Vec::new(), start);
    loop {
        let page = channel.poll(capture, &cursor).await.unwrap();
        let more = page.has_more();
        cursor = cursor.next_page(&page);
        pages.push(page);
        if !more {
            return pages;
        }
    }
}

/// Channels are independent of each other and of the store's pool.
pub async fn channels_are_independent(c: &Cluster) {
    let mut captures = Vec::new();
    for _ in 0..6 {
        let term = c.capture().await;
        captures.push((
            term,
            c.store.heartbeat_channel().await.unwrap(),
            c.store.watch_channel().await.unwrap(),
        ));
    }
    for seq in 1..=3 {
        for (term, heartbeat, watch) in &mut captures {
            heartbeat.beat(*term, seq - 1, seq).await.unwrap();
            let answer = watch.poll(*term, &PollCursor::after(Revision(0))).await.unwrap();
            assert_eq!(answer.own_state, Some(CaptureState::Alive));
        }
    }
    let (term, heartbeat, _) = &mut captures[0];
    assert_refused(heartbeat.beat(*term, 3, 3).await, Refusal::Fenced);
}
