//! 256-bit vectors with fused multiply-add.
#![expect(unsafe_code, reason = "vector instructions, on a machine known to have them")]
#![allow(
    clippy::wildcard_imports,
    reason = "the instructions of one set are named by their prefix; the lint is off in tests"
)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::math::refine_reciprocal;
use super::simd::{Kernel, Simd};
use super::tile::{Floats, INTERLEAVED, Terms, Tile, Words, by_rows, multiply};

/// AVX2, FMA and F16C. A value exists only where the machine has all three.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// Runs `kernel`, compiled for these instructions.
    ///
    /// # Safety
    /// The machine has them.
    #[target_feature(enable = "avx2,fma,f16c")]
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

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const ROWS: usize = 6;
    const WIDTH: usize = 16;
    const STEPS: usize = 8;
    const DEPTH: usize = 256;
    const AHEAD: usize = 0;

    instructions! {
        add(a, b) _mm256_add_ps(a, b);
        sub(a, b) _mm256_sub_ps(a, b);
        mul(a, b) _mm256_mul_ps(a, b);
        div(a, b) _mm256_div_ps(a, b);
        max(a, b) _mm256_max_ps(a, b);
        min(a, b) _mm256_min_ps(a, b);
        fma(a, b, c) _mm256_fmadd_ps(a, b, c);
        round(x) _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        power_of_two(n) _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
            _mm256_cvtps_epi32(n),
            _mm256_set1_epi32(127),
        )));
    }

    #[inline(always)]
    fn reciprocal(self, x: __m256) -> __m256 {
        // SAFETY: `self` exists, so the machine has the instruction.
        let near = unsafe { _mm256_rcp_ps(x) };
        refine_reciprocal(self, x, near)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` exists, so the machine has the instruction.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the caller promises eight readable values.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m256) {
        // SAFETY: the caller promises room for eight values.
        unsafe { _mm256_storeu_ps(to, x) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        // SAFETY: the caller promises eight readable values.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        // SAFETY: the caller promises eight readable values. A bf16 is the upper half of an f32.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, row: impl Fn(usize) -> *const f32, to: *mut f32, pitch: usize) {
        let mut quads = [[self.splat(0.0); 4]; 2];
        for (g, quad) in quads.iter_mut().enumerate() {
            // SAFETY: the caller promises eight readable values in each row.
            unsafe {
                let (a, b) = (self.load(row(4 * g)), self.load(row(4 * g + 1)));
                let (c, d) = (self.load(row(4 * g + 2)), self.load(row(4 * g + 3)));
                *quad = turn_quad(a, b, c, d);
            }
        }
        let [top, bottom] = quads;
        for c in 0..4 {
            // SAFETY: the caller promises room for eight values in each row of `to`.
            unsafe {
                let column = _mm256_permute2f128_ps::<0x20>(top[c], bottom[c]);
                self.store(to.add(c * pitch), column);
            }
        }
        for c in 0..4 {
            // SAFETY: as above.
            unsafe {
                let column = _mm256_permute2f128_ps::<0x31>(top[c], bottom[c]);
                self.store(to.add((4 + c) * pitch), column);
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply(self, words: Words, rows: usize, tile: &Tile) {
        assert!(words == Words::F32, "AVX2 has no instruction for {words:?}");
        by_rows!(rows, tile, height, Floats, INTERLEAVED, 1 2 3 4 5 6);
    }

    #[inline(always)]
    unsafe fn multiply_rows<const PITCH: usize>(self, words: Words, rows: usize, tile: &Tile) {
        match words {
            Words::F32 => {
                by_rows!(rows, tile, height, Floats, PITCH, 1 2 3 4 5 6);
            }
            Words::I16 => {
                by_rows!(rows, tile, height, I16s, PITCH, 1 2 3 4 5 6);
            }
            other => unreachable!("AVX2 has no instruction for {other:?}"),
        }
    }

    #[inline(always)]
    fn add_integers(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` exists, so the machine has the instruction.
        unsafe {
            let sum = _mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b));
            _mm256_castsi256_ps(sum)
        }
    }

    #[inline(always)]
    fn integers(self, x: __m256) -> __m256 {
        // SAFETY: `self` exists, so the machine has the instruction.
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(x)) }
    }

    #[inline(always)]
    fn split_quads(self, quads: __m256) -> [__m256; 2] {
        // SAFETY: `self` exists, so the machine has the instructions.
        unsafe { split_quads(quads) }
    }

    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16, x: __m256) {
        // SAFETY: the caller promises room for eight values.
        unsafe {
            let whole = _mm256_cvtps_epi32(x);
            let (low, high) = (_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
            _mm_storeu_si128(to.cast(), _mm_packs_epi32(low, high));
        }
    }
}

/// Turns four rows into four columns of each half: half `h` of result `c` is column `4 * h + c`
/// of the rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn turn_quad(a: __m256, b: __m256, c: __m256, d: __m256) -> [__m256; 4] {
    let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
    [
        _mm256_shuffle_ps::<0x44>(ab, cd),
        _mm256_shuffle_ps::<0xee>(ab, cd),
        _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
        _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
    ]
}

/// Puts each byte into the upper half of 16 bits, from where a shift fills the lower half's place with its
/// sign.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn split_quads(quads: __m256) -> [__m256; 2] {
    const NONE: i8 = -1;
    let first = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        NONE, 0, NONE, 1, NONE, 4, NONE, 5, NONE, 8, NONE, 9, NONE, 12, NONE, 13,
    ));
    // The bytes two further on; of a place that takes none the top bit stays set.
    let second = _mm256_or_si256(first, _mm256_set1_epi16(0x0200));
    [first, second].map(|bytes| {
        let wide = _mm256_shuffle_epi8(_mm256_castps_si256(quads), bytes);
        _mm256_castsi256_ps(_mm256_srai_epi16::<8>(wide))
    })
}

/// Pairs of 16-bit integers.
struct I16s;

impl Terms<Avx2> for I16s {
    #[inline(always)]
    fn fma(s: Avx2, a: __m256, b: __m256, sum: __m256) -> __m256 {
        // SAFETY: an `Avx2` exists, so the machine has the instructions.
        let products = unsafe {
            let products = _mm256_madd_epi16(_mm256_castps_si256(a), _mm256_castps_si256(b));
            _mm256_castsi256_ps(products)
        };
        s.add_integers(sum, products)
    }

    #[inline(always)]
    fn add(s: Avx2, a: __m256, b: __m256) -> __m256 {
        s.add_integers(a, b)
    }
}

/// # Safety
/// As [`Tile`] says, on a machine with the instructions.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn height<T: Terms<Avx2>, const PITCH: usize, const M: usize>(tile: &Tile) {
    // SAFETY: the caller keeps the promises of `Tile`.
    unsafe { multiply::<Avx2, T, M, 2, PITCH>(Avx2(()), tile) }
}
