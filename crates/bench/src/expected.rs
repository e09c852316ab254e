//! What a figure is wanted to be, and what the Go original's was.
//!
//! The original (`cdcv2/metadata` of pingcap/tiflow) was run on 2 cores shared by client and MySQL 9.7.4, durable. Compare
//! each figure with the bare baseline of its own run.

use crate::figure::Figure;

/// A bound on a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// The ratio, at least.
    Ratio(f64),
    /// The value, at most.
    AtMost(f64),
}

impl Wanted {
    /// Whether the figure is what is wanted; `None` when it has no ratio to judge.
    pub fn holds(self, figure: &Figure) -> Option<bool> {
        match self {
            Self::Ratio(least) => figure.ratio.map(|ratio| ratio >= least),
            Self::AtMost(most) => Some(figure.value <= most),
        }
    }

    /// For people.
    pub fn text(self) -> String {
        match self {
            Self::Ratio(least) => format!("ratio >= {least}"),
            Self::AtMost(most) => format!("<= {most}"),
        }
    }
}

/// What is wanted of the figure of this name.
pub fn wanted(name: &str) -> Option<Wanted> {
    let (start, end) = (|text| name.starts_with(text), |text| name.ends_with(text));
    Some(if start("heartbeat_conn_") {
        Wanted::Ratio(0.95)
    } else if end("_conflicts") || end("_ended") {
        Wanted::AtMost(0.0)
    } else if start("idle_") && end("_statements") {
        // Three, and the controller's own renewal and scan, shared out.
        Wanted::AtMost(3.05)
    } else if start("poll_") && end("_against_10") {
        Wanted::Ratio(0.9)
    } else if start("takeover_controller") {
        Wanted::AtMost(12.0 + 1.5)
    } else if start("plan_") {
        Wanted::AtMost(50.0)
    } else if name == "resign_controller" {
        Wanted::AtMost(1.5)
    } else if start("takeover_owner") {
        Wanted::AtMost(21.0)
    } else {
        return None;
    })
}

/// The Go original's figure of the same kind.
pub fn original(name: &str) -> Option<&'static str> {
    Some(match name {
        "heartbeat_conn_1" => "662",
        "heartbeat_conn_16" => "103",
        "heartbeat_conn_64" => "19",
        "advance_1" => "625",
        "advance_100" => "398",
        "advance_1000" => "149",
        "advance_round_trips" => "4",
        "create_conn_1" => "218",
        "create_conn_8" => "399",
        "create_round_trips" => "11",
        "set_owner_conn_1" => "531",
        "set_owner_conn_8" => "1236",
        "set_owner_round_trips" => "5",
        "pause_conn_8" => "1280",
        "list_infos_1000" => "29",
        "list_states_1000" => "447",
        "list_progress_1000" => "171",
        "list_snapshot_1000" => "237",
        "owner_change_p50" => "260",
        "owner_change_max" => "503",
        "takeover_controller_min" => "8.8 (lease 10)",
        "takeover_controller" => "9.5 (lease 10)",
        "takeover_controller_max" => "10.2 (lease 10)",
        "resign_controller" => "0.9 to 1.3",
        "takeover_owner" => "never",
        _ if name.starts_with("idle_") && name.ends_with("_statements") => "7.8",
        _ if name.starts_with("idle_") && name.ends_with("_ended") => "5 of 64",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Database;

    fn figure(name: &str, value: f64, baseline: Option<f64>) -> Figure {
        Figure::new(name, Database::Mysql, value, "", baseline)
    }

    #[test]
    fn a_bound_is_judged_by_value_or_ratio() {
        let heartbeat = wanted("heartbeat_conn_64").unwrap();
        assert_eq!(heartbeat.holds(&figure("", 95.0, Some(100.0))), Some(true));
        assert_eq!(heartbeat.holds(&figure("", 94.0, Some(100.0))), Some(false));
        assert_eq!(heartbeat.holds(&figure("", 94.0, None)), None);
        assert_eq!(wanted("takeover_controller_max").unwrap().holds(&figure("", 13.6, None)), Some(false));
        assert_eq!(wanted("captures_5000_conflicts").unwrap().holds(&figure("", 0.0, None)), Some(true));
        assert_eq!(wanted("create_conn_1"), None);
    }
}
