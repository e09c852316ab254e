//! What a test orders, and what came by.

use std::time::Duration;

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandKind {
    /// To connect and to log in.
    Connect,
    /// A statement as text.
    Query,
    /// To prepare a statement.
    Prepare,
    /// To run a prepared statement.
    Execute,
    /// Anything else that is answered (ping, reset, ..).
    Other,
}

/// One round trip that came by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Which of the proxy's connections, counted from 0.
    pub connection: u64,
    /// What was asked for.
    pub kind: CommandKind,
    /// The statement's text; of a prepared one, the text that was prepared; empty when there is none.
    pub text: String,
}

/// Where in a round trip something is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// Before anything of it reaches the server.
    Before,
    /// As soon as the server was sent all of it; its answer is not waited for.
    Sent,
    /// When the server has answered and nothing of the answer was delivered.
    Answered,
}

/// What is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The client's connection is reset; the server sees an orderly close behind what it was sent.
    Reset,
    /// Half-open: nothing passes any more in either direction, and both sides stay open until each closes its own. The
    /// server does not learn that the client has left. At [`Point::Before`] that is also what a partition of the way to
    /// the server looks like, and at [`Point::Answered`] one of the way back.
    Hold,
    /// It goes on after a pause. When the client leaves meanwhile, the server's side is closed.
    Delay(Duration),
    /// [`Point::Before`] only: what the client sent is held back until the client has left, and reaches the server then.
    Late,
    /// The client gets an error in place of the answer (at [`Point::Before`]: and the server gets nothing).
    Error {
        /// The error's number.
        code: u16,
        /// Five characters.
        sqlstate: &'static str,
        /// Its text.
        message: &'static str,
    },
}

/// Which round trips a rule is for.
#[derive(Clone, Debug)]
pub struct When {
    kind: Option<CommandKind>,
    contains: Option<&'static str>,
    nth: usize,
    times: usize,
}

impl When {
    /// The `n`-th round trip of any kind, counted from 0 over all connections.
    pub const fn command(n: usize) -> Self {
        Self { kind: None, contains: None, nth: n, times: 1 }
    }

    /// The first statement that is run (not prepared) and whose text contains `text`.
    pub const fn statement(text: &'static str) -> Self {
        Self { kind: None, contains: Some(text), nth: 0, times: 1 }
    }

    /// The first COMMIT.
    pub const fn commit() -> Self {
        Self::statement("COMMIT")
    }

    /// The first connection.
    pub const fn connect() -> Self {
        Self { kind: Some(CommandKind::Connect), contains: None, nth: 0, times: 1 }
    }

    /// The `n`-th of these instead of the first, counted from 0.
    #[must_use]
    pub const fn nth(self, n: usize) -> Self {
        Self { nth: n, ..self }
    }

    /// So many of them in a row instead of one.
    #[must_use]
    pub const fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    fn is(&self, command: &Command) -> bool {
        let text = self.contains.is_none_or(|text| {
            matches!(command.kind, CommandKind::Query | CommandKind::Execute) && command.text.contains(text)
        });
        text && self.kind.is_none_or(|kind| kind == command.kind)
    }
}

/// One order: when, where in the round trip, and what.
#[derive(Clone, Debug)]
pub struct Rule {
    /// For which round trips.
    pub when: When,
    /// Where in the round trip.
    pub point: Point,
    /// What happens.
    pub act: Act,
}

impl Rule {
    /// An order.
    pub const fn new(when: When, point: Point, act: Act) -> Self {
        Self { when, point, act }
    }
}

/// The orders that stand, and what came by since they were given.
#[derive(Debug, Default)]
pub(super) struct Script {
    rules: Vec<Rule>,
    seen: Vec<Command>,
    met: Vec<Command>,
}

impl Script {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Self { rules, ..Self::default() }
    }

    pub(super) fn seen(&self) -> &[Command] {
        &self.seen
    }

    pub(super) fn met(&self) -> &[Command] {
        &self.met
    }

    /// What is to happen to `command`. Of several rules the first that is due.
    pub(super) fn meet(&mut self, command: Command) -> Option<(Point, Act)> {
        let mut due = None;
        for rule in &mut self.rules {
            if !rule.when.is(&command) || rule.when.times == 0 {
                continue;
            }
            if rule.when.nth > 0 {
                rule.when.nth -= 1;
            } else if due.is_none() {
                rule.when.times -= 1;
                due = Some((rule.point, rule.act.clone()));
            }
        }
        if due.is_some() {
            self.met.push(command.clone());
        }
        self.seen.push(command);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(kind: CommandKind, text: &str) -> Command {
        Command { connection: 0, kind, text: text.to_owned() }
    }

    #[test]
    fn a_rule_is_met_when_it_says() {
        let rule = |when| Rule::new(when, Point::Before, Act::Reset);
        let mut script = Script::new(vec![
            rule(When::command(3)),
            rule(When::statement("UPDATE fence").nth(1).times(2)),
            rule(When::connect()),
        ]);
        let mut met = |kind, text: &str| script.meet(command(kind, text)).is_some();
        assert!(met(CommandKind::Connect, ""));
        assert!(!met(CommandKind::Prepare, "UPDATE fence SET"), "preparing is not running");
        assert!(!met(CommandKind::Execute, "UPDATE fence SET"));
        assert!(met(CommandKind::Query, "SELECT 1"), "the fourth");
        assert!(met(CommandKind::Execute, "UPDATE fence SET"));
        assert!(met(CommandKind::Query, "UPDATE fence SET"));
        assert!(!met(CommandKind::Query, "UPDATE fence SET"));
        assert!(!met(CommandKind::Connect, ""));
        assert_eq!((script.seen().len(), script.met().len()), (8, 4));
    }
}
