//! Weights rounded to 8 bits.

use rayon::prelude::*;

use super::{Layout, PANEL, Part, pack, take};
use crate::kernels::aligned::Aligned;

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

/// Turns `[rows][PANEL][4]` into the first `count` of twice as many rows `[2]`, for each strip.
#[inline(always)]
pub(super) fn split(quads: &[i8], pairs: &mut [i16], count: usize, width: usize) {
    for (strip, pairs) in pairs[..2 * PANEL * count].chunks_exact_mut(2 * width * count).enumerate()
    {
        for (row, pairs) in pairs.chunks_exact_mut(2 * width).enumerate() {
            let quads = &quads[(row / 2 * PANEL + strip * width) * 4..][..4 * width];
            for (pair, quad) in pairs.chunks_exact_mut(2).zip(quads.chunks_exact(4)) {
                let half = row % 2 * 2;
                pair[0] = i16::from(quad[half]);
                pair[1] = i16::from(quad[half + 1]);
            }
        }
    }
}
