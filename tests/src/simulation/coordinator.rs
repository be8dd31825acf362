//! The coordinator's process: the real [`Director`], and the sessions that its effects go to, as
//! `coordinator/src/actor/` has them.

use super::disk::Disk;
use super::{COORDINATOR, Event, Packet, World};
use crate::network::ConnectionId;
use coordinator::cluster::failure::{LEASE, TICK};
use coordinator::director::{ClientId, Director, Effect, Standing};
use protocol::WorkerId;
use protocol::message::{FromClient, Greeting, Join};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// The coordinator.
#[derive(Debug)]
pub struct Coordinator {
    /// What it keeps outlives it, if it keeps anything.
    pub disk: Option<Disk>,
    director: Director,
    /// Its own time is zero then.
    started: Duration,
    callers: BTreeMap<ConnectionId, Caller>,
    workers: BTreeMap<WorkerId, ConnectionId>,
    clients: BTreeMap<ClientId, ConnectionId>,
    served: ClientId,
}

#[derive(Clone, Copy, Debug)]
enum Caller {
    Worker(WorkerId),
    Client(ClientId),
}

impl Coordinator {
    /// Its process starts, and goes on with what is on the disk.
    #[must_use]
    pub fn start(disk: Option<Disk>, world: &mut World) -> Self {
        let process = world.network.start(COORDINATOR);
        world.agenda.at(world.now + TICK, Event::Tick(process));
        let unix = world.now.as_secs();
        let opened = disk.clone().map(|disk| Director::open(disk, unix));
        let director = opened.map(|opened| opened.expect("the disk can be read"));
        Self {
            disk,
            director: director.unwrap_or_default(),
            started: world.now,
            callers: BTreeMap::new(),
            workers: BTreeMap::new(),
            clients: BTreeMap::new(),
            // Clients of different processes have different numbers, to be told apart.
            served: ClientId::from(process) << 32,
        }
    }

    fn now(&self, world: &World) -> Duration {
        world.now - self.started
    }

    /// Time has passed.
    pub fn tick(&mut self, process: u32, world: &mut World) {
        self.director.tick(self.now(world));
        self.carry(world);
        world.agenda.at(world.now + TICK, Event::Tick(process));
    }

    /// The workers that are members now.
    pub fn members(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.keys().copied()
    }

    /// How many jobs it has that have not ended.
    #[must_use]
    pub fn jobs(&self, world: &World) -> usize {
        self.director.view(self.now(world)).jobs.len()
    }

    /// Lets a worker, by name, leave.
    pub fn drain(&mut self, worker: &str, world: &mut World) {
        self.director.drain(ClientId::MAX, worker, self.now(world));
        self.carry(world);
    }

    /// It is asked to end: it stops what is rendered.
    pub fn shut_down(&mut self, world: &mut World) {
        self.director.shut_down(self.now(world));
        self.carry(world);
    }

    /// Something came over a connection.
    pub fn received(&mut self, from: ConnectionId, packet: Packet, world: &mut World) {
        match (packet, self.callers.get(&from).copied()) {
            (Packet::Join(join), None) => self.admit(from, *join, world),
            (Packet::Report(report, payload), Some(Caller::Worker(worker))) => {
                world.oracle.said(worker, &report);
                self.director.worker_said(worker, *report, payload, self.now(world));
            }
            (Packet::Ask(asked), caller) => {
                let client = match caller {
                    Some(Caller::Client(client)) => client,
                    _ => self.serve(from),
                };
                self.asked(client, *asked, world);
            }
            _ => {}
        }
        self.carry(world);
    }

    /// A connection ended.
    pub fn closed(&mut self, connection: ConnectionId, world: &mut World) {
        world.network.close(connection, COORDINATOR, world.now);
        match self.callers.remove(&connection) {
            Some(Caller::Worker(worker)) => {
                self.workers.remove(&worker);
                world.oracle.left(worker);
                self.director.worker_left(worker, "its connection broke", self.now(world));
            }
            Some(Caller::Client(client)) => {
                self.clients.remove(&client);
                world.oracle.client_left(client);
                self.director.client_left(client, self.now(world));
            }
            None => {}
        }
        self.carry(world);
    }

    fn admit(&mut self, from: ConnectionId, join: Join, world: &mut World) {
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let name = join.name.clone();
        let greeting = match self.director.admit(join, peer, None, self.now(world)) {
            Ok(worker) => {
                world.trace.note(world.now, || format!("{worker} ({name}) joined"));
                world.oracle.joined(worker);
                self.callers.insert(from, Caller::Worker(worker));
                self.workers.insert(worker, from);
                let lease_ms = u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX);
                Greeting::Welcome { worker, lease_ms }
            }
            Err(fault) => Greeting::Refused(fault),
        };
        let greeting = (0, Packet::Greeting(Box::new(greeting)));
        world.network.send(from, COORDINATOR, greeting, world.now);
    }

    fn serve(&mut self, from: ConnectionId) -> ClientId {
        self.served += 1;
        self.callers.insert(from, Caller::Client(self.served));
        self.clients.insert(self.served, from);
        self.served
    }

    fn asked(&mut self, client: ClientId, asked: FromClient, world: &mut World) {
        match asked {
            FromClient::Submit { request, terms } => {
                world.oracle.submits(client, &request);
                let standing = Standing::of("someone");
                let now = self.now(world);
                self.director.submit((client, &standing), (*request, terms), 7, now);
            }
            FromClient::Follow(job) => {
                world.oracle.follows(client, job);
                self.director.follow(client, job, self.now(world));
            }
            FromClient::Drain(_)
            | FromClient::Status
            | FromClient::Netcheck { .. }
            | FromClient::Watch { .. }
            | FromClient::Cancel(_)
            | FromClient::Show { .. }
            | FromClient::Jobs { .. }
            | FromClient::Put { .. } => {}
        }
    }

    /// Does what the director wants done.
    fn carry(&mut self, world: &mut World) {
        self.carry_effects(world);
        for (job, outcome) in self.disk.iter().flat_map(Disk::take_ended) {
            world.oracle.stored(job, &outcome);
        }
    }

    fn carry_effects(&mut self, world: &mut World) {
        for effect in self.director.effects() {
            world.oracle.effect(&effect);
            world.trace.note(world.now, || told(&effect));
            match effect {
                Effect::Order { worker, order, payload } => {
                    if let Some(to) = self.workers.get(&worker) {
                        let order = (0, Packet::Order(order, payload));
                        world.network.send(*to, COORDINATOR, order, world.now);
                    }
                }
                Effect::Tell { client, message, payload } => {
                    if let Some(to) = self.clients.get(&client) {
                        let message = (0, Packet::Tell(message, payload));
                        world.network.send(*to, COORDINATOR, message, world.now);
                    }
                }
                Effect::Dismiss(worker) => {
                    if let Some(connection) = self.workers.remove(&worker) {
                        self.callers.remove(&connection);
                        world.network.close(connection, COORDINATOR, world.now);
                    }
                }
                // Its jobs have no files.
                Effect::Provide { .. } | Effect::Forget(_) => {}
            }
        }
    }
}

/// What the coordinator does, in a line; nothing of what it does all the time.
fn told(effect: &Effect) -> String {
    use protocol::message::{Event, ToClient, ToWorker};
    match effect {
        Effect::Order { worker, order, .. } => match &**order {
            ToWorker::Alive => String::new(),
            ToWorker::Start { plan, rank, resume } => {
                format!("start {} {rank} on {worker}, {resume:?}", plan.run)
            }
            order => format!("to {worker}: {order:?}"),
        },
        Effect::Tell { message, .. } => match &**message {
            ToClient::Event { job, event: Event::Started { .. } } => format!("{job} started"),
            ToClient::Event { job, event: Event::Finished { .. } } => format!("{job} finished"),
            ToClient::Event { job, event: Event::Resumed { recovery, .. } } => {
                format!("{job} resumed: {recovery:?}")
            }
            message => format!("{message:?}"),
        },
        Effect::Dismiss(worker) => format!("dismisses {worker}"),
        Effect::Provide { worker, file } => format!("sends {file} to {worker}"),
        Effect::Forget(file) => format!("lets go of {file}"),
    }
}
