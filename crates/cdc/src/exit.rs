//! Exit codes, and the one error type that ends the process.

use std::fmt;
use std::process::ExitCode;

use metadata_api::MetadataError;

/// Why the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All done; after a signal: stopped gracefully.
    Ok = 0,
    /// The request was refused, or something failed that has no code of its own.
    Error = 1,
    /// The command line, the configuration file or the environment is wrong.
    Usage = 2,
    /// The metadata database's schema is newer than the binary, half migrated or damaged; or the database is one
    /// that cannot be used: its version, its settings, or what it allows this user.
    Schema = 3,
    /// The metadata database cannot be reached, or does not answer.
    StoreUnreachable = 4,
    /// Something else holds what the server needs: the port, or the data directory.
    InUse = 5,
    /// The capture gave itself up: a changefeed did not stop within the deadline. Start it again.
    CaptureLost = 6,
    /// A second signal ended the process before it had stopped.
    Forced = 130,
}

/// What `--help` says about exit codes.
pub const HELP: &str = "Exit codes:
  0    done; after SIGTERM or SIGINT: stopped gracefully
  1    the request was refused, or another failure
  2    wrong command line, configuration file or environment
  3    the metadata database's schema is newer than this binary, half migrated or damaged; or the database
       cannot be used: its version, its settings, or what it allows this user (login and grants included)
  4    the metadata database cannot be reached, or does not answer
  5    the port or the data directory is in use
  6    the capture gave itself up because a changefeed did not stop within its deadline; start it again
  130  a second signal ended the process at once";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What ends the process early: a message for people and an exit code. Messages hold no secrets.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What happened, and what would be right.
    pub message: String,
}

impl Failure {
    /// One with any code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// The user's input is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Any other failure.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Exit::Error, message)
    }

    /// Puts what was being done in front.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<MetadataError> for Failure {
    fn from(error: MetadataError) -> Self {
        let exit = match &error {
            MetadataError::Schema { .. }
            | MetadataError::Unsupported { .. }
            | MetadataError::Corrupt { .. } => Exit::Schema,
            MetadataError::Unavailable { .. } | MetadataError::Unknown { .. } => Exit::StoreUnreachable,
            MetadataError::InvalidArgument { .. } => Exit::Usage,
            _ => Exit::Error,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // Whoever read our output has seen enough, as `head` does.
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::Ok, ""),
            _ => Self::error(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_help() {
        for exit in [
            Exit::Ok,
            Exit::Error,
            Exit::Usage,
            Exit::Schema,
            Exit::StoreUnreachable,
            Exit::InUse,
            Exit::CaptureLost,
            Exit::Forced,
        ] {
            assert!(HELP.contains(&format!("\n  {:<4} ", exit as u8)), "{exit:?}");
        }
    }

    #[test]
    fn a_store_error_tells_by_its_code_what_to_do() {
        let unavailable =
            MetadataError::Unavailable { transaction: "open", source: "connection refused".into() };
        assert_eq!(Failure::from(unavailable).exit, Exit::StoreUnreachable);
        assert_eq!(Failure::from(MetadataError::schema("newer")).exit, Exit::Schema);
        assert_eq!(Failure::from(MetadataError::invalid("deadline", "too short")).exit, Exit::Usage);
    }
}
