//! DDIM: "Denoising Diffusion Implicit Models" (Song et al., 2020), equation 12 with eta 0.

use candle_core::{Result, Tensor};

use super::schedule::{NoiseLevel, Prediction};
use super::{Scheduler, SchedulerKind, combine};

#[derive(Debug, Clone)]
pub(super) struct Ddim {
    pub(super) timesteps: Vec<f32>,
    /// Noise at each call, and after it.
    pub(super) levels: Vec<(NoiseLevel, NoiseLevel)>,
    pub(super) prediction: Prediction,
    /// The largest magnitude a predicted image may have.
    pub(super) clip: Option<f64>,
}

impl Scheduler for Ddim {
    fn kind(&self) -> SchedulerKind {
        SchedulerKind::Ddim
    }

    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn noising(&self) -> (f64, f64) {
        self.levels[0].0.coefficients()
    }

    fn step(
        &mut self,
        call: usize,
        prediction: &Tensor,
        sample: &Tensor,
        _noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (now, next) = self.levels[call];
        let image = now.predict_image(self.prediction, prediction, sample)?;
        let image = clip(image, self.clip)?;
        let (of_sample, of_prediction) = now.noise(self.prediction);
        combine([
            (next.alpha, &image),
            (next.sigma * of_sample, sample),
            (next.sigma * of_prediction, prediction),
        ])
    }
}

/// `image` with magnitudes above `limit` cut off.
pub(super) fn clip(image: Tensor, limit: Option<f64>) -> Result<Tensor> {
    match limit {
        Some(limit) => image.clamp(-limit, limit),
        None => Ok(image),
    }
}
