//! What clients ask of jobs, whoever submitted them.

use super::jobs::unknown;
use super::{Active, ClientId, Director};
use crate::job::checkpoint::Checkpoint;
use crate::job::queue::{WAITING_MAX, Waiting};
use crate::job::store::{EndedJob, StoreError};
use bytes::Bytes;
use protocol::codec::{CONTROL_BODY_BYTES_MAX, encode_body};
use protocol::message::{Event, JobRecord, JobResult, JobStage, JobTrace, Part, ToClient};
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
            Part::Trace => match running {
                Some(active) => encoded(active.recorder.trace()),
                None => self.kept_trace(job),
            },
            Part::Image if running.is_some() => Ok(Bytes::new()),
            Part::Image => Ok(self.ended(job)?.map(|outcome| outcome.image).unwrap_or_default()),
        }
    }

    /// What is kept of when the ranks of a job that ended did what.
    fn kept_trace(&mut self, job: JobId) -> Result<Bytes, Fault> {
        let ended = self.store.ended_job(job);
        let events = self.stored(ended)?.map(|ended| ended.events).unwrap_or_default();
        let trace = events.iter().find_map(|event| match event {
            Event::Traced { trace } => Some(encoded(trace)),
            _ => None,
        });
        trace.unwrap_or(Ok(Bytes::new()))
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

fn encoded(trace: &JobTrace) -> Result<Bytes, Fault> {
    let body = encode_body(trace);
    body.map(Bytes::from).map_err(|error| Fault::new(FaultKind::Protocol, error.to_string()))
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
    let asked = Waiting { started, ..Waiting::new(job, None, asked, accepted) };
    let mut record = JobRecord { ended: Some(ended), ahead: None, ..of_waiting(&asked, 0) };
    events.into_iter().for_each(|event| took_place(&mut record, event));
    record
}

/// Adds what an event of a job that ended tells of it.
fn took_place(record: &mut JobRecord, event: Event) {
    match event {
        Event::Started { spec, model, geometry, bands, reason, .. } => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::director::Effect;
    use crate::director::fixture::{CLIENT, START, cluster, started};
    use crate::planner::tests::request;
    use protocol::job::{JobRequest, Priority, Terms};
    use protocol::message::{ToCoordinator, ToWorker, Traffic};
    use protocol::plan::{Fabric, Kind};

    const WATCHER: ClientId = 2;

    fn terms(key: Option<&str>) -> Terms {
        let idempotency_key = key.map(str::to_owned);
        Terms { detached: true, priority: Priority::Normal, idempotency_key }
    }

    fn submit(director: &mut Director, request: JobRequest, key: Option<&str>) -> Vec<ToClient> {
        let standing = Standing { owner: "ann".to_owned(), waiting_max: 2 };
        director.submit((CLIENT, &standing), (request, terms(key)), 7, START);
        told(director, CLIENT).into_iter().map(|(message, _)| message).collect()
    }

    fn told(director: &mut Director, to: ClientId) -> Vec<(ToClient, Bytes)> {
        let told = |effect| match effect {
            Effect::Tell { client, message, payload } if client == to => Some((*message, payload)),
            _ => None,
        };
        director.effects().into_iter().filter_map(told).collect()
    }

    fn accepted(told: &[ToClient]) -> JobId {
        let job = told.iter().find_map(|message| match message {
            ToClient::Accepted { job, .. } => Some(*job),
            _ => None,
        });
        job.unwrap_or_else(|| panic!("{told:?}"))
    }

    fn record(director: &mut Director, job: JobId) -> JobRecord {
        director.show(CLIENT, job, Part::Record, START);
        match told(director, CLIENT).pop() {
            Some((ToClient::Job(record), _)) => *record,
            other => panic!("{other:?}"),
        }
    }

    fn refused(messages: &[ToClient]) -> FaultKind {
        match messages {
            [ToClient::Refused(fault)] => fault.kind,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_detached_job_outlives_its_client_and_its_record_its_end() {
        let (mut director, workers) = cluster(1);
        let job = accepted(&submit(&mut director, request(), None));
        let waiting = accepted(&submit(&mut director, request(), None));
        director.client_left(CLIENT, START);
        assert_eq!(record(&mut director, job).stage, JobStage::Running);
        assert_eq!(record(&mut director, waiting).ahead, Some(1));
        let active = director.active.as_ref().unwrap();
        let (plan, run) = (active.run.plan().clone(), active.run_id());
        let pixels = plan.spec.width * plan.spec.height * 3;
        let image = Bytes::from(vec![3; usize::try_from(pixels).unwrap()]);
        let decoded = ToCoordinator::Decoded { run, took_us: 1, waited_us: 1, peak_bytes: 1 };
        director.worker_said(workers[0], decoded, image.clone(), START);
        let ended = record(&mut director, job);
        assert_eq!((ended.stage, ended.owner.as_str()), (JobStage::Finished, "ann"));
        assert_eq!((ended.spec, ended.bands.len()), (Some(plan.spec), 1));
        assert!(ended.result.is_some() && ended.started.is_some() && ended.ended.is_some());
        director.show(CLIENT, job, Part::Image, START);
        assert_eq!(told(&mut director, CLIENT).pop().unwrap().1, image);
        assert_eq!(record(&mut director, waiting).stage, JobStage::Running);
        assert_eq!((director.tallies().finished, director.tallies().accepted), (1, 2));
    }

    #[test]
    fn whoever_watches_is_told_what_it_wants_and_its_leaving_ends_nothing() {
        let (mut director, workers) = cluster(1);
        let job = accepted(&submit(&mut director, request(), None));
        director.watch(WATCHER, job, true, START);
        let heard = told(&mut director, WATCHER);
        assert!(
            matches!(&heard[1].0, ToClient::Event { event: Event::Started { .. }, .. }),
            "{heard:?}"
        );
        let active = director.active.as_ref().unwrap();
        let (geometry, run) = (active.run.plan().geometry, active.run_id());
        let values = geometry.rows * geometry.columns * geometry.channels;
        let latent = Bytes::from(vec![1; usize::try_from(values * 4).unwrap()]);
        let stepped = ToCoordinator::Stepped {
            run,
            call: 0,
            calls: 2,
            took_us: 5,
            waited_us: 1,
            traffic: Traffic { posted: vec![(Fabric::Quic, Kind::Moments, 9)], read: [3, 4] },
            displaced: false,
            change: None,
            history: 0,
        };
        director.worker_said(workers[0], stepped, latent.clone(), START);
        let mut clients: Vec<(ClientId, usize)> = Vec::new();
        for effect in director.effects() {
            if let Effect::Tell { client, message, payload } = effect
                && let ToClient::Event { event: Event::Step { .. }, .. } = &*message
            {
                clients.push((client, payload.len()));
            }
        }
        assert_eq!(clients, [(CLIENT, 0), (WATCHER, latent.len())]);
        director.client_left(WATCHER, START);
        assert_eq!(record(&mut director, job).progress, Some((1, 2)));
        // Who comes late hears of the last step again.
        director.watch(WATCHER, job, false, START);
        let heard = told(&mut director, WATCHER);
        assert!(matches!(&heard[2].0, ToClient::Event { event: Event::Step { .. }, .. }));
        director.show(WATCHER, job, Part::Latent, START);
        assert_eq!(told(&mut director, WATCHER)[0].1, latent);
    }

    #[test]
    fn a_job_is_cancelled_wherever_it_is_but_not_twice() {
        let (mut director, _) = cluster(1);
        let running = accepted(&submit(&mut director, request(), None));
        let waiting = accepted(&submit(&mut director, request(), None));
        for job in [waiting, running] {
            director.cancel(WATCHER, job, START);
            let aborts = director.effects().into_iter().filter_map(|effect| match effect {
                Effect::Order { order, .. } => {
                    matches!(*order, ToWorker::Abort { .. }).then_some(())
                }
                _ => None,
            });
            assert_eq!(aborts.count(), usize::from(job == running), "{job}");
            assert_eq!(record(&mut director, job).stage, JobStage::Cancelled);
            director.cancel(WATCHER, job, START);
            let heard: Vec<_> =
                told(&mut director, WATCHER).into_iter().map(|each| each.0).collect();
            assert_eq!(refused(&heard), FaultKind::Conflict);
        }
        director.cancel(WATCHER, JobId(99), START);
        let heard: Vec<_> = told(&mut director, WATCHER).into_iter().map(|each| each.0).collect();
        assert_eq!(refused(&heard), FaultKind::UnknownJob);
        assert_eq!(director.tallies().cancelled, 2);
    }

    #[test]
    fn a_submission_said_again_is_the_same_job_and_one_that_asks_for_more_is_refused() {
        let (mut director, _) = cluster(0);
        let job = accepted(&submit(&mut director, request(), Some("once")));
        assert_eq!(accepted(&submit(&mut director, request(), Some("once"))), job);
        let other = JobRequest { steps: Some(9), ..request() };
        assert_eq!(refused(&submit(&mut director, other, Some("once"))), FaultKind::Conflict);
        assert_ne!(accepted(&submit(&mut director, request(), Some("twice"))), job);
        let full = submit(&mut director, request(), None);
        assert_eq!(refused(&full), FaultKind::QueueFull, "two of an owner's may wait");
        assert_eq!(director.tallies().refused, 2);
    }

    #[test]
    fn jobs_are_listed_last_first_by_stage_and_in_pages() {
        let (mut director, _) = cluster(1);
        let jobs: Vec<JobId> =
            (0..3).map(|_| accepted(&submit(&mut director, request(), None))).collect();
        director.cancel(CLIENT, jobs[1], START);
        director.effects();
        let mut list = |before, limit, stages: &[JobStage]| {
            director.list(CLIENT, (before, limit), stages, START);
            match told(&mut director, CLIENT).pop() {
                Some((ToClient::Jobs { jobs, more }, _)) => {
                    (jobs.iter().map(|job| job.id).collect::<Vec<_>>(), more)
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(list(None, 9, &[]), (vec![jobs[2], jobs[1], jobs[0]], false));
        assert_eq!(list(None, 2, &[]), (vec![jobs[2], jobs[1]], true));
        assert_eq!(list(Some(jobs[1]), 2, &[]), (vec![jobs[0]], false));
        assert_eq!(list(None, 9, &[JobStage::Queued]), (vec![jobs[2]], false));
        assert_eq!(list(None, 9, &[JobStage::Cancelled]), (vec![jobs[1]], false));
        assert_eq!(list(None, 9, &[JobStage::Finished]), (vec![], false));
    }

    #[test]
    fn records_that_do_not_fit_a_frame_come_in_more_than_one() {
        let (mut director, _) = cluster(0);
        for _ in 0..2 {
            let request = JobRequest { prompt: "x".repeat(RECORDS_BYTES_MAX / 2 + 1), ..request() };
            accepted(&submit(&mut director, request, None));
        }
        director.list(CLIENT, (None, 9), &[], START);
        let (jobs, more) = match told(&mut director, CLIENT).pop() {
            Some((ToClient::Jobs { jobs, more }, _)) => (jobs, more),
            other => panic!("{other:?}"),
        };
        assert_eq!((jobs.len(), more), (1, true));
        assert!(started(&director.effects()).is_empty());
    }
}
