//! Work that is bound by memory: each value is moved once, with little or nothing done to it.
#![expect(unsafe_code, reason = "tasks write disjoint parts of one output")]

use super::isa::Isa;
use super::math::{Function, Swish};
use super::simd::{Kernel, Simd};
use super::tasks::{self, Shared};

/// Values a task takes.
const TASK_VALUES: usize = 64 * 1024;

/// `x * sigmoid(x)`.
///
/// # Panics
/// When the slices differ in length.
pub fn silu(isa: Isa, out: &mut [f32], x: &[f32]) {
    assert_eq!(out.len(), x.len(), "an output like the input");
    rows(out, 1, |at, out| isa.run(Silu { x: &x[at..][..out.len()], out }));
}

/// `a + b`.
///
/// # Panics
/// When the slices differ in length.
pub fn add(isa: Isa, out: &mut [f32], a: &[f32], b: &[f32]) {
    assert!(out.len() == a.len() && out.len() == b.len(), "slices of one length");
    rows(out, 1, |at, out| {
        let here = at..at + out.len();
        isa.run(Add { out, a: &a[here.clone()], b: &b[here] });
    });
}

/// Puts the `ca` channels of each pixel of `a` before the `cb` channels of the same one of `b`.
///
/// # Panics
/// When the slices do not hold the same number of pixels.
pub fn concat_channels(out: &mut [f32], a: &[f32], ca: usize, b: &[f32], cb: usize) {
    let pixels = out.len() / (ca + cb);
    assert!(a.len() == pixels * ca && b.len() == pixels * cb, "{pixels} pixels on both sides");
    assert_eq!(out.len(), pixels * (ca + cb), "whole pixels");
    rows(out, ca + cb, |at, out| {
        let first = at / (ca + cb);
        for (pixel, out) in (first..).zip(out.chunks_exact_mut(ca + cb)) {
            out[..ca].copy_from_slice(&a[pixel * ca..][..ca]);
            out[ca..].copy_from_slice(&b[pixel * cb..][..cb]);
        }
    });
}

/// Doubles each pixel of `x`, `[batch, rows, width, channels]`, both ways.
///
/// # Panics
/// When the sizes are not those of the slices.
pub fn upsample2x_nearest(
    out: &mut [f32],
    x: &[f32],
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
) {
    let row = width * channels;
    assert_eq!(x.len(), batch * height * row, "an image of the size given");
    assert_eq!(out.len(), 4 * x.len(), "an output of four times the size");
    rows(out, 4 * row, |at, out| {
        let first = at / 4;
        let sources = x[first..first + out.len() / 4].chunks_exact(row);
        for (out, x) in out.chunks_exact_mut(4 * row).zip(sources) {
            let (upper, lower) = out.split_at_mut(2 * row);
            for (pair, x) in upper.chunks_exact_mut(2 * channels).zip(x.chunks_exact(channels)) {
                let (left, right) = pair.split_at_mut(channels);
                left.copy_from_slice(x);
                right.copy_from_slice(x);
            }
            lower.copy_from_slice(upper);
        }
    });
}

/// Runs `task` with parts of the output that begin and end between rows of `row` values, and with
/// where each begins.
fn rows(out: &mut [f32], row: usize, task: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let length = out.len();
    let chunk = (TASK_VALUES / row.max(1)).max(1) * row.max(1);
    let out = Shared::new(out);
    tasks::each(length.div_ceil(chunk), |i| {
        let at = i * chunk;
        // SAFETY: chunks do not overlap.
        task(at, unsafe { out.part(at, chunk.min(length - at)) });
    });
}

struct Silu<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
}

impl Kernel for Silu<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (out, x) in self.out.chunks_mut(S::LANES).zip(self.x.chunks(S::LANES)) {
            s.write_some(out, Swish::SILU.of(s, s.read_some(x)));
        }
    }
}

struct Add<'a> {
    out: &'a mut [f32],
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.a.chunks(S::LANES).zip(self.b.chunks(S::LANES));
        for (out, (a, b)) in self.out.chunks_mut(S::LANES).zip(inputs) {
            s.write_some(out, s.add(s.read_some(a), s.read_some(b)));
        }
    }
}
