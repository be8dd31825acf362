//! Shards: what one rank of a tensor plan computes of each layer.

use super::Plan;
use crate::id::Rank;
use crate::job::Parallelism;
use std::ops::Range;

/// One of several nearly equal parts of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part, from 0.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl Shard {
    /// This part of `extent` things in a row: the parts follow each other and differ by one at most.
    #[must_use]
    pub fn range(self, extent: usize) -> Range<usize> {
        extent * self.index / self.of..extent * (self.index + 1) / self.of
    }

    /// Whether it is the one that adds what is to be added once.
    #[must_use]
    pub fn is_first(self) -> bool {
        self.index == 0
    }
}

impl Plan {
    /// What `rank` computes of each layer; None if layers are not divided.
    #[must_use]
    pub fn shard(&self, rank: Rank) -> Option<Shard> {
        let (index, of) = self.place_in_branch(rank)?;
        (self.spec.parallelism == Parallelism::Tensor).then_some(Shard { index, of })
    }

    /// Which of its branch's ranks `rank` is, and how many there are.
    pub(super) fn place_in_branch(&self, rank: Rank) -> Option<(usize, usize)> {
        let place = self.branch_of(rank).position(|peer| peer == rank)?;
        Some((place, self.branch_of(rank).count()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_everything_once() {
        for of in 1..9 {
            for extent in [0, 1, 7, 8, 64] {
                let parts = (0..of).flat_map(|index| Shard { index, of }.range(extent));
                assert!(parts.eq(0..extent), "{extent} in {of} parts");
            }
        }
    }
}
