//! What the runtime says, with the world's time.

use std::cell::Cell;
use std::fmt;

use tokio::time::Instant;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

struct Virtual;

impl FormatTime for Virtual {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let began = BEGAN.get().unwrap_or_else(Instant::now);
        write!(w, "{:10.3}s", began.elapsed().as_secs_f64())
    }
}

/// A world begins on this thread.
pub fn world_begins() {
    BEGAN.set(Some(Instant::now()));
}

/// Writes what is said at `level` or above. (It may have been called before.)
pub fn log_to_stderr(level: &str) {
    let subscriber = tracing_subscriber::fmt()
        .with_timer(Virtual)
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .with_writer(std::io::stderr);
    let _ = subscriber.try_init();
}
