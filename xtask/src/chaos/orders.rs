//! The commands that people give to a run, and what they answer.

use std::{
    fmt,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::plan::Order;

/// What is asked of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Question {
    Order {
        order: Order,
        kill_ms: Option<u64>,
    },
    /// The end of a pause.
    Resume,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) question: Question,
    /// The run's state and its last committed iteration, right before.
    pub(crate) state_before: Option<String>,
    pub(crate) committed_before: Option<u64>,
    /// The exit code.
    code: Option<i32>,
    /// The run's state after it.
    pub(crate) state: Option<String>,
    /// In words.
    message: String,
}

impl Answer {
    pub(crate) fn is_obeyed(&self) -> bool {
        self.code == Some(0)
    }

    /// The end of a pause is asked for until it comes.
    pub(crate) fn is_asked_again(&self) -> bool {
        matches!(self.question, Question::Resume) && !self.is_obeyed()
    }
}

/// Looks at the run, then asks.
pub(crate) fn ask(retouch: &Path, run: &Path, question: Question) -> Answer {
    let before = json(Command::new(retouch).args(["status", "--json"]).arg(run));
    let before = before.unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let output = Command::new(retouch)
        .args(words(question))
        .arg("--json")
        .arg(run)
        .args(worker(question))
        .stdin(Stdio::null())
        .output();
    let (code, answer, problem) = match output {
        Ok(output) => (
            output.status.code(),
            serde_json::from_slice(&output.stdout).unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ),
        Err(error) => (None, Value::Null, error.to_string()),
    };
    Answer {
        question,
        state_before: text(&before["state"]),
        committed_before: before["committed"].as_u64(),
        code,
        state: text(&answer["state"]),
        message: text(&answer["message"]).unwrap_or(problem),
    }
}

fn words(question: Question) -> &'static [&'static str] {
    match question {
        Question::Resume => &["resume"],
        Question::Order { order, .. } => match order {
            Order::Stop => &["stop"],
            Order::Drain | Order::DrainWorker(_) => &["drain"],
            Order::Pause { .. } => &["pause"],
            Order::RestartWorker(_) => &["restart"],
            Order::Checkpoint => &["checkpoint", "--timeout-s", "20"],
        },
    }
}

fn worker(question: Question) -> Option<String> {
    match question {
        Question::Order {
            order: Order::DrainWorker(worker) | Order::RestartWorker(worker),
            ..
        } => Some(worker.to_string()),
        _ => None,
    }
}

/// What each iteration left behind.
pub(crate) fn versions(retouch: &Path, run: &Path) -> Vec<Value> {
    let versions = json(Command::new(retouch).args(["versions", "--json"]).arg(run));
    let versions = versions.as_ref().and_then(Value::as_array);
    versions.cloned().unwrap_or_default()
}

/// The run as people see it.
pub(crate) fn status(retouch: &Path, run: &Path) -> String {
    let output = Command::new(retouch).arg("status").arg(run).output();
    output.map_or_else(
        |error| error.to_string(),
        |output| {
            let texts = [output.stdout, output.stderr];
            texts
                .map(|text| String::from_utf8_lossy(&text).into_owned())
                .concat()
        },
    )
}

fn json(command: &mut Command) -> Option<Value> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.question {
            Question::Resume => f.write_str("resume")?,
            Question::Order { order, .. } => write!(f, "{order}")?,
        }
        match self.code {
            Some(0) => write!(f, ": answered, {:?}", self.message),
            code => write!(f, ": not answered ({code:?}), {:?}", self.message),
        }
    }
}
