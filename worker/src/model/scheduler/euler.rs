//! Euler's method, plain and ancestral: algorithm 2 of "Elucidating the Design Space" (Karras et
//! al., 2022) without churn, and k-diffusion's `sample_euler_ancestral`.
//!
//! Latents are image + ratio * noise, not scaled to unit variance.

use candle_core::{Result, Tensor};

use super::schedule::{NoiseLevel, Prediction, Sigmas};
use super::{Scheduler, SchedulerKind, combine};

#[derive(Debug, Clone)]
pub(super) struct Euler {
    pub(super) sigmas: Sigmas,
    pub(super) prediction: Prediction,
    pub(super) init_noise_sigma: f64,
    pub(super) ancestral: bool,
}

impl Euler {
    /// The ratio that the step of `call` goes down to, and that of the fresh noise added after.
    fn split(&self, call: usize) -> (f64, f64) {
        let (from, to) = (self.sigmas.ratios[call], self.sigmas.ratios[call + 1]);
        if self.ancestral { ancestral_split(from, to) } else { (to.into(), 0.0) }
    }
}

impl Scheduler for Euler {
    fn kind(&self) -> SchedulerKind {
        if self.ancestral { SchedulerKind::EulerA } else { SchedulerKind::Euler }
    }

    fn timesteps(&self) -> &[f32] {
        &self.sigmas.timesteps
    }

    fn noising(&self) -> (f64, f64) {
        (1.0, self.sigmas.ratios[0].into())
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, call: usize, sample: &Tensor) -> Result<Tensor> {
        sample.affine(NoiseLevel::from_ratio(self.sigmas.ratios[call]).alpha, 0.0)
    }

    fn step(
        &mut self,
        call: usize,
        prediction: &Tensor,
        sample: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let from = self.sigmas.ratios[call];
        let (down, up) = self.split(call);
        let dt = down - f64::from(from);
        let (of_sample, of_prediction) = slope(from, self.prediction);
        let next = combine([(1.0 + dt * of_sample, sample), (dt * of_prediction, prediction)])?;
        if up > 0.0 { combine([(1.0, &next), (up, &noise()?)]) } else { Ok(next) }
    }

    fn draws(&self, calls: usize) -> usize {
        (0..calls).filter(|&call| self.split(call).1 > 0.0).count()
    }
}

/// The derivative of the latent by the noise ratio: coefficients of the latent, of the prediction.
pub(super) fn slope(ratio: f32, prediction: Prediction) -> (f64, f64) {
    let level = NoiseLevel::from_ratio(ratio);
    let (of_sample, of_prediction) = level.noise(prediction);
    (of_sample * level.alpha, of_prediction)
}

/// Splits the step to ratio `to` into a longer step down and fresh noise back up.
fn ancestral_split(from: f32, to: f32) -> (f64, f64) {
    let (from, to) = (f64::from(from).powi(2), f64::from(to).powi(2));
    let up = to * (from - to) / from;
    // Far apart, nearly all of `to` is fresh noise, and rounding may make it more than all.
    ((to - up).max(0.0).sqrt(), up.sqrt())
}
