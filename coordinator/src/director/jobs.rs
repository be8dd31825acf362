//! Jobs from submission to their end.

use super::keeping::taken_up;
use super::recovery::{REPLACEMENT_PATIENCE, bits_changed};
use super::{Active, ClientId, Director, Effect, Follower, Standing};
use crate::cluster::pulse::Pulses;
use crate::job::checkpoint::Checkpoint;
use crate::job::queue::Waiting;
use crate::job::state::{RunState, Tally};
use crate::job::store::Asked;
use crate::job::trace::Recorder;
use crate::planner::{self, Candidate, Placed, Wish, fabrics};
use bytes::Bytes;
use protocol::job::{JobRequest, Terms};
use protocol::message::{Event, ToClient, ToCoordinator, ToWorker};
use protocol::plan::Plan;
use protocol::{Epoch, Fault, FaultKind, JobId, Rank};
use std::collections::BTreeSet;
use std::time::Duration;

impl Director {
    /// A client submits a job; `seed` is used if it names none.
    pub fn submit(
        &mut self,
        (client, standing): (ClientId, &Standing),
        (request, terms): (JobRequest, Terms),
        seed: u64,
        now: Duration,
    ) {
        self.now = now;
        let latents = request.stream_latents;
        let (owner, Terms { detached, priority, idempotency_key }) =
            (standing.owner.clone(), terms);
        let asked = Asked { request, seed, owner, priority, idempotency_key };
        match self.known(&asked) {
            Ok(Some(job)) => return self.follow_as((client, !detached), job, (latents, true)),
            Ok(None) => {}
            Err(fault) => return self.refuse(client, fault),
        }
        let leaver = (!detached).then_some(client);
        match self.accept(leaver, asked, standing.waiting_max) {
            Ok((job, ahead)) => {
                let follower = Follower { client, latents, image: true, told: None };
                self.followers.entry(job).or_default().push(follower);
                let ahead = ahead + usize::from(self.active.is_some());
                let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
                let kept = self.store.is_kept();
                self.answer(client, ToClient::Accepted { job, ahead, kept, again: false });
            }
            Err(fault) => self.refuse(client, fault),
        }
        self.go_on();
    }

    fn refuse(&mut self, client: ClientId, fault: Fault) {
        self.tallies.refused += 1;
        self.answer(client, ToClient::Refused(fault));
    }

    /// The job that this owner submitted under this idempotency key before.
    fn known(&mut self, asked: &Asked) -> Result<Option<JobId>, Fault> {
        let Some(key) = &asked.idempotency_key else { return Ok(None) };
        let known = self.store.known(&asked.owner, key);
        match self.stored(known)? {
            None => Ok(None),
            Some((job, before)) if before.request == asked.request => Ok(Some(job)),
            Some((job, _)) => {
                let cause = format!(
                    "the idempotency key `{key}` is that of {job}, which asks for something else: give another key"
                );
                Err(Fault::new(FaultKind::Conflict, cause))
            }
        }
    }

    fn accept(
        &mut self,
        client: Option<ClientId>,
        asked: Asked,
        waiting_max: usize,
    ) -> Result<(JobId, usize), Fault> {
        if self.shutting_down {
            return Err(Fault::new(FaultKind::ShuttingDown, "the coordinator is going away"));
        }
        if let Some(card) = self.registry.model() {
            planner::settle(&asked.request, card, asked.seed)?;
        }
        self.queue.check_room(&asked.owner, waiting_max)?;
        self.check_files(&asked.request)?;
        let job = self.store_accepted(&asked)?;
        self.tallies.accepted += 1;
        let (owner, priority) = (&asked.owner, asked.priority.name());
        tracing::info!(job = job.0, owner, priority, "accepted");
        let accepted = self.unix();
        Ok((job, self.queue.push(Waiting::new(job, client, asked, accepted))))
    }

    /// The client that submitted a job comes back: from now on it is its leaving that cancels it.
    pub fn follow(&mut self, client: ClientId, job: JobId, now: Duration) {
        self.now = now;
        self.follow_as((client, true), job, (false, true));
    }

    /// A client wants to hear of a job from now on, whoever submitted it.
    pub fn watch(&mut self, client: ClientId, job: JobId, payloads: bool, now: Duration) {
        self.now = now;
        self.follow_as((client, false), job, (payloads, payloads));
    }

    /// Tells a client of a job from now on, with latents, the image or neither; it may be from now on the one
    /// whose leaving cancels it.
    fn follow_as(
        &mut self,
        (client, adopts): (ClientId, bool),
        job: JobId,
        (latents, image): (bool, bool),
    ) {
        let running = self.active.as_ref().filter(|active| active.job() == job);
        let started = running.map(|active| self.started(active.run.plan(), active.reason.clone()));
        let place = self.queue.iter().position(|waiting| waiting.job == job);
        let ahead = match (&started, place) {
            (Some(_), _) => 0,
            (None, None) if self.ends(job) => 0,
            (None, Some(ahead)) => ahead + usize::from(self.active.is_some()),
            (None, None) => {
                return match self.ended(job) {
                    Ok(Some(outcome)) => self.tell_ended(client, job, outcome, image),
                    Ok(None) => self.answer(client, ToClient::Refused(unknown(job))),
                    Err(fault) => self.answer(client, ToClient::Refused(fault)),
                };
            }
        };
        if adopts {
            self.queue.adopt(job, client);
        }
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let kept = self.store.is_kept();
        self.answer(client, ToClient::Accepted { job, ahead, kept, again: true });
        let mut follower = Follower { client, latents, image, told: None };
        if let Some(active) = self.active.as_mut().filter(|active| active.job() == job) {
            follower.latents |= adopts && active.asked.request.stream_latents;
            if adopts {
                active.asked.client = Some(client);
            }
            active.run.stream(follower.latents);
            let step = active.step.clone().filter(|_| !adopts);
            let latent = active.run.checkpoint().map(Checkpoint::latent).unwrap_or_default();
            for event in started.into_iter().chain(step) {
                let payload = follower.part(&event, &latent);
                self.send(client, ToClient::Event { job, event }, payload);
            }
        }
        let followers = self.followers.entry(job).or_default();
        followers.retain(|other| other.client != client);
        followers.push(follower);
        self.tell_waiting();
    }

    /// A client's session ended: its jobs are cancelled.
    pub fn client_left(&mut self, client: ClientId, now: Duration) {
        self.now = now;
        self.shelf.leave(client);
        if self.shutting_down && self.store.is_kept() {
            return; // it is this process that goes
        }
        let fault = Fault::new(FaultKind::Cancelled, "the client that submitted it went away");
        for job in self.queue.forget(client) {
            self.end(job, vec![Event::Failed { fault: fault.clone() }], Bytes::new());
        }
        self.drains.retain(|(_, each)| *each != client);
        self.stop_measuring_for(client);
        if self.active.as_ref().is_some_and(|active| active.asked.client == Some(client)) {
            self.fail(fault);
        }
        self.followers.retain(|_, followers| {
            followers.retain(|follower| follower.client != client);
            !followers.is_empty()
        });
    }

    /// Does what can be done now: goes on with a job that broke off, or starts the next one.
    pub(super) fn go_on(&mut self) {
        self.provide();
        self.resume();
        while self.active.is_none() && self.checking.is_none() && !self.shutting_down {
            let Some(next) = self.queue.next() else { return };
            let job = next.job;
            self.provide();
            match self.plan_next() {
                Err(fault) if fault.kind == FaultKind::NoWorkers => break,
                Err(fault) => {
                    self.queue.pop();
                    self.end(job, vec![Event::Failed { fault }], Bytes::new());
                }
                Ok(placed) => self.start(placed),
            }
        }
        self.tell_waiting();
    }

    /// The workers that can be given something: idle, rested and not cut off from each other.
    pub(super) fn candidates(&self, request: &JobRequest) -> Vec<Candidate> {
        let rested = self.rested(self.registry.idle(), Wish::from(request).fewest());
        let holding = self.holding(rested, request);
        fabrics::connected(holding, &request.fabrics, &self.registry.broken(self.now))
    }

    /// A plan for the next job.
    ///
    /// `NoWorkers` if it has to wait: also for workers that are still stopping an earlier run,
    /// unless the job says how many it wants and they are there.
    fn plan_next(&self) -> Result<Placed, Fault> {
        let waits = |cause: &str| Fault::new(FaultKind::NoWorkers, cause);
        let next = self.queue.next().ok_or_else(|| waits("no job"))?;
        let card = self.registry.model().ok_or_else(|| waits("no worker has joined"))?;
        if next.epoch > Epoch(0) && self.now < self.gathering_until {
            return Err(waits("workers are coming back"));
        }
        if self.store_rests() {
            return Err(waits("the store is full"));
        }
        if next.request.workers.is_none() && self.registry.idle().len() < self.registry.staying() {
            return Err(waits("workers are still stopping an earlier job"));
        }
        self.check_held(&next.request)?;
        let candidates = self.candidates(&next.request);
        // One that is to keep its bits has the bands that it had under the coordinator before this one, if its workers
        // come back, or others in their place.
        if let Some(old) = next.plan.as_ref().filter(|_| next.model.as_ref() == Some(&card.digest))
            && self.now < REPLACEMENT_PATIENCE
        {
            let broken = self.registry.broken(self.now);
            let plan = planner::refill(old, next.run(), &candidates, &broken);
            let plan = plan.ok_or_else(|| waits("too few workers for the bands that it had"))?;
            let reason = "the same bands as before the coordinator ended".to_owned();
            return Ok(Placed { plan, reason });
        }
        let spec = planner::settle(&next.request, card, next.seed)?;
        let wish = Wish { broken: self.registry.broken(self.now), ..Wish::from(&next.request) };
        let pairs = self.registry.pairs(&wish.fabrics);
        let cluster = planner::Cluster { candidates: &candidates, pairs: Some(&pairs) };
        planner::place(next.run(), spec, card, cluster, wish)
    }

    fn start(&mut self, Placed { plan, reason }: Placed) {
        let Some(next) = self.queue.next() else { return };
        let request = next.request.clone();
        // A checkpoint is of the model that made it.
        let same = next.model.as_ref() == self.registry.model().map(|card| &card.digest);
        let checkpoint = next.checkpoint.clone();
        let checkpoint = checkpoint.filter(|from| same && from.fits(plan.geometry));
        let recovery = (next.epoch > Epoch(0))
            .then(|| taken_up(&plan, checkpoint.as_ref(), next.plan.as_ref()));
        let exact = recovery.as_ref().is_none_or(|recovery| recovery.exact);
        if self.store_started(&plan, &request, exact).is_err() {
            return; // it stays in the queue until the store takes it
        }
        let Some(mut asked) = self.queue.pop() else { return };
        (asked.checkpoint, asked.plan) = (None, None);
        let job = asked.job;
        let left_out = self.candidates(&request).len().saturating_sub(plan.world_size());
        let (epoch, ranks) = (plan.run.epoch.0, plan.world_size());
        tracing::info!(job = job.0, epoch, "starts on {ranks} workers: {reason}");
        let started = self.started(&plan, reason.clone());
        self.tell(job, started, Bytes::new());
        if left_out > 0 && asked.request.workers.is_none() {
            let text = format!(
                "{left_out} of the workers have no part in this image: its height has bands for \
                 {} only",
                plan.world_size()
            );
            self.tell(job, Event::Notice { text }, Bytes::new());
        }
        let mut tally = Tally::default();
        if let Some(recovery) = recovery {
            if request.deterministic && !recovery.exact {
                self.tell(job, bits_changed(), Bytes::new());
            }
            let (bands, reason) = (super::view::bands(&plan), reason.clone());
            let spec = Some(Box::new(plan.spec.clone()));
            let event = Event::Resumed { recovery: recovery.clone(), bands, reason, spec };
            self.tell(job, event, Bytes::new());
            tally.recoveries.push(recovery);
        }
        self.command(&plan, checkpoint.as_ref());
        let mut followers = self.followers.get(&job).into_iter().flatten();
        let latents = followers.any(|follower| follower.latents);
        let exact = checkpoint.clone().filter(|from| plan.resumes_exactly(from.calls));
        let exact = exact.filter(|_| request.deterministic);
        let carried = (checkpoint, tally);
        let pulses = Pulses::new(plan.world_size());
        let mut recorder = Recorder::new(self.unix_us(), self.now);
        recorder.run(super::view::bands(&plan), super::view::links(&plan), self.now);
        let run = RunState::resumed(plan, latents, self.now, carried);
        let started = asked.started.unwrap_or_else(|| self.unix());
        self.active = Some(Active {
            started,
            step: None,
            recorder,
            first_ranks: run.plan().world_size(),
            run_began: self.now,
            asked,
            run,
            reason,
            pulses,
            exact,
            broken: None,
            futile: 0,
            cut: BTreeSet::new(),
            failed_on: Vec::new(),
        });
    }

    pub(super) fn started(&self, plan: &Plan, reason: String) -> Event {
        let card = self.registry.model();
        let model = card.map_or_else(String::new, |card| card.name.clone());
        let preview = card.and_then(|card| card.preview.clone());
        let (spec, geometry) = (Box::new(plan.spec.clone()), plan.geometry);
        Event::Started { spec, model, geometry, bands: super::view::bands(plan), reason, preview }
    }

    /// Gives every rank its part.
    pub(super) fn command(&mut self, plan: &Plan, checkpoint: Option<&Checkpoint>) {
        for (rank, member) in plan.ranks().zip(&plan.members) {
            self.registry.assign(member.worker, plan.run, rank);
            let resume = checkpoint.map(Checkpoint::resume);
            let order = ToWorker::Start { plan: Box::new(plan.clone()), rank, resume };
            let payload = checkpoint.map(|from| from.band(plan.geometry, member.band));
            self.effects.push(Effect::Order {
                worker: member.worker,
                order: Box::new(order),
                payload: payload.unwrap_or_default(),
            });
        }
    }

    /// Tells every waiting job where it stands, if that changed.
    fn tell_waiting(&mut self) {
        let running = u32::from(self.active.is_some());
        let workers = u32::try_from(self.registry.len()).unwrap_or(u32::MAX);
        for (waiting, ahead) in self.queue.iter().zip(running..) {
            let wanted = Wish::from(&waiting.request).fewest().into();
            let event = Event::Queued { ahead, workers, wanted };
            for follower in self.followers.get_mut(&waiting.job).into_iter().flatten() {
                if follower.told.as_ref() != Some(&event) {
                    follower.told = Some(event.clone());
                    let message =
                        Box::new(ToClient::Event { job: waiting.job, event: event.clone() });
                    let (client, payload) = (follower.client, Bytes::new());
                    self.effects.push(Effect::Tell { client, message, payload });
                }
            }
        }
    }

    /// What a rank of the running job said of it.
    pub(super) fn rank_reported(&mut self, rank: Rank, message: ToCoordinator, payload: Bytes) {
        let now = self.now;
        let Some(active) = &mut self.active else { return };
        let job = active.job();
        let worker = active.run.plan().member(rank).map(|member| member.worker);
        active.recorder.heard(rank, &message, now);
        if let ToCoordinator::Stepped { traffic, .. } = &message {
            self.tallies.exchanged(traffic);
        }
        match message {
            ToCoordinator::Failed { fault, unopened, .. } => match (fault.kind, worker) {
                (FaultKind::WorkerLost, _) => self.break_off(fault),
                (FaultKind::PeerLost, _) => self.break_off_unopened(fault, &unopened),
                (FaultKind::Compute, Some(worker)) => self.ail(worker, fault),
                _ => self.fail(fault),
            },
            ToCoordinator::Aborted { .. } => self.go_on(),
            message => match active.run.handle(rank, message, payload, now) {
                Ok(due) => {
                    if active.run.is_done(rank) {
                        active.pulses.done(rank);
                    }
                    match due {
                        None => {}
                        Some((event @ Event::Finished { .. }, image)) => self.finish(event, image),
                        Some((event, payload)) => {
                            let step = matches!(event, Event::Step { .. });
                            if let Event::Step { call, calls, seconds, waited, displaced, .. } =
                                &event
                            {
                                let (job, call) = (job.0, call - 1);
                                tracing::debug!(
                                    job, call, calls, seconds, waited, displaced, "done"
                                );
                                active.step = Some(event.clone());
                                self.tallies.step(&event);
                            }
                            self.tell(job, event, payload);
                            if step {
                                self.stepped();
                            }
                        }
                    }
                }
                Err(fault) => self.fail(fault),
            },
        }
    }

    /// All ranks did a call.
    fn stepped(&mut self) {
        let Some(active) = &mut self.active else { return };
        (active.futile, active.cut) = (0, BTreeSet::new());
        if let Some(checkpoint) = active.run.checkpoint()
            && active.asked.request.deterministic
            && active.run.plan().resumes_exactly(checkpoint.calls)
        {
            active.exact = Some(checkpoint.clone());
        }
        self.store_checkpoint();
        self.report_slow();
        self.grow();
    }

    fn finish(&mut self, event: Event, image: Bytes) {
        let Some(active) = self.active.take() else { return };
        tracing::info!(job = active.job().0, "finished");
        let started = self.started(active.run.plan(), active.reason.clone());
        let traced = Event::Traced { trace: active.recorder.trace().clone() };
        self.end(active.job(), vec![started, traced, event], image);
        self.observe_rates(&active.run);
        self.go_on();
    }

    /// Takes in how fast the ranks of a run computed.
    pub(super) fn observe_rates(&mut self, run: &RunState) {
        let rates = self.registry.model().map(|card| run.rates(&card.work));
        self.registry.observe_rates(&rates.unwrap_or_default());
    }

    /// Ends the running job without an image.
    pub(super) fn fail(&mut self, fault: Fault) {
        let Some(active) = self.active.take() else { return };
        let (rank, call) = places(&fault);
        tracing::warn!(job = active.job().0, rank, call, "failed: {}", fault.cause);
        if fault.kind == FaultKind::Compute {
            // Wherever it was tried: it was the job, then, and not they.
            self.resting.retain(|worker, _| !active.failed_on.contains(worker));
        }
        self.stop_run(active.run_id(), active.run.longest_call(), &fault);
        let started = self.started(active.run.plan(), active.reason.clone());
        let traced = Event::Traced { trace: active.recorder.trace().clone() };
        self.end(active.job(), vec![started, traced, Event::Failed { fault }], Bytes::new());
        self.go_on();
    }

    pub(super) fn end_all_jobs(&mut self) {
        let fault = Fault::new(FaultKind::ShuttingDown, "the coordinator is shutting down");
        if self.store.is_kept() {
            if let Some(active) = self.active.take() {
                self.stop_run(active.run_id(), active.run.longest_call(), &fault);
            }
            return;
        }
        let waiting: Vec<JobId> = self.queue.drain().map(|waiting| waiting.job).collect();
        for job in waiting {
            self.end(job, vec![Event::Failed { fault: fault.clone() }], Bytes::new());
        }
        self.fail(fault);
    }
}

/// Where a fault was, as logs have it.
pub(super) fn places(fault: &Fault) -> (Option<u16>, Option<u32>) {
    (fault.rank.map(|rank| rank.0), fault.call.map(|call| call.0))
}

pub(super) fn unknown(job: JobId) -> Fault {
    let cause = format!("{job} is not known here: it ended long ago, or was never accepted");
    Fault::new(FaultKind::UnknownJob, cause)
}
