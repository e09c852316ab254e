//! That the lists of calls leave nothing out.

use std::collections::BTreeSet;

use metadata_conformance::harness::{OPENED_BY_OTHERS, READS, WRITES};

/// Every `async fn` of the store traits.
fn trait_methods() -> BTreeSet<&'static str> {
    let sources = [
        include_str!("../../../metadata-api/src/store/admin.rs"),
        include_str!("../../../metadata-api/src/store/capture.rs"),
        include_str!("../../../metadata-api/src/store/controller.rs"),
        include_str!("../../../metadata-api/src/store/election.rs"),
        include_str!("../../../metadata-api/src/store/owner.rs"),
        include_str!("../../../metadata-api/src/store/query.rs"),
    ];
    let lines = sources.into_iter().flat_map(str::lines);
    lines
        .filter_map(|line| line.trim().strip_prefix("async fn "))
        .filter_map(|line| line.split(['(', '<']).next())
        .collect()
}

#[test]
fn every_method_of_every_trait_is_swept() {
    let listed = WRITES.into_iter().chain(READS).chain(OPENED_BY_OTHERS);
    let listed: BTreeSet<_> = listed.map(|name| name.split(' ').next().unwrap_or(name)).collect();
    assert_eq!(listed, trait_methods());
}

/// The name of every transaction that writes. One that a method reaches only in some cases (`owner.report`) needs a call of
/// its own in the lists.
pub(super) fn writing_transactions() -> BTreeSet<&'static str> {
    let sources = [
        include_str!("../../src/admin.rs"),
        include_str!("../../src/capture.rs"),
        include_str!("../../src/channel.rs"),
        include_str!("../../src/controller.rs"),
        include_str!("../../src/election.rs"),
        include_str!("../../src/lib.rs"),
        include_str!("../../src/owner.rs"),
        include_str!("../../src/processor.rs"),
        include_str!("../../src/query.rs"),
    ];
    let mut names = BTreeSet::new();
    for source in sources {
        for opens in [".tx(", ".write(", ".begin_call(", "Group::new("] {
            for rest in source.split(opens).skip(1) {
                let Some((name, rest)) =
                    rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'))
                else {
                    continue;
                };
                if !rest.starts_with(", false") {
                    names.insert(name);
                }
            }
        }
    }
    names
}
