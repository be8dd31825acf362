//! A simulated client: submits a job and follows it to its end as `coordinator/src/client/submission.rs` does, or
//! leaves before that and asks for the job again.

use super::{COORDINATOR, Event, Packet, World};
use crate::network::{ConnectionId, HostId, Lane};
use protocol::job::{JobRequest, Terms};
use protocol::message::{Event as JobEvent, FromClient, ToClient};
use protocol::{FaultKind, JobId};
use std::time::Duration;

/// How often a coordinator that went away is called.
const CALL_EVERY: Duration = Duration::from_millis(250);
/// How long a client that left stays away, and one whose job was not taken waits.
const AWAY: Duration = Duration::from_secs(1);

/// What a client is to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// When it submits its job.
    pub at: Duration,
    /// The job.
    pub request: JobRequest,
    /// How long after that it leaves, if it does before the job's end.
    pub leaves_after: Option<Duration>,
}

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It submits its job.
    Submit,
    /// It leaves, unless the job has ended.
    Leave,
    /// It asks for its job.
    Return,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    host: HostId,
    number: usize,
    order: Order,
    connection: Option<ConnectionId>,
    job: Option<JobId>,
    kept: bool,
    left: bool,
    done: bool,
}

impl Client {
    /// One that has done nothing yet.
    #[must_use]
    pub fn new(host: HostId, number: usize, order: Order) -> Self {
        let (connection, job, kept, left, done) = (None, None, false, false, false);
        Self { host, number, order, connection, job, kept, left, done }
    }

    /// It will do what it is ordered to.
    pub fn begin(&self, world: &mut World) {
        world.agenda.at(self.order.at, Event::Client(self.number, Act::Submit));
        if let Some(after) = self.order.leaves_after {
            world.agenda.at(self.order.at + after, Event::Client(self.number, Act::Leave));
        }
    }

    /// When it submits its job.
    #[must_use]
    pub fn submits_at(&self) -> Duration {
        self.order.at
    }

    /// Whether it has heard all that it will.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether this is its connection.
    #[must_use]
    pub fn is_on(&self, connection: ConnectionId) -> bool {
        self.connection == Some(connection)
    }

    /// Does what comes next.
    pub fn act(&mut self, act: Act, world: &mut World) {
        if self.done {
            return;
        }
        match (act, self.job) {
            (Act::Submit, _) if self.left => self.done = true,
            (Act::Submit, _) => {
                let request = Box::new(self.order.request.clone());
                self.ask(FromClient::Submit { request, terms: Terms::default() }, world);
            }
            (Act::Leave, _) => {
                self.left = true;
                if let Some(connection) = self.connection.take() {
                    world.network.close(connection, self.host, world.now);
                }
                self.again(Act::Return, AWAY, world);
            }
            (Act::Return, Some(job)) if self.connection.is_none() => {
                self.ask(FromClient::Follow(job), world);
            }
            // It left before it heard its number.
            (Act::Return, None) => self.done = true,
            (Act::Return, Some(_)) => {}
        }
    }

    fn again(&self, act: Act, after: Duration, world: &mut World) {
        world.agenda.at(world.now + after, Event::Client(self.number, act));
    }

    fn ask(&mut self, question: FromClient, world: &mut World) {
        let connection = world.network.open(self.host, COORDINATOR, Lane::Control, world.now);
        self.connection = Some(connection);
        let question = (0, Packet::Ask(Box::new(question)));
        world.network.send(connection, self.host, question, world.now);
    }

    /// Its connection broke.
    pub fn lost(&mut self, world: &mut World) {
        let Some(connection) = self.connection.take().filter(|_| !self.done) else { return };
        world.network.close(connection, self.host, world.now);
        match self.job {
            Some(_) if self.kept || self.left => self.again(Act::Return, CALL_EVERY, world),
            Some(_) => self.done = true,
            None => self.again(Act::Submit, AWAY, world),
        }
    }

    /// The coordinator says something.
    pub fn told(&mut self, message: &ToClient, world: &mut World) {
        match message {
            ToClient::Accepted { job, kept, .. } => (self.job, self.kept) = (Some(*job), *kept),
            ToClient::Refused(fault) if fault.kind == FaultKind::Storage => {
                // A real one gives up; here it is a chance to see that nothing was left behind.
                self.connection = None;
                let act = if self.job.is_some() { Act::Return } else { Act::Submit };
                self.again(act, AWAY, world);
            }
            ToClient::Refused(fault) => {
                if self.kept && !self.left {
                    let what = format!("a client that comes back is refused: {fault}");
                    world.oracle.violated("O-1 once", what);
                }
                self.done = true;
            }
            ToClient::Event {
                event: JobEvent::Finished { .. } | JobEvent::Failed { .. }, ..
            } => {
                self.done = true;
            }
            _ => {}
        }
    }
}
