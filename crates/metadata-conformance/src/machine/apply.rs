//! Doing one operation on one store.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::DateTime;
use metadata_api::MetadataError;
use metadata_api::model::{
    CaptureId, CaptureProgress, CaptureTerm, ChangefeedProgress, ChangefeedUpdate, ChangefeedUuid,
    ClusterIdentity, ControllerEpoch, ElectionRecord, NewCapture, NewChangefeed, OwnedProgress, OwnerTerm,
    ProcessorAssignment, ProcessorReport, ProcessorTarget, ReplicaConfig, Revision, RunningError,
    ScheduleState, ScheduleTarget, TableError, TableId, TableReport, Ts, UpstreamId, Version,
};
use metadata_api::store::{
    HeartbeatChannel, MetadataStore, OwnerEnd, OwnerRelease, PollAnswer, PollCursor, WatchChannel,
};
use serde_json::json;
use uuid::Uuid;

use super::names::{Names, Token, expected_version, info_version, name_of, schedule_version, some_version};
use super::op::{
    Attachment, Change, Creation, End, Entry, From, Number, Observed, Op, Ref, Release, Seen, Target,
};
use crate::harness::{Timeless, at, uri};

/// One of the two stores, with its channels.
pub(super) struct Side {
    pub(super) store: Arc<dyn MetadataStore>,
    identity: ClusterIdentity,
    heartbeat: Option<Box<dyn HeartbeatChannel>>,
    watch: Option<Box<dyn WatchChannel>>,
}

/// What an operation came to.
#[derive(Debug)]
pub(super) struct Reply {
    /// The answer, without what may differ between databases; or which refusal it was.
    pub(super) text: Result<String, String>,
    /// What it gave out.
    pub(super) tokens: Vec<Token>,
}

fn text<T: Timeless>(answer: Result<T, MetadataError>) -> Result<String, String> {
    answer.map(|answer| format!("{:?}", answer.timeless())).map_err(|error| refusal(&error))
}

/// Which refusal. The words are each store's own.
fn refusal(error: &MetadataError) -> String {
    match error {
        MetadataError::Fenced { .. } => "Fenced".to_owned(),
        MetadataError::Conflict { .. } => "Conflict".to_owned(),
        MetadataError::NotFound { .. } => "NotFound".to_owned(),
        MetadataError::AlreadyExists { .. } => "AlreadyExists".to_owned(),
        MetadataError::InvalidTransition { .. } => "InvalidTransition".to_owned(),
        MetadataError::InvalidArgument { field, .. } => format!("InvalidArgument: {field}"),
        other => format!("{other:?}"),
    }
}

impl<T: Timeless> std::convert::From<Result<T, MetadataError>> for Reply {
    fn from(answer: Result<T, MetadataError>) -> Self {
        Self { text: text(answer), tokens: Vec::new() }
    }
}

impl Reply {
    /// An answer, and what it gave out.
    fn with<T: Timeless>(answer: Result<T, MetadataError>, tokens: impl FnOnce(&T) -> Vec<Token>) -> Self {
        let tokens = answer.as_ref().map_or_else(|_| Vec::new(), tokens);
        Self { text: text(answer), tokens }
    }

    /// Many answers in one: a refusal when each of them is.
    fn of_each<T: Timeless>(
        answers: Result<Vec<Result<T, MetadataError>>, MetadataError>,
        mut token: impl FnMut(&T) -> Option<Token>,
    ) -> Self {
        let mut tokens = Vec::new();
        let text = match answers {
            Err(error) => Err(refusal(&error)),
            Ok(answers) => {
                tokens.extend(answers.iter().flatten().filter_map(&mut token));
                let all_refused = !answers.is_empty() && answers.iter().all(Result::is_err);
                let texts: Vec<_> = answers.into_iter().map(text).collect();
                if all_refused { Err(format!("{texts:?}")) } else { Ok(format!("{texts:?}")) }
            }
        };
        Self { text, tokens }
    }
}

impl Side {
    pub(super) async fn new(store: Arc<dyn MetadataStore>) -> Self {
        let identity = store.identity().await.expect("identity");
        Self { store, identity, heartbeat: None, watch: None }
    }

    /// The fence row's revision.
    pub(super) async fn revision(&self) -> Revision {
        let nobody = CaptureTerm { capture: CaptureId(Uuid::nil()) };
        self.store.capture_schedules(nobody).await.expect("capture_schedules").revision
    }

    /// Does `op`. What its symbols stand for is in `names`, and in the rows of `model`.
    #[expect(clippy::too_many_lines, reason = "one arm for each call there is")]
    pub(super) async fn apply(&mut self, names: &Names, model: &dyn MetadataStore, op: &Op) -> Reply {
        let store = Arc::clone(&self.store);
        match op {
            Op::Register { place, anew, without_address } => {
                let generation = names.generation(*place, *anew);
                let new = new_capture(Names::capture_of(*place, generation), *without_address);
                Reply::with(store.capture_register(&new).await, |_| vec![Token::Capture(*place, generation)])
            }
            Op::Advance { capture, number, entries } => {
                let term = names.capture(*capture);
                let seq = match number {
                    Number::Next => names.progress_seq(term) + 1,
                    Number::Same => names.progress_seq(term),
                    Number::Beyond => names.progress_seq(term) + 3,
                };
                let value =
                    CaptureProgress(entries.iter().map(|entry| reported(names, *capture, *entry)).collect());
                let answer = store.capture_advance(term, seq, &value).await;
                Reply::with(answer, |()| vec![Token::Progress(term, seq)])
            }
            Op::Deregister(capture) => store.capture_deregister(names.capture(*capture)).await.into(),
            Op::Beat { capture, number } => {
                let term = names.capture(*capture);
                let now = names.beat(term);
                let (acknowledged, next) = match number {
                    Number::Next => (now, now + 1),
                    Number::Same => (now, now),
                    Number::Beyond => (now + 2, now + 3),
                };
                if self.heartbeat.is_none() {
                    self.heartbeat = Some(store.heartbeat_channel().await.expect("heartbeat_channel"));
                }
                let channel = self.heartbeat.as_mut().expect("it was opened");
                let answer = channel.beat(term, acknowledged, next).await;
                Reply::with(answer, |()| vec![Token::Beat(term, next)])
            }
            Op::Renew(by) => self.watch().await.lease_renew(names.controller(*by)).await.into(),
            Op::Campaign { capture, observed } => {
                let term = names.capture(*capture);
                let now = model.election().await.expect("election");
                let answer = store.election_campaign(term, &observed_as(*observed, now, term)).await;
                Reply::with(answer, |term| vec![Token::Controller(*term)])
            }
            Op::Resign(by) => store.election_resign(names.controller(*by)).await.into(),
            Op::OwnerSet { by, targets } => {
                let mut wanted = Vec::with_capacity(targets.len());
                for target in targets {
                    wanted.push(schedule_target(names, model, *target).await);
                }
                let answers = store.owner_set(names.controller(*by), &wanted).await;
                Reply::of_each(answers, |row| {
                    let term = row.term().filter(|_| row.state == ScheduleState::Launched)?;
                    Some(Token::Owner(names.place_of(row.changefeed)?, term))
                })
            }
            Op::ProcessorSet { by, feed, targets } => {
                let uuid = names.feed(*feed);
                let rows = model.processor_schedules(uuid).await.expect("processor_schedules");
                let version = |id| rows.iter().find(|row| row.capture == id).map(|row| row.version);
                let wanted: Vec<_> =
                    targets.iter().map(|target| processor_target(names, version, *target)).collect();
                let answer = store.processor_set(names.controller(*by), uuid, &wanted).await;
                Reply::with(answer, |rows| {
                    let attached =
                        rows.iter().zip(targets).filter(|(row, _)| row.state == ScheduleState::Launched);
                    attached
                        .map(|(row, target)| Token::Processor(feed.place, target.on.place, row.term()))
                        .collect()
                })
            }
            Op::Cleanup { by, targets } => {
                let mut wanted = Vec::with_capacity(targets.len());
                for (feed, expected) in targets {
                    let uuid = names.feed(*feed);
                    wanted.push((uuid, some_version(*expected, schedule_version(model, uuid).await)));
                }
                store.changefeed_cleanup(names.controller(*by), &wanted).await.into()
            }
            Op::Seal { by, capture, judged } => {
                let id = names.capture(*capture).capture;
                let rows = model.captures(Some(&[id])).await.expect("captures");
                let now = rows.first().map_or(0, |row| row.heartbeat_seq);
                let judged = match judged {
                    Number::Next => now,
                    Number::Same => now.wrapping_sub(1) >> 1,
                    Number::Beyond => now + 1,
                };
                store.capture_seal(names.controller(*by), id, judged).await.into()
            }
            Op::CaptureRelease { by, capture, limit } => {
                let id = names.capture(*capture).capture;
                store.capture_release(names.controller(*by), id, *limit).await.into()
            }
            Op::CaptureDelete { by, capture } => {
                store.capture_delete(names.controller(*by), names.capture(*capture).capture).await.into()
            }
            Op::Transition { owner, event, error } => {
                let error = error.then(|| running_error("CDC:ErrReported"));
                store.owner_transition(names.owner(*owner), *event, error).await.into()
            }
            Op::OwnerUpdate { owner, expected, change } => {
                let term = names.owner(*owner);
                let version = some_version(*expected, info_version(model, term.changefeed).await);
                let update = self.update(model, term.changefeed, *change).await;
                store.owner_update(term, version, &update).await.into()
            }
            Op::OwnerRelease(releases) => {
                let releases: Vec<_> =
                    releases.iter().map(|release| owner_release(names, *release)).collect();
                Reply::of_each(store.owner_release(&releases).await, |()| None)
            }
            Op::Assign { owner, seen, to, carries } => {
                let term = names.owner(*owner);
                let seen = seen_as(*seen, model, term).await;
                let value = assignment(*carries);
                let to = to.iter().map(|capture| (names.capture(*capture).capture, value.clone())).collect();
                store.processor_assign(term, &seen, &to).await.into()
            }
            Op::ProcessorRelease { feed, capture, ago } => {
                store.processor_release(names.processor(*feed, *capture, *ago)).await.into()
            }
            Op::Create { by, place, creation } => {
                let new = new_changefeed(names, *place, *creation);
                let answer = store.changefeed_create(names.authority(*by), &new).await;
                Reply::with(answer, |info| vec![Token::Feed(*place, info.uuid)])
            }
            Op::Update { feed, expected, change } => {
                let uuid = names.feed(*feed);
                let version = some_version(*expected, info_version(model, uuid).await);
                let update = self.update(model, uuid, *change).await;
                store.changefeed_update(uuid, version, &update).await.into()
            }
            Op::Pause(feed) => store.changefeed_pause(names.feed(*feed)).await.into(),
            Op::Resume { feed, overwrite } => {
                let position = overwrite.map(position);
                store.changefeed_resume(names.feed(*feed), position.as_ref()).await.into()
            }
            Op::Remove { by, feed } => {
                store.changefeed_remove(names.authority(*by), names.feed(*feed)).await.into()
            }
            Op::Drain(capture) => store.capture_drain(names.capture(*capture).capture).await.into(),
            Op::Depose => store.controller_depose().await.into(),
            read => self.read(names, read).await,
        }
    }

    async fn read(&mut self, names: &Names, op: &Op) -> Reply {
        let store = Arc::clone(&self.store);
        let feeds = |which: &Option<Vec<Ref>>| which.as_ref().map(|which| names.feeds(which));
        match op {
            Op::Identity => {
                let answer = store.identity().await.map(|identity| identity == self.identity);
                answer.into()
            }
            Op::Election => store.election().await.into(),
            Op::Captures(which) => {
                let ids: Option<Vec<_>> = which
                    .as_ref()
                    .map(|which| which.iter().map(|capture| names.capture(*capture).capture).collect());
                store.captures(ids.as_deref()).await.into()
            }
            Op::Upstream(feed) => {
                let infos =
                    store.changefeed_infos(Some(&[names.feed(*feed)])).await.expect("changefeed_infos");
                let id = infos.first().map_or(UpstreamId(7), |info| info.upstream);
                let answer = store.upstream(id).await;
                answer.map(|row| row.map(|row| (row.id.0, row.uri.expose().to_owned()))).into()
            }
            Op::Infos(which) => store.changefeed_infos(feeds(which).as_deref()).await.into(),
            Op::Statuses(which) => store.changefeed_statuses(feeds(which).as_deref()).await.into(),
            Op::Progresses(which) => {
                let answer = store.changefeed_progresses(feeds(which).as_deref()).await;
                answer.map(|rows| rows.into_iter().map(|(uuid, at)| (uuid.0, at)).collect::<Vec<_>>()).into()
            }
            Op::Schedule(feed) => store.changefeed_schedule(names.feed(*feed)).await.into(),
            Op::ProcessorRows(feed) => store.processor_schedules(names.feed(*feed)).await.into(),
            Op::Processors(which) => store.processors(feeds(which).as_deref()).await.into(),
            Op::Overview(place) => store.changefeed_overview(&name_of(*place)).await.into(),
            Op::Overviews { namespace } => {
                let namespace = namespace.map(|first| name_of(if first { 0 } else { 2 }).namespace);
                store.changefeed_overviews(namespace.as_ref()).await.into()
            }
            Op::CaptureProgress(capture) => store.capture_progress(names.capture(*capture)).await.into(),
            Op::CaptureSchedules(capture) => store.capture_schedules(names.capture(*capture)).await.into(),
            Op::CaptureProcessors(capture) => store.capture_processors(names.capture(*capture)).await.into(),
            Op::Launches { capture, feeds } => {
                store.owner_launches(names.capture(*capture), &names.feeds(feeds)).await.into()
            }
            Op::Snapshot => store.schedule_snapshot().await.into(),
            Op::Beats => store.capture_beats().await.into(),
            Op::OpenHeartbeat => {
                let opened = store.heartbeat_channel().await;
                opened.map(|channel| self.heartbeat = Some(channel)).into()
            }
            Op::OpenWatch => store.watch_channel().await.map(|channel| self.watch = Some(channel)).into(),
            Op::Poll { capture, from } => {
                let term = names.capture(*capture);
                let cursor = match from {
                    From::TheBeginning => PollCursor::after(Revision(0)),
                    From::TheLastPoll => names.cursor(term),
                    From::Now => PollCursor::after(self.revision().await),
                };
                let same = self.identity.clone();
                let answer = self.watch().await.poll(term, &cursor).await;
                let next = answer.as_ref().map(|answer| Token::Cursor(term, cursor.next_page(answer)));
                let tokens = next.into_iter().collect();
                Reply {
                    text: answer.map(|answer| polled(&same, answer)).map_err(|error| refusal(&error)),
                    tokens,
                }
            }
            write => unreachable!("{write:?} is no read"),
        }
    }

    async fn watch(&mut self) -> &mut dyn WatchChannel {
        if self.watch.is_none() {
            self.watch = Some(self.store.watch_channel().await.expect("watch_channel"));
        }
        &mut **self.watch.as_mut().expect("it was opened")
    }

    /// What is to be changed. A URI that is written back masked is made of the changefeed's own.
    async fn update(
        &self,
        model: &dyn MetadataStore,
        feed: ChangefeedUuid,
        change: Change,
    ) -> ChangefeedUpdate {
        let mut update = ChangefeedUpdate::default();
        match change {
            Change::Nothing => {}
            Change::Target(n) => update.target_ts = Some(Ts([0, 100, 500][usize::from(n % 3)])),
            Change::TargetBeforeStart => update.target_ts = Some(Ts(99)),
            Change::Sink(n) => update.sink_uri = Some(uri(&format!("mysql://root:sink{n}@127.0.0.1:3307/"))),
            Change::MaskedSink => {
                let infos = model.changefeed_infos(Some(&[feed])).await.expect("changefeed_infos");
                update.sink_uri = infos.first().map(|info| uri(info.sink_uri.masked()));
            }
            Change::Upstream(n) => {
                update.upstream_uri = Some(uri(&format!("mysql://root:new{n}@127.0.0.1:3306/")));
            }
            Change::Config(n) => update.config = Some(config(n)),
        }
        update
    }
}

fn polled(same: &ClusterIdentity, mut answer: PollAnswer) -> String {
    let whose = if answer.identity == *same { "the same database" } else { "another database" };
    answer.identity = ClusterIdentity { cluster_id: Uuid::nil(), server_id: String::new() };
    format!("{whose}: {answer:?}")
}

fn new_capture(term: CaptureTerm, without_address: bool) -> NewCapture {
    NewCapture {
        id: term.capture,
        advertise_addr: if without_address { String::new() } else { "127.0.0.1:8300".to_owned() },
        version: "v0.1.0".to_owned(),
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        machine_id: String::new(),
    }
}

/// A place's changefeed: a new one when the one before has freed its name, or the same request again.
fn new_changefeed(names: &Names, place: u8, creation: Creation) -> NewChangefeed {
    let mut count = names.created(place);
    if creation == Creation::Repeated {
        count = count.saturating_sub(1);
    }
    let mut new = NewChangefeed {
        name: name_of(place),
        upstream_id: None,
        upstream_uri: uri("mysql://root:up@127.0.0.1:3306/"),
        sink_uri: uri("mysql://root:sink@127.0.0.1:3307/"),
        start_ts: Ts(100),
        target_ts: Ts::ZERO,
        config: ReplicaConfig::default(),
        creator_version: "v0.1.0".to_owned(),
        client_request_id: Uuid::from_u64_pair(u64::from(place) + 1, count as u64),
        task_position: at(100),
    };
    match creation {
        Creation::Plain | Creation::Repeated => {}
        Creation::OnUpstream(n, other) => {
            new.upstream_id = Some(UpstreamId(7 + u64::from(n)));
            if other {
                new.upstream_uri = uri("mysql://root:other@127.0.0.1:3306/");
            }
        }
        Creation::TargetBeforeStart => new.target_ts = Ts(99),
        Creation::PositionBeforeStart => new.task_position = at(99),
    }
    new
}

fn config(n: u8) -> ReplicaConfig {
    let value = match n {
        0 => json!({}),
        1 => json!({ "placement": { "weight": 3, "affinity": { "zone": "a" } } }),
        2 => json!({ "placement": { "weight": 0 } }),
        _ => json!({ "filter": { "rules": ["a.*", "ü.🦀"] }, "placement": null }),
    };
    ReplicaConfig(value.as_object().expect("an object").clone())
}

fn running_error(code: &str) -> RunningError {
    RunningError {
        time: DateTime::UNIX_EPOCH,
        addr: "127.0.0.1:8300".to_owned(),
        code: code.to_owned(),
        message: "it does not work".to_owned(),
    }
}

fn position(n: u8) -> ChangefeedProgress {
    at(90 + u64::from(n))
}

fn reported(names: &Names, capture: Ref, entry: Entry) -> (ChangefeedUuid, OwnedProgress) {
    let term = names.owner(entry.owner);
    let processor = entry.processor.map(|ago| {
        let epoch = names.processor(entry.owner.place, capture.place, ago).epoch;
        let tables = [("t".to_owned(), entry.at), ("\"ü\" $.🦀".to_owned(), entry.at + 1)];
        let tables = tables.map(|(name, at)| (TableId(name), table_report(at)));
        ProcessorReport { epoch, tables: tables.into() }
    });
    // Who is only a processor says nothing of the whole.
    let of_the_whole = entry.processor.is_none() || entry.at > 0;
    let progress = if of_the_whole { position(entry.at) } else { ChangefeedProgress::default() };
    (term.changefeed, OwnedProgress { processor, ..OwnedProgress::new(term.epoch, progress) })
}

fn table_report(at: u8) -> TableReport {
    let error = TableError { error: running_error("CDC:ErrTable"), retryable: at.is_multiple_of(4) };
    TableReport {
        since: Version(u64::MAX - u64::from(at)),
        stopped: at.is_multiple_of(2),
        error: at.is_multiple_of(6).then_some(error),
        progress: position(at),
    }
}

fn assignment(carries: u8) -> ProcessorAssignment {
    ProcessorAssignment(json!({ "tables": [carries] }))
}

fn owner_release(names: &Names, release: Release) -> OwnerRelease {
    let end = match release.end {
        End::Stopped => None,
        End::Finished => Some(OwnerEnd::Finished),
        End::Failed => Some(OwnerEnd::Failed(running_error("CDC:ErrEnded"))),
    };
    OwnerRelease { term: names.owner(release.owner), task_position: release.position.map(position), end }
}

/// What the candidate says it has observed.
fn observed_as(observed: Observed, now: ElectionRecord, candidate: CaptureTerm) -> ElectionRecord {
    match observed {
        Observed::AsItIs => now,
        Observed::RenewedSince => ElectionRecord { lease_seq: now.lease_seq.wrapping_sub(1) >> 1, ..now },
        Observed::OtherEpoch => ElectionRecord { epoch: ControllerEpoch(now.epoch.0 + 1), ..now },
        Observed::OtherLeader => {
            let leader = if now.leader.is_some() { None } else { Some(candidate.capture) };
            ElectionRecord { leader, ..now }
        }
    }
}

async fn schedule_target(names: &Names, model: &dyn MetadataStore, target: Target) -> ScheduleTarget {
    let changefeed = names.feed(target.feed);
    ScheduleTarget {
        changefeed,
        expected_version: some_version(target.expected, schedule_version(model, changefeed).await),
        state: target.state,
        owner: target.on.map(|on| names.capture(on).capture),
    }
}

fn processor_target(
    names: &Names,
    version: impl Fn(CaptureId) -> Option<Version>,
    target: Attachment,
) -> ProcessorTarget {
    let capture = names.capture(target.on).capture;
    ProcessorTarget {
        capture,
        expected_version: expected_version(target.expected, version(capture)),
        state: target.state,
        assignment: assignment(target.carries),
    }
}

/// The processor rows that the owner says it has seen.
async fn seen_as(seen: Seen, model: &dyn MetadataStore, term: OwnerTerm) -> BTreeMap<CaptureId, Version> {
    let rows = model.processor_schedules(term.changefeed).await.expect("processor_schedules");
    let mut versions: BTreeMap<_, _> = rows.iter().map(|row| (row.capture, row.version)).collect();
    match seen {
        Seen::Every => {}
        Seen::OneTooFew => drop(versions.pop_first()),
        Seen::OneBefore => {
            if let Some(version) = versions.values_mut().next() {
                *version = Version(version.0 - 1);
            }
        }
    }
    versions
}
