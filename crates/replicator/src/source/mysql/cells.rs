//! The cells of a row event: from the server's storage format to [`Value`], exactly.
//!
//! Formats as in the server's `sql/field.cc` and `mysys/my_time.cc`. The decoder is our own: the library's panics on
//! negative times with one or two decimals, says 1900 for the year 0, and makes a list of column descriptions
//! for each row.

use std::fmt::Write as _;

use super::bytes::{Bytes, Malformed, Read};
use super::charset::Charset;
use super::jsonb;
use crate::event::Value;

/// How the cells of a column are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CellType {
    Int {
        bytes: usize,
        unsigned: bool,
    },
    Float,
    Double,
    Decimal {
        precision: usize,
        scale: usize,
    },
    Bit {
        bytes: usize,
    },
    Year,
    Date,
    Time {
        decimals: usize,
    },
    DateTime {
        decimals: usize,
    },
    Timestamp {
        decimals: usize,
    },
    Text {
        length_bytes: usize,
        charset: Charset,
    },
    /// `BINARY` is stored without its zeros at the end: `size` is how long it is with them.
    Bytes {
        length_bytes: usize,
        size: usize,
    },
    /// `ENUM` and `SET`.
    Number {
        bytes: usize,
    },
    Json {
        length_bytes: usize,
    },
    /// One that no supported server writes; its number.
    Unknown(u8),
}

impl CellType {
    /// Reads one cell that is not NULL.
    pub(super) fn read(&self, from: &mut Bytes<'_>) -> Read<Value> {
        Ok(match *self {
            Self::Int { bytes, unsigned: true } | Self::Number { bytes } => Value::UInt(from.little(bytes)?),
            Self::Int { bytes, unsigned: false } => {
                let unused = 64 - 8 * u32::try_from(bytes).unwrap_or(8);
                Value::Int(from.little(bytes)?.cast_signed() << unused >> unused)
            }
            Self::Float => Value::Float(f32::from_bits(u32::try_from(from.little(4)?).unwrap_or_default())),
            Self::Double => Value::Double(f64::from_bits(from.little(8)?)),
            Self::Decimal { precision, scale } => Value::Text(decimal(from, precision, scale)?),
            Self::Bit { bytes } => Value::UInt(from.big(bytes)?),
            Self::Year => Value::Int(match from.byte()? {
                0 => 0,
                year => 1900 + i64::from(year),
            }),
            Self::Date => {
                let packed = from.little(3)?;
                Value::Text(format!("{:04}-{:02}-{:02}", packed >> 9, packed >> 5 & 15, packed & 31))
            }
            Self::Time { decimals } => {
                let bytes = fraction_bytes(decimals);
                let packed = signed_from(from.big(3 + bytes)?, 8 * (3 + bytes));
                let (whole, fraction) = split(packed.unsigned_abs(), bytes);
                let sign = if packed < 0 { "-" } else { "" };
                Value::Text(format!("{sign}{}", clock(whole, 10, bytes, fraction, decimals)))
            }
            Self::DateTime { decimals } => {
                let bytes = fraction_bytes(decimals);
                let (whole, fraction) =
                    split(signed_from(from.big(5 + bytes)?, 8 * (5 + bytes)).unsigned_abs(), bytes);
                Value::Text(format!(
                    "{} {}",
                    day(whole >> 17),
                    clock(whole & 0x1_FFFF, 5, bytes, fraction, decimals)
                ))
            }
            Self::Timestamp { decimals } => {
                let bytes = fraction_bytes(decimals);
                let (seconds, fraction) = (from.big(4)?, from.big(bytes)?);
                Value::Text(timestamp(seconds, bytes, fraction, decimals))
            }
            Self::Text { length_bytes, ref charset } => {
                Value::Text(charset.decode(from.counted(length_bytes)?)?)
            }
            Self::Bytes { length_bytes, size } => {
                let mut bytes = from.counted(length_bytes)?.to_vec();
                if bytes.len() < size {
                    bytes.resize(size, 0);
                }
                Value::Bytes(bytes)
            }
            Self::Json { length_bytes } => Value::Text(jsonb::text(from.counted(length_bytes)?)?),
            Self::Unknown(number) => {
                return Err(Malformed(format!(
                    "column type {number} is not supported; ALTER the column, or leave the table out by filter.rules"
                )));
            }
        })
    }
}

/// A number stored with an offset, so that negative ones come first in order.
fn signed_from(stored: u64, bits: usize) -> i64 {
    stored.cast_signed().wrapping_sub(1 << (bits - 1))
}

const fn fraction_bytes(decimals: usize) -> usize {
    decimals.div_ceil(2)
}

/// The whole part, and the fraction of so many bytes.
fn split(packed: u64, fraction_bytes: usize) -> (u64, u64) {
    (packed >> (8 * fraction_bytes), packed & ((1 << (8 * fraction_bytes)) - 1))
}

/// `HH:MM:SS[.fraction]` of hour, minute (6 bits) and second (6 bits).
fn clock(packed: u64, hour_bits: u32, fraction_bytes: usize, fraction: u64, decimals: usize) -> String {
    let hour = packed >> 12 & ((1 << hour_bits) - 1);
    let mut text = format!("{hour:02}:{:02}:{:02}", packed >> 6 & 63, packed & 63);
    push_fraction(&mut text, fraction_bytes, fraction, decimals);
    text
}

/// Each byte of a fraction is two decimal digits; the last is 0 when the number of decimals is odd.
fn push_fraction(text: &mut String, bytes: usize, fraction: u64, decimals: usize) {
    if decimals > 0 {
        let digits = format!("{fraction:0width$}", width = 2 * bytes);
        text.push('.');
        text.push_str(digits.get(..decimals).unwrap_or(&digits));
    }
}

/// `YYYY-MM-DD` of year * 13 + month, and day (5 bits).
fn day(packed: u64) -> String {
    let months = packed >> 5;
    format!("{:04}-{:02}-{:02}", months / 13, months % 13, packed & 31)
}

fn timestamp(seconds: u64, bytes: usize, fraction: u64, decimals: usize) -> String {
    let mut text = if seconds == 0 && fraction == 0 {
        "0000-00-00 00:00:00".to_owned()
    } else {
        let time = chrono::DateTime::from_timestamp(seconds.cast_signed(), 0).unwrap_or_default();
        time.format("%Y-%m-%d %H:%M:%S").to_string()
    };
    push_fraction(&mut text, bytes, fraction, decimals);
    text
}

/// A time, date or datetime as it lies in JSON: 24 bits of microseconds below the packed parts.
pub(super) fn json_time(packed: i64) -> String {
    let sign = if packed < 0 { "-" } else { "" };
    let (whole, micros) = split(packed.unsigned_abs(), 3);
    format!("{sign}{}", clock(whole, 10, 3, micros, 6))
}

/// As [`json_time`].
pub(super) fn json_datetime(packed: i64) -> String {
    let (whole, micros) = split(packed.unsigned_abs(), 3);
    format!("{} {}", day(whole >> 17), clock(whole & 0x1_FFFF, 5, 3, micros, 6))
}

/// As [`json_time`].
pub(super) fn json_date(packed: i64) -> String {
    day(split(packed.unsigned_abs(), 3).0 >> 17)
}

/// Nine decimal digits are four bytes; fewer take as few as they can.
const DIGIT_BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

/// A decimal as `MySQL` writes it: no leading zeros, all decimals.
pub(super) fn decimal(from: &mut Bytes<'_>, precision: usize, scale: usize) -> Read<String> {
    let whole = precision
        .checked_sub(scale)
        .filter(|_| precision <= 65)
        .ok_or_else(|| Malformed(format!("DECIMAL({precision},{scale})")))?;
    let groups = [whole % 9]
        .into_iter()
        .chain(std::iter::repeat_n(9, whole / 9))
        .chain(std::iter::repeat_n(9, scale / 9))
        .chain([scale % 9]);
    let length = groups.clone().map(|digits| DIGIT_BYTES[digits]).sum();
    let mut bytes = from.take(length)?.to_vec();
    let Some(first) = bytes.first_mut() else { return Ok("0".to_owned()) };
    // The first bit is the sign, turned around; a negative number has all others turned around.
    let negative = *first & 0x80 == 0;
    *first ^= 0x80;
    if negative {
        for byte in &mut bytes {
            *byte = !*byte;
        }
    }
    let mut rest = Bytes(&bytes);
    let mut digits = String::with_capacity(precision);
    for count in groups.filter(|count| *count > 0) {
        let group = rest.big(DIGIT_BYTES[count])?;
        // Writing to a String never fails.
        let _ = write!(digits, "{group:0count$}");
    }
    if digits.len() != precision {
        return Err(Malformed::new("a DECIMAL has too great digits"));
    }
    let (whole, fraction) = digits.split_at(whole);
    let whole = whole.trim_start_matches('0');
    let mut text = String::with_capacity(precision + 2);
    text.push_str(if negative { "-" } else { "" });
    text.push_str(if whole.is_empty() { "0" } else { whole });
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(fraction);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(cell: &CellType, bytes: &[u8]) -> Value {
        let mut from = Bytes(bytes);
        let value = cell.read(&mut from).unwrap();
        assert!(from.is_empty());
        value
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn integers_keep_their_sign() {
        let int = |bytes, unsigned| CellType::Int { bytes, unsigned };
        assert_eq!(read(&int(1, false), b"\xFF"), Value::Int(-1));
        assert_eq!(read(&int(1, true), b"\xFF"), Value::UInt(255));
        assert_eq!(read(&int(3, false), b"\x00\x00\x80"), Value::Int(-8_388_608));
        assert_eq!(read(&int(3, true), b"\x00\x00\x80"), Value::UInt(8_388_608));
        assert_eq!(read(&int(8, false), &i64::MIN.to_le_bytes()), Value::Int(i64::MIN));
        assert_eq!(read(&int(8, true), &u64::MAX.to_le_bytes()), Value::UInt(u64::MAX));
        assert_eq!(read(&CellType::Bit { bytes: 2 }, b"\x01\x02"), Value::UInt(258));
        assert_eq!(read(&CellType::Year, b"\0"), Value::Int(0));
        assert_eq!(read(&CellType::Year, b"\xFF"), Value::Int(2155));
    }

    #[test]
    fn negative_times_with_few_decimals() {
        // -00:00:00.10 and -00:00:01.50, as the server's my_time.cc has them.
        assert_eq!(read(&CellType::Time { decimals: 2 }, b"\x7F\xFF\xFF\xF6"), text("-00:00:00.10"));
        assert_eq!(read(&CellType::Time { decimals: 1 }, b"\x7F\xFF\xFE\xCE"), text("-00:00:01.5"));
        assert_eq!(read(&CellType::Time { decimals: 0 }, b"\x80\x00\x00"), text("00:00:00"));
    }

    #[test]
    fn short_binaries_are_filled_with_zeros() {
        let binary = CellType::Bytes { length_bytes: 1, size: 4 };
        assert_eq!(read(&binary, b"\x01a"), Value::Bytes(b"a\0\0\0".to_vec()));
        let blob = CellType::Bytes { length_bytes: 2, size: 0 };
        assert_eq!(read(&blob, b"\x01\0a"), Value::Bytes(b"a".to_vec()));
    }

    proptest! {
        #[test]
        fn times_come_back(negative: bool, hour in 0_i64..=838, minute in 0_i64..60, second in 0_i64..60, micros in 0_i64..1_000_000, decimals in 0_usize..=6) {
            let digits = format!("{micros:06}");
            let shown = if decimals == 0 { String::new() } else { format!(".{}", &digits[..decimals]) };
            let kept: i64 = format!("{:0<6}", &digits[..decimals]).parse().unwrap();
            let bytes = decimals.div_ceil(2);
            let stored = kept / [1_000_000, 10_000, 100, 1][bytes];
            let packed = (hour << 12 | minute << 6 | second) << (8 * bytes) | stored;
            let negative = negative && packed > 0;
            let packed = if negative { -packed } else { packed };
            let raw = (packed + (1 << (8 * (3 + bytes) - 1))).to_be_bytes();
            let sign = if negative { "-" } else { "" };
            prop_assert_eq!(
                read(&CellType::Time { decimals }, &raw[8 - 3 - bytes..]),
                text(&format!("{sign}{hour:02}:{minute:02}:{second:02}{shown}"))
            );
        }

        #[test]
        fn decimals_agree_with_their_definition(whole in "(0|[1-9][0-9]{0,20})", fraction in "[0-9]{0,12}", negative: bool, room in 0_usize..15) {
            let (precision, scale) = (whole.len() + room + fraction.len(), fraction.len());
            let negative = negative && format!("{whole}{fraction}").bytes().any(|digit| digit != b'0');
            let digits = format!("{whole:0>width$}", width = precision - scale);
            let mut groups = vec![&digits[..digits.len() % 9]];
            groups.extend(digits.as_bytes()[digits.len() % 9..].chunks(9).map(|group| std::str::from_utf8(group).unwrap()));
            groups.extend(fraction.as_bytes().chunks(9).map(|group| std::str::from_utf8(group).unwrap()));
            let mut bytes: Vec<u8> = Vec::new();
            for group in groups.into_iter().filter(|group| !group.is_empty()) {
                let number: u32 = group.parse().unwrap();
                bytes.extend(&number.to_be_bytes()[4 - DIGIT_BYTES[group.len()]..]);
            }
            if negative {
                for byte in &mut bytes {
                    *byte = !*byte;
                }
            }
            bytes[0] ^= 0x80;
            let point = if scale > 0 { "." } else { "" };
            let sign = if negative { "-" } else { "" };
            prop_assert_eq!(read(&CellType::Decimal { precision, scale }, &bytes), text(&format!("{sign}{whole}{point}{fraction}")));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), a in 0_usize..70, b in 0_usize..7) {
            for cell in [
                CellType::Int { bytes: b + 1, unsigned: false },
                CellType::Decimal { precision: a, scale: b },
                CellType::Time { decimals: b },
                CellType::DateTime { decimals: b },
                CellType::Timestamp { decimals: b },
                CellType::Text { length_bytes: b, charset: Charset::Utf8 },
                CellType::Bytes { length_bytes: b, size: a },
                CellType::Json { length_bytes: 1 },
                CellType::Date,
            ] {
                let _ = cell.read(&mut Bytes(&bytes));
            }
        }
    }
}
