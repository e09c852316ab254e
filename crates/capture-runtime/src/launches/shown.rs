//! The metrics that TiCDC's dashboards show of a changefeed.

use metadata_api::model::ChangefeedInfo;
use metrics::{Key, Label, Level, Metadata, with_recorder};

/// What one changefeed's metrics are called: made once a launch, since they are set each second.
pub(super) struct Shown {
    checkpoint: Key,
    lag: Key,
}

impl Shown {
    pub(super) fn of(info: &ChangefeedInfo) -> Self {
        let labels = || {
            vec![
                Label::new("namespace", info.name.namespace.as_str().to_owned()),
                Label::new("changefeed", info.name.id.as_str().to_owned()),
            ]
        };
        Self {
            checkpoint: Key::from_parts("ticdc_owner_checkpoint_ts", labels()),
            lag: Key::from_parts("ticdc_owner_checkpoint_ts_lag", labels()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^52")]
    pub(super) fn set(&self, checkpoint_ms: u64, wall_ms: u64) {
        set(&self.checkpoint, checkpoint_ms as f64);
        set(&self.lag, wall_ms.saturating_sub(checkpoint_ms) as f64 / 1000.0);
    }
}

/// What `gauge!` does, with a key that is kept.
fn set(key: &Key, value: f64) {
    static OURS: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
    with_recorder(|recorder| recorder.register_gauge(key, &OURS)).set(value);
}
