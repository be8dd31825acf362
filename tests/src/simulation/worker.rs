//! A simulated worker process: the session, the supervisor and the engine of the real one
//! (`worker/src/actor/`), with the same decisions about the same messages.

mod links;
mod session;

use super::engine::{Next, Out, Run, Value};
use super::model::{address, card};
use super::{Event, Mutation, Packet, World};
use crate::network::{ConnectionId, HostId};
use links::Opening;
use protocol::RunId;
use protocol::message::{Join, PeerHello, ToCoordinator, ToWorker};
use protocol::plan::Offer;
use session::Session;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use worker::member::{Backoff, Duty, Turn};

/// What a worker is.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The fabrics that it offers, nearest first.
    pub offers: Vec<Offer>,
    /// How long a row of a call takes it.
    pub row: Duration,
}

impl Machine {
    /// How fast it is, as it says when it joins.
    #[must_use]
    pub fn speed(&self) -> u64 {
        u64::try_from(1_000_000_000 / self.row.as_micros().max(1)).unwrap_or(1)
    }
}

/// What a worker has asked to be woken for.
#[derive(Clone, Copy, Debug)]
pub enum Timer {
    /// To call the coordinator.
    Call,
    /// The coordinator has not greeted it.
    Ungreeted(ConnectionId),
    /// To say that it is alive.
    Renew(ConnectionId),
    /// To see whether the coordinator is alive.
    Lease(ConnectionId),
    /// Links are not open yet.
    Unopened(Turn),
    /// A peer that was called over QUIC has not answered.
    Unmet(ConnectionId),
    /// A caller's run has not been started.
    Parked(ConnectionId),
    /// An operation is done.
    Computed(u64),
    /// The compute thread may go on.
    Unhung,
}

/// A worker's process and its machine.
#[derive(Debug)]
pub struct Worker {
    /// Its host.
    pub host: HostId,
    /// What it is.
    pub machine: Machine,
    /// What is wrong with it, on purpose.
    pub mutation: Mutation,
    /// Until when its compute thread does nothing.
    pub hung: Option<(Duration, Duration)>,
    /// How many times as long as usual it takes.
    pub slow: f64,
    /// It was told to leave, or asked to.
    pub leaves: bool,
    session: Session,
    backoff: Backoff,
    duty: Duty,
    openings: Vec<Opening>,
    parked: Vec<(ConnectionId, PeerHello)>,
    current: Option<Run>,
    waiting: VecDeque<Run>,
    operations: u64,
    operation_began: Duration,
}

impl Worker {
    /// One that is not started.
    #[must_use]
    pub fn new(host: HostId, machine: Machine, mutation: Mutation) -> Self {
        Self {
            host,
            machine,
            mutation,
            hung: None,
            slow: 1.0,
            leaves: false,
            session: Session::Resting,
            backoff: Backoff::default(),
            duty: Duty::default(),
            openings: Vec::new(),
            parked: Vec::new(),
            current: None,
            waiting: VecDeque::new(),
            operations: 0,
            operation_began: Duration::ZERO,
        }
    }

    /// Its process starts, with nothing in memory.
    pub fn start(&mut self, world: &mut World) {
        let (machine, operations) = (self.machine.clone(), self.operations);
        *self = Self { operations, ..Self::new(self.host, machine, self.mutation) };
        self.call(world);
    }

    /// Whether its compute thread hangs for good.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.hung.is_some_and(|(_, until)| until == Duration::MAX)
    }

    /// Its compute thread does nothing until then.
    pub fn hang(&mut self, until: Duration, world: &mut World) {
        let now = world.now;
        let (since, before) = self.hung.filter(|(_, end)| *end > now).unwrap_or((now, now));
        self.hung = Some((since, until.max(before)));
        if until < Duration::MAX {
            world.wake(self.host, until - now, Timer::Unhung);
        }
    }

    /// It is woken.
    pub fn woken(&mut self, timer: Timer, world: &mut World) {
        match timer {
            Timer::Call => self.call(world),
            Timer::Ungreeted(session) => self.ungreeted(session, world),
            Timer::Renew(session) => self.renew(session, world),
            Timer::Lease(session) => self.check_lease(session, world),
            Timer::Unopened(turn) => self.give_opening_up(turn, world),
            Timer::Unmet(link) => self.give_call_up(link, world),
            Timer::Parked(caller) => self.refuse_parked(caller, world),
            Timer::Computed(operation) => self.computed(operation, world),
            Timer::Unhung => self.go_on(world),
        }
    }

    /// Something came over a connection.
    pub fn received(&mut self, from: ConnectionId, packet: Packet, world: &mut World) {
        match packet {
            Packet::Greeting(greeting) => self.greeted(from, &greeting, world),
            Packet::Order(order, payload) if self.session.is(from) => {
                self.session.hear(world.now);
                match *order {
                    ToWorker::Alive | ToWorker::Measure { .. } | ToWorker::File { .. } => {}
                    ToWorker::Leave => self.left(world),
                    ToWorker::Start { plan, rank, resume } => {
                        let resume = resume.map(|resume| (resume, payload));
                        self.ordered((Rc::new(*plan), rank, resume), world);
                    }
                    ToWorker::Abort { run, .. } => self.abort(run, world),
                }
            }
            Packet::PeerHello(hello) => self.called(from, hello, world),
            Packet::PeerAnswer(answer) => self.answered(from, answer, world),
            Packet::Value(value) => self.landed(from, value, world),
            _ => {}
        }
    }

    /// A connection ended.
    pub fn closed(&mut self, connection: ConnectionId, world: &mut World) {
        world.network.close(connection, self.host, world.now);
        if self.session.is(connection) {
            return self.ended("it closed the connection", world);
        }
        self.parked.retain(|(parked, _)| *parked != connection);
        self.link_ended(connection, world);
    }

    /// A value of a link that is no more came after all.
    pub fn strayed(&mut self, value: Value, world: &mut World) {
        let now = world.now;
        if let Some(run) = &mut self.current
            && run.id().job == value.run.job
            && run.links.contains_key(&value.from)
        {
            world.trace.note(now, || format!("worker {}: a stray of {}", self.host, value.run));
            run.land(value);
            self.go_on(world);
        }
    }

    fn abort(&mut self, run: RunId, world: &mut World) {
        let Some(turn) = self.duty.abort(run) else { return };
        let opening = self.openings.iter().any(|opening| opening.turn() == turn);
        self.stop(turn, world);
        if opening {
            // The engine has not heard of this run: nobody else would say that it ended.
            self.duty.end(turn);
            self.say(ToCoordinator::Aborted { run }, world);
        }
    }

    /// The engine ends this turn at its next wait or call; peers learn at once that nothing more comes.
    fn stop(&mut self, turn: Turn, world: &mut World) {
        let runs = self.current.iter_mut().chain(&mut self.waiting);
        for run in runs.filter(|run| run.turn == turn) {
            run.cancelled = true;
            for link in run.links.values() {
                world.network.hang_up(*link, self.host, world.now);
            }
        }
        self.go_on(world);
    }

    /// Lets the engine do what it can.
    fn go_on(&mut self, world: &mut World) {
        loop {
            if self.current.is_none() {
                self.current = self.waiting.pop_front();
                let Some(run) = &mut self.current else { return };
                run.begin();
            }
            if self.hung.is_some_and(|(_, until)| until > world.now) {
                return; // also when what it waits for has come
            }
            let Some(run) = &mut self.current else { return };
            let next = run.advance(world.now);
            if let Some(foreign) = run.foreign.take() {
                let what = format!("{} took a value of {foreign} for one of its own", run.id());
                world.oracle.violated("O-6 values", what);
            }
            self.carry(world);
            match next {
                Next::Wait => return,
                Next::Compute(weight) => return self.compute(weight, world),
                Next::End => self.end_run(world),
            }
        }
    }

    fn compute(&mut self, weight: f64, world: &mut World) {
        self.operations += 1;
        self.operation_began = world.now;
        let takes = self.machine.row.mul_f64(weight * self.slow);
        let takes = world.random.between(takes.mul_f64(0.8), takes.mul_f64(1.2));
        world.wake(self.host, takes, Timer::Computed(self.operations));
    }

    fn computed(&mut self, operation: u64, world: &mut World) {
        if operation != self.operations {
            return;
        }
        if let Some((_, until)) = self.hung.filter(|(_, until)| *until > world.now) {
            if until < Duration::MAX {
                world.wake(self.host, until - world.now, Timer::Computed(operation));
            }
            return;
        }
        let busy_for = self.busy_for(world.now);
        if let Some(run) = &mut self.current {
            run.computed(world.now, busy_for);
            self.go_on(world);
        }
    }

    /// How long the operation under way has been going on, without the time in which the thread hung.
    fn busy_for(&self, now: Duration) -> Duration {
        let computes = self.current.as_ref().is_some_and(Run::is_computing);
        let hung = self.hung.filter(|(_, until)| *until > now).map_or(now, |(since, _)| since);
        let until = hung.min(now);
        if computes { until.saturating_sub(self.operation_began) } else { Duration::ZERO }
    }

    /// Sends what the engine said and posted.
    fn carry(&mut self, world: &mut World) {
        let Some(run) = &mut self.current else { return };
        let (out, session, turn) = (std::mem::take(&mut run.out), run.session, run.turn);
        for out in out {
            match out {
                Out::Post(peer, value) => {
                    if let Some(link) = run.links.get(&peer) {
                        let slot = value.site;
                        let packet = (slot, Packet::Value(value));
                        world.network.send(*link, self.host, packet, world.now);
                    }
                }
                Out::Say(message, payload) => {
                    let last = matches!(
                        message,
                        ToCoordinator::Decoded { .. }
                            | ToCoordinator::Failed { .. }
                            | ToCoordinator::Aborted { .. }
                    );
                    if last {
                        if !self.duty.is_current(turn) {
                            continue;
                        }
                        self.duty.end(turn);
                    }
                    if self.session.is(session) {
                        let packet = (0, Packet::Report(Box::new(message), payload));
                        world.network.send(session, self.host, packet, world.now);
                    }
                }
            }
        }
    }

    /// The run is over: its links are dropped.
    fn end_run(&mut self, world: &mut World) {
        let Some(run) = self.current.take() else { return };
        for link in run.links.values() {
            world.network.close(*link, self.host, world.now);
        }
    }

    fn say(&self, message: ToCoordinator, world: &mut World) {
        if let Some(session) = self.session.welcomed() {
            let packet = (0, Packet::Report(Box::new(message), bytes::Bytes::new()));
            world.network.send(session, self.host, packet, world.now);
        }
    }

    /// What it tells the coordinator of itself.
    fn join(&self) -> Join {
        Join {
            name: format!("w{}", self.host),
            listen: address(self.host),
            offers: self.machine.offers.clone(),
            lacks: Vec::new(),
            model: card(),
            threads: 1,
            kernels: "simulated".to_owned(),
            resident_bytes: 1,
            speed: self.machine.speed(),
            free_bytes: 1 << 40,
        }
    }

    /// It may leave, or there is nobody to hand anything over to: the process ends.
    fn left(&mut self, world: &mut World) {
        world.agenda.at(world.now, Event::Exit(self.host));
    }
}
