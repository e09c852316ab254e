//! Timestamps in TiDB's TSO layout.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{MetadataError, Result};

/// A point in a source's history, in TiDB's TSO layout: physical milliseconds since 1970 `<< 18` | logical.
///
/// The greatest is `i64::MAX` (the year 3084), so that every database orders them as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ts(pub u64);

impl Ts {
    /// How many low bits are the logical part.
    pub const LOGICAL_BITS: u32 = 18;
    /// Nothing happened at or before it.
    pub const ZERO: Self = Self(0);
    /// The greatest that is accepted.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// Checks a number from outside; `field` is what the error calls it.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] when it is greater than [`Self::MAX`].
    pub fn new(field: &'static str, value: u64) -> Result<Self> {
        if value > Self::MAX.0 {
            return Err(MetadataError::invalid(
                field,
                format!(
                    "{value} is greater than {}; a TSO is (milliseconds since 1970 << 18) | logical",
                    Self::MAX
                ),
            ));
        }
        Ok(Self(value))
    }

    /// The first timestamp of a millisecond, clamped to the accepted range.
    pub const fn from_physical_ms(ms: u64) -> Self {
        let max_ms = Self::MAX.0 >> Self::LOGICAL_BITS;
        Self(if ms > max_ms { Self::MAX.0 } else { ms << Self::LOGICAL_BITS })
    }

    /// The first timestamp of the millisecond of `time`; 0 for a time before 1970.
    pub fn from_time(time: DateTime<Utc>) -> Self {
        Self::from_physical_ms(u64::try_from(time.timestamp_millis()).unwrap_or(0))
    }

    /// The physical part: milliseconds since 1970.
    pub const fn physical_ms(self) -> u64 {
        self.0 >> Self::LOGICAL_BITS
    }

    /// The logical part.
    pub const fn logical(self) -> u64 {
        self.0 & ((1 << Self::LOGICAL_BITS) - 1)
    }

    /// The next one; stays at [`Self::MAX`].
    #[must_use]
    pub const fn next(self) -> Self {
        if self.0 >= Self::MAX.0 { Self::MAX } else { Self(self.0 + 1) }
    }

    /// The physical part as a time; `None` past chrono's range.
    pub fn time(self) -> Option<DateTime<Utc>> {
        i64::try_from(self.physical_ms()).ok().and_then(DateTime::from_timestamp_millis)
    }
}

impl fmt::Display for Ts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
