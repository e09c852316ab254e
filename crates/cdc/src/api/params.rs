//! Path and query parameters.
//!
//! Unknown query keys are ignored and of repeated ones the first counts: TiCDC's client lets keys of one call leak into
//! the next.

use std::collections::BTreeMap;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use metadata_api::model::{CaptureId, ChangefeedName};

use super::error::ApiError;

/// The query keys that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiQuery {
    /// `namespace`, or `keyspace` of newer clients; empty = not given.
    pub namespace: String,
    /// `state`; empty = not given.
    pub state: String,
}

impl ApiQuery {
    fn parse(query: &str) -> Self {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if !value.is_empty() {
                seen.entry(key.into_owned()).or_insert_with(|| value.into_owned());
            }
        }
        let mut take = |key: &str| seen.remove(key);
        Self {
            namespace: take("namespace").or_else(|| take("keyspace")).unwrap_or_default(),
            state: take("state").unwrap_or_default(),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ApiQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

/// A changefeed named by path and query.
pub struct NamedChangefeed(pub ChangefeedName);

impl<S: Send + Sync> FromRequestParts<S> for NamedChangefeed {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = ApiQuery::from_request_parts(parts, state).await?;
        let id = path_part(parts, state, "id").await?;
        Ok(Self(ChangefeedName::new(&query.namespace, &id)?))
    }
}

/// A capture named by path.
pub struct NamedCapture(pub CaptureId);

impl<S: Send + Sync> FromRequestParts<S> for NamedCapture {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = path_part(parts, state, "capture_id").await?;
        parse_capture(&id).map(Self)
    }
}

/// A capture's id. One that is no UUID cannot be a capture's, so the answer is the same as for a strange one.
///
/// # Errors
/// 400 `ErrCaptureNotExist`.
pub fn parse_capture(id: &str) -> Result<CaptureId, ApiError> {
    id.parse().map_err(|_| ApiError::capture_not_exist(id.escape_debug()))
}

async fn path_part<S: Send + Sync>(parts: &mut Parts, state: &S, key: &str) -> Result<String, ApiError> {
    let Path(mut found) = Path::<BTreeMap<String, String>>::from_request_parts(parts, state)
        .await
        .map_err(|rejection| ApiError::invalid_field("path", rejection.body_text()))?;
    Ok(found.remove(key).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_generations_of_keys_are_read_and_the_rest_is_ignored() {
        for (query, namespace, state) in [
            ("", "", ""),
            ("namespace=a&state=all", "a", "all"),
            ("keyspace=b", "b", ""),
            ("namespace=&keyspace=b", "b", ""),
            ("namespace=a&namespace=c&x=1&x=2", "a", ""),
            ("state=%20&namespace=%C3%A9", "é", " "),
        ] {
            let found = ApiQuery::parse(query);
            assert_eq!((found.namespace.as_str(), found.state.as_str()), (namespace, state), "{query}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in ".{0,80}") {
            let _ = ApiQuery::parse(&query);
        }
    }
}
