//! Working memory that threads keep between ops, so that the pages are there already.

use std::cell::RefCell;

/// Buffers larger than this many numbers are given back to the allocator.
const KEPT_MAX: usize = 1 << 22;

thread_local! {
    /// A stack, since a thread that waits for tasks may run another op in between.
    static BUFFERS: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `len` numbers of unspecified value.
pub(crate) fn with<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut buffer = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = work(&mut buffer[..len]);
    if buffer.len() <= KEPT_MAX {
        BUFFERS.with_borrow_mut(|buffers| buffers.push(buffer));
    }
    result
}

/// [`with`] for several buffers at once.
pub(crate) fn split<const N: usize, T>(
    lens: [usize; N],
    work: impl FnOnce([&mut [f32]; N]) -> T,
) -> T {
    with(lens.iter().sum(), |mut rest| {
        work(lens.map(|len| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            part
        }))
    })
}
