//! Jobs that wait, first come, first served.

use super::checkpoint::Checkpoint;
use protocol::job::JobRequest;
use protocol::{Epoch, Fault, FaultKind, JobId, RunId};
use std::collections::VecDeque;

/// The most jobs that wait. Each holds a prompt and little else; the limit keeps a runaway client
/// from filling memory, and everyone's waiting time from becoming meaningless.
pub const WAITING_MAX: usize = 1000;

/// A job that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// The job.
    pub job: JobId,
    /// The client that submitted it; None if that was before this process.
    pub client: Option<u64>,
    /// What it asked for.
    pub request: JobRequest,
    /// The seed, if it named none.
    pub seed: u64,
    /// The next of its epochs.
    pub epoch: Epoch,
    /// The digest of the model that it was begun with, if it was before this process.
    pub model: Option<String>,
    /// Where it goes on, if it was begun before this process.
    pub checkpoint: Option<Checkpoint>,
}

impl Waiting {
    /// What a client submits.
    #[must_use]
    pub fn new(job: JobId, client: u64, request: JobRequest, seed: u64) -> Self {
        let (client, epoch) = (Some(client), Epoch(0));
        Self { job, client, request, seed, epoch, model: None, checkpoint: None }
    }

    /// Its next run.
    #[must_use]
    pub fn run(&self) -> RunId {
        RunId { job: self.job, epoch: self.epoch }
    }
}

/// The jobs that wait.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Waiting>,
}

impl Queue {
    /// Whether there is room for another job.
    ///
    /// # Errors
    /// `QueueFull` if there is none.
    pub fn check_room(&self) -> Result<(), Fault> {
        if self.waiting.len() < WAITING_MAX {
            return Ok(());
        }
        let cause = format!("{WAITING_MAX} jobs are waiting already; try again later");
        Err(Fault::new(FaultKind::QueueFull, cause))
    }

    /// Takes a job in, and says how many wait before it.
    pub fn push(&mut self, waiting: Waiting) -> usize {
        self.waiting.push_back(waiting);
        self.waiting.len() - 1
    }

    /// The job whose turn is next.
    #[must_use]
    pub fn next(&self) -> Option<&Waiting> {
        self.waiting.front()
    }

    /// Takes the job whose turn is next out.
    pub fn pop(&mut self) -> Option<Waiting> {
        self.waiting.pop_front()
    }

    /// The jobs that wait, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.iter()
    }

    /// A job is from now on that of this client.
    pub fn adopt(&mut self, job: JobId, client: u64) {
        let found = self.waiting.iter_mut().find(|waiting| waiting.job == job);
        found.into_iter().for_each(|waiting| waiting.client = Some(client));
    }

    /// Takes a client's jobs out.
    pub fn forget(&mut self, client: u64) -> Vec<JobId> {
        let of_client = |waiting: &&Waiting| waiting.client == Some(client);
        let jobs = self.waiting.iter().filter(of_client).map(|waiting| waiting.job).collect();
        self.waiting.retain(|waiting| !of_client(&waiting));
        jobs
    }

    /// Takes all jobs out.
    pub fn drain(&mut self) -> impl Iterator<Item = Waiting> {
        self.waiting.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::tests::request;

    fn waiting(job: u64, client: u64) -> Waiting {
        Waiting::new(JobId(job), client, request(), 7)
    }

    #[test]
    fn jobs_leave_in_the_order_they_came() {
        let mut queue = Queue::default();
        assert_eq!([1, 2, 1].map(|client| queue.push(waiting(9 + client, client))), [0, 1, 2]);
        assert_eq!(queue.forget(2), [JobId(11)]);
        assert_eq!(queue.pop().map(|waiting| waiting.job), Some(JobId(10)));
        assert_eq!(queue.pop().map(|waiting| waiting.job), Some(JobId(10)));
        assert!(queue.next().is_none());
    }

    #[test]
    fn a_full_queue_is_a_value() {
        let mut queue = Queue::default();
        for job in 0..WAITING_MAX {
            queue.check_room().unwrap();
            queue.push(waiting(u64::try_from(job).unwrap(), 1));
        }
        assert_eq!(queue.check_room().unwrap_err().kind, FaultKind::QueueFull);
        queue.pop();
        assert!(queue.check_room().is_ok());
    }
}
