//! `vae/config.json`.

use crate::model::Result;
use crate::model::config::Config;
use serde_json::json;

/// What `AutoencoderKL`'s configuration says, as far as we support it.
#[derive(Clone, Debug)]
pub struct VaeConfig {
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Channels of each resolution, from the image's down.
    pub block_channels: Vec<usize>,
    /// Residual blocks per resolution of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Normalisation groups.
    pub norm_groups: usize,
    /// Latents are this many times the VAE's own.
    pub scaling_factor: f64,
    /// Added to the VAE's own latents after scaling back.
    pub shift_factor: f64,
    /// Whether a 1x1 convolution comes first.
    pub post_quant_conv: bool,
    /// Whether one ends the encoder.
    pub quant_conv: bool,
    /// Whether the lowest resolution has attention.
    pub mid_block_attention: bool,
}

impl VaeConfig {
    /// Reads `vae/config.json`.
    ///
    /// # Errors
    /// Names the first key whose value is not supported.
    pub fn read(config: &Config) -> Result<Self> {
        config.only("_class_name", &[json!("AutoencoderKL")])?;
        config.only("act_fn", &[json!("silu"), json!("swish")])?;
        config.only("out_channels", &[json!(3)])?;
        config.only("latents_mean", &[])?;
        config.only("latents_std", &[])?;
        let block_channels = config.blocks("block_out_channels")?;
        let kinds = config.texts("up_block_types")?;
        if kinds.len() != block_channels.len()
            || kinds.iter().any(|kind| *kind != "UpDecoderBlock2D")
        {
            return Err(config.refuse(
                "up_block_types",
                &format!("{} of \"UpDecoderBlock2D\"", block_channels.len()),
            ));
        }
        let kinds = config.texts("down_block_types")?;
        if kinds.len() != block_channels.len()
            || kinds.iter().any(|kind| *kind != "DownEncoderBlock2D")
        {
            return Err(config.refuse(
                "down_block_types",
                &format!("{} of \"DownEncoderBlock2D\"", block_channels.len()),
            ));
        }
        config.only("in_channels", &[json!(3)])?;
        // Both always compute in f32, as `force_upcast` asks.
        config.inert(&["force_upcast", "sample_size"]);
        let read = Self {
            latent_channels: config.positive("latent_channels")?,
            layers_per_block: config.positive_or("layers_per_block", 1)?,
            norm_groups: config.positive_or("norm_num_groups", 32)?,
            scaling_factor: config.number_or("scaling_factor", 0.18215)?,
            shift_factor: config.number_or("shift_factor", 0.0)?,
            post_quant_conv: config.flag_or("use_post_quant_conv", true)?,
            quant_conv: config.flag_or("use_quant_conv", true)?,
            mid_block_attention: config.flag_or("mid_block_add_attention", true)?,
            block_channels,
        };
        config.finish()?;
        if read.block_channels.iter().any(|channels| !channels.is_multiple_of(read.norm_groups)) {
            return Err(config.refuse("norm_num_groups", "a divisor of every block's channels"));
        }
        if read.scaling_factor <= 0.0 {
            return Err(config.refuse("scaling_factor", "a positive number"));
        }
        Ok(read)
    }

    /// Channels at the latent's resolution.
    #[must_use]
    pub fn lowest_channels(&self) -> usize {
        self.block_channels[self.block_channels.len() - 1]
    }

    /// Bytes that must be alive at once for each pixel of a band that is decoded as a whole, at the
    /// layer that needs most: in a residual block its input, that normalised, and its first
    /// convolution; in an upsampler the image enlarged, before and after its convolution.
    #[must_use]
    pub fn bytes_per_pixel(&self) -> usize {
        let last = self.block_channels.len() - 1;
        let of_block = |block: usize| {
            let (own, before) =
                (self.block_channels[block], self.block_channels[(block + 1).min(last)]);
            let resnets = (2 * before + own).max(3 * own);
            let enlarged = if block < last { 2 * before } else { 0 };
            (resnets.max(enlarged) * size_of::<f32>()) >> (2 * block)
        };
        (0..=last).map(of_block).max().unwrap_or(0)
    }

    /// Bytes that must be alive at once for each pixel of a picture that is encoded, at the layer that needs most: a
    /// residual block as above, or what a downsampler reads beside a copy of it.
    #[must_use]
    pub fn bytes_per_pixel_encoded(&self) -> usize {
        let of_block = |block: usize| {
            let (own, before) =
                (self.block_channels[block], self.block_channels[block.saturating_sub(1)]);
            ((2 * before + own).max(3 * own) * size_of::<f32>()) >> (2 * block)
        };
        (0..self.block_channels.len()).map(of_block).max().unwrap_or(0)
    }

    /// Pixels per latent row and column.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << (self.block_channels.len() - 1)
    }
}
