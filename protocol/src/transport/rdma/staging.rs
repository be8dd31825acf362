//! Registered memory that values are sent from.
//!
//! Posted values lie wherever the caller made them, and are often posted to several peers. To
//! register each where it lies would cost a system call and the locking of its pages for every
//! post; copying it once costs less than sending it. So values pass through a ring of bounded
//! size, in chunks: one chunk is copied while those before it are on the wire.

use super::error::RdmaError;
use super::verbs::{Access, Memory, MemoryRegion, ProtectionDomain};
use std::sync::Arc;

/// How much of a value is sent at a time. At 100 Gbit/s it takes 42 us, by which the some 2 us
/// that a request costs either end are small; and an eighth of the ring.
pub(super) const CHUNK_BYTES: usize = 512 << 10;

/// The ring's size. What a fast port sends (12.5 GB/s) in the 0.3 ms for which a busy machine may
/// let this side wait; for 63 peers it is 252 MiB of locked memory.
const RING_BYTES: usize = 4 << 20;

/// Chunks start at multiples of this, a cache line.
const ALIGNMENT: usize = 64;

/// The ring of one link.
#[derive(Debug)]
pub(super) struct Staging {
    region: MemoryRegion,
    ring: Ring,
}

/// Where a chunk was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) at: usize,
    /// To be given to [`Staging::free`] once the chunk was sent.
    pub(super) end: usize,
}

impl Staging {
    /// A ring for buffers that take `bytes` together: small links need less than others. That is
    /// at least twice a chunk, since each slot has two buffers, so that an empty ring has room for
    /// any chunk wherever it starts.
    pub(super) fn new(domain: &Arc<ProtectionDomain>, bytes: usize) -> Result<Self, RdmaError> {
        let bytes = bytes.next_multiple_of(ALIGNMENT).clamp(ALIGNMENT, RING_BYTES);
        let region = MemoryRegion::new(domain, Memory::new(bytes)?, Access::Send)?;
        Ok(Self { region, ring: Ring { bytes, head: 0, tail: 0 } })
    }

    pub(super) fn region(&self) -> &MemoryRegion {
        &self.region
    }

    /// Copies a chunk into the ring. None: there is no room now.
    pub(super) fn put(&mut self, chunk: &[u8]) -> Option<Chunk> {
        let put = self.ring.take(chunk.len().next_multiple_of(ALIGNMENT))?;
        self.region.memory().write(put.at, chunk);
        Some(put)
    }

    /// Frees everything up to the chunk that ends there: chunks are sent in order.
    pub(super) fn free(&mut self, end: usize) {
        self.ring.tail = end;
    }
}

/// Counts bytes that were ever taken and freed; a chunk never wraps around.
#[derive(Debug)]
struct Ring {
    bytes: usize,
    head: usize,
    tail: usize,
}

impl Ring {
    fn take(&mut self, bytes: usize) -> Option<Chunk> {
        let (at, rest) = (self.head % self.bytes, self.bytes - self.head % self.bytes);
        let skipped = if bytes > rest { rest } else { 0 };
        if self.head + skipped + bytes - self.tail > self.bytes {
            return None;
        }
        self.head += skipped + bytes;
        Some(Chunk { at: if skipped > 0 { 0 } else { at }, end: self.head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn chunks_under_way_never_overlap_and_never_wrap() {
        let mut ring = Ring { bytes: 1024, head: 0, tail: 0 };
        let mut under_way: VecDeque<(usize, usize, usize)> = VecDeque::new();
        for round in 0..1000 {
            let bytes = 64 * (1 + round * 7 % 8);
            while let Some(Chunk { at, end }) = ring.take(bytes) {
                assert!(at + bytes <= 1024);
                let free = |(start, length, _): &(usize, usize, usize)| {
                    at + bytes <= *start || start + length <= at
                };
                assert!(under_way.iter().all(free), "{at} for {bytes}: {under_way:?}");
                under_way.push_back((at, bytes, end));
            }
            let (_, _, end) = under_way.pop_front().expect("an empty ring has room");
            ring.tail = end;
        }
    }
}
