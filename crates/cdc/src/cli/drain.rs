//! `cdc cli capture drain`: empties a capture, and says how far it is.

use std::time::Duration;

use capture_runtime::clock::{Clock as _, SystemClock};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;

use super::{CallError, Context};
use crate::api::error::code;
use crate::api::model::DrainCaptureResp;
use crate::exit::Failure;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Has a capture emptied. Waits until it has nothing left, unless told not to.
///
/// # Errors
/// When it is refused, or not done after `timeout`: the drain goes on then, and the command may be repeated.
pub async fn run(
    context: &mut Context<'_>,
    capture: &str,
    no_wait: bool,
    timeout: Duration,
) -> Result<(), Failure> {
    let first = ask(context, capture).await?;
    if no_wait {
        return context.terminal.line(&format!("Capture {capture} drains; it has {first} changefeeds left."));
    }
    // On standard error, and only if that is a terminal.
    let bar = ProgressBar::new(u64::try_from(first).unwrap_or(u64::MAX));
    if let Ok(style) = ProgressStyle::with_template("draining {bar:40} {pos}/{len} moved, {elapsed}") {
        bar.set_style(style);
    }
    let ended = wait(context, capture, (first, timeout), &bar).await;
    bar.finish_and_clear();
    ended?;
    context.terminal.line(&format!("Capture {capture} is drained: it had {first} changefeeds and has none."))
}

async fn wait(
    context: &Context<'_>,
    capture: &str,
    (first, timeout): (usize, Duration),
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let began = SystemClock.now();
    let mut left = first;
    while left > 0 {
        if SystemClock.now().since(began) >= timeout {
            return Err(Failure::error(format!(
                "capture {capture} still has {left} of {first} changefeeds after {timeout:?}; the drain goes on. \
                 `cdc cli changefeed query -c ID` says what keeps one of them: perhaps no other capture has the labels that its \
                 placement.affinity asks for"
            )));
        }
        tokio::time::sleep(ASK_EVERY).await;
        left = match ask(context, capture).await {
            // It stopped meanwhile: it has nothing any more.
            Err(error) if error.has_code(code::CAPTURE_NOT_EXIST) => 0,
            // Another server may answer, or this one again.
            Err(error @ (CallError::Failed(_) | CallError::Refused { status: 500.., .. }))
                if SystemClock.now().since(began) < timeout =>
            {
                tracing::debug!(%error, "asking again");
                left
            }
            other => other?,
        };
        bar.set_length(u64::try_from(first.max(left)).unwrap_or(u64::MAX));
        bar.set_position(u64::try_from(first.saturating_sub(left)).unwrap_or(0));
    }
    Ok(())
}

/// Asks for the drain, once more or for the first time; how many changefeeds the capture has.
async fn ask(context: &Context<'_>, capture: &str) -> Result<usize, CallError> {
    let path = ["captures", capture, "drain"];
    let answer: DrainCaptureResp = context.client.call(Method::POST, &path, &[], None::<&()>).await?;
    Ok(answer.current_table_count)
}
