//! Pulses: a compute thread that hangs, or ranks that cannot reach each other, found by what each rank says of
//! itself. A slow one is neither: its operations go on.

use protocol::Rank;
use protocol::message::Pulse;
use std::time::Duration;

/// The shortest time without an operation that is a hang: links that lost a few packets in a row send
/// again within two or three seconds, and a swapping machine needs its time.
pub const STALL_MIN: Duration = Duration::from_secs(5);
/// So many times the longest call of the run is a hang: no operation is longer than the call it is in.
pub const STALL_CALLS: u32 = 3;
/// The same before a call was seen, while prompts are encoded and while an image is decoded, whose largest
/// operations may take longer than any call.
pub const STALL_UNKNOWN: Duration = Duration::from_secs(60);

/// What keeps a run from going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// A rank waits for nobody, and does nothing.
    Hung(Rank),
    /// The first waits for the second, which waits, too.
    Cut(Rank, Rank),
}

/// What was heard of the ranks of a run.
#[derive(Clone, Debug, Default)]
pub struct Pulses {
    ranks: Vec<Option<Seen>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    pulse: Pulse,
    /// Since when it is the same.
    since: Duration,
}

impl Pulses {
    /// Of a run of so many ranks.
    #[must_use]
    pub fn new(ranks: usize) -> Self {
        Self { ranks: vec![None; ranks] }
    }

    /// What `rank` said `now`.
    pub fn hear(&mut self, rank: Rank, pulse: Pulse, now: Duration) {
        if let Some(seen) = self.ranks.get_mut(rank.index()) {
            let same = seen.filter(|seen| seen.pulse == pulse);
            *seen = Some(Seen { pulse, since: same.map_or(now, |seen| seen.since) });
        }
    }

    /// `rank` is done: nothing more is expected of it.
    pub fn done(&mut self, rank: Rank) {
        if let Some(seen) = self.ranks.get_mut(rank.index()) {
            *seen = None;
        }
    }

    /// What keeps the run from going on, if nothing has happened in it for `patience`.
    #[must_use]
    pub fn stall(&self, patience: Duration, now: Duration) -> Option<Stall> {
        let seen = (0..).map(Rank).zip(&self.ranks);
        let seen: Vec<(Rank, Seen)> =
            seen.filter_map(|(rank, seen)| seen.map(|seen| (rank, seen))).collect();
        let still = |(_, seen): &(Rank, Seen)| now.saturating_sub(seen.since) >= patience;
        if seen.is_empty() || !seen.iter().all(still) {
            return None;
        }
        if let Some((rank, _)) = seen.iter().find(|(_, seen)| seen.pulse.waits_for.is_none()) {
            return Some(Stall::Hung(*rank));
        }
        let awaited = |rank: Rank| {
            let seen = seen.iter().find(|(each, _)| *each == rank);
            seen.and_then(|(_, seen)| seen.pulse.waits_for)
        };
        // Of two that wait for each other the link is cut; else of whoever waits for one that is here.
        let waiting = || seen.iter().filter_map(|(rank, _)| Some((*rank, awaited(*rank)?)));
        let mutual = waiting().find(|(rank, peer)| awaited(*peer) == Some(*rank));
        let (rank, peer) = mutual.or_else(|| waiting().next())?;
        Some(Stall::Cut(rank, peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::RunId;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn pulse(beats: u64, waits_for: Option<u16>) -> Pulse {
        Pulse { run: RunId::default(), beats, waits_for: waits_for.map(Rank) }
    }

    fn after(pulses: [Pulse; 3]) -> Option<Stall> {
        let mut heard = Pulses::new(3);
        for now in [0, 1, 5] {
            for (rank, pulse) in (0..).map(Rank).zip(pulses) {
                heard.hear(rank, pulse, Duration::from_secs(now));
            }
            let early = heard.stall(PATIENCE, Duration::from_secs(4));
            assert_eq!(early, None);
        }
        heard.stall(PATIENCE, PATIENCE)
    }

    #[test]
    fn whoever_waits_for_nobody_and_does_nothing_hangs() {
        let stall = after([pulse(9, Some(1)), pulse(8, None), pulse(9, Some(1))]);
        assert_eq!(stall, Some(Stall::Hung(Rank(1))));
    }

    #[test]
    fn two_that_wait_for_each_other_are_cut_off_from_each_other() {
        let stall = after([pulse(9, Some(1)), pulse(9, Some(2)), pulse(9, Some(1))]);
        assert_eq!(stall, Some(Stall::Cut(Rank(1), Rank(2))));
    }

    #[test]
    fn a_slow_rank_is_neither() {
        let mut heard = Pulses::new(2);
        for now in 0..100 {
            heard.hear(Rank(0), pulse(9, Some(1)), Duration::from_secs(now));
            heard.hear(Rank(1), pulse(now, None), Duration::from_secs(now));
            assert_eq!(heard.stall(PATIENCE, Duration::from_secs(now)), None);
        }
        // Until it stops.
        assert_eq!(heard.stall(PATIENCE, Duration::from_secs(104)), Some(Stall::Hung(Rank(1))));
        heard.done(Rank(1));
        let stall = heard.stall(PATIENCE, Duration::from_secs(104));
        assert_eq!(stall, Some(Stall::Cut(Rank(0), Rank(1))));
    }
}
