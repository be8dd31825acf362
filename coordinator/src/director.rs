//! What the coordinator decides: who is in, which job runs on whom, and what becomes of it when a worker is lost.
//!
//! A plain struct: whatever happens is told to it together with the time, and what is to be done about it is
//! fetched as [`Effect`]s. Sockets, actors and the clock are in [`actor`](crate::actor); a test can put
//! a whole cluster around it in one thread.

mod ailing;
mod asking;
mod files;
#[cfg(test)]
mod fixture;
mod jobs;
mod keeping;
mod measuring;
mod recovery;
mod tallies;
mod view;
mod workers;

pub use ailing::REST;
pub use asking::Standing;
pub use keeping::{GATHER_PATIENCE, Retention, STORE_PAUSE};
pub use recovery::{
    EXPLANATION_PATIENCE, FREE_PATIENCE, FUTILE_MAX, GROW_CALLS_MIN, GROW_PAUSE,
    REPLACEMENT_PATIENCE,
};
pub use tallies::Tallies;

use crate::cluster::failure::Leases;
use crate::cluster::pulse::Pulses;
use crate::cluster::registry::Registry;
use crate::job::checkpoint::Checkpoint;
use crate::job::queue::{Queue, Waiting};
use crate::job::state::RunState;
use crate::job::store::{EndedJob, Keep, Store};
use crate::job::trace::Recorder;
use bytes::Bytes;
use files::Shelf;
use keeping::Unstored;
use measuring::Checking;
use protocol::job::FileDigest;
use protocol::message::{Event, ToClient, ToCoordinator, ToWorker};
use protocol::plan::Fabric;
use protocol::{JobId, RunId, WorkerId};
use recovery::Broken;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// A client's session, numbered by whoever serves it.
pub type ClientId = u64;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send this to a worker.
    Order {
        /// The worker.
        worker: WorkerId,
        /// The order.
        order: Box<ToWorker>,
        /// What goes with it.
        payload: Bytes,
    },
    /// Send this to a client.
    Tell {
        /// The client.
        client: ClientId,
        /// The message.
        message: Box<ToClient>,
        /// What goes with it.
        payload: Bytes,
    },
    /// End the session with a worker that is taken for lost: it may be alive, and must learn of it.
    Dismiss(WorkerId),
    /// Send a file to a worker.
    Provide {
        /// The worker.
        worker: WorkerId,
        /// The file.
        file: FileDigest,
    },
    /// Let go of a file: nobody needs it any more.
    Forget(FileDigest),
}

/// The coordinator's decisions.
#[derive(Debug)]
pub struct Director {
    now: Duration,
    /// Unix seconds when `now` is zero.
    unix: u64,
    registry: Registry,
    leases: Leases,
    queue: Queue,
    followers: BTreeMap<JobId, Vec<Follower>>,
    active: Option<Active>,
    checking: Option<Checking>,
    drains: Vec<(WorkerId, ClientId)>,
    /// Until when workers on which a computation failed get no work.
    resting: BTreeMap<WorkerId, Duration>,
    store: Box<dyn Keep>,
    /// Who hears of jobs that ended, beside their clients.
    ends: Option<SyncSender<EndedJob>>,
    /// What the store has not taken yet.
    unstored: Vec<Unstored>,
    store_rests_until: Duration,
    retention: Retention,
    forget_at: Duration,
    /// Until when jobs that were begun before this process wait for its workers.
    gathering_until: Duration,
    shutting_down: bool,
    tallies: Tallies,
    effects: Vec<Effect>,
    shelf: Shelf,
}

/// Who hears of a job.
#[derive(Debug)]
struct Follower {
    client: ClientId,
    /// Whether it is told the latent after each step.
    latents: bool,
    /// Whether it is told the image.
    image: bool,
    /// Where the job stood in the queue when the client was last told.
    told: Option<Event>,
}

impl Follower {
    /// The part of an event's payload that it wants.
    fn part(&self, event: &Event, payload: &Bytes) -> Bytes {
        let wanted = match event {
            Event::Step { .. } => self.latents,
            Event::Finished { .. } => self.image,
            _ => true,
        };
        if wanted { payload.clone() } else { Bytes::new() }
    }
}

/// The job being rendered.
#[derive(Debug)]
struct Active {
    asked: Waiting,
    run: RunState,
    /// Why the work is shared as it is.
    reason: String,
    pulses: Pulses,
    /// Where it can go on without a change of its bits, if not from its start.
    exact: Option<Checkpoint>,
    /// Set while it is broken off.
    broken: Option<Broken>,
    /// When its first run started, in unix seconds.
    started: u64,
    /// The last step that was told of.
    step: Option<Event>,
    /// When its ranks did what.
    recorder: Recorder,
    /// How many ranks it had at first.
    first_ranks: usize,
    /// When its present run began.
    run_began: Duration,
    /// How often in a row it broke off without a call done in between, but for links newly found to be cut.
    futile: u32,
    /// The links found to be cut since a call was done, whatever became of them.
    cut: BTreeSet<([WorkerId; 2], Fabric)>,
    /// The workers on which its computation failed.
    failed_on: Vec<WorkerId>,
}

impl Active {
    fn job(&self) -> JobId {
        self.asked.job
    }

    fn run_id(&self) -> RunId {
        self.run.plan().run
    }
}

impl Default for Director {
    /// One that keeps nothing.
    fn default() -> Self {
        Self::of(Box::new(Store::in_memory()), 0)
    }
}

impl Director {
    fn of(store: Box<dyn Keep>, unix: u64) -> Self {
        Self {
            now: Duration::ZERO,
            unix,
            registry: Registry::default(),
            leases: Leases::default(),
            queue: Queue::default(),
            followers: BTreeMap::new(),
            active: None,
            checking: None,
            drains: Vec::new(),
            resting: BTreeMap::new(),
            store,
            ends: None,
            unstored: Vec::new(),
            store_rests_until: Duration::ZERO,
            retention: Retention::default(),
            forget_at: Duration::ZERO,
            gathering_until: Duration::ZERO,
            shutting_down: false,
            tallies: Tallies::default(),
            effects: Vec::new(),
            shelf: Shelf::default(),
        }
    }

    /// What is to be done, in this order, because of what was said since this was last asked.
    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn order(&mut self, worker: WorkerId, order: ToWorker) {
        let (order, payload) = (Box::new(order), Bytes::new());
        self.effects.push(Effect::Order { worker, order, payload });
    }

    fn answer(&mut self, client: ClientId, message: ToClient) {
        self.send(client, message, Bytes::new());
    }

    fn send(&mut self, client: ClientId, message: ToClient, payload: Bytes) {
        self.effects.push(Effect::Tell { client, message: Box::new(message), payload });
    }

    fn tell(&mut self, job: JobId, event: Event, payload: Bytes) {
        for follower in self.followers.get(&job).into_iter().flatten() {
            let (client, payload) = (follower.client, follower.part(&event, &payload));
            let message = Box::new(ToClient::Event { job, event: event.clone() });
            self.effects.push(Effect::Tell { client, message, payload });
        }
    }

    /// Time has passed. Must be said every [`TICK`](crate::cluster::failure::TICK).
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        self.end_overdue_measurement();
        self.end_overdue_runs();
        for worker in self.leases.expired(now) {
            self.dismiss(worker, "it was silent for longer than its lease");
        }
        self.look_for_stalls();
        self.resting.retain(|_, until| now < *until);
        self.store_ends();
        self.go_on();
        self.tidy_shelf();
    }

    /// Stops every job, and starts no more. Those that are kept are gone on with by the next coordinator; others end.
    pub fn shut_down(&mut self, now: Duration) {
        self.now = now;
        self.shutting_down = true;
        self.end_all_jobs();
    }
}

fn because(cause: &str) -> String {
    if cause.is_empty() { String::new() } else { format!(": {cause}") }
}

/// The run that a message is about.
fn run_of(message: &ToCoordinator) -> Option<RunId> {
    match message {
        ToCoordinator::Alive { .. }
        | ToCoordinator::Leaving
        | ToCoordinator::Holds { .. }
        | ToCoordinator::Unheld { .. } => None,
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
