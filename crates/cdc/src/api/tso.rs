//! What TiCDC's `cdc cli changefeed create` asks before it creates.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::body::{self, ApiBody, null_is_default};
use super::error::ApiError;
use super::model::{Tables, Tso};
use super::{Api, changefeed_create};

/// `POST /api/v2/tso`: now. Sources have no common clock here, so this host's is the answer.
pub async fn tso(State(api): State<Api>, ApiBody(_): ApiBody<Map<String, Value>>) -> Response {
    body::ok(Tso { timestamp: api.clock.wall().timestamp_millis(), logic_time: 0 })
}

/// The body of `POST /verify_table`, what of it is checked.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct VerifyTableConfig {
    #[serde(deserialize_with = "null_is_default")]
    start_ts: u64,
    #[serde(deserialize_with = "null_is_default")]
    sink_uri: String,
    replica_config: Option<Map<String, Value>>,
}

/// `POST /api/v2/verify_table`. Which tables there are is the source's to say when the changefeed runs, and a table
/// without a key is replicated too, so none is ever named here; start and sink are checked.
pub async fn verify_table(
    State(api): State<Api>,
    ApiBody(asked): ApiBody<VerifyTableConfig>,
) -> Result<Response, ApiError> {
    changefeed_create::check_start(&api, asked.start_ts)?;
    // Of these two only the shape and the spelling are checked; create asks source and sink.
    drop(asked.replica_config);
    if !asked.sink_uri.is_empty() {
        super::mask::uri_from_request("sink_uri", &asked.sink_uri, None)?;
    }
    Ok(body::ok(Tables::default()))
}
