//! A simulated client: submits a job and hears of it, or leaves before its end and asks for it again.

use super::{COORDINATOR, Event, Packet, World};
use crate::network::{ConnectionId, HostId, Lane};
use protocol::JobId;
use protocol::job::JobRequest;
use protocol::message::{Event as JobEvent, FromClient, ToClient};
use std::time::Duration;

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

/// A client.
#[derive(Debug)]
pub struct Client {
    host: HostId,
    order: Order,
    connection: Option<ConnectionId>,
    job: Option<JobId>,
    step: u32,
    done: bool,
}

impl Client {
    /// One that has done nothing yet.
    #[must_use]
    pub fn new(host: HostId, order: Order) -> Self {
        Self { host, order, connection: None, job: None, step: 0, done: false }
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

    /// Does what comes next: submits, leaves, comes back.
    pub fn act(&mut self, number: usize, world: &mut World) {
        self.step += 1;
        match self.step {
            1 => {
                self.ask(FromClient::Submit(Box::new(self.order.request.clone())), world);
                if let Some(after) = self.order.leaves_after {
                    world.agenda.at(world.now + after, Event::Client(number));
                }
            }
            2 if !self.done => {
                if let Some(connection) = self.connection.take() {
                    world.network.close(connection, self.host, world.now);
                }
                world.agenda.at(world.now + Duration::from_secs(1), Event::Client(number));
            }
            3 => match self.job {
                Some(job) => self.ask(FromClient::Follow(job), world),
                None => self.done = true,
            },
            _ => {}
        }
    }

    fn ask(&mut self, question: FromClient, world: &mut World) {
        let connection = world.network.open(self.host, COORDINATOR, Lane::Control, world.now);
        self.connection = Some(connection);
        let question = (0, Packet::Ask(Box::new(question)));
        world.network.send(connection, self.host, question, world.now);
    }

    /// The coordinator says something.
    pub fn told(&mut self, message: &ToClient) {
        match message {
            ToClient::Accepted { job, .. } => self.job = Some(*job),
            ToClient::Refused(_)
            | ToClient::Event {
                event: JobEvent::Finished { .. } | JobEvent::Failed { .. }, ..
            } => {
                self.done = true;
            }
            _ => {}
        }
    }
}
