//! Maps by capture. A planner asks them for each changefeed, and the ids are random already: nothing has to mix them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::model::CaptureId;

/// A map by capture, without an order.
pub(super) type ById<V> = HashMap<CaptureId, V, BuildHasherDefault<IdHasher>>;

/// The bits of an id, folded.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.0 = self.0.rotate_left(5) ^ u64::from_be_bytes(*word);
        }
        for byte in rest {
            self.0 = self.0.rotate_left(5) ^ u64::from(*byte);
        }
    }

    fn finish(&self) -> u64 {
        // The low bits of an id choose the place, the high ones tell apart what shares it.
        self.0 ^ self.0.rotate_left(57)
    }
}
