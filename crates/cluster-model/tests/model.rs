//! Production's decisions hold in every state that can be reached; each planted mistake is found.
//!
//! `MODEL=all` explores every study (`make model`), `MODEL="a crash and another"` a single one; without it those that take long are
//! left to that.

use std::fmt::Write as _;
use std::num::NonZero;
use std::thread::available_parallelism;
use std::time::Instant;

use cluster_model::cluster::{Cluster, Step};
use cluster_model::decisions::{Decisions, MUTANTS};
use cluster_model::faults::Fault;
use cluster_model::state::State;
use cluster_model::studies::{Study, hunts, studies};
use stateright::{Checker, HasDiscoveries, Model as _, Path};

/// A way to a state that must not be.
type Found = (&'static str, Path<State, Step>);

/// Explores until something is found, or everything was seen. `shortest`: finds a shortest way, for more memory.
#[expect(clippy::disallowed_methods, reason = "how long it took is for people")]
fn explore(cluster: Cluster, shortest: bool) -> Option<Found> {
    let threads = available_parallelism().map_or(1, NonZero::get).min(4);
    let (began, name) = (Instant::now(), std::thread::current().name().unwrap_or_default().to_owned());
    let checker = cluster.checker().threads(threads).finish_when(HasDiscoveries::Any);
    let (states, depth, found) = if shortest {
        let done = checker.spawn_bfs().join();
        (done.unique_state_count(), done.max_depth(), done.discoveries())
    } else {
        let done = checker.spawn_dfs().join();
        (done.unique_state_count(), done.max_depth(), done.discoveries())
    };
    println!("{name}: {states} states, {depth} steps deep, in {:.1?}", began.elapsed());
    found.into_iter().next()
}

fn told(found: &Found) -> String {
    let (property, path) = found;
    let mut told = format!("not so: {property}\n");
    for step in path.clone().into_actions() {
        let _ = writeln!(told, "  {step:?}");
    }
    let _ = write!(told, "{:?}", path.last_state());
    told
}

fn holds(study: Study) {
    println!("{}:", study.name);
    if let Some(found) = explore(study.cluster, false) {
        panic!("{}: {}", study.name, told(&found));
    }
}

#[test]
fn what_is_modelled_is_a_policy_that_production_accepts() {
    Decisions::production().policy.validate().expect("production accepts the model's policy");
}

#[test]
fn production_holds() {
    let which = std::env::var("MODEL").unwrap_or_default();
    let is_asked_for =
        |study: &Study| which == "all" || which == study.name || which.is_empty() && !study.is_long;
    for study in studies().into_iter().filter(is_asked_for) {
        holds(study);
    }
}

/// A model that finds nothing proves nothing.
#[test]
fn every_planted_mistake_is_found() {
    let hunts = hunts();
    assert_eq!(hunts.len(), MUTANTS.len(), "a hunt for each mutant");
    for hunt in hunts {
        let (_, make) =
            MUTANTS.iter().find(|(name, _)| *name == hunt.mutant).expect("the mutant it is named after");
        let found = explore(Cluster { decisions: make(), ..hunt.cluster }, true);
        let found = found.unwrap_or_else(|| panic!("`{}` was not found", hunt.mutant));
        println!("`{}`: {}", hunt.mutant, found.0);
        let what = found.1.last_state().violation;
        assert_eq!(what, Some(hunt.violation), "`{}`: {}", hunt.mutant, told(&found));
    }
}

/// What finds a mutant finds nothing when production decides: it is the mutation that was found.
#[test]
fn where_a_mistake_is_found_production_holds() {
    for hunt in hunts() {
        holds(Study { name: hunt.mutant, cluster: hunt.cluster, is_long: false });
    }
}

/// Every kind of fault is in some study.
#[test]
fn no_kind_of_fault_is_left_out() {
    let kinds: Vec<Fault> = studies().iter().flat_map(|study| study.cluster.kinds).copied().collect();
    assert!(Fault::ALL.iter().all(|fault| kinds.contains(fault)));
}
