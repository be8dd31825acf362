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
    computed: Computed,
}

/// The calls whose time says how fast a rank is.
#[derive(Clone, Copy, Debug, Default)]
struct Computed {
    calls: u32,
    /// Time not spent waiting.
    us: u64,
    displaced: bool,
}

impl RankState {
    /// Counts the computing of one of the run's calls: not of the first, which also warms caches up; and once
    /// there was a displaced one, of those only. In synchronous calls workers wait for each other all the time, and
    /// what others of the same machine leave idle makes each look faster than when all compute.
    pub(super) fn computed(&mut self, call: u32, us: u64, displaced: bool) {
        let so_far = self.computed;
        if call == 0 || so_far.displaced && !displaced {
            return;
        }
        let so_far = if displaced == so_far.displaced { so_far } else { Computed::default() };
        self.computed = Computed { calls: so_far.calls + 1, us: so_far.us + us, displaced };
    }

    /// FLOP a second, where a call takes `flop`; None before it did two calls.
    pub(super) fn rate(&self, flop: f64) -> Option<f64> {
        let Computed { calls, us, .. } = self.computed;
        let seconds = Duration::from_micros(us).as_secs_f64();
        (calls > 0 && seconds > 0.0).then(|| flop * f64::from(calls) / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_call_says_nothing_of_a_rate_and_once_there_are_displaced_calls_only_they_do() {
        let mut rank = RankState::default();
        rank.computed(0, 9_000_000, false);
        assert_eq!(rank.rate(8.0), None);
        rank.computed(1, 1_000_000, false);
        assert_eq!(rank.rate(8.0), Some(8.0));
        rank.computed(2, 2_000_000, true);
        assert_eq!(rank.rate(8.0), Some(4.0));
        rank.computed(3, 1_000_000, false); // as after a change of plans
        rank.computed(4, 4_000_000, true);
        assert_eq!(rank.rate(8.0), Some(16.0 / 6.0));
    }
}
