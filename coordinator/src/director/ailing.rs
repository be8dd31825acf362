//! Workers on which a computation failed: for want of memory, say.
//!
//! - **R-6 culprit**: a job goes on without the worker on which its computation failed, and fails once there is no
//!   other. Until then it is the worker's fault, which gets no work for a while: it would fail one job after
//!   the other, and sooner than the others render any.

use super::jobs::places;
use super::{Active, Director};
use crate::planner::Candidate;
use protocol::{Fault, WorkerId};
use std::time::Duration;

/// How long such a worker gets no work, if others are there: what it lacked may have been given back by then, and
/// if not that costs a job one call.
pub const REST: Duration = Duration::from_secs(60);

impl Director {
    /// The computation of the running job failed on `worker`.
    pub(super) fn ail(&mut self, worker: WorkerId, fault: Fault) {
        let until = self.now + REST;
        let Some(active) = &mut self.active else { return };
        active.failed_on.push(worker);
        self.resting.insert(worker, until);
        let ((rank, call), rest) = (places(&fault), REST.as_secs());
        let job = active.job().0;
        tracing::warn!(job, rank, call, "{worker} gets no work for {rest} s: {}", fault.cause);
        let Some(active) = &self.active else { return };
        if self.others(active) {
            self.break_off(fault);
        } else {
            self.fail(fault);
        }
    }

    /// Whether there are workers on which the job has not failed.
    pub(super) fn others(&self, active: &Active) -> bool {
        let able = |each: &Candidate| {
            !active.failed_on.contains(&each.worker)
                && self.can_hold(each.worker, &active.asked.request)
        };
        self.registry.candidates().iter().any(able)
    }

    /// Whether a worker rests, or the job failed on it, which does not pass.
    pub(super) fn ails(&self, active: &Active, worker: WorkerId) -> bool {
        self.resting.contains_key(&worker) || active.failed_on.contains(&worker)
    }

    /// Those of `idle` that do not rest, if they are `enough`.
    pub(super) fn rested(&self, idle: Vec<Candidate>, enough: u16) -> Vec<Candidate> {
        let rests = |each: &&Candidate| !self.resting.contains_key(&each.worker);
        let rested: Vec<Candidate> = idle.iter().filter(rests).cloned().collect();
        if rested.len() >= usize::from(enough) { rested } else { idle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::director::fixture::{CLIENT, START, cluster, started};
    use crate::director::{EXPLANATION_PATIENCE, Effect, GATHER_PATIENCE, Standing};
    use crate::planner::tests::request;
    use bytes::Bytes;
    use protocol::job::{CfgSplit, JobRequest, Terms};
    use protocol::message::{Event, ToClient, ToCoordinator};
    use protocol::{FaultKind, Rank, RunId};

    fn submit(director: &mut Director) -> Vec<(WorkerId, RunId)> {
        director.submit((CLIENT, &Standing::of("me")), (request(), Terms::default()), 7, START);
        started(&director.effects())
    }

    fn failed(effects: &[Effect]) -> bool {
        effects.iter().any(|effect| match effect {
            Effect::Tell { message, .. } => {
                matches!(&**message, ToClient::Event { event: Event::Failed { .. }, .. })
            }
            _ => false,
        })
    }

    /// The computation of `run` fails on `worker`, and ends on the others.
    fn fail(
        director: &mut Director,
        (worker, run): (WorkerId, RunId),
        others: &[WorkerId],
    ) -> Vec<Effect> {
        let fault = Fault::new(FaultKind::Compute, "no memory");
        let mut said = |worker, message| director.worker_said(worker, message, Bytes::new(), START);
        said(worker, ToCoordinator::Failed { run, fault, unopened: Vec::new() });
        others.iter().for_each(|other| said(*other, ToCoordinator::Aborted { run }));
        director.effects()
    }

    #[test]
    fn r6_a_job_goes_on_without_the_worker_it_failed_on_and_so_do_the_next() {
        let (mut director, workers) = cluster(3);
        let parts = submit(&mut director);
        assert_eq!(parts.len(), 3);
        let effects = fail(&mut director, (workers[1], parts[0].1), &[workers[0], workers[2]]);
        let parts = started(&effects);
        let on: Vec<WorkerId> = parts.iter().map(|(worker, _)| *worker).collect();
        assert_eq!(on, [workers[0], workers[2]]);

        director.client_left(CLIENT, START);
        let run = parts[0].1;
        for worker in on.iter().copied() {
            director.worker_said(worker, ToCoordinator::Aborted { run }, Bytes::new(), START);
        }
        let on: Vec<WorkerId> = submit(&mut director).iter().map(|(worker, _)| *worker).collect();
        assert_eq!(on, [workers[0], workers[2]], "the other one rests");
    }

    #[test]
    fn r6_a_worker_that_was_left_out_for_another_takes_part_once_the_job_failed_on_that() {
        let (mut director, workers) = cluster(2);
        let request = JobRequest { cfg_split: CfgSplit::On, ..request() };
        director.submit((CLIENT, &Standing::of("me")), (request, Terms::default()), 7, START);
        let run = started(&director.effects())[0].1;
        let fault = Fault::new(FaultKind::PeerLost, "cut").on(Rank(1)).with(Rank(0));
        let said = ToCoordinator::Failed { run, fault, unopened: Vec::new() };
        director.worker_said(workers[1], said, Bytes::new(), START);
        director.worker_said(workers[0], ToCoordinator::Aborted { run }, Bytes::new(), START);
        let wait = |director: &mut Director, now| {
            workers.iter().for_each(|worker| director.worker_heard(*worker, now));
            director.tick(now);
        };
        wait(&mut director, START + EXPLANATION_PATIENCE);
        let parts = started(&director.effects());
        assert_eq!(parts.len(), 1, "they cannot exchange");
        assert_eq!(parts[0].0, workers[0]);
        assert!(!failed(&fail(&mut director, parts[0], &[])));
        // It was at no part of the last run: perhaps others come who were.
        wait(&mut director, START + GATHER_PATIENCE);
        let parts = started(&director.effects());
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].0, workers[1]);
    }

    #[test]
    fn r6_a_job_that_failed_on_all_workers_fails_and_none_of_them_rests() {
        let (mut director, workers) = cluster(2);
        let parts = submit(&mut director);
        let effects = fail(&mut director, (workers[0], parts[0].1), &[workers[1]]);
        assert!(!failed(&effects));
        let parts = started(&effects);
        assert_eq!(parts.len(), 1);
        assert!(failed(&fail(&mut director, parts[0], &[])));
        assert_eq!(submit(&mut director).len(), 2);
    }

    #[test]
    fn r6_whoever_rests_is_better_than_nobody() {
        let (mut director, workers) = cluster(1);
        let parts = submit(&mut director);
        assert!(failed(&fail(&mut director, parts[0], &[])));
        director.resting.insert(workers[0], START + REST);
        assert_eq!(submit(&mut director).len(), 1);
    }
}
