//! Working memory that a thread keeps between calls.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use super::aligned::Aligned;

thread_local! {
    static KEPT: RefCell<Vec<Aligned<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that starts on a cache line; its contents are whatever was left there.
///
/// It is taken from the thread and goes back when dropped, so kernels that meet on one thread
/// (while one waits for its tasks, the thread runs another's) have a buffer each.
pub(super) struct Scratch(Option<Aligned<f32>>);

impl Scratch {
    /// A buffer of `length` values: the smallest that is kept and has room, or else a new one in place of the largest.
    pub(super) fn take(length: usize) -> Self {
        let kept = KEPT.with_borrow_mut(|kept| {
            let has_room = |at: &usize| kept[*at].room() >= length;
            let smallest = (0..kept.len()).filter(has_room).min_by_key(|at| kept[*at].room());
            let largest = || (0..kept.len()).max_by_key(|at| kept[*at].room());
            smallest.or_else(largest).map(|at| kept.swap_remove(at))
        });
        // What a smaller one holds is not wanted: it goes before a larger one comes.
        let enough = kept.filter(|values| values.room() >= length);
        let mut values = enough.unwrap_or_else(|| Aligned::zeroed(length));
        values.resize(length);
        Self(Some(values))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let values = self.0.take();
        KEPT.with_borrow_mut(|kept| kept.extend(values));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_deref().expect("taken only when dropped")
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.0.as_deref_mut().expect("taken only when dropped")
    }
}
