//! Independent pieces of work side by side, each on one core.
//!
//! A small model's operations are too short to be worth dividing among cores; whole
//! forward and backward passes are not. A lane is a rayon pool of one thread, so
//! that the operations inside run without dividing themselves further. Results
//! come back in the order of the work, so they do not depend on the number of lanes.

use std::sync::Mutex;

use burn::tensor::Device;
use rayon::ThreadPool;
use retouch_models::memory;

/// One-thread pools.
#[derive(Debug)]
pub struct Lanes {
    pools: Vec<ThreadPool>,
}

impl Lanes {
    /// As many lanes as the current rayon pool has threads on the CPU, and one
    /// elsewhere, where the device itself is what is parallel.
    pub fn for_device(device: &Device) -> Self {
        Self::new(match memory::is_host(device) {
            true => rayon::current_num_threads(),
            false => 1,
        })
    }

    /// `count` lanes. One lane works on the calling thread and its pool.
    pub fn new(count: usize) -> Self {
        let count = if count > 1 { count } else { 0 };
        let pool = |_| rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pools = (0..count).map(pool).collect::<Result<_, _>>();
        // Without threads, the calling one does the work.
        Self {
            pools: pools.unwrap_or_default(),
        }
    }

    /// How many lanes there are.
    pub fn count(&self) -> usize {
        self.pools.len().max(1)
    }

    /// Applies `work` to every item; a lane that is free takes the next one.
    pub fn map<T: Send, R: Send>(&self, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        self.map_with(items, || (), |(), item| work(item))
    }

    /// As [`map`](Self::map), with something that each lane makes once for its items.
    pub fn map_with<T: Send, R: Send, S>(
        &self,
        items: Vec<T>,
        start: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, T) -> R + Sync,
    ) -> Vec<R> {
        if self.pools.is_empty() || items.len() < 2 {
            let mut own = start();
            return items.into_iter().map(|item| work(&mut own, item)).collect();
        }
        let results = items.iter().map(|_| None).collect();
        let queue = Queue {
            items: Mutex::new(items.into_iter().enumerate()),
            results: Mutex::new(results),
        };
        std::thread::scope(|scope| {
            for pool in &self.pools {
                let (queue, start, work) = (&queue, &start, &work);
                scope.spawn(move || pool.install(|| queue.drain(start(), work)));
            }
        });
        let results = queue.results.into_inner().expect(POISON);
        results
            .into_iter()
            .map(|r| r.expect("every item was taken from the queue"))
            .collect()
    }
}

const POISON: &str = "a lane that panics ends the scope";

struct Queue<T, R> {
    items: Mutex<std::iter::Enumerate<std::vec::IntoIter<T>>>,
    results: Mutex<Vec<Option<R>>>,
}

impl<T, R> Queue<T, R> {
    fn drain<S>(&self, mut own: S, work: &impl Fn(&mut S, T) -> R) {
        while let Some((index, item)) = self.next() {
            let result = work(&mut own, item);
            self.results.lock().expect(POISON)[index] = Some(result);
        }
    }

    fn next(&self) -> Option<(usize, T)> {
        self.items.lock().expect(POISON).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        for lanes in [1, 2, 3] {
            let squares = Lanes::new(lanes).map((0..100).collect(), |i: u64| i * i);
            assert_eq!(squares, (0..100).map(|i| i * i).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_lane_divides_its_work_no_further() {
        let threads = Lanes::new(2).map(vec![(); 4], |()| rayon::current_num_threads());
        assert_eq!(threads, [1; 4]);
    }
}
