//! Which parts of an address range are free; pure.

use std::collections::BTreeMap;

/// Free parts, first come first: a part is taken from the lowest address where it fits. What is chosen
/// does not depend on how much is free beyond it, so that a plan made with endless room holds in the
/// room it found to be needed.
#[derive(Debug, Default)]
pub(super) struct Extents {
    free: BTreeMap<usize, usize>,
}

impl Extents {
    /// Takes `length` out of what is free; None if it fits nowhere.
    pub(super) fn take(&mut self, length: usize) -> Option<usize> {
        let fits = |(_, free): &(&usize, &usize)| **free >= length;
        let (start, free) = self.free.iter().find(fits).map(|(start, free)| (*start, *free))?;
        self.free.remove(&start);
        if free > length {
            self.free.insert(start + length, free - length);
        }
        Some(start)
    }

    /// Makes `length` from `start` on free, together with what is free on either side.
    pub(super) fn give(&mut self, start: usize, length: usize) {
        let (mut start, mut end) = (start, start + length);
        if let Some((before, free)) = self.free.range(..start).next_back().map(|(b, f)| (*b, *f))
            && before + free == start
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(after) = self.free.remove(&end) {
            end += after;
        }
        self.free.insert(start, end - start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lowest_that_fits_is_taken_and_neighbours_join() {
        let mut extents = Extents::default();
        extents.give(0, 100);
        assert_eq!([10, 20, 30].map(|length| extents.take(length)), [Some(0), Some(10), Some(30)]);
        assert_eq!(extents.take(41), None);
        extents.give(0, 10);
        assert_eq!(extents.take(15), Some(60), "the first free part is too small");
        extents.give(10, 20);
        assert_eq!(extents.take(30), Some(0), "two free parts became one");
    }

    proptest! {
        /// What is taken never overlaps what else is, and all of it comes back.
        #[test]
        fn parts_never_overlap(steps in prop::collection::vec((any::<bool>(), 1_usize..50), 1..200)) {
            let mut extents = Extents::default();
            extents.give(0, 400);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (take, number) in steps {
                if take || taken.is_empty() {
                    if let Some(start) = extents.take(number) {
                        let apart = |other: &(usize, usize)| {
                            start + number <= other.0 || other.0 + other.1 <= start
                        };
                        prop_assert!(start + number <= 400 && taken.iter().all(apart));
                        taken.push((start, number));
                    }
                } else {
                    let (start, length) = taken.swap_remove(number % taken.len());
                    extents.give(start, length);
                }
            }
            taken.drain(..).for_each(|(start, length)| extents.give(start, length));
            prop_assert_eq!(extents.take(400), Some(0));
        }
    }
}
