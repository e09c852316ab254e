//! What the demo shows: a live screen on a terminal, lines elsewhere.

use std::io::Write;
use std::time::Duration;

use capture_runtime::clock::{Clock, SystemClock};
use metadata_api::model::BootTime;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};

use super::scene::{Feed, Scene, Seat};
use crate::api::JsonTime;
use crate::exit::Failure;

/// Between two lines, where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// A lag that is shown in red.
const BAD_LAG: Duration = Duration::from_secs(5);

/// Where the demo shows itself.
pub struct Screen {
    terminal: Option<DefaultTerminal>,
    last_line: Option<BootTime>,
}

impl Screen {
    /// Takes the terminal over, if `live`.
    pub fn open(live: bool) -> Result<Self, Failure> {
        let terminal = if live { Some(ratatui::try_init()?) } else { None };
        Ok(Self { terminal, last_line: None })
    }

    /// Gives the terminal back.
    pub fn close(&mut self) {
        if self.terminal.take().is_some() {
            ratatui::restore();
        }
    }

    /// Says that something happened.
    pub fn say(&mut self, scene: &mut Scene, text: String, now: BootTime) -> Result<(), Failure> {
        let after = now.since(scene.start);
        if self.terminal.is_none() {
            print_line(&format!("[{:5.1} s] {text}", after.as_secs_f64()))?;
        }
        scene.events.push((after, text));
        Ok(())
    }

    /// Shows the scene. Says whether somebody asked to stop.
    pub fn draw(&mut self, scene: &Scene, now: BootTime) -> Result<bool, Failure> {
        let wall_ms = u64::try_from(SystemClock.wall().timestamp_millis()).unwrap_or(0);
        let Some(terminal) = &mut self.terminal else {
            if self.last_line.is_none_or(|last| now.since(last) >= LINE_EVERY) {
                self.last_line = Some(now);
                print_line(&status_line(scene, now, wall_ms))?;
            }
            return Ok(false);
        };
        terminal.draw(|frame| paint(frame, scene, now, wall_ms))?;
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()? {
                let interrupt =
                    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close();
    }
}

fn print_line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

fn total_rows(scene: &Scene) -> u64 {
    scene.feeds.iter().map(Feed::rows).sum()
}

fn status_line(scene: &Scene, now: BootTime, wall_ms: u64) -> String {
    let owned: Vec<String> =
        scene.seats.iter().map(|seat| format!("{} {}", seat.name, shown(seat))).collect();
    let worst = scene.feeds.iter().map(|feed| feed.lag(wall_ms)).max().unwrap_or_default();
    format!(
        "[{:5.1} s] {} | rows {} | greatest lag {:.1} s",
        now.since(scene.start).as_secs_f64(),
        owned.join(", "),
        total_rows(scene),
        worst.as_secs_f64()
    )
}

fn shown(seat: &Seat) -> String {
    match (seat.up, seat.is_controller) {
        (false, _) => "is dead".to_owned(),
        (true, true) => format!("controls and owns {}", seat.owned),
        (true, false) => format!("owns {}", seat.owned),
    }
}

fn paint(frame: &mut Frame<'_>, scene: &Scene, now: BootTime, wall_ms: u64) {
    let feeds = u16::try_from(scene.feeds.len()).unwrap_or(u16::MAX).saturating_add(3);
    let [head, seats, table, events] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(6),
        Constraint::Max(feeds),
        Constraint::Min(4),
    ])
    .areas(frame.area());
    let title = format!(
        " cdc demo  {:5.1} s   {} rows durable   q ends it",
        now.since(scene.start).as_secs_f64(),
        total_rows(scene)
    );
    frame.render_widget(Paragraph::new(title).style(Style::new().add_modifier(Modifier::REVERSED)), head);
    frame.render_widget(seat_table(scene), seats);
    frame.render_widget(feed_table(scene, wall_ms), table);
    let room = usize::from(events.height.saturating_sub(2));
    let lines: Vec<Line<'_>> = scene
        .events
        .iter()
        .skip(scene.events.len().saturating_sub(room))
        .map(|(after, text)| Line::from(format!("{:5.1} s  {text}", after.as_secs_f64())))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" what happened ")), events);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn seat_table(scene: &Scene) -> Table<'_> {
    let rows = scene.seats.iter().map(|seat| {
        let style = if seat.up { Style::new() } else { Style::new().fg(Color::Red) };
        Row::new([
            seat.name.to_owned(),
            if seat.up { "up".to_owned() } else { "killed".to_owned() },
            if seat.is_controller { "controller".to_owned() } else { String::new() },
            seat.owned.to_string(),
            seat.addr.clone(),
            seat.capture.clone().unwrap_or_default(),
        ])
        .style(style)
    });
    let widths = [4, 7, 11, 12, 17, 36].map(Constraint::Length);
    Table::new(rows, widths)
        .header(Row::new(["", "", "role", "changefeeds", "address", "capture"]).style(bold()))
        .block(Block::bordered().title(" servers "))
}

fn feed_table(scene: &Scene, wall_ms: u64) -> Table<'_> {
    let rows = scene.feeds.iter().map(|feed| {
        let lag = feed.lag(wall_ms);
        let style = if lag > BAD_LAG { Style::new().fg(Color::Red) } else { Style::new().fg(Color::Green) };
        Row::new([
            Cell::from(feed.id.as_str()),
            Cell::from(feed.server.unwrap_or("-")),
            Cell::from(feed.state.as_str()),
            Cell::from(JsonTime::from_ts(feed.checkpoint).0),
            Cell::from(format!("{:6.1} s", lag.as_secs_f64())).style(style),
            Cell::from(feed.rows().to_string()),
        ])
    });
    let widths = [10, 6, 9, 24, 10, 12].map(Constraint::Length);
    Table::new(rows, widths)
        .header(Row::new(["changefeed", "owner", "state", "checkpoint", "lag", "rows"]).style(bold()))
        .block(Block::bordered().title(" changefeeds "))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn scene() -> Scene {
        let mut scene = Scene::new(BootTime::default(), 1);
        scene.seats = vec![
            Seat { name: "s1", up: true, is_controller: true, owned: 2, ..Seat::default() },
            Seat { name: "s2", ..Seat::default() },
        ];
        scene.feeds = vec![Feed {
            id: "feed-01".into(),
            state: "normal".into(),
            server: Some("s1"),
            ..Feed::default()
        }];
        scene.events = vec![(Duration::from_secs(10), "kill -9 of s2".into())];
        scene
    }

    #[test]
    fn the_screen_shows_servers_changefeeds_and_events() {
        let mut terminal = Terminal::new(TestBackend::new(100, 30)).unwrap();
        terminal.draw(|frame| paint(frame, &scene(), BootTime::default(), 0)).unwrap();
        let text = format!("{}", terminal.backend());
        for wanted in ["controller", "killed", "feed-01", "normal", "kill -9 of s2", "10.0 s"] {
            assert!(text.contains(wanted), "{wanted}:\n{text}");
        }
    }

    #[test]
    fn a_tiny_terminal_does_not_panic() {
        for (width, height) in [(1, 1), (5, 3), (200, 2), (20, 10)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| paint(frame, &scene(), BootTime::default(), 0)).unwrap();
        }
    }

    #[test]
    fn a_line_says_who_owns_what() {
        let line = status_line(&scene(), BootTime::from_boot(Duration::from_secs(3)), 0);
        assert!(line.contains("3.0 s] s1 controls and owns 2, s2 is dead | rows 0"), "{line}");
    }
}
