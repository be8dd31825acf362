//! What each end of a link keeps to hold the promise L-2 to L-4, and every value's exact size.

use crate::id::{Call, Epoch, Rank, Site, Slot};
use crate::message::DataHead;
use crate::plan::{SlotSpec, SlotTable};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Versions of one slot that may be on their way at once.
///
/// Two suffice (section 7 of the algorithm): a rank posts version k + 1 only after it consumed the
/// peer's version k of that site, which the peer posted after it consumed version k - 1. More
/// means that an end does not keep that order; it is an error, and so a link's memory is bounded
/// by twice its slots.
pub const VERSIONS_MAX: u8 = 2;

/// What one link carries: its part of one rank's slot table.
#[derive(Clone, Debug)]
pub struct LinkSpec {
    /// The epoch of the run.
    pub epoch: Epoch,
    /// This end.
    pub own: Rank,
    /// The other end.
    pub peer: Rank,
    posts: Vec<SlotSpec>,
    lands: Vec<SlotSpec>,
}

impl LinkSpec {
    /// The link between `own`, whose table it is, and `peer`.
    #[must_use]
    pub fn new(epoch: Epoch, own: Rank, peer: Rank, table: &SlotTable) -> Self {
        let posts = table.posts.iter().filter(|spec| spec.to == peer).copied().collect();
        let lands = table.lands.iter().filter(|spec| spec.slot.from == peer).copied().collect();
        Self { epoch, own, peer, posts, lands }
    }

    /// Bytes of the largest value that lands.
    pub(super) fn landing_bytes_max(&self) -> usize {
        self.lands.iter().map(|spec| spec.bytes).max().unwrap_or(0)
    }

    /// The slots that this end posts to the other.
    pub(super) fn posts(&self) -> &[SlotSpec] {
        &self.posts
    }

    /// The slots that the other end posts to this one.
    pub(super) fn lands(&self) -> &[SlotSpec] {
        &self.lands
    }

    pub(super) fn posting(&self) -> Ledger {
        Ledger::new(self.epoch, self.own, &self.posts)
    }

    pub(super) fn landing(&self) -> Ledger {
        Ledger::new(self.epoch, self.peer, &self.lands)
    }
}

/// One direction of a link.
#[derive(Debug)]
pub(super) struct Ledger {
    epoch: Epoch,
    from: Rank,
    slots: BTreeMap<Site, Entry>,
}

#[derive(Debug)]
struct Entry {
    bytes: usize,
    newest: Option<Call>,
    under_way: Arc<AtomicU8>,
}

/// Holds one of the [`VERSIONS_MAX`] places of a slot until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket(Arc<AtomicU8>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Ledger {
    pub(super) fn new(epoch: Epoch, from: Rank, slots: &[SlotSpec]) -> Self {
        let entry = |spec: &SlotSpec| {
            let entry = Entry { bytes: spec.bytes, newest: None, under_way: Arc::default() };
            (spec.slot.site, entry)
        };
        Self { epoch, from, slots: slots.iter().map(entry).collect() }
    }

    /// Enters a value that this end posts, and gives what is to stand before it.
    pub(super) fn post(
        &mut self,
        slot: Slot,
        call: Call,
        bytes: usize,
    ) -> Result<(DataHead, Ticket), String> {
        if slot.from != self.from {
            return Err(format!("{slot} is not one of {}'s", self.from));
        }
        let ticket = self.enter(slot.site, call, bytes)?;
        Ok((DataHead { epoch: self.epoch, site: slot.site, call }, ticket))
    }

    /// Enters a value that comes from the peer. None: it is of an older epoch and must not land.
    pub(super) fn land(&mut self, head: DataHead, bytes: usize) -> Result<Option<Ticket>, String> {
        if head.epoch < self.epoch {
            return Ok(None);
        }
        if head.epoch > self.epoch {
            return Err(format!("it sent data of {} in {}", head.epoch, self.epoch));
        }
        self.enter(head.site, head.call, bytes).map(Some)
    }

    /// The slot that a value for `site` belongs to.
    pub(super) fn slot(&self, site: Site) -> Slot {
        Slot { from: self.from, site }
    }

    fn enter(&mut self, site: Site, call: Call, bytes: usize) -> Result<Ticket, String> {
        let slot = self.slot(site);
        let Some(entry) = self.slots.get_mut(&site) else {
            return Err(format!("{slot} is not in the slot table"));
        };
        if bytes != entry.bytes {
            return Err(format!("{slot} has {} bytes, not {bytes}", entry.bytes));
        }
        if let Some(newest) = entry.newest.filter(|newest| call <= *newest) {
            return Err(format!("{call} of {slot} came after {newest}"));
        }
        if entry.under_way.fetch_add(1, Ordering::AcqRel) >= VERSIONS_MAX {
            entry.under_way.fetch_sub(1, Ordering::AcqRel);
            return Err(format!("{call} of {slot} came before two older ones were taken"));
        }
        entry.newest = Some(call);
        Ok(Ticket(Arc::clone(&entry.under_way)))
    }
}
