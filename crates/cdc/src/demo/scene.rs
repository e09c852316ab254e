//! What the demo sees of the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use metadata_api::model::{BootTime, ChangefeedUuid, Ts};

use super::takeover::Takeover;
use crate::api::model::{Capture, ChangeFeedInfo, ChangefeedCommonInfo};

/// One server.
#[derive(Clone, Debug, Default)]
pub struct Seat {
    /// `s1`, `s2`, ..
    pub name: &'static str,
    /// Where it listens; empty = it does not.
    pub addr: String,
    /// Whether its process lives.
    pub up: bool,
    /// Its capture's id.
    pub capture: Option<String>,
    /// Whether it is the controller.
    pub is_controller: bool,
    /// How many changefeeds it owns.
    pub owned: usize,
}

/// One changefeed.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    /// Its name.
    pub id: String,
    /// Its key, once known.
    pub uuid: ChangefeedUuid,
    /// Where it started; 0 = not known yet.
    pub start_ts: Ts,
    /// How far it has come.
    pub checkpoint: Ts,
    /// Its state.
    pub state: String,
    /// The capture that owns it.
    pub owner: Option<String>,
    /// The server of that capture.
    pub server: Option<&'static str>,
    /// How fast its source is.
    pub rows_per_second: u64,
}

impl Feed {
    /// How far it is behind, by this host's clock.
    pub fn lag(&self, wall_ms: u64) -> Duration {
        Duration::from_millis(wall_ms.saturating_sub(self.checkpoint.physical_ms()))
    }

    /// How many rows are in its files for certain: all that the generator made up to the checkpoint.
    pub fn rows(&self) -> u64 {
        if self.start_ts == Ts::ZERO {
            return 0;
        }
        let elapsed = u128::from(self.checkpoint.0.saturating_sub(self.start_ts.0));
        let second = 1000_u128 << Ts::LOGICAL_BITS;
        u64::try_from(elapsed * u128::from(self.rows_per_second) / second).unwrap_or(u64::MAX)
    }
}

/// All that is shown.
#[derive(Debug)]
pub struct Scene {
    /// When the changefeeds were created.
    pub start: BootTime,
    /// The servers.
    pub seats: Vec<Seat>,
    /// The changefeeds, by name.
    pub feeds: Vec<Feed>,
    /// What happened, and when.
    pub events: Vec<(Duration, String)>,
    /// When the cluster last answered.
    pub seen_at: Option<BootTime>,
    /// The takeover, at the end.
    pub takeover: Option<Takeover>,
    /// How fast each source is.
    rows_per_second: u64,
    /// Which server a capture was on, those that are gone included.
    homes: BTreeMap<String, &'static str>,
}

impl Scene {
    /// An empty one.
    pub fn new(start: BootTime, rows_per_second: u64) -> Self {
        Self {
            start,
            rows_per_second,
            seats: Vec::new(),
            feeds: Vec::new(),
            events: Vec::new(),
            seen_at: None,
            takeover: None,
            homes: BTreeMap::new(),
        }
    }

    /// Takes in what a server answered.
    pub fn see(
        &mut self,
        captures: &[Capture],
        feeds: Vec<ChangefeedCommonInfo>,
        servers: Vec<(&'static str, String, bool)>,
        now: BootTime,
    ) {
        self.seen_at = Some(now);
        self.seats = servers
            .into_iter()
            .map(|(name, addr, up)| {
                let capture = captures.iter().find(|capture| !addr.is_empty() && capture.address == addr);
                Seat {
                    name,
                    up,
                    capture: capture.map(|capture| capture.id.clone()),
                    is_controller: capture.is_some_and(|capture| capture.is_owner),
                    addr,
                    owned: 0,
                }
            })
            .collect();
        for seat in &self.seats {
            if let Some(capture) = &seat.capture {
                self.homes.insert(capture.clone(), seat.name);
            }
        }
        for seen in feeds {
            let owner = seen.owner.unwrap_or_default();
            let server = owner.capture_id.as_ref().and_then(|id| self.homes.get(id)).copied();
            if let Some(seat) = self.seats.iter_mut().find(|seat| seat.up && Some(seat.name) == server) {
                seat.owned += usize::from(seat.capture == owner.capture_id);
            }
            let known = self.feeds.iter().position(|feed| feed.id == seen.id);
            let old = known.map(|at| self.feeds.swap_remove(at)).unwrap_or_default();
            self.feeds.push(Feed {
                id: seen.id,
                // What a reader saw once is so: it never goes back.
                checkpoint: old.checkpoint.max(Ts(seen.checkpoint_tso)),
                state: seen.state,
                owner: owner.capture_id,
                server,
                rows_per_second: self.rows_per_second,
                ..old
            });
        }
        self.feeds.sort_by(|a, b| a.id.cmp(&b.id));
    }

    /// The changefeeds whose start is not known yet.
    pub fn without_start(&self) -> Vec<String> {
        self.feeds.iter().filter(|feed| feed.start_ts == Ts::ZERO).map(|feed| feed.id.clone()).collect()
    }

    /// Takes in where a changefeed started.
    pub fn see_start(&mut self, id: &str, info: &ChangeFeedInfo) {
        if let Some(feed) = self.feeds.iter_mut().find(|feed| feed.id == id) {
            feed.start_ts = Ts(info.start_ts);
            feed.uuid = ChangefeedUuid(info.gid.low);
        }
    }

    /// The server that owns most; the controller among equals.
    pub fn busiest(&self) -> Option<String> {
        let busy = self.seats.iter().filter(|seat| seat.up && seat.owned > 0);
        busy.max_by_key(|seat| (seat.owned, seat.is_controller)).map(|seat| seat.name.to_owned())
    }

    /// The controller's server.
    pub fn controller(&self) -> Option<&'static str> {
        self.seats.iter().find(|seat| seat.is_controller).map(|seat| seat.name)
    }

    /// What happened, for the end.
    pub fn story(&self) -> Vec<String> {
        self.takeover.iter().map(Takeover::story).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::Owner;

    fn capture(id: &str, addr: &str, is_owner: bool) -> Capture {
        Capture { id: id.into(), address: addr.into(), is_owner, ..Capture::default() }
    }

    fn feed(id: &str, owner: Option<&str>, checkpoint: u64) -> ChangefeedCommonInfo {
        ChangefeedCommonInfo {
            id: id.into(),
            checkpoint_tso: checkpoint,
            owner: Some(Owner { capture_id: owner.map(str::to_owned), epoch: 1, state: "launched".into() }),
            ..ChangefeedCommonInfo::default()
        }
    }

    #[test]
    fn a_scene_knows_who_owns_what_and_keeps_what_it_knew() {
        let mut scene = Scene::new(BootTime::default(), 1);
        let servers = || vec![("s1", "a:1".to_owned(), true), ("s2", "a:2".to_owned(), true)];
        let captures = vec![capture("x", "a:1", false), capture("y", "a:2", true)];
        scene.see(
            &captures,
            vec![feed("b", Some("y"), 5), feed("a", Some("x"), 9)],
            servers(),
            BootTime::default(),
        );
        assert_eq!(scene.busiest().as_deref(), Some("s2"), "the controller among equals");
        assert_eq!(scene.controller(), Some("s2"));
        assert_eq!(scene.without_start(), ["a", "b"]);
        let info = ChangeFeedInfo { start_ts: 3, ..ChangeFeedInfo::default() };
        scene.see_start("a", &info);
        scene.see(&captures, vec![feed("a", None, 7)], servers(), BootTime::default());
        let kept = &scene.feeds[0];
        assert_eq!((kept.start_ts, kept.checkpoint, kept.server), (Ts(3), Ts(9), None));
    }
}
