//! Rules for `start_ts` that every source shares.

use capture_runtime::task::TaskError;
use metadata_api::model::Ts;

/// Refuses a start after `now`, the source's own time.
pub(crate) fn refuse_future_start(start_ts: Option<Ts>, now: Ts) -> Result<(), TaskError> {
    match start_ts {
        // The last ts of the millisecond: a client that asked the source a moment ago is not in the future.
        Some(start_ts) if start_ts.physical_ms() > now.physical_ms() => Err(TaskError::fatal(
            "CDC:ErrAPIInvalidParam",
            format!(
                "invalid api parameter: invalid start-ts {start_ts}, larger than current tso {now}; \
                 leave start_ts out to begin now"
            ),
        )),
        _ => Ok(()),
    }
}
