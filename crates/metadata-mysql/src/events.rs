//! Events: what an operator or an owner does to a changefeed's state, and what follows from it for its schedule and its name.
//! Many of them share a transaction.

use std::sync::Arc;

use metadata_api::codec::next_status;
use metadata_api::decision::feed_state::{FeedEvent, feed_transition};
use metadata_api::model::{
    ChangefeedStatus, ChangefeedUuid, FeedState, OwnerTerm, Revision, RunningError, ScheduleState, Version,
};
use metadata_api::store::Authority;
use metadata_api::{MetadataError, Result};

use crate::feeds::{
    Feed, ScheduleWrite, changefeed_text, check_owner, feeds, no_changefeed, read_feeds, write_schedules,
    write_statuses,
};
use crate::fence::fence_lock_reading;
use crate::group::{Call, Key};
use crate::retry::TxResult;
use crate::sql::{Batch, Sql};
use crate::tx::{BoxFuture, Tx};

/// An event for a changefeed, by an operator, or by its owner.
pub(crate) struct Event {
    changefeed: ChangefeedUuid,
    /// In whose name the fence is locked.
    authority: Authority,
    /// The owner whose word it is, if it is an owner's.
    term: Option<OwnerTerm>,
    kind: FeedEvent,
    error: Option<RunningError>,
}

impl Event {
    /// An operator's, or the controller's.
    pub(crate) fn by(authority: Authority, changefeed: ChangefeedUuid, kind: FeedEvent) -> Self {
        Self { changefeed, authority, term: None, kind, error: None }
    }

    /// Its owner's.
    pub(crate) fn by_owner(term: OwnerTerm, kind: FeedEvent, error: Option<RunningError>) -> Self {
        let changefeed = term.changefeed;
        Self { changefeed, authority: Authority::Operator, term: Some(term), kind, error }
    }
}

impl Call for Event {
    type Answer = ChangefeedStatus;

    fn keys(&self) -> Vec<Key> {
        vec![Key::Changefeed(self.changefeed.0)]
    }

    fn may_join(&self, first: &Self) -> bool {
        self.authority == first.authority
    }

    fn text(&self) -> usize {
        self.error.as_ref().map_or(0, |error| error.message.len())
    }
}

/// What events write, all together.
#[derive(Default)]
pub(crate) struct Writes {
    schedules: Vec<ScheduleWrite>,
    /// Changefeeds that end, and whether somebody owns each.
    removed: Vec<(ChangefeedUuid, bool)>,
    statuses: Vec<ChangefeedStatus>,
}

impl Writes {
    /// Adds what follows from an event for a changefeed that was read under the fence: what ends a run turns `Launched` into
    /// `Removing`. Gives the state as it will be.
    pub(crate) fn add(
        &mut self,
        feed: &Feed,
        event: FeedEvent,
        error: Option<&RunningError>,
    ) -> Result<ChangefeedStatus> {
        let changefeed = feed.schedule.changefeed;
        let next = feed_transition(&changefeed_text(changefeed), feed.status.state, event)?;
        if event == FeedEvent::Resume && feed.status.state.is_runnable() {
            return Ok(feed.status.clone());
        }
        if !next.is_runnable() && feed.schedule.state == ScheduleState::Launched {
            self.schedules.push(ScheduleWrite::removing(&feed.schedule));
        }
        if next == FeedState::Removed && !feed.removed {
            self.removed.push((changefeed, feed.schedule.state != ScheduleState::Removed));
        }
        let mut status = next_status(&feed.status, event, next, error);
        if status != feed.status {
            self.statuses.push(status.clone());
            status.version = Version(status.version.0 + 1);
        }
        Ok(status)
    }

    /// Writes them at `revision`. The transaction is discarded when nothing changes.
    pub(crate) async fn send(mut self, tx: &mut Tx<'_>, revision: Revision) -> TxResult<()> {
        if self.schedules.is_empty() && self.removed.is_empty() && self.statuses.is_empty() {
            tx.discard();
            return Ok(());
        }
        // In the one order of locks.
        self.schedules.sort_unstable_by_key(|write| write.changefeed);
        self.statuses.sort_unstable_by_key(|status| status.changefeed);
        let (owned, unowned): (Vec<_>, Vec<_>) =
            self.removed.into_iter().partition(|(_, is_owned)| *is_owned);
        let mut batch = Batch::default();
        write_schedules(&mut batch, revision, &self.schedules);
        for (removed, are_owned) in [(owned, true), (unowned, false)] {
            if !removed.is_empty() {
                batch.add(remove(removed.into_iter().map(|(changefeed, _)| changefeed), are_owned));
            }
        }
        write_statuses(&mut batch, &self.statuses)?;
        batch.send(tx).await
    }
}

/// Ends changefeeds. A name is held until nobody runs what it named, or a part of it.
fn remove(which: impl IntoIterator<Item = ChangefeedUuid>, are_owned: bool) -> Sql {
    let mut sql =
        Sql::new("UPDATE changefeed_info SET removed_at = NOW(6), version = version + 1, removed_marker = ");
    sql.push(if are_owned {
        "0"
    } else {
        "CASE WHEN EXISTS (SELECT 1 FROM processor p WHERE p.changefeed_uuid = changefeed_info.uuid \
         AND p.state <> 'removed') THEN 0 ELSE uuid END"
    });
    sql.push(" WHERE uuid IN (").numbers(which.into_iter().map(|uuid| uuid.0)).push(")");
    sql
}

/// Applies events, each for itself.
pub(crate) fn apply<'t, 'env>(
    tx: &'t mut Tx<'env>,
    events: &'env [Arc<Event>],
) -> BoxFuture<'t, Vec<Result<ChangefeedStatus>>> {
    Box::pin(async move {
        let Some(first) = events.first() else { return Ok(Vec::new()) };
        let read = read_feeds(events.iter().map(|event| event.changefeed));
        let (revision, [found]) = fence_lock_reading(tx, first.authority, [read]).await?;
        let mut feeds = feeds(&found)?;
        let mut writes = Writes::default();
        let answers = events.iter().map(|event| {
            let feed = match (feeds.remove(&event.changefeed), event.term) {
                (Some(feed), _) => feed?,
                (None, Some(term)) => return Err(MetadataError::fenced(term.to_string())),
                (None, None) => return Err(no_changefeed(event.changefeed)),
            };
            event.term.map_or(Ok(()), |term| check_owner(&feed.schedule, term))?;
            writes.add(&feed, event.kind, event.error.as_ref())
        });
        let answers = answers.collect();
        writes.send(tx, revision).await?;
        Ok(answers)
    })
}
