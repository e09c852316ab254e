//! `cdc cli changefeed`: looking, and an operator's word.

use std::time::Duration;

use chrono::DateTime;
use metadata_api::model::Ts;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{CallError, Context, configure, table};
use crate::api::error::code;
use crate::api::json_time::JsonTime;
use crate::api::model::{
    ChangeFeedInfo, ChangefeedCommonInfo, List, ResumeChangefeedConfig, RunningError, Scheduling, Tso,
};
use crate::args::{ChangefeedCommand, Output};
use crate::exit::Failure;

/// A gap that is asked about.
const LARGE_GAP_MS: u64 = 24 * 3600 * 1000;

/// Runs one command.
pub async fn run(context: &mut Context<'_>, command: ChangefeedCommand) -> Result<(), Failure> {
    match command {
        ChangefeedCommand::Create(args) => configure::create(context, &args).await,
        ChangefeedCommand::Update(args) => configure::update(context, &args).await,
        ChangefeedCommand::List { all } => list(context, all).await,
        ChangefeedCommand::Query { simple } => query(context, simple).await,
        ChangefeedCommand::Pause => pause(context).await,
        ChangefeedCommand::Resume { overwrite_checkpoint_ts, .. } => {
            resume(context, overwrite_checkpoint_ts.as_deref()).await
        }
        ChangefeedCommand::Remove => remove(context).await,
        ChangefeedCommand::Statistics { interval } => loop {
            statistics(context).await?;
            tokio::time::sleep(Duration::from_secs(interval)).await;
        },
    }
}

/// `GET /changefeeds/{id}`.
pub async fn get(context: &Context<'_>, id: &str) -> Result<ChangeFeedInfo, CallError> {
    context.client.get(&["changefeeds", id], &context.namespace()).await
}

/// `POST /tso`.
pub async fn now(context: &Context<'_>, upstream_id: u64) -> Result<Ts, Failure> {
    let tso: Tso =
        context.client.call(Method::POST, &["tso"], &[], Some(&json!({ "id": upstream_id }))).await?;
    Ok(tso.ts())
}

/// A refusal by the person at the terminal: nothing more is printed, as in TiCDC.
pub fn aborted() -> Failure {
    Failure::new(crate::exit::Exit::Ok, "")
}

/// Asks before a start that lies long ago.
pub fn confirm_gap(context: &mut Context<'_>, now: Ts, from: Ts) -> Result<bool, Failure> {
    let gap = now.physical_ms().saturating_sub(from.physical_ms());
    if gap <= LARGE_GAP_MS || context.flags.no_confirm {
        return Ok(true);
    }
    context.terminal.confirms(&format!(
        "Replicate lag ({}) is larger than 1 days, large data may cause OOM, confirm to continue at your own risk [Y/N]",
        humantime::format_duration(Duration::from_secs(gap / 1000))
    ))
}

/// What `list` prints of one.
#[derive(Serialize)]
struct Listed {
    id: String,
    namespace: String,
    summary: Summary,
}

#[derive(Serialize)]
struct Summary {
    state: String,
    tso: u64,
    checkpoint: String,
    error: Option<RunningError>,
}

async fn all(context: &Context<'_>) -> Result<Vec<ChangefeedCommonInfo>, CallError> {
    let [namespace, keyspace] = context.namespace();
    let query = [namespace, keyspace, ("state", "all")];
    let found: List<ChangefeedCommonInfo> = context.client.get(&["changefeeds"], &query).await?;
    Ok(found.items)
}

async fn list(context: &mut Context<'_>, with_ended: bool) -> Result<(), Failure> {
    let mut items = all(context).await?;
    items.retain(|item| with_ended || !matches!(item.state.as_str(), "finished" | "removed"));
    if context.flags.output == Output::Table {
        let now = now(context, 0).await?;
        return context.terminal.line(&table::changefeeds(&items, now));
    }
    let listed: Vec<_> = items
        .into_iter()
        .map(|item| Listed {
            id: item.id,
            namespace: item.namespace,
            summary: Summary {
                state: item.state,
                tso: item.checkpoint_tso,
                checkpoint: item.checkpoint_time.0,
                error: item.error,
            },
        })
        .collect();
    context.terminal.json(&listed)
}

async fn query(context: &mut Context<'_>, simple: bool) -> Result<(), Failure> {
    let id = context.changefeed_id()?;
    if simple {
        let items = all(context).await?;
        let item = items.into_iter().find(|item| item.id == id).ok_or_else(|| {
            Failure::error(format!(
                "[{}]changefeed not exists, {}/{id}",
                code::CHANGEFEED_NOT_EXISTS,
                context.flags.namespace
            ))
        })?;
        return context.terminal.json(&item);
    }
    let info = get(context, &id).await?;
    let decisions = decisions(context, &id).await?;
    if context.flags.output == Output::Table {
        return context.terminal.line(&table::changefeed(&info, &decisions));
    }
    let mut printed = queried(&info)?;
    printed.insert("scheduling".to_owned(), json!(decisions));
    context.terminal.json(&printed)
}

/// What the planner says of it; nothing from a server that does not know how.
async fn decisions(context: &Context<'_>, id: &str) -> Result<Vec<String>, Failure> {
    let path = ["changefeeds", id, "scheduling"];
    match context.client.get::<Scheduling>(&path, &context.namespace()).await {
        Ok(found) => Ok(found.decisions),
        Err(CallError::Refused { status: 404, .. }) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// What `query` prints: the answer, with two members in the form that TiCDC's client gives them.
fn queried(info: &ChangeFeedInfo) -> Result<Map<String, Value>, Failure> {
    let value = serde_json::to_value(info).map_err(|error| Failure::error(error.to_string()))?;
    let Value::Object(mut members) = value else {
        return Err(Failure::error("the server's answer is no object"));
    };
    if let Some(checkpoint) = members.remove("checkpoint_ts") {
        members.insert("checkpoint_tso".to_owned(), checkpoint);
    }
    if let Ok(created) = DateTime::parse_from_rfc3339(&info.create_time) {
        members.insert("create_time".to_owned(), json!(JsonTime::local(created.to_utc())));
    }
    Ok(members)
}

async fn pause(context: &mut Context<'_>) -> Result<(), Failure> {
    let id = context.changefeed_id()?;
    let path = ["changefeeds", &id, "pause"];
    let _: Value = context.client.call(Method::POST, &path, &context.namespace(), None::<&Value>).await?;
    Ok(())
}

async fn resume(context: &mut Context<'_>, overwrite: Option<&str>) -> Result<(), Failure> {
    let id = context.changefeed_id()?;
    let info = get(context, &id).await?;
    let now = now(context, info.upstream_id).await?;
    let mut body = ResumeChangefeedConfig::default();
    let confirmed = match overwrite {
        None => confirm_gap(context, now, Ts(info.checkpoint_ts))?,
        Some(text) => {
            let ts = overwrite_ts(text, now)?;
            body.overwrite_checkpoint_ts = ts.0;
            let question = format!(
                "You are overwriting the checkpoint ts of changefeed {id} with {ts}: it will go on from there, which may \
                 leave changes out or repeat them; confirm to continue at your own risk [Y/N]"
            );
            context.flags.no_confirm || context.terminal.confirms(&question)?
        }
    };
    if !confirmed {
        return Err(aborted());
    }
    let path = ["changefeeds", &id, "resume"];
    let _: Value = context.client.call(Method::POST, &path, &context.namespace(), Some(&body)).await?;
    Ok(())
}

fn overwrite_ts(text: &str, now: Ts) -> Result<Ts, Failure> {
    if text.eq_ignore_ascii_case("now") {
        return Ok(now);
    }
    match text.parse() {
        Ok(ts) if ts > now.0 => Err(Failure::error(format!(
            "[CDC:ErrCliCheckpointTsIsInFuture]the overwrite-checkpoint-ts {ts} must be smaller than current TSO {now}"
        ))),
        Ok(ts) if ts > 0 => Ok(Ts(ts)),
        _ => Err(Failure::error(format!(
            "[CDC:ErrCliInvalidCheckpointTs]invalid overwrite-checkpoint-ts {}, overwrite-checkpoint-ts only accept 'now' or \
             a valid timestamp in integer",
            text.escape_debug()
        ))),
    }
}

async fn remove(context: &mut Context<'_>) -> Result<(), Failure> {
    let id = context.changefeed_id()?;
    let info = match get(context, &id).await {
        Ok(info) => info,
        Err(error) if error.has_code("ErrChangeFeedNotExists") => {
            return context.terminal.line(&format!("Changefeed not found.\nID: {id}"));
        }
        Err(error) => return Err(remove_failed(context, &id, &error)),
    };
    let path = ["changefeeds", &id];
    let removed: Result<Value, _> =
        context.client.call(Method::DELETE, &path, &context.namespace(), None::<&Value>).await;
    if let Err(error) = removed {
        return Err(remove_failed(context, &id, &error));
    }
    match get(context, &id).await {
        Err(error) if error.has_code("ErrChangeFeedNotExists") => context.terminal.line(&format!(
            "Changefeed remove successfully.\nID: {id}\nCheckpointTs: {}\nSinkURI: {}",
            info.checkpoint_ts, info.sink_uri
        )),
        Err(error) => Err(remove_failed(context, &id, &error)),
        Ok(_) => {
            let message = format!("[{}]changefeed exists after deletion, {id}", code::DELETION_UNFINISHED);
            Err(remove_failed(context, &id, &CallError::Failed(message)))
        }
    }
}

fn remove_failed(context: &mut Context<'_>, id: &str, error: &CallError) -> Failure {
    match context.terminal.line(&format!("Changefeed remove failed.\nID: {id}\nError: {error}")) {
        Ok(()) => error.clone().into(),
        Err(failure) => failure,
    }
}

/// One line of `statistics`.
pub async fn statistics(context: &mut Context<'_>) -> Result<(), Failure> {
    let id = context.changefeed_id()?;
    let info = get(context, &id).await?;
    let now = now(context, info.upstream_id).await?;
    let checkpoint = Ts(info.checkpoint_ts).physical_ms();
    let sink_gap = Ts(info.resolved_ts).physical_ms().saturating_sub(checkpoint);
    let replication_gap = now.physical_ms().saturating_sub(checkpoint);
    context.terminal.json(&json!({
        "sink_gap": format!("{sink_gap}ms"),
        "replication_gap": format!("{replication_gap}ms"),
    }))
}
