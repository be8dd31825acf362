//! The coordinator's disk: keeps what `coordinator::job::store` keeps, in memory that outlives the coordinator's
//! process, and is full when a fault says so. A loss of power may bring the checkpoint before the last back.

use coordinator::job::store::{
    Asked, EndedJob, Keep, Outcome, StoreError, StoredCheckpoint, StoredJob, StoredRun, Unfinished,
};
use protocol::message::{Event, JobStage};
use protocol::{JobId, RunId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A disk, and a process's use of it: clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Disk(Rc<RefCell<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    full: bool,
    accepted: u64,
    jobs: BTreeMap<JobId, StoredJob>,
    /// The checkpoints before the last ones.
    former: BTreeMap<JobId, Option<StoredCheckpoint>>,
    outcomes: BTreeMap<JobId, Outcome>,
    /// Those that ended since this was last asked.
    ended: Vec<(JobId, Outcome)>,
}

impl Disk {
    /// Nothing can be written any more, or again.
    pub fn fill(&self, full: bool) {
        self.0.borrow_mut().full = full;
    }

    /// The machine lost power: what was not yet on the disk is lost.
    pub fn lose_power(&self) {
        let Contents { jobs, former, .. } = &mut *self.0.borrow_mut();
        for (job, checkpoint) in std::mem::take(former) {
            if let Some(stored) = jobs.get_mut(&job) {
                stored.checkpoint = checkpoint;
            }
        }
    }

    /// The jobs that have no end there.
    #[must_use]
    pub fn unfinished_jobs(&self) -> BTreeSet<JobId> {
        self.0.borrow().jobs.keys().copied().collect()
    }

    /// The ends that were written since this was last asked.
    pub fn take_ended(&self) -> Vec<(JobId, Outcome)> {
        std::mem::take(&mut self.0.borrow_mut().ended)
    }

    /// One change. All that was written before is on the disk with it, if it is `durable`.
    fn write<T>(
        &self,
        durable: bool,
        what: &str,
        change: impl FnOnce(&mut Contents) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let contents = &mut *self.0.borrow_mut();
        if contents.full {
            return Err(StoreError::Full { place: "disk".to_owned(), what: what.to_owned() });
        }
        let changed = change(contents)?;
        if durable {
            contents.former.clear();
        }
        Ok(changed)
    }
}

impl Keep for Disk {
    fn is_kept(&self) -> bool {
        true
    }

    fn unfinished(&self) -> Result<Unfinished, StoreError> {
        let jobs = self.0.borrow().jobs.values().cloned().collect();
        Ok(Unfinished { jobs, unreadable: Vec::new() })
    }

    fn accept(&mut self, asked: &Asked, now: u64) -> Result<JobId, StoreError> {
        self.write(true, "a new job", |contents| {
            contents.accepted += 1;
            let job = JobId(contents.accepted);
            let (accepted, asked) = (now, asked.clone());
            let (started, run, checkpoint) = (None, None, None);
            let stored = StoredJob { job, accepted, started, asked, run, checkpoint };
            contents.jobs.insert(job, stored);
            Ok(job)
        })
    }

    fn known(&mut self, _: &str, _: &str) -> Result<Option<(JobId, Asked)>, StoreError> {
        Ok(None) // no simulated client names its submissions
    }

    fn started(&mut self, job: JobId, new: &StoredRun, now: u64) -> Result<(), StoreError> {
        self.write(true, "a start", |contents| {
            let stored = contents.jobs.get_mut(&job).ok_or(StoreError::NotUnfinished(job))?;
            let last = stored.run.as_ref().map(|run| run.epoch);
            if last >= Some(new.epoch) {
                return Err(StoreError::OutOfOrder { run: RunId { job, epoch: new.epoch }, last });
            }
            let same = |old: &StoredRun| (&old.model, &old.spec) == (&new.model, &new.spec);
            if stored.run.as_ref().is_some_and(|old| !same(old)) {
                stored.checkpoint = None;
            }
            stored.run = Some(new.clone());
            stored.started.get_or_insert(now);
            Ok(())
        })
    }

    fn checkpoint(
        &mut self,
        run: RunId,
        calls: u32,
        of: u32,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        self.write(false, "a checkpoint", |contents| {
            let stored = contents.jobs.get_mut(&run.job);
            let stored = stored.ok_or(StoreError::NotUnfinished(run.job))?;
            let last = stored.run.as_ref().map(|run| run.epoch);
            if last != Some(run.epoch) {
                return Err(StoreError::OutOfOrder { run, last });
            }
            let bytes = bytes.to_vec().into();
            let former = stored.checkpoint.replace(StoredCheckpoint { calls, of, bytes });
            contents.former.insert(run.job, former);
            Ok(())
        })
    }

    fn finish(
        &mut self,
        job: JobId,
        events: &[Event],
        image: &[u8],
        now: u64,
    ) -> Result<(), StoreError> {
        self.write(true, "an end", |contents| {
            contents.jobs.remove(&job).ok_or(StoreError::NotUnfinished(job))?;
            let (ended, events, image) = (now, events.to_vec(), image.to_vec().into());
            let outcome = Outcome { ended, events, image };
            contents.ended.push((job, outcome.clone()));
            contents.outcomes.insert(job, outcome);
            Ok(())
        })
    }

    fn outcome(&self, job: JobId) -> Result<Option<Outcome>, StoreError> {
        Ok(self.0.borrow().outcomes.get(&job).cloned())
    }

    fn ended_job(&self, _: JobId) -> Result<Option<EndedJob>, StoreError> {
        Ok(None) // no simulated client asks
    }

    fn ended_jobs(
        &self,
        _: Option<JobId>,
        _: &[JobStage],
        _: usize,
    ) -> Result<Vec<EndedJob>, StoreError> {
        Ok(Vec::new())
    }

    fn forget(&mut self, time: u64, _: u64) -> Result<usize, StoreError> {
        self.write(false, "what is forgotten", |contents| {
            let before = contents.outcomes.len();
            contents.outcomes.retain(|_, outcome| outcome.ended >= time);
            Ok(before - contents.outcomes.len())
        })
    }
}
