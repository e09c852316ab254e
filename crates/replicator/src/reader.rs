//! Reads back what the file sink wrote for one changefeed.
//!
//! Lines come in the order (epoch, sequence, offset). A last line without its newline was torn by a crash and
//! is left out; so is a torn tail in an earlier file, whose epoch is over. A file of the current epoch may
//! still grow.
//!
//! Delivery is at least once: a new owner starts at the task position and repeats what its predecessor wrote
//! after it, under a greater epoch. Within an epoch, `commitTs` does not go back.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use metadata_api::model::{ChangefeedUuid, OwnerEpoch};

use crate::canal_json::Message;

pub mod replay;

/// One file of a changefeed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// The owner epoch that wrote it.
    pub epoch: OwnerEpoch,
    /// Its number within the epoch, from 1.
    pub seq: u64,
    /// Where it is.
    pub path: PathBuf,
}

/// One complete line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The owner epoch that wrote it.
    pub epoch: OwnerEpoch,
    /// Its file's number within the epoch.
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
                    segment_name(self.epoch, self.seq),
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
pub(crate) fn segment_name(epoch: OwnerEpoch, seq: u64) -> String {
    format!("{epoch}-{seq:06}.json")
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
        let name = entry.file_name();
        let numbers = name.to_str().and_then(|name| name.strip_suffix(".json")?.split_once('-'));
        if let Some((epoch, seq)) = numbers
            && let (Ok(epoch), Ok(seq)) = (epoch.parse(), seq.parse())
            && segment_name(OwnerEpoch(epoch), seq) == name.to_string_lossy()
        {
            found.push(Segment { epoch: OwnerEpoch(epoch), seq, path: entry.path() });
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
            return Ok(Some(Line { epoch: segment.epoch, seq: segment.seq, offset: begin, text }));
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
        assert_eq!((lines[4].epoch, lines[4].seq, lines[4].offset), (OwnerEpoch(10), 2, 2));
        let error = lines[4].message().unwrap_err().to_string();
        assert!(error.contains("10-000002.json at byte 2"), "{error}");
    }

    #[test]
    fn a_changefeed_that_wrote_nothing_has_no_lines() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(lines(&dir.path().join("7")).unwrap().count(), 0);
    }
}
