//! Pictures that images begin with: PNG or JPEG in, the one form that workers read out.

use image::codecs::jpeg::JpegDecoder;
use image::{DynamicImage, ImageDecoder, ImageError, Limits};
use png::{BitDepth, ColorType, Decoder, DecodingError, Encoder, EncodingError, Transformations};
use protocol::job::PICTURE_BYTES_MAX;
use protocol::plan::SIDE_MAX;
use std::io::{BufRead, Cursor, Seek};

/// The longest side: twice that of the largest image, so that a photograph need not be scaled down first.
pub const PICTURE_SIDE_MAX: u32 = 2 * SIDE_MAX;
/// How a PNG begins.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// How a JPEG begins.
const JPEG: &[u8] = b"\xff\xd8\xff";

/// Why a picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// It is neither.
    #[error("it is neither PNG nor JPEG: convert it to one of them")]
    Kind,
    /// It is too large.
    #[error("it has {width}x{height} pixels; at most {PICTURE_SIDE_MAX} on a side are taken")]
    Side {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
    },
    /// It has too many pixels.
    #[error("it has {width}x{height} pixels; at most {most} in all are taken: scale it down")]
    Pixels {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// The most there may be.
        most: u64,
    },
    /// It is too long as PNG.
    #[error("as PNG it has {bytes} bytes; at most {PICTURE_BYTES_MAX} are taken: scale it down")]
    Bytes {
        /// How long it is.
        bytes: usize,
    },
    /// It is a damaged PNG.
    #[error("it is no whole PNG: {0}")]
    Png(#[from] DecodingError),
    /// It is a damaged JPEG.
    #[error("it is no whole JPEG: {0}")]
    Jpeg(#[from] ImageError),
    /// It cannot be written.
    #[error("it cannot be written as PNG: {0}")]
    Unwritten(#[from] EncodingError),
}

/// A picture as workers read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// A PNG of 8 bits a channel, RGB.
    pub png: Vec<u8>,
    /// Its width in pixels.
    pub width: u32,
    /// Its height in pixels.
    pub height: u32,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({}x{})", self.width, self.height)
    }
}

impl Picture {
    /// Reads a PNG or a JPEG. What is transparent is shown, as in diffusers; a JPEG is turned as its camera says.
    ///
    /// # Errors
    /// If it is anything else, damaged or too large.
    pub fn read(bytes: &[u8]) -> Result<Self, PictureError> {
        Self::read_within(bytes, u64::MAX)
    }

    /// The same, of at most so many pixels: they are in memory for a moment.
    ///
    /// # Errors
    /// If it is anything else, damaged or too large.
    pub fn read_within(bytes: &[u8], pixels_max: u64) -> Result<Self, PictureError> {
        let (pixels, width, height) = if bytes.starts_with(PNG) {
            read_png(bytes, pixels_max)?
        } else if bytes.starts_with(JPEG) {
            read_jpeg(bytes, pixels_max)?
        } else {
            return Err(PictureError::Kind);
        };
        let mut png = Vec::new();
        let mut encoder = Encoder::new(&mut png, width, height);
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(BitDepth::Eight);
        encoder.write_header()?.write_image_data(&pixels)?;
        if png.len() as u64 > PICTURE_BYTES_MAX {
            return Err(PictureError::Bytes { bytes: png.len() });
        }
        Ok(Self { png, width, height })
    }
}

/// Whether a file begins as a picture that is read does.
#[must_use]
pub fn is_picture(head: &[u8]) -> bool {
    head.starts_with(PNG) || head.starts_with(JPEG)
}

/// Width and height of a picture in the form that workers read; None if it is none.
pub fn size(png: impl BufRead + Seek) -> Option<(u32, u32)> {
    Decoder::new(png).read_header_info().ok().map(|info| info.size())
}

fn check_size(width: u32, height: u32, most: u64) -> Result<(), PictureError> {
    if width.max(height) > PICTURE_SIDE_MAX {
        return Err(PictureError::Side { width, height });
    }
    let fits = u64::from(width) * u64::from(height) <= most;
    if fits { Ok(()) } else { Err(PictureError::Pixels { width, height, most }) }
}

fn read_png(bytes: &[u8], pixels_max: u64) -> Result<(Vec<u8>, u32, u32), PictureError> {
    let mut decoder = Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::normalize_to_color8());
    let (width, height) = decoder.read_header_info()?.size();
    check_size(width, height, pixels_max)?;
    let mut reader = decoder.read_info()?;
    let size = reader.output_buffer_size().ok_or(PictureError::Side { width, height })?;
    let mut values = vec![0; size];
    reader.next_frame(&mut values)?;
    let samples = reader.output_color_type().0.samples();
    let rgb = |pixel: &[u8]| match pixel {
        [gray] | [gray, _] => [*gray; 3],
        [red, green, blue, ..] => [*red, *green, *blue],
        [] => [0; 3],
    };
    Ok((values.chunks_exact(samples).flat_map(rgb).collect(), width, height))
}

fn read_jpeg(bytes: &[u8], pixels_max: u64) -> Result<(Vec<u8>, u32, u32), PictureError> {
    let mut decoder = JpegDecoder::new(Cursor::new(bytes))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, pixels_max)?;
    decoder.set_limits(Limits::no_limits())?; // the sides are checked
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    let (width, height) = picture.dimensions();
    Ok((picture.into_raw(), width, height))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(color: ColorType, values: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, width, height);
        encoder.set_color(color);
        encoder.write_header().unwrap().write_image_data(values).unwrap();
        out
    }

    fn pixels(picture: &Picture) -> Vec<u8> {
        let (pixels, width, height) = read_png(&picture.png, u64::MAX).unwrap();
        assert_eq!((width, height), (picture.width, picture.height));
        assert_eq!(size(Cursor::new(&picture.png)), Some((width, height)));
        pixels
    }

    #[test]
    fn any_png_becomes_rgb() {
        let of =
            |color, values: &[u8]| pixels(&Picture::read(&png(color, values, (2, 1))).unwrap());
        assert_eq!(of(ColorType::Rgb, &[1, 2, 3, 4, 5, 6]), [1, 2, 3, 4, 5, 6]);
        assert_eq!(of(ColorType::Rgba, &[1, 2, 3, 0, 4, 5, 6, 255]), [1, 2, 3, 4, 5, 6]);
        assert_eq!(of(ColorType::Grayscale, &[7, 9]), [7, 7, 7, 9, 9, 9]);
        assert_eq!(of(ColorType::GrayscaleAlpha, &[7, 0, 9, 1]), [7, 7, 7, 9, 9, 9]);
    }

    #[test]
    fn a_jpeg_is_read() {
        let mut jpeg = Vec::new();
        let gray = vec![100; 16 * 8 * 3];
        image::codecs::jpeg::JpegEncoder::new(&mut jpeg)
            .encode(&gray, 16, 8, image::ExtendedColorType::Rgb8)
            .unwrap();
        let picture = Picture::read(&jpeg).unwrap();
        assert_eq!((picture.width, picture.height), (16, 8));
        assert!(pixels(&picture).iter().all(|value| value.abs_diff(100) <= 2));
        assert!(matches!(Picture::read(&jpeg[..100]), Err(PictureError::Jpeg(_))));
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        assert!(matches!(Picture::read(b"GIF89a..."), Err(PictureError::Kind)));
        assert!(matches!(Picture::read(b""), Err(PictureError::Kind)));
        let whole = png(ColorType::Rgb, &[0; 300], (10, 10));
        assert!(matches!(Picture::read(&whole[..40]), Err(PictureError::Png(_))));
        let refused = Picture::read_within(&whole, 99).unwrap_err();
        assert!(refused.to_string().contains("10x10") && refused.to_string().contains("99"));
        assert!(Picture::read_within(&whole, 100).is_ok());
        assert!(is_picture(&whole) && !is_picture(b"GIF89a") && size(Cursor::new(b"")).is_none());
        let wide = png(ColorType::Grayscale, &[0; 16_385], (16_385, 1));
        let refused = Picture::read(&wide).unwrap_err();
        assert!(refused.to_string().contains("16385x1"), "{refused}");
    }
}
