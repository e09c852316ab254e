//! What the tests of several modules share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use capture_runtime::admission::{Admission, Deadline};
use capture_runtime::clock::{BootTime, Clock};
use chrono::{DateTime, Utc};
use metadata_api::model::{
    CaptureId, ChangefeedInfo, ChangefeedName, ChangefeedProgress, ChangefeedUuid, OwnerEpoch, OwnerTerm,
    ReplicaConfig, SecretUri, SourcePosition, Ts, UpstreamId, UpstreamInfo, Version,
};

use crate::event::{Change, Column, ColumnKind, RowChange, RowOp, Table, Value};
use crate::sink::FlushGuard;
use crate::source::Launch;

/// A clock that only moves when told to, or by a step each time it is asked.
#[derive(Debug, Default)]
pub(crate) struct TestClock {
    nanos: AtomicU64,
    step: AtomicU64,
}

impl TestClock {
    pub(crate) fn at_ms(ms: u64) -> Arc<Self> {
        let clock = Self::default();
        clock.nanos.store(ms * 1_000_000, Ordering::SeqCst);
        Arc::new(clock)
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.nanos.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
    }

    /// From now on each look at the clock takes this long.
    pub(crate) fn step(&self, by: Duration) {
        self.step.store(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> BootTime {
        let step = self.step.load(Ordering::SeqCst);
        BootTime::from_boot(Duration::from_nanos(self.nanos.fetch_add(step, Ordering::SeqCst)))
    }

    fn wall(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_nanos(i64::try_from(self.nanos.load(Ordering::SeqCst)).unwrap())
    }
}

/// An admission whose deadline is `left` away.
pub(crate) fn admission(clock: &Arc<TestClock>, left: Duration) -> (Admission, Deadline) {
    let clock: Arc<dyn Clock> = Arc::<TestClock>::clone(clock);
    let deadline = Deadline::new(Arc::clone(&clock));
    deadline.extend(clock.now() + left);
    (Admission::new(deadline.clone()), deadline)
}

pub(crate) fn guard(clock: &Arc<TestClock>, timeout: Duration) -> FlushGuard {
    let (admission, _) = admission(clock, Duration::from_secs(3600));
    FlushGuard::new(admission, Arc::<TestClock>::clone(clock), timeout)
}

pub(crate) fn launch(upstream: &str, sink: &str, epoch: u64, start: Ts) -> Launch {
    let info = ChangefeedInfo {
        uuid: ChangefeedUuid(7),
        name: ChangefeedName::new("default", "test").unwrap(),
        upstream: UpstreamId(1),
        sink_uri: SecretUri::parse("sink_uri", sink).unwrap(),
        start_ts: start,
        target_ts: Ts::ZERO,
        config: ReplicaConfig::default(),
        creator_version: "v0".to_owned(),
        client_request_id: CaptureId::random().0,
        created_at: DateTime::from_timestamp_nanos(0),
        removed_at: None,
        version: Version(1),
    };
    Launch {
        term: OwnerTerm { changefeed: info.uuid, capture: CaptureId::random(), epoch: OwnerEpoch(epoch) },
        share: None,
        launch: 1,
        info: Arc::new(info),
        upstream: UpstreamInfo {
            id: UpstreamId(1),
            uri: SecretUri::parse("upstream_uri", upstream).unwrap(),
        },
        start: ChangefeedProgress::at(start),
    }
}

/// An insert into `s.t` with this key, committed at this ts.
pub(crate) fn insert(ts: u64) -> Change {
    insert_into("t", ts, "x")
}

pub(crate) fn insert_into(table: &str, ts: u64, text: &str) -> Change {
    let column =
        |name: &str, kind, primary_key| Column { name: name.to_owned(), kind, unsigned: false, primary_key };
    let table = Table {
        schema: "s".to_owned(),
        name: table.to_owned(),
        columns: vec![column("id", ColumnKind::BigInt, true), column("text", ColumnKind::Text, false)],
    };
    Change::Row(RowChange {
        table: Arc::new(table),
        commit_ts: Ts(ts),
        op: RowOp::Insert { new: vec![Value::Int(i64::try_from(ts).unwrap()), Value::Text(text.to_owned())] },
    })
}

pub(crate) fn position(ts: u64) -> SourcePosition {
    SourcePosition(serde_json::json!({ "at": ts }))
}
