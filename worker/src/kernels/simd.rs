//! A vector of lanes: what the kernels are written over.
#![expect(unsafe_code, reason = "loads and stores through pointers, whose bounds the caller knows")]

use half::{bf16, f16};

use super::tile::{I8_ZERO, Tile, Words};

/// Work that is compiled once for each instruction set.
pub(super) trait Kernel {
    /// Does the work with the vectors `s`. Implementations must be `#[inline(always)]`: only what
    /// is inlined into the entry of an instruction set is compiled for it.
    fn run<S: Simd>(self, s: S);
}

/// The vector instructions of one instruction set.
///
/// A value of the implementing type exists only where the machine has the instructions; that is
/// what makes the arithmetic safe to call.
pub(super) trait Simd: Copy {
    /// `LANES` values.
    type V: Copy;
    /// Values in a vector, at most [`MAX_LANES`].
    const LANES: usize;
    /// Rows in a tile of the product, at most [`MAX_ROWS`].
    const ROWS: usize;
    /// Columns in a tile of the product: a multiple of `LANES` that divides
    /// [`PANEL`](super::packed::PANEL).
    const WIDTH: usize;
    /// Steps of depth that the product's loop takes at a time: several where one is so short that the
    /// loop itself would count.
    const STEPS: usize;
    /// Words of depth that a product sums in a tile's registers, at most. A tile's part of the right side
    /// stays in the first-level cache if it is short; where steps take long, it may come from the second,
    /// and sums are read and written less often if it is long.
    const DEPTH: usize;
    /// So many steps before a product needs it, the right side is fetched into the first-level cache; none
    /// where it stays there.
    const AHEAD: usize;

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `1 / x` for `x` of at least 1, to about an ulp.
    fn reciprocal(self, x: Self::V) -> Self::V;
    /// The nearest whole numbers.
    fn round(self, x: Self::V) -> Self::V;
    /// `2^n` for whole numbers `n` from -126 to 127.
    fn power_of_two(self, n: Self::V) -> Self::V;

    /// # Safety
    /// `from` is readable for `LANES` values.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `to` is writable for `LANES` values.
    unsafe fn store(self, to: *mut f32, x: Self::V);
    /// # Safety
    /// `from` is readable for `LANES` values.
    unsafe fn load_f16(self, from: *const f16) -> Self::V;
    /// # Safety
    /// `from` is readable for `LANES` values.
    unsafe fn load_bf16(self, from: *const bf16) -> Self::V;

    /// Transposes `LANES` rows of `LANES` values: value `k` of `row(i)` becomes value `i` of the
    /// row `to + k * pitch`. Rows are written in order, so those of a pitch below `LANES` overlap
    /// and keep their first `pitch` values.
    ///
    /// # Safety
    /// Every `row(i)` is readable, and every row of `to` writable, for `LANES` values.
    unsafe fn transpose(self, row: impl Fn(usize) -> *const f32, to: *mut f32, pitch: usize);

    /// Multiplies one tile of `rows` rows, from 1 to `ROWS`, whose left side is interleaved.
    ///
    /// # Safety
    /// As [`Tile`] says; and the machine has the instructions for the `words`, `f32` or bfloat16, as
    /// [`Isa::words`](super::Isa::words) chose them.
    unsafe fn multiply(self, words: Words, rows: usize, tile: &Tile);

    /// Multiplies one tile of `rows` rows, from 1 to `ROWS`, whose left side lies in rows, `PITCH` words apart.
    ///
    /// # Safety
    /// As [`Tile`] says; and the machine has the instructions for the `words`, as
    /// [`Isa::words`](super::Isa::words) chose them.
    unsafe fn multiply_rows<const PITCH: usize>(self, words: Words, rows: usize, tile: &Tile);

    /// The sum of 32-bit integers, which lie in the bits of `a` and `b`.
    fn add_integers(self, a: Self::V, b: Self::V) -> Self::V;

    /// The 32-bit integers that lie in the bits of `x`, as `f32`.
    fn integers(self, x: Self::V) -> Self::V;

    /// Rounds to bfloat16, ties to even.
    ///
    /// # Safety
    /// `to` is writable for `LANES` values.
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: Self::V) {
        let mut values = [0.0; MAX_LANES];
        self.write(&mut values, x);
        for (i, value) in values[..Self::LANES].iter().enumerate() {
            // SAFETY: the caller promises room for `LANES` values.
            unsafe { to.add(i).write_unaligned(bf16::from_f32(*value)) };
        }
    }

    /// Rounds both to bfloat16, and puts each of `second` beside the one of `first`: a word of two.
    #[inline(always)]
    fn pair_bf16(self, first: Self::V, second: Self::V) -> Self::V {
        let (mut low, mut high) = ([bf16::ZERO; MAX_LANES], [bf16::ZERO; MAX_LANES]);
        self.write_bf16(&mut low, first);
        self.write_bf16(&mut high, second);
        let mut words = [0.0; MAX_LANES];
        for (word, (low, high)) in words.iter_mut().zip(low.into_iter().zip(high)) {
            *word = f32::from_bits(u32::from(high.to_bits()) << 16 | u32::from(low.to_bits()));
        }
        self.read(&words)
    }

    /// Widens words of four 8-bit integers to words of two 16-bit integers: of the first two, and of the last.
    #[inline(always)]
    fn split_quads(self, quads: Self::V) -> [Self::V; 2] {
        let mut words = [0.0; MAX_LANES];
        self.write(&mut words, quads);
        let half = |shift: u32| {
            // A byte's sign fills the half above it; the lower half is cut to its own bits.
            words.map(|word| {
                let [first, second] = [24 - shift, 16 - shift]
                    .map(|left| (word.to_bits() << left).cast_signed() >> 24);
                f32::from_bits((second << 16 | first & 0xffff).cast_unsigned())
            })
        };
        [self.read(&half(0)), self.read(&half(16))]
    }

    /// Rounds values within 16 bits to whole ones, ties to even.
    ///
    /// # Safety
    /// `to` is writable for `LANES` values.
    unsafe fn store_i16(self, to: *mut i16, x: Self::V);

    /// Rounds values within 127 of zero to whole ones, ties to even, and adds [`I8_ZERO`].
    ///
    /// # Safety
    /// `to` is writable for `LANES` values.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 255")]
    unsafe fn store_u8(self, to: *mut u8, x: Self::V) {
        let mut values = [0.0; MAX_LANES];
        self.write(&mut values, self.round(x));
        for (i, value) in values[..Self::LANES].iter().enumerate() {
            // SAFETY: the caller promises room for `LANES` values.
            unsafe { to.add(i).write((*value + f32::from(I8_ZERO)) as u8) };
        }
    }

    /// Has the cache lines of `count` values fetched to the second-level cache, for use a little later; wherever
    /// they are.
    #[inline(always)]
    fn prefetch<T>(self, from: *const T, count: usize) {
        prefetch::<1>(from.cast(), count * size_of::<T>());
    }

    /// Has the cache lines of `count` values fetched to the first-level cache, for use right after; wherever
    /// they are.
    #[inline(always)]
    fn prefetch_near(self, from: *const f32, count: usize) {
        prefetch::<0>(from.cast(), count * size_of::<f32>());
    }

    /// The first `LANES` values of `from`.
    #[inline(always)]
    fn read(self, from: &[f32]) -> Self::V {
        assert!(from.len() >= Self::LANES, "a vector is read whole");
        // SAFETY: the slice holds `LANES` values.
        unsafe { self.load(from.as_ptr()) }
    }

    /// Writes `x` over the first `LANES` values of `to`.
    #[inline(always)]
    fn write(self, to: &mut [f32], x: Self::V) {
        assert!(to.len() >= Self::LANES, "a vector is written whole");
        // SAFETY: the slice holds `LANES` values.
        unsafe { self.store(to.as_mut_ptr(), x) }
    }

    /// Rounds `x` to bfloat16 over the first `LANES` values of `to`.
    #[inline(always)]
    fn write_bf16(self, to: &mut [bf16], x: Self::V) {
        assert!(to.len() >= Self::LANES, "a vector is written whole");
        // SAFETY: the slice holds `LANES` values.
        unsafe { self.store_bf16(to.as_mut_ptr(), x) }
    }

    /// The first `LANES` values of `from`, or all it has with zeros after them.
    #[inline(always)]
    fn read_some(self, from: &[f32]) -> Self::V {
        if from.len() >= Self::LANES {
            return self.read(from);
        }
        let mut values = [0.0; MAX_LANES];
        values[..from.len()].copy_from_slice(from);
        self.read(&values)
    }

    /// Writes as much of `x` as `to` has room for.
    #[inline(always)]
    fn write_some(self, to: &mut [f32], x: Self::V) {
        if to.len() >= Self::LANES {
            return self.write(to, x);
        }
        let mut values = [0.0; MAX_LANES];
        self.write(&mut values, x);
        to.copy_from_slice(&values[..to.len()]);
    }

    /// The sum of the lanes.
    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        let mut values = [0.0; MAX_LANES];
        self.write(&mut values, x);
        values.iter().sum()
    }
}

/// Has the cache lines of some bytes fetched to the cache of a level, counted from 0.
#[inline(always)]
fn prefetch<const LEVEL: i32>(from: *const u8, bytes: usize) {
    const LINE: usize = 64;
    for byte in (0..bytes).step_by(LINE) {
        let line = from.wrapping_add(byte);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which no address makes fail; every x86-64 has it.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
            match LEVEL {
                0 => _mm_prefetch::<_MM_HINT_T0>(line.cast()),
                _ => _mm_prefetch::<_MM_HINT_T1>(line.cast()),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// The most lanes a vector has.
pub(super) const MAX_LANES: usize = 16;
/// The most rows a tile has.
pub(super) const MAX_ROWS: usize = 14;
