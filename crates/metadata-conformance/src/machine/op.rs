//! Symbolic operations, and how they are chosen.
//!
//! Nothing in an operation is an id, an epoch or a version: it says "capture 1", "the owner of changefeed 0 before this
//! one", "the version as it is". Whatever is left out of a sequence, what is left can be done.

use std::fmt;

use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{FeedState, ScheduleState};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// How many captures and changefeeds there are places for.
pub(super) const PLACES: u8 = 3;

/// One of those that had a place, one after the other: the last one (`ago` 0), or one before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Ref {
    pub(super) place: u8,
    pub(super) ago: u8,
}

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if self.ago > 0 { write!(f, " ({} before)", self.ago) } else { Ok(()) }
    }
}

/// What a compare-and-set expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    AsItIs,
    OneBefore,
    OneAfter,
    Nothing,
}

/// In whose name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Operator,
    Controller(Ago),
}

/// The last one, or the one so many before it.
pub(super) type Ago = u8;

#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) feed: Ref,
    pub(super) state: ScheduleState,
    pub(super) on: Option<Ref>,
    pub(super) expected: Expected,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment {
    pub(super) on: Ref,
    pub(super) state: ScheduleState,
    pub(super) expected: Expected,
    pub(super) carries: u8,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Release {
    pub(super) owner: Ref,
    pub(super) position: Option<u8>,
    pub(super) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Stopped,
    Finished,
    Failed,
}

/// What of a changefeed's progress a capture reports, for which of its owner's epochs; and as which of its attachments, if
/// it has a word as a processor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) owner: Ref,
    pub(super) at: u8,
    pub(super) processor: Option<Ago>,
}

/// What is said of a new changefeed, besides its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Creation {
    Plain,
    Repeated,
    /// On an upstream of this number, with one of two URIs.
    OnUpstream(u8, bool),
    TargetBeforeStart,
    PositionBeforeStart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    Target(u8),
    TargetBeforeStart,
    Sink(u8),
    MaskedSink,
    Upstream(u8),
    Config(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Next,
    Same,
    /// As if the row had gone back.
    Beyond,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Observed {
    AsItIs,
    RenewedSince,
    OtherEpoch,
    OtherLeader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Every,
    OneTooFew,
    OneBefore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    TheBeginning,
    TheLastPoll,
    Now,
}

/// One call of one method of the store traits.
#[derive(Clone, Debug)]
pub(super) enum Op {
    // ---- writes ----
    Register { place: u8, anew: bool, without_address: bool },
    Advance { capture: Ref, number: Number, entries: Vec<Entry> },
    Deregister(Ref),
    Beat { capture: Ref, number: Number },
    Renew(Ago),
    Campaign { capture: Ref, observed: Observed },
    Resign(Ago),
    OwnerSet { by: Ago, targets: Vec<Target> },
    ProcessorSet { by: Ago, feed: Ref, targets: Vec<Attachment> },
    Cleanup { by: Ago, targets: Vec<(Ref, Expected)> },
    Seal { by: Ago, capture: Ref, judged: Number },
    CaptureRelease { by: Ago, capture: Ref, limit: usize },
    CaptureDelete { by: Ago, capture: Ref },
    Transition { owner: Ref, event: FeedEvent, error: bool },
    OwnerUpdate { owner: Ref, expected: Expected, change: Change },
    OwnerRelease(Vec<Release>),
    Assign { owner: Ref, seen: Seen, to: Vec<Ref>, carries: u8 },
    ProcessorRelease { feed: u8, capture: u8, ago: Ago },
    Create { by: By, place: u8, creation: Creation },
    Update { feed: Ref, expected: Expected, change: Change },
    Pause(Ref),
    Resume { feed: Ref, overwrite: Option<u8> },
    Remove { by: By, feed: Ref },
    Drain(Ref),
    Depose,
    // ---- reads ----
    Identity,
    Election,
    Captures(Option<Vec<Ref>>),
    Upstream(Ref),
    Infos(Option<Vec<Ref>>),
    Statuses(Option<Vec<Ref>>),
    Progresses(Option<Vec<Ref>>),
    Schedule(Ref),
    ProcessorRows(Ref),
    Processors(Option<Vec<Ref>>),
    Overview(u8),
    Overviews { namespace: Option<bool> },
    CaptureProgress(Ref),
    CaptureSchedules(Ref),
    CaptureProcessors(Ref),
    Launches { capture: Ref, feeds: Vec<Ref> },
    Snapshot,
    Beats,
    OpenHeartbeat,
    OpenWatch,
    Poll { capture: Ref, from: From },
}

impl Op {
    /// The method, as [`WRITES`](crate::harness::WRITES) and [`READS`](crate::harness::READS) call it.
    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::Register { .. } => "capture_register",
            Self::Advance { .. } => "capture_advance",
            Self::Deregister(_) => "capture_deregister",
            Self::Beat { .. } => "beat",
            Self::Renew(_) => "lease_renew",
            Self::Campaign { .. } => "election_campaign",
            Self::Resign(_) => "election_resign",
            Self::OwnerSet { .. } => "owner_set",
            Self::ProcessorSet { .. } => "processor_set",
            Self::Cleanup { .. } => "changefeed_cleanup",
            Self::Seal { .. } => "capture_seal",
            Self::CaptureRelease { .. } => "capture_release",
            Self::CaptureDelete { .. } => "capture_delete",
            Self::Transition {
                event: FeedEvent::Report(FeedState::Normal | FeedState::Warning | FeedState::Pending),
                ..
            } => "owner_transition",
            Self::Transition { .. } => "owner_transition with the fence",
            Self::OwnerUpdate { .. } => "owner_update",
            Self::OwnerRelease(_) => "owner_release",
            Self::Assign { .. } => "processor_assign",
            Self::ProcessorRelease { .. } => "processor_release",
            Self::Create { .. } => "changefeed_create",
            Self::Update { .. } => "changefeed_update",
            Self::Pause(_) => "changefeed_pause",
            Self::Resume { .. } => "changefeed_resume",
            Self::Remove { .. } => "changefeed_remove",
            Self::Drain(_) => "capture_drain",
            Self::Depose => "controller_depose",
            Self::Identity => "identity",
            Self::Election => "election",
            Self::Captures(_) => "captures",
            Self::Upstream(_) => "upstream",
            Self::Infos(_) => "changefeed_infos",
            Self::Statuses(_) => "changefeed_statuses",
            Self::Progresses(_) => "changefeed_progresses",
            Self::Schedule(_) => "changefeed_schedule",
            Self::ProcessorRows(_) => "processor_schedules",
            Self::Processors(_) => "processors",
            Self::Overview(_) => "changefeed_overview",
            Self::Overviews { .. } => "changefeed_overviews",
            Self::CaptureProgress(_) => "capture_progress",
            Self::CaptureSchedules(_) => "capture_schedules",
            Self::CaptureProcessors(_) => "capture_processors",
            Self::Launches { .. } => "owner_launches",
            Self::Snapshot => "schedule_snapshot",
            Self::Beats => "capture_beats",
            Self::OpenHeartbeat => "heartbeat_channel",
            Self::OpenWatch => "watch_channel",
            Self::Poll { .. } => "poll",
        }
    }

    /// Whether it changes nothing.
    pub(super) fn is_read(&self) -> bool {
        !crate::harness::WRITES.contains(&self.method())
    }
}

/// What makes a cluster in which most operations mean something.
fn beginning() -> Vec<Op> {
    let first = Ref { place: 0, ago: 0 };
    let register = |place| Op::Register { place, anew: false, without_address: false };
    let create = |place| Op::Create { by: By::Operator, place, creation: Creation::Plain };
    let on = Some(Ref { place: 1, ago: 0 });
    let expected = Expected::AsItIs;
    vec![
        register(0),
        register(1),
        Op::Campaign { capture: first, observed: Observed::AsItIs },
        create(0),
        Op::OwnerSet {
            by: 0,
            targets: vec![Target { feed: first, state: ScheduleState::Launched, on, expected }],
        },
        create(1),
        register(2),
    ]
}

/// Sequences of up to `longest` steps, most of them after the beginning of a cluster. Every part of one can be left out.
pub(super) fn sequences(longest: usize) -> impl Strategy<Value = Vec<Op>> {
    let begun = prop_oneof![4 => mostly_all(beginning()), 1 => Just(Vec::new())];
    let step = prop_oneof![2 => op().prop_map(|op| vec![op]).boxed(), 1 => life().boxed()];
    (begun, vec(step, 1..=longest)).prop_map(|(begun, then)| {
        let then = then.into_iter().flatten();
        begun.into_iter().chain(then).collect()
    })
}

/// These, of which some may be missing.
fn mostly_all(ops: Vec<Op>) -> impl Strategy<Value = Vec<Op>> {
    vec(prop::bool::weighted(0.97), ops.len()).prop_map(move |kept| {
        ops.iter().zip(kept).filter(|(_, kept)| *kept).map(|(op, _)| op.clone()).collect()
    })
}

// What is large is boxed: a tree of everything would not fit on a test's stack.

/// What follows one from the other, and seldom would by chance. The last of each may be by a token that is over.
fn life() -> impl Strategy<Value = Vec<Op>> {
    let who = (place(), place(), place(), ago());
    (0..5_u8, who, change(), event(), release()).prop_flat_map(|(which, who, change, event, last)| {
        let (feed, on, other, ago) = who;
        let expected = Expected::AsItIs;
        let [feed, on, other] = [feed, on, other].map(|place| Ref { place, ago: 0 });
        let launch = Op::OwnerSet {
            by: 0,
            targets: vec![Target { feed, state: ScheduleState::Launched, on: Some(on), expected }],
        };
        let attach = |on, state| Op::ProcessorSet {
            by: 0,
            feed,
            targets: vec![Attachment { on, state, expected, carries: 0 }],
        };
        let detached = |ago| Op::ProcessorRelease { feed: feed.place, capture: other.place, ago };
        let reports = |ago| Op::Advance {
            capture: other,
            number: Number::Next,
            entries: vec![Entry { owner: feed, at: 0, processor: Some(ago) }],
        };
        let released = |ago| Op::OwnerRelease(vec![Release { owner: Ref { ago, ..feed }, ..last }]);
        mostly_all(match which {
            0 => vec![
                launch,
                attach(other, ScheduleState::Launched),
                Op::Assign { owner: feed, seen: Seen::Every, to: vec![other], carries: 1 },
                reports(0),
                detached(0),
                attach(other, ScheduleState::Launched),
                reports(ago),
                detached(ago),
                attach(other, ScheduleState::Removing),
            ],
            1 => vec![
                launch,
                Op::Pause(feed),
                Op::OwnerUpdate { owner: feed, expected, change },
                released(0),
                Op::Update { feed, expected, change },
                Op::Resume { feed, overwrite: last.position },
            ],
            2 => vec![
                Op::Remove { by: By::Controller(0), feed },
                released(0),
                Op::Cleanup { by: 0, targets: vec![(feed, expected)] },
                Op::Create { by: By::Operator, place: feed.place, creation: Creation::Plain },
            ],
            3 => vec![
                launch,
                attach(on, ScheduleState::Launched),
                Op::Seal { by: 0, capture: on, judged: Number::Same },
                Op::Seal { by: 0, capture: on, judged: Number::Next },
                Op::CaptureRelease { by: 0, capture: on, limit: 1 },
                Op::CaptureDelete { by: 0, capture: on },
                Op::Register { place: on.place, anew: true, without_address: false },
            ],
            _ => vec![
                launch.clone(),
                Op::Advance {
                    capture: on,
                    number: Number::Next,
                    entries: vec![Entry { owner: feed, at: 30, processor: None }],
                },
                Op::Transition { owner: feed, event, error: true },
                released(0),
                Op::Resume { feed, overwrite: None },
                launch,
                released(ago),
            ],
        })
    })
}

fn ago() -> impl Strategy<Value = Ago> + Clone {
    prop_oneof![8 => Just(0), 2 => Just(1), 1 => Just(2)]
}

fn place() -> impl Strategy<Value = u8> + Clone {
    prop_oneof![3 => Just(0), 2 => Just(1), 1 => Just(PLACES - 1)]
}

fn one() -> impl Strategy<Value = Ref> + Clone {
    (place(), ago()).prop_map(|(place, ago)| Ref { place, ago })
}

fn some() -> impl Strategy<Value = Option<Vec<Ref>>> {
    prop::option::of(vec(one(), 0..4))
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.06)
}

fn expected() -> impl Strategy<Value = Expected> {
    let (before, after) = (Expected::OneBefore, Expected::OneAfter);
    prop_oneof![20 => Just(Expected::AsItIs), 1 => Just(before), 1 => Just(after), 1 => Just(Expected::Nothing)]
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![8 => Just(Number::Next), 1 => Just(Number::Same), 1 => Just(Number::Beyond)]
}

fn by() -> impl Strategy<Value = By> {
    prop_oneof![2 => Just(By::Operator), 1 => ago().prop_map(By::Controller)]
}

fn target() -> impl Strategy<Value = Target> {
    let to = prop_oneof![
        12 => one().prop_map(|on| (ScheduleState::Launched, Some(on))),
        5 => Just((ScheduleState::Removing, None)),
        1 => one().prop_map(|on| (ScheduleState::Removing, Some(on))),
        1 => Just((ScheduleState::Launched, None)),
        1 => Just((ScheduleState::Removed, None)),
    ];
    (one(), to, expected()).prop_map(|(feed, (state, on), expected)| Target { feed, state, on, expected })
}

fn attachment() -> impl Strategy<Value = Attachment> {
    let state = prop_oneof![
        8 => Just(ScheduleState::Launched),
        4 => Just(ScheduleState::Removing),
        1 => Just(ScheduleState::Removed),
    ];
    (one(), state, expected(), 0..3_u8).prop_map(|(on, state, expected, carries)| Attachment {
        on,
        state,
        expected,
        carries,
    })
}

fn release() -> impl Strategy<Value = Release> {
    let end = prop_oneof![4 => Just(End::Stopped), 1 => Just(End::Finished), 1 => Just(End::Failed)];
    (one(), prop::option::of(0..40_u8), end).prop_map(|(owner, position, end)| Release {
        owner,
        position,
        end,
    })
}

fn event() -> impl Strategy<Value = FeedEvent> {
    prop_oneof![
        4 => select(&FeedState::ALL[..]).prop_map(FeedEvent::Report),
        1 => Just(FeedEvent::Pause),
        1 => Just(FeedEvent::Resume),
        1 => Just(FeedEvent::Remove),
    ]
}

fn creation() -> impl Strategy<Value = Creation> {
    prop_oneof![
        6 => Just(Creation::Plain),
        2 => Just(Creation::Repeated),
        4 => (0..2_u8, prop::bool::weighted(0.2)).prop_map(|(n, other)| Creation::OnUpstream(n, other)),
        1 => Just(Creation::TargetBeforeStart),
        1 => Just(Creation::PositionBeforeStart),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => Just(Change::Nothing),
        2 => (0..3_u8).prop_map(Change::Target),
        1 => Just(Change::TargetBeforeStart),
        2 => (0..3_u8).prop_map(Change::Sink),
        1 => Just(Change::MaskedSink),
        2 => (0..2_u8).prop_map(Change::Upstream),
        2 => (0..4_u8).prop_map(Change::Config),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => of_captures().boxed(),
        3 => of_the_election().boxed(),
        12 => of_the_controller().boxed(),
        10 => of_owners().boxed(),
        9 => of_operators().boxed(),
        6 => reads().boxed(),
    ]
}

fn of_captures() -> impl Strategy<Value = Op> {
    let processor = prop::option::weighted(0.3, ago());
    let entry =
        (one(), 0..40_u8, processor).prop_map(|(owner, at, processor)| Entry { owner, at, processor });
    prop_oneof![
        4 => (place(), any::<bool>(), rarely())
            .prop_map(|(place, anew, without_address)| Op::Register { place, anew, without_address }),
        8 => (one(), number(), vec(entry, 0..4))
            .prop_map(|(capture, number, entries)| Op::Advance { capture, number, entries }),
        2 => one().prop_map(Op::Deregister),
        3 => (one(), number()).prop_map(|(capture, number)| Op::Beat { capture, number }),
    ]
}

fn of_the_election() -> impl Strategy<Value = Op> {
    let observed = prop_oneof![
        9 => Just(Observed::AsItIs),
        1 => Just(Observed::RenewedSince),
        1 => Just(Observed::OtherEpoch),
        1 => Just(Observed::OtherLeader),
    ];
    prop_oneof![
        6 => (one(), observed).prop_map(|(capture, observed)| Op::Campaign { capture, observed }),
        2 => ago().prop_map(Op::Renew),
        1 => ago().prop_map(Op::Resign),
        1 => Just(Op::Depose),
    ]
}

fn of_the_controller() -> impl Strategy<Value = Op> {
    let limit = prop_oneof![8 => Just(100_usize), 2 => Just(1), 1 => Just(0), 1 => Just(501)];
    prop_oneof![
        10 => (ago(), vec(target(), 1..3)).prop_map(|(by, targets)| Op::OwnerSet { by, targets }),
        6 => (ago(), one(), vec(attachment(), 1..3))
            .prop_map(|(by, feed, targets)| Op::ProcessorSet { by, feed, targets }),
        3 => (ago(), vec((one(), expected()), 1..4)).prop_map(|(by, targets)| Op::Cleanup { by, targets }),
        2 => (ago(), one(), number()).prop_map(|(by, capture, judged)| Op::Seal { by, capture, judged }),
        3 => (ago(), one(), limit)
            .prop_map(|(by, capture, limit)| Op::CaptureRelease { by, capture, limit }),
        1 => (ago(), one()).prop_map(|(by, capture)| Op::CaptureDelete { by, capture }),
    ]
}

fn of_owners() -> impl Strategy<Value = Op> {
    let seen = prop_oneof![8 => Just(Seen::Every), 1 => Just(Seen::OneTooFew), 1 => Just(Seen::OneBefore)];
    prop_oneof![
        6 => (one(), event(), any::<bool>())
            .prop_map(|(owner, event, error)| Op::Transition { owner, event, error }),
        2 => (one(), expected(), change())
            .prop_map(|(owner, expected, change)| Op::OwnerUpdate { owner, expected, change }),
        6 => vec(release(), 1..3).prop_map(Op::OwnerRelease),
        3 => (one(), seen, vec(one(), 0..3), 0..3_u8)
            .prop_map(|(owner, seen, to, carries)| Op::Assign { owner, seen, to, carries }),
        3 => (place(), place(), ago())
            .prop_map(|(feed, capture, ago)| Op::ProcessorRelease { feed, capture, ago }),
    ]
}

fn of_operators() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (by(), place(), creation()).prop_map(|(by, place, creation)| Op::Create { by, place, creation }),
        3 => (one(), expected(), change())
            .prop_map(|(feed, expected, change)| Op::Update { feed, expected, change }),
        3 => one().prop_map(Op::Pause),
        3 => (one(), prop::option::of(0..40_u8))
            .prop_map(|(feed, overwrite)| Op::Resume { feed, overwrite }),
        3 => (by(), one()).prop_map(|(by, feed)| Op::Remove { by, feed }),
        1 => one().prop_map(Op::Drain),
    ]
}

fn reads() -> impl Strategy<Value = Op> {
    let from = prop_oneof![Just(From::TheLastPoll), Just(From::TheBeginning), Just(From::Now)];
    let of_the_cluster = prop_oneof![
        1 => Just(Op::Identity),
        1 => Just(Op::Election),
        1 => some().prop_map(Op::Captures),
        1 => Just(Op::Snapshot),
        1 => Just(Op::Beats),
        1 => Just(Op::OpenHeartbeat),
        1 => Just(Op::OpenWatch),
    ];
    let of_changefeeds = prop_oneof![
        one().prop_map(Op::Upstream),
        some().prop_map(Op::Infos),
        some().prop_map(Op::Statuses),
        some().prop_map(Op::Progresses),
        one().prop_map(Op::Schedule),
        one().prop_map(Op::ProcessorRows),
        some().prop_map(Op::Processors),
        place().prop_map(Op::Overview),
        prop::option::of(any::<bool>()).prop_map(|namespace| Op::Overviews { namespace }),
    ];
    let of_captures = prop_oneof![
        1 => one().prop_map(Op::CaptureProgress),
        1 => one().prop_map(Op::CaptureSchedules),
        1 => one().prop_map(Op::CaptureProcessors),
        1 => (one(), vec(one(), 0..3)).prop_map(|(capture, feeds)| Op::Launches { capture, feeds }),
        3 => (one(), from).prop_map(|(capture, from)| Op::Poll { capture, from }),
    ];
    prop_oneof![of_the_cluster.boxed(), of_changefeeds.boxed(), of_captures.boxed()]
}
