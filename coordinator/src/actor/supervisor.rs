//! The root actor: the [`Director`] with a clock, and the sessions that its effects go to.

use super::files::{Parcels, provide};
use crate::cluster::failure::TICK;
use crate::director::{ClientId, Director, Effect, Standing, Tallies};
use crate::files::Files;
use actix::prelude::{Actor, Addr, AsyncContext, Context, Handler, Message, MessageResult};
use bytes::Bytes;
use protocol::identity::Fingerprint;
use protocol::message::{ClusterView, FromClient, Join, ToClient, ToCoordinator, ToWorker};
use protocol::{Fault, WorkerId};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// What a worker's session sends.
pub(super) type Orders = UnboundedSender<(ToWorker, Bytes)>;
/// Payloads of so many bytes may wait for a client that reads slowly: more than the largest image with its
/// latent. Whoever reads still slower is hung up on; if it submitted a job, that ends.
pub(super) const UNREAD_BYTES_MAX: usize = 512 << 20;

/// What a client's session sends, and how many bytes of it wait.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) out: UnboundedSender<(ToClient, Bytes)>,
    pub(super) unread: Arc<AtomicUsize>,
}

impl Answers {
    /// Whether there was room.
    fn send(&self, message: ToClient, payload: Bytes) -> bool {
        let bytes = payload.len();
        let unread = self.unread.fetch_add(bytes, Ordering::Relaxed) + bytes;
        unread <= UNREAD_BYTES_MAX && self.out.send((message, payload)).is_ok()
    }
}

/// A worker asks to be let in.
#[derive(Debug, Message)]
#[rtype(result = "Result<WorkerId, Fault>")]
pub(super) struct AdmitWorker {
    pub(super) join: Join,
    pub(super) peer: IpAddr,
    pub(super) identity: Option<Fingerprint>,
    pub(super) out: Orders,
    pub(super) parcels: Parcels,
}

/// A worker said something.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct WorkerSaid {
    pub(super) worker: WorkerId,
    pub(super) message: ToCoordinator,
    pub(super) payload: Bytes,
}

/// Something came from a worker, if not a whole message.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct WorkerHeard {
    pub(super) worker: WorkerId,
}

/// A worker's session ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct WorkerLeft {
    pub(super) worker: WorkerId,
    pub(super) cause: String,
}

/// A client's session began.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct ClientCame {
    pub(super) client: ClientId,
    pub(super) answers: Answers,
    pub(super) standing: Standing,
}

/// A client said something.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct ClientSaid {
    pub(super) client: ClientId,
    pub(super) message: FromClient,
}

/// A client's session ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct ClientLeft {
    pub(super) client: ClientId,
}

/// Someone wants to know how the cluster is, and what happened so far.
#[derive(Debug, Message)]
#[rtype(result = "(ClusterView, Tallies)")]
pub(super) struct Gauge;

/// Ends every job; no more start.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct ShutDown;

/// The root actor.
#[derive(Debug)]
pub struct Supervisor {
    started: Instant,
    pub(super) director: Director,
    pub(super) files: Files,
    /// How many workers were let in so far.
    admitted: Arc<AtomicUsize>,
    workers: BTreeMap<WorkerId, (Orders, Parcels)>,
    clients: BTreeMap<ClientId, (Answers, Standing)>,
}

impl Supervisor {
    pub(super) fn new(director: Director, files: Files, admitted: Arc<AtomicUsize>) -> Self {
        let (workers, clients) = (BTreeMap::new(), BTreeMap::new());
        Self { started: Instant::now(), director, files, admitted, workers, clients }
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Does what the director wants done. A session that just ended is noticed by its own task, which says so.
    pub(super) fn carry(&mut self, own: &Addr<Self>) {
        let mut effects = VecDeque::from(self.director.effects());
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Order { worker, order, payload } => {
                    if let Some((orders, _)) = self.workers.get(&worker) {
                        orders.send((*order, payload)).ok();
                    }
                }
                Effect::Tell { client, message, payload } => {
                    let answers = self.clients.get(&client);
                    if answers.is_some_and(|(answers, _)| !answers.send(*message, payload)) {
                        // Its session may not get to say so: it waits for the client to read.
                        self.clients.remove(&client);
                        self.director.client_left(client, self.now());
                        effects.extend(self.director.effects());
                    }
                }
                // Its session ends once there is nobody left to send it anything.
                Effect::Dismiss(worker) => drop(self.workers.remove(&worker)),
                Effect::Provide { worker, file } => {
                    if let Some((_, parcels)) = self.workers.get(&worker) {
                        provide(&self.files, (worker, file), parcels.clone(), own.clone());
                    }
                }
                Effect::Forget(file) => {
                    if let Err(error) = self.files.remove(file) {
                        tracing::warn!("the file {file} cannot be removed: {error}");
                    }
                }
            }
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(TICK, |supervisor, ctx| {
            supervisor.director.tick(supervisor.now());
            supervisor.carry(&ctx.address());
        });
    }
}

impl Handler<AdmitWorker> for Supervisor {
    type Result = Result<WorkerId, Fault>;

    fn handle(&mut self, ask: AdmitWorker, ctx: &mut Self::Context) -> Self::Result {
        let AdmitWorker { join, peer, identity, out, parcels } = ask;
        let worker = self.director.admit(join, peer, identity, self.now())?;
        self.admitted.fetch_add(1, Ordering::Relaxed);
        self.workers.insert(worker, (out, parcels));
        self.carry(&ctx.address());
        Ok(worker)
    }
}

impl Handler<WorkerSaid> for Supervisor {
    type Result = ();

    fn handle(&mut self, said: WorkerSaid, ctx: &mut Self::Context) {
        let WorkerSaid { worker, message, payload } = said;
        self.director.worker_said(worker, message, payload, self.now());
        self.carry(&ctx.address());
    }
}

impl Handler<WorkerHeard> for Supervisor {
    type Result = ();

    fn handle(&mut self, WorkerHeard { worker }: WorkerHeard, _: &mut Self::Context) {
        self.director.worker_heard(worker, self.now());
    }
}

impl Handler<WorkerLeft> for Supervisor {
    type Result = ();

    fn handle(&mut self, WorkerLeft { worker, cause }: WorkerLeft, ctx: &mut Self::Context) {
        self.workers.remove(&worker);
        self.director.worker_left(worker, &cause, self.now());
        self.carry(&ctx.address());
    }
}

impl Handler<ClientCame> for Supervisor {
    type Result = ();

    fn handle(&mut self, came: ClientCame, _: &mut Self::Context) {
        let ClientCame { client, answers, standing } = came;
        self.clients.insert(client, (answers, standing));
    }
}

impl Handler<ClientSaid> for Supervisor {
    type Result = ();

    fn handle(&mut self, ClientSaid { client, message }: ClientSaid, ctx: &mut Self::Context) {
        let now = self.now();
        let Self { director, clients, .. } = self;
        let Some((_, standing)) = clients.get(&client) else { return };
        match message {
            FromClient::Submit { request, terms } => {
                let seed = RandomState::new().build_hasher().finish() & u64::from(u32::MAX);
                director.submit((client, standing), (*request, terms), seed, now);
            }
            FromClient::Follow(job) => director.follow(client, job, now),
            FromClient::Drain(worker) => director.drain(client, &worker, now),
            FromClient::Netcheck { fabrics } => director.measure_links(client, &fabrics, now),
            FromClient::Status => director.tell_status(client, now),
            FromClient::Watch { job, payloads } => director.watch(client, job, payloads, now),
            FromClient::Cancel(job) => director.cancel(client, job, now),
            FromClient::Show { job, with } => director.show(client, job, with, now),
            FromClient::Jobs { before, limit, stages } => {
                director.list(client, (before, limit), &stages, now);
            }
            FromClient::Put { .. } => {} // its session has them
        }
        self.carry(&ctx.address());
    }
}

impl Handler<Gauge> for Supervisor {
    type Result = MessageResult<Gauge>;

    fn handle(&mut self, _: Gauge, _: &mut Self::Context) -> Self::Result {
        MessageResult((self.director.view(self.now()), self.director.tallies()))
    }
}

impl Handler<ClientLeft> for Supervisor {
    type Result = ();

    fn handle(&mut self, ClientLeft { client }: ClientLeft, ctx: &mut Self::Context) {
        self.clients.remove(&client);
        self.director.client_left(client, self.now());
        self.carry(&ctx.address());
    }
}

impl Handler<ShutDown> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: ShutDown, ctx: &mut Self::Context) {
        self.director.shut_down(self.now());
        self.carry(&ctx.address());
    }
}
