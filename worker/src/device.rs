//! One thread for everything that computes on a device.
//!
//! Models live on that thread, so no lock guards them, and the threads that serve
//! the network never wait for a tensor.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait; more callers wait themselves.
const JOBS_MAX: usize = 64;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

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

/// Runs jobs one by one on state that only it sees.
#[derive(Debug)]
pub struct DeviceThread<S> {
    jobs: mpsc::Sender<Job<S>>,
}

impl<S> Clone for DeviceThread<S> {
    fn clone(&self) -> Self {
        Self {
            jobs: self.jobs.clone(),
        }
    }
}

impl<S: 'static> DeviceThread<S> {
    /// Starts the thread, makes its state there and waits until that is done.
    /// The thread ends when all handles are gone.
    ///
    /// # Errors
    ///
    /// What `make` returns, inside; a [`DeviceError`] if it panics.
    pub async fn start<E: Send + 'static>(
        make: impl FnOnce() -> Result<S, E> + Send + 'static,
    ) -> Result<Result<Self, E>, DeviceError> {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let (made, is_made) = oneshot::channel();
        std::thread::Builder::new()
            .name("device".into())
            .spawn(move || work(make, made, queue))?;
        let outcome = is_made.await.map_err(|_| DeviceError::Ended)?;
        Ok(outcome?.map(|()| Self { jobs }))
    }

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
        let (sender, answer) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            if sender.is_closed() {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(|| job(state)));
            let _ = sender.send(result.map_err(|panic| DeviceError::Panicked(describe(&*panic))));
        });
        self.jobs.send(job).await.map_err(|_| DeviceError::Ended)?;
        answer.await.map_err(|_| DeviceError::Ended)?
    }
}

fn work<S, E>(
    make: impl FnOnce() -> Result<S, E>,
    made: oneshot::Sender<Result<Result<(), E>, DeviceError>>,
    mut queue: mpsc::Receiver<Job<S>>,
) {
    match catch_unwind(AssertUnwindSafe(make)) {
        Err(panic) => drop(made.send(Err(DeviceError::Panicked(describe(&*panic))))),
        Ok(Err(error)) => drop(made.send(Ok(Err(error)))),
        Ok(Ok(mut state)) => {
            let _ = made.send(Ok(Ok(())));
            while let Some(job) = queue.blocking_recv() {
                job(&mut state);
            }
        }
    }
}

fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_share_the_threads_state_and_survive_a_panic() {
        let device = DeviceThread::start(|| Ok::<_, ()>(vec![1]))
            .await
            .unwrap()
            .unwrap();
        device.run(|state| state.push(2)).await.unwrap();
        let error = device.run(|_| panic!("shape {}", 3)).await.unwrap_err();
        assert!(error.to_string().contains("shape 3"), "{error}");
        assert_eq!(device.run(|state| state.clone()).await.unwrap(), [1, 2]);
    }

    #[tokio::test]
    async fn failure_to_load_is_the_callers_error() {
        let failed = DeviceThread::<()>::start(|| Err("no weights"))
            .await
            .unwrap();
        assert_eq!(failed.unwrap_err(), "no weights");
        let panicked =
            DeviceThread::<()>::start(|| -> Result<(), ()> { panic!("bad config") }).await;
        assert!(matches!(panicked, Err(DeviceError::Panicked(text)) if text == "bad config"));
    }
}
