//! `scheduler/scheduler_config.json`, and the scheduler that it and a kind make together.

mod build;
mod keys;

use serde_json::Value;

use super::schedule::{BetaCurve, Prediction, Spacing};
use super::{SchedulerError, SchedulerKind};
use keys::{Keys, unsupported};

/// The checkpoint's scheduler settings.
///
/// Every key of the file is used, or known to change nothing at the value it has, or refused by
/// name. What the file does not say is up to the scheduler built, as in diffusers'
/// `Scheduler.from_config`.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    kind: SchedulerKind,
    train: usize,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    beta_curve: Option<BetaCurve>,
    prediction: Prediction,
    spacing: Option<Spacing>,
    steps_offset: usize,
    zero_snr: bool,
    karras: bool,
    final_sigma_min: bool,
    clip_sample: Option<bool>,
    clip_sample_range: f64,
    set_alpha_to_one: Option<bool>,
    skip_prk_steps: Option<bool>,
    lower_order_final: bool,
    euler_at_final: bool,
    original_inference_steps: usize,
    timestep_scaling: f64,
}

/// Above this, the tables of a hostile file would not fit in memory.
const TRAIN_TIMESTEPS_MAX: usize = 100_000;

/// Diffusers' classes, and the kind that each is.
const CLASSES: &[(&str, SchedulerKind)] = &[
    ("DDIMScheduler", SchedulerKind::Ddim),
    ("EulerDiscreteScheduler", SchedulerKind::Euler),
    ("EulerAncestralDiscreteScheduler", SchedulerKind::EulerA),
    ("DPMSolverMultistepScheduler", SchedulerKind::Dpmpp2m),
    ("UniPCMultistepScheduler", SchedulerKind::Unipc),
    ("HeunDiscreteScheduler", SchedulerKind::Heun),
    ("LCMScheduler", SchedulerKind::Lcm),
    ("PNDMScheduler", SchedulerKind::Pndm),
];

impl SchedulerConfig {
    /// Reads the text of `scheduler_config.json`.
    ///
    /// # Errors
    /// As [`Self::parse`], and for text that is not JSON. `-Infinity` passes, because Python's
    /// JSON writes it (`lambda_min_clipped`).
    pub fn from_json(text: &str) -> Result<Self, SchedulerError> {
        let text = text.replace(": -Infinity", ": \"-Infinity\"");
        let json = serde_json::from_str(&text)
            .map_err(|error| SchedulerError::NotAnObject { cause: error.to_string() })?;
        Self::parse(&json)
    }

    /// Reads the object of `scheduler_config.json`.
    ///
    /// # Errors
    /// Names the first key that is unknown or has an unsupported value, and what is supported.
    pub fn parse(json: &Value) -> Result<Self, SchedulerError> {
        let mut keys = Keys::new(json)?;
        let kind = keys.choice("_class_name", CLASSES)?.ok_or_else(|| {
            let classes: Vec<&str> = CLASSES.iter().map(|(name, _)| *name).collect();
            unsupported("_class_name", &Value::Null, &classes.join(", "))
        })?;
        let train = keys.count("num_train_timesteps", 2, TRAIN_TIMESTEPS_MAX)?.unwrap_or(1000);
        let predictions =
            [("epsilon", Prediction::Epsilon), ("v_prediction", Prediction::Velocity)];
        let curves = [("linear", BetaCurve::Linear), ("scaled_linear", BetaCurve::ScaledLinear)];
        let spacings = [
            ("leading", Spacing::Leading),
            ("trailing", Spacing::Trailing),
            ("linspace", Spacing::Linspace),
        ];
        let finals = [("zero", false), ("sigma_min", true)];
        let karras = keys.flag("use_karras_sigmas")?.unwrap_or(false);
        let config = Self {
            kind: match kind {
                SchedulerKind::Dpmpp2m if karras => SchedulerKind::Dpmpp2mKarras,
                kind => kind,
            },
            train,
            beta_start: keys.number("beta_start", 1.0)?,
            beta_end: keys.number("beta_end", 1.0)?,
            beta_curve: keys.choice("beta_schedule", &curves)?,
            prediction: keys
                .choice("prediction_type", &predictions)?
                .unwrap_or(Prediction::Epsilon),
            spacing: keys.choice("timestep_spacing", &spacings)?,
            steps_offset: keys.count("steps_offset", 0, train - 1)?.unwrap_or(0),
            zero_snr: keys.flag("rescale_betas_zero_snr")?.unwrap_or(false),
            karras,
            final_sigma_min: keys.choice("final_sigmas_type", &finals)?.unwrap_or(false),
            clip_sample: keys.flag("clip_sample")?,
            clip_sample_range: keys.number("clip_sample_range", 1e9)?.unwrap_or(1.0),
            set_alpha_to_one: keys.flag("set_alpha_to_one")?,
            skip_prk_steps: keys.flag("skip_prk_steps")?,
            lower_order_final: keys.flag("lower_order_final")?.unwrap_or(true),
            euler_at_final: keys.flag("euler_at_final")?.unwrap_or(false),
            original_inference_steps: keys
                .count("original_inference_steps", 1, train)?
                .unwrap_or_else(|| train.min(50)),
            timestep_scaling: keys.number("timestep_scaling", 1e9)?.unwrap_or(10.0),
        };
        keys.finish()?;
        Ok(config)
    }

    /// The checkpoint's own scheduler, for a job that does not name one.
    pub fn kind(&self) -> SchedulerKind {
        self.kind
    }
}
