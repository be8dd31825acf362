//! The root actor: it owns queue, registry and the running job, and carries what they decide.

mod measuring;
mod view;

pub(super) use measuring::MeasureLinks;
pub(super) use view::ReadCluster;

use measuring::Checking;
use view::bands;

use crate::cluster::failure::Leases;
use crate::cluster::registry::Registry;
use crate::job::queue::Queue;
use crate::job::state::RunState;
use crate::planner::{self, Placed, Wish};
use actix::prelude::{Actor, AsyncContext, Context, Handler, Message};
use bytes::Bytes;
use protocol::identity::Fingerprint;
use protocol::job::JobRequest;
use protocol::message::{Event, Join, ToClient, ToCoordinator, ToWorker};
use protocol::{Epoch, Fault, FaultKind, JobId, Rank, RunId, WorkerId};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// How often leases and deadlines are looked at: well below the shortest of them.
const TICK: Duration = Duration::from_millis(100);
/// How long a broken link waits for the lost worker that explains it: its session ends at about
/// the same moment, and "worker X was lost" says more than "rank 0 lost its link to rank 1".
const EXPLANATION_PATIENCE: Duration = Duration::from_millis(500);
/// Words of a prompt are cut to this many characters in `status`.
const PROMPT_SHOWN: usize = 60;

/// Where a client hears of its jobs.
type Client = UnboundedSender<(ToClient, Bytes)>;

/// A worker asks to be let in.
#[derive(Debug, Message)]
#[rtype(result = "Result<WorkerId, Fault>")]
pub(super) struct AdmitWorker {
    pub(super) join: Join,
    pub(super) peer: IpAddr,
    pub(super) identity: Option<Fingerprint>,
    pub(super) out: UnboundedSender<ToWorker>,
}

/// A worker said something.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct WorkerSaid {
    pub(super) worker: WorkerId,
    pub(super) message: ToCoordinator,
    pub(super) payload: Bytes,
}

/// A worker's session ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct WorkerLeft {
    pub(super) worker: WorkerId,
    pub(super) cause: String,
}

/// A client submits a job.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Submit {
    pub(super) client: u64,
    pub(super) request: JobRequest,
    pub(super) out: Client,
}

/// A client's session ended: its jobs are cancelled.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct ClientLeft {
    pub(super) client: u64,
}

/// Ends every job; no more start.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct ShutDown;

/// The root actor.
#[derive(Debug)]
pub struct Supervisor {
    started: Instant,
    registry: Registry,
    leases: Leases,
    orders: BTreeMap<WorkerId, UnboundedSender<ToWorker>>,
    queue: Queue,
    clients: BTreeMap<JobId, Listener>,
    active: Option<Active>,
    checking: Option<Checking>,
    shutting_down: bool,
}

/// Who hears of a job.
#[derive(Debug)]
struct Listener {
    client: Client,
    /// Where the job stood in the queue when the client was last told.
    told: Option<Event>,
}

/// The job being rendered.
#[derive(Debug)]
struct Active {
    job: JobId,
    client: u64,
    run: RunState,
    /// Why the work is shared as it is.
    reason: String,
    /// A fault that another may explain better, and when it stands by itself.
    suspected: Option<(Fault, Duration)>,
}

impl Supervisor {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            registry: Registry::default(),
            leases: Leases::default(),
            orders: BTreeMap::new(),
            queue: Queue::default(),
            clients: BTreeMap::new(),
            active: None,
            checking: None,
            shutting_down: false,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn order(&self, worker: WorkerId, order: ToWorker) {
        if let Some(orders) = self.orders.get(&worker) {
            // A session that just ended is noticed by its own task, which says `WorkerLeft`.
            orders.send(order).ok();
        }
    }

    fn tell(&self, job: JobId, event: Event, payload: Bytes) {
        if let Some(listener) = self.clients.get(&job) {
            // A client that left is noticed by its session, which says `ClientLeft`.
            listener.client.send((ToClient::Event { job, event }, payload)).ok();
        }
    }

    /// Starts the next job if its workers are there.
    fn start_next(&mut self) {
        while self.active.is_none() && self.checking.is_none() && !self.shutting_down {
            let Some(next) = self.queue.next() else { return };
            let job = next.job;
            match self.plan_next() {
                Err(fault) if fault.kind == FaultKind::NoWorkers => {
                    return self.tell_waiting();
                }
                Err(fault) => {
                    self.queue.pop();
                    self.tell(job, Event::Failed { fault }, Bytes::new());
                    self.clients.remove(&job);
                }
                Ok(placed) => self.start(placed),
            }
        }
        self.tell_waiting();
    }

    /// A plan for the next job.
    ///
    /// `NoWorkers` if it has to wait: also for workers that are still stopping an earlier run,
    /// unless the job says how many it wants and they are there.
    fn plan_next(&self) -> Result<Placed, Fault> {
        let waits = |cause: &str| Fault::new(FaultKind::NoWorkers, cause);
        let next = self.queue.next().ok_or_else(|| waits("no job"))?;
        let card = self.registry.model().ok_or_else(|| waits("no worker has joined"))?;
        let idle = self.registry.idle();
        if next.request.workers.is_none() && idle.len() < self.registry.len() {
            return Err(waits("workers are still stopping an earlier job"));
        }
        let seed = RandomState::new().build_hasher().finish() & u64::from(u32::MAX);
        let spec = planner::settle(&next.request, card, seed)?;
        let run = RunId { job: next.job, epoch: Epoch(0) };
        let wish = Wish::from(&next.request);
        let pairs = self.registry.pairs(&wish.fabrics);
        let cluster = planner::Cluster { candidates: &idle, pairs: Some(&pairs) };
        planner::place(run, spec, card, cluster, wish)
    }

    fn start(&mut self, Placed { plan, reason }: Placed) {
        let Some(waiting) = self.queue.pop() else { return };
        let job = waiting.job;
        let left_out = self.registry.idle().len() - plan.world_size();
        let model = self.registry.model().map_or_else(String::new, |card| card.name.clone());
        tracing::info!("{job} starts on {} workers: {reason}", plan.world_size());
        let spec = Box::new(plan.spec.clone());
        let (geometry, bands) = (plan.geometry, bands(&plan));
        let started = Event::Started { spec, model, geometry, bands, reason: reason.clone() };
        self.tell(job, started, Bytes::new());
        if left_out > 0 && waiting.request.workers.is_none() {
            let text = format!(
                "{left_out} of the workers have no part in this image: its height has bands for \
                 {} only",
                plan.world_size()
            );
            self.tell(job, Event::Notice { text }, Bytes::new());
        }
        for (rank, member) in plan.ranks().zip(&plan.members) {
            self.registry.assign(member.worker, plan.run, rank);
            self.order(member.worker, ToWorker::Start { plan: Box::new(plan.clone()), rank });
        }
        let run = RunState::new(plan, waiting.request.stream_latents, self.now());
        self.active = Some(Active { job, client: waiting.client, run, reason, suspected: None });
    }

    /// Tells every waiting job where it stands, if that changed.
    fn tell_waiting(&mut self) {
        let running = u32::from(self.active.is_some());
        let workers = u32::try_from(self.registry.len()).unwrap_or(u32::MAX);
        for (waiting, ahead) in self.queue.iter().zip(running..) {
            let wanted = waiting.request.workers.unwrap_or(1).into();
            let event = Event::Queued { ahead, workers, wanted };
            let Some(listener) = self.clients.get_mut(&waiting.job) else { continue };
            if listener.told.as_ref() != Some(&event) {
                listener.told = Some(event.clone());
                let message = ToClient::Event { job: waiting.job, event };
                listener.client.send((message, Bytes::new())).ok();
            }
        }
    }

    /// Ends the running job without an image.
    fn fail(&mut self, fault: Fault) {
        let Some(active) = self.active.take() else { return };
        tracing::warn!("{} failed: {fault}", active.job);
        let run = active.run.plan().run;
        for worker in self.registry.busy_with(run) {
            self.order(worker, ToWorker::Abort { run, fault: fault.clone() });
        }
        self.tell(active.job, Event::Failed { fault }, Bytes::new());
        self.clients.remove(&active.job);
        self.start_next();
    }

    /// A rank's run failed. A broken link is held back for the lost worker that may explain it.
    fn rank_failed(&mut self, fault: Fault) {
        let deadline = self.now() + EXPLANATION_PATIENCE;
        match &mut self.active {
            Some(active) if fault.kind == FaultKind::PeerLost => {
                active.suspected.get_or_insert((fault, deadline));
            }
            Some(_) => self.fail(fault),
            None => {}
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
        }
        if self.checking.is_some() {
            return self.rank_measured((run, rank), message);
        }
        let now = self.now();
        let active = self.active.as_mut().filter(|active| active.run.plan().run == run);
        let Some(active) = active else { return self.start_next() };
        match message {
            ToCoordinator::Failed { fault, .. } => self.rank_failed(fault),
            message => {
                let job = active.job;
                match active.run.handle(rank, message, payload, now) {
                    Ok(None) => {}
                    Ok(Some((event, payload))) => self.pass_on(job, event, payload),
                    Err(fault) => self.fail(fault),
                }
            }
        }
    }

    fn pass_on(&mut self, job: JobId, event: Event, payload: Bytes) {
        let finished = matches!(event, Event::Finished { .. });
        self.tell(job, event, payload);
        if finished {
            tracing::info!("{job} is finished");
            if let Some(active) = self.active.take() {
                self.registry.observe_speeds(&active.run.speeds());
            }
            self.clients.remove(&job);
            self.start_next();
        }
    }

    fn lose(&mut self, worker: WorkerId, cause: &str) {
        let busy = self.registry.busy(worker);
        self.leases.remove(worker);
        self.orders.remove(&worker);
        let Some((name, address)) = self.registry.remove(worker) else { return };
        tracing::info!("{worker} ({name} at {address}) left{}", because(cause));
        if self.checking.is_some() {
            return self.lost_while_measuring(worker, busy.map(|(run, _)| run));
        }
        let hit = self.active.as_ref().is_some_and(|active| {
            busy.is_some_and(|(run, rank)| {
                run == active.run.plan().run && !active.run.is_done(rank)
            })
        });
        if hit {
            let rank = busy.map_or(Rank(0), |(_, rank)| rank);
            let cause = format!("the worker {name} at {address} was lost{}", because(cause));
            self.fail(Fault::new(FaultKind::WorkerLost, cause).on(rank));
        } else {
            self.start_next();
        }
    }

    fn tick(&mut self) {
        self.end_overdue_measurement();
        for worker in self.leases.expired(self.now()) {
            self.lose(worker, "it was silent for longer than its lease");
        }
        let now = self.now();
        let due = self
            .active
            .as_mut()
            .and_then(|active| active.suspected.take_if(|(_, deadline)| *deadline <= now));
        if let Some((fault, _)) = due {
            self.fail(fault);
        }
    }
}

fn because(cause: &str) -> String {
    if cause.is_empty() { String::new() } else { format!(": {cause}") }
}

fn run_of(message: &ToCoordinator) -> Option<RunId> {
    match message {
        ToCoordinator::Alive { .. } => None,
        ToCoordinator::Notice { run, .. }
        | ToCoordinator::Entered { run, .. }
        | ToCoordinator::Stepped { run, .. }
        | ToCoordinator::Probed { run, .. }
        | ToCoordinator::Profiled { run, .. }
        | ToCoordinator::Decoded { run, .. }
        | ToCoordinator::Measured { run, .. }
        | ToCoordinator::Failed { run, .. }
        | ToCoordinator::Aborted { run } => Some(*run),
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(TICK, |supervisor, _| supervisor.tick());
    }
}

impl Handler<AdmitWorker> for Supervisor {
    type Result = Result<WorkerId, Fault>;

    fn handle(&mut self, ask: AdmitWorker, _: &mut Self::Context) -> Self::Result {
        if self.shutting_down {
            return Err(Fault::new(FaultKind::ShuttingDown, "the coordinator is going away"));
        }
        let name = ask.join.name.clone();
        let worker = self.registry.admit(ask.join, ask.peer, ask.identity)?;
        tracing::info!("{worker} ({name}) joined");
        self.leases.renew(worker, self.now());
        self.orders.insert(worker, ask.out);
        self.start_next();
        Ok(worker)
    }
}

impl Handler<WorkerSaid> for Supervisor {
    type Result = ();

    fn handle(&mut self, said: WorkerSaid, _: &mut Self::Context) {
        self.leases.renew(said.worker, self.now());
        match said.message {
            ToCoordinator::Alive { resident_bytes } => {
                self.registry.resident(said.worker, resident_bytes);
            }
            message => self.rank_said(said.worker, message, said.payload),
        }
    }
}

impl Handler<WorkerLeft> for Supervisor {
    type Result = ();

    fn handle(&mut self, left: WorkerLeft, _: &mut Self::Context) {
        self.lose(left.worker, &left.cause);
    }
}

impl Handler<Submit> for Supervisor {
    type Result = ();

    fn handle(&mut self, submit: Submit, _: &mut Self::Context) {
        let Submit { client, request, out } = submit;
        let admitted = match self.registry.model() {
            _ if self.shutting_down => {
                Err(Fault::new(FaultKind::ShuttingDown, "the coordinator is going away"))
            }
            Some(card) => planner::settle(&request, card, 0).map(drop),
            None => Ok(()),
        };
        let queued = admitted.and_then(|()| self.queue.push(client, request));
        let answer = match &queued {
            Ok((job, ahead)) => {
                self.clients.insert(*job, Listener { client: out.clone(), told: None });
                let ahead = ahead + usize::from(self.active.is_some());
                ToClient::Accepted { job: *job, ahead: u32::try_from(ahead).unwrap_or(u32::MAX) }
            }
            Err(fault) => ToClient::Refused(fault.clone()),
        };
        // A client that left is noticed by its session, which says `ClientLeft`.
        out.send((answer, Bytes::new())).ok();
        self.start_next();
    }
}

impl Handler<ClientLeft> for Supervisor {
    type Result = ();

    fn handle(&mut self, left: ClientLeft, _: &mut Self::Context) {
        self.queue.forget(left.client);
        self.stop_measuring_for(left.client);
        let waiting: Vec<JobId> = self.queue.iter().map(|waiting| waiting.job).collect();
        let active = self.active.as_ref().map(|active| active.job);
        self.clients.retain(|job, _| waiting.contains(job) || active == Some(*job));
        if self.active.as_ref().is_some_and(|active| active.client == left.client) {
            self.fail(Fault::new(FaultKind::Cancelled, "the client that submitted it went away"));
        }
    }
}

impl Handler<ShutDown> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: ShutDown, _: &mut Self::Context) {
        self.shutting_down = true;
        let fault = Fault::new(FaultKind::ShuttingDown, "the coordinator is shutting down");
        let waiting: Vec<JobId> = self.queue.drain().map(|waiting| waiting.job).collect();
        for job in waiting {
            self.tell(job, Event::Failed { fault: fault.clone() }, Bytes::new());
        }
        self.fail(fault);
    }
}
