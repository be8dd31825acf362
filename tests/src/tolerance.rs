//! How far results are from what they should be.

/// `|got - want| / |want|` in the Euclidean norm.
///
/// # Panics
/// If the two are not of one length.
#[must_use]
pub fn relative_l2(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "results of different sizes cannot be compared");
    let difference: f64 = got.iter().zip(want).map(|(got, want)| (got - want).powi(2)).sum();
    let norm: f64 = want.iter().map(|want| want.powi(2)).sum();
    (difference / norm).sqrt()
}

/// The largest difference of two values at the same place.
///
/// # Panics
/// If the two are not of one length.
#[must_use]
pub fn largest_difference(one: &[u8], other: &[u8]) -> u8 {
    assert_eq!(one.len(), other.len(), "images of different sizes cannot be compared");
    one.iter().zip(other).map(|(one, other)| one.abs_diff(*other)).max().unwrap_or(0)
}
