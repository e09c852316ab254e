//! The metrics of one changefeed. Their names are in the crate's documentation.

use std::time::Duration;

use metadata_api::model::ChangefeedName;
use metrics::{Counter, Histogram, Label, counter, histogram};

use crate::event::{Change, RowOp};

/// Handles, looked up once a launch.
pub(crate) struct Meters {
    labels: Vec<Label>,
    inserts: Counter,
    updates: Counter,
    deletes: Counter,
    ddls: Counter,
    bytes: Counter,
    errors: Counter,
    flushes: Histogram,
}

impl Meters {
    pub(crate) fn new(name: &ChangefeedName) -> Self {
        let labels = vec![
            Label::new("namespace", name.namespace.to_string()),
            Label::new("changefeed", name.id.to_string()),
        ];
        let rows = |kind: &'static str| {
            let mut labels = labels.clone();
            labels.push(Label::new("type", kind));
            counter!("ticdc_sink_rows_total", labels)
        };
        Self {
            inserts: rows("insert"),
            updates: rows("update"),
            deletes: rows("delete"),
            ddls: counter!("ticdc_sink_ddl_total", labels.clone()),
            bytes: counter!("ticdc_sink_bytes_total", labels.clone()),
            errors: counter!("ticdc_sink_execution_error", labels.clone()),
            flushes: histogram!("ticdc_sink_flush_duration_seconds", labels.clone()),
            labels,
        }
    }

    pub(crate) fn added(&self, change: &Change) {
        match change {
            Change::Row(row) => match row.op {
                RowOp::Insert { .. } => &self.inserts,
                RowOp::Update { .. } => &self.updates,
                RowOp::Delete { .. } => &self.deletes,
            },
            Change::Ddl(_) => &self.ddls,
        }
        .increment(1);
    }

    pub(crate) fn flushed(&self, bytes: usize, took: Duration, ok: bool) {
        if ok {
            self.bytes.increment(bytes as u64);
            self.flushes.record(took.as_secs_f64());
        } else {
            self.errors.increment(1);
        }
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        let mut labels = self.labels.clone();
        labels.push(Label::new("reason", reason));
        counter!("ticdc_sink_flush_refused_total", labels).increment(1);
    }
}
