//! Lost answers (I5): a failure before, at and after COMMIT, in every transaction that a store has.

use std::sync::{Arc, Mutex};

use metadata_api::model::ScheduleState;
use metadata_api::store::Authority;
use metadata_api::store::faults::{FaultKind, FaultPoint, Faults};
use metadata_api::{MetadataError, Result};

use crate::harness::{Again, Call, Cluster, WRITES};

/// One failure at a time, and which transaction met it.
#[derive(Debug, Default)]
struct OneFault {
    armed: Mutex<Option<(FaultPoint, FaultKind)>>,
    met: Mutex<Option<&'static str>>,
}

impl OneFault {
    fn arm(&self, point: FaultPoint, kind: FaultKind) {
        *self.armed.lock().unwrap() = Some((point, kind));
        *self.met.lock().unwrap() = None;
    }

    /// Which transaction met the failure; `None` = it was not met.
    fn disarm(&self) -> Option<&'static str> {
        *self.armed.lock().unwrap() = None;
        self.met.lock().unwrap().take()
    }
}

impl Faults for OneFault {
    fn at(&self, transaction: &'static str, point: FaultPoint) -> Option<FaultKind> {
        let mut armed = self.armed.lock().unwrap();
        let kind = armed.filter(|(wanted, _)| *wanted == point).map(|(_, kind)| kind)?;
        *armed = None;
        *self.met.lock().unwrap() = Some(transaction);
        Some(kind)
    }
}

/// A failure that certainly changed nothing is retried inside, and the write is applied once.
pub async fn what_certainly_did_not_happen_is_tried_again(c: &Cluster) {
    let faults = Arc::new(OneFault::default());
    let store = c.open_with(faults.clone()).await;
    let failures = [
        (FaultPoint::BeforeBegin, FaultKind::Retryable),
        (FaultPoint::BeforeBegin, FaultKind::AnswerLost),
        (FaultPoint::BeforeCommit, FaultKind::Retryable),
    ];
    for name in WRITES {
        for (point, kind) in failures {
            let write = Call::prepare(c, name).await;
            let before = c.dump().await;
            faults.arm(point, kind);
            let outcome = write.run(store.clone()).await;
            let met = faults.disarm();
            assert!(met.is_some(), "{name} {point:?}: no transaction asked for failures there");
            match outcome {
                Ok(_) => {}
                Err(error) if write.channel && error.is_transient() => {
                    let changes = before.changes_to(&c.dump().await);
                    assert!(changes.is_empty(), "{name} {point:?} {kind:?}: {error}, and yet:\n{changes}");
                    continue;
                }
                Err(error) => panic!("{name} {point:?} {kind:?}: want a retry, got {error:?}"),
            }
            let after = c.dump().await;
            assert_ne!(before.changes_to(&after), "", "{name} {point:?} {kind:?}: it was applied");
            assert_eq!(before.written_twice(&after), [""; 0], "{name} {point:?} {kind:?}");
            wipe(c).await;
        }
    }
}

/// A COMMIT that never arrived is `Unknown`, changed nothing, and the same call works the next time.
pub async fn a_commit_that_never_arrived_is_unknown(c: &Cluster) {
    let faults = Arc::new(OneFault::default());
    let store = c.open_with(faults.clone()).await;
    for name in WRITES {
        let write = Call::prepare(c, name).await;
        let before = c.dump().await;
        faults.arm(FaultPoint::BeforeCommit, FaultKind::AnswerLost);
        let outcome = write.run(store.clone()).await;
        assert_unknown(&write, outcome, faults.disarm());
        let changes = before.changes_to(&c.dump().await);
        assert!(changes.is_empty(), "{name}: it never arrived, and yet:\n{changes}");
        write.run(store.clone()).await.unwrap_or_else(|error| panic!("{name}, repeated: {error:?}"));
        let after = c.dump().await;
        assert_ne!(before.changes_to(&after), "", "{name}: the repeated call is applied");
        assert_eq!(before.written_twice(&after), [""; 0], "{name}");
        wipe(c).await;
    }
}

/// Empties all but the fence and the election, so that dumps stay short.
async fn wipe(c: &Cluster) {
    for table in
        ["processor", "schedule", "changefeed_state", "changefeed_info", "upstream", "progress", "capture"]
    {
        c.execute(&format!("DELETE FROM {table}")).await;
    }
}

/// A COMMIT whose answer was lost is `Unknown` and was applied; a repeated call finds that, on the same store or another.
pub async fn a_lost_answer_is_unknown_and_a_repeat_converges(c: &Cluster) {
    let faults = Arc::new(OneFault::default());
    let store = c.open_with(faults.clone()).await;
    for name in WRITES {
        for kind in [FaultKind::AnswerLost, FaultKind::Retryable] {
            let write = Call::prepare(c, name).await;
            let before = c.dump().await;
            faults.arm(FaultPoint::AfterCommit, kind);
            let outcome = write.run(store.clone()).await;
            assert_unknown(&write, outcome, faults.disarm());
            let applied = crate::harness::dump_rows(&*c.store).await;
            assert_ne!(before.changes_to(&c.dump().await), "", "{name}: it was applied");
            let other = if kind == FaultKind::AnswerLost { store.clone() } else { c.open().await };
            let outcome = write.run(other).await;
            match (write.again, outcome) {
                (Again::Harmless, Ok(_)) => continue,
                (Again::Done, Ok(_)) => {}
                (Again::Refused(wanted), Err(error)) if wanted.is(&error) => {}
                (again, outcome) => panic!("{name}, repeated: want {again:?}, got {outcome:?}"),
            }
            let changes = applied.changes_to(&crate::harness::dump_rows(&*c.store).await);
            assert!(changes.is_empty(), "{name}: it was applied a second time:\n{changes}");
            wipe(c).await;
        }
    }
}

fn assert_unknown(write: &Call, outcome: Result<String>, met: Option<&'static str>) {
    let name = write.name;
    let met = met.unwrap_or_else(|| panic!("{name}: no transaction asked for failures there"));
    match outcome {
        Err(MetadataError::Unknown { transaction, .. }) => {
            assert_eq!(transaction, met, "{name}: the error names the transaction");
        }
        other => panic!("{name}: want Unknown, got {other:?}"),
    }
}

/// I5, election: a lost acquisition is found in the row, taken again at once, and the epoch that nobody holds is over.
pub async fn a_lost_election_is_resolved_by_the_row(c: &Cluster) {
    let faults = Arc::new(OneFault::default());
    let store = c.open_with(faults.clone()).await;
    let capture = c.capture().await;
    let vacant = store.election().await.unwrap();
    faults.arm(FaultPoint::AfterCommit, FaultKind::AnswerLost);
    store.election_campaign(capture, &vacant).await.expect_err("the answer is lost");
    let row = store.election().await.unwrap();
    assert_eq!(
        row.leader,
        Some(capture.capture),
        "the row names the caller, with an epoch that it does not hold"
    );
    let term = store.election_campaign(capture, &row).await.unwrap();
    assert_eq!(term.epoch.0, row.epoch.0 + 1);
    store.capture_delete(term, metadata_api::model::CaptureId::random()).await.unwrap();
}

/// I5, create: however often the answer is lost, there is one changefeed.
pub async fn a_lost_create_makes_one_changefeed(c: &Cluster) {
    let faults = Arc::new(OneFault::default());
    let store = c.open_with(faults.clone()).await;
    let new = c.new_changefeed("lost");
    for point in [FaultPoint::BeforeCommit, FaultPoint::AfterCommit] {
        faults.arm(point, FaultKind::AnswerLost);
        store.changefeed_create(Authority::Operator, &new).await.expect_err("the answer is lost");
    }
    let info = store.changefeed_create(Authority::Operator, &new).await.unwrap();
    assert_eq!(c.store.changefeed_infos(None).await.unwrap(), std::slice::from_ref(&info));
    assert_eq!(c.schedule(info.uuid).await.state, ScheduleState::Removed);
}

/// A store that met failures is as good as before: no connection stays locked or is lost for good.
pub async fn failures_leave_the_store_usable(c: &Cluster) {
    let faults = Arc::new(OneFault::default());
    let store = c.open_with(faults.clone()).await;
    let failures = [
        (FaultPoint::BeforeBegin, FaultKind::Retryable),
        (FaultPoint::BeforeCommit, FaultKind::Retryable),
        (FaultPoint::BeforeCommit, FaultKind::AnswerLost),
        (FaultPoint::AfterCommit, FaultKind::AnswerLost),
    ];
    for n in 0..40 {
        let (point, kind) = failures[n % failures.len()];
        faults.arm(point, kind);
        let new = c.new_changefeed(&format!("use-{n}"));
        let outcome = store.changefeed_create(Authority::Operator, &new).await;
        assert!(faults.disarm().is_some());
        if let Err(error) = outcome {
            assert!(matches!(error, MetadataError::Unknown { .. }), "{error:?}");
            store.changefeed_create(Authority::Operator, &new).await.unwrap();
        }
        // Another process is not kept waiting by what this one left.
        c.create(&format!("other-{n}")).await;
    }
    assert_eq!(c.store.changefeed_infos(None).await.unwrap().len(), 80);
}
