//! 3x3 convolution with stride 1 by Winograd's minimal filtering.
//!
//! The image is cut into tiles of `M x M` outputs, counted from the image's first row. `N x N` inputs
//! of each tile are transformed, `N = M + 2`, and so are the weights; place by place each is then
//! an ordinary product over the channels, `N²` multiplications for `M²` outputs where nine for each are
//! usual. Weights are transformed on the way, a panel's chunk at a time, where many tiles share
//! the cost: they take no memory of their own, and stay in the type they are stored in.
#![expect(unsafe_code, reason = "tiles are multiplied by pointer into checked buffers")]

mod transform;

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use self::transform::{Four, Transform, Two, both_ways};
use super::conv::{Band, Pixels};
use super::isa::Isa;
use super::packed::{Arithmetic, Element, PANEL, Packed, Stored};
use super::product::{Finish, share};
use super::scratch::Scratch;
use super::simd::{Kernel, Simd};
use super::tasks::{self, Shared};
use super::tile::{Tile, Words, pitch};

/// Words of channels that are summed at a time: more, and a panel's transformed weights, of 16 or 36 places,
/// leave the second-level cache.
const DEPTH: usize = 256;
/// From the words of one tile to those of the next.
const PITCH: usize = pitch(DEPTH);
/// Transformed inputs of a block, at most: they are read once for each panel and should stay in a
/// share of the last-level cache.
const BLOCK_VALUES: usize = 3 << 20;
/// Put between places that are read or written together: without it many would lie a multiple of the
/// page size apart, and compete for the few cache lines of one set.
const GAP: usize = 16;
/// Channels of a chunk are a multiple of this: whole vectors, and whole words, of every instruction set.
const WHOLE: usize = 16;
/// Tiles of a block, at least and at most.
const BLOCK_TILES: [usize; 2] = [84, 168];
/// Tasks for each thread, so that all end at about the same time.
const PER_THREAD: usize = 3;

/// Convolves a band by tiles of two outputs each way.
pub(super) fn by_two(
    isa: Isa,
    x: &Pixels<'_>,
    w: &Packed,
    arithmetic: Arithmetic,
    finish: &impl Finish,
) {
    let job = Job { x, w, finish, transform: PhantomData::<Two> };
    match isa.words(arithmetic) {
        Words::Bf16 => convolve::<2, 4, true>(isa, &job),
        _ => convolve::<2, 4, false>(isa, &job),
    }
}

/// Whether a band has so many tiles that F(4x4) is faster than F(2x2): each of them shares the cost of
/// transforming the weights, to more than twice as many.
pub(super) fn is_large(band: &Band<'_>) -> bool {
    const ENOUGH: usize = 16;
    Grid::new(band, 4).count() >= ENOUGH
}

/// Convolves a band by tiles of four outputs each way.
pub(super) fn by_four(isa: Isa, x: &Pixels<'_>, w: &Packed, finish: &impl Finish) {
    convolve::<4, 6, false>(isa, &Job { x, w, finish, transform: PhantomData::<Four> });
}

struct Job<'a, T, F> {
    x: &'a Pixels<'a>,
    w: &'a Packed,
    finish: &'a F,
    transform: PhantomData<T>,
}

/// Convolves with words of bfloat16 `PAIRS`, or of `f32`: each is compiled by itself, for a vector too many
/// in a transform costs half its speed.
///
/// No sum depends on how the work is shared. Where there are several blocks of tiles for each thread, a
/// thread takes whole blocks; where there are fewer, all threads transform the inputs of some blocks, and
/// then multiply them by a panel each.
fn convolve<const M: usize, const N: usize, const PAIRS: bool>(
    isa: Isa,
    job: &Job<'_, impl Transform<M, N>, impl Finish>,
) {
    let grid = Grid::new(job.x.band, M);
    let (tiles, panels) = (grid.count(), job.w.panels());
    let most = BLOCK_VALUES / (N * N * job.x.band.channels);
    let least = tiles.div_ceil(most.clamp(BLOCK_TILES[0], BLOCK_TILES[1]));
    let wanted = if tasks::threads() == 1 { 1 } else { tasks::threads() * PER_THREAD };
    let count = if least < wanted { least } else { least.next_multiple_of(tasks::threads()) };
    let block = |i| Block::<_, _, M, N, PAIRS> { job, grid, tiles: share(tiles, count, i) };
    if count >= wanted {
        tasks::each(count, |i| {
            let block = block(i);
            let mut inputs = Scratch::take(block.inputs_size());
            let to = Shared::new(&mut inputs);
            isa.run(Inputs { block: &block, tiles: 0..block.tiles.len(), to });
            isa.run(Panels { block: &block, panels: 0..panels, inputs: &inputs });
        });
        return;
    }
    let together = wanted.div_ceil(panels.max(1));
    for first in (0..count).step_by(together) {
        let blocks: Vec<_> = (first..count.min(first + together)).map(block).collect();
        let mut inputs: Vec<Scratch> =
            blocks.iter().map(|block| Scratch::take(block.inputs_size())).collect();
        let to: Vec<Shared<'_>> = inputs.iter_mut().map(|inputs| Shared::new(inputs)).collect();
        let parts = wanted.div_ceil(blocks.len());
        tasks::each(blocks.len() * parts, |i| {
            let (block, to) = (&blocks[i / parts], to[i / parts]);
            isa.run(Inputs { block, tiles: share(block.tiles.len(), parts, i % parts), to });
        });
        tasks::each(blocks.len() * panels, |i| {
            let (block, inputs) = (&blocks[i / panels], &inputs[i / panels]);
            isa.run(Panels { block, panels: i % panels..i % panels + 1, inputs });
        });
    }
}

/// The tiles of a band.
#[derive(Clone, Copy)]
struct Grid {
    images: usize,
    rows: usize,
    columns: usize,
    /// Output rows of the first tile row that lie before the band.
    before: usize,
}

impl Grid {
    fn new(band: &Band<'_>, side: usize) -> Self {
        let before = band.first_row % side;
        let [rows, columns] = [before + band.rows, band.width].map(|n| n.div_ceil(side));
        let rows = if band.rows == 0 { 0 } else { rows };
        Self { images: band.batch, rows, columns, before }
    }

    fn count(&self) -> usize {
        self.images * self.rows * self.columns
    }

    /// The image, row and column of a tile.
    fn place(&self, tile: usize) -> [usize; 3] {
        let row = tile / self.columns;
        [row / self.rows, row % self.rows, tile % self.columns]
    }
}

/// Some tiles of a convolution.
struct Block<'a, T, F, const M: usize, const N: usize, const PAIRS: bool> {
    job: &'a Job<'a, T, F>,
    grid: Grid,
    tiles: Range<usize>,
}

/// Transforms the inputs of some of a block's tiles, counted from its first, which no other task does.
struct Inputs<'a, B> {
    block: &'a B,
    tiles: Range<usize>,
    to: Shared<'a>,
}

/// Multiplies a block's transformed inputs by some panels, which no other task does.
struct Panels<'a, B> {
    block: &'a B,
    panels: Range<usize>,
    inputs: &'a [f32],
}

impl<T: Transform<M, N>, F: Finish, const M: usize, const N: usize, const PAIRS: bool> Kernel
    for Inputs<'_, Block<'_, T, F, M, N, PAIRS>>
{
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for tile in self.tiles {
            // SAFETY: no other task transforms this tile.
            unsafe { self.block.transform_input(s, tile, self.to) };
        }
    }
}

impl<T: Transform<M, N>, F: Finish, const M: usize, const N: usize, const PAIRS: bool> Kernel
    for Panels<'_, Block<'_, T, F, M, N, PAIRS>>
{
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let block = self.block;
        let tiles = block.tiles.len();
        let sizes =
            [N * N * (DEPTH * PANEL + GAP), N * N * (tiles * PANEL + GAP), M * M * tiles * PANEL];
        let mut scratch = Scratch::take(sizes.iter().sum());
        let mut rest = &mut scratch[..];
        let [weights, sums, outputs] =
            sizes.map(|size| rest.split_off_mut(..size).expect("the sizes add up"));

        for panel in self.panels {
            for (chunk, inputs) in block.chunks().zip(self.inputs.chunks(block.chunk_size())) {
                match block.job.w.panel(panel) {
                    Stored::F32(taps) => block.transform_weights(s, taps, &chunk, weights),
                    Stored::F16(taps) => block.transform_weights(s, taps, &chunk, weights),
                    Stored::Bf16(taps) => block.transform_weights(s, taps, &chunk, weights),
                }
                block.multiply(s, &chunk, (inputs, weights), sums);
            }
            block.transform_sums(s, sums, outputs);
            // SAFETY: no other task has the block's tiles and this panel.
            unsafe { block.finish(s, panel, outputs) };
        }
    }
}

impl<T: Transform<M, N>, F: Finish, const M: usize, const N: usize, const PAIRS: bool>
    Block<'_, T, F, M, N, PAIRS>
{
    /// What the words hold.
    const WORDS: Words = if PAIRS { Words::Bf16 } else { Words::F32 };
    /// Channels in a word.
    const GROUP: usize = Self::WORDS.group();
    /// The channels, in parts of at most [`DEPTH`] words and of one size.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let channels = self.job.x.band.channels;
        let parts = channels.div_ceil(DEPTH * Self::GROUP).max(1);
        let size = channels.div_ceil(parts).next_multiple_of(WHOLE).max(1);
        (0..channels).step_by(size).map(move |c| c..channels.min(c + size))
    }

    /// From the inputs of a place, `[tiles][PITCH]`, to those of the next.
    fn place_size(&self) -> usize {
        self.tiles.len() * PITCH + GAP
    }

    /// From the inputs of a chunk to those of the next.
    fn chunk_size(&self) -> usize {
        N * N * self.place_size()
    }

    /// Values that the block's transformed inputs take, `[chunk][N * N][tiles][PITCH]` with gaps.
    fn inputs_size(&self) -> usize {
        self.chunks().count() * self.chunk_size()
    }

    /// The inputs of a tile.
    ///
    /// # Safety
    /// Nothing else touches that tile's rows of `to` meanwhile.
    #[inline(always)]
    unsafe fn transform_input<S: Simd>(&self, s: S, tile: usize, to: Shared<'_>) {
        let [image, row, column] = self.grid.place(self.tiles.start + tile);
        let mut pixels: [[&[f32]; N]; N] = [[&[]; N]; N];
        for (i, pixels) in pixels.iter_mut().enumerate() {
            for (j, pixel) in pixels.iter_mut().enumerate() {
                // What lies further before the band than its padding is of no output here.
                let row = (row * M + i).checked_sub(self.grid.before);
                *pixel = self.job.x.at(image, row.unwrap_or(usize::MAX), column * M + j);
            }
        }
        let place_size = self.place_size();
        for (i, chunk) in self.chunks().enumerate() {
            let first = i * self.chunk_size() + tile * PITCH;
            let to = to.pointer(first, (N * N - 1) * place_size + PITCH);
            for c in chunk.clone().step_by(S::LANES) {
                let at = c - chunk.start;
                assert!(at + S::LANES <= PITCH * Self::GROUP, "words of one row");
                both_ways!(
                    s, T::input, N => N,
                    [i, j] s.read_some(&pixels[i][j][c..]),
                    // SAFETY: of row `tile` of a place, whose pitch a vector that hangs over stays in.
                    [i, j, value] unsafe {
                        let to = to.add((i * N + j) * place_size);
                        if PAIRS {
                            s.store_bf16(to.cast::<bf16>().add(at), value);
                        } else {
                            s.store(to.add(at), value);
                        }
                    }
                );
            }
        }
    }

    /// The weights of a chunk of channels, `[N * N][PANEL / WIDTH][words][WIDTH]` with gaps, from a panel's
    /// taps `[9][channels][PANEL]`.
    #[inline(always)]
    fn transform_weights<S: Simd, W: Element>(
        &self,
        s: S,
        taps: &[W],
        chunk: &Range<usize>,
        to: &mut [f32],
    ) {
        let tap = self.job.x.band.channels * PANEL;
        assert!(taps.len() == 9 * tap && chunk.end * PANEL <= tap, "nine taps of every channel");
        let words = chunk.len() / Self::GROUP;
        let place_size = words * PANEL + GAP;
        let to = &mut to[..N * N * place_size];
        for word in 0..words {
            for lane in (0..PANEL).step_by(S::LANES) {
                let from = (chunk.start + word * Self::GROUP) * PANEL + lane;
                let at = (lane / S::WIDTH * words + word) * S::WIDTH + lane % S::WIDTH;
                let mut first = [[s.splat(0.0); N]; N];
                both_ways!(
                    s, T::weight, 3 => N,
                    // SAFETY: of channel `from / PANEL`, which is one of the chunk's.
                    [i, j] unsafe { W::load(s, taps.as_ptr().add((3 * i + j) * tap + from)) },
                    [i, j, value] if PAIRS {
                        first[i][j] = value;
                    } else {
                        s.write(&mut to[(i * N + j) * place_size + at..], value);
                    }
                );
                if PAIRS {
                    both_ways!(
                        s, T::weight, 3 => N,
                        // SAFETY: of the next channel, the second of the word.
                        [i, j] unsafe {
                            W::load(s, taps.as_ptr().add((3 * i + j) * tap + from + PANEL))
                        },
                        [i, j, value] s.write(
                            &mut to[(i * N + j) * place_size + at..],
                            s.pair_bf16(first[i][j], value),
                        )
                    );
                }
            }
        }
    }

    /// Adds a chunk of channels to the sums `[N * N][tiles][PANEL]` (with gaps) of a panel, or begins them
    /// with it.
    #[inline(always)]
    fn multiply<S: Simd>(
        &self,
        s: S,
        chunk: &Range<usize>,
        (inputs, weights): (&[f32], &[f32]),
        sums: &mut [f32],
    ) {
        let tiles = self.tiles.len();
        let depth = chunk.len() / Self::GROUP;
        for place in 0..N * N {
            let weights = &weights[place * (depth * PANEL + GAP)..][..depth * PANEL];
            for strip in (0..PANEL).step_by(S::WIDTH) {
                for first in (0..tiles).step_by(S::ROWS) {
                    let rows = S::ROWS.min(tiles - first);
                    let inputs = &inputs[place * self.place_size() + first * PITCH..];
                    assert!(inputs.len() >= (rows - 1) * PITCH + depth, "rows of inputs");
                    let at = place * (tiles * PANEL + GAP) + first * PANEL;
                    let sums = &mut sums[at..][..rows * PANEL];
                    let tile = Tile {
                        depth,
                        a: inputs.as_ptr(),
                        b: weights[strip * depth..].as_ptr(),
                        c: sums[strip..].as_mut_ptr(),
                        stride: PANEL,
                        add: chunk.start > 0,
                    };
                    // SAFETY: the slices have just been cut to the sizes that `Tile` asks for.
                    unsafe { s.multiply_rows::<PITCH>(Self::WORDS, rows, &tile) };
                }
            }
        }
    }

    /// Turns sums into outputs, `[tile row][M][tile column][M][PANEL]` for the tiles' part of each row.
    #[inline(always)]
    fn transform_sums<S: Simd>(&self, s: S, sums: &[f32], outputs: &mut [f32]) {
        let tiles = self.tiles.len();
        for run in self.runs() {
            let first = run.start - self.tiles.start;
            let outputs = &mut outputs[first * M * M * PANEL..][..run.len() * M * M * PANEL];
            for tile in 0..run.len() {
                for lane in (0..PANEL).step_by(S::LANES) {
                    let from = (first + tile) * PANEL + lane;
                    both_ways!(
                        s, T::output, N => M,
                        [i, j] s.read(&sums[(i * N + j) * (tiles * PANEL + GAP) + from..]),
                        [i, j, value] {
                            let pixel = (i * run.len() + tile) * M + j;
                            s.write(&mut outputs[pixel * PANEL + lane..], value);
                        }
                    );
                }
            }
        }
    }

    /// The block's tiles, cut where a row of tiles ends.
    fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let (columns, end) = (self.grid.columns, self.tiles.end);
        let mut start = self.tiles.start;
        std::iter::from_fn(move || {
            let run = start..end.min((start / columns + 1) * columns);
            start = run.end;
            (!run.is_empty()).then_some(run)
        })
    }

    /// # Safety
    /// As for [`Finish::finish`].
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, panel: usize, outputs: &[f32]) {
        let Band { rows, width, .. } = *self.job.x.band;
        for run in self.runs() {
            let [image, tile_row, column] = self.grid.place(run.start);
            let outputs = &outputs[(run.start - self.tiles.start) * M * M * PANEL..];
            let columns = column * M..width.min((column + run.len()) * M);
            for i in 0..M {
                // Rows of a tile that lie before the band, or after it, are others'.
                let Some(row) = (tile_row * M + i).checked_sub(self.grid.before) else { continue };
                if row >= rows {
                    break;
                }
                let first = (image * rows + row) * width;
                let line = &outputs[i * run.len() * M * PANEL..][..columns.len() * PANEL];
                let pixels = first + columns.start..first + columns.end;
                // SAFETY: the caller's promise is handed on.
                unsafe { self.job.finish.finish(s, pixels, panel, line) };
            }
        }
    }
}
