//! Which faults at which points.

use std::time::Duration;

use test_servers::proxy::{Act, CommandKind, Point};

use super::plan::Plan;

/// When the caller repeats a call whose outcome it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// At once, while the server may still be at the first one.
    AtOnce,
    /// When nothing of the first one is left.
    Settled,
}

/// One fault.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) plan: usize,
    pub(super) command: usize,
    pub(super) point: Point,
    pub(super) act: Act,
    pub(super) retry: Retry,
}

/// An error, and whether the server can give it in answer to COMMIT such that nothing was applied.
const ERRORS: [(u16, &str, &str); 7] = [
    (1205, "HY000", "Lock wait timeout exceeded; try restarting transaction"),
    (1213, "40001", "Deadlock found when trying to get lock; try restarting transaction"),
    (1105, "HY000", "tikv aborts txn: Error(Txn(Error(Mvcc(Error(PessimisticLockNotFound { .. })))))"),
    (8002, "HY000", "[8002] can not retry select for update statement"),
    (8022, "HY000", "Error: KV error safe to retry [try again later]"),
    (9007, "HY000", "Write conflict, [try again later]"),
    (1290, "HY000", "The MySQL server is running with the --super-read-only option"),
];

/// What says nothing about the outcome of a COMMIT.
pub(super) const VAGUE: (u16, &str, &str) = (1105, "HY000", "region is unavailable, or something else");

const FULL: (u16, &str, &str) = (1040, "08004", "Too many connections");

fn error((code, sqlstate, message): (u16, &'static str, &'static str)) -> Act {
    Act::Error { code, sqlstate, message }
}

impl Case {
    /// Whether the client learns nothing until its own time is up.
    pub(super) fn hangs(&self) -> bool {
        matches!(self.act, Act::Hold | Act::Delay(_) | Act::Late)
    }

    /// Whether it cuts the client off between its log-in and its session's set-up. The server keeps such a session for as long
    /// as it was told to keep any, and no client can do anything about it. It holds no lock.
    pub(super) fn strands_a_session(&self, plan: &Plan) -> bool {
        let command = &plan.commands[self.command];
        match self.point {
            _ if self.act != Act::Hold => false,
            Point::Answered => command.kind == CommandKind::Connect,
            _ => command.text.starts_with("SET SESSION TRANSACTION"),
        }
    }

    /// Every case of a plan; without `all`, of what is alike by construction each round trip has its turn.
    pub(super) fn of(number: usize, plan: &Plan, all: bool) -> Vec<Self> {
        let mut cases = Vec::new();
        for (n, command) in plan.commands.iter().enumerate() {
            let decides = plan.decides(n);
            let turn = |faults: Vec<(Point, Act)>, take: usize| -> Vec<_> {
                let take = if all || decides { faults.len() } else { take };
                let start = (number + n) * take;
                faults.into_iter().cycle().skip(start).take(take).collect()
            };
            let resets = [Point::Before, Point::Sent, Point::Answered].map(|point| (point, Act::Reset));
            // Longer than a call may take (4 s), or a read (10 s).
            let pause = Duration::from_secs(if plan.writes { 6 } else { 12 });
            let hangs = vec![
                (Point::Before, Act::Hold),
                (Point::Answered, Act::Hold),
                (Point::Answered, Act::Delay(pause)),
                (Point::Before, Act::Late),
            ];
            let errors = match command.kind {
                CommandKind::Connect => vec![FULL],
                _ => ERRORS.to_vec(),
            };
            let errors = errors.into_iter().map(|text| (Point::Before, error(text))).collect::<Vec<_>>();
            let count = errors.len().min(2);
            let mut faults = resets.to_vec();
            faults.extend(turn(hangs, 1));
            faults.extend(turn(errors, count));
            if decides {
                faults.push((Point::Before, error(VAGUE)));
            }
            for (point, act) in faults {
                let retries: &[Retry] = match act {
                    Act::Error { .. } => &[Retry::Settled],
                    _ if decides => &[Retry::Settled, Retry::AtOnce],
                    _ => &[Retry::Settled],
                };
                cases.extend(retries.iter().map(|&retry| Self {
                    plan: number,
                    command: n,
                    point,
                    act: act.clone(),
                    retry,
                }));
            }
        }
        cases
    }

    /// What a failure calls it.
    pub(super) fn name(&self, plan: &Plan) -> String {
        let command = &plan.commands[self.command];
        let text: String = command.text.chars().take(60).collect();
        let Self { command: n, point, act, retry, .. } = self;
        format!("{} [{n} {:?} `{text}`] {point:?} {act:?} retry {retry:?}", plan.call.name, command.kind)
    }
}
