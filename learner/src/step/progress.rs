use std::ops::ControlFlow;
use std::sync::Mutex;

use super::StepError;

/// How far this rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepProgress {
    /// Pairs done.
    pub done: usize,
    /// Pairs of this rank.
    pub total: usize,
}

/// Is shown how far a rank is, and may answer `Break` to stop it.
pub type Observer<'a> = dyn FnMut(StepProgress) -> ControlFlow<()> + Send + 'a;

/// Counts the pairs of all lanes and asks the observer before more are begun.
pub(super) struct Progress<'a, 'o> {
    total: usize,
    done: Mutex<(usize, &'a mut Observer<'o>)>,
}

impl<'a, 'o> Progress<'a, 'o> {
    pub(super) fn new(total: usize, observe: &'a mut Observer<'o>) -> Self {
        let done = Mutex::new((0, observe));
        Self { total, done }
    }

    /// Asks whether `pairs` more may be begun.
    pub(super) fn advance(&self, pairs: usize) -> Result<(), StepError> {
        let (done, observe) = &mut *self.done.lock().expect("a panic ends all lanes");
        let answer = observe(StepProgress {
            done: *done,
            total: self.total,
        });
        *done += pairs;
        match answer {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(StepError::Cancelled),
        }
    }
}
