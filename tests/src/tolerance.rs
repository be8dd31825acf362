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

/// Peak signal to noise ratio of 8-bit values in dB.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "images have far fewer than 2^52 values")]
pub fn psnr(one: &[u8], other: &[u8]) -> f64 {
    let square = |(one, other): (&u8, &u8)| (f64::from(*one) - f64::from(*other)).powi(2);
    let error = one.iter().zip(other).map(square).sum::<f64>() / one.len() as f64;
    10.0 * (255.0 * 255.0 / error).log10()
}
