//! All of a thousand changefeeds at once: infos, states, progress, snapshot; each against a bare `SELECT` of the same rows.

use std::sync::Arc;

use anyhow::Result;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use metadata_api::model::CaptureId;
use metadata_api::store::MetadataStore;

use super::Run;
use super::snapshot::SNAPSHOT;
use crate::measure::{Lanes, versus};
use crate::raw::Raw;
use crate::seed::seed;

/// How many captures share them.
const CAPTURES: usize = 10;

type Store = Arc<dyn MetadataStore>;

/// One list: how the store is asked, and the bare statements of the same rows.
struct List {
    name: &'static str,
    ask: fn(&mut Store) -> BoxFuture<'_, Result<()>>,
    bare: &'static [&'static str],
}

const LISTS: [List; 4] = [
    List {
        name: "infos",
        ask: |store| async move { Ok(store.changefeed_infos(None).await.map(drop)?) }.boxed(),
        bare: &["SELECT * FROM changefeed_info ORDER BY uuid"],
    },
    List {
        name: "states",
        ask: |store| async move { Ok(store.changefeed_statuses(None).await.map(drop)?) }.boxed(),
        bare: &["SELECT * FROM changefeed_state ORDER BY changefeed_uuid"],
    },
    List {
        name: "progress",
        ask: |store| async move { Ok(store.changefeed_progresses(None).await.map(drop)?) }.boxed(),
        bare: &["SELECT * FROM schedule ORDER BY changefeed_uuid", "SELECT * FROM progress"],
    },
    List {
        name: "snapshot",
        ask: |store| async move { Ok(store.schedule_snapshot().await.map(drop)?) }.boxed(),
        bare: &["SELECT revision FROM fence WHERE id = 1", "SELECT * FROM capture ORDER BY id", SNAPSHOT],
    },
];

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    let count = run.scale.list;
    let bed = run.target.bed().await?;
    let captures: Vec<_> = (0..CAPTURES).map(|_| CaptureId::random()).collect();
    seed(&bed, count, |n| captures.get(n % CAPTURES).copied()).await?;
    let store = bed.store().await?;
    for list in LISTS {
        run.say(format!("{} of {count} changefeeds", list.name));
        let mut ours = Lanes::new(vec![Arc::clone(&store)], list.ask);
        let bare = list.bare;
        let mut bare = Lanes::new(vec![bed.raw().await?], move |raw: &mut Raw| {
            async move {
                for sql in bare {
                    raw.rows(sql).await?;
                }
                Ok(())
            }
            .boxed()
        });
        let rate = versus(run.scale.rounds, run.scale.turn, &mut ours, &mut bare).await?;
        run.add(format!("list_{}_{count}", list.name), rate.value, "a second", Some(rate.baseline));
    }
    drop(store);
    bed.remove().await
}
