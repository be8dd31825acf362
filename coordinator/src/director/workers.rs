//! Workers that come, tell of themselves, leave and are lost.

use super::{Director, Effect, FREE_PATIENCE, because, run_of};
use crate::cluster::pulse::{STALL_CALLS, STALL_MIN, STALL_UNKNOWN, Stall};
use bytes::Bytes;
use protocol::identity::Fingerprint;
use protocol::message::{Join, Pulse, ToClient, ToCoordinator, ToWorker};
use protocol::{Fault, FaultKind, Rank, RunId, WorkerId};
use std::net::IpAddr;
use std::time::Duration;

impl Director {
    /// Lets a worker in that called from `peer` and has this key.
    ///
    /// # Errors
    /// Why it has to stay out.
    pub fn admit(
        &mut self,
        join: Join,
        peer: IpAddr,
        identity: Option<Fingerprint>,
        now: Duration,
    ) -> Result<WorkerId, Fault> {
        self.now = now;
        if self.shutting_down {
            return Err(Fault::new(FaultKind::ShuttingDown, "the coordinator is going away"));
        }
        let name = join.name.clone();
        let worker = self.registry.admit(join, peer, identity)?;
        tracing::info!("{worker} ({name}) joined");
        self.leases.renew(worker, now);
        if let Some(before) = self.registry.predecessor(worker) {
            self.dismiss(before, "it joined again");
        }
        self.go_on();
        Ok(worker)
    }

    /// Something came from a worker, if not a whole message: it is alive.
    pub fn worker_heard(&mut self, worker: WorkerId, now: Duration) {
        self.now = now;
        if self.registry.has(worker) {
            self.leases.renew(worker, now);
        }
    }

    /// What a worker said.
    pub fn worker_said(
        &mut self,
        worker: WorkerId,
        message: ToCoordinator,
        payload: Bytes,
        now: Duration,
    ) {
        self.now = now;
        if !self.registry.has(worker) {
            return; // taken for lost: what it says belongs to nothing
        }
        self.leases.renew(worker, now);
        match message {
            ToCoordinator::Alive { resident_bytes, pulse } => {
                self.registry.resident(worker, resident_bytes);
                if let Some(pulse) = pulse {
                    self.hear_pulse(worker, pulse);
                }
                self.order(worker, ToWorker::Alive);
            }
            ToCoordinator::Leaving => self.drain_worker(worker),
            ToCoordinator::Holds { files } => self.holds(worker, files),
            ToCoordinator::Unheld { file, fault } => self.unheld(worker, file, fault),
            message => self.rank_said(worker, message, payload),
        }
    }

    fn hear_pulse(&mut self, worker: WorkerId, pulse: Pulse) {
        let Some((run, rank)) = self.registry.busy(worker) else { return };
        let now = self.now;
        if let Some(active) = self.active.as_mut().filter(|active| active.run_id() == run)
            && pulse.run == run
            && !active.run.is_done(rank)
        {
            active.pulses.hear(rank, pulse, now);
        }
    }

    /// What a worker said about the run that it is busy with.
    fn rank_said(&mut self, worker: WorkerId, message: ToCoordinator, payload: Bytes) {
        let Some((run, rank)) = self.registry.busy(worker) else { return };
        if run_of(&message) != Some(run) {
            return;
        }
        let ends = matches!(
            message,
            ToCoordinator::Decoded { .. }
                | ToCoordinator::Measured { .. }
                | ToCoordinator::Failed { .. }
                | ToCoordinator::Aborted { .. }
        );
        if ends {
            self.registry.release(worker, run);
            if self.registry.is_draining(worker) {
                self.order(worker, ToWorker::Leave);
            }
        }
        if self.checking.is_some() {
            return self.rank_measured((run, rank), message);
        }
        match self.active.as_ref().filter(|active| active.run_id() == run) {
            Some(_) => self.rank_reported(rank, message, payload),
            None => self.go_on(),
        }
    }

    /// A worker's session ended.
    pub fn worker_left(&mut self, worker: WorkerId, cause: &str, now: Duration) {
        self.now = now;
        self.lose(worker, cause);
    }

    /// Takes a worker for lost whose session is still there.
    pub(super) fn dismiss(&mut self, worker: WorkerId, cause: &str) {
        self.effects.push(Effect::Dismiss(worker));
        self.lose(worker, cause);
    }

    fn lose(&mut self, worker: WorkerId, cause: &str) {
        let busy = self.registry.busy(worker).map(|(run, _)| run);
        let drained = self.registry.is_draining(worker);
        self.leases.remove(worker);
        self.shelf.lose(worker);
        let Some((name, address)) = self.registry.remove(worker) else { return };
        tracing::info!("{worker} ({name} at {address}) left{}", because(cause));
        self.tallies.workers_lost += u64::from(!drained);
        let (gone, drains) =
            std::mem::take(&mut self.drains).into_iter().partition(|(each, _)| *each == worker);
        self.drains = drains;
        let gone: Vec<(WorkerId, u64)> = gone;
        for (worker, client) in gone {
            self.answer(client, ToClient::Drained(worker));
        }
        if self.checking.is_some() {
            return self.lost_while_measuring(worker, busy);
        }
        let rank = self.active.as_ref().and_then(|active| {
            let place = active.run.plan().members.iter().position(|each| each.worker == worker)?;
            let rank = u16::try_from(place).ok().map(Rank)?;
            let missed = !active.run.is_done(rank) || active.broken.is_some();
            missed.then_some(rank)
        });
        match rank {
            Some(rank) if !(drained && busy.is_none()) => {
                let cause = format!("the worker {name} at {address} was lost{}", because(cause));
                self.break_off(Fault::new(FaultKind::WorkerLost, cause).on(rank));
            }
            _ => self.go_on(),
        }
    }

    /// Tells all that are at `run` to stop. Who has not after [`FREE_PATIENCE`] or twice the `longest` call of
    /// the run is taken for lost: it may hang, and jobs would wait for it.
    pub(super) fn stop_run(&mut self, run: RunId, longest: Duration, fault: &Fault) {
        for worker in self.registry.stop(run, self.now + FREE_PATIENCE.max(longest * 2)) {
            self.order(worker, ToWorker::Abort { run, fault: fault.clone() });
        }
    }

    /// Takes those for lost that do not stop what they were told to.
    pub(super) fn end_overdue_runs(&mut self) {
        for worker in self.registry.overdue(self.now) {
            self.dismiss(worker, "it did not stop in time what it was told to stop");
        }
    }

    /// Finds a rank that hangs, and ranks that cannot reach each other.
    pub(super) fn look_for_stalls(&mut self) {
        let Some(active) = self.active.as_ref().filter(|active| active.broken.is_none()) else {
            return;
        };
        let longest = active.run.longest_call();
        let known = active.run.is_denoising() && !longest.is_zero();
        let patience = if known {
            STALL_MIN.max(longest * STALL_CALLS)
        } else {
            STALL_UNKNOWN.max(longest * STALL_CALLS)
        };
        let Some(stall) = active.pulses.stall(patience, self.now) else { return };
        let plan = active.run.plan();
        let member =
            |rank: Rank| plan.member(rank).map(|member| (member.worker, member.name.clone()));
        match stall {
            Stall::Hung(rank) => {
                let Some((worker, _)) = member(rank) else { return };
                let cause = format!(
                    "its computation hangs: no operation for {:.0} s",
                    patience.as_secs_f64()
                );
                self.dismiss(worker, &cause);
            }
            Stall::Cut(rank, peer) => {
                let (Some(one), Some(other)) = (member(rank), member(peer)) else { return };
                let cause = format!(
                    "{} and {} no longer reach each other: nothing came through for {:.0} s",
                    one.1,
                    other.1,
                    patience.as_secs_f64()
                );
                self.break_off(Fault::new(FaultKind::PeerLost, cause).on(rank).with(peer));
            }
        }
    }

    /// Lets a worker, by number or name, finish or hand over what it renders, and leave; `client` is told
    /// when it has.
    pub fn drain(&mut self, client: u64, worker: &str, now: Duration) {
        self.now = now;
        match self.registry.find(worker) {
            Some(worker) => {
                self.drains.push((worker, client));
                self.drain_worker(worker);
            }
            None => {
                let cause = format!(
                    "no worker is called `{worker}`: `coordinator status` lists their numbers and names"
                );
                let fault = Fault::new(FaultKind::InvalidRequest, cause);
                self.answer(client, ToClient::Refused(fault));
            }
        }
    }

    fn drain_worker(&mut self, worker: WorkerId) {
        if self.registry.is_draining(worker) {
            return;
        }
        self.registry.drain(worker);
        tracing::info!("{worker} is to leave");
        if self.registry.busy(worker).is_none() {
            self.order(worker, ToWorker::Leave);
        } else {
            self.hand_over(worker);
        }
        self.go_on();
    }
}
