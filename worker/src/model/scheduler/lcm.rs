//! Latent consistency models: "Latent Consistency Models" (Luo et al., 2023), multistep sampling.

use candle_core::{Result, Tensor};

use super::ddim::clip;
use super::schedule::{NoiseLevel, Prediction};
use super::{Scheduler, SchedulerKind, combine};

/// The standard deviation of images that the boundary condition assumes.
const SIGMA_DATA: f64 = 0.5;

#[derive(Debug, Clone)]
pub(super) struct Lcm {
    pub(super) timesteps: Vec<f32>,
    /// Noise at each call.
    pub(super) levels: Vec<NoiseLevel>,
    pub(super) prediction: Prediction,
    pub(super) clip: Option<f64>,
    pub(super) timestep_scaling: f64,
}

impl Lcm {
    #[expect(clippy::cast_possible_truncation, reason = "an index below `original`")]
    /// `steps` of the `original` timesteps that distillation used, descending.
    pub(super) fn timesteps(train: usize, original: usize, steps: usize) -> Vec<usize> {
        let stride = train / original;
        let skip = original as f64 / steps as f64;
        let index = |i: usize| (i as f64 * skip).floor() as usize;
        (0..steps).map(|i| (original - index(i)) * stride - 1).collect()
    }
}

impl Scheduler for Lcm {
    fn kind(&self) -> SchedulerKind {
        SchedulerKind::Lcm
    }

    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn noising(&self) -> (f64, f64) {
        self.levels[0].coefficients()
    }

    fn step(
        &mut self,
        call: usize,
        prediction: &Tensor,
        sample: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let image = self.levels[call].predict_image(self.prediction, prediction, sample)?;
        let image = clip(image, self.clip)?;
        // At timestep 0 the model must return its input: the boundary condition.
        let scaled = f64::from(self.timesteps[call]) * self.timestep_scaling;
        let variance = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / variance, scaled / variance.sqrt());
        let denoised = combine([(out, &image), (skip, sample)])?;
        match self.levels.get(call + 1) {
            Some(next) => combine([(next.alpha, &denoised), (next.sigma, &noise()?)]),
            None => Ok(denoised),
        }
    }

    fn draws(&self, calls: usize) -> usize {
        calls.min(self.levels.len() - 1)
    }
}
