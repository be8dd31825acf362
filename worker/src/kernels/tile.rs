//! The product's innermost loop, on one tile of the output, and the layout its rows come in.
#![expect(unsafe_code, reason = "the innermost loop walks panels by pointer")]

use super::simd::Simd;

/// What a 32-bit word of a product's left and right side holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// One `f32`. Sums are `f32`.
    F32,
    /// Two bfloat16, one row of the depth after the other. Sums are `f32`.
    Bf16,
    /// Two 16-bit integers. Sums are 32-bit integers.
    I16,
    /// Four 8-bit integers, unsigned ([`I8_ZERO`] stands for zero) on the left and signed on the
    /// right. Sums are 32-bit integers.
    I8,
}

/// The zero of the left side's 8-bit integers.
pub(super) const I8_ZERO: u8 = 128;

impl Words {
    /// Rows of the depth that a word holds.
    pub(super) const fn group(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 | Self::I16 => 2,
            Self::I8 => 4,
        }
    }
}

/// From one row of a left side to the next, in words, where rows have `depth` of them: off a power of
/// two, so that the rows of a tile do not share the few cache lines of one set.
pub(super) const fn pitch(depth: usize) -> usize {
    depth + LINE
}

/// The pitch of a left side that is interleaved: each row is the next word.
pub(super) const INTERLEAVED: usize = 1;
/// Words of a cache line.
const LINE: usize = 16;

/// One tile of a product: `c[r][j] = sum over k of a[k][r] * b[k][j]`, the sums taken in order of
/// `k`, or that sum added to `c`.
///
/// For [`Simd::multiply`] with `rows` rows, `a` is `[depth][ROWS]` and `b` is `[depth][WIDTH]`. For
/// [`Simd::multiply_rows`], `a` is `[rows][PITCH]`, of which the first `depth` words of each row are read,
/// and `b` is `[depth][WIDTH]` as well. Each of the `rows` rows of `c`, `stride` apart, must be
/// writable (and where `add`, readable) for `WIDTH` values, which nothing else touches meanwhile.
/// Rows of the left side that lie after those of this tile are fetched for the next.
pub(super) struct Tile {
    pub(super) depth: usize,
    pub(super) a: *const f32,
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    pub(super) stride: usize,
    pub(super) add: bool,
}

/// How words are multiplied and summed.
pub(super) trait Terms<S: Simd> {
    /// `sum + a * b`, for every value of the words.
    fn fma(s: S, a: S::V, b: S::V, sum: S::V) -> S::V;
    /// The sum of two sums.
    fn add(s: S, a: S::V, b: S::V) -> S::V;
}

/// [`Words::F32`].
pub(super) struct Floats;

impl<S: Simd> Terms<S> for Floats {
    #[inline(always)]
    fn fma(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.fma(a, b, sum)
    }

    #[inline(always)]
    fn add(s: S, a: S::V, b: S::V) -> S::V {
        s.add(a, b)
    }
}

/// Multiplies a tile of `M` rows and `N` vectors, its left side in rows or interleaved.
///
/// Every row takes the same steps whatever `M` is, so a row's sums do not depend on its tile.
///
/// # Safety
/// As [`Tile`] says, for `M` rows; `N * LANES` is `WIDTH`.
#[inline(always)]
pub(super) unsafe fn multiply<
    S: Simd,
    T: Terms<S>,
    const M: usize,
    const N: usize,
    const PITCH: usize,
>(
    s: S,
    tile: &Tile,
) {
    let in_rows = PITCH != INTERLEAVED;
    let ahead = if in_rows { 1 } else { S::ROWS };
    let mut sums = [[s.splat(0.0); N]; M];
    let (mut a, mut b) = (tile.a, tile.b);
    for i in 0..if tile.add { M } else { 0 } {
        s.prefetch_near(tile.c.wrapping_add(i * tile.stride), S::WIDTH);
    }
    let mut k = 0;
    while k < tile.depth {
        // The next tile's rows are too short for the machine to see them coming.
        for i in 0..if in_rows && k.is_multiple_of(LINE) { M } else { 0 } {
            s.prefetch_near(a.wrapping_add((S::ROWS + i) * PITCH), 1);
        }
        let steps = if k + S::STEPS <= tile.depth { S::STEPS } else { 1 };
        if steps == S::STEPS {
            for step in 0..S::STEPS {
                let (a, b) = (a.wrapping_add(step * ahead), b.wrapping_add(step * S::WIDTH));
                // SAFETY: so many more steps are of the depth.
                unsafe { add_step::<S, T, M, N, PITCH>(s, (a, b), &mut sums) };
            }
        } else {
            // SAFETY: `k` is a step of the depth.
            unsafe { add_step::<S, T, M, N, PITCH>(s, (a, b), &mut sums) };
        }
        (a, b) = (a.wrapping_add(steps * ahead), b.wrapping_add(steps * S::WIDTH));
        k += steps;
    }
    for (i, sums) in sums.into_iter().enumerate() {
        for (j, sum) in sums.into_iter().enumerate() {
            // SAFETY: inside row `i` of `c`, which has `WIDTH` values.
            unsafe {
                let at = tile.c.add(i * tile.stride + j * S::LANES);
                s.store(at, if tile.add { T::add(s, s.load(at), sum) } else { sum });
            }
        }
    }
}

/// Adds one step of the depth, whose words begin at `a` and `b`.
///
/// # Safety
/// `b` is readable for `WIDTH` words; `a` for `M` words, or one of each of `M` rows.
#[inline(always)]
unsafe fn add_step<S: Simd, T: Terms<S>, const M: usize, const N: usize, const PITCH: usize>(
    s: S,
    (a, b): (*const f32, *const f32),
    sums: &mut [[S::V; N]; M],
) {
    if PITCH != INTERLEAVED && S::AHEAD > 0 {
        s.prefetch_near(b.wrapping_add(S::AHEAD * S::WIDTH), S::WIDTH);
    }
    let mut columns = [s.splat(0.0); N];
    for (j, column) in columns.iter_mut().enumerate() {
        // SAFETY: the caller promises `WIDTH` words.
        *column = unsafe { s.load(b.add(j * S::LANES)) };
    }
    for (i, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller promises a word of each row.
        let x = s.splat(unsafe { *a.add(i * PITCH) });
        for (sum, column) in sums.iter_mut().zip(columns) {
            *sum = T::fma(s, x, column, *sum);
        }
    }
}

/// Calls `$height::<terms, pitch, rows>(tile)`, for any of the heights listed.
macro_rules! by_rows {
    ($rows:expr, $tile:expr, $height:ident, $terms:ty, $pitch:ident, $($n:literal)+) => {
        match $rows {
            // SAFETY: the caller keeps the promises of `Tile` for this many rows.
            $($n => unsafe { $height::<$terms, $pitch, $n>($tile) },)+
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use by_rows;

/// Makes words of two bfloat16 of `rows` rows of `pitch` values, where they lie: row `k` becomes words of
/// the rows `2 k` and `2 k + 1`, or of the last and zeros. What lies up to `LANES` values after the last row
/// is left undefined.
#[inline(always)]
pub(super) fn pair_rows<S: Simd>(s: S, values: &mut [f32], rows: usize, pitch: usize) {
    for pair in 0..rows.div_ceil(2) {
        for lane in (0..pitch).step_by(S::LANES) {
            let first = s.read(&values[2 * pair * pitch + lane..]);
            let second = if 2 * pair + 1 < rows {
                s.read(&values[(2 * pair + 1) * pitch + lane..])
            } else {
                s.splat(0.0)
            };
            // A vector may reach into the next row, of which all that is read lies further on.
            s.write(&mut values[pair * pitch + lane..], s.pair_bf16(first, second));
        }
    }
}

/// Transposes the first `length` values of `rows`: value `k` of row `r` goes to
/// `to[k * pitch + r]`. What lies between the rows' end and the pitch is left undefined, and so
/// are up to `LANES` values after the last.
#[inline(always)]
pub(super) fn interleave<S: Simd>(
    s: S,
    rows: &[&[f32]],
    length: usize,
    to: &mut [f32],
    pitch: usize,
) {
    assert!(rows.iter().all(|row| row.len() >= length), "every row has the length asked for");
    assert!(to.len() >= length * pitch + S::LANES, "room for the rows and a vector's overhang");
    let whole = length - length % S::LANES;
    for first in (0..rows.len()).step_by(S::LANES) {
        // Rows that are not there read as the last one; nobody looks at what comes of them.
        let row = |i: usize| rows[(first + i).min(rows.len() - 1)].as_ptr();
        for k in (0..whole).step_by(S::LANES) {
            // SAFETY: `k + LANES <= length`, and `to` has an overhang of `LANES` values beyond
            // the place where the last row begins.
            unsafe {
                s.transpose(|i| row(i).add(k), to.as_mut_ptr().add(k * pitch + first), pitch);
            }
        }
    }
    for k in whole..length {
        for (to, row) in to[k * pitch..].iter_mut().zip(rows) {
            *to = row[k];
        }
    }
}
