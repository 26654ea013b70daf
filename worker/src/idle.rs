//! When a role has nothing to do.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::sync::watch;

/// Counts what a role is at; clones count together.
#[derive(Clone, Debug)]
pub struct AtWork(Arc<watch::Sender<usize>>);

/// Something that a role is at, until it is dropped.
#[derive(Debug)]
pub struct Busy(Arc<watch::Sender<usize>>);

impl Default for AtWork {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl AtWork {
    /// There is one thing more to do.
    pub fn begin(&self) -> Busy {
        self.0.send_modify(|count| *count += 1);
        Busy(self.0.clone())
    }

    /// Calls `rest` whenever there was something to do and then nothing for `pause`. Never ends by itself.
    pub async fn rest_after<F: Future>(
        &self,
        pause: Duration,
        mut rest: impl FnMut() -> F,
    ) -> Infallible {
        let mut count = self.0.subscribe();
        loop {
            until(&mut count, |count| count > 0).await;
            until(&mut count, |count| count == 0).await;
            tokio::select! {
                () = until(&mut count, |count| count > 0) => {}
                () = tokio::time::sleep(pause) => drop(rest().await),
            }
        }
    }
}

async fn until(count: &mut watch::Receiver<usize>, met: impl Fn(usize) -> bool) {
    let met = count.wait_for(|count| met(*count)).await;
    met.expect("whoever waits has a sender too");
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::ready,
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
        task::Poll,
    };

    use super::*;

    /// Lets the future go as far as it can.
    async fn advance(mut future: std::pin::Pin<&mut impl Future>) {
        std::future::poll_fn(|context| {
            assert!(future.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
    }

    /// How often there was rest, after the given begins and ends.
    async fn rests(pause: Duration, steps: &[&[i8]]) -> Vec<usize> {
        let (at_work, count) = (AtWork::default(), AtomicUsize::new(0));
        let rest = || ready(count.fetch_add(1, Ordering::Relaxed));
        let mut resting = pin!(at_work.rest_after(pause, rest));
        let (mut busy, mut rests) = (Vec::new(), Vec::new());
        for step in steps {
            for change in *step {
                match change {
                    1 => busy.push(at_work.begin()),
                    _ => drop(busy.pop()),
                }
                advance(resting.as_mut()).await;
            }
            // Timers are looked at when the runtime is.
            tokio::time::sleep(Duration::from_millis(2)).await;
            advance(resting.as_mut()).await;
            rests.push(count.load(Ordering::Relaxed));
        }
        rests
    }

    #[tokio::test]
    async fn there_is_rest_once_after_all_work() {
        let steps: [&[i8]; 5] = [&[], &[1, 1, -1], &[-1], &[], &[1, -1]];
        assert_eq!(rests(Duration::ZERO, &steps).await, [0, 0, 1, 1, 2]);
    }

    #[tokio::test]
    async fn there_is_no_rest_in_a_short_pause() {
        let steps: [&[i8]; 3] = [&[1, -1], &[1, -1], &[]];
        let hour = Duration::from_secs(3600);
        assert_eq!(rests(hour, &steps).await, [0, 0, 0]);
    }
}
