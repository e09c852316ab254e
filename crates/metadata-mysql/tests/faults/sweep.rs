//! Runs the cases: many at once, each on a database of its own, since most of them wait.

use std::collections::BTreeSet;
use std::env;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use metadata_api::store::MetadataStore;
use metadata_api::store::faults::Faults;
use metadata_api::{MetadataError, Result};
use metadata_conformance::harness::{Again, Cluster, Database, Features, READS, WRITES};
use metadata_mysql::{MysqlOptions, migrate};
use sqlx::Connection as _;
use sqlx::mysql::MySqlConnection;
use test_servers::proxy::{Act, CommandKind, Point, Proxy, Rule, When};
use test_servers::{Kind, drop_database, fresh_database};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::cases::{Case, Retry, VAGUE};
use super::names::writing_transactions;
use super::plan::Plan;
use super::state::State;
use super::{LIMIT, open, options, wait_for_quiet};

/// How many cases run at once.
const WORKERS: usize = 32;

/// A caller bounds what it does on a channel (the heartbeat: 1 s).
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(2);

/// A database, a direct way to it, and one through a proxy of its own.
struct Room {
    kind: Kind,
    url: String,
    db: MySqlConnection,
    proxy: Proxy,
}

impl Room {
    async fn new(kind: Kind) -> Self {
        let url = fresh_database(&kind.url().await).await;
        create_tables(&url).await;
        let db = MySqlConnection::connect(&url).await.expect("a connection");
        let proxy = Proxy::start(&url).await;
        Self { kind, url, db, proxy }
    }

    async fn close(self) {
        self.db.close().await.expect("it closes");
        drop_database(&self.url).await;
    }

    async fn store(&self) -> Arc<dyn MetadataStore> {
        self.proxy.order([]);
        open(options(&self.proxy.url(&self.url)), None).await
    }
}

/// Few at a time, and again: DDL is slow, and a busy server does not answer a new connection at once.
async fn create_tables(url: &str) {
    static TURNS: Semaphore = Semaphore::const_new(4);
    let _turn = TURNS.acquire().await.expect("it is never closed");
    let started = Instant::now();
    loop {
        match migrate(MysqlOptions::from_url(url).expect("a URL")).await {
            Ok(_) => return,
            Err(error) if error.is_transient() && started.elapsed() < LIMIT => {}
            Err(error) => panic!("an empty database: {error:?}"),
        }
    }
}

/// The rows of a plan are made by the harness of the conformance suite.
struct Direct(String);

#[async_trait]
impl Database for Direct {
    async fn open(&self) -> Arc<dyn MetadataStore> {
        open(options(&self.0), None).await
    }

    async fn open_with(&self, faults: Arc<dyn Faults>) -> Arc<dyn MetadataStore> {
        open(options(&self.0), Some(faults)).await
    }

    async fn execute(&self, sql: &str) {
        test_servers::execute(&self.0, sql).await;
    }

    async fn close(self: Box<Self>) {}
}

async fn record(kind: Kind, names: Vec<&'static str>) -> Vec<Plan> {
    let mut room = Room::new(kind).await;
    let empty = State::read(&mut room.db).await;
    let features = Features { server_identity: kind == Kind::Mysql };
    let cluster = Cluster::new(Box::new(Direct(room.url.clone())), features).await;
    let mut plans = Vec::with_capacity(names.len());
    for name in names {
        empty.put_back(&mut room.db).await;
        plans.push(Plan::record(&cluster, &room.proxy, &room.url, &mut room.db, name).await);
    }
    cluster.close().await;
    room.close().await;
    plans
}

async fn all_plans(kind: Kind) -> Vec<Plan> {
    let names: Vec<_> = WRITES.into_iter().chain(READS).collect();
    let mut tasks = JoinSet::new();
    for part in names.chunks(12) {
        tasks.spawn(record(kind, part.to_vec()));
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

/// What the call said.
#[derive(Debug)]
enum Said {
    Done(String),
    /// Nothing was applied.
    Not(MetadataError),
    /// It may have been applied.
    Perhaps(String),
    /// Something else, which is wrong unless it is the answer to a repeated call.
    Other(MetadataError),
}

impl Said {
    async fn by(plan: &Plan, store: &Arc<dyn MetadataStore>) -> Self {
        let call = plan.call.run(Arc::clone(store));
        let answer: Result<String> = if plan.call.channel {
            match timeout(CHANNEL_TIMEOUT, call).await {
                Ok(answer) => answer,
                Err(_) => return Self::Perhaps("its caller waits no longer".to_owned()),
            }
        } else {
            call.await
        };
        match answer {
            Ok(answer) => Self::Done(answer),
            Err(error @ MetadataError::Unavailable { .. }) => Self::Not(error),
            Err(error @ MetadataError::Unknown { .. }) => Self::Perhaps(error.to_string()),
            Err(error) => Self::Other(error),
        }
    }
}

/// One case, from the tables as they were to the last connection's end. `Err` says what is wrong.
async fn run(case: &Case, plan: &Plan, room: &mut Room) -> Result<(), String> {
    plan.before.put_back(&mut room.db).await;
    let store = room.store().await;
    room.proxy.order([Rule::new(When::command(case.command), case.point, case.act.clone())]);
    let said = Said::by(plan, &store).await;
    if room.proxy.met().len() != 1 {
        return Err(format!("the fault was not met; {said:?}"));
    }
    let stranded = case.strands_a_session(plan);
    let settled = case.retry == Retry::Settled;
    if settled && !stranded {
        settle(room).await?;
    }
    let seen = State::read(&mut room.db).await;
    check_outcome(case, plan, &said, settled.then_some(&seen))?;
    if !matches!(said, Said::Done(_)) {
        repeat(plan, &store, &said).await?;
    }
    if !stranded {
        settle(room).await?;
    }
    let last = State::read(&mut room.db).await;
    let wrong = plan.once.difference(&last, &plan.before);
    if !wrong.is_empty() && !plan.twice.difference(&last, &plan.before).is_empty() {
        return Err(format!("{said:?}, repeated, is not what the call does:\n{wrong}"));
    }
    if stranded {
        let left = i64::from(MysqlOptions::DEFAULT_MAX_CONNECTIONS) + 1;
        wait_for_quiet(room.kind, &mut room.db, left).await?;
        // Gone with the proxy's end of it.
        drop(store);
        room.proxy = Proxy::start(&room.url).await;
        return wait_for_quiet(room.kind, &mut room.db, 0).await;
    }
    wait_for_quiet(room.kind, &mut room.db, i64::from(MysqlOptions::DEFAULT_MAX_CONNECTIONS)).await?;
    drop(store);
    timeout(LIMIT, room.proxy.wait_for_connections(0)).await.map_err(|_| "a connection stays".to_owned())?;
    wait_for_quiet(room.kind, &mut room.db, 0).await
}

async fn settle(room: &Room) -> Result<(), String> {
    let late = |_| "the server keeps a session whose client has left".to_owned();
    timeout(LIMIT, room.proxy.wait_for_broken()).await.map_err(late)
}

/// Whether the call said what is true, and did not say less than it could know. `seen`: the tables, when nothing is under
/// way any more.
fn check_outcome(case: &Case, plan: &Plan, said: &Said, seen: Option<&State>) -> Result<(), String> {
    let not_applied = |seen: &State| plan.before.difference(seen, &plan.before);
    let not_once = |seen: &State| plan.once.difference(seen, &plan.before);
    let vague = matches!(case.act, Act::Error { code, message, .. } if (code, message) == (VAGUE.0, VAGUE.2));
    let lost = plan.decides(case.command) && (vague || !matches!(case.act, Act::Error { .. }));
    match said {
        Said::Done(_) if lost => Err("success, and nobody could know".to_owned()),
        Said::Done(answer) => {
            if !plan.writes && *answer != plan.answer {
                return Err(format!("another answer:\n    - {}\n    + {answer}", plan.answer));
            }
            match seen.map(not_once) {
                Some(wrong) if !wrong.is_empty() => Err(format!("success, but:\n{wrong}")),
                _ => Ok(()),
            }
        }
        Said::Not(error) => {
            // A channel is its caller's to reopen; and what hangs may take all the time there is.
            if !(plan.call.channel || case.hangs()) {
                return Err(format!("not tried again: {error:?}"));
            }
            match seen.map(not_applied) {
                Some(wrong) if !wrong.is_empty() => Err(format!("{error:?}, and yet:\n{wrong}")),
                _ => Ok(()),
            }
        }
        Said::Perhaps(text) => {
            // A statement that is its own transaction has one bound for all of it.
            if !(lost || plan.call.channel || (plan.writes && !plan.has_transaction())) {
                return Err(format!("it could know: {text}"));
            }
            match seen {
                Some(seen) if !not_applied(seen).is_empty() && !not_once(seen).is_empty() => {
                    Err(format!("half applied:\n{}", not_once(seen)))
                }
                _ => Ok(()),
            }
        }
        Said::Other(error) => Err(format!("an error that is none: {error:?}")),
    }
}

/// What a caller does whose call failed: it makes it again.
async fn repeat(plan: &Plan, store: &Arc<dyn MetadataStore>, first: &Said) -> Result<(), String> {
    let started = Instant::now();
    loop {
        match Said::by(plan, store).await {
            Said::Done(_) => return Ok(()),
            Said::Not(_) | Said::Perhaps(_) if started.elapsed() < LIMIT => {}
            Said::Other(error)
                if matches!(plan.call.again, Again::Refused(wanted) if wanted.is(&error))
                    && matches!(first, Said::Perhaps(_)) =>
            {
                return Ok(());
            }
            said => return Err(format!("{first:?}, and repeated: {said:?}")),
        }
    }
}

async fn work(kind: Kind, plans: Arc<Vec<Plan>>, queue: Arc<Mutex<Vec<Case>>>, total: usize) -> Vec<String> {
    let next = || {
        let mut queue = queue.lock().expect("no panic");
        if queue.len().is_multiple_of(250) && !queue.is_empty() {
            println!("{kind:?}: {} of {total} cases are left", queue.len());
        }
        queue.pop()
    };
    let mut room = Room::new(kind).await;
    let mut failures = Vec::new();
    while let Some(case) = next() {
        let plan = &plans[case.plan];
        let outcome = timeout(4 * LIMIT, run(&case, plan, &mut room)).await;
        let outcome = outcome.unwrap_or_else(|_| Err("it does not end".to_owned()));
        if let Err(wrong) = outcome {
            let name = case.name(plan);
            println!("{kind:?}: {name}: {wrong}");
            failures.push(name);
            // Whatever hangs there, it hangs no further case up.
            room = Room::new(kind).await;
        }
    }
    room.close().await;
    failures
}

/// Of how many parts of the cases each server but MySQL runs one, unless it is told otherwise. No multiple of what a round
/// trip has in cases, so that the part of any of them is not always the same faults.
pub(super) const PARTS: usize = 5;

/// Which cases run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Every fault at every round trip.
    All,
    /// What is alike by construction takes turns; and of that one part of several, counted from 0.
    Part { part: usize, of: usize },
}

impl Extent {
    /// What `CDC_FAULTS` says, or what is usual on a kind of server.
    fn of(kind: Kind) -> Self {
        let wanted = env::var("CDC_FAULTS").unwrap_or_default();
        match (wanted.as_str(), kind) {
            ("all", _) => return Self::All,
            ("turns", _) | ("", Kind::Mysql) => return Self::Part { part: 0, of: 1 },
            ("", Kind::Mariadb) => return Self::Part { part: 0, of: PARTS },
            ("", Kind::Tidb) => return Self::Part { part: 1, of: PARTS },
            _ => {}
        }
        let numbers = wanted.split_once('/').map(|(part, of)| (part.parse::<usize>(), of.parse::<usize>()));
        match numbers {
            Some((Ok(part), Ok(of))) if (1..=of).contains(&part) => Self::Part { part: part - 1, of },
            _ => panic!("CDC_FAULTS is `{wanted}`; it must be all, turns, or a part of them, as in 3/5"),
        }
    }
}

fn list_cases(plans: &[Plan], extent: Extent) -> Vec<Case> {
    let only = env::var("CDC_FAULTS_ONLY").unwrap_or_default();
    let mut cases = Vec::new();
    for (number, plan) in plans.iter().enumerate() {
        cases.extend(Case::of(number, plan, extent == Extent::All));
    }
    if let Extent::Part { part, of } = extent {
        cases = cases.into_iter().skip(part).step_by(of).collect();
    }
    cases.retain(|case| case.name(&plans[case.plan]).contains(&only));
    // Taken from the end: those that wait longest come first.
    cases.sort_by_key(|case| (case.hangs(), case.plan));
    cases
}

pub async fn every_transaction_at_every_point(kind: Kind) {
    let started = Instant::now();
    let plans = all_plans(kind).await;
    let named: BTreeSet<&str> = plans.iter().flat_map(|plan| plan.transactions.iter().copied()).collect();
    assert_eq!(named, writing_transactions(), "each transaction that writes is in some plan");
    for plan in &plans {
        let connects = plan.commands.iter().any(|command| command.kind == CommandKind::Connect);
        let ends = plan.commands.iter().enumerate().filter(|(n, _)| plan.decides(*n)).count();
        assert!(connects, "{}: a fresh store connects", plan.call.name);
        assert_eq!(ends, usize::from(plan.writes), "{}: {:?}", plan.call.name, plan.commands);
    }
    let extent = Extent::of(kind);
    let cases = list_cases(&plans, extent);
    let (total, hanging) = (cases.len(), cases.iter().filter(|case| case.hangs()).count());
    let (plans, queue) = (Arc::new(plans), Arc::new(Mutex::new(cases)));
    println!(
        "{kind:?}, {extent:?}: {total} cases, {hanging} of which hang; recorded in {:?}",
        started.elapsed()
    );
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS.min(total) {
        workers.spawn(work(kind, Arc::clone(&plans), Arc::clone(&queue), total));
    }
    let failures: Vec<_> = workers.join_all().await.into_iter().flatten().collect();
    println!("{kind:?}: {total} cases in {:?}", started.elapsed());
    assert!(failures.is_empty(), "{} of {total} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// The proxy alone changes nothing: the conformance suite's own way to a situation works through it.
pub async fn a_slow_network_is_only_slow(kind: Kind) {
    let room = Room::new(kind).await;
    let store = room.store().await;
    room.proxy.set_latency(Duration::from_millis(20));
    let features = Features { server_identity: kind == Kind::Mysql };
    let mut cluster = Cluster::new(Box::new(Direct(room.url.clone())), features).await;
    cluster.store = store;
    let owned = cluster.owned("slow").await;
    cluster.release(owned.owner).await;
    assert!(room.proxy.met().is_empty());
    let point = [Point::Before, Point::Answered];
    room.proxy.order(point.map(|point| {
        Rule::new(When::statement("UPDATE").times(3), point, Act::Delay(Duration::from_millis(500)))
    }));
    cluster.owned("slower").await;
    assert!(room.proxy.met().len() >= 3);
    cluster.close().await;
    room.close().await;
}
