//! Calls that arrive while one like them is under way are committed together, in the next transaction.
//!
//! The fence row is a queue: whoever changes what others act on has it to himself until COMMIT. So a thousand pauses must not
//! be a thousand turns in it. A call that meets no other goes at once and alone; those that come meanwhile wait for that one,
//! and then share a transaction.
//!
//! What a caller is promised stays what it was: its own answer; `Unknown` only when a COMMIT was lost; and that nothing goes
//! on when a call is dropped, unless others share its transaction. There is no task in the background: whoever waits for a
//! transaction drives it, and when nobody does any more it is dropped, and its connection closed.

use std::collections::{HashSet, VecDeque};
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use metadata_api::store::MAX_BATCH;
use metadata_api::{MetadataError, Result};
use tokio::sync::{Mutex as Turn, OwnedMutexGuard, oneshot};
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

/// One answer for each call, each taken by its caller.
type Answers<C> = Arc<Mutex<Vec<Option<Result<<C as Call>::Answer>>>>>;

/// A transaction that its callers wait for together.
type Together<C> = Shared<BoxFuture<'static, Answers<C>>>;

struct Waiting<C: Call> {
    call: C,
    /// Tells its caller which transaction it is in, and at which place.
    place: oneshot::Sender<(Together<C>, usize)>,
}

/// Makes calls in a transaction that has just begun.
type Body<C> =
    for<'t, 'env> fn(&'t mut Tx<'env>, &'env [Arc<C>]) -> tx::BoxFuture<'t, Vec<Result<<C as Call>::Answer>>>;

/// Calls of one kind.
pub(crate) struct Group<C: Call> {
    transaction: &'static str,
    waiting: Mutex<VecDeque<Waiting<C>>>,
    /// Held by the transaction that is under way.
    turn: Arc<Turn<()>>,
}

impl<C: Call> Group<C> {
    /// `transaction` is the name of theirs.
    pub(crate) fn new(transaction: &'static str) -> Self {
        Self { transaction, waiting: Mutex::default(), turn: Arc::default() }
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
    async fn make(&self, call: C, work: impl Work<C> + Clone) -> Result<C::Answer> {
        let (place, mut placed) = oneshot::channel();
        lock(&self.waiting).push_back(Waiting { call, place });
        let (together, index) = loop {
            tokio::select! {
                biased;
                placed = &mut placed => break placed.map_err(|_| self.missing())?,
                turn = Arc::clone(&self.turn).lock_owned() => self.begin(turn, work.clone()),
            }
        };
        let answers = together.await;
        let answer = lock(&answers).get_mut(index).and_then(Option::take);
        answer.unwrap_or_else(|| Err(self.missing()))
    }

    /// No path leads here: each that waits is given a place, and each place an answer.
    fn missing(&self) -> MetadataError {
        let source = "the answer to a call is missing".into();
        MetadataError::Unknown { transaction: self.transaction, source }
    }

    /// Takes the next transaction's calls, and gives them to their callers.
    fn begin(&self, turn: OwnedMutexGuard<()>, work: impl Work<C>) {
        let together = take(&mut lock(&self.waiting)).into_iter();
        let (calls, places): (Vec<_>, Vec<_>) = together.map(|one| (Arc::new(one.call), one.place)).unzip();
        let together = async move {
            let answers = answers(calls, work).await.into_iter().map(Some).collect();
            drop(turn);
            Arc::new(Mutex::new(answers))
        };
        let together = together.boxed().shared();
        for (index, place) in places.into_iter().enumerate() {
            // Whose caller went away a moment ago has nobody to tell.
            let _ = place.send((together.clone(), index));
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
        if next.place.is_closed() {
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

/// Makes the calls in one transaction. What fails as a whole for a reason that one of them may have brought is made one by
/// one, so that each has its own answer; when it is the database that failed, that is everybody's answer.
async fn answers<C: Call>(calls: Vec<Arc<C>>, work: impl Work<C>) -> Vec<Result<C::Answer>> {
    let count = calls.len();
    match work(calls.clone()).await {
        Ok(answers) => answers,
        Err(error) if count == 1 => vec![Err(error)],
        Err(MetadataError::Unavailable { transaction, source }) => {
            share(count, source, |source| MetadataError::Unavailable { transaction, source })
        }
        Err(MetadataError::Unknown { transaction, source }) => {
            share(count, source, |source| MetadataError::Unknown { transaction, source })
        }
        Err(_) => {
            let mut answers = Vec::with_capacity(count);
            for call in calls {
                match work(vec![call]).await {
                    Ok(alone) => answers.extend(alone),
                    Err(error) => answers.push(Err(error)),
                }
            }
            answers
        }
    }
}

/// An error for each of `count` callers, of one source.
fn share<A>(
    count: usize,
    source: Box<dyn StdError + Send + Sync>,
    error: impl Fn(Box<dyn StdError + Send + Sync>) -> MetadataError,
) -> Vec<Result<A>> {
    let source: Arc<dyn StdError + Send + Sync> = source.into();
    (0..count).map(|_| Err(error(Box::new(Arc::clone(&source))))).collect()
}

/// The answers to calls that brought several requests each, given back to each: `counts` says how many.
pub(crate) fn apart<A>(answers: Vec<A>, counts: impl IntoIterator<Item = usize>) -> Vec<Result<Vec<A>>> {
    let mut answers = answers.into_iter();
    counts.into_iter().map(|count| Ok(answers.by_ref().take(count).collect())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::sync::Notify;

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

    /// Makes calls at once, in this order, while the turn is somebody's; then lets one transaction after the other go.
    async fn all(
        database: &Database,
        asks: Vec<Ask>,
        fails: fn(&[u64]) -> Option<MetadataError>,
    ) -> Vec<Result<usize>> {
        let group = Group::new("test");
        let calls = join_all(asks.into_iter().map(|ask| group.make(ask, database.work(fails))));
        let mut calls = Box::pin(calls);
        let turn = Arc::clone(&group.turn).lock_owned().await;
        assert!(futures::poll!(calls.as_mut()).is_pending());
        drop(turn);
        loop {
            if let std::task::Poll::Ready(answers) = futures::poll!(calls.as_mut()) {
                return answers;
            }
            database.go.notify_one();
            tokio::task::yield_now().await;
        }
    }

    fn turns(answers: Vec<Result<usize>>) -> Vec<usize> {
        answers.into_iter().map(|answer| answer.unwrap()).collect()
    }

    #[tokio::test]
    async fn who_comes_meanwhile_shares_the_next_transaction() {
        let database = Database::default();
        let group = Group::new("test");
        let first = group.make(ask(0), database.work(never));
        let mut first = Box::pin(first);
        assert!(futures::poll!(first.as_mut()).is_pending(), "alone, and at once");
        let mut others = Box::pin(join_all((1..9).map(|n| group.make(ask(n), database.work(never)))));
        assert!(futures::poll!(others.as_mut()).is_pending());
        assert_eq!(database.made(), [vec![0]]);
        database.go.notify_one();
        assert_eq!(first.await.unwrap(), 0);
        assert!(futures::poll!(others.as_mut()).is_pending());
        database.go.notify_one();
        assert_eq!(turns(others.await), [1; 8]);
        assert_eq!(database.made(), [vec![0], (1..9).collect()]);
        // And nothing is left behind.
        database.go.notify_one();
        assert_eq!(group.make(ask(9), database.work(never)).await.unwrap(), 2);
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
        let group = Group::new("test");
        let mut calls: Vec<_> =
            (0..3).map(|n| Some(Box::pin(group.make(ask(n), database.work(never))))).collect();
        // The first holds the turn; the others share a transaction after it.
        for call in calls.iter_mut().flatten() {
            assert!(futures::poll!(call.as_mut()).is_pending());
        }
        drop(calls[0].take());
        assert_eq!(database.dropped.load(Ordering::SeqCst), 1, "nobody waits for it, and it is gone at once");
        for call in calls.iter_mut().flatten() {
            assert!(futures::poll!(call.as_mut()).is_pending());
        }
        assert_eq!(database.made(), [vec![0], vec![1, 2]]);
        // Whoever began it leaves; the other drives it to its end.
        drop(calls[1].take());
        assert_eq!(database.dropped.load(Ordering::SeqCst), 1);
        database.go.notify_one();
        assert_eq!(calls[2].take().unwrap().await.unwrap(), 1);
        // Who leaves before his turn is not made at all.
        let mut first = Box::pin(group.make(ask(7), database.work(never)));
        let mut second = Box::pin(group.make(ask(8), database.work(never)));
        assert!(futures::poll!(first.as_mut()).is_pending());
        assert!(futures::poll!(second.as_mut()).is_pending());
        drop(second);
        database.go.notify_one();
        first.await.unwrap();
        database.go.notify_one();
        group.make(ask(9), database.work(never)).await.unwrap();
        assert_eq!(database.made()[2..], [vec![7], vec![9]]);
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
