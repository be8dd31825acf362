//! Where the compute thread's time goes, if that is asked for: stretches of work, taken down by the thread
//! that starts and ends them.

pub use protocol::message::Work;

use crate::pulse;
use protocol::Rank;
use protocol::message::{Phase, Profile, Span};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

#[derive(Debug)]
struct Recording {
    since: Instant,
    clock: SystemTime,
    spans: Vec<Span>,
    posted: BTreeMap<Rank, u64>,
}

/// Takes down what this thread does from now on, until [`end`], if that is `wanted`. What a run that
/// failed left behind is forgotten either way.
pub fn begin(wanted: bool) {
    RECORDING.set(wanted.then(|| Recording {
        since: Instant::now(),
        clock: SystemTime::now(),
        spans: Vec::new(),
        posted: BTreeMap::new(),
    }));
}

/// What this thread did since [`begin`], if that was wanted.
#[must_use]
pub fn end(phase: Phase, call: u32, displaced: bool) -> Option<Profile> {
    let Recording { since, clock, spans, posted } = RECORDING.take()?;
    let start = clock.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (start_us, took_us) = (micros(start), micros(since.elapsed()));
    let posted = posted.into_iter().collect();
    Some(Profile { phase, call, displaced, start_us, took_us, spans, posted })
}

/// This thread posts so many bytes to `peer`.
pub fn post(peer: Rank, bytes: u64) {
    RECORDING.with_borrow_mut(|recording| {
        if let Some(recording) = recording {
            *recording.posted.entry(peer).or_default() += bytes;
        }
    });
}

/// Whether what this thread does is taken down.
#[must_use]
pub fn is_wanted() -> bool {
    RECORDING.with_borrow(Option::is_some)
}

/// Begins a stretch of `work`, which ends when the result is dropped. It must not begin inside another.
#[must_use]
pub fn span(work: Work) -> Stretch {
    pulse::beat(work);
    let began = RECORDING.with_borrow(|recording| recording.as_ref().map(|_| Instant::now()));
    Stretch { work, began }
}

/// A stretch of work.
#[derive(Debug)]
pub struct Stretch {
    work: Work,
    /// None: nobody takes it down.
    began: Option<Instant>,
}

impl Drop for Stretch {
    fn drop(&mut self) {
        if let Work::Wait(_) = self.work {
            pulse::waited();
        }
        let Some(began) = self.began else { return };
        RECORDING.with_borrow_mut(|recording| {
            let Some(recording) = recording else { return };
            let start_us = small(began.saturating_duration_since(recording.since));
            let took_us = small(began.elapsed());
            recording.spans.push(Span { work: self.work, start_us, took_us });
        });
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// More than an hour is an hour.
fn small(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_not_taken_down() {
        drop(span(Work::Linear));
        assert_eq!(end(Phase::Denoising, 0, false), None);
        begin(true);
        drop(span(Work::Linear));
        drop(span(Work::Norm));
        for (peer, bytes) in [(Rank(2), 5), (Rank(1), 7), (Rank(2), 6)] {
            post(peer, bytes);
        }
        let profile = end(Phase::Denoising, 3, true).unwrap();
        assert_eq!(profile.posted, [(Rank(1), 7), (Rank(2), 11)]);
        let works: Vec<Work> = profile.spans.iter().map(|span| span.work).collect();
        assert_eq!(works, [Work::Linear, Work::Norm]);
        assert_eq!(end(Phase::Denoising, 4, true), None);
    }

    #[test]
    fn what_a_failed_run_left_is_not_the_next_ones() {
        begin(true);
        drop(span(Work::Linear));
        begin(false);
        drop(span(Work::Norm));
        assert_eq!(end(Phase::TextEncoding, 0, false), None);
    }
}
