//! Bands: the latent rows of one rank.

use super::RANKS_MAX;
use serde::{Deserialize, Serialize};

/// A range of latent rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Band {
    /// First latent row.
    pub top: u32,
    /// Latent rows.
    pub rows: u32,
}

impl Band {
    /// The row after the last.
    #[must_use]
    pub fn end(self) -> u32 {
        self.top + self.rows
    }

    /// The rows that both have, if there are any.
    #[must_use]
    pub fn overlap(self, other: Self) -> Option<Self> {
        let top = self.top.max(other.top);
        let rows = self.end().min(other.end()).checked_sub(top)?;
        (rows > 0).then_some(Self { top, rows })
    }
}

/// Why rows cannot be split, or bands are no split of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BandError {
    /// More ranks than there are row units.
    #[error(
        "{ranks} workers cannot share {rows} latent rows: a band needs at least {unit} of them, \
         so at most {} workers can render this height", rows / unit
    )]
    TooFewRows {
        /// Latent rows there are.
        rows: u32,
        /// Ranks that were asked for.
        ranks: usize,
        /// Latent rows a band must at least have.
        unit: u32,
    },
    /// No rank, or more than [`RANKS_MAX`].
    #[error("a plan has 1 to {RANKS_MAX} ranks, not {0}")]
    Ranks(usize),
    /// A band breaks S-4.
    #[error(
        "rank {rank}'s band of {rows} latent rows from row {top} does not start and end at \
         multiples of {unit} rows"
    )]
    Unit {
        /// The rank.
        rank: usize,
        /// Its first row.
        top: u32,
        /// Its rows.
        rows: u32,
        /// The unit.
        unit: u32,
    },
    /// Bands overlap or leave rows out.
    #[error("rank {rank}'s band starts at latent row {top}, but row {expected} comes next")]
    Gap {
        /// The rank.
        rank: usize,
        /// Its first row.
        top: u32,
        /// The row that nobody has yet.
        expected: u32,
    },
    /// Bands end before or after the latent.
    #[error("the bands end at latent row {end}, the latent at row {rows}")]
    End {
        /// Where the last band ends.
        end: u32,
        /// Where the latent ends.
        rows: u32,
    },
}

/// Splits `rows` latent rows among `ranks` ranks in whole units: heights differ by one unit at
/// most, taller bands first.
///
/// # Errors
/// If there are fewer units than ranks, or no or too many ranks.
pub fn split_evenly(rows: u32, unit: u32, ranks: usize) -> Result<Vec<Band>, BandError> {
    if ranks == 0 || ranks > RANKS_MAX {
        return Err(BandError::Ranks(ranks));
    }
    let units = rows / unit;
    let count = u32::try_from(ranks).map_err(|_| BandError::Ranks(ranks))?;
    if units < count {
        return Err(BandError::TooFewRows { rows, ranks, unit });
    }
    let mut top = 0;
    let bands: Vec<Band> = (0..count)
        .map(|rank| {
            let height = (units / count + u32::from(rank < units % count)) * unit;
            let band = Band { top, rows: height };
            top = band.end();
            band
        })
        .collect();
    check_tiling(&bands, rows, unit)?;
    Ok(bands)
}

/// Checks that `bands` cover `rows` latent rows once, in order (S-3), in whole units (S-4).
///
/// # Errors
/// The first band that is wrong.
pub fn check_tiling(bands: &[Band], rows: u32, unit: u32) -> Result<(), BandError> {
    if bands.is_empty() || bands.len() > RANKS_MAX {
        return Err(BandError::Ranks(bands.len()));
    }
    let mut expected = 0;
    for (rank, band) in bands.iter().enumerate() {
        if band.top != expected {
            return Err(BandError::Gap { rank, top: band.top, expected });
        }
        if band.rows == 0 || band.rows % unit != 0 || band.top % unit != 0 {
            return Err(BandError::Unit { rank, top: band.top, rows: band.rows, unit });
        }
        expected = band.top.saturating_add(band.rows);
    }
    if expected == rows { Ok(()) } else { Err(BandError::End { end: expected, rows }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3_even_split_gives_taller_bands_first() {
        let bands = split_evenly(32, 4, 3).expect("8 units for 3 ranks");
        let rows: Vec<u32> = bands.iter().map(|band| band.rows).collect();
        assert_eq!(rows, [12, 12, 8]);
    }

    #[test]
    fn s4_a_band_off_the_unit_is_refused() {
        let bands = [Band { top: 0, rows: 6 }, Band { top: 6, rows: 10 }];
        let refused = check_tiling(&bands, 16, 4);
        assert_eq!(refused, Err(BandError::Unit { rank: 0, top: 0, rows: 6, unit: 4 }));
    }

    #[test]
    fn too_few_rows_say_how_many_workers_fit() {
        let refused = split_evenly(8, 4, 3).expect_err("2 units for 3 ranks");
        assert!(refused.to_string().contains("at most 2 workers"), "{refused}");
    }
}
