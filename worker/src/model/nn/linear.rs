//! Linear layers, on weights packed once at load.

use super::{Loader, Result};
use crate::kernels::{self, Activation, Arithmetic, Epilogue, Isa, Packed};
use crate::model::tensor::Tensor;
use crate::model::weights::Values;
use crate::profile::Work;
use std::ops::Range;
use std::sync::Arc;

/// `y = x W^T + b`, over the last dimension.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Arc<Packed>,
    bias: Option<Vec<f32>>,
}

/// What is done to a layer's result before it is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Finish<'a> {
    /// Applied first.
    pub activation: Activation,
    /// Added last, [.., outputs].
    pub residual: Option<&'a Tensor>,
}

impl Linear {
    /// The layer at `loader`. A 1x1 convolution's weight [outputs, inputs, 1, 1] is one, too.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, inputs: usize, outputs: usize, bias: bool) -> Result<Self> {
        let values = load_weight(loader, inputs, outputs)?;
        let weight = Packed::pack(values.stored(), outputs, inputs, loader.arithmetic());
        let bias = bias.then(|| loader.values_f32("bias", &[outputs])).transpose()?;
        Ok(Self { weight: Arc::new(weight), bias })
    }

    /// Several layers of the same input as one, their outputs side by side.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load_joined(
        loaders: &[Loader<'_>],
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Result<Self> {
        let parts: Vec<Values> = loaders
            .iter()
            .map(|loader| load_weight(loader, inputs, outputs))
            .collect::<Result<_>>()?;
        let joined = Values::joined(parts);
        let arithmetic = loaders.first().map_or(Arithmetic::F32, Loader::arithmetic);
        let weight = Packed::pack(joined.stored(), outputs * loaders.len(), inputs, arithmetic);
        let biases = loaders.iter().map(|loader| loader.values_f32("bias", &[outputs]));
        let bias = bias.then(|| biases.collect::<Result<Vec<_>>>()).transpose()?;
        Ok(Self { weight: Arc::new(weight), bias: bias.map(|biases| biases.concat()) })
    }

    /// The part that gives `outputs`, side by side.
    #[must_use]
    pub fn giving(&self, outputs: &[Range<usize>]) -> Self {
        let depth = 0..self.weight.depth();
        let part = |bias: &Vec<f32>| {
            outputs.iter().flat_map(|range| &bias[range.clone()]).copied().collect()
        };
        Self {
            weight: Arc::new(self.weight.part(outputs, &[depth])),
            bias: self.bias.as_ref().map(part),
        }
    }

    /// The part that gives a summand of all outputs, from `inputs`; one of the parts `adds_bias`.
    #[must_use]
    pub fn taking(&self, inputs: Range<usize>, adds_bias: bool) -> Self {
        let outputs = 0..self.weight.outputs();
        Self {
            weight: Arc::new(self.weight.part(&[outputs], &[inputs])),
            bias: self.bias.clone().filter(|_| adds_bias),
        }
    }

    /// Outputs per row.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.weight.outputs()
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |bias| bias.len() * 4)
    }

    /// `x` [.., inputs] to [.., outputs].
    ///
    /// # Errors
    /// If `x` is not a tensor of that shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Finish::default())
    }

    /// The same, finished in the same pass.
    ///
    /// # Errors
    /// If `x` or the residual is not a tensor of the right shape.
    pub fn forward_with(&self, x: &Tensor, finish: Finish<'_>) -> Result<Tensor> {
        let epilogue = Epilogue {
            bias: self.bias.as_deref(),
            activation: finish.activation,
            residual: finish.residual.map(Tensor::view),
        };
        x.make(Work::Linear, x.with_last(self.weight.outputs()), |out| {
            kernels::linear(Isa::best(), out, x.view(), &self.weight, &epilogue);
            Ok(())
        })
    }
}

/// The feed-forward input projection of a transformer: `hidden * gelu(gate)`.
#[derive(Clone, Debug)]
pub struct Geglu {
    weight: Arc<Packed>,
    bias: Vec<f32>,
    inner: usize,
}

impl Geglu {
    /// The layer at `loader`: its weight holds `inner` hidden rows, then `inner` gate rows.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, inputs: usize, inner: usize) -> Result<Self> {
        let values = load_weight(loader, inputs, 2 * inner)?;
        let weight = Packed::pack_geglu(values.stored(), inner, inputs, loader.arithmetic());
        Ok(Self { weight: Arc::new(weight), bias: loader.values_f32("bias", &[2 * inner])?, inner })
    }

    /// Outputs per row.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.inner
    }

    /// The part that gives `outputs`.
    #[must_use]
    pub fn giving(&self, outputs: Range<usize>) -> Self {
        let gates = self.inner + outputs.start..self.inner + outputs.end;
        let bias = [&self.bias[outputs.clone()], &self.bias[gates]].concat();
        let inner = outputs.len();
        let depth = 0..self.weight.depth();
        let weight = self.weight.part(&[outputs], &[depth]);
        Self { weight: Arc::new(weight), bias, inner }
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.len() * 4
    }

    /// `x` [.., inputs] to [.., inner].
    ///
    /// # Errors
    /// If `x` is not a tensor of that shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.make(Work::Linear, x.with_last(self.inner), |out| {
            kernels::geglu(Isa::best(), out, x.view(), &self.weight, Some(&self.bias));
            Ok(())
        })
    }
}

fn load_weight(loader: &Loader<'_>, inputs: usize, outputs: usize) -> Result<Values> {
    match loader.shape("weight") {
        Some([_, _, 1, 1]) => loader.values("weight", &[outputs, inputs, 1, 1]),
        _ => loader.values("weight", &[outputs, inputs]),
    }
}
