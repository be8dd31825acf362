//! `AutoencoderKL`'s encoder, over a whole picture: each rank encodes it by itself, once.

use super::{MidBlock, NORM_EPS, VaeConfig, resnet_shape};
use crate::model::Result;
use crate::model::exchange::Dense;
use crate::model::nn::Loader;
use crate::model::nn::conv::Conv3x3;
use crate::model::nn::group_norm::GroupNorm;
use crate::model::nn::linear::Linear;
use crate::model::tensor::Tensor;
use crate::model::unet::resnet::ResnetBlock;
use crate::profile::Work;

/// Turns a picture into what latents are drawn from.
#[derive(Debug)]
pub struct VaeEncoder {
    conv_in: Conv3x3,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
    quant_conv: Option<Linear>,
}

impl VaeEncoder {
    /// Builds the encoder from the weights at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, config: &VaeConfig) -> Result<Self> {
        let encoder = loader.at("encoder");
        let (first, lowest) = (config.block_channels[0], config.lowest_channels());
        let moments = 2 * config.latent_channels;
        let quant_conv = config
            .quant_conv
            .then(|| Linear::load(&loader.at("quant_conv"), moments, moments, true));
        let blocks = encoder.at("down_blocks");
        Ok(Self {
            conv_in: Conv3x3::load(&encoder.at("conv_in"), 3, first, 1)?,
            down_blocks: (0..config.block_channels.len())
                .map(|index| DownBlock::load(&blocks.at(index), config, index))
                .collect::<Result<_>>()?,
            mid_block: MidBlock::load(&encoder.at("mid_block"), config)?,
            conv_norm_out: GroupNorm::load(
                &encoder.at("conv_norm_out"),
                lowest,
                config.norm_groups,
                NORM_EPS,
            )?,
            conv_out: Conv3x3::load(&encoder.at("conv_out"), lowest, moments, 1)?,
            quant_conv: quant_conv.transpose()?,
        })
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.conv_in.bytes()
            + self.down_blocks.iter().map(DownBlock::bytes).sum::<usize>()
            + self.mid_block.bytes()
            + self.conv_out.bytes()
            + self.quant_conv.as_ref().map_or(0, Linear::bytes)
    }

    /// RGB [1, rows, columns, 3] in -1..1 to [1, rows / factor, columns / factor, 2 x channels]: the means of the
    /// VAE's own latents and the logarithms of their variances.
    ///
    /// # Errors
    /// If `picture` is not a tensor of that shape.
    pub fn encode(&self, picture: &Tensor) -> Result<Tensor> {
        // 1. Down.
        let mut x = self.conv_in.forward(picture, &mut Dense)?;
        for block in &self.down_blocks {
            x = block.forward(x)?;
        }
        // 2. Latent resolution.
        let x = self.mid_block.forward(&x, &mut Dense)?;
        // 3. Out.
        let x = self.conv_norm_out.forward_silu(&x, &mut Dense)?;
        let x = self.conv_out.forward(&x, &mut Dense)?;
        self.quant_conv.as_ref().map_or(Ok(x.clone()), |conv| conv.forward(&x))
    }
}

/// `DownEncoderBlock2D`.
#[derive(Debug)]
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsampler: Option<Conv3x3>,
}

impl DownBlock {
    fn load(loader: &Loader<'_>, config: &VaeConfig, index: usize) -> Result<Self> {
        let channels = config.block_channels[index];
        let before = config.block_channels[index.saturating_sub(1)];
        let resnets = (0..config.layers_per_block)
            .map(|layer| {
                let inputs = if layer == 0 { before } else { channels };
                let loader = loader.at("resnets").at(layer);
                ResnetBlock::load(&loader, resnet_shape(config, inputs, channels))
            })
            .collect::<Result<_>>()?;
        let last = index + 1 == config.block_channels.len();
        let conv = loader.at("downsamplers.0.conv");
        let downsampler = (!last).then(|| Conv3x3::load(&conv, channels, channels, 2));
        Ok(Self { resnets, downsampler: downsampler.transpose()? })
    }

    fn bytes(&self) -> usize {
        self.resnets.iter().map(ResnetBlock::bytes).sum::<usize>()
            + self.downsampler.as_ref().map_or(0, Conv3x3::bytes)
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(&x, None, &mut Dense)?;
        }
        match &self.downsampler {
            Some(conv) => halved(x, conv),
            None => Ok(x),
        }
    }
}

/// `conv` of stride 2 with zeros after the last row and column alone, as the encoder's downsamplers have it. Ours has them
/// on all sides: with one row and column more before the first, what it gives from the second on is that.
fn halved(x: Tensor, conv: &Conv3x3) -> Result<Tensor> {
    let [_, rows, columns, _] = x.sizes::<4>()?;
    let shifted = shifted(&x)?;
    drop(x);
    let out = conv.forward(&shifted, &mut Dense)?;
    out.narrow(1, 1, rows / 2)?.narrow(2, 1, columns / 2)
}

/// `x` [1, rows, columns, channels] with a row and a column of zeros before the first.
fn shifted(x: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns, channels] = x.sizes()?;
    if let Some(x) = x.on_device() {
        return x.make(Work::Copy, || x.values.pad_with_zeros(1, 1, 0)?.pad_with_zeros(2, 1, 0));
    }
    x.make(Work::Copy, [batch, rows + 1, columns + 1, channels], |out| {
        out.fill(0.0);
        let (from, to) = (columns * channels, (columns + 1) * channels);
        for (image, out) in
            x.view().chunks_exact(rows * from).zip(out.chunks_exact_mut((rows + 1) * to))
        {
            for (row, out) in image.chunks_exact(from).zip(out[to..].chunks_exact_mut(to)) {
                out[channels..].copy_from_slice(row);
            }
        }
        Ok(())
    })
}
