//! Normalisation: statistics stay on the device, where nobody waits for them.

use super::Array;
use candle_core::{D, DType, Result};

/// Mean and sum of squared deviations [batch x groups, 2], in f32, of each group of channels of `x`
/// [batch, .., channels].
///
/// # Errors
/// If the groups do not divide the channels, or the device fails.
pub fn group_moments(x: &Array, groups: usize) -> Result<Array> {
    let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    let x = x.reshape((batch, (), groups, channels / groups))?;
    // Of deviations, not of squares, which cancel.
    let mean = x.mean_keepdim((1, 3))?;
    let squared = x.broadcast_sub(&mean)?.sqr()?.sum_keepdim((1, 3))?;
    let column = |x: Array| x.reshape((batch * groups, 1));
    Array::cat(&[column(mean)?, column(squared)?], 1)
}

/// Means and mean squares [groups, 2], in f64, of `moments` [groups, 2] of `count` values each: a
/// difference of large squares is taken of them.
///
/// # Errors
/// If the device fails.
pub fn raw(moments: &Array, count: f64) -> Result<Array> {
    let moments = moments.to_dtype(DType::F64)?;
    let (mean, m2) = (moments.narrow(1, 0, 1)?, moments.narrow(1, 1, 1)?);
    let square = ((m2 / count)? + mean.sqr()?)?;
    Array::cat(&[mean, square], 1)
}

/// What [`raw`] was made of, for `count` values. Where the variance would be negative, it is that of
/// `own`, moments of `own_count` values.
///
/// # Errors
/// If the device fails.
pub fn of_raw(raw: &Array, count: f64, own: &Array, own_count: f64) -> Result<Array> {
    let (mean, square) = (raw.narrow(1, 0, 1)?, raw.narrow(1, 1, 1)?);
    let variance = (square - mean.sqr()?)?;
    let own = (own.narrow(1, 1, 1)?.to_dtype(DType::F64)? / own_count)?;
    let variance = variance.ge(0.0)?.where_cond(&variance, &own)?;
    Array::cat(&[mean, (variance * count)?], 1)?.to_dtype(DType::F32)
}

/// `x` [batch, .., channels], normalised by `moments` [batch x groups, 2] of `count` values each, then
/// scaled by `weight` and shifted by `bias`, \[channels\]; through silu if `silu`.
///
/// # Errors
/// If shapes do not fit, or the device fails.
pub fn group_norm(
    x: &Array,
    (moments, count): (&Array, f64),
    [weight, bias]: &[Array; 2],
    eps: f64,
    silu: bool,
) -> Result<Array> {
    let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    let groups = moments.dim(0)? / batch;
    // 1. y = x * scale + shift, per image and channel.
    let of_channels = |x: Array| {
        let shape = (batch, groups, channels / groups);
        x.reshape((batch, groups, 1))?.broadcast_as(shape)?.contiguous()?.reshape((batch, channels))
    };
    let mean = of_channels(moments.narrow(1, 0, 1)?.contiguous()?)?;
    let variance = (moments.narrow(1, 1, 1)?.contiguous()? / count)?;
    let inverse = of_channels((variance + eps)?.sqrt()?.recip()?)?;
    let scale = inverse.broadcast_mul(weight)?;
    let shift = (mean * &scale)?.neg()?.broadcast_add(bias)?;
    // 2. All pixels.
    let rows = x.to_dtype(DType::F32)?.contiguous()?.reshape((batch, (), channels))?;
    let y = rows.broadcast_mul(&scale.unsqueeze(1)?)?.broadcast_add(&shift.unsqueeze(1)?)?;
    let y = if silu { y.silu()? } else { y };
    y.to_dtype(x.dtype())?.reshape(x.shape())
}

/// `x` [.., channels], normalised over its last dimension.
///
/// # Errors
/// If shapes do not fit, or the device fails.
pub fn layer_norm(x: &Array, [weight, bias]: &[Array; 2], eps: f32) -> Result<Array> {
    let of = |parameter: &Array| parameter.to_dtype(x.dtype());
    candle_nn::ops::layer_norm(&x.contiguous()?, &of(weight)?, &of(bias)?, eps)
}
