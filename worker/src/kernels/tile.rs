//! The product's innermost loop, on one tile of the output, and the layout its rows come in.
#![expect(unsafe_code, reason = "the innermost loop walks panels by pointer")]

use super::simd::Simd;

/// The most depth of a tile whose left side lies in rows.
pub(super) const DEPTH: usize = 256;
/// From one row of such a left side to the next: off a power of two, so that the rows of a tile
/// do not share the few cache lines of one set.
pub(super) const PITCH: usize = DEPTH + 16;

/// One tile of a product: `c[r][j] = sum over k of a[k][r] * b[k][j]`, the sums taken in order of
/// `k`, or that sum added to `c`.
///
/// For [`Simd::multiply`] with `rows` rows, `a` is `[depth][ROWS]`; for [`Simd::multiply_rows`] it is
/// `[rows][PITCH]`, of which the first `depth` values of each row are read. `b` is
/// `[depth][WIDTH]`, and each of the `rows` rows of `c`, `stride` apart, must be writable (and
/// where `add`, readable) for `WIDTH` values, which nothing else touches meanwhile.
pub(super) struct Tile {
    pub(super) depth: usize,
    pub(super) a: *const f32,
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    pub(super) stride: usize,
    pub(super) add: bool,
}

/// Multiplies a tile of `M` rows and `N` vectors, its left side in rows or interleaved.
///
/// Every row takes the same steps whatever `M` is, so a row's sums do not depend on its tile.
///
/// # Safety
/// As [`Tile`] says, for `M` rows; `N * LANES` is `WIDTH`.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, const M: usize, const N: usize, const IN_ROWS: bool>(
    s: S,
    tile: &Tile,
) {
    let (row, step) = if IN_ROWS { (PITCH, 1) } else { (1, S::ROWS) };
    let mut sums = [[s.splat(0.0); N]; M];
    let (mut a, mut b) = (tile.a, tile.b);
    for _ in 0..tile.depth {
        let mut columns = [s.splat(0.0); N];
        for (j, column) in columns.iter_mut().enumerate() {
            // SAFETY: `b` is at one of `depth` rows of `WIDTH` values.
            *column = unsafe { s.load(b.add(j * S::LANES)) };
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `a` is at one of `depth` steps, and `i < M <= ROWS`.
            let x = s.splat(unsafe { *a.add(i * row) });
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = s.fma(x, column, *sum);
            }
        }
        (a, b) = (a.wrapping_add(step), b.wrapping_add(S::WIDTH));
    }
    for (i, sums) in sums.into_iter().enumerate() {
        for (j, sum) in sums.into_iter().enumerate() {
            // SAFETY: inside row `i` of `c`, which has `WIDTH` values.
            unsafe {
                let at = tile.c.add(i * tile.stride + j * S::LANES);
                s.store(at, if tile.add { s.add(s.load(at), sum) } else { sum });
            }
        }
    }
}

/// Calls `$height::<rows, in_rows>(tile)`, for any of the heights listed.
macro_rules! by_rows {
    ($rows:expr, $tile:expr, $height:ident, $in_rows:literal, $($n:literal)+) => {
        match $rows {
            // SAFETY: the caller keeps the promises of `Tile` for this many rows.
            $($n => unsafe { $height::<$n, $in_rows>($tile) },)+
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use by_rows;

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
