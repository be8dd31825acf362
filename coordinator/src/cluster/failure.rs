//! Leases: a worker that is unheard of for too long is lost.

use protocol::WorkerId;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a worker may be silent. It renews three times in that time, from a thread that never
/// computes; three seconds ride out a busy host, and are short beside an image.
pub const LEASE: Duration = Duration::from_secs(3);

/// When each worker was last heard of, in time since the coordinator's start.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    heard: BTreeMap<WorkerId, Duration>,
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

    /// The workers whose lease has run out by `now`.
    #[must_use]
    pub fn expired(&self, now: Duration) -> Vec<WorkerId> {
        let silent = |heard: &Duration| now.saturating_sub(*heard) > LEASE;
        self.heard.iter().filter(|(_, heard)| silent(heard)).map(|(worker, _)| *worker).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_runs_out_unless_it_is_renewed() {
        let mut leases = Leases::default();
        leases.renew(WorkerId(1), Duration::ZERO);
        leases.renew(WorkerId(2), Duration::ZERO);
        leases.renew(WorkerId(2), LEASE);
        assert!(leases.expired(LEASE).is_empty());
        let late = LEASE + Duration::from_millis(1);
        assert_eq!(leases.expired(late), [WorkerId(1)]);
        leases.remove(WorkerId(1));
        assert!(leases.expired(late).is_empty());
    }
}
