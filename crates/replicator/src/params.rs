//! Parameters of upstream and sink URIs, with errors that say which one and what would be right.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use capture_runtime::task::TaskError;
use metadata_api::model::SecretUri;
use url::Url;

/// Which URI an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UriField {
    Upstream,
    Sink,
}

impl UriField {
    /// A refusal of the whole URI; `reason` says what would be right, without secrets.
    pub(crate) fn invalid(self, uri: &SecretUri, reason: impl Display) -> TaskError {
        match self {
            Self::Upstream => TaskError::fatal(
                "CDC:ErrAPIInvalidParam",
                format!("invalid api parameter: upstream_uri '{uri}': {reason}"),
            ),
            Self::Sink => TaskError::fatal(
                "CDC:ErrSinkURIInvalid",
                format!("sink uri invalid '{uri}': sink_uri: {reason}"),
            ),
        }
    }
}

/// The parts of a URI.
pub(crate) struct Params<'a> {
    field: UriField,
    uri: &'a SecretUri,
    url: Url,
    given: BTreeMap<String, String>,
}

impl<'a> Params<'a> {
    /// Takes a URI apart; refuses parameters that are not `known` and those given twice.
    pub(crate) fn parse(field: UriField, uri: &'a SecretUri, known: &[&str]) -> Result<Self, TaskError> {
        let url = Url::parse(uri.expose())
            .map_err(|error| field.invalid(uri, format_args!("it is not a URI: {error}")))?;
        let mut given = BTreeMap::new();
        for (key, value) in url.query_pairs() {
            if !known.contains(&key.as_ref()) {
                let known = if known.is_empty() {
                    "there are none for this scheme".to_owned()
                } else {
                    format!("known are {}", known.join(", "))
                };
                return Err(field
                    .invalid(uri, format_args!("parameter `{}` is unknown; {known}", key.escape_debug())));
            }
            if given.insert(key.to_string(), value.into_owned()).is_some() {
                return Err(field.invalid(uri, format_args!("parameter `{key}` is given twice")));
            }
        }
        Ok(Self { field, uri, url, given })
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.given.get(key).map(String::as_str)
    }

    /// A number within `range`, or `default`.
    pub(crate) fn number<T>(
        &self,
        key: &str,
        default: T,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<T, TaskError>
    where
        T: FromStr + PartialOrd + Display,
    {
        let Some(text) = self.get(key) else { return Ok(default) };
        text.parse::<T>().ok().filter(|number| range.contains(number)).ok_or_else(|| {
            self.invalid(format_args!(
                "parameter `{key}` is `{}`; it must be a whole number from {} to {}",
                text.escape_debug(),
                range.start(),
                range.end()
            ))
        })
    }

    /// Refuses a host, a user, and a path.
    pub(crate) fn no_place(&self, remedy: &str) -> Result<(), TaskError> {
        let host = self.url.host_str().unwrap_or_default();
        let path = self.url.path().trim_matches('/');
        if host.is_empty() && path.is_empty() && self.url.username().is_empty() {
            Ok(())
        } else {
            Err(self.invalid(remedy))
        }
    }

    /// A refusal of the whole URI.
    pub(crate) fn invalid(&self, reason: impl Display) -> TaskError {
        self.field.invalid(self.uri, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> SecretUri {
        SecretUri::parse("sink_uri", text).unwrap()
    }

    #[test]
    fn refusals_name_the_field_the_value_and_the_remedy_but_no_secret() {
        let cases = [
            ("file:///d?color=red", vec!["`color` is unknown", "known are size, password"]),
            ("file:///d?size=1&size=2", vec!["`size` is given twice"]),
            ("file:///d?size=many&password=hunter2", vec!["`size` is `many`", "from 1 to 9"]),
            ("file:///d?size=10", vec!["`size` is `10`"]),
        ];
        for (text, wanted) in cases {
            let uri = uri(text);
            let error = Params::parse(UriField::Sink, &uri, &["size", "password"])
                .and_then(|params| params.number("size", 5_u32, 1..=9))
                .unwrap_err();
            assert_eq!(error.code, "CDC:ErrSinkURIInvalid");
            assert!(!error.retryable);
            let shown = error.to_string();
            assert!(!shown.contains("hunter2"), "{shown}");
            for part in wanted {
                assert!(shown.contains(part), "{shown} lacks {part}");
            }
        }
    }
}
