//! A handful of values, the least recently used leaving first.

/// A cache that is searched from end to end: for few and heavy values.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    /// The most recently used is last.
    entries: Vec<(K, V)>,
    capacity: usize,
}

impl<K: PartialEq, V: Clone> Lru<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity + 1),
            capacity,
        }
    }

    /// The cached value, or the one that `make` gives.
    pub(crate) fn get_or<E>(
        &mut self,
        key: K,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, E> {
        let found = self.entries.iter().position(|(held, _)| *held == key);
        let value = match found {
            Some(index) => self.entries.remove(index).1,
            None => make()?,
        };
        self.entries.push((key, value.clone()));
        if self.entries.len() > self.capacity {
            self.entries.remove(0);
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_used_leaves_first() {
        let mut cache = Lru::new(2);
        let mut get = |key| cache.get_or(key, || Ok::<_, ()>(key * 10)).unwrap();
        assert_eq!([get(1), get(2), get(1), get(3)], [10, 20, 10, 30]);
        let mut is_held = |key| cache.get_or(key, || Err(())).is_ok();
        assert!(is_held(1) && is_held(3) && !is_held(2));
    }
}
