//! What must hold whatever happens, seen from the border of the coordinator's decisions:
//!
//! - **O-1 once**: an accepted job ends exactly once, finished or failed, and nothing is told of it afterwards.
//! - **O-2 image**: a finished image is the undisturbed one: to the bit if every recovery was exact, else within
//!   [`TOLERANCE`]. A deterministic job's recoveries are exact, unless no replacement came in time.
//! - **O-3 reason**: a job fails only because its client left, or after more than `FUTILE_MAX` interruptions in a
//!   row without a call done, those not counted for which links are cut: whoever is cut off, some workers
//!   reach each other, or one is left.
//! - **O-4 epoch**: the epochs of a job's runs strictly rise.
//! - **O-5 idle**: a worker is started only if its session has no part in another run. Of a process
//!   that is not true: one that lost its session may still be computing for the old run when it joins again.
//! - **O-6 values**: a rank computes with values of its own run only: two runs of a job never mix.
//! - **O-7 gone**: nothing is ordered from a worker that left or was dismissed.
//! - **O-8 return**: a process that is well is a member again soon.
//! - **O-9 one call**: a run goes on after the last call that all rows were reported of, or if the
//!   job is deterministic at an earlier one.
//! - **O-10 progress**: nothing waits for ever: once faults stop and a worker is well, all jobs end in time
//!   ([`Oracle::patience`]).

use crate::network::HostId;
use crate::simulation::reference::{self, Picture};
use bytes::Bytes;
use coordinator::cluster::pulse::STALL_UNKNOWN;
use coordinator::cluster::registry::BROKEN_FOR;
use coordinator::director::{
    ClientId, EXPLANATION_PATIENCE, Effect, FREE_PATIENCE, FUTILE_MAX, REPLACEMENT_PATIENCE,
};
use coordinator::job::store::Outcome;
use protocol::job::JobRequest;
use protocol::message::{Event, RecoveryView, Resume, ToClient, ToCoordinator, ToWorker};
use protocol::plan::Plan;
use protocol::transport::{OPEN_DEADLINE, PARKED_FOR};
use protocol::{Epoch, Fault, FaultKind, JobId, Rank, RunId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The largest distance of a disturbed image from the undisturbed one, relative to its norm. In 100 000 seeds
/// recoveries cost up to 0.019; a call too many or too few, or a lost history, cost more than 0.1.
pub const TOLERANCE: f64 = 0.03;

/// How long a worker that is well may stay away: a call without an answer, the longest pause, and some.
pub const AWAY_MAX: Duration = Duration::from_secs(15);

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which oracle says so.
    pub oracle: &'static str,
    /// What happened.
    pub what: String,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Oracle {
    violation: Option<Violation>,
    jobs: BTreeMap<JobId, Job>,
    members: BTreeMap<WorkerId, Option<RunId>>,
    submitting: Option<(ClientId, JobRequest)>,
    /// Whether the coordinator's disk is full.
    pub full: bool,
    /// Who asked for a job that had ended, and is told so again.
    replays: BTreeSet<(ClientId, JobId)>,
    /// The largest distance that an image had.
    pub distance: f64,
    /// How often jobs went on after they broke off.
    pub recoveries: u64,
}

#[derive(Debug)]
struct Job {
    client: ClientId,
    request: JobRequest,
    client_left: bool,
    ended: bool,
    /// How it ended, as its client was told.
    end: Option<Event>,
    /// How it ended, as the coordinator's disk has it, if there is one.
    stored: Option<Event>,
    epoch: Option<Epoch>,
    /// A coordinator crashed since its last run began, so that calls may be lost.
    crashed: bool,
    /// Of its first run.
    plan: Option<Plan>,
    run: Option<Plan>,
    resume: u32,
    /// Interruptions since a call was done, but for links that are cut.
    futile: u32,
    /// Who reported each call of the run.
    reported: BTreeMap<u32, BTreeSet<Rank>>,
    /// Calls of which all rows were reported.
    calls: u32,
    /// The most that ever were.
    most: u32,
}

impl Oracle {
    /// Something did not hold; the first such thing is kept.
    pub fn violated(&mut self, oracle: &'static str, what: String) {
        self.violation.get_or_insert(Violation { oracle, what });
    }

    /// What did not hold, if anything.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// How many jobs have not ended.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.jobs.values().filter(|job| !job.ended).count()
    }

    /// How many jobs ended.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.jobs.len() - self.unfinished()
    }

    /// The hosts that took part in the last run of the last job.
    #[must_use]
    pub fn last_hosts(&self) -> Vec<HostId> {
        let run = self.jobs.values().next_back().and_then(|job| job.run.as_ref());
        let members = run.into_iter().flat_map(|plan| &plan.members);
        members.map(|member| HostId::from(member.address.port())).collect()
    }

    /// How long after the last fault all of `jobs` must have ended, if `broken` workers or routes stay as they are
    /// and a job takes no longer than `job` to render on one worker.
    ///
    /// Workers return, and whatever is left of earlier faults costs each job one recovery, and everything that
    /// stays broken another one, of the longest kind: links that do not open, or values that do not come
    /// before a call was seen; then what may explain it, those that are to end it, and for a
    /// deterministic job the replacement. Before a job starts it may wait for links to be tried again.
    #[must_use]
    pub fn patience(jobs: u32, broken: u32, job: Duration) -> Duration {
        let recovery = OPEN_DEADLINE.max(PARKED_FOR)
            + STALL_UNKNOWN.max(job)
            + EXPLANATION_PATIENCE
            + FREE_PATIENCE.max(job)
            + REPLACEMENT_PATIENCE;
        AWAY_MAX + jobs * (BROKEN_FOR + (2 + broken) * recovery + job)
    }

    /// A worker was let in.
    pub fn joined(&mut self, worker: WorkerId) {
        self.members.insert(worker, None);
    }

    /// A worker's session ended.
    pub fn left(&mut self, worker: WorkerId) {
        self.members.remove(&worker);
    }

    /// A client submits this.
    pub fn submits(&mut self, client: ClientId, request: &JobRequest) {
        self.submitting = Some((client, request.clone()));
    }

    /// A client asks for a job. If that has ended, it is told so again.
    pub fn follows(&mut self, client: ClientId, job: JobId) {
        if self.jobs.get(&job).is_some_and(|job| job.ended) {
            self.replays.insert((client, job));
        }
    }

    /// The coordinator's process is gone, with what it had in memory; the next one finds these jobs unfinished.
    pub fn crashed(&mut self, unfinished: &BTreeSet<JobId>) {
        self.members.clear();
        self.submitting = None;
        for (id, job) in &mut self.jobs {
            (job.run, job.crashed, job.futile) = (None, true, 0);
            match (unfinished.contains(id), &job.end) {
                (true, Some(end)) => {
                    let what = format!("the end of {id} is told and not stored: {end:?}");
                    self.violation.get_or_insert(Violation { oracle: "O-1 once", what });
                }
                // Nobody was told that it was cancelled.
                (true, None) => (job.ended, job.client_left) = (false, false),
                (false, _) => {}
            }
        }
    }

    /// The end of a job is on the disk: what may be told of it, and all that is known if nobody listens.
    pub fn stored(&mut self, id: JobId, outcome: &Outcome) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(last) = outcome.events.last() else { return };
        if job.stored.replace(last.clone()).is_some() {
            return self.violated("O-1 once", format!("{id} ends twice"));
        }
        match &job.end {
            None => {
                let checked = job.ends(id, last, &outcome.image);
                self.check(checked);
            }
            Some(told) if told != last => {
                let what = format!("{id} ends with {told:?}, and is stored with {last:?}");
                self.violated("O-1 once", what);
            }
            Some(_) => {}
        }
    }

    /// A client's session ended: its jobs are cancelled.
    pub fn client_left(&mut self, client: ClientId) {
        for job in self.jobs.values_mut().filter(|job| job.client == client) {
            job.client_left = true;
            job.ended = true;
        }
    }

    /// A member said something.
    pub fn said(&mut self, worker: WorkerId, message: &ToCoordinator) {
        let Some(busy) = self.members.get_mut(&worker) else { return };
        match message {
            ToCoordinator::Decoded { run, .. }
            | ToCoordinator::Failed { run, .. }
            | ToCoordinator::Aborted { run }
                if *busy == Some(*run) =>
            {
                *busy = None;
            }
            ToCoordinator::Stepped { run, call, .. } if *busy == Some(*run) => {
                if let Some(job) = self.jobs.get_mut(&run.job) {
                    job.stepped(*run, worker, *call);
                }
            }
            _ => {}
        }
    }

    /// The director wants something done.
    pub fn effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Order { worker, order, .. } => self.ordered(*worker, order),
            Effect::Tell { client, message, payload } => self.told(*client, message, payload),
            Effect::Dismiss(worker) => self.left(*worker),
            Effect::Provide { .. } | Effect::Forget(_) => {}
        }
    }

    fn ordered(&mut self, worker: WorkerId, order: &ToWorker) {
        let Some(busy) = self.members.get_mut(&worker) else {
            return self.violated("O-7 gone", format!("{worker} left, and is told {order:?}"));
        };
        let ToWorker::Start { plan, resume, .. } = order else { return };
        if let Some(run) = busy.replace(plan.run) {
            let what = format!("{worker} is started on {} while it is busy with {run}", plan.run);
            return self.violated("O-5 idle", what);
        }
        let Some(job) = self.jobs.get_mut(&plan.run.job) else {
            return self.violated("O-1 once", format!("{} was never accepted", plan.run.job));
        };
        if let Err(violation) = job.started(plan, *resume) {
            self.violation.get_or_insert(violation);
        }
    }

    fn told(&mut self, client: ClientId, message: &ToClient, payload: &Bytes) {
        match message {
            ToClient::Accepted { job, .. } => match self.submitting.take() {
                Some((_, request)) => drop(self.jobs.insert(*job, Job::new(client, request))),
                // Who asks for a job takes it over.
                None => self.jobs.get_mut(job).into_iter().for_each(|job| job.client = client),
            },
            ToClient::Refused(fault) => {
                let full = self.full && fault.kind == FaultKind::Storage;
                if self.submitting.take_if(|(asked, _)| *asked == client).is_some() && !full {
                    self.violated("O-1 once", format!("a job is refused: {fault}"));
                }
            }
            ToClient::Event { job, event } if self.replays.contains(&(client, *job)) => {
                self.replayed(*job, event);
            }
            ToClient::Event { job, event } => self.happened(*job, event, payload),
            _ => {}
        }
    }

    /// What was told of a job's end is told again.
    fn replayed(&mut self, id: JobId, event: &Event) {
        let last = matches!(event, Event::Finished { .. } | Event::Failed { .. });
        let end = self.jobs.get(&id).and_then(|job| job.end.as_ref());
        if let Some(end) = end.filter(|end| last && *end != event) {
            let what = format!("{id} ended with {end:?}, and now with {event:?}");
            self.violated("O-1 once", what);
        }
    }

    fn happened(&mut self, id: JobId, event: &Event, payload: &Bytes) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return self.violated("O-1 once", format!("{id} was never accepted: {event:?}"));
        };
        if job.end.is_some() {
            return self.violated("O-1 once", format!("{id} has ended, but: {event:?}"));
        }
        let checked = match event {
            Event::Step { .. } => {
                job.futile = 0;
                Ok(())
            }
            Event::Interrupted { fault, .. } => {
                job.futile += u32::from(fault.kind != FaultKind::PeerLost);
                self.recoveries += 1;
                Ok(())
            }
            Event::Failed { .. } | Event::Finished { .. } => {
                job.end = Some(event.clone());
                let checked = job.ends(id, event, payload);
                return self.check(checked);
            }
            _ => Ok(()),
        };
        if let Err(violation) = checked {
            self.violation.get_or_insert(violation);
        }
    }

    fn check(&mut self, distance: Result<f64, Violation>) {
        match distance {
            Ok(distance) => self.distance = self.distance.max(distance),
            Err(violation) => drop(self.violation.get_or_insert(violation)),
        }
    }
}

fn violation<T>(oracle: &'static str, what: String) -> Result<T, Violation> {
    Err(Violation { oracle, what })
}

impl Job {
    fn new(client: ClientId, request: JobRequest) -> Self {
        Self {
            client,
            request,
            client_left: false,
            ended: false,
            end: None,
            stored: None,
            epoch: None,
            crashed: false,
            plan: None,
            run: None,
            resume: 0,
            futile: 0,
            reported: BTreeMap::new(),
            calls: 0,
            most: 0,
        }
    }

    fn started(&mut self, plan: &Plan, resume: Option<Resume>) -> Result<(), Violation> {
        let from = resume.map_or(0, |resume| resume.calls);
        let last = self.epoch;
        if self.ended {
            return violation("O-1 once", format!("{} starts after its end", plan.run));
        }
        if self.run.as_ref().is_some_and(|run| run.run.epoch == plan.run.epoch) {
            let same = self.run.as_ref() == Some(plan) && self.resume == from;
            let what = format!("ranks of {} are told different things", plan.run);
            return if same { Ok(()) } else { violation("O-4 epoch", what) };
        }
        if last >= Some(plan.run.epoch) {
            let last = last.unwrap_or(Epoch(0));
            return violation("O-4 epoch", format!("{} starts after {last}", plan.run));
        }
        let deterministic = self.request.deterministic && from <= self.calls;
        // Of what the disk has, the run that crashed may have begun before.
        let earlier = deterministic || self.crashed && from <= self.most;
        if from != self.calls && !earlier {
            let what = format!("{} starts after call {from}, not {}", plan.run, self.calls);
            return violation("O-9 one call", what);
        }
        if from == 0 {
            self.plan = Some(plan.clone()); // nothing is left of what was before
        }
        (self.epoch, self.crashed) = (Some(plan.run.epoch), false);
        self.run = Some(plan.clone());
        self.resume = from;
        self.calls = from;
        self.reported.clear();
        Ok(())
    }

    fn stepped(&mut self, run: RunId, worker: WorkerId, call: u32) {
        let Some(plan) = self.run.as_ref().filter(|plan| plan.run == run) else { return };
        let ranks = || plan.ranks().zip(&plan.members);
        let said = ranks().filter(|(_, member)| member.worker == worker).map(|(rank, _)| rank);
        let reported = self.reported.entry(call).or_default();
        reported.extend(said);
        if plan.ranks().filter(|rank| plan.reports(*rank)).all(|rank| reported.contains(&rank)) {
            self.calls = self.calls.max(call + 1);
            self.most = self.most.max(self.calls);
        }
    }

    /// How far its image is from the undisturbed one, if it has one.
    fn ends(&mut self, id: JobId, last: &Event, image: &[u8]) -> Result<f64, Violation> {
        self.ended = true;
        match last {
            Event::Finished { latent, recoveries, .. } => {
                self.finished(id, (latent, image), recoveries)
            }
            Event::Failed { fault } => self.failed(id, fault).map(|()| 0.0),
            event => violation("O-1 once", format!("{id} ends with {event:?}")),
        }
    }

    fn failed(&self, id: JobId, fault: &Fault) -> Result<(), Violation> {
        let justified = match fault.kind {
            FaultKind::Cancelled => self.client_left,
            FaultKind::WorkerLost | FaultKind::Replanned => self.futile > FUTILE_MAX,
            _ => false,
        };
        if justified {
            return Ok(());
        }
        let what = format!("{id} failed after {} futile runs: {fault:?}", self.futile);
        violation("O-3 reason", what)
    }

    /// How far the image is from the undisturbed one.
    fn finished(
        &self,
        id: JobId,
        (latent, pixels): (&str, &[u8]),
        recoveries: &[RecoveryView],
    ) -> Result<f64, Violation> {
        let Some(plan) = &self.plan else {
            return violation("O-1 once", format!("{id} finished and was never started"));
        };
        let Picture { latent: wanted, pixels: undisturbed } = reference::render(plan);
        if recoveries.iter().all(|recovery| recovery.exact) {
            if latent != wanted || *pixels != undisturbed[..] {
                let times = recoveries.len();
                let what = format!("{id} has other bits after {times} exact recoveries");
                return violation("O-2 image", what);
            }
            return Ok(0.0);
        }
        // The next coordinator does not know where bands were.
        let early = |each: &&RecoveryView| {
            let waited = each.seconds >= REPLACEMENT_PATIENCE.as_secs_f64();
            !each.exact && !waited && each.fault.kind != FaultKind::ShuttingDown
        };
        if let Some(early) = recoveries.iter().find(early).filter(|_| self.request.deterministic) {
            let what = format!("{id} is deterministic, and did not wait for its bits: {early:?}");
            return violation("O-2 image", what);
        }
        let distance = distance(pixels, &undisturbed);
        if distance > TOLERANCE {
            let what = format!("{id} is {distance:.4} from the undisturbed image");
            return violation("O-2 image", what);
        }
        Ok(distance)
    }
}

/// How far two images are from each other, relative to the norm of the second around grey.
fn distance(one: &[u8], other: &[u8]) -> f64 {
    if one.len() != other.len() {
        return f64::INFINITY;
    }
    let [one, other] = [one, other]
        .map(|pixels| pixels.iter().map(|pixel| f64::from(*pixel) - 127.5).collect::<Vec<_>>());
    crate::tolerance::relative_l2(&one, &other)
}
