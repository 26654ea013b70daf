//! What happened in a simulated run, told line by line.

use std::cell::RefCell;
use std::rc::Rc;

/// Lines of a run, if somebody wants to read them; shared, so that they outlive a run that fails.
#[derive(Clone, Default)]
pub(super) struct Story(Option<Rc<RefCell<Vec<String>>>>);

impl Story {
    /// A story that is kept.
    pub(super) fn kept() -> Self {
        Self(Some(Rc::default()))
    }

    /// Adds a line: when, who, what.
    pub(super) fn tell(&self, at_ms: u64, who: &str, what: impl FnOnce() -> String) {
        if let Some(lines) = &self.0 {
            let line = format!("{:9.3} s  {who:<12} {}", at_ms as f64 / 1e3, what());
            lines.borrow_mut().push(line);
        }
    }

    /// All lines so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.0
            .as_ref()
            .map_or_else(Vec::new, |lines| lines.borrow().clone())
    }
}
