//! Attention: `FlashAttention`'s kernel where this program has it and it takes the shapes, else the scores
//! of some queries at a time.

use super::Array;
use candle_core::{DType, Result, Tensor};

/// The scores [batch, heads, queries, keys] that are in memory at once take at most so many bytes.
const SCORES_BYTES_MAX: usize = 256 << 20;

/// Attention of `q` [batch, queries, channels] over `kv` [batch, keys, 2 x channels]: each token's keys,
/// then its values. Causal: a query sees the keys up to its own place.
///
/// # Errors
/// If shapes do not fit, or the device fails.
pub fn attend(q: &Array, kv: &Array, heads: usize, causal: bool) -> Result<Array> {
    let (batch, queries, channels) = q.dims3()?;
    let keys = kv.dim(1)?;
    let head_dim = channels / heads;
    let k = kv.narrow(2, 0, channels)?.reshape((batch, keys, heads, head_dim))?;
    let v = kv.narrow(2, channels, channels)?.reshape((batch, keys, heads, head_dim))?;
    let q = q.reshape((batch, queries, heads, head_dim))?.to_dtype(kv.dtype())?;
    let scale = scale(head_dim);
    #[cfg(feature = "flash-attn")]
    if q.device().is_cuda()
        && q.dtype() != DType::F32
        && head_dim.is_multiple_of(8)
        && head_dim <= 256
    {
        return candle_flash_attn::flash_attn(&q, &k, &v, scale, causal)?
            .reshape((batch, queries, channels));
    }
    // [batch, heads, tokens, head_dim]
    let [q, k, v] = [q, k, v].map(|x| x.transpose(1, 2).and_then(|x| x.contiguous()));
    let (q, k, v) = (q?, k?.t()?, v?);
    let at_once = (SCORES_BYTES_MAX / (batch * heads * keys * size_of::<f32>())).max(1);
    let mut parts = Vec::new();
    for first in (0..queries).step_by(at_once) {
        let count = at_once.min(queries - first);
        let scores = q.narrow(2, first, count)?.contiguous()?.matmul(&k)?.to_dtype(DType::F32)?;
        let mut scores = (scores * f64::from(scale))?;
        if causal {
            scores = scores.broadcast_add(&mask(first, count, keys, q.device())?)?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        parts.push(weights.matmul(&v)?);
    }
    Tensor::cat(&parts, 2)?.transpose(1, 2)?.contiguous()?.reshape((batch, queries, channels))
}

#[expect(clippy::cast_precision_loss, reason = "heads have tens of channels")]
fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// What is added to the scores of queries `first..first + count`: nothing, or minus infinity.
fn mask(first: usize, count: usize, keys: usize, device: &candle_core::Device) -> Result<Array> {
    let of = |query: usize| {
        (0..keys).map(move |key| if key <= first + query { 0.0 } else { f32::NEG_INFINITY })
    };
    let values: Vec<f32> = (0..count).flat_map(of).collect();
    Tensor::from_vec(values, (count, keys), device)
}
