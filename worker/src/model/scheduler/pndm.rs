//! PNDM without the Runge-Kutta start: "Pseudo Numerical Methods for Diffusion Models on
//! Manifolds" (Liu et al., 2022), equation 9 on a linear multistep of up to four predictions.
//!
//! The second call repeats the first step with the slope at its end, as Heun would.

use candle_core::{Result, Tensor};

use super::schedule::{NoiseLevel, Prediction};
use super::{Scheduler, SchedulerError, SchedulerKind, check_history, combine};

#[derive(Debug, Clone)]
pub(super) struct Pndm {
    pub(super) timesteps: Vec<f32>,
    /// Noise at each call, and after it.
    pub(super) levels: Vec<(NoiseLevel, NoiseLevel)>,
    pub(super) prediction: Prediction,
    /// The last predictions, oldest first: the three that the next multistep looks back on.
    pub(super) history: Vec<Tensor>,
    /// Where the first step began, until the second call has repeated it.
    pub(super) start: Option<Tensor>,
}

impl Pndm {
    /// Adams-Bashforth of `e0`, the latest prediction, and as many as there are before it.
    fn multistep(&self, e0: &Tensor) -> Result<Tensor> {
        match self.history.as_slice() {
            [] => Ok(e0.clone()),
            [e1] => combine([(1.5, e0), (-0.5, e1)]),
            [e2, e1] => combine([(23.0 / 12.0, e0), (-16.0 / 12.0, e1), (5.0 / 12.0, e2)]),
            [.., e3, e2, e1] => combine([
                (55.0 / 24.0, e0),
                (-59.0 / 24.0, e1),
                (37.0 / 24.0, e2),
                (-9.0 / 24.0, e3),
            ]),
        }
    }

    fn advance(&self, call: usize, sample: &Tensor, prediction: &Tensor) -> Result<Tensor> {
        let (now, next) = self.levels[call];
        let (of_sample, of_prediction) = now.noise(self.prediction);
        let grow = next.alpha / now.alpha;
        let cut = (next.alpha.powi(2) - now.alpha.powi(2))
            / (now.alpha.powi(2) * next.sigma + now.alpha * now.sigma * next.alpha);
        combine([(grow - cut * of_sample, sample), (-cut * of_prediction, prediction)])
    }
}

impl Scheduler for Pndm {
    fn kind(&self) -> SchedulerKind {
        SchedulerKind::Pndm
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
        if call == 1
            && let (Some(start), [first]) = (self.start.take(), self.history.as_slice())
        {
            let mean = combine([(0.5, prediction), (0.5, first)])?;
            return self.advance(call, &start, &mean);
        }
        if call == 0 {
            self.start = Some(sample.clone());
        }
        let slope = self.multistep(prediction)?;
        self.history.push(prediction.clone());
        let excess = self.history.len().saturating_sub(3);
        self.history.drain(..excess);
        self.advance(call, sample, &slope)
    }

    fn history(&self) -> Vec<Tensor> {
        self.start.iter().chain(&self.history).cloned().collect()
    }

    fn resume(
        &mut self,
        calls: usize,
        mut history: Vec<Tensor>,
    ) -> std::result::Result<(), SchedulerError> {
        let wanted = match calls {
            0 => 0,
            1 => 2,                // where it began, and the slope there
            _ => 3.min(calls - 1), // the second call's slope is not kept
        };
        check_history(self.kind(), calls, wanted, &history)?;
        self.start = (calls == 1).then(|| history.remove(0));
        self.history = history;
        Ok(())
    }
}
