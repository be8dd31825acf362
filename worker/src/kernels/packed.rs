//! Weights, laid out once for the product and kept in the type they are stored in.
#![expect(unsafe_code, reason = "widening reads whole vectors by pointer")]

use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::simd::Simd;

/// Columns of a packed weight that lie side by side.
pub(super) const PANEL: usize = 32;

/// Weights as a checkpoint holds them.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// The upper halves of 32-bit floats.
    Bf16(&'a [bf16]),
}

/// A weight of `outputs` columns and `depth` rows, ready for the product.
///
/// It stays in its stored type, and is widened to `f32` a panel at a time inside the product,
/// where many rows share the cost.
pub struct Packed {
    panels: Panels,
    panel_count: usize,
    geglu: bool,
    outputs: usize,
    depth: usize,
}

/// `[panel][depth][PANEL]`, zeros where the last panel has no column.
enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Packed {
    /// Packs a weight `[outputs, depth]`, as PyTorch's `Linear` has it.
    ///
    /// # Panics
    /// When the weight is not that large.
    #[must_use]
    pub fn pack(weight: Stored<'_>, outputs: usize, depth: usize) -> Self {
        assert_eq!(weight.len(), outputs * depth, "a weight [{outputs}, {depth}]");
        let column = |c: usize| (c < outputs).then_some(c);
        let layout = Layout { panels: outputs.div_ceil(PANEL), depth, taps: 1 };
        Self::with_layout(weight, outputs, layout, column)
    }

    /// Packs a convolution's weight `[outputs, inputs, kernel, kernel]`, with the depth in the
    /// order the product meets it: `[kernel, kernel, inputs]`.
    pub(super) fn pack_taps(weight: Stored<'_>, [outputs, inputs, taps]: [usize; 3]) -> Self {
        let depth = inputs * taps;
        assert_eq!(weight.len(), outputs * depth, "a weight [{outputs}, {inputs}, {taps} taps]");
        let column = |c: usize| (c < outputs).then_some(c);
        let layout = Layout { panels: outputs.div_ceil(PANEL), depth, taps };
        Self::with_layout(weight, outputs, layout, column)
    }

    /// Packs a GEGLU projection `[2 * inner, depth]`, hidden columns first and then their gates,
    /// for [`geglu`](super::geglu): a panel holds half a panel of hidden columns and the gates of
    /// the same columns. Its `outputs` are the `inner` ones.
    ///
    /// # Panics
    /// When the weight is not that large.
    #[must_use]
    pub fn pack_geglu(weight: Stored<'_>, inner: usize, depth: usize) -> Self {
        assert_eq!(weight.len(), 2 * inner * depth, "a weight [2 * {inner}, {depth}]");
        const HALF: usize = PANEL / 2;
        let column = |c: usize| {
            let (panel, lane) = (c / PANEL, c % PANEL);
            let hidden = panel * HALF + lane % HALF;
            (hidden < inner).then_some(hidden + lane / HALF * inner)
        };
        let layout = Layout { panels: inner.div_ceil(HALF), depth, taps: 1 };
        Self { geglu: true, ..Self::with_layout(weight, inner, layout, column) }
    }

    fn with_layout(
        weight: Stored<'_>,
        outputs: usize,
        layout: Layout,
        column: impl Fn(usize) -> Option<usize> + Sync,
    ) -> Self {
        let panels = match weight {
            Stored::F32(values) => Panels::F32(pack(values, layout, column)),
            Stored::F16(values) => Panels::F16(pack(values, layout, column)),
            Stored::Bf16(values) => Panels::Bf16(pack(values, layout, column)),
        };
        Self { panels, panel_count: layout.panels, geglu: false, outputs, depth: layout.depth }
    }

    /// The part of the weight that gives `columns` of the result, from the rows `depth` of it. What a
    /// product by all columns of every depth would give is the sum over depths.
    ///
    /// # Panics
    /// When it has no such columns or rows.
    #[must_use]
    pub fn part(&self, columns: &[Range<usize>], depth: &[Range<usize>]) -> Self {
        let columns: Vec<usize> = columns.iter().cloned().flatten().collect();
        let depth: Vec<usize> = depth.iter().cloned().flatten().collect();
        let rows = depth.len();
        let halves = if self.geglu { 2 } else { 1 };
        let width = PANEL / halves;
        let panel_count = columns.len().div_ceil(width);
        // Where a lane of the part stands in the whole.
        let place = |lane: usize| {
            let column = *columns.get(lane / PANEL * width + lane % width)?;
            let half = lane % PANEL / width;
            Some((column / width * self.depth * PANEL, column % width + half * width))
        };
        let panels = match &self.panels {
            Panels::F32(values) => Panels::F32(take(values, panel_count, &depth, place)),
            Panels::F16(values) => Panels::F16(take(values, panel_count, &depth, place)),
            Panels::Bf16(values) => Panels::Bf16(take(values, panel_count, &depth, place)),
        };
        Self { panels, panel_count, geglu: self.geglu, outputs: columns.len(), depth: rows }
    }

    /// Columns of the result.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Values in a row that the weight is applied to.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(values) => size_of_val(&values[..]),
            Panels::F16(values) => size_of_val(&values[..]),
            Panels::Bf16(values) => size_of_val(&values[..]),
        }
    }

    /// Whether it was packed by [`Packed::pack_geglu`].
    pub(super) fn is_geglu(&self) -> bool {
        self.geglu
    }

    /// Panels of the weight.
    pub(super) fn panels(&self) -> usize {
        self.panel_count
    }

    /// Widens the rows `depth` of a panel into strips of a tile's width: `[strip][depth][WIDTH]`.
    #[inline(always)]
    pub(super) fn widen<S: Simd>(&self, s: S, panel: usize, depth: Range<usize>, to: &mut [f32]) {
        let rows =
            (panel * self.depth + depth.start) * PANEL..(panel * self.depth + depth.end) * PANEL;
        match &self.panels {
            Panels::F32(values) => widen(s, &values[rows], to),
            Panels::F16(values) => widen(s, &values[rows], to),
            Panels::Bf16(values) => widen(s, &values[rows], to),
        }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outputs, depth, .. } = self;
        write!(f, "Packed[{outputs}, {depth}; {} bytes]", self.bytes())
    }
}

/// Panels of `depth` rows, where row `k` is the stored row `(k % inputs) * taps + k / inputs`.
#[derive(Clone, Copy)]
struct Layout {
    panels: usize,
    depth: usize,
    taps: usize,
}

impl Stored<'_> {
    fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }
}

/// `column` says which stored column, if any, comes to stand at a packed one.
fn pack<T: Copy + Default + Send + Sync>(
    values: &[T],
    Layout { panels, depth, taps }: Layout,
    column: impl Fn(usize) -> Option<usize> + Sync,
) -> Vec<T> {
    // Few enough rows at a time that they stay in the cache while each column crosses them.
    const ROWS: usize = 64;
    let inputs = depth / taps;
    let mut packed = vec![T::default(); panels * depth * PANEL];
    packed.par_chunks_exact_mut(depth * PANEL).enumerate().for_each(|(panel, packed)| {
        for (block, packed) in packed.chunks_mut(ROWS * PANEL).enumerate() {
            for lane in 0..PANEL {
                let Some(column) = column(panel * PANEL + lane) else { continue };
                let values = &values[column * depth..][..depth];
                for (k, row) in (block * ROWS..).zip(packed.chunks_exact_mut(PANEL)) {
                    row[lane] = values[k % inputs * taps + k / inputs];
                }
            }
        }
    });
    packed
}

/// The rows `depth` of some columns of packed `values`: `place` says at which value the panel of a
/// lane's column starts, and which lane it is there.
fn take<T: Copy + Default + Send + Sync>(
    values: &[T],
    panels: usize,
    depth: &[usize],
    place: impl Fn(usize) -> Option<(usize, usize)> + Sync,
) -> Vec<T> {
    let mut taken = vec![T::default(); panels * depth.len() * PANEL];
    let panel_len = (depth.len() * PANEL).max(1);
    taken.par_chunks_exact_mut(panel_len).enumerate().for_each(|(panel, taken)| {
        let places: Vec<_> = (panel * PANEL..(panel + 1) * PANEL).map(&place).collect();
        for (k, row) in depth.iter().zip(taken.chunks_exact_mut(PANEL)) {
            for (value, place) in row.iter_mut().zip(&places) {
                let Some((start, lane)) = place else { continue };
                *value = values[start + k * PANEL + lane];
            }
        }
    });
    taken
}

/// A type weights are stored in.
trait Element: Copy {
    /// # Safety
    /// `from` is readable for `LANES` values.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the caller promises it.
        unsafe { s.load(from) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the caller promises it.
        unsafe { s.load_f16(from) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the caller promises it.
        unsafe { s.load_bf16(from) }
    }
}

#[inline(always)]
fn widen<S: Simd, T: Element>(s: S, rows: &[T], to: &mut [f32]) {
    assert!(to.len() >= rows.len(), "room for the panel");
    let depth = rows.len() / PANEL;
    for (k, row) in rows.chunks_exact(PANEL).enumerate() {
        for lane in (0..PANEL).step_by(S::LANES) {
            let at = (lane / S::WIDTH * depth + k) * S::WIDTH + lane % S::WIDTH;
            // SAFETY: `LANES` divides `PANEL`, so the vector lies in the row; and the strips
            // together are as large as the rows, so it lies in `to`.
            unsafe { s.store(to.as_mut_ptr().add(at), T::load(s, row.as_ptr().add(lane))) };
        }
    }
}
