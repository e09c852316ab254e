//! What the metadata database says, all the time, and whether that is lawful.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use capture_runtime::clock::BootTime;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts};
use tokio::task::JoinHandle;

use crate::harness::now;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How many states are shown of a test that fails.
const SHOWN: usize = 12;

/// One state of the database, read in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    revision: u64,
    controller_epoch: u64,
    leader: Option<String>,
    /// By changefeed: owner epoch, owner, schedule state.
    schedules: BTreeMap<u64, (u64, Option<String>, String)>,
}

/// Looks until it is dropped.
pub struct History {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    url: String,
    /// `None`: whatever comes next begins a new history.
    last: Option<State>,
    /// How often a history has ended; odd: none has begun since.
    breaks: u64,
    states: u64,
    unlawful: Vec<String>,
    /// The last states, and when they were first seen.
    latest: VecDeque<(BootTime, State)>,
}

impl History {
    /// Of the database that `url` names.
    pub fn start(url: &str) -> Self {
        let seen = Arc::new(Mutex::new(Seen { url: url.to_owned(), ..Seen::default() }));
        let task = tokio::spawn(look(seen.clone()));
        Self { seen, task }
    }

    /// The database is somewhere else now.
    pub fn lead_to(&self, url: &str) {
        url.clone_into(&mut lock(&self.seen).url);
    }

    /// An older state is about to be put back.
    pub fn suspend(&self) {
        let mut seen = lock(&self.seen);
        seen.breaks += 1;
        seen.last = None;
    }

    /// A new history begins.
    pub fn begin_anew(&self) {
        lock(&self.seen).breaks += 1;
    }

    /// What was not lawful, and the last states.
    pub fn story(&self) -> String {
        let seen = lock(&self.seen);
        let mut lines = seen.unlawful.clone();
        let at = now();
        for (first_seen, state) in &seen.latest {
            lines.push(format!("{:.1} s ago: {state:?}", at.since(*first_seen).as_secs_f64()));
        }
        lines.join("\n")
    }

    /// How many states were seen, and what was not lawful.
    pub fn found(&self) -> (u64, Vec<String>) {
        let seen = lock(&self.seen);
        (seen.states, seen.unlawful.clone())
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn look(seen: Arc<Mutex<Seen>>) {
    let mut conn: Option<Conn> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (url, breaks) = {
            let seen = lock(&seen);
            (seen.url.clone(), seen.breaks)
        };
        let read = async {
            let mut open = match conn.take() {
                Some(open) => open,
                None => Conn::new(Opts::from_url(&url).expect("a URL")).await?,
            };
            let state = read(&mut open).await?;
            Ok::<_, mysql_async::Error>((open, state))
        };
        // A database that is away is part of the test.
        if let Ok(Ok((open, state))) = tokio::time::timeout(ANSWER_LIMIT, read).await {
            conn = Some(open);
            let mut seen = lock(&seen);
            // What was asked for in another history, or between two, does not count.
            if seen.breaks == breaks && breaks % 2 == 0 {
                seen.take_in(state);
            }
        }
    }
}

async fn read(conn: &mut Conn) -> Result<State, mysql_async::Error> {
    conn.query_drop("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    conn.query_drop("START TRANSACTION").await?;
    let (revision, controller_epoch, leader) = conn
        .query_first("SELECT f.revision, e.controller_epoch, e.leader_id FROM fence f JOIN election e WHERE f.id = 1 AND e.id = 1")
        .await?
        .unwrap_or_default();
    let rows: Vec<(u64, u64, Option<String>, String)> =
        conn.query("SELECT changefeed_uuid, owner_epoch, owner, owner_state FROM schedule").await?;
    conn.query_drop("COMMIT").await?;
    let schedules = rows.into_iter().map(|(uuid, epoch, owner, state)| (uuid, (epoch, owner, state)));
    Ok(State { revision, controller_epoch, leader, schedules: schedules.collect() })
}

impl Seen {
    fn take_in(&mut self, state: State) {
        if let Some(last) = &self.last {
            self.unlawful.extend(unlawful(last, &state));
        }
        if self.last.as_ref() != Some(&state) {
            self.states += 1;
            self.latest.push_back((now(), state.clone()));
            if self.latest.len() > SHOWN {
                self.latest.pop_front();
            }
        }
        self.last = Some(state);
    }
}

/// What must not be between two states.
fn unlawful(last: &State, next: &State) -> Vec<String> {
    let mut found = Vec::new();
    if next.revision < last.revision {
        found.push(format!("the revision went back from {} to {}", last.revision, next.revision));
    }
    if next.controller_epoch < last.controller_epoch {
        found.push(format!(
            "the controller epoch went back from {} to {}",
            last.controller_epoch, next.controller_epoch
        ));
    }
    let two =
        next.controller_epoch == last.controller_epoch && next.leader.is_some() && last.leader.is_some();
    if two && next.leader != last.leader {
        found.push(format!("controller epoch {} has two holders: {last:?}, {next:?}", next.controller_epoch));
    }
    for (changefeed, (epoch, owner, state)) in &next.schedules {
        let Some((before, former, was)) = last.schedules.get(changefeed) else { continue };
        if epoch < before {
            found.push(format!("{changefeed}: the owner epoch went back from {before} to {epoch}"));
        }
        if epoch == before && owner.is_some() && former.is_some() && owner != former {
            found.push(format!("{changefeed}: owner epoch {epoch} has two holders: {former:?}, {owner:?}"));
        }
        if epoch == before && was == "removed" && state != "removed" {
            found.push(format!("{changefeed}: owner epoch {epoch} lives again: {state}"));
        }
        if epoch == before && was == "removing" && state == "launched" {
            found.push(format!("{changefeed}: owner epoch {epoch} is launched again"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(revision: u64, epoch: u64, leader: &str, owner: (u64, &str, &str)) -> State {
        let (owner_epoch, owner, schedule) = owner;
        let owner = (schedule != "removed").then(|| owner.to_owned());
        State {
            revision,
            controller_epoch: epoch,
            leader: Some(leader.to_owned()),
            schedules: [(1, (owner_epoch, owner, schedule.to_owned()))].into(),
        }
    }

    #[test]
    fn what_is_not_lawful_is_seen() {
        let last = state(5, 2, "a", (7, "a", "launched"));
        for next in [
            state(5, 2, "a", (7, "a", "launched")),
            state(6, 3, "b", (7, "a", "removing")),
            state(6, 2, "a", (8, "b", "launched")),
        ] {
            assert_eq!(unlawful(&last, &next), Vec::<String>::new());
        }
        for (next, part) in [
            (state(4, 2, "a", (7, "a", "launched")), "revision went back"),
            (state(5, 1, "a", (7, "a", "launched")), "controller epoch went back"),
            (state(5, 2, "b", (7, "a", "launched")), "two holders"),
            (state(5, 2, "a", (6, "a", "launched")), "owner epoch went back"),
            (state(5, 2, "a", (7, "b", "launched")), "two holders"),
        ] {
            let found = unlawful(&last, &next);
            assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
        }
        let over = state(5, 2, "a", (7, "", "removed"));
        assert!(unlawful(&over, &last)[0].contains("lives again"));
        let removing = state(5, 2, "a", (7, "a", "removing"));
        assert!(unlawful(&removing, &last)[0].contains("launched again"));
    }
}
