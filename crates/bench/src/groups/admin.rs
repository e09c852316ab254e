//! What operators and the controller do to changefeeds: create, launch, pause, release, resume; one by one on 1 and 8
//! connections, and in batches. Each against a bare transaction of as many statements on copies of the tables, its lock on
//! one row included. And the round trips of each, counted by a proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use metadata_api::model::{
    CaptureId, CaptureProgress, ChangefeedName, ChangefeedProgress, ChangefeedUuid, ControllerTerm,
    NewChangefeed, ReplicaConfig, ScheduleState, ScheduleTarget, SecretUri, Ts, Version,
};
use metadata_api::store::{Authority, MAX_BATCH, MetadataStore, OwnerRelease};
use uuid::Uuid;

use super::{Run, new_capture};
use crate::bed::Bed;
use crate::database::Database;
use crate::measure::{Versus, spread};
use crate::raw::Raw;
use crate::seed;

/// What is done, in the order in which one leads to the next.
const STEPS: [&str; 6] = ["set_owner", "pause", "reset", "resume", "set_owner_batch", "release_batch"];

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    for connections in [1, 8] {
        create(run, connections).await?;
        steps(run, connections).await?;
    }
    round_trips(run).await
}

/// A request for a changefeed of this name.
pub fn new_changefeed(id: &str) -> Result<NewChangefeed> {
    Ok(NewChangefeed {
        name: ChangefeedName::new("", id)?,
        upstream_id: None,
        upstream_uri: SecretUri::parse("upstream_uri", "datagen://")?,
        sink_uri: SecretUri::parse("sink_uri", "blackhole://")?,
        start_ts: Ts(1_000),
        target_ts: Ts::ZERO,
        config: ReplicaConfig::default(),
        creator_version: env!("CARGO_PKG_VERSION").to_owned(),
        client_request_id: Uuid::new_v4(),
        task_position: seed::progress(1_000),
    })
}

async fn create(run: &mut Run<'_>, connections: usize) -> Result<()> {
    run.say(format!("creating changefeeds on {connections} connections"));
    let bed = run.target.bed().await?;
    let store = bed.store_of(u32::try_from(connections)?).await?;
    bed.copy_tables(&TABLES).await?;
    let mut ours = vec![store; connections];
    let mut bare = bed.raws(connections).await?;
    let count = run.scale.changefeeds;
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=run.scale.rounds {
        let new =
            (0..count).map(|n| new_changefeed(&format!("feed-{round}-{n}"))).collect::<Result<Vec<_>>>()?;
        let rate = spread(&mut ours, new, |store, new| {
            async move { Ok(store.changefeed_create(Authority::Operator, &new).await.map(drop)?) }.boxed()
        })
        .await?;
        let texts = (0..count).map(|n| bare_create(bed.database, round * count + n)).collect();
        let baseline = spread(&mut bare, texts, transact).await?;
        // The first round opens connections and prepares statements.
        if round > 0 {
            mine.push(rate);
            theirs.push(baseline);
        }
    }
    let rate = Versus::of(&mine, &theirs);
    run.add(format!("create_conn_{connections}"), rate.value, "a second", Some(rate.baseline));
    drop((ours, bare));
    bed.remove().await
}

/// The tables that a changefeed is in.
const TABLES: [&str; 6] = ["fence", "upstream", "schedule", "changefeed_info", "changefeed_state", "capture"];

/// One transaction, each text a round trip.
fn transact(raw: &mut Raw, texts: Vec<String>) -> BoxFuture<'_, Result<()>> {
    async move {
        for text in texts {
            raw.text(&text).await?;
        }
        Ok(())
    }
    .boxed()
}

/// The statements of a transaction, with BEGIN, the fence and COMMIT around them.
fn transaction(database: Database, statements: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut texts = vec![
        database.begin().to_owned(),
        "UPDATE bare_fence SET revision = revision + 1, version = version + 1 WHERE id = 1".to_owned(),
    ];
    texts.extend(statements);
    texts.push("COMMIT".to_owned());
    texts
}

fn bare_create(database: Database, n: usize) -> Vec<String> {
    let (uuid, request, now) = (10_000_000 + n, Uuid::new_v4(), database.now());
    let position = serde_json::to_string(&seed::progress(1_000)).unwrap_or_default();
    transaction(
        database,
        [
            format!(
                "SELECT * FROM bare_changefeed_info WHERE client_request_id = '{request}' UNION ALL \
                 SELECT * FROM bare_changefeed_info WHERE namespace = 'default' AND id = 'bare-{n}' AND removed_marker = 0"
            ),
            format!(
                "INSERT INTO bare_upstream (id, endpoints, credentials) VALUES ({uuid}, 'datagen://', ''); \
                 INSERT INTO bare_schedule (changefeed_uuid, owner_state, task_position, revision) \
                 VALUES ({uuid}, 'removed', '{position}', 1); \
                 INSERT INTO bare_changefeed_info (uuid, namespace, id, removed_marker, upstream_id, sink_uri, start_ts, \
                 target_ts, config, creator_version, client_request_id, created_at) VALUES ({uuid}, 'default', 'bare-{n}', \
                 0, {uuid}, 'blackhole://', 1000, 0, '{{}}', 'bench', '{request}', {now}); \
                 INSERT INTO bare_changefeed_state (changefeed_uuid, state) VALUES ({uuid}, ''); \
                 SELECT * FROM bare_changefeed_info WHERE uuid = {uuid}"
            ),
        ],
    )
}

/// A controller, a capture, and changefeeds that nobody owns.
struct Stage {
    store: Arc<dyn MetadataStore>,
    controller: ControllerTerm,
    capture: CaptureId,
}

impl Stage {
    async fn set(bed: &Bed, connections: u32) -> Result<Self> {
        let store = bed.store_of(connections).await?;
        let term = store.capture_register(&new_capture()).await?;
        let controller = store.election_campaign(term, &store.election().await?).await?;
        Ok(Self { store, controller, capture: term.capture })
    }

    /// What a step does, spread over the lanes of one store; how many changefeeds a second.
    async fn step(&self, step: &str, lanes: usize, feeds: &[ChangefeedUuid]) -> Result<f64> {
        let mut ours: Vec<_> = vec![Arc::clone(&self.store); lanes];
        match step {
            "pause" => {
                spread(&mut ours, feeds.to_vec(), |store, uuid| {
                    async move { Ok(store.changefeed_pause(uuid).await.map(drop)?) }.boxed()
                })
                .await
            }
            "resume" => {
                spread(&mut ours, feeds.to_vec(), |store, uuid| {
                    async move { Ok(store.changefeed_resume(uuid, None).await.map(drop)?) }.boxed()
                })
                .await
            }
            "set_owner" | "set_owner_batch" => {
                let term = self.controller;
                let batch = if step == "set_owner" { 1 } else { MAX_BATCH };
                let targets = self.launches(feeds).await?;
                let width = targets.len().min(batch).max(1);
                let rate = spread(&mut ours, in_batches(targets, batch), move |store, targets| {
                    async move { all(store.owner_set(term, &targets).await?) }.boxed()
                })
                .await?;
                Ok(rate * crate::figure::size(width))
            }
            "release_batch" | "reset" => {
                let releases = self.releases(feeds).await?;
                let width = releases.len().clamp(1, MAX_BATCH);
                let rate = spread(&mut ours, in_batches(releases, MAX_BATCH), |store, releases| {
                    async move { all(store.owner_release(&releases).await?) }.boxed()
                })
                .await?;
                Ok(rate * crate::figure::size(width))
            }
            other => Err(anyhow!("there is no step {other}")),
        }
    }

    async fn launches(&self, feeds: &[ChangefeedUuid]) -> Result<Vec<ScheduleTarget>> {
        let snapshot = self.store.schedule_snapshot().await?;
        let versions: BTreeMap<ChangefeedUuid, Version> =
            snapshot.changefeeds.iter().map(|row| (row.schedule.changefeed, row.schedule.version)).collect();
        feeds
            .iter()
            .map(|uuid| {
                let version = versions.get(uuid).ok_or_else(|| anyhow!("changefeed {uuid} is gone"))?;
                Ok(ScheduleTarget {
                    changefeed: *uuid,
                    expected_version: *version,
                    state: ScheduleState::Launched,
                    owner: Some(self.capture),
                })
            })
            .collect()
    }

    async fn releases(&self, feeds: &[ChangefeedUuid]) -> Result<Vec<OwnerRelease>> {
        let snapshot = self.store.schedule_snapshot().await?;
        let terms = snapshot.changefeeds.iter().filter(|row| feeds.contains(&row.schedule.changefeed));
        let position: ChangefeedProgress = seed::progress(3_000);
        Ok(terms
            .filter_map(|row| row.schedule.term())
            .map(|term| OwnerRelease { term, task_position: Some(position.clone()), end: None })
            .collect())
    }
}

fn in_batches<T>(items: Vec<T>, size: usize) -> Vec<Vec<T>> {
    let mut batches: Vec<Vec<T>> = Vec::new();
    for item in items {
        match batches.last_mut() {
            Some(batch) if batch.len() < size => batch.push(item),
            _ => batches.push(vec![item]),
        }
    }
    batches
}

/// Every answer, or the first refusal.
fn all<T>(answers: Vec<metadata_api::Result<T>>) -> Result<()> {
    for answer in answers {
        answer?;
    }
    Ok(())
}

async fn steps(run: &mut Run<'_>, connections: usize) -> Result<()> {
    run.say(format!("launching, pausing, resuming on {connections} connections"));
    let bed = run.target.bed().await?;
    seed::seed(&bed, MAX_BATCH, |_| None).await?;
    let stage = Stage::set(&bed, u32::try_from(connections)?).await?;
    bed.copy_tables(&TABLES).await?;
    let mut bare = bed.raws(connections).await?;
    let whole: Vec<_> = (0..MAX_BATCH).map(seed::uuid).collect();
    let (some, _) = whole.split_at(run.scale.changefeeds.min(MAX_BATCH));
    let mut rates: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for round in 0..=run.scale.rounds {
        for step in STEPS {
            let feeds = if step.ends_with("_batch") { &whole } else { some };
            let rate = stage.step(step, connections, feeds).await?;
            let baseline = bare_step(step, &mut bare, bed.database, feeds, stage.capture).await?;
            // The first round opens connections and prepares statements.
            if round > 0 {
                let entry = rates.entry(step).or_default();
                entry.0.push(rate);
                entry.1.push(baseline);
            }
        }
    }
    for (step, (mine, theirs)) in rates {
        let rate = Versus::of(&mine, &theirs);
        match (step, connections) {
            // One batch has all of them, on one connection.
            ("set_owner_batch" | "release_batch", 1) => {
                run.add(step, rate.value, "changefeeds a second", Some(rate.baseline));
            }
            ("set_owner_batch" | "release_batch" | "reset", _) => {}
            _ => run.add(format!("{step}_conn_{connections}"), rate.value, "a second", Some(rate.baseline)),
        }
    }
    drop((stage, bare));
    bed.remove().await
}

/// The same by bare transactions, on the tables' copies: as many statements, and no check.
async fn bare_step(
    step: &str,
    raws: &mut Vec<Raw>,
    database: Database,
    feeds: &[ChangefeedUuid],
    capture: CaptureId,
) -> Result<f64> {
    let batch = if step.ends_with("_batch") || step == "reset" { MAX_BATCH } else { 1 };
    let mut texts = Vec::new();
    for feeds in feeds.chunks(batch) {
        let list = feeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let read = format!(
            "SELECT * FROM bare_schedule s JOIN bare_changefeed_info i ON i.uuid = s.changefeed_uuid \
             JOIN bare_changefeed_state t ON t.changefeed_uuid = s.changefeed_uuid WHERE s.changefeed_uuid IN ({list})"
        );
        let schedule = |what: &str| {
            format!(
                "UPDATE bare_schedule SET {what}, version = version + 1 WHERE changefeed_uuid IN ({list})"
            )
        };
        let state = |state: &str| {
            format!(
                "UPDATE bare_changefeed_state SET state = '{state}', version = version + 1 \
                 WHERE changefeed_uuid IN ({list})"
            )
        };
        let statements = match step {
            "pause" => vec![read, schedule("owner_state = 'removing'"), state("stopped")],
            "resume" => vec![read, state("normal")],
            "set_owner" | "set_owner_batch" => vec![
                read,
                format!("SELECT id FROM bare_capture WHERE state = 'alive' AND id IN ('{capture}')"),
                schedule(&format!(
                    "owner = '{capture}', owner_state = 'launched', owner_epoch = 7, revision = 7"
                )),
            ],
            _ => vec![
                read,
                format!("SELECT * FROM bare_capture WHERE id IN ('{capture}')"),
                schedule("owner = NULL, owner_state = 'removed', task_position = '{\"checkpoint_ts\":3000}'"),
            ],
        };
        texts.push(transaction(database, statements));
    }
    let rate = spread(raws, texts, transact).await?;
    Ok(rate * crate::figure::size(feeds.len().min(batch)))
}

/// Counts the round trips of each operation on a connection that has done it before.
async fn round_trips(run: &mut Run<'_>) -> Result<()> {
    if run.target.database == Database::Sqlite {
        return Ok(());
    }
    run.say("counting round trips");
    let bed = run.target.bed().await?;
    let proxy = test_servers::count::RoundTrips::before(&bed.place()).await?;
    let near = Bed::at(bed.database, &proxy.through(&bed.place()));
    seed::seed(&bed, MAX_BATCH, |_| None).await?;
    let stage = Stage::set(&near, 1).await?;
    let all: Vec<_> = (0..MAX_BATCH).map(seed::uuid).collect();
    let one = &all[..1];
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for round in 0..2 {
        let new = new_changefeed(&format!("round-{round}"))?;
        let before = proxy.count();
        stage.store.changefeed_create(Authority::Operator, &new).await?;
        counts.insert("create", proxy.count() - before);
        for (step, feeds) in [
            ("set_owner", one),
            ("pause", one),
            ("release_batch", one),
            ("resume", one),
            ("set_owner_batch", &all),
            ("reset", &all),
        ] {
            counts.insert(step, stage.count(&proxy, step, feeds).await?);
        }
        let term = metadata_api::model::CaptureTerm { capture: stage.capture };
        let before = proxy.count();
        stage.store.capture_advance(term, round + 1, &CaptureProgress::default()).await?;
        counts.insert("advance", proxy.count() - before);
    }
    counts.remove("reset");
    for (step, count) in counts {
        run.add(format!("{step}_round_trips"), crate::figure::number(count), "round trips", None);
    }
    drop(stage);
    bed.remove().await
}

impl Stage {
    /// How many round trips a step takes; what it looks up beforehand is not counted.
    async fn count(
        &self,
        proxy: &test_servers::count::RoundTrips,
        step: &str,
        feeds: &[ChangefeedUuid],
    ) -> Result<u64> {
        let before;
        match step {
            "set_owner" | "set_owner_batch" => {
                let targets = self.launches(feeds).await?;
                before = proxy.count();
                all(self.store.owner_set(self.controller, &targets).await?)?;
            }
            "release_batch" | "reset" => {
                let releases = self.releases(feeds).await?;
                before = proxy.count();
                all(self.store.owner_release(&releases).await?)?;
            }
            _ => {
                before = proxy.count();
                self.step(step, 1, feeds).await?;
            }
        }
        Ok(proxy.count() - before)
    }
}
