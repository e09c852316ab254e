//! `replica_config`: what of it this crate understands.
//!
//! Three kinds of keys:
//! * understood: `case_sensitive`, `changefeed_error_stuck_duration`, `filter.rules`, `sink.protocol` (`canal-json`);
//! * known to `TiCDC` and not implemented here: accepted at their default (or empty, or `null`), refused otherwise,
//!   so that nobody relies on what does not happen;
//! * unknown to `TiCDC` v8: kept verbatim, without meaning.

use std::time::Duration;

use capture_runtime::task::TaskError;
use metadata_api::model::ReplicaConfig;
use serde_json::{Map, Value, json};

use crate::filter::Filter;

/// The one protocol of sinks that write text.
pub(crate) const PROTOCOL: &str = "canal-json";

/// The configuration of a changefeed that was given none: `TiCDC` v8.1's.
pub fn default_replica_config() -> Value {
    json!({
        "memory_quota": 1_073_741_824, "case_sensitive": false, "force_replicate": false,
        "ignore_ineligible_table": false, "check_gc_safe_point": true, "enable_sync_point": false,
        "enable_table_monitor": false, "bdr_mode": false, "sync_point_interval": 600_000_000_000_u64,
        "sync_point_retention": 86_400_000_000_000_u64,
        "filter": {"rules": ["*.*"]},
        "mounter": {"worker_num": 16},
        "sink": {
            "csv": {
                "delimiter": ",", "quote": "\"", "null": "\\N", "include_commit_ts": false,
                "binary_encoding_method": "base64", "output_old_value": false, "output_handle_key": false
            },
            "encoder_concurrency": 32, "terminator": "\r\n", "date_separator": "day",
            "enable_partition_separator": true, "enable_kafka_sink_v2": false,
            "only_output_updated_columns": false, "delete_only_output_handle_key_columns": false,
            "content_compatible": false, "advance_timeout": 150, "send_bootstrap_interval_in_sec": 120,
            "send_bootstrap_in_msg_count": 10000, "send_bootstrap_to_all_partition": true,
            "debezium_disable_schema": false, "debezium": {"output_old_value": true},
            "open": {"output_old_value": true}
        },
        "consistent": {
            "level": "none", "max_log_size": 64, "flush_interval": 2000, "meta_flush_interval": 200,
            "encoding_worker_num": 16, "flush_worker_num": 8, "use_file_backend": false,
            "memory_usage": {"memory_quota_percentage": 50}
        },
        "scheduler": {
            "enable_table_across_nodes": false, "region_threshold": 100_000, "write_key_threshold": 0
        },
        "integrity": {"integrity_check_level": "none", "corruption_handle_level": "warn"},
        "changefeed_error_stuck_duration": 1_800_000_000_000_u64,
        "synced_status": {"synced_check_interval": 300, "checkpoint_interval": 15}
    })
}

/// Keys that `TiCDC` knows and leaves out of its default, by the object that holds them. The last two of a
/// section are spellings of later v8 versions.
const KNOWN_WITHOUT_DEFAULT: [(&str, &[&str]); 4] = [
    ("", &["sql_mode"]),
    ("filter", &["ignore_txn_start_ts", "event_filters"]),
    (
        "sink",
        &[
            "schema_registry",
            "dispatchers",
            "column_selectors",
            "transaction_atomicity",
            "file_index_width",
            "safe_mode",
            "kafka_config",
            "pulsar_config",
            "mysql_config",
            "cloud_storage_config",
            "send-all-bootstrap-at-start",
            "send_all_bootstrap_at_start",
        ],
    ),
    ("consistent", &["storage", "compression", "flush_concurrency"]),
];

/// How long a changefeed may fail without progress before it becomes `failed`.
const STUCK_DURATION: &str = "changefeed_error_stuck_duration";

/// The value of `changefeed_error_stuck_duration`, if the configuration has one that makes sense.
pub(crate) fn error_stuck_duration(config: &ReplicaConfig) -> Option<Duration> {
    config.0.get(STUCK_DURATION).and_then(duration)
}

/// Checks that a configuration asks for nothing that this crate does not do.
///
/// # Errors
/// `CDC:ErrAPIInvalidParam` or `CDC:ErrFilterRuleInvalid`, naming the key, its value and what would be right.
pub fn check_replica_config(config: &ReplicaConfig) -> Result<(), TaskError> {
    let default = default_replica_config();
    let Value::Object(default) = default else { return Ok(()) };
    check_object("", &config.0, &default)?;
    Filter::from_config(&config.0).map(drop)
}

fn check_object(
    path: &str,
    given: &Map<String, Value>,
    default: &Map<String, Value>,
) -> Result<(), TaskError> {
    for (key, value) in given {
        let name = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match name.as_str() {
            // `Filter::from_config` checks the rules.
            "filter.rules" => continue,
            "case_sensitive" => {
                if !value.is_boolean() && !value.is_null() {
                    return Err(invalid(&name, value, "it must be true or false"));
                }
                continue;
            }
            "sink.protocol" => {
                check_protocol(value)?;
                continue;
            }
            STUCK_DURATION => {
                if !value.is_null() && duration(value).is_none() {
                    return Err(invalid(
                        &name,
                        value,
                        "it must be a duration: nanoseconds, or as in \"30m0s\"",
                    ));
                }
                continue;
            }
            _ => {}
        }
        match (default.get(key), value) {
            (_, Value::Null) => {}
            (Some(Value::Object(default)), Value::Object(value)) => check_object(&name, value, default)?,
            (Some(default), value) if same(default, value) => {}
            (Some(Value::Object(_)), value) => return Err(invalid(&name, value, "it must be an object")),
            (Some(default), value) => {
                return Err(invalid(
                    &name,
                    value,
                    &format!("this build does not implement it; leave it out or at its default, {default}"),
                ));
            }
            (None, value) if is_known(path, key) && !is_empty(value) => {
                return Err(invalid(&name, value, "this build does not implement it; leave it out"));
            }
            (None, _) => {}
        }
    }
    Ok(())
}

fn check_protocol(value: &Value) -> Result<(), TaskError> {
    match value {
        Value::Null => Ok(()),
        Value::String(text) if text.is_empty() || text == PROTOCOL => Ok(()),
        other => Err(invalid("sink.protocol", other, "this build writes canal-json only")),
    }
}

fn is_known(section: &str, key: &str) -> bool {
    KNOWN_WITHOUT_DEFAULT.iter().any(|(name, keys)| *name == section && keys.contains(&key))
}

/// What Go leaves out as empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
        Value::Bool(true) => false,
    }
}

/// Whether two values mean the same: a duration may be nanoseconds or Go's text.
fn same(default: &Value, given: &Value) -> bool {
    match (default, given) {
        (Value::Number(_), Value::String(text)) => {
            default.as_u64().is_some_and(|nanos| duration_nanos(text) == Some(u128::from(nanos)))
        }
        (Value::Number(default), Value::Number(given)) => default.as_f64() == given.as_f64(),
        _ => default == given,
    }
}

/// A duration as nanoseconds or as Go's text.
fn duration(value: &Value) -> Option<Duration> {
    let nanos = match value {
        Value::String(text) => u64::try_from(duration_nanos(text)?).ok()?,
        other => other.as_u64()?,
    };
    Some(Duration::from_nanos(nanos))
}

/// Go's duration text, as in `1h30m`, in nanoseconds. Whole numbers only.
fn duration_nanos(text: &str) -> Option<u128> {
    let mut rest = text.trim();
    let mut nanos = 0_u128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u128 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let factor: u128 = match &rest[..unit] {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        nanos = nanos.checked_add(number.checked_mul(factor)?)?;
        rest = &rest[unit..];
    }
    Some(nanos)
}

fn invalid(name: &str, value: &Value, reason: &str) -> TaskError {
    // Objects and URLs may hold secrets (`kafka_config`, `schema_registry`): only their kind is shown.
    let shown = match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(text) if text.contains("://") => "a URL".to_owned(),
        Value::String(text) if text.len() > 64 => "a long text".to_owned(),
        other => format!("`{other}`"),
    };
    TaskError::fatal(
        "CDC:ErrAPIInvalidParam",
        format!("invalid api parameter: replica_config.{name} is {shown}: {reason}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: Value) -> Result<(), TaskError> {
        match value {
            Value::Object(map) => check_replica_config(&ReplicaConfig(map)),
            _ => panic!("not an object"),
        }
    }

    #[test]
    fn defaults_empties_and_unknown_keys_are_accepted() {
        check(default_replica_config()).unwrap();
        check(json!({})).unwrap();
        check(json!({
            "filter": null, "mounter": null, "sink": {"protocol": "canal-json", "dispatchers": null,
            "column_selectors": [], "csv": null, "kafka_config": {"sasl_user": ""}, "send-all-bootstrap-at-start": false},
            "sync_point_interval": "10m", "changefeed_error_stuck_duration": "30m0s",
            "sync_point_retention": 86_400_000_000_000.0, "performance_mode": "fast", "x": {"y": 1}
        }))
        .unwrap();
        check(json!({"filter": {"rules": ["a.*", "!a.b"]}, "case_sensitive": true})).unwrap();
    }

    #[test]
    fn patience_is_a_duration() {
        let of = |value: Value| {
            let config = ReplicaConfig([(STUCK_DURATION.to_owned(), value)].into_iter().collect());
            check_replica_config(&config).map(|()| error_stuck_duration(&config))
        };
        assert_eq!(of(json!("1h30m")).unwrap(), Some(Duration::from_mins(90)));
        assert_eq!(of(json!(5_000_000_000_u64)).unwrap(), Some(Duration::from_secs(5)));
        assert_eq!(of(Value::Null).unwrap(), None);
    }

    #[test]
    fn every_default_is_refused_when_it_is_not_the_default() {
        fn leaves(path: &[String], value: &Value, found: &mut Vec<(Vec<String>, Value)>) {
            if let Value::Object(members) = value {
                for (key, value) in members {
                    leaves(&[path, std::slice::from_ref(key)].concat(), value, found);
                }
            } else {
                found.push((path.to_vec(), value.clone()));
            }
        }
        let mut found = Vec::new();
        leaves(&[], &default_replica_config(), &mut found);
        assert!(found.len() > 40);
        for (path, value) in found {
            let name = path.join(".");
            if ["filter.rules", "case_sensitive", STUCK_DURATION].contains(&name.as_str()) {
                continue;
            }
            let other = match value {
                Value::Bool(value) => json!(!value),
                Value::Number(number) => json!(number.as_u64().unwrap() + 1),
                _ => json!("other"),
            };
            let whole = path.iter().rev().fold(other, |inner, key| json!({ key.as_str(): inner }));
            let error = check(whole).unwrap_err();
            assert_eq!(error.code, "CDC:ErrAPIInvalidParam");
            assert!(error.message.contains(&name) && error.message.contains("default"), "{error}");
        }
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name_and_secrets_are_not_shown() {
        for (value, name) in [
            (json!({"sink": {"protocol": "avro"}}), "sink.protocol"),
            (json!({"sink": {"kafka_config": {"sasl_password": "hunter2"}}}), "sink.kafka_config"),
            (json!({"sink": {"schema_registry": "http://u:hunter2@h/"}}), "sink.schema_registry"),
            (json!({"sink": {"dispatchers": [{"matcher": ["*.*"]}]}}), "sink.dispatchers"),
            (json!({"sink": "file"}), "sink"),
            (json!({"filter": {"event_filters": [{"matcher": ["a.b"]}]}}), "filter.event_filters"),
            (json!({"filter": {"rules": "a.b"}}), "filter.rules"),
            (json!({"filter": {"rules": ["a"]}}), "filter.rules"),
            (json!({"sync_point_interval": "11m"}), "sync_point_interval"),
            (json!({"case_sensitive": "yes"}), "case_sensitive"),
            (json!({"changefeed_error_stuck_duration": "soon"}), "changefeed_error_stuck_duration"),
            (json!({"changefeed_error_stuck_duration": -1}), "changefeed_error_stuck_duration"),
        ] {
            let error = check(value).unwrap_err();
            assert!(error.message.contains(name), "{error}");
            assert!(!error.message.contains("hunter2"), "{error}");
        }
    }
}
