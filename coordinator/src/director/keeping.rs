//! What outlives this process, and how a coordinator goes on with what the one before it accepted.
//!
//! - **R-5 kept**: a job is accepted once it is stored, and its end is told once that is; a store that takes
//!   nothing for a while delays both, and is tried again.

use super::recovery::same_bands;
use super::{ClientId, Director};
use crate::job::checkpoint::Checkpoint;
use crate::job::queue::Waiting;
use crate::job::store::{Asked, EndedJob, Keep, Outcome, StoreError, StoredJob, StoredRun};
use bytes::{BufMut, Bytes, BytesMut};
use protocol::job::{JobRequest, JobSpec, Mode};
use protocol::message::{Event, RecoveryView, ToClient};
use protocol::plan::Plan;
use protocol::{Epoch, Fault, FaultKind, JobId};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

/// How long workers of the coordinator before this one may take to come back before a job that it had begun goes
/// on with those that did: their longest pause between two calls is two seconds.
pub const GATHER_PATIENCE: Duration = Duration::from_millis(2500);
/// How long a store that failed is left alone: a full disk is not emptied sooner, and nobody wants the message
/// more often.
pub const STORE_PAUSE: Duration = Duration::from_secs(1);
/// Images that are kept in memory take so many bytes at most: 85 of a megapixel.
const IN_MEMORY_BYTES: u64 = 256 << 20;
/// How often what is older is forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// How much is kept of jobs that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long.
    pub seconds: u64,
    /// How many bytes their images may take.
    pub image_bytes: u64,
}

impl Default for Retention {
    /// A day, and images of 4 GiB: a thousand of a megapixel.
    fn default() -> Self {
        Self { seconds: 24 * 3600, image_bytes: 4 << 30 }
    }
}

/// The end of a job, which the store has not taken yet.
#[derive(Debug)]
pub(super) struct Unstored {
    job: JobId,
    events: Vec<Event>,
    image: Bytes,
}

impl Director {
    /// Goes on with what is in `store`; `unix` is the time in unix seconds when all times given to this director
    /// are zero.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open(store: impl Keep + 'static, unix: u64) -> Result<Self, StoreError> {
        let unfinished = store.unfinished()?;
        for (job, fault) in &unfinished.unreadable {
            tracing::warn!(job = job.0, "it waits for another release: {fault}");
        }
        let mut director = Self::of(Box::new(store), unix);
        if !unfinished.unreadable.is_empty() {
            director.shelf.keep_all();
        }
        let begun = unfinished.jobs.iter().any(|stored| stored.run.is_some());
        director.gathering_until = if begun { GATHER_PATIENCE } else { Duration::ZERO };
        for stored in unfinished.jobs {
            let waiting = waiting(stored);
            let calls = waiting.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.calls);
            tracing::info!(job = waiting.job.0, "accepted before; it goes on after call {calls}");
            director.queue.push(waiting);
        }
        Ok(director)
    }

    /// Keeps what ended for so long from now on.
    pub fn retain(&mut self, retention: Retention) {
        self.retention = retention;
    }

    /// Whatever ends from now on is put in there, too, if there is room.
    pub fn tell_ends(&mut self, ends: SyncSender<EndedJob>) {
        self.ends = Some(ends);
    }

    pub(super) fn unix(&self) -> u64 {
        self.unix + self.now.as_secs()
    }

    /// Microseconds since 1970, good to a second.
    pub(super) fn unix_us(&self) -> u64 {
        let past = u64::try_from(self.now.as_micros()).unwrap_or(u64::MAX);
        self.unix.saturating_mul(1_000_000).saturating_add(past)
    }

    /// Whether the store may be tried.
    pub(super) fn store_rests(&self) -> bool {
        self.now < self.store_rests_until
    }

    /// What the store said, if it did what it was to do.
    pub(super) fn stored<T>(&mut self, said: Result<T, StoreError>) -> Result<T, Fault> {
        said.map_err(|error| {
            tracing::warn!("{error}");
            self.store_rests_until = self.now + STORE_PAUSE;
            Fault::new(FaultKind::Storage, error.to_string())
        })
    }

    /// Stores a job that is to be accepted, and gives its number.
    pub(super) fn store_accepted(&mut self, asked: &Asked) -> Result<JobId, Fault> {
        let accepted = self.store.accept(asked, self.unix());
        self.stored(accepted)
    }

    /// Stores that a run of `plan` starts (K-2 of the store). How its latent will be decoded is not
    /// what tells one image from another. Whether its bits are still those of an undisturbed run, `exact`, decides whether the
    /// next coordinator is to keep its bands.
    pub(super) fn store_started(
        &mut self,
        plan: &Plan,
        request: &JobRequest,
        exact: bool,
    ) -> Result<(), Fault> {
        let model = self.registry.model().map_or_else(String::new, |card| card.digest.clone());
        let spec = JobSpec { decode: request.decode, ..plan.spec.clone() };
        let kept = (request.deterministic && exact).then(|| plan.clone());
        let run = StoredRun { epoch: plan.run.epoch, model, spec, plan: kept };
        let started = self.store.started(plan.run.job, &run, self.unix());
        self.stored(started)
    }

    /// Stores how far the running job is. If that fails only steps can be lost, so it goes on.
    pub(super) fn store_checkpoint(&mut self) {
        let Some(active) = &self.active else { return };
        if !self.store.is_kept() || self.store_rests() {
            return;
        }
        // One that is to keep its bits goes on from where it can.
        let deterministic = active.asked.request.deterministic;
        let from = if deterministic { active.exact.as_ref() } else { active.run.checkpoint() };
        let Some(from) = from else { return };
        let mut bytes = BytesMut::with_capacity(1 + from.planes.len());
        bytes.put_u8(from.history);
        bytes.extend_from_slice(&from.planes);
        let stored = self.store.checkpoint(active.run_id(), from.calls, from.of, &bytes);
        self.stored(stored).ok(); // said, and steps are all it can cost
    }

    /// Ends a job: stores what a client that comes back is told, and then tells the one that is there. If the next
    /// coordinator could not know of the end, it would render what was told to be done.
    pub(super) fn end(&mut self, job: JobId, events: Vec<Event>, image: Bytes) {
        self.unstored.push(Unstored { job, events, image });
        self.store_ends();
    }

    /// Stores the ends that the store has not taken yet, tells of them, and forgets old ones.
    pub(super) fn store_ends(&mut self) {
        while let Some(Unstored { job, events, image }) = self.unstored.first() {
            if self.store_rests() {
                return;
            }
            let finished = self.store.finish(*job, events, image, self.unix());
            if self.stored(finished).is_err() {
                return;
            }
            let Unstored { job, mut events, image } = self.unstored.remove(0);
            self.export_end(job);
            if let Some(last) = events.pop() {
                self.tallies.ended(&last);
                self.tell(job, last, image);
            }
            self.followers.remove(&job);
            if !self.store.is_kept() {
                self.forget(); // memory is soon full
            }
        }
        if self.now >= self.forget_at && !self.store_rests() {
            self.forget_at = self.now + FORGET_EVERY;
            self.forget();
        }
    }

    fn export_end(&mut self, job: JobId) {
        let Some(ends) = &self.ends else { return };
        let ended = self.store.ended_job(job);
        if let Ok(Some(ended)) = ended
            && let Err(TrySendError::Full(_)) = ends.try_send(ended)
        {
            tracing::warn!(job = job.0, "its trace is left out: the collector is behind");
        }
    }

    fn forget(&mut self) {
        let Retention { seconds, image_bytes } = self.retention;
        let bytes = if self.store.is_kept() { image_bytes } else { IN_MEMORY_BYTES };
        let forgotten = self.store.forget(self.unix().saturating_sub(seconds), bytes);
        self.stored(forgotten).ok(); // said, and tried again
    }

    /// Whether a job has ended, and the store does not know it yet.
    pub(super) fn ends(&self, job: JobId) -> bool {
        self.unstored.iter().any(|unstored| unstored.job == job)
    }

    /// How a job ended, if it did.
    pub(super) fn ended(&mut self, job: JobId) -> Result<Option<Outcome>, Fault> {
        let outcome = self.store.outcome(job);
        self.stored(outcome)
    }

    /// Tells a client that came back how a job ended.
    pub(super) fn tell_ended(
        &mut self,
        client: ClientId,
        job: JobId,
        outcome: Outcome,
        with_image: bool,
    ) {
        let kept = self.store.is_kept();
        self.answer(client, ToClient::Accepted { job, ahead: 0, kept, again: true });
        let Outcome { mut events, image, .. } = outcome;
        let last = events.pop();
        // A trace is long, and told to those who ask for it.
        events.retain(|event| !matches!(event, Event::Traced { .. }));
        for event in events {
            self.answer(client, ToClient::Event { job, event });
        }
        if let Some(event) = last {
            let image = if with_image { image } else { Bytes::new() };
            self.send(client, ToClient::Event { job, event }, image);
        }
    }
}

/// A job that a coordinator before this one accepted.
fn waiting(stored: StoredJob) -> Waiting {
    let StoredJob { job, accepted, started, asked, run, checkpoint } = stored;
    let epoch = run.as_ref().map_or(Epoch(0), |run| Epoch(run.epoch.0 + 1));
    let checkpoint = checkpoint.and_then(|stored| {
        let history = *stored.bytes.first()?;
        let planes = stored.bytes.slice(1..);
        Some(Checkpoint { calls: stored.calls, of: stored.of, history, planes })
    });
    let (model, plan) = run.map(|run| (run.model, run.plan)).unzip();
    let plan = plan.flatten();
    Waiting { started, epoch, model, checkpoint, plan, ..Waiting::new(job, None, asked, accepted) }
}

/// What people are told of a job that the coordinator before this one had begun.
pub(super) fn taken_up(
    plan: &Plan,
    checkpoint: Option<&Checkpoint>,
    old: Option<&Plan>,
) -> RecoveryView {
    let calls = checkpoint.map_or(0, |checkpoint| checkpoint.calls);
    let ranks = u16::try_from(plan.world_size()).unwrap_or(u16::MAX);
    let cause = "the coordinator ended, and the next one goes on";
    RecoveryView {
        fault: Fault::new(FaultKind::ShuttingDown, cause),
        broke_at: calls,
        resumed_at: calls,
        seconds: 0.0, // nobody was there to count them
        workers: [ranks; 2],
        // Where bands were is kept of those that are to keep their bits; it matters where values are displaced.
        exact: match old {
            Some(old) => same_bands(old, plan) && plan.resumes_exactly(calls),
            None => plan.spec.mode == Mode::FullSync && calls == 0,
        },
    }
}
