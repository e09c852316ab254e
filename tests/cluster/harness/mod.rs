//! Real clusters, and what is seen of them.
//!
//! * [`Cluster`] - server processes on one store, their changefeeds, signals to them.
//! * [`TestStore`] - the metadata database, and how to pause it.
//! * [`Watcher`] - looks at the API and at the sink's files all the time, and remembers what must never be.
//! * [`run`] - a test's frame: a bounded number of clusters at once, each with a runtime of its own.

use std::io::Write as _;
use std::time::Duration;

use capture_runtime::clock::{BootTime, Clock as _, SystemClock};
use tokio::sync::Semaphore;

mod cluster;
mod program;
mod random;
mod store;
mod watch;

pub use cluster::{Cluster, Struck, feed_body, feed_id};
pub use program::{Output, run_program};
pub use random::Random;
pub use store::{Kind, TestStore, dump};
pub use watch::{FeedLook, Look, Watcher};

/// How much later than its bound an event may be seen: the machines of the tests are busy.
pub const SLACK: Duration = Duration::from_secs(2);
/// How long things may take that have no bound of their own.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many clusters run at once. Each has three processes and a database that syncs; more of them on few cores break
/// each other's bounds.
const SLOTS: u32 = 2;
static FREE: Semaphore = Semaphore::const_new(SLOTS as usize);

/// Runs a test beside others.
pub fn run(test: impl Future<Output = ()>) {
    run_in(1, test);
}

/// Runs a test while no other runs.
pub fn run_alone(test: impl Future<Output = ()>) {
    run_in(SLOTS, test);
}

fn run_in(slots: u32, test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let _slot = FREE.acquire_many(slots).await.expect("it is never closed");
        test.await;
    });
}

/// Now.
pub fn now() -> BootTime {
    SystemClock.now()
}

/// The wall clock in milliseconds, as timestamps have it.
pub fn wall_ms() -> u64 {
    u64::try_from(SystemClock.wall().timestamp_millis()).expect("after 1970")
}

/// Says how long something took, and fails when that is more than its bound and the slack.
pub fn measured(what: &str, kind: Kind, took: Duration, bound: Duration) {
    say(&format!("measured: {what} {:.1} s (bound {} s, {kind})", took.as_secs_f64(), bound.as_secs_f64()));
    assert!(took <= bound + SLACK, "{what} took {took:?}, the bound is {bound:?}");
}

/// A line that is seen although the test passes: `println!` would be captured.
pub fn say(line: &str) {
    // In one piece, so that lines of tests at the same time do not mix. Nobody may be there to read it.
    let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
}

/// Stamps out each test once for each store. Those of `everywhere` run on all of them whenever tests run; those of
/// `elsewhere_on_demand` do so on SQLite and on MySQL, and on the others by `make cluster DATABASE=tidb`: what a server does
/// differently is the store's to hide, and its own tests run on every server.
macro_rules! on_every_store {
    (@$module:ident $kind:ident $attributes:tt: $($name:ident)*) => {
        mod $module {
            $(crate::harness::on_every_store! { @test $kind $attributes $name })*
        }
    };
    (@test $kind:ident ($(#[$ignored:meta])?) $name:ident) => {
        #[test]
        $(#[$ignored])?
        fn $name() {
            crate::harness::run(super::$name(crate::harness::Kind::$kind));
        }
    };
    (@others $attributes:tt: $($name:ident)*) => {
        crate::harness::on_every_store! { @sqlite Sqlite (): $($name)* }
        crate::harness::on_every_store! { @mysql Mysql (): $($name)* }
        crate::harness::on_every_store! { @mariadb Mariadb $attributes: $($name)* }
        crate::harness::on_every_store! { @tidb Tidb $attributes: $($name)* }
    };
    (everywhere: $($name:ident)*) => {
        crate::harness::on_every_store! { @others (): $($name)* }
    };
    (elsewhere_on_demand: $($name:ident)*) => {
        crate::harness::on_every_store! { @others (#[ignore = "make cluster DATABASE=mariadb,tidb"]): $($name)* }
    };
}
pub(crate) use on_every_store;
