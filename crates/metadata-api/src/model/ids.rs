//! Identifiers, epochs and counters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{MetadataError, Result};

/// One incarnation of a capture: a fresh random UUID at every start, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CaptureId(pub Uuid);

impl CaptureId {
    /// A new, never used id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for CaptureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for CaptureId {
    type Err = MetadataError;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::parse_str(text)
            .map(Self)
            .map_err(|_| MetadataError::invalid("capture_id", format!("`{text}` is not a UUID")))
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
    };
}

number! {
    /// A changefeed's key, assigned by the store at creation and never reused. It is the revision of the
    /// transaction that created it.
    ChangefeedUuid
}
number! {
    /// An upstream's key: any 64 bits, chosen by the request or by the store.
    UpstreamId
}
number! {
    /// Grows by one each time a capture becomes controller. 0 = nobody ever was, or nobody is.
    ControllerEpoch
}
number! {
    /// Names one launch order of a changefeed's owner: the revision of the transaction that launched it.
    /// 0 = never launched.
    OwnerEpoch
}
number! {
    /// Names one attachment of a processor: the revision of the transaction that launched it.
    ProcessorEpoch
}
number! {
    /// The cluster-wide order of the changes that others must notice; allocated under the fence row, so
    /// commits are in revision order. About microseconds since 1970, but order never comes from the clock.
    Revision
}
number! {
    /// A row's version for compare-and-set; grows by one with each write of the row. Rows start at 1.
    Version
}

/// A validated identifier: `^[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*$`, at most 128 bytes (TiCDC's rule for changefeed
/// ids and namespaces).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Checks `text`; `field` is what the error calls it.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] when `text` is empty, too long, or has another character than
    /// ASCII letters, digits and single hyphens between them.
    pub fn new(field: &'static str, text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let well_formed =
            text.split('-').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()));
        if text.len() > Self::MAX_LEN {
            return Err(MetadataError::invalid(
                field,
                format!("it has {} bytes; at most {} are allowed", text.len(), Self::MAX_LEN),
            ));
        }
        if !well_formed {
            return Err(MetadataError::invalid(
                field,
                format!(
                    "`{}` must match ^[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*$: letters and digits, with single hyphens between",
                    text.escape_debug()
                ),
            ));
        }
        Ok(Self(text))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new("name", text).map_err(serde::de::Error::custom)
    }
}

/// What people call a changefeed: unique among those that are not removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChangefeedName {
    /// The namespace, `default` unless given.
    pub namespace: Name,
    /// The changefeed's id within it.
    pub id: Name,
}

impl ChangefeedName {
    /// The namespace that is meant when none is given.
    pub const DEFAULT_NAMESPACE: &'static str = "default";

    /// Checks both parts; an empty `namespace` means [`Self::DEFAULT_NAMESPACE`].
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`], field `namespace` or `changefeed_id`.
    pub fn new(namespace: &str, id: &str) -> Result<Self> {
        let namespace = if namespace.is_empty() { Self::DEFAULT_NAMESPACE } else { namespace };
        Ok(Self { namespace: Name::new("namespace", namespace)?, id: Name::new("changefeed_id", id)? })
    }
}

impl fmt::Display for ChangefeedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_exactly_the_documented_pattern(text in "[a-zA-Z0-9_é -]{0,12}") {
            let mut ok = !text.is_empty();
            let mut previous_hyphen = true;
            for c in text.chars() {
                ok &= c.is_ascii_alphanumeric() || (c == '-' && !previous_hyphen);
                previous_hyphen = c == '-';
            }
            ok &= !previous_hyphen;
            prop_assert_eq!(Name::new("changefeed_id", text).is_ok(), ok);
        }
    }

    #[test]
    fn a_name_has_at_most_128_bytes() {
        assert!(Name::new("changefeed_id", "a".repeat(128)).is_ok());
        let error = Name::new("changefeed_id", "a".repeat(129)).unwrap_err().to_string();
        assert!(error.contains("changefeed_id") && error.contains("129"), "{error}");
    }
}
