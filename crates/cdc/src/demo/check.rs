//! The files against what the generator must have produced.

use std::path::Path;

use capture_runtime::task::TaskError;
use metadata_api::model::{SecretUri, Ts};
use replicator::canal_json::{Encoder, Message};
use replicator::datagen::{DatagenConfig, Generator};
use replicator::event::Change;
use replicator::reader::{self, Author};

use super::cluster::upstream_uri;
use super::scene::Feed;
use crate::exit::Failure;

/// What the check found, over all changefeeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Rows that had to be there: up to each changefeed's last checkpoint.
    pub expected: u64,
    /// Lines that were read.
    pub lines: u64,
    /// Rows that had to be there and are not.
    pub missing: u64,
    /// Lines that say again what another one said.
    pub repeated: u64,
    /// Lines that come before an earlier change of the same owner epoch.
    pub out_of_order: u64,
    /// Lines that the generator did not produce.
    pub wrong: u64,
    /// The first of what is bad.
    pub first: Option<String>,
}

impl Findings {
    /// Whether all is as it must be. Repeats are: delivery is at least once.
    pub fn is_clean(&self) -> bool {
        self.expected > 0 && self.missing == 0 && self.out_of_order == 0 && self.wrong == 0
    }

    /// In a sentence.
    pub fn summary(&self) -> String {
        let first = self.first.as_ref().map(|first| format!(" First: {first}")).unwrap_or_default();
        format!(
            "{} rows had to be in the files, {} lines are: {} missing, {} wrong, {} out of order, {} repeated (delivery is \
             at least once).{first}",
            self.expected, self.lines, self.missing, self.wrong, self.out_of_order, self.repeated
        )
    }

    fn bad(&mut self, what: impl FnOnce() -> String) {
        if self.first.is_none() {
            self.first = Some(what());
        }
    }
}

/// Checks every changefeed. `sink_dir` is the sink's directory; changefeed number `n` has the seed `n`.
///
/// # Errors
/// When a file cannot be read.
pub fn check_all(sink_dir: &Path, feeds: &[Feed], rows_per_second: u64) -> Result<Findings, Failure> {
    let mut findings = Findings::default();
    for feed in feeds {
        let seed = feed.id.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let config = SecretUri::parse("upstream_uri", &upstream_uri(rows_per_second, seed))?;
        let config =
            DatagenConfig::from_uri(&config).map_err(|error: TaskError| Failure::error(error.to_string()))?;
        let generator = Generator::new(config, feed.start_ts);
        check_feed(sink_dir, feed, &generator, &mut findings)?;
    }
    Ok(findings)
}

fn check_feed(
    sink_dir: &Path,
    feed: &Feed,
    generator: &Generator,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let must = generator.count_until(feed.checkpoint);
    let mut seen = vec![false; usize::try_from(must).unwrap_or(usize::MAX)];
    let mut extra = std::collections::BTreeSet::new();
    let (mut encoder, mut expected) = (Encoder::default(), Vec::new());
    let mut last: Option<(Author, Ts)> = None;
    for line in reader::lines(&reader::changefeed_dir(sink_dir, feed.uuid))? {
        let line = line?;
        findings.lines += 1;
        let message = line.message().ok();
        let ts = message.as_ref().map(Message::commit_ts).unwrap_or_default();
        let n = generator.count_until(ts).checked_sub(1).filter(|n| generator.ts_of(*n) == ts);
        let made_at = message.map_or(0, |message| message.ts);
        let says_what_it_must = |n: &u64| {
            expected.clear();
            encoder.encode(&Change::Row(generator.change(*n)), made_at, &mut expected);
            expected.strip_suffix(b"\n") == Some(line.text.as_bytes())
        };
        let Some(n) = n.filter(says_what_it_must) else {
            findings.wrong += 1;
            findings.bad(|| {
                format!("{}, {}-{} at byte {}: {}", feed.id, line.author, line.seq, line.offset, line.text)
            });
            continue;
        };
        if let Some((author, before)) = &last
            && *author == line.author
            && ts < *before
        {
            findings.out_of_order += 1;
            findings.bad(|| {
                format!(
                    "{}, {}-{} at byte {}: {ts} after {before}",
                    feed.id, line.author, line.seq, line.offset
                )
            });
        }
        last = Some((line.author, ts));
        let again = match usize::try_from(n).ok().and_then(|n| seen.get_mut(n)) {
            Some(seen) => std::mem::replace(seen, true),
            None => !extra.insert(n),
        };
        findings.repeated += u64::from(again);
    }
    findings.expected += must;
    for (n, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
        findings.missing += 1;
        findings.bad(|| format!("{}: change number {n} is missing", feed.id));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use metadata_api::model::ChangefeedUuid;

    use super::*;

    fn feed() -> Feed {
        Feed { id: "feed-07".into(), uuid: ChangefeedUuid(5), start_ts: Ts(1 << 40), ..Feed::default() }
    }

    fn generator() -> Generator {
        let config = SecretUri::parse("u", &upstream_uri(100, 7)).unwrap();
        Generator::new(DatagenConfig::from_uri(&config).unwrap(), feed().start_ts)
    }

    fn write(dir: &Path, epoch: u64, numbers: &[u64]) {
        let dir = reader::changefeed_dir(dir, ChangefeedUuid(5));
        std::fs::create_dir_all(&dir).unwrap();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::default();
        for n in numbers {
            encoder.encode(&Change::Row(generator().change(*n)), 99, &mut bytes);
        }
        std::fs::write(dir.join(format!("{epoch}-000001.json")), bytes).unwrap();
    }

    fn check(dir: &Path, until: u64) -> Findings {
        let feed = Feed { checkpoint: generator().ts_of(until), ..feed() };
        check_all(dir, &[feed], 100).unwrap()
    }

    #[test]
    fn a_takeover_that_repeats_rows_is_clean() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1, &[0, 1, 2, 3]);
        write(dir.path(), 2, &[2, 3, 4, 5, 6, 7]);
        let found = check(dir.path(), 5);
        assert!(found.is_clean(), "{found:?}");
        assert_eq!((found.expected, found.lines, found.repeated), (6, 10, 2));
    }

    #[test]
    fn what_is_missing_wrong_or_out_of_order_is_found() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1, &[0, 1, 3, 2, 5]);
        let found = check(dir.path(), 5);
        assert_eq!((found.missing, found.out_of_order, found.wrong), (1, 1, 0), "{found:?}");
        assert!(!found.is_clean());
        let path = reader::changefeed_dir(dir.path(), ChangefeedUuid(5)).join("1-000001.json");
        let text = std::fs::read_to_string(&path).unwrap().replacen("row ", "raw ", 1).replacen(
            "commitTs\":1",
            "commitTs\":2",
            2,
        );
        std::fs::write(&path, text).unwrap();
        assert!(check(dir.path(), 5).wrong > 0);
        assert!(
            !check(tempfile::tempdir().unwrap().path(), 5).is_clean(),
            "an empty directory misses everything"
        );
    }
}
