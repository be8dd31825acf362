//! The sending direction of a link.

use super::super::ledger::Ticket;
use super::error::RdmaError;
use super::layout::{FINISHED, Layout, immediate};
use super::staging::{CHUNK_BYTES, Staging};
use super::verbs::{Piece, QueuePair, Remote};
use crate::id::Call;
use bytes::Bytes;
use std::collections::VecDeque;

/// Requests that are under way at once. The chunks of a full ring are 8, so that many small values
/// and credits fit beside them; the rest waits here, in order.
pub(super) const SENDS_MAX: u32 = 128;

/// A value that was posted.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) slot: u16,
    pub(super) call: u16,
    pub(super) bytes: Bytes,
    pub(super) ticket: Ticket,
}

/// What waits to be sent, and what is under way.
#[derive(Debug)]
pub(super) struct Outgoing {
    layout: Layout,
    slots: Vec<Slot>,
    region: Remote,
    staging: Staging,
    /// Buffers of the own region to give back to the peer.
    credits: VecDeque<u32>,
    /// Values whose buffer is free.
    ready: VecDeque<Sending>,
    /// Requests not yet completed, in order; with the end of their chunk in the ring.
    under_way: VecDeque<Option<usize>>,
    end: End,
}

/// One slot of the peer's.
#[derive(Debug, Default)]
struct Slot {
    /// Values ever sent: they go to the two buffers by turns. In a run that posts in each call
    /// this is the call's parity, and unlike that it never waits for a buffer in vain where calls
    /// are left out.
    versions: usize,
    /// Whose value the peer has in each buffer.
    taken: [Option<u16>; 2],
    /// At most [`super::super::VERSIONS_MAX`], which the ledger sees to.
    waiting: VecDeque<Post>,
}

#[derive(Debug)]
struct Sending {
    slot: u16,
    call: u16,
    buffer: usize,
    bytes: Bytes,
    sent: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// Nothing is posted any more.
    Wanted,
    /// The peer was told.
    Told,
}

impl Outgoing {
    pub(super) fn new(layout: Layout, region: Remote, staging: Staging) -> Self {
        Self {
            slots: layout.places.iter().map(|_| Slot::default()).collect(),
            layout,
            region,
            staging,
            credits: VecDeque::new(),
            ready: VecDeque::new(),
            under_way: VecDeque::new(),
            end: End::Open,
        }
    }

    /// A value that is to be sent.
    pub(super) fn post(&mut self, post: Post) {
        let slot = post.slot;
        self.slots[usize::from(slot)].waiting.push_back(post);
        self.promote(slot);
    }

    /// No value follows.
    pub(super) fn end(&mut self) {
        if self.end == End::Open {
            self.end = End::Wanted;
        }
    }

    /// Whether [`Self::end`] was called.
    pub(super) fn ends(&self) -> bool {
        self.end != End::Open
    }

    /// The peer was told of the end, and has all that was sent.
    pub(super) fn is_over(&self) -> bool {
        self.end == End::Told && self.under_way.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Gives a buffer of the own region back to the peer.
    pub(super) fn give_back(&mut self, slot: u16, call: u16) {
        self.credits.push_back(immediate(slot, call));
    }

    /// The peer gives a buffer back. An error: it does not have it.
    pub(super) fn returned(&mut self, slot: usize, call: Call) -> Result<(), String> {
        let numbered = u16::try_from(slot).ok().zip(self.slots.get_mut(slot));
        let (number, slot) =
            numbered.ok_or_else(|| format!("it gave back slot {slot}, which does not exist"))?;
        let given = slot.taken.iter_mut().find(|taken| taken.map(u32::from) == Some(call.0));
        let Some(given) = given else {
            return Err(format!("it gave back {call} of slot {number}, which it does not have"));
        };
        *given = None;
        self.promote(number);
        Ok(())
    }

    /// The oldest waiting value is ready if its buffer is free. Only the oldest: values of a slot
    /// never overtake each other.
    fn promote(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        while slot.taken[slot.versions % 2].is_none()
            && let Some(Post { call, bytes, ticket, .. }) = slot.waiting.pop_front()
        {
            let buffer = slot.versions % 2;
            slot.taken[buffer] = Some(call);
            slot.versions += 1;
            drop(ticket);
            self.ready.push_back(Sending { slot: number, call, buffer, bytes, sent: 0 });
        }
    }

    /// Hands to the device what it has room for: credits first, which the peer may wait for.
    pub(super) fn pump(&mut self, pair: &QueuePair) -> Result<(), RdmaError> {
        let sends_max = usize::try_from(SENDS_MAX).expect("small");
        while self.under_way.len() < sends_max {
            if let Some(credit) = self.credits.pop_front() {
                pair.send(credit)?;
                self.under_way.push_back(None);
            } else if !self.ready.is_empty() {
                if !self.send_chunk(pair)? {
                    return Ok(()); // the ring is full
                }
            } else if self.end == End::Wanted && self.slots.iter().all(|s| s.waiting.is_empty()) {
                pair.send(FINISHED)?;
                self.under_way.push_back(None);
                self.end = End::Told;
            } else {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends the next chunk of the first value that is ready; the last one announces the value.
    fn send_chunk(&mut self, pair: &QueuePair) -> Result<bool, RdmaError> {
        let Some(value) = self.ready.front_mut() else { return Ok(false) };
        let chunk = value.bytes.len().min(value.sent + CHUNK_BYTES);
        let chunk = &value.bytes[value.sent..chunk];
        let Some(put) = self.staging.put(chunk) else { return Ok(false) };
        let place = &self.layout.places[usize::from(value.slot)];
        let at = u64::try_from(place.at[value.buffer] + value.sent).expect("64 bits");
        let bytes = u32::try_from(chunk.len()).expect("a chunk is small");
        value.sent += chunk.len();
        let last = value.sent == value.bytes.len();
        let piece = Piece { region: self.staging.region(), at: put.at, bytes };
        let to = Remote { address: self.region.address + at, key: self.region.key };
        pair.write(&piece, to, last.then(|| immediate(value.slot, value.call)))?;
        self.under_way.push_back(Some(put.end));
        if last {
            self.ready.pop_front();
        }
        Ok(true)
    }

    /// Writes nothing to the peer's region: its device answers, or the link fails.
    pub(super) fn probe(&mut self, pair: &QueuePair) -> Result<(), RdmaError> {
        let piece = Piece { region: self.staging.region(), at: 0, bytes: 0 };
        pair.write(&piece, self.region, None)?;
        self.under_way.push_back(None);
        Ok(())
    }

    /// The oldest request is done.
    pub(super) fn sent(&mut self) {
        if let Some(Some(end)) = self.under_way.pop_front() {
            self.staging.free(end);
        }
    }
}
