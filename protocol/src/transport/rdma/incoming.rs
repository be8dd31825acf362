//! The receiving direction of a link.

use super::super::ledger::{Ledger, Ticket};
use super::super::{Landed, LinkError};
use super::layout::{Layout, read_immediate};
use super::staging::CHUNK_BYTES;
use super::verbs::Memory;
use crate::id::Epoch;
use crate::message::DataHead;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

pub(super) type Arrival = Result<(Landed, Ticket), LinkError>;

/// A buffer that nobody reads any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Release {
    pub(super) slot: u16,
    pub(super) buffer: usize,
}

/// What the peer writes.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The epoch that the peer is in.
    epoch: Epoch,
    layout: Layout,
    slots: Vec<Slot>,
    memory: Arc<Memory>,
    ledger: Ledger,
    /// None once the peer has ended: nothing lands any more.
    arrivals: Option<UnboundedSender<Arrival>>,
    releases: UnboundedSender<Release>,
}

/// One slot of the own region.
#[derive(Debug, Default)]
struct Slot {
    /// Values that ever landed, by turns in the two buffers.
    versions: usize,
    /// Whose value is being read in each buffer.
    held: [Option<u16>; 2],
}

impl Incoming {
    pub(super) fn new(
        epoch: Epoch,
        layout: Layout,
        memory: Arc<Memory>,
        ledger: Ledger,
        (arrivals, releases): (UnboundedSender<Arrival>, UnboundedSender<Release>),
    ) -> Self {
        let slots = layout.places.iter().map(|_| Slot::default()).collect();
        Self { epoch, layout, slots, memory, ledger, arrivals: Some(arrivals), releases }
    }

    /// A value whose last `bytes` were written is announced. An error: it may not have been.
    pub(super) fn land(&mut self, immediate: u32, bytes: u32) -> Result<(), String> {
        let (at, call) = read_immediate(immediate);
        let Some((slot, place)) = self.slots.get_mut(at).zip(self.layout.places.get(at)) else {
            return Err(format!("it wrote to slot {at} of {}", self.layout.places.len()));
        };
        let last = place.bytes.saturating_sub(1) / CHUNK_BYTES * CHUNK_BYTES;
        if u32::try_from(place.bytes - last) != Ok(bytes) {
            let slot = self.ledger.slot(place.site);
            return Err(format!(
                "{slot} has {} bytes, of which {bytes} cannot be the last chunk",
                place.bytes
            ));
        }
        let buffer = slot.versions % 2;
        if let Some(held) = slot.held[buffer] {
            let slot = self.ledger.slot(place.site);
            return Err(format!("{call} of {slot} came while call {held} was being read"));
        }
        let head = DataHead { epoch: self.epoch, site: place.site, call };
        let ticket = self.ledger.land(head, place.bytes)?;
        slot.versions += 1;
        slot.held[buffer] = u16::try_from(call.0).ok();
        let start = place.at[buffer];
        let value = Bytes::from_owner(Held {
            memory: Arc::clone(&self.memory),
            range: start..start + place.bytes,
            release: Release { slot: u16::try_from(at).unwrap_or(u16::MAX), buffer },
            releases: self.releases.clone(),
        });
        if let (Some(ticket), Some(arrivals)) = (ticket, &self.arrivals) {
            let landed = Landed { slot: self.ledger.slot(place.site), call, bytes: value };
            arrivals.send(Ok((landed, ticket))).ok(); // or dropped: nobody wants it any more
        }
        Ok(())
    }

    /// The call whose value was being read in a buffer that no longer is.
    pub(super) fn release(&mut self, Release { slot, buffer }: Release) -> Option<u16> {
        self.slots[usize::from(slot)].held[buffer].take()
    }

    /// Nothing lands any more, for this reason.
    pub(super) fn end(&mut self, reason: LinkError) {
        if let Some(arrivals) = self.arrivals.take() {
            arrivals.send(Err(reason)).ok(); // or dropped: nobody is left to tell
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.arrivals.is_none()
    }
}

/// A value in its buffer, which is the peer's again when this is dropped.
#[derive(Debug)]
struct Held {
    memory: Arc<Memory>,
    range: Range<usize>,
    release: Release,
    releases: UnboundedSender<Release>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.memory.slice(self.range.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.releases.send(self.release).ok(); // or the link has ended: it is nobody's then
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::immediate;
    use super::*;
    use crate::id::{Call, Rank, Site, Slot as SlotId};
    use crate::plan::SlotSpec;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    const EPOCH: Epoch = Epoch(4);
    const LARGE: usize = CHUNK_BYTES + 100;

    type Ends = (Incoming, UnboundedReceiver<Arrival>, UnboundedReceiver<Release>);

    /// A small slot 0 and a large slot 1, of a peer that is in `epoch`.
    fn incoming(epoch: Epoch) -> Ends {
        let specs = [(3, 64), (5, LARGE)].map(|(site, bytes)| SlotSpec {
            slot: SlotId { from: Rank(1), site: Site(site) },
            to: Rank(0),
            bytes,
        });
        let layout = Layout::new(&specs);
        let memory = Memory::new(layout.bytes).expect("mapped");
        let ledger = Ledger::new(EPOCH, Rank(1), &specs);
        let ((arrivals, landed), (releases, released)) = (unbounded_channel(), unbounded_channel());
        (Incoming::new(epoch, layout, memory, ledger, (arrivals, releases)), landed, released)
    }

    #[test]
    fn announcements_that_make_no_sense_are_refused() {
        let (mut incoming, mut landed, _released) = incoming(EPOCH);
        for (slot, call, bytes, cause) in [
            (2, 0, 64, "it wrote to slot 2 of 2"),
            (0xffff, 0xfffe, 64, "it wrote to slot 65535 of 2"),
            (0, 0, 63, "has 64 bytes, of which 63 cannot be the last chunk"),
            (1, 0, 64, "cannot be the last chunk"),
        ] {
            let refused = incoming.land(immediate(slot, call), bytes).expect_err(cause);
            assert!(refused.contains(cause), "{refused} does not say {cause}");
        }
        incoming.land(immediate(1, 7), 100).expect("whole");
        let refused = incoming.land(immediate(1, 7), 100).expect_err("again");
        assert!(refused.contains("call 7 of site 5 of rank 1 came after call 7"), "{refused}");
        let (value, _) = landed.try_recv().expect("landed").expect("a value");
        assert_eq!((value.call, value.bytes.len()), (Call(7), LARGE));
        assert!(landed.try_recv().is_err(), "only one landed");
    }

    #[test]
    fn a_buffer_that_is_read_may_not_be_written_to() {
        let (mut incoming, mut landed, mut released) = incoming(EPOCH);
        let mut held = Vec::new();
        for call in 0..2 {
            incoming.land(immediate(0, call), 64).expect("landed");
            held.push(landed.try_recv().expect("landed").expect("a value").0);
        }
        let refused = incoming.land(immediate(0, 2), 64).expect_err("both are held");
        assert!(refused.contains("came while call 0 was being read"), "{refused}");
        drop(held.remove(0));
        let release = released.try_recv().expect("let go");
        assert_eq!(incoming.release(release), Some(0));
        assert_eq!(incoming.release(release), None, "twice");
        incoming.land(immediate(0, 2), 64).expect("landed");
    }

    #[test]
    fn an_older_epochs_values_are_given_back_unread() {
        let (mut incoming, mut landed, mut released) = incoming(Epoch(EPOCH.0 - 1));
        incoming.land(immediate(0, 0), 64).expect("no error");
        assert!(landed.try_recv().is_err(), "it must not land");
        let release = released.try_recv().expect("given back");
        assert_eq!(incoming.release(release), Some(0));
    }
}
