//! `cdc demo`, as `make run` starts it.

use crate::harness::{run_alone, run_program, say};

#[test]
fn the_demo_loses_a_server_and_misses_nothing() {
    run_alone(async {
        let output = run_program(&["demo", "--seconds", "40", "--plain"], "").await;
        assert_eq!(output.exit, 0, "{}\n{}", output.out, output.err);
        for part in ["kill -9 of", "run elsewhere", "0 missing, 0 wrong, 0 out of order"] {
            assert!(output.out.contains(part), "{part:?} is not in: {}", output.out);
        }
        for line in output.out.lines().filter(|line| line.contains("was killed at")) {
            say(&format!("measured: {line} (cdc demo, sqlite)"));
        }
    });
}
