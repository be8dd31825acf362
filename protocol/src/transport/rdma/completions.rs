//! Waiting for completions.

use super::error::RdmaError;
use super::verbs::{Completion, CompletionQueue};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// How long the queue is polled before the device is asked to wake this side: about what a wake-up
/// costs, an interrupt and two switches. So a poll in vain at most doubles the cost of waiting.
const SPIN: Duration = Duration::from_micros(20);

/// A completion queue that can be waited on.
#[derive(Debug)]
pub(super) struct Completions {
    queue: Arc<CompletionQueue>,
    file: AsyncFd<OwnedFd>,
    taken: Vec<Completion>,
    armed: bool,
    spin: Spin,
}

impl Completions {
    pub(super) fn new(queue: Arc<CompletionQueue>) -> io::Result<Self> {
        let file = queue.file()?;
        Ok(Self { queue, file, taken: Vec::new(), armed: false, spin: Spin::new() })
    }

    /// All completions there are.
    pub(super) fn take(&mut self) -> Result<Vec<Completion>, RdmaError> {
        self.queue.poll(&mut self.taken)?;
        if !self.taken.is_empty() {
            self.spin.found(Instant::now());
        }
        Ok(std::mem::take(&mut self.taken))
    }

    /// Prepares to wait. False: there are completions already.
    pub(super) fn prepare(&mut self) -> Result<bool, RdmaError> {
        if self.spin.pays() {
            let start = Instant::now();
            while self.taken.is_empty() && start.elapsed() < SPIN {
                std::hint::spin_loop();
                self.queue.poll(&mut self.taken)?;
            }
        }
        if self.taken.is_empty() && !self.armed {
            self.queue.arm()?;
            self.armed = true;
            self.queue.poll(&mut self.taken)?; // those that came before it was armed wake nobody
        }
        if self.taken.is_empty() {
            self.spin.waits(Instant::now());
        }
        Ok(self.taken.is_empty())
    }

    /// Ready when there may be completions, after [`Self::prepare`]. Cancel-safe.
    pub(super) async fn ready(&mut self) -> io::Result<()> {
        self.file.readable().await?.clear_ready();
        while self.queue.take_notice() {
            self.armed = false;
        }
        Ok(())
    }
}

/// Decides whether to poll before waiting: if the last wait would have ended while polling. On a
/// machine with one core it never does: what would complete the request cannot run meanwhile.
#[derive(Debug)]
struct Spin {
    possible: bool,
    pays: bool,
    waiting: Option<Instant>,
}

impl Spin {
    fn new() -> Self {
        let possible = available_parallelism().is_ok_and(|cores| cores.get() > 1);
        Self { possible, pays: false, waiting: None }
    }

    fn pays(&self) -> bool {
        self.possible && self.pays
    }

    fn waits(&mut self, now: Instant) {
        self.waiting.get_or_insert(now);
    }

    fn found(&mut self, now: Instant) {
        if let Some(since) = self.waiting.take() {
            // The wait has a wake-up's own cost in it, which polling would have saved.
            self.pays = now.duration_since(since) < 2 * SPIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_pays_after_short_waits_only() {
        let (start, us) = (Instant::now(), Duration::from_micros);
        let mut spin = Spin { possible: true, pays: false, waiting: None };
        assert!(!spin.pays());
        spin.waits(start);
        spin.waits(start + us(1)); // woken by something else meanwhile
        spin.found(start + us(30));
        assert!(spin.pays());
        spin.found(start + us(31)); // found while polling: it goes on
        assert!(spin.pays());
        spin.waits(start + us(60));
        spin.found(start + us(110));
        assert!(!spin.pays());
    }
}
