//! One suite that every metadata store must pass, generic over the store.
//!
//! The rooms are named after the store traits of `metadata-api`, whose doc comments are the specification: what a method
//! returns, what it refuses and with which error, and what it leaves unchanged when it refuses. Beside them:
//!
//! * [`defects`] - one case for each line of the list of the original's defects that concerns a store,
//! * [`faults`] - failures before, at and after COMMIT, in every transaction,
//! * [`concurrency`] - several stores on one database at once,
//! * [`history`] - random operations, compared with a model of its own,
//! * [`machine`] - random operations of every kind, compared with the store in memory, and made few when they fail,
//! * [`concurrent`] - random clients at once, and a checker of what they were told.
//!
//! # Testing a store
//!
//! Implement [`harness::Backend`] and [`harness::Database`] in `tests/conformance.rs` of the store's crate, and stamp
//! out the suite, one `#[test]` a case, each on a fresh database:
//!
//! ```ignore
//! metadata_conformance::conformance_suite!(MyBackend);
//! ```
//!
//! Nothing is skipped. In what backends may differ is declared in [`harness::Features`] and checked both ways.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a library of tests: a panic is how a case says that the store is wrong"
)]

pub mod admin;
pub mod capture;
pub mod channel;
pub mod concurrency;
pub mod concurrent;
pub mod controller;
pub mod defects;
pub mod election;
pub mod faults;
pub mod harness;
pub mod history;
pub mod machine;
pub mod owner;
pub mod processor;
pub mod query;
pub mod report;

/// Stamps out one `#[test]` for each case of the suite, in one module for each room. The expression gives a
/// [`Backend`](harness::Backend); it is evaluated once a case.
#[macro_export]
macro_rules! conformance_suite {
    ($backend:expr) => {
        $crate::conformance_suite! { @rooms $backend;
            query {
                an_empty_cluster_reads_as_empty
                what_does_not_exist_is_left_out
                some_of_nothing_is_nothing
                the_identity_is_the_databases
                captures_are_ordered_by_id
                a_changefeed_reads_back_as_created
                changefeeds_are_ordered_by_uuid
                a_long_list_of_keys_is_no_trouble
                overviews_are_ordered_by_name
                an_overview_is_the_rows_together
                the_removed_are_listed_until_cleaned_up
                progress_is_the_current_owners_if_it_is_ahead
                at_equal_checkpoints_the_task_position_is_read
                progress_is_never_merged_by_field
                processor_rows_are_ordered_by_capture
                a_row_that_does_not_decode_is_corrupt
            }
            election {
                a_vacant_lease_is_taken_with_the_next_epoch
                epochs_grow_by_exactly_one
                a_campaign_wants_the_lease_that_was_observed
                a_renewed_lease_cannot_be_taken
                only_an_alive_capture_is_elected
                a_lost_acquisition_is_taken_again
                resigning_ends_the_term
                a_vacant_lease_keeps_its_sequence
                an_acquisition_clears_the_cooldown
                only_the_current_term_resigns
                epoch_zero_is_nobodys
                a_takeover_fences_the_former_controller
            }
            capture {
                registering_writes_the_row
                registering_twice_is_done_already
                registering_checks_what_it_is_given
                a_sealed_capture_is_refused_everything
                advancing_replaces_the_whole_value
                a_late_progress_is_refused
                an_absent_capture_is_fenced
                a_progress_that_does_not_fit_names_the_changefeed
                a_progress_of_many_changefeeds_fits
                the_reconcile_lists_what_the_capture_has
                owner_launches_leaves_out_what_is_not_launched_here
                deregistering_without_work_deletes_the_rows
                deregistering_with_work_seals
            }
            channel {
                a_beat_moves_the_sequence_only
                a_beat_after_a_lost_answer_is_accepted
                a_late_beat_is_refused
                a_row_that_went_back_is_fenced
                the_reason_of_a_fenced_beat_is_in_its_text
                a_draining_capture_beats
                a_renewal_moves_the_lease_only
                only_the_current_term_renews
                a_poll_shows_the_cluster
                a_poll_shows_what_is_new
                a_channel_never_reads_an_old_snapshot
                pages_leave_nothing_out
                processor_pages_go_by_their_own_cursor
                channels_are_independent
            }
            controller {
                the_snapshot_is_what_the_rows_say
                the_snapshot_says_where_a_changefeed_may_run
                a_launch_names_its_revision
                removing_keeps_owner_and_epoch
                a_relaunch_has_a_new_epoch
                each_target_is_refused_on_its_own
                what_does_not_decode_is_refused_on_its_own
                what_does_not_decode_stops_no_other
                only_what_is_runnable_is_launched
                a_bad_batch_is_refused_whole
                cleanup_deletes_what_qualifies_only
                an_upstream_goes_with_its_last_changefeed
                sealing_wants_the_heartbeat_that_was_judged
                nothing_is_taken_from_a_live_capture
                a_release_takes_the_furthest_position_of_its_epoch
                a_release_goes_in_batches
                a_release_frees_the_name_of_what_was_removed
                a_release_leaves_the_state_alone
                a_corrupt_progress_stops_the_release
            }
            processor {
                an_attachment_serves_the_current_owner_epoch
                a_processor_that_does_not_decode_is_left_out
                a_processor_goes_by_removing_to_removed
                a_processor_releases_by_itself
                what_a_processor_carries_is_not_at_rest
                a_name_is_held_while_a_processor_lives
                a_removed_row_is_used_again
                processors_are_set_all_or_nothing
                a_version_of_a_row_that_is_not_there_is_a_conflict
                processors_want_a_launched_schedule
                only_the_attachment_itself_releases
                processors_outlive_their_owner
                the_longest_assignment_is_stored
                an_owner_assigns_to_its_processors
                an_assignment_wants_every_row_as_it_was_seen
                only_the_owner_assigns
                only_who_is_launched_for_this_owner_is_assigned
                of_two_assignments_on_one_view_one_is_written
            }
            report {
                processors_come_in_order_with_their_captures_and_reports
                a_report_is_of_one_attachment
                a_report_outlives_its_capture
                a_report_comes_back_as_it_was_written
                a_report_that_does_not_fit_names_the_changefeed
                the_longest_and_deepest_report_is_given
                a_report_that_cannot_be_read_says_nothing
                a_share_is_never_taken_for_the_whole
            }
            owner {
                every_event_in_every_state
                a_report_takes_no_revision
                what_others_act_on_takes_a_revision
                errors_and_warnings_are_kept_and_cleared
                only_the_current_owner_writes
                an_owner_updates_what_stands_still
                a_release_is_removed_without_owner
                a_release_takes_the_furthest_position
                a_release_says_how_it_ended
                five_hundred_are_released_at_once
                each_release_is_refused_on_its_own
                what_does_not_decode_is_refused_on_its_own
                a_bad_batch_of_releases_is_refused_whole
                a_release_frees_the_name_of_what_was_removed
                the_longest_error_is_kept
            }
            admin {
                a_changefeed_is_named_by_its_revision
                revisions_come_from_the_row_and_the_clock
                a_repeated_create_finds_the_first
                a_name_is_held_by_one
                a_create_is_validated
                an_upstream_is_shared_by_its_id
                a_controller_creates_and_removes
                an_update_replaces_what_it_gives
                an_update_is_refused_unless_it_stands_still
                a_shared_upstream_is_not_updated
                a_pause_tells_the_owner
                a_pause_in_every_state
                a_resume_in_every_state
                a_resume_does_not_stop_a_stop
                an_overwrite_sets_the_task_position
                a_remove_in_every_state
                a_remove_writes_each_row_once
                a_name_is_free_when_its_owner_has_stopped
                a_draining_capture_gets_no_new_work
                deposing_ends_the_controllers_term
                what_just_fits_is_stored
            }
            defects {
                defect_01_the_first_changefeed_of_an_upstream_is_created
                defect_02_a_placed_changefeed_is_moved
                defect_03_zero_values_are_written
                defect_04_a_dead_owner_is_replaced_by_the_same_controller
                defect_05_a_progress_of_what_was_cleaned_up_does_no_harm
                defect_05_a_capture_without_a_progress_row_is_released
                defect_05_a_capture_without_a_row_is_released
                defect_06_a_resigned_term_passes_no_check
                defect_07_concurrent_writers_all_succeed
                defect_08_absent_is_no_error_and_a_removed_name_is_free
                defect_09_a_thousand_owner_changes_are_delivered
                defect_10_heartbeats_do_not_meet
                defect_11_changes_in_one_tick_are_all_seen
                defect_14_a_missing_election_row_is_an_error
                defect_15_an_expelled_owner_learns_of_it
                defect_15_a_stale_owners_checkpoint_never_wins
                defect_16_a_regained_lease_does_not_revive_the_old_term
            }
            faults {
                what_certainly_did_not_happen_is_tried_again
                a_commit_that_never_arrived_is_unknown
                a_lost_answer_is_unknown_and_a_repeat_converges
                a_lost_election_is_resolved_by_the_row
                a_lost_create_makes_one_changefeed
                failures_leave_the_store_usable
            }
            concurrency {
                of_many_campaigns_exactly_one_wins
                an_older_controller_writes_nothing_after_a_newer
                watchers_miss_no_revision
                a_sealed_capture_that_still_writes
                a_capture_is_sealed_or_beats
                an_owner_that_still_writes
                of_many_creates_of_a_name_exactly_one_wins
                many_creates_of_one_request_make_one
                many_creates_share_an_upstream
                many_registrations_of_one_id_make_one_row
                of_many_launches_exactly_one_is_applied
                a_launch_is_released_once
                operators_and_owner_lose_no_update
                updates_by_version_lose_nothing
                reads_are_of_one_moment
                a_checkpoint_never_goes_back
                a_cancelled_call_leaves_nothing_open
            }
            history {
                random_histories_do_what_the_model_says
            }
            machine {
                random_operations_do_what_the_model_does
            }
            concurrent {
                many_clients_make_a_lawful_history
            }
        }
    };
    (@rooms $backend:expr; $($room:ident { $($case:ident)* })*) => {
        $($crate::conformance_suite! { @room $backend; $room { $($case)* } })*
    };
    (@room $backend:expr; $room:ident { $($case:ident)* }) => {
        mod $room {
            #[allow(unused_imports, reason = "the backend may be named from the outer module")]
            use super::*;

            $(#[test]
            fn $case() {
                $crate::harness::run(&$backend, |cluster| Box::pin($crate::$room::$case(cluster)));
            })*
        }
    };
}

#[cfg(test)]
mod tests {
    /// A case that is written and not listed would never run.
    #[test]
    fn every_case_is_listed() {
        let listed = include_str!("lib.rs");
        let rooms = [
            ("admin", include_str!("admin.rs")),
            ("capture", include_str!("capture.rs")),
            ("channel", include_str!("channel.rs")),
            ("concurrency", include_str!("concurrency.rs")),
            ("concurrent", include_str!("concurrent/mod.rs")),
            ("controller", include_str!("controller.rs")),
            ("defects", include_str!("defects.rs")),
            ("election", include_str!("election.rs")),
            ("faults", include_str!("faults.rs")),
            ("history", include_str!("history.rs")),
            ("machine", include_str!("machine/mod.rs")),
            ("owner", include_str!("owner.rs")),
            ("processor", include_str!("processor.rs")),
            ("query", include_str!("query.rs")),
            ("report", include_str!("report.rs")),
        ];
        for (room, text) in rooms {
            let start = listed.find(&format!("            {room} {{\n")).expect("the room is listed");
            let list = &listed[start..][..listed[start..].find('}').expect("its end")];
            for line in text.lines().filter_map(|line| line.strip_prefix("pub async fn ")) {
                let name = line.split('(').next().expect("a name");
                assert!(list.lines().any(|listed| listed.trim() == name), "{room}::{name} is not listed");
            }
        }
    }
}
