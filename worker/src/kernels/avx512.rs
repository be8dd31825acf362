//! 512-bit vectors.
#![expect(unsafe_code, reason = "vector instructions, on a machine known to have them")]
#![allow(
    clippy::wildcard_imports,
    reason = "the instructions of one set are named by their prefix; the lint is off in tests"
)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::math::refine_reciprocal;
use super::simd::{Kernel, Simd};
use super::tile::{Floats, I8_ZERO, INTERLEAVED, Terms, Tile, Words, by_rows, multiply};

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
    const STEPS: usize = 1;
    const DEPTH: usize = 640;
    const AHEAD: usize = 32;

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
    fn reciprocal(self, x: __m512) -> __m512 {
        // SAFETY: `self` exists, so the machine has the instruction.
        let near = unsafe { _mm512_rcp14_ps(x) };
        refine_reciprocal(self, x, near)
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
    unsafe fn multiply(self, words: Words, rows: usize, tile: &Tile) {
        match words {
            Words::F32 => {
                by_rows!(rows, tile, base, Floats, INTERLEAVED, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            }
            Words::Bf16 => {
                by_rows!(rows, tile, with_bf16, Bf16s, INTERLEAVED, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            }
            other => unreachable!("{other:?} are multiplied in rows"),
        }
    }

    #[inline(always)]
    unsafe fn multiply_rows<const PITCH: usize>(self, words: Words, rows: usize, tile: &Tile) {
        match words {
            Words::F32 => {
                by_rows!(rows, tile, base, Floats, PITCH, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            }
            Words::Bf16 => {
                by_rows!(rows, tile, with_bf16, Bf16s, PITCH, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            }
            Words::I16 => {
                by_rows!(rows, tile, with_words, I16s, PITCH, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            }
            Words::I8 => {
                by_rows!(rows, tile, with_vnni, I8s, PITCH, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            }
        }
    }

    #[inline(always)]
    fn add_integers(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` exists, so the machine has the instruction.
        unsafe { add_integers(a, b) }
    }

    #[inline(always)]
    fn integers(self, x: __m512) -> __m512 {
        // SAFETY: `self` exists, so the machine has the instruction.
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(x)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: __m512) {
        // SAFETY: the caller promises room for sixteen values.
        unsafe {
            let cut = _mm512_srli_epi32::<16>(round_bf16(x));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(cut));
        }
    }

    #[inline(always)]
    fn pair_bf16(self, first: __m512, second: __m512) -> __m512 {
        // SAFETY: `self` exists, so the machine has the instructions.
        unsafe {
            let low = _mm512_srli_epi32::<16>(round_bf16(first));
            let high = _mm512_slli_epi32::<16>(_mm512_srli_epi32::<16>(round_bf16(second)));
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        }
    }

    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16, x: __m512) {
        // SAFETY: the caller promises room for sixteen values.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x))) }
    }

    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, x: __m512) {
        // SAFETY: the caller promises room for sixteen values.
        unsafe {
            let zero = _mm512_set1_epi32(i32::from(I8_ZERO));
            let whole = _mm512_add_epi32(_mm512_cvtps_epi32(x), zero);
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(whole));
        }
    }
}

/// Rounds to bfloat16, which is then the upper half of each word: adding half of the last place that is
/// kept, or a little less where that place is even, and cutting rounds ties to even.
#[inline]
#[target_feature(enable = "avx512f")]
fn round_bf16(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)))
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

/// Words of other numbers than `f32`.
macro_rules! words {
    ($($name:ident $fma:ident $add:expr;)+) => {$(
        struct $name;

        impl Terms<Avx512> for $name {
            #[inline(always)]
            fn fma(_: Avx512, a: __m512, b: __m512, sum: __m512) -> __m512 {
                // SAFETY: only met where the machine has the instructions, by `multiply` and `multiply_rows`.
                unsafe { $fma(a, b, sum) }
            }

            #[inline(always)]
            fn add(_: Avx512, a: __m512, b: __m512) -> __m512 {
                // SAFETY: as above.
                unsafe { $add(a, b) }
            }
        }
    )+};
}

words! {
    Bf16s add_bf16_products _mm512_add_ps;
    I16s add_i16_products add_integers;
    I8s add_i8_products add_integers;
}

/// The height of a tile, compiled for some of the instructions.
macro_rules! heights {
    ($($name:ident $features:literal;)+) => {$(
        /// # Safety
        /// As [`Tile`] says, on a machine with the instructions.
        #[target_feature(enable = $features)]
        unsafe fn $name<T: Terms<Avx512>, const PITCH: usize, const M: usize>(tile: &Tile) {
            // SAFETY: the caller keeps the promises of `Tile`.
            unsafe { multiply::<Avx512, T, M, 2, PITCH>(Avx512(()), tile) }
        }
    )+};
}

heights! {
    base "avx512f";
    with_words "avx512f,avx512bw";
    with_vnni "avx512f,avx512vnni";
    with_bf16 "avx512f,avx512bf16";
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_bf16_products(a: __m512, b: __m512, sum: __m512) -> __m512 {
    // SAFETY: both are 512 bits, and any bits are bfloat16.
    let [a, b]: [__m512bh; 2] = unsafe { std::mem::transmute([a, b]) };
    _mm512_dpbf16_ps(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_i16_products(a: __m512, b: __m512, sum: __m512) -> __m512 {
    let products = _mm512_madd_epi16(_mm512_castps_si512(a), _mm512_castps_si512(b));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum), products))
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_i8_products(a: __m512, b: __m512, sum: __m512) -> __m512 {
    let [a, b, sum] = [a, b, sum].map(|x| _mm512_castps_si512(x));
    _mm512_castsi512_ps(_mm512_dpbusd_epi32(sum, a, b))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_integers(a: __m512, b: __m512) -> __m512 {
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
}
