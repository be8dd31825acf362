//! The connection to the coordinator, again and again: `worker/src/actor/session.rs`.

use super::{Timer, Worker};
use crate::network::{ConnectionId, Lane};
use crate::simulation::{COORDINATOR, Packet, World};
use protocol::message::{Greeting, ToCoordinator};
use protocol::{FaultKind, WorkerId};
use std::time::Duration;

/// How long the coordinator may take to answer. This and what follows is as in a real worker, where it is
/// private.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// How often to see whether the compute thread is free.
const FREE_LOOK: Duration = Duration::from_millis(50);
/// How often a lease is renewed in its time.
const RENEWALS: u32 = 4;

/// A worker's session.
#[derive(Clone, Copy, Debug)]
pub(super) enum Session {
    /// There is none; it calls again after a while.
    Resting,
    /// It has called.
    Called(ConnectionId),
    /// It is let in.
    In(Open),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    connection: ConnectionId,
    worker: WorkerId,
    lease: Duration,
    heard: Duration,
}

impl Session {
    /// Whether it goes over this connection.
    pub(super) fn is(&self, connection: ConnectionId) -> bool {
        self.connection() == Some(connection)
    }

    fn connection(&self) -> Option<ConnectionId> {
        match self {
            Self::Resting => None,
            Self::Called(own) => Some(*own),
            Self::In(open) => Some(open.connection),
        }
    }

    /// The connection, once the coordinator has let this worker in.
    pub(super) fn welcomed(&self) -> Option<ConnectionId> {
        self.open().map(|open| open.connection)
    }

    fn open(&self) -> Option<&Open> {
        if let Self::In(open) = self { Some(open) } else { None }
    }

    pub(super) fn hear(&mut self, now: Duration) {
        if let Self::In(open) = self {
            open.heard = now;
        }
    }
}

impl Worker {
    /// The number that the coordinator gave it, while it is let in.
    #[must_use]
    pub fn number(&self) -> Option<WorkerId> {
        self.session.open().map(|open| open.worker)
    }

    /// Calls the coordinator, once nothing is computed any more for a session that has ended.
    pub(super) fn call(&mut self, world: &mut World) {
        if self.current.is_some() {
            return world.wake(self.host, FREE_LOOK, Timer::Call);
        }
        let connection = world.network.open(self.host, COORDINATOR, Lane::Control, world.now);
        self.session = Session::Called(connection);
        let join = Packet::Join(Box::new(self.join()));
        world.network.send(connection, self.host, (0, join), world.now);
        world.wake(self.host, GREETING_PATIENCE, Timer::Ungreeted(connection));
    }

    pub(super) fn ungreeted(&mut self, connection: ConnectionId, world: &mut World) {
        if matches!(self.session, Session::Called(own) if own == connection) {
            self.ended("no answer", world);
        }
    }

    pub(super) fn greeted(&mut self, from: ConnectionId, greeting: &Greeting, world: &mut World) {
        if !matches!(self.session, Session::Called(own) if own == from) {
            return;
        }
        match greeting {
            Greeting::Welcome { worker, lease_ms } => {
                let (worker, lease) = (*worker, Duration::from_millis((*lease_ms).max(1).into()));
                self.backoff.reset();
                let (connection, heard) = (from, world.now);
                self.session = Session::In(Open { connection, worker, lease, heard });
                world.wake(self.host, Duration::ZERO, Timer::Renew(from));
                world.wake(self.host, lease, Timer::Lease(from));
            }
            Greeting::Refused(fault) => {
                let passes = matches!(fault.kind, FaultKind::ShuttingDown | FaultKind::QueueFull);
                if !passes {
                    world.oracle.violated("O-8 return", format!("a worker is refused: {fault}"));
                }
                self.ended("refused", world);
            }
            Greeting::Enrolled { .. } => {}
        }
    }

    pub(super) fn renew(&mut self, connection: ConnectionId, world: &mut World) {
        let Some(open) = self.session.open().filter(|open| open.connection == connection) else {
            return;
        };
        let lease = open.lease;
        let busy_for = self.busy_for(world.now);
        let pulse = self.current.as_ref().map(|run| run.pulse(busy_for));
        self.say(ToCoordinator::Alive { resident_bytes: 1, pulse }, world);
        world.wake(self.host, lease / RENEWALS, Timer::Renew(connection));
    }

    /// Gives up a coordinator that was silent for a lease: what this worker renders may have been given to others.
    pub(super) fn check_lease(&mut self, connection: ConnectionId, world: &mut World) {
        let Some(open) = self.session.open().filter(|open| open.connection == connection) else {
            return;
        };
        let until = open.heard + open.lease;
        if world.now >= until {
            return self.ended("it was silent", world);
        }
        world.wake(self.host, until - world.now, Timer::Lease(connection));
    }

    pub(super) fn ended(&mut self, cause: &str, world: &mut World) {
        if let Some(connection) = self.session.connection() {
            world.network.hang_up(connection, self.host, world.now);
        }
        let host = self.host;
        world.trace.note(world.now, || format!("worker {host} lost the coordinator: {cause}"));
        self.session = Session::Resting;
        if let Some(turn) = self.duty.abandon() {
            self.stop(turn, world);
        }
        if self.leaves {
            return self.left(world); // nobody is there to hand anything over to
        }
        let pause = self.backoff.pause();
        world.wake(self.host, pause, Timer::Call);
    }

    /// Someone wants it to leave: it asks whether it may.
    pub fn wish_to_leave(&mut self, world: &mut World) {
        self.leaves = true;
        match self.session {
            Session::In(_) => self.say(ToCoordinator::Leaving, world),
            Session::Called(_) | Session::Resting => self.left(world),
        }
    }
}
