//! The data directory, and the lock that says whose it is.
//!
//! `cdc.lock` in the data directory is held with `flock` for as long as the server lives; the kernel lets go of it
//! however the process ends. Its text (process id and address) is for people and for the demo.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure};
use crate::lineage::DataDirLineage;

/// The lock file's name in the data directory.
pub const LOCK_FILE: &str = "cdc.lock";

/// What the holder writes into the lock file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Under which address its API is reached; empty while it is starting.
    #[serde(default)]
    pub addr: String,
}

/// A data directory that this process holds alone.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: File,
}

impl DataDir {
    /// Creates the directory if need be, and locks it.
    ///
    /// # Errors
    /// [`Exit::InUse`] when another process holds it; [`Exit::Error`] when it cannot be made or written.
    pub fn lock(path: &Path) -> Result<Self, Failure> {
        let in_dir = |error: std::io::Error| {
            Failure::error(format!(
                "--data-dir {}: {error}; give a directory that this user can write",
                path.display()
            ))
        };
        std::fs::create_dir_all(path).map_err(in_dir)?;
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK_FILE))
            .map_err(in_dir)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let who =
                    read_holder(path).map_or_else(String::new, |holder| format!(" (process {})", holder.pid));
                return Err(Failure::new(
                    Exit::InUse,
                    format!(
                        "another cdc server{who} uses the data directory {}; give each server a --data-dir of its own",
                        path.display()
                    ),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(in_dir(error)),
        }
        let mut dir = Self { path: path.to_owned(), lock };
        dir.announce("")?;
        Ok(dir)
    }

    /// Writes into the lock file under which address the server is reached.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn announce(&mut self, addr: &str) -> Result<(), Failure> {
        let holder = Holder { pid: std::process::id(), addr: addr.to_owned() };
        let text = serde_json::to_vec(&holder).map_err(|error| Failure::error(error.to_string()))?;
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        self.lock.write_all(&text)?;
        Ok(())
    }

    /// Holds the lock until the process is gone, whatever still runs while it ends: who gets it next has a proof that nothing
    /// of this process can act.
    pub fn hold_for_life(self) {
        std::mem::forget(self);
    }

    /// What the former holder left here, and what this one leaves.
    pub fn lineage(&self) -> DataDirLineage {
        DataDirLineage::new(&self.path, &self.lock)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What the holder of a data directory wrote last; `None` when there is nothing to be read.
pub fn read_holder(data_dir: &Path) -> Option<Holder> {
    let mut text = String::new();
    File::open(data_dir.join(LOCK_FILE)).ok()?.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let mut first = DataDir::lock(&path).unwrap();
        first.announce("127.0.0.1:8300").unwrap();
        let failure = DataDir::lock(&path).unwrap_err();
        assert_eq!(failure.exit, Exit::InUse);
        assert!(failure.message.contains(&format!("process {}", std::process::id())), "{failure}");
        assert!(failure.message.contains("--data-dir of its own"), "{failure}");
        assert_eq!(read_holder(&path).unwrap().addr, "127.0.0.1:8300");
        drop(first);
        DataDir::lock(&path).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_said() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let failure = DataDir::lock(&dir.path().join("file")).unwrap_err();
        assert!(failure.message.contains("--data-dir"), "{failure}");
    }
}
