//! Links measured one after the other, while no job runs.

use super::{ClientId, Director};
use crate::cluster::netcheck::Netcheck;
use protocol::message::{MeasuredLink, ToClient, ToCoordinator, ToWorker};
use protocol::plan::Fabric;
use protocol::{Fault, FaultKind, Rank, RunId, WorkerId};
use std::time::Duration;

/// Links being measured, and for whom.
#[derive(Debug)]
pub(super) struct Checking {
    client: ClientId,
    netcheck: Netcheck,
}

impl Director {
    /// What a rank said of its part of the current measurement.
    pub(super) fn rank_measured(&mut self, (run, rank): (RunId, Rank), message: ToCoordinator) {
        let Some(checking) = &mut self.checking else { return };
        let link = match message {
            ToCoordinator::Measured { links, .. } => links
                .first()
                .and_then(|(_, figures)| checking.netcheck.measured(run, rank, *figures)),
            ToCoordinator::Failed { fault, .. } => checking.netcheck.failed(run, fault),
            _ => None,
        };
        self.link_measured(run, link);
    }

    /// A worker was lost, in the middle of `run` if it was busy.
    pub(super) fn lost_while_measuring(&mut self, worker: WorkerId, run: Option<RunId>) {
        let Some(checking) = &mut self.checking else { return };
        let link = checking.netcheck.lost(worker);
        self.link_measured(run.unwrap_or_default(), link);
    }

    /// Ends a measurement that takes too long.
    pub(super) fn end_overdue_measurement(&mut self) {
        let now = self.now;
        let overdue = self.checking.as_mut().and_then(|checking| checking.netcheck.overdue(now));
        if let Some((run, link)) = overdue {
            self.link_measured(run, Some(link));
        }
    }

    /// The client that wanted to know has left. What is being measured ends by itself within seconds;
    /// jobs wait for its workers.
    pub(super) fn stop_measuring_for(&mut self, client: ClientId) {
        if self.checking.as_ref().is_some_and(|checking| checking.client == client) {
            self.checking = None;
            self.go_on();
        }
    }

    /// A link is measured, or was to be: the next one, once both workers are free of it.
    fn link_measured(&mut self, run: RunId, link: Option<MeasuredLink>) {
        let Some(Checking { client, .. }) = self.checking else { return };
        if let Some(link) = link {
            if let Ok(figures) = &link.figures {
                self.registry.observe_link(link.workers, link.fabric, *figures);
            }
            let failed = link.figures.as_ref().err().cloned();
            self.answer(client, ToClient::Link(Box::new(link)));
            if let Some(fault) = failed {
                self.stop_run(run, Duration::ZERO, &fault);
            }
        }
        self.measure_next();
    }

    fn measure_next(&mut self) {
        if !self.registry.is_idle() {
            return; // whoever ends its part comes here again
        }
        let now = self.now;
        let Some(checking) = &mut self.checking else { return };
        let Some(plan) = checking.netcheck.next(now) else {
            if let Some(Checking { client, .. }) = self.checking.take() {
                let view = Box::new(self.view(now));
                self.answer(client, ToClient::Cluster(view));
            }
            return self.go_on();
        };
        for (rank, member) in plan.ranks().zip(&plan.members) {
            self.registry.assign(member.worker, plan.run, rank);
            self.order(member.worker, ToWorker::Measure { plan: Box::new(plan.clone()), rank });
        }
    }

    /// A client wants the links between workers measured, over each of these fabrics that they share; none
    /// named means all.
    pub fn measure_links(&mut self, client: ClientId, fabrics: &[Fabric], now: Duration) {
        self.now = now;
        let busy = self.active.is_some() || self.checking.is_some() || !self.registry.is_idle();
        let started = if busy {
            let cause = "workers are busy, and a measurement would disturb them and be disturbed: try \
                         again when `coordinator status` shows them idle";
            Err(Fault::new(FaultKind::QueueFull, cause))
        } else {
            Netcheck::new(&self.registry.candidates(), fabrics)
        };
        match started {
            Ok(netcheck) => {
                self.checking = Some(Checking { client, netcheck });
                self.measure_next();
            }
            Err(fault) => self.answer(client, ToClient::Refused(fault)),
        }
    }
}
