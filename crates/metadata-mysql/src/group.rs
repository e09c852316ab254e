//! Calls that arrive while one like them is under way are committed together, in the next transaction.
//!
//! The fence row is a queue: whoever changes what others act on has it to himself until COMMIT. So a thousand pauses must not
//! be a thousand turns in it. A call that meets no other goes at once and alone; those that come meanwhile wait for that one,
//! and then share a transaction.
//!
//! Each caller has its own answer, and `Unknown` only when a COMMIT was lost. The calls that wait are made by a task, which lives for as
//! long as any do: no caller can hold up the others by going away, or by not being polled. A transaction that nobody waits for any
//! more is dropped, and its connection closed; one that it shares with others is made, and with it the call of who went away.

use std::collections::{HashSet, VecDeque};
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use metadata_api::store::MAX_BATCH;
use metadata_api::{MetadataError, Result};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::tx::{self, Runner, Tx};

/// How much text the calls of one transaction bring, at most, unless one alone brings more.
const MAX_TEXT: usize = 1 << 20;

/// What only one call of a transaction may be about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A changefeed.
    Changefeed(u64),
    /// A changefeed's name.
    Name(String),
    /// A request to create one.
    Request(Uuid),
}

/// A call that may share a transaction with others of its kind.
pub(crate) trait Call: Send + Sync + 'static {
    /// What comes back.
    type Answer: Send + 'static;

    /// What it is about. Calls that share a key are made one after the other, in the order in which they came.
    fn keys(&self) -> Vec<Key>;

    /// Whether it can be in one transaction with `first`: who writes under another token cannot.
    fn may_join(&self, _first: &Self) -> bool {
        true
    }

    /// How much text it writes, in bytes.
    fn text(&self) -> usize {
        0
    }
}

/// How calls are made: one answer for each, in their order, or all fail.
trait Work<C: Call>:
    Fn(Vec<Arc<C>>) -> BoxFuture<'static, Result<Vec<Result<C::Answer>>>> + Send + Sync + 'static
{
}

impl<C: Call, W> Work<C> for W where
    W: Fn(Vec<Arc<C>>) -> BoxFuture<'static, Result<Vec<Result<C::Answer>>>> + Send + Sync + 'static
{
}

struct Waiting<C: Call> {
    call: C,
    answer: oneshot::Sender<Result<C::Answer>>,
}

/// What waits.
struct Queue<C: Call> {
    waiting: VecDeque<Waiting<C>>,
    /// Whether a task makes what waits.
    is_served: bool,
}

/// Makes calls in a transaction that has just begun.
type Body<C> =
    for<'t, 'env> fn(&'t mut Tx<'env>, &'env [Arc<C>]) -> tx::BoxFuture<'t, Vec<Result<<C as Call>::Answer>>>;

/// Calls of one kind.
pub(crate) struct Group<C: Call> {
    transaction: &'static str,
    queue: Arc<Mutex<Queue<C>>>,
}

impl<C: Call> Group<C> {
    /// `transaction` is the name of theirs.
    pub(crate) fn new(transaction: &'static str) -> Self {
        let queue = Queue { waiting: VecDeque::new(), is_served: false };
        Self { transaction, queue: Arc::new(Mutex::new(queue)) }
    }

    /// Makes the call in a transaction: at once if no other is under way, else in the next, with those that wait.
    pub(crate) async fn commit(&self, runner: &Runner, call: C, body: Body<C>) -> Result<C::Answer> {
        let (runner, name) = (runner.clone(), self.transaction);
        let work = move |calls: Vec<Arc<C>>| -> BoxFuture<'static, Result<Vec<Result<C::Answer>>>> {
            let runner = runner.clone();
            async move {
                let calls = calls.as_slice();
                runner.tx(name, |tx| body(tx, calls)).await
            }
            .boxed()
        };
        self.make(call, work).await
    }

    /// The same by `work`, which is the same for all calls.
    async fn make(&self, call: C, work: impl Work<C>) -> Result<C::Answer> {
        let (answer, answered) = oneshot::channel();
        let is_served = {
            let mut queue = lock(&self.queue);
            queue.waiting.push_back(Waiting { call, answer });
            std::mem::replace(&mut queue.is_served, true)
        };
        if !is_served {
            let mut serving = Serving { queue: Arc::clone(&self.queue), is_over: false };
            tokio::spawn(async move {
                while let Some(together) = serving.next() {
                    make_together(together, &work).await;
                }
            });
        }
        // Without an answer the task has ended before its time: it panicked, or its runtime was shut down.
        let gone = |error| MetadataError::Unknown { transaction: self.transaction, source: Box::new(error) };
        answered.await.map_err(gone)?
    }
}

/// The right and the duty to make what waits.
struct Serving<C: Call> {
    queue: Arc<Mutex<Queue<C>>>,
    is_over: bool,
}

impl<C: Call> Serving<C> {
    /// The next calls that can be made together. With `None` the right is given back.
    fn next(&mut self) -> Option<Vec<Waiting<C>>> {
        let mut queue = lock(&self.queue);
        let together = take(&mut queue.waiting);
        queue.is_served = !together.is_empty();
        self.is_over = together.is_empty();
        queue.is_served.then_some(together)
    }
}

impl<C: Call> Drop for Serving<C> {
    fn drop(&mut self) {
        if !self.is_over {
            // Nobody else would ever answer those who wait.
            let mut queue = lock(&self.queue);
            queue.waiting.clear();
            queue.is_served = false;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes calls off the front for as long as they fit together.
fn take<C: Call>(waiting: &mut VecDeque<Waiting<C>>) -> Vec<Waiting<C>> {
    let mut together: Vec<Waiting<C>> = Vec::new();
    let (mut keys, mut text) = (HashSet::new(), 0);
    while let Some(next) = waiting.pop_front() {
        if next.answer.is_closed() {
            // Its caller has gone, and nothing of it was sent.
            continue;
        }
        let its_keys = next.call.keys();
        text += next.call.text();
        let fits = together.first().is_none_or(|first| {
            next.call.may_join(&first.call)
                && keys.len() + its_keys.len() <= MAX_BATCH
                && text <= MAX_TEXT
                && !its_keys.iter().any(|key| keys.contains(key))
        });
        if !fits {
            waiting.push_front(next);
            break;
        }
        keys.extend(its_keys);
        together.push(next);
    }
    together
}

/// Makes calls in one transaction, and answers them. What fails as a whole for a reason that one of them may have brought is made
/// one by one, so that each has its own answer; when it is the database that failed, that is everybody's answer.
async fn make_together<C: Call>(together: Vec<Waiting<C>>, work: &impl Work<C>) {
    let (calls, mut callers): (Vec<Arc<C>>, Vec<_>) =
        together.into_iter().map(|one| (Arc::new(one.call), one.answer)).unzip();
    let Some(made) = unless_all_leave(work(calls.clone()), &mut callers).await else { return };
    let error = match made {
        Ok(answers) => return answer(callers, answers),
        Err(error) => error,
    };
    let count = callers.len();
    if count == 1 {
        return answer(callers, [Err(error)]);
    }
    match everybodys(error, count) {
        Some(errors) => answer(callers, errors.into_iter().map(Err)),
        None => make_one_by_one(calls, callers, work).await,
    }
}

async fn make_one_by_one<C: Call>(
    calls: Vec<Arc<C>>,
    callers: Vec<oneshot::Sender<Result<C::Answer>>>,
    work: &impl Work<C>,
) {
    let mut is_away = None;
    for (call, caller) in calls.into_iter().zip(callers) {
        let mut caller = [caller];
        let made = match is_away {
            // Each would wait for it as long as the first one did.
            Some(transaction) => {
                let source = "it was unavailable to the call before, and this one was not made".into();
                Err(MetadataError::Unavailable { transaction, source })
            }
            None => match unless_all_leave(work(vec![call]), &mut caller).await {
                Some(made) => made.and_then(|mut answers| answers.pop().unwrap_or_else(|| Err(missing()))),
                None => continue,
            },
        };
        if let Err(
            MetadataError::Unavailable { transaction, .. } | MetadataError::Unknown { transaction, .. },
        ) = &made
        {
            is_away = Some(*transaction);
        }
        answer(caller, [made]);
    }
}

/// No path leads here: each call has an answer.
fn missing() -> MetadataError {
    MetadataError::conflict("the transaction gave no answer")
}

/// Does `work` for as long as one of `callers` waits for it.
async fn unless_all_leave<T, A>(
    work: impl Future<Output = T> + Send,
    callers: &mut [oneshot::Sender<A>],
) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        _ = join_all(callers.iter_mut().map(oneshot::Sender::closed)) => None,
    }
}

fn answer<A>(callers: impl IntoIterator<Item = oneshot::Sender<A>>, answers: impl IntoIterator<Item = A>) {
    for (caller, answer) in callers.into_iter().zip(answers) {
        // Who has left has nobody to tell.
        drop(caller.send(answer));
    }
}

/// The error for each of `count` callers, when it is about all of them: the database, or their common token. `None` when it may be
/// about one.
fn everybodys(error: MetadataError, count: usize) -> Option<Vec<MetadataError>> {
    let each = |error: &dyn Fn() -> MetadataError| Some((0..count).map(|_| error()).collect());
    match error {
        MetadataError::Unavailable { transaction, source } => {
            Some(share(count, source, |source| MetadataError::Unavailable { transaction, source }))
        }
        MetadataError::Unknown { transaction, source } => {
            Some(share(count, source, |source| MetadataError::Unknown { transaction, source }))
        }
        MetadataError::Fenced { what } => each(&|| MetadataError::fenced(what.clone())),
        MetadataError::Schema { reason } => each(&|| MetadataError::schema(reason.clone())),
        MetadataError::Unsupported { reason } => {
            each(&|| MetadataError::Unsupported { reason: reason.clone() })
        }
        _ => None,
    }
}

/// An error for each of `count` callers, of one source.
fn share(
    count: usize,
    source: Box<dyn StdError + Send + Sync>,
    error: impl Fn(Box<dyn StdError + Send + Sync>) -> MetadataError,
) -> Vec<MetadataError> {
    let source: Arc<dyn StdError + Send + Sync> = source.into();
    (0..count).map(|_| error(Box::new(Arc::clone(&source)))).collect()
}

/// The answers to calls that brought several requests each, given back to each: `counts` says how many.
pub(crate) fn apart<A>(answers: Vec<A>, counts: impl IntoIterator<Item = usize>) -> Vec<Result<Vec<A>>> {
    let mut answers = answers.into_iter();
    counts.into_iter().map(|count| Ok(answers.by_ref().take(count).collect())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    /// A call about one changefeed, in the name of `token`.
    struct Ask {
        changefeed: u64,
        token: u64,
        text: usize,
    }

    fn ask(changefeed: u64) -> Ask {
        Ask { changefeed, token: 1, text: 0 }
    }

    impl Call for Ask {
        /// The transaction that it was in.
        type Answer = usize;

        fn keys(&self) -> Vec<Key> {
            vec![Key::Changefeed(self.changefeed)]
        }

        fn may_join(&self, first: &Self) -> bool {
            self.token == first.token
        }

        fn text(&self) -> usize {
            self.text
        }
    }

    /// Transactions, each of which waits to be let go.
    #[derive(Clone, Default)]
    struct Database {
        begun: Arc<AtomicUsize>,
        dropped: Arc<AtomicUsize>,
        go: Arc<Notify>,
        /// The calls of each transaction.
        made: Arc<Mutex<Vec<Vec<u64>>>>,
    }

    struct CountsDrop(Option<Arc<AtomicUsize>>);

    impl Drop for CountsDrop {
        fn drop(&mut self) {
            if let Some(dropped) = &self.0 {
                dropped.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    impl Database {
        fn work(&self, fails: fn(&[u64]) -> Option<MetadataError>) -> impl Work<Ask> + Clone + use<> {
            let database = self.clone();
            move |calls: Vec<Arc<Ask>>| -> BoxFuture<'static, Result<Vec<Result<usize>>>> {
                let database = database.clone();
                Box::pin(async move {
                    let mut counts = CountsDrop(Some(Arc::clone(&database.dropped)));
                    let turn = database.begun.fetch_add(1, Ordering::SeqCst);
                    let of: Vec<u64> = calls.iter().map(|call| call.changefeed).collect();
                    let error = fails(&of);
                    lock(&database.made).push(of);
                    database.go.notified().await;
                    counts.0 = None;
                    error.map_or_else(|| Ok(calls.iter().map(|_| Ok(turn)).collect()), Err)
                })
            }
        }

        fn made(&self) -> Vec<Vec<u64>> {
            lock(&self.made).clone()
        }
    }

    fn never(_: &[u64]) -> Option<MetadataError> {
        None
    }

    /// Callers of one group, each a task of its own.
    fn asks_of(database: &Database) -> impl Fn(u64) -> JoinHandle<Result<usize>> + use<> {
        let (group, database) = (Arc::new(Group::new("test")), database.clone());
        move |n| {
            let (group, work) = (Arc::clone(&group), database.work(never));
            tokio::spawn(async move { group.make(ask(n), work).await })
        }
    }

    /// Lets everybody else run until they wait.
    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    /// Makes calls that are asked in this order before any is begun; then lets one transaction after the other go.
    async fn all(
        database: &Database,
        asks: Vec<Ask>,
        fails: fn(&[u64]) -> Option<MetadataError>,
    ) -> Vec<Result<usize>> {
        let group = Group::new("test");
        // One thread: nothing begins before all have asked.
        let calls = asks.into_iter().map(|ask| group.make(ask, database.work(fails)));
        let mut calls = Box::pin(join_all(calls));
        loop {
            if let std::task::Poll::Ready(answers) = futures::poll!(calls.as_mut()) {
                return answers;
            }
            settle().await;
            database.go.notify_one();
            settle().await;
        }
    }

    fn turns(answers: Vec<Result<usize>>) -> Vec<usize> {
        answers.into_iter().map(|answer| answer.unwrap()).collect()
    }

    #[tokio::test]
    async fn who_comes_meanwhile_shares_the_next_transaction() {
        let database = Database::default();
        let make = asks_of(&database);
        let first = make(0);
        settle().await;
        assert_eq!(database.made(), [vec![0]], "alone, and at once");
        let others: Vec<_> = (1..9).map(&make).collect();
        settle().await;
        assert_eq!(database.made(), [vec![0]]);
        database.go.notify_one();
        assert_eq!(first.await.unwrap().unwrap(), 0);
        database.go.notify_one();
        for other in others {
            assert_eq!(other.await.unwrap().unwrap(), 1);
        }
        assert_eq!(database.made(), [vec![0], (1..9).collect()]);
        // And nothing is left behind.
        database.go.notify_one();
        assert_eq!(make(9).await.unwrap().unwrap(), 2);
    }

    #[tokio::test]
    async fn what_does_not_fit_waits_for_its_own_transaction_in_the_order_of_asking() {
        let database = Database::default();
        // The same changefeed twice.
        let answers = all(&database, vec![ask(1), ask(2), ask(1), ask(3)], never).await;
        assert_eq!(turns(answers), [0, 0, 1, 1]);
        // Another token.
        let database = Database::default();
        let other = Ask { token: 2, ..ask(2) };
        assert_eq!(turns(all(&database, vec![ask(1), other, ask(3)], never).await), [0, 1, 2]);
        // Too many, and too much text; what alone is too much goes alone.
        let database = Database::default();
        let many = (0..=MAX_BATCH as u64).map(ask).collect();
        assert_eq!(turns(all(&database, many, never).await).last(), Some(&1));
        let database = Database::default();
        let long = |changefeed, text| Ask { text, ..ask(changefeed) };
        let asks = vec![long(1, MAX_TEXT / 2), long(2, MAX_TEXT), long(3, MAX_TEXT + 1), long(4, 1)];
        assert_eq!(turns(all(&database, asks, never).await), [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn a_caller_who_leaves_takes_nobody_along() {
        let database = Database::default();
        let make = asks_of(&database);
        let first = make(0);
        settle().await;
        let [second, third, fourth] = [1, 2, 3].map(&make);
        settle().await;
        // Nobody waits for it any more, and it is gone at once; who has left before his turn is not made at all.
        first.abort();
        fourth.abort();
        settle().await;
        assert_eq!(database.dropped.load(Ordering::SeqCst), 1);
        assert_eq!(database.made(), [vec![0], vec![1, 2]]);
        // One of two leaves, and the other's goes on.
        second.abort();
        settle().await;
        assert_eq!(database.dropped.load(Ordering::SeqCst), 1);
        database.go.notify_one();
        assert_eq!(third.await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_caller_who_does_not_look_holds_up_nobody() {
        let database = Database::default();
        let group = Group::new("test");
        let mut idle = Box::pin(group.make(ask(0), database.work(never)));
        assert!(futures::poll!(idle.as_mut()).is_pending());
        settle().await;
        database.go.notify_one();
        settle().await;
        database.go.notify_one();
        assert_eq!(group.make(ask(1), database.work(never)).await.unwrap(), 1);
        assert_eq!(idle.await.unwrap(), 0, "and its answer waits for it");
    }

    #[tokio::test]
    async fn a_panic_is_an_unknown_outcome_and_the_next_call_begins_anew() {
        fn panics(calls: &[u64]) -> Option<MetadataError> {
            assert!(!calls.contains(&2), "planted");
            None
        }
        let database = Database::default();
        let group = Group::new("test");
        let asks = [1, 2].map(|n| group.make(ask(n), database.work(panics)));
        for answer in join_all(asks).await {
            assert!(matches!(answer, Err(MetadataError::Unknown { transaction: "test", .. })), "{answer:?}");
        }
        database.go.notify_one();
        group.make(ask(3), database.work(panics)).await.unwrap();
    }

    #[tokio::test]
    async fn what_one_spoils_is_made_one_by_one() {
        fn spoiled(calls: &[u64]) -> Option<MetadataError> {
            calls.contains(&2).then(|| MetadataError::corrupt("t", 2, "c", "it is damaged"))
        }
        let database = Database::default();
        let answers = all(&database, vec![ask(1), ask(2), ask(3)], spoiled).await;
        assert_eq!(database.made(), [vec![1, 2, 3], vec![1], vec![2], vec![3]]);
        assert!(matches!(&answers[..], [Ok(1), Err(MetadataError::Corrupt { .. }), Ok(3)]), "{answers:?}");
    }

    #[tokio::test]
    async fn when_the_database_goes_away_one_by_one_ends() {
        fn away_after_one(calls: &[u64]) -> Option<MetadataError> {
            match calls {
                [_] if calls.contains(&2) => {
                    Some(MetadataError::Unknown { transaction: "test", source: "it is away".into() })
                }
                [_] => None,
                _ => Some(MetadataError::corrupt("t", 2, "c", "it is damaged")),
            }
        }
        let database = Database::default();
        let answers = all(&database, (1..5).map(ask).collect(), away_after_one).await;
        assert_eq!(database.made(), [vec![1, 2, 3, 4], vec![1], vec![2]]);
        let [Ok(_), Err(second), Err(third), Err(_)] = &answers[..] else { panic!("{answers:?}") };
        assert!(matches!(second, MetadataError::Unknown { .. }), "{second}");
        assert!(matches!(third, MetadataError::Unavailable { .. }), "{third}");
    }

    #[tokio::test]
    async fn what_the_database_says_all_are_told() {
        fn lost(calls: &[u64]) -> Option<MetadataError> {
            let error =
                || MetadataError::Unknown { transaction: "test", source: "the answer was lost".into() };
            (!calls.is_empty()).then(error)
        }
        fn away(calls: &[u64]) -> Option<MetadataError> {
            let error = || MetadataError::Unavailable { transaction: "test", source: "it is away".into() };
            (!calls.is_empty()).then(error)
        }
        let database = Database::default();
        for answer in all(&database, vec![ask(1), ask(2)], lost).await {
            let error = answer.unwrap_err();
            assert!(matches!(error, MetadataError::Unknown { .. }), "{error}");
            assert!(error.to_string().ends_with("the answer was lost"), "{error}");
        }
        for answer in all(&database, vec![ask(1), ask(2)], away).await {
            let error = answer.unwrap_err();
            assert!(matches!(error, MetadataError::Unavailable { .. }), "{error}");
        }
        assert_eq!(database.made(), [vec![1, 2], vec![1, 2]], "and nothing is made twice");
    }

    #[test]
    fn answers_go_back_to_who_asked() {
        let apart: Vec<Vec<u8>> = apart(vec![1, 2, 3], [2, 0, 1]).into_iter().map(Result::unwrap).collect();
        assert_eq!(apart, [vec![1, 2], vec![], vec![3]]);
    }
}
