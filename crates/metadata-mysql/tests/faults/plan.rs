//! What a call does without a fault.

use std::sync::{Arc, Mutex};

use metadata_api::store::faults::{FaultKind, FaultPoint, Faults};
use metadata_conformance::harness::{Again, Call, Cluster, WRITES};
use sqlx::mysql::MySqlConnection;
use test_servers::proxy::{Command, CommandKind, Proxy};

use super::state::State;
use super::{open, options};

/// A call, its round trips, and what it makes of the tables.
pub(super) struct Plan {
    pub(super) call: Call,
    pub(super) writes: bool,
    /// The names of the transactions that write.
    pub(super) transactions: Vec<&'static str>,
    pub(super) commands: Vec<Command>,
    pub(super) answer: String,
    pub(super) before: State,
    pub(super) once: State,
    /// What a second call makes of it; the same as `once` unless the call may be applied again.
    pub(super) twice: State,
}

/// Orders no failure, and writes down which transactions there were.
#[derive(Debug, Default)]
struct Names(Mutex<Vec<&'static str>>);

impl Faults for Names {
    fn at(&self, transaction: &'static str, _: FaultPoint) -> Option<FaultKind> {
        self.0.lock().expect("no panic").push(transaction);
        None
    }
}

impl Plan {
    pub(super) async fn record(
        cluster: &Cluster,
        proxy: &Proxy,
        url: &str,
        db: &mut MySqlConnection,
        name: &'static str,
    ) -> Self {
        let call = Call::prepare(cluster, name).await;
        let before = State::read(db).await;
        proxy.order([]);
        let names = Arc::new(Names::default());
        let store = open(options(&proxy.url(url)), Some(names.clone())).await;
        proxy.order([]);
        let answer = call.run(Arc::clone(&store)).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let commands = proxy.seen();
        let once = State::read(db).await;
        let outcome = call.run(store).await;
        match (call.again, &outcome) {
            (Again::Done | Again::Harmless, Ok(_)) => {}
            (Again::Refused(wanted), Err(error)) if wanted.is(error) => {}
            (again, outcome) => panic!("{name}, repeated: want {again:?}, got {outcome:?}"),
        }
        let twice = State::read(db).await;
        let writes = WRITES.contains(&name);
        let changed = before.difference(&once, &before);
        assert_eq!(writes, !changed.is_empty(), "{name} changes:\n{changed}");
        if call.again != Again::Harmless {
            assert_eq!(once.difference(&twice, &before), "", "{name}: a second call changed something");
        }
        let transactions = std::mem::take(&mut *names.0.lock().expect("no panic"));
        Self { call, writes, transactions, commands, answer, before, once, twice }
    }

    /// Whether a lost answer to the `n`-th round trip leaves open what was done.
    pub(super) fn decides(&self, n: usize) -> bool {
        let command = &self.commands[n];
        command.text == "COMMIT"
            || (self.writes && !self.has_transaction() && command.kind == CommandKind::Execute)
    }

    /// Whether its writes are in `BEGIN .. COMMIT`.
    pub(super) fn has_transaction(&self) -> bool {
        self.commands.iter().any(|command| command.text == "COMMIT")
    }
}
