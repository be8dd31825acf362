//! A job that breaks off, and goes on from its last checkpoint.
//!
//! - **R-1 epoch**: every run of a job has a higher epoch than the one before.
//! - **R-2 fence**: nobody is given a part of the new run before it has ended its part of the old one.
//! - **R-3 one call**: no more than the call under way is lost, unless the job asks for unchanged bits.
//! - **R-4 progress**: a job that breaks off again and again without a call done in between fails, unless each time
//!   a link was found to be cut that it did not know of: it uses none of them again before a call is done, and in the
//!   end goes on with those that reach each other.

use super::jobs::places;
use super::{Active, Director, GATHER_PATIENCE};
use crate::cluster::failure::LEASE;
use crate::cluster::pulse::Pulses;
use crate::cluster::registry::BROKEN_FOR;
use crate::job::checkpoint::Checkpoint;
use crate::job::state::RunState;
use crate::planner::{self, Candidate, Placed, Wish, fabrics};
use bytes::Bytes;
use protocol::job::CfgSplit;
use protocol::message::{Event, RecoveryView};
use protocol::plan::{Fabric, Plan};
use protocol::{Fault, FaultKind, Rank, RunId, WorkerId};
use std::time::Duration;

/// How long a broken link waits for the lost worker that explains it: until a worker that is silent since
/// then has lost its lease. "The worker X was lost" says more than "rank 0 lost its link to rank 1", and
/// the link need not be taken for broken.
pub const EXPLANATION_PATIENCE: Duration = LEASE.saturating_add(Duration::from_millis(200));
/// How long those that are left may take to end their part of the run: they do at their next exchange, or where
/// there is none after the call, for which they are given as long as the longest so far. Whoever is
/// still at it then has no part in what follows, and is taken for lost.
pub const FREE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a job that is to keep its bits waits for another worker: that a supervisor starts it again, and it
/// loads its model.
pub const REPLACEMENT_PATIENCE: Duration = Duration::from_secs(60);
/// A job that lost workers takes others in if it has so many calls to go: the one that is synchronous for it, and some
/// that are faster for it.
pub const GROW_CALLS_MIN: u32 = 5;
/// And not before its run is so old: workers that come back, come one after the other.
pub const GROW_PAUSE: Duration = Duration::from_secs(1);
/// How often in a row a job may break off without a call done, for other reasons than links newly found to be cut:
/// whatever it is, it will not pass.
pub const FUTILE_MAX: u32 = 5;

/// A job that is broken off.
#[derive(Debug)]
pub(super) struct Broken {
    fault: Fault,
    since: Duration,
    /// Until when the fault may be explained by another.
    unexplained_until: Duration,
    /// The links that ranks lost, as they said.
    lost: Vec<Lost>,
    /// Until when workers may be at it, once they were told to stop.
    busy_until: Option<Duration>,
    told: bool,
}

/// A link that a rank says it lost.
#[derive(Clone, Copy, Debug)]
struct Lost {
    rank: Rank,
    peer: Rank,
    /// It tried, and did not get through.
    tried: bool,
}

impl Broken {
    /// Why.
    pub(super) fn fault(&self) -> &Fault {
        &self.fault
    }
}

impl Director {
    /// The running job cannot go on as it is.
    pub(super) fn break_off(&mut self, fault: Fault) {
        self.break_off_unopened(fault, &[]);
    }

    /// The same, if links to these peers did not open. The other ranks are not told to stop before they had the time
    /// to say the same: one cut may be between many, and is then found at once.
    pub(super) fn break_off_unopened(&mut self, fault: Fault, unopened: &[Rank]) {
        let now = self.now;
        let Some(active) = &mut self.active else { return };
        let lost = lost(&fault, unopened);
        let waits = !lost.is_empty();
        match &mut active.broken {
            // A lost worker explains a lost link, never the other way round.
            Some(broken) if !waits && now < broken.unexplained_until => {
                broken.fault = fault;
                broken.unexplained_until = now;
            }
            Some(broken) => broken.lost.extend(lost),
            None => {
                let ((rank, call), RunId { job, epoch }) = (places(&fault), active.run_id());
                let cause = &fault.cause;
                tracing::warn!(job = job.0, epoch = epoch.0, rank, call, "broke off: {cause}");
                active.broken = Some(Broken {
                    fault,
                    since: now,
                    unexplained_until: if waits { now + EXPLANATION_PATIENCE } else { now },
                    lost,
                    busy_until: None,
                    told: false,
                });
                self.tallies.interrupted += 1;
                if unopened.is_empty() {
                    self.stop_broken();
                }
            }
        }
        self.go_on();
    }

    /// Tells those that are at a run that is broken off to stop.
    fn stop_broken(&mut self) {
        let now = self.now;
        let Some(active) = &mut self.active else { return };
        let (run, longest) = (active.run_id(), active.run.longest_call());
        let Some(broken) = &mut active.broken else { return };
        broken.busy_until = Some(now + FREE_PATIENCE.max(longest * 2));
        let fault = broken.fault.clone();
        self.stop_run(run, longest, &fault);
    }

    /// Goes on with a job that is broken off, if that can be done now.
    pub(super) fn resume(&mut self) {
        let now = self.now;
        let Some(active) = &mut self.active else { return };
        let Some(broken) = active.broken.as_mut() else { return };
        if now < broken.unexplained_until {
            return;
        }
        let (told, stopped) = (std::mem::replace(&mut broken.told, true), broken.busy_until);
        if stopped.is_none() {
            self.stop_broken();
        }
        if !told {
            self.tell_broken();
        }
        let Some(active) = &self.active else { return };
        let Some(broken) = &active.broken else { return };
        if active.futile > FUTILE_MAX {
            let mut fault = broken.fault.clone();
            fault.cause = format!(
                "{}; the job broke off {} times in a row before a call was done",
                fault.cause, active.futile
            );
            return self.fail(fault);
        }
        if self.store_rests()
            || broken.busy_until.is_none_or(|until| now < until)
                && !self.registry.busy_with(active.run_id()).is_empty()
        {
            return;
        }
        match self.replan(active) {
            Ok(Some((placed, checkpoint))) => self.restart(placed, checkpoint),
            Ok(None) => {}
            Err(fault) => self.fail(fault),
        }
    }

    /// Nothing explains it any more: people are told, and links that broke are not used for a while.
    fn tell_broken(&mut self) {
        let Some(active) = &mut self.active else { return };
        let Some(broken) = &active.broken else { return };
        let (job, fault) = (active.job(), broken.fault.clone());
        let call = active.run.checkpoint().map_or(0, |checkpoint| checkpoint.calls);
        let known = active.cut.len();
        let mut texts = Vec::new();
        let lost = if fault.kind == FaultKind::PeerLost { cuts(&broken.lost) } else { Vec::new() };
        for (rank, peer) in lost {
            let plan = active.run.plan();
            if let (Some(one), Some(other)) = (plan.member(rank), plan.member(peer))
                && let Some(fabric) = plan.link_fabric(rank, peer)
            {
                let seconds = BROKEN_FOR.as_secs();
                texts.push(format!(
                    "{} and {} exchange nothing over {fabric} for the next {seconds} s",
                    one.name, other.name
                ));
                let mut workers = [one.worker, other.worker];
                workers.sort_unstable();
                self.registry.break_link(workers, fabric, self.now);
                active.cut.insert((workers, fabric));
            }
        }
        if active.cut.len() == known {
            active.futile += 1;
        }
        for text in texts {
            tracing::warn!(job = job.0, "{text}");
            self.tell(job, Event::Notice { text }, Bytes::new());
        }
        self.tell(job, Event::Interrupted { fault, call }, Bytes::new());
    }

    /// What does not carry, and what the running job found not to since it did its last call: it would break off there
    /// again.
    fn cut_for(&self, active: &Active) -> Vec<([WorkerId; 2], Fabric)> {
        let mut cut = active.cut.clone();
        cut.extend(self.registry.broken(self.now));
        cut.into_iter().collect()
    }

    /// A plan for what is left of a job, and from where it goes on. None: it has to wait.
    fn replan(&self, active: &Active) -> Result<Option<(Placed, Option<Checkpoint>)>, Fault> {
        let (old, request) = (active.run.plan(), &active.asked.request);
        let links = self.cut_for(active);
        // Those on which it failed must not keep others out that are cut off from them.
        let mut idle = self.registry.idle();
        idle.retain(|each| !active.failed_on.contains(&each.worker));
        let rested = self.rested(idle, 1);
        let holding = self.holding(rested, request);
        let mut candidates = fabrics::connected(holding, &request.fabrics, &links);
        if let Some(fault) = self.check_held(request).err().filter(|_| candidates.is_empty())
            && fault.kind != FaultKind::NoWorkers
        {
            return Err(fault);
        }
        // Whoever was at it comes first: it has the fewest bands to move.
        let was_there = |each: &Candidate| old.members.iter().any(|m| m.worker == each.worker);
        candidates.sort_by_key(|each| !was_there(each));
        if let Some(broken) = active.broken.as_ref().filter(|_| !active.failed_on.is_empty())
            && !self.others(active)
        {
            return Err(broken.fault.clone());
        }
        let Some(card) = self.registry.model().filter(|_| !candidates.is_empty()) else {
            return Ok(None);
        };
        let since = active.broken.as_ref().map_or(self.now, |broken| broken.since);
        // If all are gone it was this process, or its network: they come back one after the other.
        let nobody = !candidates.iter().any(was_there);
        if nobody && candidates.len() < active.first_ranks && self.now < since + GATHER_PATIENCE {
            return Ok(None);
        }
        if request.deterministic && self.now < since + REPLACEMENT_PATIENCE {
            let from = active.run.checkpoint().filter(|from| old.resumes_exactly(from.calls));
            let from = from.or(active.exact.as_ref()).cloned();
            let plan = planner::refill(old, old.run.next(), &candidates, &links);
            let reason = format!("{}; the same bands as before", active.reason);
            return Ok(plan.map(|plan| (Placed { plan, reason }, from)));
        }
        let count = u16::try_from(candidates.len()).unwrap_or(u16::MAX);
        let wish = Wish {
            workers: request.workers.map(|wanted| wanted.min(count)),
            // Who is left alone computes both predictions, whatever was asked for.
            cfg_split: if count < 2 { CfgSplit::Auto } else { request.cfg_split },
            broken: links,
            ..Wish::from(request)
        };
        let pairs = self.registry.pairs(&wish.fabrics);
        let cluster = planner::Cluster { candidates: &candidates, pairs: Some(&pairs) };
        // Settled anew: fewer workers may have to decode in another way.
        let spec = planner::settle(request, card, active.asked.seed)?;
        let placed = planner::place(old.run.next(), spec, card, cluster, wish)?;
        Ok(Some((placed, active.run.checkpoint().cloned())))
    }

    /// Starts what is left of a job.
    fn restart(&mut self, Placed { plan, reason }: Placed, from: Option<Checkpoint>) {
        let Some(mut active) = self.active.take() else { return };
        let old = active.run.plan();
        let exact = same_bands(old, &plan)
            && plan.resumes_exactly(from.as_ref().map_or(0, |from| from.calls));
        let still = exact && active.run.tally().recoveries.iter().all(|recovery| recovery.exact);
        if self.store_started(&plan, &active.asked.request, still).is_err() {
            self.active = Some(active); // it stays broken off until the store takes it
            return;
        }
        let Some(broken) = active.broken.take() else { return };
        let old = active.run.plan();
        let ranks = |plan: &Plan| u16::try_from(plan.world_size()).unwrap_or(u16::MAX);
        let resumed_at = from.as_ref().map_or(0, |from| from.calls);
        let recovery = RecoveryView {
            fault: broken.fault,
            broke_at: active.run.checkpoint().map_or(0, |checkpoint| checkpoint.calls),
            resumed_at,
            seconds: self.now.saturating_sub(broken.since).as_secs_f64(),
            workers: [ranks(old), ranks(&plan)],
            exact,
        };
        let (RunId { job, epoch }, ranks) = (plan.run, plan.world_size());
        tracing::info!(
            job = job.0,
            epoch = epoch.0,
            "goes on after call {resumed_at} on {ranks} workers, {:.2} s later: {reason}",
            recovery.seconds
        );
        if active.asked.request.deterministic && !recovery.exact {
            self.tell(active.job(), bits_changed(), Bytes::new());
        }
        let bands = super::view::bands(&plan);
        let spec = Some(Box::new(plan.spec.clone()));
        let event =
            Event::Resumed { recovery: recovery.clone(), bands, reason: reason.clone(), spec };
        self.tell(active.job(), event, Bytes::new());
        active.recorder.run(super::view::bands(&plan), super::view::links(&plan), self.now);
        self.command(&plan, from.as_ref());
        let mut tally = active.run.tally().clone();
        tally.recoveries.push(recovery);
        let latents = active.run.streams();
        let pulses = Pulses::new(plan.world_size());
        let run = RunState::resumed(plan, latents, active.run.started(), (from, tally));
        let run_began = self.now;
        self.active = Some(Active { run, reason, pulses, run_began, ..active });
    }

    /// Gives a busy worker's part to others, if there are any and the job need not keep its bits.
    pub(super) fn hand_over(&mut self, worker: WorkerId) {
        let Some(active) = &self.active else { return };
        let at = |member: &protocol::plan::Member| member.worker == worker;
        let Some(leaving) = active.run.plan().members.iter().find(|member| at(member)) else {
            return;
        };
        let others = active.run.plan().members.iter().filter(|member| !at(member));
        let others = others.filter(|member| !self.registry.is_draining(member.worker)).count();
        let spares = self.registry.idle().len();
        if others + spares > 0 && !active.asked.request.deterministic {
            let cause = format!("the worker {} leaves, and hands its band over", leaving.name);
            self.break_off(Fault::new(FaultKind::Replanned, cause));
        }
    }

    /// Shares a job that lost workers anew if there are others for it again, unless it is to keep its bits or is
    /// nearly done.
    pub(super) fn grow(&mut self) {
        let Some(active) = self.active.as_ref().filter(|active| active.broken.is_none()) else {
            return;
        };
        let ranks = active.run.plan().world_size();
        let left = active.run.checkpoint().map_or(0, |from| from.of - from.calls);
        let wants = ranks < active.first_ranks
            && !active.asked.request.deterministic
            && left >= GROW_CALLS_MIN
            && self.now >= active.run_began + GROW_PAUSE;
        if !wants {
            return;
        }
        let members = &active.run.plan().members;
        let takes_part = |each: &Candidate| members.iter().any(|m| m.worker == each.worker);
        let mut idle = self.registry.idle();
        idle.retain(|each| !self.ails(active, each.worker));
        let idle = self.holding(idle, &active.asked.request);
        let mut all = self.registry.candidates();
        all.retain(|each| takes_part(each) || idle.contains(each));
        let links = self.registry.broken(self.now);
        let all = fabrics::connected(all, &active.asked.request.fabrics, &links);
        let came = all.iter().find(|each| !takes_part(each)).filter(|_| all.len() > ranks);
        if let Some(came) = came {
            let cause = format!("{} can take part again: bands are shared anew", came.name);
            self.break_off(Fault::new(FaultKind::Replanned, cause));
        }
    }

    /// Tells of a worker that is slower than its band is tall, and moves the bands if the job asked for that.
    pub(super) fn report_slow(&mut self) {
        let Some(active) = &mut self.active else { return };
        let Some((rank, times)) = active.run.slow_rank() else { return };
        let Some(member) = active.run.plan().member(rank) else { return };
        let moves = active.asked.request.rebalance && !active.asked.request.deterministic;
        let text = format!(
            "the worker {} takes {times:.1} times as long for its band as the mean; {}",
            member.name,
            if moves {
                "bands move"
            } else {
                "bands move with the next job, or at once with --rebalance"
            }
        );
        let job = active.job();
        if moves {
            let rates = self.registry.model().map(|card| active.run.rates(&card.work));
            self.registry.observe_rates(&rates.unwrap_or_default());
            self.break_off(Fault::new(FaultKind::Replanned, text));
        } else {
            self.tell(job, Event::Notice { text }, Bytes::new());
        }
    }
}

/// The links that a rank lost, by what it says.
fn lost(fault: &Fault, unopened: &[Rank]) -> Vec<Lost> {
    match (fault.kind, fault.rank, fault.peer) {
        (FaultKind::PeerLost, Some(rank), Some(peer)) if unopened.is_empty() => {
            vec![Lost { rank, peer, tried: false }]
        }
        (FaultKind::PeerLost, Some(rank), _) => {
            unopened.iter().map(|peer| Lost { rank, peer: *peer, tried: true }).collect()
        }
        _ => Vec::new(),
    }
}

/// The pairs between which a link broke, of the links that ranks `lost`: a rank whose run ended for the loss of another hangs
/// up on the rest, who then say that they lost it. So who lost others is not to blame, unless it was tried or that is all
/// there is.
fn cuts(lost: &[Lost]) -> Vec<(Rank, Rank)> {
    let speaks = |rank: Rank| lost.iter().any(|each| each.rank == rank);
    let says = |rank, peer| lost.iter().any(|each| (each.rank, each.peer) == (rank, peer));
    let counts = |each: &&Lost| each.tried || !speaks(each.peer) || says(each.peer, each.rank);
    let mut cuts = Vec::new();
    for Lost { rank, peer, .. } in lost.iter().filter(counts) {
        if !cuts.contains(&(*peer, *rank)) && !cuts.contains(&(*rank, *peer)) {
            cuts.push((*rank, *peer));
        }
    }
    let first = || lost.iter().take(1).map(|each| (each.rank, each.peer)).collect();
    if cuts.is_empty() { first() } else { cuts }
}

/// What people are told of a job that was to keep its bits, and could not.
pub(super) fn bits_changed() -> Event {
    let text = format!(
        "no worker came in place of the lost one within {} s: the image goes on, but its bits are no longer those of \
         an undisturbed run",
        REPLACEMENT_PATIENCE.as_secs()
    );
    Event::Notice { text }
}

/// Whether ranks have the same bands in both plans.
pub(super) fn same_bands(one: &Plan, other: &Plan) -> bool {
    let bands = |plan: &Plan| -> Vec<_> {
        plan.members.iter().map(|each| (each.branch, each.band, each.decodes)).collect()
    };
    bands(one) == bands(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_lost_another_is_not_to_blame_for_hanging_up() {
        let pairs = |lost: &[(u16, u16)], tried| -> Vec<(u16, u16)> {
            let lost = lost.iter().map(|(one, other)| (Rank(*one), Rank(*other)));
            let lost: Vec<Lost> = lost.map(|(rank, peer)| Lost { rank, peer, tried }).collect();
            cuts(&lost).iter().map(|(one, other)| (one.0, other.0)).collect()
        };
        assert_eq!(pairs(&[(0, 2), (1, 0), (3, 2)], false), [(0, 2), (3, 2)]);
        assert_eq!(pairs(&[(1, 0), (0, 2), (2, 0)], false), [(0, 2)]);
        assert_eq!(pairs(&[(0, 1), (1, 2), (2, 0)], false), [(0, 1)]);
        // A rank that tells of its own calls has not waited for those of others.
        assert_eq!(pairs(&[(1, 0), (2, 1), (2, 0)], true), [(1, 0), (2, 1), (2, 0)]);
    }
}
