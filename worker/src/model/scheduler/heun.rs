//! Heun's method: algorithm 2 of "Elucidating the Design Space" (Karras et al., 2022) without
//! churn. Each step looks at the slope at both of its ends; the last, to zero noise, at one.

use candle_core::{Result, Tensor};

use super::euler::slope;
use super::schedule::{NoiseLevel, Prediction, Sigmas};
use super::{Scheduler, SchedulerError, SchedulerKind, check_history, combine};

#[derive(Debug, Clone)]
pub(super) struct Heun {
    sigmas: Sigmas,
    prediction: Prediction,
    init_noise_sigma: f64,
    /// Where the step under way began, and the slope there: after every odd number of calls.
    begun: Option<[Tensor; 2]>,
}

impl Heun {
    /// `steps` has a noise level a step; all but the first and the last are called at twice.
    pub(super) fn new(steps: &Sigmas, prediction: Prediction, init_noise_sigma: f64) -> Self {
        let n = steps.timesteps.len();
        let twice = |i: usize| std::iter::repeat_n(i, if i == 0 || i == n { 1 } else { 2 });
        let timesteps = (0..n).flat_map(twice).map(|i| steps.timesteps[i]).collect();
        let ratios = (0..=n).flat_map(twice).map(|i| steps.ratios[i]).collect();
        let sigmas = Sigmas { timesteps, ratios };
        Self { sigmas, prediction, init_noise_sigma, begun: None }
    }
}

impl Scheduler for Heun {
    fn kind(&self) -> SchedulerKind {
        SchedulerKind::Heun
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
        _noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let ratios = &self.sigmas.ratios;
        let (of_sample, of_prediction) = slope(ratios[call], self.prediction);
        let slope = combine([(of_sample, sample), (of_prediction, prediction)])?;
        match self.begun.take() {
            None => {
                let dt = f64::from(ratios[call + 1]) - f64::from(ratios[call]);
                let next = combine([(1.0, sample), (dt, &slope)])?;
                self.begun = Some([sample.clone(), slope]);
                Ok(next)
            }
            Some([start, first]) => {
                let dt = f64::from(ratios[call]) - f64::from(ratios[call - 1]);
                combine([(1.0, &start), (dt / 2.0, &first), (dt / 2.0, &slope)])
            }
        }
    }

    fn history(&self) -> Vec<Tensor> {
        self.begun.iter().flatten().cloned().collect()
    }

    fn resume(
        &mut self,
        calls: usize,
        history: Vec<Tensor>,
    ) -> std::result::Result<(), SchedulerError> {
        check_history(self.kind(), calls, 2 * (calls % 2), &history)?;
        self.begun = history.try_into().ok();
        Ok(())
    }
}
