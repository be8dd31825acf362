//! `Transformer2DModel`: attention over the image's and the prompt's tokens.

use crate::kernels::Activation;
use crate::model::Result;
use crate::model::exchange::Exchange;
use crate::model::lora::Deltas;
use crate::model::nn::Loader;
use crate::model::nn::attention::{CrossAttention, SelfAttention};
use crate::model::nn::group_norm::GroupNorm;
use crate::model::nn::layer_norm::LayerNorm;
use crate::model::nn::linear::{Finish, Geglu, Linear};
use crate::model::nn::shard::Sum;
use crate::model::tensor::Tensor;
use protocol::plan::Shard;

/// Epsilon of the group norm before a transformer, fixed in diffusers.
const GROUP_NORM_EPS: f64 = 1e-6;
/// Epsilon of the layer norms inside, fixed in diffusers.
const LAYER_NORM_EPS: f32 = 1e-5;
/// Width of the feed-forward part over that of the tokens, fixed in diffusers.
const FEED_FORWARD_FACTOR: usize = 4;

/// The shape of a [`Transformer`].
#[derive(Clone, Copy, Debug)]
pub struct TransformerShape {
    /// Channels of a token.
    pub channels: usize,
    /// Attention heads.
    pub heads: usize,
    /// Blocks.
    pub layers: usize,
    /// Channels of the text embeddings.
    pub text: usize,
    /// Normalisation groups.
    pub groups: usize,
}

/// A stack of transformer blocks between two projections.
#[derive(Clone, Debug)]
pub struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

impl Transformer {
    /// The transformer at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, shape: TransformerShape) -> Result<Self> {
        let channels = shape.channels;
        let norm = GroupNorm::load(&loader.at("norm"), channels, shape.groups, GROUP_NORM_EPS)?;
        let proj_in = Linear::load(&loader.at("proj_in"), channels, channels, true)?;
        let blocks = loader.at("transformer_blocks");
        let transformer_blocks = (0..shape.layers)
            .map(|index| TransformerBlock::load(&blocks.at(index), shape))
            .collect::<Result<_>>()?;
        let proj_out = Linear::load(&loader.at("proj_out"), channels, channels, true)?;
        Ok(Self { norm, proj_in, transformer_blocks, proj_out })
    }

    /// The part that computes some of the heads and of the feed-forward channels.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        let blocks = self.transformer_blocks.iter().map(|block| block.of_shard(shard));
        Self { transformer_blocks: blocks.collect(), ..self.clone() }
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.proj_in.adapt(deltas)?;
        self.transformer_blocks.iter_mut().try_for_each(|block| block.adapt(deltas))?;
        self.proj_out.adapt(deltas)
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let blocks: usize = self.transformer_blocks.iter().map(TransformerBlock::bytes).sum();
        self.proj_in.bytes() + blocks + self.proj_out.bytes()
    }

    /// Adds the text's keys and values of every block to `into`, in the order `forward` takes them.
    ///
    /// # Errors
    /// If `text` is not a [batch, tokens, text channels].
    pub fn text_kv(&self, text: &Tensor, into: &mut Vec<Tensor>) -> Result<()> {
        for block in &self.transformer_blocks {
            into.push(block.attn2.text_kv(text)?);
        }
        Ok(())
    }

    /// `x` [batch, rows, columns, channels] to the same shape; takes its blocks' keys and values
    /// of the text from `text_kv`.
    ///
    /// # Errors
    /// If a peer is lost, or a tensor is not of that shape.
    pub fn forward<'t>(
        &self,
        x: &Tensor,
        text_kv: &mut impl Iterator<Item = &'t Tensor>,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        let [batch, rows, columns, channels] = x.sizes()?;
        let residual = x.reshape([batch, rows * columns, channels])?;
        let mut hidden = self.proj_in.forward(&self.norm.forward(&residual, exchange)?)?;
        for block in &self.transformer_blocks {
            let text_kv = text_kv.next().expect("text_kv() gives one tensor for each block");
            hidden = block.forward(&hidden, text_kv, exchange)?;
        }
        let finish = Finish { activation: Activation::None, residual: Some(&residual) };
        let hidden = self.proj_out.forward_with(&hidden, finish)?;
        hidden.reshape([batch, rows, columns, channels])
    }
}

/// `BasicTransformerBlock`.
#[derive(Clone, Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: SelfAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    ff_in: Geglu,
    ff_out: Linear,
    sum: Sum,
}

impl TransformerBlock {
    fn load(loader: &Loader<'_>, shape: TransformerShape) -> Result<Self> {
        let TransformerShape { channels, heads, text, .. } = shape;
        let inner = FEED_FORWARD_FACTOR * channels;
        let norm = |name| LayerNorm::load(&loader.at(name), channels, LAYER_NORM_EPS);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: SelfAttention::load(&loader.at("attn1"), channels, heads, false)?,
            norm2: norm("norm2")?,
            attn2: CrossAttention::load(&loader.at("attn2"), channels, heads, text)?,
            norm3: norm("norm3")?,
            ff_in: Geglu::load(&loader.at("ff.net.0.proj"), channels, inner)?,
            ff_out: Linear::load(&loader.at("ff.net.2"), inner, channels, true)?,
            sum: Sum::load(&loader.at("ff"), channels),
        })
    }

    fn of_shard(&self, shard: Shard) -> Self {
        let inner = shard.range(self.ff_in.outputs());
        Self {
            attn1: self.attn1.of_shard(shard),
            attn2: self.attn2.of_shard(shard),
            ff_in: self.ff_in.giving(inner.clone()),
            ff_out: self.ff_out.taking(inner, shard.is_first()),
            sum: self.sum.of_shard(shard),
            ..self.clone()
        }
    }

    fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.attn1.adapt(deltas)?;
        self.attn2.adapt(deltas)?;
        self.ff_in.adapt(deltas)?;
        self.ff_out.adapt(deltas)
    }

    fn bytes(&self) -> usize {
        self.attn1.bytes() + self.attn2.bytes() + self.ff_in.bytes() + self.ff_out.bytes()
    }

    fn forward(&self, x: &Tensor, text_kv: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        // 1. Attention over the image.
        let x = self.attn1.forward(&self.norm1.forward(x)?, x, exchange)?;
        // 2. Attention over the prompt.
        let x = self.attn2.forward(&self.norm2.forward(&x)?, &x, text_kv, exchange)?;
        // 3. Feed-forward.
        let hidden = self.ff_in.forward(&self.norm3.forward(&x)?)?;
        let out = self.ff_out.forward_with(&hidden, self.sum.finish(&x))?;
        self.sum.over(out, exchange)
    }
}
