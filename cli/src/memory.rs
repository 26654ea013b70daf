//! What the allocator keeps of freed memory.

/// Gives it back to the system, for this thread and for those that compute with it. Allocators keep
/// freed memory by thread; a role that computes on other threads, or in other sizes, would not get it.
pub(crate) fn give_back() {
    collect();
    rayon::broadcast(|_| collect());
}

fn collect() {
    // SAFETY: it frees what is free already, of the calling thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
