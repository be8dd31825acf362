//! Residual blocks and resampling, of the UNet and of the VAE.

use crate::kernels::{self, Activation};
use crate::model::Result;
use crate::model::exchange::Exchange;
use crate::model::nn::conv::Conv3x3;
use crate::model::nn::group_norm::GroupNorm;
use crate::model::nn::linear::{Finish, Linear};
use crate::model::nn::{Loader, tensor, view};
use candle_core::Tensor;

/// `ResnetBlock2D`.
#[derive(Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv3x3,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv3x3,
    conv_shortcut: Option<Linear>,
}

/// The shape of a [`ResnetBlock`].
#[derive(Clone, Copy, Debug)]
pub struct ResnetShape {
    /// Channels of its input.
    pub inputs: usize,
    /// Channels of its output.
    pub outputs: usize,
    /// Channels of the time embedding; None in the VAE.
    pub time: Option<usize>,
    /// Normalisation groups.
    pub groups: usize,
    /// Normalisation epsilon.
    pub eps: f64,
}

impl ResnetBlock {
    /// The block at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, shape: ResnetShape) -> Result<Self> {
        let ResnetShape { inputs, outputs, time, groups, eps } = shape;
        let time_emb_proj =
            time.map(|time| Linear::load(&loader.at("time_emb_proj"), time, outputs, true));
        let conv_shortcut = (inputs != outputs)
            .then(|| Linear::load(&loader.at("conv_shortcut"), inputs, outputs, true));
        Ok(Self {
            norm1: GroupNorm::load(&loader.at("norm1"), inputs, groups, eps)?,
            conv1: Conv3x3::load(&loader.at("conv1"), inputs, outputs, 1)?,
            time_emb_proj: time_emb_proj.transpose()?,
            norm2: GroupNorm::load(&loader.at("norm2"), outputs, groups, eps)?,
            conv2: Conv3x3::load(&loader.at("conv2"), outputs, outputs, 1)?,
            conv_shortcut: conv_shortcut.transpose()?,
        })
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.conv1.bytes()
            + self.conv2.bytes()
            + self.time_emb_proj.as_ref().map_or(0, Linear::bytes)
            + self.conv_shortcut.as_ref().map_or(0, Linear::bytes)
    }

    /// `x` [batch, rows, columns, inputs] to [.., outputs]; `time` [batch, time channels] is the
    /// activated time embedding.
    ///
    /// # Errors
    /// If a peer is lost, or a tensor is not contiguous or not of that shape.
    pub fn forward(
        &self,
        x: &Tensor,
        time: Option<&Tensor>,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        // 1. First convolution, shifted by the time embedding.
        let shift = match (&self.time_emb_proj, time) {
            (Some(projection), Some(time)) => Some(projection.forward(time)?),
            _ => None,
        };
        // Each image is dropped once it is read: in the VAE one may take a GiB.
        let normed = self.norm1.forward_silu(x, exchange)?;
        let plain = Finish::default();
        let hidden = self.conv1.forward_with(&normed, shift.as_ref(), plain, exchange)?;
        drop(normed);
        // 2. Second convolution, on top of the shortcut.
        let normed = self.norm2.forward_silu(&hidden, exchange)?;
        drop(hidden);
        let shortcut = self.conv_shortcut.as_ref().map(|conv| conv.forward(x)).transpose()?;
        let residual = Some(shortcut.as_ref().unwrap_or(x));
        let finish = Finish { activation: Activation::None, residual };
        self.conv2.forward_with(&normed, None, finish, exchange)
    }
}

/// `Upsample2D`: nearest neighbour, then a convolution at the new resolution.
#[derive(Debug)]
pub struct Upsample {
    conv: Conv3x3,
}

impl Upsample {
    /// The upsampler at `loader`, which stands at the resolution before it.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, channels: usize) -> Result<Self> {
        let above = loader.at("conv").placed(loader.place().doubled());
        Ok(Self { conv: Conv3x3::load(&above, channels, channels, 1)? })
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.conv.bytes()
    }

    /// `x` [batch, rows, columns, channels] to [batch, 2 rows, 2 columns, channels].
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a contiguous tensor of that shape.
    pub fn forward(&self, x: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        let (batch, rows, columns, channels) = x.dims4()?;
        let mut out = vec![0.0; 4 * x.elem_count()];
        kernels::upsample2x_nearest(&mut out, &view(x)?, batch, rows, columns, channels);
        let doubled = tensor(out, (batch, 2 * rows, 2 * columns, channels))?;
        self.conv.forward(&doubled, exchange)
    }
}
