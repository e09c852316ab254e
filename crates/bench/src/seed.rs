//! Thousands of changefeeds in seconds: rows written straight into the tables, by bulk `INSERT`s, as the store itself
//! would have written them. (A store creates a changefeed in five round trips, which is what another group measures.)

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use metadata_api::codec::{encode_position, encode_progress};
use metadata_api::model::{
    CaptureId, CaptureProgress, ChangefeedProgress, ChangefeedUuid, OwnedProgress, OwnerEpoch,
    SourcePosition, Ts,
};
use uuid::Uuid;

use crate::bed::Bed;
use crate::database::Database;

/// The revision and owner epoch of everything seeded; far below the microseconds of any clock.
pub const REVISION: u64 = 1_000_000;

/// Rows of one `INSERT`, and `INSERT`s of one transaction.
const ROWS: usize = 500;
const STATEMENTS: usize = 20;

/// How far a seeded changefeed has come: with a source position, as a binlog's.
pub fn progress(ts: u64) -> ChangefeedProgress {
    let position = serde_json::json!({ "file": "binlog.000042", "offset": ts, "gtid": Uuid::from_u128(7) });
    ChangefeedProgress { position: Some(SourcePosition(position)), ..ChangefeedProgress::at(Ts(ts)) }
}

/// The `n`th seeded changefeed.
pub const fn uuid(n: usize) -> ChangefeedUuid {
    ChangefeedUuid(1_000 + n as u64)
}

/// Writes `count` changefeeds, each owned by whom `owner` says, or by nobody; and the owners' rows, alive, with their
/// progress.
pub async fn seed(bed: &Bed, count: usize, owner: impl Fn(usize) -> Option<CaptureId>) -> Result<()> {
    let (position, now) = (encode_position("task_position", &progress(1_000))?, bed.database.now());
    let mut tables = Tables::default();
    let mut owners: BTreeMap<CaptureId, CaptureProgress> = BTreeMap::new();
    for n in 0..count {
        let (uuid, request) = (uuid(n), Uuid::from_u128(n as u128 + 1));
        tables.infos.push(format!(
            "({uuid}, 'default', 'feed-{n}', 0, 1, 'blackhole://', 1000, 0, '{{}}', 'bench', '{request}', {now})"
        ));
        tables.states.push(format!("({uuid}, 'normal')"));
        tables.schedules.push(match owner(n) {
            Some(owner) => {
                let entry = OwnedProgress::new(OwnerEpoch(REVISION), progress(2_000));
                owners.entry(owner).or_default().0.insert(uuid, entry);
                format!("({uuid}, '{owner}', 'launched', {REVISION}, '{position}', {REVISION})")
            }
            None => format!("({uuid}, NULL, 'removed', 0, '{position}', {REVISION})"),
        });
    }
    for (owner, progress) in &owners {
        tables
            .captures
            .push(format!("('{owner}', '127.0.0.1:8300', 'bench', '{{}}', '', 'alive', {REVISION})"));
        tables.progress.push(format!("('{owner}', 1, '{}')", encode_progress(progress)?));
    }
    tables.write(bed).await
}

/// The rows to write.
#[derive(Default)]
struct Tables {
    infos: Vec<String>,
    states: Vec<String>,
    schedules: Vec<String>,
    captures: Vec<String>,
    progress: Vec<String>,
}

impl Tables {
    async fn write(&self, bed: &Bed) -> Result<()> {
        let mut raw = bed.raw().await?;
        raw.text("INSERT INTO upstream (id, endpoints, credentials) VALUES (1, 'datagen://', '')").await?;
        // Never back: captures that watch would take that for a restored database.
        let fence = format!("UPDATE fence SET revision = {REVISION} WHERE id = 1 AND revision < {REVISION}");
        raw.text(&fence).await?;
        for (head, rows) in [
            (
                "INSERT INTO changefeed_info (uuid, namespace, id, removed_marker, upstream_id, sink_uri, start_ts, \
                 target_ts, config, creator_version, client_request_id, created_at) VALUES ",
                &self.infos,
            ),
            ("INSERT INTO changefeed_state (changefeed_uuid, state) VALUES ", &self.states),
            (
                "INSERT INTO schedule (changefeed_uuid, owner, owner_state, owner_epoch, task_position, revision) VALUES ",
                &self.schedules,
            ),
            (
                "INSERT INTO capture (id, advertise_addr, binary_version, labels, machine_id, state, revision) VALUES ",
                &self.captures,
            ),
            ("INSERT INTO progress (capture_id, seq, value) VALUES ", &self.progress),
        ] {
            for batch in rows.chunks(ROWS * STATEMENTS) {
                raw.text(bed.database.begin()).await?;
                for rows in batch.chunks(ROWS) {
                    raw.text(&insert(head, rows)).await?;
                }
                raw.text("COMMIT").await?;
            }
        }
        raw.text(match bed.database {
            Database::Sqlite => "ANALYZE",
            _ => "ANALYZE TABLE changefeed_info, changefeed_state, schedule, processor, capture, progress",
        })
        .await
    }
}

fn insert(head: &str, rows: &[String]) -> String {
    let mut sql = head.to_owned();
    for (n, row) in rows.iter().enumerate() {
        let _ = write!(sql, "{}{row}", if n > 0 { ", " } else { "" });
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bed::Target;

    /// The store decodes what was written behind its back, and would plan nothing with it.
    #[tokio::test]
    async fn the_store_reads_what_was_seeded() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::start(Database::Sqlite, folder.path()).await.unwrap();
        let bed = target.bed().await.unwrap();
        let owners = [CaptureId::random(), CaptureId::random()];
        seed(&bed, 1_001, |n| (n % 3 != 0).then(|| owners[n % 2])).await.unwrap();
        let store = bed.store().await.unwrap();
        let snapshot = store.schedule_snapshot().await.unwrap();
        assert_eq!((snapshot.changefeeds.len(), snapshot.captures.len()), (1_001, 2));
        let overviews = store.changefeed_overviews(None).await.unwrap();
        let owned = overviews.iter().filter(|overview| overview.schedule.owner.is_some()).count();
        assert_eq!((overviews.len(), owned), (1_001, 667));
        for overview in &overviews {
            let ts = if overview.schedule.owner.is_some() { 2_000 } else { 1_000 };
            assert_eq!(overview.progress, progress(ts));
        }
        bed.remove().await.unwrap();
    }
}
