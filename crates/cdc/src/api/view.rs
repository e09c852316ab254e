//! From the model to the contract's JSON shapes.

use chrono::SecondsFormat;
use metadata_api::model::{
    CaptureInfo, CaptureState, ChangefeedOverview, ChangefeedSchedule, ChangefeedStatus, FeedState,
    RunningError as StoredError, Ts,
};
use serde_json::{Map, Value};

use super::json_time::JsonTime;
use super::mask::mask_config;
use super::model;
use super::model::{Capture, ChangeFeedInfo, ChangefeedCommonInfo, Gid, Owner, RunningError};

/// The state on the wire: nobody outside knows `uninitialized`.
pub fn state(state: FeedState) -> &'static str {
    match state {
        FeedState::Uninitialized => FeedState::Normal.as_str(),
        other => other.as_str(),
    }
}

/// The state as lists show it: `pending` is a `warning` there.
pub fn list_state(feed: FeedState) -> &'static str {
    match feed {
        FeedState::Pending => FeedState::Warning.as_str(),
        other => state(other),
    }
}

/// What a `state` query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateFilter {
    /// Everything.
    All,
    /// What is not given: all that an operator still cares for.
    Live,
    /// One state.
    Exactly(FeedState),
}

impl StateFilter {
    /// Parses a query value.
    ///
    /// # Errors
    /// The texts that would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(Self::Live),
            "all" => Ok(Self::All),
            other => other.parse().map(Self::Exactly).map_err(|_| {
                format!(
                    "`{}` is none of all, normal, pending, warning, stopped, failed, finished, removed",
                    other.escape_debug()
                )
            }),
        }
    }

    /// Whether a changefeed in this state is meant.
    pub fn admits(self, feed: FeedState) -> bool {
        match self {
            Self::All => true,
            Self::Live => !matches!(feed, FeedState::Finished | FeedState::Removed),
            Self::Exactly(wanted) => state(feed) == state(wanted),
        }
    }
}

/// An error, as it is shown.
pub fn running_error(error: &StoredError) -> RunningError {
    RunningError {
        time: Some(error.time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
        addr: error.addr.clone(),
        code: error.code.clone(),
        message: error.message.clone(),
    }
}

/// The error that matters in this state, or the warning; nothing while all is well.
pub fn current_error(status: &ChangefeedStatus) -> Option<RunningError> {
    match status.state {
        FeedState::Pending | FeedState::Warning | FeedState::Failed => {
            status.error.as_ref().or(status.warning.as_ref()).map(running_error)
        }
        _ => None,
    }
}

/// Last error and last warning, as the status answer has them.
pub fn last_errors(status: &ChangefeedStatus) -> (Option<RunningError>, Option<RunningError>) {
    (status.error.as_ref().map(running_error), status.warning.as_ref().map(running_error))
}

/// Who runs it.
pub fn owner(schedule: &ChangefeedSchedule) -> Owner {
    Owner {
        capture_id: schedule.owner.map(|owner| owner.to_string()),
        epoch: schedule.epoch.0,
        state: schedule.state.as_str().to_owned(),
    }
}

/// A capture. `controller` is the controller's id.
pub fn capture(
    info: &CaptureInfo,
    controller: Option<metadata_api::model::CaptureId>,
    cluster_id: &str,
) -> Capture {
    Capture {
        id: info.id.to_string(),
        is_owner: controller == Some(info.id),
        address: info.advertise_addr.clone(),
        cluster_id: cluster_id.to_owned(),
        is_draining: Some(info.state == CaptureState::Draining),
        last_heartbeat: Some(info.heartbeat_at.to_rfc3339_opts(SecondsFormat::Millis, true)),
        version: Some(info.version.clone()),
        labels: info.labels.clone(),
    }
}

/// A changefeed in a list.
pub fn common_info(of: &ChangefeedOverview) -> ChangefeedCommonInfo {
    ChangefeedCommonInfo {
        upstream_id: of.info.upstream.0,
        namespace: of.info.name.namespace.to_string(),
        keyspace: of.info.name.namespace.to_string(),
        id: of.info.name.id.to_string(),
        state: list_state(of.status.state).to_owned(),
        checkpoint_tso: of.progress.checkpoint_ts.0,
        checkpoint_time: JsonTime::from_ts(of.progress.checkpoint_ts),
        error: current_error(&of.status),
        owner: Some(owner(&of.schedule)),
        upstream_uri: Some(of.upstream.uri.masked().to_owned()),
        sink_uri: Some(of.info.sink_uri.masked().to_owned()),
    }
}

/// A changefeed in full, without `task_status` and `maintainer_addr`.
pub fn info(of: &ChangefeedOverview, defaults: &Map<String, Value>) -> ChangeFeedInfo {
    let mut config = effective_config(defaults, &of.info.config.0);
    mask_config(&mut config);
    ChangeFeedInfo {
        upstream_id: of.info.upstream.0,
        namespace: of.info.name.namespace.to_string(),
        keyspace: of.info.name.namespace.to_string(),
        id: of.info.name.id.to_string(),
        sink_uri: of.info.sink_uri.masked().to_owned(),
        upstream_uri: Some(of.upstream.uri.masked().to_owned()),
        create_time: of.info.created_at.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        start_ts: of.info.start_ts.0,
        target_ts: of.info.target_ts.0,
        admin_job_type: admin_job_type(of.status.state),
        config,
        state: state(of.status.state).to_owned(),
        error: current_error(&of.status),
        creator_version: of.info.creator_version.clone(),
        resolved_ts: resolved(of).0,
        checkpoint_ts: of.progress.checkpoint_ts.0,
        checkpoint_time: JsonTime::from_ts(of.progress.checkpoint_ts),
        task_status: Vec::new(),
        gid: Gid { low: of.info.uuid.0, high: 0 },
        maintainer_addr: None,
        owner: Some(owner(&of.schedule)),
    }
}

fn resolved(of: &ChangefeedOverview) -> Ts {
    of.progress.resolved_ts.max(of.progress.checkpoint_ts)
}

/// What `GET .../status` answers.
pub fn status(of: &ChangefeedOverview) -> model::ChangefeedStatus {
    let (last_error, last_warning) = last_errors(&of.status);
    model::ChangefeedStatus {
        state: state(of.status.state).to_owned(),
        resolved_ts: resolved(of).0,
        checkpoint_ts: of.progress.checkpoint_ts.0,
        last_error,
        last_warning,
    }
}

fn admin_job_type(state: FeedState) -> u64 {
    match state {
        FeedState::Stopped => 1,
        FeedState::Removed => 3,
        FeedState::Finished => 4,
        _ => 0,
    }
}

/// A configuration with the defaults filled in. Objects are merged, everything else replaced; `null` means the default.
pub fn effective_config(defaults: &Map<String, Value>, given: &Map<String, Value>) -> Map<String, Value> {
    let mut merged = defaults.clone();
    for (key, value) in given {
        match (merged.get_mut(key), value) {
            (Some(_), Value::Null) => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                let inner = effective_config(old, new);
                *old = inner;
            }
            (Some(old), new) => old.clone_from(new),
            (None, new) => {
                merged.insert(key.clone(), new.clone());
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states_on_the_wire_are_the_contracts() {
        assert_eq!(state(FeedState::Uninitialized), "normal");
        assert_eq!(state(FeedState::Pending), "pending");
        assert_eq!(list_state(FeedState::Pending), "warning");
        assert_eq!(list_state(FeedState::Uninitialized), "normal");
        assert_eq!(list_state(FeedState::Failed), "failed");
    }

    #[test]
    fn the_state_filter_is_the_contracts() {
        let all = StateFilter::parse("all").unwrap();
        let live = StateFilter::parse("").unwrap();
        for feed in FeedState::ALL {
            assert!(all.admits(feed));
            assert_eq!(
                live.admits(feed),
                !matches!(feed, FeedState::Finished | FeedState::Removed),
                "{feed}"
            );
        }
        let normal = StateFilter::parse("normal").unwrap();
        assert!(normal.admits(FeedState::Uninitialized) && normal.admits(FeedState::Normal));
        assert!(!normal.admits(FeedState::Warning));
        assert!(StateFilter::parse("running").unwrap_err().contains("stopped"));
    }

    #[test]
    fn what_is_not_given_is_the_default() {
        let Value::Object(defaults) = json!({"a": 1, "filter": {"rules": ["*.*"], "x": 1}}) else { panic!() };
        let Value::Object(given) = json!({"filter": {"rules": ["a.*"]}, "a": null, "new": {"k": 1}}) else {
            panic!()
        };
        let merged = Value::Object(effective_config(&defaults, &given));
        assert_eq!(merged, json!({"a": 1, "filter": {"rules": ["a.*"], "x": 1}, "new": {"k": 1}}));
        let Value::Object(null) = json!({"filter": null}) else { panic!() };
        assert_eq!(effective_config(&defaults, &null), defaults);
    }
}
