//! Where a changefeed may run, and how much it counts: the key `placement` of its configuration.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::ReplicaConfig;

/// What a changefeed's configuration says to the planner:
///
/// ```json
/// {"placement": {"weight": 3, "affinity": {"zone": "a"}, "max_processors": 2}}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// How much of a capture's load it is: 1 to [`MAX_WEIGHT`](Self::MAX_WEIGHT), 1 unless told otherwise. Only the ratios
    /// between changefeeds matter.
    pub weight: u32,
    /// The labels that a capture must have to run it, each with exactly this value. Required, not preferred: a changefeed
    /// runs nowhere rather than where it must not. Empty: anywhere.
    pub affinity: BTreeMap<String, String>,
    /// On how many captures its tables may run at once: 1 to [`MAX_PROCESSORS`](Self::MAX_PROCESSORS). With 1, as it is unless
    /// told otherwise, its owner runs it whole.
    pub max_processors: u32,
}

impl Placement {
    /// The key in the configuration.
    pub const KEY: &'static str = "placement";
    /// The key of the number of processors in it.
    pub const MAX_PROCESSORS_KEY: &'static str = "max_processors";
    /// The largest weight.
    pub const MAX_WEIGHT: u32 = 1_000_000;
    /// How many labels an affinity may name.
    pub const MAX_LABELS: usize = 16;
    /// The largest number of processors.
    pub const MAX_PROCESSORS: u32 = 32;

    /// Reads a configuration.
    ///
    /// # Errors
    /// A text that names the key, its value and what would be right.
    pub fn from_config(config: &ReplicaConfig) -> Result<Self, String> {
        config.0.get(Self::KEY).map_or_else(|| Ok(Self::default()), Self::from_value)
    }

    /// Reads the value of the key, as a store gives it: JSON text, or nothing when there is no such key.
    ///
    /// # Errors
    /// As [`from_config`](Self::from_config).
    pub fn from_text(text: Option<&str>) -> Result<Self, String> {
        let Some(text) = text else { return Ok(Self::default()) };
        let value = serde_json::from_str(text).map_err(|_| "placement is not JSON".to_owned())?;
        Self::from_value(&value)
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let members = match value {
            Value::Null => return Ok(Self::default()),
            Value::Object(members) => members,
            other => return Err(format!("placement is {}: it must be an object", shown(other))),
        };
        let mut placement = Self::default();
        for (key, value) in members {
            match (key.as_str(), value) {
                ("weight" | "affinity" | Self::MAX_PROCESSORS_KEY, Value::Null) => {}
                ("weight", value) => placement.weight = number(key, value, Self::MAX_WEIGHT)?,
                (Self::MAX_PROCESSORS_KEY, value) => {
                    placement.max_processors = number(key, value, Self::MAX_PROCESSORS)?;
                }
                ("affinity", value) => placement.affinity = affinity(value)?,
                (other, _) => {
                    return Err(format!(
                        "placement.{other} is not known: the keys of placement are weight, affinity and \
                         max_processors"
                    ));
                }
            }
        }
        Ok(placement)
    }

    /// Whether a capture with these labels may run it.
    pub fn admits(&self, labels: &BTreeMap<String, String>) -> bool {
        self.affinity.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self { weight: 1, affinity: BTreeMap::new(), max_processors: 1 }
    }
}

/// The affinity, as in `zone=a, disk=ssd`; `any capture` when there is none.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.affinity.is_empty() {
            return f.write_str("any capture");
        }
        for (n, (key, value)) in self.affinity.iter().enumerate() {
            write!(f, "{}{key}={value}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

fn number(key: &str, value: &Value, max: u32) -> Result<u32, String> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.filter(|number| (1..=max).contains(number)).ok_or_else(|| {
        format!("placement.{key} is {}: it must be a whole number from 1 to {max}", shown(value))
    })
}

fn affinity(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let wanted = "it must be an object of labels and their values, as in {\"zone\": \"a\"}";
    let Value::Object(members) = value else {
        return Err(format!("placement.affinity is {}: {wanted}", shown(value)));
    };
    if members.len() > Placement::MAX_LABELS {
        return Err(format!("placement.affinity names more than {} labels", Placement::MAX_LABELS));
    }
    let mut affinity = BTreeMap::new();
    for (key, value) in members {
        match value {
            Value::String(text) => affinity.insert(key.clone(), text.clone()),
            other => return Err(format!("placement.affinity.{key} is {}: it must be a text", shown(other))),
        };
    }
    Ok(affinity)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(text) if text.len() > 64 => "a long text".to_owned(),
        other => format!("`{other}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Placement, String> {
        Placement::from_text(Some(text))
    }

    #[test]
    fn what_is_not_said_is_one_of_equals_anywhere() {
        for text in ["null", "{}", r#"{"weight": null, "affinity": null}"#] {
            assert_eq!(read(text), Ok(Placement::default()), "{text}");
        }
        assert_eq!(Placement::from_text(None), Ok(Placement::default()));
        assert_eq!(Placement::from_config(&ReplicaConfig::default()), Ok(Placement::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wanted) in [
            ("3", "placement is `3`: it must be an object"),
            (r#"{"weight": 0}"#, "placement.weight is `0`: it must be a whole number from 1 to 1000000"),
            (
                r#"{"weight": "3"}"#,
                "placement.weight is `\"3\"`: it must be a whole number from 1 to 1000000",
            ),
            (
                r#"{"max_processors": 33}"#,
                "placement.max_processors is `33`: it must be a whole number from 1 to 32",
            ),
            (r#"{"affinity": {"zone": 1}}"#, "placement.affinity.zone is `1`: it must be a text"),
            (
                r#"{"weigth": 3}"#,
                "placement.weigth is not known: the keys of placement are weight, affinity and max_processors",
            ),
        ] {
            assert_eq!(read(text), Err(wanted.to_owned()));
        }
        assert!(read(r#"{"affinity": "zone=a"}"#).unwrap_err().contains("as in {\"zone\": \"a\"}"));
    }

    #[test]
    fn every_label_must_be_there() {
        let placement = read(r#"{"affinity": {"zone": "a", "disk": "ssd"}}"#).unwrap();
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert!(placement.admits(&labels(&[("zone", "a"), ("disk", "ssd"), ("rack", "7")])));
        assert!(!placement.admits(&labels(&[("zone", "a")])));
        assert!(!placement.admits(&labels(&[("zone", "b"), ("disk", "ssd")])));
        assert_eq!(placement.to_string(), "disk=ssd, zone=a");
    }
}
