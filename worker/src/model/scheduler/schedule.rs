//! The noise levels a model was trained at, and the few of them that a run visits.

#![expect(clippy::cast_possible_truncation, reason = "torch and numpy round to f32 here")]

use candle_core::{Result, Tensor};

use super::combine;

/// What the model's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prediction {
    /// The noise in the latent.
    Epsilon,
    /// v = alpha * noise - sigma * image (Salimans and Ho, 2022).
    Velocity,
}

/// How much image and how much noise a latent holds: x = alpha * image + sigma * noise, where
/// alpha^2 + sigma^2 = 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoiseLevel {
    pub(super) alpha: f64,
    pub(super) sigma: f64,
}

impl NoiseLevel {
    pub(super) fn from_alpha_cumprod(alpha_cumprod: f32) -> Self {
        let alpha_cumprod = f64::from(alpha_cumprod);
        Self { alpha: alpha_cumprod.sqrt(), sigma: (1.0 - alpha_cumprod).sqrt() }
    }

    /// From the ratio of noise to image, which is what the "sigmas" of a schedule are.
    pub(super) fn from_ratio(ratio: f32) -> Self {
        let ratio = f64::from(ratio);
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { alpha, sigma: ratio * alpha }
    }

    /// What image and noise are multiplied by.
    pub(super) fn coefficients(self) -> (f64, f64) {
        (self.alpha, self.sigma)
    }

    /// Half the log signal-to-noise ratio; infinite for a latent without noise.
    pub(super) fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }

    /// Coefficients of the image that a prediction implies: of the latent, of the prediction.
    pub(super) fn image(self, prediction: Prediction) -> (f64, f64) {
        match prediction {
            Prediction::Epsilon => (1.0 / self.alpha, -self.sigma / self.alpha),
            Prediction::Velocity => (self.alpha, -self.sigma),
        }
    }

    /// Coefficients of the noise that a prediction implies: of the latent, of the prediction.
    pub(super) fn noise(self, prediction: Prediction) -> (f64, f64) {
        match prediction {
            Prediction::Epsilon => (0.0, 1.0),
            Prediction::Velocity => (self.sigma, self.alpha),
        }
    }

    /// The image that a prediction implies.
    pub(super) fn predict_image(
        self,
        kind: Prediction,
        prediction: &Tensor,
        sample: &Tensor,
    ) -> Result<Tensor> {
        let (of_sample, of_prediction) = self.image(kind);
        combine([(of_sample, sample), (of_prediction, prediction)])
    }
}

/// The curve of the betas between their ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BetaCurve {
    /// Straight in beta.
    Linear,
    /// Straight in the square root of beta.
    ScaledLinear,
}

/// Cumulative products of 1 - beta over the training timesteps, rounded to f32 where torch does:
/// 1 - alpha near alpha = 1 would show it.
pub(super) fn alphas_cumprod(curve: BetaCurve, start: f64, end: f64, train: usize) -> Vec<f32> {
    let betas = match curve {
        BetaCurve::Linear => linspace(start, end, train),
        BetaCurve::ScaledLinear => {
            linspace(start.sqrt(), end.sqrt(), train).into_iter().map(|root| root * root).collect()
        }
    };
    cumulative_product(betas.into_iter().map(|beta| 1.0 - beta))
}

/// `torch.linspace` in f32: from both ends towards the middle, one rounding for each value.
fn linspace(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (n - 1) as f32;
    let value = |i: usize| {
        if i < n / 2 {
            step.mul_add(i as f32, start)
        } else {
            (-step).mul_add((n - 1 - i) as f32, end)
        }
    };
    (0..n).map(value).collect()
}

/// `torch.cumprod` of f32 on the CPU, which accumulates in f64.
fn cumulative_product(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let product = |product: &mut f64, factor: f32| {
        *product *= f64::from(factor);
        Some(*product as f32)
    };
    factors.scan(1.0, product).collect()
}

/// Rescales so that the last training timestep is pure noise: algorithm 1 of "Common Diffusion
/// Noise Schedules and Sample Steps are Flawed" (Lin et al., 2023), in f32 as diffusers does.
pub(super) fn rescale_zero_terminal_snr(alphas_cumprod: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod.iter().map(|alpha| alpha.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let bars: Vec<f32> = roots.iter().map(|root| ((root - last) * scale).powi(2)).collect();
    // Through the betas and back, because diffusers rounds there.
    let alphas = bars.windows(2).map(|pair| pair[1] / pair[0]);
    let betas = std::iter::once(bars[0]).chain(alphas).map(|alpha| 1.0 - alpha);
    cumulative_product(betas.map(|beta| 1.0 - beta))
}

/// Noise to image ratios, sqrt((1 - a) / a), of cumulative alphas.
pub(super) fn noise_ratios(alphas_cumprod: &[f32]) -> Vec<f32> {
    alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
}

/// How the visited timesteps are spread over the training timesteps (Lin et al., 2023, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

impl Spacing {
    /// `n` of `train` timesteps, descending, as numpy computes them; only linspace's have
    /// fractions.
    ///
    /// Where numpy's `arange` rounds to one value too many (61 trailing steps of 1000), diffusers
    /// makes one more call at timestep -1; here `n` are `n`.
    pub(super) fn timesteps(self, train: usize, n: usize, offset: usize) -> Vec<f64> {
        match self {
            Self::Leading => (0..n).rev().map(|i| (i * (train / n) + offset) as f64).collect(),
            Self::Linspace if n == 1 => vec![0.0],
            Self::Linspace => {
                let last = (train - 1) as f64;
                let step = last / (n - 1) as f64;
                (0..n).rev().map(|i| if i == n - 1 { last } else { i as f64 * step }).collect()
            }
            Self::Trailing => {
                let train = train as f64;
                let step = (train - train / n as f64) - train;
                (0..n).map(|i| (train + i as f64 * step).round_ties_even() - 1.0).collect()
            }
        }
    }
}

/// The noise levels of a run, from `timesteps` visited to the end.
#[derive(Debug, Clone)]
pub(super) struct Sigmas {
    /// One a call.
    pub(super) timesteps: Vec<f32>,
    /// Noise to image ratio at each call, and after the last.
    pub(super) ratios: Vec<f32>,
}

impl Sigmas {
    /// The ratios at `timesteps`, between those of training, ending in `last`.
    pub(super) fn at(timesteps: &[f64], training: &[f32], last: f32) -> Self {
        // Diffusers keeps fractions in f32 before it looks up the ratio.
        let timesteps: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let ratios = timesteps.iter().map(|&t| interpolate(f64::from(t), training) as f32);
        Self { ratios: ratios.chain([last]).collect(), timesteps }
    }

    /// `n` ratios from `max` to `min`, dense where there is little noise, ending in `last`:
    /// equation 5 of "Elucidating the Design Space" (Karras et al., 2022) with rho 7.
    pub(super) fn karras(max: f64, min: f64, n: usize, training: &[f32], last: f32) -> Self {
        const RHO: f64 = 7.0;
        let (max, min) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
        let step = 1.0 / (n.max(2) - 1) as f64;
        let ratio = |i: usize| (max + i as f64 * step * (min - max)).powf(RHO);
        let ratios: Vec<f64> = (0..n).map(ratio).collect();
        let logs: Vec<f64> = training.iter().map(|ratio| f64::from(ratio.ln())).collect();
        let timesteps = ratios.iter().map(|&ratio| timestep_of(ratio, &logs) as f32).collect();
        let ratios = ratios.iter().map(|&ratio| ratio as f32).chain([last]).collect();
        Self { timesteps, ratios }
    }

    /// The same without the first `skipped` of its calls.
    pub(super) fn from(mut self, skipped: usize) -> Self {
        self.timesteps.drain(..skipped);
        self.ratios.drain(..skipped);
        self
    }

    /// The same, with the model shown whole timesteps only.
    pub(super) fn rounded(mut self) -> Self {
        self.timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
        self
    }
}

/// `numpy.interp` of `values` at `x`: straight between neighbours, constant past the ends.
pub(super) fn interpolate(x: f64, values: &[f32]) -> f64 {
    let last = values.len() - 1;
    let low = (x.max(0.0) as usize).min(last);
    let below = f64::from(values[low]);
    if low == last {
        return below;
    }
    let above = f64::from(values[low + 1]);
    (above - below) * (x.max(0.0) - low as f64) + below
}

/// The timestep, with its fraction, that training visited `ratio` at.
fn timestep_of(ratio: f64, log_ratios: &[f64]) -> f64 {
    let log = ratio.max(1e-10).ln();
    let low = log_ratios.partition_point(|&known| known <= log).saturating_sub(1);
    let low = low.min(log_ratios.len() - 2);
    let (below, above) = (log_ratios[low], log_ratios[low + 1]);
    let weight = ((below - log) / (below - above)).clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}
