//! Strips: what one rank of a naive plan predicts in one call.

use super::{Band, Plan, split_evenly};
use crate::id::{Call, Rank};
use crate::job::Parallelism;
use serde::{Deserialize, Serialize};

/// Which way an image is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Axis {
    /// Into bands of rows.
    Rows,
    /// Into bands of columns.
    Columns,
}

/// A range of the latent's rows or columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strip {
    /// Which of the two.
    pub axis: Axis,
    /// The range.
    pub range: Band,
}

impl Plan {
    /// What `rank` predicts in `call`; None if ranks have bands and exchange activations.
    #[must_use]
    pub fn strip(&self, rank: Rank, call: Call) -> Option<Strip> {
        let axis = match self.spec.parallelism {
            Parallelism::Patch | Parallelism::Tensor => return None,
            Parallelism::NaiveRow => Axis::Rows,
            Parallelism::NaiveCol => Axis::Columns,
            Parallelism::NaiveAlternate if call.0.is_multiple_of(2) => Axis::Rows,
            Parallelism::NaiveAlternate => Axis::Columns,
        };
        self.strip_along(axis, rank)
    }

    /// What `rank` predicts in calls that cut the image along `axis`.
    pub(super) fn strip_along(&self, axis: Axis, rank: Rank) -> Option<Strip> {
        let extent = match axis {
            Axis::Rows => self.geometry.rows,
            Axis::Columns => self.geometry.columns,
        };
        let (place, ranks) = self.place_in_branch(rank)?;
        let strips = split_evenly(extent, self.geometry.row_unit, ranks);
        Some(Strip { axis, range: *strips.ok()?.get(place)? })
    }
}
