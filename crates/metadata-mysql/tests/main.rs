//! The store on real servers: everything here runs once on each kind, in a module of its own.
//!
//! `cargo test -p metadata-mysql mariadb::` runs one kind's. Where the servers come from says `test_servers`; a kind without
//! one fails, and says how to get it.

#![expect(clippy::expect_used, reason = "what goes wrong in a test's own steps fails the test")]

mod conformance;
mod faults;
mod grants;
mod group;
mod plans;
mod round_trips;
mod schema;
mod server;
mod sharing;
mod tls;

/// Stamps out one `#[test]` for each kind of server and each case: the conformance suite's and those named.
macro_rules! on_every_server {
    (@on $kind:ident as $module:ident: $($room:ident { $($case:ident)* })*) => {
        mod $module {
            const KIND: test_servers::Kind = test_servers::Kind::$kind;

            mod conformance {
                use super::KIND;
                use crate::conformance::Server;

                metadata_conformance::conformance_suite!(Server(KIND));
            }

            $(mod $room {
                $(#[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    crate::$room::$case(super::KIND).await;
                })*
            })*
        }
    };
    ($($cases:tt)*) => {
        on_every_server! { @on Mysql as mysql: $($cases)* }
        on_every_server! { @on Mariadb as mariadb: $($cases)* }
        on_every_server! { @on Tidb as tidb: $($cases)* }
    };
}

// A case that is written and not listed is dead code, which the lints refuse.
on_every_server! {
    faults {
        every_transaction_at_every_point
        a_slow_network_is_only_slow
        a_crash_loses_nothing_that_was_acknowledged
        a_demoted_server_is_told_as_such
    }
    grants {
        what_is_needed_is_enough
        each_missing_grant_is_named_with_its_remedy
        an_old_schema_and_no_right_to_change_it
        a_user_without_anything
    }
    group {
        creates_pauses_and_removals_share_a_turn
        launches_and_releases_share_a_turn
        processors_of_many_changefeeds_share_a_turn
        of_creates_that_share_a_turn_one_gets_the_name
    }
    plans {
        timed_statements_use_indexes_with_10000_changefeeds
    }
    round_trips {
        what_runs_on_a_timer_is_one_round_trip
        a_list_is_one_round_trip
        a_write_takes_few_round_trips_and_a_batch_no_more
    }
    schema {
        ten_migrate_at_once
        a_kill_at_any_file_is_gone_on_from
        a_dropped_migration_is_gone_on_from
        sqlx_applies_the_same_files
        sqlx_migrate_info_agrees
        every_earlier_schema_is_upgraded_with_its_data
        another_schema_is_refused
        a_migration_waits_for_the_lock
    }
    server {
        a_dropped_call_leaves_nothing_open
        a_lock_wait_is_tried_again
        a_lock_that_stays_is_unavailable
        a_starved_pool_costs_no_heartbeat
        an_abandoned_channel_says_so
        no_password_is_ever_shown
        a_read_only_server_is_refused
        the_servers_own_defaults_do_not_matter
        a_server_that_falls_silent_is_unavailable
        a_killed_connection_is_replaced
    }
    sharing {
        a_full_server_costs_no_heartbeat
        a_locked_table_costs_no_more_than_its_own_work
        somebodys_slow_queries_cost_no_heartbeat
    }
    tls {
        the_servers_certificate_is_verified
        users_may_be_held_to_tls_and_certificates
        a_server_without_tls
    }
}
