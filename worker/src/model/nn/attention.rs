//! Attention without the scores matrix.

use super::linear::{Finish, Linear};
use super::{Loader, Result, tensor, view};
use crate::kernels::{self, Activation, Heads, Isa, Strided};
use crate::model::exchange::Exchange;
use candle_core::Tensor;
use protocol::Site;
use protocol::plan::Ask;

/// Attention of `q` [batch, queries, channels] over `kv` [batch, keys, 2 x channels]: each token's
/// keys, then its values.
///
/// # Errors
/// If a tensor is not contiguous or not of that shape.
pub fn attend(q: &Tensor, kv: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (batch, queries, channels) = q.dims3()?;
    let keys = kv.dim(1)?;
    let mut out = vec![0.0; q.elem_count()];
    let values = view(kv)?;
    let shape = Heads { batch, heads, head_dim: channels / heads, queries, keys, causal };
    let k = Strided { values: &values, row_stride: 2 * channels };
    let v = Strided { values: &values[channels..], row_stride: 2 * channels };
    kernels::attention(Isa::best(), &mut out, &view(q)?, k, v, &shape);
    tensor(out, (batch, queries, channels))
}

/// Self-attention of a band's tokens over the whole image's.
#[derive(Debug)]
pub struct SelfAttention {
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
    site: Site,
}

impl SelfAttention {
    /// The attention at `loader`; `bias` says whether its input projections have one.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, channels: usize, heads: usize, bias: bool) -> Result<Self> {
        let [q, k, v, out] = ["to_q", "to_k", "to_v", "to_out.0"].map(|name| loader.at(name));
        Ok(Self {
            to_q: Linear::load(&q, channels, channels, bias)?,
            to_kv: Linear::load_joined(&[k, v], channels, channels, bias)?,
            to_out: Linear::load(&out, channels, channels, true)?,
            heads,
            site: loader.site(Ask::Gather, 2 * channels),
        })
    }

    /// The attention at `loader` under the names of checkpoints from before diffusers 0.18.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load_named_as_of_old(loader: &Loader<'_>, channels: usize) -> Result<Self> {
        let [q, k, v, out] = ["query", "key", "value", "proj_attn"].map(|name| loader.at(name));
        Ok(Self {
            to_q: Linear::load(&q, channels, channels, true)?,
            to_kv: Linear::load_joined(&[k, v], channels, channels, true)?,
            to_out: Linear::load(&out, channels, channels, true)?,
            heads: 1,
            site: loader.site(Ask::Gather, 2 * channels),
        })
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.to_q.bytes() + self.to_kv.bytes() + self.to_out.bytes()
    }

    /// `residual` plus the attention of `x`, both [batch, tokens, channels].
    ///
    /// # Errors
    /// If a peer is lost, or a tensor is not contiguous or not of that shape.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: &Tensor,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        // 1. Keys and values first: peers wait for them, nobody waits for the queries.
        let kv = exchange.gather(self.site, &self.to_kv.forward(x)?)?;
        // 2. Attention over all tokens.
        let mixed = attend(&self.to_q.forward(x)?, &kv, self.heads, false)?;
        // 3. Output projection.
        let finish = Finish { activation: Activation::None, residual: Some(residual) };
        self.to_out.forward_with(&mixed, finish)
    }
}

/// Attention over the prompt's tokens. Their keys and values are the same at every step: they are
/// computed once per image by [`Self::text_kv`].
#[derive(Debug)]
pub struct CrossAttention {
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
}

impl CrossAttention {
    /// The attention at `loader` over text embeddings of `text` channels.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, channels: usize, heads: usize, text: usize) -> Result<Self> {
        let [q, k, v, out] = ["to_q", "to_k", "to_v", "to_out.0"].map(|name| loader.at(name));
        Ok(Self {
            to_q: Linear::load(&q, channels, channels, false)?,
            to_kv: Linear::load_joined(&[k, v], text, channels, false)?,
            to_out: Linear::load(&out, channels, channels, true)?,
            heads,
        })
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.to_q.bytes() + self.to_kv.bytes() + self.to_out.bytes()
    }

    /// Keys and values of `text` [batch, tokens, text channels].
    ///
    /// # Errors
    /// If `text` is not a contiguous tensor of that shape.
    pub fn text_kv(&self, text: &Tensor) -> Result<Tensor> {
        self.to_kv.forward(text)
    }

    /// `residual` plus the attention of `x` over the text, all [batch, tokens, channels].
    ///
    /// # Errors
    /// If a tensor is not contiguous or not of that shape.
    pub fn forward(&self, x: &Tensor, residual: &Tensor, text_kv: &Tensor) -> Result<Tensor> {
        let mixed = attend(&self.to_q.forward(x)?, text_kv, self.heads, false)?;
        let finish = Finish { activation: Activation::None, residual: Some(residual) };
        self.to_out.forward_with(&mixed, finish)
    }
}
