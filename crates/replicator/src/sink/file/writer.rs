//! The blocking part of the file sink: one author's files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use capture_runtime::task::TaskError;

use crate::reader::{Author, segment_name, segments};
use crate::sink::{FlushError, FlushGuard, GuardRefusal};

/// How much is written between two looks at the guard.
const PIECE: usize = 1 << 20;

/// Where what is durable ends: everything in files before `seq`, and `len` bytes of that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DurableEnd {
    seq: u64,
    len: u64,
}

/// Writes one author's files of one changefeed.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    root: PathBuf,
    dir: PathBuf,
    author: Author,
    file_size: u64,
    /// What an earlier launch of this author made durable, if there was one.
    inherited: Option<DurableEnd>,
    /// `None` until the directory was made and inspected.
    durable: Option<DurableEnd>,
    current: Option<Segment>,
    last_seq: u64,
}

#[derive(Debug)]
struct Segment {
    file: File,
    seq: u64,
    len: u64,
    path: PathBuf,
}

/// What went wrong, with the file it went wrong on.
struct Failure {
    error: io::Error,
    path: PathBuf,
    doing: &'static str,
}

enum Stop {
    Refused(GuardRefusal),
    Failed(Failure),
}

impl From<GuardRefusal> for Stop {
    fn from(refusal: GuardRefusal) -> Self {
        Self::Refused(refusal)
    }
}

fn on<'p>(path: &'p Path, doing: &'static str) -> impl FnOnce(io::Error) -> Stop + 'p {
    move |error| Stop::Failed(Failure { error, path: path.to_owned(), doing })
}

impl SegmentWriter {
    pub(super) fn new(
        root: PathBuf,
        dir: PathBuf,
        author: Author,
        file_size: u64,
        inherited: Option<DurableEnd>,
    ) -> Self {
        Self { root, dir, author, file_size, inherited, durable: None, current: None, last_seq: 0 }
    }

    /// What is durable; `None` before the first flush got so far as to look.
    pub(super) fn durable_end(&self) -> Option<DurableEnd> {
        self.durable
    }

    /// Appends complete lines and makes them durable. After an error, nothing of them stays, unless the launch
    /// was fenced (it must not touch anything then) or the disk refuses that, too.
    pub(super) fn write(&mut self, lines: &[u8], guard: &FlushGuard) -> Result<(), FlushError> {
        match self.append(lines, guard) {
            Ok(()) => Ok(()),
            Err(Stop::Refused(GuardRefusal::Fenced)) => Err(GuardRefusal::Fenced.into()),
            Err(stop) => {
                self.current = None;
                if let Some(durable) = self.durable
                    && let Err(error) = cut_after(&self.dir, &self.author, durable)
                {
                    tracing::warn!(dir = %self.dir.display(), %error, "a failed flush could not be taken back");
                }
                Err(match stop {
                    Stop::Refused(refusal) => refusal.into(),
                    Stop::Failed(Failure { error, path, doing }) => {
                        let message = format!("sink_uri: cannot {doing} {}: {error}", path.display());
                        FlushError::Failed(TaskError::retryable("CDC:ErrExternalStorageAPI", message))
                    }
                })
            }
        }
    }

    fn append(&mut self, lines: &[u8], guard: &FlushGuard) -> Result<(), Stop> {
        guard.check()?;
        if self.durable.is_none() {
            self.adopt()?;
        }
        let mut made_file = false;
        let mut rest = lines;
        while !rest.is_empty() {
            guard.check()?;
            let segment = match &mut self.current {
                Some(segment) => segment,
                none => {
                    let segment = create(&self.dir, &self.author, self.last_seq + 1)?;
                    self.last_seq = segment.seq;
                    made_file = true;
                    none.insert(segment)
                }
            };
            let room = self.file_size.saturating_sub(segment.len);
            let take = whole_lines(rest, room, segment.len == 0);
            if take == 0 {
                segment.file.sync_data().map_err(on(&segment.path, "make durable"))?;
                self.current = None;
                continue;
            }
            let (now, later) = rest.split_at(take);
            for piece in now.chunks(PIECE) {
                guard.check()?;
                segment.file.write_all(piece).map_err(on(&segment.path, "write to"))?;
            }
            segment.len += now.len() as u64;
            rest = later;
        }
        if let Some(segment) = &self.current {
            segment.file.sync_data().map_err(on(&segment.path, "make durable"))?;
        }
        if made_file {
            sync_dir(&self.dir)?;
        }
        if let Some(segment) = &self.current {
            self.durable = Some(DurableEnd { seq: segment.seq, len: segment.len });
        }
        Ok(())
    }

    /// Makes the directory, and cuts off what an earlier launch of this author left that is not durable.
    fn adopt(&mut self) -> Result<(), Stop> {
        if !self.dir.is_dir() {
            std::fs::create_dir_all(&self.dir).map_err(on(&self.dir, "make directory"))?;
            for made in self.dir.ancestors().skip(1) {
                sync_dir(made)?;
                if Some(made) == self.root.parent() {
                    break;
                }
            }
        }
        if let Some(durable) = self.inherited {
            cut_after(&self.dir, &self.author, durable).map_err(on(&self.dir, "cut the torn tail in"))?;
        }
        let mut end = DurableEnd { seq: 0, len: 0 };
        for segment in segments(&self.dir).map_err(on(&self.dir, "list"))? {
            if segment.author != self.author {
                continue;
            }
            let len = cut_torn_line(&segment.path).map_err(on(&segment.path, "cut the torn tail of"))?;
            end = DurableEnd { seq: segment.seq, len };
        }
        self.last_seq = end.seq;
        self.durable = Some(end);
        Ok(())
    }
}

fn create(dir: &Path, author: &Author, seq: u64) -> Result<Segment, Stop> {
    let path = dir.join(segment_name(author, seq));
    let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(on(&path, "create"))?;
    Ok(Segment { file, seq, len: 0, path })
}

fn sync_dir(dir: &Path) -> Result<(), Stop> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(on(dir, "make durable"))
}

/// How many bytes of `lines` fit into `room` without breaking a line; a line that fits nowhere goes into an
/// `empty` file whole.
fn whole_lines(lines: &[u8], room: u64, empty: bool) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if lines.len() <= room {
        return lines.len();
    }
    if let Some(last) = lines[..room].iter().rposition(|byte| *byte == b'\n') {
        return last + 1;
    }
    if empty { lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |at| at + 1) } else { 0 }
}

/// Cuts an author's files to where they are durable.
fn cut_after(dir: &Path, author: &Author, durable: DurableEnd) -> io::Result<()> {
    for segment in segments(dir)? {
        let keep = match segment.seq.cmp(&durable.seq) {
            std::cmp::Ordering::Less => continue,
            std::cmp::Ordering::Equal => durable.len,
            std::cmp::Ordering::Greater => 0,
        };
        if segment.author == *author {
            let file = OpenOptions::new().write(true).open(&segment.path)?;
            if file.metadata()?.len() > keep {
                file.set_len(keep)?;
                file.sync_data()?;
            }
        }
    }
    Ok(())
}

/// Cuts a last line without its newline; answers how long the file then is.
fn cut_torn_line(path: &Path) -> io::Result<u64> {
    const BLOCK: u64 = 1 << 16;
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let mut end = len;
    let mut block = Vec::new();
    let keep = loop {
        if end == 0 {
            break 0;
        }
        let begin = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(begin))?;
        block.clear();
        (&file).take(end - begin).read_to_end(&mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            break begin + at as u64 + 1;
        }
        end = begin;
    };
    if keep < len {
        file.set_len(keep)?;
        file.sync_data()?;
    }
    Ok(keep)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_are_never_broken_and_always_get_on(lines in prop::collection::vec("[a-z]{0,20}\n", 1..8), room in 0_u64..60, empty: bool) {
            let bytes = lines.concat().into_bytes();
            let take = whole_lines(&bytes, room, empty);
            prop_assert!(take == 0 || bytes[take - 1] == b'\n');
            prop_assert!(take as u64 <= room || empty && take == lines[0].len());
            prop_assert!(take > 0 || !empty);
        }

        #[test]
        fn only_a_torn_line_is_cut(text in "[ab\n]{0,40}", long in 0_usize..3) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            let text = format!("{text}{}", "x".repeat(long * 50_000));
            std::fs::write(&path, &text).unwrap();
            let keep = cut_torn_line(&path).unwrap();
            let wanted = text.rfind('\n').map_or("", |at| &text[..=at]);
            prop_assert_eq!(std::fs::read_to_string(&path).unwrap(), wanted);
            prop_assert_eq!(keep, wanted.len() as u64);
        }
    }
}
