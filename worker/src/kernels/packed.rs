//! Weights, laid out once for the product and kept in the type they are stored in.
#![expect(unsafe_code, reason = "widening reads whole vectors by pointer")]

mod quads;

use std::fmt;
use std::ops::Range;

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;

use self::quads::Quads;
use super::aligned::Aligned;
use super::simd::Simd;
use super::tile::Words;

pub(super) use self::quads::scale_of;

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

/// The numbers a product is taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// `f32`, whatever type the weight is stored in.
    #[default]
    F32,
    /// Both sides rounded to bfloat16 and summed in `f32`, where the machine has an instruction for it
    /// ([`Isa::has_bf16`](super::Isa::has_bf16)).
    Bf16,
    /// Both sides rounded to 8 bits, a row of the left and a column of the right by a scale each, and
    /// summed exactly.
    Int8,
}

/// A weight of `outputs` columns and `depth` rows, ready for the product.
///
/// It stays in its stored type, and is widened to `f32` a panel at a time inside the product,
/// where many rows share the cost; or it is rounded to the numbers the product is taken in.
pub struct Packed {
    panels: Panels,
    panel_count: usize,
    geglu: bool,
    outputs: usize,
    depth: usize,
}

/// `[panel][depth / group][PANEL][group]`, zeros where the last panel has no column and the last
/// group no row.
enum Panels {
    /// A group is one.
    F32(Aligned<f32>),
    F16(Aligned<f16>),
    Bf16(Aligned<bf16>),
    /// A group is two: a word.
    Pairs(Aligned<bf16>),
    /// A group is four: a word.
    Quads(Quads),
}

impl Packed {
    /// Packs a weight `[outputs, depth]`, as PyTorch's `Linear` has it.
    ///
    /// # Panics
    /// When the weight is not that large.
    #[must_use]
    pub fn pack(weight: Stored<'_>, outputs: usize, depth: usize, arithmetic: Arithmetic) -> Self {
        assert_eq!(weight.len(), outputs * depth, "a weight [{outputs}, {depth}]");
        let column = |c: usize| (c < outputs).then_some(c);
        let layout = Layout { panels: outputs.div_ceil(PANEL), depth, taps: 1 };
        Self::with_layout(weight, outputs, layout, arithmetic, column)
    }

    /// Packs a convolution's weight `[outputs, inputs, kernel, kernel]`, with the depth in the
    /// order the product meets it: `[kernel, kernel, inputs]`.
    pub(super) fn pack_taps(weight: Stored<'_>, [outputs, inputs, taps]: [usize; 3]) -> Self {
        let depth = inputs * taps;
        assert_eq!(weight.len(), outputs * depth, "a weight [{outputs}, {inputs}, {taps} taps]");
        let column = |c: usize| (c < outputs).then_some(c);
        let layout = Layout { panels: outputs.div_ceil(PANEL), depth, taps };
        Self::with_layout(weight, outputs, layout, Arithmetic::F32, column)
    }

    /// Packs a GEGLU projection `[2 * inner, depth]`, hidden columns first and then their gates,
    /// for [`geglu`](super::geglu): a panel holds half a panel of hidden columns and the gates of
    /// the same columns. Its `outputs` are the `inner` ones.
    ///
    /// # Panics
    /// When the weight is not that large.
    #[must_use]
    pub fn pack_geglu(
        weight: Stored<'_>,
        inner: usize,
        depth: usize,
        arithmetic: Arithmetic,
    ) -> Self {
        assert_eq!(weight.len(), 2 * inner * depth, "a weight [2 * {inner}, {depth}]");
        const HALF: usize = PANEL / 2;
        let column = |c: usize| {
            let (panel, lane) = (c / PANEL, c % PANEL);
            let hidden = panel * HALF + lane % HALF;
            (hidden < inner).then_some(hidden + lane / HALF * inner)
        };
        let layout = Layout { panels: inner.div_ceil(HALF), depth, taps: 1 };
        Self { geglu: true, ..Self::with_layout(weight, inner, layout, arithmetic, column) }
    }

    fn with_layout(
        weight: Stored<'_>,
        outputs: usize,
        layout: Layout,
        arithmetic: Arithmetic,
        column: impl Fn(usize) -> Option<usize> + Sync,
    ) -> Self {
        let panels = match (arithmetic, weight) {
            (Arithmetic::F32, Stored::F32(values)) => Panels::F32(pack(values, layout, 1, column)),
            (Arithmetic::F32, Stored::F16(values)) => Panels::F16(pack(values, layout, 1, column)),
            (Arithmetic::F32, Stored::Bf16(values)) => {
                Panels::Bf16(pack(values, layout, 1, column))
            }
            (Arithmetic::Bf16, weight) => {
                let values: Vec<bf16> = match weight {
                    Stored::Bf16(values) => values.to_vec(),
                    other => other.widened().map(bf16::from_f32).collect(),
                };
                Panels::Pairs(pack(&values, layout, 2, column))
            }
            (Arithmetic::Int8, weight) => {
                let values: Vec<f32> = weight.widened().collect();
                Panels::Quads(Quads::pack(&values, layout, column))
            }
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
        let halves = if self.geglu { 2 } else { 1 };
        let width = PANEL / halves;
        let panel_count = columns.len().div_ceil(width);
        // The packed column of the whole that a packed column of the part is.
        let place = |c: usize| {
            let column = *columns.get(c / PANEL * width + c % width)?;
            let half = c % PANEL / width;
            Some(column / width * PANEL + column % width + half * width)
        };
        let places: Vec<_> = (0..panel_count * PANEL).map(place).collect();
        let part = Part { whole: self.depth, depth: &depth, places: &places };
        let panels = match &self.panels {
            Panels::F32(values) => Panels::F32(take(values, 1, part)),
            Panels::F16(values) => Panels::F16(take(values, 1, part)),
            Panels::Bf16(values) => Panels::Bf16(take(values, 1, part)),
            Panels::Pairs(values) => Panels::Pairs(take(values, 2, part)),
            Panels::Quads(quads) => Panels::Quads(quads.part(part)),
        };
        let (outputs, depth) = (columns.len(), depth.len());
        Self { panels, panel_count, geglu: self.geglu, outputs, depth }
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
            Panels::Bf16(values) | Panels::Pairs(values) => size_of_val(&values[..]),
            Panels::Quads(Quads { values, scales, sums }) => {
                size_of_val(&values[..]) + size_of_val(&scales[..]) + size_of_val(&sums[..])
            }
        }
    }

    /// The numbers its products are taken in.
    pub(super) fn arithmetic(&self) -> Arithmetic {
        match self.panels {
            Panels::F32(_) | Panels::F16(_) | Panels::Bf16(_) => Arithmetic::F32,
            Panels::Pairs(_) => Arithmetic::Bf16,
            Panels::Quads(_) => Arithmetic::Int8,
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

    /// Some rows of a panel as words of the product, `[PANEL / WIDTH][rows][WIDTH]`: as they lie here, if
    /// that is how, else made in `to`. A row is a group of the `words`.
    ///
    /// # Panics
    /// When the weight is not packed for them.
    #[inline(always)]
    pub(super) fn words<'w, S: Simd>(
        &'w self,
        s: S,
        words: Words,
        panel: usize,
        rows: Range<usize>,
        to: &'w mut [f32],
    ) -> &'w [f32] {
        let to = &mut to[..rows.len() * PANEL];
        match (&self.panels, words) {
            (Panels::F32(values), Words::F32) => {
                let values = &values[self.place(1, panel, rows)];
                if S::WIDTH == PANEL {
                    return values;
                }
                widen_strips(s, values, to);
            }
            (Panels::F16(values), Words::F32) => {
                widen_strips(s, &values[self.place(1, panel, rows)], to);
            }
            (Panels::Bf16(values), Words::F32) => {
                widen_strips(s, &values[self.place(1, panel, rows)], to);
            }
            (Panels::Pairs(values), Words::Bf16) if S::WIDTH == PANEL => {
                return bytemuck::cast_slice(&values[self.place(2, panel, rows)]);
            }
            (Panels::Quads(quads), Words::I8) if S::WIDTH == PANEL => {
                return bytemuck::cast_slice(&quads.values[self.place(4, panel, rows)]);
            }
            (Panels::Quads(quads), Words::I16) => {
                let quad_rows = rows.start / 2..rows.end.div_ceil(2);
                let quads = &quads.values[self.place(4, panel, quad_rows)];
                quads::split(s, bytemuck::cast_slice(quads), to, rows.len());
            }
            _ => unreachable!("a weight for {:?} as {words:?}", self.arithmetic()),
        }
        to
    }

    /// What is read for [`Self::words`] of some rows of a panel.
    #[inline(always)]
    pub(super) fn bytes_of(&self, words: Words, panel: usize, rows: Range<usize>) -> &[u8] {
        match &self.panels {
            Panels::F32(values) => bytemuck::cast_slice(&values[self.place(1, panel, rows)]),
            Panels::F16(values) => bytemuck::cast_slice(&values[self.place(1, panel, rows)]),
            Panels::Bf16(values) => bytemuck::cast_slice(&values[self.place(1, panel, rows)]),
            Panels::Pairs(values) => bytemuck::cast_slice(&values[self.place(2, panel, rows)]),
            Panels::Quads(quads) => {
                let halves = 4 / words.group();
                let rows = rows.start / halves..rows.end.div_ceil(halves);
                bytemuck::cast_slice(&quads.values[self.place(4, panel, rows)])
            }
        }
    }

    /// Where some rows of groups of a panel lie.
    fn place(&self, group: usize, panel: usize, rows: Range<usize>) -> Range<usize> {
        let first = panel * self.depth.div_ceil(group);
        (first + rows.start) * PANEL * group..(first + rows.end) * PANEL * group
    }

    /// A panel of floats, `[depth][PANEL]`.
    ///
    /// # Panics
    /// When it is not of floats.
    pub(super) fn panel(&self, panel: usize) -> Stored<'_> {
        let here = self.place(1, panel, 0..self.depth);
        match &self.panels {
            Panels::F32(values) => Stored::F32(&values[here]),
            Panels::F16(values) => Stored::F16(&values[here]),
            Panels::Bf16(values) => Stored::Bf16(&values[here]),
            _ => unreachable!("a weight for {:?} is not of floats", self.arithmetic()),
        }
    }

    /// What values of a panel's columns stand for, and their sums; of 8-bit columns.
    pub(super) fn columns(&self, panel: usize) -> Option<(&[f32], &[i32])> {
        let here = panel * PANEL..(panel + 1) * PANEL;
        match &self.panels {
            Panels::Quads(quads) => Some((&quads.scales[here.clone()], &quads.sums[here])),
            _ => None,
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

impl<'a> Stored<'a> {
    /// The values as `f32`.
    fn widened(self) -> Box<dyn Iterator<Item = f32> + 'a> {
        match self {
            Self::F32(values) => Box::new(values.iter().copied()),
            Self::F16(values) => Box::new(values.iter().map(|x| x.to_f32())),
            Self::Bf16(values) => Box::new(values.iter().map(|x| x.to_f32())),
        }
    }

    pub(super) fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// The values from `at` on; none if there are not so many.
    #[must_use]
    pub fn from(self, at: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(values.get(at..).unwrap_or_default()),
            Self::F16(values) => Self::F16(values.get(at..).unwrap_or_default()),
            Self::Bf16(values) => Self::Bf16(values.get(at..).unwrap_or_default()),
        }
    }
}

/// `column` says which stored column, if any, comes to stand at a packed one.
fn pack<T: Pod + Send + Sync>(
    values: &[T],
    layout: Layout,
    group: usize,
    column: impl Fn(usize) -> Option<usize> + Sync,
) -> Aligned<T> {
    // Few enough rows at a time that they stay in the cache while each column crosses them.
    const ROWS: usize = 64;
    let Layout { panels, depth, taps } = layout;
    let inputs = depth / taps;
    let panel_len = depth.next_multiple_of(group) * PANEL;
    let mut packed = Aligned::zeroed(panels * panel_len);
    packed.par_chunks_exact_mut(panel_len.max(1)).enumerate().for_each(|(panel, packed)| {
        for first in (0..depth).step_by(ROWS) {
            for lane in 0..PANEL {
                let Some(column) = column(panel * PANEL + lane) else { continue };
                let values = &values[column * depth..][..depth];
                for k in first..depth.min(first + ROWS) {
                    packed[place(k, lane, group)] = values[k % inputs * taps + k / inputs];
                }
            }
        }
    });
    packed
}

/// Where row `k` of a panel's column lies.
fn place(k: usize, lane: usize, group: usize) -> usize {
    (k / group * PANEL + lane) * group + k % group
}

/// Some rows of some columns of a packed weight.
#[derive(Clone, Copy)]
struct Part<'a> {
    /// Rows of the whole.
    whole: usize,
    depth: &'a [usize],
    /// Which packed column of the whole each of the part's is.
    places: &'a [Option<usize>],
}

fn take<T: Pod + Send + Sync>(values: &[T], group: usize, part: Part<'_>) -> Aligned<T> {
    let panel_len = part.depth.len().next_multiple_of(group) * PANEL;
    let whole_len = part.whole.next_multiple_of(group) * PANEL;
    let mut taken = Aligned::zeroed(part.places.len() / PANEL * panel_len);
    let panels = taken.par_chunks_exact_mut(panel_len.max(1));
    panels.zip(part.places.par_chunks_exact(PANEL)).for_each(|(taken, columns)| {
        for (k, from) in part.depth.iter().enumerate() {
            for (lane, column) in columns.iter().enumerate() {
                let Some(column) = column else { continue };
                let from = place(*from, column % PANEL, group);
                taken[place(k, lane, group)] = values[column / PANEL * whole_len + from];
            }
        }
    });
    taken
}

/// A type weights are stored in.
pub(super) trait Element: Copy {
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

/// Widens rows of a panel, `[rows][PANEL]`, and lays each strip of a tile's columns by itself:
/// `[PANEL / WIDTH][rows][WIDTH]`.
#[inline(always)]
fn widen_strips<S: Simd, T: Element>(s: S, values: &[T], to: &mut [f32]) {
    assert_eq!(values.len() % PANEL, 0, "rows of a panel");
    assert_eq!(to.len(), values.len(), "room for the rows");
    let strips = to.chunks_exact_mut((values.len() / PANEL * S::WIDTH).max(1));
    for (strip, to) in strips.enumerate() {
        let rows = values.chunks_exact(PANEL).zip(to.chunks_exact_mut(S::WIDTH));
        for (values, to) in rows {
            let values = &values[strip * S::WIDTH..][..S::WIDTH];
            for lane in (0..S::WIDTH).step_by(S::LANES) {
                // SAFETY: `LANES` divides `WIDTH`, so the vector lies in both.
                unsafe {
                    s.store(to.as_mut_ptr().add(lane), T::load(s, values.as_ptr().add(lane)));
                };
            }
        }
    }
}
