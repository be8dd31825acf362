//! The words of a region: how a value is announced, its buffer returned, and a sleeper woken.
//!
//! Every access is sequentially consistent: the argument for W-1 in [`super`] needs one order of all
//! of them, and beside the copy of a value their cost is nothing.

use super::layout::{
    BELL_AT, DESCRIPTOR_BYTES, Layout, RING_AT, TAIL_AT, WANTS_CREDIT_AT, WANTS_VALUES_AT,
};
use crate::id::{Call, Epoch};
use rustix::thread::futex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

const FREE: u32 = 0;
const FULL: u32 = 1;

/// A word that two processes share.
pub(super) trait Word {
    fn get(&self) -> u32;
    fn set(&self, value: u32);
    /// Adds one.
    fn step(&self);
    /// Wakes who sleeps on it.
    fn wake(&self);
    /// Sleeps until woken, unless the word is no longer `heard`; may return early.
    fn sleep(&self, heard: u32);
}

impl Word for AtomicU32 {
    fn get(&self) -> u32 {
        self.load(SeqCst)
    }

    fn set(&self, value: u32) {
        self.store(value, SeqCst);
    }

    fn step(&self) {
        self.fetch_add(1, SeqCst);
    }

    fn wake(&self) {
        if let Err(error) = futex::wake(self, futex::Flags::empty(), 1) {
            tracing::error!(%error, "cannot wake who waits at a link");
        }
    }

    fn sleep(&self, heard: u32) {
        // An error is another value or a signal: the caller looks again in either case.
        futex::wait(self, futex::Flags::empty(), heard, None).ok();
    }
}

/// What is announced of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) epoch: Epoch,
    /// Its slot's index in the layout.
    pub(super) slot: u32,
    pub(super) call: Call,
}

/// The words of one region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Control<'a, W> {
    words: &'a [W],
    ring: u32,
    states_at: usize,
}

impl<'a, W: Word> Control<'a, W> {
    pub(super) fn new(words: &'a [W], layout: &Layout) -> Self {
        Self { words, ring: layout.ring, states_at: layout.states_at() }
    }

    /// The heading: see [`Layout::heading`].
    pub(super) fn heading(&self, count: usize) -> impl Iterator<Item = &'a W> {
        self.words[..count].iter()
    }

    fn at(&self, byte: usize) -> &'a W {
        &self.words[byte / size_of::<u32>()]
    }

    fn entry(&self, position: u32) -> [&'a W; 3] {
        let place = usize::try_from(position % self.ring).expect("32-bit addresses at least");
        let at = RING_AT + place * DESCRIPTOR_BYTES;
        [0, 4, 8].map(|offset| self.at(at + offset))
    }

    // The sender's side.

    /// Whether the sender may write to a buffer.
    pub(super) fn is_free(&self, buffer: usize) -> bool {
        self.words[self.states_at + buffer].get() == FREE
    }

    /// Announces the value that was written to `buffer`, which was free, and rings if somebody waits
    /// for it. `tail` is what the sender published before.
    pub(super) fn publish(&self, tail: &mut u32, buffer: usize, value: Descriptor) {
        self.words[self.states_at + buffer].set(FULL);
        let words = [value.epoch.0, value.slot, value.call.0];
        for (word, value) in self.entry(*tail).into_iter().zip(words) {
            word.set(value);
        }
        *tail = tail.wrapping_add(1);
        self.at(TAIL_AT).set(*tail);
        if self.at(WANTS_VALUES_AT).get() != 0 {
            self.ring();
        }
    }

    // The receiver's side.

    /// Values that were announced since the receiver had taken `head`. More than there are buffers:
    /// the sender's count is wrong.
    pub(super) fn announced(&self, head: u32) -> u32 {
        self.at(TAIL_AT).get().wrapping_sub(head)
    }

    /// The announcement at `head`.
    pub(super) fn descriptor(&self, head: u32) -> Descriptor {
        let [epoch, slot, call] = self.entry(head).map(Word::get);
        Descriptor { epoch: Epoch(epoch), slot, call: Call(call) }
    }

    /// Gives a buffer back to the sender, whose own region is `senders`, and rings if it waits for one.
    pub(super) fn free(&self, buffer: usize, senders: &Self) {
        self.words[self.states_at + buffer].set(FREE);
        if senders.at(WANTS_CREDIT_AT).get() != 0 {
            senders.ring();
        }
    }

    // The side that sleeps: the receiver into this region.

    /// Says whether values are waited for.
    pub(super) fn want_values(&self, wanted: bool) {
        self.at(WANTS_VALUES_AT).set(u32::from(wanted));
    }

    /// Says whether a buffer in the other region is waited for.
    pub(super) fn want_credit(&self, wanted: bool) {
        self.at(WANTS_CREDIT_AT).set(u32::from(wanted));
    }

    /// How often it was rung: to be read before looking for what [`Self::sleep`] is to wait for.
    pub(super) fn heard(&self) -> u32 {
        self.at(BELL_AT).get()
    }

    /// Wakes the sleeper, and keeps it from falling asleep before it has looked again.
    pub(super) fn ring(&self) {
        self.at(BELL_AT).step();
        self.at(BELL_AT).wake();
    }

    /// Sleeps until it rings, or has since `heard` was read.
    pub(super) fn sleep(&self, heard: u32) {
        self.at(BELL_AT).sleep(heard);
    }
}
