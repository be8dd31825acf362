//! Runs a target on an input, and holds it to a bound on its memory.
//!
//! The targets themselves are in the workspace (`tests::fuzzing`), where `cargo test` runs them on all
//! inputs that are kept. Only a fuzzer's process is its own, so only here memory can be counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub use libfuzzer_sys;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts what is held, and the most that ever was.
struct Counting;

fn take(bytes: usize) {
    let held = HELD.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(held, Relaxed);
}

// SAFETY: memory is the system allocator's; counting takes none.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `target` on `data`.
///
/// # Panics
/// If the target does, or holds more than `bytes_max` at once beyond what was held before.
pub fn run(target: fn(&[u8]), data: &[u8], bytes_max: usize) {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    target(data);
    let most = MOST.load(Relaxed) - before;
    assert!(most <= bytes_max, "{} bytes made it hold {most}, over {bytes_max}", data.len());
}

/// The fuzzer of a target of `tests::fuzzing` that may hold so many bytes.
#[macro_export]
macro_rules! fuzz {
    ($target:ident, $bytes_max:expr) => {
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| {
            $crate::run(tests::fuzzing::$target, data, $bytes_max);
        });
    };
}
