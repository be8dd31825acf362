//! Residual blocks and resampling, of the UNet and of the VAE.

use crate::kernels;
use crate::model::Result;
use crate::model::exchange::Exchange;
use crate::model::lora::Deltas;
use crate::model::nn::Loader;
use crate::model::nn::conv::Conv3x3;
use crate::model::nn::group_norm::GroupNorm;
use crate::model::nn::linear::{Finish, Linear};
use crate::model::nn::shard::Sum;
use crate::model::tensor::Tensor;
use crate::profile::Work;
use protocol::plan::Shard;

/// `ResnetBlock2D`.
#[derive(Clone, Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv3x3,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv3x3,
    conv_shortcut: Option<Linear>,
    sum: Sum,
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
        let projection = loader.at("time_emb_proj").exact();
        let time_emb_proj = time.map(|time| Linear::load(&projection, time, outputs, true));
        let conv_shortcut = (inputs != outputs)
            .then(|| Linear::load(&loader.at("conv_shortcut"), inputs, outputs, true));
        Ok(Self {
            norm1: GroupNorm::load(&loader.at("norm1"), inputs, groups, eps)?,
            conv1: Conv3x3::load(&loader.at("conv1"), inputs, outputs, 1)?,
            time_emb_proj: time_emb_proj.transpose()?,
            norm2: GroupNorm::load(&loader.at("norm2"), outputs, groups, eps)?,
            conv2: Conv3x3::load(&loader.at("conv2"), outputs, outputs, 1)?,
            conv_shortcut: conv_shortcut.transpose()?,
            sum: Sum::load(loader, outputs),
        })
    }

    /// The part that computes some of the groups between its convolutions.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        let groups = shard.range(self.norm2.groups());
        let hidden = self.norm2.channels_of(groups.clone());
        let giving = |linear: &Linear| linear.giving(std::slice::from_ref(&hidden));
        let inputs = shard.range(self.conv1.inputs());
        let shortcut = |linear: &Linear| linear.taking(inputs.clone(), shard.is_first());
        Self {
            norm1: self.norm1.clone(),
            conv1: self.conv1.giving(hidden.clone()),
            time_emb_proj: self.time_emb_proj.as_ref().map(giving),
            norm2: self.norm2.of_groups(groups),
            conv2: self.conv2.taking(hidden.clone(), shard.is_first()),
            conv_shortcut: self.conv_shortcut.as_ref().map(shortcut),
            sum: self.sum.of_shard(shard),
        }
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.conv1.adapt(deltas)?;
        self.conv2.adapt(deltas)?;
        let small = [&mut self.time_emb_proj, &mut self.conv_shortcut];
        small.into_iter().flatten().try_for_each(|linear| linear.adapt(deltas))
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
    /// If a peer is lost, or a tensor is not of that shape.
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
        let shortcut = self.conv_shortcut.as_ref();
        let shortcut = shortcut.map(|conv| conv.forward(&self.sum.cut(x)?)).transpose()?;
        let finish = match &shortcut {
            // A summand of the shortcut, as this is one of the convolution.
            Some(shortcut) => Finish { residual: Some(shortcut), ..Finish::default() },
            None => self.sum.finish(x),
        };
        let out = self.conv2.forward_with(&normed, None, finish, exchange)?;
        self.sum.over(out, exchange)
    }
}

/// `Downsample2D`: a convolution with stride 2.
#[derive(Clone, Debug)]
pub struct Downsample {
    conv: Conv3x3,
    sum: Sum,
}

impl Downsample {
    /// The downsampler at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, channels: usize) -> Result<Self> {
        let conv = Conv3x3::load(&loader.at("conv"), channels, channels, 2)?;
        Ok(Self { conv, sum: Sum::load(&loader.placed(loader.place().halved()), channels) })
    }

    /// The part that reads some of the channels.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        let conv = self.conv.taking(shard.range(self.conv.inputs()), shard.is_first());
        Self { conv, sum: self.sum.of_shard(shard) }
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.conv.adapt(deltas)
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.conv.bytes()
    }

    /// `x` [batch, rows, columns, channels] to [batch, rows / 2, columns / 2, channels], rounded up.
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a tensor of that shape.
    pub fn forward(&self, x: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        let out = self.conv.forward(&self.sum.cut(x)?, exchange)?;
        self.sum.over(out, exchange)
    }
}

/// `Upsample2D`: nearest neighbour, then a convolution at the new resolution.
#[derive(Clone, Debug)]
pub struct Upsample {
    conv: Conv3x3,
    sum: Sum,
}

impl Upsample {
    /// The upsampler at `loader`, which stands at the resolution before it.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, channels: usize) -> Result<Self> {
        let above = loader.placed(loader.place().doubled());
        let conv = Conv3x3::load(&above.at("conv"), channels, channels, 1)?;
        Ok(Self { conv, sum: Sum::load(&above, channels) })
    }

    /// The part that reads some of the channels.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        let conv = self.conv.taking(shard.range(self.conv.inputs()), shard.is_first());
        Self { conv, sum: self.sum.of_shard(shard) }
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.conv.adapt(deltas)
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.conv.bytes()
    }

    /// `x` [batch, rows, columns, channels] to [batch, 2 rows, 2 columns, channels].
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a tensor of that shape.
    pub fn forward(&self, x: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        let x = self.sum.cut(x)?;
        let out = self.conv.forward(&doubled(&x)?, exchange)?;
        self.sum.over(out, exchange)
    }
}

/// `x` [batch, rows, columns, channels] with every row and column twice.
fn doubled(x: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns, channels] = x.sizes()?;
    if let Some(x) = x.on_device() {
        return x.make(Work::Copy, || {
            let each = x.values.reshape((batch * rows, 1, columns, 1, channels))?;
            let twice = each.broadcast_as((batch * rows, 2, columns, 2, channels))?.contiguous()?;
            twice.reshape((batch, 2 * rows, 2 * columns, channels))
        });
    }
    x.make(Work::Copy, [batch, 2 * rows, 2 * columns, channels], |out| {
        kernels::upsample2x_nearest(out, x.view(), batch, rows, columns, channels);
        Ok(())
    })
}
