//! Bands as tall as their ranks are fast.

use protocol::plan::{Band, BandError, check_tiling, split_evenly};

/// Even bands are kept unless uneven ones are predicted to be faster by this factor: measured
/// speeds are noisy, and images of displaced runs depend on where the bands lie.
pub(super) const GAIN_MIN: f64 = 1.1;

/// Splits `rows` latent rows among ranks of these speeds, in whole units, so that the last of them
/// is done as early as can be.
///
/// # Errors
/// If there are fewer units than ranks, or no or too many ranks.
pub(super) fn split_by_speed(rows: u32, unit: u32, speeds: &[u64]) -> Result<Vec<Band>, BandError> {
    let even = split_evenly(rows, unit, speeds.len())?;
    // Each rank has a unit at least; each further one goes to the rank that is done with it first.
    let mut units = vec![1; speeds.len()];
    for _ in speeds.len()..usize::try_from(rows / unit).unwrap_or(usize::MAX) {
        let done = |rank: &usize| seconds(units[*rank] + 1, speeds[*rank]);
        let next = (0..units.len()).min_by(|one, other| done(one).total_cmp(&done(other)));
        units[next.unwrap_or(0)] += 1;
    }
    let mut top = 0;
    let mut bands = Vec::new();
    for count in units {
        let band = Band { top, rows: count * unit };
        top = band.end();
        bands.push(band);
    }
    check_tiling(&bands, rows, unit)?;
    let gain = slowest(&even, speeds) / slowest(&bands, speeds);
    Ok(if gain < GAIN_MIN { even } else { bands })
}

/// When the last rank is done with its band, in seconds a column.
pub(super) fn slowest(bands: &[Band], speeds: &[u64]) -> f64 {
    let each = bands.iter().zip(speeds).map(|(band, speed)| seconds(band.rows, *speed));
    each.fold(0.0, f64::max)
}

#[expect(clippy::cast_precision_loss, reason = "speeds are far below 2^52 pixels a second")]
fn seconds(rows: u32, speed: u64) -> f64 {
    f64::from(rows) / speed.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: u32, speeds: &[u64]) -> Vec<u32> {
        let bands = split_by_speed(rows, 4, speeds).unwrap();
        bands.iter().map(|band| band.rows).collect()
    }

    #[test]
    fn a_rank_of_half_the_speed_gets_half_the_rows() {
        assert_eq!(rows(96, &[1000, 500]), [64, 32]);
        assert_eq!(rows(128, &[500, 1000, 1000, 500]), [20, 44, 44, 20]);
    }

    #[test]
    fn noise_does_not_move_bands() {
        assert_eq!(rows(128, &[1000, 950, 1040, 1000]), [32, 32, 32, 32]);
    }

    #[test]
    fn the_slowest_still_has_a_unit() {
        assert_eq!(rows(16, &[1000, 1, 1000]), [8, 4, 4]);
        assert_eq!(rows(16, &[1000, 0]), [12, 4]);
    }

    #[test]
    fn as_many_ranks_as_units_have_one_each() {
        assert_eq!(rows(16, &[9, 1, 1, 9]), [4, 4, 4, 4]);
        assert!(split_by_speed(8, 4, &[1, 1, 1]).is_err());
    }
}
