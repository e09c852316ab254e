//! Numbers that are the same at each run.

/// Knuth's MMIX generator: good enough to choose what a test writes.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`, which is not 0.
    pub fn below_u64(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// The same for an index.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.below_u64(limit as u64)).expect("it is below a usize")
    }

    /// One of these SQL literals, or NULL.
    pub fn literal(&mut self, values: &[&'static str]) -> &'static str {
        values.get(self.below(values.len() + 1)).copied().unwrap_or("NULL")
    }
}
