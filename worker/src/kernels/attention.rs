//! Softmax attention, a block of keys at a time: the scores of all pairs never exist at once.
//!
//! Scores are kept transposed, `[keys][queries]`, so that queries lie along the lanes. Then the
//! softmax goes down the columns without ever adding across lanes, both products are the same
//! tiles as a linear layer's, and the scores of one serve the other where they lie. A query's
//! lanes never meet another's, so its result depends on no other query.
#![expect(unsafe_code, reason = "tiles are multiplied by pointer into checked buffers")]

use std::ops::Range;

use half::slice::HalfFloatSliceExt;

use super::isa::Isa;
use super::math::exp2;
use super::packed::{Arithmetic, PANEL, Stored};
use super::scratch::Scratch;
use super::simd::{Kernel, MAX_ROWS, Simd};
use super::tasks::{self, Shared};
use super::tile::{Tile, Words, interleave, pair_rows};

/// Keys of a block: a whole number of tiles for every instruction set.
const BLOCK_KEYS: usize = 168;
/// Values of queries, and as many of their results, that a task keeps at hand.
const CHUNK_VALUES: usize = 128 * 1024;
/// Queries for which it pays to lay out the keys again.
const LEAST_CHUNK: usize = 128;

/// The sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Sequences.
    pub batch: usize,
    /// Heads of each.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Queries of each sequence.
    pub queries: usize,
    /// Whether query `i` sees only the keys up to `i`.
    pub causal: bool,
    /// The numbers that are multiplied: f32, or bfloat16 where the machine has it. Softmax and sums are
    /// f32 either way.
    pub arithmetic: Arithmetic,
}

/// Some of the tokens that are attended to: `heads * head_dim` keys, and as many values, of each.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// From the first token's first key on.
    pub keys: Stored<'a>,
    /// From the first token's first value on.
    pub values: Stored<'a>,
    /// Tokens of each sequence.
    pub rows: usize,
    /// From one token to the next; from one sequence to the next it is `rows` times that.
    pub row_stride: usize,
}

/// `softmax(q k' / sqrt(head_dim)) v` for each head: `q` and `out` are
/// `[batch, queries, heads * head_dim]`. The tokens of all `parts`, in order, are attended to.
///
/// # Panics
/// When a slice is not as long as `h` makes it, there are no keys, or the machine does not multiply in
/// those numbers.
pub fn attention(isa: Isa, out: &mut [f32], q: &[f32], parts: &[Keys<'_>], h: &Heads) {
    let inner = h.heads * h.head_dim;
    assert_eq!(q.len(), h.batch * h.queries * inner, "queries [batch, queries, {inner}]");
    assert_eq!(out.len(), q.len(), "an output like the queries");
    let keys = parts.iter().map(|part| part.rows).sum();
    assert!(keys > 0 && h.head_dim > 0, "something to attend to");
    for part in parts.iter().filter(|part| part.rows * h.batch > 0) {
        let needed = (h.batch * part.rows - 1) * part.row_stride + inner;
        let least = part.keys.len().min(part.values.len());
        assert!(least >= needed, "keys and values [batch, keys, {inner}]");
    }
    assert!(h.arithmetic != Arithmetic::Int8, "attention of f32 or bfloat16");
    let words = isa.words(h.arithmetic);
    let job = Job { out: Shared::new(out), q, parts, keys, h, words };
    let chunks = chunks(isa, h);
    let panels = h.queries.div_ceil(isa.tile_width());
    tasks::each(h.batch * h.heads * chunks, |i| {
        let (sequence_head, chunk) = (i / chunks, i % chunks);
        let share = panels * chunk / chunks..panels * (chunk + 1) / chunks;
        isa.run(Chunk {
            job: &job,
            sequence: sequence_head / h.heads,
            head: sequence_head % h.heads,
            queries: share.start * isa.tile_width()..h.queries.min(share.end * isa.tile_width()),
        });
    });
}

/// Into how many chunks a head's queries are split: none larger than a task can keep at hand, and
/// some for each thread where they do not become too small. No result depends on it.
fn chunks(isa: Isa, h: &Heads) -> usize {
    const PER_THREAD: usize = 3;
    let least = (h.queries * h.head_dim).div_ceil(CHUNK_VALUES);
    let threads = tasks::threads();
    if threads == 1 {
        return least.clamp(1, h.queries.div_ceil(isa.tile_width()).max(1));
    }
    let wanted = (threads * PER_THREAD).div_ceil((h.batch * h.heads).max(1));
    let most = h.queries.div_ceil(LEAST_CHUNK).max(1);
    wanted.min(most).max(least).clamp(1, h.queries.div_ceil(isa.tile_width()).max(1))
}

struct Job<'a> {
    out: Shared<'a>,
    q: &'a [f32],
    parts: &'a [Keys<'a>],
    keys: usize,
    h: &'a Heads,
    words: Words,
}

/// The keys or the values of a part.
type Side = for<'a> fn(&Keys<'a>) -> Stored<'a>;

/// Some queries of one head.
struct Chunk<'a> {
    job: &'a Job<'a>,
    sequence: usize,
    head: usize,
    queries: Range<usize>,
}

/// What a chunk works in. Of bfloat16, two rows of the depth are one row of words, and half as many follow
/// each other where there is room for all.
struct Buffers<'a> {
    /// `[panel][head_dim][WIDTH]`, scaled.
    queries: &'a mut [f32],
    /// The sums of values so far, `[panel][head_dim][WIDTH]`.
    results: &'a mut [f32],
    /// The largest score and the sum of the weights so far, `[panel][2][WIDTH]`.
    state: &'a mut [f32],
    /// A block of keys, `[tile][head_dim][ROWS]`.
    keys: &'a mut [f32],
    /// A block of values, `[tile][keys][ROWS]`.
    values: &'a mut [f32],
    /// The scores of a panel with a block of keys, `[keys][WIDTH]`.
    scores: &'a mut [f32],
    /// Keys or values of a block that are not f32 where they lie, `[keys][head_dim]`.
    widened: &'a mut [f32],
}

impl Kernel for Chunk<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dim = self.job.h.head_dim;
        let panels = self.queries.len().div_ceil(S::WIDTH);
        let sizes = [
            panels * dim * S::WIDTH + S::LANES,
            panels * dim * S::WIDTH,
            panels * 2 * S::WIDTH,
            BLOCK_KEYS.next_multiple_of(S::ROWS) * dim + S::LANES,
            dim.next_multiple_of(S::ROWS) * BLOCK_KEYS + S::LANES,
            BLOCK_KEYS * S::WIDTH + S::LANES,
            if self.job.parts.iter().all(is_f32) { 0 } else { BLOCK_KEYS * dim + S::LANES },
        ]
        .map(|size| size.next_multiple_of(16));
        let mut scratch = Scratch::take(sizes.iter().sum());
        let mut rest = &mut scratch[..];
        let [queries, results, state, keys, values, scores, widened] =
            sizes.map(|size| rest.split_off_mut(..size).expect("the sizes add up"));
        let mut buffers = Buffers { queries, results, state, keys, values, scores, widened };

        self.begin(s, &mut buffers);
        for start in (0..self.job.keys).step_by(BLOCK_KEYS) {
            let block = start..self.job.keys.min(start + BLOCK_KEYS);
            self.pack_keys(s, block.clone(), &mut buffers);
            self.pack_values(s, block.clone(), &mut buffers);
            for panel in 0..panels {
                self.score(s, &block, panel, &mut buffers);
                soften(s, block.len(), (panel, dim), &mut buffers);
                self.pair(s, buffers.scores, block.len(), S::WIDTH);
                self.sum_values(s, block.len(), panel, &mut buffers);
            }
        }
        for panel in 0..panels {
            self.finish(s, panel, &mut buffers);
        }
    }
}

impl Chunk<'_> {
    /// Makes words of `rows` rows of the depth, if these are not their values.
    #[inline(always)]
    fn pair<S: Simd>(&self, s: S, values: &mut [f32], rows: usize, pitch: usize) {
        if self.job.words == Words::Bf16 {
            pair_rows(s, values, rows, pitch);
        }
    }

    /// Rows of words that `rows` rows of the depth are.
    #[inline(always)]
    fn depth(&self, rows: usize) -> usize {
        rows.div_ceil(self.job.words.group())
    }

    /// Lays out the queries and resets what is gathered.
    #[inline(always)]
    fn begin<S: Simd>(&self, s: S, buffers: &mut Buffers<'_>) {
        let Heads { heads, head_dim, queries, .. } = *self.job.h;
        // The softmax is taken to base two.
        #[expect(clippy::cast_precision_loss, reason = "a head has few values")]
        let scale = s.splat(std::f32::consts::LOG2_E / (head_dim as f32).sqrt());
        for (panel, first) in self.queries.clone().step_by(S::WIDTH).enumerate() {
            let count = S::WIDTH.min(self.queries.end - first);
            let mut rows: [&[f32]; PANEL] = [&[]; PANEL];
            for (query, row) in (first..).zip(&mut rows[..count]) {
                let at = ((self.sequence * queries + query) * heads + self.head) * head_dim;
                *row = &self.job.q[at..][..head_dim];
            }
            let to = &mut buffers.queries[panel * head_dim * S::WIDTH..];
            interleave(s, &rows[..count], head_dim, to, S::WIDTH);
            for values in to[..head_dim * S::WIDTH].chunks_exact_mut(S::LANES) {
                s.write(values, s.mul(s.read(values), scale));
            }
            self.pair(s, to, head_dim, S::WIDTH);
        }
        buffers.results.fill(0.0);
        for state in buffers.state.chunks_exact_mut(2 * S::WIDTH) {
            let (largest, total) = state.split_at_mut(S::WIDTH);
            largest.fill(f32::MIN);
            total.fill(0.0);
        }
    }

    /// Which part token `key` is of, and where its row begins there.
    #[inline(always)]
    fn place(&self, key: usize) -> (&Keys<'_>, usize) {
        let Heads { head_dim, .. } = *self.job.h;
        let mut row = key;
        for part in self.job.parts {
            if row < part.rows {
                let at = (self.sequence * part.rows + row) * part.row_stride;
                return (part, at + self.head * head_dim);
            }
            row -= part.rows;
        }
        unreachable!("a block ends with the last part")
    }

    /// Widens what is not f32 of a block's keys or values.
    fn widen(&self, block: Range<usize>, side: Side, to: &mut [f32]) {
        let dim = self.job.h.head_dim;
        for (key, to) in block.zip(to.chunks_exact_mut(dim)) {
            let (part, at) = self.place(key);
            match side(part) {
                Stored::F32(_) => {}
                Stored::F16(values) => values[at..at + dim].convert_to_f32_slice(to),
                Stored::Bf16(values) => values[at..at + dim].convert_to_f32_slice(to),
            }
        }
    }

    /// A key's or value's row in a block that starts with `first`.
    #[inline(always)]
    fn row<'v>(&'v self, side: Side, key: usize, first: usize, widened: &'v [f32]) -> &'v [f32] {
        let (part, at) = self.place(key);
        match side(part) {
            Stored::F32(values) => &values[at..],
            _ => &widened[(key - first) * self.job.h.head_dim..],
        }
    }

    #[inline(always)]
    fn pack_keys<S: Simd>(&self, s: S, block: Range<usize>, buffers: &mut Buffers<'_>) {
        let (dim, to) = (self.job.h.head_dim, &mut *buffers.keys);
        if !buffers.widened.is_empty() {
            self.widen(block.clone(), keys, buffers.widened);
        }
        for (tile, first) in block.clone().step_by(S::ROWS).enumerate() {
            let count = S::ROWS.min(block.end - first);
            let mut rows: [&[f32]; MAX_ROWS] = [&[]; MAX_ROWS];
            for (key, row) in (first..).zip(&mut rows[..count]) {
                *row = self.row(keys, key, block.start, buffers.widened);
            }
            let to = &mut to[tile * S::ROWS * dim..];
            interleave(s, &rows[..count], dim, to, S::ROWS);
            self.pair(s, to, dim, S::ROWS);
        }
    }

    #[inline(always)]
    fn pack_values<S: Simd>(&self, s: S, block: Range<usize>, buffers: &mut Buffers<'_>) {
        let (dim, to) = (self.job.h.head_dim, &mut *buffers.values);
        if !buffers.widened.is_empty() {
            self.widen(block.clone(), values, buffers.widened);
        }
        for (tile, first) in (0..dim).step_by(S::ROWS).enumerate() {
            let to = &mut to[tile * S::ROWS * block.len()..];
            for (i, key) in block.clone().enumerate() {
                // A vector is wider than a tile is high: its end is overwritten by the next.
                let row = self.row(values, key, block.start, buffers.widened);
                s.write(&mut to[i * S::ROWS..], s.read_some(&row[first..]));
            }
            self.pair(s, to, block.len(), S::ROWS);
        }
    }

    /// The scores of a panel of queries with a block of keys.
    #[inline(always)]
    fn score<S: Simd>(&self, s: S, block: &Range<usize>, panel: usize, buffers: &mut Buffers<'_>) {
        let dim = self.job.h.head_dim;
        let queries = &buffers.queries[panel * dim * S::WIDTH..][..dim * S::WIDTH];
        for (i, first) in (0..block.len()).step_by(S::ROWS).enumerate() {
            let rows = S::ROWS.min(block.len() - first);
            let keys = &buffers.keys[i * S::ROWS * dim..][..S::ROWS * dim];
            let scores = &mut buffers.scores[first * S::WIDTH..][..rows * S::WIDTH];
            let tile = Tile {
                depth: self.depth(dim),
                a: keys.as_ptr(),
                b: queries.as_ptr(),
                c: scores.as_mut_ptr(),
                stride: S::WIDTH,
                add: false,
            };
            // SAFETY: the slices have just been cut to the sizes that `Tile` asks for.
            unsafe { s.multiply(self.job.words, rows, &tile) };
        }
        if self.job.h.causal {
            let first = self.queries.start + panel * S::WIDTH;
            for (key, scores) in block.clone().zip(buffers.scores.chunks_exact_mut(S::WIDTH)) {
                scores[..key.saturating_sub(first).min(S::WIDTH)].fill(f32::NEG_INFINITY);
            }
        }
    }

    /// Adds a block's values to a panel's results, by their weights.
    #[inline(always)]
    fn sum_values<S: Simd>(&self, s: S, keys: usize, panel: usize, buffers: &mut Buffers<'_>) {
        let dim = self.job.h.head_dim;
        let weights = &buffers.scores[..keys * S::WIDTH];
        let results = &mut buffers.results[panel * dim * S::WIDTH..][..dim * S::WIDTH];
        for (i, first) in (0..dim).step_by(S::ROWS).enumerate() {
            let rows = S::ROWS.min(dim - first);
            let values = &buffers.values[i * S::ROWS * keys..][..S::ROWS * keys];
            let results = &mut results[first * S::WIDTH..][..rows * S::WIDTH];
            let tile = Tile {
                depth: self.depth(keys),
                a: values.as_ptr(),
                b: weights.as_ptr(),
                c: results.as_mut_ptr(),
                stride: S::WIDTH,
                add: true,
            };
            // SAFETY: the slices have just been cut to the sizes that `Tile` asks for.
            unsafe { s.multiply(self.job.words, rows, &tile) };
        }
    }

    /// Divides a panel's sums by its weights and writes them out, a vector of each query's values
    /// at a time.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, panel: usize, buffers: &mut Buffers<'_>) {
        let Heads { heads, head_dim, queries, .. } = *self.job.h;
        let results = &mut buffers.results[panel * head_dim * S::WIDTH..][..head_dim * S::WIDTH];
        let totals = &buffers.state[(2 * panel + 1) * S::WIDTH..][..S::WIDTH];
        for lane in (0..S::WIDTH).step_by(S::LANES) {
            let share = s.div(s.splat(1.0), s.read(&totals[lane..]));
            for row in results.chunks_exact_mut(S::WIDTH) {
                let result = s.mul(s.read(&row[lane..]), share);
                s.write(&mut row[lane..], result);
            }
        }
        let first = self.queries.start + panel * S::WIDTH;
        let turned = &mut buffers.scores[..S::WIDTH * S::LANES + S::LANES];
        for (block, results) in results.chunks(S::LANES * S::WIDTH).enumerate() {
            let count = results.len() / S::WIDTH;
            let mut rows: [&[f32]; super::simd::MAX_LANES] = [&[]; super::simd::MAX_LANES];
            for (row, values) in rows.iter_mut().zip(results.chunks_exact(S::WIDTH)) {
                *row = values;
            }
            interleave(s, &rows[..count], S::WIDTH, turned, S::LANES);
            let these = first..self.queries.end.min(first + S::WIDTH);
            for (query, values) in these.zip(turned.chunks_exact(S::LANES)) {
                let row = (self.sequence * queries + query) * heads + self.head;
                // SAFETY: chunks have no query of a head in common.
                let out = unsafe { self.job.out.part(row * head_dim + block * S::LANES, count) };
                out.copy_from_slice(&values[..count]);
            }
        }
    }
}

fn keys<'a>(part: &Keys<'a>) -> Stored<'a> {
    part.keys
}

fn values<'a>(part: &Keys<'a>) -> Stored<'a> {
    part.values
}

fn is_f32(part: &Keys<'_>) -> bool {
    matches!((part.keys, part.values), (Stored::F32(_), Stored::F32(_)))
}

/// Turns a panel's scores into weights, after shrinking what was gathered under a smaller maximum.
#[inline(always)]
fn soften<S: Simd>(s: S, keys: usize, (panel, dim): (usize, usize), buffers: &mut Buffers<'_>) {
    let state = &mut buffers.state[2 * panel * S::WIDTH..][..2 * S::WIDTH];
    let (largest, total) = state.split_at_mut(S::WIDTH);
    let scores = &mut buffers.scores[..keys * S::WIDTH];
    let results = &mut buffers.results[panel * dim * S::WIDTH..][..dim * S::WIDTH];
    for lane in (0..S::WIDTH).step_by(S::LANES) {
        let before = s.read(&largest[lane..]);
        let mut most = before;
        for scores in scores.chunks_exact(S::WIDTH) {
            most = s.max(most, s.read(&scores[lane..]));
        }
        let shrink = exp2(s, s.sub(before, most));
        let mut sum = s.mul(s.read(&total[lane..]), shrink);
        for scores in scores.chunks_exact_mut(S::WIDTH) {
            let weight = exp2(s, s.sub(s.read(&scores[lane..]), most));
            sum = s.add(sum, weight);
            s.write(&mut scores[lane..], weight);
        }
        s.write(&mut largest[lane..], most);
        s.write(&mut total[lane..], sum);
        if s.sum(s.sub(most, before)) == 0.0 {
            continue; // No query has met a larger score: there is nothing to shrink.
        }
        for row in results.chunks_exact_mut(S::WIDTH) {
            let result = s.mul(s.read(&row[lane..]), shrink);
            s.write(&mut row[lane..], result);
        }
    }
}
