//! Jobs that wait, first come, first served.

use protocol::job::JobRequest;
use protocol::{Fault, FaultKind, JobId};
use std::collections::VecDeque;

/// The most jobs that wait. Each holds a prompt and little else; the limit keeps a runaway client
/// from filling memory, and everyone's waiting time from becoming meaningless.
pub const WAITING_MAX: usize = 1000;

/// A job that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// The job.
    pub job: JobId,
    /// The client that submitted it.
    pub client: u64,
    /// What it asked for.
    pub request: JobRequest,
}

/// The jobs that wait.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Waiting>,
    submitted: u64,
}

impl Queue {
    /// Takes a job in, and says how many wait before it.
    ///
    /// # Errors
    /// `QueueFull` if there is no room.
    pub fn push(&mut self, client: u64, request: JobRequest) -> Result<(JobId, usize), Fault> {
        if self.waiting.len() >= WAITING_MAX {
            let cause = format!("{WAITING_MAX} jobs are waiting already; try again later");
            return Err(Fault::new(FaultKind::QueueFull, cause));
        }
        self.submitted += 1;
        let job = JobId(self.submitted);
        let ahead = self.waiting.len();
        self.waiting.push_back(Waiting { job, client, request });
        Ok((job, ahead))
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

    /// Takes a client's jobs out.
    pub fn forget(&mut self, client: u64) {
        self.waiting.retain(|waiting| waiting.client != client);
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

    #[test]
    fn jobs_leave_in_the_order_they_came() {
        let mut queue = Queue::default();
        assert_eq!(queue.push(1, request()), Ok((JobId(1), 0)));
        assert_eq!(queue.push(2, request()), Ok((JobId(2), 1)));
        assert_eq!(queue.push(1, request()), Ok((JobId(3), 2)));
        queue.forget(2);
        assert_eq!(queue.pop().map(|waiting| waiting.job), Some(JobId(1)));
        assert_eq!(queue.pop().map(|waiting| waiting.job), Some(JobId(3)));
        assert!(queue.next().is_none());
    }

    #[test]
    fn a_full_queue_is_a_value() {
        let mut queue = Queue::default();
        for _ in 0..WAITING_MAX {
            queue.push(1, request()).unwrap();
        }
        assert_eq!(queue.push(1, request()).unwrap_err().kind, FaultKind::QueueFull);
        queue.pop();
        assert!(queue.push(1, request()).is_ok());
    }
}
