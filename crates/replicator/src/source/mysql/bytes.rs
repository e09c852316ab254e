//! Reads the parts of an event; never past its end.

/// What was read is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) String);

impl Malformed {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

pub(super) type Read<T> = Result<T, Malformed>;

/// The bytes that are still to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: usize) -> Read<&'a [u8]> {
        let Some((taken, rest)) = self.0.split_at_checked(count) else {
            return Err(Malformed(format!("{count} bytes expected, {} left", self.0.len())));
        };
        self.0 = rest;
        Ok(taken)
    }

    /// A number of `count` bytes, at most 8, the lowest first.
    pub(super) fn little(&mut self, count: usize) -> Read<u64> {
        Ok(self.take(count)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A number of `count` bytes, at most 8, the highest first.
    pub(super) fn big(&mut self, count: usize) -> Read<u64> {
        Ok(self.take(count)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    pub(super) fn byte(&mut self) -> Read<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    /// What comes after a length of `length_bytes` bytes.
    pub(super) fn counted(&mut self, length_bytes: usize) -> Read<&'a [u8]> {
        let length = self.little(length_bytes)?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }
}
