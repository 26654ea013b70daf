//! How far counted work is: a bar in a terminal; elsewhere a line with the time now and then.

use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    exit::complain,
    output::remark,
    show::{clock_now, duration},
};

/// The bar leaves a narrow terminal room for its message, which is cut where it ends.
const TEMPLATE: &str = "{prefix:<10} {bar:16} {pos:>4}/{len:<4} about {eta} left  {wide_msg}";
/// A line comes with each such part of the work,
const PARTS: u64 = 20;
/// but not sooner than this after the last one,
const PAUSE_MIN_S: f64 = 2.0;
/// and with any progress after this.
const PAUSE_MAX_S: f64 = 300.0;
const NOTED_EVERY: Duration = Duration::from_secs(1);

/// Where lines go that a terminal has no bar for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// Standard output, for work whose result lies elsewhere: whatever it is redirected to has them, bar or not.
    Output,
    /// Standard error, for work whose result is printed.
    Error,
}

/// Work that is under way.
pub(crate) struct Meter {
    bar: ProgressBar,
    unit: &'static str,
    all: u64,
    lines: Lines,
    started: Instant,
    told: Mutex<Told>,
    noted: Option<Box<dyn Fn(u64) + Send + Sync>>,
}

/// What was said last.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    done: u64,
    at_s: f64,
    noted: Option<Instant>,
}

impl Meter {
    /// `what` is being done ("evaluating") with so many of `unit` ("pairs").
    pub(crate) fn new(what: &'static str, unit: &'static str, all: u64, lines: Lines) -> Self {
        Self::drawn_on(ProgressDrawTarget::stderr(), what, unit, all, lines)
    }

    fn drawn_on(
        target: ProgressDrawTarget,
        what: &'static str,
        unit: &'static str,
        all: u64,
        lines: Lines,
    ) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE);
        let bar = ProgressBar::with_draw_target(Some(all), target)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_prefix(what);
        Self {
            bar,
            unit,
            all,
            lines,
            started: Instant::now(),
            told: Mutex::default(),
            noted: None,
        }
    }

    /// Has `note` called with what is done, now, and then once a second at most.
    pub(crate) fn noting(mut self, note: impl Fn(u64) + Send + Sync + 'static) -> Self {
        note(0);
        self.noted = Some(Box::new(note));
        self
    }

    /// One more is done.
    pub(crate) fn advance(&self) {
        self.bar.inc(1);
        self.tell(self.bar.position(), None);
    }

    /// So many are done; `message` says more about them. `always` has a line for it whatever came before.
    pub(crate) fn set(&self, done: u64, message: &str, always: Always) {
        self.bar.set_position(done);
        self.bar.set_message(message.to_owned());
        self.tell(done, Some((message, always)));
    }

    /// Takes the bar away; where there are lines, the last one says how long it took.
    pub(crate) fn finish(&self) {
        let what = self.bar.prefix();
        self.bar.finish_and_clear();
        let took = duration(self.started.elapsed().as_secs_f64());
        self.line(&format!(
            "{what}: {} {} in {took}",
            self.bar.position(),
            self.unit
        ));
    }

    fn tell(&self, done: u64, message: Option<(&str, Always)>) {
        let now_s = self.started.elapsed().as_secs_f64();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = told
            .noted
            .is_none_or(|noted| noted.elapsed() >= NOTED_EVERY);
        if let Some(note) = self.noted.as_ref().filter(|_| is_late) {
            note(done);
            told.noted = Some(Instant::now());
        }
        let always = message.is_some_and(|(_, always)| always == Always::Line);
        if !always && !told.is_due(done, self.all, now_s) {
            return;
        }
        (told.done, told.at_s) = (done, now_s);
        let message = message.map_or(String::new(), |(message, _)| format!("  {message}"));
        let left = left(done, self.all, now_s);
        let (what, unit, all) = (self.bar.prefix(), self.unit, self.all);
        self.line(&format!("{what}: {done} of {all} {unit}{message}{left}"));
    }

    fn line(&self, line: &str) {
        let time = clock_now();
        match self.lines {
            Lines::Output if self.bar.is_hidden() || !io::stdout().is_terminal() => {
                remark!("{time}  {line}");
            }
            Lines::Error if self.bar.is_hidden() => complain(format_args!("{time}  {line}")),
            _ => {}
        }
    }
}

/// Whether progress has a line of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Always {
    Line,
    NowAndThen,
}

impl Told {
    fn is_due(&self, done: u64, all: u64, now_s: f64) -> bool {
        let (more, pause_s) = (done.saturating_sub(self.done), now_s - self.at_s);
        let is_part = more >= all.div_ceil(PARTS) && pause_s >= PAUSE_MIN_S;
        is_part || (more > 0 && pause_s >= PAUSE_MAX_S)
    }
}

/// How long the rest takes if it goes on as it went.
fn left(done: u64, all: u64, elapsed_s: f64) -> String {
    let rest = all.saturating_sub(done);
    if done == 0 || rest == 0 {
        return String::new();
    }
    let left_s = elapsed_s / done as f64 * rest as f64;
    format!(", about {} left", duration(left_s))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use indicatif::TermLike;

    use super::*;
    use crate::fit::width;

    /// A terminal that keeps every line that was drawn.
    #[derive(Debug, Clone)]
    pub(crate) struct Paper {
        pub(crate) columns: u16,
        pub(crate) lines: Arc<Mutex<Vec<String>>>,
    }

    impl Paper {
        pub(crate) fn new(columns: u16) -> Self {
            let lines = Arc::default();
            Self { columns, lines }
        }

        pub(crate) fn target(&self) -> ProgressDrawTarget {
            ProgressDrawTarget::term_like(Box::new(self.clone()))
        }

        /// The widest line, in columns.
        pub(crate) fn widest(&self) -> usize {
            let lines = self.lines.lock().unwrap();
            let lines = lines.iter().flat_map(|text| text.split('\n'));
            lines.map(|line| width(line.trim_end())).max().unwrap_or(0)
        }
    }

    impl TermLike for Paper {
        fn width(&self) -> u16 {
            self.columns
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, line: &str) -> io::Result<()> {
            self.write_str(line)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.lines.lock().unwrap().push(text.to_owned());
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bar_is_one_line_of_a_narrow_terminal() {
        for columns in [80, 60] {
            let paper = Paper::new(columns);
            let meter = Meter::drawn_on(paper.target(), "evaluating", "pairs", 4096, Lines::Error);
            let message = "loss 0.1234  grad 12.345  held-out 0.1234  and still more to be said";
            meter.set(4000, message, Always::NowAndThen);
            meter.bar.tick();
            let widest = paper.widest();
            assert!(
                widest > 40 && widest <= usize::from(columns),
                "{columns}: {widest}"
            );
        }
    }

    #[test]
    fn lines_come_with_parts_of_the_work_and_at_least_every_few_minutes() {
        let told = Told {
            done: 10,
            at_s: 100.0,
            noted: None,
        };
        for (done, now_s, due) in [
            (12, 102.5, false),
            (15, 102.5, true),
            (15, 101.0, false),
            (11, 399.0, false),
            (11, 400.0, true),
            (10, 900.0, false),
        ] {
            assert_eq!(told.is_due(done, 100, now_s), due, "{done} {now_s}");
        }
    }

    #[test]
    fn the_rest_takes_as_long_as_what_is_done() {
        assert_eq!(left(12, 64, 24.0), ", about 104.0 s left");
        assert_eq!(
            (left(0, 64, 24.0), left(64, 64, 24.0)),
            (String::new(), String::new())
        );
    }

    #[test]
    fn whoever_looks_on_hears_of_the_beginning() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = heard.clone();
        let meter = Meter::new("evaluating", "pairs", 3, Lines::Error)
            .noting(move |done| hears.lock().unwrap().push(done));
        meter.advance();
        meter.advance();
        assert_eq!(*heard.lock().unwrap(), [0, 1], "the second came too soon");
    }
}
