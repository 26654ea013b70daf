//! Text that fits the terminal: how large that is, and lines broken or cut to its width.

use std::io::{self, IsTerminal};

use ratatui::{termion::terminal_size, text::Span};

/// Columns and rows that text may take; without a limit where nobody looks at a screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

impl Room {
    /// As much as there is.
    pub(crate) const UNLIMITED: Self = Self {
        columns: usize::MAX,
        rows: usize::MAX,
    };

    /// Standard output's: what `COLUMNS` and `LINES` say, else the terminal's size.
    pub(crate) fn of_stdout() -> Self {
        let terminal = io::stdout()
            .is_terminal()
            .then(|| terminal_size().ok())
            .flatten();
        let variable = |name| std::env::var(name).ok();
        Self::of(variable("COLUMNS"), variable("LINES"), terminal)
    }

    fn of(columns: Option<String>, rows: Option<String>, terminal: Option<(u16, u16)>) -> Self {
        // A terminal that does not know its size says 0.
        let given = |text: Option<String>| text?.parse().ok().filter(|&size: &usize| size > 0);
        let known = |size: Option<u16>| size.map(usize::from).filter(|size| *size > 0);
        let columns = given(columns).or(known(terminal.map(|(columns, _)| columns)));
        let rows = given(rows).or(known(terminal.map(|(_, rows)| rows)));
        Self {
            columns: columns.unwrap_or(Self::UNLIMITED.columns),
            rows: rows.unwrap_or(Self::UNLIMITED.rows),
        }
    }
}

/// The columns that a text takes.
pub(crate) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Breaks a text between words so that no line is wider than `columns`; lines after the first begin with `indent`. Spaces
/// within a line stay as they are. A word that is wider than a line is broken, too.
pub(crate) fn wrap(text: &str, columns: usize, indent: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_inclusive(' ') {
        let mut word = word;
        loop {
            let last = lines.last_mut().expect("there is a first one");
            let is_empty = last.trim().is_empty();
            if width(last) + width(word.trim_end()) <= columns {
                last.push_str(word);
                break;
            }
            if is_empty {
                // No line has room for it; a letter is as little as a line can have.
                let (head, tail) = split_at(word, columns.saturating_sub(width(last)));
                let letter = word.chars().next().map_or(0, char::len_utf8);
                let (head, tail) = match head.is_empty() {
                    true => word.split_at(letter),
                    false => (head, tail),
                };
                last.push_str(head);
                word = tail;
            }
            lines.push(indent.to_owned());
        }
    }
    lines
        .iter()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// Cuts a text in its middle if it is too wide: names that belong together differ at their ends.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let kept = columns.saturating_sub(1);
    let (head, _) = split_at(text, kept / 2);
    let tail_columns = kept - width(head);
    let starts = text.char_indices().map(|(start, _)| &text[start..]);
    let tail = starts.into_iter().find(|tail| width(tail) <= tail_columns);
    match columns {
        0 => String::new(),
        _ => format!("{head}…{}", tail.unwrap_or_default()),
    }
}

/// The longest beginning that takes at most that many columns, and the rest.
fn split_at(text: &str, columns: usize) -> (&str, &str) {
    let ends = text.char_indices().map(|(start, c)| start + c.len_utf8());
    let end = ends
        .take_while(|&end| width(&text[..end]) <= columns)
        .last();
    text.split_at(end.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_go_before_the_terminal_and_nothing_is_no_limit() {
        let text = |text: &str| Some(text.to_owned());
        let room = |columns, rows| Room { columns, rows };
        assert_eq!(Room::of(None, None, None), Room::UNLIMITED);
        assert_eq!(Room::of(None, None, Some((80, 24))), room(80, 24));
        assert_eq!(Room::of(text("60"), None, Some((80, 24))), room(60, 24));
        assert_eq!(
            Room::of(text("wide"), text("0"), Some((80, 24))),
            room(80, 24)
        );
        assert_eq!(Room::of(None, None, Some((0, 0))), Room::UNLIMITED);
    }

    #[test]
    fn lines_are_broken_between_words_and_long_words_within() {
        assert_eq!(wrap("one two  three", 9, "  "), ["one two", "  three"]);
        assert_eq!(wrap("a bbbbbbbbbb", 6, " "), ["a", " bbbbb", " bbbbb"]);
        assert_eq!(wrap("one two", usize::MAX, ""), ["one two"]);
        assert_eq!(wrap("", 5, ""), [""]);
        for columns in 1..20 {
            let lines = wrap("a worker 編集 with-a-long-name waits", columns, "");
            let widest = lines.iter().map(|line| width(line)).max();
            assert!(widest <= Some(columns.max(2)), "{columns}: {lines:?}");
        }
    }

    #[test]
    fn names_are_cut_in_the_middle() {
        assert_eq!(cut("rollout-worker-17", 17), "rollout-worker-17");
        assert_eq!(cut("rollout-worker-17", 9), "roll…r-17");
        assert_eq!(cut("編集編集編集", 7), "編…編集");
        assert_eq!((cut("abc", 1), cut("abc", 0)), ("…".into(), String::new()));
    }
}
