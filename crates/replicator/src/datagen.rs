//! What `datagen://` produces, as a pure function, so that a checker can say what must have arrived.
//!
//! `datagen://?tables=4&rows_per_second=100&seed=7` changes `tables` tables `datagen.t0`, `datagen.t1`, .. at
//! `rows_per_second` rows a second in all. Change number `n` (from 0) belongs to table `n % tables`, is a
//! transaction of its own, and commits at
//!
//! ```text
//! ts(n) = base + ceil((n + 1) * (1000 << 18) / rows_per_second)
//! ```
//!
//! where `base` is the changefeed's start, fixed when it was created. So any owner can say for any ts which
//! changes came before it, whatever its own clock; the clock only says when a change is due.
//!
//! Within a table, the changes come in rounds of eight: six inserts, then an update of one of the six, then a
//! delete of another of them.

use std::ops::Range;
use std::sync::Arc;

use capture_runtime::task::TaskError;
use metadata_api::model::{SecretUri, Ts};

use crate::event::{Change, Column, ColumnKind, Row, RowChange, RowOp, Table, Value};
use crate::params::{Params, UriField};

/// One second in ts units.
const SECOND: u128 = 1000 << Ts::LOGICAL_BITS;
/// Inserts in a round.
const INSERTS: u64 = 6;
/// Changes in a round.
const ROUND: u64 = 8;

/// The parameters of a `datagen://` URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagenConfig {
    /// How many tables; 1 unless given.
    pub tables: u64,
    /// How many changes a second, over all tables; 100 unless given.
    pub rows_per_second: u64,
    /// What the values are made of; 0 unless given.
    pub seed: u64,
}

impl DatagenConfig {
    /// Reads a URI; `field` is what errors call it.
    ///
    /// # Errors
    /// [`TaskError`] naming the parameter and what would be right.
    pub fn from_uri(uri: &SecretUri) -> Result<Self, TaskError> {
        let params = Params::parse(UriField::Upstream, uri, &["tables", "rows_per_second", "seed"])?;
        params.no_place(
            "datagen has no host and no path: write datagen://?tables=1&rows_per_second=100&seed=0",
        )?;
        Ok(Self {
            tables: params.number("tables", 1, 1..=10_000)?,
            rows_per_second: params.number("rows_per_second", 100, 1..=1_000_000)?,
            seed: params.number("seed", 0, 0..=u64::MAX)?,
        })
    }
}

/// All changes of one changefeed, past and future.
#[derive(Clone, Debug)]
pub struct Generator {
    config: DatagenConfig,
    base: Ts,
    tables: Vec<Arc<Table>>,
}

impl Generator {
    /// The changes after `base`.
    pub fn new(config: DatagenConfig, base: Ts) -> Self {
        let tables = (0..config.tables).map(|index| Arc::new(table(index))).collect();
        Self { config, base, tables }
    }

    /// The ts before the first change.
    pub fn base(&self) -> Ts {
        self.base
    }

    /// When change `n` commits. Strictly grows with `n`.
    pub fn ts_of(&self, n: u64) -> Ts {
        let after = ((u128::from(n) + 1) * SECOND).div_ceil(u128::from(self.config.rows_per_second));
        let ts = u128::from(self.base.0) + after;
        u64::try_from(ts).map_or(Ts::MAX, |ts| Ts(ts.min(Ts::MAX.0)))
    }

    /// How many changes commit at or before `ts`.
    pub fn count_until(&self, ts: Ts) -> u64 {
        let elapsed = u128::from(ts.0.saturating_sub(self.base.0));
        // ceil(a / b) <= e  <=>  a <= e * b, for whole numbers.
        u64::try_from(elapsed * u128::from(self.config.rows_per_second) / SECOND).unwrap_or(u64::MAX)
    }

    /// The numbers of the changes in `(after, until]`.
    pub fn numbers(&self, after: Ts, until: Ts) -> Range<u64> {
        self.count_until(after)..self.count_until(until).max(self.count_until(after))
    }

    /// The changes in `(after, until]`, in order.
    pub fn changes(&self, after: Ts, until: Ts) -> impl Iterator<Item = RowChange> + '_ {
        self.numbers(after, until).map(|n| self.change(n))
    }

    /// The number of the table that change number `n` belongs to.
    pub fn table_of(&self, n: u64) -> u64 {
        n % self.config.tables
    }

    /// Change number `n`.
    ///
    /// # Panics
    /// Never: there is at least one table.
    pub fn change(&self, n: u64) -> RowChange {
        let index = self.table_of(n);
        let nth = n / self.config.tables;
        let (round, step) = (nth / ROUND, nth % ROUND);
        let first = round * INSERTS + 1;
        let pick = mix(self.config.seed ^ mix(index) ^ round);
        let updated = pick % INSERTS;
        let deleted = (updated + 1 + (pick >> 32) % (INSERTS - 1)) % INSERTS;
        let op = match step {
            6 => RowOp::Update {
                old: self.row(index, first + updated, 0),
                new: self.row(index, first + updated, 1),
            },
            7 => RowOp::Delete { old: self.row(index, first + deleted, 0) },
            _ => RowOp::Insert { new: self.row(index, first + step, 0) },
        };
        let position = usize::try_from(index).unwrap_or(usize::MAX);
        RowChange { table: Arc::clone(&self.tables[position]), commit_ts: self.ts_of(n), op }
    }

    /// The cells of row `key`, as it was inserted (`version` 0) or updated (1).
    fn row(&self, table: u64, key: u64, version: u64) -> Row {
        let bits = mix(self.config.seed ^ mix(table << 1 | version) ^ mix(key));
        let cents = i64::try_from(bits % 100_000_000).unwrap_or(0) - 50_000_000;
        let sign = if cents < 0 { "-" } else { "" };
        let name = match bits % 4 {
            0 => format!("row {key}"),
            1 => format!("reihe \"{key}\" grün"),
            2 => format!("行 {key} 🚀\n"),
            _ => format!("строка\\{key}"),
        };
        let note =
            if bits.is_multiple_of(5) { Value::Null } else { Value::Bytes(bits.to_be_bytes().to_vec()) };
        vec![
            Value::UInt(key),
            Value::Int(i64::try_from(version).unwrap_or(0)),
            Value::Text(name),
            Value::Text(format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100)),
            Value::Int(i64::from_ne_bytes(bits.to_ne_bytes())),
            note,
        ]
    }
}

fn table(index: u64) -> Table {
    let column = |name: &str, kind, unsigned| Column {
        name: name.to_owned(),
        kind,
        unsigned,
        primary_key: name == "id",
    };
    Table {
        schema: "datagen".to_owned(),
        name: format!("t{index}"),
        columns: vec![
            column("id", ColumnKind::BigInt, true),
            column("version", ColumnKind::Int, false),
            column("name", ColumnKind::VarChar, false),
            column("amount", ColumnKind::Decimal, false),
            column("checksum", ColumnKind::BigInt, false),
            column("note", ColumnKind::VarBinary, false),
        ],
    }
}

/// `SplitMix64`'s finalizer: spreads the bits of a counter.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl From<RowChange> for Change {
    fn from(change: RowChange) -> Self {
        Self::Row(change)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn generator(tables: u64, rows_per_second: u64, seed: u64, base: u64) -> Generator {
        Generator::new(DatagenConfig { tables, rows_per_second, seed }, Ts(base))
    }

    proptest! {
        #[test]
        fn a_range_is_the_same_however_it_is_cut(
            tables in 1_u64..5, rate in 1_u64..1_000_000, seed: u64, base in 0_u64..1 << 60,
            cuts in prop::collection::vec(0_u64..2000, 1..6),
        ) {
            let generator = generator(tables, rate, seed, base);
            let mut cuts: Vec<Ts> = cuts.into_iter().map(|n| Ts(generator.ts_of(n).0 - n % 3)).collect();
            cuts.sort_unstable();
            let mut after = Ts(base);
            let mut numbers = Vec::new();
            for cut in &cuts {
                numbers.extend(generator.numbers(after, *cut));
                after = *cut;
            }
            let last = cuts[cuts.len() - 1];
            let whole: Vec<u64> = generator.numbers(Ts(base), last).collect();
            prop_assert_eq!(numbers, whole);
        }

        #[test]
        fn a_change_is_counted_from_its_ts_on(rate in 1_u64..1_000_000, n in 0_u64..1 << 40, base in 0_u64..1 << 60) {
            let generator = generator(3, rate, 1, base);
            let ts = generator.ts_of(n);
            prop_assert_eq!(generator.count_until(ts), n + 1);
            prop_assert_eq!(generator.count_until(Ts(ts.0 - 1)), n);
            prop_assert!(generator.ts_of(n + 1) > ts);
        }
    }

    #[test]
    fn updates_and_deletes_meet_the_row_as_it_is() {
        let generator = generator(3, 1000, 42, 1 << 40);
        let mut rows: BTreeMap<(String, u64), Row> = BTreeMap::new();
        let mut seen = [0_u32; 3];
        let key = |row: &Row| match row[0] {
            Value::UInt(key) => key,
            _ => panic!("the key is unsigned"),
        };
        for n in 0..10_000 {
            let change = generator.change(n);
            let table = change.table.name.clone();
            match change.op {
                RowOp::Insert { new } => {
                    seen[0] += 1;
                    assert!(rows.insert((table, key(&new)), new).is_none());
                }
                RowOp::Update { old, new } => {
                    seen[1] += 1;
                    assert_eq!(rows.insert((table, key(&new)), new), Some(old));
                }
                RowOp::Delete { old } => {
                    seen[2] += 1;
                    assert_eq!(rows.remove(&(table, key(&old))), Some(old));
                }
            }
        }
        assert!(seen[0] > 7000 && seen[1] > 1000 && seen[2] > 1000, "{seen:?}");
    }

    #[test]
    fn parameters_are_checked() {
        let config = |text: &str| DatagenConfig::from_uri(&SecretUri::parse("upstream_uri", text).unwrap());
        assert_eq!(
            config("datagen://?tables=3&rows_per_second=50&seed=9").unwrap(),
            DatagenConfig { tables: 3, rows_per_second: 50, seed: 9 }
        );
        assert_eq!(config("datagen://").unwrap(), DatagenConfig { tables: 1, rows_per_second: 100, seed: 0 });
        for bad in
            ["datagen://?tables=0", "datagen://?rows_per_second=x", "datagen://?rate=1", "datagen://host/p"]
        {
            let error = config(bad).unwrap_err();
            assert_eq!(error.code, "CDC:ErrAPIInvalidParam");
            assert!(error.message.contains("upstream_uri"), "{error}");
        }
    }
}
