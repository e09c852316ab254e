//! The proof that the former server of a data directory is dead, and what its successor needs to know of it.
//!
//! `capture.json` in the data directory names the capture that the server is, and the lock that it holds. The next server that
//! gets that very lock has the proof, if all of this is so:
//!
//! * it is the same file (device and inode), on a file system of this host: there the kernel gives a `flock` away only
//!   when every process that held it has ended or closed it, and the server has no children and never closes it;
//! * the host has not been started anew since: on another boot it may be a copy of the directory, on another machine;
//! * the capture's row in the store names this machine (the runtime looks).
//!
//! What a dead process had sent to a sink may still arrive; each sink that there is writes under the owner epoch, and a
//! successor's is another.
//!
//! In doubt there is no proof, and the cluster waits as for any other capture that fell silent.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use capture_runtime::Lineage;
use metadata_api::model::CaptureId;
use serde::{Deserialize, Serialize};

use crate::lock::LOCK_FILE;

/// The record's name in the data directory.
const RECORD_FILE: &str = "capture.json";

/// File systems that no other host can have mounted at the same time, by the numbers of `statfs(2)`.
const LOCAL: [(u64, &str); 8] = [
    (0xef53, "ext"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlay"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
];

/// What a server leaves for its successor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Which capture it was last.
    capture: CaptureId,
    #[serde(flatten)]
    place: Place,
}

/// Which lock is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// Of the kernel that manages the lock.
    boot_id: String,
    /// The lock file's device and inode.
    device: u64,
    inode: u64,
}

/// [`Lineage`] by the lock of a data directory.
#[derive(Debug)]
pub struct DataDirLineage {
    record: PathBuf,
    /// Where proofs hold; `None` = nowhere here.
    place: Option<Place>,
    dead: Option<CaptureId>,
}

impl DataDirLineage {
    /// For whoever holds `lock`, the lock file in `data_dir`, exclusively.
    pub(crate) fn new(data_dir: &Path, lock: &fs::File) -> Self {
        let record = data_dir.join(RECORD_FILE);
        let place = match place(data_dir, lock) {
            Ok(place) => Some(place),
            Err(reason) => {
                tracing::info!(
                    data_dir = %data_dir.display(), reason,
                    "after a crash, a server here will wait like any other until its predecessor is known to be dead"
                );
                None
            }
        };
        let left = fs::read(&record).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        let dead = left.filter(|left| Some(&left.place) == place.as_ref()).map(|left| left.capture);
        Self { record, place, dead }
    }
}

impl Lineage for DataDirLineage {
    fn dead_predecessor(&self) -> Option<CaptureId> {
        self.dead
    }

    fn remember(&self, capture: CaptureId) {
        let Some(place) = self.place.clone() else { return };
        let written = serde_json::to_vec(&Record { capture, place }).map_err(Into::into).and_then(|text| {
            // Replaced whole. It need not survive the host: after that there is no proof anyway.
            let new = self.record.with_extension("json.new");
            fs::write(&new, text).and_then(|()| fs::rename(&new, &self.record))
        });
        if let Err(error) = written {
            tracing::warn!(
                file = %self.record.display(), %error,
                "could not be written: after a crash, a server here will wait until this one is known to be dead"
            );
        }
    }
}

/// The lock's place, or why no proof holds there.
fn place(data_dir: &Path, lock: &fs::File) -> Result<Place, String> {
    let held = lock.metadata().map_err(|error| error.to_string())?;
    let named = fs::metadata(data_dir.join(LOCK_FILE)).map_err(|error| error.to_string())?;
    if (held.dev(), held.ino()) != (named.dev(), named.ino()) {
        return Err("the lock file was replaced".to_owned());
    }
    let kind = rustix::fs::fstatfs(lock).map_err(|error| error.to_string())?.f_type;
    if !u64::try_from(kind).is_ok_and(|kind| LOCAL.iter().any(|(local, _)| *local == kind)) {
        let known = LOCAL.map(|(_, name)| name).join(", ");
        return Err(format!(
            "its file system (type {kind:#x}) is not one of those known to be local: {known}"
        ));
    }
    let boot_id = boot_id();
    if boot_id.is_empty() {
        return Err("the kernel tells no boot id".to_owned());
    }
    Ok(Place { boot_id, device: held.dev(), inode: held.ino() })
}

fn boot_id() -> String {
    first_line("/proc/sys/kernel/random/boot_id")
}

/// The host's machine id, the boot's where a host (a container, usually) has none; empty if there is neither.
pub fn machine_id() -> String {
    Some(first_line("/etc/machine-id")).filter(|id| !id.is_empty()).unwrap_or_else(boot_id)
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::lock::DataDir;

    const ID: CaptureId = CaptureId(Uuid::from_u128(7));

    fn dead_after(path: &Path, change: impl FnOnce(&mut Record)) -> Option<CaptureId> {
        let record = path.join(RECORD_FILE);
        let mut left: Record = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
        change(&mut left);
        fs::write(&record, serde_json::to_vec(&left).unwrap()).unwrap();
        DataDir::lock(path).unwrap().lineage().dead_predecessor()
    }

    fn lived() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::lock(dir.path()).unwrap();
        assert_eq!(held.lineage().dead_predecessor(), None, "nobody was here");
        held.lineage().remember(ID);
        dir
    }

    #[test]
    fn who_gets_the_same_lock_knows_that_its_holder_is_dead() {
        let dir = lived();
        assert_eq!(dead_after(dir.path(), |_| {}), Some(ID));
        let held = DataDir::lock(dir.path()).unwrap();
        let lineage = held.lineage();
        lineage.remember(CaptureId(Uuid::from_u128(8)));
        assert_eq!(lineage.dead_predecessor(), Some(ID), "not oneself");
    }

    #[test]
    fn in_doubt_nobody_is_dead() {
        assert_eq!(dead_after(lived().path(), |left| left.place.boot_id.push('x')), None, "another boot");
        assert_eq!(dead_after(lived().path(), |left| left.place.device += 1), None, "another disk");
        assert_eq!(dead_after(lived().path(), |left| left.place.inode += 1), None, "another file");
        let dir = lived();
        fs::write(dir.path().join(RECORD_FILE), "{\"capture\":").unwrap();
        assert_eq!(DataDir::lock(dir.path()).unwrap().lineage().dead_predecessor(), None, "torn");
    }

    #[test]
    fn a_lock_file_that_was_replaced_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::lock(dir.path()).unwrap();
        held.lineage().remember(ID);
        // Somebody tidies up under a living server; the next gets a lock, but not that one.
        fs::rename(dir.path().join(LOCK_FILE), dir.path().join("old.lock")).unwrap();
        let next = DataDir::lock(dir.path()).unwrap();
        assert_eq!(next.lineage().dead_predecessor(), None);
        next.lineage().remember(CaptureId(Uuid::from_u128(9)));
        let before = fs::read(dir.path().join(RECORD_FILE)).unwrap();
        held.lineage().remember(ID);
        assert_eq!(
            fs::read(dir.path().join(RECORD_FILE)).unwrap(),
            before,
            "the old holder's word counts no more"
        );
    }
}
