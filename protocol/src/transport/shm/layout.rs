//! Where everything is in a region. Part of the wire version, as every message is.
//!
//! | bytes | | written by |
//! |---|---|---|
//! | 0 | [`MAGIC`], then the region's size: two u64 | the receiver, before the sender maps it |
//! | 16 | digest of the slots, their sizes and places: 32 bytes | as above |
//! | [`TAIL_AT`] | u32: descriptors published so far | the sender |
//! | [`WANTS_VALUES_AT`] | u32: not 0 if the receiver waits for values | the receiver |
//! | [`WANTS_CREDIT_AT`] | u32: not 0 if the receiver waits for buffers in the other region | the receiver |
//! | [`BELL_AT`] | u32: how often the receiver was rung for | both |
//! | [`RING_AT`] | descriptors of [`DESCRIPTOR_BYTES`]: u32 epoch, slot's index, call, 0 | the sender |
//! | after these | u32 per buffer: 0 free, 1 full | full: the sender; free: the receiver |
//! | after these | two buffers per slot | the sender, while free |
//!
//! The ring has as many places as there are buffers, made up to a power of two. Numbers are in
//! the machine's byte order.

use super::super::ledger::VERSIONS_MAX;
use crate::id::{Call, Site};
use crate::plan::SlotSpec;

/// What a region starts with: "tessera" and the version of this layout.
pub const MAGIC: u64 = u64::from_be_bytes(*b"tessera\x01");
/// Where the sender counts what it published.
pub const TAIL_AT: usize = 64;
/// Where the receiver says that it waits for values.
pub const WANTS_VALUES_AT: usize = 128;
/// Where the receiver says that it, as the sender into the other region, waits for a buffer.
pub const WANTS_CREDIT_AT: usize = 132;
/// What the receiver sleeps on.
pub const BELL_AT: usize = 136;
/// Where the descriptors start.
pub const RING_AT: usize = 192;
/// The distance between descriptors.
pub const DESCRIPTOR_BYTES: usize = 16;

/// Buffers of a slot: one for even calls, one for odd ones.
pub(super) const BUFFERS: usize = VERSIONS_MAX as usize;

const WORD_BYTES: usize = size_of::<u32>();

/// What small buffers are aligned to: a cache line.
const LINE_BYTES: usize = 64;
/// What buffers of at least this size are aligned to: the smallest page there is.
const PAGE_BYTES: usize = 4096;

/// One direction's slots and where their buffers are.
#[derive(Debug)]
pub(super) struct Layout {
    /// In the order of the slot table: by site.
    pub(super) slots: Vec<Place>,
    /// Descriptors in the ring, a power of two.
    pub(super) ring: u32,
    /// Words before the buffers.
    pub(super) words: usize,
    /// Bytes of the region.
    pub(super) bytes: usize,
    digest: [u8; 32],
}

/// One slot's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) site: Site,
    pub(super) bytes: usize,
    /// Where its buffers start.
    pub(super) at: [usize; BUFFERS],
}

impl Layout {
    pub(super) fn new(slots: &[SlotSpec]) -> Self {
        let ring = (BUFFERS * slots.len()).next_power_of_two();
        let states_at = RING_AT + ring * DESCRIPTOR_BYTES;
        let mut end = states_at + BUFFERS * slots.len() * WORD_BYTES;
        let words = end / WORD_BYTES;
        let mut hasher = blake3::Hasher::new();
        let mut place = |spec: &SlotSpec| {
            let align = if spec.bytes < PAGE_BYTES { LINE_BYTES } else { PAGE_BYTES };
            let at = [(); BUFFERS].map(|()| {
                let at = end.next_multiple_of(align);
                end = at + spec.bytes;
                at
            });
            hasher.update(&spec.slot.site.0.to_le_bytes());
            for number in [spec.bytes, at[0], at[1]] {
                hasher.update(&number.to_le_bytes());
            }
            Place { site: spec.slot.site, bytes: spec.bytes, at }
        };
        let slots = slots.iter().map(&mut place).collect();
        let bytes = end.next_multiple_of(PAGE_BYTES);
        let ring = u32::try_from(ring).expect("two for each of at most 65536 sites");
        Self { slots, ring, words, bytes, digest: *hasher.finalize().as_bytes() }
    }

    /// The words that a region with this layout starts with.
    pub(super) fn heading(&self) -> Vec<u32> {
        let bytes = u64::try_from(self.bytes).unwrap_or(u64::MAX);
        let heading = [&MAGIC.to_ne_bytes()[..], &bytes.to_ne_bytes(), &self.digest].concat();
        let (words, _) = heading.as_chunks::<WORD_BYTES>();
        words.iter().map(|word| u32::from_ne_bytes(*word)).collect()
    }

    /// The index of a site's slot.
    pub(super) fn slot(&self, site: Site) -> Option<usize> {
        self.slots.binary_search_by_key(&site, |place| place.site).ok()
    }

    /// The index of the state of one of the slot's buffers, the one for `call`.
    pub(super) fn buffer(slot: usize, call: Call) -> usize {
        BUFFERS * slot + parity(call)
    }

    /// Where the buffer of `call` is.
    pub(super) fn at(&self, slot: usize, call: Call) -> usize {
        self.slots[slot].at[parity(call)]
    }

    /// Where the buffers' states are, in words.
    pub(super) fn states_at(&self) -> usize {
        self.words - BUFFERS * self.slots.len()
    }
}

fn parity(call: Call) -> usize {
    usize::from(call.0 % 2 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Rank, Slot};

    #[test]
    fn buffers_are_aligned_and_apart() {
        let sizes = [8, 0, 4095, 4096, 3 << 20, 24];
        let spec = |(site, bytes)| {
            let slot = Slot { from: Rank(0), site: Site(site) };
            SlotSpec { slot, to: Rank(1), bytes }
        };
        let specs: Vec<SlotSpec> = (0..).zip(sizes).map(spec).collect();
        let layout = Layout::new(&specs);
        let mut end = layout.words * WORD_BYTES;
        assert_eq!(layout.ring, 16);
        assert_eq!(layout.states_at() * WORD_BYTES, RING_AT + 16 * DESCRIPTOR_BYTES);
        for (index, place) in layout.slots.iter().enumerate() {
            assert_eq!(layout.slot(place.site), Some(index));
            for at in place.at {
                let align = if place.bytes < PAGE_BYTES { LINE_BYTES } else { PAGE_BYTES };
                assert!(at >= end && at % align == 0, "{place:?} after {end}");
                end = at + place.bytes;
            }
        }
        assert!(layout.bytes >= end && layout.bytes.is_multiple_of(PAGE_BYTES));
        assert_eq!(layout.slot(Site(6)), None);
        assert_ne!(layout.heading(), Layout::new(&specs[1..]).heading());
        assert_eq!(layout.heading().len() * WORD_BYTES, 48);
    }
}
