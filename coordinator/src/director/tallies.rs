//! What happened since this process started, and what waits, as numbers.

use super::Director;
use protocol::FaultKind;
use protocol::job::Priority;
use protocol::message::{Event, Traffic};
use protocol::plan::{Fabric, Kind};

/// How often things happened; all but the last only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tallies {
    /// Jobs that were accepted.
    pub accepted: u64,
    /// Jobs that were not.
    pub refused: u64,
    /// Jobs that ended with an image.
    pub finished: u64,
    /// Jobs that ended without one.
    pub failed: u64,
    /// Jobs that someone ended.
    pub cancelled: u64,
    /// How often a job broke off, to go on or to fail.
    pub interrupted: u64,
    /// Workers that left without being asked to.
    pub workers_lost: u64,
    /// Model calls done.
    pub calls: u64,
    /// Those in which peers' values were one call old, or older.
    pub displaced_calls: u64,
    /// Seconds that calls took, on their slowest ranks.
    pub call_seconds: f64,
    /// Seconds of them that the rank waited for its peers that waited longest.
    pub waited_seconds: f64,
    /// Bytes that ranks posted to their peers, by [`Fabric::ALL`] and [`Kind::ALL`].
    pub posted_bytes: [[u64; Kind::ALL.len()]; Fabric::ALL.len()],
    /// Values of peers that ranks read over links: of the call they were in, and of an earlier one.
    pub read: [u64; 2],
    /// Jobs that wait, of each priority in the order of [`Priority::ALL`].
    pub waiting: [u64; Priority::ALL.len()],
}

impl Tallies {
    pub(super) fn step(&mut self, event: &Event) {
        let Event::Step { seconds, waited, displaced, .. } = event else { return };
        self.calls += 1;
        self.displaced_calls += u64::from(*displaced);
        self.call_seconds += seconds;
        self.waited_seconds += waited;
    }

    pub(super) fn exchanged(&mut self, traffic: &Traffic) {
        for (fabric, kind, bytes) in &traffic.posted {
            let fabrics = Fabric::ALL.iter().zip(&mut self.posted_bytes);
            for (_, kinds) in fabrics.filter(|(known, _)| *known == fabric) {
                let kinds = Kind::ALL.iter().zip(kinds);
                kinds.filter(|(known, _)| *known == kind).for_each(|(_, sum)| *sum += bytes);
            }
        }
        self.read.iter_mut().zip(traffic.read).for_each(|(sum, read)| *sum += read);
    }

    pub(super) fn ended(&mut self, event: &Event) {
        match event {
            Event::Finished { .. } => self.finished += 1,
            Event::Failed { fault } if fault.kind == FaultKind::Cancelled => self.cancelled += 1,
            _ => self.failed += 1,
        }
    }
}

impl Director {
    /// What happened since it was made, and what waits.
    #[must_use]
    pub fn tallies(&self) -> Tallies {
        let mut waiting = [0; Priority::ALL.len()];
        for (priority, count) in Priority::ALL.iter().zip(&mut waiting) {
            let of = self.queue.iter().filter(|waiting| waiting.priority == *priority);
            *count += of.map(|_| 1).sum::<u64>();
        }
        Tallies { waiting, ..self.tallies }
    }
}
