//! The cluster, as people see it.

use super::{ClientId, Director};
use crate::planner::fabrics;
use protocol::Rank;
use protocol::message::{BandView, ClusterView, JobView, LinkView, ToClient};
use protocol::plan::{Plan, RANKS_MAX};
use std::time::Duration;

/// Words of a prompt are cut to this many characters in `status`.
const PROMPT_SHOWN: usize = 60;

impl Director {
    /// Tells a client how the cluster is.
    pub fn tell_status(&mut self, client: ClientId, now: Duration) {
        let view = Box::new(self.view(now));
        self.answer(client, ToClient::Cluster(view));
    }

    /// The cluster as it is `now`.
    #[must_use]
    pub fn view(&self, now: Duration) -> ClusterView {
        let workers = self.registry.candidates();
        let workers = &workers[..workers.len().min(RANKS_MAX)];
        let pairs = fabrics::pairs(workers, &self.registry.broken(now), |workers, fabric| {
            self.registry.link(workers, fabric)
        });
        ClusterView {
            release: protocol::RELEASE.to_owned(),
            up_seconds: now.as_secs(),
            model: self.registry.model().cloned(),
            workers: self.registry.views(),
            pairs,
            jobs: self.jobs(),
        }
    }

    fn jobs(&self) -> Vec<JobView> {
        let shown = |prompt: &str| prompt.chars().take(PROMPT_SHOWN).collect();
        let active = self.active.iter().map(|active| JobView {
            id: active.job(),
            prompt: shown(&active.run.plan().spec.prompt),
            progress: Some(active.run.progress().unwrap_or_default()),
            interrupted: active.broken.as_ref().map(|broken| broken.fault().clone()),
            bands: bands(active.run.plan()),
            links: links(active.run.plan()),
            reason: active.reason.clone(),
        });
        let waiting = self.queue.iter().map(|waiting| JobView {
            id: waiting.job,
            prompt: shown(&waiting.request.prompt),
            progress: None,
            interrupted: None,
            bands: Vec::new(),
            links: Vec::new(),
            reason: String::new(),
        });
        active.chain(waiting).collect()
    }
}

pub(super) fn bands(plan: &Plan) -> Vec<BandView> {
    let factor = plan.geometry.vae_factor;
    let view = |(rank, member): (Rank, &protocol::plan::Member)| BandView {
        rank: rank.0,
        worker: member.name.clone(),
        branch: member.branch,
        top: member.band.top * factor,
        rows: member.band.rows * factor,
    };
    plan.ranks().zip(&plan.members).map(view).collect()
}

pub(super) fn links(plan: &Plan) -> Vec<LinkView> {
    let pairs = plan.ranks().flat_map(|one| plan.ranks().map(move |other| (one, other)));
    let view = |(one, other): (Rank, Rank)| {
        let fabric = plan.fabric(one, other).filter(|_| one < other)?;
        Some(LinkView { ranks: [one.0, other.0], fabric })
    };
    pairs.filter_map(view).collect()
}
