//! The blocked matrix product under [`linear`](super::linear()), GEGLU and convolution.
#![expect(unsafe_code, reason = "tiles are multiplied by pointer into checked buffers")]

use std::ops::Range;

use half::bf16;

use super::isa::Isa;
use super::packed::{PANEL, Packed, scale_of};
use super::scratch::Scratch;
use super::simd::{Kernel, MAX_LANES, Simd};
use super::tasks;
use super::tile::{I8_ZERO, Tile, Words, pitch};

/// Words of depth that are summed at a time, at most, by any instruction set.
const DEPTH: usize = 640;
/// Words of a step are a multiple of this, but for the last step's: whole vectors of whatever is packed.
const WHOLE: usize = 16;
/// From one row of the left side to the next.
const PITCH: usize = pitch(DEPTH);
/// Rows of a block, at most: few enough that [`DEPTH`] of their values stay in the second-level cache, and
/// enough that weights are seldom read more than once.
const BLOCK_ROWS: usize = 294;
/// The same where several threads share the work: rows are packed again for each block of panels, of which
/// there may be fewer if there are more blocks of rows.
const SHARED_BLOCK_ROWS: usize = 168;
/// The most panels of a block: its sums are kept until their depth is through.
const BLOCK_PANELS: usize = 40;

/// So many rows before it is packed, a row is fetched.
const ROWS_AHEAD: usize = 2;

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
    /// Has what [`Finish::finish`] will read and write for these rows and this panel fetched.
    fn fetch<S: Simd>(&self, s: S, rows: Range<usize>, panel: usize);

    /// Takes the sums of some rows and all columns of one panel, `[rows][PANEL]`.
    ///
    /// # Safety
    /// No other thread finishes the same rows and panel.
    unsafe fn finish<S: Simd>(&self, s: S, rows: Range<usize>, panel: usize, sums: &[f32]);
}

/// Multiplies `x` by `w` and hands every sum to `finish` once.
pub(super) fn product(isa: Isa, x: &impl Rows, w: &Packed, finish: &impl Finish) {
    let words = isa.words(w.arithmetic());
    let tiles = x.count().div_ceil(isa.tile_rows());
    let (row_blocks, panel_blocks) = grid(isa, tiles, w.panels());
    tasks::each(row_blocks * panel_blocks, |i| {
        let tiles = share(tiles, row_blocks, i / panel_blocks);
        let rows = tiles.start * isa.tile_rows()..x.count().min(tiles.end * isa.tile_rows());
        let panels = share(w.panels(), panel_blocks, i % panel_blocks);
        isa.run(Block { x, w, finish, words, rows, panels });
    });
}

/// Into how many blocks of rows and of panels the work is split: no larger than a block may be,
/// and several for each thread if there is enough of it. The sums do not depend on it.
fn grid(isa: Isa, tiles: usize, panels: usize) -> (usize, usize) {
    const PER_THREAD: usize = 3;
    const LEAST_PANELS: usize = 4;
    let most_rows = if tasks::threads() == 1 { BLOCK_ROWS } else { SHARED_BLOCK_ROWS };
    let mut row_blocks = tiles.div_ceil(most_rows / isa.tile_rows());
    let mut panel_blocks = panels.div_ceil(BLOCK_PANELS);
    if tasks::threads() > 1 {
        let wanted = tasks::threads() * PER_THREAD;
        let most_panel_blocks = panels.div_ceil(LEAST_PANELS);
        panel_blocks = panel_blocks.max(wanted.div_ceil(row_blocks.max(1)).min(most_panel_blocks));
        row_blocks = row_blocks.max(wanted.div_ceil(panel_blocks).min(tiles.div_ceil(4)));
        // As many for each thread, where there are tiles enough.
        let even = |rows: &usize| (rows * panel_blocks).is_multiple_of(tasks::threads());
        row_blocks = (row_blocks..=tiles).find(even).unwrap_or(row_blocks);
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
    words: Words,
    rows: Range<usize>,
    panels: Range<usize>,
}

impl<X: Rows, F: Finish> Kernel for Block<'_, X, F> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.rows.len();
        let panel_sums = rows * PANEL;
        let depth = self.w.depth().div_ceil(self.words.group());
        // Sums that are complete after one step are finished at once and need not be kept.
        let kept = if depth <= S::DEPTH { 1 } else { self.panels.len() };
        let sizes = [rows * PITCH, S::DEPTH * PANEL, rows.next_multiple_of(16), kept * panel_sums];
        let mut scratch = Scratch::take(sizes.iter().sum());
        let mut rest = &mut scratch[..];
        let [left, right, scales, sums] =
            sizes.map(|size| rest.split_off_mut(..size).expect("the sizes add up"));

        self.find_scales(s, scales);
        const { assert!(S::DEPTH <= DEPTH && S::DEPTH.is_multiple_of(WHOLE), "rows fit a pitch") };
        let steps = depth.div_ceil(S::DEPTH).max(1);
        let length = depth.div_ceil(steps).next_multiple_of(WHOLE).max(1);
        for start in (0..depth).step_by(length) {
            let step = start..depth.min(start + length);
            self.pack_rows(s, &step, scales, left);
            for (i, panel) in self.panels.clone().enumerate() {
                let sums = &mut sums[i % kept * panel_sums..][..panel_sums];
                let next = Some(panel + 1).filter(|next| *next < self.panels.end);
                let next = next.map(|next| self.w.bytes_of(self.words, next, step.clone()));
                let right = self.w.words(s, self.words, panel, step.clone(), right);
                let sides = (&*left, right);
                self.multiply_panel(s, &step, panel, sides, next.unwrap_or_default(), sums);
                if step.end == depth {
                    self.scale(s, panel, scales, sums);
                    // SAFETY: blocks have no rows and panels in common.
                    unsafe { self.finish.finish(s, self.rows.clone(), panel, sums) };
                }
            }
        }
    }
}

impl<X: Rows, F: Finish> Block<'_, X, F> {
    /// What 1 stands for in each row, if its values are rounded to 8 bits.
    #[inline(always)]
    fn find_scales<S: Simd>(&self, s: S, scales: &mut [f32]) {
        if matches!(self.words, Words::F32 | Words::Bf16) {
            return;
        }
        for (row, scale) in self.rows.clone().zip(scales) {
            let mut most = s.splat(0.0);
            for part in 0..self.w.depth().div_ceil(self.x.stretch()) {
                for x in self.x.part(row, part).chunks(S::LANES) {
                    let x = s.read_some(x);
                    most = s.max(most, s.max(x, s.sub(s.splat(0.0), x)));
                }
            }
            let mut values = [0.0; MAX_LANES];
            s.write(&mut values, most);
            *scale = scale_of(values.into_iter().fold(0.0, f32::max));
        }
    }

    /// Lays out the words `step` of the block's rows, a pitch apart.
    #[inline(always)]
    fn pack_rows<S: Simd>(&self, s: S, step: &Range<usize>, scales: &[f32], to: &mut [f32]) {
        let group = self.words.group();
        let values = step.start * group..self.w.depth().min(step.end * group);
        let stretch = self.x.stretch();
        for ((row, to), scale) in self.rows.clone().zip(to.chunks_exact_mut(PITCH)).zip(scales) {
            let soon = Some(row + ROWS_AHEAD).filter(|soon| *soon < self.rows.end);
            // The last word may have more room than there are values.
            to[step.len() - 1] = 0.0;
            let mut k = values.start;
            while k < values.end {
                let (part, within) = (k / stretch, k % stretch);
                let length = (stretch - within).min(values.end - k);
                let x = &self.x.part(row, part)[within..][..length];
                let soon = soon.map(|soon| &self.x.part(soon, part)[within..][..length]);
                let soon = soon.unwrap_or_default();
                s.prefetch_near(soon.as_ptr(), soon.len());
                match self.words {
                    Words::F32 => to[k - values.start..][..length].copy_from_slice(x),
                    words => pack_words(s, words, x, 1.0 / scale, (to, k - values.start)),
                }
                k += length;
            }
        }
    }

    /// Adds one step of the depth to the sums `[rows][PANEL]` of a panel, or begins them with it; and
    /// meanwhile fetches the step of the `next` panel, which the first tile would wait for, and in the last
    /// step what the panel's sums become.
    #[inline(always)]
    fn multiply_panel<S: Simd>(
        &self,
        s: S,
        step: &Range<usize>,
        panel: usize,
        (left, right): (&[f32], &[f32]),
        next: &[u8],
        sums: &mut [f32],
    ) {
        assert_eq!(right.len(), step.len() * PANEL, "a step of a panel");
        let last = step.end == self.w.depth().div_ceil(self.words.group());
        let tiles = PANEL / S::WIDTH * self.rows.len().div_ceil(S::ROWS);
        let mut next = next.chunks(next.len().div_ceil(tiles).max(1));
        for strip in (0..PANEL).step_by(S::WIDTH) {
            let tiles = left.chunks(S::ROWS * PITCH).zip(sums.chunks_mut(S::ROWS * PANEL));
            for (row, (left, sums)) in self.rows.clone().step_by(S::ROWS).zip(tiles) {
                let next = next.next().unwrap_or_default();
                s.prefetch(next.as_ptr(), next.len());
                if strip == 0 && last {
                    self.finish.fetch(s, row..row + left.len() / PITCH, panel);
                }
                let tile = Tile {
                    depth: step.len(),
                    a: left.as_ptr(),
                    b: right[strip * step.len()..].as_ptr(),
                    c: sums[strip..].as_mut_ptr(),
                    stride: PANEL,
                    add: step.start > 0,
                };
                // SAFETY: the slices are cut to the sizes that `Tile` asks for.
                unsafe { s.multiply_rows::<PITCH>(self.words, left.len() / PITCH, &tile) };
            }
        }
    }

    /// Turns sums of integers into what they stand for.
    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, panel: usize, scales: &[f32], sums: &mut [f32]) {
        let Some((columns, totals)) = self.w.columns(panel) else { return };
        // What the left side's zero has added to every sum of a column.
        let zero = if self.words == Words::I8 { i32::from(I8_ZERO) } else { 0 };
        let mut surplus = [0.0; PANEL];
        for (surplus, total) in surplus.iter_mut().zip(totals) {
            *surplus = f32::from_bits((-zero * total).cast_unsigned());
        }
        for (sums, scale) in sums.chunks_exact_mut(PANEL).zip(scales) {
            for c in (0..PANEL).step_by(S::LANES) {
                let sum = s.add_integers(s.read(&sums[c..]), s.read(&surplus[c..]));
                let unit = s.mul(s.read(&columns[c..]), s.splat(*scale));
                s.write(&mut sums[c..], s.mul(s.integers(sum), unit));
            }
        }
    }
}

/// Rounds the values of a row, which are multiplied by `by` for integers, and lays them out as words from
/// the value `at` on.
#[inline(always)]
fn pack_words<S: Simd>(s: S, words: Words, x: &[f32], by: f32, (to, at): (&mut [f32], usize)) {
    assert!(at + x.len() <= words.group() * DEPTH && to.len() == PITCH, "values of one row");
    let by = s.splat(by);
    for (i, x) in x.chunks(S::LANES).enumerate() {
        let at = at + i * S::LANES;
        let x = s.read_some(x);
        // SAFETY: of at most `DEPTH` words; a vector that hangs over ends within the row's pitch, and
        // what it leaves there is overwritten or never read.
        unsafe {
            match words {
                Words::F32 => s.store(to.as_mut_ptr().add(at), x),
                Words::Bf16 => s.store_bf16(to.as_mut_ptr().cast::<bf16>().add(at), x),
                Words::I16 => s.store_i16(to.as_mut_ptr().cast::<i16>().add(at), s.mul(x, by)),
                Words::I8 => s.store_u8(to.as_mut_ptr().cast::<u8>().add(at), s.mul(x, by)),
            }
        }
    }
}
