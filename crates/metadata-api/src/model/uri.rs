//! URIs that may carry a password.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::{MetadataError, Result};

/// What stands in place of a secret in everything that is shown (TiCDC's mask).
pub const MASK: &str = "xxxxx";

/// Query keys whose values are secrets, compared without case and with `_` read as `-`.
const SECRET_KEYS: [&str; 13] = [
    "password",
    "passwd",
    "pwd",
    "secret",
    "token",
    "access-key",
    "access-token",
    "secret-access-key",
    "session-token",
    "sasl-password",
    "sasl-gssapi-password",
    "sasl-oauth-client-secret",
    "authentication-token",
];

/// A URI of an upstream or a sink. It may carry a password, so `Debug` and `Display` show it masked; the
/// whole text comes only from [`SecretUri::expose`].
#[derive(Clone)]
pub struct SecretUri {
    whole: SecretString,
    masked: String,
    scheme: String,
}

impl SecretUri {
    /// Parses `text`; `field` is what the error calls it.
    ///
    /// # Errors
    /// [`MetadataError::InvalidArgument`] when `text` is not an absolute URI. The text itself is not
    /// repeated in the error, since what does not parse cannot be masked.
    pub fn parse(field: &'static str, text: &str) -> Result<Self> {
        let url = Url::parse(text).map_err(|error| {
            MetadataError::invalid(
                field,
                format!("it is not a URI of the form scheme://[user:password@]host[:port]/path: {error}"),
            )
        })?;
        Ok(Self {
            masked: mask(&url),
            scheme: url.scheme().to_owned(),
            whole: SecretString::from(text.to_owned()),
        })
    }

    /// The whole text, secrets included, exactly as it was given.
    pub fn expose(&self) -> &str {
        self.whole.expose_secret()
    }

    /// The text with each secret replaced by [`MASK`]; fit for people.
    pub fn masked(&self) -> &str {
        &self.masked
    }

    /// The scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Whether a secret was masked.
    pub fn has_secret(&self) -> bool {
        self.masked.contains(MASK)
    }

    /// What an update means: where `self` shows [`MASK`] in place of a secret that `current` has, the secret is
    /// unchanged. `cdc cli changefeed update` reads the masked URI and writes it back.
    #[must_use]
    pub fn or_unmasked_from(self, current: &Self) -> Self {
        if self.expose() == current.masked() { current.clone() } else { self }
    }
}

fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace('_', "-");
    SECRET_KEYS.contains(&key.as_str())
}

fn mask(url: &Url) -> String {
    let mut shown = url.clone();
    // `set_password` refuses only URLs without a host, which cannot have a password.
    if shown.password().is_some() {
        let _ = shown.set_password(Some(MASK));
    }
    if url.query_pairs().any(|(key, _)| is_secret_key(&key)) {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(key, value)| {
                let value = if is_secret_key(&key) { MASK.to_owned() } else { value.into_owned() };
                (key.into_owned(), value)
            })
            .collect();
        shown.query_pairs_mut().clear().extend_pairs(pairs);
    }
    shown.to_string()
}

impl fmt::Debug for SecretUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretUri({})", self.masked)
    }
}

impl fmt::Display for SecretUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked)
    }
}

impl PartialEq for SecretUri {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for SecretUri {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_masked_wherever_a_uri_keeps_them() {
        for text in [
            "mysql://u:hunter2@h:3306/db",
            "kafka://h/t?sasl-password=hunter2&a=b",
            "s3://b/p?SECRET_ACCESS_KEY=hunter2",
            "mysql://u:hunter2@h/?token=hunter2",
        ] {
            let uri = SecretUri::parse("sink_uri", text).unwrap();
            for shown in [format!("{uri}"), format!("{uri:?}"), uri.masked().to_owned()] {
                assert!(!shown.contains("hunter2"), "{shown}");
                assert!(shown.contains(MASK), "{shown}");
            }
            assert_eq!(uri.expose(), text);
        }
    }

    #[test]
    fn writing_the_masked_uri_back_keeps_the_secret() {
        let current = SecretUri::parse("sink_uri", "mysql://u:hunter2@h:3306/db").unwrap();
        let back = SecretUri::parse("sink_uri", current.masked()).unwrap();
        assert_eq!(back.or_unmasked_from(&current), current);
        let other = SecretUri::parse("sink_uri", "mysql://u:new@h:3306/db").unwrap();
        assert_eq!(other.clone().or_unmasked_from(&current), other);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_password_is_shown(user in "[a-z]{1,5}", password in "[A-Z]{6,12}", rest in ".{0,20}") {
            let _ = SecretUri::parse("sink_uri", &rest);
            let text = format!("mysql://{user}:{password}@host/{rest}");
            if let Ok(uri) = SecretUri::parse("sink_uri", &text)
                && !rest.contains(&password)
            {
                let shown = format!("{uri:?}");
                prop_assert!(!shown.contains(&password), "{}", shown);
            }
        }
    }
}
