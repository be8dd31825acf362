//! Linear layers, with what follows them done while their sums are in the cache.
#![expect(unsafe_code, reason = "blocks of the product write disjoint parts of one output")]

use std::ops::Range;

use super::isa::Isa;
use super::math::{Function, Gelu, Identity, Swish};
use super::packed::{PANEL, Packed};
use super::product::{Finish, Rows, product};
use super::simd::Simd;
use super::tasks::Shared;

/// A function applied to each value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x`.
    #[default]
    None,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
}

/// What follows a product: `activation(sum + bias) + residual`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[outputs]`, or `[batch, outputs]` where the rows are split evenly among a batch.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// `[rows, outputs]`, added last.
    pub residual: Option<&'a [f32]>,
}

/// Multiplies the rows of `x`, `[m, depth]`, by a weight: `out` is `[m, outputs]`.
///
/// # Panics
/// When a slice is not as long as the weight and the other slices make it.
pub fn linear(isa: Isa, out: &mut [f32], x: &[f32], w: &Packed, epilogue: &Epilogue<'_>) {
    let x = Tokens::new(x, w.depth());
    product(isa, &x, w, &Output::new(out, x.count(), w, epilogue));
}

/// `hidden * gelu(gate)` of a projection by [`Packed::pack_geglu`], with `bias` `[2 * inner]`, or `[m, 2 * inner]`, for
/// the hidden columns and then their gates: `x` is `[m, depth]`, `out` is `[m, inner]`.
///
/// # Panics
/// When a slice is not as long as the weight and the other slices make it.
pub fn geglu(isa: Isa, out: &mut [f32], x: &[f32], w: &Packed, bias: Option<&[f32]>) {
    let (x, inner) = (Tokens::new(x, w.depth()), w.outputs());
    assert!(w.is_geglu(), "a weight packed for GEGLU");
    assert_eq!(out.len(), x.count() * inner, "an output [{}, {inner}]", x.count());
    let each_row = bias.is_some_and(|bias| bias.len() != 2 * inner);
    let biases = if each_row { x.count() } else { 1 };
    let bias_len = bias.map_or(biases * 2 * inner, <[f32]>::len);
    assert_eq!(bias_len, biases * 2 * inner, "a bias [2 * {inner}] for all rows, or for each");
    product(isa, &x, w, &Gated { out: Shared::new(out), inner, bias, each_row });
}

/// Rows `[m, depth]` that lie one after the other.
struct Tokens<'a> {
    values: &'a [f32],
    depth: usize,
}

impl<'a> Tokens<'a> {
    fn new(values: &'a [f32], depth: usize) -> Self {
        assert_eq!(values.len() % depth, 0, "rows of {depth} values");
        Self { values, depth }
    }
}

impl Rows for Tokens<'_> {
    fn count(&self) -> usize {
        self.values.len() / self.depth
    }

    fn stretch(&self) -> usize {
        self.depth
    }

    #[inline(always)]
    fn part(&self, row: usize, _: usize) -> &[f32] {
        &self.values[row * self.depth..][..self.depth]
    }
}

/// An output `[rows, outputs]` and the epilogue on the way to it.
pub(super) struct Output<'a> {
    out: Shared<'a>,
    outputs: usize,
    rows_per_bias: usize,
    epilogue: &'a Epilogue<'a>,
}

impl<'a> Output<'a> {
    pub(super) fn new(
        out: &'a mut [f32],
        rows: usize,
        w: &Packed,
        epilogue: &'a Epilogue<'a>,
    ) -> Self {
        let outputs = w.outputs();
        assert!(!w.is_geglu(), "a weight not packed for GEGLU");
        assert_eq!(out.len(), rows * outputs, "an output [{rows}, {outputs}]");
        let residual = epilogue.residual.map_or(out.len(), <[f32]>::len);
        assert_eq!(residual, out.len(), "a residual like the output");
        let biases = epilogue.bias.map_or(1, |bias| bias.len() / outputs);
        let whole = epilogue.bias.is_none_or(|bias| bias.len() == biases * outputs && biases > 0);
        assert!(
            whole && rows.is_multiple_of(biases),
            "a bias [{outputs}] for each of an even split"
        );
        Self { out: Shared::new(out), outputs, rows_per_bias: (rows / biases).max(1), epilogue }
    }

    /// # Safety
    /// As for [`Finish::finish`].
    #[inline(always)]
    unsafe fn write<S: Simd, A: Function>(
        &self,
        s: S,
        activation: A,
        (rows, panel): (Range<usize>, usize),
        sums: &[f32],
    ) {
        let first = panel * PANEL;
        let columns = PANEL.min(self.outputs - first);
        for (row, sums) in rows.zip(sums.chunks_exact(PANEL)) {
            let at = row * self.outputs + first;
            // SAFETY: these rows and columns are this call's alone, by the caller's promise.
            let out = unsafe { self.out.part(at, columns) };
            let bias = self
                .epilogue
                .bias
                .map(|bias| &bias[row / self.rows_per_bias * self.outputs + first..][..columns]);
            let residual = self.epilogue.residual.map(|residual| &residual[at..][..columns]);
            for c in (0..columns).step_by(S::LANES) {
                let mut x = s.read(&sums[c..]);
                if let Some(bias) = bias {
                    x = s.add(x, s.read_some(&bias[c..]));
                }
                x = activation.of(s, x);
                if let Some(residual) = residual {
                    x = s.add(x, s.read_some(&residual[c..]));
                }
                s.write_some(&mut out[c..], x);
            }
        }
    }
}

impl Finish for Output<'_> {
    #[inline(always)]
    fn fetch<S: Simd>(&self, s: S, rows: Range<usize>, panel: usize) {
        let columns = PANEL.min(self.outputs - panel * PANEL);
        for row in rows {
            let at = row * self.outputs + panel * PANEL;
            s.prefetch_near(self.out.pointer(at, columns), columns);
            if let Some(residual) = self.epilogue.residual {
                s.prefetch_near(residual[at..].as_ptr(), columns);
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, rows: Range<usize>, panel: usize, sums: &[f32]) {
        let place = (rows, panel);
        // SAFETY: the caller's promise is handed on.
        unsafe {
            match self.epilogue.activation {
                Activation::None => self.write(s, Identity, place, sums),
                Activation::Silu => self.write(s, Swish::SILU, place, sums),
                Activation::Gelu => self.write(s, Gelu, place, sums),
                Activation::QuickGelu => self.write(s, Swish::QUICK_GELU, place, sums),
            }
        }
    }
}

/// An output `[rows, inner]` and the gating on the way to it.
struct Gated<'a> {
    out: Shared<'a>,
    inner: usize,
    bias: Option<&'a [f32]>,
    each_row: bool,
}

impl Finish for Gated<'_> {
    #[inline(always)]
    fn fetch<S: Simd>(&self, s: S, rows: Range<usize>, panel: usize) {
        let first = panel * PANEL / 2;
        let columns = (PANEL / 2).min(self.inner - first);
        for row in rows {
            s.prefetch_near(self.out.pointer(row * self.inner + first, columns), columns);
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, rows: Range<usize>, panel: usize, sums: &[f32]) {
        const HALF: usize = PANEL / 2;
        let first = panel * HALF;
        let columns = HALF.min(self.inner - first);
        for (row, sums) in rows.zip(sums.chunks_exact(PANEL)) {
            // SAFETY: these rows and columns are this call's alone, by the caller's promise.
            let out = unsafe { self.out.part(row * self.inner + first, columns) };
            let bias = self.bias.map(|bias| {
                let at = if self.each_row { row * 2 * self.inner } else { 0 };
                bias[at..][..2 * self.inner].split_at(self.inner)
            });
            for c in (0..columns).step_by(S::LANES) {
                let mut hidden = s.read(&sums[c..]);
                let mut gate = s.read(&sums[HALF + c..]);
                if let Some((hidden_bias, gate_bias)) = bias {
                    let columns = first + c..first + columns;
                    hidden = s.add(hidden, s.read_some(&hidden_bias[columns.clone()]));
                    gate = s.add(gate, s.read_some(&gate_bias[columns]));
                }
                s.write_some(&mut out[c..], s.mul(hidden, Gelu.of(s, gate)));
            }
        }
    }
}
