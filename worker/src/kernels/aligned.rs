//! Memory that starts on a cache line.
#![expect(unsafe_code, reason = "memory is allocated as cache lines and used as plain numbers")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

/// One cache line, which is also one 512-bit vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Some values that start on a cache line, so that a row of a whole number of lines has no vector that
/// lies across two of them.
pub(super) struct Aligned<T> {
    lines: Vec<Line>,
    length: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// So many zeros.
    pub(super) fn zeroed(length: usize) -> Self {
        let lines = vec![Line([0; 64]); (length * size_of::<T>()).div_ceil(size_of::<Line>())];
        Self { lines, length, values: PhantomData }
    }

    /// Makes it `length` values long. Those it had before are kept as far as they go.
    pub(super) fn grow(&mut self, length: usize) {
        let lines = (length * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 64]));
        }
        self.length = length;
    }

    /// How long it can grow where it lies.
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
