//! The screen of `top`, drawn from what it knows.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Gauge, Paragraph, Row, Sparkline, Table, TableState},
};
use retouch_proto::status::{Event, EventKind, Presence, RunState, RunStatus, WorkerStatus};

use super::model::Top;
use crate::show::{duration, group_counts, policy, short, step_stages, utc};

const KEYS: &str = "↑↓ worker   d drain   r restart   p pause/resume   c checkpoint   D drain run   S stop   q quit";
const STAGE_ROWS: u16 = 6;
const LOG_ROWS: u16 = 8;
/// Rewards become heights by this.
const REWARD_SCALE: f64 = 10_000.0;

pub(super) fn draw(frame: &mut Frame<'_>, top: &Top) {
    let Some(status) = &top.status else {
        let text = top.away.as_deref().unwrap_or("asking the coordinator ...");
        return frame.render_widget(Paragraph::new(text), frame.area());
    };
    let rows = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(1),
        Constraint::Length(STAGE_ROWS),
        Constraint::Min(3),
        Constraint::Length(LOG_ROWS),
        Constraint::Length(1),
    ]);
    let [head, gauge, middle, workers, log, foot] = rows.areas(frame.area());
    headline(frame, head, status, top.away.as_deref());
    progress(frame, gauge, status);
    let [stages, rewards] =
        Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(middle);
    throughput(frame, stages, status);
    trend(frame, rewards, status);
    table(frame, workers, top);
    tail(frame, log, top.log.iter());
    footer(frame, foot, top);
}

fn headline(frame: &mut Frame<'_>, area: Rect, status: &RunStatus, away: Option<&str>) {
    let eta = status.eta_s.filter(|_| !status.state.is_over());
    let eta = eta.map_or(String::new(), |eta| {
        format!(", about {} left", duration(eta))
    });
    let first = Line::from(vec![
        Span::from(status.run.to_string()).bold(),
        Span::from("  "),
        Span::styled(status.state.to_string(), state_style(status.state)),
        Span::from(format!(
            "  {}, checkpoint {}, up {}{eta}",
            status.stage,
            status.checkpointed,
            duration(status.uptime_s),
        )),
    ]);
    let second = format!(
        "groups  {}   version {}",
        group_counts(&status.groups, "  "),
        status.version.as_deref().map_or("base", short),
    );
    let trouble = away.map(|away| format!("AWAY: {away}")).or_else(|| {
        let stall = status.stalls.first()?;
        let for_s = stall.for_ms as f64 / 1e3;
        Some(format!("STALLED for {}: {}", duration(for_s), stall.cause))
    });
    let failed = status
        .reason
        .as_ref()
        .map(|reason| format!("FAILED: {reason}"));
    let third = failed.or(trouble).unwrap_or_default();
    let lines = vec![first, second.into(), Line::from(third).red().bold()];
    frame.render_widget(Paragraph::new(lines), area);
}

fn state_style(state: RunState) -> Style {
    let color = match state {
        RunState::Running | RunState::Finished => Color::Green,
        RunState::Paused | RunState::Draining | RunState::Stopping => Color::Yellow,
        RunState::Failed => Color::Red,
    };
    Style::new().fg(color).add_modifier(Modifier::BOLD)
}

fn progress(frame: &mut Frame<'_>, area: Rect, status: &RunStatus) {
    let (done, all) = (status.committed.0, status.iterations);
    let ratio = f64::from(done) / f64::from(all.max(1));
    let gauge = Gauge::default()
        .ratio(ratio.min(1.0))
        .label(format!("iteration {done} of {all}"))
        .gauge_style(Style::new().fg(Color::Cyan).bg(Color::DarkGray));
    frame.render_widget(gauge, area);
}

/// What each stage gets done, and where the last training step's time went.
fn throughput(frame: &mut Frame<'_>, area: Rect, status: &RunStatus) {
    let last = status.history.last();
    let trained = last.map_or(0.0, |last| {
        f64::from(last.samples_trained) / last.stage_s.train.max(1e-3)
    });
    let rates = &status.rates;
    let mut lines = vec![Line::from(format!(
        "sample {:.1}/s   judge {:.1}/s   train {trained:.1}/s   {:.0} iterations/h",
        rates.samples_per_s, rates.scores_per_s, rates.iterations_per_h,
    ))];
    if let Some(last) = last {
        let stages = &last.stage_s;
        lines.push(Line::from(format!(
            "iteration {}: collect {}, train {}, {:.0} % filtered",
            last.iteration,
            duration(stages.collect),
            duration(stages.train),
            100.0 * last.filter_rate,
        )));
    }
    if let Some((_, stages)) = step_stages(&status.history) {
        let part = |(name, seconds): &(&str, f64)| format!("{name} {seconds:.2}");
        let parts: Vec<String> = stages.iter().map(part).collect();
        let half = parts.len() / 2;
        lines.push(Line::from(parts[..half].join("  ")).dim());
        lines.push(Line::from(parts[half..].join("  ")).dim());
    }
    let block = Block::bordered().title("stages");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn trend(frame: &mut Frame<'_>, area: Rect, status: &RunStatus) {
    let rewards: Vec<f64> = status.history.iter().map(|m| m.reward_mean).collect();
    let title = match rewards.last() {
        Some(last) => format!("reward {last:.4}"),
        None => "reward".to_owned(),
    };
    let lowest = rewards.iter().copied().fold(f64::INFINITY, f64::min);
    let width = usize::from(area.width.saturating_sub(2));
    let newest = &rewards[rewards.len().saturating_sub(width)..];
    // The lowest still has a height: an empty column means no iteration.
    let height = |reward: &f64| 1 + ((reward - lowest) * REWARD_SCALE) as u64;
    let heights: Vec<u64> = newest.iter().map(height).collect();
    let sparkline = Sparkline::default()
        .block(Block::bordered().title(title))
        .style(Style::new().fg(Color::Green))
        .data(&heights);
    frame.render_widget(sparkline, area);
}

fn table(frame: &mut Frame<'_>, area: Rect, top: &Top) {
    let header = [
        "worker", "role", "state", "device", "load", "done", "failed", "policy", "seen",
    ];
    let widths = [
        Constraint::Min(16),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(5),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(16),
        Constraint::Length(9),
    ];
    let table = Table::new(top.workers().iter().map(row), widths)
        .header(Row::new(header).bold())
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .highlight_symbol("> ")
        .block(Block::bordered().title(format!("{} workers", top.workers().len())));
    let mut state = TableState::default().with_selected(top.selected_row());
    frame.render_stateful_widget(table, area, &mut state);
}

fn row(worker: &WorkerStatus) -> Row<'static> {
    let color = match worker.state {
        Presence::Ready => Color::Reset,
        Presence::Loading | Presence::Leaving => Color::Yellow,
        Presence::Lost => Color::Red,
        Presence::Left => Color::DarkGray,
    };
    Row::new([
        worker.id.to_string(),
        worker.role.to_string(),
        worker.state.to_string(),
        worker.device.clone(),
        format!("{}/{}", worker.busy, worker.slots),
        worker.done.to_string(),
        worker.failed.to_string(),
        worker.policy.as_ref().map_or("-".to_owned(), policy),
        duration(worker.last_seen_ms as f64 / 1e3),
    ])
    .style(Style::new().fg(color))
}

fn tail<'a>(frame: &mut Frame<'_>, area: Rect, log: impl DoubleEndedIterator<Item = &'a Event>) {
    let rows = usize::from(area.height.saturating_sub(2));
    let mut lines: Vec<Line<'_>> = log.rev().take(rows).map(event).collect();
    lines.reverse();
    let block = Block::bordered().title("events");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn event(event: &Event) -> Line<'_> {
    let when = utc(event.time_unix_ms);
    let time = when.split(' ').next_back().unwrap_or_default();
    let line = Line::from(format!(
        "{time}  {:<19}  {}",
        event.kind.as_str(),
        event.message
    ));
    match event.kind {
        EventKind::WorkerLost
        | EventKind::GroupDropped
        | EventKind::Stalled
        | EventKind::RanksDisagree
        | EventKind::Rewound
        | EventKind::Mended
        | EventKind::Failed => line.red(),
        EventKind::AttemptFailed
        | EventKind::TermFailed
        | EventKind::LeaseExpired
        | EventKind::Resharded => line.yellow(),
        _ => line,
    }
}

fn footer(frame: &mut Frame<'_>, area: Rect, top: &Top) {
    let line = match &top.asked {
        Some(asked) => Line::from(asked.question.as_str()).yellow().bold(),
        None if !top.note.is_empty() => Line::from(format!("{}   |   {KEYS}", top.note)),
        None => Line::from(KEYS).dim(),
    };
    frame.render_widget(Paragraph::new(line), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use retouch_proto::Iteration;

    use super::super::model::{Input, Key};
    use super::*;
    use crate::control::status::tests::sample;

    const WIDTH: u16 = 120;

    fn shown(top: &Top, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(WIDTH, height)).unwrap();
        terminal.draw(|frame| draw(frame, top)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let cells: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
        cells
            .chunks(usize::from(WIDTH))
            .map(|row| row.concat().trim_end().to_owned())
            .collect()
    }

    fn top() -> Top {
        let mut top = Top::default();
        top.handle(Input::Status(Box::new(sample())));
        for sequence in 1..=20 {
            top.handle(Input::Event(Event {
                sequence,
                time_unix_ms: sequence * 1000,
                iteration: Iteration(1),
                kind: EventKind::WorkerLost,
                message: format!("message {sequence}"),
            }));
        }
        top
    }

    fn line<'a>(lines: &'a [String], part: &str) -> &'a str {
        let found = lines.iter().find(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("{part:?} is not in\n{}", lines.join("\n")))
    }

    #[test]
    fn the_whole_run_is_on_one_screen() {
        let lines = shown(&top(), 28);
        assert_eq!(
            lines[0],
            "demo  running  collecting, checkpoint 1, up 30.0 s, about 96.0 s left"
        );
        assert!(lines[1].contains("1 queued  2 sampling"), "{}", lines[1]);
        assert!(
            lines[2].starts_with("STALLED for 4.0 s: 1 groups wait"),
            "{}",
            lines[2]
        );
        assert!(lines[3].contains("iteration 2 of 10"), "{}", lines[3]);
        line(
            &lines,
            "sample 3.2/s   judge 2.5/s   train 3.0/s   300 iterations/h",
        );
        line(&lines, "data wait 0.50  prepare 0.00  v_old 1.00");
        line(&lines, "reward 0.6000");
        assert!(line(&lines, "rollout-0").contains("2:fedcba987654"));
        assert!(
            line(&lines, "learner-0").contains("> learner-0"),
            "selected"
        );
        assert!(line(&lines, "reward-0 ").contains("lost"));
        assert_eq!(lines[27], KEYS);
    }

    #[test]
    fn the_log_shows_the_newest_events_last() {
        let lines = shown(&top(), 28);
        let at = |part: &str| lines.iter().position(|line| line.contains(part));
        assert_eq!(at("message 14"), None, "only as many as there is room for");
        assert_eq!(at("00:00:20  worker-lost          message 20"), Some(25));
        assert_eq!(at("message 15"), Some(20));
    }

    #[test]
    fn rewards_are_columns_whose_heights_compare() {
        let lines = shown(&top(), 28);
        let title = lines
            .iter()
            .position(|line| line.contains("reward 0.6000"))
            .unwrap();
        let column = |x: usize| -> Vec<char> {
            let rows = lines[title + 1..title + 5].iter();
            rows.map(|line| line.chars().nth(x).unwrap_or(' '))
                .collect()
        };
        let left = 72 + 1;
        assert_eq!(column(left + 1), ['█', '█', '█', '█'], "the highest");
        assert_eq!(column(left)[..3], [' ', ' ', ' '], "the lowest");
    }

    #[test]
    fn a_question_takes_the_place_of_the_keys() {
        let mut top = top();
        top.handle(Input::Key(Key::Char('r')));
        assert_eq!(shown(&top, 28)[27], "restart learner-0? y / n");
        top.handle(Input::Key(Key::Char('n')));
        top.handle(Input::Answer("as you wish".into()));
        assert!(shown(&top, 28)[27].starts_with("as you wish   |   "));
    }

    #[test]
    fn a_silent_coordinator_is_told_and_nothing_is_hidden() {
        let mut top = top();
        top.handle(Input::Away("no coordinator answers".into()));
        assert_eq!(shown(&top, 28)[2], "AWAY: no coordinator answers");
        let nothing = Top::default();
        assert_eq!(shown(&nothing, 5)[0], "asking the coordinator ...");
    }

    #[test]
    fn the_selected_worker_stays_in_view_of_a_long_table() {
        let mut status = sample();
        let worker = status.workers[2].clone();
        status.workers = (0..50)
            .map(|number| WorkerStatus {
                id: retouch_proto::WorkerId::new(format!("w-{number:02}")).unwrap(),
                ..worker.clone()
            })
            .collect();
        let mut top = Top::default();
        top.handle(Input::Status(Box::new(status)));
        (0..49).for_each(|_| drop(top.handle(Input::Key(Key::Down))));
        let lines = shown(&top, 28);
        assert!(line(&lines, "w-49").contains("> w-49"));
        assert!(!lines.iter().any(|line| line.contains("w-00")));
    }

    #[test]
    fn small_terminals_do_not_break_it() {
        for height in [1, 5, 12] {
            assert_eq!(shown(&top(), height).len(), usize::from(height));
        }
    }
}
