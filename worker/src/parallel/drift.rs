//! How far what a rank sends moves from call to call: how wrong a peer is that reads the stale value.
//!
//! `--warmup auto` stays synchronous while it is far. All ranks decide alike, for all know what all
//! measured (**P-3**): each sends its measure after a call, and waits for the others' before the next.

use super::mesh::Mesh;
use crate::model::Result;
use protocol::plan::{Ask, Plan};
use protocol::{Call, Rank, Site};
use std::collections::BTreeMap;

/// Beyond this relative distance values of the call before are not used. Where a longer warm-up brings
/// emoji-xl's images closer to the exact ones, it does until about here (docs/probe.md).
pub const CHANGE_MAX: f64 = 0.2;

/// One in so many tokens is remembered for the warm-up, which needs a mean of thousands.
const TOKENS_APART: usize = 16;

/// What a rank sent in the call before, and how far this call's values are from it.
#[derive(Debug)]
pub(super) struct Drift {
    all: bool,
    before: BTreeMap<Site, Vec<f32>>,
    distances: BTreeMap<Site, f32>,
}

impl Drift {
    /// Of all sites and values; or of a part of the keys and values, enough for the warm-up.
    pub(super) fn new(all: bool) -> Self {
        Self { all, before: BTreeMap::new(), distances: BTreeMap::new() }
    }

    /// Whether sites that ask `ask` are watched.
    pub(super) fn watches(&self, ask: Ask) -> bool {
        self.all || ask == Ask::Gather
    }

    /// Takes in what is sent for `site` in this call: rows of `width` values.
    pub(super) fn see(&mut self, site: Site, values: &[f32], width: usize) {
        let apart = if self.all { 1 } else { TOKENS_APART };
        let rows = values.chunks_exact(width).step_by(apart);
        let now: Vec<f32> = rows.flatten().copied().collect();
        if let Some(before) = self.before.get(&site) {
            self.distances.insert(site, distance(before, &now));
        }
        self.before.insert(site, now);
    }

    /// The distances of this call; none in the first.
    pub(super) fn take(&mut self) -> BTreeMap<Site, f32> {
        std::mem::take(&mut self.distances)
    }
}

/// The relative L2 distance of `stale` to `fresh`.
#[expect(clippy::cast_possible_truncation, reason = "a ratio to a few digits")]
fn distance(stale: &[f32], fresh: &[f32]) -> f32 {
    let square = |value: f64| value * value;
    let pairs =
        stale.iter().zip(fresh).map(|(stale, fresh)| (f64::from(*stale), f64::from(*fresh)));
    let (apart, size) = pairs.fold((0.0, 0.0), |(apart, size), (stale, fresh)| {
        (apart + square(fresh - stale), size + square(fresh))
    });
    if apart == 0.0 { 0.0 } else { (apart / size).sqrt() as f32 }
}

/// How far all ranks' keys and values moved in `call`, weighted by their rows, of which this rank's
/// moved by `own`; infinite in the first call, which has none before it.
///
/// # Errors
/// If a peer is lost or the run is cancelled.
pub fn agree(mesh: &mut Mesh, plan: &Plan, rank: Rank, call: Call, own: f32) -> Result<f64> {
    let site = mesh.site_of(Ask::Change)?;
    let ranks: Vec<Rank> = plan.ranks().filter(|peer| plan.adapts(*peer)).collect();
    for peer in ranks.iter().filter(|peer| **peer != rank) {
        mesh.post(*peer, site, call, &[own])?;
    }
    let (mut change, mut rows) = (0.0, 0.0);
    for peer in ranks {
        let theirs = if peer == rank {
            own
        } else {
            let bytes = mesh.receive(peer, site, call)?;
            bytemuck::pod_read_unaligned(&bytes)
        };
        let height = plan.member(peer).map_or(0, |member| member.band.rows * plan.batch(peer));
        change += f64::from(theirs) * f64::from(height);
        rows += f64::from(height);
    }
    Ok(change / rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_is_relative_to_what_is_fresh() {
        let mut drift = Drift::new(true);
        drift.see(Site(1), &[3.0, 4.0], 2);
        assert!(drift.take().is_empty(), "nothing to compare the first call with");
        drift.see(Site(1), &[0.0, 4.0], 2);
        drift.see(Site(2), &[0.0, 0.0], 1);
        assert_eq!(drift.take(), BTreeMap::from([(Site(1), 0.75)]));
        drift.see(Site(1), &[0.0, 4.0], 2);
        drift.see(Site(2), &[0.0, 0.0], 1);
        assert_eq!(drift.take(), BTreeMap::from([(Site(1), 0.0), (Site(2), 0.0)]));
    }

    #[test]
    fn for_the_warm_up_a_part_of_the_tokens_is_enough() {
        let mut drift = Drift::new(false);
        assert!(drift.watches(Ask::Gather) && !drift.watches(Ask::Halo { rows: 1 }));
        drift.see(Site(0), &[1.0; 40], 2);
        assert_eq!(drift.before[&Site(0)].len(), 4);
    }
}
