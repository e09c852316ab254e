//! Changefeeds on several captures: tables are carried by processors, whatever happens to those and to the owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use capture_runtime::repair::{ResetReport, reset};
use metadata_api::MetadataError;
use metadata_api::model::{ChangefeedUuid, FeedState, ProcessorSchedule, ReplicaConfig, ScheduleState, Ts};
use metadata_api::observation::ChangefeedAdmin as _;
use metadata_api::store::{AdminStore as _, QueryStore as _};
use metadata_memory::Tamper;
use serde_json::json;

use super::{ms, secs};
use crate::world::{Behaviour, Incident, ProcessClock, START, World, progress};

const TABLES: usize = 6;

/// Captures, with a changefeed of six tables on as many of them as there are, all running.
async fn split(captures: usize) -> (World, ChangefeedUuid) {
    let (mut world, _) = World::running(captures, 0).await;
    let feed = world.create_split(TABLES, u32::try_from(captures).unwrap()).await;
    world.until("every table is carried evenly", secs(20), |world| is_even(world, feed, captures)).await;
    (world, feed)
}

/// Which process wrote each table last, of those that did after `since`.
fn carriers(world: &World, feed: ChangefeedUuid, since: Duration) -> BTreeMap<usize, usize> {
    let last = world.outside.last_writes(feed).into_iter().enumerate();
    let last = last.filter_map(|(table, write)| Some((table, write?)));
    last.filter(|(_, write)| write.at >= since).map(|(table, write)| (table, write.process)).collect()
}

/// Every table was written within the last second, by so many processes, none of which has two more than another.
fn is_even(world: &World, feed: ChangefeedUuid, captures: usize) -> bool {
    let carriers = carriers(world, feed, world.now().saturating_sub(secs(1)));
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for process in carriers.values() {
        *counts.entry(*process).or_default() += 1;
    }
    let (least, most) = (counts.values().min(), counts.values().max());
    carriers.len() == TABLES
        && counts.len() == captures
        && most.zip(least).is_some_and(|(most, least)| most - least <= 1)
}

fn rows(world: &World, feed: ChangefeedUuid) -> Vec<ProcessorSchedule> {
    world.db.read(|tables| tables.processors(feed).cloned().collect())
}

fn live(world: &World, feed: ChangefeedUuid) -> usize {
    rows(world, feed).iter().filter(|row| row.state != ScheduleState::Removed).count()
}

/// The longest that any table was not written, since `since`.
fn longest_gap(world: &World, feed: ChangefeedUuid, since: Duration) -> Duration {
    let mut last = [since; TABLES];
    let mut longest = Duration::ZERO;
    for write in
        world.outside.writes().iter().filter(|write| write.term.changefeed == feed && write.at > since)
    {
        let Some(part) = write.part else { continue };
        longest = longest.max(write.at - last[part.table]);
        last[part.table] = write.at;
    }
    last.iter().map(|last| world.now() - *last).chain([longest]).max().unwrap()
}

/// How many writes since then began before what its table had been written up to.
fn repeated(world: &World, feed: ChangefeedUuid, since: Duration) -> usize {
    let mut upto = [START; TABLES];
    let mut repeated = 0;
    for write in world.outside.writes().iter().filter(|write| write.term.changefeed == feed) {
        let Some(part) = write.part else { continue };
        repeated += usize::from(write.at > since && write.from < upto[part.table]);
        upto[part.table] = upto[part.table].max(write.to);
    }
    repeated
}

#[tokio::test(start_paused = true)]
async fn its_tables_run_on_several_captures_and_its_checkpoint_is_the_least() {
    let (world, feed) = split(3).await;
    let at = world.checkpoint(feed);
    world.until("the checkpoint moves", secs(5), |world| world.checkpoint(feed).0 > at.0 + 5).await;
    // One table stands still, and so does the changefeed; the others go on. (Progress is one number for each flush here.)
    let owner = world.owner(feed).unwrap();
    let slow = (owner + 1) % 3;
    world.processes[slow].suspend();
    world.pass(secs(4)).await;
    let stuck = world.checkpoint(feed);
    world.pass(secs(4)).await;
    assert_eq!(world.checkpoint(feed), stuck);
    assert_eq!(carriers(&world, feed, world.now() - secs(1)).len(), 4, "the others go on");
    world.processes[slow].resume();
    world.until("it goes on", secs(5), |world| world.checkpoint(feed).0 > stuck.0 + 5).await;
    assert_eq!(world.schedule(feed).unwrap().owner, world.processes[owner].id(), "nobody changed hands");
}

#[tokio::test(start_paused = true)]
async fn with_one_processor_its_owner_runs_it_whole() {
    let (mut world, _) = World::running(3, 0).await;
    let feed = world.create_split(TABLES, 1).await;
    world.outside.expect(feed, START);
    world
        .until("it runs", secs(5), |world| {
            world
                .outside
                .last_write(feed)
                .is_some_and(|write| write.part.is_none() && write.to.0 > START.0 + 5)
        })
        .await;
    assert_eq!(rows(&world, feed), []);
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_dies_loses_its_tables_to_the_others() {
    let (mut world, feed) = split(3).await;
    let owner = world.owner(feed).unwrap();
    let dead = (owner + 1) % 3;
    let (at, epoch) = (world.now(), world.schedule(feed).unwrap().epoch);
    let lost: BTreeSet<usize> = carriers(&world, feed, at - secs(1))
        .into_iter()
        .filter(|(_, process)| *process == dead)
        .map(|of| of.0)
        .collect();
    world.processes[dead].kill();
    let took = world
        .until("its tables run elsewhere", secs(23), |world| {
            let now = carriers(world, feed, at + secs(1));
            lost.iter().all(|table| now.get(table).is_some_and(|process| *process != dead))
        })
        .await;
    let spared: BTreeSet<usize> = (0..TABLES).filter(|table| !lost.contains(table)).collect();
    let mut last = BTreeMap::new();
    for write in world.outside.writes().iter().filter(|write| write.at > at) {
        let table = write.part.unwrap().table;
        let before = last.insert(table, write.at).unwrap_or(at);
        assert!(!spared.contains(&table) || write.at - before <= secs(1), "table {table} was held up");
    }
    println!("the tables of a dead processor run elsewhere after {took:?}");
    assert_eq!(world.schedule(feed).unwrap().epoch, epoch, "the owner stays");
    let checkpoint = world.checkpoint(feed);
    world.until("the checkpoint moves", secs(5), |world| world.checkpoint(feed) > checkpoint).await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_dies_is_followed_by_one_that_has_the_tables_run_again() {
    let (mut world, feed) = split(3).await;
    let (owner, at, epoch) = (world.owner(feed).unwrap(), world.now(), world.schedule(feed).unwrap().epoch);
    world.processes[owner].kill();
    let took = world
        .until("every table runs under another owner", secs(24), |world| {
            world.schedule(feed).unwrap().epoch > epoch
                && world.outside.last_writes(feed).iter().all(|last| {
                    last.is_some_and(|write| {
                        write.term.epoch > epoch && write.process != owner && write.at > at
                    })
                })
        })
        .await;
    println!("a changefeed on three captures runs again after its owner's death: {took:?}");
    let checkpoint = world.checkpoint(feed);
    world.until("the checkpoint moves", secs(5), |world| world.checkpoint(feed) > checkpoint).await;
}

#[tokio::test(start_paused = true)]
async fn paused_it_stops_everywhere_and_resumed_it_goes_on() {
    let (world, feed) = split(3).await;
    let name = world.name(feed).await;
    world.admin.pause(&name).await.unwrap();
    world
        .until("nothing is left of it", secs(6), |world| {
            world.schedule(feed).unwrap().state == ScheduleState::Removed && live(world, feed) == 0
        })
        .await;
    let (at, stopped) = (world.now(), world.checkpoint(feed));
    let highest = world.outside.high(feed);
    assert_eq!(stopped, highest, "where the last table stopped is where the changefeed stopped");
    world.throughout("nobody writes", secs(30), |world| carriers(world, feed, at).is_empty()).await;
    world.admin.resume(&name, None).await.unwrap();
    world.until("it runs on three captures", secs(20), |world| is_even(world, feed, 3)).await;
    assert!(world.checkpoint(feed) >= stopped);
}

#[tokio::test(start_paused = true)]
async fn removed_it_leaves_nothing_behind() {
    let (world, feed) = split(3).await;
    let name = world.name(feed).await;
    world.admin.remove(&name).await.unwrap();
    world
        .until("it is gone", secs(10), |world| world.schedule(feed).is_none() && rows(world, feed).is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_expels_no_processor() {
    let (world, feed) = split(3).await;
    let clock = Arc::new(ProcessClock::new(world.time, world.dice.fork()));
    let at = world.now();
    let report = reset(Arc::new(world.store.clone()), clock, |_, _| {}).await.unwrap();
    assert_eq!(report, ResetReport { changefeeds: 1, expelled: [].into() });
    assert!(world.now() - at < secs(9), "{:?}", world.now() - at);
    assert_eq!((world.schedule(feed), rows(&world, feed)), (None, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn a_capture_that_stops_gives_its_tables_away_first() {
    for of_owner in [false, true] {
        let (world, feed) = split(3).await;
        let owner = world.owner(feed).unwrap();
        let leaving = if of_owner { owner } else { (owner + 1) % 3 };
        let at = world.now();
        world.processes[leaving].stop.cancel();
        let took =
            world.until("it has stopped", secs(12), |world| world.processes[leaving].ended().is_some()).await;
        world
            .until("the others carry everything", secs(12), |world| {
                let now = carriers(world, feed, world.now() - secs(1));
                now.len() == TABLES && now.values().all(|process| *process != leaving)
            })
            .await;
        let gap = longest_gap(&world, feed, at);
        println!(
            "a capture of three stops (the owner: {of_owner}) in {took:?}; the longest gap of a table {gap:?}"
        );
        assert!(took <= secs(4), "{took:?}");
        let repeated = repeated(&world, feed, at);
        assert!(of_owner || repeated == 0, "{repeated} writes were repeated");
        assert!(gap <= if of_owner { secs(8) } else { secs(4) }, "{gap:?}");
        assert!(world.capture(world.processes[leaving].id().unwrap()).is_none(), "deregistered");
        world.check();
    }
}

#[tokio::test(start_paused = true)]
async fn a_drained_capture_is_left_by_its_tables() {
    let (world, feed) = split(3).await;
    let owner = world.owner(feed).unwrap();
    let drained = (owner + 1) % 3;
    let at = world.now();
    world.store.capture_drain(world.processes[drained].id().unwrap()).await.unwrap();
    world
        .until("the others carry everything", secs(12), |world| {
            let now = carriers(world, feed, world.now() - secs(1));
            now.len() == TABLES && now.values().all(|process| *process != drained)
        })
        .await;
    world.until("it is no processor any more", secs(5), |world| live(world, feed) == 2).await;
    let gap = longest_gap(&world, feed, at);
    println!("a capture of three is drained: the longest gap of a table {gap:?}");
    assert_eq!(repeated(&world, feed, at), 0);
    assert!(gap <= secs(4), "{gap:?}");
}

#[tokio::test(start_paused = true)]
async fn a_capture_that_joins_gets_its_part() {
    let (mut world, _) = World::running(2, 0).await;
    let feed = world.create_split(TABLES, 3).await;
    world.until("two carry it", secs(20), |world| is_even(world, feed, 2)).await;
    let epoch = world.schedule(feed).unwrap().epoch;
    let joined_at = world.now();
    world.start();
    world.until("three carry it", secs(20), |world| is_even(world, feed, 3)).await;
    assert_eq!(world.schedule(feed).unwrap().epoch, epoch);
    assert_eq!(repeated(&world, feed, joined_at), 0);
    let at = world.now();
    world.pass(secs(60)).await;
    let launches = world.outside.writes().iter().filter(|write| write.at > at && write.from == START).count();
    assert_eq!(launches, 0);
    assert!(longest_gap(&world, feed, at) <= secs(1), "and nothing moves any more");
}

#[tokio::test(start_paused = true)]
async fn a_table_that_fails_makes_the_changefeed_pending_and_is_tried_again() {
    let (world, feed) = split(3).await;
    for incident in [Incident::FailsRetryably, Incident::Panics, Incident::EndsByItself] {
        let at = world.now();
        world.outside.incident(feed, incident);
        world
            .until("it is told", secs(5), |world| {
                matches!(world.state(feed), Some(FeedState::Pending | FeedState::Warning))
            })
            .await;
        let status = world.store.changefeed_statuses(Some(&[feed])).await.unwrap().remove(0);
        let error = status.error.or(status.warning).unwrap();
        assert!(error.message.contains("table t"), "{}", error.message);
        let told = world.now();
        world.pass(secs(2)).await;
        assert!(carriers(&world, feed, told).is_empty(), "nobody goes on whom nobody looks after");
        world.until("it runs again", secs(20), |world| is_even(world, feed, 3)).await;
        world.until("and says so", secs(5), |world| world.state(feed) == Some(FeedState::Normal)).await;
        println!("{incident:?}: everything is well after {:?}", world.now() - at);
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_fails_for_good_fails_the_changefeed() {
    let (world, feed) = split(3).await;
    world.outside.incident(feed, Incident::FailsFatally);
    world
        .until("it failed, and nothing of it runs", secs(8), |world| {
            world.state(feed) == Some(FeedState::Failed) && live(world, feed) == 0
        })
        .await;
    let status = world.store.changefeed_statuses(Some(&[feed])).await.unwrap().remove(0);
    let error = status.error.unwrap();
    assert_eq!(error.code, "CDC:ErrStartTsBeforeGC");
    assert!(error.message.contains("a planned failure for good"), "{}", error.message);
    let name = world.name(feed).await;
    world.admin.resume(&name, None).await.unwrap();
    world.until("resumed it runs", secs(20), |world| is_even(world, feed, 3)).await;
}

/// A flush whose end nobody knows: the table stays where it is until that capture's process has ended, and somebody is told.
#[tokio::test(start_paused = true)]
async fn a_table_with_a_flush_of_unknown_outcome_goes_nowhere() {
    let (mut world, feed) = split(2).await;
    world.outside.incident(feed, Incident::LosesSightOfAFlush);
    world.pass(secs(40)).await;
    assert!(matches!(world.state(feed), Some(FeedState::Pending | FeedState::Warning)));
    let status = world.store.changefeed_statuses(Some(&[feed])).await.unwrap().remove(0);
    assert_eq!(status.error.or(status.warning).unwrap().code, "CDC:ErrSinkUnknownOutcome");
    let reports = world.store.processors(Some(&[feed])).await.unwrap();
    let stuck = reports.iter().find(|of| {
        let tables = of.report.iter().flat_map(|report| report.tables.values());
        tables.clone().any(|table| table.error.is_some() && !table.stopped)
    });
    let on = world.process_of(stuck.unwrap().schedule.capture).unwrap();
    world.processes[on].kill();
    world
        .until("it runs on the other", secs(90), |world| {
            let now = carriers(world, feed, world.now() - secs(1));
            now.len() == TABLES && now.values().all(|process| *process != on)
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn at_its_target_it_is_finished() {
    let (mut world, _) = World::running(3, 0).await;
    let feed = world
        .create_one(|new| {
            new.config.0.insert("tables".to_owned(), json!(TABLES));
            new.config.0.insert("placement".to_owned(), json!({ "max_processors": 3 }));
            new.target_ts = Ts(START.0 + 60);
        })
        .await;
    world.outside.expect_tables(feed, TABLES, START);
    world
        .until("it is finished", secs(60), |world| {
            world.state(feed) == Some(FeedState::Finished) && live(world, feed) == 0
        })
        .await;
    assert_eq!(world.checkpoint(feed), Ts(START.0 + 60));
    assert_eq!(world.outside.high(feed), Ts(START.0 + 60));
}

#[tokio::test(start_paused = true)]
async fn an_outage_moves_nothing() {
    for outage in [secs(5), secs(40)] {
        let (world, feed) = split(3).await;
        let before = carriers(&world, feed, world.now() - secs(1));
        let (at, versions) = (world.now(), rows(&world, feed));
        world.db.pause();
        world.pass(outage).await;
        world.db.resume();
        world.until("everything runs again", secs(6), |world| is_even(world, feed, 3)).await;
        let back = world.now();
        world.pass(secs(20)).await;
        assert_eq!(carriers(&world, feed, back), before, "after {outage:?}");
        assert_eq!(rows(&world, feed), versions);
        println!("an outage of {outage:?}: the longest gap {:?}", longest_gap(&world, feed, at));
    }
}

/// Tables that do not stop when they are told to hold up what waits for them, and nothing else.
#[tokio::test(start_paused = true)]
async fn a_table_that_does_not_stop_is_waited_for() {
    let (world, feed) = split(2).await;
    let name = world.name(feed).await;
    world.outside.behave(feed, Behaviour { stops_in: secs(6), ..Behaviour::default() });
    let at = world.now();
    world.admin.pause(&name).await.unwrap();
    let took = world
        .until("it is released", secs(12), |world| {
            world.schedule(feed).unwrap().state == ScheduleState::Removed && live(world, feed) == 0
        })
        .await;
    assert!(took >= secs(6), "not before its tables have stopped: {took:?}");
    assert!(world.outside.writes().iter().all(|write| write.at <= at + secs(2)));
}

/// Whoever asks for more processors gets them with the next launch, and who asks for one runs whole again.
#[tokio::test(start_paused = true)]
async fn the_number_of_processors_may_change_while_it_is_paused() {
    let (world, feed) = split(3).await;
    let name = world.name(feed).await;
    let config = |max: u32| {
        ReplicaConfig(
            [
                ("tables".to_owned(), json!(TABLES)),
                ("placement".to_owned(), json!({ "max_processors": max })),
            ]
            .into_iter()
            .collect(),
        )
    };
    for (max, captures) in [(2, 2), (1, 1), (3, 3)] {
        world.admin.pause(&name).await.unwrap();
        world
            .until("it is stopped", secs(8), |world| {
                world.schedule(feed).unwrap().state == ScheduleState::Removed && live(world, feed) == 0
            })
            .await;
        let info = world.store.changefeed_infos(Some(&[feed])).await.unwrap().remove(0);
        let update = metadata_api::model::ChangefeedUpdate {
            config: Some(config(max)),
            ..metadata_api::model::ChangefeedUpdate::default()
        };
        world.admin.update(&name, info.version, &update).await.unwrap();
        let at = world.checkpoint(feed);
        if captures == 1 {
            world.outside.expect(feed, world.outside.high(feed));
        }
        world.admin.resume(&name, None).await.unwrap();
        if captures == 1 {
            world
                .until("its owner runs it", secs(8), |world| {
                    world.outside.last_write(feed).is_some_and(|write| write.part.is_none() && write.to > at)
                })
                .await;
            // What it writes whole it writes for every table.
            world.admin.pause(&name).await.unwrap();
            world
                .until("it is stopped", secs(8), |world| {
                    world.schedule(feed).unwrap().state == ScheduleState::Removed
                })
                .await;
            let reached = world.checkpoint(feed);
            world.outside.expect_tables(feed, TABLES, reached);
            continue;
        }
        world.until("it runs", secs(20), |world| is_even(world, feed, captures)).await;
        assert!(world.checkpoint(feed) >= at);
        assert!(live(&world, feed) == captures);
    }
    world.pass(ms(100)).await;
}

/// What fails is stopped as a whole: paused while it waits to be tried again, it stands still, and may be set back.
#[tokio::test(start_paused = true)]
async fn a_pending_one_is_paused_everywhere() {
    let (world, feed) = split(3).await;
    let name = world.name(feed).await;
    world.outside.incident(feed, Incident::FailsRetryably);
    world.until("it is pending", secs(5), |world| world.state(feed) == Some(FeedState::Pending)).await;
    world.admin.pause(&name).await.unwrap();
    let at = world.now();
    world.until("its owner has let go", secs(3), |world| world.owner(feed).is_none()).await;
    let ahead = progress(Ts(START.0 + 1));
    let early = world.admin.resume(&name, Some(&ahead)).await.is_ok() && live(&world, feed) > 0;
    assert!(!early, "its position is nobody's to set while it is carried");
    world.throughout("nobody writes", secs(20), |world| carriers(world, feed, at + ms(100)).is_empty()).await;
}

/// A name is another's only when nothing of who had it is left.
#[tokio::test(start_paused = true)]
async fn two_changefeeds_never_write_under_one_name() {
    let (mut world, feed) = split(3).await;
    let name = world.name(feed).await;
    world.outside.incident(feed, Incident::FailsFatally);
    world.until("it failed", secs(8), |world| world.state(feed) == Some(FeedState::Failed)).await;
    world.admin.remove(&name).await.unwrap();
    let mut new = world.request();
    new.name = name;
    let began = world.now();
    let second = loop {
        match world.admin.create(&new).await {
            Ok(info) => break info.uuid,
            Err(error) => assert!(matches!(error, MetadataError::AlreadyExists { .. }), "{error}"),
        }
        world.pass(ms(50)).await;
        assert!(world.now() - began < secs(10), "the name is free when the changefeed was cleaned up");
    };
    let at = world.now();
    world.outside.expect(second, START);
    world.until("the second runs", secs(5), |world| world.moves(second, at)).await;
    assert!(carriers(&world, feed, at).is_empty(), "the first wrote after the second was there");
}

/// Rows of one changefeed that cannot be read keep no other's processors waiting, and somebody is told.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_keeps_nobody_else_waiting() {
    let (mut world, bad) = split(3).await;
    let good = world.create_split(TABLES, 3).await;
    world.until("both run", secs(20), |world| is_even(world, good, 3)).await;
    world.db.tamper(Tamper::MakeProcessorsUnreadable(bad));
    let owner = world.owner(good).unwrap();
    let epoch = world.schedule(good).unwrap().epoch;
    world.processes[owner].kill();
    world
        .until("the other runs again", secs(24), |world| {
            world.schedule(good).unwrap().epoch > epoch && is_even(world, good, 2)
        })
        .await;
    if world.owner(bad).is_some_and(|owner| world.processes[owner].runs()) {
        assert!(matches!(world.state(bad), Some(FeedState::Pending | FeedState::Warning)));
    }
}

/// Who comes and goes gets no tables after a while.
#[tokio::test(start_paused = true)]
async fn a_capture_that_flaps_carries_nothing() {
    let (mut world, _) = World::running(2, 0).await;
    let feed = world.create_split(TABLES, 3).await;
    world.until("two carry it", secs(20), |world| is_even(world, feed, 2)).await;
    world.addr = Some("flapper:1".to_owned());
    let mut carried = Vec::new();
    for _ in 0..8 {
        let flapper = world.start();
        world.pass(secs(12)).await;
        let now = carriers(&world, feed, world.now() - secs(1));
        carried.push(now.values().filter(|process| **process == flapper).count());
        world.processes[flapper].kill();
        world.pass(secs(18)).await;
    }
    println!("tables of a capture that flaps, life by life: {carried:?}");
    assert!(carried[4..].iter().all(|count| *count == 0), "{carried:?}");
}

/// Processor rows that do not decode any more stop nothing: what runs goes on, and goes on from where it is when they are mended.
#[tokio::test(start_paused = true)]
async fn damaged_rows_of_processors_stop_nothing() {
    let (world, feed) = split(3).await;
    let (before, at) = (carriers(&world, feed, world.now() - secs(1)), world.now());
    world.db.tamper(Tamper::MakeProcessorsUnreadable(feed));
    world.pass(secs(60)).await;
    assert_eq!(carriers(&world, feed, world.now() - secs(2)), before);
    world.db.tamper(Tamper::MendRows);
    world.pass(secs(60)).await;
    assert_eq!(carriers(&world, feed, world.now() - secs(2)), before);
    assert_eq!(repeated(&world, feed, at), 0);
    assert!(longest_gap(&world, feed, at) <= secs(2), "{:?}", longest_gap(&world, feed, at));
}
