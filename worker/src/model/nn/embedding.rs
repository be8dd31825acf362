//! Embeddings of timesteps and sizes.

use super::linear::{Finish, Linear};
use super::{Loader, Result};
use crate::kernels::Activation;
use crate::model::lora::Deltas;
use crate::model::tensor::Tensor;

/// Sinusoidal embedding, as diffusers' `get_timestep_embedding`.
#[derive(Clone, Copy, Debug)]
pub struct Sinusoid {
    /// Values per embedded number; even.
    pub channels: usize,
    /// Whether cosines come first.
    pub flip_sin_to_cos: bool,
    /// Shift of the frequencies' spacing.
    pub freq_shift: f64,
}

impl Sinusoid {
    /// The embedding of `value`: `channels` numbers.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the reference computes in f32")]
    #[expect(clippy::cast_precision_loss, reason = "channel counts are far below 2^53")]
    pub fn embed(self, value: f32) -> Vec<f32> {
        let half = self.channels / 2;
        let step = -(10_000.0_f64.ln()) / (half as f64 - self.freq_shift);
        let angles = (0..half).map(|index| {
            let frequency = (step as f32 * index as f32).exp();
            value * frequency
        });
        let sines = angles.clone().map(f32::sin);
        let cosines = angles.map(f32::cos);
        if self.flip_sin_to_cos {
            cosines.chain(sines).collect()
        } else {
            sines.chain(cosines).collect()
        }
    }
}

/// Two linear layers with SiLU between: `time_embedding` and `add_embedding`.
#[derive(Clone, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// The embedding at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(&loader.at("linear_1").exact(), inputs, outputs, true)?,
            linear_2: Linear::load(&loader.at("linear_2").exact(), outputs, outputs, true)?,
        })
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.linear_1.adapt(deltas)?;
        self.linear_2.adapt(deltas)
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.linear_1.bytes() + self.linear_2.bytes()
    }

    /// `x` [batch, inputs] to [batch, outputs]; `add` [batch, outputs] is added last.
    ///
    /// # Errors
    /// If a tensor is not of that shape.
    pub fn forward(&self, x: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
        let silu = Finish { activation: Activation::Silu, residual: None };
        let hidden = self.linear_1.forward_with(x, silu)?;
        let finish = Finish { activation: Activation::None, residual: add };
        self.linear_2.forward_with(&hidden, finish)
    }
}
