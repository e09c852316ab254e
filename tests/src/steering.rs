//! The files in a server's data directory by which a test steers it; the tests include this file too.

/// How many seconds the wall clock is ahead (or behind, if negative).
pub const WALL_CLOCK: &str = "wall-clock-is-wrong-by";

/// Flushes of the `file` sink wait until it is gone.
pub const SINK_HANGS: &str = "sink-hangs";
