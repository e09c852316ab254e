//! `--output table`: the same, for people.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use metadata_api::model::Ts;

use crate::api::model::{Capture, CarriedTable, ChangeFeedInfo, ChangefeedCommonInfo, ProcessorCommonInfo};

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// Captures.
pub fn captures(items: &[Capture]) -> String {
    let mut table = table(&["id", "address", "role", "state", "last heartbeat", "version"]);
    for item in items {
        table.add_row([
            item.id.as_str(),
            &item.address,
            if item.is_owner { "controller" } else { "" },
            if item.is_draining == Some(true) { "draining" } else { "alive" },
            item.last_heartbeat.as_deref().unwrap_or(""),
            item.version.as_deref().unwrap_or(""),
        ]);
    }
    table.to_string()
}

/// Changefeeds; `now` is the server's time.
pub fn changefeeds(items: &[ChangefeedCommonInfo], now: Ts) -> String {
    let mut table = table(&["id", "state", "checkpoint", "lag", "owner", "upstream", "sink", "error"]);
    for item in items {
        let owner = item.owner.as_ref().and_then(|owner| owner.capture_id.clone()).unwrap_or_default();
        table.add_row([
            item.id.clone(),
            item.state.clone(),
            item.checkpoint_time.0.clone(),
            lag(Ts(item.checkpoint_tso), now),
            owner,
            item.upstream_uri.clone().unwrap_or_default(),
            item.sink_uri.clone().unwrap_or_default(),
            item.error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
        ]);
    }
    table.to_string()
}

/// One changefeed, a line a member.
pub fn changefeed(info: &ChangeFeedInfo, decisions: &[String]) -> String {
    let owner = info.owner.clone().unwrap_or_default();
    let mut table = table(&["", ""]);
    for (name, value) in [
        ("id", info.id.clone()),
        ("namespace", info.namespace.clone()),
        ("state", info.state.clone()),
        ("upstream", info.upstream_uri.clone().unwrap_or_default()),
        ("sink", info.sink_uri.clone()),
        ("start ts", info.start_ts.to_string()),
        (
            "target ts",
            if info.target_ts == 0 { "without end".to_owned() } else { info.target_ts.to_string() },
        ),
        ("checkpoint", format!("{} ({})", info.checkpoint_time.0, info.checkpoint_ts)),
        ("owner", owner.capture_id.unwrap_or_else(|| "nobody".to_owned())),
        ("owner's address", info.maintainer_addr.clone().unwrap_or_default()),
        ("owner epoch", owner.epoch.to_string()),
        ("schedule", owner.state),
        ("scheduling", decisions.join("\n")),
        ("processors", processors_of(info)),
        ("created", info.create_time.clone()),
        (
            "error",
            info.error.as_ref().map(|error| format!("{} {}", error.code, error.message)).unwrap_or_default(),
        ),
    ] {
        table.add_row([name.to_owned(), value]);
    }
    table.to_string()
}

/// What each processor carries, a line a table.
fn processors_of(info: &ChangeFeedInfo) -> String {
    let lines = info.task_status.iter().flat_map(|of| {
        let line = |table: &CarriedTable| {
            format!("{} on {}: {}, {}", table.table, of.capture_id, table.state, table.checkpoint_time.0)
        };
        of.tables.iter().map(line)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Processors.
pub fn processors(items: &[ProcessorCommonInfo]) -> String {
    let mut table = table(&["namespace", "changefeed", "capture", "state", "tables"]);
    for item in items {
        let count = item.table_count.to_string();
        table.add_row([&item.namespace, &item.changefeed_id, &item.capture_id, &item.state, &count]);
    }
    table.to_string()
}

fn lag(checkpoint: Ts, now: Ts) -> String {
    let ms = now.physical_ms().saturating_sub(checkpoint.physical_ms());
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
