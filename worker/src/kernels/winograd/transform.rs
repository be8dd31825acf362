//! Winograd's minimal filtering: `m` outputs of a filter of three taps from `m + 2` products.
//!
//! Each set is the three small matrices of Lavin and Gray, "Fast Algorithms for Convolutional Neural
//! Networks" (arXiv:1509.09308), in one dimension; in two, each is applied down and then across.

use crate::kernels::simd::Simd;

/// Applies `$line` down the columns of a square of `$a x $a` vectors and then along its rows: vector `[$i, $j]`
/// is `$load`, and `$store` is told of each `$value` of the result, at `[$k, $l]`.
///
/// A function that is given those would not be compiled for the instruction set; and one that takes and
/// returns whole squares, which fit into no registers, takes twice as long.
macro_rules! both_ways {
    (
        $s:ident, $line:path, $a:expr => $b:expr,
        [$i:ident, $j:ident] $load:expr, [$k:ident, $l:ident, $value:ident] $store:expr
    ) => {{
        let mut columns = [[$s.splat(0.0); $a]; $b];
        for $j in 0..$a {
            let mut column = [$s.splat(0.0); $a];
            for ($i, value) in column.iter_mut().enumerate() {
                *value = $load;
            }
            for (row, value) in columns.iter_mut().zip($line($s, column)) {
                row[$j] = value;
            }
        }
        for ($k, row) in columns.into_iter().enumerate() {
            for ($l, $value) in $line($s, row).into_iter().enumerate() {
                $store;
            }
        }
    }};
}
pub(super) use both_ways;

/// `M` outputs from `N = M + 2` inputs, lane by lane; `M x M` from `N x N` by [`both_ways`].
pub(super) trait Transform<const M: usize, const N: usize>: Sync {
    fn input<S: Simd>(s: S, d: [S::V; N]) -> [S::V; N];
    fn weight<S: Simd>(s: S, g: [S::V; 3]) -> [S::V; N];
    fn output<S: Simd>(s: S, p: [S::V; N]) -> [S::V; M];
}

/// Two outputs, at the points 0, 1, -1 and infinity. Each output is a sum that reads nothing but
/// its own three inputs: what an output is does not depend on what else is in its tile.
pub(super) struct Two;

impl Transform<2, 4> for Two {
    #[inline(always)]
    fn input<S: Simd>(s: S, d: [S::V; 4]) -> [S::V; 4] {
        [s.sub(d[0], d[2]), s.add(d[1], d[2]), s.sub(d[2], d[1]), s.sub(d[1], d[3])]
    }

    #[inline(always)]
    fn weight<S: Simd>(s: S, g: [S::V; 3]) -> [S::V; 4] {
        let half = s.splat(0.5);
        let (ends, middle) = (s.mul(s.add(g[0], g[2]), half), s.mul(g[1], half));
        [g[0], s.add(ends, middle), s.sub(ends, middle), g[2]]
    }

    #[inline(always)]
    fn output<S: Simd>(s: S, p: [S::V; 4]) -> [S::V; 2] {
        [s.add(p[0], s.add(p[1], p[2])), s.sub(s.sub(p[1], p[2]), p[3])]
    }
}

/// Four outputs, at the points 0, ±√½, ±√2 and infinity, which lose less than the usual 0, ±1, ±2
/// because no coefficient is larger than 2√2.
pub(super) struct Four;

impl Four {
    /// The first pair of points, and the second.
    const P: f32 = std::f32::consts::FRAC_1_SQRT_2;
    const Q: f32 = std::f32::consts::SQRT_2;
}

impl Transform<4, 6> for Four {
    #[inline(always)]
    fn input<S: Simd>(s: S, d: [S::V; 6]) -> [S::V; 6] {
        let (p, q) = (s.splat(Self::P), s.splat(Self::Q));
        let middle = s.splat(-2.5);
        // What is even in a point, and what is odd.
        let even_p = s.fma(d[2], s.splat(-2.0), d[4]);
        let odd_p = s.fma(d[3], p, s.mul(d[1], s.splat(-Self::Q)));
        let even_q = s.fma(d[2], s.splat(-0.5), d[4]);
        let odd_q = s.fma(d[3], q, s.mul(d[1], s.splat(-Self::P)));
        [
            s.fma(d[2], middle, s.add(d[0], d[4])),
            s.add(even_p, odd_p),
            s.sub(even_p, odd_p),
            s.add(even_q, odd_q),
            s.sub(even_q, odd_q),
            s.fma(d[3], middle, s.add(d[1], d[5])),
        ]
    }

    #[inline(always)]
    fn weight<S: Simd>(s: S, g: [S::V; 3]) -> [S::V; 6] {
        let (by_p, by_q) = (s.splat(-2.0 / 3.0), s.splat(1.0 / 6.0));
        let even_p = s.mul(s.fma(g[2], s.splat(0.5), g[0]), by_p);
        let odd_p = s.mul(g[1], s.splat(-2.0 / 3.0 * Self::P));
        let even_q = s.mul(s.fma(g[2], s.splat(2.0), g[0]), by_q);
        let odd_q = s.mul(g[1], s.splat(Self::Q / 6.0));
        [
            g[0],
            s.add(even_p, odd_p),
            s.sub(even_p, odd_p),
            s.add(even_q, odd_q),
            s.sub(even_q, odd_q),
            g[2],
        ]
    }

    #[inline(always)]
    fn output<S: Simd>(s: S, p: [S::V; 6]) -> [S::V; 4] {
        let (even_p, odd_p) = (s.add(p[1], p[2]), s.sub(p[1], p[2]));
        let (even_q, odd_q) = (s.add(p[3], p[4]), s.sub(p[3], p[4]));
        let cubes = s.fma(odd_q, s.splat(2.0 * Self::Q), p[5]);
        [
            s.add(p[0], s.add(even_p, even_q)),
            s.fma(odd_p, s.splat(Self::P), s.mul(odd_q, s.splat(Self::Q))),
            s.fma(even_p, s.splat(0.5), s.mul(even_q, s.splat(2.0))),
            s.fma(odd_p, s.splat(Self::P / 2.0), cubes),
        ]
    }
}
