//! Every call of every store trait, ready to be made as often as one likes, each on rows of its own.
//!
//! Tests of failures run down these lists: [`WRITES`] and [`READS`]. A name is the method's, and after a blank what is
//! special about it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;
use metadata_api::Result;
use metadata_api::decision::feed_state::FeedEvent;
use metadata_api::model::{
    CaptureProgress, CaptureTerm, ChangefeedUpdate, FeedState, OwnedProgress, ProcessorAssignment, Revision,
    Ts,
};
use metadata_api::store::{Authority, MetadataStore, OwnerEnd, OwnerRelease, PollCursor};
use uuid::Uuid;

use super::{Cluster, Owned, Refusal, at, attach_target, progress_of, report_of, table_at};

type Function = Box<dyn Fn(Arc<dyn MetadataStore>) -> BoxFuture<'static, Result<String>> + Send + Sync>;

/// What a repeated call says when the first one was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It is done already: success, and nothing changes.
    Done,
    /// It may be applied again without harm.
    Harmless,
    /// It is refused, by which the caller knows.
    Refused(Refusal),
}

/// A call with its arguments. The rows that it wants are there.
pub struct Call {
    /// Which of [`WRITES`] or [`READS`].
    pub name: &'static str,
    /// What it says when it is repeated.
    pub again: Again,
    /// On a channel, which the caller reopens: the store need not retry.
    pub channel: bool,
    function: Function,
}

/// Every write of every trait.
pub const WRITES: [&str; 27] = [
    "capture_register",
    "capture_advance",
    "capture_deregister",
    "capture_deregister with work",
    "beat",
    "lease_renew",
    "election_campaign",
    "election_resign",
    "owner_set",
    "processor_set",
    "changefeed_cleanup",
    "capture_seal",
    "capture_release",
    "capture_delete",
    "owner_transition",
    "owner_transition with the fence",
    "owner_update",
    "owner_release",
    "processor_assign",
    "processor_release",
    "changefeed_create",
    "changefeed_update",
    "changefeed_pause",
    "changefeed_resume",
    "changefeed_remove",
    "capture_drain",
    "controller_depose",
];

/// Every read of every trait.
pub const READS: [&str; 20] = [
    "identity",
    "election",
    "captures",
    "upstream",
    "changefeed_infos",
    "changefeed_statuses",
    "changefeed_progresses",
    "changefeed_schedule",
    "processor_schedules",
    "processors",
    "changefeed_overview",
    "changefeed_overviews",
    "capture_progress",
    "capture_schedules",
    "capture_processors",
    "owner_launches",
    "schedule_snapshot",
    "capture_beats",
    "heartbeat_channel",
    "poll",
];

/// `watch_channel` is opened by `poll` and `lease_renew`.
pub const OPENED_BY_OTHERS: [&str; 1] = ["watch_channel"];

macro_rules! call {
    (|$store:ident| $call:expr) => {
        Box::new(move |$store: Arc<dyn MetadataStore>| Box::pin(async move { text($call.await) }))
    };
    (|$store:ident, $($kept:ident),+| $call:expr) => {
        Box::new(move |$store: Arc<dyn MetadataStore>| {
            $(let $kept = $kept.clone();)+
            Box::pin(async move { text($call.await) })
        })
    };
}

fn text<T: Debug>(answer: Result<T>) -> Result<String> {
    answer.map(|answer| format!("{answer:?}"))
}

impl Call {
    /// Makes the rows that `name` wants, on which nothing else works, and the call.
    ///
    /// # Panics
    /// When `name` is in neither list.
    pub async fn prepare(c: &Cluster, name: &'static str) -> Self {
        let owned = c.owned(&format!("f-{}", Uuid::new_v4().simple())).await;
        if READS.contains(&name) { read(c, name, owned).await } else { write(c, name, owned).await }
    }

    /// Makes the call. The answer as text.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn run(&self, store: Arc<dyn MetadataStore>) -> Result<String> {
        (self.function)(store).await
    }
}

#[expect(clippy::too_many_lines, reason = "one arm for each write there is")]
async fn write(c: &Cluster, name: &'static str, o: Owned) -> Call {
    let (controller, capture, changefeed, owner) = (o.controller, o.capture, o.changefeed, o.owner);
    let leader = CaptureTerm { capture: controller.capture };
    let (mut again, mut channel) = (Again::Done, false);
    let call: Function = match name {
        "capture_register" => {
            let new = c.new_capture();
            call!(|store, new| store.capture_register(&new))
        }
        "capture_advance" => {
            again = Again::Refused(Refusal::Conflict);
            let value = progress_of(&[(changefeed, owner.epoch, at(200))]);
            call!(|store, value| store.capture_advance(capture, 1, &value))
        }
        "capture_deregister" => {
            c.release(owner).await;
            call!(|store| store.capture_deregister(capture))
        }
        "capture_deregister with work" => call!(|store| store.capture_deregister(capture)),
        "beat" => {
            (again, channel) = (Again::Refused(Refusal::Fenced), true);
            call!(|store| async { store.heartbeat_channel().await?.beat(capture, 0, 1).await })
        }
        "lease_renew" => {
            (again, channel) = (Again::Harmless, true);
            call!(|store| async { store.watch_channel().await?.lease_renew(controller).await })
        }
        "election_campaign" => {
            again = Again::Refused(Refusal::Conflict);
            let observed = c.store.election().await.unwrap();
            call!(|store| store.election_campaign(capture, &observed))
        }
        "election_resign" => {
            again = Again::Refused(Refusal::Fenced);
            call!(|store| store.election_resign(controller))
        }
        "owner_set" => {
            again = Again::Refused(Refusal::Conflict);
            let other = c.create(&format!("g-{}", Uuid::new_v4().simple())).await.uuid;
            let targets = [c.launch_target(other, leader).await];
            call!(|store| async { store.owner_set(controller, &targets).await?.remove(0) })
        }
        "processor_set" => {
            again = Again::Refused(Refusal::Conflict);
            let targets = [attach_target(capture, None)];
            call!(|store, targets| store.processor_set(controller, changefeed, &targets))
        }
        "changefeed_cleanup" => {
            c.store.changefeed_remove(Authority::Operator, changefeed).await.unwrap();
            c.release(owner).await;
            let targets = [(changefeed, c.schedule(changefeed).await.version)];
            call!(|store| store.changefeed_cleanup(controller, &targets))
        }
        "capture_seal" => call!(|store| store.capture_seal(controller, capture.capture, 0)),
        "capture_release" => {
            c.seal(controller, capture).await;
            call!(|store| store.capture_release(controller, capture.capture, 10))
        }
        "capture_delete" => {
            c.release(owner).await;
            c.seal(controller, capture).await;
            call!(|store| store.capture_delete(controller, capture.capture))
        }
        "owner_transition" => {
            again = Again::Harmless;
            let event = FeedEvent::Report(FeedState::Normal);
            call!(|store| store.owner_transition(owner, event, None))
        }
        "owner_transition with the fence" => {
            call!(|store| store.owner_transition(owner, FeedEvent::Pause, None))
        }
        "owner_update" => {
            again = Again::Refused(Refusal::Conflict);
            c.bring_to(owner, FeedState::Stopped).await;
            let version = c.info(changefeed).await.version;
            let update = ChangefeedUpdate { target_ts: Some(Ts(800)), ..ChangefeedUpdate::default() };
            call!(|store, update| store.owner_update(owner, version, &update))
        }
        "owner_release" => {
            again = Again::Refused(Refusal::Fenced);
            let end = Some(OwnerEnd::Finished);
            let releases = [OwnerRelease { term: owner, task_position: Some(at(300)), end }];
            call!(|store, releases| async { store.owner_release(&releases).await?.remove(0) })
        }
        "processor_assign" => {
            again = Again::Refused(Refusal::Conflict);
            let row = c.attach(controller, changefeed, capture).await;
            let seen = BTreeMap::from([(row.capture, row.version)]);
            let given = BTreeMap::from([(row.capture, ProcessorAssignment(serde_json::json!(["t"])))]);
            call!(|store, seen, given| store.processor_assign(owner, &seen, &given))
        }
        "processor_release" => {
            again = Again::Refused(Refusal::Fenced);
            let term = c.attach(controller, changefeed, capture).await.term();
            call!(|store| store.processor_release(term))
        }
        "changefeed_create" => {
            let new = c.new_changefeed(&format!("h-{}", Uuid::new_v4().simple()));
            call!(|store, new| store.changefeed_create(Authority::Operator, &new))
        }
        "changefeed_update" => {
            again = Again::Refused(Refusal::Conflict);
            c.bring_to(owner, FeedState::Stopped).await;
            c.release(owner).await;
            let version = c.info(changefeed).await.version;
            let update = ChangefeedUpdate { target_ts: Some(Ts(800)), ..ChangefeedUpdate::default() };
            call!(|store, update| store.changefeed_update(changefeed, version, &update))
        }
        "changefeed_pause" => call!(|store| store.changefeed_pause(changefeed)),
        "changefeed_resume" => {
            c.bring_to(owner, FeedState::Stopped).await;
            call!(|store| store.changefeed_resume(changefeed, None))
        }
        "changefeed_remove" => call!(|store| store.changefeed_remove(Authority::Operator, changefeed)),
        "capture_drain" => call!(|store| store.capture_drain(capture.capture)),
        "controller_depose" => call!(|store| store.controller_depose()),
        other => unreachable!("{other}"),
    };
    Call { name, again, channel, function: call }
}

async fn read(c: &Cluster, name: &'static str, o: Owned) -> Call {
    let (capture, changefeed, owner) = (o.capture, o.changefeed, o.owner);
    // Something to read: a processor, and a progress with its report.
    let row = c.attach(o.controller, changefeed, capture).await;
    let processor = Some(report_of(&row, [("t", table_at(row.version, 250))]));
    let entry = OwnedProgress { processor, ..OwnedProgress::new(owner.epoch, at(200)) };
    let value = CaptureProgress([(changefeed, entry)].into());
    c.store.capture_advance(capture, 1, &value).await.expect("capture_advance");
    let info = c.info(changefeed).await;
    let (upstream, feed, mut channel) = (info.upstream, info.name, false);
    let call: Function = match name {
        "identity" => call!(|store| store.identity()),
        "election" => call!(|store| store.election()),
        "captures" => call!(|store| store.captures(None)),
        "upstream" => call!(|store| async { store.upstream(upstream).await.map(|row| row.is_some()) }),
        "changefeed_infos" => call!(|store| store.changefeed_infos(None)),
        "changefeed_statuses" => call!(|store| store.changefeed_statuses(None)),
        "changefeed_progresses" => call!(|store| store.changefeed_progresses(None)),
        "changefeed_schedule" => call!(|store| store.changefeed_schedule(changefeed)),
        "processor_schedules" => call!(|store| store.processor_schedules(changefeed)),
        "processors" => call!(|store| async { store.processors(Some(&[changefeed])).await }),
        "changefeed_overview" => call!(|store, feed| store.changefeed_overview(&feed)),
        "changefeed_overviews" => call!(|store| store.changefeed_overviews(None)),
        "capture_progress" => call!(|store| store.capture_progress(capture)),
        "capture_schedules" => call!(|store| store.capture_schedules(capture)),
        "capture_processors" => call!(|store| store.capture_processors(capture)),
        "owner_launches" => call!(|store| async { store.owner_launches(capture, &[changefeed]).await }),
        "schedule_snapshot" => call!(|store| store.schedule_snapshot()),
        "capture_beats" => call!(|store| store.capture_beats()),
        "heartbeat_channel" => {
            channel = true;
            call!(|store| async { store.heartbeat_channel().await.map(drop) })
        }
        "poll" => {
            channel = true;
            let cursor = PollCursor::after(Revision(0));
            call!(|store| async { store.watch_channel().await?.poll(capture, &cursor).await })
        }
        other => unreachable!("{other}"),
    };
    Call { name, again: Again::Harmless, channel, function: call }
}
