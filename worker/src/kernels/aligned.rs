//! Memory that starts on a cache line.
#![expect(unsafe_code, reason = "memory is allocated as cache lines and used as plain numbers")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

/// One cache line, which is also one 512-bit vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: bytes may be zeros.
unsafe impl Zeroable for Line {}

/// Some values that start on a cache line, so that a row of a whole number of lines has no vector that
/// lies across two of them.
pub(super) struct Aligned<T> {
    lines: Vec<Line>,
    length: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// So many zeros, of which the system gives memory as they are first touched.
    pub(super) fn zeroed(length: usize) -> Self {
        let lines = (length * size_of::<T>()).div_ceil(size_of::<Line>());
        Self { lines: bytemuck::allocation::zeroed_vec(lines), length, values: PhantomData }
    }

    /// Makes it `length` values long, of which there is [room](Self::room) for so many: whatever was there, or
    /// zeros.
    pub(super) fn resize(&mut self, length: usize) {
        assert!(length <= self.room(), "room for so many values");
        self.length = length;
    }

    /// How long it can be where it lies.
    pub(super) fn room(&self) -> usize {
        self.lines.len() * size_of::<Line>() / size_of::<T>()
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: any bytes are values of a `Pod` type, which is aligned to less than a line; and
        // there are enough lines.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length) }
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length) }
    }
}
