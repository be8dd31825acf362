//! Which links are measured, one after the other: each pair of workers, over each fabric they share.
//!
//! One at a time, so that no measurement disturbs another; and while no job runs.

use crate::planner::Candidate;
use protocol::message::MeasuredLink;
use protocol::plan::netcheck::{LinkFigures, plan};
use protocol::plan::{Band, Branch, Fabric, Member, Plan, shared};
use protocol::{Epoch, Fault, FaultKind, JobId, Rank, RunId, WorkerId};
use std::collections::VecDeque;
use std::time::Duration;

/// How long one measurement may take: links have ten seconds to open, then it takes about one.
pub const MEASUREMENT_DEADLINE: Duration = Duration::from_secs(20);

/// What is being measured, and what is still to be.
#[derive(Debug)]
pub struct Netcheck {
    waiting: VecDeque<Pair>,
    current: Option<Current>,
    measured_ever: u32,
}

/// Two workers and a fabric that they share.
#[derive(Debug)]
struct Pair {
    workers: [Candidate; 2],
    fabric: Fabric,
}

#[derive(Debug)]
struct Current {
    plan: Plan,
    fabric: Fabric,
    deadline: Duration,
    /// What the ranks measured so far: each measures the way that values take to it.
    seen: [Option<LinkFigures>; 2],
}

impl Netcheck {
    /// All links between `workers` over those of `fabrics` that they share; none named means all.
    ///
    /// # Errors
    /// `InvalidRequest` if there are none.
    pub fn new(workers: &[Candidate], fabrics: &[Fabric]) -> Result<Self, Fault> {
        let mut waiting = VecDeque::new();
        for (at, one) in workers.iter().enumerate() {
            for other in &workers[at + 1..] {
                let both = shared(&one.offers, &other.offers);
                let asked = |fabric: &Fabric| {
                    fabric.is_link() && (fabrics.is_empty() || fabrics.contains(fabric))
                };
                waiting.extend(both.into_iter().filter(asked).map(|fabric| {
                    let workers = [one.clone(), other.clone()];
                    Pair { workers, fabric }
                }));
            }
        }
        if waiting.is_empty() {
            let names: Vec<&str> = fabrics.iter().map(|fabric| fabric.name()).collect();
            let over = if names.is_empty() {
                String::new()
            } else {
                format!(" over {}", names.join(" or "))
            };
            let count = workers.len();
            let cause = format!("{count} workers are there, and no two of them can exchange{over}");
            return Err(Fault::new(FaultKind::InvalidRequest, cause));
        }
        Ok(Self { waiting, current: None, measured_ever: 0 })
    }

    /// The next measurement, to be started `now`. None: all are done.
    pub fn next(&mut self, now: Duration) -> Option<Plan> {
        let Pair { workers, fabric } = self.waiting.pop_front()?;
        self.measured_ever += 1;
        // Jobs are numbered from 1, so no run of an image has this name.
        let run = RunId { job: JobId(0), epoch: Epoch(self.measured_ever) };
        let whole = Band { top: 0, rows: 1 };
        let member = |candidate: Candidate| Member {
            worker: candidate.worker,
            name: candidate.name,
            address: candidate.address,
            offers: candidate.offers,
            branch: Branch::Whole,
            band: whole,
            decodes: whole,
            identity: candidate.identity,
        };
        let plan = plan(run, workers.map(member).into(), vec![fabric]);
        let deadline = now + MEASUREMENT_DEADLINE;
        self.current = Some(Current { plan: plan.clone(), fabric, deadline, seen: [None; 2] });
        Some(plan)
    }

    /// What `rank` measured of its link; the result, once both ranks did.
    pub fn measured(
        &mut self,
        run: RunId,
        rank: Rank,
        figures: LinkFigures,
    ) -> Option<MeasuredLink> {
        let current = self.current.as_mut().filter(|current| current.plan.run == run)?;
        *current.seen.get_mut(rank.index())? = Some(figures);
        let [Some(one), Some(other)] = current.seen else { return None };
        // The slower way decides how fast an exchange is.
        self.end(Ok(LinkFigures {
            latency_us: one.latency_us.max(other.latency_us),
            bytes_per_second: one.bytes_per_second.min(other.bytes_per_second),
        }))
    }

    /// The measurement of `run` failed.
    pub fn failed(&mut self, run: RunId, fault: Fault) -> Option<MeasuredLink> {
        self.current.as_ref().filter(|current| current.plan.run == run)?;
        self.end(Err(fault))
    }

    /// `worker` is gone: its measurement fails, and none that needs it is started.
    pub fn lost(&mut self, worker: WorkerId) -> Option<MeasuredLink> {
        self.waiting.retain(|pair| pair.workers.iter().all(|each| each.worker != worker));
        let current = self.current.as_ref()?;
        let member = current.plan.members.iter().find(|member| member.worker == worker)?;
        let cause = format!("the worker {} was lost", member.name);
        self.end(Err(Fault::new(FaultKind::WorkerLost, cause)))
    }

    /// The run that should have ended by `now`, and its result.
    pub fn overdue(&mut self, now: Duration) -> Option<(RunId, MeasuredLink)> {
        let current = self.current.as_ref().filter(|current| current.deadline <= now)?;
        let run = current.plan.run;
        let cause = format!("no answer within {} s", MEASUREMENT_DEADLINE.as_secs());
        Some((run, self.end(Err(Fault::new(FaultKind::PeerLost, cause)))?))
    }

    fn end(&mut self, figures: Result<LinkFigures, Fault>) -> Option<MeasuredLink> {
        let current = self.current.take()?;
        let [one, other] = &current.plan.members[..] else { return None };
        Some(MeasuredLink { workers: [one.worker, other.worker], fabric: current.fabric, figures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::tests::candidates;
    use protocol::plan::Offer;

    const FIGURES: LinkFigures = LinkFigures { latency_us: 10.0, bytes_per_second: 1e9 };

    fn workers() -> Vec<Candidate> {
        let mut workers = candidates(3);
        for worker in &mut workers[..2] {
            worker.offers = vec![Offer::Quic { port: 1 }, Offer::Tcp];
        }
        workers
    }

    #[test]
    fn every_pair_is_measured_over_every_fabric_it_shares() {
        let mut netcheck = Netcheck::new(&workers(), &[]).unwrap();
        let mut measured = Vec::new();
        while let Some(plan) = netcheck.next(Duration::ZERO) {
            let slow = LinkFigures { latency_us: 30.0, bytes_per_second: 5e8 };
            assert!(netcheck.measured(plan.run, Rank(0), slow).is_none());
            let link = netcheck.measured(plan.run, Rank(1), FIGURES).unwrap();
            assert_eq!(link.figures, Ok(slow), "the slower way counts");
            measured.push((link.workers.map(|worker| worker.0), link.fabric));
        }
        let wanted = [
            ([1, 2], Fabric::Quic),
            ([1, 2], Fabric::Tcp),
            ([1, 3], Fabric::Tcp),
            ([2, 3], Fabric::Tcp),
        ];
        assert_eq!(measured, wanted);
    }

    #[test]
    fn what_is_asked_for_and_cannot_be_had_is_refused() {
        let fault = Netcheck::new(&workers(), &[Fabric::Rdma]).unwrap_err();
        assert!(fault.cause.contains("over rdma"), "{fault}");
        assert_eq!(
            Netcheck::new(&workers()[..1], &[]).unwrap_err().kind,
            FaultKind::InvalidRequest
        );
    }

    #[test]
    fn a_lost_worker_and_a_silent_one_end_their_measurement_only() {
        let mut netcheck = Netcheck::new(&workers(), &[Fabric::Tcp]).unwrap();
        let first = netcheck.next(Duration::ZERO).unwrap().run;
        assert!(netcheck.overdue(MEASUREMENT_DEADLINE / 2).is_none());
        let (run, link) = netcheck.overdue(MEASUREMENT_DEADLINE).unwrap();
        assert_eq!((run, link.figures.unwrap_err().kind), (first, FaultKind::PeerLost));
        let second = netcheck.next(Duration::ZERO).unwrap().run;
        assert!(netcheck.measured(first, Rank(0), FIGURES).is_none(), "too late");
        let lost = netcheck.lost(WorkerId(3)).unwrap();
        assert_eq!(lost.figures.unwrap_err().kind, FaultKind::WorkerLost);
        assert!(netcheck.failed(second, Fault::new(FaultKind::PeerLost, "")).is_none());
        assert!(
            netcheck.next(Duration::ZERO).is_none(),
            "the third has nobody to be measured with"
        );
    }
}
