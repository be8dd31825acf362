//! The cluster, as people see it.

use super::{PROMPT_SHOWN, Supervisor};
use crate::planner::fabrics;
use actix::prelude::{Handler, Message, MessageResult};
use protocol::Rank;
use protocol::message::{BandView, ClusterView, JobView, LinkView};
use protocol::plan::{Plan, RANKS_MAX};

/// Asks how the cluster is.
#[derive(Debug, Message)]
#[rtype(result = "ClusterView")]
pub(in crate::actor) struct ReadCluster;

impl Supervisor {
    pub(super) fn view(&self) -> ClusterView {
        let workers = self.registry.candidates();
        let pairs = fabrics::pairs(&workers[..workers.len().min(RANKS_MAX)], |workers, fabric| {
            self.registry.link(workers, fabric)
        });
        ClusterView {
            release: protocol::RELEASE.to_owned(),
            up_seconds: self.now().as_secs(),
            model: self.registry.model().cloned(),
            workers: self.registry.views(),
            pairs,
            jobs: self.jobs(),
        }
    }

    fn jobs(&self) -> Vec<JobView> {
        let shown = |prompt: &str| prompt.chars().take(PROMPT_SHOWN).collect();
        let active = self.active.iter().map(|active| JobView {
            id: active.job,
            prompt: shown(&active.run.plan().spec.prompt),
            progress: Some(active.run.progress().unwrap_or_default()),
            bands: bands(active.run.plan()),
            links: links(active.run.plan()),
            reason: active.reason.clone(),
        });
        let waiting = self.queue.iter().map(|waiting| JobView {
            id: waiting.job,
            prompt: shown(&waiting.request.prompt),
            progress: None,
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

fn links(plan: &Plan) -> Vec<LinkView> {
    let pairs = plan.ranks().flat_map(|one| plan.ranks().map(move |other| (one, other)));
    let view = |(one, other): (Rank, Rank)| {
        let fabric = plan.fabric(one, other).filter(|_| one < other)?;
        Some(LinkView { ranks: [one.0, other.0], fabric })
    };
    pairs.filter_map(view).collect()
}

impl Handler<ReadCluster> for Supervisor {
    type Result = MessageResult<ReadCluster>;

    fn handle(&mut self, _: ReadCluster, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.view())
    }
}
