//! SIGTERM and SIGINT: the first asks, the second insists.

use rustix::process::{getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;

/// Cancelled as signals come.
#[derive(Clone, Debug)]
pub struct Signals {
    /// By the first.
    pub first: CancellationToken,
    /// By the second.
    pub second: CancellationToken,
}

/// Has the kernel kill this process when `parent`, which started it, ends in whatever way.
///
/// # Errors
/// When it has ended already, or the system refuses.
pub fn die_with(parent: i32) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(std::io::Error::from)?;
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return Err(Failure::error("the process that started this one has ended"));
    }
    Ok(())
}

/// Takes over SIGTERM and SIGINT of this process.
///
/// # Errors
/// When the system refuses.
pub fn listen() -> Result<Signals, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signals = Signals { first: CancellationToken::new(), second: CancellationToken::new() };
    let told = signals.clone();
    tokio::spawn(async move {
        for (token, text) in
            [(&told.first, "told to stop; once more to end at once"), (&told.second, "told to stop again")]
        {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "{text}");
            token.cancel();
        }
    });
    Ok(signals)
}
