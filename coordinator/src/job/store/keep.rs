//! What the coordinator's decisions need of a store. [`Store`] is the one with files; a simulation has another,
//! whose disk is full when it wants it to be.

use super::{Outcome, Store, StoreError, Unfinished};
use protocol::job::{JobRequest, JobSpec};
use protocol::message::Event;
use protocol::{JobId, RunId};
use std::fmt;

/// Keeps jobs as [`Store`] does: K-1 to K-3, and each call as its namesake there.
#[expect(clippy::missing_errors_doc, reason = "they are those of `Store`")]
pub trait Keep: fmt::Debug {
    /// [`Store::is_kept`]
    fn is_kept(&self) -> bool;
    /// [`Store::unfinished`]
    fn unfinished(&self) -> Result<Unfinished, StoreError>;
    /// [`Store::accept`]
    fn accept(&mut self, request: &JobRequest, seed: u64, now: u64) -> Result<JobId, StoreError>;
    /// [`Store::started`]
    fn started(&mut self, run: RunId, model: &str, spec: &JobSpec) -> Result<(), StoreError>;
    /// [`Store::checkpoint`]
    fn checkpoint(
        &mut self,
        run: RunId,
        calls: u32,
        of: u32,
        bytes: &[u8],
    ) -> Result<(), StoreError>;
    /// [`Store::finish`]
    fn finish(
        &mut self,
        job: JobId,
        events: &[Event],
        image: &[u8],
        now: u64,
    ) -> Result<(), StoreError>;
    /// [`Store::outcome`]
    fn outcome(&self, job: JobId) -> Result<Option<Outcome>, StoreError>;
    /// [`Store::forget_before`]
    fn forget_before(&mut self, time: u64) -> Result<usize, StoreError>;
}

impl Keep for Store {
    fn is_kept(&self) -> bool {
        self.is_kept()
    }

    fn unfinished(&self) -> Result<Unfinished, StoreError> {
        self.unfinished()
    }

    fn accept(&mut self, request: &JobRequest, seed: u64, now: u64) -> Result<JobId, StoreError> {
        self.accept(request, seed, now)
    }

    fn started(&mut self, run: RunId, model: &str, spec: &JobSpec) -> Result<(), StoreError> {
        self.started(run, model, spec)
    }

    fn checkpoint(
        &mut self,
        run: RunId,
        calls: u32,
        of: u32,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        self.checkpoint(run, calls, of, bytes)
    }

    fn finish(
        &mut self,
        job: JobId,
        events: &[Event],
        image: &[u8],
        now: u64,
    ) -> Result<(), StoreError> {
        self.finish(job, events, image, now)
    }

    fn outcome(&self, job: JobId) -> Result<Option<Outcome>, StoreError> {
        self.outcome(job)
    }

    fn forget_before(&mut self, time: u64) -> Result<usize, StoreError> {
        self.forget_before(time)
    }
}
