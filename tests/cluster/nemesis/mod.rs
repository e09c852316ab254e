//! A nemesis: one fault after the other, in random order, on real processes and a real database, while tables of a real
//! `MySQL` are replicated.
//!
//! ```text
//! make nemesis MINUTES=10 SEED=1 DATABASE=mysql FAULTS=Suspended,Restored
//! ```
//!
//! After each fault everything has to run again within a bound. All the time a history of the database is read and
//! judged ([`history`]), and the [`Watcher`](crate::harness::Watcher) looks for checkpoints that go back and for writes of an older
//! epoch after a newer. At the end the files, replayed, must be the tables.

mod faults;
mod history;
mod load;
// Of `cdc-under-test`: another name there would be a fault that does nothing.
#[path = "../../src/steering.rs"]
mod steering;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;

use self::faults::{Backup, Fault, Victims};
use self::history::History;
use self::load::{FEEDS, Load};
use crate::harness::{Cluster, Kind, Random, SLACK, now, run_alone, say, wall_ms};

mod mysql {
    use super::*;

    #[test]
    fn faults_in_random_order_lose_nothing() {
        run_alone(nemesis(Kind::Mysql));
    }
}

mod mariadb {
    use super::*;

    #[test]
    #[ignore = "make nemesis DATABASE=mariadb"]
    fn faults_in_random_order_lose_nothing() {
        run_alone(nemesis(Kind::Mariadb));
    }
}

mod tidb {
    use super::*;

    #[test]
    #[ignore = "make nemesis DATABASE=tidb"]
    fn faults_in_random_order_lose_nothing() {
        run_alone(nemesis(Kind::Tidb));
    }
}

/// A setting from the environment.
fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else { return default };
    if text.is_empty() {
        default
    } else {
        text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
    }
}

async fn nemesis(kind: Kind) {
    let minutes: f64 = setting("NEMESIS_MINUTES", 2.0);
    let seed: u64 = setting("NEMESIS_SEED", 1);
    let again = format!("make nemesis MINUTES={minutes} SEED={seed} DATABASE={kind}");
    say(&format!("nemesis: {again}"));
    let mut random = Random::new(seed);
    let (mut cluster, proxies) = Cluster::start_behind_proxies(kind, 3).await;
    let mut load = Load::start(&cluster, seed).await;
    let history = History::start(&cluster.store.url);
    cluster.balanced().await;
    cluster.all_move().await;
    let mut backup = Backup::take(&cluster.store.url).await;

    let start = now();
    let mut order: Vec<Fault> = Vec::new();
    let mut struck = 0;
    while now().since(start) < Duration::from_secs_f64(minutes * 60.0) {
        if order.is_empty() {
            order = shuffled(&mut random);
        }
        let fault = order.pop().expect("it was just filled");
        // What is put back must be older than what is there.
        if fault != Fault::Restored && random.below(3) == 0 {
            backup = Backup::take(&cluster.store.url).await;
        }
        if fault.moves_nothing() {
            // Who came back after the fault before is given its part first.
            cluster.balanced().await;
        }
        let before = cluster.look().await;
        let at = now().since(start);
        let mut victims = Victims {
            cluster: &mut cluster,
            proxies: &proxies,
            history: &history,
            backup: &backup,
            random: &mut random,
        };
        let what = victims.strike(fault).await;
        let over = now();
        for (at, status) in cluster.ended_by_themselves() {
            say(&format!("nemesis: s{} ended by itself: {status}", at + 1));
            cluster.start_again(at).await;
        }
        let moved = AssertUnwindSafe(cluster.all_move()).catch_unwind().await;
        if let Err(panic) = moved {
            say(&format!(
                "nemesis: {fault:?} at {:.0} s: {what}: not everything runs again; {again}",
                at.as_secs_f64()
            ));
            say(&history.story());
            std::panic::resume_unwind(panic);
        }
        let took = now().since(over);
        say(&format!(
            "nemesis: {:.0} s: {fault:?}: {what}; all ran {:.1} s after it was over",
            at.as_secs_f64(),
            took.as_secs_f64()
        ));
        assert!(
            took <= fault.recovery() + SLACK,
            "{fault:?}: it took {took:?} until everything ran again; {again}"
        );
        if fault.moves_nothing() {
            let look = cluster.look().await;
            assert_eq!(look.owners(), before.owners(), "{fault:?} moved something; {again}");
        }
        let (_, unlawful) = history.found();
        assert!(unlawful.is_empty(), "{fault:?}: {unlawful:#?}; {again}");
        let late = cluster.watcher.late_writes();
        assert!(late.is_empty(), "{fault:?}: written after a later epoch had begun: {late:#?}; {again}");
        struck += 1;
    }

    let transactions = load.stop().await;
    let end_ms = wall_ms();
    cluster.caught_up(end_ms).await;
    cluster.balanced().await;
    cluster.no_ghosts().await;
    let (states, unlawful) = history.found();
    assert!(unlawful.is_empty(), "{unlawful:#?}; {again}");
    drop(history);
    let overviews = cluster.stop().await;
    assert_eq!(overviews.len(), FEEDS);
    say(&format!(
        "nemesis: {struck} faults, {transactions} transactions, {states} states of the database ({kind})"
    ));
    load.check(&cluster).await;
    cluster.store.close().await;
}

/// All faults (or those whose names begin as the setting says), in an order of the seed's.
fn shuffled(random: &mut Random) -> Vec<Fault> {
    let named: String = setting("NEMESIS_FAULTS", String::new());
    let is_meant = |fault: &Fault| named.split(',').any(|name| format!("{fault:?}").starts_with(name));
    let mut order: Vec<Fault> = Fault::ALL.into_iter().filter(is_meant).collect();
    assert!(!order.is_empty(), "NEMESIS_FAULTS={named} names no fault; there are {:?}", Fault::ALL);
    for n in (1..order.len()).rev() {
        order.swap(n, random.below(n + 1));
    }
    order
}
