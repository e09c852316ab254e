//! What a capture makes of the answers to its watch poll.

use std::collections::BTreeMap;

use super::schedule::{ScheduledChangefeed, diff_scheduled_changefeeds};
use crate::model::{CaptureState, ChangefeedUuid, ClusterIdentity, Revision, ScheduleState};
use crate::store::PollAnswer;
use crate::{MetadataError, Result};

/// The orders of a capture: every changefeed that it owns, as far as it knows.
pub type Orders = BTreeMap<ChangefeedUuid, ScheduledChangefeed>;

/// Whether `answer` is of the database that the capture has been looking at (`known`, not before `seen`), and the capture's row
/// is still there and not sealed.
///
/// # Errors
/// [`Fenced`](MetadataError::Fenced), with the reason: this incarnation of the capture is over.
pub fn check_answer(known: Option<&ClusterIdentity>, seen: Revision, answer: &PollAnswer) -> Result<()> {
    if let Some(known) = known
        && known.cluster_id != answer.identity.cluster_id
    {
        return Err(MetadataError::fenced(format!(
            "the database is another cluster: {} was {}",
            answer.identity.cluster_id, known.cluster_id
        )));
    }
    if answer.revision < seen {
        return Err(MetadataError::fenced(format!(
            "the database's revision went back from {seen} to {}: it was restored or failed over",
            answer.revision
        )));
    }
    match answer.own_state {
        None => Err(MetadataError::fenced("this capture's row is gone")),
        Some(CaptureState::Offline) => Err(MetadataError::fenced("this capture was declared offline")),
        Some(CaptureState::Alive | CaptureState::Draining) => Ok(()),
    }
}

/// Whether a look may bring new launches, given `there`, the heartbeat in the capture's own row as read *after* the look (`None` = it
/// has no row), and the greatest number that was `acknowledged` before.
///
/// A database that was set back to a backup shows a revision that went back only until somebody writes: revisions come from the
/// clock, and pass what was seen before. The capture's own row does not pass it.
///
/// # Errors
/// [`Fenced`](MetadataError::Fenced): this incarnation of the capture is over.
pub fn check_own_beat(acknowledged: u64, there: Option<u64>) -> Result<()> {
    match there {
        None => Err(MetadataError::fenced("this capture's row is gone")),
        Some(there) if there < acknowledged => Err(MetadataError::fenced(format!(
            "this capture went back to heartbeat {there} from {acknowledged}: the database was restored"
        ))),
        Some(_) => Ok(()),
    }
}

/// Whether `after` has a launch that `before` has not.
pub fn brings_launches(before: &Orders, after: &Orders) -> bool {
    after.iter().any(|(uuid, order)| before.get(uuid).is_none_or(|known| known.epoch != order.epoch))
}

/// What a look made of the orders, from `before` to `after`, applied to `orders`: the difference, and only that, since an order
/// that was carried out and forgotten meanwhile stays forgotten. Says whether there was any.
pub fn apply_look(orders: &mut Orders, before: &Orders, after: &Orders) -> bool {
    let list = |map: &Orders| map.values().copied().collect::<Vec<_>>();
    let changes = diff_scheduled_changefeeds(&list(before), &list(after));
    for change in &changes {
        if change.state == ScheduleState::Removed {
            orders.remove(&change.changefeed);
        } else {
            orders.insert(change.changefeed, *change);
        }
    }
    !changes.is_empty()
}
