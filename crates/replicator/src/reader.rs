//! Reads back what the file sink wrote for one changefeed.
//!
//! Lines come in the order (author, sequence, offset): an [`Author`] is an owner epoch, or a share of one's tables. Of one
//! table they come in the order in which they were written; those of tables that different processors carry do not.
//!
//! A last line without its newline was torn by a crash and
//! is left out; so is a torn tail in an earlier file, whose epoch is over. A file of the current epoch may
//! still grow.
//!
//! Delivery is at least once: a new owner starts at the task position and repeats what its predecessor wrote
//! after it, under a greater epoch. Within an epoch, `commitTs` does not go back.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use capture_runtime::task::Share;
use metadata_api::model::{CaptureId, ChangefeedUuid, OwnerEpoch, OwnerTerm, Revision, TableId};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::canal_json::Message;

pub mod replay;

/// Who wrote a file. No two launches of different owners, processors or orders are the same author, so that nobody writes
/// into another's files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Author {
    /// The owner epoch.
    pub epoch: OwnerEpoch,
    /// What of it, if a processor wrote it.
    pub share: Option<AuthorShare>,
}

/// A processor's share, as far as it tells authors of one owner epoch apart. Of one table they come in the order in which
/// they were ordered to write, and no two have the same turn.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorShare {
    /// Which order of the table: a revision of the cluster.
    pub turn: Revision,
    /// The table.
    pub table: TableId,
    /// The capture.
    pub capture: CaptureId,
}

impl Author {
    /// The author that a launch is.
    pub(crate) fn of(term: OwnerTerm, share: Option<&Share>) -> Self {
        let share = share.map(|share| AuthorShare {
            turn: share.turn,
            table: share.table.clone(),
            capture: share.processor.capture,
        });
        Self { epoch: term.epoch, share }
    }

    /// The owner's own, that runs the changefeed whole.
    pub fn owner(epoch: OwnerEpoch) -> Self {
        Self { epoch, share: None }
    }
}

/// What of a table's name is written as `%..` in a file's.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_');

/// `{epoch}`, or `{epoch}-{turn}-{capture}-{table}`.
impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(share) = &self.share else { return self.epoch.fmt(f) };
        let table = utf8_percent_encode(&share.table.0, ESCAPED);
        write!(f, "{}-{}-{}-{table}", self.epoch, share.turn, share.capture.0.simple())
    }
}

/// One file of a changefeed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// Who wrote it.
    pub author: Author,
    /// Its number within what the author wrote, from 1.
    pub seq: u64,
    /// Where it is.
    pub path: PathBuf,
}

/// One complete line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Who wrote it.
    pub author: Author,
    /// Its file's number within what the author wrote.
    pub seq: u64,
    /// Where it begins in its file, in bytes.
    pub offset: u64,
    /// Its text, without the newline.
    pub text: String,
}

impl Line {
    /// What it says.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] with the place of the line, when it is not canal-json.
    pub fn message(&self) -> io::Result<Message> {
        serde_json::from_str(&self.text).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} at byte {}: not a canal-json line: {error}",
                    segment_name(&self.author, self.seq),
                    self.offset
                ),
            )
        })
    }
}

/// The directory of a changefeed within the sink's.
pub fn changefeed_dir(sink_dir: &Path, changefeed: ChangefeedUuid) -> PathBuf {
    sink_dir.join(changefeed.to_string())
}

/// A file's name within the changefeed's directory.
pub(crate) fn segment_name(author: &Author, seq: u64) -> String {
    format!("{author}-{seq:06}.json")
}

/// The author and the number that a name says; `None` when it is none of ours.
fn parse_name(name: &str) -> Option<(Author, u64)> {
    let (author, seq) = name.strip_suffix(".json")?.rsplit_once('-')?;
    let mut parts = author.splitn(4, '-');
    let epoch = OwnerEpoch(parts.next()?.parse().ok()?);
    let share = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => None,
        (Some(turn), Some(capture), Some(table)) => Some(AuthorShare {
            turn: Revision(turn.parse().ok()?),
            table: TableId(percent_decode_str(table).decode_utf8().ok()?.into_owned()),
            capture: capture.parse().ok()?,
        }),
        _ => return None,
    };
    let named = (Author { epoch, share }, seq.parse().ok()?);
    (segment_name(&named.0, named.1) == name).then_some(named)
}

/// The files of a changefeed, in order. `dir` is the changefeed's own ([`changefeed_dir`]); if it is not there,
/// nothing was written yet. Files with other names are not the sink's, and are left out.
///
/// # Errors
/// What the file system says.
pub fn segments(dir: &Path) -> io::Result<Vec<Segment>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Some((author, seq)) = entry.file_name().to_str().and_then(parse_name) {
            found.push(Segment { author, seq, path: entry.path() });
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The complete lines of a changefeed. `dir` is the changefeed's own ([`changefeed_dir`]).
///
/// # Errors
/// What the file system says.
pub fn lines(dir: &Path) -> io::Result<Lines> {
    Ok(Lines { segments: segments(dir)?.into(), open: None })
}

/// The iterator of [`lines`]. Ends after its first error.
#[derive(Debug)]
pub struct Lines {
    segments: VecDeque<Segment>,
    open: Option<(Segment, BufReader<File>, u64)>,
}

impl Lines {
    fn read(&mut self) -> io::Result<Option<Line>> {
        loop {
            let Some((segment, reader, offset)) = &mut self.open else {
                let Some(segment) = self.segments.pop_front() else { return Ok(None) };
                let reader = BufReader::with_capacity(1 << 16, File::open(&segment.path)?);
                self.open = Some((segment, reader, 0));
                continue;
            };
            let mut bytes = Vec::new();
            reader.read_until(b'\n', &mut bytes)?;
            if bytes.pop() != Some(b'\n') {
                self.open = None;
                continue;
            }
            let begin = *offset;
            *offset += bytes.len() as u64 + 1;
            let text = String::from_utf8(bytes).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} at byte {begin}: not UTF-8: {error}", segment.path.display()),
                )
            })?;
            return Ok(Some(Line { author: segment.author.clone(), seq: segment.seq, offset: begin, text }));
        }
    }
}

impl Iterator for Lines {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        let answer = self.read();
        if answer.is_err() {
            self.open = None;
            self.segments.clear();
        }
        answer.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_order_and_torn_tails_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("9-000001.json", "a\nb\ntor"),
            ("10-000010.json", "f\n"),
            ("10-000002.json", "d\ne\n"),
            ("10-000001.json", "c\n{\"torn\":"),
            ("11-000001.json", ""),
            ("notes.json", "x\n"),
            ("12-1.json", "x\n"),
            ("13-000001.json.tmp", "x\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let lines: Vec<Line> = lines(dir.path()).unwrap().map(Result::unwrap).collect();
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["a", "b", "c", "d", "e", "f"]);
        assert_eq!((&lines[4].author, lines[4].seq, lines[4].offset), (&Author::owner(OwnerEpoch(10)), 2, 2));
        let error = lines[4].message().unwrap_err().to_string();
        assert!(error.contains("10-000002.json at byte 2"), "{error}");
    }

    #[test]
    fn the_authors_of_a_table_come_in_order() {
        let share = |turn, capture: u128, table: &str| AuthorShare {
            turn: Revision(turn),
            table: TableId(table.to_owned()),
            capture: format!("{capture:032x}").parse().unwrap(),
        };
        let author = |epoch, share| Author { epoch: OwnerEpoch(epoch), share };
        let authors = [
            author(9, None),
            author(10, Some(share(90, 7, "a-1.b"))),
            author(10, Some(share(100, 5, "2/4"))),
            author(10, Some(share(100, 5, "a-1.b"))),
            author(11, Some(share(95, u128::MAX, "\u{fc}"))),
        ];
        let dir = tempfile::tempdir().unwrap();
        for author in &authors {
            let name = segment_name(author, 1);
            assert_eq!(parse_name(&name), Some((author.clone(), 1)), "{name}");
            std::fs::write(dir.path().join(name), "x\n").unwrap();
        }
        for name in [
            "10-5-000001.json",
            "10-5-6-000001.json",
            "10-5-6-t-000001.json",
            "10-5-00000000000000000000000000000006-a-b-000001.json",
        ] {
            assert_eq!(parse_name(name), None, "{name}");
            std::fs::write(dir.path().join(name), "y\n").unwrap();
        }
        let found: Vec<Author> = lines(dir.path()).unwrap().map(|line| line.unwrap().author).collect();
        assert_eq!(found, authors);
    }

    #[test]
    fn a_changefeed_that_wrote_nothing_has_no_lines() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(lines(&dir.path().join("7")).unwrap().count(), 0);
    }
}
