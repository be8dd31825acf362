//! Low-rank products that are added to a layer's own: what LoRA files change.

use super::linear::Linear;
use crate::device::Array;
use crate::model::Result;
use crate::model::lora::Delta;
use crate::model::tensor::Tensor;

/// `up (down x)` of a linear layer, or of several side by side.
#[derive(Clone, Debug)]
pub struct Addend {
    down: Linear,
    up: Linear,
}

/// The factors of several changes as those of one.
#[derive(Debug)]
pub struct Factors {
    /// The ranks' sum.
    pub rank: usize,
    /// [rank, inputs], or of a convolution [rank, inputs, kernel, kernel].
    pub down: Vec<f32>,
    /// [all outputs, rank].
    pub up: Vec<f32>,
}

impl Factors {
    /// Of layers side by side, of `outputs` each, to which these changes are made. None: to none of them.
    #[must_use]
    pub fn of(parts: &[Vec<Delta>], outputs: usize) -> Option<Self> {
        let rank: usize = parts.iter().flatten().map(|delta| delta.rank).sum();
        if rank == 0 {
            return None;
        }
        let mut up = vec![0.0; parts.len() * outputs * rank];
        let mut first = 0;
        for (part, deltas) in parts.iter().enumerate() {
            let rows = &mut up[part * outputs * rank..(part + 1) * outputs * rank];
            for delta in deltas {
                let columns = delta.up.chunks_exact(delta.rank);
                for (row, values) in rows.chunks_exact_mut(rank).zip(columns) {
                    row[first..first + delta.rank].copy_from_slice(values);
                }
                first += delta.rank;
            }
        }
        let down = parts.iter().flatten().flat_map(|delta| &delta.down).copied().collect();
        Some(Self { rank, down, up })
    }
}

impl Addend {
    /// The product of `factors` for a layer of `inputs`, where `like` is: its weight on a device, if it is on one.
    ///
    /// # Errors
    /// If the device has no room for it.
    pub fn new(factors: &Factors, inputs: usize, like: Option<&Array>) -> Result<Self> {
        let Factors { rank, down, up } = factors;
        let outputs = up.len() / rank;
        Ok(Self {
            down: Linear::of_values(down, [*rank, inputs], like)?,
            up: Linear::of_values(up, [outputs, *rank], like)?,
        })
    }

    /// What is added to the layer's own product of `x`; in the host's memory the layer's `bias` is added to it.
    ///
    /// # Errors
    /// If `x` is not a tensor of the layer's shape.
    pub fn forward(&self, x: &Tensor, bias: Option<&[f32]>) -> Result<Tensor> {
        self.up.forward_biased(&self.down.forward(x)?, bias)
    }
}
