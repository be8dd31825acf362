//! Memory for activations.
//!
//! A run first computes without values, in a [`Arena::planning`] one, to learn how much it needs; then
//! in one mapping of that size. Layers take and give back in the same order in every call, so that from
//! the second one on each finds its memory where it was before: in the caches' and the page table's reach.
#![expect(unsafe_code, reason = "values are lent out of a mapping by their places")]

mod extents;

use self::extents::Extents;
use memmap2::MmapMut;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Values in a cache line, which is the smallest part.
const LINE: usize = 16;
/// Where a plan fell short, this much is mapped at least.
const SEGMENT_BYTES_MIN: usize = 2 << 20;

/// Memory that activations are taken from, and given back to when dropped. By default there is none, and it
/// grows as it is asked for.
#[derive(Clone, Debug)]
pub struct Arena(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: Extents,
    /// None while planning.
    segments: Option<Vec<Segment>>,
    taken: Usage,
    most: Usage,
}

/// How much was taken, in lines.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    /// Of all that is taken.
    sum: usize,
    /// Up to the end of the last that is taken.
    end: usize,
}

/// A mapping, whose lines are numbered from `first` on.
struct Segment {
    first: usize,
    values: NonNull<f32>,
    mapping: MmapMut,
}

// SAFETY: the pointer is into the mapping, which is only reached through blocks that own their parts.
unsafe impl Send for Segment {}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes as line {}", self.mapping.len(), self.first)
    }
}

/// How much memory something takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// Of all activations that are there at once, at the most.
    pub values: usize,
    /// Of the arena that they fit in, with the gaps between them.
    pub arena: usize,
}

impl Default for Arena {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State::new(Some(Vec::new())))))
    }
}

impl Arena {
    /// An arena of `bytes`, all mapped and none touched. It grows if that does not suffice.
    ///
    /// # Errors
    /// If the system does not give so much.
    pub fn sized(bytes: usize) -> io::Result<Self> {
        let mut state = State::new(Some(Vec::new()));
        state.map(bytes.div_ceil(4 * LINE).max(1))?;
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// An arena whose blocks have no values.
    #[must_use]
    pub fn planning() -> Self {
        let mut state = State::new(None);
        state.free.give(0, usize::MAX / 2);
        Self(Arc::new(Mutex::new(state)))
    }

    /// Room for `length` values, which are whatever was left there.
    ///
    /// # Panics
    /// When the arena has to grow and the system gives no more.
    #[must_use]
    pub fn take(&self, length: usize) -> Block {
        let lines = length.div_ceil(LINE).max(1);
        let mut state = self.state();
        let start = state.free.take(lines).unwrap_or_else(|| state.grow(lines));
        state.taken.sum += lines;
        state.most.sum = state.most.sum.max(state.taken.sum);
        state.most.end = state.most.end.max(start + lines);
        let values = state.values(start);
        drop(state);
        Block { arena: self.clone(), start, length, values }
    }

    /// Whether its blocks have no values.
    #[must_use]
    pub fn is_planning(&self) -> bool {
        self.state().segments.is_none()
    }

    /// The most that was taken at once so far.
    #[must_use]
    pub fn needed(&self) -> Needed {
        let most = self.state().most;
        Needed { values: most.sum * LINE * 4, arena: most.end * LINE * 4 }
    }

    /// Mappings it has: one, where all was planned.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.state().segments.as_ref().map_or(0, Vec::len)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(segments: Option<Vec<Segment>>) -> Self {
        let none = Usage::default();
        Self { free: Extents::default(), segments, taken: none, most: none }
    }

    /// Adds a mapping, and takes `lines` of it.
    fn grow(&mut self, lines: usize) -> usize {
        self.map(lines.max(SEGMENT_BYTES_MIN / 4 / LINE)).expect("memory for activations");
        self.free.take(lines).expect("there is a new segment of that size")
    }

    fn map(&mut self, lines: usize) -> io::Result<()> {
        let segments = self.segments.get_or_insert_default();
        // A line is left out between segments, so that no part is in two of them.
        let last = segments.last();
        let first = last.map_or(0, |last| last.first + last.mapping.len() / (4 * LINE) + 1);
        let mut mapping = MmapMut::map_anon(lines * LINE * 4)?;
        #[cfg(target_os = "linux")]
        mapping.advise(memmap2::Advice::HugePage).ok(); // where there are none, it is only slower
        let values = NonNull::new(mapping.as_mut_ptr().cast()).expect("a mapping is somewhere");
        segments.push(Segment { first, values, mapping });
        self.free.give(first, lines);
        Ok(())
    }

    /// Where the values of line `start` are.
    fn values(&self, start: usize) -> Option<NonNull<f32>> {
        let segment = self.segments.as_ref()?.iter().rfind(|segment| segment.first <= start)?;
        // SAFETY: the line is one of the segment's, for it was taken out of what it has.
        Some(unsafe { segment.values.add((start - segment.first) * LINE) })
    }
}

/// Values in an arena.
pub struct Block {
    arena: Arena,
    start: usize,
    length: usize,
    values: Option<NonNull<f32>>,
}

// SAFETY: a block is the only one that reaches its part of a mapping, which its arena keeps.
unsafe impl Send for Block {}
// SAFETY: as above; shared, it can only be read.
unsafe impl Sync for Block {}

impl Block {
    /// The arena it is in.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// How many values it has room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.length
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values at line {}", self.length, self.start)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let lines = self.length.div_ceil(LINE).max(1);
        let mut state = self.arena.state();
        state.free.give(self.start, lines);
        state.taken.sum -= lines;
    }
}

/// No values where they are only planned.
impl Deref for Block {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let Some(values) = self.values else { return &[] };
        // SAFETY: its part of the mapping has so many values, and mapped memory begins as zeros.
        unsafe { std::slice::from_raw_parts(values.as_ptr(), self.length) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [f32] {
        let Some(values) = self.values else { return &mut [] };
        // SAFETY: as above, and nobody else has this part.
        unsafe { std::slice::from_raw_parts_mut(values.as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes and gives back as two calls of layers would.
    fn calls(arena: &Arena) -> Vec<usize> {
        let mut places = Vec::new();
        for _ in 0..2 {
            let first = arena.take(1000);
            let second = arena.take(3000);
            drop(first);
            let third = arena.take(500);
            let fourth = arena.take(700);
            places.extend([&second, &third, &fourth].map(|block| block.start));
        }
        places
    }

    #[test]
    fn what_is_planned_fits_in_one_mapping_and_lies_where_it_lay() {
        let plan = Arena::planning();
        let planned = calls(&plan);
        assert_eq!(plan.take(10).len(), 0, "no values");
        let needed = plan.needed();
        assert!(needed.values >= 4 * 4200 && needed.arena >= needed.values);
        let arena = Arena::sized(needed.arena).unwrap();
        assert_eq!(calls(&arena), planned);
        assert_eq!(planned[..3], planned[3..], "each call finds its memory where it was");
        assert_eq!((arena.needed(), arena.mappings()), (needed, 1));
    }

    #[test]
    fn more_than_the_system_gives_is_an_error() {
        assert!(Arena::sized(usize::MAX / 4).is_err());
    }

    #[test]
    fn blocks_start_on_a_cache_line_and_share_nothing() {
        let arena = Arena::default();
        let mut blocks: Vec<Block> = [1, 17, 600_000].map(|length| arena.take(length)).into();
        for (number, block) in (1_u8..).zip(&mut blocks) {
            assert_eq!(block.as_ptr() as usize % 64, 0);
            block.fill(f32::from(number));
        }
        for (number, block) in (1_u8..).zip(&blocks) {
            assert_eq!(**block, vec![f32::from(number); block.room()]);
        }
        assert!(arena.mappings() > 1, "it grew");
    }
}
