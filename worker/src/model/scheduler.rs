//! Schedulers, also called samplers: from pure noise to an image in a few calls of the model.
//!
//! Each is the diffusers 0.31 scheduler of the same name, so that an image does not depend on who
//! rendered it. A step is elementwise: a rank may step its own rows of the latent and nothing else.

mod config;
mod ddim;
mod dpm_solver;
mod euler;
mod heun;
mod lcm;
mod pndm;
mod schedule;
#[cfg(test)]
mod tests;
mod unipc;

use std::fmt;

use candle_core::{Result, Tensor};

pub use config::SchedulerConfig;
pub use protocol::job::Scheduler as SchedulerKind;

/// Walks a latent from noise to image.
///
/// One call of the model, one `step`, calls numbered from 0 and made in order: multistep solvers
/// remember earlier predictions. Latents are f32 of any one shape. Indexing past the last call
/// panics.
///
/// The number of calls made, the latent and [`history`](Self::history) are all there is to a run:
/// another scheduler of the same configuration [resumes](Self::resume) from them to the same bits.
pub trait Scheduler: fmt::Debug + Send {
    /// Which one it is.
    fn kind(&self) -> SchedulerKind;

    /// The timestep that the model is given at each call, descending. Their number is the number
    /// of calls, which is not always the number of steps: Heun calls 2n - 1 times, PNDM n + 1.
    fn timesteps(&self) -> &[f32];

    /// What unit-variance noise is multiplied by to make the first latent.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// What an image's latent and unit-variance noise are multiplied by to make the latent of the first call.
    fn noising(&self) -> (f64, f64);

    /// The latent as the model wants to see it at this call.
    ///
    /// # Errors
    /// Candle's, from the device.
    fn scale_model_input(&self, _call: usize, sample: &Tensor) -> Result<Tensor> {
        Ok(sample.clone())
    }

    /// The next latent, from this call's latent (unscaled) and the model's prediction of it.
    ///
    /// `noise` gives fresh unit-variance noise of the latent's shape; stochastic schedulers ask
    /// once per step, save at the last, where none is added. A rank that holds a band answers
    /// with its slice of the whole image's noise.
    ///
    /// # Errors
    /// Candle's, from the device or for shapes that differ, and those of `noise`.
    fn step(
        &mut self,
        call: usize,
        prediction: &Tensor,
        sample: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor>;

    /// What it remembers of the calls made so far for those to come, oldest first: a multistep
    /// solver's earlier predictions, where a Heun step under way began and the slope there.
    ///
    /// Each tensor has the latent's shape and shares the memory of the scheduler's own; how many
    /// there are depends on the kind and the number of calls alone. As a step is, a history is
    /// elementwise over the latent: its rows are the history of those rows. Bands' histories may
    /// be joined, and cut again elsewhere.
    fn history(&self) -> Vec<Tensor> {
        Vec::new()
    }

    /// Goes on after `calls` calls made elsewhere, as if it had made them: `history` is what
    /// [`history`](Self::history) gave there. What it remembered before is forgotten.
    ///
    /// # Errors
    /// If that many calls leave another number of tensors; nothing has changed then. Shapes are
    /// compared by the steps that follow.
    fn resume(
        &mut self,
        calls: usize,
        history: Vec<Tensor>,
    ) -> std::result::Result<(), SchedulerError> {
        check_history(self.kind(), calls, 0, &history)
    }

    /// How many times `noise` is asked for in the first `calls` calls: whoever resumes after them
    /// has as many draws to skip, beside the one that made the first latent.
    fn draws(&self, _calls: usize) -> usize {
        0
    }
}

/// Why a scheduler could not be built or resumed.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The file is not a JSON object.
    #[error("scheduler/scheduler_config.json: not a JSON object: {cause}")]
    NotAnObject {
        /// What the parser, or the value, says.
        cause: String,
    },
    /// A key has a value that would change the image in a way not implemented.
    #[error("scheduler/scheduler_config.json: `{key}` is {value}; supported: {supported}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value, as JSON, or "absent".
        value: String,
        /// The values that work.
        supported: String,
    },
    /// A key that no supported scheduler has.
    #[error("scheduler/scheduler_config.json: `{key}` is {value}; supported: no such key")]
    UnknownKey {
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
    },
    /// More steps than the training timesteps can be divided into, or none.
    #[error("{steps} steps of scheduler {kind}; supported with this checkpoint: 1 to {most}")]
    Steps {
        /// The steps asked for.
        steps: usize,
        /// The scheduler asked for.
        kind: SchedulerKind,
        /// The most it can do.
        most: usize,
    },
    /// No step is left.
    #[error("{skipped} of {steps} steps are left out, so that none is taken")]
    Skipped {
        /// The steps asked for.
        steps: usize,
        /// Those that a picture takes the place of.
        skipped: usize,
    },
    /// A history that no run of this scheduler has after as many calls.
    #[error("scheduler {kind} remembers {wanted} tensors after {calls} calls, not {got}")]
    History {
        /// The scheduler that was to go on.
        kind: SchedulerKind,
        /// The calls made before.
        calls: usize,
        /// The tensors that they leave.
        wanted: usize,
        /// The tensors given.
        got: usize,
    },
}

/// Refuses a history that is not of `wanted` tensors, which is what `calls` calls leave.
fn check_history(
    kind: SchedulerKind,
    calls: usize,
    wanted: usize,
    history: &[Tensor],
) -> std::result::Result<(), SchedulerError> {
    let got = history.len();
    if got == wanted { Ok(()) } else { Err(SchedulerError::History { kind, calls, wanted, got }) }
}

/// The sum of tensors of one shape, each times its coefficient.
///
/// Coefficients are computed in f64 and rounded once, here.
fn combine<const N: usize>(terms: [(f64, &Tensor); N]) -> Result<Tensor> {
    let mut scaled = terms.into_iter().map(|(coefficient, x)| x.affine(coefficient, 0.0));
    let first = scaled.next().expect("every caller has a term")?;
    scaled.try_fold(first, |sum, term| sum + term?)
}
