//! `AutoencoderKL`: its decoder, over a band of the latent, and its encoder.

mod config;
mod encoder;
mod preview;
mod tiles;

pub use config::VaeConfig;
pub use encoder::VaeEncoder;

use super::Result;
use super::exchange::{Exchange, Place};
use super::nn::Loader;
use super::nn::attention::SelfAttention;
use super::nn::conv::Conv3x3;
use super::nn::group_norm::GroupNorm;
use super::nn::linear::Linear;
use super::tensor::Tensor;
use super::unet::resnet::{ResnetBlock, ResnetShape, Upsample};
use protocol::Site;
use protocol::plan::{Ask, Stage};

/// Epsilon of every norm in the VAE, fixed in diffusers.
const NORM_EPS: f64 = 1e-6;

/// Turns latents into pixels.
#[derive(Debug)]
pub struct VaeDecoder {
    config: VaeConfig,
    post_quant_conv: Option<Linear>,
    conv_in: Conv3x3,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
    middle: Site,
}

impl VaeDecoder {
    /// Builds the decoder from the weights at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, config: VaeConfig) -> Result<Self> {
        let latent = config.latent_channels;
        let post_quant_conv = config
            .post_quant_conv
            .then(|| Linear::load(&loader.at("post_quant_conv"), latent, latent, true));
        let decoder = loader.at("decoder");
        let lowest = config.lowest_channels();
        let mut place = loader.place();
        let conv_in = Conv3x3::load(&decoder.at("conv_in"), latent, lowest, 1)?;
        let mid_block = MidBlock::load(&decoder.at("mid_block"), &config)?;
        let mut up_blocks = Vec::new();
        for index in 0..config.block_channels.len() {
            let at = decoder.at("up_blocks").at(index).placed(place);
            up_blocks.push(UpBlock::load(&at, &config, index)?);
            let last = index + 1 == config.block_channels.len();
            place = if last { place } else { place.doubled() };
        }
        let tiles = Place { stage: Stage::Tiles, ..loader.place() };
        let middle = decoder.at("mid_block").placed(tiles).site(Ask::Gather, lowest);
        let full = decoder.placed(place);
        let first = config.block_channels[0];
        Ok(Self {
            post_quant_conv: post_quant_conv.transpose()?,
            conv_in,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::load(
                &full.at("conv_norm_out"),
                first,
                config.norm_groups,
                NORM_EPS,
            )?,
            conv_out: Conv3x3::load(&full.at("conv_out"), first, 3, 1)?,
            middle,
            config,
        })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.post_quant_conv.as_ref().map_or(0, Linear::bytes)
            + self.conv_in.bytes()
            + self.mid_block.bytes()
            + self.up_blocks.iter().map(UpBlock::bytes).sum::<usize>()
            + self.conv_out.bytes()
    }

    /// A band of the latent [1, rows, columns, channels], as the sampler left it, to RGB
    /// [1, factor x rows, factor x columns, 3] in about -1..1.
    ///
    /// # Errors
    /// If a peer is lost, or `latent` is not a tensor of that shape.
    pub fn decode(&self, latent: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        let x = self.to_middle(latent, exchange)?;
        self.to_image(x, exchange)
    }

    /// The first half, at the latent's resolution: all that has attention.
    #[expect(clippy::cast_possible_truncation, reason = "the reference computes in f32")]
    fn to_middle(&self, latent: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        // 1. Undo the scaling that made the latent fit for diffusion.
        let (scale, shift) = (1.0 / self.config.scaling_factor, self.config.shift_factor);
        let (scale, shift) = (scale as f32, shift as f32);
        let mut x = latent.affine(scale, shift)?;
        if let Some(conv) = &self.post_quant_conv {
            x = conv.forward(&x)?;
        }
        // 2. Latent resolution.
        let x = self.conv_in.forward(&x, exchange)?;
        self.mid_block.forward(&x, exchange)
    }

    /// The second half, where images grow: convolutions and norms.
    fn to_image(&self, mut x: Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        // 3. Up.
        for block in &self.up_blocks {
            x = block.forward(x, exchange)?;
        }
        // 4. Out.
        let x = self.conv_norm_out.forward_silu(&x, exchange)?;
        self.conv_out.forward(&x, exchange)
    }
}

fn resnet_shape(config: &VaeConfig, inputs: usize, outputs: usize) -> ResnetShape {
    ResnetShape { inputs, outputs, time: None, groups: config.norm_groups, eps: NORM_EPS }
}

/// `UNetMidBlock2D` with the decoder's single-headed attention.
#[derive(Debug)]
struct MidBlock {
    first: ResnetBlock,
    attention: Option<(GroupNorm, SelfAttention)>,
    last: ResnetBlock,
}

impl MidBlock {
    fn load(loader: &Loader<'_>, config: &VaeConfig) -> Result<Self> {
        let channels = config.lowest_channels();
        let shape = resnet_shape(config, channels, channels);
        let first = ResnetBlock::load(&loader.at("resnets.0"), shape)?;
        let attention = config.mid_block_attention.then(|| -> Result<_> {
            let loader = loader.at("attentions.0");
            let norm =
                GroupNorm::load(&loader.at("group_norm"), channels, config.norm_groups, NORM_EPS)?;
            let attention = if loader.has("proj_attn.weight") {
                SelfAttention::load_named_as_of_old(&loader, channels)?
            } else {
                SelfAttention::load(&loader, channels, 1, true)?
            };
            Ok((norm, attention))
        });
        let attention = attention.transpose()?;
        Ok(Self { first, attention, last: ResnetBlock::load(&loader.at("resnets.1"), shape)? })
    }

    fn bytes(&self) -> usize {
        self.first.bytes()
            + self.attention.as_ref().map_or(0, |(_, attention)| attention.bytes())
            + self.last.bytes()
    }

    fn forward(&self, x: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        let mut x = self.first.forward(x, None, exchange)?;
        if let Some((norm, attention)) = &self.attention {
            let [batch, rows, columns, channels] = x.sizes()?;
            let tokens = x.reshape([batch, rows * columns, channels])?;
            let mixed = attention.forward(&norm.forward(&tokens, exchange)?, &tokens, exchange)?;
            x = mixed.reshape([batch, rows, columns, channels])?;
        }
        self.last.forward(&x, None, exchange)
    }
}

/// `UpDecoderBlock2D`.
#[derive(Debug)]
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Upsample>,
}

impl UpBlock {
    fn load(loader: &Loader<'_>, config: &VaeConfig, index: usize) -> Result<Self> {
        let last = config.block_channels.len() - 1;
        let channels = config.block_channels[last - index];
        let before = config.block_channels[(last - index + 1).min(last)];
        let resnets = (0..=config.layers_per_block)
            .map(|layer| {
                let inputs = if layer == 0 { before } else { channels };
                let loader = loader.at("resnets").at(layer);
                ResnetBlock::load(&loader, resnet_shape(config, inputs, channels))
            })
            .collect::<Result<_>>()?;
        let upsampler =
            (index < last).then(|| Upsample::load(&loader.at("upsamplers.0"), channels));
        Ok(Self { resnets, upsampler: upsampler.transpose()? })
    }

    fn bytes(&self) -> usize {
        self.resnets.iter().map(ResnetBlock::bytes).sum::<usize>()
            + self.upsampler.as_ref().map_or(0, Upsample::bytes)
    }

    fn forward(&self, mut x: Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(&x, None, exchange)?;
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&x, exchange),
            None => Ok(x),
        }
    }
}
