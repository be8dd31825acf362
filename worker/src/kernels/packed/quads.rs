//! Weights rounded to 8 bits.

use rayon::prelude::*;

use super::{Layout, PANEL, Part, pack, take};
use crate::kernels::aligned::Aligned;
use crate::kernels::simd::Simd;

/// Columns of 8-bit values.
pub(super) struct Quads {
    pub(super) values: Aligned<i8>,
    /// What a value of each column stands for, `[panel][PANEL]`.
    pub(super) scales: Vec<f32>,
    /// The sum of each column's values, `[panel][PANEL]`.
    pub(super) sums: Vec<i32>,
}

impl Quads {
    pub(super) fn pack(
        values: &[f32],
        layout: Layout,
        column: impl Fn(usize) -> Option<usize> + Sync,
    ) -> Self {
        let depth = layout.depth;
        let columns = values.par_chunks_exact(depth.max(1));
        let stored: Vec<f32> = columns.map(|column| scale_of(largest(column))).collect();
        #[expect(clippy::cast_possible_truncation, reason = "within 127 of zero by its scale")]
        let rounded: Vec<i8> = values
            .par_iter()
            .enumerate()
            .map(|(i, x)| (x / stored[i / depth]).round() as i8)
            .collect();
        let packed = 0..layout.panels * PANEL;
        let scales = packed.map(|c| column(c).map_or(1.0, |column| stored[column])).collect();
        Self::new(pack(&rounded, layout, 4, column), scales)
    }

    fn new(values: Aligned<i8>, scales: Vec<f32>) -> Self {
        let mut sums = vec![0; scales.len()];
        let panel_len = values.len() / (scales.len() / PANEL).max(1);
        for (values, sums) in
            values.chunks_exact(panel_len.max(1)).zip(sums.chunks_exact_mut(PANEL))
        {
            for (i, value) in values.iter().enumerate() {
                sums[i / 4 % PANEL] += i32::from(*value);
            }
        }
        Self { values, scales, sums }
    }

    pub(super) fn part(&self, part: Part<'_>) -> Self {
        let scale = |column: &Option<usize>| column.map_or(1.0, |column| self.scales[column]);
        Self::new(take(&self.values, 4, part), part.places.iter().map(scale).collect())
    }
}

/// What 1 stands for where values up to `largest` are rounded to 8 bits.
pub(in crate::kernels) fn scale_of(largest: f32) -> f32 {
    if largest > 0.0 { largest / 127.0 } else { 1.0 }
}

/// The largest absolute value.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()))
}

/// Turns quads `[rows][PANEL]` into the first `count` of twice as many rows of pairs, and lays each strip of a
/// tile's columns by itself: `[PANEL / WIDTH][count][WIDTH]`.
#[inline(always)]
pub(super) fn split<S: Simd>(s: S, quads: &[f32], pairs: &mut [f32], count: usize) {
    let width = S::WIDTH;
    for (strip, pairs) in
        pairs[..PANEL * count].chunks_exact_mut((width * count).max(1)).enumerate()
    {
        for (row, pairs) in pairs.chunks_mut(2 * width).enumerate() {
            for lane in (0..width).step_by(S::LANES) {
                let [first, second] =
                    s.split_quads(s.read(&quads[row * PANEL + strip * width + lane..]));
                s.write(&mut pairs[lane..], first);
                if let Some(pairs) = pairs.get_mut(width..)
                    && !pairs.is_empty()
                {
                    s.write(&mut pairs[lane..], second);
                }
            }
        }
    }
}
