//! Evening out: which changefeed moves next, if any.

use std::collections::{BTreeMap, BTreeSet};

use super::memory::Calm;
use super::places::{Place, Places, Pool};
use super::{Step, Why, stop};
use crate::model::{ChangefeedUuid, ScheduleSnapshot, ScheduleState, SnapshotChangefeed};

/// What a capture runs and another one of the same pool might, lightest first.
type Movable<'a> = BTreeMap<(Pool, Place), Vec<(u32, ChangefeedUuid, &'a SnapshotChangefeed)>>;

/// A move, and by how much it lowers the sum of the squares of the loads (halved).
struct Move<'a> {
    gain: u128,
    feed: &'a SnapshotChangefeed,
    from: Place,
    to: Place,
    weight: u32,
}

/// Stops up to `slots` changefeeds that then run elsewhere. Each brings the two captures closer: the one that gets it has
/// less, afterwards, than the one that gave it had before. So the sum of the squares of the loads falls with each move, and
/// it ends.
pub(super) fn even_out<'a>(
    snapshot: &'a ScheduleSnapshot,
    places: &mut Places<'a>,
    calm: &Calm,
    slots: usize,
    steps: &mut Vec<Step>,
) {
    let movable = movable(snapshot, places, calm);
    let mut taken = BTreeSet::new();
    for _ in 0..slots {
        let Some(best) = best(&movable, places, &taken) else { return };
        let end = |place| (places.id(place), places.load(place));
        let why = Why::Balance { from: end(best.from), to: end(best.to), weight: best.weight };
        steps.push(stop(best.feed, why));
        taken.insert(best.feed.schedule.changefeed);
        places.take(best.from, best.weight);
        places.put(best.to, best.weight);
    }
}

fn movable<'a>(snapshot: &'a ScheduleSnapshot, places: &mut Places<'a>, calm: &Calm) -> Movable<'a> {
    let mut movable = Movable::new();
    for feed in &snapshot.changefeeds {
        let uuid = feed.schedule.changefeed;
        let (ScheduleState::Launched, Some(owner), Ok(placement)) =
            (feed.schedule.state, feed.schedule.owner, &feed.placement)
        else {
            continue;
        };
        let Some(from) = places.find(owner) else { continue };
        let may_run = feed.state.is_runnable() && !feed.removed;
        if may_run && places.is_settled(from) && !calm.resting.contains(&uuid) {
            let pool = places.pool(placement);
            movable.entry((pool, from)).or_default().push((placement.weight, uuid, feed));
        }
    }
    for feeds in movable.values_mut() {
        feeds.sort_unstable_by_key(|(weight, uuid, _)| (*weight, *uuid));
    }
    movable
}

fn best<'a>(
    movable: &Movable<'a>,
    places: &Places<'_>,
    taken: &BTreeSet<ChangefeedUuid>,
) -> Option<Move<'a>> {
    let mut best: Option<Move<'a>> = None;
    let mut least: Option<(Pool, Option<Place>)> = None;
    for ((pool, from), feeds) in movable {
        // The keys are ordered by pool, so this is asked once a pool.
        let to = match least {
            Some((of, to)) if of == *pool => to,
            _ => places.least_settled(*pool),
        };
        least = Some((*pool, to));
        let Some(to) = to else { continue };
        let gap = places.load(*from).saturating_sub(places.load(to));
        for &(weight, _, feed) in around(feeds, gap / 2) {
            let weight_of = u64::from(weight);
            if weight_of >= gap || taken.contains(&feed.schedule.changefeed) {
                continue;
            }
            let gain = u128::from(weight_of) * u128::from(gap - weight_of);
            if best.as_ref().is_none_or(|best| gain > best.gain) {
                best = Some(Move { gain, feed, from: *from, to, weight });
            }
        }
    }
    best
}

/// The few that weigh about `half`: what lies on either side of it closes the gap best. More than one of each side, since
/// some may have been taken.
fn around<T>(feeds: &[(u32, ChangefeedUuid, T)], half: u64) -> &[(u32, ChangefeedUuid, T)] {
    const SIDE: usize = 8;
    let middle = feeds.partition_point(|(weight, ..)| u64::from(*weight) <= half);
    // Of those that weigh the same, the first ones: so the choice does not depend on how many there are.
    let first = feeds
        .get(middle.saturating_sub(1))
        .map_or(middle, |(weight, ..)| feeds.partition_point(|(other, ..)| other < weight));
    let from = first.min(middle.saturating_sub(SIDE));
    feeds.get(from..middle.saturating_add(SIDE).min(feeds.len())).unwrap_or(&[])
}
