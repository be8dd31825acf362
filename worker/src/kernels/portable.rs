//! Plain loops: the vectors of a machine about which nothing is known.
#![expect(unsafe_code, reason = "loads and stores through pointers, whose bounds the caller knows")]

use std::array;

use half::{bf16, f16};

use super::simd::Simd;
use super::tile::{Floats, INTERLEAVED, Terms, Tile, Words, by_rows, multiply};

const LANES: usize = 8;

/// Eight values at a time, in whatever registers the compiler finds.
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; LANES];
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    const WIDTH: usize = LANES;
    const STEPS: usize = 1;
    const DEPTH: usize = 256;
    const AHEAD: usize = 0;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `mul_add`, which is a function call where the baseline lacks the instruction.
        array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn reciprocal(self, x: Self::V) -> Self::V {
        x.map(|x| 1.0 / x)
    }

    #[inline(always)]
    fn round(self, x: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 leaves no room for a fraction; exact for the exponents met here.
        const SHIFT: f32 = 12_582_912.0;
        x.map(|x| (x + SHIFT) - SHIFT)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers from -126 to 127")]
    fn power_of_two(self, n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits(((n as i32 + 127) << 23).cast_unsigned()))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller promises `LANES` readable values; an array may stand anywhere.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: Self::V) {
        // SAFETY: the caller promises room for `LANES` values.
        unsafe { to.cast::<Self::V>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::V {
        // SAFETY: the caller promises `LANES` readable values.
        unsafe { from.cast::<[f16; LANES]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Self::V {
        // SAFETY: the caller promises `LANES` readable values.
        unsafe { from.cast::<[bf16; LANES]>().read_unaligned() }.map(bf16::to_f32)
    }

    #[inline(always)]
    unsafe fn transpose(self, row: impl Fn(usize) -> *const f32, to: *mut f32, pitch: usize) {
        // SAFETY: the caller promises `LANES` readable values in each row.
        let rows: [Self::V; LANES] = array::from_fn(|i| unsafe { self.load(row(i)) });
        for k in 0..LANES {
            let column = rows.map(|row| row[k]);
            // SAFETY: and `LANES` writable ones in each row of `to`.
            unsafe { self.store(to.add(k * pitch), column) };
        }
    }

    #[inline(always)]
    unsafe fn multiply(self, words: Words, rows: usize, tile: &Tile) {
        assert!(words == Words::F32, "there is no portable instruction for {words:?}");
        by_rows!(rows, tile, height, Floats, INTERLEAVED, 1 2 3 4);
    }

    #[inline(always)]
    unsafe fn multiply_rows<const PITCH: usize>(self, words: Words, rows: usize, tile: &Tile) {
        match words {
            Words::F32 => {
                by_rows!(rows, tile, height, Floats, PITCH, 1 2 3 4);
            }
            Words::I16 => {
                by_rows!(rows, tile, height, I16s, PITCH, 1 2 3 4);
            }
            other => unreachable!("there is no portable instruction for {other:?}"),
        }
    }

    #[inline(always)]
    fn add_integers(self, a: Self::V, b: Self::V) -> Self::V {
        array::from_fn(|i| f32::from_bits(a[i].to_bits().wrapping_add(b[i].to_bits())))
    }

    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "rounding to f32 is meant")]
    fn integers(self, x: Self::V) -> Self::V {
        x.map(|x| x.to_bits().cast_signed() as f32)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the caller promises 16 bits")]
    unsafe fn store_i16(self, to: *mut i16, x: Self::V) {
        let whole = self.round(x).map(|x| x as i16);
        // SAFETY: the caller promises room for `LANES` values.
        unsafe { to.cast::<[i16; LANES]>().write_unaligned(whole) };
    }
}

/// Pairs of 16-bit integers.
struct I16s;

impl Terms<Portable> for I16s {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a word is cut into its halves")]
    fn fma(_: Portable, a: [f32; LANES], b: [f32; LANES], sum: [f32; LANES]) -> [f32; LANES] {
        array::from_fn(|i| {
            let [a, b, sum] = [a[i], b[i], sum[i]].map(|word| word.to_bits().cast_signed());
            let low = i32::from(a as i16) * i32::from(b as i16);
            f32::from_bits((sum + low + (a >> 16) * (b >> 16)).cast_unsigned())
        })
    }

    #[inline(always)]
    fn add(s: Portable, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        s.add_integers(a, b)
    }
}

/// # Safety
/// As [`Tile`] says.
unsafe fn height<T: Terms<Portable>, const PITCH: usize, const M: usize>(tile: &Tile) {
    // SAFETY: the caller keeps the promises of `Tile`.
    unsafe { multiply::<Portable, T, M, 1, PITCH>(Portable, tile) }
}
