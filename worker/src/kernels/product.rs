//! The blocked matrix product under [`linear`](super::linear()), GEGLU and convolution.
#![expect(unsafe_code, reason = "tiles are multiplied by pointer into checked buffers")]

use std::ops::Range;

use super::isa::Isa;
use super::packed::{PANEL, Packed};
use super::scratch::Scratch;
use super::simd::{Kernel, Simd};
use super::tasks;
use super::tile::{DEPTH, PITCH, Tile};

/// Rows of a block: a whole number of tiles for every instruction set, and few enough that
/// [`DEPTH`] of their values stay in the second-level cache.
const BLOCK_ROWS: usize = 168;
/// The most panels of a block: its sums are kept until their depth is through.
const BLOCK_PANELS: usize = 40;

/// The left side of a product: rows that come in stretches of equal length.
pub(super) trait Rows: Sync {
    /// How many rows there are.
    fn count(&self) -> usize;
    /// Values in a stretch.
    fn stretch(&self) -> usize;
    /// A stretch of a row.
    fn part(&self, row: usize, stretch: usize) -> &[f32];
}

/// What becomes of the sums.
pub(super) trait Finish: Sync {
    /// Takes the sums of some rows and all columns of one panel, `[rows][PANEL]`.
    ///
    /// # Safety
    /// No other thread finishes the same rows and panel.
    unsafe fn finish<S: Simd>(&self, s: S, rows: Range<usize>, panel: usize, sums: &[f32]);
}

/// Multiplies `x` by `w` and hands every sum to `finish` once.
pub(super) fn product(isa: Isa, x: &impl Rows, w: &Packed, finish: &impl Finish) {
    let tiles = x.count().div_ceil(isa.tile_rows());
    let (row_blocks, panel_blocks) = grid(isa, tiles, w.panels());
    tasks::each(row_blocks * panel_blocks, |i| {
        let tiles = share(tiles, row_blocks, i / panel_blocks);
        let rows = tiles.start * isa.tile_rows()..x.count().min(tiles.end * isa.tile_rows());
        let panels = share(w.panels(), panel_blocks, i % panel_blocks);
        isa.run(Block { x, w, finish, rows, panels });
    });
}

/// Into how many blocks of rows and of panels the work is split: no larger than a block may be,
/// and several for each thread if there is enough of it. The sums do not depend on it.
fn grid(isa: Isa, tiles: usize, panels: usize) -> (usize, usize) {
    const PER_THREAD: usize = 3;
    const LEAST_PANELS: usize = 4;
    let mut row_blocks = tiles.div_ceil(BLOCK_ROWS / isa.tile_rows());
    let mut panel_blocks = panels.div_ceil(BLOCK_PANELS);
    if tasks::threads() > 1 {
        let wanted = tasks::threads() * PER_THREAD;
        let most_panel_blocks = panels.div_ceil(LEAST_PANELS);
        panel_blocks = panel_blocks.max(wanted.div_ceil(row_blocks.max(1)).min(most_panel_blocks));
        row_blocks = row_blocks.max(wanted.div_ceil(panel_blocks).min(tiles.div_ceil(4)));
    }
    (row_blocks, panel_blocks)
}

/// Part `i` of `count` things shared among `parts`, as evenly as they go.
pub(super) fn share(count: usize, parts: usize, i: usize) -> Range<usize> {
    count * i / parts..count * (i + 1) / parts
}

/// Some rows and panels of a product.
struct Block<'a, X, F> {
    x: &'a X,
    w: &'a Packed,
    finish: &'a F,
    rows: Range<usize>,
    panels: Range<usize>,
}

impl<X: Rows, F: Finish> Kernel for Block<'_, X, F> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tiles = self.rows.len().div_ceil(S::ROWS);
        let panel_sums = tiles * S::ROWS * PANEL;
        let depth = self.w.depth();
        // Sums that are complete after one step are finished at once and need not be kept.
        let kept = if depth <= DEPTH { 1 } else { self.panels.len() };
        let left_size = self.rows.len() * PITCH;
        let right_size = DEPTH * PANEL;
        let mut scratch = Scratch::take(left_size + right_size + kept * panel_sums);
        let (left, rest) = scratch.split_at_mut(left_size);
        let (right, sums) = rest.split_at_mut(right_size);

        let mut start = 0;
        while start < depth {
            let step = start..depth.min(start + DEPTH);
            self.pack_rows(step.clone(), left);
            for (i, panel) in self.panels.clone().enumerate() {
                let sums = &mut sums[i % kept * panel_sums..][..panel_sums];
                self.w.widen(s, panel, step.clone(), right);
                multiply_panel(s, &self.rows, &step, (left, right), sums);
                if step.end == depth {
                    // SAFETY: blocks have no rows and panels in common.
                    unsafe { self.finish.finish(s, self.rows.clone(), panel, sums) };
                }
            }
            start = step.end;
        }
    }
}

impl<X: Rows, F> Block<'_, X, F> {
    /// Lays out the values `step` of the block's rows, a pitch apart.
    #[inline(always)]
    fn pack_rows(&self, step: Range<usize>, to: &mut [f32]) {
        let stretch = self.x.stretch();
        for (row, to) in self.rows.clone().zip(to.chunks_exact_mut(PITCH)) {
            let mut k = step.start;
            while k < step.end {
                let (part, within) = (k / stretch, k % stretch);
                let length = (stretch - within).min(step.end - k);
                let values = &self.x.part(row, part)[within..][..length];
                to[k - step.start..][..length].copy_from_slice(values);
                k += length;
            }
        }
    }
}

/// Adds one step of the depth to the sums `[rows][PANEL]` of a panel, or begins them with it.
#[inline(always)]
fn multiply_panel<S: Simd>(
    s: S,
    rows: &Range<usize>,
    step: &Range<usize>,
    (left, right): (&[f32], &[f32]),
    sums: &mut [f32],
) {
    let depth = step.len();
    for strip in 0..PANEL / S::WIDTH {
        let right = &right[strip * depth * S::WIDTH..][..depth * S::WIDTH];
        for (tile, first) in rows.clone().step_by(S::ROWS).enumerate() {
            let rows = S::ROWS.min(rows.end - first);
            let left = &left[tile * S::ROWS * PITCH..][..rows * PITCH];
            let sums = &mut sums[tile * S::ROWS * PANEL..][..S::ROWS * PANEL];
            let tile = Tile {
                depth,
                a: left.as_ptr(),
                b: right.as_ptr(),
                c: sums[strip * S::WIDTH..].as_mut_ptr(),
                stride: PANEL,
                add: step.start > 0,
            };
            // SAFETY: the slices have just been cut to the sizes that `Tile` asks for.
            unsafe { s.multiply_rows(rows, &tile) };
        }
    }
}
