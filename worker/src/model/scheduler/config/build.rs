//! What `from_config` of each diffusers class makes of the checkpoint's settings.

use serde_json::Value;

use super::SchedulerConfig;
use super::keys::unsupported;
use crate::model::scheduler::ddim::Ddim;
use crate::model::scheduler::dpm_solver::DpmSolver;
use crate::model::scheduler::euler::Euler;
use crate::model::scheduler::heun::Heun;
use crate::model::scheduler::lcm::Lcm;
use crate::model::scheduler::pndm::Pndm;
use crate::model::scheduler::schedule::{
    BetaCurve, NoiseLevel, Prediction, Sigmas, Spacing, alphas_cumprod, interpolate, noise_ratios,
    rescale_zero_terminal_snr,
};
use crate::model::scheduler::unipc::Unipc;
use crate::model::scheduler::{Scheduler, SchedulerError, SchedulerKind};

impl SchedulerConfig {
    /// The scheduler `kind` for a run of `steps`, on this checkpoint's noise levels.
    ///
    /// Equals diffusers' `KindScheduler.from_config(checkpoint's)`, with these changes: a kind
    /// that is not the checkpoint's own class does not clip (DDIM), ends at the first training
    /// level (DDIM) and skips the Runge-Kutta start (PNDM) unless the checkpoint says otherwise;
    /// `dpmpp-2m` and `dpmpp-2m-karras` choose their noise levels themselves.
    ///
    /// # Errors
    /// Names a setting that this kind cannot honour, or a number of steps that does not fit.
    pub fn build(
        &self,
        kind: SchedulerKind,
        steps: usize,
    ) -> Result<Box<dyn Scheduler>, SchedulerError> {
        self.build_from(kind, steps, 0)
    }

    /// The same without its first `skipped` steps, in place of which a picture is noised: diffusers' image-to-image
    /// pipelines (`set_begin_index`; PNDM has none, and repeats a step from wherever it begins).
    ///
    /// # Errors
    /// As [`Self::build`]; or if no step is left.
    pub fn build_from(
        &self,
        kind: SchedulerKind,
        steps: usize,
        skipped: usize,
    ) -> Result<Box<dyn Scheduler>, SchedulerError> {
        self.refuse_for(kind)?;
        let most =
            if kind == SchedulerKind::Lcm { self.original_inference_steps } else { self.train };
        if !(1..=most).contains(&steps) {
            return Err(SchedulerError::Steps { steps, kind, most });
        }
        if skipped >= steps {
            return Err(SchedulerError::Skipped { steps, skipped });
        }
        Ok(match kind {
            SchedulerKind::Ddim => Box::new(self.ddim(steps, skipped)?),
            SchedulerKind::Pndm => Box::new(self.pndm(steps, skipped)?),
            SchedulerKind::Lcm => Box::new(self.lcm(steps, skipped)?),
            SchedulerKind::Euler | SchedulerKind::EulerA => {
                let sigmas = self.sigmas(kind, steps)?;
                let init_noise_sigma = self.init_noise_sigma(kind, &sigmas);
                let ancestral = kind == SchedulerKind::EulerA;
                let sigmas = sigmas.from(skipped);
                Box::new(Euler { sigmas, prediction: self.prediction, init_noise_sigma, ancestral })
            }
            SchedulerKind::Heun => {
                let sigmas = self.sigmas(kind, steps)?;
                let init_noise_sigma = self.init_noise_sigma(kind, &sigmas);
                Box::new(Heun::new(&sigmas.from(skipped), self.prediction, init_noise_sigma))
            }
            SchedulerKind::Dpmpp2m | SchedulerKind::Dpmpp2mKarras => Box::new(DpmSolver {
                kind,
                sigmas: self.sigmas(kind, steps)?.from(skipped),
                prediction: self.prediction,
                // Fifteen is diffusers' bound for "few steps".
                euler_at_final: self.euler_at_final
                    || !self.final_sigma_min
                    || self.lower_order_final && steps < 15,
                previous: None,
            }),
            SchedulerKind::Unipc => Box::new(Unipc {
                sigmas: self.sigmas(kind, steps)?.from(skipped),
                prediction: self.prediction,
                history: None,
            }),
        })
    }

    /// Settings that are right for the checkpoint's own class and wrong for `kind`.
    fn refuse_for(&self, kind: SchedulerKind) -> Result<(), SchedulerError> {
        let with = |supported: &str| format!("{supported} with scheduler {kind}");
        let refuse =
            |key, value, supported| Err(unsupported(key, &Value::Bool(value), &with(supported)));
        match kind {
            SchedulerKind::Heun | SchedulerKind::Pndm if self.zero_snr => {
                refuse("rescale_betas_zero_snr", true, "false")
            }
            SchedulerKind::Heun if self.clip_sample == Some(true) => {
                refuse("clip_sample", true, "false")
            }
            SchedulerKind::Unipc if !self.lower_order_final => {
                refuse("lower_order_final", false, "true")
            }
            // Left out, the class PNDM means false.
            SchedulerKind::Pndm if !self.skip_prk_steps.unwrap_or(self.kind != kind) => {
                refuse("skip_prk_steps", false, "true")
            }
            _ => Ok(()),
        }
    }

    fn spacing(&self, kind: SchedulerKind) -> Spacing {
        self.spacing.unwrap_or(match kind {
            SchedulerKind::Ddim | SchedulerKind::Pndm | SchedulerKind::Lcm => Spacing::Leading,
            _ => Spacing::Linspace,
        })
    }

    /// What is left of the image's variance at each training timestep. Where nothing is, or nothing but the
    /// image, no sampler can divide by it; that zero SNR leaves nothing at the last is known to all.
    fn alphas_cumprod(&self, kind: SchedulerKind) -> Result<Vec<f32>, SchedulerError> {
        let (curve, start, end) = match kind {
            SchedulerKind::Lcm => (BetaCurve::ScaledLinear, 0.00085, 0.012),
            SchedulerKind::Heun => (BetaCurve::Linear, 0.00085, 0.012),
            _ => (BetaCurve::Linear, 0.0001, 0.02),
        };
        let curve = self.beta_curve.unwrap_or(curve);
        let (start, end) = (self.beta_start.unwrap_or(start), self.beta_end.unwrap_or(end));
        let alphas = alphas_cumprod(curve, start, end, self.train);
        let alphas = if self.zero_snr { rescale_zero_terminal_snr(&alphas) } else { alphas };
        let mixed = &alphas[..self.train - usize::from(self.zero_snr)];
        if mixed.iter().all(|alpha| alpha.is_normal() && *alpha < 1.0) {
            return Ok(alphas);
        }
        let (key, value) = if alphas[0] < 1.0 { ("beta_end", end) } else { ("beta_start", start) };
        let supported = "what leaves both image and noise at every training timestep";
        Err(unsupported(key, &Value::from(value), supported))
    }

    /// Noise to image ratios of training.
    fn training_ratios(&self, kind: SchedulerKind) -> Result<Vec<f32>, SchedulerError> {
        let mut alphas = self.alphas_cumprod(kind)?;
        if self.zero_snr
            && let Some(last) = alphas.last_mut()
        {
            *last = 1.0 / (1u32 << 24) as f32; // the ratio of pure noise would be infinite
        }
        Ok(noise_ratios(&alphas))
    }

    /// The noise levels that a run of `kind` visits.
    pub(in crate::model::scheduler) fn sigmas(
        &self,
        kind: SchedulerKind,
        steps: usize,
    ) -> Result<Sigmas, SchedulerError> {
        let training = self.training_ratios(kind)?;
        let spacing = self.spacing(kind);
        let solver = matches!(
            kind,
            SchedulerKind::Dpmpp2m | SchedulerKind::Dpmpp2mKarras | SchedulerKind::Unipc
        );
        let karras = match kind {
            SchedulerKind::Dpmpp2m | SchedulerKind::EulerA => false,
            SchedulerKind::Dpmpp2mKarras => true,
            _ => self.karras,
        };
        let keeps_noise =
            self.final_sigma_min && !matches!(kind, SchedulerKind::EulerA | SchedulerKind::Heun);
        let last = if keeps_noise { training[0] } else { 0.0 };
        // The solvers divide the timesteps into one part more and leave out the lowest.
        let parts = steps + usize::from(solver && spacing != Spacing::Trailing);
        let mut timesteps = spacing.timesteps(self.train, parts, self.steps_offset);
        timesteps.truncate(steps);
        let sigmas = match (karras, solver) {
            (false, false) => Sigmas::at(&timesteps, &training, last),
            (false, true) => {
                timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
                Sigmas::at(&timesteps, &training, last)
            }
            (true, false) => {
                let ratio = |t: Option<&f64>| interpolate(t.copied().unwrap_or(0.0), &training);
                let (max, min) = (ratio(timesteps.first()), ratio(timesteps.last()));
                Sigmas::karras(max, min, steps, &training, last)
            }
            (true, true) => {
                let (max, min) = (training[self.train - 1].into(), training[0].into());
                Sigmas::karras(max, min, steps, &training, last).rounded()
            }
        };
        // Two calls at one noise level would divide by zero.
        let descends = sigmas.ratios[..steps].is_sorted_by(|above, below| above > below);
        let most = self.train / 2;
        if descends { Ok(sigmas) } else { Err(SchedulerError::Steps { steps, kind, most }) }
    }

    fn init_noise_sigma(&self, kind: SchedulerKind, sigmas: &Sigmas) -> f64 {
        let max = f64::from(sigmas.ratios[0]);
        match self.spacing(kind) {
            Spacing::Linspace | Spacing::Trailing => max,
            Spacing::Leading => (max * max + 1.0).sqrt(),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "timesteps are whole and not negative")]
    /// Whole timesteps of schedulers without noise ratios.
    fn timesteps(&self, kind: SchedulerKind, steps: usize) -> Result<Vec<usize>, SchedulerError> {
        let timesteps = self.spacing(kind).timesteps(self.train, steps, self.steps_offset);
        // Leading timesteps and a large offset can pass the end.
        let whole: Vec<usize> = timesteps.iter().map(|t| t.round_ties_even() as usize).collect();
        let most = self.train / 2;
        let fits = whole.iter().all(|&t| t < self.train);
        if fits { Ok(whole) } else { Err(SchedulerError::Steps { steps, kind, most }) }
    }

    /// The level one stride of timesteps below `t`, for schedulers that step by strides.
    fn level_below(&self, t: usize, stride: usize, alphas: &[f32], to_one: bool) -> NoiseLevel {
        let last = if to_one { 1.0 } else { alphas[0] };
        NoiseLevel::from_alpha_cumprod(t.checked_sub(stride).map_or(last, |t| alphas[t]))
    }

    fn clip(&self, default: bool) -> Option<f64> {
        self.clip_sample.unwrap_or(default).then_some(self.clip_sample_range)
    }

    fn ddim(&self, steps: usize, skipped: usize) -> Result<Ddim, SchedulerError> {
        let kind = SchedulerKind::Ddim;
        let alphas = self.alphas_cumprod(kind)?;
        let mut timesteps = self.timesteps(kind, steps)?;
        timesteps.drain(..skipped);
        self.refuse_division_by_zero(alphas[timesteps[0]])?;
        let own = self.kind == kind;
        let to_one = self.set_alpha_to_one.unwrap_or(own);
        let stride = self.train / steps;
        let levels = timesteps.iter().map(|&t| {
            let now = NoiseLevel::from_alpha_cumprod(alphas[t]);
            (now, self.level_below(t, stride, &alphas, to_one))
        });
        Ok(Ddim {
            levels: levels.collect(),
            timesteps: timesteps.iter().map(|&t| t as f32).collect(),
            prediction: self.prediction,
            clip: self.clip(own),
        })
    }

    fn lcm(&self, steps: usize, skipped: usize) -> Result<Lcm, SchedulerError> {
        let alphas = self.alphas_cumprod(SchedulerKind::Lcm)?;
        let mut timesteps = Lcm::timesteps(self.train, self.original_inference_steps, steps);
        timesteps.drain(..skipped);
        self.refuse_division_by_zero(alphas[timesteps[0]])?;
        let levels = timesteps.iter().map(|&t| NoiseLevel::from_alpha_cumprod(alphas[t]));
        Ok(Lcm {
            levels: levels.collect(),
            timesteps: timesteps.iter().map(|&t| t as f32).collect(),
            prediction: self.prediction,
            clip: self.clip(false),
            timestep_scaling: self.timestep_scaling,
        })
    }

    fn pndm(&self, steps: usize, skipped: usize) -> Result<Pndm, SchedulerError> {
        let kind = SchedulerKind::Pndm;
        let alphas = self.alphas_cumprod(kind)?;
        let mut timesteps = self.timesteps(kind, steps)?;
        if steps > 1 {
            timesteps.insert(1, timesteps[1]);
        }
        timesteps.drain(..skipped);
        let to_one = self.set_alpha_to_one.unwrap_or(false);
        let stride = self.train / steps;
        let levels = timesteps.iter().enumerate().map(|(call, &t)| {
            // The second call makes the first step again, ending where it is.
            let t = if call == 1 { (t + stride).min(self.train - 1) } else { t };
            let now = NoiseLevel::from_alpha_cumprod(alphas[t]);
            (now, self.level_below(t, stride, &alphas, to_one))
        });
        Ok(Pndm {
            levels: levels.collect(),
            timesteps: timesteps.iter().map(|&t| t as f32).collect(),
            prediction: self.prediction,
            history: Vec::new(),
            start: None,
        })
    }

    /// From pure noise, predicted noise says nothing of the image.
    fn refuse_division_by_zero(&self, alpha_cumprod: f32) -> Result<(), SchedulerError> {
        if alpha_cumprod > 0.0 || self.prediction == Prediction::Velocity {
            return Ok(());
        }
        let supported = "false with prediction_type epsilon and this scheduler and spacing";
        Err(unsupported("rescale_betas_zero_snr", &Value::Bool(true), supported))
    }
}
