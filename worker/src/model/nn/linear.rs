//! Linear layers, on weights packed once at load.

use super::low_rank::{Addend, Factors};
use super::{Loader, Result};
use crate::device::{self, Array};
use crate::kernels::{self, Activation, Arithmetic, Epilogue, Isa, Packed, Stored};
use crate::model::Error;
use crate::model::lora::{Deltas, Shape};
use crate::model::tensor::Tensor;
use crate::model::weights::Values;
use crate::profile::Work;
use std::ops::Range;
use std::sync::Arc;

/// `y = x W^T + b`, over the last dimension.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Vec<f32>>,
    /// The layers that it is, by path; a part of one has none.
    paths: Vec<String>,
    added: Option<Arc<Addend>>,
}

/// The weight of a product [outputs, inputs].
#[derive(Clone, Debug)]
enum Weight {
    /// As our own kernels read it.
    Packed(Arc<Packed>),
    /// As a device does, with the bias.
    Device(Array, Option<Array>),
}

impl Weight {
    /// Of the layers at `loaders`, side by side.
    fn load(loaders: &[Loader<'_>], values: Values, [outputs, inputs]: [usize; 2]) -> Result<Self> {
        let Some(loader) = loaders.first() else {
            return Err(Error::Shape("no layer to load".to_owned()));
        };
        Ok(match loader.device() {
            Some(_) => Self::Device(loader.array(values, &[outputs, inputs])?, None),
            None => Self::Packed(Arc::new(Packed::pack(
                values.stored(),
                outputs,
                inputs,
                loader.arithmetic(),
            ))),
        })
    }

    /// The same beside `bias`, where that is read.
    fn with(self, bias: Option<&[f32]>) -> Result<Self> {
        let Self::Device(weight, _) = self else { return Ok(self) };
        let bias = bias.map(|bias| Array::from_slice(bias, bias.len(), weight.device()));
        Ok(Self::Device(weight, bias.transpose()?))
    }

    fn outputs(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.outputs(),
            Self::Device(weight, _) => weight.dims()[0],
        }
    }

    fn inputs(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.depth(),
            Self::Device(weight, _) => weight.dims()[1],
        }
    }

    fn array(&self) -> Option<&Array> {
        match self {
            Self::Packed(_) => None,
            Self::Device(weight, _) => Some(weight),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.bytes(),
            Self::Device(weight, _) => weight.elem_count() * weight.dtype().size_in_bytes(),
        }
    }

    /// The part for `outputs`, side by side, and `inputs`.
    fn part(&self, outputs: &[Range<usize>], inputs: Option<Range<usize>>) -> Self {
        let whole = self.packed().expect("a run in shards is refused on a device");
        let inputs = inputs.unwrap_or_else(|| 0..whole.depth());
        Self::Packed(Arc::new(whole.part(outputs, &[inputs])))
    }

    fn packed(&self) -> Result<&Packed> {
        match self {
            Self::Packed(weight) => Ok(weight),
            Self::Device(..) => {
                Err(Error::Shape("the weights are on a device, their input is not".to_owned()))
            }
        }
    }

    fn on_device(&self) -> Result<(&Array, Option<&Array>)> {
        match self {
            Self::Device(weight, bias) => Ok((weight, bias.as_ref())),
            Self::Packed(_) => {
                Err(Error::Shape("the input is on a device, its weights are not".to_owned()))
            }
        }
    }
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
        Self::load_joined(std::slice::from_ref(loader), inputs, outputs, bias)
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
        let shape = [outputs * loaders.len(), inputs];
        let weight = Weight::load(loaders, Values::joined(parts), shape)?;
        let biases = loaders.iter().map(|loader| loader.values_f32("bias", &[outputs]));
        let bias = bias.then(|| biases.collect::<Result<Vec<_>>>()).transpose()?;
        let bias = bias.map(|biases| biases.concat());
        let paths = loaders.iter().map(|loader| loader.path().to_owned()).collect();
        Ok(Self { weight: weight.with(bias.as_deref())?, bias, paths, added: None })
    }

    /// A layer without a bias of these values [outputs, inputs], exact, on the device that `like` is on.
    ///
    /// # Errors
    /// If that has no room for it.
    pub fn of_values(
        values: &[f32],
        [outputs, inputs]: [usize; 2],
        like: Option<&Array>,
    ) -> Result<Self> {
        let weight = match like {
            Some(like) => {
                Weight::Device(Array::from_slice(values, (outputs, inputs), like.device())?, None)
            }
            None => Weight::Packed(Arc::new(Packed::pack(
                Stored::F32(values),
                outputs,
                inputs,
                Arithmetic::F32,
            ))),
        };
        Ok(Self { weight, bias: None, paths: Vec::new(), added: None })
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        let outputs = self.weight.outputs() / self.paths.len().max(1);
        self.added = changes(&self.paths, &self.weight, outputs, deltas)?;
        Ok(())
    }

    /// The part that gives `outputs`, side by side.
    #[must_use]
    pub fn giving(&self, outputs: &[Range<usize>]) -> Self {
        let part = |bias: &Vec<f32>| {
            outputs.iter().flat_map(|range| &bias[range.clone()]).copied().collect()
        };
        Self {
            weight: self.weight.part(outputs, None),
            bias: self.bias.as_ref().map(part),
            paths: Vec::new(),
            added: None,
        }
    }

    /// The part that gives a summand of all outputs, from `inputs`; one of the parts `adds_bias`.
    #[must_use]
    pub fn taking(&self, inputs: Range<usize>, adds_bias: bool) -> Self {
        let outputs = 0..self.weight.outputs();
        Self {
            weight: self.weight.part(&[outputs], Some(inputs)),
            bias: self.bias.clone().filter(|_| adds_bias),
            paths: Vec::new(),
            added: None,
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
        let added = self.added.as_ref();
        let added = added.map(|added| added.forward(x, self.bias.as_deref())).transpose()?;
        if let Some(x) = x.on_device() {
            let (weight, bias) = self.weight.on_device()?;
            let (added, residual) = (x.with(added.as_ref())?, x.with(finish.residual)?);
            return x.make(Work::Linear, || {
                let Some(added) = added else {
                    return device::linear::linear(
                        x.values,
                        weight,
                        bias,
                        finish.activation,
                        residual,
                    );
                };
                let own = device::linear::linear(x.values, weight, bias, Activation::None, None)?;
                let sum = (&own + added.to_dtype(own.dtype())?)?;
                device::linear::finish(&sum, finish.activation, residual)
            });
        }
        let bias = added.as_ref().map(Tensor::view).or(self.bias.as_deref());
        let epilogue = Epilogue {
            bias,
            activation: finish.activation,
            residual: finish.residual.map(Tensor::view),
        };
        x.make(Work::Linear, x.with_last(self.weight.outputs()), |out| {
            kernels::linear(Isa::best(), out, x.view(), self.weight.packed()?, &epilogue);
            Ok(())
        })
    }
}

impl Linear {
    /// The product of `x` plus `bias` \[outputs\] or, in the host's memory, [batch, outputs].
    ///
    /// # Errors
    /// If `x` is not a tensor of the layer's shape.
    pub fn forward_biased(&self, x: &Tensor, bias: Option<&[f32]>) -> Result<Tensor> {
        if x.on_device().is_some() {
            return self.forward(x);
        }
        let epilogue = Epilogue { bias, ..Epilogue::default() };
        x.make(Work::Linear, x.with_last(self.weight.outputs()), |out| {
            kernels::linear(Isa::best(), out, x.view(), self.weight.packed()?, &epilogue);
            Ok(())
        })
    }
}

impl Linear {
    /// The product of `x`, which is on the device that the weight is on.
    ///
    /// # Errors
    /// If shapes do not fit, or the device fails.
    pub fn on_device(&self, x: &Array) -> candle_core::Result<Array> {
        let (weight, bias) = self.weight.on_device().map_err(candle_core::Error::wrap)?;
        device::linear::linear(x, weight, bias, Activation::None, None)
    }
}

/// What `deltas` has for the layers at `paths`, of `outputs` each, whose weight is `weight`.
fn changes(
    paths: &[String],
    weight: &Weight,
    outputs: usize,
    deltas: &mut Deltas,
) -> Result<Option<Arc<Addend>>> {
    let shape = Shape { outputs, inputs: weight.inputs(), kernel: 1 };
    let parts = paths.iter().map(|path| deltas.take(path, shape)).collect::<Result<Vec<_>>>()?;
    let factors = Factors::of(&parts, outputs);
    let added = factors.map(|factors| Addend::new(&factors, shape.inputs, weight.array()));
    Ok(added.transpose()?.map(Arc::new))
}

/// The feed-forward input projection of a transformer: `hidden * gelu(gate)`.
#[derive(Clone, Debug)]
pub struct Geglu {
    weight: Weight,
    bias: Vec<f32>,
    inner: usize,
    paths: Vec<String>,
    added: Option<Arc<Addend>>,
}

impl Geglu {
    /// The layer at `loader`: its weight holds `inner` hidden rows, then `inner` gate rows.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, inputs: usize, inner: usize) -> Result<Self> {
        let values = load_weight(loader, inputs, 2 * inner)?;
        let weight = if loader.device().is_some() {
            Weight::load(std::slice::from_ref(loader), values, [2 * inner, inputs])?
        } else {
            let arithmetic = loader.arithmetic();
            Weight::Packed(Arc::new(Packed::pack_geglu(values.stored(), inner, inputs, arithmetic)))
        };
        let bias = loader.values_f32("bias", &[2 * inner])?;
        let paths = vec![loader.path().to_owned()];
        Ok(Self { weight: weight.with(Some(&bias))?, bias, inner, paths, added: None })
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.added = changes(&self.paths, &self.weight, 2 * self.inner, deltas)?;
        Ok(())
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
        let weight = self.weight.part(&[outputs], None);
        Self { weight, bias, inner, paths: Vec::new(), added: None }
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
        let added = self.added.as_ref().map(|added| added.forward(x, Some(&self.bias)));
        let added = added.transpose()?;
        if let Some(x) = x.on_device() {
            let (weight, bias) = self.weight.on_device()?;
            let added = x.with(added.as_ref())?;
            return x.make(Work::Linear, || {
                let both = device::linear::linear(x.values, weight, bias, Activation::None, None)?;
                let both = match added {
                    Some(added) => (&both + added.to_dtype(both.dtype())?)?,
                    None => both,
                };
                device::linear::geglu(&both)
            });
        }
        let bias = added.as_ref().map_or(&self.bias[..], Tensor::view);
        x.make(Work::Linear, x.with_last(self.inner), |out| {
            kernels::geglu(Isa::best(), out, x.view(), self.weight.packed()?, Some(bias));
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
