//! DPM-Solver++(2M): algorithm 2 of "DPM-Solver++" (Lu et al., 2022), midpoint form.

use candle_core::{Result, Tensor};

use super::schedule::{NoiseLevel, Prediction, Sigmas};
use super::{Scheduler, SchedulerError, SchedulerKind, check_history, combine};

#[derive(Debug, Clone)]
pub(super) struct DpmSolver {
    /// Either of the two, which differ in their noise levels.
    pub(super) kind: SchedulerKind,
    pub(super) sigmas: Sigmas,
    pub(super) prediction: Prediction,
    /// Whether the last step is of first order, for stability.
    pub(super) euler_at_final: bool,
    /// The image predicted at the call before.
    pub(super) previous: Option<Tensor>,
}

impl DpmSolver {
    fn level(&self, call: usize) -> NoiseLevel {
        NoiseLevel::from_ratio(self.sigmas.ratios[call])
    }
}

impl Scheduler for DpmSolver {
    fn kind(&self) -> SchedulerKind {
        self.kind
    }

    fn timesteps(&self) -> &[f32] {
        &self.sigmas.timesteps
    }

    fn noising(&self) -> (f64, f64) {
        self.level(0).coefficients()
    }

    fn step(
        &mut self,
        call: usize,
        prediction: &Tensor,
        sample: &Tensor,
        _noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (now, next) = (self.level(call), self.level(call + 1));
        let image = now.predict_image(self.prediction, prediction, sample)?;
        let h = next.lambda() - now.lambda();
        let of_sample = next.sigma / now.sigma;
        let of_image = -next.alpha * (-h).exp_m1();
        let first_order = self.euler_at_final && call + 1 == self.sigmas.timesteps.len();
        let latent = match self.previous.as_ref().filter(|_| !first_order) {
            None => combine([(of_sample, sample), (of_image, &image)]),
            Some(previous) => {
                let h_before = now.lambda() - self.level(call - 1).lambda();
                let bend = of_image * 0.5 * h / h_before;
                combine([(of_sample, sample), (of_image + bend, &image), (-bend, previous)])
            }
        }?;
        self.previous = Some(image);
        Ok(latent)
    }

    fn history(&self) -> Vec<Tensor> {
        self.previous.iter().cloned().collect()
    }

    fn resume(
        &mut self,
        calls: usize,
        mut history: Vec<Tensor>,
    ) -> std::result::Result<(), SchedulerError> {
        check_history(self.kind(), calls, calls.min(1), &history)?;
        self.previous = history.pop();
        Ok(())
    }
}
