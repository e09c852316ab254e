//! Sets of GTIDs: which transactions have been read.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use mysql_async::Sid;

use super::bytes::Malformed;

/// Who numbered a transaction: `server uuid[:tag]`, in lower case.
type Source = String;

/// A set of GTIDs, in the text form of `MySQL`: `uuid[:tag]:1-5:7[,..]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GtidSet(BTreeMap<Source, Vec<(u64, u64)>>);

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gtid {
    source: Source,
    number: u64,
}

impl Gtid {
    pub(super) fn new(server: [u8; 16], tag: Option<&str>, number: u64) -> Self {
        let mut source = String::with_capacity(36);
        for (at, byte) in server.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                source.push('-');
            }
            // Writing to a String never fails.
            let _ = write!(source, "{byte:02x}");
        }
        if let Some(tag) = tag {
            source.push(':');
            source.push_str(tag);
        }
        Self { source, number }
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.number)
    }
}

impl GtidSet {
    pub(super) fn insert(&mut self, gtid: &Gtid) {
        self.insert_range(&gtid.source, gtid.number, gtid.number);
    }

    /// Adds the numbers from `first` to `last`, both included.
    fn insert_range(&mut self, source: &str, first: u64, last: u64) {
        if !self.0.contains_key(source) {
            self.0.insert(source.to_owned(), Vec::new());
        }
        let Some(ranges) = self.0.get_mut(source) else { return };
        // The first range that touches the new one, and the first behind it.
        let from = ranges.partition_point(|range| range.1.saturating_add(1) < first);
        let to = ranges.partition_point(|range| range.0 <= last.saturating_add(1));
        if from >= to {
            return ranges.insert(from, (first, last));
        }
        let merged = ranges[from..to]
            .iter()
            .fold((first, last), |all, range| (all.0.min(range.0), all.1.max(range.1)));
        ranges.splice(from..to, [merged]);
    }

    /// From servers, tags, and ranges of numbers, both ends included.
    pub(super) fn from_parts(
        parts: impl Iterator<Item = ([u8; 16], Option<String>, Vec<(u64, u64)>)>,
    ) -> Self {
        let mut set = Self::default();
        for (server, tag, ranges) in parts {
            let source = Gtid::new(server, tag.as_deref(), 0).source;
            for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
                set.insert_range(&source, first, last);
            }
        }
        set
    }

    /// What is in both.
    pub(super) fn common(&self, other: &Self) -> Self {
        let mut common = Self::default();
        for (source, ranges) in &self.0 {
            for (first, last) in other.0.get(source).into_iter().flatten() {
                for range in ranges {
                    let (first, last) = (*first.max(&range.0), *last.min(&range.1));
                    if first <= last {
                        common.insert_range(source, first, last);
                    }
                }
            }
        }
        common
    }

    /// As the server wants it in a request.
    pub(super) fn sids(&self) -> Vec<Sid<'static>> {
        self.entries().filter_map(|entry| entry.parse().ok()).collect()
    }

    fn entries(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(source, ranges)| {
            let mut text = source.clone();
            for (first, last) in ranges {
                let _ =
                    if first == last { write!(text, ":{first}") } else { write!(text, ":{first}-{last}") };
            }
            text
        })
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.entries().collect::<Vec<_>>().join(","))
    }
}

impl FromStr for GtidSet {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut set = Self::default();
        let malformed = |part: &str| Malformed(format!("`{}` is not a set of GTIDs", part.escape_debug()));
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let mut pieces = part.split(':').map(str::trim);
            let server = pieces.next().unwrap_or_default().to_ascii_lowercase();
            if server.len() != 36 || !server.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
                return Err(malformed(part));
            }
            let mut source = server.clone();
            for piece in pieces {
                if piece.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                    source = format!("{server}:{}", piece.to_ascii_lowercase());
                    continue;
                }
                let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
                match (first.trim().parse(), last.trim().parse()) {
                    (Ok(first), Ok(last)) if 1 <= first && first <= last => {
                        set.insert_range(&source, first, last)
                    }
                    _ => return Err(malformed(part)),
                }
            }
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const B: &str = "4e11fa47-71ca-11e1-9e33-c80aa9429562";

    #[test]
    fn texts_come_back_in_order() {
        for (text, wanted) in [
            (String::new(), String::new()),
            (format!("{A}:1-5:7"), format!("{A}:1-5:7")),
            (format!("{B}:9,\n{A}:4-5:1-3"), format!("{A}:1-5,{B}:9")),
            (format!("{A}:1-2:tag_a:3:5:b:1"), format!("{A}:1-2,{A}:b:1,{A}:tag_a:3:5")),
        ] {
            let set: GtidSet = text.parse().unwrap();
            assert_eq!(set.to_string(), wanted);
            assert_eq!(set.sids().len(), set.0.len());
        }
        for bad in ["x", "x:1", &format!("{A}:0"), &format!("{A}:5-3"), &format!("{A}:1-x")] {
            assert!(bad.parse::<GtidSet>().is_err(), "{bad}");
        }
        let server =
            [0x3E, 0x11, 0xFA, 0x47, 0x71, 0xCA, 0x11, 0xE1, 0x9E, 0x33, 0xC8, 0x0A, 0xA9, 0x42, 0x95, 0x62];
        let mut set = GtidSet::default();
        set.insert(&Gtid::new(server, None, 1));
        set.insert(&Gtid::new(server, Some("t"), 2));
        assert_eq!(set.to_string(), format!("{A}:1,{A}:t:2"));
    }

    proptest! {
        #[test]
        fn ranges_are_the_numbers_in_them(ranges in prop::collection::vec((1_u64..60, 0_u64..9), 0..30)) {
            let (mut set, mut numbers) = (GtidSet::default(), BTreeSet::new());
            for (first, more) in ranges {
                set.insert_range(A, first, first + more);
                numbers.extend(first..=first + more);
            }
            let found = set.0.get(A).cloned().unwrap_or_default();
            prop_assert!(found.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{found:?} are not merged");
            prop_assert_eq!(found.iter().flat_map(|(first, last)| *first..=*last).collect::<BTreeSet<_>>(), numbers);
            prop_assert_eq!(set.to_string().parse::<GtidSet>().unwrap().0.get(A).cloned().unwrap_or_default(), found);
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = text.parse::<GtidSet>();
        }
    }
}
