//! What the coordinator's decisions need of a store. [`Store`](super::Store) is the one with files; a simulation has
//! another, whose disk is full when it wants it to be.

use super::{Outcome, StoreError, Unfinished};
use protocol::job::{JobRequest, JobSpec};
use protocol::message::Event;
use protocol::{JobId, RunId};
use std::fmt;

/// Keeps jobs: K-1 to K-3 of the [store](super). Times are unix seconds.
pub trait Keep: fmt::Debug {
    /// Whether what is in it outlives this process.
    #[must_use]
    fn is_kept(&self) -> bool;

    /// The jobs that have not ended.
    ///
    /// # Errors
    /// If the database cannot be read.
    fn unfinished(&self) -> Result<Unfinished, StoreError>;

    /// Takes a job in, and gives it its number.
    ///
    /// # Errors
    /// If it cannot be stored; then it is not accepted.
    fn accept(&mut self, request: &JobRequest, seed: u64, now: u64) -> Result<JobId, StoreError>;

    /// Takes down that a run of a job starts, before any worker hears of it (K-2), with `model`, by
    /// its digest. A checkpoint of another spec or model is dropped (K-3).
    ///
    /// # Errors
    /// If the epoch is not higher than those of the job's runs so far, the job is not unfinished, or
    /// it cannot be stored.
    fn started(&mut self, run: RunId, model: &str, spec: &JobSpec) -> Result<(), StoreError>;

    /// Replaces a job's checkpoint by the one after `calls` of `of` model calls.
    ///
    /// # Errors
    /// If the run is not the job's last, the job is not unfinished, or it cannot be stored; then the
    /// former one is still there.
    fn checkpoint(
        &mut self,
        run: RunId,
        calls: u32,
        of: u32,
        bytes: &[u8],
    ) -> Result<(), StoreError>;

    /// Takes down how a job ended: what a client that comes back is told, with the last event's
    /// payload. Its checkpoint is dropped.
    ///
    /// # Errors
    /// If it is not unfinished, or cannot be stored; then it still is.
    fn finish(
        &mut self,
        job: JobId,
        events: &[Event],
        image: &[u8],
        now: u64,
    ) -> Result<(), StoreError>;

    /// How a job ended. None if it has not, was forgotten, or never was.
    ///
    /// # Errors
    /// If the database cannot be read.
    fn outcome(&self, job: JobId) -> Result<Option<Outcome>, StoreError>;

    /// Forgets the jobs that ended before `time`, and those that another release accepted before and
    /// this one cannot read. Says how many. The database keeps its size; what is free is used again.
    ///
    /// Forgetting reads all that it forgets: little and often is better than much at once.
    ///
    /// # Errors
    /// If it cannot be written; then nothing is forgotten.
    fn forget_before(&mut self, time: u64) -> Result<usize, StoreError>;
}
