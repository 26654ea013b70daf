//! The screen of `top`, drawn from what it knows.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Cell, Gauge, Paragraph, Row, Sparkline, Table, TableState},
};
use retouch_proto::status::{Event, EventKind, Presence, RunState, RunStatus};

use super::{super::workers, model::Top};
use crate::{
    fit::{cut, width, wrap},
    show::{clock, duration, group_counts, short, step_stages},
};

/// What keys do, in as many words as there is room for.
const KEYS: [&str; 3] = [
    "↑↓ worker   d drain   r restart   p pause/resume   c checkpoint   D drain run   S stop   q quit",
    "↑↓ worker  d drain  r restart  p pause  c checkpoint  D drain run  S stop  q quit",
    "d drain r restart p pause c save D drain run S stop q quit",
];
/// Rows of the stages' box and of the events', on screens of at least so many rows.
const BOX_ROWS: [(u16, u16, u16); 3] = [(28, 6, 8), (24, 6, 4), (0, 4, 3)];
/// Columns of a screen that has the trend beside the stages take two fifths for it; a narrow one's, so many.
const TREND_COLUMNS: u16 = 22;
const WIDE: u16 = 100;
/// Lines that trouble may take.
const TROUBLE_ROWS: usize = 3;
const SELECTED: &str = "> ";
/// Rewards become heights by this.
const REWARD_SCALE: f64 = 10_000.0;

pub(super) fn draw(frame: &mut Frame<'_>, top: &Top) {
    let Some(status) = &top.status else {
        let text = top.away.as_deref().unwrap_or("asking the coordinator ...");
        return frame.render_widget(Paragraph::new(text), frame.area());
    };
    let head = headline(status, top.away.as_deref(), frame.area().width.into());
    let foot = footer(top, frame.area().width.into());
    let of_height = |(rows, _, _): &&(u16, u16, u16)| frame.area().height >= *rows;
    let (_, stage_rows, log_rows) = BOX_ROWS.iter().find(of_height).unwrap_or(&BOX_ROWS[0]);
    let rows = Layout::vertical([
        Constraint::Length(head.len() as u16),
        Constraint::Length(1),
        Constraint::Length(*stage_rows),
        Constraint::Min(3),
        Constraint::Length(*log_rows),
        Constraint::Length(foot.len() as u16),
    ]);
    let [head_area, gauge, middle, workers, log, foot_area] = rows.areas(frame.area());
    frame.render_widget(Paragraph::new(head), head_area);
    progress(frame, gauge, status);
    let trend_columns = match middle.width >= WIDE {
        true => Constraint::Percentage(40),
        false => Constraint::Length(TREND_COLUMNS),
    };
    let [stages, rewards] = Layout::horizontal([Constraint::Min(0), trend_columns]).areas(middle);
    throughput(frame, stages, status);
    trend(frame, rewards, status);
    table(frame, workers, top);
    tail(frame, log, top.log.iter());
    frame.render_widget(Paragraph::new(foot), foot_area);
}

fn headline(status: &RunStatus, away: Option<&str>, columns: usize) -> Vec<Line<'static>> {
    let eta = status.eta_s.filter(|_| !status.state.is_over());
    let eta = eta.map_or(String::new(), |eta| {
        format!(", about {} left", duration(eta))
    });
    let up = match away {
        None => format!(", up {}", duration(status.uptime_s)),
        Some(_) => String::new(),
    };
    let name = cut(status.run.as_str(), columns / 3);
    let state = status.state.to_string();
    let rest = format!(
        "{}, checkpoint {}{up}{eta}",
        status.stage, status.checkpointed
    );
    let begins = [name.as_str(), &state, ""].join("  ");
    // The rest follows in the same line, and goes on below it.
    let mut rest = wrap(&(" ".repeat(width(&begins)) + &rest), columns, "  ").into_iter();
    let first = rest.next().unwrap_or_default();
    let mut lines = vec![Line::from(vec![
        Span::from(name).bold(),
        Span::from("  "),
        Span::styled(state, state_style(status.state)),
        Span::from("  "),
        Span::from(first.trim_start().to_owned()),
    ])];
    lines.extend(rest.map(Line::from));
    let groups = format!(
        "groups  {}   version {}",
        group_counts(&status.groups, "  "),
        status.version.as_deref().map_or("base", short),
    );
    lines.extend(
        wrap(&groups, columns, "        ")
            .into_iter()
            .map(Line::from),
    );
    let trouble = wrap(&trouble(status, away), columns, "  ");
    let trouble = trouble.into_iter().take(TROUBLE_ROWS);
    lines.extend(trouble.map(|line| Line::from(line).red().bold()));
    lines
}

/// Why the run failed, or what stops it or this screen.
fn trouble(status: &RunStatus, away: Option<&str>) -> String {
    if let Some(reason) = &status.reason {
        return format!("FAILED: {reason}");
    }
    if let Some(away) = away {
        return away.to_owned();
    }
    let stall = status.stalls.first();
    stall.map_or(String::new(), |stall| {
        let for_s = stall.for_ms as f64 / 1e3;
        format!("STALLED for {}: {}", duration(for_s), stall.cause)
    })
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
    let columns = usize::from(area.width.saturating_sub(2));
    let mut lines = wrap(
        &format!(
            "sample {:.1}/s   judge {:.1}/s   train {trained:.1}/s   {:.0} iterations/h",
            rates.samples_per_s, rates.scores_per_s, rates.iterations_per_h,
        ),
        columns,
        "",
    );
    if let Some(last) = last {
        let stages = &last.stage_s;
        let iteration = format!(
            "iteration {}: collect {}, train {}, {:.0} % filtered",
            last.iteration,
            duration(stages.collect),
            duration(stages.train),
            100.0 * last.filter_rate,
        );
        lines.extend(wrap(&iteration, columns, "  "));
    }
    let mut lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    if let Some((_, stages)) = step_stages(&status.history) {
        let part = |(name, seconds): &(&str, f64)| format!("{name} {seconds:.2}");
        let parts: Vec<String> = stages.iter().map(part).collect();
        let parts = wrap(&parts.join("  "), columns, "");
        lines.extend(parts.into_iter().map(|line| Line::from(line).dim()));
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
    let workers = top.workers();
    let taken = 2 + width(SELECTED);
    let columns = usize::from(area.width).saturating_sub(taken);
    let table = workers::Table::fitting(workers, columns);
    let cells = |texts: Vec<String>| texts.into_iter().map(Cell::from).collect::<Vec<_>>();
    let rows = workers.iter().map(|worker| {
        let color = presence_color(worker.state);
        Row::new(cells(table.row(worker))).style(Style::new().fg(color))
    });
    let widths = table.columns.iter();
    let widths =
        widths.map(|(_, width)| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)));
    let selected = top.selected_row();
    let title = match (&top.selected, selected) {
        (Some(id), Some(row)) => format!("{} of {}: {id}", row + 1, workers.len()),
        _ => format!("{} workers", workers.len()),
    };
    let title = cut(&title, columns);
    let rows = Table::new(rows, widths)
        .header(Row::new(cells(table.header())).bold())
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .highlight_symbol(SELECTED)
        .block(Block::bordered().title(title));
    let mut state = TableState::default().with_selected(selected);
    frame.render_stateful_widget(rows, area, &mut state);
}

fn presence_color(state: Presence) -> Color {
    match state {
        Presence::Ready => Color::Reset,
        Presence::Loading | Presence::Leaving => Color::Yellow,
        Presence::Lost => Color::Red,
        Presence::Left => Color::DarkGray,
    }
}

fn tail<'a>(frame: &mut Frame<'_>, area: Rect, log: impl DoubleEndedIterator<Item = &'a Event>) {
    let rows = usize::from(area.height.saturating_sub(2));
    let mut lines: Vec<Line<'_>> = log.rev().take(rows).map(event).collect();
    lines.reverse();
    let block = Block::bordered().title("events");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn event(event: &Event) -> Line<'_> {
    let time = clock(event.time_unix_ms);
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

/// What keys do, below what the last one was answered.
fn footer(top: &Top, columns: usize) -> Vec<Line<'static>> {
    if let Some(asked) = &top.asked {
        let question = wrap(&asked.question, columns, "  ").into_iter();
        return question
            .map(|line| Line::from(line).yellow().bold())
            .collect();
    }
    let fitting = KEYS.iter().find(|keys| width(keys) <= columns);
    let keys = fitting.unwrap_or(&KEYS[KEYS.len() - 1]);
    let mut lines = Vec::new();
    if !top.note.is_empty() {
        lines.extend(wrap(&top.note, columns, "  ").into_iter().map(Line::from));
    }
    lines.push(Line::from(*keys).dim());
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use retouch_proto::{Iteration, status::WorkerStatus};

    use super::super::model::{Input, Key};
    use super::*;
    use crate::control::{status::tests::sample, workers::tests::many};

    const WIDTH: u16 = 120;

    fn shown(top: &Top, height: u16) -> Vec<String> {
        shown_in(top, WIDTH, height)
    }

    fn shown_in(top: &Top, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, top)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let cells: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
        cells
            .chunks(usize::from(width))
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
        assert!(line(&lines, "> learner-0").contains("ready"), "selected");
        assert!(line(&lines, "reward-0 ").contains("lost"));
        assert_eq!(lines[27], KEYS[0]);
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
        let lines = shown(&top, 28);
        assert_eq!(lines[26..], ["as you wish", KEYS[0]]);
    }

    #[test]
    fn a_silent_coordinator_is_told_and_nothing_is_hidden() {
        let mut top = top();
        top.handle(Input::Away("no coordinator answers".into()));
        assert_eq!(shown(&top, 28)[2], "no coordinator answers");
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
        assert!(line(&lines, "> w-49").contains("ready"));
        assert!(!lines.iter().any(|line| line.contains("w-00")));
    }

    #[test]
    fn small_terminals_have_every_key_and_reach_every_worker() {
        let mut status = sample();
        status.workers = many();
        status.run = retouch_proto::RunId::new("a-run-with-a-name-that-is-much-too-long").unwrap();
        for (columns, rows) in [(80, 24), (60, 20)] {
            let mut top = top();
            top.handle(Input::Status(Box::new(status.clone())));
            for worker in &status.workers {
                let lines = shown_in(&top, columns, rows);
                let text = lines.join("\n");
                let number = &worker.id.as_str()[worker.id.as_str().len() - 4..];
                let row = lines.iter().find(|line| line.contains("│> "));
                assert!(
                    row.is_some_and(|row| row.contains(number)),
                    "{number}\n{text}"
                );
                assert!(
                    text.contains(&format!("{}", worker.id)),
                    "the title has all of it\n{text}"
                );
                let others = lines
                    .iter()
                    .filter(|line| line.contains("│  rollout"))
                    .count();
                assert!(others >= 1, "more than one at a time\n{text}");
                for part in [
                    "running",
                    "about 96.0 s left",
                    "2 scored",
                    "STALLED for 4.0 s",
                    "message 20",
                ] {
                    let mut words = part.split(' ');
                    assert!(words.all(|word| text.contains(word)), "{part}\n{text}");
                }
                for key in [
                    "d drain",
                    "r restart",
                    "p pause",
                    "c ",
                    "D drain run",
                    "S stop",
                    "q quit",
                ] {
                    let last = lines.last().unwrap();
                    assert!(last.contains(key), "{key}: {last}");
                }
                top.handle(Input::Key(Key::Down));
            }
        }
    }

    #[test]
    fn the_smallest_terminals_do_not_break_it() {
        for height in [1, 5, 12] {
            assert_eq!(shown(&top(), height).len(), usize::from(height));
        }
    }
}
