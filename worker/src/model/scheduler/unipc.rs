//! UniPC of order 2, B(h) = exp(h) - 1: "UniPC: A Unified Predictor-Corrector Framework" (Zhao et
//! al., 2023), on predicted images. Each call first corrects the latent that the call before
//! predicted, then predicts the next.

use candle_core::{Result, Tensor};

use super::schedule::{NoiseLevel, Prediction, Sigmas};
use super::{Scheduler, SchedulerError, SchedulerKind, check_history, combine};

#[derive(Debug, Clone)]
pub(super) struct Unipc {
    pub(super) sigmas: Sigmas,
    pub(super) prediction: Prediction,
    pub(super) history: Option<History>,
}

/// What a call leaves for the next one to correct with.
#[derive(Debug, Clone)]
pub(super) struct History {
    /// The corrected latent that the last prediction started from.
    sample: Tensor,
    /// The image predicted there.
    image: Tensor,
    /// And the one before.
    earlier: Option<Tensor>,
}

/// One step from noise level `from` to `to`, with the level before them for the second order.
struct Step {
    of_sample: f64,
    of_image: f64,
    /// exp(-h) - 1, which is B(h).
    h: f64,
    /// Distance to the level before, in steps; negative.
    back: f64,
}

impl Unipc {
    fn level(&self, call: usize) -> NoiseLevel {
        NoiseLevel::from_ratio(self.sigmas.ratios[call])
    }

    /// Second order as soon as there is a past, and not at the last call.
    fn second_order(&self, call: usize) -> bool {
        call > 0 && call + 1 < self.sigmas.timesteps.len()
    }

    /// The step out of `call`.
    fn geometry(&self, call: usize) -> Step {
        let (from, to) = (self.level(call), self.level(call + 1));
        let h = to.lambda() - from.lambda();
        let earlier = self.level(call.saturating_sub(1)).lambda();
        Step {
            of_sample: to.sigma / from.sigma,
            of_image: -to.alpha * (-h).exp_m1(),
            h: -h,
            back: (earlier - from.lambda()) / h,
        }
    }

    /// The latent at `call`, again, now that the image predicted at it is known.
    fn correct(&self, call: usize, last: &History, image: &Tensor) -> Result<Tensor> {
        let step = self.geometry(call - 1);
        let base = [(step.of_sample, &last.sample), (step.of_image, &last.image)];
        let Some(earlier) = last.earlier.as_ref().filter(|_| self.second_order(call - 1)) else {
            let half = step.of_image * 0.5;
            return combine([base[0], base[1], (half, image), (-half, &last.image)]);
        };
        // The 2x2 system of equation 8: [[1, 1], [back, 1]] * [past, present] = [b1, b2].
        let b_h = step.h.exp_m1();
        let phi_1 = b_h / step.h - 1.0;
        let phi_2 = phi_1 / step.h - 0.5;
        let (b1, b2) = (phi_1 / b_h, 2.0 * phi_2 / b_h);
        let past = (b1 - b2) / (1.0 - step.back);
        let present = (b1 - past) * step.of_image;
        let past = past * step.of_image / step.back;
        combine([
            base[0],
            (step.of_image - past - present, &last.image),
            (past, earlier),
            (present, image),
        ])
    }

    /// The latent after `call`.
    fn predict(&self, call: usize, now: &History) -> Result<Tensor> {
        let step = self.geometry(call);
        match now.earlier.as_ref().filter(|_| self.second_order(call)) {
            None => combine([(step.of_sample, &now.sample), (step.of_image, &now.image)]),
            Some(earlier) => {
                let past = 0.5 * step.of_image / step.back;
                let of_image = step.of_image - past;
                combine([(step.of_sample, &now.sample), (of_image, &now.image), (past, earlier)])
            }
        }
    }
}

impl Scheduler for Unipc {
    fn kind(&self) -> SchedulerKind {
        SchedulerKind::Unipc
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
        let image = self.level(call).predict_image(self.prediction, prediction, sample)?;
        let last = self.history.take();
        let sample = match &last {
            Some(last) => self.correct(call, last, &image)?,
            None => sample.clone(),
        };
        let now = History { sample, image, earlier: last.map(|last| last.image) };
        let next = self.predict(call, &now)?;
        self.history = Some(now);
        Ok(next)
    }

    fn history(&self) -> Vec<Tensor> {
        let tensors = |last: &History| {
            last.earlier.iter().chain([&last.sample, &last.image]).cloned().collect()
        };
        self.history.as_ref().map(tensors).unwrap_or_default()
    }

    fn resume(
        &mut self,
        calls: usize,
        history: Vec<Tensor>,
    ) -> std::result::Result<(), SchedulerError> {
        let wanted = if calls == 0 { 0 } else { (calls + 1).min(3) };
        check_history(self.kind(), calls, wanted, &history)?;
        self.history = match history.as_slice() {
            [earlier @ .., sample, image] => Some(History {
                sample: sample.clone(),
                image: image.clone(),
                earlier: earlier.first().cloned(),
            }),
            _ => None,
        };
        Ok(())
    }
}
