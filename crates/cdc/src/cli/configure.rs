//! `cdc cli changefeed create` and `update`.

use metadata_api::model::{ChangefeedName, Placement, Ts};
use reqwest::Method;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::changefeed::{aborted, confirm_gap, get, now};
use super::{Context, replica_config};
use crate::api::effective_config;
use crate::api::model::{ChangeFeedInfo, ChangefeedConfig, Tables};
use crate::args::{CreateArgs, FeedArgs, IgnoredUpstream};
use crate::exit::Failure;

fn refuse_pd(ignored: &IgnoredUpstream) -> Result<(), Failure> {
    let given = [&ignored.upstream_pd, &ignored.upstream_ca, &ignored.upstream_cert, &ignored.upstream_key];
    if given.iter().any(|flag| flag.as_ref().is_some_and(|value| !value.is_empty())) {
        return Err(Failure::usage(
            "--upstream-pd, --upstream-ca, --upstream-cert and --upstream-key: there is no PD here; name the upstream with \
             --upstream-uri",
        ));
    }
    Ok(())
}

/// The configuration that the flags ask for, over `base`; `None` when they ask for none.
fn config(args: &FeedArgs, base: &Map<String, Value>) -> Result<Option<Map<String, Value>>, Failure> {
    let defaults = match replicator::default_replica_config() {
        Value::Object(defaults) => defaults,
        _ => Map::new(),
    };
    let mut config = match &args.config {
        // What the file leaves out is the default, as in TiCDC, not what it was.
        Some(path) => Some(effective_config(&defaults, &replica_config::read(path, &defaults)?)),
        None => None,
    };
    if let Some(registry) = args.schema_registry.as_ref().filter(|registry| !registry.is_empty()) {
        let config = config.get_or_insert_with(|| effective_config(&defaults, base));
        if let Some(Value::Object(sink)) = config.get_mut("sink") {
            sink.insert("schema_registry".to_owned(), json!(registry));
        }
    }
    if let Some(max_processors) = args.max_processors {
        let config = config.get_or_insert_with(|| effective_config(&defaults, base));
        let placement = config.entry(Placement::KEY).or_insert_with(|| json!({}));
        if !placement.is_object() {
            *placement = json!({});
        }
        if let Value::Object(placement) = placement {
            placement.insert(Placement::MAX_PROCESSORS_KEY.to_owned(), json!(max_processors));
        }
    }
    Ok(config)
}

/// Creates, and prints what TiCDC prints.
pub async fn create(context: &mut Context<'_>, args: &CreateArgs) -> Result<(), Failure> {
    let feed = &args.feed;
    refuse_pd(&feed.ignored)?;
    let mut id = context.flags.changefeed_id.clone();
    if id.is_empty() {
        id = Uuid::new_v4().to_string();
    }
    ChangefeedName::new(&context.flags.namespace, &id)?;
    let sink_uri = feed.sink_uri.clone().filter(|uri| !uri.is_empty());
    let sink_uri =
        sink_uri.ok_or_else(|| Failure::error("Creating changefeed without a sink-uri; give --sink-uri"))?;
    let current = now(context, 0).await?;
    if args.start_ts != 0 && !confirm_gap(context, current, Ts(args.start_ts))? {
        return Err(aborted());
    }
    let target_ts = feed.target_ts.unwrap_or(0);
    let from = if args.start_ts == 0 { current.0 } else { args.start_ts };
    if target_ts > 0 && target_ts <= from {
        return Err(Failure::error(format!("target-ts {target_ts} must be larger than start-ts: {from}")));
    }
    let replica_config = config(feed, &Map::new())?;
    let verify = json!({ "replica_config": replica_config, "start_ts": args.start_ts, "sink_uri": sink_uri });
    let tables: Tables =
        context.client.call(Method::POST, &["verify_table"], &context.namespace(), Some(&verify)).await?;
    if !tables.ineligible_tables.is_empty() {
        let shown = Value::Array(tables.ineligible_tables);
        context.terminal.line(&format!("[WARN] some tables are not eligible to replicate, {shown}"))?;
        let question = "Could you agree to ignore those tables, and continue to replicate [Y/N]";
        if !context.flags.no_confirm && !context.terminal.confirms(question)? {
            let text = "No changefeed is created because you don't want to ignore some tables.";
            return context.terminal.line(text);
        }
    }
    let body = ChangefeedConfig {
        namespace: context.flags.namespace.clone(),
        keyspace: context.flags.namespace.clone(),
        changefeed_id: id,
        start_ts: args.start_ts,
        target_ts,
        sink_uri,
        replica_config,
        upstream_uri: feed.upstream_uri.clone().unwrap_or_default(),
        client_request_id: Uuid::new_v4().to_string(),
        ..ChangefeedConfig::default()
    };
    let info: ChangeFeedInfo =
        context.client.call(Method::POST, &["changefeeds"], &context.namespace(), Some(&body)).await?;
    context.terminal.line(&format!(
        "Create changefeed successfully!\nID: {}\nInfo: {}",
        info.id,
        one_line(&info)?
    ))
}

fn one_line(info: &ChangeFeedInfo) -> Result<String, Failure> {
    serde_json::to_string(info).map_err(|error| Failure::error(error.to_string()))
}

/// Updates, and prints what TiCDC prints.
pub async fn update(context: &mut Context<'_>, args: &FeedArgs) -> Result<(), Failure> {
    refuse_pd(&args.ignored)?;
    let id = context.changefeed_id()?;
    let old = get(context, &id).await?;
    let mut new = old.clone();
    if let Some(target_ts) = args.target_ts {
        new.target_ts = target_ts;
    }
    if let Some(sink_uri) = &args.sink_uri {
        new.sink_uri.clone_from(sink_uri);
    }
    if let Some(upstream_uri) = &args.upstream_uri {
        new.upstream_uri = Some(upstream_uri.clone());
    }
    if let Some(config) = config(args, &old.config)? {
        new.config = config;
    }
    let changes = differences(&old, &new)?;
    if changes.is_empty() {
        return context.terminal.line("changefeed config is the same with the old one, do nothing");
    }
    context.terminal.line("Diff of changefeed config:")?;
    for change in changes {
        context.terminal.line(&change)?;
    }
    let question = "Could you agree to apply changes above to changefeed [Y/N]";
    if !context.flags.no_confirm && !context.terminal.confirms(question)? {
        return context.terminal.line("No update to changefeed.");
    }
    let body = ChangefeedConfig {
        namespace: context.flags.namespace.clone(),
        target_ts: new.target_ts,
        sink_uri: args.sink_uri.clone().unwrap_or_default(),
        replica_config: Some(new.config),
        upstream_uri: args.upstream_uri.clone().unwrap_or_default(),
        ..ChangefeedConfig::default()
    };
    let path = ["changefeeds", &id];
    let info: ChangeFeedInfo =
        context.client.call(Method::PUT, &path, &context.namespace(), Some(&body)).await?;
    context
        .terminal
        .line(&format!("Update changefeed config successfully! \nID: {id}\nInfo: {}", one_line(&info)?))
}

/// What differs, a line each: path, old, new. Secrets are masked on both sides.
fn differences(old: &ChangeFeedInfo, new: &ChangeFeedInfo) -> Result<Vec<String>, Failure> {
    let shown = |info: &ChangeFeedInfo| {
        let mut info = info.clone();
        crate::api::mask::mask_config(&mut info.config);
        serde_json::to_value(info).map_err(|error| Failure::error(error.to_string()))
    };
    let mut lines = Vec::new();
    compare("", &shown(old)?, &shown(new)?, &mut lines);
    for (path, old, new) in [
        ("sink_uri", Some(&old.sink_uri), Some(&new.sink_uri)),
        ("upstream_uri", old.upstream_uri.as_ref(), new.upstream_uri.as_ref()),
    ] {
        let head = format!("{path}: ");
        if let Some(line) = lines.iter_mut().find(|line| line.starts_with(&head)) {
            *line = format!("{head}{} -> {}", masked_uri(old), masked_uri(new));
        }
    }
    // A new secret looks like the old one, masked; that there is a change is said all the same.
    if lines.is_empty() && old != new {
        lines.push("config: a secret".to_owned());
    }
    Ok(lines)
}

fn masked_uri(uri: Option<&String>) -> String {
    uri.and_then(|uri| metadata_api::model::SecretUri::parse("uri", uri).ok())
        .map_or_else(|| "?".to_owned(), |uri| uri.masked().to_owned())
}

fn compare(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let (old, new) = (old.get(key), new.get(key));
                compare(&path, old.unwrap_or(&Value::Null), new.unwrap_or(&Value::Null), lines);
            }
        }
        (old, new) if old != new => lines.push(format!("{path}: {old} -> {new}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_names_paths_and_shows_no_secret() {
        let Value::Object(config) =
            json!({"sink": {"kafka_config": {"sasl_password": "xxxxx"}}, "case_sensitive": false})
        else {
            panic!()
        };
        let old = ChangeFeedInfo {
            sink_uri: "mysql://u:xxxxx@h/".into(),
            target_ts: 5,
            config,
            ..ChangeFeedInfo::default()
        };
        let mut new = old.clone();
        new.sink_uri = "mysql://u:hunter2@other/".into();
        new.target_ts = 7;
        new.config.insert("case_sensitive".into(), json!(true));
        let lines = differences(&old, &new).unwrap();
        assert_eq!(
            lines,
            [
                "config.case_sensitive: false -> true",
                "sink_uri: mysql://u:xxxxx@h/ -> mysql://u:xxxxx@other/",
                "target_ts: 5 -> 7"
            ]
        );
        let mut secret = old.clone();
        secret.config.insert("sink".into(), json!({"kafka_config": {"sasl_password": "hunter2"}}));
        assert_eq!(differences(&old, &secret).unwrap(), ["config: a secret"]);
        assert!(differences(&old, &old).unwrap().is_empty());
    }
}
