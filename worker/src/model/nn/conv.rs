//! Convolutions over a band: the rows beyond its edges come through the exchange.

use super::linear::{Finish, Linear};
use super::low_rank::Factors;
use super::{Loader, Result};
use crate::device::{Array, conv, linear};
use crate::kernels::{self, Arithmetic, Band, Epilogue, Isa, Method, Stored};
use crate::model::Error;
use crate::model::exchange::{Exchange, Halo, Rows};
use crate::model::lora::{Deltas, Shape};
use crate::model::tensor::{OnDevice, Tensor};
use crate::profile::Work;
use protocol::Site;
use protocol::plan::{Ask, Stage};
use std::ops::Range;
use std::sync::Arc;

/// Channels, on both sides, from which on Winograd's filtering pays for its transforms.
const WINOGRAD_CHANNELS: usize = 32;

/// How a 3x3 convolution is computed. It depends on nothing but the layer, so that all ranks agree; and with
/// 8-bit integers on the size of a rank's band.
///
/// F(4x4)'s rounding is ten times F(2x2)'s. It is for the decoder, which runs once, so that it is far below a
/// level of the 8-bit image (docs/performance.md), and for which convolutions are nearly all there is to do;
/// and for networks whose products are of 8-bit integers, beside whose rounding it is nothing.
fn method(
    (stage, arithmetic): (Stage, Arithmetic),
    inputs: usize,
    outputs: usize,
    stride: usize,
) -> Method {
    match stage {
        _ if stride > 1 || inputs.min(outputs) < WINOGRAD_CHANNELS => Method::Direct,
        stage if stage.is_decode() => Method::Winograd4,
        _ if arithmetic == Arithmetic::Int8 => Method::WinogradBySize,
        _ => Method::Winograd2,
    }
}

/// A 3x3 convolution with padding 1 and stride 1 or 2. (1x1 convolutions are
/// [`super::linear::Linear`].)
#[derive(Clone, Debug)]
pub struct Conv3x3 {
    weight: Weight,
    bias: Vec<f32>,
    site: Site,
    inputs: usize,
    outputs: usize,
    stride: usize,
    /// Where it is in its file.
    path: Arc<str>,
    added: Option<Arc<Added>>,
}

/// A low-rank convolution that is added: a 3x3 one to few channels, and a product from there.
#[derive(Debug)]
struct Added {
    down: Weight,
    rank: usize,
    up: Linear,
}

#[derive(Clone, Debug)]
enum Weight {
    /// As our own kernels read it.
    Packed(Arc<kernels::Conv>),
    /// As a device does, [outputs, 3, 3, inputs], with the bias.
    Device(Array, Array),
}

impl Weight {
    fn packed(&self) -> Result<&kernels::Conv> {
        match self {
            Self::Packed(weight) => Ok(weight),
            Self::Device(..) => {
                Err(Error::Shape("the weights are on a device, their input is not".to_owned()))
            }
        }
    }

    fn part(&self, outputs: Range<usize>, inputs: Range<usize>) -> Self {
        let whole = self.packed().expect("a run in shards is refused on a device");
        Self::Packed(Arc::new(whole.part(outputs, inputs)))
    }
}

impl Added {
    /// What is added to the convolution of `x`, whose border is around it.
    fn on_device(&self, x: &Array, stride: usize) -> candle_core::Result<Array> {
        let Weight::Device(down, _) = &self.down else {
            candle_core::bail!("the change of a weight on a device is not there")
        };
        let low = conv::conv3x3(x, down, stride)?;
        self.up.on_device(&low)
    }
}

impl Conv3x3 {
    /// The convolution at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, inputs: usize, outputs: usize, stride: usize) -> Result<Self> {
        let shape = [outputs, inputs, 3, 3];
        let values = loader.values("weight", &shape)?;
        let bias = loader.values_f32("bias", &[outputs])?;
        let weight = if let Some(device) = loader.device() {
            let weight = loader.array(values, &shape)?.permute((0, 2, 3, 1))?.contiguous()?;
            Weight::Device(weight, device.upload(&bias, &[1, outputs])?)
        } else {
            let arithmetic = loader.arithmetic();
            let packed = kernels::Conv::pack(values.stored(), shape, stride)
                .by(method((loader.place().stage, arithmetic), inputs, outputs, stride))
                .in_numbers(arithmetic);
            Weight::Packed(Arc::new(packed))
        };
        let site = loader.site(Ask::Halo { rows: 1 }, inputs);
        let path = loader.path().into();
        Ok(Self { weight, bias, site, inputs, outputs, stride, path, added: None })
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        let shape = Shape { outputs: self.outputs, inputs: self.inputs, kernel: 3 };
        let changes = deltas.take(&self.path, shape)?;
        let Some(Factors { rank, down, up }) = Factors::of(&[changes], self.outputs) else {
            self.added = None;
            return Ok(());
        };
        let shape = [rank, self.inputs, 3, 3];
        let (down, like) = match &self.weight {
            Weight::Packed(_) => {
                let down = kernels::Conv::pack(Stored::F32(&down), shape, self.stride);
                (Weight::Packed(Arc::new(down)), None)
            }
            Weight::Device(like, bias) => {
                let down = Array::from_slice(&down, &shape, like.device())?;
                let down = down.permute((0, 2, 3, 1))?.contiguous()?;
                (Weight::Device(down, bias.clone()), Some(like))
            }
        };
        let up = Linear::of_values(&up, [self.outputs, rank], like)?;
        self.added = Some(Arc::new(Added { down, rank, up }));
        Ok(())
    }

    /// The part that gives `outputs`.
    #[must_use]
    pub fn giving(&self, outputs: Range<usize>) -> Self {
        let weight = self.weight.part(outputs.clone(), 0..self.inputs);
        let bias = self.bias[outputs.clone()].to_vec();
        Self { weight, bias, outputs: outputs.len(), added: None, path: "".into(), ..*self }
    }

    /// The part that gives a summand of all outputs, from `inputs`; one of the parts `adds_bias`.
    #[must_use]
    pub fn taking(&self, inputs: Range<usize>, adds_bias: bool) -> Self {
        let weight = self.weight.part(0..self.outputs, inputs.clone());
        let bias = if adds_bias { self.bias.clone() } else { vec![0.0; self.outputs] };
        Self { weight, bias, inputs: inputs.len(), added: None, path: "".into(), ..*self }
    }

    /// Channels of its input.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let weight = match &self.weight {
            Weight::Packed(weight) => weight.bytes(),
            Weight::Device(weight, _) => weight.elem_count() * weight.dtype().size_in_bytes(),
        };
        weight + self.bias.len() * 4
    }

    /// `x` [batch, rows, columns, inputs] to [batch, rows/stride, columns/stride, outputs].
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a tensor of that shape.
    pub fn forward(&self, x: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        self.forward_with(x, None, Finish::default(), exchange)
    }

    /// The same, with `shift` [batch, outputs] added to the bias, finished in the same pass.
    ///
    /// # Errors
    /// If a peer is lost, or a tensor is not of the right shape.
    pub fn forward_with(
        &self,
        x: &Tensor,
        shift: Option<&Tensor>,
        finish: Finish<'_>,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        let [batch, rows, columns, channels] = x.sizes()?;
        let halo = exchange.halo(self.site, x, 1)?;
        if let Some(x) = x.on_device() {
            return self.on_device(x, &halo, shift, finish);
        }
        let band = Band {
            batch,
            rows,
            first_row: halo.first_row,
            width: columns,
            channels,
            body: x.view(),
            above: halo.above.as_ref().map_or(Ok(&[][..]), Rows::exact)?,
            below: halo.below.as_ref().map_or(Ok(&[][..]), Rows::exact)?,
        };
        let bias = shift.map(|shift| self.bias_with(shift));
        let bias = bias.as_deref().unwrap_or(&self.bias);
        let added = self.added.as_ref().map(|added| {
            let shape =
                [batch, rows.div_ceil(self.stride), columns.div_ceil(self.stride), added.rank];
            let low = x.make(Work::Convolution, shape, |out| {
                kernels::conv2d(
                    Isa::best(),
                    out,
                    &band,
                    added.down.packed()?,
                    &Epilogue::default(),
                );
                Ok(())
            })?;
            added.up.forward_biased(&low, Some(bias))
        });
        let added = added.transpose()?;
        let epilogue = Epilogue {
            bias: Some(added.as_ref().map_or(bias, Tensor::view)),
            activation: finish.activation,
            residual: finish.residual.map(Tensor::view),
        };
        let (rows, columns) = (rows.div_ceil(self.stride), columns.div_ceil(self.stride));
        x.make(Work::Convolution, [batch, rows, columns, self.outputs], |out| {
            kernels::conv2d(Isa::best(), out, &band, self.weight.packed()?, &epilogue);
            Ok(())
        })
    }

    fn on_device<'a>(
        &self,
        x: OnDevice<'a>,
        halo: &Halo,
        shift: Option<&'a Tensor>,
        finish: Finish<'a>,
    ) -> Result<Tensor> {
        let Weight::Device(weight, bias) = &self.weight else {
            let cause = "the input is on a device, its weights are not".to_owned();
            return Err(Error::Shape(cause));
        };
        let (batch, _, columns, channels) = x.values.dims4()?;
        let row = |rows: &Option<Rows>| {
            let rows = rows.as_ref();
            let row = rows.map(|rows| rows.on_device(x.device, &[batch, 1, columns, channels]));
            row.transpose()
        };
        let (above, below) = (row(&halo.above)?, row(&halo.below)?);
        let (shift, residual) = (x.with(shift)?, x.with(finish.residual)?);
        x.make(Work::Convolution, || {
            let x = conv::with_border(x.values, above.as_ref(), below.as_ref())?;
            let mut out = conv::conv3x3(&x, weight, self.stride)?;
            if let Some(added) = &self.added {
                out = (&out + added.on_device(&x, self.stride)?.to_dtype(out.dtype())?)?;
            }
            let bias = match shift {
                Some(shift) => bias.broadcast_add(shift)?,
                None => bias.clone(),
            };
            let bias = bias.reshape(((), 1, 1, self.outputs))?.to_dtype(out.dtype())?;
            linear::finish(&out.broadcast_add(&bias)?, finish.activation, residual)
        })
    }

    /// The bias of each image of the batch.
    fn bias_with(&self, shift: &Tensor) -> Vec<f32> {
        let biases = self.bias.iter().cycle();
        shift.view().iter().zip(biases).map(|(one, two)| one + two).collect()
    }
}
