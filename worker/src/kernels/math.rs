//! Functions of a vector, built on its arithmetic.

use super::simd::Simd;

/// `2^x`, to about an ulp. What lies below the normal range comes out as about 2^-126, and what
/// lies above 2^127 as about that.
#[inline(always)]
pub(super) fn exp2<S: Simd>(s: S, x: S::V) -> S::V {
    // 2^r on [-1/2, 1/2], by interpolation at Chebyshev nodes: 5e-9 off.
    const TERMS: [f32; 6] =
        [1.545_316_3e-4, 1.339_086_3e-3, 9.618_083e-3, 5.550_357e-2, 2.402_265e-1, 6.931_472e-1];
    let x = s.min(s.max(x, s.splat(-126.0)), s.splat(127.0));
    let n = s.round(x);
    let r = s.sub(x, n);
    let mut p = s.splat(TERMS[0]);
    for term in &TERMS[1..] {
        p = s.fma(p, r, s.splat(*term));
    }
    let p = s.fma(p, r, s.splat(1.0));
    s.mul(p, s.power_of_two(n))
}

/// `e^x`.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    exp2(s, s.mul(x, s.splat(std::f32::consts::LOG2_E)))
}

/// One step of Newton's towards `1 / x` from what is `near` it: twice as many places are right.
#[inline(always)]
pub(super) fn refine_reciprocal<S: Simd>(s: S, x: S::V, near: S::V) -> S::V {
    let off = s.fma(s.sub(s.splat(0.0), x), near, s.splat(2.0));
    s.mul(near, off)
}

/// A function of one value, taken lane by lane.
pub(super) trait Function: Copy + Sync {
    fn of<S: Simd>(self, s: S, x: S::V) -> S::V;
}

/// `x`.
#[derive(Clone, Copy)]
pub(super) struct Identity;

impl Function for Identity {
    #[inline(always)]
    fn of<S: Simd>(self, _: S, x: S::V) -> S::V {
        x
    }
}

/// `x * sigmoid(slope * x)`: SiLU with a slope of 1, `QuickGelu` with 1.702.
#[derive(Clone, Copy)]
pub(super) struct Swish {
    slope: f32,
}

impl Swish {
    pub(super) const SILU: Self = Self { slope: 1.0 };
    pub(super) const QUICK_GELU: Self = Self { slope: 1.702 };
}

impl Function for Swish {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::V) -> S::V {
        let power = s.mul(x, s.splat(-self.slope * std::f32::consts::LOG2_E));
        s.mul(x, s.reciprocal(s.add(s.splat(1.0), exp2(s, power))))
    }
}

/// `x * (1 + erf(x / sqrt 2)) / 2`.
#[derive(Clone, Copy)]
pub(super) struct Gelu;

impl Function for Gelu {
    /// By `max(x, 0) - |x| erfc(|x| / sqrt 2) / 2`, which cancels nowhere; erfc by formula 7.1.26
    /// of Abramowitz and Stegun, 1.5e-7 off.
    #[inline(always)]
    fn of<S: Simd>(self, s: S, x: S::V) -> S::V {
        const TERMS: [f32; 5] =
            [1.061_405_4, -1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6];
        let size = s.max(x, s.sub(s.splat(0.0), x));
        let z = s.mul(size, s.splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = s.reciprocal(s.fma(z, s.splat(0.327_591_1), s.splat(1.0)));
        let mut p = s.splat(TERMS[0]);
        for term in &TERMS[1..] {
            p = s.fma(p, t, s.splat(*term));
        }
        let erfc = s.mul(s.mul(p, t), exp(s, s.mul(z, s.sub(s.splat(0.0), z))));
        let half = s.mul(size, s.splat(-0.5));
        s.fma(half, erfc, s.max(x, s.splat(0.0)))
    }
}
