//! `UNet2DConditionModel`, over a band of the latent.

pub mod block;
pub mod config;
pub mod resnet;
pub mod transformer;

use self::block::{Conditions, DownBlock, MidBlock, UpBlock};
use self::config::UNetConfig;
use super::exchange::{Exchange, Place};
use super::lora::Deltas;
use super::nn::Loader;
use super::nn::conv::Conv3x3;
use super::nn::embedding::TimestepEmbedding;
use super::nn::group_norm::GroupNorm;
use super::tensor::Tensor;
use super::{Error, Result};
use crate::kernels::{self, Isa};
use crate::profile::Work;
use protocol::plan::{Shard, Stage};

/// The denoising network.
#[derive(Clone, Debug)]
pub struct UNet {
    config: UNetConfig,
    conv_in: Conv3x3,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
}

/// What one image is conditioned on, computed once per image.
#[derive(Debug)]
pub struct Conditioning {
    text_kv: Vec<Tensor>,
    added: Option<Tensor>,
    batch: usize,
}

/// SDXL's additional conditions.
#[derive(Clone, Copy, Debug)]
pub struct TextTime<'a> {
    /// The pooled text embedding [batch, channels].
    pub pooled: &'a Tensor,
    /// Original size, crop and target size: height, width, top, left, height, width.
    pub sizes: [f32; 6],
}

impl UNet {
    /// Builds the network from the weights at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, config: UNetConfig) -> Result<Self> {
        let first = config.block_channels[0];
        let time = 4 * first;
        let input = Place { stage: Stage::Input, halvings: 0 };
        let conv_in =
            Conv3x3::load(&loader.at("conv_in").placed(input), config.channels, first, 1)?;
        let time_embedding =
            TimestepEmbedding::load(&loader.at("time_embedding"), config.time.channels, time)?;
        let add_embedding = config
            .text_time
            .map(|(_, width)| TimestepEmbedding::load(&loader.at("add_embedding"), width, time));
        let mut place = loader.place();
        let mut down_blocks = Vec::new();
        for resolution in 0..config.block_channels.len() {
            let at = loader.at("down_blocks").at(resolution).placed(place);
            down_blocks.push(DownBlock::load(&at, &config, resolution)?);
            place = if resolution < config.halvings() { place.halved() } else { place };
        }
        let mid_block = MidBlock::load(&loader.at("mid_block").placed(place), &config)?;
        let mut up_blocks = Vec::new();
        for index in 0..config.block_channels.len() {
            let at = loader.at("up_blocks").at(index).placed(place);
            up_blocks.push(UpBlock::load(&at, &config, index)?);
            place = place.doubled();
        }
        let norm_out = loader.at("conv_norm_out");
        Ok(Self {
            conv_in,
            time_embedding,
            add_embedding: add_embedding.transpose()?,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::load(&norm_out, first, config.norm_groups, config.norm_eps)?,
            conv_out: Conv3x3::load(&loader.at("conv_out"), first, config.channels, 1)?,
            config,
        })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The part of it that one of several ranks computes in tensor parallelism: attention heads,
    /// feed-forward channels, the groups between a residual block's convolutions, the channels that
    /// samplers read. What is left is small, and computed by all. Takes memory for its weights.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        Self {
            down_blocks: self.down_blocks.iter().map(|block| block.of_shard(shard)).collect(),
            mid_block: self.mid_block.of_shard(shard),
            up_blocks: self.up_blocks.iter().map(|block| block.of_shard(shard)).collect(),
            ..self.clone()
        }
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.conv_in.adapt(deltas)?;
        self.time_embedding.adapt(deltas)?;
        self.add_embedding.iter_mut().try_for_each(|embedding| embedding.adapt(deltas))?;
        self.down_blocks.iter_mut().try_for_each(|block| block.adapt(deltas))?;
        self.mid_block.adapt(deltas)?;
        self.up_blocks.iter_mut().try_for_each(|block| block.adapt(deltas))?;
        self.conv_out.adapt(deltas)
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.conv_in.bytes()
            + self.time_embedding.bytes()
            + self.add_embedding.as_ref().map_or(0, TimestepEmbedding::bytes)
            + self.down_blocks.iter().map(DownBlock::bytes).sum::<usize>()
            + self.mid_block.bytes()
            + self.up_blocks.iter().map(UpBlock::bytes).sum::<usize>()
            + self.conv_out.bytes()
    }

    /// Computes what does not change from step to step, from the text embeddings `text`
    /// [batch, tokens, channels] and, for SDXL, `text_time`.
    ///
    /// # Errors
    /// If the checkpoint needs `text_time` and there is none, or shapes do not fit.
    pub fn condition(
        &self,
        text: &Tensor,
        text_time: Option<TextTime<'_>>,
    ) -> Result<Conditioning> {
        let mut text_kv = Vec::new();
        for block in &self.down_blocks {
            block.text_kv(text, &mut text_kv)?;
        }
        self.mid_block.text_kv(text, &mut text_kv)?;
        for block in &self.up_blocks {
            block.text_kv(text, &mut text_kv)?;
        }
        let added = match (&self.add_embedding, self.config.text_time, text_time) {
            (Some(embedding), Some((sinusoid, width)), Some(given)) => {
                let sizes: Vec<f32> =
                    given.sizes.iter().flat_map(|size| sinusoid.embed(*size)).collect();
                let joined = beside(given.pooled, &sizes, width)?;
                Some(embedding.forward(&joined, None)?)
            }
            (None, _, None) => None,
            _ => return Err(Error::Checkpoint(
                "unet/config.json: `addition_embed_type` and the text encoders do not fit together"
                    .to_owned(),
            )),
        };
        Ok(Conditioning { text_kv, added, batch: text.dim(0)? })
    }

    /// The prediction for a band `x` [batch, rows, columns, channels] at `timestep`.
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a tensor of that shape.
    pub fn forward(
        &self,
        x: &Tensor,
        timestep: f32,
        conditioning: &Conditioning,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        // 1. Time and sizes.
        let time = self.time(x, timestep, conditioning)?;
        let mut text_kv = conditioning.text_kv.iter();
        let mut x = self.conv_in.forward(x, exchange)?;
        let mut on = Conditions { time: &time, text_kv: &mut text_kv, exchange };
        // 2. Down.
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &mut skips, &mut on)?;
        }
        // 3. Middle.
        x = self.mid_block.forward(&x, &mut on)?;
        // 4. Up.
        for block in &self.up_blocks {
            x = block.forward(x, &mut skips, &mut on)?;
        }
        // 5. Out.
        let x = self.conv_norm_out.forward_silu(&x, on.exchange)?;
        self.conv_out.forward(&x, on.exchange)
    }

    /// The activated time embedding [batch, channels], in the memory of `x`.
    fn time(&self, x: &Tensor, timestep: f32, conditioning: &Conditioning) -> Result<Tensor> {
        let embedded = self.config.time.embed(timestep).repeat(conditioning.batch);
        let shape = [conditioning.batch, self.config.time.channels];
        let embedded = Tensor::new(&x.memory(), &embedded, shape)?;
        let time = self.time_embedding.forward(&embedded, conditioning.added.as_ref())?;
        if let Some(time) = time.on_device() {
            return time.make(Work::Pointwise, || time.values.silu());
        }
        time.make(Work::Pointwise, time.shape(), |out| {
            kernels::silu(Isa::best(), out, time.view());
            Ok(())
        })
    }
}

/// The pooled text [batch, channels] with `sizes` after each row, which must give `width`.
fn beside(pooled: &Tensor, sizes: &[f32], width: usize) -> Result<Tensor> {
    let [batch, channels] = pooled.sizes()?;
    if channels + sizes.len() != width {
        return Err(Error::Checkpoint(format!(
            "unet/config.json: `projection_class_embeddings_input_dim` is `{width}`; the pooled \
             text ({channels}) and six sizes ({}) need {}",
            sizes.len(),
            channels + sizes.len()
        )));
    }
    let rows = pooled.to_host()?;
    pooled.make_on_host(Work::Copy, [batch, width], |out| {
        for (out, row) in out.chunks_exact_mut(width).zip(rows.chunks(channels)) {
            out[..channels].copy_from_slice(row);
            out[channels..].copy_from_slice(sizes);
        }
        Ok(())
    })
}
