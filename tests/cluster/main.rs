//! Whole clusters: real `cdc server` processes on real databases, and what becomes of them under faults.
//!
//! Each test runs on SQLite and on MySQL, what a database has most to do with on MariaDB and on TiDB too, and everything
//! on any of them by `make cluster DATABASE=..`. It strikes the cluster, sees through the API and the sink's files what becomes of
//! it, and prints what it measured. At the end of each, whatever it was about, the files have every row that the
//! generator must have produced, no checkpoint has gone back, and no owner has written after its successor.
//!
//! | room | what happens to the cluster |
//! |---|---|
//! | [`crash`] | captures and controllers are killed, and told to stop |
//! | [`stopped`] | an owner is stopped for half a minute, and goes on |
//! | [`restart`] | a server is killed and started again in the same place |
//! | [`rolling`] | every server is told to stop and started again in turn, under load; one is drained |
//! | [`split`] | captures that carry a part of a changefeed's tables are killed, and told to stop |
//! | [`outage`] | the metadata database does not answer, for a short and for a long time |
//! | [`binlog`] | owners are killed while `MySQL`'s binlog goes into files |
//! | [`bad_input`] | it is asked what it must refuse, and started where it must not |
//! | [`client`] | `cdc cli` as scripts use it |
//! | [`demo`] | `cdc demo` |
//! | [`nemesis`] | one fault after the other, in random order |
//! | [`repair`] | an operator uses `cdc cli unsafe` |
//! | [`operator`] | changefeeds are paused, resumed, changed and removed, with and without a controller |

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test says that something is wrong"
)]

mod bad_input;
mod binlog;
mod client;
mod crash;
mod demo;
mod harness;
mod nemesis;
mod operator;
mod outage;
mod repair;
mod restart;
mod rolling;
mod split;
mod stopped;
