//! The `cdc` program, as the tests start it: two of its parts do what a file in its data directory says.
//!
//! | file | effect while it is there |
//! |---|---|
//! | [`steering::WALL_CLOCK`] | the wall clock is wrong by so many seconds |
//! | [`steering::SINK_HANGS`] | flushes of the `file` sink hang |

mod clock;
mod sink;
mod steering;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use cdc::Parts;

fn main() -> ExitCode {
    let mut parts = Parts::default();
    if let Some(dir) = data_dir() {
        parts.clock = Arc::new(clock::SteeredClock::new(&dir));
        parts.extend = sink::hanging;
    }
    cdc::main_with(parts)
}

/// The server's data directory.
fn data_dir() -> Option<PathBuf> {
    let mut args = std::env::args_os().skip_while(|arg| arg != "--data-dir");
    args.nth(1).map(PathBuf::from)
}
