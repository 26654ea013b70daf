//! One thread for everything that computes on a device.
//!
//! Jobs run there one by one, so no model needs a lock of its own, and the threads that serve the
//! network never wait for a tensor.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard},
};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::panics::panic_message;

/// Jobs that may wait; more callers wait themselves.
const JOBS_MAX: usize = 64;

/// Something to compute, and the number of the state that it is for.
type Job = (usize, Box<dyn FnOnce() + Send>);

/// A job that was not done.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The thread could not be started.
    #[error("cannot start the device thread: {0}")]
    Start(#[from] std::io::Error),
    /// The job panicked; the thread goes on with the next.
    #[error("panicked on the device thread: {0}")]
    Panicked(String),
    /// The thread has ended.
    #[error("the device thread has ended")]
    Ended,
}

/// A thread that runs jobs one by one; clones are the same thread. It starts with its first job and
/// ends when all handles are gone.
///
/// Roles that share a device share its thread: what they need while they compute need not fit beside
/// each other.
#[derive(Clone, Debug)]
pub struct DeviceThread {
    started: Arc<Mutex<Option<Started>>>,
    between: fn(),
}

#[derive(Debug)]
struct Started {
    jobs: mpsc::Sender<Job>,
    states: usize,
}

impl Default for DeviceThread {
    fn default() -> Self {
        Self::new(|| {})
    }
}

impl DeviceThread {
    /// A thread that calls `between` whenever the next job is for another state than the last: what
    /// the allocator has kept for the one is of no use to the other.
    pub fn new(between: fn()) -> Self {
        Self {
            started: Arc::default(),
            between,
        }
    }

    /// Makes a state on the thread and waits until that is done.
    ///
    /// # Errors
    ///
    /// What `make` returns, inside; a [`DeviceError`] if it panics.
    pub async fn host<S: Send + 'static, E: Send + 'static>(
        &self,
        make: impl FnOnce() -> Result<S, E> + Send + 'static,
    ) -> Result<Result<Hosted<S>, E>, DeviceError> {
        let (jobs, number) = self.enter()?;
        let made = run(&jobs, number, make).await?;
        Ok(made.map(|state| Hosted {
            jobs,
            number,
            state: Arc::new(Mutex::new(state)),
        }))
    }

    /// The thread's queue, and the number of one more state.
    fn enter(&self) -> Result<(mpsc::Sender<Job>, usize), DeviceError> {
        let mut started = self.started.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(started) = &mut *started {
            started.states += 1;
            return Ok((started.jobs.clone(), started.states));
        }
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let between = self.between;
        std::thread::Builder::new()
            .name("device".into())
            .spawn(move || work(queue, between))?;
        *started = Some(Started {
            jobs: jobs.clone(),
            states: 0,
        });
        Ok((jobs, 0))
    }
}

fn work(mut queue: mpsc::Receiver<Job>, between: fn()) {
    let mut last = None;
    while let Some((number, job)) = queue.blocking_recv() {
        if last.is_some_and(|last| last != number) {
            between();
        }
        last = Some(number);
        job();
    }
}

/// A state that only jobs on its device's thread see; clones are the same state.
#[derive(Debug)]
pub struct Hosted<S> {
    jobs: mpsc::Sender<Job>,
    number: usize,
    state: Arc<Mutex<S>>,
}

impl<S> Clone for Hosted<S> {
    fn clone(&self) -> Self {
        Self {
            jobs: self.jobs.clone(),
            number: self.number,
            state: self.state.clone(),
        }
    }
}

impl<S: Send + 'static> Hosted<S> {
    /// Runs a job on the thread and waits for its answer.
    ///
    /// A caller that goes away does not stop a job that has begun, but one that
    /// is still waiting is left out.
    ///
    /// # Errors
    ///
    /// If the job panics or the thread has ended.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, DeviceError> {
        let state = self.state.clone();
        run(&self.jobs, self.number, move || job(&mut locked(&state))).await
    }
}

/// Never waits: only the thread locks, one job at a time.
fn locked<S>(state: &Mutex<S>) -> MutexGuard<'_, S> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

async fn run<T: Send + 'static>(
    jobs: &mpsc::Sender<Job>,
    number: usize,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DeviceError> {
    let (sender, answer) = oneshot::channel();
    let job = Box::new(move || {
        if sender.is_closed() {
            return;
        }
        let result = catch_unwind(AssertUnwindSafe(job));
        let _ = sender.send(result.map_err(|panic| DeviceError::Panicked(panic_message(&*panic))));
    });
    jobs.send((number, job))
        .await
        .map_err(|_| DeviceError::Ended)?;
    answer.await.map_err(|_| DeviceError::Ended)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_share_the_threads_state_and_survive_a_panic() {
        let hosted = DeviceThread::default().host(|| Ok::<_, ()>(vec![1])).await;
        let hosted = hosted.unwrap().unwrap();
        hosted.run(|state| state.push(2)).await.unwrap();
        let error = hosted.run(|_| panic!("shape {}", 3)).await.unwrap_err();
        assert!(error.to_string().contains("shape 3"), "{error}");
        assert_eq!(hosted.run(|state| state.clone()).await.unwrap(), [1, 2]);
    }

    #[tokio::test]
    async fn failure_to_load_is_the_callers_error() {
        let thread = DeviceThread::default();
        let failed = thread.host(|| Err::<(), _>("no weights")).await.unwrap();
        assert_eq!(failed.unwrap_err(), "no weights");
        let panicked = thread
            .host(|| -> Result<(), ()> { panic!("bad config") })
            .await;
        assert!(
            matches!(panicked, Err(DeviceError::Panicked(text)) if text.starts_with("bad config"))
        );
    }

    #[tokio::test]
    async fn states_of_one_device_share_its_thread() {
        let (shared, other) = (DeviceThread::default(), DeviceThread::default());
        let mut threads = Vec::new();
        for thread in [shared.clone(), shared, other] {
            let hosted = thread.host(|| Ok::<_, ()>(())).await.unwrap().unwrap();
            let id = hosted.run(|()| std::thread::current().id()).await.unwrap();
            threads.push(id);
        }
        assert_eq!(threads[0], threads[1]);
        assert_ne!(threads[0], threads[2]);
    }
}
