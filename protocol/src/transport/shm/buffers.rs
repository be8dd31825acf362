//! The buffers of both regions: written, lent, and given back.

#![expect(unsafe_code, reason = "writes and lends parts of mapped memory")]

use super::control::{Control, Descriptor};
use super::layout::{BUFFERS, Layout, Place};
use super::region::Region;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A mapped region and where everything is in it.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) region: Region,
    pub(super) layout: Layout,
}

impl Mapped {
    pub(super) fn control(&self) -> Control<'_, AtomicU32> {
        Control::new(self.region.words(self.layout.words), &self.layout)
    }
}

/// Both regions, which stay mapped while a value is read, though the link may be gone.
#[derive(Debug)]
pub(super) struct Regions {
    /// This end's, to which the peer writes.
    pub(super) own: Mapped,
    /// The peer's, to which this end writes.
    pub(super) peers: Mapped,
    /// Which buffers of the own region are read: the region itself could be told anything (B-2).
    lent: Box<[AtomicBool]>,
}

/// Who has it is the only one to write to the peer's region.
#[derive(Debug)]
pub(super) struct Sending {
    published: u32,
}

/// Who has it is the only one to take from the own region.
#[derive(Debug)]
pub(super) struct Receiving {
    taken: u32,
}

impl Regions {
    pub(super) fn new(own: Mapped, peers: Mapped) -> (Self, Sending, Receiving) {
        let lent = (0..BUFFERS * own.layout.slots.len()).map(|_| AtomicBool::new(false)).collect();
        (Self { own, peers, lent }, Sending { published: 0 }, Receiving { taken: 0 })
    }

    /// Copies a value to its buffer in the peer's region and announces it. False: the buffer is
    /// not free, and nothing was done.
    ///
    /// # Panics
    /// If it is no value of the slot: the posting ledger lets none through.
    pub(super) fn send(&self, sending: &mut Sending, what: Descriptor, bytes: &[u8]) -> bool {
        let Mapped { region, layout } = &self.peers;
        let (slot, control) = (index(what.slot), self.peers.control());
        let buffer = Layout::buffer(slot, what.call);
        if !control.is_free(buffer) {
            return false;
        }
        assert_eq!(bytes.len(), layout.slots[slot].bytes, "{what:?}");
        // SAFETY: the layout puts buffers beyond the words and apart from each other. The peer does
        // not read this one, for it is free (B-1), and no other thread writes it: there is one
        // `sending`.
        unsafe { region.write(layout.at(slot, what.call), bytes) }
        control.publish(&mut sending.published, buffer, what);
        true
    }

    /// Whether something was announced that was not taken.
    pub(super) fn has_next(&self, receiving: &Receiving) -> bool {
        self.own.control().announced(receiving.taken) != 0
    }

    /// What was announced next, and where.
    ///
    /// # Errors
    /// What the peer did, if there cannot be such a value.
    pub(super) fn next(
        &self,
        receiving: &mut Receiving,
    ) -> Result<Option<(Place, Descriptor)>, String> {
        let (layout, control) = (&self.own.layout, self.own.control());
        let announced = control.announced(receiving.taken);
        if announced == 0 {
            return Ok(None);
        }
        if announced > layout.ring {
            return Err(format!("it announced {announced} values at once, of {}", self.lent.len()));
        }
        let descriptor = control.descriptor(receiving.taken);
        receiving.taken = receiving.taken.wrapping_add(1);
        match layout.slots.get(index(descriptor.slot)) {
            Some(place) => Ok(Some((*place, descriptor))),
            None => {
                let slots = layout.slots.len();
                Err(format!("it announced a value of slot {} of {slots}", descriptor.slot))
            }
        }
    }

    /// The value that [`Self::next`] found, where it is; its buffer is freed when it is dropped.
    /// None: the last one that was there is still read.
    pub(super) fn lend(self: &Arc<Self>, _: &mut Receiving, what: Descriptor) -> Option<Bytes> {
        let (layout, slot) = (&self.own.layout, index(what.slot));
        let (buffer, at) = (Layout::buffer(slot, what.call), layout.at(slot, what.call));
        if self.lent[buffer].swap(true, Ordering::AcqRel) {
            return None;
        }
        let (regions, bytes) = (Arc::clone(self), layout.slots[slot].bytes);
        Some(Bytes::from_owner(Lent { regions, buffer, at, bytes }))
    }
}

fn index(slot: u32) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}

/// A value in the own region, read in place.
struct Lent {
    regions: Arc<Regions>,
    buffer: usize,
    at: usize,
    bytes: usize,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the layout puts buffers beyond the words. Nobody in this process writes to its own
        // region's, and the peer does not write to this one until it is freed (B-1): what a peer
        // that did so anyway could change is what these bytes say, and any bytes are a value.
        unsafe { self.regions.own.region.read(self.at, self.bytes) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Regions { own, peers, lent } = &*self.regions;
        lent[self.buffer].store(false, Ordering::Release); // first: the next value may be here at once
        own.control().free(self.buffer, &peers.control());
    }
}
