//! What one rank of a run has done.

use bytes::Bytes;
use protocol::message::Phase;
use std::time::Duration;

/// What one rank has done.
#[derive(Clone, Debug, Default)]
pub(super) struct RankState {
    pub(super) phase: Option<Phase>,
    pub(super) pixels: Option<Bytes>,
    pub(super) waited_us: u64,
    pub(super) posted_bytes: u64,
    pub(super) peak_bytes: u64,
    /// How many times as long as the mean it took, in the calls in a row in which it was slow.
    pub(super) slow: Vec<f64>,
    pub(super) computed: Computed,
}

/// The time that a run's calls were computed in, not waited: of a rank, or of each call's slowest.
///
/// The first call does not count, which also warms caches up; and once there was a displaced one, only those do. In
/// synchronous calls workers wait for each other all the time, and what others of the same machine leave
/// idle makes each look faster than when all compute.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Computed {
    calls: u32,
    us: u64,
    displaced: bool,
}

impl Computed {
    /// Counts a call.
    pub(super) fn add(&mut self, call: u32, us: u64, displaced: bool) {
        if call == 0 || self.displaced && !displaced {
            return;
        }
        let before = if displaced == self.displaced { *self } else { Self::default() };
        *self = Self { calls: before.calls + 1, us: before.us + us, displaced };
    }

    /// Seconds of a call; None before there were two.
    pub(super) fn seconds(self) -> Option<f64> {
        let seconds = Duration::from_micros(self.us).as_secs_f64();
        (self.calls > 0 && seconds > 0.0).then(|| seconds / f64::from(self.calls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_call_says_nothing_of_a_rate_and_once_there_are_displaced_calls_only_they_do() {
        let mut computed = Computed::default();
        computed.add(0, 9_000_000, false);
        assert_eq!(computed.seconds(), None);
        computed.add(1, 1_000_000, false);
        assert_eq!(computed.seconds(), Some(1.0));
        computed.add(2, 2_000_000, true);
        assert_eq!(computed.seconds(), Some(2.0));
        computed.add(3, 1_000_000, false); // as after a change of plans
        computed.add(4, 4_000_000, true);
        assert_eq!(computed.seconds(), Some(3.0));
    }
}
