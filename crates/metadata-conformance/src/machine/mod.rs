//! A state machine: random operations of every kind, done on the store and on the store in memory, which is the model.
//!
//! An operation (`op`) names nothing by an id, so that any part of a sequence can be left out; what its symbols stand for
//! (`names`) is the same on both sides, because the model's clock shows the revision that the store under test has taken, and
//! all that stores choose are revisions. Each operation is done on the one and then on the other (`apply`). Both must answer
//! alike, down to the last field but the times of the database's clock, or refuse for the same reason; then what the planner
//! reads must be alike, and at the end everything readable. A refusal takes no revision; what changed something that others
//! act on takes one.
//!
//! A sequence that shows a difference is made as short as it can be (proptest) and printed. A method that is not among the
//! operations is noticed: [`WRITES`](crate::harness::WRITES) and [`READS`](crate::harness::READS) must list every method, and
//! the machine's own tests want each that is listed done, and each write refused.
//!
//! `CDC_MACHINE_SECONDS` (15 unless told otherwise) is for how long sequences are begun, `CDC_MACHINE_SEED` which comes first.

mod apply;
mod names;
mod op;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use metadata_api::model::Revision;
use metadata_memory::{DatabaseClock, MemoryCluster, Tamper};
use proptest::strategy::Strategy as _;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use rand::RngExt as _;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::harness::{Cluster, dump_planned, dump_timeless};
use apply::Side;
use names::Names;
use op::{Observed, Op, sequences};

/// The longest sequence, in steps of some operations each.
const LONGEST: usize = 20;

/// At least so many sequences are tried, however slow the store.
const FEWEST: u64 = 10;

/// A call that takes longer hangs.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// For how long a sequence that failed is made shorter, in milliseconds.
const SHRINK_MS: u32 = 60_000;

/// Takes every table back to what the last migration left, but for the revision, which never goes back.
const EMPTY: &str = "DELETE FROM processor; DELETE FROM schedule; DELETE FROM changefeed_state; \
    DELETE FROM changefeed_info; DELETE FROM upstream; DELETE FROM progress; DELETE FROM capture; \
    UPDATE election SET leader_id = NULL, controller_epoch = 0, lease_seq = 0, cooldown = NULL, version = 1; \
    UPDATE fence SET controller_epoch = 0";

/// The model's clock shows what it is told.
#[derive(Debug, Default)]
struct Told(AtomicU64);

impl DatabaseClock for Told {
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn wall(&self) -> DateTime<Utc> {
        let micros = i64::try_from(self.0.load(Ordering::Relaxed)).expect("a time");
        DateTime::from_timestamp_micros(micros).expect("a time")
    }
}

/// How often each method was done, and refused.
type Counts = BTreeMap<&'static str, (u64, u64)>;

/// What the store under test does instead of an operation, where it is to be found out. Stores are given none.
type Mistake = fn(&Op) -> Op;

/// The two stores.
struct Machine {
    under_test: Side,
    model: Side,
    cluster: MemoryCluster,
    clock: Arc<Told>,
    names: Names,
}

impl Machine {
    async fn begin(c: &Cluster) -> Self {
        c.execute(EMPTY).await;
        let under_test = Side::new(Arc::clone(&c.store)).await;
        let clock = Arc::new(Told::default());
        let cluster = MemoryCluster::new(Arc::clone(&clock) as Arc<dyn DatabaseClock>);
        cluster.tamper(Tamper::SetRevision(under_test.revision().await));
        let model = Side::new(Arc::new(cluster.open())).await;
        Self { under_test, model, cluster, clock, names: Names::default() }
    }

    /// Does `op` on both, and says in what they differ.
    async fn step(&mut self, op: &Op, mistake: Mistake, counts: &mut Counts) -> Result<(), String> {
        let rows = Arc::clone(&self.model.store);
        let before = self.cluster.read(metadata_memory::Tables::revision);
        let given = self.under_test.apply(&self.names, &*rows, &mistake(op)).await;
        let after = self.under_test.revision().await;
        self.clock.0.store(after.0, Ordering::Relaxed);
        let wanted = self.model.apply(&self.names, &*rows, op).await;
        if given.text != wanted.text && !either_may_be_said(op, &wanted.text, &given.text) {
            let shown = |text: &Result<String, String>| match text {
                Ok(answer) => answer.clone(),
                Err(refusal) => format!("refused: {refusal}"),
            };
            return Err(format!("want {}\n got {}", shown(&wanted.text), shown(&given.text)));
        }
        self.check_revision(op, before, after, wanted.text.is_err())?;
        let left = matches!(op, Op::Deregister(capture) if {
            let id = self.names.capture(*capture).capture;
            self.cluster.read(|tables| tables.capture(id).is_some())
        });
        let method = if left { "capture_deregister with work" } else { op.method() };
        let count = counts.entry(method).or_default();
        if wanted.text.is_ok() {
            count.0 += 1
        } else {
            count.1 += 1
        }
        for token in wanted.tokens {
            self.names.learn(token);
        }
        Ok(())
    }

    /// Compares the rows: all of them, or what the planner reads, which is one statement.
    async fn check_rows(&self, all: bool) -> Result<(), String> {
        let (model, under_test) = (&*self.model.store, &*self.under_test.store);
        let (wanted, given) = if all {
            (dump_timeless(model).await, dump_timeless(under_test).await)
        } else {
            (dump_planned(model).await, dump_planned(under_test).await)
        };
        let changes = wanted.changes_to(&given);
        if changes.is_empty() {
            Ok(())
        } else {
            Err(format!("the rows are not those of the model:\n{changes}"))
        }
    }

    /// A revision is taken by what changes something that others act on, and may be by what was done already.
    fn check_revision(
        &self,
        op: &Op,
        before: Revision,
        after: Revision,
        refused: bool,
    ) -> Result<(), String> {
        let model = self.cluster.read(metadata_memory::Tables::revision);
        if model != before && after != model {
            return Err(format!("it should have taken a revision, and {before} became {after}"));
        }
        if (refused || op.is_read()) && after != before {
            return Err(format!("it should have taken no revision, and {before} became {after}"));
        }
        self.cluster.tamper(Tamper::SetRevision(after));
        Ok(())
    }
}

/// Whether two reasons hold at once and a store may give either: the traits do not say which is looked at first.
fn either_may_be_said(op: &Op, wanted: &Result<String, String>, given: &Result<String, String>) -> bool {
    let (Err(wanted), Err(given)) = (wanted, given) else { return false };
    match op {
        // Who is not alive and observed something else, too.
        Op::Campaign { observed, .. } => {
            *observed != Observed::AsItIs && wanted == "Fenced" && given == "Conflict"
        }
        _ => false,
    }
}

/// Which operation of a sequence, from 0, went wrong, and how.
type Difference = (usize, String);

/// Does `ops` on both stores, up to the first difference. All rows are compared at the end, and some of each on the way.
async fn compare(c: &Cluster, ops: &[Op], mistake: Mistake, counts: &mut Counts) -> Result<(), Difference> {
    let mut machine = Machine::begin(c).await;
    for (n, op) in ops.iter().enumerate() {
        let step = tokio::time::timeout(CALL_LIMIT, async {
            machine.step(op, mistake, counts).await?;
            machine.check_rows(n + 1 == ops.len()).await
        });
        let outcome = step.await.unwrap_or_else(|_| Err("it does not end".to_owned()));
        outcome.map_err(|difference| (n, difference))?;
    }
    Ok(())
}

/// The shortest sequence that was found to fail, and how its last operation went wrong.
#[derive(Debug)]
struct Failure {
    seed: u64,
    ops: Vec<Op>,
    difference: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the store is not the model (CDC_MACHINE_SEED={}); the shortest way there:", self.seed)?;
        for (n, op) in self.ops.iter().enumerate() {
            writeln!(f, "{:4}. {op:?}", n + 1)?;
        }
        f.write_str(&self.difference)
    }
}

/// Tries the sequence of this seed, and shorter ones when it fails.
///
/// It blocks: proptest's trees of values cannot be sent from thread to thread, and so held across no `await`.
fn attempt(c: &Cluster, seed: u64, mistake: Mistake, counts: &mut Counts) -> Result<(), Failure> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        failure_persistence: None,
        max_shrink_time: SHRINK_MS,
        // (`u32::MAX` would be proptest's word for few.)
        max_shrink_iters: u32::MAX - 1,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let tree = sequences(LONGEST).new_tree(&mut runner).expect("nothing is filtered");
    // What comes after the operation that went wrong does not matter, and what was tried is not tried again.
    let (length, mut tried) = (Cell::new(usize::MAX), BTreeMap::new());
    let state = RefCell::new((counts, &mut tried));
    let outcome = runner.run_one(tree, |ops| {
        let ops = &ops[..ops.len().min(length.get())];
        let (counts, tried) = &mut *state.borrow_mut();
        let outcome = tried
            .entry(format!("{ops:?}"))
            .or_insert_with(|| Handle::current().block_on(Box::pin(compare(c, ops, mistake, counts))));
        outcome.clone().map_err(|(n, difference)| {
            length.set(n + 1);
            TestCaseError::fail(difference)
        })
    });
    match outcome {
        Ok(_) => Ok(()),
        Err(TestError::Fail(difference, mut ops)) => {
            ops.truncate(length.get());
            Err(Failure { seed, ops, difference: difference.message().to_owned() })
        }
        Err(TestError::Abort(reason)) => panic!("CDC_MACHINE_SEED={seed}: {reason}"),
    }
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`; it must be a number")))
}

/// Whatever is done, the store does what the store in memory does.
pub async fn random_operations_do_what_the_model_does(c: &Cluster) {
    let first: u64 = number("CDC_MACHINE_SEED").unwrap_or_else(|| rand::rng().random());
    let end = Instant::now() + Duration::from_secs(number("CDC_MACHINE_SECONDS").unwrap_or(15));
    println!("CDC_MACHINE_SEED={first}");
    let (mut counts, mut tried) = (Counts::new(), 0);
    while tried < FEWEST || Instant::now() < end {
        let seed = first.wrapping_add(tried);
        if let Err(failure) = tokio::task::block_in_place(|| attempt(c, seed, Op::clone, &mut counts)) {
            panic!("{failure}");
        }
        tried += 1;
        // So that the case's own limit is looked at.
        tokio::task::yield_now().await;
    }
    println!("{tried} sequences; done and refused: {counts:?}");
}
