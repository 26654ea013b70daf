//! What `top` knows and how it changes: inputs in, wishes out. No terminal, no network.

use std::collections::VecDeque;

use retouch_coordinator::Command;
use retouch_proto::{
    WorkerId,
    status::{Event, RunState, RunStatus, WorkerStatus},
};

/// Events kept for the log.
pub(super) const LOG_MAX: usize = 500;
/// Workers that a page key goes past.
const PAGE: isize = 10;

/// Everything on the screen.
#[derive(Debug, Default)]
pub(super) struct Top {
    /// The newest status.
    pub(super) status: Option<RunStatus>,
    /// Why it is not the coordinator's, if that is away.
    pub(super) away: Option<String>,
    /// What happened, oldest first.
    pub(super) log: VecDeque<Event>,
    /// The worker that keys are about.
    pub(super) selected: Option<WorkerId>,
    /// What waits for a yes or no.
    pub(super) asked: Option<Asked>,
    /// What the last command was answered.
    pub(super) note: String,
}

/// A command that is carried out after a yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// The question.
    pub(super) question: String,
    /// The command.
    pub(super) command: Command,
}

/// What can happen to the screen.
#[derive(Debug)]
pub(super) enum Input {
    /// A new status.
    Status(Box<RunStatus>),
    /// The coordinator does not answer.
    Away(String),
    /// Something happened in the run.
    Event(Event),
    /// A command was answered.
    Answer(String),
    /// A key was pressed.
    Key(Key),
}

/// Keys that mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Char(char),
    Escape,
}

/// What is to be done about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Tell the coordinator.
    Tell(Command),
    /// End.
    Quit,
}

impl Top {
    pub(super) fn handle(&mut self, input: Input) -> Option<Wish> {
        match input {
            Input::Status(status) => self.take_status(*status),
            Input::Away(reason) => self.away = Some(reason),
            Input::Event(event) => self.take_event(event),
            Input::Answer(answer) => self.note = answer,
            Input::Key(key) => return self.press(key),
        }
        None
    }

    fn take_status(&mut self, status: RunStatus) {
        let known = |id: &WorkerId| status.workers.iter().any(|worker| worker.id == *id);
        if !self.selected.as_ref().is_some_and(known) {
            self.selected = status.workers.first().map(|worker| worker.id.clone());
        }
        self.status = Some(status);
        self.away = None;
    }

    fn take_event(&mut self, event: Event) {
        if self.log.len() == LOG_MAX {
            self.log.pop_front();
        }
        self.log.push_back(event);
    }

    fn press(&mut self, key: Key) -> Option<Wish> {
        if let Some(asked) = self.asked.take() {
            return (key == Key::Char('y')).then_some(Wish::Tell(asked.command));
        }
        match key {
            Key::Up | Key::Char('k') => self.select(-1),
            Key::Down | Key::Char('j') => self.select(1),
            Key::PageUp => self.select(-PAGE),
            Key::PageDown => self.select(PAGE),
            Key::Home => self.select(-isize::MAX),
            Key::End => self.select(isize::MAX),
            Key::Char('p') => return Some(Wish::Tell(self.pause_or_resume())),
            Key::Char('c') => return Some(Wish::Tell(Command::Checkpoint)),
            Key::Char('d') => self.ask_about_worker("drain", Command::DrainWorker),
            Key::Char('r') => self.ask_about_worker("restart", Command::RestartWorker),
            Key::Char('D') => self.ask("drain the whole run", Command::Drain),
            Key::Char('S') => self.ask("stop the run", Command::Stop),
            Key::Char('q') | Key::Escape => return Some(Wish::Quit),
            Key::Char(_) => {}
        }
        None
    }

    fn pause_or_resume(&self) -> Command {
        match self.status.as_ref().map(|status| status.state) {
            Some(RunState::Paused) => Command::Resume,
            _ => Command::Pause,
        }
    }

    fn ask_about_worker(&mut self, verb: &str, command: fn(WorkerId) -> Command) {
        if let Some(worker) = self.selected.clone() {
            self.ask(&format!("{verb} {worker}"), command(worker));
        }
    }

    fn ask(&mut self, what: &str, command: Command) {
        let question = format!("{what}? y / n");
        self.asked = Some(Asked { question, command });
    }

    fn select(&mut self, by: isize) {
        let count = self.workers().len();
        let row = self.selected_row().unwrap_or(0);
        let row = row.saturating_add_signed(by).min(count.saturating_sub(1));
        self.selected = self.workers().get(row).map(|worker| worker.id.clone());
    }

    /// Everyone who has registered, by name.
    pub(super) fn workers(&self) -> &[WorkerStatus] {
        self.status.as_ref().map_or(&[], |status| &status.workers)
    }

    /// The selected worker's row.
    pub(super) fn selected_row(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.workers()
            .iter()
            .position(|worker| worker.id == *selected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{status::tests::sample, workers::tests::many};

    fn top() -> Top {
        let mut top = Top::default();
        top.handle(Input::Status(Box::new(sample())));
        top
    }

    fn press(top: &mut Top, key: char) -> Option<Wish> {
        top.handle(Input::Key(Key::Char(key)))
    }

    fn selected(top: &Top) -> &str {
        top.selected.as_ref().unwrap().as_str()
    }

    #[test]
    fn the_selection_moves_within_the_table_and_follows_its_worker() {
        let mut top = top();
        assert_eq!(selected(&top), "learner-0");
        top.handle(Input::Key(Key::Up));
        assert_eq!(selected(&top), "learner-0");
        press(&mut top, 'j');
        assert_eq!(selected(&top), "reward-0");
        let mut fewer = sample();
        fewer.workers.remove(0);
        top.handle(Input::Status(Box::new(fewer.clone())));
        assert_eq!((selected(&top), top.selected_row()), ("reward-0", Some(0)));
        fewer.workers.remove(0);
        top.handle(Input::Status(Box::new(fewer)));
        assert_eq!(selected(&top), "rollout-0", "the selected one is gone");
        top.handle(Input::Key(Key::Down));
        assert_eq!(selected(&top), "rollout-0");
    }

    #[test]
    fn pages_and_ends_are_reached_with_a_key() {
        let mut status = sample();
        status.workers = many();
        let ids: Vec<WorkerId> = status.workers.iter().map(|w| w.id.clone()).collect();
        let mut top = Top::default();
        top.handle(Input::Status(Box::new(status)));
        for (key, row) in [
            (Key::PageDown, 10),
            (Key::PageDown, 20),
            (Key::End, 39),
            (Key::PageDown, 39),
            (Key::PageUp, 29),
            (Key::Home, 0),
            (Key::PageUp, 0),
        ] {
            top.handle(Input::Key(key));
            assert_eq!(top.selected.as_ref(), Some(&ids[row]), "{key:?}");
        }
    }

    #[test]
    fn workers_are_drained_and_restarted_after_a_yes_only() {
        let mut top = top();
        assert_eq!(press(&mut top, 'd'), None);
        let worker = WorkerId::new("learner-0").unwrap();
        assert_eq!(
            top.asked.as_ref().unwrap().question,
            "drain learner-0? y / n"
        );
        let wish = press(&mut top, 'y');
        assert_eq!(wish, Some(Wish::Tell(Command::DrainWorker(worker.clone()))));
        press(&mut top, 'r');
        assert_eq!(press(&mut top, 'n'), None);
        assert_eq!(top.asked, None);
        press(&mut top, 'r');
        assert_eq!(
            top.handle(Input::Key(Key::Escape)),
            None,
            "no, and not the end"
        );
        press(&mut top, 'r');
        let wish = press(&mut top, 'y');
        assert_eq!(wish, Some(Wish::Tell(Command::RestartWorker(worker))));
    }

    #[test]
    fn p_pauses_and_resumes() {
        let mut top = top();
        assert_eq!(press(&mut top, 'p'), Some(Wish::Tell(Command::Pause)));
        let mut paused = sample();
        paused.state = RunState::Paused;
        top.handle(Input::Status(Box::new(paused)));
        assert_eq!(press(&mut top, 'p'), Some(Wish::Tell(Command::Resume)));
        assert_eq!(press(&mut top, 'c'), Some(Wish::Tell(Command::Checkpoint)));
        assert_eq!(press(&mut top, 'S'), None);
        assert_eq!(press(&mut top, 'y'), Some(Wish::Tell(Command::Stop)));
        assert_eq!(press(&mut top, 'q'), Some(Wish::Quit));
    }

    #[test]
    fn before_the_first_status_there_is_nobody_to_drain() {
        let mut top = Top::default();
        press(&mut top, 'd');
        top.handle(Input::Key(Key::Down));
        assert_eq!((top.asked, top.selected), (None, None));
    }
}
