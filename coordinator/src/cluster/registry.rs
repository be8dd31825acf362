//! The workers, the model they all hold, and what each is doing.

use crate::planner::cost::Machine;
use crate::planner::{Candidate, LinkSpeed, Pairs};
use protocol::identity::Fingerprint;
use protocol::job::ModelCard;
use protocol::message::{Join, WorkerView};
use protocol::plan::netcheck::LinkFigures;
use protocol::plan::{Fabric, nearest};
use protocol::{Fault, FaultKind, Rank, RunId, WorkerId};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The most workers: more than any plan can use, few enough to list.
pub const WORKERS_MAX: usize = 1024;

/// How long a fabric that broke between two workers is not tried again: a link that flaps costs a job a
/// synchronous call each time, and one that is mended must not wait for an operator.
pub const BROKEN_FOR: Duration = Duration::from_secs(60);

/// The cluster's members.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    members: BTreeMap<WorkerId, Member>,
    links: BTreeMap<([WorkerId; 2], Fabric), LinkFigures>,
    broken: BTreeMap<([WorkerId; 2], Fabric), Duration>,
    joined: u64,
}

#[derive(Clone, Debug)]
struct Member {
    join: Join,
    address: SocketAddr,
    identity: Option<Fingerprint>,
    resident_bytes: u64,
    /// As computed in jobs; None before the first.
    speed: Option<u64>,
    busy: Option<(RunId, Rank)>,
    /// By when it must have ended that, if it was told to stop.
    stops_by: Option<Duration>,
    draining: bool,
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
        if let Some(map) = &join.model.preview {
            map.check(join.model.latent_channels).map_err(|error| {
                let cause = format!("this worker's model card is damaged: {error}");
                Fault::new(FaultKind::ModelMismatch, cause)
            })?;
        }
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
        let (resident_bytes, speed) = (join.resident_bytes, None);
        let (busy, stops_by, draining) = (None, None, false);
        let member =
            Member { join, address, identity, resident_bytes, speed, busy, stops_by, draining };
        self.members.insert(worker, member);
        Ok(worker)
    }

    /// The earlier session of the process that `worker` is, if it is not known to have ended: only one can be
    /// reached at an address.
    #[must_use]
    pub fn predecessor(&self, worker: WorkerId) -> Option<WorkerId> {
        let own = self.members.get(&worker)?;
        let same = |(id, member): &(&WorkerId, &Member)| {
            **id != worker && (member.address, member.identity) == (own.address, own.identity)
        };
        self.members.iter().find(same).map(|(id, _)| *id)
    }

    /// A worker left; its name and address, if it was there.
    pub fn remove(&mut self, worker: WorkerId) -> Option<(String, SocketAddr)> {
        self.links.retain(|(workers, _), _| !workers.contains(&worker));
        self.broken.retain(|(workers, _), _| !workers.contains(&worker));
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

    /// Whether `worker` is one of them.
    #[must_use]
    pub fn has(&self, worker: WorkerId) -> bool {
        self.members.contains_key(&worker)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The workers that do nothing and do not leave, in the order they joined.
    #[must_use]
    pub fn idle(&self) -> Vec<Candidate> {
        let idle = |member: &Member| member.busy.is_none() && !member.draining;
        self.members
            .iter()
            .filter(|(_, member)| idle(member))
            .map(|each| self.candidate(each))
            .collect()
    }

    /// How many workers there are that do not leave.
    #[must_use]
    pub fn staying(&self) -> usize {
        self.members.values().filter(|member| !member.draining).count()
    }

    /// The worker of this number or name.
    #[must_use]
    pub fn find(&self, worker: &str) -> Option<WorkerId> {
        let called = |(id, member): &(&WorkerId, &Member)| {
            member.join.name == worker || id.to_string() == worker || id.0.to_string() == worker
        };
        self.members.iter().find(called).map(|(id, _)| *id)
    }

    /// `worker` gets no more work: it leaves.
    pub fn drain(&mut self, worker: WorkerId) {
        if let Some(member) = self.members.get_mut(&worker) {
            member.draining = true;
        }
    }

    /// Whether `worker` is there and leaves.
    #[must_use]
    pub fn is_draining(&self, worker: WorkerId) -> bool {
        self.members.get(&worker).is_some_and(|member| member.draining)
    }

    /// All workers, in the order they joined.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        self.members.iter().map(|each| self.candidate(each)).collect()
    }

    fn candidate(&self, (worker, member): (&WorkerId, &Member)) -> Candidate {
        Candidate {
            worker: *worker,
            name: member.join.name.clone(),
            address: member.address,
            speed: self.speed(member),
            free_bytes: member.join.free_bytes,
            offers: member.join.offers.clone(),
            lacks: member.join.lacks.clone(),
            identity: member.identity,
        }
    }

    /// A worker's speed as computed in jobs, or before its first what it measured at join times what others were
    /// seen to compute of what they had measured: all are then in one measure.
    fn speed(&self, member: &Member) -> u64 {
        let seen = self.members.values().filter_map(|each| Some((each.speed?, each.join.speed)));
        let (jobs, joins) = seen.fold((0, 0), |(jobs, joins), (job, join)| {
            (jobs + u128::from(job), joins + u128::from(join))
        });
        member.speed.unwrap_or_else(|| {
            let measured = u128::from(member.join.speed);
            let scaled = (measured * jobs).checked_div(joins).unwrap_or(measured);
            u64::try_from(scaled).unwrap_or(u64::MAX)
        })
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

    /// `fabric` does not carry between two workers.
    pub fn break_link(&mut self, mut workers: [WorkerId; 2], fabric: Fabric, now: Duration) {
        workers.sort_unstable();
        self.broken.insert((workers, fabric), now + BROKEN_FOR);
    }

    /// What does not carry between two workers, the one that joined first first.
    #[must_use]
    pub fn broken(&self, now: Duration) -> Vec<([WorkerId; 2], Fabric)> {
        self.broken.iter().filter(|(_, until)| now < **until).map(|(link, _)| *link).collect()
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
            (member.busy, member.stops_by) = (Some((run, rank)), None);
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

    /// The workers that are busy with `run` are told to stop, and must have by then; which they are.
    pub fn stop(&mut self, run: RunId, by: Duration) -> Vec<WorkerId> {
        let busy = self.busy_with(run);
        for worker in &busy {
            if let Some(member) = self.members.get_mut(worker) {
                member.stops_by = Some(by);
            }
        }
        busy
    }

    /// The workers that were told to stop, and did not in time.
    #[must_use]
    pub fn overdue(&self, now: Duration) -> Vec<WorkerId> {
        let overdue =
            |member: &Member| member.busy.is_some() && member.stops_by.is_some_and(|by| by <= now);
        let members = self.members.iter().filter(|(_, member)| overdue(member));
        members.map(|(worker, _)| *worker).collect()
    }

    /// `worker` is done with `run`.
    pub fn release(&mut self, worker: WorkerId, run: RunId) {
        if let Some(member) = self.members.get_mut(&worker) {
            member.busy = member.busy.filter(|(busy, _)| *busy != run);
        }
    }

    /// FLOP a second that the workers of a job were seen to compute. What they measured when they joined is of other
    /// bands, and of a moment in which others of their machine may have measured, too.
    pub fn observe_rates(&mut self, seen: &[(WorkerId, f64)]) {
        let Some(card) = self.model().cloned() else { return };
        for (worker, rate) in seen {
            if let Some(speed) = Machine::speed(&card, *rate)
                && let Some(member) = self.members.get_mut(worker)
            {
                // Half of it is new: a slow job corrects the next plan, a disturbed one not wholly.
                member.speed = Some(member.speed.map_or(speed, |before| before.midpoint(speed)));
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
            speed: self.speed(member),
            busy: member.busy.map(|(run, rank)| (run.job, rank)),
            draining: member.draining,
            identity: member.identity,
        };
        self.members.iter().map(view).collect()
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
pub(crate) mod tests {
    use super::*;
    use crate::planner::cost::preset;
    use crate::planner::tests::card;
    use protocol::job::PreviewMap;
    use protocol::plan::Offer;
    use std::net::Ipv4Addr;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

    pub(crate) fn join(name: &str) -> Join {
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
    fn what_a_job_computed_takes_the_place_of_what_was_measured_at_join_and_is_corrected_by_later_ones()
     {
        let model = preset::card("sdxl").unwrap();
        let joined = |name| Join { model: model.clone(), ..join(name) };
        let mut registry = Registry::default();
        let [one, two] = ["a", "b"].map(|name| registry.admit(joined(name), PEER, None).unwrap());
        let rate = |speed| Machine::calibrated(&model, speed).rate;
        let speeds = |registry: &Registry| -> Vec<u64> {
            registry.views().iter().map(|view| view.speed).collect()
        };
        registry.observe_rates(&[(one, rate(300)), (two, rate(900))]);
        assert_eq!(speeds(&registry), [300, 900]);
        registry.observe_rates(&[(one, rate(500))]);
        assert_eq!(speeds(&registry), [400, 900]);
        // One that has done none is taken for as much slower, or faster, as the others were.
        let late = Join { speed: 2000, ..joined("c") };
        registry.admit(late, PEER, None).unwrap();
        assert_eq!(speeds(&registry), [400, 900, 1300]);
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
    fn a_preview_map_that_is_none_is_refused_and_one_that_differs_is_not() {
        let map = PreviewMap { weights: vec![[0.1; 3]; 4], offset: [0.5; 3] };
        let with = |preview: &PreviewMap| {
            let mut join = join("a");
            join.model.preview = Some(preview.clone());
            join
        };
        let mut registry = Registry::default();
        let mut wrong = map.clone();
        wrong.weights[3][0] = f32::NAN;
        let short = PreviewMap { weights: vec![[0.1; 3]; 3], ..map.clone() };
        for (wrong, words) in [(wrong, "`NaN` at channel 3"), (short, "3 channels, its latent 4")] {
            let fault = registry.admit(with(&wrong), PEER, None).unwrap_err();
            assert_eq!(fault.kind, FaultKind::ModelMismatch);
            assert!(fault.cause.contains("preview map") && fault.cause.contains(words), "{fault}");
        }
        registry.admit(with(&map), PEER, None).unwrap();
        let other = PreviewMap { offset: [0.4; 3], ..map };
        registry.admit(with(&other), PEER, None).unwrap();
        registry.admit(join("none"), PEER, None).unwrap();
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
