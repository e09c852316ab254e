//! The log: lines on standard error, or in a file.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use crate::exit::Failure;

/// Checks the directives of a log.
///
/// # Errors
/// [`Exit::Usage`](crate::exit::Exit::Usage) with what would be right.
pub fn check_level(directives: &str) -> Result<(), Failure> {
    filter(directives).map(drop)
}

fn filter(directives: &str) -> Result<EnvFilter, Failure> {
    let directives = match directives.to_ascii_lowercase().as_str() {
        // Two of TiCDC's that are not ours.
        "fatal" | "panic" => "error".to_owned(),
        "warning" => "warn".to_owned(),
        _ => directives.to_owned(),
    };
    let known = |part: &str| {
        let level = part.rsplit('=').next().unwrap_or_default().trim().to_ascii_lowercase();
        matches!(level.as_str(), "error" | "warn" | "info" | "debug" | "trace" | "off")
    };
    if !directives.split(',').all(known) {
        return Err(Failure::usage(format!(
            "--log-level {directives}: it must be error, warn, info, debug or trace, or directives such as info,sqlx=warn"
        )));
    }
    EnvFilter::try_new(&directives)
        .map_err(|error| Failure::usage(format!("--log-level {directives}: {error}")))
}

/// Starts the log of this process.
///
/// # Errors
/// When the file cannot be written, or a log was started already.
pub fn start(directives: &str, file: Option<&Path>) -> Result<(), Failure> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(directives)?).with_target(true);
    let started = if let Some(path) = file {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)
                .map_err(|error| Failure::usage(format!("--log-file {}: {error}", path.display())))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|error| Failure::usage(format!("--log-file {}: {error}", path.display())))?;
        builder.with_ansi(false).with_writer(Mutex::new(file)).try_init()
    } else {
        let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
        builder.with_ansi(colours).with_writer(std::io::stderr).try_init()
    };
    started.map_err(|error| Failure::error(format!("the log could not be started: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_checked() {
        for good in ["info", "DEBUG", "fatal", "warning", "info,sqlx=warn", "cdc=trace"] {
            check_level(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in ["", "loud", "info,", "info,sqlx=loud"] {
            assert!(check_level(bad).is_err(), "{bad}");
        }
    }
}
