//! 512-bit vectors.
#![expect(unsafe_code, reason = "vector instructions, on a machine known to have them")]
#![allow(
    clippy::wildcard_imports,
    reason = "the instructions of one set are named by their prefix; the lint is off in tests"
)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::simd::{Kernel, Simd};
use super::tile::{Tile, by_rows, multiply};

/// AVX-512 F. A value exists only where the machine has it.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// Runs `kernel`, compiled for these instructions.
    ///
    /// # Safety
    /// The machine has them.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn run<K: Kernel>(kernel: K) {
        kernel.run(Self(()));
    }
}

/// Methods of one instruction each.
macro_rules! instructions {
    ($($name:ident($($x:ident),+) $body:expr;)+) => {$(
        #[inline(always)]
        fn $name(self, $($x: Self::V),+) -> Self::V {
            // SAFETY: `self` exists, so the machine has the instruction.
            unsafe { $body }
        }
    )+};
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 14;
    const WIDTH: usize = 32;

    instructions! {
        add(a, b) _mm512_add_ps(a, b);
        sub(a, b) _mm512_sub_ps(a, b);
        mul(a, b) _mm512_mul_ps(a, b);
        div(a, b) _mm512_div_ps(a, b);
        max(a, b) _mm512_max_ps(a, b);
        min(a, b) _mm512_min_ps(a, b);
        fma(a, b, c) _mm512_fmadd_ps(a, b, c);
        round(x) _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT }>(x);
        power_of_two(n) _mm512_scalef_ps(_mm512_set1_ps(1.0), n);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` exists, so the machine has the instruction.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: the caller promises sixteen readable values.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        // SAFETY: the caller promises room for sixteen values.
        unsafe { _mm512_storeu_ps(to, x) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m512 {
        // SAFETY: the caller promises sixteen readable values.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        // SAFETY: the caller promises sixteen readable values. A bf16 is the upper half of an f32.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, row: impl Fn(usize) -> *const f32, to: *mut f32, pitch: usize) {
        let mut quads = [[self.splat(0.0); 4]; 4];
        for (g, quad) in quads.iter_mut().enumerate() {
            // SAFETY: the caller promises sixteen readable values in each row.
            unsafe {
                let (a, b) = (self.load(row(4 * g)), self.load(row(4 * g + 1)));
                let (c, d) = (self.load(row(4 * g + 2)), self.load(row(4 * g + 3)));
                *quad = turn_quad(a, b, c, d);
            }
        }
        let mut columns = [[self.splat(0.0); 4]; 4];
        for (c, columns) in columns.iter_mut().enumerate() {
            // SAFETY: `self` exists, so the machine has the instructions.
            *columns = unsafe { join_quads(quads[0][c], quads[1][c], quads[2][c], quads[3][c]) };
        }
        for k in 0..16 {
            // SAFETY: the caller promises room for sixteen values in each row of `to`.
            unsafe { self.store(to.add(k * pitch), columns[k % 4][k / 4]) };
        }
    }

    #[inline(always)]
    unsafe fn multiply(self, rows: usize, tile: &Tile) {
        by_rows!(rows, tile, height, false, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }

    #[inline(always)]
    unsafe fn multiply_rows(self, rows: usize, tile: &Tile) {
        by_rows!(rows, tile, height, true, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }
}

/// Turns four rows into four columns of each quarter: quarter `q` of result `c` is column
/// `4 * q + c` of the rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn_quad(a: __m512, b: __m512, c: __m512, d: __m512) -> [__m512; 4] {
    let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
    [
        _mm512_shuffle_ps::<0x44>(ab, cd),
        _mm512_shuffle_ps::<0xee>(ab, cd),
        _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
        _mm512_shuffle_ps::<0xee>(ab_high, cd_high),
    ]
}

/// Gathers the quarters of four vectors: result `q` is quarter `q` of each.
#[inline]
#[target_feature(enable = "avx512f")]
fn join_quads(a: __m512, b: __m512, c: __m512, d: __m512) -> [__m512; 4] {
    let (ab, cd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
    let (ab_odd, cd_odd) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
    [
        _mm512_shuffle_f32x4::<0x88>(ab, cd),
        _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd),
        _mm512_shuffle_f32x4::<0xdd>(ab, cd),
        _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd),
    ]
}

/// # Safety
/// As [`Tile`] says, on a machine with the instructions.
#[target_feature(enable = "avx512f")]
unsafe fn height<const M: usize, const IN_ROWS: bool>(tile: &Tile) {
    // SAFETY: the caller keeps the promises of `Tile`.
    unsafe { multiply::<Avx512, M, 2, IN_ROWS>(Avx512(()), tile) }
}
