//! Limits and jitter.

use std::future::Future;
use std::time::Duration;

use metadata_api::{MetadataError, Result};

use crate::clock::Clock;

/// Bounds a store call. Past the limit the call is dropped, which closes its connection, and its outcome is unknown.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &'static str,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|elapsed| {
        Err(MetadataError::Unknown { transaction: what, source: Box::new(elapsed) })
    })
}

/// Between 90 % and 110 % of `interval`, so that captures that started together do not stay together.
pub(crate) fn jittered(clock: &dyn Clock, interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fraction(clock))
}

/// Anything up to `most`.
pub(crate) fn some_of(clock: &dyn Clock, most: Duration) -> Duration {
    most.mul_f64(fraction(clock))
}

/// At least 0 and below 1.
fn fraction(clock: &dyn Clock) -> f64 {
    f64::from(u32::try_from(clock.random() >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
}
