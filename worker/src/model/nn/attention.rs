//! Attention without the scores matrix.

use super::linear::Linear;
use super::shard::Sum;
use super::{Loader, Result};
use crate::device;
use crate::kernels::{self, Arithmetic, Heads, Isa, Keys};
use crate::model::exchange::{Exchange, Rows};
use crate::model::lora::Deltas;
use crate::model::tensor::Tensor;
use crate::profile::Work;
use protocol::Site;
use protocol::plan::{Ask, Shard};

/// Attention of `q` [batch, queries, channels] over `kv`, parts of [batch, keys, 2 x channels]: each
/// token's keys, then its values.
///
/// # Errors
/// If a tensor is not of that shape.
pub fn attend(
    q: &Tensor,
    kv: &[Rows],
    (heads, causal): (usize, bool),
    arithmetic: Arithmetic,
) -> Result<Tensor> {
    let [batch, queries, channels] = q.sizes()?;
    if let Some(q) = q.on_device() {
        let kv = Rows::joined_on_device(kv, q, [batch, 2 * channels])?;
        return q.make(Work::Attention, || device::attention::attend(q.values, &kv, heads, causal));
    }
    let shape = Heads { batch, heads, head_dim: channels / heads, queries, causal, arithmetic };
    q.make(Work::Attention, q.shape(), |out| {
        let parts: Vec<Keys<'_>> = kv
            .iter()
            .map(|rows| Keys {
                keys: rows.values(),
                values: rows.values().from(channels),
                rows: rows.count(),
                row_stride: 2 * channels,
            })
            .collect();
        kernels::attention(Isa::best(), out, q.view(), &parts, &shape);
        Ok(())
    })
}

/// Self-attention of a band's tokens over the whole image's.
#[derive(Clone, Debug)]
pub struct SelfAttention {
    weights: Projections,
    site: Site,
}

impl SelfAttention {
    /// The attention at `loader`; `bias` says whether its input projections have one.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, channels: usize, heads: usize, bias: bool) -> Result<Self> {
        let names = ["to_q", "to_k", "to_v", "to_out.0"];
        let weights = Projections::load(loader, names, [channels, channels], heads, bias)?;
        Ok(Self { weights, site: loader.site(Ask::Gather, 2 * channels) })
    }

    /// The attention at `loader` under the names of checkpoints from before diffusers 0.18.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load_named_as_of_old(loader: &Loader<'_>, channels: usize) -> Result<Self> {
        let names = ["query", "key", "value", "proj_attn"];
        let weights = Projections::load(loader, names, [channels, channels], 1, true)?;
        Ok(Self { weights, site: loader.site(Ask::Gather, 2 * channels) })
    }

    /// The part that computes some of the heads.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        Self { weights: self.weights.of_shard(shard), site: self.site }
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.weights.adapt(deltas)
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// `residual` plus the attention of `x`, both [batch, tokens, channels].
    ///
    /// # Errors
    /// If a peer is lost, or a tensor is not of that shape.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: &Tensor,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        // Keys and values first: peers wait for them, nobody waits for the queries.
        let kv = exchange.gather(self.site, &self.weights.kv(x)?)?;
        self.weights.attend(x, &kv, residual, exchange)
    }
}

/// Attention over the prompt's tokens. Their keys and values are the same at every step: they are
/// computed once per image by [`Self::text_kv`].
#[derive(Clone, Debug)]
pub struct CrossAttention(Projections);

impl CrossAttention {
    /// The attention at `loader` over text embeddings of `text` channels.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, channels: usize, heads: usize, text: usize) -> Result<Self> {
        let names = ["to_q", "to_k", "to_v", "to_out.0"];
        Projections::load(loader, names, [channels, text], heads, false).map(Self)
    }

    /// The part that computes some of the heads.
    #[must_use]
    pub fn of_shard(&self, shard: Shard) -> Self {
        Self(self.0.of_shard(shard))
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.0.adapt(deltas)
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Keys and values of `text` [batch, tokens, text channels].
    ///
    /// # Errors
    /// If `text` is not a tensor of that shape.
    pub fn text_kv(&self, text: &Tensor) -> Result<Tensor> {
        self.0.kv(text)
    }

    /// `residual` plus the attention of `x` over the text, all [batch, tokens, channels].
    ///
    /// # Errors
    /// If a peer is lost, or a tensor is not of that shape.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: &Tensor,
        text_kv: &Tensor,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        self.0.attend(x, &[Rows::own(text_kv, 1)?], residual, exchange)
    }
}

/// The projections around an attention, of all heads or of some.
#[derive(Clone, Debug)]
struct Projections {
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
    arithmetic: Arithmetic,
    sum: Sum,
}

impl Projections {
    /// Those called `names` (queries, keys, values, output) at `loader`: keys and values are of tokens
    /// of `context` channels.
    fn load(
        loader: &Loader<'_>,
        names: [&str; 4],
        [channels, context]: [usize; 2],
        heads: usize,
        bias: bool,
    ) -> Result<Self> {
        let [q, k, v, out] = names.map(|name| loader.at(name));
        Ok(Self {
            to_q: Linear::load(&q, channels, channels, bias)?,
            to_kv: Linear::load_joined(&[k, v], context, channels, bias)?,
            to_out: Linear::load(&out, channels, channels, true)?,
            heads,
            // 8 bits are too few for scores.
            arithmetic: match loader.arithmetic() {
                Arithmetic::Bf16 => Arithmetic::Bf16,
                Arithmetic::F32 | Arithmetic::Int8 => Arithmetic::F32,
            },
            sum: Sum::load(loader, channels),
        })
    }

    fn of_shard(&self, shard: Shard) -> Self {
        let (all, heads) = (self.to_q.outputs(), shard.range(self.heads));
        let head_dim = all / self.heads;
        let [keys, values] =
            [0, all].map(|first| first + heads.start * head_dim..first + heads.end * head_dim);
        Self {
            to_q: self.to_q.giving(std::slice::from_ref(&keys)),
            to_out: self.to_out.taking(keys.clone(), shard.is_first()),
            to_kv: self.to_kv.giving(&[keys, values]),
            heads: heads.len(),
            arithmetic: self.arithmetic,
            sum: self.sum.of_shard(shard),
        }
    }

    fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        [&mut self.to_q, &mut self.to_kv, &mut self.to_out]
            .into_iter()
            .try_for_each(|linear| linear.adapt(deltas))
    }

    fn bytes(&self) -> usize {
        self.to_q.bytes() + self.to_kv.bytes() + self.to_out.bytes()
    }

    fn kv(&self, context: &Tensor) -> Result<Tensor> {
        self.to_kv.forward(context)
    }

    fn attend(
        &self,
        x: &Tensor,
        kv: &[Rows],
        residual: &Tensor,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        let heads = (self.heads, false);
        let mixed = attend(&self.to_q.forward(x)?, kv, heads, self.arithmetic)?;
        let out = self.to_out.forward_with(&mixed, self.sum.finish(residual))?;
        self.sum.over(out, exchange)
    }
}
