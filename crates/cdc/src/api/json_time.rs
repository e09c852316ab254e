//! TiCDC's `JSONTime`: `2006-01-02 15:04:05.000`, server-local, exactly three fraction digits, no zone.
//!
//! Its client fails on anything else in such a member, `null` included.

use chrono::{DateTime, Local, TimeZone, Utc};
use metadata_api::model::Ts;
use serde::{Deserialize, Serialize};

const FORMAT: &str = "%Y-%m-%d %H:%M:%S%.3f";
const ZERO: &str = "0001-01-01 00:00:00.000";

/// A time as TiCDC's API writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JsonTime(pub String);

impl JsonTime {
    /// In the time zone of this process.
    pub fn local(time: DateTime<Utc>) -> Self {
        Self::in_zone(time, &Local)
    }

    /// In any time zone.
    pub fn in_zone<Z: TimeZone>(time: DateTime<Utc>, zone: &Z) -> Self
    where
        Z::Offset: std::fmt::Display,
    {
        Self(time.with_timezone(zone).format(FORMAT).to_string())
    }

    /// The physical part of a timestamp; Go's zero time when it is 0 or out of range.
    pub fn from_ts(ts: Ts) -> Self {
        match ts.time() {
            Some(time) if ts != Ts::ZERO => Self::local(time),
            _ => Self::default(),
        }
    }
}

impl Default for JsonTime {
    fn default() -> Self {
        Self(ZERO.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use chrono::FixedOffset;

    use super::*;

    #[test]
    fn it_has_three_digits_and_no_zone() {
        let time = DateTime::from_timestamp_millis(1_700_000_000_007).unwrap();
        assert_eq!(JsonTime::in_zone(time, &Utc).0, "2023-11-14 22:13:20.007");
        let east = FixedOffset::east_opt(8 * 3600).unwrap();
        assert_eq!(JsonTime::in_zone(time, &east).0, "2023-11-15 06:13:20.007");
        let whole = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        assert_eq!(JsonTime::in_zone(whole, &Utc).0, "2023-11-14 22:13:20.000");
        let nanos = DateTime::from_timestamp(1_700_000_000, 999_999_999).unwrap();
        assert_eq!(JsonTime::in_zone(nanos, &Utc).0, "2023-11-14 22:13:20.999");
    }

    #[test]
    fn the_zero_time_is_gos() {
        assert_eq!(JsonTime::from_ts(Ts::ZERO).0, "0001-01-01 00:00:00.000");
        assert_eq!(serde_json::to_string(&JsonTime::default()).unwrap(), "\"0001-01-01 00:00:00.000\"");
    }
}
