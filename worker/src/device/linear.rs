//! Products with a weight, and what finishes them.

use super::Array;
use crate::kernels::Activation;
use candle_core::{D, Result};

/// `x` [.., inputs] times the rows of `weight` [outputs, inputs], in the weight's type: plus `bias`
/// \[outputs\], through `activation`, plus `residual` [.., outputs].
///
/// # Errors
/// If shapes do not fit, or the device fails.
pub fn linear(
    x: &Array,
    weight: &Array,
    bias: Option<&Array>,
    activation: Activation,
    residual: Option<&Array>,
) -> Result<Array> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let rows = x.to_dtype(weight.dtype())?.contiguous()?.reshape(((), inputs))?;
    let mut out = rows.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        out = out.broadcast_add(&bias.to_dtype(out.dtype())?)?;
    }
    finish(&out.reshape(shape)?, activation, residual)
}

/// `x` through `activation`, plus `residual`.
///
/// # Errors
/// If shapes do not fit, or the device fails.
pub fn finish(x: &Array, activation: Activation, residual: Option<&Array>) -> Result<Array> {
    let activated = match activation {
        Activation::None => x.clone(),
        Activation::Silu => x.silu()?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::QuickGelu => (x * candle_nn::ops::sigmoid(&(x * 1.702)?)?)?,
    };
    residual.map_or(Ok(activated.clone()), |residual| activated + residual.to_dtype(x.dtype())?)
}

/// `hidden * gelu(gate)` of `x` [.., 2 x inner]: the first half is hidden, the second the gate.
///
/// # Errors
/// If the last dimension is odd, or the device fails.
pub fn geglu(x: &Array) -> Result<Array> {
    let inner = x.dim(D::Minus1)? / 2;
    let hidden = x.narrow(D::Minus1, 0, inner)?;
    let gate = x.narrow(D::Minus1, inner, inner)?.contiguous()?;
    hidden.contiguous()? * gate.gelu_erf()?
}
