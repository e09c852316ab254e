//! What is explored: small clusters, each with the faults that it can meet.
//!
//! Every study is exhaustive: the checker sees every state that can be reached.

use crate::cluster::{Cluster, Order, Step};
use crate::decisions::Decisions;
use crate::faults::Fault;
use crate::state::Violation;
use metadata_api::model::ChangefeedUuid;

/// In so many ticks without anything wrong a cluster has healed: a controller that had a gap of its own waits 2 R, a lease runs
/// out, and each step between takes a tick. (The simulation asserts the design's bounds, in its time.)
const HEALS_WITHIN: u8 = 24;

/// One study.
#[derive(Clone, Debug)]
pub struct Study {
    /// What it is of.
    pub name: &'static str,
    /// What is explored.
    pub cluster: Cluster,
    /// It takes more than a few seconds.
    pub is_long: bool,
}

/// Two processes, one changefeed, one fault of any kind, in a fixed order.
const BASE: fn() -> Cluster = || Cluster {
    decisions: Decisions::production(),
    processes: 2,
    changefeeds: 1,
    order: Order::Fixed,
    faults: 1,
    kinds: &Fault::ALL,
    warm: 6,
    opening: &[],
    cap: 1,
    bound: HEALS_WITHIN,
    nobody_dies: false,
};

/// The changefeed that all of them have.
const FEED: ChangefeedUuid = ChangefeedUuid(1);

/// The owner is told to stop, gives its release up, releases again, and is launched anew: the first release still is on its way.
const RELEASED_TWICE: &[(u8, Step)] = &[
    (6, Step::Fault(Fault::Delay, 0, FEED)),
    (6, Step::Fault(Fault::PauseOrResume, 0, FEED)),
    (7, Step::Heal(0)),
    (8, Step::Fault(Fault::PauseOrResume, 0, FEED)),
];

/// All that is explored with production's decisions.
pub fn studies() -> Vec<Study> {
    use Fault::{Crash, Outage};
    let short = |name, cluster| Study { name, cluster, is_long: false };
    let long = |name, cluster| Study { name, cluster, is_long: true };
    let two = Cluster { faults: 2, cap: 0, ..BASE() };
    vec![
        short("nothing goes wrong, in any order", Cluster { order: Order::Any, faults: 0, ..BASE() }),
        short(
            "from an empty database",
            Cluster { warm: 0, faults: 0, processes: 3, changefeeds: 2, cap: 0, ..BASE() },
        ),
        long("one fault of any kind", BASE()),
        long("a crash and another", Cluster { kinds: &[Crash], ..two.clone() }),
        long("an outage and another", Cluster { kinds: &[Outage], ..two }),
        long(
            "three processes, two changefeeds, and a crash",
            Cluster { processes: 3, changefeeds: 2, kinds: &[Crash], cap: 0, ..BASE() },
        ),
        long(
            "an outage moves nothing",
            Cluster {
                changefeeds: 2,
                kinds: &[Outage, Fault::ClockJump],
                cap: 0,
                nobody_dies: true,
                ..BASE()
            },
        ),
    ]
}

/// Where a mutant is found.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// Its name among the [`MUTANTS`](crate::decisions::MUTANTS).
    pub mutant: &'static str,
    /// What is explored.
    pub cluster: Cluster,
    /// What it leads to.
    pub violation: Violation,
}

/// For each mutant, where it is found, and by what.
pub fn hunts() -> Vec<Hunt> {
    let two_writers = |mutant, kinds, cluster| Hunt {
        mutant,
        cluster: Cluster { kinds, ..cluster },
        violation: Violation::TwoWriters,
    };
    let released_twice = Cluster { warm: 10, opening: RELEASED_TWICE, ..BASE() };
    vec![
        two_writers("drop the epoch check", &[Fault::Drain], released_twice.clone()),
        two_writers("compare the id instead of the epoch", &[Fault::Drain], released_twice),
        two_writers("anchor the deadline at the answer", &[Fault::SuspendInBeat], BASE()),
        two_writers("release before stopping", &[Fault::Drain], BASE()),
        two_writers(
            "an offline limit below the deadline",
            &[Fault::LoseRequests],
            Cluster { changefeeds: 2, cap: 0, bound: 0, ..BASE() },
        ),
        two_writers("no passive admission", &[Fault::Suspend], BASE()),
        Hunt {
            mutant: "count staleness through an outage",
            cluster: Cluster { kinds: &[Fault::Outage], nobody_dies: true, ..BASE() },
            violation: Violation::OutageMoved,
        },
        Hunt {
            mutant: "a checkpoint without max",
            cluster: Cluster { kinds: &[Fault::Delay, Fault::TaskFails], faults: 2, cap: 2, ..BASE() },
            violation: Violation::CheckpointWentBack,
        },
    ]
}
