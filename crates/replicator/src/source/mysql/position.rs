//! Where the source resumes: what travels in the progress as JSON.
//!
//! ```json
//! {"server":"<server_uuid>","file":"binlog.000007","pos":4711,"gtids":"<uuid>:1-99","previous":456789}
//! ```

use metadata_api::model::{SourcePosition, Ts};
use serde::{Deserialize, Serialize};

use super::bytes::Malformed;
use super::gtid::GtidSet;

/// A place between two transactions of a binlog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The `server_uuid` whose files are meant.
    pub(super) server: String,
    /// The file.
    pub(super) file: String,
    /// The first byte that was not read.
    pub(super) pos: u64,
    /// When the file was made, in seconds: a server whose binlog was reset has another file of the same name.
    pub(super) file_created: Option<u32>,
    /// The transactions before it. Then file and position are for people only.
    pub(super) gtids: Option<GtidSet>,
    /// The commit ts of the transaction before it: the next one's is greater.
    pub(super) previous: Ts,
    /// The place is before the start: transactions at or before this are in the sink already, or not wanted.
    pub(super) skip_until: Option<Ts>,
}

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    server: std::borrow::Cow<'a, str>,
    file: std::borrow::Cow<'a, str>,
    pos: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file_created: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gtids: Option<String>,
    previous: Ts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    skip_until: Option<Ts>,
}

impl Position {
    pub(super) fn encode(&self) -> SourcePosition {
        let stored = Stored {
            server: self.server.as_str().into(),
            file: self.file.as_str().into(),
            pos: self.pos,
            file_created: self.file_created,
            gtids: self.gtids.as_ref().map(ToString::to_string),
            previous: self.previous,
            skip_until: self.skip_until,
        };
        // Texts and numbers always have a JSON form.
        SourcePosition(serde_json::to_value(stored).unwrap_or_default())
    }

    pub(super) fn decode(position: &SourcePosition) -> Result<Self, Malformed> {
        let stored = Stored::deserialize(&position.0).map_err(|error| Malformed(error.to_string()))?;
        Ok(Self {
            server: stored.server.into_owned(),
            file: stored.file.into_owned(),
            pos: stored.pos,
            file_created: stored.file_created,
            gtids: stored.gtids.map(|text| text.parse()).transpose()?,
            previous: stored.previous,
            skip_until: stored.skip_until,
        })
    }

    /// The place of which both are behind, or at it; `None` when that cannot be told.
    pub(super) fn least(one: Self, other: Self) -> Option<Self> {
        match (&one.gtids, &other.gtids) {
            (Some(of_one), Some(of_other)) => {
                let common = of_one.common(of_other);
                if common == *of_one {
                    return Some(one);
                }
                if common == *of_other {
                    return Some(other);
                }
                // Two servers that wrote the same transactions into their logs in different orders.
                let skip_until = one.skip_until.zip(other.skip_until).map(|(one, other)| one.min(other));
                let previous = one.previous.min(other.previous);
                Some(Self { gtids: Some(common), previous, skip_until, file: String::new(), pos: 4, ..one })
            }
            (None, None) if one.server == other.server => {
                Some(if one.is_at_or_after(&other.file, other.pos) { other } else { one })
            }
            _ => None,
        }
    }

    /// Whether everything before that end of the log has been read. Files are numbered.
    pub(super) fn is_at_or_after(&self, file: &str, pos: u64) -> bool {
        if self.file == file { self.pos >= pos } else { file_number(&self.file) > file_number(file) }
    }

    /// Moves to where an event ends. Its header has the lowest 32 bits only.
    pub(super) fn advance(&mut self, low: u32) {
        let high = self.pos & !u64::from(u32::MAX);
        let pos = high | u64::from(low);
        self.pos = if pos >= self.pos { pos } else { pos + (1 << 32) };
    }
}

fn file_number(file: &str) -> Option<u64> {
    file.rsplit_once('.')?.1.parse().ok()
}

/// A commit time in microseconds since 1970 as a timestamp: what is left of the millisecond goes into the logical
/// part, so that transactions of the same millisecond keep apart.
pub(super) fn ts_from_micros(micros: u64) -> Ts {
    Ts((Ts::from_physical_ms(micros / 1000).0 | (micros % 1000) << 8).min(Ts::MAX.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(file: &str, pos: u64) -> Position {
        Position {
            server: "s".to_owned(),
            file: file.to_owned(),
            pos,
            file_created: None,
            gtids: None,
            previous: Ts(5),
            skip_until: None,
        }
    }

    #[test]
    fn positions_come_back() {
        let gtids = Some("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5".parse().unwrap());
        let whole = Position {
            gtids,
            file_created: Some(3),
            skip_until: Some(Ts(9)),
            ..position("b.000002", 1 << 40)
        };
        for position in [position("b.000001", 4), whole] {
            assert_eq!(Position::decode(&position.encode()), Ok(position));
        }
        for bad in [serde_json::json!({"base": 5}), serde_json::json!(null)] {
            assert!(Position::decode(&SourcePosition(bad)).is_err());
        }
    }

    #[test]
    fn files_are_compared_by_number() {
        assert!(position("b.1000000", 4).is_at_or_after("b.999999", 77));
        assert!(!position("b.999999", 77).is_at_or_after("b.1000000", 4));
        assert!(position("b.000001", 77).is_at_or_after("b.000001", 77));
        assert!(!position("b.000001", 76).is_at_or_after("b.000001", 77));
    }

    #[test]
    fn positions_past_4_gib_are_kept() {
        let mut at = position("b.000001", 0xFFFF_FF00);
        at.advance(0xFFFF_FFF0);
        assert_eq!(at.pos, 0xFFFF_FFF0);
        at.advance(0x10);
        assert_eq!(at.pos, 0x1_0000_0010);
        at.advance(0x20);
        assert_eq!(at.pos, 0x1_0000_0020);
    }

    proptest! {
        #[test]
        fn timestamps_keep_the_order_of_microseconds(a in 0_u64..1 << 60, more in 1_u64..5000) {
            prop_assert!(ts_from_micros(a) < ts_from_micros(a + more) || ts_from_micros(a) == Ts::MAX);
            prop_assert_eq!(ts_from_micros(a).physical_ms(), (a / 1000).min(Ts::MAX.physical_ms()));
        }
    }

    #[test]
    fn the_least_of_two_is_behind_neither() {
        const SID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        let by_gtids = |set: &str, previous| Position {
            gtids: Some(set.parse().unwrap()),
            previous: Ts(previous),
            ..position("b.000001", 4)
        };
        let least = |one: &Position, other: &Position| Position::least(one.clone(), other.clone());
        let (few, many) = (by_gtids(&format!("{SID}:1-6"), 9), by_gtids(&format!("{SID}:1-10"), 8));
        // Whatever their transactions' times are.
        assert_eq!(least(&few, &many), Some(few.clone()));
        assert_eq!(least(&many, &few), Some(few.clone()));
        let apart = by_gtids(&format!("{SID}:1-5:7"), 7);
        let both = least(&few, &apart).unwrap();
        assert_eq!((both.gtids.unwrap().to_string(), both.previous), (format!("{SID}:1-5"), Ts(7)));

        let (near, far) = (position("b.000009", 700), position("b.000010", 5));
        assert_eq!(least(&near, &far), Some(near.clone()));
        assert_eq!(least(&far, &near), Some(near.clone()));
        assert_eq!(least(&near, &position("b.000009", 600)), Some(position("b.000009", 600)));
        assert_eq!(least(&near, &few), None);
        assert_eq!(least(&near, &Position { server: "t".to_owned(), ..near.clone() }), None);
    }
}
