//! Reading bodies and writing answers.
//!
//! A body is read as bytes and parsed as JSON whatever its `Content-Type` says: TiCDC never looks at it, and the
//! recipe that users copy sends form data. An empty body stands for `{}`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{ApiError, code};

/// The longest body that is read.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// A JSON object in a request's body.
pub struct ApiBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for ApiBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // The router's `DefaultBodyLimit` is in force here.
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    code::INVALID_PARAM,
                    format!("invalid api parameter: the body is longer than {MAX_BODY_BYTES} bytes"),
                )
            } else {
                ApiError::invalid("invalid api parameter: the body could not be read")
            }
        })?;
        parse(&bytes).map(Self)
    }
}

/// Parses a body. Errors name the member, line and column, and what was expected there; never the value, which may
/// be a secret in the wrong place.
///
/// # Errors
/// 400.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => b"{}",
        Some(b'{') => bytes,
        Some(_) => {
            return Err(ApiError::invalid("invalid api parameter: the body must be a JSON object"));
        }
    };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { format!(" in `{}`", path.escape_debug()) };
        bad_json(error.inner(), &path)
    })?;
    reader.end().map_err(|error| bad_json(&error, ""))?;
    Ok(value)
}

fn bad_json(error: &serde_json::Error, path: &str) -> ApiError {
    let text = error.to_string();
    // "invalid type: string "hunter2", expected u64 at line 1 column 9": only what follows the value.
    let reason = match error.classify() {
        serde_json::error::Category::Data => match text.rsplit_once(", expected ") {
            Some((_, expected)) => format!("expected {expected}"),
            None => text,
        },
        _ => text,
    };
    ApiError::invalid(format!("invalid api parameter: malformed JSON{path}: {reason}"))
}

/// A 200 answer in JSON.
pub fn ok<T: Serialize>(value: T) -> Response {
    answer(StatusCode::OK, value)
}

/// `{}`, for calls whose client reads the status only.
pub fn done() -> Response {
    ok(serde_json::Map::new())
}

/// An answer in JSON with any status.
pub fn answer<T: Serialize>(status: StatusCode, value: T) -> Response {
    let mut response = (status, Json(value)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// JSON with four blanks of indentation, as TiCDC writes its errors.
pub fn pretty<T: Serialize>(value: &T) -> Response {
    let mut bytes = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    match value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, format)) {
        Ok(()) => ([(header::CONTENT_TYPE, JSON)], bytes).into_response(),
        Err(error) => ApiError::internal(error).into_response(),
    }
}

/// Reads `null` as the default, for every member: Go writes `null` for nil slices and pointers.
pub fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    use serde::Deserialize;
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Body {
        #[serde(deserialize_with = "null_is_default")]
        start_ts: u64,
        #[serde(deserialize_with = "null_is_default")]
        name: String,
    }

    #[test]
    fn null_empty_and_unknown_members_are_accepted() {
        for text in ["", " \n", "{}", r#"{"start_ts":null,"x":[1]}"#] {
            assert_eq!(parse::<Body>(text.as_bytes()).unwrap(), Body::default(), "{text}");
        }
        let max = parse::<Body>(br#"{"start_ts":18446744073709551615}"#).unwrap();
        assert_eq!(max.start_ts, u64::MAX);
    }

    #[test]
    fn an_error_names_the_member_and_the_place_but_not_the_value() {
        for (text, wanted) in [
            (r#"{"start_ts":"hunter2"}"#, "in `start_ts`: expected u64 at line 1 column 21"),
            (r#"{"start_ts":"a, expected hunter2"}"#, "expected u64"),
            (r#"{"start_ts":-1}"#, "in `start_ts`"),
            (r#"{"start_ts":1.5}"#, "in `start_ts`"),
            (r#"{"name":{}}"#, "in `name`: expected a string"),
            ("{\n \"name\": }", "at line 2 column"),
            (r#"{"name":"hunter2"#, "EOF"),
            (r"{} {}", "trailing characters"),
            (r#"["hunter2"]"#, "must be a JSON object"),
            ("hunter2", "must be a JSON object"),
            ("name=hunter2", "must be a JSON object"),
        ] {
            let error = parse::<Body>(text.as_bytes()).unwrap_err();
            assert_eq!(error.code, code::INVALID_PARAM);
            assert!(error.message.contains(wanted), "{text}: {error:?}");
            assert!(!error.message.contains("hunter2"), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Err(error) = parse::<Body>(&bytes) {
                prop_assert_eq!(error.status, StatusCode::BAD_REQUEST);
            }
        }
    }
}
