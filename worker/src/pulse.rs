//! How far the compute thread is, for the async side to tell: operations begun, and the peer it waits for. That is what
//! tells a long computation from one that hangs.

use crate::profile::Work;
use protocol::message::Pulse;
use protocol::{Rank, RunId};
use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// No peer is waited for.
const NOBODY: u32 = u32::MAX;

thread_local! {
    static BEATING: RefCell<Option<Arc<Counter>>> = const { RefCell::new(None) };
}

/// What a compute thread counts, and others read.
#[derive(Clone, Debug, Default)]
pub struct Pulses(Arc<Mutex<Option<Beating>>>);

/// A run, and what is counted of it.
type Beating = (RunId, Arc<Counter>);

#[derive(Debug)]
struct Counter {
    beats: AtomicU64,
    waits_for: AtomicU32,
}

/// A run whose thread counts, until it is dropped.
#[derive(Debug)]
pub struct Counted(Pulses);

impl Pulses {
    /// Counts what this thread does for `run` from now on.
    #[must_use]
    pub fn count(&self, run: RunId) -> Counted {
        let counter = Counter { beats: AtomicU64::new(0), waits_for: AtomicU32::new(NOBODY) };
        let counter = Arc::new(counter);
        self.set(Some((run, Arc::clone(&counter))));
        BEATING.set(Some(counter));
        Counted(self.clone())
    }

    fn set(&self, counted: Option<Beating>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counted;
    }

    /// How far the thread is; None if it has nothing to do.
    #[must_use]
    pub fn read(&self) -> Option<Pulse> {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (run, counter) = counted?;
        let beats = counter.beats.load(Ordering::Relaxed);
        let waits_for = u16::try_from(counter.waits_for.load(Ordering::Relaxed)).ok().map(Rank);
        Some(Pulse { run, beats, waits_for })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        BEATING.set(None);
        self.0.set(None);
    }
}

/// This thread begins an operation.
pub(crate) fn beat(work: Work) {
    BEATING.with_borrow(|counter| {
        let Some(counter) = counter else { return };
        let waits_for = match work {
            Work::Wait(peer) => u32::from(peer.0),
            _ => NOBODY,
        };
        counter.waits_for.store(waits_for, Ordering::Relaxed);
        counter.beats.fetch_add(1, Ordering::Relaxed);
    });
}

/// What this thread waited for has come.
pub(crate) fn waited() {
    BEATING.with_borrow(|counter| {
        if let Some(counter) = counter {
            counter.waits_for.store(NOBODY, Ordering::Relaxed);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_read_what_the_thread_counts_while_it_has_a_run() {
        let pulses = Pulses::default();
        beat(Work::Linear); // counted nowhere
        assert_eq!(pulses.read(), None);
        let counted = pulses.count(RunId::default());
        beat(Work::Linear);
        beat(Work::Wait(Rank(3)));
        let read = || {
            let pulses = pulses.clone();
            std::thread::spawn(move || pulses.read()).join().unwrap().unwrap()
        };
        assert_eq!((read().beats, read().waits_for), (2, Some(Rank(3))));
        waited();
        assert_eq!((read().beats, read().waits_for), (2, None));
        drop(counted);
        assert_eq!(pulses.read(), None);
    }
}
