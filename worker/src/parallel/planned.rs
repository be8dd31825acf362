//! Answers without values, in a call that only counts the memory it needs.

use super::group::Group;
use crate::model::Result;
use crate::model::exchange::{Exchange, Halo, Moments, Rows, SumSites};
use crate::model::tensor::Tensor;
use crate::profile::Work;
use protocol::plan::{Band, Member, Plan};
use protocol::{Rank, Site};

/// The call of a rank whose peers' values will land outside the memory that is counted.
#[derive(Debug)]
pub struct Planned(Group);

impl Planned {
    /// A call of the denoising network.
    #[must_use]
    pub fn denoise(plan: &Plan, rank: Rank) -> Self {
        let bands = plan.spec.parallelism.has_bands();
        let asked = plan.branch_of(rank).filter(|peer| bands || *peer == rank);
        Self::of(plan, asked, rank, |member| member.band)
    }

    /// A decode.
    #[must_use]
    pub fn decode(plan: &Plan, rank: Rank) -> Self {
        Self::of(plan, plan.ranks(), rank, |member| member.decodes)
    }

    fn of(
        plan: &Plan,
        ranks: impl Iterator<Item = Rank>,
        rank: Rank,
        band: fn(&Member) -> Band,
    ) -> Self {
        let rows = |peer| plan.member(peer).map_or(0, |member| band(member).rows);
        Self(Group::new(ranks.map(|peer| (peer, rows(peer))), rank))
    }
}

impl Exchange for Planned {
    fn halo(&mut self, _: Site, x: &Tensor, rows: usize) -> Result<Halo> {
        let (above, below) = self.0.neighbours();
        let [above, below] = [above, below].map(|peer| peer.map(|_| Rows::planned(rows)));
        Ok(Halo { first_row: self.0.first_row(x.dim(1)?), above, below })
    }

    fn moments(&mut self, _: Site, own: &Moments) -> Result<Moments> {
        Ok(own.clone())
    }

    fn gather(&mut self, _: Site, own: &Tensor) -> Result<Vec<Rows>> {
        let tokens = own.dim(1)?;
        Ok(self.0.of_all(tokens).map(Rows::planned).collect())
    }

    fn sum(&mut self, _: SumSites, own: &Tensor) -> Result<Tensor> {
        own.make(Work::Copy, own.shape(), |_| Ok(()))
    }
}
