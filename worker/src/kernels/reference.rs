//! What the kernels are held against: plain loops in `f64`, and values to feed both.

use half::{bf16, f16};

use super::{Activation, Epilogue, Heads, Stored};

/// `count` values from -1 to 1 that `seed` determines.
pub(super) fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A weight in each of the types it may be stored in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Type {
    F32,
    F16,
    Bf16,
}

/// A weight as stored.
pub(super) struct Weight {
    ty: Type,
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

impl Weight {
    pub(super) fn new(ty: Type, values: &[f32]) -> Self {
        let f16 = values.iter().map(|&x| f16::from_f32(x)).collect();
        let bf16 = values.iter().map(|&x| bf16::from_f32(x)).collect();
        Self { ty, f32: values.to_vec(), f16, bf16 }
    }

    pub(super) fn stored(&self) -> Stored<'_> {
        match self.ty {
            Type::F32 => Stored::F32(&self.f32),
            Type::F16 => Stored::F16(&self.f16),
            Type::Bf16 => Stored::Bf16(&self.bf16),
        }
    }

    /// The values as the type rounds them.
    pub(super) fn rounded(&self) -> Vec<f32> {
        match self.ty {
            Type::F32 => self.f32.clone(),
            Type::F16 => self.f16.iter().map(|x| x.to_f32()).collect(),
            Type::Bf16 => self.bf16.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// Asserts that each value is what it should be, to `tolerance` of the largest there is (or of 1).
pub(super) fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(1.0_f64, |a, b| a.max(b.abs()));
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(got) - want).abs();
        assert!(off <= tolerance * scale, "{what}: value {i} is {got}, not {want}");
    }
}

/// Asserts that two results are the same, bit for bit.
pub(super) fn assert_same(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}: length");
    let differs = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differs, None, "{what}: {a:?} and {b:?}");
}

/// Runs `f` with a pool of so many threads.
pub(super) fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(f)
}

/// erf by its series, or by the continued fraction of erfc.
fn erf(x: f64) -> f64 {
    if x.abs() > 3.0 {
        let z = x.abs();
        let fraction = (1..60).rev().fold(z, |f, k| z + f64::from(k) / 2.0 / f);
        let erfc = (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt());
        return x.signum() * (1.0 - erfc);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..80 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}

pub(super) fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
    }
}

/// `x [m, depth]` by `w [outputs, depth]`.
pub(super) fn product(x: &[f32], w: &[f32], depth: usize) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| -> f64 {
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    };
    let rows = x.chunks_exact(depth);
    rows.flat_map(|x| w.chunks_exact(depth).map(move |w| dot(x, w))).collect()
}

pub(super) fn finish(sums: &[f64], outputs: usize, epilogue: &Epilogue<'_>) -> Vec<f64> {
    let rows = sums.len() / outputs;
    let finish = |(i, sum): (usize, &f64)| {
        let bias = epilogue.bias.map_or(0.0, |bias| {
            let rows_per_bias = rows / (bias.len() / outputs);
            f64::from(bias[i / outputs / rows_per_bias * outputs + i % outputs])
        });
        let residual = epilogue.residual.map_or(0.0, |residual| f64::from(residual[i]));
        activate(epilogue.activation, sum + bias) + residual
    };
    sums.iter().enumerate().map(finish).collect()
}

/// The rows of a convolution's product, `[batch * rows * width, inputs * kernel * kernel]`, of a
/// whole image.
pub(super) fn taps(
    x: &[f32],
    [batch, rows, width, channels]: [usize; 4],
    kernel: usize,
    stride: usize,
) -> Vec<f32> {
    let mut out = Vec::new();
    for (n, row, column) in positions([batch, rows.div_ceil(stride), width.div_ceil(stride)]) {
        for (c, dy, dx) in positions([channels, kernel, kernel]) {
            let y = (row * stride + dy).checked_sub(kernel / 2).filter(|y| *y < rows);
            let x_ = (column * stride + dx).checked_sub(kernel / 2).filter(|x| *x < width);
            out.push(match (y, x_) {
                (Some(y), Some(x_)) => x[((n * rows + y) * width + x_) * channels + c],
                _ => 0.0,
            });
        }
    }
    out
}

fn positions([a, b, c]: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |i| (i / (b * c), i / c % b, i % c))
}

pub(super) fn attention(q: &[f32], (kv, all): (&[f32], usize), h: &Heads) -> Vec<f64> {
    let (dim, inner) = (h.head_dim, h.heads * h.head_dim);
    let at = |side: usize, n: usize, key: usize, head: usize, d: usize| {
        f64::from(kv[((n * all + key) * 2 + side) * inner + head * dim + d])
    };
    let mut out = Vec::new();
    for (n, i, head) in positions([h.batch, h.queries, h.heads]) {
        let q = &q[((n * h.queries + i) * h.heads + head) * dim..][..dim];
        let keys = if h.causal { i + 1 } else { all };
        let score = |key: usize| {
            let dot = |d: usize| f64::from(q[d]) * at(0, n, key, head, d);
            (0..dim).map(dot).sum::<f64>() / (dim as f64).sqrt()
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        for d in 0..dim {
            let sum: f64 = (0..keys).map(|key| weights[key] * at(1, n, key, head, d)).sum();
            out.push(sum / total);
        }
    }
    out
}
