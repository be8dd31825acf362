//! Where slots lie in a landing region, and what numbers on the wire mean.

use crate::id::{Call, Site};
use crate::plan::SlotSpec;

/// Buffers start at multiples of this, a cache line: two are never in one.
const ALIGNMENT: usize = 64;

/// The most slots that a link numbers; the last number of 16 bits is left for [`FINISHED`].
pub(super) const SLOTS_MAX: usize = u16::MAX as usize;

/// The message that this end posts no more.
pub(super) const FINISHED: u32 = u32::MAX;

/// The buffers of one direction's slots, in order of their sites: the same at both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) places: Vec<Place>,
    /// Of the whole region.
    pub(super) bytes: usize,
}

/// One slot's two buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) site: Site,
    /// Of each buffer's value.
    pub(super) bytes: usize,
    /// Where each starts.
    pub(super) at: [usize; 2],
}

impl Layout {
    pub(super) fn new(slots: &[SlotSpec]) -> Self {
        let mut slots: Vec<&SlotSpec> = slots.iter().collect();
        slots.sort_by_key(|spec| spec.slot.site);
        let mut end = 0;
        let place = |spec: &SlotSpec| {
            let (start, room) = (end, spec.bytes.next_multiple_of(ALIGNMENT));
            end += 2 * room;
            Place { site: spec.slot.site, bytes: spec.bytes, at: [start, start + room] }
        };
        let places = slots.into_iter().map(place).collect();
        Self { places, bytes: end }
    }

    /// The number of a site's slot.
    pub(super) fn number(&self, site: Site) -> Option<u16> {
        let at = self.places.binary_search_by_key(&site, |place| place.site).ok()?;
        u16::try_from(at).ok()
    }

    /// How many buffers there are, each of which has at most one value on its way.
    pub(super) fn buffers(&self) -> u32 {
        u32::try_from(2 * self.places.len()).unwrap_or(u32::MAX)
    }
}

/// The number that announces a call's value in a slot, and that gives its buffer back.
pub(super) fn immediate(slot: u16, call: u16) -> u32 {
    u32::from(slot) << 16 | u32::from(call)
}

/// Slot and call of an [`immediate`].
pub(super) fn read_immediate(immediate: u32) -> (usize, Call) {
    let slot = usize::try_from(immediate >> 16).expect("16 bits");
    (slot, Call(immediate & 0xffff))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Rank, Slot};

    #[test]
    fn no_two_buffers_share_a_byte() {
        let spec = |(site, bytes)| SlotSpec {
            slot: Slot { from: Rank(0), site: Site(site) },
            to: Rank(1),
            bytes,
        };
        let layout = Layout::new(&[(7, 8), (2, 64), (3, 65)].map(spec));
        let at: Vec<_> = layout.places.iter().map(|place| (place.site.0, place.at)).collect();
        assert_eq!(at, [(2, [0, 64]), (3, [128, 256]), (7, [384, 448])]);
        assert_eq!((layout.bytes, layout.buffers()), (512, 6));
        assert_eq!((layout.number(Site(3)), layout.number(Site(4))), (Some(1), None));
    }

    #[test]
    fn announcements_keep_slot_and_call_apart() {
        assert_eq!(read_immediate(immediate(3, 0xfffe)), (3, Call(0xfffe)));
        assert_eq!(read_immediate(immediate(0xfffe, 0)), (0xfffe, Call(0)));
    }
}
