use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use metadata_api::model::ChangefeedName;

use super::*;
use crate::reader::{Line, changefeed_dir, lines, segments};
use crate::testing::{TestClock, admission, guard, insert, insert_into, launch};

struct Bench {
    dir: tempfile::TempDir,
    clock: Arc<TestClock>,
    factory: FileFactory,
}

impl Bench {
    fn new() -> Self {
        let clock = TestClock::at_ms(1_700_000_000_000);
        let factory = FileFactory::new(Arc::<TestClock>::clone(&clock));
        Self { dir: tempfile::tempdir().unwrap(), clock, factory }
    }

    async fn open(&self, epoch: u64, parameters: &str) -> Box<dyn Sink> {
        let uri = format!("file://{}?protocol=canal-json{parameters}", self.dir.path().display());
        self.factory.open(&launch("datagen://", &uri, epoch, Ts(1))).await.unwrap()
    }

    fn guard(&self) -> FlushGuard {
        guard(&self.clock, Duration::from_secs(2))
    }

    fn files(&self) -> PathBuf {
        changefeed_dir(self.dir.path(), ChangefeedUuid(7))
    }

    fn commits(&self) -> Vec<(u64, u64)> {
        let lines: Vec<Line> = lines(&self.files()).unwrap().map(Result::unwrap).collect();
        lines.iter().map(|line| (line.author.epoch.0, line.message().unwrap().tidb.commit_ts)).collect()
    }

    /// Every file of the changefeed with what is in it.
    fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        segments(&self.files())
            .unwrap()
            .into_iter()
            .map(|segment| (segment.path.clone(), fs::read(&segment.path).unwrap()))
            .collect()
    }
}

fn add(sink: &mut Box<dyn Sink>, ts: impl IntoIterator<Item = u64>) {
    for ts in ts {
        sink.add(&insert(ts)).unwrap();
    }
}

#[tokio::test]
async fn nothing_is_made_before_the_first_flush_and_then_everything_is_there() {
    let bench = Bench::new();
    let mut sink = bench.open(5, "").await;
    add(&mut sink, [2, 3]);
    assert!(!bench.files().exists());
    sink.flush(&bench.guard()).await.unwrap();
    add(&mut sink, [4]);
    sink.flush(&bench.guard()).await.unwrap();
    assert_eq!(bench.commits(), [(5, 2), (5, 3), (5, 4)]);
    assert_eq!(segments(&bench.files()).unwrap().len(), 1);
}

#[tokio::test]
async fn files_are_rotated_by_size_and_lines_stay_whole() {
    let bench = Bench::new();
    let mut sink = bench.open(5, "&file-size=1024").await;
    for flush in 0..10 {
        add(&mut sink, flush * 10 + 2..flush * 10 + 12);
        if flush == 4 {
            sink.add(&insert_into("t", 51, &"long ".repeat(1000))).unwrap();
        }
        sink.flush(&bench.guard()).await.unwrap();
    }
    assert_eq!(bench.commits().len(), 101);
    assert!(bench.commits().is_sorted());
    let sizes: Vec<usize> = bench.snapshot().values().map(Vec::len).collect();
    assert!(sizes.len() > 10);
    assert_eq!(sizes.iter().filter(|size| **size > 1024).count(), 1, "{sizes:?}");
    assert!(bench.snapshot().values().all(|text| text.ends_with(b"\n")));
}

#[tokio::test]
async fn an_epoch_touches_no_file_of_another_one() {
    let bench = Bench::new();
    let mut zombie = bench.open(4, "").await;
    add(&mut zombie, [2]);
    zombie.flush(&bench.guard()).await.unwrap();
    let mut old = bench.open(5, "").await;
    add(&mut old, [2, 3]);
    old.flush(&bench.guard()).await.unwrap();
    // The former owner was killed in the middle of a line.
    let torn = bench.files().join("5-000001.json");
    let mut text = fs::read(&torn).unwrap();
    text.extend_from_slice(b"{\"id\":0,\"database\":\"half");
    fs::write(&torn, &text).unwrap();
    let before = bench.snapshot();

    let mut new = bench.open(6, "").await;
    add(&mut new, [3, 4]);
    new.flush(&bench.guard()).await.unwrap();
    // A zombie goes on writing: into its own file only.
    let written = bench.snapshot();
    add(&mut zombie, [9]);
    zombie.flush(&bench.guard()).await.unwrap();
    let after = bench.snapshot();

    for (path, text) in before {
        assert_eq!(written[&path], text);
    }
    let new_file = bench.files().join("6-000001.json");
    assert_eq!(after[&new_file], written[&new_file]);
    assert_eq!(bench.commits(), [(4, 2), (4, 9), (5, 2), (5, 3), (6, 3), (6, 4)]);
}

#[tokio::test]
async fn a_relaunch_of_the_epoch_cuts_its_torn_tail_and_repeats_nothing() {
    let bench = Bench::new();
    let mut sink = bench.open(5, "").await;
    add(&mut sink, [2, 3, 4]);
    sink.flush(&bench.guard()).await.unwrap();
    // Written, but never made durable: one whole line and a half.
    let path = bench.files().join("5-000001.json");
    let durable = fs::read(&path).unwrap();
    let line = String::from_utf8(durable.clone())
        .unwrap()
        .lines()
        .last()
        .unwrap()
        .replace("\"id\":\"4\"", "\"id\":\"5\"");
    fs::write(&path, [durable.as_slice(), line.as_bytes(), b"\n", &line.as_bytes()[..20]].concat()).unwrap();

    // The task position was 2 when the launch ended, so 3 and 4 come again.
    let mut again = bench.open(5, "").await;
    add(&mut again, [3, 4, 5]);
    again.flush(&bench.guard()).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), durable);
    // 4 may have been one row of several of its transaction, so it is repeated; 3 is not.
    assert_eq!(bench.commits(), [(5, 2), (5, 3), (5, 4), (5, 4), (5, 5)]);
}

#[tokio::test]
async fn a_flush_that_takes_too_long_is_taken_back() {
    let bench = Bench::new();
    let mut sink = bench.open(5, "").await;
    add(&mut sink, [2]);
    sink.flush(&bench.guard()).await.unwrap();
    let before = bench.snapshot();
    for ts in 3..8 {
        sink.add(&insert_into("t", ts, &"x".repeat(1 << 20))).unwrap();
    }
    let guard = bench.guard();
    bench.clock.step(Duration::from_millis(500));
    let error = sink.flush(&guard).await.unwrap_err();
    assert!(matches!(error, FlushError::Refused(crate::sink::GuardRefusal::Timeout(_))), "{error}");
    bench.clock.step(Duration::ZERO);
    assert_eq!(bench.snapshot(), before);

    let mut again = bench.open(5, "").await;
    add(&mut again, [2, 3]);
    again.flush(&bench.guard()).await.unwrap();
    assert_eq!(bench.commits(), [(5, 2), (5, 2), (5, 3)]);
}

#[tokio::test]
async fn a_fenced_flush_writes_nothing_more_and_the_relaunch_cuts_what_it_left() {
    let bench = Bench::new();
    let mut sink = bench.open(5, "").await;
    add(&mut sink, [2]);
    sink.flush(&bench.guard()).await.unwrap();

    // The deadline passes between two pieces of a flush.
    for ts in 3..8 {
        sink.add(&insert_into("t", ts, &"x".repeat(1 << 20))).unwrap();
    }
    let (admission, _) = admission(&bench.clock, Duration::from_secs(1));
    let guard = FlushGuard::new(admission, Arc::<TestClock>::clone(&bench.clock), Duration::from_secs(600));
    bench.clock.step(Duration::from_millis(90));
    let error = sink.flush(&guard).await.unwrap_err();
    assert!(matches!(error, FlushError::Refused(crate::sink::GuardRefusal::Fenced)), "{error}");
    bench.clock.step(Duration::ZERO);
    let left = bench.commits();
    assert!(left.len() > 1 && left.len() < 6, "fenced in the middle: {left:?}");

    // Nor does any later flush with that admission write.
    let before = bench.snapshot();
    add(&mut sink, [9]);
    sink.flush(&guard).await.unwrap_err();
    assert_eq!(bench.snapshot(), before);

    let mut again = bench.open(5, "").await;
    add(&mut again, [3, 4]);
    again.flush(&bench.guard()).await.unwrap();
    assert_eq!(bench.commits(), [(5, 2), (5, 3), (5, 4)]);
}

#[tokio::test]
async fn a_crash_between_write_and_report_loses_nothing_for_the_next_epoch() {
    let bench = Bench::new();
    let mut sink = bench.open(5, "").await;
    add(&mut sink, [2, 3]);
    sink.flush(&bench.guard()).await.unwrap();
    drop(sink);
    // As after a crash of the host: the last flush is only partly there.
    let path = bench.files().join("5-000001.json");
    let text = fs::read(&path).unwrap();
    for cut in (0..text.len()).step_by(7) {
        fs::write(&path, &text[..cut]).unwrap();
        let whole = text[..cut].split(|byte| *byte == b'\n').count() - 1;
        assert_eq!(bench.commits().len(), whole);
    }
    let mut next = bench.open(6, "").await;
    add(&mut next, [2, 3]);
    next.flush(&bench.guard()).await.unwrap();
    assert!(bench.commits().ends_with(&[(6, 2), (6, 3)]));
}

async fn check(sink: &str) -> Result<(), TaskError> {
    let spec = TaskSpec {
        name: ChangefeedName::new("default", "test").unwrap(),
        upstream_uri: SecretUri::parse("upstream_uri", "datagen://").unwrap(),
        sink_uri: SecretUri::parse("sink_uri", sink).unwrap(),
        start_ts: None,
        target_ts: Ts::ZERO,
        config: ReplicaConfig::default(),
    };
    FileFactory::new(TestClock::at_ms(0)).check(&spec).await
}

#[tokio::test]
async fn places_that_cannot_be_written_are_refused_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let shown = dir.path().display();
    fs::write(dir.path().join("file"), "x").unwrap();
    check(&format!("file://{shown}")).await.unwrap();
    check(&format!("file://{shown}/new/er?protocol=canal-json&file-size=4096")).await.unwrap();
    assert!(!dir.path().join("new").exists());
    for (uri, wanted) in [
        (format!("file://{shown}/file"), "is not a directory"),
        (format!("file://{shown}/file/be/low"), "file is not a directory; name one"),
        (format!("file://{shown}/file/below"), "file"),
        (format!("file://{shown}?protocol=avro"), "`protocol` is `avro`"),
        (format!("file://{shown}?file-size=0"), "`file-size` is `0`"),
        (format!("file://{shown}?compression=zstd"), "`compression` is unknown"),
        ("file://relative/path".to_owned(), "is a host"),
        ("file:///".to_owned(), "directory is missing"),
    ] {
        let error = check(&uri).await.unwrap_err();
        assert_eq!(error.code, "CDC:ErrSinkURIInvalid");
        assert!(error.message.contains(wanted) && error.message.contains("sink_uri"), "{error}");
    }
}
