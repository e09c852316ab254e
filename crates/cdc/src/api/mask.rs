//! Secrets in what is shown, and what a client means that writes the shown form back.
//!
//! TiCDC masks the password of the sink URI only, and shows every secret of `replica_config` in clear. We mask all of
//! them. `cdc cli changefeed update` reads the configuration, edits it and writes the whole back, so in an update a
//! secret that *is* the mask means "unchanged".

use metadata_api::MetadataError;
use metadata_api::model::{MASK, SecretUri};
use serde_json::{Map, Value};
use url::Url;

/// What else stands for "unchanged" in an update.
const STARS: &str = "******";

/// The last words of a member's name whose text is a secret.
const SECRET_ENDINGS: [&str; 7] =
    ["password", "passwd", "pwd", "secret", "token", "access-key", "private-key"];

fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace('_', "-");
    SECRET_ENDINGS
        .iter()
        .any(|ending| key.strip_suffix(ending).is_some_and(|head| head.is_empty() || head.ends_with('-')))
}

fn is_mask(text: &str) -> bool {
    text == MASK || text == STARS
}

/// What is shown of one text; `None` when it is no secret.
fn masked_text(key: &str, text: &str) -> Option<String> {
    if text.is_empty() {
        None
    } else if is_secret_key(key) {
        Some(MASK.to_owned())
    } else if text.contains("://") {
        SecretUri::parse("replica_config", text)
            .ok()
            .filter(SecretUri::has_secret)
            .map(|uri| uri.masked().to_owned())
    } else {
        None
    }
}

/// Masks every secret of a configuration.
pub fn mask_config(config: &mut Map<String, Value>) {
    for (key, value) in config {
        mask_value(key, value);
    }
}

fn mask_value(key: &str, value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(masked) = masked_text(key, text) {
                *text = masked;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mask_value(key, item)),
        Value::Object(members) => mask_config(members),
        _ => {}
    }
}

/// Puts the secrets of `old` where `new` has their masks.
///
/// # Errors
/// [`MetadataError::InvalidArgument`] where `new` has a mask and `old` no secret that it could stand for.
pub fn unmask_config(new: &mut Map<String, Value>, old: &Map<String, Value>) -> Result<(), MetadataError> {
    for (key, value) in new {
        unmask_value(key, value, old.get(key))?;
    }
    Ok(())
}

fn unmask_value(key: &str, new: &mut Value, old: Option<&Value>) -> Result<(), MetadataError> {
    match new {
        Value::String(text) => {
            let stands_for = old.and_then(Value::as_str).filter(|old| {
                masked_text(key, old)
                    .is_some_and(|masked| *text == masked || (is_secret_key(key) && is_mask(text)))
            });
            if let Some(old) = stands_for {
                old.clone_into(text);
            } else if (is_secret_key(key) && is_mask(text)) || url_has_mask(text) {
                return Err(MetadataError::invalid(
                    "replica_config",
                    format!(
                        "`{}` carries the mask of a secret, and there is no secret that it could stand for; give the \
                         secret itself",
                        key.escape_debug()
                    ),
                ));
            }
            Ok(())
        }
        Value::Array(items) => items
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, item)| unmask_value(key, item, old.and_then(|old| old.get(index)))),
        Value::Object(members) => {
            let empty = Map::new();
            unmask_config(members, old.and_then(Value::as_object).unwrap_or(&empty))
        }
        _ => Ok(()),
    }
}

fn url_has_mask(text: &str) -> bool {
    text.contains("://")
        && Url::parse(text).is_ok_and(|url| {
            url.password().is_some_and(is_mask) || url.query_pairs().any(|(_, value)| is_mask(&value))
        })
}

/// A URI of a request. `current` is what it replaces, if there is something; a URI that is the masked form of `current`
/// means `current`.
///
/// # Errors
/// [`MetadataError::InvalidArgument`] when it is no URI, or carries a mask that stands for nothing.
pub fn uri_from_request(
    field: &'static str,
    text: &str,
    current: Option<&SecretUri>,
) -> Result<SecretUri, MetadataError> {
    let uri = SecretUri::parse(field, text)?;
    if let Some(current) = current
        && uri.expose() == current.masked()
    {
        return Ok(current.clone());
    }
    if url_has_mask(text) {
        return Err(MetadataError::invalid(
            field,
            format!(
                "it carries `{MASK}`, the mask of a secret, in place of the secret; give the secret itself"
            ),
        ));
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other}"),
        }
    }

    fn config() -> Map<String, Value> {
        object(json!({
            "case_sensitive": false,
            "filter": {"rules": ["a.*"]},
            "sink": {
                "schema_registry": "http://u:hunter2@registry:8081/",
                "kafka_config": {
                    "sasl_user": "u", "sasl_password": "hunter2", "sasl_oauth_token_url": "https://t/x",
                    "sasl_oauth_client_secret": "hunter2", "key": "/etc/key.pem",
                    "glue_schema_registry_config": {"secret_access_key": "hunter2", "token": "hunter2"},
                    "large_message_handle": {"claim_check_storage_uri": "s3://b/p?secret-access-key=hunter2"}
                },
                "pulsar_config": {"basic-password": "hunter2", "token-from-file": "/etc/token", "authentication-token": ""}
            },
            "unknown": [{"x_password": "hunter2"}]
        }))
    }

    #[test]
    fn every_secret_is_masked_and_nothing_else() {
        let mut shown = config();
        mask_config(&mut shown);
        let text = Value::Object(shown.clone()).to_string();
        assert!(!text.contains("hunter2"), "{text}");
        for kept in ["/etc/key.pem", "/etc/token", "https://t/x", "a.*", "\"authentication-token\":\"\""] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
        assert_eq!(shown["sink"]["kafka_config"]["sasl_password"], "xxxxx");
        assert_eq!(shown["sink"]["schema_registry"], "http://u:xxxxx@registry:8081/");
    }

    #[test]
    fn writing_the_shown_configuration_back_changes_nothing() {
        let mut back = config();
        mask_config(&mut back);
        unmask_config(&mut back, &config()).unwrap();
        assert_eq!(back, config());
        let mut stars = object(json!({"sink": {"kafka_config": {"sasl_password": "******"}}}));
        unmask_config(&mut stars, &config()).unwrap();
        assert_eq!(stars["sink"]["kafka_config"]["sasl_password"], "hunter2");
    }

    #[test]
    fn a_new_secret_is_taken_and_a_mask_for_nothing_is_refused() {
        let mut new = object(json!({"sink": {"kafka_config": {"sasl_password": "other"}}}));
        unmask_config(&mut new, &config()).unwrap();
        assert_eq!(new["sink"]["kafka_config"]["sasl_password"], "other");
        for bad in [
            json!({"sink": {"kafka_config": {"sasl_password": "xxxxx"}}}),
            json!({"sink": {"schema_registry": "http://u:xxxxx@elsewhere/"}}),
        ] {
            let error =
                unmask_config(&mut object(bad), &object(json!({"sink": {"schema_registry": "http://h/"}})));
            assert!(error.unwrap_err().to_string().contains("give the secret itself"));
        }
    }

    #[test]
    fn a_uri_may_be_written_back_masked_but_not_changed_under_the_mask() {
        let current = SecretUri::parse("sink_uri", "mysql://u:hunter2@h:3306/db").unwrap();
        let same = uri_from_request("sink_uri", current.masked(), Some(&current)).unwrap();
        assert_eq!(same, current);
        let error = uri_from_request("sink_uri", "mysql://u:xxxxx@evil:3306/db", Some(&current)).unwrap_err();
        assert!(error.to_string().contains("give the secret itself"), "{error}");
        assert!(uri_from_request("sink_uri", "mysql://u:new@h:3306/db", Some(&current)).is_ok());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<u64>().prop_map(Value::from),
            prop_oneof![Just("xxxxx".to_owned()), Just("http://u:p@h/".to_owned()), "[a-z]{0,6}".boxed()]
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("(password|token|x|uri)", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn masked_then_unmasked_is_the_same(value in any_json()) {
            let old = object(json!({"v": value}));
            let mut back = old.clone();
            mask_config(&mut back);
            prop_assert!(unmask_config(&mut back, &old).is_ok());
            prop_assert_eq!(back, old);
        }
    }
}
