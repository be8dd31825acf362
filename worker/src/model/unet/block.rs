//! The blocks of a UNet: down, middle, up.

use super::config::UNetConfig;
use super::resnet::{Downsample, ResnetBlock, ResnetShape, Upsample};
use super::transformer::{Transformer, TransformerShape};
use crate::kernels;
use crate::model::Result;
use crate::model::exchange::Exchange;
use crate::model::lora::Deltas;
use crate::model::nn::Loader;
use crate::model::tensor::Tensor;
use crate::profile::Work;
use protocol::plan::Shard;

/// What a block needs besides its input.
#[derive(Debug)]
pub struct Conditions<'a, I> {
    /// The activated time embedding [batch, time channels].
    pub time: &'a Tensor,
    /// The text's keys and values, one tensor for each transformer block in model order.
    pub text_kv: &'a mut I,
    /// What lies beyond the band.
    pub exchange: &'a mut dyn Exchange,
}

/// A residual block, and the attention after it if its resolution has any.
#[derive(Clone, Debug)]
struct Layer {
    resnet: ResnetBlock,
    attention: Option<Transformer>,
}

impl Layer {
    fn of_shard(&self, shard: Shard) -> Self {
        let attention = self.attention.as_ref().map(|attention| attention.of_shard(shard));
        Self { resnet: self.resnet.of_shard(shard), attention }
    }

    fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.resnet.adapt(deltas)?;
        self.attention.iter_mut().try_for_each(|attention| attention.adapt(deltas))
    }

    fn bytes(&self) -> usize {
        self.resnet.bytes() + self.attention.as_ref().map_or(0, Transformer::bytes)
    }

    fn forward<'t, I: Iterator<Item = &'t Tensor>>(
        &self,
        x: &Tensor,
        on: &mut Conditions<'_, I>,
    ) -> Result<Tensor> {
        let x = self.resnet.forward(x, Some(on.time), on.exchange)?;
        match &self.attention {
            Some(attention) => attention.forward(&x, on.text_kv, on.exchange),
            None => Ok(x),
        }
    }
}

/// The layers of a block.
#[derive(Clone, Debug)]
struct Layers(Vec<Layer>);

impl Layers {
    /// Layers at `resolution`, one for each of `inputs`: the channels of what it gets.
    fn load(
        loader: &Loader<'_>,
        config: &UNetConfig,
        resolution: usize,
        attends: bool,
        inputs: impl Iterator<Item = usize>,
    ) -> Result<Self> {
        let channels = config.block_channels[resolution];
        let layer = |(index, inputs)| {
            let shape = resnet_shape(config, inputs, channels);
            let resnet = ResnetBlock::load(&loader.at("resnets").at(index), shape)?;
            let attention = attends.then(|| {
                let shape = transformer_shape(config, resolution);
                Transformer::load(&loader.at("attentions").at(index), shape)
            });
            Ok(Layer { resnet, attention: attention.transpose()? })
        };
        Ok(Self(inputs.enumerate().map(layer).collect::<Result<_>>()?))
    }

    fn of_shard(&self, shard: Shard) -> Self {
        Self(self.0.iter().map(|layer| layer.of_shard(shard)).collect())
    }

    fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.0.iter_mut().try_for_each(|layer| layer.adapt(deltas))
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(Layer::bytes).sum()
    }

    fn text_kv(&self, text: &Tensor, into: &mut Vec<Tensor>) -> Result<()> {
        let mut attentions = self.0.iter().filter_map(|layer| layer.attention.as_ref());
        attentions.try_for_each(|attention| attention.text_kv(text, into))
    }
}

fn resnet_shape(config: &UNetConfig, inputs: usize, outputs: usize) -> ResnetShape {
    let time = Some(4 * config.block_channels[0]);
    ResnetShape { inputs, outputs, time, groups: config.norm_groups, eps: config.norm_eps }
}

fn transformer_shape(config: &UNetConfig, resolution: usize) -> TransformerShape {
    TransformerShape {
        channels: config.block_channels[resolution],
        heads: config.heads[resolution],
        layers: config.transformer_layers[resolution],
        text: config.text_channels,
        groups: config.norm_groups,
    }
}

/// `DownBlock2D` and `CrossAttnDownBlock2D`.
#[derive(Clone, Debug)]
pub struct DownBlock {
    layers: Layers,
    downsampler: Option<Downsample>,
}

impl DownBlock {
    /// The block for `resolution` at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, config: &UNetConfig, resolution: usize) -> Result<Self> {
        let channels = config.block_channels[resolution];
        let before = config.block_channels[resolution.saturating_sub(1)];
        let inputs =
            (0..config.layers_per_block).map(|layer| if layer == 0 { before } else { channels });
        let layers =
            Layers::load(loader, config, resolution, config.down_attention[resolution], inputs)?;
        let last = resolution + 1 == config.block_channels.len();
        let downsampler = (!last).then(|| Downsample::load(&loader.at("downsamplers.0"), channels));
        Ok(Self { layers, downsampler: downsampler.transpose()? })
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.layers.adapt(deltas)?;
        self.downsampler.iter_mut().try_for_each(|sampler| sampler.adapt(deltas))
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers.bytes() + self.downsampler.as_ref().map_or(0, Downsample::bytes)
    }

    /// The part that one of several ranks computes.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        let downsampler = self.downsampler.as_ref().map(|sampler| sampler.of_shard(shard));
        Self { layers: self.layers.of_shard(shard), downsampler }
    }

    /// The keys and values of the text for every attention, in `forward`'s order.
    ///
    /// # Errors
    /// If `text` is not a [batch, tokens, text channels].
    pub fn text_kv(&self, text: &Tensor, into: &mut Vec<Tensor>) -> Result<()> {
        self.layers.text_kv(text, into)
    }

    /// Runs the block on `x` and pushes what the way up will need onto `skips`.
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a tensor of the block's shape.
    pub fn forward<'t, I: Iterator<Item = &'t Tensor>>(
        &self,
        mut x: Tensor,
        skips: &mut Vec<Tensor>,
        on: &mut Conditions<'_, I>,
    ) -> Result<Tensor> {
        for layer in &self.layers.0 {
            x = layer.forward(&x, on)?;
            skips.push(x.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x, on.exchange)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// `UNetMidBlock2DCrossAttn`.
#[derive(Clone, Debug)]
pub struct MidBlock {
    first: Layer,
    last: ResnetBlock,
}

impl MidBlock {
    /// The block at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, config: &UNetConfig) -> Result<Self> {
        let lowest = config.block_channels.len() - 1;
        let shape = transformer_shape(config, lowest);
        let resnet = resnet_shape(config, shape.channels, shape.channels);
        let first = Layer {
            resnet: ResnetBlock::load(&loader.at("resnets.0"), resnet)?,
            attention: Some(Transformer::load(&loader.at("attentions.0"), shape)?),
        };
        Ok(Self { first, last: ResnetBlock::load(&loader.at("resnets.1"), resnet)? })
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.first.adapt(deltas)?;
        self.last.adapt(deltas)
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.first.bytes() + self.last.bytes()
    }

    /// The part that one of several ranks computes.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        Self { first: self.first.of_shard(shard), last: self.last.of_shard(shard) }
    }

    /// The keys and values of the text for its attention.
    ///
    /// # Errors
    /// If `text` is not a [batch, tokens, text channels].
    pub fn text_kv(&self, text: &Tensor, into: &mut Vec<Tensor>) -> Result<()> {
        self.first.attention.iter().try_for_each(|attention| attention.text_kv(text, into))
    }

    /// Runs the block on `x`.
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a tensor of the block's shape.
    pub fn forward<'t, I: Iterator<Item = &'t Tensor>>(
        &self,
        x: &Tensor,
        on: &mut Conditions<'_, I>,
    ) -> Result<Tensor> {
        let x = self.first.forward(x, on)?;
        self.last.forward(&x, Some(on.time), on.exchange)
    }
}

/// `UpBlock2D` and `CrossAttnUpBlock2D`.
#[derive(Clone, Debug)]
pub struct UpBlock {
    layers: Layers,
    upsampler: Option<Upsample>,
}

impl UpBlock {
    /// The block at `loader`, the `index`-th from the lowest resolution.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, config: &UNetConfig, index: usize) -> Result<Self> {
        let lowest = config.block_channels.len() - 1;
        let resolution = lowest - index;
        let channels = config.block_channels[resolution];
        let below = config.block_channels[(resolution + 1).min(lowest)];
        let above = config.block_channels[resolution.saturating_sub(1)];
        let inputs = (0..=config.layers_per_block).map(|layer| {
            let hidden = if layer == 0 { below } else { channels };
            let skip = if layer == config.layers_per_block { above } else { channels };
            hidden + skip
        });
        let layers = Layers::load(loader, config, resolution, config.up_attention[index], inputs)?;
        let upsampler =
            (resolution > 0).then(|| Upsample::load(&loader.at("upsamplers.0"), channels));
        Ok(Self { layers, upsampler: upsampler.transpose()? })
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.layers.adapt(deltas)?;
        self.upsampler.iter_mut().try_for_each(|sampler| sampler.adapt(deltas))
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers.bytes() + self.upsampler.as_ref().map_or(0, Upsample::bytes)
    }

    /// The part that one of several ranks computes.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        let upsampler = self.upsampler.as_ref().map(|sampler| sampler.of_shard(shard));
        Self { layers: self.layers.of_shard(shard), upsampler }
    }

    /// The keys and values of the text for every attention, in `forward`'s order.
    ///
    /// # Errors
    /// If `text` is not a [batch, tokens, text channels].
    pub fn text_kv(&self, text: &Tensor, into: &mut Vec<Tensor>) -> Result<()> {
        self.layers.text_kv(text, into)
    }

    /// Runs the block on `x`, taking from `skips` what the way down left.
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a tensor of the block's shape.
    pub fn forward<'t, I: Iterator<Item = &'t Tensor>>(
        &self,
        mut x: Tensor,
        skips: &mut Vec<Tensor>,
        on: &mut Conditions<'_, I>,
    ) -> Result<Tensor> {
        for layer in &self.layers.0 {
            let skip = skips.pop().expect("each layer up has its counterpart on the way down");
            x = layer.forward(&beside(&x, &skip)?, on)?;
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&x, on.exchange),
            None => Ok(x),
        }
    }
}

/// Two images' channels side by side.
fn beside(x: &Tensor, skip: &Tensor) -> Result<Tensor> {
    if x.on_device().is_some() {
        return Tensor::cat(&[x, skip], 3);
    }
    let (first, second) = (x.dim(3)?, skip.dim(3)?);
    x.make(Work::Copy, x.with_last(first + second), |out| {
        kernels::concat_channels(out, x.view(), first, skip.view(), second);
        Ok(())
    })
}
