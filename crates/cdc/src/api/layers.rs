//! What happens around every handler.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics::{counter, histogram};

use super::Api;
use super::error::{ApiError, code};

/// 503 until the capture is registered and its heartbeats get through.
pub async fn ready(State(api): State<Api>, request: Request, next: Next) -> Response {
    if api.capture.is_ready() { next.run(request).await } else { not_ready().into_response() }
}

/// The answer of a server that is not ready.
pub fn not_ready() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        code::NOT_READY,
        "cdc server is not ready: its heartbeats do not reach the metadata database (yet)",
    )
}

/// Counts and times requests, by route.
pub async fn measured(State(api): State<Api>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = method_label(request.method());
    let start = api.clock.now();
    let response = next.run(request).await;
    let took = api.clock.now().since(start);
    let status = response.status().as_u16().to_string();
    tracing::debug!(%method, %route, %status, ?took, "request");
    histogram!("cdc_api_request_duration_seconds", "route" => route.clone(), "method" => method).record(took);
    counter!("cdc_api_requests_total", "route" => route, "method" => method, "status" => status).increment(1);
    response
}

/// A client may make up methods; labels are not made up by clients.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// Refuses what a web page of another origin makes a browser send: there is no authentication, and no content type
/// is required, so nothing else would. Programs send no `Origin`.
pub async fn same_origin(request: Request, next: Next) -> Response {
    if is_cross_origin(request.headers()) {
        return ApiError::new(
            StatusCode::FORBIDDEN,
            code::UNAUTHORIZED,
            "a web page of another origin may not use this API (the Origin header does not match Host)",
        )
        .into_response();
    }
    next.run(request).await
}

fn is_cross_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin =
        origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    origin.is_none() || origin != host
}

/// No such route.
pub async fn not_found(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(
        StatusCode::NOT_FOUND,
        code::INVALID_PARAM,
        format!("invalid api parameter: there is no {method} {}", path.escape_debug()),
    )
}

/// The route is there, but not for this method.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        code::INVALID_PARAM,
        format!("invalid api parameter: {} does not take {method}", path.escape_debug()),
    )
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_pages_of_another_origin_are_refused() {
        for (origin, refused) in [
            (None, false),
            (Some("http://127.0.0.1:8300"), false),
            (Some("http://evil.example"), true),
            (Some("http://127.0.0.1:8301"), true),
            (Some("null"), true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:8300"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(is_cross_origin(&headers), refused, "{origin:?}");
        }
    }
}
