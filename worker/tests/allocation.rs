//! A call that is not the first takes no memory from the system's allocator but for small change.
#![expect(unsafe_code, reason = "an allocator that counts is an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use worker::model::checkpoint::Checkpoint;
use worker::model::exchange::Dense;
use worker::model::files::ModelFiles;
use worker::model::tensor::{Memory, Tensor};

/// Biases, scales and shifts of a layer, and what describes its tensors, are no larger.
const SMALL: usize = 16 << 10;

static LARGE: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: memory is the system allocator's; counting takes none.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TOTAL.fetch_add(layout.size(), Ordering::Relaxed);
        if layout.size() > SMALL {
            LARGE.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_steady_call_allocates_small_change_only() {
    let checkpoint =
        Checkpoint::load(&ModelFiles::Builtin, protocol::job::Dtype::Auto).expect("built in");
    let memory = Memory::default();
    let text = [checkpoint.embed("red apple", &memory).expect("a prompt")];
    let conditioning =
        checkpoint.condition(checkpoint.unet(), &text, 256, 256).expect("conditions");
    let latent = Tensor::new(&memory, &[0.5; 32 * 32 * 8], [1, 32, 32, 8]).expect("a latent");
    let call = || {
        let before = [&LARGE, &TOTAL].map(|count| count.load(Ordering::Relaxed));
        checkpoint.unet().forward(&latent, 500.0, &conditioning, &mut Dense).expect("a prediction");
        let after = [&LARGE, &TOTAL].map(|count| count.load(Ordering::Relaxed));
        [after[0] - before[0], after[1] - before[1]]
    };
    let first = call();
    // Which of the threads does what is chance: by now each has done everything.
    call();
    let third = call();
    println!("the first call: {first:?} large allocations and bytes in all; the third: {third:?}");
    assert!(first[0] > 0, "the first finds no memory to use again, or nothing is counted");
    assert_eq!(third[0], 0, "large allocations of a steady call");
}
