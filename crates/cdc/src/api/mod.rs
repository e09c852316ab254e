//! The HTTP API: TiCDC's, so that its `cdc cli`, `TiUP` and the tools that people have work here too.
//!
//! Every answer comes from the store, so any capture answers any request; nothing is forwarded. What is local is only
//! who this capture is, whether it is ready and whom it sees as controller ([`LocalCapture`]).
//!
//! ```text
//! request -> size limit -> origin check -> metrics -> ready check (/api/*) -> handler -> store | TaskFactory::prepare
//!                                                                               |
//!                     MetadataError, TaskError, bad input -> error::ApiError <--+
//! ```
//!
//! There is no authentication yet: the server binds to the loopback address unless told otherwise. A request that a
//! web page of another origin makes through somebody's browser is refused.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post, put};
use capture_runtime::clock::Clock;
use capture_runtime::task::TaskFactory;
use metadata_api::decision::planner::PlanPolicy;
use metadata_api::model::{SecretUri, Ts};
use metadata_api::store::MetadataStore;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Map, Value};

use crate::local::LocalCapture;

pub mod body;
mod captures;
mod changefeed_create;
mod changefeed_read;
mod changefeed_update;
mod changefeed_word;
pub mod error;
pub mod json_time;
mod layers;
pub mod mask;
pub mod model;
mod params;
mod processors;
mod status;
mod tso;
mod view;
mod wait;

#[cfg(test)]
mod tests;

pub use error::{ApiError, ErrorBody};
pub use json_time::JsonTime;
pub use view::effective_config;

/// What the API works with.
#[derive(Clone)]
pub struct ApiParts {
    /// Where the metadata lies.
    pub store: Arc<dyn MetadataStore>,
    /// Checks what changefeeds are asked to be.
    pub tasks: Arc<dyn TaskFactory>,
    /// Says what time it is.
    pub clock: Arc<dyn Clock>,
    /// The capture of this process.
    pub capture: Arc<dyn LocalCapture>,
    /// How this process would plan, were it the controller.
    pub plan: PlanPolicy,
    /// The cluster's identity, as the server read it when it started.
    pub cluster_id: String,
    /// The upstream of changefeeds that name none.
    pub default_upstream: Option<SecretUri>,
    /// `replica_config` of changefeeds that were given none.
    pub config_defaults: Map<String, Value>,
    /// Renders `/metrics`.
    pub metrics: Option<PrometheusHandle>,
    /// How long requests wait for others.
    pub waits: Waits,
}

/// How long requests wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// DELETE, until the owner has stopped.
    pub removed: Duration,
    /// An update or overwriting resume that follows a pause, until the owner has stopped.
    pub stopped: Duration,
    /// Create and update, until source and sink have answered.
    pub prepare: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            removed: Duration::from_secs(60),
            stopped: Duration::from_secs(10),
            prepare: Duration::from_secs(30),
        }
    }
}

/// How far ahead of this host's clock a client's timestamp may be: clocks of two hosts are never equal.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

impl ApiParts {
    /// Now, as a timestamp. It is not a promise: only a default and a check against nonsense.
    fn now(&self) -> Ts {
        Ts::from_time(self.clock.wall())
    }

    /// The greatest timestamp that is accepted as "not in the future".
    fn latest_ts(&self) -> Ts {
        Ts::from_time(self.clock.wall() + CLOCK_TOLERANCE)
    }
}

impl fmt::Debug for ApiParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiParts").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

/// The handlers' shared state.
pub type Api = Arc<ApiParts>;

/// All routes.
pub fn router(parts: ApiParts) -> Router {
    let api: Api = Arc::new(parts);
    let v2 = Router::new()
        .route("/status", get(status::server_status))
        .route("/health", get(status::health))
        .route("/tso", post(tso::tso))
        .route("/verify_table", post(tso::verify_table))
        .route("/changefeeds", get(changefeed_read::list).post(changefeed_create::create))
        .route(
            "/changefeeds/{id}",
            get(changefeed_read::get).put(changefeed_update::update).delete(changefeed_word::remove),
        )
        .route("/changefeeds/{id}/status", get(changefeed_read::status))
        .route("/changefeeds/{id}/scheduling", get(changefeed_read::scheduling))
        .route("/changefeeds/{id}/synced", get(changefeed_read::synced))
        .route("/changefeeds/{id}/meta_info", get(changefeed_read::get))
        .route("/changefeeds/{id}/pause", post(changefeed_word::pause))
        .route("/changefeeds/{id}/resume", post(changefeed_word::resume))
        .route("/captures", get(captures::list))
        .route("/captures/{capture_id}/drain", post(captures::drain_by_path).put(captures::drain_by_path))
        .route("/owner/resign", post(captures::resign))
        .route("/processors", get(processors::list))
        .route("/processors/{id}/{capture_id}", get(processors::get));
    let v1 = Router::new()
        .route("/status", get(status::server_status))
        .route("/health", get(status::health_v1))
        .route("/captures", get(captures::list_v1))
        .route("/captures/drain", put(captures::drain_by_body))
        .route("/owner/resign", post(captures::resign_v1));
    let served_when_ready = Router::new()
        .nest("/api/v2", v2)
        .nest("/api/v1", v1)
        .route_layer(from_fn_with_state(api.clone(), layers::ready));
    Router::new()
        .merge(served_when_ready)
        .route("/status", get(status::server_status))
        .route("/metrics", get(status::metrics))
        .route("/livez", get(status::livez))
        .route("/readyz", get(status::readyz))
        .fallback(layers::not_found)
        .method_not_allowed_fallback(layers::method_not_allowed)
        .layer(from_fn_with_state(api.clone(), layers::measured))
        .layer(from_fn(layers::same_origin))
        .layer(DefaultBodyLimit::max(body::MAX_BODY_BYTES))
        .with_state(api)
}
