//! Virtual time: what is to happen, and when. Nothing waits; time passes when the next thing is taken out.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

/// What is to happen, in order of time, and of being put in where times are the same.
#[derive(Debug)]
pub struct Agenda<E> {
    due: BinaryHeap<Reverse<Due<E>>>,
    entered: u64,
}

#[derive(Debug)]
struct Due<E> {
    at: Duration,
    number: u64,
    event: E,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { due: BinaryHeap::new(), entered: 0 }
    }
}

impl<E> Agenda<E> {
    /// `event` happens at `at`.
    pub fn at(&mut self, at: Duration, event: E) {
        self.entered += 1;
        self.due.push(Reverse(Due { at, number: self.entered, event }));
    }

    /// When the next thing happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        self.due.peek().map(|Reverse(due)| due.at)
    }

    /// The next thing, and when it happens.
    pub fn take(&mut self) -> Option<(Duration, E)> {
        self.due.pop().map(|Reverse(due)| (due.at, due.event))
    }
}

impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Due<E> {}
