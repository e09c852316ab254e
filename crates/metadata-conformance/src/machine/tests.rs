//! The machine itself: that it does everything there is to do, and that what it finds is short.

use async_trait::async_trait;
use metadata_api::store::MetadataStore;
use metadata_api::store::faults::Faults;
use metadata_memory::{MemoryOptions, Table};

use super::op::{Expected, Number};
use super::*;
use crate::harness::{Database, Features, OPENED_BY_OTHERS, READS, WRITES};

struct Memory(MemoryCluster);

#[async_trait]
impl Database for Memory {
    async fn open(&self) -> Arc<dyn MetadataStore> {
        Arc::new(self.0.open())
    }

    async fn open_with(&self, faults: Arc<dyn Faults>) -> Arc<dyn MetadataStore> {
        Arc::new(self.0.open_with(MemoryOptions { faults: Some(faults), ..MemoryOptions::default() }))
    }

    async fn execute(&self, sql: &str) {
        assert_eq!(sql, EMPTY, "nothing else is asked for");
        for table in &Table::ALL[2..] {
            self.0.tamper(Tamper::DeleteAll(*table));
        }
        self.0.tamper(Tamper::ResetElection);
    }

    async fn close(self: Box<Self>) {}
}

/// Tries `seeds` on the store in memory, up to the first one that fails.
fn attempts(seeds: std::ops::Range<u64>, mistake: Mistake) -> (Counts, Option<Failure>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let database = Memory(MemoryCluster::new(Arc::new(Told::default())));
        let cluster = Cluster::new(Box::new(database), Features { server_identity: false }).await;
        let mut counts = Counts::new();
        let failed = tokio::task::block_in_place(|| {
            seeds.map(|seed| attempt(&cluster, seed, mistake, &mut counts)).find_map(Result::err)
        });
        (counts, failed)
    })
}

#[test]
fn every_method_is_done_and_refused() {
    let (counts, failed) = attempts(0..100, Op::clone);
    assert!(failed.is_none(), "{}", failed.unwrap());
    for method in WRITES.into_iter().chain(READS).chain(OPENED_BY_OTHERS) {
        let (done, refused) = counts.get(method).copied().unwrap_or_default();
        assert!(done > 0, "{method} was never done: {counts:?}");
        let never = method.starts_with("capture_deregister") || method == "controller_depose";
        let write = WRITES.contains(&method) && !never;
        assert!(refused > 0 || !write, "{method} was never refused: {counts:?}");
    }
    let listed = WRITES.len() + READS.len() + OPENED_BY_OTHERS.len();
    assert_eq!(counts.len(), listed, "what is done is listed: {counts:?}");
}

/// A store that makes `mistake` is found out, by no more than `longest` operations.
fn is_found(longest: usize, mistake: Mistake) {
    let (_, failed) = attempts(0..200, mistake);
    let failure = failed.expect("it is found");
    println!("{failure}");
    assert!(failure.ops.len() <= longest, "{failure}");
}

#[test]
fn a_store_that_takes_an_old_owner_for_the_new_one_is_found() {
    is_found(8, |op| match op.clone() {
        Op::OwnerRelease(mut releases) => {
            for release in &mut releases {
                release.owner.ago = 0;
            }
            Op::OwnerRelease(releases)
        }
        other => other,
    });
}

#[test]
fn a_store_that_checks_no_version_is_found() {
    is_found(5, |op| match op.clone() {
        Op::OwnerSet { by, mut targets } => {
            for target in &mut targets {
                target.expected = Expected::AsItIs;
            }
            Op::OwnerSet { by, targets }
        }
        other => other,
    });
}

#[test]
fn a_store_that_takes_a_late_progress_is_found() {
    is_found(3, |op| match op.clone() {
        Op::Advance { capture, number: Number::Same, entries } => {
            Op::Advance { capture, number: Number::Next, entries }
        }
        other => other,
    });
}
