//! Norms: the moments of an image's groups, and what is done with them.
#![expect(unsafe_code, reason = "tasks write disjoint parts of one output")]

use super::isa::Isa;
use super::math::{Function, Identity, Swish};
use super::scratch::Scratch;
use super::simd::{Kernel, Simd};
use super::tasks::{self, Shared};

/// The mean of some values and the sum of their squared deviations from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    /// The mean.
    pub mean: f32,
    /// The sum of the squared deviations.
    pub m2: f32,
}

/// Pixels whose moments are summed in `f32`, before they are merged in `f64`. A constant, so that
/// the moments do not depend on the threads.
const MOMENT_PIXELS: usize = 128;
/// Values a task of a norm takes.
const TASK_VALUES: usize = 32 * 1024;

/// The moments of each group of channels of each image, `[batch, groups]`: `x` is
/// `[batch, pixels, channels]`, and a group is `channels / groups` neighbouring channels.
///
/// # Panics
/// When `x` does not split evenly.
#[must_use]
pub fn group_moments(
    isa: Isa,
    x: &[f32],
    batch: usize,
    groups: usize,
    channels: usize,
) -> Vec<Moment> {
    assert_eq!(channels % groups, 0, "{groups} groups of {channels} channels");
    assert_eq!(x.len() % (batch * channels), 0, "{batch} images of {channels} channels");
    if x.is_empty() {
        return vec![Moment::default(); batch * groups];
    }
    let image = x.len() / batch;
    let chunk = MOMENT_PIXELS * channels;
    let chunks = image.div_ceil(chunk);
    let parts = tasks::map(batch * chunks, |i| {
        let start = i % chunks * chunk;
        let x = &x[i / chunks * image..][start..image.min(start + chunk)];
        let mut moments = vec![Sums::default(); groups];
        isa.run(ChunkMoments { x, channels, moments: &mut moments });
        moments
    });
    let mut moments = Vec::with_capacity(batch * groups);
    for image in parts.chunks_exact(chunks) {
        let merged = (0..groups).map(|g| image.iter().fold(Sums::default(), |a, b| a.merge(b[g])));
        moments.extend(merged.map(Sums::moment));
    }
    moments
}

/// A [`Moment`] on its way, with the number of values it is of.
#[derive(Clone, Copy, Default)]
struct Sums {
    count: f64,
    mean: f64,
    m2: f64,
}

impl Sums {
    fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        let part = other.count / count;
        Self {
            count,
            mean: self.mean + delta * part,
            m2: self.m2 + other.m2 + delta * delta * self.count * part,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    fn moment(self) -> Moment {
        Moment { mean: self.mean as f32, m2: self.m2 as f32 }
    }
}

struct ChunkMoments<'a> {
    x: &'a [f32],
    channels: usize,
    moments: &'a mut [Sums],
}

impl Kernel for ChunkMoments<'_> {
    /// Sums what the pixels differ by from the first one: close values then lose nothing.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, channels, moments } = self;
        let mut scratch = Scratch::take(2 * channels);
        let (sums, squares) = scratch.split_at_mut(channels);
        let origin = &x[..channels];
        sums.fill(0.0);
        squares.fill(0.0);
        let mut pixels = x.chunks_exact(8 * channels);
        for pixels in &mut pixels {
            add_pixels::<S, 8>(s, pixels, origin, sums, squares);
        }
        for pixel in pixels.remainder().chunks_exact(channels) {
            add_pixels::<S, 1>(s, pixel, origin, sums, squares);
        }
        let pixels = count(x.len() / channels);
        let (share, size) = (1.0 / pixels, channels / moments.len());
        for (g, moment) in moments.iter_mut().enumerate() {
            let group = g * size..(g + 1) * size;
            let (mut mean, mut within) = (0.0, 0.0);
            for c in group.clone() {
                let sum = f64::from(sums[c]);
                mean += f64::from(origin[c]) + sum * share;
                within += f64::from(squares[c]) - sum * sum * share;
            }
            mean /= count(size);
            let between: f64 = group
                .map(|c| f64::from(origin[c]) + f64::from(sums[c]) * share - mean)
                .map(|by| by * by)
                .sum();
            *moment = Sums { count: pixels * count(size), mean, m2: within + pixels * between };
        }
    }
}

/// Adds what the channels of `N` pixels differ by from the `origin`, and the squares of that. Pixels are added
/// one after the other, and memory is read in the order in which it lies.
#[inline(always)]
fn add_pixels<S: Simd, const N: usize>(
    s: S,
    pixels: &[f32],
    origin: &[f32],
    sums: &mut [f32],
    squares: &mut [f32],
) {
    let channels = origin.len();
    let whole = channels - channels % S::LANES;
    let rows: [&[f32]; N] = std::array::from_fn(|row| &pixels[row * channels..][..channels]);
    assert!(sums.len() == channels && squares.len() == channels, "a sum for each channel");
    for c in (0..whole).step_by(S::LANES) {
        // SAFETY: `c + LANES <= channels`, the length of each.
        unsafe {
            let from = s.load(origin.as_ptr().add(c));
            let mut sum = s.load(sums.as_ptr().add(c));
            let mut square = s.load(squares.as_ptr().add(c));
            for row in rows {
                let by = s.sub(s.load(row.as_ptr().add(c)), from);
                square = s.fma(by, by, square);
                sum = s.add(sum, by);
            }
            s.store(sums.as_mut_ptr().add(c), sum);
            s.store(squares.as_mut_ptr().add(c), square);
        }
    }
    for c in whole..channels {
        for row in rows {
            let by = row[c] - origin[c];
            (sums[c], squares[c]) = (sums[c] + by, squares[c] + by * by);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn count(n: usize) -> f64 {
    n as f64
}

/// `x * scale + shift`, followed by SiLU where `silu`: `x` and `out` are
/// `[batch, pixels, channels]`, `scale` and `shift` are `[batch, channels]`.
///
/// # Panics
/// When the slices do not fit together.
pub fn group_norm(
    isa: Isa,
    out: &mut [f32],
    x: &[f32],
    batch: usize,
    scale: &[f32],
    shift: &[f32],
    silu: bool,
) {
    let channels = scale.len() / batch;
    assert_eq!(scale.len(), batch * channels, "a scale [{batch}, channels]");
    assert_eq!(shift.len(), scale.len(), "a shift like the scale");
    assert_eq!(out.len(), x.len(), "an output like the input");
    assert_eq!(x.len() % scale.len(), 0, "{batch} images of {channels} channels");
    let image = x.len() / batch;
    let chunk = (TASK_VALUES / channels).max(1) * channels;
    let chunks = image.div_ceil(chunk);
    let out = Shared::new(out);
    tasks::each(batch * chunks, |i| {
        let (n, start) = (i / chunks, i % chunks * chunk);
        let (at, length) = (n * image + start, chunk.min(image - start));
        let of_image = n * channels..(n + 1) * channels;
        isa.run(Affine {
            // SAFETY: chunks do not overlap.
            out: unsafe { out.part(at, length) },
            x: &x[at..][..length],
            scale: &scale[of_image.clone()],
            shift: &shift[of_image],
            silu,
        });
    });
}

struct Affine<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    silu: bool,
}

impl Affine<'_> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, function: impl Function) {
        let channels = self.scale.len();
        let whole = channels - channels % S::LANES;
        let pixels = self.x.chunks_exact(channels);
        for (out, x) in self.out.chunks_exact_mut(channels).zip(pixels) {
            let vectors = out[..whole].chunks_exact_mut(S::LANES).zip(x.chunks_exact(S::LANES));
            let affine = self.scale.chunks_exact(S::LANES).zip(self.shift.chunks_exact(S::LANES));
            for ((out, x), (scale, shift)) in vectors.zip(affine) {
                let y = s.fma(s.read(x), s.read(scale), s.read(shift));
                s.write(out, function.of(s, y));
            }
            if whole < channels {
                let (scale, shift) = (&self.scale[whole..], &self.shift[whole..]);
                let x = s.read_some(&x[whole..]);
                let y = s.fma(x, s.read_some(scale), s.read_some(shift));
                s.write_some(&mut out[whole..], function.of(s, y));
            }
        }
    }
}

impl Kernel for Affine<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.silu { self.apply(s, Swish::SILU) } else { self.apply(s, Identity) }
    }
}

/// Brings each row of `x`, `[rows, channels]`, to a mean of zero and a variance of one, then
/// scales it by `gamma` and shifts it by `beta`, `[channels]` each.
///
/// # Panics
/// When the slices do not fit together.
pub fn layer_norm(isa: Isa, out: &mut [f32], x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) {
    let channels = gamma.len();
    assert_eq!(beta.len(), channels, "a shift like the scale");
    assert_eq!(out.len(), x.len(), "an output like the input");
    assert_eq!(x.len() % channels, 0, "rows of {channels} values");
    let chunk = (TASK_VALUES / channels).max(1) * channels;
    let out = Shared::new(out);
    tasks::each(x.len().div_ceil(chunk), |i| {
        let (at, length) = (i * chunk, chunk.min(x.len() - i * chunk));
        // SAFETY: chunks do not overlap.
        let out = unsafe { out.part(at, length) };
        isa.run(LayerNorm { out, x: &x[at..][..length], gamma, beta, eps });
    });
}

struct LayerNorm<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    eps: f32,
}

impl Kernel for LayerNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.gamma.len();
        let whole = channels - channels % S::LANES;
        #[expect(clippy::cast_precision_loss, reason = "a row has few values")]
        let share = 1.0 / channels as f32;
        for (out, x) in self.out.chunks_exact_mut(channels).zip(self.x.chunks_exact(channels)) {
            let (body, tail) = x.split_at(whole);
            let mut sums = s.splat(0.0);
            for x in body.chunks_exact(S::LANES) {
                sums = s.add(sums, s.read(x));
            }
            let mean = (s.sum(sums) + tail.iter().sum::<f32>()) * share;
            let mut squares = s.splat(0.0);
            for x in body.chunks_exact(S::LANES) {
                let by = s.sub(s.read(x), s.splat(mean));
                squares = s.fma(by, by, squares);
            }
            let tail: f32 = tail.iter().map(|x| (x - mean) * (x - mean)).sum();
            let variance = (s.sum(squares) + tail) * share;
            let scale = s.splat(1.0 / (variance + self.eps).sqrt());
            for c in (0..channels).step_by(S::LANES) {
                let by = s.sub(s.read_some(&x[c..]), s.splat(mean));
                let gamma = s.mul(s.read_some(&self.gamma[c..]), scale);
                let y = s.fma(by, gamma, s.read_some(&self.beta[c..]));
                s.write_some(&mut out[c..], y);
            }
        }
    }
}
