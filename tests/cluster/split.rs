//! Changefeeds whose tables run on several captures: captures that carry a part are killed and told to stop.

use std::collections::BTreeMap;
use std::time::Duration;

use cdc::api::model::{ChangeFeedInfo, ChangefeedConfig, List, ProcessorCommonInfo};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::harness::{Cluster, Kind, PATIENCE, feed_body, measured, now, on_every_store};

on_every_store! {
    elsewhere_on_demand:
    tables_run_on_several_captures_and_survive_them
}

const FEEDS: u16 = 4;
/// Of each changefeed, as the sources of these tests have.
const TABLES: usize = 2;
/// Within which the tables of a killed capture run elsewhere: as an owner's changefeeds, and a look of the owner or two.
const CRASH: Duration = Duration::from_secs(23);
/// Within which those of one that is told to stop do.
const GRACEFUL: Duration = Duration::from_secs(6);

async fn tables_run_on_several_captures_and_survive_them(kind: Kind) {
    let mut cluster = Cluster::start(kind, 3).await;
    for n in 1..=FEEDS {
        let config = json!({"placement": {"max_processors": TABLES}});
        let body =
            ChangefeedConfig { replica_config: config.as_object().cloned(), ..feed_body(&cluster.out(), n) };
        cluster.create(&cluster.client(0), &body).await.expect("it is created");
    }
    cluster.balanced().await;
    spread(&cluster, &[]).await;
    cluster.all_move().await;

    // Owners and processors die in one process.
    let victim = busiest(&cluster).await;
    let struck = cluster.kill(victim).await;
    spread(&cluster, &[&struck.capture]).await;
    measured(
        "a capture that carries tables killed -> all run elsewhere",
        kind,
        now().since(struck.at),
        CRASH,
    );
    cluster.all_move().await;
    cluster.start_again(victim).await;
    cluster.balanced().await;
    spread(&cluster, &[]).await;

    let leaving = busiest(&cluster).await;
    let struck = cluster.terminate(leaving).await;
    spread(&cluster, &[&struck.capture]).await;
    measured(
        "a capture that carries tables told to stop -> all run elsewhere",
        kind,
        now().since(struck.at),
        GRACEFUL,
    );
    cluster.ended(leaving).await;
    cluster.all_move().await;

    // What the API shows adds up: the changefeed is where its last table is.
    for n in 1..=FEEDS {
        let id = feed_body(&cluster.out(), n).changefeed_id;
        let info: ChangeFeedInfo = get(&cluster, &["changefeeds", &id]).await.expect("it is there");
        let tables: Vec<_> = info.task_status.iter().flat_map(|of| &of.tables).collect();
        assert_eq!(tables.len(), TABLES, "{info:#?}");
        assert!(tables.iter().all(|table| table.checkpoint_ts >= info.checkpoint_ts), "{info:#?}");
    }
    cluster.start_again(leaving).await;
    cluster.finish().await;
}

/// The answer of any server that gives one.
async fn get<T: DeserializeOwned>(cluster: &Cluster, path: &[&str]) -> Option<T> {
    for at in (0..cluster.len()).filter(|at| cluster.server(*at).is_up()) {
        if let Ok(answer) = cluster.client(at).call(Method::GET, path, &[], None::<&Value>).await {
            return Some(answer);
        }
    }
    None
}

/// Who carries what, by changefeed and table, as any server says; `None` while something does not run.
async fn carried(cluster: &Cluster) -> Option<BTreeMap<(String, String), String>> {
    let list: List<ProcessorCommonInfo> = get(cluster, &["processors"]).await?;
    let mut carried = BTreeMap::new();
    for item in list.items {
        let path = ["changefeeds", &item.changefeed_id];
        let info: ChangeFeedInfo = get(cluster, &path).await?;
        for status in info.task_status {
            for table in status.tables {
                if table.state != "running" {
                    return None;
                }
                carried.insert((info.id.clone(), table.table), status.capture_id.clone());
            }
        }
    }
    (carried.len() == usize::from(FEEDS) * TABLES).then_some(carried)
}

/// Waits until every table runs, each of a changefeed on a capture of its own, and none on those.
async fn spread(cluster: &Cluster, but: &[&str]) {
    let began = now();
    loop {
        let carried = carried(cluster).await;
        if let Some(carried) = &carried {
            let mut places: Vec<_> = carried.iter().map(|((feed, _), capture)| (feed, capture)).collect();
            places.sort_unstable();
            places.dedup();
            if places.len() == carried.len()
                && carried.values().all(|capture| !but.contains(&capture.as_str()))
            {
                return;
            }
        }
        assert!(now().since(began) < PATIENCE, "the tables are not spread: {carried:#?}");
        cluster.look().await;
    }
}

/// The server that carries most tables.
async fn busiest(cluster: &Cluster) -> usize {
    let carried = carried(cluster).await.expect("everything runs");
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for capture in carried.values() {
        *counts.entry(capture).or_default() += 1;
    }
    let (capture, _) = counts.into_iter().max_by_key(|(_, count)| *count).expect("somebody");
    cluster.server_of(capture).await
}
