//! What processors report: `processors` of `QueryStore`, and that a report is never taken for a changefeed's progress.

use std::collections::BTreeMap;

use metadata_api::codec::{MAX_POSITION, MAX_REPORT};
use metadata_api::model::{
    CaptureProgress, CaptureState, ChangefeedUuid, OwnedProgress, OwnerEpoch, ProcessorEpoch,
    ProcessorReport, ProcessorSchedule, ProcessorStatus, ScheduleState, SourcePosition, TableError, TableId,
    TableReport, Ts, Version,
};
use serde_json::json;

use crate::harness::{
    Cluster, Refusal, assert_refused, at, detach_target, progress_of, report_of, running_error, share_of,
    table_at,
};
use crate::query::assert_read_everywhere;

/// The one processor of a changefeed, which is the same read alone and among all.
async fn only(c: &Cluster, changefeed: ChangefeedUuid) -> ProcessorStatus {
    let mut some = c.store.processors(Some(&[changefeed])).await.unwrap();
    let all = c.store.processors(None).await.unwrap();
    let of_it = all.into_iter().filter(|one| one.schedule.changefeed == changefeed);
    assert_eq!(of_it.collect::<Vec<_>>(), some);
    assert_eq!(some.len(), 1, "one processor");
    some.remove(0)
}

/// A capture's whole progress, with one entry.
fn one_entry(changefeed: ChangefeedUuid, entry: OwnedProgress) -> CaptureProgress {
    CaptureProgress(BTreeMap::from([(changefeed, entry)]))
}

/// Of some changefeeds or of all, ordered by changefeed and capture, the `Removed` ones included: each row as it reads alone,
/// with its own capture's state and its own report.
pub async fn processors_come_in_order_with_their_captures_and_reports(c: &Cluster) {
    let controller = c.controller().await;
    let mut captures = Vec::new();
    for _ in 0..4 {
        captures.push(c.capture().await);
    }
    let feeds = c.create_many("spread", 3).await;
    c.launch_many(controller, captures[0], &feeds).await;
    let mut reports = BTreeMap::new();
    for (n, capture) in (1..).zip(&captures) {
        let mut value = CaptureProgress::default();
        for feed in feeds[1..].iter().rev() {
            let row = c.attach(controller, *feed, *capture).await;
            let report = report_of(&row, [("t", table_at(row.version, 100 * n + feed.0 % 100))]);
            value.0.insert(*feed, share_of(&row, &report));
            // The last one has not reported anything yet.
            reports.insert((*feed, capture.capture), (n < 4).then_some(report));
            if n == 2 && *feed == feeds[1] {
                c.store.processor_release(row.term()).await.unwrap();
            }
        }
        if n < 4 {
            c.store.capture_advance(*capture, 1, &value).await.unwrap();
        }
    }
    c.store.capture_drain(captures[1].capture).await.unwrap();
    c.seal(controller, captures[2]).await;
    let states = [CaptureState::Alive, CaptureState::Draining, CaptureState::Offline, CaptureState::Alive];
    let states: BTreeMap<_, _> = captures.iter().map(|capture| capture.capture).zip(states).collect();
    let mut wanted = Vec::new();
    for feed in &feeds {
        for schedule in c.store.processor_schedules(*feed).await.unwrap() {
            let (capture, report) = (states[&schedule.capture], &reports[&(*feed, schedule.capture)]);
            wanted.push(ProcessorStatus { schedule, capture: Some(capture), report: report.clone() });
        }
    }
    assert_eq!(wanted.len(), 8);
    assert_eq!(wanted.iter().filter(|one| one.schedule.state == ScheduleState::Removed).count(), 1);
    assert!(wanted.is_sorted_by_key(|one| (one.schedule.changefeed, one.schedule.capture)));
    assert_eq!(c.store.processors(None).await.unwrap(), wanted);
    let both = [feeds[2], feeds[0], feeds[1], feeds[2]];
    assert_eq!(c.store.processors(Some(&both)).await.unwrap(), wanted);
    assert_eq!(c.store.processors(Some(&feeds[1..2])).await.unwrap(), wanted[..4]);
    assert_eq!(c.store.processors(Some(&feeds[..1])).await.unwrap(), []);
}

/// A report counts for the attachment that it names: not for one before, not for one after, whichever owner epoch its entry
/// has.
pub async fn a_report_is_of_one_attachment(c: &Cluster) {
    let o = c.owned("anew").await;
    let capture = c.capture().await;
    let first = c.attach(o.controller, o.changefeed, capture).await;
    assert_eq!(only(c, o.changefeed).await.report, None, "it has not said anything");
    let report = report_of(&first, [("t", table_at(first.version, 200))]);
    let mut seq = 0;
    let mut says = async |entry: OwnedProgress| {
        seq += 1;
        c.store.capture_advance(capture, seq, &one_entry(o.changefeed, entry)).await.unwrap();
        only(c, o.changefeed).await.report
    };
    for epoch in [0, first.epoch.0 - 1, first.epoch.0 + 1] {
        let other = ProcessorReport { epoch: ProcessorEpoch(epoch), ..report.clone() };
        assert_eq!(says(share_of(&first, &other)).await, None);
    }
    assert_eq!(says(OwnedProgress::new(o.owner.epoch, at(300))).await, None);
    for epoch in [0, o.owner.epoch.0 + 1] {
        let entry = OwnedProgress { owner_epoch: OwnerEpoch(epoch), ..share_of(&first, &report) };
        assert_eq!(says(entry).await.as_ref(), Some(&report));
    }
    let nothing = report_of(&first, []);
    assert_eq!(
        says(share_of(&first, &nothing)).await,
        Some(nothing),
        "of no table is not the same as nothing"
    );
    assert_eq!(says(share_of(&first, &report)).await.as_ref(), Some(&report));
    // It stays that attachment's until the next one.
    let targets = [detach_target(capture, first.version)];
    c.store.processor_set(o.controller, o.changefeed, &targets).await.unwrap();
    let leaving = only(c, o.changefeed).await;
    assert_eq!((leaving.schedule.state, leaving.report.as_ref()), (ScheduleState::Removing, Some(&report)));
    c.store.processor_release(first.term()).await.unwrap();
    let left = only(c, o.changefeed).await;
    assert_eq!((left.schedule.state, left.report.as_ref()), (ScheduleState::Removed, Some(&report)));
    let second = c.attach(o.controller, o.changefeed, capture).await;
    assert_eq!(only(c, o.changefeed).await.report, None, "that was another attachment's");
    let report = report_of(&second, [("t", table_at(second.version, 201))]);
    assert_eq!(says(share_of(&second, &report)).await, Some(report));
    c.store.capture_advance(capture, seq + 1, &CaptureProgress::default()).await.unwrap();
    assert_eq!(only(c, o.changefeed).await.report, None, "it has nothing to say any more");
}

/// What a capture said last is given after it was sealed, too, until it is deleted.
pub async fn a_report_outlives_its_capture(c: &Cluster) {
    let o = c.owned("last").await;
    let capture = c.capture().await;
    let row = c.attach(o.controller, o.changefeed, capture).await;
    let report = report_of(&row, [("t", table_at(row.version, 200))]);
    let value = one_entry(o.changefeed, share_of(&row, &report));
    c.store.capture_advance(capture, 1, &value).await.unwrap();
    c.seal(o.controller, capture).await;
    let offline = Some(CaptureState::Offline);
    let sealed = ProcessorStatus { schedule: row, capture: offline, report: Some(report.clone()) };
    assert_eq!(only(c, o.changefeed).await, sealed);
    c.refuses(Refusal::Fenced, c.store.capture_advance(capture, 2, &CaptureProgress::default())).await;
    assert_eq!(c.store.capture_release(o.controller, capture.capture, 500).await.unwrap(), 1);
    let released = only(c, o.changefeed).await;
    assert_eq!((released.schedule.state, released.capture), (ScheduleState::Removed, offline));
    assert_eq!(released.report, Some(report));
    c.store.capture_delete(o.controller, capture.capture).await.unwrap();
    assert_eq!(c.store.processors(None).await.unwrap(), [], "its rows went with it");

    // A capture without a row, or without a progress, as after a restored backup.
    let row = c.attach(o.controller, o.changefeed, o.capture).await;
    let report = report_of(&row, [("t", table_at(row.version, 201))]);
    let value = one_entry(o.changefeed, share_of(&row, &report));
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    c.execute("DELETE FROM capture").await;
    let gone = ProcessorStatus { schedule: row, capture: None, report: Some(report) };
    assert_eq!(only(c, o.changefeed).await, gone);
    c.execute("DELETE FROM progress").await;
    assert_eq!(only(c, o.changefeed).await, ProcessorStatus { report: None, ..gone });
}

/// Numbers beyond those that a double holds, an error, a position of the source's own: all comes back as it was, and with it
/// what is beside it in the capture's progress.
pub async fn a_report_comes_back_as_it_was_written(c: &Cluster) {
    const BIG: u64 = 1 << 53;
    // Epochs and uuids are revisions, and of two that follow each other one is odd.
    c.execute(&format!("UPDATE fence SET revision = {BIG}")).await;
    let o = c.owned("exact").await;
    let error = TableError { error: running_error("CDC:ErrTable"), retryable: true };
    let odd = json!({
        "text": "\"\\ '%_;-- \u{0} \u{1} ü 🦀\n", "": [[], {}, [[{ "": null }]], true], "big": u64::MAX,
        "neg": i64::MIN, "above": BIG + 1, "float": 0.5, "tiny": -1.5e-7, "huge": 1e300,
    });
    let mut furthest = at(Ts::MAX.0 - 2);
    furthest.position = Some(SourcePosition(odd));
    let mut terms = Vec::new();
    for capture in [o.capture, c.capture().await] {
        let row = c.attach(o.controller, o.changefeed, capture).await;
        assert!(row.epoch.0 > BIG && row.changefeed.0 > BIG && row.owner_epoch.0 > BIG);
        let stopped = TableReport {
            since: Version(u64::MAX),
            stopped: true,
            error: Some(error.clone()),
            progress: furthest.clone(),
        };
        let not_retryable = TableError { retryable: false, ..error.clone() };
        let failed = TableReport { error: Some(not_retryable), ..stopped.clone() };
        let mut plain = table_at(Version(BIG + 3), 0);
        plain.progress.position = None;
        let mut whole = table_at(Version(BIG + 11), 200);
        whole.progress.position = Some(SourcePosition(json!(1.0)));
        let tables = [
            ("`a`.`t`", table_at(Version(BIG + 1), BIG + 5)),
            ("\"ü\" \\ $.x[0] '🦀", stopped),
            ("", failed),
            ("plain", plain),
            ("whole", whole),
        ];
        let report = report_of(&row, tables);
        let entry =
            OwnedProgress { processor: Some(report), ..OwnedProgress::new(o.owner.epoch, at(BIG + 7)) };
        let mut value = progress_of(&[(ChangefeedUuid(1), OwnerEpoch(BIG + 9), furthest.clone())]);
        value.0.insert(o.changefeed, entry);
        c.store.capture_advance(capture, 1, &value).await.unwrap();
        terms.push((row, capture, value));
    }
    let other = c.open().await;
    terms.sort_by_key(|(row, ..)| row.capture);
    for which in [None, Some([o.changefeed].as_slice())] {
        let read = other.processors(which).await.unwrap();
        assert_eq!(read.len(), 2);
        for (read, (row, _, value)) in read.into_iter().zip(&terms) {
            assert_eq!(read.schedule, *row);
            let mut given = read.report.expect("a report");
            // As a number it is the same: JSON knows no other (TiDB leaves out the point).
            let whole = given.tables.get_mut(&TableId("whole".to_owned())).expect("it was reported");
            let whole = whole.progress.position.as_mut().expect("a position");
            assert_eq!(whole.0.as_f64(), Some(1.0));
            whole.0 = json!(1.0);
            assert_eq!(Some(given), value.0[&o.changefeed].processor);
        }
    }
    for (_, capture, value) in terms {
        assert_eq!(other.capture_progress(capture).await.unwrap(), (1, value));
    }
    assert_eq!(c.progress(o.changefeed).await, at(BIG + 7));
}

/// A report with one table, as it would be too big or too odd.
fn with_position(row: &ProcessorSchedule, position: serde_json::Value) -> OwnedProgress {
    let mut table = table_at(row.version, 200);
    table.progress.position = Some(SourcePosition(position));
    share_of(row, &report_of(row, [("t", table)]))
}

fn nested(depth: usize) -> serde_json::Value {
    (1..depth).fold(json!([]), |inner, _| json!({ "x": inner }))
}

/// What would not be read back, or could not be a changefeed's position later on, is refused when it is written, by the name of
/// the changefeed; it is never stored in part.
pub async fn a_report_that_does_not_fit_names_the_changefeed(c: &Cluster) {
    let o = c.owned("fit").await;
    let row = c.attach(o.controller, o.changefeed, o.capture).await;
    let long = || json!("x".repeat(MAX_POSITION));
    let mut late = table_at(row.version, 200);
    late.progress.resolved_ts = Ts(Ts::MAX.0 + 1);
    // No position is too long, and all of them are.
    let tables: BTreeMap<_, _> = (0..=MAX_REPORT / 50_000)
        .map(|n| {
            let mut table = table_at(row.version, 200);
            table.progress.position = Some(SourcePosition(json!("x".repeat(50_000))));
            (TableId(n.to_string()), table)
        })
        .collect();
    let mut own = share_of(&row, &report_of(&row, []));
    own.progress.position = Some(SourcePosition(long()));
    let mut own_deep = share_of(&row, &report_of(&row, []));
    own_deep.progress.position = Some(SourcePosition(nested(25)));
    for (what, entry) in [
        ("a timestamp", share_of(&row, &report_of(&row, [("t", late)]))),
        ("a table's position", with_position(&row, long())),
        ("the owner's position", own),
        ("all tables", share_of(&row, &ProcessorReport { epoch: row.epoch, tables })),
        ("a table's depth", with_position(&row, nested(25))),
        ("the owner's depth", own_deep),
    ] {
        let value = one_entry(o.changefeed, entry);
        let call = c.store.capture_advance(o.capture, 1, &value);
        let text = c.refuses(Refusal::InvalidField("progress"), call).await;
        assert!(text.contains(&o.changefeed.to_string()), "{what}: {text}");
        assert!(text.len() < 1_000, "{what}: the value itself is not repeated");
    }
}

/// What fits is given whole: there is no depth and no length at which a database silently gives up.
pub async fn the_longest_and_deepest_report_is_given(c: &Cluster) {
    let o = c.owned("long").await;
    let row = c.attach(o.controller, o.changefeed, o.capture).await;
    let mut tables = BTreeMap::new();
    for n in 0..20 {
        let mut table = table_at(row.version, 200 + n);
        table.progress.position = Some(SourcePosition(json!("🦀".repeat(12_500))));
        tables.insert(TableId(n.to_string()), table);
    }
    let mut deep = table_at(row.version, 300);
    deep.progress.position = Some(SourcePosition(nested(24)));
    tables.insert(TableId("deep".to_owned()), deep.clone());
    let report = ProcessorReport { epoch: row.epoch, tables };
    let entry = OwnedProgress {
        processor: Some(report.clone()),
        ..OwnedProgress::new(o.owner.epoch, deep.progress.clone())
    };
    c.store.capture_advance(o.capture, 1, &one_entry(o.changefeed, entry)).await.unwrap();
    assert!(only(c, o.changefeed).await.report == Some(report), "it reads back whole");
    assert_eq!(c.progress(o.changefeed).await, deep.progress);
}

/// A progress that does not decode says nothing of the processor, and is no error: the owner still sees all the rows.
pub async fn a_report_that_cannot_be_read_says_nothing(c: &Cluster) {
    let o = c.owned("unread").await;
    let (changefeed, uuid) = (o.changefeed, o.changefeed.0);
    let row = c.attach(o.controller, changefeed, o.capture).await;
    let epoch = row.epoch.0;
    let report = report_of(&row, [("t", table_at(row.version, 200))]);
    let value = one_entry(changefeed, share_of(&row, &report));
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    assert!(only(c, changefeed).await.report.is_some());
    let says_nothing =
        ProcessorStatus { schedule: row.clone(), capture: Some(CaptureState::Alive), report: None };
    let of = |processor: &str| format!(r#"{{"{uuid}":{{"processor":{processor}}}}}"#);
    for value in [
        r#"{"1": {"owner"#.to_owned(),
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "7".to_owned(),
        format!(r#"{{"{uuid}":[]}}"#),
        format!(r#"{{"{uuid}":"processor"}}"#),
        of("null"),
        of("7"),
        of("1.5"),
        of("true"),
        of(r#""a""#),
        of("[]"),
        of("{}"),
        of(&format!(r#"{{"epoch":{epoch}}}"#)),
        of(&format!(r#"{{"epoch":"{epoch}","tables":{{}}}}"#)),
        of(&format!(r#"{{"epoch":{epoch},"tables":{{"t":{{"since":1}}}}}}"#)),
    ] {
        c.execute(&format!("UPDATE progress SET value = '{value}'")).await;
        assert_eq!(only(c, changefeed).await, says_nothing, "{value}");
    }
    c.execute("DELETE FROM progress").await;
    assert_eq!(only(c, changefeed).await, says_nothing, "the capture has no progress row");
}

/// Whatever a processor says of its tables, the changefeed is where its owner says it is, and goes on from there.
pub async fn a_share_is_never_taken_for_the_whole(c: &Cluster) {
    let o = c.owned("share").await;
    let (changefeed, helper) = (o.changefeed, c.capture().await);
    let row = c.attach(o.controller, changefeed, helper).await;
    let report = report_of(&row, [("t", table_at(row.version, 900))]);
    c.store.capture_advance(helper, 1, &one_entry(changefeed, share_of(&row, &report))).await.unwrap();
    assert_read_everywhere(c, changefeed, 100).await;
    let value = progress_of(&[(changefeed, o.owner.epoch, at(300))]);
    c.store.capture_advance(o.capture, 1, &value).await.unwrap();
    c.store.capture_advance(helper, 2, &one_entry(changefeed, share_of(&row, &report))).await.unwrap();
    assert_read_everywhere(c, changefeed, 300).await;
    // The owner may be a processor, too.
    let own = c.attach(o.controller, changefeed, o.capture).await;
    let own_report = report_of(&own, [("u", table_at(own.version, 800))]);
    let whole = OwnedProgress { progress: at(400), ..share_of(&own, &own_report) };
    c.store.capture_advance(o.capture, 2, &one_entry(changefeed, whole)).await.unwrap();
    assert_read_everywhere(c, changefeed, 400).await;
    let launch = c.store.owner_launches(o.capture, &[changefeed]).await.unwrap().remove(0);
    assert_eq!(launch.progress, at(400));
    c.release(o.owner).await;
    assert_eq!(c.schedule(changefeed).await.task_position, at(400));
    assert_read_everywhere(c, changefeed, 400).await;

    // The helper becomes the owner. Its entry is of the epoch that it served; then of its own, and says nothing of the whole.
    let second = c.launch(o.controller, helper, changefeed).await;
    assert_read_everywhere(c, changefeed, 400).await;
    let entry = OwnedProgress { owner_epoch: second.epoch, ..share_of(&row, &report) };
    c.store.capture_advance(helper, 3, &one_entry(changefeed, entry)).await.unwrap();
    assert_read_everywhere(c, changefeed, 400).await;
    let launch = c.store.owner_launches(helper, &[changefeed]).await.unwrap().remove(0);
    assert_eq!(launch.progress, at(400));

    // Taking from a mere processor leaves the changefeed where it is; taking from the owner, too.
    c.seal(o.controller, o.capture).await;
    assert_eq!(c.store.capture_release(o.controller, o.capture.capture, 500).await.unwrap(), 1);
    assert_eq!(c.schedule(changefeed).await.state, ScheduleState::Launched);
    assert_read_everywhere(c, changefeed, 400).await;
    c.seal(o.controller, helper).await;
    assert_eq!(c.store.capture_release(o.controller, helper.capture, 500).await.unwrap(), 2);
    assert_eq!(c.schedule(changefeed).await.task_position, at(400));
    assert_read_everywhere(c, changefeed, 400).await;
    assert_refused(c.store.processor_release(row.term()).await, Refusal::Fenced);
}
