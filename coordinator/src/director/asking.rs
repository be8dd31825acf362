//! What clients ask of jobs, whoever submitted them.

use super::jobs::unknown;
use super::{Active, ClientId, Director};
use crate::job::checkpoint::Checkpoint;
use crate::job::queue::{WAITING_MAX, Waiting};
use crate::job::store::{EndedJob, StoreError};
use bytes::Bytes;
use protocol::codec::{CONTROL_BODY_BYTES_MAX, encode_body};
use protocol::job::JobRequest;
use protocol::message::{Event, JobRecord, JobResult, JobStage, Part, ToClient};
use protocol::{Fault, FaultKind, JobId};
use std::time::Duration;

/// An answer holds this many bytes of records at most: a frame, with room for what is around them.
const RECORDS_BYTES_MAX: usize = CONTROL_BODY_BYTES_MAX / 4 * 3;

/// As whom a client submits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who it is: those of one name share a turn in the queue.
    pub owner: String,
    /// How many of its jobs may wait.
    pub waiting_max: usize,
}

impl Standing {
    /// Of a client that is limited by the queue only.
    #[must_use]
    pub fn of(owner: impl Into<String>) -> Self {
        Self { owner: owner.into(), waiting_max: WAITING_MAX }
    }
}

impl Director {
    /// Ends a job at its next call boundary.
    pub fn cancel(&mut self, client: ClientId, job: JobId, now: Duration) {
        self.now = now;
        let fault = Fault::new(FaultKind::Cancelled, "someone asked for it to end");
        if self.queue.remove(job) {
            self.end(job, vec![Event::Failed { fault }], Bytes::new());
            self.go_on();
        } else if self.active.as_ref().is_some_and(|active| active.job() == job) {
            self.fail(fault);
        } else {
            let fault = match self.record(job) {
                Ok(record) => {
                    let cause = format!("{job} has ended: it is {}", record.stage.name());
                    Fault::new(FaultKind::Conflict, cause)
                }
                Err(fault) => fault,
            };
            return self.answer(client, ToClient::Refused(fault));
        }
        self.show(client, job, Part::Record, now);
    }

    /// Tells a client what became of a job.
    pub fn show(&mut self, client: ClientId, job: JobId, with: Part, now: Duration) {
        self.now = now;
        let shown = self.record(job).and_then(|record| Ok((record, self.part(job, with)?)));
        match shown {
            Ok((record, payload)) => self.send(client, ToClient::Job(Box::new(record)), payload),
            Err(fault) => self.answer(client, ToClient::Refused(fault)),
        }
    }

    fn part(&mut self, job: JobId, part: Part) -> Result<Bytes, Fault> {
        let running = self.active.as_ref().filter(|active| active.job() == job);
        match part {
            Part::Record => Ok(Bytes::new()),
            Part::Latent => {
                let checkpoint = running.and_then(|active| active.run.checkpoint());
                Ok(checkpoint.map(Checkpoint::latent).unwrap_or_default())
            }
            Part::Image if running.is_some() => Ok(Bytes::new()),
            Part::Image => Ok(self.ended(job)?.map(|outcome| outcome.image).unwrap_or_default()),
        }
    }

    /// Tells a client of jobs, those submitted last first.
    pub fn list(
        &mut self,
        client: ClientId,
        (before, limit): (Option<JobId>, u16),
        stages: &[JobStage],
        now: Duration,
    ) {
        self.now = now;
        match self.records(before, usize::from(limit.max(1)), stages) {
            Ok((jobs, more)) => self.answer(client, ToClient::Jobs { jobs, more }),
            Err(fault) => self.answer(client, ToClient::Refused(fault)),
        }
    }

    fn records(
        &mut self,
        before: Option<JobId>,
        limit: usize,
        stages: &[JobStage],
    ) -> Result<(Vec<JobRecord>, bool), Fault> {
        let stages = if stages.is_empty() { JobStage::ALL } else { stages };
        let ends: Vec<JobStage> = stages.iter().copied().filter(|stage| stage.is_end()).collect();
        let ended = self.store.ended_jobs(before, &ends, limit + 1);
        let ended = self.stored(ended)?.into_iter().map(of_ended);
        let mut all: Vec<JobRecord> = self.unfinished_records().chain(ended).collect();
        all.retain(|record| {
            stages.contains(&record.stage) && before.is_none_or(|before| record.id < before)
        });
        all.sort_unstable_by_key(|record| std::cmp::Reverse(record.id));
        let (mut bytes, mut fitting) = (0, 0);
        for record in all.iter().take(limit) {
            bytes += encode_body(record).map_or(0, |body| body.len());
            if fitting > 0 && bytes > RECORDS_BYTES_MAX {
                break;
            }
            fitting += 1;
        }
        let more = all.len() > fitting;
        all.truncate(fitting);
        Ok((all, more))
    }

    fn unfinished_records(&self) -> impl Iterator<Item = JobRecord> {
        let running = self.active.iter().map(|active| self.of_active(active));
        let first = u32::from(self.active.is_some());
        running.chain(
            self.queue.iter().zip(first..).map(|(waiting, ahead)| of_waiting(waiting, ahead)),
        )
    }

    /// What became of a job.
    fn record(&mut self, job: JobId) -> Result<JobRecord, Fault> {
        if let Some(record) = self.unfinished_records().find(|record| record.id == job) {
            return Ok(record);
        }
        if self.ends(job) {
            let cause =
                format!("{job} has ended, and the store has no room for that yet: ask again");
            return Err(Fault::new(FaultKind::Storage, cause));
        }
        let ended: Result<Option<EndedJob>, StoreError> = self.store.ended_job(job);
        self.stored(ended)?.map(of_ended).ok_or_else(|| unknown(job))
    }

    fn of_active(&self, active: &Active) -> JobRecord {
        let plan = active.run.plan();
        let fault = active.broken.as_ref().map(|broken| broken.fault().clone());
        let stage = if fault.is_some() { JobStage::Interrupted } else { JobStage::Running };
        JobRecord {
            stage,
            started: Some(active.started),
            spec: Some(plan.spec.clone()),
            model: self.registry.model().map(|card| card.name.clone()),
            geometry: Some(plan.geometry),
            progress: Some(active.run.progress().unwrap_or_default()),
            bands: super::view::bands(plan),
            reason: active.reason.clone(),
            fault,
            ahead: None,
            ..of_waiting(&active.asked, 0)
        }
    }
}

fn of_waiting(waiting: &Waiting, ahead: u32) -> JobRecord {
    JobRecord {
        id: waiting.job,
        stage: JobStage::Queued,
        priority: waiting.priority,
        owner: waiting.owner.clone(),
        request: waiting.request.clone(),
        seed: waiting.request.seed.unwrap_or(waiting.seed),
        accepted: waiting.accepted,
        started: waiting.started,
        ended: None,
        ahead: Some(ahead),
        spec: None,
        model: None,
        geometry: None,
        progress: None,
        bands: Vec::new(),
        reason: String::new(),
        fault: None,
        result: None,
    }
}

fn of_ended(ended: EndedJob) -> JobRecord {
    let EndedJob { job, asked, accepted, started, ended, events } = ended;
    let request: JobRequest = asked.request;
    let mut record = JobRecord {
        id: job,
        stage: JobStage::Failed,
        priority: asked.priority,
        owner: asked.owner,
        seed: request.seed.unwrap_or(asked.seed),
        request,
        accepted,
        started,
        ended: Some(ended),
        ahead: None,
        spec: None,
        model: None,
        geometry: None,
        progress: None,
        bands: Vec::new(),
        reason: String::new(),
        fault: None,
        result: None,
    };
    events.into_iter().for_each(|event| took_place(&mut record, event));
    record
}

/// Adds what an event of a job that ended tells of it.
fn took_place(record: &mut JobRecord, event: Event) {
    match event {
        Event::Started { spec, model, geometry, bands, reason } => {
            record.spec = Some(*spec);
            record.model = Some(model);
            record.geometry = Some(geometry);
            record.bands = bands;
            record.reason = reason;
        }
        Event::Finished {
            seconds_per_step,
            seconds,
            waits,
            latent,
            displaced_calls,
            recoveries,
        } => {
            record.stage = JobStage::Finished;
            record.result = Some(JobResult {
                seconds_per_step,
                seconds,
                waits,
                latent,
                displaced_calls,
                recoveries,
            });
        }
        Event::Failed { fault } => {
            let cancelled = fault.kind == FaultKind::Cancelled;
            record.stage = if cancelled { JobStage::Cancelled } else { JobStage::Failed };
            record.fault = Some(fault);
        }
        _ => {}
    }
}
