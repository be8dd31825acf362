//! Group normalisation over the whole image: a band's statistics are merged through the exchange.

use super::{Loader, Result};
use crate::device::{Array, norm};
use crate::kernels::{self, Isa, Moment};
use crate::model::exchange::{DeviceMoments, Exchange, Moments};
use crate::model::tensor::Tensor;
use crate::profile::{self, Work};
use protocol::Site;
use protocol::plan::Ask;
use std::ops::Range;

/// Group normalisation. Statistics are f32 (count, mean, squared deviations), never squares of
/// values, which overflow and cancel.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    on_device: Option<[Array; 2]>,
    groups: usize,
    eps: f64,
    site: Site,
}

impl GroupNorm {
    /// The norm at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, channels: usize, groups: usize, eps: f64) -> Result<Self> {
        let weight = loader.values_f32("weight", &[channels])?;
        let bias = loader.values_f32("bias", &[channels])?;
        Ok(Self {
            on_device: loader.parameters([&weight, &bias])?,
            weight,
            bias,
            groups,
            eps,
            site: loader.site(
                Ask::Moments { groups: u32::try_from(groups).expect("groups are far below 2^32") },
                channels,
            ),
        })
    }

    /// The part that normalises some of the groups.
    #[must_use]
    pub fn of_groups(&self, groups: Range<usize>) -> Self {
        let channels = self.channels_of(groups.clone());
        Self {
            weight: self.weight[channels.clone()].to_vec(),
            bias: self.bias[channels].to_vec(),
            groups: groups.len(),
            on_device: None,
            ..*self
        }
    }

    /// How many groups there are.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// The channels of some of the groups.
    #[must_use]
    pub fn channels_of(&self, groups: Range<usize>) -> Range<usize> {
        let per_group = self.weight.len() / self.groups;
        groups.start * per_group..groups.end * per_group
    }

    /// `x` [batch, .., channels], normalised.
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a tensor of that shape.
    pub fn forward(&self, x: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        self.apply(x, false, exchange)
    }

    /// `silu` of the normalised `x`, in one pass.
    ///
    /// # Errors
    /// If a peer is lost, or `x` is not a tensor of that shape.
    pub fn forward_silu(&self, x: &Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        self.apply(x, true, exchange)
    }

    fn apply(&self, x: &Tensor, silu: bool, exchange: &mut dyn Exchange) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let channels = self.weight.len();
        let count = as_f64(x.elem_count() / (batch * self.groups));
        if let (Some(x), Some(parameters)) = (x.on_device(), &self.on_device) {
            let own = x.make(Work::Norm, || norm::group_moments(x.values, self.groups))?;
            let whole =
                exchange.moments_on_device(self.site, &DeviceMoments { count, groups: own })?;
            let moments = whole.on_device()?.values;
            return x.make(Work::Norm, || {
                norm::group_norm(x.values, (moments, whole.count), parameters, self.eps, silu)
            });
        }
        let groups = if x.is_planned() {
            vec![Moment::default(); batch * self.groups]
        } else {
            let _timed = profile::span(Work::Norm);
            kernels::group_moments(Isa::best(), x.view(), batch, self.groups, channels)
        };
        let whole = exchange.moments(self.site, &Moments { count, groups })?;
        let (scale, shift) = self.scale_and_shift(&whole);
        x.make(Work::Norm, x.shape(), |out| {
            kernels::group_norm(Isa::best(), out, x.view(), batch, &scale, &shift, silu);
            Ok(())
        })
    }

    /// Per image and channel: `y = x * scale + shift`.
    #[expect(clippy::cast_possible_truncation, reason = "the result is f32 by contract")]
    fn scale_and_shift(&self, whole: &Moments) -> (Vec<f32>, Vec<f32>) {
        let per_group = self.weight.len() / self.groups;
        let mut scale = Vec::with_capacity(whole.groups.len() * per_group);
        let mut shift = Vec::with_capacity(whole.groups.len() * per_group);
        for (index, moment) in whole.groups.iter().enumerate() {
            let variance = f64::from(moment.m2) / whole.count;
            let inverse = 1.0 / (variance + self.eps).sqrt();
            let first = index % self.groups * per_group;
            for channel in first..first + per_group {
                let factor = inverse * f64::from(self.weight[channel]);
                scale.push(factor as f32);
                shift
                    .push((f64::from(self.bias[channel]) - f64::from(moment.mean) * factor) as f32);
            }
        }
        (scale, shift)
    }
}

/// Counts of values are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts of values are far below 2^53")]
fn as_f64(count: usize) -> f64 {
    count as f64
}
