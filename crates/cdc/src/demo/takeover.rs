//! A killed server, until every changefeed of it has moved on elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metadata_api::model::{BootTime, Ts};

use super::scene::Scene;

/// What is watched after a kill.
#[derive(Clone, Debug)]
pub struct Takeover {
    /// The server that was killed.
    pub server: String,
    /// When all of it ran elsewhere.
    pub done_at: Option<BootTime>,
    /// Whether the server was started again.
    pub restarted: bool,
    at: BootTime,
    after_start: Duration,
    victim: Option<String>,
    was_controller: bool,
    controller_at: Option<BootTime>,
    /// Its changefeeds, and how far they had come.
    feeds: BTreeMap<String, Ts>,
    moved: BTreeSet<String>,
}

impl Takeover {
    /// The state of things at the kill.
    pub fn begin(scene: &Scene, server: &str, now: BootTime) -> Self {
        let seat = scene.seats.iter().find(|seat| seat.name == server);
        let victim = seat.and_then(|seat| seat.capture.clone());
        let owned = scene.feeds.iter().filter(|feed| feed.owner.is_some() && feed.owner == victim);
        Self {
            server: server.to_owned(),
            done_at: None,
            restarted: false,
            at: now,
            after_start: now.since(scene.start),
            was_controller: seat.is_some_and(|seat| seat.is_controller),
            controller_at: None,
            feeds: owned.map(|feed| (feed.id.clone(), feed.checkpoint)).collect(),
            victim,
            moved: BTreeSet::new(),
        }
    }

    /// What is said at the kill.
    pub fn announcement(&self) -> String {
        let role = if self.was_controller { ", the controller," } else { "" };
        format!("kill -9 of {}{role} which owned {} changefeeds", self.server, self.feeds.len())
    }

    /// Looks at the scene; what is worth saying.
    pub fn watch(&mut self, scene: &Scene, now: BootTime) -> Vec<String> {
        let mut events = Vec::new();
        if self.was_controller
            && self.controller_at.is_none()
            && let Some(new) = scene.controller().filter(|new| *new != self.server)
        {
            self.controller_at = Some(now);
            events
                .push(format!("{new} is the new controller, {} after the kill", seconds(now.since(self.at))));
        }
        for feed in &scene.feeds {
            let runs_on = feed.owner.is_some() && feed.owner != self.victim;
            let is_ahead = self.feeds.get(&feed.id).is_some_and(|then| feed.checkpoint > *then);
            if runs_on && is_ahead && self.moved.insert(feed.id.clone()) {
                let on = feed.server.unwrap_or("another server");
                events.push(format!(
                    "{} goes on at {on}, {} after the kill",
                    feed.id,
                    seconds(now.since(self.at))
                ));
            }
        }
        if self.done_at.is_none() && self.moved.len() == self.feeds.len() {
            self.done_at = Some(now);
            events.push(format!(
                "all {} changefeeds of {} run elsewhere, {} after the kill",
                self.feeds.len(),
                self.server,
                seconds(now.since(self.at))
            ));
        }
        events
    }

    /// All of it in one sentence.
    pub fn story(&self) -> String {
        let role = if self.was_controller { " (the controller)" } else { "" };
        let controller = self
            .controller_at
            .map(|at| format!("a new controller after {}, ", seconds(at.since(self.at))))
            .unwrap_or_default();
        let end = match self.done_at {
            Some(done) => format!("all ran elsewhere after {}", seconds(done.since(self.at))),
            None => format!("only {} of them ran elsewhere at the end", self.moved.len()),
        };
        format!(
            "{}{role} was killed at {} with {} changefeeds: {controller}{end}.",
            self.server,
            seconds(self.after_start),
            self.feeds.len()
        )
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::scene::{Feed, Seat};

    fn at(seconds: u64) -> BootTime {
        BootTime::from_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn a_takeover_is_done_when_every_changefeed_has_moved_on() {
        let mut scene = Scene::new(at(0), 1);
        let feed = |id: &str, owner: &str, checkpoint| Feed {
            id: id.into(),
            owner: Some(owner.into()),
            checkpoint: Ts(checkpoint),
            server: Some("s2"),
            ..Feed::default()
        };
        let seat =
            Seat { name: "s1", capture: Some("x".into()), is_controller: true, up: true, ..Seat::default() };
        scene.seats = vec![seat];
        scene.feeds = vec![feed("a", "x", 5), feed("b", "x", 5), feed("c", "y", 5)];
        let mut takeover = Takeover::begin(&scene, "s1", at(10));
        assert!(takeover.announcement().contains("2 changefeeds"));
        assert!(takeover.watch(&scene, at(11)).is_empty());
        scene.seats = vec![Seat { name: "s2", is_controller: true, ..Seat::default() }];
        scene.feeds = vec![feed("a", "y", 6), feed("b", "y", 5), feed("c", "y", 9)];
        let events = takeover.watch(&scene, at(22)).join("\n");
        assert!(
            events.contains("s2 is the new controller, 12.0 s") && events.contains("a goes on at s2"),
            "{events}"
        );
        assert_eq!(takeover.done_at, None, "b has an owner, but has not moved on");
        scene.feeds[1] = feed("b", "y", 6);
        takeover.watch(&scene, at(25));
        assert_eq!(takeover.done_at, Some(at(25)));
        assert!(takeover.story().contains("after 15.0 s"), "{}", takeover.story());
    }
}
