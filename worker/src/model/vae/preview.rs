//! How the decoder's colours follow from the latent's channels, as far as a linear map can tell.
//!
//! There are no images to learn that from, so the decoder is given a latent that looks like one of an image.

use super::VaeDecoder;
use crate::model::Result;
use crate::model::exchange::Dense;
use crate::model::noise::TorchGenerator;
use crate::model::tensor::{Memory, Tensor};
use protocol::job::PreviewMap;

/// Rows and columns of the latent that is decoded: a third of a second of SDXL's decoder on one core, and colours enough
/// for 24 channels.
const SIDE: usize = 16;
/// How many rows and columns lie between values that are drawn: those between them are in between, as neighbours in an
/// image's latent are alike. Chosen by measurement (docs/previews.md).
const APART: usize = 4;
/// The seed of that noise: the map is the same wherever it is learnt.
const SEED: u64 = 7;
/// What is added to each channel's squares, as if one more pixel had shown that it has no colour: one that moves nothing
/// then has none.
const RIDGE: f64 = 1.0;

impl VaeDecoder {
    /// The linear map from latents, as the sampler leaves them, that comes closest to what this decodes them to; None
    /// if it decodes to no numbers.
    ///
    /// # Errors
    /// If `memory` has no room for the image.
    pub fn preview(&self, memory: &Memory) -> Result<Option<PreviewMap>> {
        let (channels, factor) = (self.config.latent_channels, self.config.factor());
        let latent = latent(channels);
        let tensor = Tensor::new(memory, &latent, [1, SIDE, SIDE, channels])?;
        let image = self.decode(&tensor, &mut Dense)?;
        let image = image.to_host()?;
        let mut squares = LeastSquares::new(channels);
        for (pixel, index) in latent.chunks_exact(channels).zip(0..) {
            squares.add(pixel, mean_colour(&image, factor, (index / SIDE, index % SIDE)));
        }
        Ok(squares.solve(RIDGE))
    }
}

/// Noise of unit variance, which is what `scaling_factor` gives latents, smoothly from pixel to pixel: [`SIDE`, `SIDE`,
/// channels].
fn latent(channels: usize) -> Vec<f32> {
    let across = SIDE / APART + 1;
    let noise = TorchGenerator::new(SEED).randn(across * across * channels);
    let mut latent = Vec::with_capacity(SIDE * SIDE * channels);
    for row in 0..SIDE {
        for column in 0..SIDE {
            let corners = corners(row, column).map(|(row, column, share)| {
                let from = (row * across + column) * channels;
                (&noise[from..from + channels], share)
            });
            let value = |channel: usize| {
                corners.iter().map(|(values, share)| values[channel] * share).sum::<f32>()
            };
            latent.extend((0..channels).map(value));
        }
    }
    latent
}

/// The four drawn values around a pixel, and what each counts: their squares sum up to one.
fn corners(row: usize, column: usize) -> [(usize, usize, f32); 4] {
    #[expect(clippy::cast_precision_loss, reason = "a few pixels")]
    let beyond = |place: usize| (place % APART) as f32 / APART as f32;
    let (top, left, down, right) = (row / APART, column / APART, beyond(row), beyond(column));
    let corners = [
        (top, left, (1.0 - down) * (1.0 - right)),
        (top, left + 1, (1.0 - down) * right),
        (top + 1, left, down * (1.0 - right)),
        (top + 1, left + 1, down * right),
    ];
    let squares: f32 = corners.iter().map(|(_, _, share)| share * share).sum();
    corners.map(|(row, column, share)| (row, column, share / squares.sqrt()))
}

/// The colour, from 0 to 1, of the part of `image` [`SIDE` x factor, `SIDE` x factor, 3], in -1..1, that one latent pixel
/// becomes. What lies beyond black and white counts, though an image has it not: a linear map is nearer to it.
fn mean_colour(image: &[f32], factor: usize, (row, column): (usize, usize)) -> [f64; 3] {
    let mut sum = [0.0; 3];
    for line in image.chunks_exact(SIDE * factor * 3).skip(row * factor).take(factor) {
        for pixel in line.chunks_exact(3).skip(column * factor).take(factor) {
            for (sum, value) in sum.iter_mut().zip(pixel) {
                *sum += f64::from(value / 2.0 + 0.5);
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "an area in pixels")]
    sum.map(|sum| sum / (factor * factor) as f64)
}

/// What is known of the colours of latent pixels: the normal equations of their channels and a constant.
struct LeastSquares {
    /// [terms, terms], the constant last.
    products: Vec<Vec<f64>>,
    /// [terms].
    colours: Vec<[f64; 3]>,
}

impl LeastSquares {
    fn new(channels: usize) -> Self {
        let terms = channels + 1;
        Self { products: vec![vec![0.0; terms]; terms], colours: vec![[0.0; 3]; terms] }
    }

    fn add(&mut self, pixel: &[f32], colour: [f64; 3]) {
        let terms: Vec<f64> = pixel.iter().map(|value| f64::from(*value)).chain([1.0]).collect();
        for ((products, colours), one) in
            self.products.iter_mut().zip(&mut self.colours).zip(&terms)
        {
            products.iter_mut().zip(&terms).for_each(|(sum, other)| *sum += one * other);
            colours.iter_mut().zip(colour).for_each(|(sum, value)| *sum += one * value);
        }
    }

    /// By elimination: with `ridge` added, each pivot is positive.
    #[expect(clippy::cast_possible_truncation, reason = "a map is of f32")]
    fn solve(mut self, ridge: f64) -> Option<PreviewMap> {
        let terms = self.colours.len();
        for (channel, products) in self.products.iter_mut().enumerate().take(terms - 1) {
            products[channel] += ridge;
        }
        for pivot in 0..terms {
            let (row, colour) = (self.products[pivot].clone(), self.colours[pivot]);
            for other in (0..terms).filter(|other| *other != pivot) {
                let factor = self.products[other][pivot] / row[pivot];
                let sums = self.products[other].iter_mut().zip(&row);
                sums.for_each(|(sum, value)| *sum -= factor * value);
                let sums = self.colours[other].iter_mut().zip(colour);
                sums.for_each(|(sum, value)| *sum -= factor * value);
            }
        }
        let solved = self.colours.iter().zip(self.products.iter().enumerate());
        let solved = solved.map(|(colour, (term, row))| colour.map(|sum| (sum / row[term]) as f32));
        let mut weights: Vec<[f32; 3]> = solved.collect();
        let offset = weights.pop()?;
        let finite = weights.iter().chain([&offset]).flatten().all(|value| value.is_finite());
        finite.then_some(PreviewMap { weights, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: [[f64; 3]; 5] =
        [[0.3, -0.1, 0.0], [0.0, 0.2, 0.05], [-0.25, 0.1, 0.4], [0.0; 3], [0.5, 0.4, 0.6]];

    /// Of all pixels of the latent, each of its colour by `MAP`, changed by `change`.
    fn learnt(ridge: f64, change: impl Fn(usize, f64) -> f64) -> Option<PreviewMap> {
        let mut squares = LeastSquares::new(4);
        for (index, pixel) in latent(4).chunks_exact(4).enumerate() {
            let mut colour = MAP[4];
            for (weights, value) in MAP.iter().zip(pixel) {
                colour.iter_mut().zip(weights).for_each(|(sum, by)| *sum += by * f64::from(*value));
            }
            squares.add(pixel, colour.map(|value| change(index, value)));
        }
        squares.solve(ridge)
    }

    fn off(map: &PreviewMap) -> f64 {
        let got = map.weights.iter().chain([&map.offset]).flatten();
        let off = got.zip(MAP.iter().flatten()).map(|(got, want)| (f64::from(*got) - want).abs());
        off.fold(0.0, f64::max)
    }

    #[test]
    fn a_linear_decoder_is_learnt_exactly() {
        assert!(off(&learnt(0.0, |_, value| value).unwrap()) < 1e-6);
        // The ridge is of one pixel among all.
        assert!(off(&learnt(RIDGE, |_, value| value).unwrap()) < 1e-2);
        // What no linear map tells is not learnt; the rest is.
        let noisy = |index, value| if index % 2 == 0 { value + 0.05 } else { value - 0.05 };
        let error = off(&learnt(RIDGE, noisy).unwrap());
        assert!(1e-3 < error && error < 0.05, "{error}");
    }

    #[test]
    fn of_what_is_no_number_nothing_is_learnt() {
        assert_eq!(learnt(RIDGE, |index, value| if index == 9 { f64::NAN } else { value }), None);
        let nothing = LeastSquares::new(4);
        assert_eq!(nothing.solve(0.0), None);
    }

    #[test]
    fn the_latent_has_the_variance_of_an_images_and_is_alike_from_pixel_to_pixel() {
        let latent = latent(4);
        let pixels: Vec<&[f32]> = latent.chunks_exact(4).collect();
        let squares: f32 = latent.iter().map(|value| value * value).sum();
        let variance = squares / latent.len() as f32;
        assert!((0.5..1.6).contains(&variance), "{variance}");
        let apart = |pair: &[&[f32]]| (pair[0][0] - pair[1][0]).powi(2);
        let moved: f32 = pixels.windows(2).map(apart).sum::<f32>() / pixels.len() as f32;
        // Of values that know nothing of each other it would be two.
        assert!(moved < 0.7, "{moved}");
    }

    #[test]
    fn each_latent_pixel_has_its_own_part_of_the_image() {
        let factor = 2;
        // -1 everywhere but in the four pixels of one.
        let mut image = vec![-1.0; SIDE * factor * SIDE * factor * 3];
        for (row, column) in [(6, 10), (6, 11), (7, 10), (7, 11)] {
            let from = (row * SIDE * factor + column) * 3;
            image[from..from + 3].copy_from_slice(&[1.0, 0.0, 3.0]);
        }
        let is = |place, want: [f64; 3]| {
            let got = mean_colour(&image, factor, place);
            let same = got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-6);
            assert!(same, "{got:?} at {place:?}");
        };
        is((3, 5), [1.0, 0.5, 2.0]);
        for beside in [(3, 4), (3, 6), (2, 5), (4, 5), (0, 0), (15, 15)] {
            is(beside, [0.0; 3]);
        }
    }
}
