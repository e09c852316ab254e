//! Text in the character sets of `MySQL`, as UTF-8.
//!
//! Sets of one byte a character: the server is asked for all 256. Of the others only those whose mapping agrees
//! with the server's (a test asks for every code): `gb18030`, `gb2312`, `big5`, `sjis`, `ujis` and `eucjpms` differ from the
//! WHATWG encodings of the same names. Of what is left out a value that is not NULL is an error that names the set,
//! never mojibake.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use encoding_rs::Encoding;

use super::bytes::{Malformed, Read};

/// How a text column's bytes become UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Charset {
    /// Not text.
    Binary,
    /// `utf8mb4`, `utf8mb3`, `ascii`.
    Utf8,
    /// One byte a character: the character of each byte, if it has one.
    Single(Arc<[Option<char>]>),
    /// One that `encoding_rs` knows as the server does.
    Known(&'static Encoding),
    /// `ucs2`, `utf16`.
    Utf16Big,
    /// `utf16le`.
    Utf16Little,
    /// `utf32`.
    Utf32,
    /// Another; its name.
    Unknown(String),
}

impl Charset {
    /// One byte a character. `all` is what the server makes of the bytes 0 to 255; `?` where there is no character.
    pub(super) fn single(name: &str, all: &str) -> Self {
        let chars: Arc<[Option<char>]> =
            (0_u8..=255).zip(all.chars()).map(|(byte, c)| (c != '?' || byte == b'?').then_some(c)).collect();
        if chars.len() == 256 { Self::Single(chars) } else { Self::Unknown(name.to_owned()) }
    }

    /// The character set of that name, if it is not one byte a character.
    pub(super) fn named(name: &str) -> Self {
        match name {
            "binary" => Self::Binary,
            "utf8mb4" | "utf8mb3" | "utf8" | "ascii" => Self::Utf8,
            "ucs2" | "utf16" => Self::Utf16Big,
            "utf16le" => Self::Utf16Little,
            "utf32" => Self::Utf32,
            "gbk" => Self::Known(encoding_rs::GBK),
            "euckr" => Self::Known(encoding_rs::EUC_KR),
            "cp932" => Self::Known(encoding_rs::SHIFT_JIS),
            other => Self::Unknown(other.to_owned()),
        }
    }

    /// The text that `bytes` are.
    pub(super) fn decode(&self, bytes: &[u8]) -> Read<String> {
        match self {
            Self::Utf8 => std::str::from_utf8(bytes)
                .map(str::to_owned)
                .map_err(|error| Malformed(format!("not UTF-8: {error}"))),
            Self::Single(chars) => bytes
                .iter()
                .map(|byte| chars.get(usize::from(*byte)).copied().flatten())
                .collect::<Option<String>>()
                .ok_or_else(|| Malformed::new("a byte that is no character")),
            Self::Known(encoding) => encoding
                .decode_without_bom_handling_and_without_replacement(bytes)
                .map(Cow::into_owned)
                .ok_or_else(|| Malformed(format!("not valid {}", encoding.name()))),
            Self::Utf16Big => utf16(bytes, u16::from_be_bytes),
            Self::Utf16Little => utf16(bytes, u16::from_le_bytes),
            Self::Utf32 => {
                let (units, rest) = bytes.as_chunks::<4>();
                let text =
                    units.iter().map(|unit| char::from_u32(u32::from_be_bytes(*unit))).collect::<Option<_>>();
                text.filter(|_| rest.is_empty()).ok_or_else(|| Malformed::new("not valid UTF-32"))
            }
            Self::Binary => Err(Malformed::new("it is not text")),
            Self::Unknown(name) => Err(Malformed(format!(
                "character set {name} is not supported; ALTER the column to utf8mb4, or leave the table out by \
                 filter.rules"
            ))),
        }
    }
}

impl Charset {
    /// As [`Self::decode`]; what is no character becomes U+FFFD, and a set that is not known is taken for UTF-8.
    pub(super) fn decode_lossily(&self, bytes: &[u8]) -> String {
        const NONE: char = char::REPLACEMENT_CHARACTER;
        let utf16 = |unit: fn([u8; 2]) -> u16| {
            let units = bytes.as_chunks::<2>().0.iter().map(|bytes| unit(*bytes));
            char::decode_utf16(units).map(|c| c.unwrap_or(NONE)).collect()
        };
        match self {
            Self::Utf8 | Self::Binary | Self::Unknown(_) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Single(chars) => bytes
                .iter()
                .map(|byte| chars.get(usize::from(*byte)).copied().flatten().unwrap_or(NONE))
                .collect(),
            Self::Known(encoding) => encoding.decode_without_bom_handling(bytes).0.into_owned(),
            Self::Utf16Big => utf16(u16::from_be_bytes),
            Self::Utf16Little => utf16(u16::from_le_bytes),
            Self::Utf32 => {
                let units = bytes.as_chunks::<4>().0.iter();
                units.map(|unit| char::from_u32(u32::from_be_bytes(*unit)).unwrap_or(NONE)).collect()
            }
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Read<String> {
    let (units, rest) = bytes.as_chunks::<2>();
    let text = char::decode_utf16(units.iter().map(|bytes| unit(*bytes))).collect::<Result<String, _>>();
    text.ok().filter(|_| rest.is_empty()).ok_or_else(|| Malformed::new("not valid UTF-16"))
}

/// The server's collations: to which character set each number belongs.
#[derive(Clone, Debug, Default)]
pub(super) struct Collations(pub(super) HashMap<u64, Charset>);

impl Collations {
    /// The character set of a collation.
    pub(super) fn charset(&self, collation: u64) -> Charset {
        self.0
            .get(&collation)
            .cloned()
            .unwrap_or_else(|| Charset::Unknown(format!("of collation {collation}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_utf8_or_an_error() {
        for (name, bytes, text) in [
            ("utf8mb4", "grün 🦀".as_bytes(), "grün 🦀"),
            ("gbk", b"\xC4\xE3\xBA\xC3", "你好"),
            ("ucs2", b"\0g\0r\0\xFC\0n", "grün"),
            ("utf16", b"\xD8\x3E\xDD\x80", "🦀"),
            ("utf16le", b"\x3E\xD8\x80\xDD", "🦀"),
            ("utf32", b"\0\x01\xF9\x80", "🦀"),
        ] {
            assert_eq!(Charset::named(name).decode(bytes).as_deref(), Ok(text), "{name}");
        }
        for (name, bytes) in
            [("utf8mb4", &b"\xFF"[..]), ("utf16", b"\0"), ("utf16", b"\xD8\0"), ("utf32", b"\0\x11\0\0")]
        {
            assert!(Charset::named(name).decode(bytes).is_err(), "{name}");
        }
        let all: String =
            (0_u8..=255).map(|byte| if byte == 0x81 { '?' } else { char::from(byte) }).collect();
        let latin = Charset::single("latin9", &all);
        assert_eq!(latin.decode(b"gr\xFCn?").as_deref(), Ok("grün?"));
        assert!(latin.decode(b"\x81").is_err());
        assert_eq!(Charset::single("x", "short"), Charset::Unknown("x".to_owned()));
        let error = Charset::named("hp8").decode(b"a").unwrap_err().to_string();
        assert!(error.contains("hp8") && error.contains("utf8mb4"), "{error}");
    }
}
