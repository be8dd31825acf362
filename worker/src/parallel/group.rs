//! Who answers whom, and in which order.

use protocol::Rank;

/// Ranks that answer each other's layers, from the top of the image to its bottom.
#[derive(Clone, Debug)]
pub(super) struct Group {
    ranks: Vec<Rank>,
    rows: Vec<u32>,
    own: usize,
}

impl Group {
    /// `ranks` with the height of their bands; `rank` is one of them.
    pub(super) fn new(ranks: impl Iterator<Item = (Rank, u32)>, rank: Rank) -> Self {
        let (ranks, rows): (Vec<Rank>, Vec<u32>) = ranks.unzip();
        let own = ranks.iter().position(|peer| *peer == rank).unwrap_or(0);
        Self { ranks, rows, own }
    }

    /// This rank's place.
    pub(super) fn own(&self) -> usize {
        self.own
    }

    /// All of them.
    pub(super) fn ranks(&self) -> &[Rank] {
        &self.ranks
    }

    /// All but this rank.
    pub(super) fn peers(&self) -> Vec<Rank> {
        let own = self.ranks[self.own];
        self.ranks.iter().copied().filter(|rank| *rank != own).collect()
    }

    /// The ranks above and below this one.
    pub(super) fn neighbours(&self) -> (Option<Rank>, Option<Rank>) {
        let above = self.own.checked_sub(1).and_then(|above| self.ranks.get(above));
        (above.copied(), self.ranks.get(self.own + 1).copied())
    }

    /// The row of the image that this rank's band of `rows` rows begins with, at a layer's resolution.
    pub(super) fn first_row(&self, rows: usize) -> usize {
        let above: u32 = self.rows[..self.own].iter().sum();
        let [above, own] = [above, self.rows[self.own]].map(|rows| rows as usize);
        above * rows / own
    }

    /// How many of a layer's rows, or tokens, each rank has if this one has `own`.
    pub(super) fn of_all(&self, own: usize) -> impl Iterator<Item = usize> {
        let rows = self.rows[self.own] as usize;
        self.rows.iter().map(move |band| *band as usize * own / rows)
    }

    /// How many times this rank's rows each peer's band has, in the order of [`Self::peers`].
    pub(super) fn rows_over_own(&self) -> Vec<f64> {
        let others = self.rows.iter().enumerate().filter(|(place, _)| *place != self.own);
        others.map(|(_, rows)| f64::from(*rows) / f64::from(self.rows[self.own])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_begin_where_the_ones_above_end_at_every_resolution() {
        let bands = [(Rank(0), 12), (Rank(1), 4), (Rank(2), 16)];
        let group = Group::new(bands.into_iter(), Rank(2));
        assert_eq!([2, 16, 128].map(|rows| group.first_row(rows)), [2, 16, 128]);
        let group = Group::new(bands.into_iter(), Rank(1));
        assert_eq!([1, 4, 32].map(|rows| group.first_row(rows)), [3, 12, 96]);
    }
}
