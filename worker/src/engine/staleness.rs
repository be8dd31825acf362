//! Which calls are displaced: the warm-up, as counted or as measured.

use crate::model::Result;
use crate::parallel::{Mesh, drift};
use protocol::job::{JobSpec, Mode, Warmup};
use protocol::message::SiteReport;
use protocol::plan::{Ask, Plan, SiteSpec, Stage};
use protocol::{Call, Rank, Site};
use std::collections::BTreeMap;

/// How a rank's layers exchanged in the calls so far.
#[derive(Debug, Default)]
pub(super) struct Staleness {
    /// Whether a call was made. The first of a run is synchronous wherever it goes on: peers hold nothing yet.
    begun: bool,
    /// The call whose values peers' were in the last call, if an earlier one.
    from: Option<Call>,
    /// The last call that was synchronous.
    synchronous: Call,
    /// How far all ranks' keys and values moved in the last call, if the warm-up depends on it.
    change: Option<f64>,
    /// How far each site's values moved, by call, if that was asked for.
    distances: BTreeMap<Site, Vec<f32>>,
}

impl Staleness {
    /// The call whose values peers' are in `call`; None if it is synchronous, or nobody is asked.
    pub(super) fn enter(&mut self, spec: &JobSpec, mesh: &Mesh, call: Call) -> Option<Call> {
        let asks = spec.parallelism.has_bands() && !mesh.is_alone(Stage::Denoise);
        self.from = if asks && self.begun { self.stale_from(spec, call) } else { None };
        self.begun = true;
        if self.from.is_none() {
            self.synchronous = call;
        }
        self.from
    }

    fn stale_from(&self, spec: &JobSpec, call: Call) -> Option<Call> {
        let synchronous = match spec.warmup {
            _ if spec.mode == Mode::FullSync => true,
            Warmup::Calls(last) => call.0 <= last,
            // Not measured yet is as far as can be, and so is what has overflowed.
            Warmup::Auto => {
                self.change.is_none_or(|change| change.is_nan() || change > drift::CHANGE_MAX)
            }
        };
        match spec.mode {
            _ if synchronous => None,
            Mode::NoSync => Some(self.synchronous),
            _ => call.before(),
        }
    }

    /// Takes in how far what was exchanged in `call` had moved since the call before; all ranks of the
    /// run know it then. `last` says that no call follows.
    ///
    /// # Errors
    /// If a peer is lost or the run is cancelled.
    pub(super) fn leave(
        &mut self,
        mesh: &mut Mesh,
        (plan, rank): (&Plan, Rank),
        sites: &[SiteSpec],
        (call, last): (Call, bool),
    ) -> Result<()> {
        let moved = mesh.take_distances();
        if plan.adapts(rank) && !last {
            let large = moved.iter().filter(|(site, _)| spec_of(sites, **site).ask == Ask::Gather);
            let own = mean(large.map(|(_, distance)| *distance)).unwrap_or(f32::INFINITY);
            self.change = Some(drift::agree(mesh, plan, rank, call, own)?);
        }
        if plan.spec.probe {
            for (site, distance) in moved {
                self.distances.entry(site).or_default().push(distance);
            }
        }
        Ok(())
    }

    /// Whether peers' values were those of an earlier call in the last one.
    pub(super) fn displaced(&self) -> bool {
        self.from.is_some()
    }

    /// How far keys and values moved in the last call, if the warm-up depends on it.
    #[expect(clippy::cast_possible_truncation, reason = "a ratio to a few digits")]
    pub(super) fn change(&self) -> Option<f32> {
        self.change.filter(|change| change.is_finite()).map(|change| change as f32)
    }

    /// What was measured at each site.
    pub(super) fn report(&self, mesh: &Mesh, sites: &[SiteSpec]) -> Vec<SiteReport> {
        let report = |(site, distances): (&Site, &Vec<f32>)| SiteReport {
            site: spec_of(sites, *site).clone(),
            bytes: mesh.posted_bytes(*site),
            distances: distances.clone(),
        };
        self.distances.iter().map(report).collect()
    }
}

fn spec_of(sites: &[SiteSpec], site: Site) -> &SiteSpec {
    &sites[usize::from(site.0)]
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred sites")]
fn mean(values: impl Iterator<Item = f32>) -> Option<f32> {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::job::{Decode, GnVariance, Parallelism, Scheduler, Wire};

    fn spec(mode: Mode, warmup: Warmup) -> JobSpec {
        JobSpec {
            prompt: String::new(),
            negative: None,
            width: 64,
            height: 64,
            steps: 30,
            guidance: 1.0,
            seed: 1,
            scheduler: Scheduler::Euler,
            warmup,
            parallelism: Parallelism::Patch,
            mode,
            gn_variance: GnVariance::Population,
            wire: Wire::F32,
            probe: false,
            profile: false,
            loras: Vec::new(),
            init: None,
            decode: Decode::Whole,
        }
    }

    #[test]
    fn warm_up_w_gives_w_plus_one_synchronous_calls() {
        let from = |mode, call| {
            let warmup = Staleness { synchronous: Call(2), ..Staleness::default() };
            warmup.stale_from(&spec(mode, Warmup::Calls(2)), Call(call))
        };
        let of_all = |mode| (0..5).map(|call| from(mode, call)).collect::<Vec<_>>();
        let (two, three) = (Some(Call(2)), Some(Call(3)));
        assert_eq!(of_all(Mode::Corrected), [None, None, None, two, three]);
        assert_eq!(of_all(Mode::NoSync), [None, None, None, two, two]);
        assert_eq!(of_all(Mode::FullSync), [None; 5]);
    }

    #[test]
    fn an_automatic_warm_up_ends_and_returns_with_the_change() {
        let spec = spec(Mode::Corrected, Warmup::Auto);
        let displaced = |change| {
            let staleness = Staleness { change, ..Staleness::default() };
            staleness.stale_from(&spec, Call(7)).is_some()
        };
        assert!(!displaced(None), "the first call");
        assert!(!displaced(Some(f64::INFINITY)), "nothing to compare it with");
        assert!(!displaced(Some(f64::NAN)), "values that overflowed");
        assert!(!displaced(Some(drift::CHANGE_MAX * 1.01)));
        assert!(displaced(Some(drift::CHANGE_MAX)));
    }
}
