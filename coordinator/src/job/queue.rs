//! Jobs that wait for their turn.
//!
//! Those that were begun come first, then those of higher priority. Among the rest whoever has submitted many does not
//! keep others waiting: each owner's jobs are in rounds, one in each, and a round is rendered in the order in which its
//! jobs came.

use super::checkpoint::Checkpoint;
use super::store::Asked;
use protocol::job::{JobRequest, Priority};
use protocol::plan::Plan;
use protocol::{Epoch, Fault, FaultKind, JobId, RunId};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// The most jobs that wait. Each holds a prompt and little else; the limit keeps a runaway client
/// from filling memory, and everyone's waiting time from becoming meaningless.
pub const WAITING_MAX: usize = 1000;

/// A job that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// The job.
    pub job: JobId,
    /// The client whose leaving cancels it; None if it goes on without one.
    pub client: Option<u64>,
    /// What it asked for.
    pub request: JobRequest,
    /// The seed, if it named none.
    pub seed: u64,
    /// Who submitted it.
    pub owner: String,
    /// Whether it is rendered before others.
    pub priority: Priority,
    /// When it was accepted, in unix seconds.
    pub accepted: u64,
    /// When its first run started, if it was before this process, in unix seconds.
    pub started: Option<u64>,
    /// The next of its epochs.
    pub epoch: Epoch,
    /// The digest of the model that it was begun with, if it was before this process.
    pub model: Option<String>,
    /// Where it goes on, if it was begun before this process.
    pub checkpoint: Option<Checkpoint>,
    /// Who rendered it then, if it is to have the same bands.
    pub plan: Option<Plan>,
}

impl Waiting {
    /// What was just accepted.
    #[must_use]
    pub fn new(job: JobId, client: Option<u64>, asked: Asked, accepted: u64) -> Self {
        let Asked { request, seed, owner, priority, .. } = asked;
        let (started, epoch, model, checkpoint, plan) = (None, Epoch(0), None, None, None);
        Self {
            job,
            client,
            request,
            seed,
            owner,
            priority,
            accepted,
            started,
            epoch,
            model,
            checkpoint,
            plan,
        }
    }

    /// Its next run.
    #[must_use]
    pub fn run(&self) -> RunId {
        RunId { job: self.job, epoch: self.epoch }
    }
}

/// What decides which of two jobs comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    fresh: bool,
    priority: Reverse<u8>,
    round: u64,
    job: JobId,
}

/// The jobs that wait.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    waiting: Vec<(Turn, Waiting)>,
    /// The round of the job that was last taken out, and the last round of each owner that is later.
    round: u64,
    rounds: BTreeMap<String, u64>,
}

impl Queue {
    /// Whether there is room for another job of `owner`, of whom no more than `owners_max` may wait.
    ///
    /// # Errors
    /// `QueueFull` if there is none.
    pub fn check_room(&self, owner: &str, owners_max: usize) -> Result<(), Fault> {
        let full = |cause: String| Err(Fault::new(FaultKind::QueueFull, cause));
        if self.waiting.len() >= WAITING_MAX {
            return full(format!("{WAITING_MAX} jobs are waiting already; try again later"));
        }
        let owners = self.iter().filter(|waiting| waiting.owner == owner).count();
        if owners >= owners_max {
            return full(format!(
                "{owners} jobs of {owner} are waiting, of at most {owners_max}; try again when some are done"
            ));
        }
        Ok(())
    }

    /// Takes a job in, and says how many wait before it.
    pub fn push(&mut self, waiting: Waiting) -> usize {
        let last = self.rounds.get(&waiting.owner);
        let round = last.map_or(self.round, |last| self.round.max(last + 1));
        self.rounds.insert(waiting.owner.clone(), round);
        let turn = Turn {
            fresh: waiting.epoch == Epoch(0),
            priority: Reverse(waiting.priority.rank()),
            round,
            job: waiting.job,
        };
        let place = self.waiting.partition_point(|(other, _)| *other < turn);
        self.waiting.insert(place, (turn, waiting));
        place
    }

    /// The job whose turn is next.
    #[must_use]
    pub fn next(&self) -> Option<&Waiting> {
        self.waiting.first().map(|(_, waiting)| waiting)
    }

    /// Takes the job whose turn is next out.
    pub fn pop(&mut self) -> Option<Waiting> {
        if self.waiting.is_empty() {
            return None;
        }
        let (turn, waiting) = self.waiting.remove(0);
        self.round = self.round.max(turn.round);
        self.rounds.retain(|_, last| *last >= self.round);
        Some(waiting)
    }

    /// The jobs that wait, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.iter().map(|(_, waiting)| waiting)
    }

    /// A job is from now on that of this client.
    pub fn adopt(&mut self, job: JobId, client: u64) {
        let found = self.waiting.iter_mut().find(|(turn, _)| turn.job == job);
        found.into_iter().for_each(|(_, waiting)| waiting.client = Some(client));
    }

    /// Takes a job out, wherever it is. Whether it was there.
    pub fn remove(&mut self, job: JobId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(turn, _)| turn.job != job);
        self.waiting.len() < before
    }

    /// Takes a client's jobs out.
    pub fn forget(&mut self, client: u64) -> Vec<JobId> {
        let of_client = |waiting: &Waiting| waiting.client == Some(client);
        let jobs = self.iter().filter(|each| of_client(each)).map(|each| each.job).collect();
        self.waiting.retain(|(_, waiting)| !of_client(waiting));
        jobs
    }

    /// Takes all jobs out, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Waiting> {
        (self.round, self.rounds) = (0, BTreeMap::new());
        self.waiting.drain(..).map(|(_, waiting)| waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::tests::request;

    fn waiting(job: u64, owner: &str) -> Waiting {
        let asked = Asked { owner: owner.to_owned(), ..Asked::new(request(), 7) };
        Waiting::new(JobId(job), Some(u64::try_from(owner.len()).unwrap()), asked, 1)
    }

    fn order(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop()).map(|waiting| waiting.job.0).collect()
    }

    #[test]
    fn jobs_leave_in_the_order_they_came() {
        let mut queue = Queue::default();
        let places = (1..=3).map(|job| queue.push(waiting(job, "ann")));
        assert_eq!(places.collect::<Vec<_>>(), [0, 1, 2]);
        assert!(queue.remove(JobId(2)) && !queue.remove(JobId(2)));
        assert_eq!(order(&mut queue), [1, 3]);
        assert!(queue.next().is_none());
    }

    #[test]
    fn an_owner_of_many_does_not_keep_others_waiting() {
        let mut queue = Queue::default();
        let places = (1..=4).map(|job| queue.push(waiting(job, "ann")));
        assert_eq!(places.last(), Some(3));
        assert_eq!(queue.pop().map(|waiting| waiting.job), Some(JobId(1)));
        assert_eq!(queue.push(waiting(5, "bertha")), 0);
        assert_eq!(queue.push(waiting(6, "bertha")), 2);
        assert_eq!(order(&mut queue), [5, 2, 6, 3, 4]);
        assert!(queue.rounds.len() < 2, "who waits for nothing is not remembered");
    }

    #[test]
    fn what_was_begun_comes_first_and_then_the_higher_priority() {
        let mut queue = Queue::default();
        for (job, priority) in [(1, Priority::Low), (2, Priority::Normal), (3, Priority::High)] {
            queue.push(Waiting { priority, ..waiting(job, "ann") });
        }
        let begun = Waiting { epoch: Epoch(1), ..waiting(4, "ann") };
        queue.push(Waiting { priority: Priority::Low, ..begun });
        assert_eq!(order(&mut queue), [4, 3, 2, 1]);
    }

    #[test]
    fn jobs_that_are_taken_out_and_put_back_keep_their_order() {
        let mut queue = Queue::default();
        for (job, owner) in [(1, "ann"), (2, "ann"), (3, "bertha")] {
            queue.push(waiting(job, owner));
        }
        let all: Vec<Waiting> = queue.drain().collect();
        all.into_iter().for_each(|waiting| assert!(queue.push(waiting) < 3));
        assert_eq!(order(&mut queue), [1, 3, 2]);
    }

    #[test]
    fn a_client_that_leaves_takes_its_jobs_with_it_but_not_those_that_are_detached() {
        let mut queue = Queue::default();
        queue.push(waiting(1, "ann"));
        queue.push(Waiting { client: None, ..waiting(2, "ann") });
        assert_eq!(queue.forget(3), [JobId(1)]);
        queue.adopt(JobId(2), 9);
        assert_eq!(queue.forget(9), [JobId(2)]);
    }

    #[test]
    fn a_full_queue_is_a_value() {
        let mut queue = Queue::default();
        for job in 0..WAITING_MAX {
            queue.check_room("ann", WAITING_MAX).unwrap();
            queue.push(waiting(u64::try_from(job).unwrap(), "ann"));
        }
        let full = queue.check_room("bertha", WAITING_MAX).unwrap_err();
        assert_eq!(full.kind, FaultKind::QueueFull);
        queue.pop();
        assert!(queue.check_room("bertha", 1).is_ok());
        let full = queue.check_room("ann", 2).unwrap_err();
        assert!(full.cause.starts_with("999 jobs of ann are waiting, of at most 2"), "{full}");
    }
}
