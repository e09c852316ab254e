//! What is seen of a cluster: its API, and the files that it writes.
//!
//! Two tasks look all the time. One asks any server that answers for captures and changefeeds, some twelve times a second, and
//! publishes each [`Look`]. The other lists the sink's files ten times a second, whatever the API does. Both note what
//! must never be seen: a checkpoint that goes back, a file of an owner epoch that grows while a later epoch has one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use capture_runtime::clock::BootTime;
use cdc::api::model::{Capture, ChangefeedCommonInfo, List};
use cdc::cli::Client;
use cdc::demo::process::client;
use metadata_api::model::{ChangefeedUuid, OwnerEpoch};
use replicator::reader;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::now;

/// Between two looks at the API.
const LOOK_EVERY: Duration = Duration::from_millis(80);
/// Between two looks at the files.
const LIST_EVERY: Duration = Duration::from_millis(100);
/// How long a server may take to answer before the next one is asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// A changefeed, at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedLook {
    /// The capture that owns it.
    pub owner: Option<String>,
    /// The epoch of its last launch.
    pub epoch: u64,
    /// `removed`, `launched` or `removing`.
    pub schedule: String,
    /// `normal`, `stopped`, ..
    pub state: String,
    /// How far it has come.
    pub checkpoint: u64,
}

/// A cluster, at some moment.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Before the first question was asked.
    pub asked_at: BootTime,
    /// After the last was answered.
    pub at: BootTime,
    /// The captures that are not declared dead.
    pub captures: Vec<Capture>,
    /// The changefeeds, by name.
    pub feeds: BTreeMap<String, FeedLook>,
}

impl Look {
    /// The controller, as the server that was asked sees it.
    pub fn controller(&self) -> Option<&str> {
        self.captures.iter().find(|capture| capture.is_owner).map(|capture| capture.id.as_str())
    }

    /// How many changefeeds each capture owns.
    pub fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts: BTreeMap<&str, usize> =
            self.captures.iter().map(|capture| (capture.id.as_str(), 0)).collect();
        for owner in self.feeds.values().filter_map(|feed| feed.owner.as_deref()) {
            *counts.entry(owner).or_default() += 1;
        }
        counts
    }

    /// The changefeeds of one capture.
    pub fn owned_by(&self, capture: &str) -> BTreeMap<String, FeedLook> {
        let theirs = |feed: &FeedLook| feed.owner.as_deref() == Some(capture);
        self.feeds
            .iter()
            .filter(|(_, feed)| theirs(feed))
            .map(|(id, feed)| (id.clone(), feed.clone()))
            .collect()
    }

    /// Who owns what under which epoch.
    pub fn owners(&self) -> BTreeMap<String, (Option<String>, u64)> {
        self.feeds.iter().map(|(id, feed)| (id.clone(), (feed.owner.clone(), feed.epoch))).collect()
    }
}

/// What one owner epoch has written of one changefeed.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// How many bytes.
    pub bytes: u64,
    /// When that was last seen to grow.
    pub grown_at: BootTime,
}

/// A file that grew although a later epoch had written already.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "shown by `Debug`")]
pub struct LateWrite {
    /// When it was seen.
    pub at: BootTime,
    /// The changefeed.
    pub changefeed: ChangefeedUuid,
    /// The epoch that wrote.
    pub epoch: OwnerEpoch,
    /// The later one.
    pub later: OwnerEpoch,
    /// How much.
    pub bytes: u64,
}

/// What both tasks have seen.
#[derive(Debug, Default)]
struct Seen {
    addrs: Vec<String>,
    went_back: Vec<String>,
    written: BTreeMap<(ChangefeedUuid, OwnerEpoch), Written>,
    late: Vec<LateWrite>,
    /// When an older state of the database was put back.
    restored_at: BootTime,
}

/// Looks at a cluster until it is dropped.
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    looks: watch::Receiver<Arc<Look>>,
    tasks: [JoinHandle<()>; 2],
    out: PathBuf,
}

impl Watcher {
    /// Begins to look. `out` is the sink's directory.
    pub fn start(out: &Path) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (sender, looks) = watch::channel(Arc::default());
        let tasks = [
            tokio::spawn(look_at_api(seen.clone(), sender)),
            tokio::spawn(look_at_files(seen.clone(), out.to_owned())),
        ];
        Self { seen, looks, tasks, out: out.to_owned() }
    }

    /// Says which servers may be asked.
    pub fn set_addrs(&self, addrs: Vec<String>) {
        lock(&self.seen).addrs = addrs;
    }

    /// The looks, as they come.
    pub fn looks(&self) -> watch::Receiver<Arc<Look>> {
        self.looks.clone()
    }

    /// How long the files are right now, by changefeed and owner epoch.
    pub fn bytes(&self) -> BTreeMap<(ChangefeedUuid, OwnerEpoch), u64> {
        list(&self.out)
    }

    /// The same, for whoever looks more often.
    pub fn lister(&self) -> impl Fn() -> BTreeMap<(ChangefeedUuid, OwnerEpoch), u64> + Send + 'static {
        let out = self.out.clone();
        move || list(&out)
    }

    /// What was written so far, and when, by changefeed and owner epoch; up to a tenth of a second old.
    pub fn written(&self) -> BTreeMap<(ChangefeedUuid, OwnerEpoch), Written> {
        lock(&self.seen).written.clone()
    }

    /// Writes of an epoch after a later one had begun to write.
    pub fn late_writes(&self) -> Vec<LateWrite> {
        lock(&self.seen).late.clone()
    }

    /// An older state of the database is put back, and checkpoints with it: until it is [`Self::restored`], what is seen says nothing.
    pub fn restoring(&self) {
        lock(&self.seen).restored_at = BootTime::from_boot(Duration::MAX);
    }

    /// It is.
    pub fn restored(&self) {
        lock(&self.seen).restored_at = now();
    }

    /// Checkpoints that went back.
    pub fn went_back(&self) -> Vec<String> {
        lock(&self.seen).went_back.clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn look_at_api(seen: Arc<Mutex<Seen>>, looks: watch::Sender<Arc<Look>>) {
    let mut clients: BTreeMap<String, Client> = BTreeMap::new();
    let mut furthest = (BootTime::default(), BTreeMap::new());
    for turn in 0_usize.. {
        let addrs = lock(&seen).addrs.clone();
        clients.retain(|addr, _| addrs.contains(addr));
        // Another one each time: all of them must say the same.
        for n in 0..addrs.len() {
            let addr = &addrs[(turn + n) % addrs.len()];
            let client = clients.entry(addr.clone()).or_insert_with(|| client(addr).expect("an address"));
            let answer = tokio::time::timeout(ANSWER_LIMIT, look(client)).await;
            if let Ok(Some(look)) = answer {
                note_checkpoints(&seen, &mut furthest, addr, &look);
                looks.send_replace(Arc::new(look));
                break;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(client: &Client) -> Option<Look> {
    let asked_at = now();
    let captures: List<Capture> = client.get(&["captures"], &[]).await.ok()?;
    let feeds: List<ChangefeedCommonInfo> = client.get(&["changefeeds"], &[("state", "all")]).await.ok()?;
    let feeds = feeds.items.into_iter().map(|feed| {
        let owner = feed.owner.unwrap_or_default();
        let look = FeedLook {
            owner: owner.capture_id,
            epoch: owner.epoch,
            schedule: owner.state,
            state: feed.state,
            checkpoint: feed.checkpoint_tso,
        };
        (feed.id, look)
    });
    Some(Look { asked_at, captures: captures.items, feeds: feeds.collect(), at: now() })
}

/// `known` is how far each changefeed was seen, since the database was restored last.
fn note_checkpoints(
    seen: &Mutex<Seen>,
    known: &mut (BootTime, BTreeMap<String, u64>),
    addr: &str,
    look: &Look,
) {
    let restored_at = lock(seen).restored_at;
    if look.asked_at < restored_at {
        return;
    }
    if known.0 < restored_at {
        *known = (restored_at, BTreeMap::new());
    }
    let furthest = &mut known.1;
    // A name that is gone may come again, as another changefeed.
    furthest.retain(|id, _| look.feeds.contains_key(id));
    for (id, feed) in &look.feeds {
        let before = furthest.entry(id.clone()).or_default();
        if feed.checkpoint < *before {
            let text = format!("{id} went back from {before} to {}, says {addr}: {feed:?}", feed.checkpoint);
            lock(seen).went_back.push(text);
        }
        *before = feed.checkpoint;
    }
}

async fn look_at_files(seen: Arc<Mutex<Seen>>, out: PathBuf) {
    let mut last: BTreeMap<ChangefeedUuid, OwnerEpoch> = BTreeMap::new();
    loop {
        let found = list(&out);
        lock(&seen).note_files(&found, &last);
        for (changefeed, epoch) in found.into_keys() {
            let last = last.entry(changefeed).or_insert(epoch);
            *last = (*last).max(epoch);
        }
        tokio::time::sleep(LIST_EVERY).await;
    }
}

impl Seen {
    /// Takes in how long the files are. `last` is each changefeed's last epoch that had a file when they were listed before:
    /// what an earlier one has written since, it wrote after that.
    fn note_files(
        &mut self,
        found: &BTreeMap<(ChangefeedUuid, OwnerEpoch), u64>,
        last: &BTreeMap<ChangefeedUuid, OwnerEpoch>,
    ) {
        let at = now();
        for ((changefeed, epoch), bytes) in found {
            let before = self.written.get(&(*changefeed, *epoch)).map_or(0, |written| written.bytes);
            if *bytes == before {
                continue;
            }
            self.written.insert((*changefeed, *epoch), Written { bytes: *bytes, grown_at: at });
            if let Some(later) = last.get(changefeed).filter(|last| *last > epoch) {
                self.late.push(LateWrite {
                    at,
                    changefeed: *changefeed,
                    epoch: *epoch,
                    later: *later,
                    bytes: bytes.abs_diff(before),
                });
            }
        }
    }
}

/// How long the files are of each changefeed and owner epoch.
fn list(out: &Path) -> BTreeMap<(ChangefeedUuid, OwnerEpoch), u64> {
    let mut found = BTreeMap::new();
    let Ok(dirs) = std::fs::read_dir(out) else { return found };
    for dir in dirs.flatten() {
        let Some(uuid) = dir.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        for segment in reader::segments(&dir.path()).unwrap_or_default() {
            let bytes = std::fs::metadata(&segment.path).map_or(0, |meta| meta.len());
            *found.entry((ChangefeedUuid(uuid), segment.author.epoch)).or_default() += bytes;
        }
    }
    found
}
