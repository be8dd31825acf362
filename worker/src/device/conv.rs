//! 3x3 convolutions of images whose border is already around them.

#[cfg(feature = "cuda")]
mod cuda;

use super::Array;
use candle_core::{Result, Tensor};

/// `x` [batch, rows, columns, channels] with one row and one column more on every side: `above` and
/// `below`, [batch, 1, columns, channels], or zeros where they are None.
///
/// # Errors
/// If shapes do not fit, or the device fails.
pub fn with_border(x: &Array, above: Option<&Array>, below: Option<&Array>) -> Result<Array> {
    let (batch, _, columns, channels) = x.dims4()?;
    let row = |row: Option<&Array>| match row {
        Some(row) => row.to_dtype(x.dtype()),
        None => Tensor::zeros((batch, 1, columns, channels), x.dtype(), x.device()),
    };
    Tensor::cat(&[&row(above)?, x, &row(below)?], 1)?.pad_with_zeros(2, 1, 1)
}

/// The convolution of `x` [batch, rows + 2, columns + 2, inputs], in the type of its `weight`
/// [outputs, 3, 3, inputs]: [batch, rows / stride, columns / stride, outputs], rounded up.
///
/// # Errors
/// If shapes do not fit, or the device fails.
pub fn conv3x3(x: &Array, weight: &Array, stride: usize) -> Result<Array> {
    let x = x.to_dtype(weight.dtype())?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let conv = cuda::Conv3x3 { stride };
        return x.contiguous()?.apply_op2_no_bwd(&weight.contiguous()?, &conv);
    }
    let channels_first = |x: &Array| x.permute((0, 3, 1, 2))?.contiguous();
    let out = channels_first(&x)?.conv2d(&channels_first(weight)?, 0, stride, 1, 1)?;
    out.permute((0, 2, 3, 1))?.contiguous()
}
