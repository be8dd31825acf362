//! The workers, the model they all hold, and what each is doing.

use crate::planner::{Candidate, LinkSpeed, Pairs};
use protocol::identity::Fingerprint;
use protocol::job::ModelCard;
use protocol::message::{Join, WorkerView};
use protocol::plan::netcheck::LinkFigures;
use protocol::plan::{Fabric, nearest};
use protocol::{Fault, FaultKind, Rank, RunId, WorkerId};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// The most workers: more than any plan can use, few enough to list.
pub const WORKERS_MAX: usize = 1024;

/// The cluster's members.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    members: BTreeMap<WorkerId, Member>,
    links: BTreeMap<([WorkerId; 2], Fabric), LinkFigures>,
    joined: u64,
}

#[derive(Clone, Debug)]
struct Member {
    join: Join,
    address: SocketAddr,
    identity: Option<Fingerprint>,
    resident_bytes: u64,
    speed: u64,
    busy: Option<(RunId, Rank)>,
}

impl Registry {
    /// Lets a worker in that called from `peer` and has this key.
    ///
    /// # Errors
    /// `ModelMismatch` if the others hold another model, or no image can be planned for it.
    pub fn admit(
        &mut self,
        join: Join,
        peer: IpAddr,
        identity: Option<Fingerprint>,
    ) -> Result<WorkerId, Fault> {
        // Whatever is planned is divided by the card's numbers.
        join.model.smallest().check().map_err(|error| {
            let cause = format!("this worker's model renders no image: {error}");
            Fault::new(FaultKind::ModelMismatch, cause)
        })?;
        if let Some(card) = self.model().filter(|card| !same_model(card, &join.model)) {
            return Err(Fault::new(FaultKind::ModelMismatch, mismatch(card, &join.model)));
        }
        if self.members.len() >= WORKERS_MAX {
            let cause = format!("the cluster has {WORKERS_MAX} workers already");
            return Err(Fault::new(FaultKind::QueueFull, cause));
        }
        self.joined += 1;
        let worker = WorkerId(self.joined);
        let mut address = join.listen;
        if address.ip().is_unspecified() {
            address.set_ip(peer);
        }
        let (resident_bytes, speed) = (join.resident_bytes, join.speed);
        let busy = None;
        let member = Member { join, address, identity, resident_bytes, speed, busy };
        self.members.insert(worker, member);
        Ok(worker)
    }

    /// A worker left; its name and address, if it was there.
    pub fn remove(&mut self, worker: WorkerId) -> Option<(String, SocketAddr)> {
        self.links.retain(|(workers, _), _| !workers.contains(&worker));
        self.members.remove(&worker).map(|member| (member.join.name, member.address))
    }

    /// The model that all workers hold; None while there are none.
    #[must_use]
    pub fn model(&self) -> Option<&ModelCard> {
        self.members.values().next().map(|member| &member.join.model)
    }

    /// How many workers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The workers that do nothing, in the order they joined.
    #[must_use]
    pub fn idle(&self) -> Vec<Candidate> {
        let idle = self.members.iter().filter(|(_, member)| member.busy.is_none());
        idle.map(candidate).collect()
    }

    /// All workers, in the order they joined.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        self.members.iter().map(candidate).collect()
    }

    /// Whether no worker does anything.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.members.values().all(|member| member.busy.is_none())
    }

    /// What was measured of the link between two workers over `fabric`.
    pub fn observe_link(&mut self, mut workers: [WorkerId; 2], fabric: Fabric, seen: LinkFigures) {
        workers.sort_unstable();
        if workers.iter().all(|worker| self.members.contains_key(worker)) {
            self.links.insert((workers, fabric), seen);
        }
    }

    /// What values between workers cross at, over the nearest of the `allowed` fabrics that they share
    /// (none allowed means all), as far as it was measured.
    #[must_use]
    pub fn pairs(&self, allowed: &[Fabric]) -> Pairs {
        let mut pairs = Pairs::default();
        for ((workers, fabric), figures) in &self.links {
            let [Some(one), Some(other)] = workers.map(|worker| self.members.get(&worker)) else {
                continue;
            };
            if nearest(&one.join.offers, &other.join.offers, allowed) == Some(*fabric) {
                let [one, other] = *workers;
                pairs.measured(one, other, LinkSpeed::from(*figures));
                pairs.measured(other, one, LinkSpeed::from(*figures));
            }
        }
        pairs
    }

    /// What was last measured of the link between two workers over `fabric`.
    #[must_use]
    pub fn link(&self, mut workers: [WorkerId; 2], fabric: Fabric) -> Option<LinkFigures> {
        workers.sort_unstable();
        self.links.get(&(workers, fabric)).copied()
    }

    /// `worker` starts on a run.
    pub fn assign(&mut self, worker: WorkerId, run: RunId, rank: Rank) {
        if let Some(member) = self.members.get_mut(&worker) {
            member.busy = Some((run, rank));
        }
    }

    /// The run and rank of `worker`, if it is busy.
    #[must_use]
    pub fn busy(&self, worker: WorkerId) -> Option<(RunId, Rank)> {
        self.members.get(&worker).and_then(|member| member.busy)
    }

    /// The workers that are busy with `run`.
    #[must_use]
    pub fn busy_with(&self, run: RunId) -> Vec<WorkerId> {
        let on_it = |member: &Member| member.busy.is_some_and(|(busy, _)| busy == run);
        let busy = self.members.iter().filter(|(_, member)| on_it(member));
        busy.map(|(worker, _)| *worker).collect()
    }

    /// `worker` is done with `run`.
    pub fn release(&mut self, worker: WorkerId, run: RunId) {
        if let Some(member) = self.members.get_mut(&worker) {
            member.busy = member.busy.filter(|(busy, _)| *busy != run);
        }
    }

    /// What the workers of a job were seen to compute a second. Only their ratios count: a job's pixels
    /// cost more or less than those measured at join.
    pub fn observe_speeds(&mut self, seen: &[(WorkerId, u64)]) {
        let known = |worker: &WorkerId| self.members.get(worker).map_or(0, |member| member.speed);
        let before: u64 = seen.iter().map(|(worker, _)| known(worker)).sum();
        let after: u64 = seen.iter().map(|(_, speed)| *speed).sum();
        for (worker, speed) in seen {
            if let Some(member) = self.members.get_mut(worker) {
                let scaled = u128::from(*speed) * u128::from(before) / u128::from(after.max(1));
                // Half of it is new: a slow job corrects the next plan, a disturbed one not wholly.
                let scaled = u64::try_from(scaled).unwrap_or(u64::MAX);
                member.speed = member.speed / 2 + scaled / 2;
            }
        }
    }

    /// `worker` said how much memory it uses.
    pub fn resident(&mut self, worker: WorkerId, bytes: u64) {
        if let Some(member) = self.members.get_mut(&worker) {
            member.resident_bytes = bytes;
        }
    }

    /// The members, as people see them.
    #[must_use]
    pub fn views(&self) -> Vec<WorkerView> {
        let view = |(id, member): (&WorkerId, &Member)| WorkerView {
            id: *id,
            name: member.join.name.clone(),
            address: member.address,
            threads: member.join.threads,
            kernels: member.join.kernels.clone(),
            resident_bytes: member.resident_bytes,
            speed: member.speed,
            busy: member.busy.map(|(run, rank)| (run.job, rank)),
            identity: member.identity,
        };
        self.members.iter().map(view).collect()
    }
}

fn candidate((worker, member): (&WorkerId, &Member)) -> Candidate {
    Candidate {
        worker: *worker,
        name: member.join.name.clone(),
        address: member.address,
        speed: member.speed,
        free_bytes: member.join.free_bytes,
        offers: member.join.offers.clone(),
        lacks: member.join.lacks.clone(),
        identity: member.identity,
    }
}

fn same_model(one: &ModelCard, other: &ModelCard) -> bool {
    (&one.digest, one.dtype) == (&other.digest, other.dtype)
}

fn mismatch(cluster: &ModelCard, worker: &ModelCard) -> String {
    let describe = |card: &ModelCard| {
        let digest: String = card.digest.chars().take(12).collect();
        format!("{} ({digest}, {})", card.name, card.dtype)
    };
    format!(
        "this worker holds the model {}, the cluster's workers hold {}: start it with the same \
         --model and --dtype",
        describe(worker),
        describe(cluster)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::tests::card;
    use protocol::plan::Offer;
    use std::net::Ipv4Addr;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

    fn join(name: &str) -> Join {
        Join {
            name: name.to_owned(),
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 5000)),
            offers: vec![Offer::Tcp],
            lacks: Vec::new(),
            model: card(),
            threads: 1,
            kernels: "portable".to_owned(),
            resident_bytes: 1,
            speed: 1000,
            free_bytes: 8 << 30,
        }
    }

    #[test]
    fn ratios_seen_in_a_job_correct_the_speeds_measured_at_join() {
        let mut registry = Registry::default();
        let [one, two] = ["a", "b"].map(|name| registry.admit(join(name), PEER, None).unwrap());
        registry.observe_speeds(&[(one, 10), (two, 30)]);
        let speeds: Vec<u64> = registry.views().iter().map(|view| view.speed).collect();
        assert_eq!(speeds, [750, 1250]);
    }

    #[test]
    fn an_unspecified_address_becomes_the_callers() {
        let mut registry = Registry::default();
        registry.admit(join("a"), PEER, None).unwrap();
        assert_eq!(registry.views()[0].address, SocketAddr::from((PEER, 5000)));
    }

    #[test]
    fn another_model_is_refused_with_both_named_until_no_worker_is_left() {
        let mut registry = Registry::default();
        let first = registry.admit(join("a"), PEER, None).unwrap();
        let mut other = join("b");
        other.model.name = "other".to_owned();
        other.model.digest = "cd".repeat(32);
        let fault = registry.admit(other.clone(), PEER, None).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ModelMismatch);
        assert!(fault.cause.contains("other (cdcdcdcdcdcd"), "{fault}");
        assert!(fault.cause.contains("tiny (abababababab"), "{fault}");
        registry.remove(first);
        assert!(registry.admit(other, PEER, None).is_ok());
    }

    #[test]
    fn a_card_that_nothing_can_be_planned_with_is_refused() {
        let numbers: [fn(&mut ModelCard) -> &mut u32; 3] = [
            |card| &mut card.row_unit,
            |card| &mut card.vae_factor,
            |card| &mut card.latent_channels,
        ];
        for number in numbers {
            for wrong in [0, 1 << 16] {
                let mut join = join("a");
                *number(&mut join.model) = wrong;
                let fault = Registry::default().admit(join, PEER, None).unwrap_err();
                assert_eq!(fault.kind, FaultKind::ModelMismatch, "{fault}");
            }
        }
    }

    #[test]
    fn a_worker_is_busy_until_it_is_released_from_that_run() {
        let mut registry = Registry::default();
        let worker = registry.admit(join("a"), PEER, None).unwrap();
        let run = RunId::default();
        registry.assign(worker, run, Rank(0));
        assert!(registry.idle().is_empty());
        registry.release(worker, RunId { job: protocol::JobId(9), ..run });
        assert_eq!(registry.busy_with(run), [worker]);
        registry.release(worker, run);
        assert_eq!(registry.idle().len(), 1);
    }
}
