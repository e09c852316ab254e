//! What the symbols of operations stand for: every id and token that was ever given out, in order.
//!
//! Of all that an operation needs besides, the version or heartbeat as it is now, the model is asked.

use std::collections::BTreeMap;

use metadata_api::model::{
    CaptureId, CaptureTerm, ChangefeedName, ChangefeedUuid, ControllerEpoch, ControllerTerm, OwnerEpoch,
    OwnerTerm, ProcessorEpoch, ProcessorTerm, Revision, Version,
};
use metadata_api::store::{Authority, MetadataStore, PollCursor};
use uuid::Uuid;

use super::op::{Ago, By, Expected, PLACES, Ref};

/// Something that an answer gave out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Token {
    Capture(u8, u64),
    Feed(u8, ChangefeedUuid),
    Controller(ControllerTerm),
    Owner(u8, OwnerTerm),
    Processor(u8, u8, ProcessorTerm),
    Progress(CaptureTerm, u64),
    Beat(CaptureTerm, u64),
    Cursor(CaptureTerm, PollCursor),
}

/// Everything that was given out.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// How many ids each place for a capture had before the one that it has now.
    generations: BTreeMap<u8, u64>,
    feeds: BTreeMap<u8, Vec<ChangefeedUuid>>,
    controllers: Vec<ControllerTerm>,
    owners: BTreeMap<u8, Vec<OwnerTerm>>,
    processors: BTreeMap<(u8, u8), Vec<ProcessorTerm>>,
    progresses: BTreeMap<CaptureTerm, u64>,
    beats: BTreeMap<CaptureTerm, u64>,
    cursors: BTreeMap<CaptureTerm, PollCursor>,
}

/// What nothing has.
const NO_FEED: ChangefeedUuid = ChangefeedUuid(1);

fn last<T: Copy>(list: Option<&Vec<T>>, ago: Ago) -> Option<T> {
    list?.iter().rev().nth(usize::from(ago)).copied()
}

impl Names {
    pub(super) fn learn(&mut self, token: Token) {
        match token {
            Token::Capture(place, generation) => drop(self.generations.insert(place, generation)),
            Token::Feed(place, uuid) => {
                let feeds = self.feeds.entry(place).or_default();
                if !feeds.contains(&uuid) {
                    feeds.push(uuid);
                }
            }
            Token::Controller(term) => self.controllers.push(term),
            Token::Owner(place, term) => self.owners.entry(place).or_default().push(term),
            Token::Processor(feed, capture, term) => {
                self.processors.entry((feed, capture)).or_default().push(term);
            }
            Token::Progress(term, seq) => drop(self.progresses.insert(term, seq)),
            Token::Beat(term, seq) => drop(self.beats.insert(term, seq)),
            Token::Cursor(term, cursor) => drop(self.cursors.insert(term, cursor)),
        }
    }

    /// Which id of its place a capture is to register with: the one that is there, or the next.
    pub(super) fn generation(&self, place: u8, anew: bool) -> u64 {
        self.generations.get(&place).map_or(0, |now| now + u64::from(anew))
    }

    pub(super) fn capture_of(place: u8, generation: u64) -> CaptureTerm {
        let id = u128::from(place) << 64 | u128::from(generation);
        CaptureTerm { capture: CaptureId(Uuid::from_u128(id + 1)) }
    }

    pub(super) fn capture(&self, capture: Ref) -> CaptureTerm {
        let now = self.generations.get(&capture.place).copied().unwrap_or(0);
        Self::capture_of(capture.place, now.wrapping_sub(u64::from(capture.ago)))
    }

    pub(super) fn feed(&self, feed: Ref) -> ChangefeedUuid {
        last(self.feeds.get(&feed.place), feed.ago).unwrap_or(NO_FEED)
    }

    pub(super) fn feeds(&self, feeds: &[Ref]) -> Vec<ChangefeedUuid> {
        feeds.iter().map(|feed| self.feed(*feed)).collect()
    }

    /// The place that a changefeed has or had.
    pub(super) fn place_of(&self, uuid: ChangefeedUuid) -> Option<u8> {
        (0..PLACES).find(|place| self.feeds.get(place).is_some_and(|feeds| feeds.contains(&uuid)))
    }

    /// How often a changefeed was created in a place.
    pub(super) fn created(&self, place: u8) -> usize {
        self.feeds.get(&place).map_or(0, Vec::len)
    }

    pub(super) fn controller(&self, ago: Ago) -> ControllerTerm {
        let nobody = ControllerTerm {
            capture: self.capture(Ref { place: 0, ago: 0 }).capture,
            epoch: ControllerEpoch(0),
        };
        last(Some(&self.controllers), ago).unwrap_or(nobody)
    }

    pub(super) fn authority(&self, by: By) -> Authority {
        match by {
            By::Operator => Authority::Operator,
            By::Controller(ago) => Authority::Controller(self.controller(ago)),
        }
    }

    pub(super) fn owner(&self, owner: Ref) -> OwnerTerm {
        let nobody = OwnerTerm {
            changefeed: self.feed(Ref { ago: 0, ..owner }),
            capture: self.capture(Ref { place: 0, ago: 0 }).capture,
            epoch: OwnerEpoch(0),
        };
        last(self.owners.get(&owner.place), owner.ago).unwrap_or(nobody)
    }

    pub(super) fn processor(&self, feed: u8, capture: u8, ago: Ago) -> ProcessorTerm {
        let nobody = ProcessorTerm {
            changefeed: self.feed(Ref { place: feed, ago: 0 }),
            capture: self.capture(Ref { place: capture, ago: 0 }).capture,
            epoch: ProcessorEpoch(0),
            owner_epoch: OwnerEpoch(0),
        };
        last(self.processors.get(&(feed, capture)), ago).unwrap_or(nobody)
    }

    pub(super) fn progress_seq(&self, term: CaptureTerm) -> u64 {
        self.progresses.get(&term).copied().unwrap_or(0)
    }

    pub(super) fn beat(&self, term: CaptureTerm) -> u64 {
        self.beats.get(&term).copied().unwrap_or(0)
    }

    pub(super) fn cursor(&self, term: CaptureTerm) -> PollCursor {
        self.cursors.get(&term).copied().unwrap_or(PollCursor::after(Revision(0)))
    }
}

/// The name that belongs to a place; one of the places is in another namespace.
pub(super) fn name_of(place: u8) -> ChangefeedName {
    let namespace = if place == PLACES - 1 { "other" } else { "" };
    ChangefeedName::new(namespace, &format!("feed-{place}")).expect("a name")
}

/// A version by what is there now.
pub(super) fn expected_version(expected: Expected, now: Option<Version>) -> Option<Version> {
    match expected {
        Expected::AsItIs => now,
        Expected::OneBefore => now.map(|version| Version(version.0.saturating_sub(1))),
        Expected::OneAfter => Some(now.map_or(Version(1), |version| Version(version.0 + 1))),
        Expected::Nothing => None,
    }
}

/// The same where a version must be given.
pub(super) fn some_version(expected: Expected, now: Option<Version>) -> Version {
    expected_version(expected, now).unwrap_or(Version(u64::from(expected != Expected::Nothing)))
}

/// The version of a changefeed's schedule in the model.
pub(super) async fn schedule_version(model: &dyn MetadataStore, feed: ChangefeedUuid) -> Option<Version> {
    model.changefeed_schedule(feed).await.expect("changefeed_schedule").map(|row| row.version)
}

/// The version of a changefeed's info in the model.
pub(super) async fn info_version(model: &dyn MetadataStore, feed: ChangefeedUuid) -> Option<Version> {
    let rows = model.changefeed_infos(Some(&[feed])).await.expect("changefeed_infos");
    rows.first().map(|row| row.version)
}
