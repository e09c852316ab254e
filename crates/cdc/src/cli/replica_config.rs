//! The `--config` file of create and update: TiCDC's TOML, in kebab-case, to the API's JSON, in `snake_case`.
//!
//! Unknown keys are errors, as in TiCDC: a misspelt key would otherwise change nothing, silently.

use std::path::Path;

use serde_json::{Map, Value};

use crate::exit::Failure;

/// Keys that TiCDC knows and leaves out of its default configuration, as paths in the API's spelling. `*` stands for
/// everything below.
const KNOWN: &[&str] = &[
    "sql_mode",
    "filter.ignore_txn_start_ts",
    "filter.event_filters.*",
    "sink.protocol",
    "sink.schema_registry",
    "sink.dispatchers.*",
    "sink.column_selectors.*",
    "sink.transaction_atomicity",
    "sink.file_index_width",
    "sink.safe_mode",
    "sink.kafka_config.*",
    "sink.pulsar_config.*",
    "sink.mysql_config.*",
    "sink.cloud_storage_config.*",
    "sink.send_all_bootstrap_at_start",
    "sink.csv.output_field_header",
    "placement",
    "placement.weight",
    "placement.max_processors",
    "placement.affinity.*",
    "consistent.storage",
    "consistent.compression",
    "consistent.flush_concurrency",
];

/// Where the file's name is not just the API's with hyphens.
const RENAMED: &[(&str, &str)] = &[
    ("sink.advance_timeout_in_sec", "advance_timeout"),
    ("sink.file_index_digit", "file_index_width"),
    ("sink.mysql_config.max_multi_update_row", "max_multi_update_row_count"),
    ("sink.send_all_bootstrap_at_start", "send-all-bootstrap-at-start"),
];

/// Below these, keys are the API's as they stand: Pulsar's have hyphens there too, and labels are the operator's.
const VERBATIM: &[&str] = &["sink.pulsar_config", "placement.affinity"];

/// Reads the file.
///
/// # Errors
/// [`Exit::Usage`](crate::exit::Exit::Usage) with the line or the key that is wrong.
pub fn read(path: &Path, defaults: &Map<String, Value>) -> Result<Map<String, Value>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("--config {}: {error}", path.display())))?;
    parse(&text, defaults).map_err(|error| error.context(format!("--config {}", path.display())))
}

fn parse(text: &str, defaults: &Map<String, Value>) -> Result<Map<String, Value>, Failure> {
    let table: Map<String, Value> = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |head| head.matches('\n').count() + 1);
        Failure::usage(format!("line {line}: {}", error.message()))
    })?;
    let mut unknown = Vec::new();
    let config = convert(&table, "", Some(defaults), &mut unknown);
    if unknown.is_empty() {
        return Ok(config);
    }
    Err(Failure::usage(format!(
        "it contained unknown configuration options: {}; use the names of TiCDC's changefeed configuration",
        unknown.join(", ")
    )))
}

fn convert(
    table: &Map<String, Value>,
    path: &str,
    defaults: Option<&Map<String, Value>>,
    unknown: &mut Vec<String>,
) -> Map<String, Value> {
    let mut converted = Map::new();
    for (key, value) in table {
        let snake = key.replace('-', "_");
        let here = if path.is_empty() { snake.clone() } else { format!("{path}.{snake}") };
        let renamed = RENAMED.iter().find(|(from, _)| *from == here).map(|(_, to)| (*to).to_owned());
        let verbatim = VERBATIM.iter().any(|head| path.starts_with(head));
        let name = renamed.unwrap_or_else(|| if verbatim { key.clone() } else { snake });
        let default = defaults.and_then(|defaults| defaults.get(&name));
        let known_below =
            KNOWN.iter().any(|known| known.strip_suffix(".*").is_some_and(|head| starts_at(&here, head)));
        if default.is_none() && !known_below && !KNOWN.contains(&here.as_str()) && name == here_last(&here) {
            unknown.push(here.replace('_', "-"));
            continue;
        }
        let value = match value {
            Value::Object(members) => {
                Value::Object(convert(members, &here, default.and_then(Value::as_object), unknown))
            }
            Value::Array(items) => Value::Array(
                items
                    .iter()
                    .map(|item| match item {
                        Value::Object(members) => Value::Object(convert(members, &here, None, unknown)),
                        other => other.clone(),
                    })
                    .collect(),
            ),
            other => other.clone(),
        };
        converted.insert(name, value);
    }
    converted
}

fn starts_at(path: &str, head: &str) -> bool {
    path.strip_prefix(head).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn here_last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_text(text: &str) -> Result<Value, Failure> {
        let Value::Object(defaults) = replicator::default_replica_config() else { panic!() };
        parse(text, &defaults).map(Value::Object)
    }

    #[test]
    fn kebab_becomes_snake_with_the_odd_ones() {
        let text = r#"
case-sensitive = true
sync-point-interval = "5m"
[filter]
rules = ["a.*", "!a.b"]
[[filter.event-filters]]
matcher = ["a.b"]
ignore-event = ["drop table"]
[sink]
protocol = "canal-json"
advance-timeout-in-sec = 100
file-index-digit = 20
dispatchers = [{ matcher = ["a.*"], partition = "ts" }]
[sink.kafka-config]
sasl-password = "p"
[sink.pulsar-config]
basic-password = "p"
[consistent]
meta-flush-interval = 100
[placement]
weight = 3
max-processors = 2
[placement.affinity]
"example.com/my-zone" = "a-b"
"#;
        assert_eq!(
            read_text(text).unwrap(),
            json!({
                "case_sensitive": true, "sync_point_interval": "5m",
                "filter": {"rules": ["a.*", "!a.b"], "event_filters": [{"matcher": ["a.b"], "ignore_event": ["drop table"]}]},
                "sink": {
                    "protocol": "canal-json", "advance_timeout": 100, "file_index_width": 20,
                    "dispatchers": [{"matcher": ["a.*"], "partition": "ts"}],
                    "kafka_config": {"sasl_password": "p"}, "pulsar_config": {"basic-password": "p"}
                },
                "consistent": {"meta_flush_interval": 100},
                "placement": {"weight": 3, "max_processors": 2, "affinity": {"example.com/my-zone": "a-b"}}
            })
        );
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        for (text, wanted) in [
            ("enable-old-value = true", "enable-old-value"),
            ("[filter]\nrulez = []", "filter.rulez"),
            ("[sink.csv]\ndelimeter = \";\"", "sink.csv.delimeter"),
            ("[snik]\nx = 1", "snik"),
            ("[placement]\nweigth = 1", "placement.weigth"),
            ("case-sensitive = ", "line 1"),
            ("\n\n[filter", "line 3"),
        ] {
            let failure = read_text(text).unwrap_err();
            assert!(failure.message.contains(wanted), "{text}: {failure}");
        }
    }
}
