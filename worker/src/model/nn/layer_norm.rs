//! Layer normalisation over the last dimension.

use super::{Loader, Result};
use crate::device::{Array, norm};
use crate::kernels::{self, Isa};
use crate::model::tensor::Tensor;
use crate::profile::Work;

/// Layer normalisation.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    on_device: Option<[Array; 2]>,
    eps: f32,
}

impl LayerNorm {
    /// The norm at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, channels: usize, eps: f32) -> Result<Self> {
        let weight = loader.values_f32("weight", &[channels])?;
        let bias = loader.values_f32("bias", &[channels])?;
        let on_device = loader.parameters([&weight, &bias])?;
        Ok(Self { weight, bias, on_device, eps })
    }

    /// `x` [.., channels], normalised.
    ///
    /// # Errors
    /// If `x` is not a tensor of that shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let (Some(x), Some(parameters)) = (x.on_device(), &self.on_device) {
            return x.make(Work::Norm, || norm::layer_norm(x.values, parameters, self.eps));
        }
        x.make(Work::Norm, x.shape(), |out| {
            kernels::layer_norm(Isa::best(), out, x.view(), &self.weight, &self.bias, self.eps);
            Ok(())
        })
    }
}
