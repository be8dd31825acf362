//! Pictures to begin with: PNG to values, resized as Pillow does, which diffusers leaves it to.

use super::{Error, Result};
use png::{BitDepth, ColorType, Decoder, Limits};
use std::io::{BufRead, Seek};

/// The most memory that reading one may take: a picture of the largest side admitted has 192 MiB.
const BYTES_MAX: usize = 512 << 20;
/// Bits after the point of a filter's weights.
const PRECISION: u32 = 22;
/// The filter's reach, in pixels of the smaller picture.
const SUPPORT: f64 = 3.0;

/// RGB pixels, 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// Reads a PNG of 8 bits a channel, RGB.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn read(png: impl BufRead + Seek) -> Result<Self> {
        let refused = |cause: String| Error::Refused(format!("the picture to begin with: {cause}"));
        let decoder = Decoder::new_with_limits(png, Limits { bytes: BYTES_MAX });
        let mut reader = decoder.read_info().map_err(|error| refused(error.to_string()))?;
        let (color, depth) = reader.output_color_type();
        if (color, depth) != (ColorType::Rgb, BitDepth::Eight) {
            return Err(refused(format!("it is {color:?} of {depth:?} bits, not RGB of 8")));
        }
        let (width, height) = reader.info().size();
        let bytes = reader.output_buffer_size().filter(|bytes| *bytes <= BYTES_MAX);
        let bytes = bytes.ok_or_else(|| refused(format!("{width}x{height} are too large")))?;
        let mut pixels = vec![0; bytes];
        reader.next_frame(&mut pixels).map_err(|error| refused(error.to_string()))?;
        let [width, height] = [width, height].map(|side| usize::try_from(side).unwrap_or(0));
        Ok(Self { width, height, pixels })
    }

    /// It, in another size: Pillow's Lanczos filter, rounding for rounding.
    #[must_use]
    pub fn resized(self, width: usize, height: usize) -> Self {
        let wide = if width == self.width {
            self
        } else {
            let filter = Filter::new(self.width, width);
            let rows = self.pixels.chunks_exact(self.width * 3);
            let pixels = rows.flat_map(|row| filter.along(row)).collect();
            Self { width, height: self.height, pixels }
        };
        if height == wide.height {
            return wide;
        }
        let filter = Filter::new(wide.height, height);
        let row = width * 3;
        let mut pixels = Vec::with_capacity(height * row);
        for place in 0..height {
            let (first, weights) = filter.at(place);
            let rows = &wide.pixels[first * row..];
            pixels.extend((0..row).map(|at| weighed(weights, |index| rows[index * row + at])));
        }
        Self { width, height, pixels }
    }

    /// Its values in -1..1, [1, rows, columns, 3].
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        self.pixels.iter().map(|pixel| f32::from(*pixel) / 255.0 * 2.0 - 1.0).collect()
    }
}

/// What each pixel of a line is made of.
struct Filter {
    firsts: Vec<usize>,
    weights: Vec<Vec<i32>>,
}

impl Filter {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "places within pictures; Pillow truncates here"
    )]
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let line = |place: usize| {
            let center = (place as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(from);
            let places = first..last.max(first);
            let raw: Vec<f64> =
                places.map(|x| lanczos((x as f64 - center + 0.5) * (1.0 / filter_scale))).collect();
            let sum: f64 = raw.iter().sum();
            let unit = f64::from(1 << PRECISION);
            let fixed = raw.iter().map(|weight| {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                (weight * unit + 0.5_f64.copysign(weight)) as i32
            });
            (first, fixed.collect())
        };
        let (firsts, weights) = (0..to).map(line).unzip();
        Self { firsts, weights }
    }

    fn at(&self, place: usize) -> (usize, &[i32]) {
        (self.firsts[place], &self.weights[place])
    }

    /// A row of pixels.
    fn along(&self, row: &[u8]) -> Vec<u8> {
        let lines = self.firsts.iter().zip(&self.weights);
        lines
            .flat_map(|(first, weights)| {
                [0, 1, 2]
                    .map(|channel| weighed(weights, |index| row[(first + index) * 3 + channel]))
            })
            .collect()
    }
}

fn weighed(weights: &[i32], pixel: impl Fn(usize) -> u8) -> u8 {
    let half = 1_i32 << (PRECISION - 1);
    let terms = weights.iter().enumerate().map(|(index, weight)| weight * i32::from(pixel(index)));
    let sum = terms.fold(half, i32::wrapping_add) >> PRECISION;
    u8::try_from(sum.clamp(0, 255)).unwrap_or(0)
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) }
    };
    if (-SUPPORT..SUPPORT).contains(&x) { sinc(x) * sinc(x / SUPPORT) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Pillow 12: `Image.resize((8, 7), LANCZOS)` and to (2, 2).
    #[test]
    fn sizes_change_as_in_pillow() {
        let pixels = (0..45_usize).map(|at| u8::try_from((at * 37 + 11) % 256).unwrap()).collect();
        let picture = Picture { width: 5, height: 3, pixels };
        let large = picture.clone().resized(8, 7).pixels;
        let begins =
            [0, 28, 66, 31, 101, 133, 132, 153, 178, 255, 51, 75, 221, 6, 71, 88, 107, 158];
        assert_eq!((large.len(), &large[..18]), (168, &begins[..]));
        assert_eq!(large.iter().map(|pixel| u32::from(*pixel)).sum::<u32>(), 20_922);
        let small = picture.clone().resized(2, 2).pixels;
        assert_eq!(small, [93, 94, 148, 166, 122, 101, 119, 167, 135, 115, 119, 156]);
        assert_eq!(picture.clone().resized(5, 3), picture);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for bytes in [&b""[..], b"GIF89a", b"\x89PNG\r\n\x1a\n"] {
            let refused = Picture::read(std::io::Cursor::new(bytes)).unwrap_err();
            assert!(refused.to_string().contains("picture"), "{refused}");
        }
    }
}
