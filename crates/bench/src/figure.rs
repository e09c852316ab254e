//! A figure, and the arithmetic behind it.

use serde::Serialize;

use crate::database::Database;

/// One measured number, as `bench-results.json` lists it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured: `heartbeat_conn_64`.
    pub name: String,
    /// On which database.
    pub database: Database,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// The same of the raw baseline of the same run; `None` where there is none.
    pub baseline: Option<f64>,
    /// `value / baseline`. Of rates more is better, of times and costs less.
    pub ratio: Option<f64>,
}

impl Figure {
    /// A figure; the ratio follows.
    pub fn new(
        name: impl Into<String>,
        database: Database,
        value: f64,
        unit: &'static str,
        baseline: Option<f64>,
    ) -> Self {
        let ratio = baseline.filter(|baseline| *baseline > 0.0).map(|baseline| rounded(value / baseline));
        Self {
            name: name.into(),
            database,
            value: rounded(value),
            unit,
            baseline: baseline.map(rounded),
            ratio,
        }
    }
}

/// To four significant digits, so that the file shows no more than was measured.
pub fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "a logarithm of a finite number is small")]
    let digits = 3 - value.abs().log10().floor() as i32;
    if digits <= 0 {
        return value.round();
    }
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// The middle one; of an even number the mean of the two in the middle; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (_, None) => 0.0,
        (Some(below), Some(above)) if sorted.len().is_multiple_of(2) => f64::midpoint(*below, *above),
        (_, Some(middle)) => *middle,
    }
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "nothing here is counted to 2^52")]
pub const fn number(count: u64) -> f64 {
    count as f64
}

/// The same of a length.
pub const fn size(count: usize) -> f64 {
    number(count as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[]).to_bits(), 0.0_f64.to_bits());
        assert_eq!(median(&[3.0]).to_bits(), 3.0_f64.to_bits());
        assert_eq!(median(&[9.0, 1.0, 5.0]).to_bits(), 5.0_f64.to_bits());
        assert_eq!(median(&[9.0, 1.0, 5.0, 4.0]).to_bits(), 4.5_f64.to_bits());
    }

    #[test]
    fn four_digits_are_kept() {
        for (value, shown) in
            [(0.0, 0.0), (1234.567, 1235.0), (0.123_456, 0.1235), (98.765_4, 98.77), (123_456.7, 123_457.0)]
        {
            assert!((rounded(value) - shown).abs() < 1e-9, "{value}");
        }
        assert!(rounded(f64::NAN).abs() < 1e-9);
    }

    #[test]
    fn a_ratio_wants_a_baseline() {
        let figure = |baseline| Figure::new("x", Database::Mysql, 95.0, "a second", baseline);
        assert_eq!(figure(Some(100.0)).ratio, Some(0.95));
        assert_eq!(figure(Some(0.0)).ratio, None);
        assert_eq!(figure(None).ratio, None);
    }

    #[test]
    fn the_file_has_the_keys_that_were_agreed() {
        let json = serde_json::to_value(Figure::new("x", Database::Tidb, 1.0, "s", None)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"name": "x", "database": "tidb", "value": 1.0, "unit": "s", "baseline": null, "ratio": null})
        );
    }
}
