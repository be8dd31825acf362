//! A whole cluster in one thread, on virtual time, from one seed: the real decisions of the coordinator
//! (`coordinator::director`), simulated workers that obey the protocol as real ones do, clients, and a
//! [`network`](crate::network) that does what networks do. The [`oracle`](crate::oracle) says what must
//! hold.
//!
//! The same seed always does the same. [`run`] gives what was seen, or the oracle's verdict with the last
//! events before it.

pub mod client;
pub mod coordinator;
pub mod disk;
pub mod engine;
pub mod fault;
pub mod model;
pub mod reference;
pub mod sampler;
pub mod scenario;
pub mod trace;
pub mod worker;

use self::client::{Act, Client, Order};
use self::coordinator::Coordinator;
use self::disk::Disk;
use self::engine::Value;
use self::fault::Remedy;
use self::scenario::{Scenario, Trigger};
use self::trace::{Trace, shown};
use self::worker::{Timer, Worker};
use crate::clock::Agenda;
use crate::network::{Delivery, HostId, Network, Signal};
use crate::oracle::{AWAY_MAX, Oracle, Violation};
use crate::random::Random;
use bytes::Bytes;
use protocol::message::{
    FromClient, Greeting, Join, PeerAnswer, PeerHello, ToClient, ToCoordinator, ToWorker,
};
use std::fmt;
use std::time::Duration;

/// The coordinator's host. Workers' are those after it, and the last is the clients'.
pub const COORDINATOR: HostId = 0;

/// What is wrong with workers on purpose: to see that the oracle notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing.
    None,
    /// A run that goes on forgets what the sampler remembered.
    LosesHistory,
    /// A run goes on one call too late.
    SkipsACall,
    /// A run goes on one call too early, with the latent of the right one.
    RepeatsACall,
    /// Values of an older epoch land.
    TakesOldValues,
}

/// What crosses the network.
#[derive(Debug)]
pub enum Packet {
    /// A worker wants to be let in.
    Join(Box<Join>),
    /// The answer to that.
    Greeting(Box<Greeting>),
    /// From the coordinator to a worker.
    Order(Box<ToWorker>, Bytes),
    /// From a worker to the coordinator.
    Report(Box<ToCoordinator>, Bytes),
    /// From a client.
    Ask(Box<FromClient>),
    /// To a client.
    Tell(Box<ToClient>, Bytes),
    /// From a rank to a lower one.
    PeerHello(PeerHello),
    /// The answer to that.
    PeerAnswer(PeerAnswer),
    /// From a rank to another.
    Value(Value),
}

/// What happens without a message.
#[derive(Debug)]
pub enum Event {
    /// A coordinator's process looks at the time.
    Tick(u32),
    /// A worker's process wakes up.
    Wake(HostId, u32, Timer),
    /// A worker's process starts.
    Start(HostId),
    /// A worker's process ends of its own.
    Exit(HostId),
    /// A client does what it is to do next.
    Client(usize, Act),
    /// A fault, by its number.
    Fault(usize),
    /// What a fault did is over.
    Remedy(Remedy),
    /// A value that was lost with its link comes after all.
    Stray(HostId, u32, Value),
}

/// What all processes share.
#[derive(Debug)]
pub struct World {
    /// The time.
    pub now: Duration,
    /// What is to happen.
    pub agenda: Agenda<Event>,
    /// What is on its way.
    pub network: Network<Packet>,
    /// What must hold.
    pub oracle: Oracle,
    /// What is drawn while it runs.
    pub random: Random,
    /// What happened.
    pub trace: Trace,
}

impl World {
    /// A worker's process is woken after this time.
    fn wake(&mut self, host: HostId, after: Duration, timer: Timer) {
        if let Some(process) = self.network.process(host) {
            self.agenda.at(self.now + after, Event::Wake(host, process, timer));
        }
    }
}

/// What was seen of a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Jobs that ended.
    pub jobs: usize,
    /// How often one broke off.
    pub recoveries: u64,
    /// The largest distance of an image from the undisturbed one.
    pub distance: f64,
    /// Virtual seconds.
    pub seconds: f64,
    /// Events.
    pub events: u64,
}

/// An oracle's verdict.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What does not hold.
    pub violation: Violation,
    /// What happened before.
    pub events: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, violation, events } = self;
        writeln!(f, "seed {seed}: {}: {}", violation.oracle, violation.what)?;
        writeln!(f, "replay it with TESSERA_SIMULATION_SEED={seed}; its last events:")?;
        events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

/// Lets a cluster live through what `seed` has for it.
///
/// # Errors
/// What an oracle says against it.
pub fn run(seed: u64, mutation: Mutation) -> Result<Report, Box<Failure>> {
    // Telling costs more than all the rest: only what fails is done again with its story.
    match Simulation::new(seed, mutation, Trace::default()).live() {
        Ok(report) => Ok(report),
        Err(_) => replay(seed, mutation, false).1,
    }
}

/// The same with its story: `all` of it, or its last events.
pub fn replay(
    seed: u64,
    mutation: Mutation,
    all: bool,
) -> (Vec<String>, Result<Report, Box<Failure>>) {
    let trace = Trace::telling(all);
    let mut simulation = Simulation::new(seed, mutation, trace);
    let result = simulation.live();
    let events = simulation.world.trace.take();
    let failed = |violation| Box::new(Failure { seed, violation, events: events.clone() });
    let result = result.map_err(failed);
    (events, result)
}

/// What was seen of a job whose workers were parted.
#[derive(Clone, Debug)]
pub struct Parted {
    /// What was seen.
    pub report: Report,
    /// How many of each of the two groups rendered to the end.
    pub ranks: [usize; 2],
    /// How fast each group is in all.
    pub speeds: [u64; 2],
    /// What happened.
    pub events: Vec<String>,
}

/// Lets the workers of one job be parted for good, and nothing else go wrong.
///
/// # Errors
/// What an oracle says against it.
pub fn run_parted(seed: u64) -> Result<Parted, Box<Failure>> {
    let mut random = Random::new(seed);
    let (scenario, side) = Scenario::parted(&mut random);
    let mut simulation = Simulation::of((scenario, random), Mutation::None, Trace::telling(true));
    let lived = simulation.live();
    let events = simulation.world.trace.take();
    let report = match lived {
        Ok(report) => report,
        Err(violation) => return Err(Box::new(Failure { seed, violation, events })),
    };
    let (mut ranks, mut speeds) = ([0; 2], [0; 2]);
    let group = |host: HostId| usize::from(side.contains(&host));
    for host in simulation.world.oracle.last_hosts() {
        ranks[group(host)] += 1;
    }
    for worker in &simulation.workers {
        speeds[group(worker.host)] += worker.machine.speed();
    }
    Ok(Parted { report, ranks, speeds, events })
}

struct Simulation {
    world: World,
    scenario: Scenario,
    coordinator: Coordinator,
    workers: Vec<Worker>,
    clients: Vec<Client>,
    messages: u64,
    events: u64,
    /// When the last fault, or what it did, is over.
    quiet_at: Duration,
}

impl Simulation {
    fn new(seed: u64, mutation: Mutation, trace: Trace) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::draw(&mut random);
        Self::of((scenario, random), mutation, trace)
    }

    fn of((scenario, mut random): (Scenario, Random), mutation: Mutation, trace: Trace) -> Self {
        let hosts = scenario.machines.len() + 2;
        let network = Network::new(hosts, scenario.latency, random.any());
        let (now, agenda, oracle) = (Duration::ZERO, Agenda::default(), Oracle::default());
        let mut world = World { now, agenda, network, oracle, random, trace };
        let workers = (1..).zip(&scenario.machines);
        let workers = workers.map(|(host, it)| Worker::new(host, it.clone(), mutation)).collect();
        let clients = scenario.jobs.iter().enumerate();
        let client = |(number, job): (usize, &Order)| Client::new(hosts - 1, number, job.clone());
        let clients = clients.map(client).collect();
        let (messages, events, quiet_at) = (0, 0, Duration::ZERO);
        let disk = scenario.kept.then(Disk::default);
        let coordinator = Coordinator::start(disk, &mut world);
        Self { world, scenario, coordinator, workers, clients, messages, events, quiet_at }
    }

    fn live(&mut self) -> Result<Report, Violation> {
        self.begin();
        loop {
            self.next();
            self.scatter_strays();
            if let Some(violation) = self.world.oracle.violation() {
                return Err(violation.clone());
            }
            if self.is_over()? {
                return Ok(Report {
                    jobs: self.world.oracle.ended(),
                    recoveries: self.world.oracle.recoveries,
                    distance: self.world.oracle.distance,
                    seconds: self.world.now.as_secs_f64(),
                    events: self.events,
                });
            }
        }
    }

    fn begin(&mut self) {
        self.world.network.start(self.workers.len() + 1);
        for (at, worker) in self.scenario.starts.iter().zip(&self.workers) {
            self.world.agenda.at(*at, Event::Start(worker.host));
        }
        for client in &self.clients {
            client.begin(&mut self.world);
            self.quiet_at = self.quiet_at.max(client.submits_at());
        }
        for (number, fault) in self.scenario.faults.iter().enumerate() {
            if let Trigger::At(at) = fault.trigger {
                self.world.agenda.at(at, Event::Fault(number));
            }
        }
    }

    fn next(&mut self) {
        self.events += 1;
        let (message, event) = (self.world.network.next_at(), self.world.agenda.next_at());
        let comes_first = message.is_some_and(|at| event.is_none_or(|event| at <= event));
        if comes_first {
            self.world.now = message.unwrap_or_default();
            if let Some(delivery) = self.world.network.take() {
                self.deliver(delivery);
            }
        } else if let Some((at, event)) = self.world.agenda.take() {
            self.world.now = at;
            self.happen(event);
        }
    }

    fn deliver(&mut self, delivery: Delivery<Packet>) {
        let beats = matches!(
            &delivery.signal,
            Signal::Message(Packet::Report(report, _))
                if matches!(**report, ToCoordinator::Alive { .. })
        ) || matches!(
            &delivery.signal,
            Signal::Message(Packet::Order(order, _)) if matches!(**order, ToWorker::Alive)
        );
        if !beats {
            self.strike_before_message();
        }
        let Delivery { host, connection, from, signal } = delivery;
        if self.world.network.process(host).is_none() {
            return; // the fault was its end
        }
        let world = &mut self.world;
        if !beats {
            world.trace.note(world.now, || format!("{from} -> {host}: {}", shown(&signal)));
        }
        let clients = self.workers.len() + 1;
        match signal {
            Signal::Message(packet) if host == COORDINATOR => {
                self.coordinator.received(connection, packet, world);
            }
            Signal::Closed if host == COORDINATOR => self.coordinator.closed(connection, world),
            Signal::Message(packet) if host == clients => {
                let found = self.clients.iter_mut().find(|client| client.is_on(connection));
                if let (Some(client), Packet::Tell(message, _)) = (found, packet) {
                    client.told(&message, world);
                }
            }
            Signal::Closed if host == clients => {
                let found = self.clients.iter_mut().find(|client| client.is_on(connection));
                found.into_iter().for_each(|client| client.lost(world));
            }
            Signal::Message(packet) => {
                self.workers[host - 1].received(connection, packet, world);
            }
            Signal::Closed => self.workers[host - 1].closed(connection, world),
        }
    }

    /// Faults that are to happen when so many messages have come.
    fn strike_before_message(&mut self) {
        self.messages += 1;
        for number in 0..self.scenario.faults.len() {
            if self.scenario.faults[number].trigger == Trigger::Message(self.messages) {
                self.strike(number);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let world = &mut self.world;
        match event {
            Event::Tick(process) => {
                if world.network.process(COORDINATOR) != Some(process) {
                    return;
                }
                let stopped = world.network.stopped_until(COORDINATOR);
                if stopped > world.now {
                    return world.agenda.at(stopped, Event::Tick(process));
                }
                self.coordinator.tick(process, world);
            }
            Event::Wake(host, process, timer) => {
                if world.network.process(host) != Some(process) {
                    return;
                }
                let stopped = world.network.stopped_until(host);
                if stopped > world.now {
                    let woken = stopped + world.random.between(Duration::ZERO, WAKING);
                    return world.agenda.at(woken, Event::Wake(host, process, timer));
                }
                self.workers[host - 1].woken(timer, world);
            }
            Event::Start(host) => self.start(host),
            Event::Exit(host) => self.exit(host),
            Event::Client(number, act) => self.clients[number].act(act, world),
            Event::Fault(number) => self.strike(number),
            Event::Remedy(remedy) => self.remedy(remedy),
            Event::Stray(host, process, value) => {
                if world.network.process(host) == Some(process) {
                    self.workers[host - 1].strayed(value, world);
                }
            }
        }
    }

    /// A worker that may leave ends its process; a supervisor starts it again after a while.
    fn exit(&mut self, host: HostId) {
        let world = &mut self.world;
        world.trace.note(world.now, || format!("worker {host} ends"));
        world.network.kill(host, false, world.now);
        let back = world.now + RESTART;
        world.agenda.at(back, Event::Start(host));
        self.quiet_at = self.quiet_at.max(back);
    }

    fn start(&mut self, host: HostId) {
        let world = &mut self.world;
        if world.network.process(host).is_some() {
            return;
        }
        world.trace.note(world.now, || format!("host {host} starts"));
        if host == COORDINATOR {
            self.coordinator = Coordinator::start(self.coordinator.disk.take(), world);
            // What a machine without power did not tell them, keepalive does: a real client has none yet.
            return self.clients.iter_mut().for_each(|client| client.lost(world));
        }
        world.network.start(host);
        self.workers[host - 1].start(world);
    }

    /// Values that were lost with their links come after all, some of them, within seconds.
    fn scatter_strays(&mut self) {
        for (host, process, packet) in self.world.network.take_strays() {
            let Packet::Value(value) = packet else { continue };
            if self.scenario.strays {
                let after = self.world.random.between(Duration::ZERO, STRAY_MAX);
                let at = self.world.now + after;
                self.world.agenda.at(at, Event::Stray(host, process, value));
            }
        }
    }

    /// Whether all jobs have ended and all workers are back.
    fn is_over(&mut self) -> Result<bool, Violation> {
        let world = &self.world;
        let broken = self.scenario.lasting();
        let jobs = u32::try_from(self.clients.len()).unwrap_or(u32::MAX);
        let job = self.scenario.longest_job();
        let done = self.clients.iter().all(Client::is_done) && world.oracle.unfinished() == 0;
        let late = self.quiet_at + Oracle::patience(jobs, broken, job) < world.now;
        let violation = |oracle, what| Err(Violation { oracle, what });
        if !done {
            let waits = world.oracle.unfinished();
            let what = || format!("{waits} jobs wait for {:.0} s", world.now.as_secs_f64());
            return if late { violation("O-10 progress", what()) } else { Ok(false) };
        }
        if world.now < self.quiet_at {
            return Ok(false);
        }
        let members: Vec<_> = self.coordinator.members().collect();
        let away = self.workers.iter().find(|worker| {
            let runs = world.network.process(worker.host).is_some() && !worker.is_stuck();
            runs && worker.number().is_none_or(|number| !members.contains(&number))
        });
        match away {
            Some(worker) if world.now > self.quiet_at + AWAY_MAX && late => {
                violation("O-8 return", format!("worker {} is not back", worker.host))
            }
            Some(_) => Ok(false),
            None => match self.coordinator.jobs(world) {
                0 => Ok(true),
                jobs => violation("O-1 once", format!("{jobs} jobs are there that have ended")),
            },
        }
    }
}

/// How soon a process that was stopped does all that it missed.
const WAKING: Duration = Duration::from_millis(1);
/// How long a supervisor takes to start a worker that ended, and that to load its model.
const RESTART: Duration = Duration::from_secs(2);
/// How late a value comes whose link is no more.
const STRAY_MAX: Duration = Duration::from_secs(3);
