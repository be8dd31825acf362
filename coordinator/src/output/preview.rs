//! A latent as a small picture, before it is decoded.

use png::{BitDepth, ColorType, Encoder};
use protocol::job::{PreviewError as MapError, PreviewMap};
use protocol::plan::Geometry;

/// The largest root mean square of a latent that is shown as it is. Samplers that count in sigmas begin with noise
/// of 14 times an image's range, of which nothing would be seen; images themselves stay below this.
const RANGE: f64 = 2.0;

/// How much larger than its latent a preview may be.
pub const ENLARGED_MAX: u32 = 8;

/// Why there is no preview.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreviewError {
    /// The latent is of another shape.
    #[error("a latent of {channels} x {rows} x {columns} values has {wanted} bytes, not {got}")]
    Latent {
        /// Its channels.
        channels: u32,
        /// Its rows.
        rows: u32,
        /// Its columns.
        columns: u32,
        /// The bytes of such a latent.
        wanted: u64,
        /// Those given.
        got: usize,
    },
    /// The map is of another model, or of no numbers.
    #[error("the latent cannot be shown: {0}")]
    Map(#[from] MapError),
    /// It would be too large.
    #[error("a preview is 1 to {ENLARGED_MAX} times as large as its latent, not {0}")]
    Enlarged(u32),
    /// The picture cannot be encoded.
    #[error("the preview cannot be encoded: {0}")]
    Encode(#[from] png::EncodingError),
}

/// The latent [channels, rows, columns], little-endian f32, as RGB bytes [rows, columns, 3].
///
/// # Errors
/// If the latent or the map is not of the shape of `geometry`.
pub fn preview(
    latent: &[u8],
    geometry: Geometry,
    map: &PreviewMap,
) -> Result<Vec<u8>, PreviewError> {
    let Geometry { channels, rows, columns, .. } = geometry;
    map.check(channels)?;
    let (values, rest) = latent.as_chunks::<4>();
    let pixels = u64::from(rows) * u64::from(columns);
    let wanted = pixels.saturating_mul(u64::from(channels)).saturating_mul(4);
    let (Ok(pixels), true) = (usize::try_from(pixels), as_u64(latent.len()) == wanted) else {
        let got = latent.len();
        return Err(PreviewError::Latent { channels, rows, columns, wanted, got });
    };
    debug_assert!(rest.is_empty(), "the length is a multiple of four");
    let values: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let scale = scale(&values);
    let colour = |pixel: usize| {
        let channels = map.weights.iter().zip(values.iter().skip(pixel).step_by(pixels));
        channels.fold(map.offset, |[red, green, blue], (weights, value)| {
            let value = value * scale;
            [
                weights[0].mul_add(value, red),
                weights[1].mul_add(value, green),
                weights[2].mul_add(value, blue),
            ]
        })
    };
    Ok((0..pixels).flat_map(|pixel| colour(pixel).map(to_byte)).collect())
}

/// The preview as a PNG, `enlarged` times as large as the latent, smoothly.
///
/// # Errors
/// As [`preview`], or if `enlarged` is more than [`ENLARGED_MAX`] or 0.
pub fn preview_png(
    latent: &[u8],
    geometry: Geometry,
    map: &PreviewMap,
    enlarged: u32,
) -> Result<Vec<u8>, PreviewError> {
    if !(1..=ENLARGED_MAX).contains(&enlarged) {
        return Err(PreviewError::Enlarged(enlarged));
    }
    let small = preview(latent, geometry, map)?;
    let (width, height) = (geometry.columns * enlarged, geometry.rows * enlarged);
    let pixels = enlarge(&small, geometry, enlarged);
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(file)
}

/// What a latent is multiplied with to be in an image's range.
#[expect(clippy::cast_possible_truncation, reason = "between 0 and 1")]
#[expect(clippy::cast_precision_loss, reason = "a latent has few values")]
fn scale(values: &[f32]) -> f32 {
    let squares: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
    let rms = (squares / values.len().max(1) as f64).sqrt();
    if rms.is_finite() { (RANGE / rms).min(1.0) as f32 } else { 1.0 }
}

/// 0..1 to 0..255. What is no number is black.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
fn to_byte(value: f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// RGB bytes [rows, columns, 3] `times` as large, bilinearly between the centres of pixels.
fn enlarge(small: &[u8], geometry: Geometry, times: u32) -> Vec<u8> {
    let (rows, columns) = (index(geometry.rows), index(geometry.columns));
    let down = positions(geometry.rows, times);
    let across = positions(geometry.columns, times);
    let mut large = Vec::with_capacity(down.len() * across.len() * 3);
    for (top, below) in &down {
        for (left, beside) in &across {
            let corner = |row: usize, column: usize, channel: usize| {
                let (row, column) = (row.min(rows - 1), column.min(columns - 1));
                f32::from(small[(row * columns + column) * 3 + channel])
            };
            for channel in 0..3 {
                let mix = |row| {
                    let (one, other) =
                        (corner(row, *left, channel), corner(row, left + 1, channel));
                    beside.mul_add(other - one, one)
                };
                let (upper, lower) = (mix(*top), mix(top + 1));
                large.push(to_byte(below.mul_add(lower - upper, upper) / 255.0));
            }
        }
    }
    large
}

/// For each of `count * times` pixels the one before it of `count`, and how far it lies beyond that one's centre.
fn positions(count: u32, times: u32) -> Vec<(usize, f32)> {
    let place = |pixel: u32| {
        // In halves of a large pixel, from the first small one's centre.
        let halves = (2 * pixel + 1).saturating_sub(times);
        let small = halves / (2 * times);
        let beyond = f64::from(halves % (2 * times)) / f64::from(2 * times);
        #[expect(clippy::cast_possible_truncation, reason = "between 0 and 1")]
        (index(small), beyond as f32)
    };
    (0..count * times).map(place).collect()
}

fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn as_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry =
        Geometry { rows: 1, columns: 2, channels: 2, row_unit: 1, vae_factor: 8 };

    fn map() -> PreviewMap {
        PreviewMap { weights: vec![[0.5, 0.0, 0.0], [0.0, 0.25, -0.5]], offset: [0.5, 0.25, 0.5] }
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn each_channel_adds_its_colour() {
        // The first channel of both pixels, then the second.
        let pixels = preview(&bytes(&[0.0, 1.0, 1.0, -1.0]), GEOMETRY, &map()).unwrap();
        assert_eq!(pixels, [128, 128, 0, 255, 0, 255]);
    }

    #[test]
    fn noise_beyond_an_images_range_is_brought_into_it() {
        let shown = |factor: f32| {
            let latent = bytes(&[0.8, -1.4, 1.4, -0.8].map(|value| value * factor));
            preview(&latent, GEOMETRY, &map()).unwrap()
        };
        assert_eq!(shown(14.0), shown(1000.0));
        assert_ne!(shown(14.0), shown(0.5));
        let nothing = bytes(&[f32::NAN, f32::INFINITY, 0.0, 0.0]);
        assert_eq!(preview(&nothing, GEOMETRY, &map()).unwrap(), [0, 0, 0, 255, 0, 0]);
    }

    #[test]
    fn what_does_not_fit_is_said_with_its_numbers() {
        let latent = bytes(&[0.0; 4]);
        for wrong in [&latent[..12], &latent[..15], &[]] {
            let error = preview(wrong, GEOMETRY, &map()).unwrap_err().to_string();
            assert!(error.contains(&format!("2 x 1 x 2 values has 16 bytes, not {}", wrong.len())));
        }
        let huge = Geometry { rows: u32::MAX, columns: u32::MAX, channels: 2, ..GEOMETRY };
        assert!(matches!(preview(&latent, huge, &map()), Err(PreviewError::Latent { .. })));
        let other = PreviewMap { weights: vec![[0.0; 3]; 3], ..map() };
        let error = preview(&latent, GEOMETRY, &other).unwrap_err().to_string();
        assert!(error.contains("3 channels, its latent 2"), "{error}");
        for times in [0, ENLARGED_MAX + 1] {
            let error = preview_png(&latent, GEOMETRY, &map(), times).unwrap_err();
            assert!(error.to_string().ends_with(&format!("not {times}")), "{error}");
        }
    }

    #[test]
    fn a_png_is_the_preview_and_may_be_enlarged_smoothly() {
        let latent = bytes(&[-1.0, 1.0, 0.0, 0.0]);
        let read = |enlarged| {
            let file = preview_png(&latent, GEOMETRY, &map(), enlarged).unwrap();
            let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let frame = reader.next_frame(&mut pixels).unwrap();
            (frame.width, frame.height, pixels)
        };
        let (width, height, pixels) = read(1);
        assert_eq!((width, height), (2, 1));
        assert_eq!(pixels, preview(&latent, GEOMETRY, &map()).unwrap());
        let (width, height, pixels) = read(4);
        assert_eq!((width, height), (8, 4));
        let reds: Vec<u8> = pixels.iter().step_by(3).take(8).copied().collect();
        // Centres of the small pixels are at 1.5 and 5.5.
        assert_eq!(reds, [0, 0, 32, 96, 159, 223, 255, 255]);
        assert_eq!(pixels[..24], pixels[72..], "rows are alike, as there is but one");
    }
}
