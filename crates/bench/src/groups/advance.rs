//! A capture's progress with 1 to 1,000 changefeeds, against a bare one-row `UPDATE` of the same bytes.

use std::sync::Arc;

use anyhow::Result;
use futures::FutureExt as _;
use metadata_api::codec::encode_progress;
use metadata_api::model::{CaptureProgress, CaptureTerm, OwnedProgress, OwnerEpoch, Ts};
use metadata_api::store::MetadataStore;

use super::{Run, new_capture};
use crate::figure::size;
use crate::measure::{Lanes, versus};
use crate::raw::{Raw, Value};
use crate::seed;

struct Reporter {
    store: Arc<dyn MetadataStore>,
    term: CaptureTerm,
    seq: u64,
    progress: CaptureProgress,
}

impl Reporter {
    async fn advance(&mut self) -> Result<()> {
        self.seq += 1;
        forward(&mut self.progress);
        Ok(self.store.capture_advance(self.term, self.seq, &self.progress).await?)
    }
}

/// Every changefeed has come a little further; the text stays as long as it is.
fn forward(progress: &mut CaptureProgress) {
    for entry in progress.0.values_mut() {
        let ts = &mut entry.progress.checkpoint_ts;
        *ts = Ts(if ts.0 >= 9_000 { 1_000 } else { ts.0 + 1 });
    }
}

struct Bare {
    raw: Raw,
    id: String,
    seq: u64,
    values: [String; 2],
}

impl Bare {
    async fn advance(&mut self) -> Result<()> {
        self.seq += 1;
        let [even, odd] = &self.values;
        let value = if self.seq.is_multiple_of(2) { even } else { odd };
        let values = [Value::Number(self.seq), Value::Text(value), Value::Text(&self.id)];
        self.raw
            .prepared("UPDATE bare_progress SET seq = ?, value = ? WHERE capture_id = ?", &values)
            .await?;
        Ok(())
    }
}

pub async fn run(run: &mut Run<'_>) -> Result<()> {
    for count in run.scale.advance.clone() {
        run.say(format!("progress of {count} changefeeds"));
        let bed = run.target.bed().await?;
        let store = bed.store().await?;
        let term = store.capture_register(&new_capture()).await?;
        bed.copy_tables(&["progress"]).await?;
        let entry = OwnedProgress::new(OwnerEpoch(seed::REVISION), seed::progress(1_000));
        let mut progress = CaptureProgress((0..count).map(|n| (seed::uuid(n), entry.clone())).collect());
        let even = encode_progress(&progress)?;
        forward(&mut progress);
        let values = [even, encode_progress(&progress)?];
        let bytes = size(values.iter().map(String::len).max().unwrap_or(0));
        let bare = Bare { raw: bed.raw().await?, id: term.capture.to_string(), seq: 0, values };
        let mut bare = Lanes::new(vec![bare], |bare: &mut Bare| bare.advance().boxed());
        let ours = Reporter { store, term, seq: 0, progress };
        let mut ours = Lanes::new(vec![ours], |reporter: &mut Reporter| reporter.advance().boxed());
        let rate = versus(run.scale.rounds, run.scale.turn, &mut ours, &mut bare).await?;
        let name = format!("advance_{count}");
        run.add(&name, rate.value, "a second", Some(rate.baseline));
        let positions = Some(rate.baseline * size(count));
        run.add(format!("{name}_positions"), rate.value * size(count), "positions a second", positions);
        run.add(format!("{name}_bytes"), bytes, "bytes written", Some(bytes));
        drop((ours, bare));
        bed.remove().await?;
    }
    Ok(())
}
