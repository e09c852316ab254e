//! Error answers, and the one place where store errors become HTTP.
//!
//! The body is TiCDC's: `{"error_msg": "[CDC:Code]text", "error_code": "CDC:Code"}`. Its `cdc cli` prints `error_msg`
//! and looks for codes in it, so the `[CDC:...]` prefix is part of the contract.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use capture_runtime::task::TaskError;
use metadata_api::MetadataError;
use metadata_api::model::ChangefeedName;
use serde::{Deserialize, Serialize};

/// TiCDC's error codes that we answer, and those of our own.
pub mod code {
    /// No such changefeed.
    pub const CHANGEFEED_NOT_EXISTS: &str = "CDC:ErrChangeFeedNotExists";
    /// The name is taken.
    pub const CHANGEFEED_ALREADY_EXISTS: &str = "CDC:ErrChangeFeedAlreadyExists";
    /// It was removed, and its owner has not stopped in time.
    pub const DELETION_UNFINISHED: &str = "CDC:ErrChangeFeedDeletionUnfinished";
    /// A parameter is wrong.
    pub const INVALID_PARAM: &str = "CDC:ErrAPIInvalidParam";
    /// The changefeed's state forbids it.
    pub const UPDATE_REFUSED: &str = "CDC:ErrChangefeedUpdateRefused";
    /// The sink URI is wrong.
    pub const SINK_URI_INVALID: &str = "CDC:ErrSinkURIInvalid";
    /// The target is not after the start.
    pub const TARGET_BEFORE_START: &str = "CDC:ErrTargetTsBeforeStartTs";
    /// No such capture.
    pub const CAPTURE_NOT_EXIST: &str = "CDC:ErrCaptureNotExist";
    /// A drain was refused.
    pub const SCHEDULER_REQUEST_FAILED: &str = "CDC:ErrSchedulerRequestFailed";
    /// The capture is not registered, or its heartbeats do not get through.
    pub const NOT_READY: &str = "CDC:ErrServerIsNotReady";
    /// There is no controller, or the metadata cannot be read.
    pub const UNHEALTHY: &str = "CDC:ErrClusterIsUnhealthy";
    /// Nobody is known to be controller.
    pub const OWNER_NOT_FOUND: &str = "CDC:ErrOwnerNotFound";
    /// A role ended meanwhile.
    pub const NOT_OWNER: &str = "CDC:ErrNotOwner";
    /// Ours: the database does not answer. Nothing was changed.
    pub const METADATA_UNAVAILABLE: &str = "CDC:ErrMetadataUnavailable";
    /// Ours: the database's answer was lost. It may or may not have been changed.
    pub const METADATA_OUTCOME_UNKNOWN: &str = "CDC:ErrMetadataOutcomeUnknown";
    /// Anything else.
    pub const INTERNAL: &str = "CDC:ErrInternalServerError";
    /// The request comes from a web page of another origin.
    pub const UNAUTHORIZED: &str = "CDC:ErrUnauthorized";
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The code, as in `CDC:ErrChangeFeedNotExists`.
    pub code: String,
    /// The text after the code. Without secrets.
    pub message: String,
}

/// The body of an error answer. Both members are there always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// `[code]text`.
    #[serde(default)]
    pub error_msg: String,
    /// The code.
    #[serde(default)]
    pub error_code: String,
}

impl ApiError {
    /// Any error.
    pub fn new(status: StatusCode, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into() }
    }

    /// 400: a parameter is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::INVALID_PARAM, message)
    }

    /// 400: a parameter is wrong, by name.
    pub fn invalid_field(field: &str, reason: impl std::fmt::Display) -> Self {
        Self::invalid(format!("invalid api parameter: invalid {field}: {reason}"))
    }

    /// 400: the sink URI is wrong.
    pub fn sink_uri(reason: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::SINK_URI_INVALID, format!("sink uri invalid '{reason}'"))
    }

    /// 400: the changefeed's state forbids it.
    pub fn refused(reason: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::UPDATE_REFUSED, format!("changefeed update error: {reason}"))
    }

    /// 400: no such changefeed.
    pub fn changefeed_not_exists(name: &ChangefeedName) -> Self {
        let message = format!("changefeed not exists, {name}");
        Self::new(StatusCode::BAD_REQUEST, code::CHANGEFEED_NOT_EXISTS, message)
    }

    /// 400: the name is taken.
    pub fn changefeed_already_exists(name: &ChangefeedName) -> Self {
        let message = format!("changefeed already exists, {name}");
        Self::new(StatusCode::BAD_REQUEST, code::CHANGEFEED_ALREADY_EXISTS, message)
    }

    /// 400: no such capture.
    pub fn capture_not_exist(capture: impl std::fmt::Display) -> Self {
        let message = format!("capture not exists, {capture}");
        Self::new(StatusCode::BAD_REQUEST, code::CAPTURE_NOT_EXIST, message)
    }

    /// 500: anything that is nobody's fault but ours.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let message = format!("internal server error: {message}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, message)
    }

    /// The answer to a store's error. `subject` is the changefeed that the request names, if it names one.
    pub fn from_metadata(error: &MetadataError, subject: Option<&ChangefeedName>) -> Self {
        match (error, subject) {
            (MetadataError::NotFound { .. }, Some(name)) => Self::changefeed_not_exists(name),
            (MetadataError::NotFound { what }, None) => {
                Self::invalid(format!("invalid api parameter: {what} does not exist"))
            }
            (MetadataError::AlreadyExists { .. }, Some(name)) => Self::changefeed_already_exists(name),
            (MetadataError::AlreadyExists { what }, None) => {
                let message = format!("{what} already exists");
                Self::new(StatusCode::BAD_REQUEST, code::CHANGEFEED_ALREADY_EXISTS, message)
            }
            (MetadataError::InvalidArgument { field: "sink_uri", reason }, _) => Self::sink_uri(reason),
            (MetadataError::InvalidArgument { field, reason }, _) => Self::invalid_field(field, reason),
            (MetadataError::InvalidTransition { .. }, _) => Self::refused(error),
            (MetadataError::Conflict { what }, _) => Self::refused(format!(
                "{what}: somebody else changed it at the same time, and nothing was changed by this request; read it \
                 again and repeat"
            )),
            (MetadataError::NoController, _) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, code::OWNER_NOT_FOUND, "owner not found")
            }
            (MetadataError::Fenced { what }, _) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                code::NOT_OWNER,
                format!("this capture is not a owner: {what}"),
            ),
            (MetadataError::Unavailable { .. }, _) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                code::METADATA_UNAVAILABLE,
                format!("nothing was changed: {error}"),
            ),
            (MetadataError::Unknown { .. }, _) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                code::METADATA_OUTCOME_UNKNOWN,
                format!("the change may or may not have been made, look before repeating: {error}"),
            ),
            // `Corrupt`, `Schema`, `Unsupported`, and what is added later.
            _ => Self::internal(error),
        }
    }

    /// For `map_err` in a handler that is about one changefeed.
    pub fn about(name: &ChangefeedName) -> impl Fn(MetadataError) -> Self + '_ {
        move |error| Self::from_metadata(&error, Some(name))
    }

    /// `[code]text`, as the CLI prints it.
    pub fn error_msg(&self) -> String {
        format!("[{}]{}", self.code, self.message)
    }
}

impl From<MetadataError> for ApiError {
    fn from(error: MetadataError) -> Self {
        Self::from_metadata(&error, None)
    }
}

/// A request that the source or sink refused, or that could not be checked because they do not answer: the
/// request names them, so it is the request that is wrong.
impl From<TaskError> for ApiError {
    fn from(error: TaskError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.code, error.message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        // Whoever is not ready has said so in the log already, and probes ask again and again.
        if self.status.is_server_error() && self.code != code::NOT_READY {
            tracing::warn!(status = self.status.as_u16(), error = %self.error_msg(), "a request failed");
        }
        let body = ErrorBody { error_msg: self.error_msg(), error_code: self.code };
        let mut response = (self.status, super::body::pretty(&body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ChangefeedName {
        ChangefeedName::new("", "test").unwrap()
    }

    #[tokio::test]
    async fn the_body_is_the_contracts() {
        let response = ApiError::changefeed_not_exists(&name()).into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8");
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let literal = r#"{
    "error_msg": "[CDC:ErrChangeFeedNotExists]changefeed not exists, default/test",
    "error_code": "CDC:ErrChangeFeedNotExists"
}"#;
        assert_eq!(std::str::from_utf8(&body).unwrap(), literal);
    }

    #[test]
    fn each_store_error_has_its_status_and_code() {
        let name = name();
        let unavailable = || MetadataError::Unavailable { transaction: "t", source: "gone".into() };
        let unknown = || MetadataError::Unknown { transaction: "t", source: "gone".into() };
        for (error, status, code, text) in [
            (
                MetadataError::not_found("x"),
                400,
                code::CHANGEFEED_NOT_EXISTS,
                "changefeed not exists, default/test",
            ),
            (
                MetadataError::already_exists("x"),
                400,
                code::CHANGEFEED_ALREADY_EXISTS,
                "already exists, default/test",
            ),
            (
                MetadataError::transition("x", "failed", "stopped"),
                400,
                code::UPDATE_REFUSED,
                "from failed to stopped",
            ),
            (MetadataError::conflict("x"), 400, code::UPDATE_REFUSED, "read it again"),
            (MetadataError::invalid("sink_uri", "no"), 400, code::SINK_URI_INVALID, "sink uri invalid 'no'"),
            (
                MetadataError::invalid("changefeed_id", "no"),
                400,
                code::INVALID_PARAM,
                "invalid changefeed_id: no",
            ),
            (MetadataError::fenced("x"), 500, code::NOT_OWNER, "x"),
            (MetadataError::NoController, 503, code::OWNER_NOT_FOUND, "owner not found"),
            (unavailable(), 503, code::METADATA_UNAVAILABLE, "nothing was changed"),
            (unknown(), 500, code::METADATA_OUTCOME_UNKNOWN, "may or may not"),
            (MetadataError::schema("newer"), 500, code::INTERNAL, "newer"),
            (MetadataError::corrupt("t", 1, "c", "bad"), 500, code::INTERNAL, "column c"),
        ] {
            let answer = ApiError::from_metadata(&error, Some(&name));
            assert_eq!((answer.status.as_u16(), answer.code.as_str()), (status, code), "{error}");
            assert!(answer.error_msg().starts_with(&format!("[{code}]")), "{answer:?}");
            assert!(answer.message.contains(text), "{answer:?}");
        }
    }
}
