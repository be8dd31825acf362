//! What the coordinator's decisions need of a store. [`Store`](super::Store) is the one with files; a simulation has
//! another, whose disk is full when it wants it to be.

use super::{Asked, EndedJob, Outcome, StoreError, StoredRun, Unfinished};
use protocol::message::{Event, JobStage};
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
    fn accept(&mut self, asked: &Asked, now: u64) -> Result<JobId, StoreError>;

    /// The job that `owner` submitted under this idempotency key, and what it asked for. None if there is
    /// none, or it was forgotten.
    ///
    /// # Errors
    /// If the database cannot be read.
    fn known(&mut self, owner: &str, key: &str) -> Result<Option<(JobId, Asked)>, StoreError>;

    /// Takes down that a run of a job starts, before any worker hears of it (K-2). A checkpoint of another spec or
    /// model is dropped (K-3).
    ///
    /// # Errors
    /// If the epoch is not higher than those of the job's runs so far, the job is not unfinished, or
    /// it cannot be stored.
    fn started(&mut self, job: JobId, run: &StoredRun, now: u64) -> Result<(), StoreError>;

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

    /// What became of a job that ended. None if it has not, was forgotten, or cannot be read by this
    /// release.
    ///
    /// # Errors
    /// If the database cannot be read.
    fn ended_job(&self, job: JobId) -> Result<Option<EndedJob>, StoreError>;

    /// Jobs that ended, those accepted last first: accepted before `before`, if that is given, which
    /// ended at one of these `stages`, and no more than `limit`. Those that this release cannot read are
    /// left out.
    ///
    /// # Errors
    /// If the database cannot be read.
    fn ended_jobs(
        &self,
        before: Option<JobId>,
        stages: &[JobStage],
        limit: usize,
    ) -> Result<Vec<EndedJob>, StoreError>;

    /// Forgets the jobs that ended before `time`, and those that another release accepted before and
    /// this one cannot read; and of the others those that ended first, while images of more than
    /// `image_bytes_max` are kept. Says how many. The database keeps its size; what is free is used
    /// again.
    ///
    /// Forgetting reads all that it forgets: little and often is better than much at once.
    ///
    /// # Errors
    /// If it cannot be written; then nothing is forgotten.
    fn forget(&mut self, time: u64, image_bytes_max: u64) -> Result<usize, StoreError>;
}
