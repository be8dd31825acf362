//! Layers in parts, for tensor parallelism: a part computes some channels from all inputs, or a summand
//! of all channels from some inputs. The second follows the first, and ends in a sum over all parts.

use super::linear::Finish;
use super::{Loader, Result};
use crate::kernels::Activation;
use crate::model::exchange::{Exchange, SumSites};
use crate::model::tensor::Tensor;
use protocol::plan::{Ask, Shard};

/// The end of a layer that may be divided. A whole layer's is no work.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    sites: SumSites,
    shard: Option<Shard>,
}

impl Sum {
    /// The end of the whole layer at `loader`, which gives `channels`.
    #[must_use]
    pub fn load(loader: &Loader<'_>, channels: usize) -> Self {
        let [summand, sum] = [Ask::Summand, Ask::Sum].map(|ask| loader.site(ask, channels));
        Self { sites: SumSites { summand, sum }, shard: None }
    }

    /// The end of a part of that layer.
    #[must_use]
    pub fn of_shard(self, shard: Shard) -> Self {
        Self { shard: Some(shard), ..self }
    }

    /// How the product before it finishes: what is added once is added by one part.
    #[must_use]
    pub fn finish<'a>(&self, residual: &'a Tensor) -> Finish<'a> {
        let adds = self.shard.is_none_or(Shard::is_first);
        Finish { activation: Activation::None, residual: adds.then_some(residual) }
    }

    /// The channels of `x` that this part reads, if each part reads some.
    ///
    /// # Errors
    /// If `x` has no dimensions.
    pub fn cut(&self, x: &Tensor) -> Result<Tensor> {
        let Some(shard) = self.shard else { return Ok(x.clone()) };
        let last = x.dims().len() - 1;
        let channels = shard.range(x.dim(last)?);
        x.narrow(last, channels.start, channels.len())
    }

    /// What all parts give together, of which this one gives `own`.
    ///
    /// # Errors
    /// If a peer is lost or the run is cancelled.
    pub fn over(&self, own: Tensor, exchange: &mut dyn Exchange) -> Result<Tensor> {
        if self.shard.is_some() { exchange.sum(self.sites, &own) } else { Ok(own) }
    }
}
