//! Sharing work among the threads of the current rayon pool.
#![expect(unsafe_code, reason = "tasks write disjoint parts of one output")]

use std::marker::PhantomData;

use rayon::prelude::*;

/// How many threads the work may use.
pub(super) fn threads() -> usize {
    rayon::current_num_threads()
}

/// Runs `task(0)`, ..., `task(count - 1)`, on this thread alone where that is all there is.
pub(super) fn each(count: usize, task: impl Fn(usize) + Sync + Send) {
    if count <= 1 || threads() == 1 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// What `task(0)`, ..., `task(count - 1)` give, in that order.
pub(super) fn map<T: Send>(count: usize, task: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    if count <= 1 || threads() == 1 {
        (0..count).map(task).collect()
    } else {
        (0..count).into_par_iter().with_max_len(1).map(task).collect()
    }
}

/// An output that several tasks fill, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    start: *mut f32,
    length: usize,
    output: PhantomData<&'a mut [f32]>,
}

// SAFETY: parts are only reached by callers who promise that no two overlap.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(output: &'a mut [f32]) -> Self {
        Self { start: output.as_mut_ptr(), length: output.len(), output: PhantomData }
    }

    /// Where the `length` values from `at` on begin, for tasks whose parts lie in between each other's.
    #[inline(always)]
    pub(super) fn pointer(self, at: usize, length: usize) -> *mut f32 {
        assert!(at <= self.length && length <= self.length - at, "a part lies in its output");
        // SAFETY: in bounds.
        unsafe { self.start.add(at) }
    }

    /// The `length` values from `at` on.
    ///
    /// # Safety
    /// No other part that is alive at the same time overlaps this one.
    #[inline(always)]
    pub(super) unsafe fn part(self, at: usize, length: usize) -> &'a mut [f32] {
        assert!(at <= self.length && length <= self.length - at, "a part lies in its output");
        // SAFETY: in bounds, and by the caller's promise borrowed only once.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), length) }
    }
}
