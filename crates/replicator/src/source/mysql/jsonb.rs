//! The server's binary JSON, as the text that the server itself makes of it.
//!
//! Format: `sql-common/json_binary.h` of `MySQL`. A container has its count and size, then entries of keys, then of
//! values, then what these point at; numbers are two bytes in a small one and four in a large one. Objects keep
//! the server's order of keys, numbers their kind: `1` and `1.0` stay different.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::bytes::{Bytes, Malformed, Read};
use super::cells;

/// The server refuses documents that are deeper than 100.
const DEEPEST: usize = 110;

/// The text of a column's value.
pub(super) fn text(bytes: &[u8]) -> Read<String> {
    // Zero bytes: what `INSERT IGNORE` puts where a value is missing.
    let Some((kind, data)) = bytes.split_first() else { return Ok("null".to_owned()) };
    let mut out = String::with_capacity(bytes.len() + bytes.len() / 2);
    // Damaged ones may point at the same place many times, at each depth.
    let longest = bytes.len().saturating_mul(16).saturating_add(4096);
    value(*kind, data, (0, longest), &mut out)?;
    Ok(out)
}

/// `limits`: how deep we are, and how long the text may become.
fn value(kind: u8, data: &[u8], limits: (usize, usize), out: &mut String) -> Read<()> {
    let mut from = Bytes(data);
    match kind {
        0x00 | 0x01 => container(data, 2 + 2 * usize::from(kind), true, limits, out)?,
        0x02 | 0x03 => container(data, 2 * usize::from(kind) - 2, false, limits, out)?,
        0x04 => out.push_str(match from.byte()? {
            0 => "null",
            1 => "true",
            2 => "false",
            other => return Err(Malformed(format!("JSON literal {other}"))),
        }),
        0x05 => push(out, (from.little(2)? << 48).cast_signed() >> 48),
        0x06 => push(out, from.little(2)?),
        0x07 => push(out, (from.little(4)? << 32).cast_signed() >> 32),
        0x08 => push(out, from.little(4)?),
        0x09 => push(out, from.little(8)?.cast_signed()),
        0x0A => push(out, from.little(8)?),
        0x0B => push_double(out, f64::from_bits(from.little(8)?)),
        0x0C => push_string(out, utf8(varied(&mut from)?)?),
        0x0F => opaque(&mut from, out)?,
        other => return Err(Malformed(format!("JSON type {other}"))),
    }
    Ok(())
}

/// An object or an array whose numbers are `width` bytes.
fn container(
    data: &[u8],
    width: usize,
    object: bool,
    (depth, longest): (usize, usize),
    out: &mut String,
) -> Read<()> {
    if depth > DEEPEST {
        return Err(Malformed::new("JSON is too deep"));
    }
    let mut from = Bytes(data);
    let count = index(from.little(width)?);
    from.little(width)?;
    let mut keys = Bytes(from.take(if object { count.saturating_mul(width + 2) } else { 0 })?);
    let mut values = from;
    // What is pointed at lies behind the entries: so nothing contains itself.
    let header = 2 * width + count.saturating_mul(1 + width + if object { width + 2 } else { 0 });
    let at = |offset: u64| {
        let offset = index(offset);
        data.get(offset..)
            .filter(|_| offset >= header)
            .ok_or_else(|| Malformed::new("a JSON offset is out of range"))
    };
    out.push(if object { '{' } else { '[' });
    for number in 0..count {
        // Each value, however small, is a character at least.
        if out.len() > longest {
            return Err(Malformed::new("JSON is longer than what it is stored in"));
        }
        if number > 0 {
            out.push_str(", ");
        }
        if object {
            let (offset, length) = (keys.little(width)?, index(keys.little(2)?));
            push_string(out, utf8(Bytes(at(offset)?).take(length)?)?);
            out.push_str(": ");
        }
        let kind = values.byte()?;
        let entry = values.take(width)?;
        let inlined = matches!(kind, 0x04..=0x06) || width == 4 && matches!(kind, 0x07 | 0x08);
        if inlined {
            value(kind, entry, (depth + 1, longest), out)?;
        } else {
            value(kind, at(Bytes(entry).little(width)?)?, (depth + 1, longest), out)?;
        }
    }
    out.push(if object { '}' } else { ']' });
    Ok(())
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn utf8(bytes: &[u8]) -> Read<&str> {
    std::str::from_utf8(bytes).map_err(|error| Malformed(format!("JSON is not UTF-8: {error}")))
}

/// What comes after a length of seven bits a byte.
fn varied<'a>(from: &mut Bytes<'a>) -> Read<&'a [u8]> {
    let mut length = 0_usize;
    for shift in [0, 7, 14, 21, 28] {
        let byte = from.byte()?;
        length |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return from.take(length);
        }
    }
    Err(Malformed::new("a JSON length is too long"))
}

/// A value of an SQL type that JSON does not have.
fn opaque(from: &mut Bytes<'_>, out: &mut String) -> Read<()> {
    const TIMESTAMP: u8 = 7;
    const DATE: u8 = 10;
    const TIME: u8 = 11;
    const DATETIME: u8 = 12;
    const DECIMAL: u8 = 246;
    let kind = from.byte()?;
    let mut data = Bytes(varied(from)?);
    let mut packed = || data.little(8).map(u64::cast_signed);
    match kind {
        DECIMAL => {
            let (precision, scale) = (data.byte()?, data.byte()?);
            out.push_str(&cells::decimal(&mut data, precision.into(), scale.into())?);
        }
        TIME => push_string(out, &cells::json_time(packed()?)),
        DATE => push_string(out, &cells::json_date(packed()?)),
        DATETIME | TIMESTAMP => push_string(out, &cells::json_datetime(packed()?)),
        _ => {
            // The server breaks its base64 into lines.
            let encoded = BASE64_STANDARD.encode(data.0);
            let lines: Vec<&str> =
                encoded.as_bytes().chunks(76).filter_map(|line| std::str::from_utf8(line).ok()).collect();
            push_string(out, &format!("base64:type{kind}:{}", lines.join("\n")));
        }
    }
    Ok(())
}

fn push(out: &mut String, number: impl std::fmt::Display) {
    out.push_str(&number.to_string());
}

/// As `my_gcvt` does: the shortest digits; with an exponent when there are more than 15 places before or after.
fn push_double(out: &mut String, number: f64) {
    let shown = format!("{number:e}");
    let Some((mantissa, exponent)) = shown.split_once('e') else {
        // Not a number, or infinite: JSON has neither.
        return out.push_str("null");
    };
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits = mantissa.replace('.', "");
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let (point, length) = (exponent + 1, i32::try_from(digits.len()).unwrap_or(i32::MAX));
    out.push_str(sign);
    if number == 0.0 {
        out.push_str("0.0");
    } else if point < -14 || point > 15 && length <= point {
        out.push_str(mantissa);
        push(out, format_args!("e{exponent}"));
    } else if point <= 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', usize::try_from(-point).unwrap_or_default()));
        out.push_str(&digits);
    } else if length <= point {
        out.push_str(&digits);
        out.extend(std::iter::repeat_n('0', usize::try_from(point - length).unwrap_or_default()));
        out.push_str(".0");
    } else {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or_default());
        out.push_str(whole);
        out.push('.');
        out.push_str(fraction);
    }
}

/// A JSON string, escaped as the server does.
fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..' ' => push(out, format_args!("\\u{:04x}", u32::from(c))),
            _ => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_as_the_server_writes_them() {
        for (number, wanted) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-1.5, "-1.5"),
            (0.001, "0.001"),
            (1e15, "1e15"),
            (1e14, "100000000000000.0"),
            (1.5e-20, "1.5e-20"),
            (1.797_693_134_862_315_7e308, "1.7976931348623157e308"),
            (123_456_789_012_345_680.0, "1.2345678901234568e17"),
            (0.1, "0.1"),
        ] {
            let mut out = String::new();
            push_double(&mut out, number);
            assert_eq!(out, wanted);
        }
    }

    #[test]
    fn shared_children_do_not_blow_up() {
        // Arrays of 40 pointers, all to the array behind: 40^5 values.
        let mut bytes = vec![0x02];
        for _ in 0..5 {
            let size = 4 + 40 * 3_u16;
            bytes.extend([40, 0]);
            bytes.extend(size.to_le_bytes());
            for _ in 0..40 {
                bytes.push(0x02);
                bytes.extend(size.to_le_bytes());
            }
        }
        bytes.extend([0, 0, 4, 0]);
        let error = text(&bytes).unwrap_err().to_string();
        assert!(error.contains("longer"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = text(&bytes);
        }

        #[test]
        fn doubles_come_back(number in any::<f64>().prop_filter("JSON has no others", |number| number.is_finite())) {
            let mut out = String::new();
            push_double(&mut out, number);
            prop_assert_eq!(out.parse::<f64>().unwrap().to_bits(), number.to_bits());
        }
    }
}
