//! How alike two images are. Both are RGB bytes [height, width, 3].

use std::fmt;

/// The window of [`ssim`]: Wang, Bovik, Sheikh and Simoncelli's Gaussian of 11 pixels, 1.5 wide.
const RADIUS: usize = 5;
const SIGMA: f64 = 1.5;
/// What keeps [`ssim`] finite where an image is even: (0.01 * 255)^2 and (0.03 * 255)^2.
const C1: f64 = 6.5025;
const C2: f64 = 58.5225;

/// How alike an image is to another.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Similarity {
    /// Peak signal to noise ratio in dB; infinite if they are the same.
    pub psnr: f64,
    /// Structural similarity, 1 if they are the same; None for images smaller than its window.
    pub ssim: Option<f64>,
}

impl Similarity {
    /// Compares images `width` pixels wide.
    #[must_use]
    pub fn of(one: &[u8], other: &[u8], width: usize) -> Self {
        Self { psnr: psnr(one, other), ssim: ssim(one, other, width) }
    }
}

impl fmt::Display for Similarity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let psnr =
            if self.psnr.is_finite() { format!("{:.1}", self.psnr) } else { "same".to_owned() };
        let ssim = self.ssim.map_or_else(|| "-".to_owned(), |ssim| format!("{ssim:.4}"));
        write!(f, "{psnr:>6} {ssim:>7}")
    }
}

#[expect(clippy::cast_precision_loss, reason = "images have far fewer than 2^52 values")]
fn psnr(one: &[u8], other: &[u8]) -> f64 {
    let square = |(one, other): (&u8, &u8)| (f64::from(*one) - f64::from(*other)).powi(2);
    let error = one.iter().zip(other).map(square).sum::<f64>() / one.len() as f64;
    10.0 * (255.0 * 255.0 / error).log10()
}

/// The mean over windows and colours, as scikit-image's `structural_similarity` with
/// `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2`.
#[expect(clippy::cast_precision_loss, reason = "images have far fewer than 2^52 values")]
fn ssim(one: &[u8], other: &[u8], width: usize) -> Option<f64> {
    let height = one.len() / 3 / width;
    if width <= 2 * RADIUS || height <= 2 * RADIUS {
        return None;
    }
    let mut sum = 0.0;
    for colour in 0..3 {
        let plane = |rgb: &[u8]| -> Vec<f64> {
            rgb.iter().skip(colour).step_by(3).map(|value| f64::from(*value)).collect()
        };
        let (x, y) = (plane(one), plane(other));
        let product = |a: &[f64], b: &[f64]| -> Vec<f64> {
            let both: Vec<f64> = a.iter().zip(b).map(|(a, b)| a * b).collect();
            blur(&both, width)
        };
        let (mean_x, mean_y) = (blur(&x, width), blur(&y, width));
        let (xx, yy, xy) = (product(&x, &x), product(&y, &y), product(&x, &y));
        for at in 0..mean_x.len() {
            let (mx, my) = (mean_x[at], mean_y[at]);
            let spread = xx[at] - mx * mx + yy[at] - my * my;
            let together = xy[at] - mx * my;
            sum += (2.0 * mx * my + C1) * (2.0 * together + C2)
                / ((mx * mx + my * my + C1) * (spread + C2));
        }
    }
    let windows = (width - 2 * RADIUS) * (height - 2 * RADIUS);
    Some(sum / (3 * windows) as f64)
}

/// Gaussian means of all windows that lie within the image.
#[expect(clippy::cast_precision_loss, reason = "a window of 11 pixels")]
fn blur(plane: &[f64], width: usize) -> Vec<f64> {
    let weights = (0..=2 * RADIUS).map(|at| {
        let from_centre = at as f64 - RADIUS as f64;
        (-from_centre * from_centre / (2.0 * SIGMA * SIGMA)).exp()
    });
    let weights: Vec<f64> = weights.collect();
    let total: f64 = weights.iter().sum();
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        values.zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / total
    };
    let inner = width - 2 * RADIUS;
    let along: Vec<f64> = plane
        .chunks_exact(width)
        .flat_map(|row| row.windows(2 * RADIUS + 1))
        .map(|window| mean(&mut window.iter().copied()))
        .collect();
    let rows = along.len() / inner - 2 * RADIUS;
    (0..rows * inner).map(|at| mean(&mut along[at..].iter().step_by(inner).copied())).collect()
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test values are bytes")]
mod tests {
    use super::*;

    /// Two images of 40x32 that a few lines of any language can make.
    fn images() -> [Vec<u8>; 2] {
        let pixel = |at: usize| ((at / 3 % 40) * 5 + (at / 120) * 3 + (at % 3) * 40) % 256;
        let one: Vec<u8> = (0..40 * 32 * 3).map(|at| pixel(at) as u8).collect();
        let other =
            one.iter().enumerate().map(|(at, value)| value.wrapping_add((at * at % 23) as u8));
        [one.clone(), other.collect()]
    }

    #[test]
    fn values_are_those_of_scikit_image() {
        let [one, other] = images();
        let similarity = Similarity::of(&one, &other, 40);
        println!("{similarity:?}");
        assert!((similarity.psnr - 15.388_859_970_778_963).abs() < 1e-6, "{similarity:?}");
        assert!(
            (similarity.ssim.unwrap() - 0.712_345_403_613_453_3).abs() < 1e-6,
            "{similarity:?}"
        );
    }

    #[test]
    fn an_image_is_like_itself() {
        let [one, _] = images();
        let same = Similarity::of(&one, &one, 40);
        assert!(same.psnr.is_infinite() && (same.ssim.unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(
            Similarity::of(&one[..300], &one[..300], 10).ssim,
            None,
            "smaller than a window"
        );
        assert_eq!(same.to_string(), "  same  1.0000");
    }
}
