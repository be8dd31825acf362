//! Leases: a worker that is unheard of for too long is lost.

use protocol::WorkerId;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a worker may be silent. It renews four times in that time, from a thread that never computes: three
/// renewals may be late on a busy host or a lossy network. A worker that is taken for lost though it
/// lives costs a job one synchronous call, and joins again; one that is dead costs it this long.
pub const LEASE: Duration = Duration::from_millis(800);

/// How often leases and deadlines are looked at: so that a lost worker is noticed within a second.
pub const TICK: Duration = Duration::from_millis(50);

/// If ticks are this far apart this process itself was stopped, and knows nothing of anyone.
const PAUSED: Duration = Duration::from_millis(400);

/// When each worker was last heard of, in time since the coordinator's start.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    heard: BTreeMap<WorkerId, Duration>,
    looked: Option<Duration>,
}

impl Leases {
    /// `worker` was heard of `now`.
    pub fn renew(&mut self, worker: WorkerId, now: Duration) {
        self.heard.insert(worker, now);
    }

    /// `worker` left.
    pub fn remove(&mut self, worker: WorkerId) {
        self.heard.remove(&worker);
    }

    /// The workers whose lease has run out by `now`. Must be asked every [`TICK`].
    pub fn expired(&mut self, now: Duration) -> Vec<WorkerId> {
        let looked = self.looked.replace(now).unwrap_or(now);
        if now.saturating_sub(looked) > PAUSED {
            self.heard.values_mut().for_each(|heard| *heard = now);
        }
        let silent = |heard: &Duration| now.saturating_sub(*heard) > LEASE;
        self.heard.iter().filter(|(_, heard)| silent(heard)).map(|(worker, _)| *worker).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(leases: &mut Leases, from: Duration, to: Duration) -> Vec<WorkerId> {
        let mut now = from;
        while now < to {
            assert!(leases.expired(now).is_empty(), "{now:?}");
            now += TICK;
        }
        leases.expired(to)
    }

    #[test]
    fn a_lease_runs_out_unless_it_is_renewed() {
        let mut leases = Leases::default();
        leases.renew(WorkerId(1), Duration::ZERO);
        leases.renew(WorkerId(2), Duration::ZERO);
        assert!(at(&mut leases, Duration::ZERO, LEASE).is_empty());
        leases.renew(WorkerId(2), LEASE);
        let late = LEASE + Duration::from_millis(1);
        assert_eq!(leases.expired(late), [WorkerId(1)]);
        leases.remove(WorkerId(1));
        assert!(leases.expired(late).is_empty());
    }

    #[test]
    fn a_coordinator_that_was_stopped_takes_nobody_for_lost() {
        let mut leases = Leases::default();
        leases.renew(WorkerId(1), Duration::ZERO);
        assert!(leases.expired(Duration::ZERO).is_empty());
        let woken = Duration::from_secs(10);
        assert!(leases.expired(woken).is_empty());
        assert_eq!(at(&mut leases, woken, woken + LEASE + TICK), [WorkerId(1)]);
    }
}
